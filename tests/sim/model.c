/*
 * model.c - what a lock server may answer. Knows per key its limit, its holds and its queue, nothing else, and shares no
 * code with the servers and the engine: it reads the bytes itself. A lease is over here the moment it can be over; what sweeps once a
 * second may be later by that much, never earlier.
 */
#include "sim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define QUEUE_MAX 128

struct waiter {
    struct conn *conn;
    bool asking;
    int64_t lease_ms;
};

struct model_key {
    struct model_key *next;
    char name[260];
    int64_t limit;
    struct model_hold *holds;
    struct waiter queue[QUEUE_MAX];
    int waiting;
};

struct model_asked {
    struct model_key *key;
    char verb; /* l r n e w, or 0 */
    char token[40];
    int64_t limit, lease_s, timeout_s;
};

struct model {
    struct server *server;
    struct model_key *keys;
    bool drained;
};

struct highest { /* fence of a key, whatever process of that address gave it */
    struct highest *next;
    int address;
    char name[260];
    uint64_t fence;
} *highest;

static char why[400];

#define WRONG(...) (snprintf(why, sizeof why, __VA_ARGS__), why)

struct model *model_new(struct server *s)
{
    struct model *m = sim_new(sizeof *m);

    m->server = s;
    if (s->next == NULL)
        highest = NULL; /* the first one of this world */
    return m;
}

static int64_t now_of(const struct model *m)
{
    return server_now(m->server).ms;
}

bool model_lives(const struct model_hold *h)
{
    return h->ending == LIVES && !h->server->ended && server_now(h->server).ms < h->expires_ms;
}

const char *model_name(const struct model_hold *h)
{
    return h->key->name;
}

int64_t model_limit(const struct model_hold *h)
{
    return h->key->limit;
}

/* How much later than the model a server may know that a lease is over. */
static int64_t late_ms(const struct model *m)
{
    return m->server->personality == BUNDLED ? 5 : m->server->sweep_ms + 10;
}

static int living(const struct model *m, const struct model_key *k, int64_t late)
{
    int n = 0;

    for (const struct model_hold *h = k->holds; h; h = h->next)
        n += (h->ending == LIVES || h->ending == EXPIRED) && now_of(m) < h->expires_ms + late &&
             (late > 0 || h->token[0]); /* when a place came up unasked is not known exactly */
    return n;
}

static void end_hold(struct model_hold *h, enum ending ending)
{
    h->ending = ending;
    h->ended_us = sim_now;
    h->away_end_us = check_apart(h);
}

static void set(struct model_hold *h)
{
    h->set_us = sim_now;
    h->away_set_us = check_apart(h);
}

static struct model_hold *new_hold(struct model *m, struct model_key *k, struct conn *c, const char *token, int64_t lease_ms)
{
    struct model_hold *h = sim_new(sizeof *h);

    snprintf(h->token, sizeof h->token, "%s", token);
    h->key = k;
    h->server = m->server;
    h->conn = c;
    h->lease_ms = lease_ms;
    h->expires_ms = now_of(m) + lease_ms;
    set(h);
    h->asked_us = c->asking_us;
    h->next = k->holds;
    k->holds = h;
    counters.grants++;
    return h;
}

static void leave(struct model_key *k, int i)
{
    k->waiting--;
    memmove(&k->queue[i], &k->queue[i + 1], (size_t)(k->waiting - i) * sizeof k->queue[0]);
}

static int place_of(const struct model_key *k, const struct conn *c)
{
    for (int i = 0; i < k->waiting; i++) {
        if (k->queue[i].conn == c)
            return i;
    }
    return -1;
}

static bool gate_closed(const struct model *m)
{
    return m->server->recovering && now_of(m) < m->server->gate_ms;
}

/* The highest fence of a key that was ever answered at an address. */
static struct highest *highest_of(const struct model *m, const struct model_key *k)
{
    struct highest *h = highest;

    while (h && !(h->address == m->server->address && strcmp(h->name, k->name) == 0))
        h = h->next;
    if (h == NULL) {
        h = sim_new(sizeof *h);
        h->address = m->server->address;
        snprintf(h->name, sizeof h->name, "%s", k->name);
        h->next = highest;
        highest = h;
    }
    return h;
}

/* A place whose turn comes while nobody asks is granted without a word on the wire. */
static void grant_unasked(struct model *m, struct model_key *k)
{
    while (k->waiting > 0 && !k->queue[0].asking && living(m, k, late_ms(m)) < k->limit && !gate_closed(m)) {
        struct model_hold *h = new_hold(m, k, k->queue[0].conn, "", k->queue[0].lease_ms);

        h->waited = true;
        h->fence_floor = highest_of(m, k)->fence; /* its token is seen later than it was made */
        leave(k, 0);
    }
}

static struct model_hold *unasked(const struct model_key *k, const struct conn *c)
{
    for (struct model_hold *h = k->holds; h; h = h->next) {
        if (h->conn == c && h->token[0] == '\0' && (h->ending == LIVES || h->ending == EXPIRED))
            return h;
    }
    return NULL;
}

static struct model_hold *with_token(const struct model_key *k, const char *token)
{
    for (struct model_hold *h = k->holds; h; h = h->next) {
        if (h->token[0] && strcmp(h->token, token) == 0)
            return h;
    }
    return NULL;
}

struct model_hold *model_find(const char *token)
{
    for (struct server *s = all_servers; s; s = s->next) {
        for (struct model_key *k = s->model->keys; k; k = k->next) {
            struct model_hold *h = with_token(k, token);

            if (h)
                return h;
        }
    }
    return NULL;
}

/* ---------------------------------------------------------------- requests */

static struct model_key *key_of(struct model *m, const char *name)
{
    struct model_key *k = m->keys;

    while (k && strcmp(k->name, name) != 0)
        k = k->next;
    if (k)
        return k;
    k = sim_new(sizeof *k);
    snprintf(k->name, sizeof k->name, "%s", name);
    k->next = m->keys;
    return m->keys = k;
}

const char *model_request(struct model *m, struct conn *c, const char *const line[3], const size_t len[3])
{
    struct model_asked *a = c->judged ? c->judged : (c->judged = sim_new(sizeof *a));
    bool sem = len[0] == 2 && line[0][0] == 's';
    char name[260], arg[100];
    long long n[3] = {0, 0, 0};
    int count;

    memset(a, 0, sizeof *a);
    if (len[0] != (sem ? 2u : 1u) || len[1] > 256 || len[2] > 90)
        return NULL;
    a->verb = line[0][len[0] - 1];
    snprintf(name, sizeof name, "%s%.*s", sem && m->server->traits->separate_kinds ? "s " : "", (int)len[1], line[1]);
    snprintf(arg, sizeof arg, "%.*s", (int)len[2], line[2]);
    a->key = key_of(m, name);
    a->lease_s = m->server->default_lease_s;
    if (a->verb == 'r' || a->verb == 'n') {
        count = sscanf(arg, "%39s %lld", a->token, &n[0]);
        if (count == 2)
            a->lease_s = n[0];
        return count < 1 ? WRONG("a request without token") : a->verb == 'n' && count < 2 ? WRONG("a renewal without lease") : NULL;
    }
    count = sscanf(arg, "%lld %lld %lld", &n[0], &n[1], &n[2]);
    a->timeout_s = a->verb == 'e' ? -1 : n[0];
    count -= a->verb != 'e';
    for (int i = 0; i < 2 && a->verb != 'e'; i++)
        n[i] = n[i + 1];
    a->limit = sem ? n[0] : 1;
    if (count > (sem ? 1 : 0))
        a->lease_s = n[sem ? 1 : 0];
    grant_unasked(m, a->key);
    return NULL;
}

void model_blocks(struct model *m, struct conn *c)
{
    struct model_asked *a = c->judged;
    int i = place_of(a->key, c);

    if (a->verb == 'l' && a->key->waiting < QUEUE_MAX) {
        if (a->key->limit == 0 || (a->key->waiting == 0 && living(m, a->key, late_ms(m)) == 0))
            a->key->limit = a->limit;
        a->key->queue[a->key->waiting++] = (struct waiter){c, true, a->lease_s * 1000};
    } else if (i >= 0) {
        a->key->queue[i].asking = true;
    }
}

/* ----------------------------------------------------------------- answers */

static const char *check_fence(struct model *m, const struct model_key *k, const char *token,
                               const struct model_hold *came_up)
{
    struct highest *h = highest_of(m, k);
    char digits[17];
    uint64_t fence;

    snprintf(digits, sizeof digits, "%.16s", token);
    fence = strtoull(digits, NULL, 16);
    if (!m->server->traits->fences)
        return NULL;
    if (fence <= (came_up ? came_up->fence_floor : h->fence))
        return WRONG("the fence of %s does not grow", k->name);
    if (fence > h->fence)
        h->fence = fence;
    return NULL;
}

/* How many held it at a moment that is past. */
static int lived(const struct model_key *k, int64_t now_ms, int64_t at_ms)
{
    int64_t at_us = sim_now - (now_ms - at_ms) * 1000;
    int n = 0;

    for (const struct model_hold *h = k->holds; h; h = h->next)
        n += h->token[0] && h->expires_ms > at_ms && (h->ending == LIVES || h->ending == EXPIRED || h->ended_us > at_us);
    return n;
}

/* Whoever is first and does not ask may have come up, and lapsed, between two lines on the wire. */
static bool lapsed_unseen(struct model *m, struct model_key *k)
{
    struct model_hold *h;

    if (k->queue[0].asking || lived(k, now_of(m), now_of(m) - k->queue[0].lease_ms) >= k->limit)
        return false;
    h = new_hold(m, k, k->queue[0].conn, "", 0);
    h->waited = h->judged = true;
    end_hold(h, EXPIRED);
    leave(k, 0);
    return true;
}

static const char *granted(struct model *m, struct conn *c, const char *token, int64_t lease_s)
{
    struct model_asked *a = c->judged;
    struct model_key *k = a->key;
    struct model_hold *h;
    int place = place_of(k, c);
    const char *wrong;

    grant_unasked(m, k);
    place = place_of(k, c);
    if (a->verb == 'w' && c->stale) {
        c->stale = false;
        h = unasked(k, c) ? unasked(k, c) : new_hold(m, k, c, "", 0);
        snprintf(h->token, sizeof h->token, "%s", token);
        end_hold(h, EXPIRED);
        h->expires_ms = now_of(m); /* at the latest: when it came up is not known exactly */
        h->lease_ms = lease_s * 1000;
        h->judged = true;
        if (place >= 0)
            leave(k, place);
        return NULL;
    }
    if (a->verb == 'w' && place < 0 && (h = unasked(k, c)) != NULL) {
        snprintf(h->token, sizeof h->token, "%s", token);
        h->expires_ms = now_of(m); /* not counted below */
        if (living(m, k, 0) >= k->limit)
            return WRONG("%s was given to a place, and has %d other holders", k->name, living(m, k, 0));
        h->ending = LIVES;
        h->expires_ms = now_of(m) + h->lease_ms;
        set(h);
        return check_fence(m, k, token, h);
    }
    if (k->waiting == 0 && living(m, k, 0) == 0 && a->limit)
        k->limit = a->limit; /* it may have been forgotten */
    while (place > 0 && lapsed_unseen(m, k))
        place--;
    if (place > 0 || (place < 0 && k->waiting > 0))
        return WRONG("%s was granted past the queue", k->name);
    if (place < 0 && a->verb == 'w')
        return WRONG("%s was granted to a wait without a place", k->name);
    if (place == 0) {
        if (k->queue[0].lease_ms != lease_s * 1000)
            return WRONG("%s was granted for %lld s", k->name, (long long)lease_s);
        leave(k, 0);
    } else if (lease_s != a->lease_s || (k->limit && k->limit != a->limit)) {
        return WRONG("%s was granted for %lld s, limit %lld", k->name, (long long)lease_s, (long long)k->limit);
    }
    if (living(m, k, 0) >= k->limit)
        return WRONG("%s has %d holders already, its limit is %lld", k->name, living(m, k, 0), (long long)k->limit);
    wrong = check_fence(m, k, token, NULL);
    new_hold(m, k, c, token, lease_s * 1000)->waited = a->verb == 'w';
    return wrong;
}

static bool is(const char *line, size_t len, const char *word)
{
    return len == strlen(word) && memcmp(line, word, len) == 0;
}

const struct model_hold *model_unseen_release(struct model *m, struct conn *c, int64_t asked_us)
{
    const struct model_asked *a = c->judged;

    for (struct model_hold *h = a->verb == 'l' || a->verb == 'e' ? a->key->holds : NULL; h; h = h->next) {
        if (h->given_back_us && h->given_back_us < asked_us && model_lives(h) && h->conn != c &&
            h->conn->client == c->client && !h->conn->client_closed && !h->conn->cut_us && m->server == h->server)
            return h;
    }
    return NULL;
}

/* No. Is it true? */
static const char *refused(struct model *m, struct conn *c, const char *line, size_t len)
{
    struct model_asked *a = c->judged;
    struct model_key *k = a->key;
    struct model_hold *h = a->token[0] ? with_token(k, a->token) : NULL;
    enum personality who = m->server->personality;
    int place = place_of(k, c);

    if (is(line, len, "timeout")) {
        if (a->timeout_s < 0)
            return WRONG("`timeout` to %c", a->verb);
        if (place >= 0)
            leave(k, place);
        else if (a->verb == 'l' && a->timeout_s == 0 && k->waiting == 0 && living(m, k, late_ms(m)) < k->limit && !gate_closed(m))
            return WRONG("%s is free, and was refused as busy", k->name);
        return NULL;
    }
    if (a->verb == 'r' || a->verb == 'n')
        return h && model_lives(h) && !m->drained ? WRONG("%c of a live hold of %s was refused", a->verb, k->name) : NULL;
    if (place >= 0 && !is(line, len, "error_already_enqueued") && a->verb != 'e')
        leave(k, place);
    if (is(line, len, "error_limit_mismatch"))
        return k->limit && k->limit == a->limit ? WRONG("limits of %s agree", k->name) : NULL;
    if (is(line, len, "error_max_locks"))
        return m->server->max_locks < 1024 ? NULL : WRONG("too few keys for error_max_locks");
    if (is(line, len, "error_max_waiters"))
        return m->server->max_waiters ? NULL : WRONG("too few waiters for error_max_waiters");
    if (is(line, len, "error_lease_expired"))
        return (h = unasked(k, c)) && (end_hold(h, EXPIRED), h->judged = true) ? NULL : WRONG("no place of %s has lapsed", k->name);
    if (m->drained || who == V0_5)
        return NULL;
    if (is(line, len, "error_already_enqueued"))
        return place >= 0 || unasked(k, c) ? NULL : WRONG("%s was not enqueued", k->name);
    if (is(line, len, "error_not_enqueued"))
        return place < 0 && !unasked(k, c) ? NULL : WRONG("%s was enqueued", k->name);
    return WRONG("%.*s to %c %s", (int)len, line, a->verb, k->name);
}

static const char *kept(struct model *m, struct conn *c, int64_t left_s)
{
    struct model_asked *a = c->judged;
    struct model_hold *h = with_token(a->key, a->token);

    if (h == NULL)
        return WRONG("`ok` for a token that was never given");
    if (a->verb == 'r') {
        if (h->ending != LIVES && !(h->ending == EXPIRED && now_of(m) < h->expires_ms + late_ms(m)))
            return WRONG("released what is over");
        if (h->ending == LIVES || h->ending == EXPIRED)
            end_hold(h, RELEASED);
        h->released_by = c;
        return NULL;
    }
    if ((h->ending != LIVES && h->ending != EXPIRED) || now_of(m) >= h->expires_ms + 2)
        return WRONG("renewed what is over");
    h->ending = LIVES; /* some round the end of a lease up */
    if (left_s != a->lease_s && left_s != a->lease_s - 1)
        return WRONG("renewed for %lld s instead of %lld", (long long)left_s, (long long)a->lease_s);
    h->lease_ms = a->lease_s * 1000;
    h->expires_ms = now_of(m) + h->lease_ms;
    set(h);
    if (living(m, a->key, 0) > a->key->limit)
        return WRONG("%s was renewed after its lease, and others hold it", a->key->name);
    return NULL;
}

/* Whose it is, unless several ask. */
static void note_place(struct conn *c)
{
    struct user *asker = NULL;

    for (int i = 0; i < c->client->user_count; i++) {
        struct user *u = &c->client->users[i];

        if (u->doing != ACT_ENQUEUE || !u->call || u->ended || u->began_us > c->asking_us ||
            !strstr(c->judged->key->name, key_names[u->key]))
            continue;
        if (asker)
            return;
        asker = u;
    }
    if (asker)
        asker->place = c;
}

const char *model_answer(struct model *m, struct conn *c, const char *line, size_t len)
{
    struct model_asked *a = c->judged;
    char copy[120], word[40] = "", token[40] = "";
    long long seconds = 0;
    int count;

    if (a == NULL || a->key == NULL)
        return NULL; /* ping, stats, and what it does not know */
    snprintf(copy, sizeof copy, "%.*s", (int)len, line);
    count = sscanf(copy, "%39s %39s %lld", word, token, &seconds);
    if (strcmp(word, "queued") == 0) {
        if (a->key->limit == 0 || (a->key->waiting == 0 && living(m, a->key, late_ms(m)) == 0))
            a->key->limit = a->limit;
        if (a->verb != 'e' || a->key->waiting == QUEUE_MAX)
            return WRONG("`queued` to %c", a->verb);
        a->key->queue[a->key->waiting++] = (struct waiter){c, false, a->lease_s * 1000};
        note_place(c);
        for (int i = 0; i < KEYS; i++)
            c->placed[i] = c->placed[i] || strcmp(a->key->name + (strncmp(a->key->name, "s ", 2) == 0 ? 2 : 0), key_names[i]) == 0;
        return NULL;
    }
    if (count == 3)
        return granted(m, c, token, seconds);
    if (strcmp(word, "ok") == 0)
        return kept(m, c, strtoll(token, NULL, 10));
    return refused(m, c, line, len);
}

/* -------------------------------------------------------------------- time */

void model_closed(struct model *m, struct conn *c)
{
    for (struct model_key *k = m->keys; k; k = k->next) {
        int i;

        while ((i = place_of(k, c)) >= 0) {
            /* It may just have come up unasked, and then stays without auto-release. */
            if (i == 0 && !k->queue[0].asking && !m->server->auto_release && living(m, k, 0) < k->limit)
                new_hold(m, k, c, "", k->queue[0].lease_ms)->waited = true;
            leave(k, i);
        }
        for (struct model_hold *h = k->holds; h && m->server->auto_release; h = h->next) {
            if (h->conn == c && h->ending == LIVES && now_of(m) < h->expires_ms)
                end_hold(h, CLOSED);
        }
    }
}

void model_drained(struct model *m)
{
    m->drained = true;
    if (m->server->traits->close_unseen)
        return; /* the old ones go on */
    for (struct model_key *k = m->keys; k; k = k->next)
        k->waiting = 0;
}

void model_expire(struct model *m, void (*expired)(struct model_hold *h))
{
    for (struct model_key *k = m->keys; k; k = k->next) {
        for (struct model_hold *h = k->holds; h; h = h->next) {
            if (h->ending == LIVES && now_of(m) >= h->expires_ms) {
                end_hold(h, EXPIRED);
                if (h->token[0])
                    expired(h);
            }
        }
        grant_unasked(m, k);
    }
}

const char *model_settle(struct model *m)
{
    for (struct model_key *k = m->keys; k && !m->drained && !gate_closed(m); k = k->next) {
        if (k->waiting > 0 && living(m, k, late_ms(m)) < k->limit)
            return WRONG("%s is free, and #%d waits for it", k->name, k->queue[0].conn->id);
    }
    return NULL;
}

const char *model_empty(struct model *m)
{
    for (struct model_key *k = m->keys; k; k = k->next) {
        if (k->waiting > 0)
            return WRONG("#%d still waits for %s", k->queue[0].conn->id, k->name);
        if (living(m, k, 0) > 0)
            return WRONG("%s is still held", k->name);
    }
    return NULL;
}

bool model_has_place(struct model *m, const struct conn *c, const char *key)
{
    for (struct model_key *k = m->keys; k; k = k->next) {
        if (strcmp(k->name + (strncmp(k->name, "s ", 2) == 0 ? 2 : 0), key) == 0 && (place_of(k, c) >= 0 || unasked(k, c)))
            return true;
    }
    return false;
}
