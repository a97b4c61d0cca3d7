/*
 * ask.c - the calls that ask every server of the list: stats and ping. Each goes over a connection
 * that owns nothing, since a server that does not know the request may close; a server's failure is
 * its own row of the answer.
 */
#include "engine.h"

#include <stdlib.h>
#include <string.h>

static void reply_end(struct dfl_server_reply *reply)
{
    struct dfl_call *call = reply->call;
    struct dfl_conn *conn = reply->conn;

    reply->request = NULL;
    reply->conn = NULL;
    if (conn)
        dfl_conn_idle(conn);
    if (--call->outstanding == 0)
        dfl_call_end(call, DFL_OK);
}

static void take_body(struct dfl_server_reply *reply, const struct dfl_answer_line *a)
{
    reply->body = malloc(a->text_len + 1);
    if (reply->body == NULL) {
        dfl_fail(&reply->error, DFL_NOMEM, "out of memory");
        return;
    }
    memcpy(reply->body, a->text, a->text_len);
    reply->body[a->text_len] = '\0';
    reply->body_len = a->text_len;
}

static void reply_done(struct dfl_request *r, const struct dfl_answer_line *a,
                       const struct dfl_error *error)
{
    struct dfl_server_reply *reply = r->owner;

    reply->round_trip_us = error ? -1 : reply->call->session->client->now.us - r->sent_us;
    if (error) {
        reply->conn = NULL;
        reply->error = *error;
    } else if (r->cmd == DFL_CMD_STATS && a->kind == DFL_ANS_OK) {
        take_body(reply, a);
    } else if (r->cmd == DFL_CMD_STATS) {
        reply->conn->single_use = true;
        dfl_fail(&reply->error, a->status == DFL_REFUSED ? DFL_UNKNOWN_TO_SERVER : a->status,
                 "%s answered stats with %.*s: not known to this server?", reply->address,
                 (int)a->text_len, a->text);
    }
    reply_end(reply);
}

static void ask_one(struct dfl_server_reply *reply, struct dfl_server *server, bool stats)
{
    struct dfl_request *r;

    if (dfl_server_waiting(server, &reply->conn, &reply->error) != DFL_OK) {
        reply_end(reply);
        return;
    }
    r = stats ? dfl_request_new(DFL_CMD_STATS, NULL, NULL, reply_done, reply)
              : dfl_server_harmless(server, reply_done, reply);
    if (r == NULL) {
        dfl_fail(&reply->error, DFL_NOMEM, "out of memory");
        reply_end(reply);
        return;
    }
    reply->request = r;
    dfl_conn_send(reply->conn, r);
}

static void leave_replies(struct dfl_call *call)
{
    for (size_t i = 0; i < call->reply_count; i++) {
        struct dfl_server_reply *reply = &call->replies[i];

        if (reply->conn == NULL)
            continue;
        if (reply->request && reply->request->sent)
            reply->conn->single_use = true;
        if (reply->request)
            dfl_conn_withdraw(reply->request);
        reply->request = NULL;
        dfl_conn_close(reply->conn);
        reply->conn = NULL;
    }
}

static void ask_too_slow(struct dfl_call *call)
{
    double s = (double)call->session->client->settings.connect_timeout_ms / 1000;

    for (size_t i = 0; i < call->reply_count; i++) {
        if (call->replies[i].conn)
            dfl_fail(&call->replies[i].error, DFL_BROKEN, "no answer from %s within %g s",
                     call->replies[i].address, s);
    }
    leave_replies(call);
    dfl_call_end(call, DFL_OK);
}

static enum dfl_status ask_all(struct dfl_session *s, bool stats, void *user, struct dfl_now now,
                               struct dfl_call **out, struct dfl_error *err)
{
    struct dfl_client *c = s->client;
    struct dfl_call *call;

    dfl_enter(c, now);
    call = dfl_call_new(s, user, err);
    if (call)
        call->replies = calloc(c->shard_count, sizeof *call->replies);
    if (call == NULL || call->replies == NULL) {
        if (call)
            dfl_call_free(call, now);
        dfl_leave(c);
        return dfl_fail(err, DFL_NOMEM, "out of memory");
    }
    call->reply_count = c->shard_count;
    call->outstanding = c->shard_count + 1; /* one is ours, until all are asked */
    call->give_up = leave_replies;
    dfl_call_at(call, call->net_deadline_ms, ask_too_slow);
    for (size_t i = 0; i < c->shard_count; i++) {
        struct dfl_server_reply *reply = &call->replies[i];

        reply->call = call;
        reply->round_trip_us = -1;
        memcpy(reply->address, c->shards[i]->address.text, sizeof reply->address);
        ask_one(reply, c->shards[i], stats);
    }
    if (--call->outstanding == 0)
        dfl_call_end(call, DFL_OK);
    *out = call;
    dfl_leave(c);
    return DFL_OK;
}

enum dfl_status dfl_stats(struct dfl_session *s, void *user, struct dfl_now now,
                          struct dfl_call **call, struct dfl_error *err)
{
    return ask_all(s, true, user, now, call, err);
}

enum dfl_status dfl_ping(struct dfl_session *s, void *user, struct dfl_now now,
                         struct dfl_call **call, struct dfl_error *err)
{
    return ask_all(s, false, user, now, call, err);
}

size_t dfl_call_answers(const struct dfl_call *call)
{
    return call->reply_count;
}

void dfl_call_answer(const struct dfl_call *call, size_t i, struct dfl_server_answer *a)
{
    const struct dfl_server_reply *reply = &call->replies[i];

    a->address = reply->address;
    a->status = reply->error.status;
    a->error = reply->error.text;
    a->body = reply->body ? reply->body : "";
    a->body_len = reply->body_len;
    a->round_trip_us = reply->round_trip_us;
}
