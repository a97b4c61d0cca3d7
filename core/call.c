/*
 * call.c - the life of a call: from its start to its one end (dfl_call_end), and what canceling and
 * freeing it mean. Whatever arrives for it later belongs to a tombstone or to the hold.
 */
#include "engine.h"

#include <stdlib.h>

static void call_due(struct dfl_timer *timer, struct dfl_now now)
{
    struct dfl_call *call = DFL_CONTAINER(timer, struct dfl_call, timer);

    (void)now;
    if (call->status == DFL_PENDING)
        call->due(call);
}

struct dfl_call *dfl_call_new(struct dfl_session *s, void *user, struct dfl_error *err)
{
    struct dfl_client *c = s->client;
    struct dfl_call *call = calloc(1, sizeof *call);

    if (call == NULL || dfl_timer_room(c) != DFL_OK) {
        free(call);
        dfl_fail(err, DFL_NOMEM, "out of memory");
        return NULL;
    }
    call->session = s;
    call->status = DFL_PENDING;
    call->args.user = user;
    call->timer.fire = call_due;
    call->net_deadline_ms = c->now.ms + c->settings.connect_timeout_ms;
    dfl_link_init(&call->by_server);
    dfl_link_init(&call->blocked);
    dfl_link_init(&call->by_session);
    dfl_list_append(&s->calls, &call->by_session);
    c->pending_calls++;
    return call;
}

void dfl_call_at(struct dfl_call *call, int64_t at_ms, void (*due)(struct dfl_call *))
{
    struct dfl_client *c = call->session->client;

    call->due = due;
    if (at_ms == INT64_MAX)
        dfl_timer_clear(&c->timers, &call->timer);
    else
        dfl_timer_set(&c->timers, &call->timer, at_ms);
}

void dfl_call_end(struct dfl_call *call, enum dfl_status status)
{
    struct dfl_client *c = call->session->client;

    if (call->status != DFL_PENDING)
        return;
    call->status = status;
    if (status != DFL_OK && call->error.text[0] == '\0')
        dfl_fail(&call->error, status, "%s", dfl_status_info(status)->text);
    call->error.status = status;
    dfl_timer_clear(&c->timers, &call->timer);
    dfl_link_remove(&call->by_server);
    dfl_link_remove(&call->blocked);
    c->pending_calls--;
    if (c->host.call_done)
        c->host.call_done(c->host.ctx, call);
}

void dfl_call_fail(struct dfl_call *call, const struct dfl_error *why)
{
    call->error = *why;
    dfl_call_end(call, why->status);
}

bool dfl_call_blocked(struct dfl_call *call, struct dfl_conn *conn,
                      void (*resume)(struct dfl_call *))
{
    if (!dfl_key_owed(call->key, conn))
        return false;
    call->resume = resume;
    dfl_list_append(&call->key->blocked, &call->blocked);
    return true;
}

bool dfl_call_last_step(struct dfl_call *call)
{
    struct dfl_conn *conn = call->request ? call->request->conn : NULL;

    if (conn && conn->state == DFL_CONN_CONNECTING)
        dfl_conn_step(conn);
    return call->status != DFL_PENDING;
}

void dfl_call_no_answer(struct dfl_call *call)
{
    const struct dfl_client *c = call->session->client;
    const struct dfl_conn *conn = call->request ? call->request->conn : NULL;
    const char *address = call->server->address.text;
    double s = (double)c->settings.connect_timeout_ms / 1000;

    if (conn && conn->state == DFL_CONN_CONNECTING && conn->transport)
        dfl_fail(&call->error, DFL_UNREACHABLE, "connect to %s: no answer within %g s (step: %s)",
                 address, s, conn->transport->ops->step(conn->transport));
    else
        dfl_fail(&call->error, DFL_BROKEN, "no answer from %s within %g s", address, s);
}

static void detach(struct dfl_call *call)
{
    if (call->hold)
        dfl_hold_set_call(call->hold, NULL);
}

void dfl_call_cancel(struct dfl_call *call, struct dfl_now now)
{
    struct dfl_client *c = call->session->client;

    dfl_enter(c, now);
    if (call->status == DFL_PENDING) {
        call->giving_up = true; /* a grant that is read from here on is given back */
        call->error.text[0] = '\0';
        if (call->give_up)
            call->give_up(call);
        dfl_call_end(call, DFL_CANCELED);
    }
    dfl_leave(c);
}

static void free_replies(struct dfl_call *call)
{
    for (size_t i = 0; i < call->reply_count; i++)
        free(call->replies[i].body);
    free(call->replies);
}

void dfl_call_free(struct dfl_call *call, struct dfl_now now)
{
    struct dfl_client *c;

    if (call == NULL)
        return;
    c = call->session->client;
    dfl_enter(c, now);
    dfl_call_cancel(call, now);
    detach(call);
    dfl_link_remove(&call->by_session);
    dfl_timer_unroom(c);
    if (call->key)
        dfl_key_put(call->key);
    free_replies(call);
    free(call);
    dfl_leave(c);
}

enum dfl_status dfl_call_status(const struct dfl_call *call)
{
    return call->status;
}

const struct dfl_error *dfl_call_error(const struct dfl_call *call)
{
    return &call->error;
}

void *dfl_call_user(const struct dfl_call *call)
{
    return call->args.user;
}

struct dfl_session *dfl_call_session(const struct dfl_call *call)
{
    return call->session;
}

struct dfl_hold *dfl_call_hold(const struct dfl_call *call)
{
    return call->hold;
}

int64_t dfl_call_seconds(const struct dfl_call *call)
{
    return call->seconds;
}

int64_t dfl_call_busy_since_ms(const struct dfl_call *call)
{
    return call->busy_since_ms;
}
