/*
 * acquire.c - the calls that ask for a lock: acquire (try, then wait in line), enqueue, and waiting for one's turn.
 *
 * Each call is a chain of named steps; call->due, ->resume, ->give_up say what time, a paid debt and a cancel mean in the present
 * one. The rule of the three outcomes stands here: granted only by a grant that the server still honours, "false" only by the
 * server's word, everything else an error.
 */
#include "engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TRY_GRACE_MS 100    /* so that the server can say `timeout` itself */
#define PROOF_SLACK_MS 3000 /* beyond keepalive, a sign of life this old still counts */

static void start_try(struct dfl_call *call);
static void stand_in_line(struct dfl_call *call);
static void ask_enqueue(struct dfl_call *call);
static void confirm(struct dfl_call *call);

/* ------------------------------------------------------------------- ends */

static void leave_conn(struct dfl_call *call)
{
    struct dfl_conn *conn = call->conn;

    call->conn = NULL;
    if (conn)
        dfl_conn_idle(conn);
}

/* Ends a call that has got nothing: its hold vanishes, its connection is left. */
static void end_without(struct dfl_call *call, enum dfl_status status)
{
    struct dfl_hold *h = call->hold;

    if (call->request)
        dfl_conn_withdraw(call->request);
    call->request = NULL;
    if (h && h->state == DFL_CONFIRMING)
        dfl_place_leave(h); /* its token is known: it is released */
    else if (h)
        dfl_hold_free(h);
    leave_conn(call);
    dfl_call_end(call, status);
}

static void fail_without(struct dfl_call *call, const struct dfl_error *why)
{
    call->error = *why;
    end_without(call, why->status);
}

static void out_of_memory(struct dfl_call *call)
{
    dfl_fail(&call->error, DFL_NOMEM, "out of memory");
    end_without(call, DFL_NOMEM);
}

static void end_busy(struct dfl_call *call)
{
    struct dfl_client *c = call->session->client;

    dfl_fail(&call->error, DFL_TIMEOUT, "%s \"%s\" was not granted within %.3g s", dfl_kind_name(call->args.kind),
             call->key->bytes, (double)(c->now.ms - call->busy_since_ms) / 1000);
    end_without(call, DFL_TIMEOUT);
}

static void end_lock_timeout(struct dfl_call *call)
{
    dfl_fail(&call->error, DFL_LOCK_TIMEOUT, "%s \"%s\" was not granted within the lock timeout of %.3g s",
             dfl_kind_name(call->args.kind), call->key->bytes, (double)call->args.lock_timeout_ms / 1000);
    end_without(call, DFL_LOCK_TIMEOUT);
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
        dfl_fail(&call->error, DFL_LIMIT_MISMATCH, "limit mismatch: \"%s\" is in use with a limit of %lld, not %lld",
                 call->key->bytes, other, (long long)call->hold->slots);
    else
        dfl_fail(&call->error, DFL_LIMIT_MISMATCH,
                 "limit mismatch: \"%s\" is in use at %s with another limit than %lld", call->key->bytes,
                 call->server->address.text, (long long)call->hold->slots);
}

/* An `error...` that answers the request for good. */
static void fail_with_word(struct dfl_call *call, const struct dfl_answer_line *a)
{
    if (a->status == DFL_LIMIT_MISMATCH)
        say_limits(call);
    else
        dfl_fail(&call->error, a->status, "%s answered the request for %s \"%s\" with %.*s: %s",
                 call->server->address.text, dfl_kind_name(call->args.kind), call->key->bytes, (int)a->text_len, a->text,
                 dfl_status_info(a->status)->text);
    end_without(call, a->status);
}

static void too_slow(struct dfl_call *call)
{
    dfl_call_no_answer(call);
    end_without(call, call->error.status);
}

/* A cancel in any step of acquire or enqueue. */
static void give_up(struct dfl_call *call)
{
    if (call->conn && call->request && call->request->sent)
        dfl_conn_read(call->conn); /* a grant that has arrived is given back by its token */
    if (call->status != DFL_PENDING)
        return;
    end_without(call, DFL_CANCELED);
}

/* ----------------------------------------------------------------- grants */

static void send_back(struct dfl_call *call, const struct dfl_request *r, const char *token)
{
    struct dfl_request *back = dfl_request_new(dfl_command_for(DFL_CMD_RELEASE, call->args.kind), r->key, token, NULL, NULL);

    if (back == NULL) {
        dfl_conn_close(r->conn);
        return;
    }
    dfl_request_owe(back);
    dfl_conn_send(r->conn, back);
}

static void granted(struct dfl_call *call, struct dfl_conn *conn, int64_t lease_s, int64_t sent_ms)
{
    struct dfl_hold *h = call->hold;

    if (h->home == NULL)
        dfl_hold_settle(h, conn);
    call->conn = NULL; /* its home now */
    dfl_hold_set_tag(h, call->args.scope, call->args.tag);
    dfl_hold_begin(h, h->token, h->fence, lease_s, sent_ms);
    dfl_call_end(call, DFL_OK);
}

/* True when too little of the grant is certain to be left: an answer to a request that may have blocked is an offer only. */
static bool needs_confirming(const struct dfl_client *c, const struct dfl_request *r, int64_t lease_s)
{
    int64_t srt = c->settings.server_read_timeout_ms;
    int64_t least = lease_s * 1000 < srt ? lease_s * 1000 : srt;
    int64_t age = c->now.ms - r->sent_ms;

    return dfl_request_blocks(r) ? age * 2 > least : age >= dfl_less_margin(least);
}

/* A grant for the call, in answer to r. */
static void take_grant(struct dfl_call *call, const struct dfl_request *r, const struct dfl_answer_line *a)
{
    struct dfl_client *c = call->session->client;
    struct dfl_hold *h = call->hold;

    if (call->giving_up) {
        send_back(call, r, a->token);
        end_without(call, DFL_CANCELED);
        return;
    }
    if (dfl_fence_read(call->server, r, a->token, &h->fence, &call->error) != DFL_OK) {
        send_back(call, r, a->token);
        end_without(call, DFL_PROTOCOL);
        return;
    }
    memcpy(h->token, a->token, sizeof h->token);
    h->lease_s = a->seconds;
    if (!needs_confirming(c, r, a->seconds)) {
        granted(call, r->conn, a->seconds, r->sent_ms);
        return;
    }
    dfl_hold_settle(h, r->conn);
    call->conn = NULL;
    confirm(call);
}

/* The offer was refused: nothing was granted. acquire and lock go on with the time that is left. */
static void go_on(struct dfl_call *call, struct dfl_conn *conn)
{
    struct dfl_hold *h = call->hold;

    dfl_link_remove(&h->by_conn);
    h->home = NULL;
    h->token[0] = '\0';
    h->fence = -1;
    h->state = DFL_TRYING;
    if (conn->role == DFL_ROLE_WAITING)
        call->conn = conn;
    if (call->busy_since_ms == 0 || call->final)
        start_try(call);
    else
        stand_in_line(call);
}

static void confirm_done(struct dfl_request *r, const struct dfl_answer_line *a, const struct dfl_error *error)
{
    struct dfl_call *call = r->owner;
    struct dfl_hold *h = call->hold;

    call->request = NULL;
    if (error) {
        dfl_server_orphan(call->server, h->kind, h->key, h->token);
        fail_without(call, error);
    } else if (a->kind == DFL_ANS_OK) {
        granted(call, r->conn, h->lease_s, r->sent_ms);
    } else if (h->from_enqueue) {
        dfl_fail(&call->error, DFL_LAPSED, "the place for %s \"%s\" came up and lapsed before it was taken",
                 dfl_kind_name(h->kind), h->key->bytes);
        h->token[0] = '\0';
        end_without(call, DFL_LAPSED);
    } else {
        go_on(call, r->conn);
    }
}

static void confirm(struct dfl_call *call)
{
    struct dfl_hold *h = call->hold;

    h->state = DFL_CONFIRMING;
    dfl_hold_changed(h);
    dfl_link_remove(&call->by_server);
    call->no_life = NULL;
    call->alive = NULL;
    dfl_call_at(call, call->session->client->now.ms + call->session->client->settings.connect_timeout_ms, too_slow);
    if (dfl_hold_renew(h, confirm_done, call, &call->request) != DFL_OK)
        out_of_memory(call);
}

/* ------------------------------------------------------------- the first try */

/* A try that broke with a connection which owned nothing has left nothing behind: it may be sent again, once. */
static bool may_repeat(struct dfl_call *call, const struct dfl_request *r, const struct dfl_error *error)
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
        dfl_fail(&call->error, DFL_UNKNOWN_TO_SERVER, "keys of %u bytes are not known to this server (%s)", call->key->len,
                 call->server->address.text);
    else
        dfl_fail(&call->error, DFL_UNKNOWN_TO_SERVER, "semaphores are not known to this server (%s)",
                 call->server->address.text);
    end_without(call, DFL_UNKNOWN_TO_SERVER);
}

static void say_refused(struct dfl_call *call)
{
    dfl_fail(&call->error, DFL_REFUSED, "%s answered the request for %s \"%s\" with error (draining?)",
             call->server->address.text, dfl_kind_name(call->args.kind), call->key->bytes);
    end_without(call, DFL_REFUSED);
}

/* Whether a plain `error` was meant for us shows in what follows: the server's read time-out says it too, and closes. */
static void suspect_done(struct dfl_request *r, const struct dfl_answer_line *a, const struct dfl_error *error)
{
    struct dfl_call *call = r->owner;
    bool enqueues = call->hold->from_enqueue;

    call->request = NULL;
    if (a) {
        say_refused(call);
    } else if (call->unproven) {
        call->conn = NULL;
        say_unknown(call);
    } else if (may_repeat(call, r, error)) {
        call->conn = NULL;
        (enqueues ? ask_enqueue : start_try)(call);
    } else {
        call->conn = NULL;
        say_refused(call);
    }
}

static void suspect(struct dfl_call *call, struct dfl_conn *conn)
{
    struct dfl_request *r = dfl_server_harmless(call->server, suspect_done, call);

    if (r == NULL) {
        out_of_memory(call);
        return;
    }
    call->request = r;
    dfl_conn_send(conn, r);
}

/* The server has understood the request: it knows semaphores, or long keys. */
static void note_proven(struct dfl_call *call)
{
    if (call->args.kind == DFL_SEMAPHORE)
        call->server->knows_semaphores = true;
    if (call->key->len > 255)
        call->server->knows_long_keys = true;
    call->unproven = false;
}

static void busy(struct dfl_call *call)
{
    struct dfl_client *c = call->session->client;

    if (call->busy_since_ms == 0) {
        int64_t timeout = call->args.timeout_ms, lock = call->args.lock_timeout_ms;

        call->busy_since_ms = c->now.ms;
        call->end_ms = timeout == DFL_FOREVER ? INT64_MAX : c->now.ms + timeout;
        call->lock_end_ms = lock > 0 ? c->now.ms + lock : INT64_MAX;
    }
    if (call->final || call->args.timeout_ms == 0)
        end_busy(call);
    else
        stand_in_line(call);
}

static void try_done(struct dfl_request *r, const struct dfl_answer_line *a, const struct dfl_error *error)
{
    struct dfl_call *call = r->owner;

    call->request = NULL;
    if (error) {
        if (r->conn == call->conn)
            call->conn = NULL;
        if (may_repeat(call, r, error))
            start_try(call);
        else
            fail_without(call, error);
        return;
    }
    if (a->kind == DFL_ANS_OK) {
        note_proven(call);
        take_grant(call, r, a);
    } else if (a->kind == DFL_ANS_TIMEOUT || a->status == DFL_MAX_WAITERS) {
        note_proven(call);
        busy(call);
    } else if (a->status == DFL_LEASE_EXPIRED) {
        start_try(call);
    } else if (a->status == DFL_REFUSED && (!r->conn_owned || call->unproven)) {
        suspect(call, r->conn);
    } else {
        fail_with_word(call, a);
    }
}

static bool is_unproven(const struct dfl_call *call)
{
    return (call->args.kind == DFL_SEMAPHORE && !call->server->knows_semaphores) ||
           (call->key->len > 255 && !call->server->knows_long_keys);
}

/* A connection for a try: the control connection, or one that owns nothing for what the server may not know. */
static enum dfl_status try_conn(struct dfl_call *call, struct dfl_conn **conn)
{
    enum dfl_status st;

    call->unproven = is_unproven(call);
    if (call->conn == NULL && !call->unproven)
        return dfl_server_control(call->server, conn, &call->error);
    if (call->conn == NULL) {
        st = dfl_server_waiting(call->server, &call->conn, &call->error);
        if (st != DFL_OK)
            return st;
    }
    *conn = call->conn;
    return DFL_OK;
}

static struct dfl_request *lock_request(struct dfl_call *call, enum dfl_command cmd, dfl_request_done *done)
{
    struct dfl_request *r = dfl_request_new(dfl_command_for(cmd, call->args.kind), call->key, NULL, done, call);

    if (r) {
        r->lease_s = call->args.lease_s;
        r->limit = call->args.slots;
    }
    return r;
}

static void start_try(struct dfl_call *call)
{
    struct dfl_conn *conn;
    struct dfl_request *r;

    dfl_call_at(call, call->net_deadline_ms, too_slow);
    if (try_conn(call, &conn) != DFL_OK) {
        end_without(call, call->error.status);
        return;
    }
    if (dfl_call_blocked(call, conn, start_try))
        return;
    r = lock_request(call, DFL_CMD_LOCK, try_done);
    if (r == NULL) {
        out_of_memory(call);
        return;
    }
    call->request = r;
    dfl_conn_send(conn, r);
}

/* ----------------------------------------------------------------- in line */

static bool whole_seconds(const struct dfl_call *call)
{
    return call->args.timeout_ms != DFL_FOREVER && call->args.timeout_ms % 1000 == 0;
}

/* Leaves the queue by closing the connection; what arrived before counts. False: that has moved the call on. */
static bool leave_line(struct dfl_call *call)
{
    struct dfl_request *r = call->request;

    if (call->conn)
        dfl_conn_read(call->conn);
    if (call->status != DFL_PENDING || call->request != r || call->hold->state == DFL_CONFIRMING)
        return false;
    dfl_link_remove(&call->by_server);
    dfl_link_remove(&call->blocked);
    call->no_life = NULL;
    if (r)
        dfl_conn_withdraw(r);
    call->request = NULL;
    leave_conn(call);
    return true;
}

static void line_due(struct dfl_call *call)
{
    struct dfl_client *c = call->session->client;

    if (!leave_line(call))
        return;
    if (c->now.ms >= call->lock_end_ms) {
        end_lock_timeout(call);
        return;
    }
    /* Our own clock has ended it: one more try, whose answer is the answer. */
    call->final = true;
    call->repeated = false;
    call->hold->state = DFL_TRYING;
    dfl_hold_changed(call->hold);
    call->net_deadline_ms = c->now.ms + c->settings.connect_timeout_ms;
    start_try(call);
}

static void line_no_life(struct dfl_call *call, const struct dfl_error *why)
{
    struct dfl_error copy = *why;

    if (leave_line(call))
        fail_without(call, &copy);
}

static void line_done(struct dfl_request *r, const struct dfl_answer_line *a, const struct dfl_error *error)
{
    struct dfl_call *call = r->owner;

    call->request = NULL;
    if (error) {
        call->conn = NULL;
        if (!r->sent && may_repeat(call, r, error)) /* an idle connection that was closed before use */
            stand_in_line(call);
        else
            fail_without(call, error);
        return;
    }
    if (a->kind == DFL_ANS_OK)
        take_grant(call, r, a);
    else if (a->kind == DFL_ANS_TIMEOUT)
        end_busy(call);
    else if (a->status == DFL_LEASE_EXPIRED)
        stand_in_line(call);
    else
        fail_with_word(call, a);
}

static void stand_in_line(struct dfl_call *call)
{
    struct dfl_client *c = call->session->client;
    int64_t end = call->end_ms, left;
    struct dfl_request *r;

    if (end != INT64_MAX && c->now.ms >= end) {
        line_due(call);
        return;
    }
    if (whole_seconds(call))
        end += TRY_GRACE_MS;
    dfl_call_at(call, end < call->lock_end_ms ? end : call->lock_end_ms, line_due);
    if (call->conn == NULL && dfl_server_waiting(call->server, &call->conn, &call->error) != DFL_OK) {
        end_without(call, call->error.status);
        return;
    }
    if (dfl_call_blocked(call, call->conn, stand_in_line))
        return;
    r = lock_request(call, DFL_CMD_LOCK, line_done);
    if (r == NULL) {
        out_of_memory(call);
        return;
    }
    left = call->end_ms - c->now.ms;
    r->timeout_s = call->end_ms == INT64_MAX ? DFL_SECONDS_MAX : (left + 999) / 1000;
    call->request = r;
    call->hold->state = DFL_QUEUED;
    call->no_life = line_no_life;
    dfl_conn_send(call->conn, r);
    dfl_hold_changed(call->hold);
    dfl_server_watch(call->server, call);
}

/* ------------------------------------------------------------- own holds first */

static double seconds_since(const struct dfl_client *c, int64_t ms)
{
    return (double)(c->now.ms - ms) / 1000;
}

static enum dfl_status say_self(const struct dfl_client *c, const struct dfl_hold *h, struct dfl_error *err)
{
    const char *kind = dfl_kind_name(h->kind);

    if (h->state != DFL_HELD)
        return dfl_fail(err, DFL_SELF,
                        "this session is already in line for %s \"%s\" (since %.1f s ago): use dflock_wait, or dflock_cancel",
                        kind, h->key->bytes, seconds_since(c, h->since_ms));
    return dfl_fail(err, DFL_SELF, "%s \"%s\" is already held by this session (since %.1f s ago)", kind, h->key->bytes,
                    seconds_since(c, h->acquired_ms));
}

/* Waiting for h would be waiting for oneself. */
static bool own_conflict(const struct dfl_hold *h, const struct dfl_request_args *a, int64_t *own_slots)
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
 * What the session has of the key decides first. DFL_OK: go on (*again, when set, is the xact lock that answers). Losses not yet told are
 * told, told ones forgotten.
 */
static enum dfl_status check_own(struct dfl_session *s, struct dfl_key *key, const struct dfl_request_args *a,
                                 struct dfl_hold **again, struct dfl_error *err)
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
        if (a->scope == DFL_SCOPE_XACT && a->kind == DFL_LOCK && h->kind == DFL_LOCK && h->scope == DFL_SCOPE_XACT &&
            h->state == DFL_HELD) {
            *again = h;
            return DFL_OK;
        }
        if (own_conflict(h, a, &own_slots))
            return say_self(s->client, h, err);
    }
    return DFL_OK;
}

static enum dfl_status check_moved(struct dfl_key *key, const struct dfl_server *server, struct dfl_error *err)
{
    DFL_EACH(l, &key->holds) {
        struct dfl_hold *h = DFL_CONTAINER(l, struct dfl_hold, by_key);

        if (h->server != server && h->state != DFL_STATE_LOST && h->state != DFL_RELEASING)
            return dfl_fail(err, DFL_MOVED,
                            "\"%s\" is still held or awaited at %s, its server before the list changed; it belongs to %s now",
                            key->bytes, h->server->address.text, server->address.text);
    }
    return DFL_OK;
}

static enum dfl_status check_args(const struct dfl_request_args *a, struct dfl_error *err)
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

/* The common beginning of acquire and enqueue: a call with its hold, or with the hold that answers already. */
static enum dfl_status begin(struct dfl_session *s, const struct dfl_request_args *a, bool enqueue, struct dfl_call **out,
                             struct dfl_error *err)
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
    call->give_up = give_up;
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

enum dfl_status dfl_acquire(struct dfl_session *s, const struct dfl_request_args *a, struct dfl_now now,
                            struct dfl_call **call, struct dfl_error *err)
{
    enum dfl_status st = check_args(a, err);

    if (st != DFL_OK)
        return st;
    dfl_enter(s->client, now);
    st = begin(s, a, false, call, err);
    if (st == DFL_OK && (*call)->status == DFL_PENDING)
        start_try(*call);
    dfl_leave(s->client);
    return st;
}

/* ---------------------------------------------------------------- enqueue */

/* Whether it is due between two waits or while one waits: the place's `w` is answered. */
static void place_done(struct dfl_request *r, const struct dfl_answer_line *a, const struct dfl_error *error)
{
    struct dfl_hold *h = r->owner;
    struct dfl_call *call = dfl_hold_in_call(h) ? h->call : NULL;

    h->waiting = NULL;
    if (error) {
        if (call)
            fail_without(call, error);
        return; /* without a call, the connection's death has told the hold */
    }
    if (a->kind == DFL_ANS_OK) {
        struct dfl_error err;

        if (dfl_fence_read(h->server, r, a->token, &h->fence, &err) != DFL_OK) {
            memcpy(h->token, a->token, sizeof h->token);
            h->place_status = DFL_PROTOCOL;
            dfl_hold_lose(h, "%s", err.text);
            if (call)
                fail_without(call, &err);
            return;
        }
        memcpy(h->token, a->token, sizeof h->token);
        h->lease_s = a->seconds;
        h->offered = h->came_up = true;
        h->offer_sent_ms = r->sent_ms;
        if (call && needs_confirming(h->server->client, r, a->seconds))
            confirm(call);
        else if (call)
            granted(call, r->conn, a->seconds, r->sent_ms);
        return;
    }
    h->came_up = a->status == DFL_LEASE_EXPIRED;
    h->place_status = h->came_up ? DFL_LAPSED : a->kind == DFL_ANS_ERROR ? a->status : DFL_NOT_ENQUEUED;
    if (call && h->came_up) {
        dfl_fail(&call->error, DFL_LAPSED, "the place for %s \"%s\" came up and lapsed", dfl_kind_name(h->kind),
                 h->key->bytes);
        end_without(call, DFL_LAPSED);
    } else if (call && a->kind == DFL_ANS_ERROR) {
        fail_with_word(call, a);
    } else if (call) {
        dfl_fail(&call->error, DFL_NOT_ENQUEUED, "%s ended the wait for %s \"%s\"", h->server->address.text,
                 dfl_kind_name(h->kind), h->key->bytes);
        end_without(call, DFL_NOT_ENQUEUED);
    } else {
        dfl_hold_lose(h, "%s ended the wait: %.*s", h->server->address.text, (int)a->text_len, a->text ? a->text : "");
    }
}

static void queued(struct dfl_call *call, struct dfl_conn *conn)
{
    struct dfl_hold *h = call->hold;
    struct dfl_request *w = dfl_request_new(dfl_command_for(DFL_CMD_WAIT, h->kind), h->key, NULL, place_done, h);

    if (w == NULL) {
        conn->single_use = true;
        out_of_memory(call);
        return;
    }
    w->timeout_s = DFL_SECONDS_MAX;
    h->state = DFL_QUEUED;
    dfl_hold_settle(h, conn);
    call->conn = NULL;
    h->waiting = w;
    dfl_conn_send(conn, w); /* at once: a place without its `w` is silent, and silence is closed */
    dfl_hold_changed(h);
    dfl_call_end(call, DFL_OK);
}

static void enqueue_done(struct dfl_request *r, const struct dfl_answer_line *a, const struct dfl_error *error)
{
    struct dfl_call *call = r->owner;

    call->request = NULL;
    if (error) {
        call->conn = NULL;
        if (may_repeat(call, r, error))
            ask_enqueue(call);
        else
            fail_without(call, error);
        return;
    }
    if (a->kind == DFL_ANS_ACQUIRED) {
        note_proven(call);
        r->conn->single_use = true; /* 0.5.0 refuses the next `e` of that key on it */
        take_grant(call, r, a);
    } else if (a->kind == DFL_ANS_QUEUED) {
        note_proven(call);
        if (call->giving_up) {
            r->conn->single_use = true;
            end_without(call, DFL_CANCELED);
        } else {
            queued(call, r->conn);
        }
    } else if (a->status == DFL_REFUSED) {
        suspect(call, r->conn);
    } else {
        fail_with_word(call, a);
    }
}

static void ask_enqueue(struct dfl_call *call)
{
    struct dfl_request *r;

    call->unproven = is_unproven(call);
    dfl_call_at(call, call->net_deadline_ms, too_slow);
    if (call->conn == NULL && dfl_server_waiting(call->server, &call->conn, &call->error) != DFL_OK) {
        end_without(call, call->error.status);
        return;
    }
    if (dfl_call_blocked(call, call->conn, ask_enqueue))
        return;
    r = lock_request(call, DFL_CMD_ENQUEUE, enqueue_done);
    if (r == NULL) {
        out_of_memory(call);
        return;
    }
    call->request = r;
    dfl_conn_send(call->conn, r);
}

enum dfl_status dfl_enqueue(struct dfl_session *s, const struct dfl_request_args *a, struct dfl_now now,
                            struct dfl_call **call, struct dfl_error *err)
{
    enum dfl_status st = check_args(a, err);

    if (st != DFL_OK)
        return st;
    dfl_enter(s->client, now);
    st = begin(s, a, true, call, err);
    if (st == DFL_OK && (*call)->status == DFL_PENDING)
        ask_enqueue(*call);
    dfl_leave(s->client);
    return st;
}

/* ----------------------------------------------------------- one's turn */

/* Ends the call and keeps the place. */
static void end_waiting(struct dfl_call *call, enum dfl_status status)
{
    if (call->hold)
        dfl_hold_set_call(call->hold, NULL);
    dfl_call_end(call, status);
}

static void not_yet(struct dfl_call *call)
{
    struct dfl_hold *h = call->hold;

    if (h && h->home)
        dfl_conn_read(h->home); /* one more look at its own place */
    if (call->status != DFL_PENDING || (h && h->state == DFL_CONFIRMING))
        return;
    dfl_fail(&call->error, DFL_TIMEOUT, "the turn for %s \"%s\" has not come yet; the place is kept",
             dfl_kind_name(call->args.kind), call->key->bytes);
    end_waiting(call, DFL_TIMEOUT);
}

static void turn_alive(struct dfl_call *call)
{
    if (call->asked_ms && call->server->proof_ms >= call->asked_ms) {
        call->asked_ms = 0;
        not_yet(call);
    }
}

static void turn_no_life(struct dfl_call *call, const struct dfl_error *why)
{
    call->error = *why;
    end_waiting(call, why->status == DFL_NOMEM ? DFL_NOMEM : DFL_BROKEN);
}

static void turn_unproven(struct dfl_call *call)
{
    struct dfl_error why;

    dfl_fail(&why, DFL_BROKEN, "no sign of life from %s within %g s", call->server->address.text,
             (double)call->session->client->settings.connect_timeout_ms / 1000);
    turn_no_life(call, &why);
}

static void turn_due(struct dfl_call *call)
{
    struct dfl_client *c = call->session->client;
    struct dfl_server *server = call->server;
    struct dfl_hold *h = call->hold;

    if (h->home)
        dfl_conn_read(h->home);
    if (call->status != DFL_PENDING || h->state == DFL_CONFIRMING)
        return;
    if (c->now.ms >= call->lock_end_ms) {
        dfl_fail(&call->error, DFL_LOCK_TIMEOUT, "%s \"%s\" was not granted within the lock timeout of %.3g s",
                 dfl_kind_name(call->args.kind), call->key->bytes, (double)call->args.lock_timeout_ms / 1000);
        dfl_place_leave(h);
        dfl_call_end(call, DFL_LOCK_TIMEOUT);
        return;
    }
    if (server->proof_ms && c->now.ms - server->proof_ms <= c->keepalive_ms + PROOF_SLACK_MS) {
        not_yet(call);
        return;
    }
    call->asked_ms = c->now.ms;
    dfl_call_at(call, c->now.ms + c->settings.connect_timeout_ms, turn_unproven);
    dfl_server_ask(server);
}

static void leave_turn(struct dfl_call *call)
{
    struct dfl_hold *h = call->hold;

    if (h == NULL)
        return;
    if (call->request)
        dfl_conn_withdraw(call->request);
    call->request = NULL;
    dfl_place_leave(h);
}

/* What a session that has no place of that key, or a place that died, is told. */
static enum dfl_status no_place(struct dfl_session *s, struct dfl_key *key, const struct dfl_request_args *a,
                                struct dfl_error *err)
{
    if (key) {
        DFL_EACH(l, &key->holds) {
            struct dfl_hold *h = DFL_CONTAINER(l, struct dfl_hold, by_key);
            enum dfl_status st = h->place_status;

            if (h->session != s || h->kind != a->kind || h->state != DFL_STATE_LOST)
                continue;
            if (h->acquired_ms)
                return dfl_say_lost(h, err);
            if (st == DFL_LAPSED)
                dfl_fail(err, st, "the place for %s \"%s\" came up and lapsed", dfl_kind_name(h->kind), key->bytes);
            else
                dfl_fail(err, st, "the place for %s \"%s\" was lost %.1f s ago: %s", dfl_kind_name(h->kind), key->bytes,
                         seconds_since(s->client, h->lost_ms), h->last_error ? h->last_error : "connection lost");
            dfl_hold_free(h);
            return st;
        }
    }
    return dfl_fail(err, DFL_NOT_QUEUED, "this session is not in line for %s \"%.*s\": use dflock_enqueue first",
                    dfl_kind_name(a->kind), (int)a->key_len, a->key);
}

static void start_waiting(struct dfl_call *call)
{
    struct dfl_client *c = call->session->client;
    struct dfl_hold *h = call->hold;
    const struct dfl_request_args *a = &call->args;

    if (h->state == DFL_HELD) { /* already acquired */
        dfl_call_end(call, DFL_OK);
        return;
    }
    call->give_up = leave_turn;
    if (h->offered) {
        confirm(call); /* it came up between two waits: only the server can say whether it still stands */
        return;
    }
    call->busy_since_ms = c->now.ms;
    call->end_ms = a->timeout_ms == DFL_FOREVER ? INT64_MAX : c->now.ms + a->timeout_ms;
    call->lock_end_ms = a->lock_timeout_ms > 0 ? c->now.ms + a->lock_timeout_ms : INT64_MAX;
    call->no_life = turn_no_life;
    call->alive = turn_alive;
    dfl_call_at(call, call->end_ms < call->lock_end_ms ? call->end_ms : call->lock_end_ms, turn_due);
    dfl_server_watch(call->server, call);
    if (a->timeout_ms == 0)
        turn_due(call);
}

static enum dfl_status begin_waiting(struct dfl_session *s, const struct dfl_request_args *a, struct dfl_call **out,
                                     struct dfl_error *err)
{
    struct dfl_hold *h;
    struct dfl_call *call;

    (void)dfl_find_hold(s, a->key, a->key_len, a->kind, -1); /* reads what has arrived */
    h = dfl_session_place(s, a->key, a->key_len, a->kind);
    if (h == NULL)
        h = dfl_find_hold(s, a->key, a->key_len, a->kind, -1);
    if (h == NULL || h->state == DFL_STATE_LOST)
        return no_place(s, dfl_key_find(s->client, a->key, a->key_len), a, err);
    if (h->state == DFL_HELD && !h->from_enqueue)
        return dfl_fail(err, DFL_NOT_QUEUED, "%s \"%s\" is held already, and did not come from dflock_enqueue",
                        dfl_kind_name(h->kind), h->key->bytes);
    call = dfl_call_new(s, a->user, err);
    if (call == NULL)
        return DFL_NOMEM;
    call->args = *a;
    call->args.key = NULL;
    call->key = h->key;
    call->key->refs++;
    call->server = h->server;
    dfl_hold_set_call(h, call);
    start_waiting(call);
    *out = call;
    return DFL_OK;
}

enum dfl_status dfl_wait_turn(struct dfl_session *s, const struct dfl_request_args *a, struct dfl_now now,
                              struct dfl_call **call, struct dfl_error *err)
{
    enum dfl_status st = dfl_key_check(a->key, a->key_len, err);

    if (st != DFL_OK)
        return st;
    dfl_enter(s->client, now);
    st = begin_waiting(s, a, call, err);
    dfl_leave(s->client);
    return st;
}
