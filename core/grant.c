/*
 * grant.c - what acquire and enqueue have in common: the session's own holds decide first, a grant
 * is taken or confirmed or given back, and every way to end without one.
 *
 * The rule of the three outcomes stands here: granted only by a grant that the server still
 * honours.
 */
#include "engine.h"

#include <string.h>

/* ------------------------------------------------------------------- ends */

void dfl_leave_conn(struct dfl_call *call)
{
    struct dfl_conn *conn = call->conn;

    call->conn = NULL;
    if (conn)
        dfl_conn_idle(conn);
}

/* Ends a call that has got nothing: its hold vanishes, its connection is left. */
void dfl_end_without(struct dfl_call *call, enum dfl_status status)
{
    struct dfl_hold *h = call->hold;

    if (call->request)
        dfl_conn_withdraw(call->request);
    call->request = NULL;
    if (h && h->state == DFL_CONFIRMING)
        dfl_place_leave(h); /* its token is known: it is released */
    else if (h)
        dfl_hold_free(h);
    dfl_leave_conn(call);
    dfl_call_end(call, status);
}

void dfl_fail_without(struct dfl_call *call, const struct dfl_error *why)
{
    call->error = *why;
    dfl_end_without(call, why->status);
}

void dfl_out_of_memory(struct dfl_call *call)
{
    dfl_fail(&call->error, DFL_NOMEM, "out of memory");
    dfl_end_without(call, DFL_NOMEM);
}

static void say_limits(struct dfl_call *call)
{
    long long other = 0;

    DFL_EACH(l, &call->key->holds) {
        struct dfl_hold *h = DFL_CONTAINER(l, struct dfl_hold, by_key);

        if (h != call->hold && h->slots != call->hold->slots)
            other = (long long)h->slots;
    }
    if (other)
        dfl_fail(&call->error, DFL_LIMIT_MISMATCH,
                 "limit mismatch: \"%s\" is in use with a limit of %lld, not %lld",
                 call->key->bytes, other, (long long)call->hold->slots);
    else
        dfl_fail(&call->error, DFL_LIMIT_MISMATCH,
                 "limit mismatch: \"%s\" is in use at %s with another limit than %lld",
                 call->key->bytes, call->server->address.text, (long long)call->hold->slots);
}

/* An `error...` that answers the request for good. */
void dfl_fail_with_word(struct dfl_call *call, const struct dfl_answer_line *a)
{
    if (a->status == DFL_LIMIT_MISMATCH)
        say_limits(call);
    else
        dfl_fail(&call->error, a->status, "%s answered the request for %s \"%s\" with %.*s: %s",
                 call->server->address.text, dfl_kind_name(call->args.kind), call->key->bytes,
                 (int)a->text_len, a->text, dfl_status_info(a->status)->text);
    dfl_end_without(call, a->status);
}

void dfl_too_slow(struct dfl_call *call)
{
    if (dfl_call_last_step(call))
        return;
    dfl_call_no_answer(call);
    dfl_server_failed(call->server, &call->error);
    dfl_end_without(call, call->error.status);
}

/* A cancel in any step of acquire or enqueue. */
void dfl_give_up(struct dfl_call *call)
{
    if (call->conn && call->request && call->request->sent)
        dfl_conn_read(call->conn); /* a grant that has arrived is given back by its token */
    if (call->status != DFL_PENDING)
        return;
    dfl_end_without(call, DFL_CANCELED);
}

/* ----------------------------------------------------------------- grants */

void dfl_granted(struct dfl_call *call, struct dfl_conn *conn, int64_t lease_s, int64_t sent_ms)
{
    struct dfl_hold *h = call->hold;

    if (h->home == NULL)
        dfl_hold_settle(h, conn);
    call->conn = NULL; /* its home now */
    dfl_hold_set_tag(h, call->args.scope, call->args.tag);
    dfl_hold_begin(h, lease_s, DFL_PLANTED(1) ? h->server->client->now.ms : sent_ms);
    dfl_call_end(call, DFL_OK);
}

/* True when too little of the grant is certain to be left: an answer to a request that may have
 * blocked is an offer only. */
bool dfl_needs_confirming(const struct dfl_client *c, const struct dfl_request *r, int64_t lease_s)
{
    int64_t srt = c->settings.server_read_timeout_ms;
    int64_t least = lease_s * 1000 < srt ? lease_s * 1000 : srt;
    int64_t age = c->now.ms - r->sent_ms;

    if (DFL_PLANTED(1))
        return false;
    return dfl_request_blocks(r) ? age * 2 > least : age >= dfl_less_margin(least);
}

/* A grant for the call, in answer to r. */
void dfl_take_grant(struct dfl_call *call, const struct dfl_request *r,
                    const struct dfl_answer_line *a)
{
    struct dfl_client *c = call->session->client;
    struct dfl_hold *h = call->hold;

    if (call->giving_up) {
        dfl_server_give_back(r->conn, h->kind, h->key, a->token);
        dfl_end_without(call, DFL_CANCELED);
        return;
    }
    if (dfl_fence_read(call->server, r, a->token, &h->fence, &call->error) != DFL_OK) {
        dfl_server_give_back(r->conn, h->kind, h->key, a->token);
        dfl_end_without(call, DFL_PROTOCOL);
        return;
    }
    memcpy(h->token, a->token, sizeof h->token);
    h->lease_s = h->granted_s = a->seconds;
    if (!dfl_needs_confirming(c, r, a->seconds)) {
        dfl_granted(call, r->conn, a->seconds, r->sent_ms);
        return;
    }
    dfl_hold_settle(h, r->conn);
    call->conn = NULL;
    dfl_confirm(call);
}

static void confirm_done(struct dfl_request *r, const struct dfl_answer_line *a,
                         const struct dfl_error *error)
{
    struct dfl_call *call = r->owner;
    struct dfl_hold *h = call->hold;
    int64_t lease_s = a && a->kind == DFL_ANS_OK ? dfl_renewed_lease_s(r, a) : 0;

    call->request = NULL;
    if (error) {
        dfl_server_orphan(call->server, h->kind, h->key, h->token);
        dfl_fail_without(call, error);
    } else if (lease_s > 0 && dfl_needs_confirming(h->server->client, r, lease_s)) {
        /* Older than the lease that it speaks of: once more, in what time is left. */
        if (dfl_hold_renew(h, confirm_done, call, &call->request) != DFL_OK)
            dfl_out_of_memory(call);
    } else if (lease_s > 0) {
        dfl_granted(call, r->conn, lease_s, r->sent_ms);
    } else {
        /* the read time-out says `error` too, and then the server still has the grant */
        dfl_server_give_back(r->conn, h->kind, h->key, h->token);
        h->token[0] = '\0';
        if (h->from_enqueue) {
            dfl_fail(&call->error, DFL_LAPSED,
                     "the place for %s \"%s\" came up and lapsed before it was taken",
                     dfl_kind_name(h->kind), h->key->bytes);
            dfl_end_without(call, DFL_LAPSED);
        } else {
            call->go_on(call, r->conn);
        }
    }
}

void dfl_confirm(struct dfl_call *call)
{
    struct dfl_hold *h = call->hold;

    h->state = DFL_CONFIRMING;
    dfl_hold_changed(h);
    dfl_link_remove(&call->by_server);
    call->no_life = NULL;
    call->alive = NULL;
    dfl_call_at(call,
                call->session->client->now.ms + call->session->client->settings.connect_timeout_ms,
                dfl_too_slow);
    if (dfl_hold_renew(h, confirm_done, call, &call->request) != DFL_OK)
        dfl_out_of_memory(call);
}

/* ---------------------------------------------------------- doubtful answers */

/* A try that broke with a connection which owned nothing has left nothing behind: it may be sent
 * again, once. */
bool dfl_may_repeat(struct dfl_call *call, const struct dfl_request *r,
                    const struct dfl_error *error)
{
    bool harmless = r->sent ? !r->conn_owned : r->conn->answered;

    if (call->repeated || error->status != DFL_BROKEN || !harmless)
        return false;
    call->repeated = true;
    return true;
}

static void say_unknown(struct dfl_call *call)
{
    if (call->key->len > 255)
        dfl_fail(&call->error, DFL_UNKNOWN_TO_SERVER,
                 "keys of %u bytes are not known to this server (%s)", call->key->len,
                 call->server->address.text);
    else
        dfl_fail(&call->error, DFL_UNKNOWN_TO_SERVER,
                 "semaphores are not known to this server (%s)", call->server->address.text);
    dfl_end_without(call, DFL_UNKNOWN_TO_SERVER);
}

static void say_refused(struct dfl_call *call)
{
    dfl_fail(&call->error, DFL_REFUSED,
             "%s answered the request for %s \"%s\" with error (draining?)",
             call->server->address.text, dfl_kind_name(call->args.kind), call->key->bytes);
    dfl_end_without(call, DFL_REFUSED);
}

/* Whether a plain `error` was meant for us shows in what follows: the server's read time-out says
 * it too, and closes. */
static void suspect_done(struct dfl_request *r, const struct dfl_answer_line *a,
                         const struct dfl_error *error)
{
    struct dfl_call *call = r->owner;

    call->request = NULL;
    if (a) {
        say_refused(call);
    } else if (call->unproven) {
        call->conn = NULL;
        say_unknown(call);
    } else if (dfl_may_repeat(call, r, error)) {
        call->conn = NULL;
        call->again(call);
    } else {
        call->conn = NULL;
        dfl_fail_without(call, error);
    }
}

bool dfl_is_plain_error(const struct dfl_answer_line *a)
{
    return a->status == DFL_REFUSED && a->text_len == strlen("error");
}

void dfl_suspect(struct dfl_call *call, struct dfl_conn *conn)
{
    struct dfl_request *r = dfl_server_harmless(call->server, suspect_done, call);

    if (r == NULL) {
        dfl_out_of_memory(call);
        return;
    }
    call->request = r;
    dfl_conn_send(conn, r);
}

/* The server has understood the request: it knows semaphores, or long keys. */
void dfl_note_proven(struct dfl_call *call)
{
    if (call->args.kind == DFL_SEMAPHORE)
        call->server->knows_semaphores = true;
    if (call->key->len > 255)
        call->server->knows_long_keys = true;
    call->unproven = false;
}

bool dfl_is_unproven(const struct dfl_call *call)
{
    return (call->args.kind == DFL_SEMAPHORE && !call->server->knows_semaphores) ||
           (call->key->len > 255 && !call->server->knows_long_keys);
}

struct dfl_request *dfl_lock_request(struct dfl_call *call, enum dfl_command cmd,
                                     dfl_request_done *done)
{
    struct dfl_request *r =
        dfl_request_new(dfl_command_for(cmd, call->args.kind), call->key, NULL, done, call);

    if (r) {
        r->lease_s = call->args.lease_s;
        r->limit = call->args.slots;
    }
    return r;
}

/* ------------------------------------------------------------- own holds first */

double dfl_seconds_since(const struct dfl_client *c, int64_t ms)
{
    return (double)(c->now.ms - ms) / 1000;
}

static enum dfl_status say_self(const struct dfl_client *c, const struct dfl_hold *h,
                                struct dfl_error *err)
{
    const char *kind = dfl_kind_name(h->kind);

    if (h->state != DFL_HELD)
        return dfl_fail(err, DFL_SELF,
                        "this session is already in line for %s \"%s\" (for %.1f s): use "
                        "dflock_wait, or dflock_cancel",
                        kind, h->key->bytes, dfl_seconds_since(c, h->since_ms));
    if (h->slots > 1)
        return dfl_fail(err, DFL_SELF,
                        "all %lld slots of semaphore \"%s\" are already held by this session (the "
                        "first for %.1f s)",
                        (long long)h->slots, h->key->bytes, dfl_seconds_since(c, h->acquired_ms));
    return dfl_fail(err, DFL_SELF, "%s \"%s\" is already held by this session (for %.1f s)", kind,
                    h->key->bytes, dfl_seconds_since(c, h->acquired_ms));
}

/* Waiting for h would be waiting for oneself. */
static bool own_conflict(const struct dfl_hold *h, const struct dfl_request_args *a,
                         int64_t *own_slots)
{
    if (h->state != DFL_HELD)
        return true;
    if (a->kind == DFL_LOCK)
        return h->kind == DFL_LOCK || h->slots == 1;
    if (h->kind == DFL_LOCK)
        return a->slots == 1;
    return ++*own_slots >= a->slots;
}

/*
 * What the session has of the key decides first. DFL_OK: go on (*again, when set, is the xact lock
 * that answers). Losses not yet told are told, told ones forgotten.
 */
static enum dfl_status check_own(struct dfl_session *s, struct dfl_key *key,
                                 const struct dfl_request_args *a, struct dfl_hold **again,
                                 struct dfl_error *err)
{
    enum dfl_status st = DFL_OK;
    int64_t own_slots = 0;

    DFL_EACH(l, &key->holds) {
        struct dfl_hold *h = DFL_CONTAINER(l, struct dfl_hold, by_key);

        if (h->session != s || h->state != DFL_STATE_LOST)
            continue;
        if (!h->told && h->acquired_ms)
            st = dfl_say_lost(h, err);
        if (h->scope == DFL_SCOPE_SESSION)
            dfl_hold_free(h);
    }
    if (st != DFL_OK)
        return st;
    DFL_EACH(m, &key->holds) {
        struct dfl_hold *h = DFL_CONTAINER(m, struct dfl_hold, by_key);

        if (h->session != s || h->state == DFL_RELEASING || h->state == DFL_STATE_LOST)
            continue;
        if (a->scope == DFL_SCOPE_XACT && a->kind == DFL_LOCK && h->kind == DFL_LOCK &&
            h->scope == DFL_SCOPE_XACT && h->state == DFL_HELD) {
            *again = h;
            return DFL_OK;
        }
        if (own_conflict(h, a, &own_slots))
            return say_self(s->client, h, err);
    }
    return DFL_OK;
}

static enum dfl_status check_moved(struct dfl_key *key, const struct dfl_server *server,
                                   struct dfl_error *err)
{
    DFL_EACH(l, &key->holds) {
        struct dfl_hold *h = DFL_CONTAINER(l, struct dfl_hold, by_key);

        if (h->server != server && h->state != DFL_STATE_LOST && h->state != DFL_RELEASING)
            return dfl_fail(err, DFL_MOVED,
                            "\"%s\" is still held or awaited at %s, its server before the list "
                            "changed; it belongs to %s now",
                            key->bytes, h->server->address.text, server->address.text);
    }
    return DFL_OK;
}

enum dfl_status dfl_check_args(const struct dfl_request_args *a, struct dfl_error *err)
{
    enum dfl_status st = dfl_key_check(a->key, a->key_len, err);

    if (st == DFL_OK && a->kind == DFL_SEMAPHORE)
        st = dfl_slots_check(a->slots, err);
    if (st == DFL_OK && a->lease_s != 0)
        st = dfl_lease_check(a->lease_s, err);
    return st;
}

/* Losses of homes that have arrived already are to be told now, not later. */
static void look_at_own(struct dfl_session *s, const struct dfl_request_args *a)
{
    (void)dfl_find_hold(s, a->key, a->key_len, DFL_LOCK, -1);
    (void)dfl_find_hold(s, a->key, a->key_len, DFL_SEMAPHORE, -1);
}

/* The common beginning of acquire and enqueue: a call with its hold, or with the hold that answers
 * already. */
enum dfl_status dfl_begin(struct dfl_session *s, const struct dfl_request_args *a, bool enqueue,
                          struct dfl_call **out, struct dfl_error *err)
{
    struct dfl_client *c = s->client;
    struct dfl_hold *again = NULL;
    struct dfl_server *server = dfl_client_server_of(c, a->key, a->key_len);
    struct dfl_key *key;
    struct dfl_call *call;
    enum dfl_status st;

    look_at_own(s, a);
    key = dfl_key_get(c, a->key, a->key_len);
    if (key == NULL)
        return dfl_fail(err, DFL_NOMEM, "out of memory");
    st = check_own(s, key, a, &again, err);
    if (st == DFL_OK && again == NULL)
        st = check_moved(key, server, err);
    if (st == DFL_OK && (call = dfl_call_new(s, a->user, err)) == NULL)
        st = DFL_NOMEM;
    if (st != DFL_OK) {
        dfl_key_put(key);
        return st;
    }
    call->args = *a;
    call->args.key = NULL;
    call->key = key;
    call->server = again ? again->server : server;
    call->give_up = dfl_give_up;
    *out = call;
    if (again) {
        dfl_hold_set_call(again, call);
        dfl_call_end(call, DFL_OK);
        return DFL_OK;
    }
    again = dfl_hold_new(s, key, server, a, &call->error);
    if (again == NULL) {
        dfl_call_end(call, call->error.status);
        return DFL_OK;
    }
    again->from_enqueue = enqueue;
    dfl_hold_set_call(again, call);
    return DFL_OK;
}
