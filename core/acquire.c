/*
 * acquire.c - the calls that ask for a lock: acquire (try, then wait in line), enqueue, and waiting
 * for one's turn.
 *
 * Each call is a chain of named steps; call->due, ->resume, ->give_up say what time, a paid debt
 * and a cancel mean in the present one. The rule of the three outcomes stands here: granted only by
 * a grant that the server still honours, "false" only by the server's word, everything else an
 * error.
 */
#include "engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TRY_GRACE_MS 100 /* so that the server can say `timeout` itself */

static void start_try(struct dfl_call *call);
static void stand_in_line(struct dfl_call *call);

/* ------------------------------------------------------------------- ends */

static void end_busy(struct dfl_call *call)
{
    struct dfl_client *c = call->session->client;

    dfl_fail(&call->error, DFL_TIMEOUT, "%s \"%s\" was not granted within %.10g s",
             dfl_kind_name(call->args.kind), call->key->bytes,
             (double)(c->now.ms - call->busy_since_ms) / 1000);
    dfl_end_without(call, DFL_TIMEOUT);
}

static void end_lock_timeout(struct dfl_call *call)
{
    dfl_fail(&call->error, DFL_LOCK_TIMEOUT,
             "%s \"%s\" was not granted within the lock timeout of %.10g s",
             dfl_kind_name(call->args.kind), call->key->bytes,
             (double)call->args.lock_timeout_ms / 1000);
    dfl_end_without(call, DFL_LOCK_TIMEOUT);
}

/* The offer was refused: nothing was granted. acquire and lock go on with the time that is left. */
static void go_on(struct dfl_call *call, struct dfl_conn *conn)
{
    struct dfl_hold *h = call->hold;

    dfl_link_remove(&h->by_conn);
    h->home = NULL;
    h->fence = -1;
    h->state = DFL_TRYING;
    dfl_hold_changed(h);
    if (conn->role == DFL_ROLE_WAITING)
        dfl_conn_idle(conn); /* no request that blocks behind the release of the offer */
    if (call->busy_since_ms == 0 || call->final)
        start_try(call);
    else
        stand_in_line(call);
}

/* ------------------------------------------------------------- the first try */

static void busy(struct dfl_call *call)
{
    struct dfl_client *c = call->session->client;

    if (call->busy_since_ms == 0) {
        int64_t timeout = call->args.timeout_ms, lock = call->args.lock_timeout_ms;

        call->busy_since_ms = c->now.ms;
        call->end_ms = timeout == DFL_FOREVER ? INT64_MAX : c->now.ms + timeout;
        call->lock_end_ms = lock > 0 ? c->now.ms + lock : INT64_MAX;
    }
    /* An answer that comes after the end is as good as that of one more try. */
    if (call->final || (c->now.ms >= call->end_ms && c->now.ms < call->lock_end_ms))
        end_busy(call);
    else
        stand_in_line(call);
}

static void try_done(struct dfl_request *r, const struct dfl_answer_line *a,
                     const struct dfl_error *error)
{
    struct dfl_call *call = r->owner;

    call->request = NULL;
    if (error) {
        if (r->conn == call->conn)
            call->conn = NULL;
        if (dfl_may_repeat(call, r, error))
            start_try(call);
        else
            dfl_fail_without(call, error);
        return;
    }
    if (a->kind == DFL_ANS_OK) {
        dfl_note_proven(call);
        dfl_take_grant(call, r, a);
    } else if (a->kind == DFL_ANS_TIMEOUT || a->status == DFL_MAX_WAITERS) {
        dfl_note_proven(call);
        busy(call);
    } else if (a->status == DFL_LEASE_EXPIRED) {
        start_try(call);
    } else if (dfl_is_plain_error(a) && (!r->conn_owned || call->unproven) && !DFL_PLANTED(6)) {
        dfl_suspect(call, r->conn);
    } else {
        dfl_fail_with_word(call, a);
    }
}

/* A connection for a try: the control connection, or one that owns nothing for what the server may
 * not know. */
static enum dfl_status try_conn(struct dfl_call *call, struct dfl_conn **conn)
{
    enum dfl_status st;

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

static void start_try(struct dfl_call *call)
{
    struct dfl_conn *conn;
    struct dfl_request *r;

    call->unproven = dfl_is_unproven(call);
    dfl_call_at(call, call->net_deadline_ms, dfl_too_slow);
    conn = call->conn || call->unproven ? call->conn : call->server->control;
    if (dfl_call_blocked(call, conn, start_try)) {
        dfl_leave_conn(call); /* it may die before the debt is paid */
        return;
    }
    if (try_conn(call, &conn) != DFL_OK) {
        dfl_end_without(call, call->error.status);
        return;
    }
    r = dfl_lock_request(call, DFL_CMD_LOCK, try_done);
    if (r == NULL) {
        dfl_out_of_memory(call);
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

/* Leaves the queue by closing the connection; what arrived before counts. False: that has moved the
 * call on. */
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
    dfl_leave_conn(call);
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
        dfl_fail_without(call, &copy);
}

/* A plain `error` to a request that waited: ours, or a read time-out's? As for a try. */
static void suspect_in_line(struct dfl_call *call, struct dfl_conn *conn)
{
    struct dfl_client *c = call->session->client;

    dfl_link_remove(&call->by_server);
    call->no_life = NULL;
    call->hold->state = DFL_TRYING;
    dfl_hold_changed(call->hold);
    call->net_deadline_ms = c->now.ms + c->settings.connect_timeout_ms;
    dfl_call_at(call, call->net_deadline_ms, dfl_too_slow);
    dfl_suspect(call, conn);
}

static void line_done(struct dfl_request *r, const struct dfl_answer_line *a,
                      const struct dfl_error *error)
{
    struct dfl_call *call = r->owner;

    call->request = NULL;
    if (error) {
        call->conn = NULL;
        if (!r->sent &&
            dfl_may_repeat(call, r, error)) /* an idle connection that was closed before use */
            stand_in_line(call);
        else
            dfl_fail_without(call, error);
        return;
    }
    if (a->kind == DFL_ANS_OK)
        dfl_take_grant(call, r, a);
    else if (a->kind == DFL_ANS_TIMEOUT)
        end_busy(call);
    else if (a->status == DFL_LEASE_EXPIRED)
        stand_in_line(call);
    else if (dfl_is_plain_error(a))
        suspect_in_line(call, r->conn);
    else
        dfl_fail_with_word(call, a);
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
    if (dfl_call_blocked(call, call->conn, stand_in_line)) {
        dfl_leave_conn(call); /* it may die before the debt is paid */
        call->no_life = line_no_life;
        dfl_server_watch(call->server, call); /* a debt may stay unpaid for long */
        return;
    }
    if (call->conn == NULL &&
        dfl_server_waiting(call->server, &call->conn, &call->error) != DFL_OK) {
        dfl_end_without(call, call->error.status);
        return;
    }
    r = dfl_lock_request(call, DFL_CMD_LOCK, line_done);
    if (r == NULL) {
        dfl_out_of_memory(call);
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

static void first_try(struct dfl_call *call)
{
    call->again = start_try;
    call->go_on = go_on;
    start_try(call);
}

enum dfl_status dfl_acquire(struct dfl_session *s, const struct dfl_request_args *a,
                            struct dfl_now now, struct dfl_call **call, struct dfl_error *err)
{
    enum dfl_status st = dfl_check_args(a, err);

    if (st != DFL_OK)
        return st;
    dfl_enter(s->client, now);
    st = dfl_begin(s, a, false, call, err);
    if (st == DFL_OK && (*call)->status == DFL_PENDING)
        first_try(*call);
    dfl_leave(s->client);
    return st;
}
