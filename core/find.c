/*
 * find.c - which hold of a key a session means, and what it may believe of it here and now: the
 * local checks, which send nothing.
 */
#include "engine.h"

#include <string.h>

static bool better(const struct dfl_hold *h, const struct dfl_hold *best)
{
    if (best == NULL)
        return true;
    if (h->kind != best->kind)
        return h->kind == DFL_LOCK;
    return h->acquired_ms >=
           best->acquired_ms; /* the list is in order of asking: the later one wins a tie */
}

/* Held or lost, of that kind and scope (scope < 0: any). */
static struct dfl_hold *find_hold(struct dfl_session *s, struct dfl_key *key, enum dfl_kind kind,
                                  int scope)
{
    struct dfl_hold *best = NULL;

    if (key == NULL)
        return NULL;
    DFL_EACH(l, &key->holds) {
        struct dfl_hold *h = DFL_CONTAINER(l, struct dfl_hold, by_key);

        if (h->session == s &&
            (h->state == DFL_HELD || (h->state == DFL_STATE_LOST && h->acquired_ms)) &&
            (kind == DFL_ANY_KIND || h->kind == kind) &&
            (scope < 0 || h->scope == (enum dfl_scope)scope) && better(h, best))
            best = h;
    }
    return best;
}

/* What has arrived on the homes of the session's holds of that key may have ended any of them. */
static void read_homes(struct dfl_session *s, struct dfl_key *key)
{
    struct dfl_link *l = key->holds.next;
    uint64_t look = ++s->client->looks;

    while (l != &key->holds) {
        struct dfl_hold *h = DFL_CONTAINER(l, struct dfl_hold, by_key);

        l = l->next;
        if (h->session == s && h->home && h->home->looked != look &&
            (h->state == DFL_HELD || dfl_hold_is_place(h))) {
            h->home->looked = look;
            dfl_conn_read(h->home);
            l = key->holds.next;
        }
    }
}

/* A hold whose deadline has passed is lost now, whatever its timer is waiting for. */
struct dfl_hold *dfl_check_deadline(struct dfl_hold *h)
{
    if (h && h->state == DFL_HELD && !dfl_hold_valid(h, h->server->client->now.ms))
        dfl_hold_lose(h, "no confirmed renewal from %s before the deadline",
                      h->server->address.text);
    return h;
}

struct dfl_hold *dfl_find_hold(struct dfl_session *s, const char *bytes, size_t len,
                               enum dfl_kind kind, int scope)
{
    struct dfl_key *key = dfl_key_find(s->client, bytes, len);
    struct dfl_hold *h;

    if (key == NULL)
        return NULL;
    key->refs++; /* reading may end its last hold */
    read_homes(s, key);
    h = dfl_check_deadline(find_hold(s, key, kind, scope));
    dfl_key_put(key);
    return h;
}

struct dfl_hold *dfl_known_hold(struct dfl_session *s, const char *bytes, size_t len,
                                enum dfl_kind kind, int scope)
{
    return dfl_check_deadline(find_hold(s, dfl_key_find(s->client, bytes, len), kind, scope));
}

struct dfl_hold *dfl_session_hold(struct dfl_session *s, const char *key, size_t len,
                                  enum dfl_kind kind, struct dfl_now now)
{
    struct dfl_hold *h;

    dfl_enter(s->client, now);
    h = dfl_find_hold(s, key, len, kind, -1);
    dfl_leave(s->client);
    return h;
}

struct dfl_hold *dfl_session_place(struct dfl_session *s, const char *bytes, size_t len,
                                   enum dfl_kind kind)
{
    struct dfl_key *key = dfl_key_find(s->client, bytes, len);

    if (key == NULL)
        return NULL;
    DFL_EACH(l, &key->holds) {
        struct dfl_hold *h = DFL_CONTAINER(l, struct dfl_hold, by_key);

        if (h->session == s && dfl_hold_is_place(h) && (kind == DFL_ANY_KIND || h->kind == kind))
            return h;
    }
    return NULL;
}

struct dfl_hold *dfl_client_token(struct dfl_client *c, enum dfl_kind kind, const char *bytes,
                                  size_t len, const char *token)
{
    struct dfl_key *key = dfl_key_find(c, bytes, len);

    if (key == NULL)
        return NULL;
    DFL_EACH(l, &key->holds) {
        struct dfl_hold *h = DFL_CONTAINER(l, struct dfl_hold, by_key);

        if ((kind == DFL_ANY_KIND || h->kind == kind) && h->state == DFL_HELD &&
            memcmp(h->token, token, DFL_TOKEN_LEN) == 0)
            return h;
    }
    return NULL;
}

const char *dfl_kind_name(enum dfl_kind kind)
{
    return kind == DFL_SEMAPHORE ? "semaphore" : "lock";
}

enum dfl_status dfl_say_lost(struct dfl_hold *h, struct dfl_error *err)
{
    const struct dfl_client *c = h->server->client;

    h->told = true;
    dfl_hold_changed(h);
    return dfl_fail(err, DFL_LOST, "%s \"%s\" was lost %.1f s ago: %s", dfl_kind_name(h->kind),
                    h->key->bytes, (double)(c->now.ms - h->lost_ms) / 1000,
                    h->last_error ? h->last_error : "connection lost");
}

/* ----------------------------------------------------------- local checks */

bool dfl_is_held(struct dfl_session *s, const char *key, size_t len, struct dfl_now now)
{
    struct dfl_hold *h = dfl_session_hold(s, key, len, DFL_ANY_KIND, now);

    return h && dfl_hold_valid(h, now.ms);
}

enum dfl_status dfl_assert_held(struct dfl_session *s, const char *key, size_t len,
                                struct dfl_now now, struct dfl_error *err)
{
    struct dfl_hold *h = dfl_session_hold(s, key, len, DFL_ANY_KIND, now);

    if (h == NULL)
        return dfl_fail(err, DFL_NOT_HELD, "\"%.*s\" is not held by this session", (int)len, key);
    return h->state == DFL_HELD ? DFL_OK : dfl_say_lost(h, err);
}

bool dfl_cancel(struct dfl_session *s, const char *key, size_t len, struct dfl_now now)
{
    struct dfl_hold *place;

    dfl_enter(s->client, now);
    place = dfl_session_place(s, key, len, DFL_ANY_KIND);
    if (place && dfl_hold_in_call(place))
        dfl_call_cancel(place->call,
                        now); /* it gives the place up, and must not wait without one */
    else if (place)
        dfl_place_leave(place);
    dfl_leave(s->client);
    return place != NULL;
}
