/*
 * place.c - the two phases: enqueue takes a place in a queue (or the lock at once), wait_turn waits
 * for it.
 *
 * The place's `w` stays outstanding between two waits; "not yet" needs a sign of life, and asks for
 * one, but never a try: its own place, or for a semaphore a second slot, would answer that.
 */
#include "engine.h"

#include <string.h>

#define PROOF_SLACK_MS 3000 /* beyond keepalive, a sign of life this old still counts */

static void ask_enqueue(struct dfl_call *call);

/* ---------------------------------------------------------------- enqueue */

/* Whether it is due between two waits or while one waits: the place's `w` is answered. */
static void place_done(struct dfl_request *r, const struct dfl_answer_line *a,
                       const struct dfl_error *error)
{
    struct dfl_hold *h = r->owner;
    struct dfl_call *call = dfl_hold_in_call(h) ? h->call : NULL;

    h->waiting = NULL;
    if (error) {
        if (call)
            dfl_fail_without(call, error);
        return; /* without a call, the connection's death has told the hold */
    }
    if (a->kind == DFL_ANS_OK) {
        struct dfl_error err;

        r->fence_floor = h->fence_floor;
        if (!DFL_PLANTED(17))
            r->sent_ms = h->offer_sent_ms;
        if (dfl_fence_read(h->server, r, a->token, &h->fence, &err) != DFL_OK) {
            memcpy(h->token, a->token, sizeof h->token);
            h->place_status = DFL_PROTOCOL;
            dfl_hold_lose(h, "%s", err.text);
            if (call)
                dfl_fail_without(call, &err);
            return;
        }
        memcpy(h->token, a->token, sizeof h->token);
        h->lease_s = h->granted_s = a->seconds;
        h->offered = h->came_up = true;
        if (call && dfl_needs_confirming(h->server->client, r, a->seconds))
            dfl_confirm(call);
        else if (call)
            dfl_granted(call, r->conn, a->seconds, r->sent_ms);
        return;
    }
    h->came_up = a->status == DFL_LEASE_EXPIRED;
    h->place_status = h->came_up                 ? DFL_LAPSED
                      : a->kind == DFL_ANS_ERROR ? a->status
                                                 : DFL_NOT_ENQUEUED;
    if (call && h->came_up) {
        dfl_fail(&call->error, DFL_LAPSED, "the place for %s \"%s\" came up and lapsed",
                 dfl_kind_name(h->kind), h->key->bytes);
        dfl_end_without(call, DFL_LAPSED);
    } else if (call && a->kind == DFL_ANS_ERROR) {
        dfl_fail_with_word(call, a);
    } else if (call) {
        dfl_fail(&call->error, DFL_NOT_ENQUEUED, "%s ended the wait for %s \"%s\"",
                 h->server->address.text, dfl_kind_name(h->kind), h->key->bytes);
        dfl_end_without(call, DFL_NOT_ENQUEUED);
    } else {
        dfl_hold_lose(h, "%s ended the wait: %.*s", h->server->address.text, (int)a->text_len,
                      a->text ? a->text : "");
    }
}

/* Old servers start the lease when the place comes up, which may be before its `w` is sent. */
static void queued(struct dfl_call *call, struct dfl_conn *conn, const struct dfl_request *e)
{
    struct dfl_hold *h = call->hold;
    struct dfl_request *w =
        dfl_request_new(dfl_command_for(DFL_CMD_WAIT, h->kind), h->key, NULL, place_done, h);

    if (w == NULL) {
        conn->in_line = true;
        dfl_out_of_memory(call);
        return;
    }
    w->timeout_s = DFL_SECONDS_MAX;
    h->fence_floor = e->fence_floor;
    h->offer_sent_ms = e->sent_ms;
    h->state = DFL_QUEUED;
    dfl_hold_settle(h, conn);
    call->conn = NULL;
    h->waiting = w;
    dfl_conn_send(conn, w); /* at once: a place without its `w` is silent, and silence is closed */
    dfl_hold_changed(h);
    dfl_call_end(call, DFL_OK);
}

static void enqueue_done(struct dfl_request *r, const struct dfl_answer_line *a,
                         const struct dfl_error *error)
{
    struct dfl_call *call = r->owner;

    call->request = NULL;
    if (error) {
        call->conn = NULL;
        if (dfl_may_repeat(call, r, error))
            ask_enqueue(call);
        else
            dfl_fail_without(call, error);
        return;
    }
    if (a->kind == DFL_ANS_ACQUIRED) {
        dfl_note_proven(call);
        r->conn->single_use = true; /* 0.5.0 refuses the next `e` of that key on it */
        dfl_take_grant(call, r, a);
    } else if (a->kind == DFL_ANS_QUEUED) {
        dfl_note_proven(call);
        if (call->giving_up) {
            r->conn->in_line = true;
            dfl_end_without(call, DFL_CANCELED);
        } else {
            queued(call, r->conn, r);
        }
    } else if (dfl_is_plain_error(a)) {
        dfl_suspect(call, r->conn);
    } else {
        dfl_fail_with_word(call, a);
    }
}

static void ask_enqueue(struct dfl_call *call)
{
    struct dfl_request *r;

    call->unproven = dfl_is_unproven(call);
    dfl_call_at(call, call->net_deadline_ms, dfl_too_slow);
    if (dfl_call_blocked(call, call->conn, ask_enqueue)) {
        dfl_leave_conn(call); /* it may die before the debt is paid */
        return;
    }
    if (call->conn == NULL &&
        dfl_server_waiting(call->server, &call->conn, &call->error) != DFL_OK) {
        dfl_end_without(call, call->error.status);
        return;
    }
    r = dfl_lock_request(call, DFL_CMD_ENQUEUE, enqueue_done);
    if (r == NULL) {
        dfl_out_of_memory(call);
        return;
    }
    call->request = r;
    dfl_conn_send(call->conn, r);
}

static void first_ask(struct dfl_call *call)
{
    call->again = ask_enqueue;
    call->go_on = NULL; /* a place that lapsed is not asked for again */
    ask_enqueue(call);
}

enum dfl_status dfl_enqueue(struct dfl_session *s, const struct dfl_request_args *a,
                            struct dfl_now now, struct dfl_call **call, struct dfl_error *err)
{
    enum dfl_status st = dfl_check_args(a, err);

    if (st != DFL_OK)
        return st;
    dfl_enter(s->client, now);
    st = dfl_begin(s, a, true, call, err);
    if (st == DFL_OK && (*call)->status == DFL_PENDING)
        first_ask(*call);
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
    dfl_fail(&call->error, DFL_TIMEOUT,
             "the turn for %s \"%s\" has not come yet; the place is kept",
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
        dfl_fail(&call->error, DFL_LOCK_TIMEOUT,
                 "%s \"%s\" was not granted within the lock timeout of %.10g s",
                 dfl_kind_name(call->args.kind), call->key->bytes,
                 (double)call->args.lock_timeout_ms / 1000);
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
static enum dfl_status no_place(struct dfl_session *s, struct dfl_key *key,
                                const struct dfl_request_args *a, struct dfl_error *err)
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
                dfl_fail(err, st, "the place for %s \"%s\" came up and lapsed",
                         dfl_kind_name(h->kind), key->bytes);
            else
                dfl_fail(err, st, "the place for %s \"%s\" was lost %.1f s ago: %s",
                         dfl_kind_name(h->kind), key->bytes,
                         dfl_seconds_since(s->client, h->lost_ms),
                         h->last_error ? h->last_error : "connection lost");
            dfl_hold_free(h);
            return st;
        }
    }
    return dfl_fail(err, DFL_NOT_QUEUED,
                    "this session is not in line for %s \"%.*s\": use dflock_enqueue first",
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
        dfl_confirm(call); /* it came up between two waits: only the server can say whether it still
                              stands */
        return;
    }
    call->busy_since_ms = c->now.ms;
    call->end_ms = a->timeout_ms == DFL_FOREVER ? INT64_MAX : c->now.ms + a->timeout_ms;
    call->lock_end_ms = a->lock_timeout_ms > 0 ? c->now.ms + a->lock_timeout_ms : INT64_MAX;
    call->no_life = turn_no_life;
    call->alive = turn_alive;
    dfl_call_at(call, call->end_ms < call->lock_end_ms ? call->end_ms : call->lock_end_ms,
                turn_due);
    dfl_server_watch(call->server, call);
    if (a->timeout_ms == 0)
        turn_due(call);
}

static enum dfl_status begin_waiting(struct dfl_session *s, const struct dfl_request_args *a,
                                     struct dfl_call **out, struct dfl_error *err)
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
        return dfl_fail(err, DFL_NOT_QUEUED,
                        "%s \"%s\" is held already, and did not come from dflock_enqueue",
                        dfl_kind_name(h->kind), h->key->bytes);
    if (dfl_hold_is_place(h) && dfl_hold_in_call(h)) /* a place knows one call */
        return dfl_fail(err, DFL_SELF, "another call of this session waits for %s \"%s\" already",
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

enum dfl_status dfl_wait_turn(struct dfl_session *s, const struct dfl_request_args *a,
                              struct dfl_now now, struct dfl_call **call, struct dfl_error *err)
{
    enum dfl_status st = dfl_key_check(a->key, a->key_len, err);

    if (st != DFL_OK)
        return st;
    dfl_enter(s->client, now);
    st = begin_waiting(s, a, call, err);
    dfl_leave(s->client);
    return st;
}
