/*
 * server.c - one lock server as a client sees it: its control connection, its pool of idle
 * connections, signs of life.
 *
 * Owns the connections (conn.c runs them) and the tokens that a dead connection has left to be
 * released. Says once when the server goes and once when it comes back.
 */
#include "engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define POOL_MAX 8

static void server_due(struct dfl_timer *timer, struct dfl_now now);

enum dfl_status dfl_server_new(struct dfl_client *c, const struct dfl_server_address *address,
                               struct dfl_server **out)
{
    struct dfl_server *server = calloc(1, sizeof *server);

    if (server == NULL)
        return DFL_NOMEM;
    server->fence = dfl_fence_entry(c->book, address->text);
    if (server->fence == NULL || dfl_timer_room(c) != DFL_OK) {
        free(server);
        return DFL_NOMEM;
    }
    server->client = c;
    server->address = *address;
    server->configured = true;
    server->round_trip_us = -1;
    server->timer.fire = server_due;
    dfl_link_init(&server->by_client);
    dfl_link_init(&server->conns);
    dfl_link_init(&server->pool);
    dfl_link_init(&server->orphans);
    dfl_link_init(&server->watchers);
    *out = server;
    return DFL_OK;
}

void dfl_server_free(struct dfl_server *server)
{
    struct dfl_client *c = server->client;

    server->asked_ms = 0;
    while (!dfl_list_empty(&server->conns))
        dfl_conn_close(DFL_CONTAINER(server->conns.next, struct dfl_conn, by_server));
    DFL_EACH(l, &server->orphans) { /* last: connections leave theirs here */
        dfl_link_remove(l);
        dfl_request_free(DFL_CONTAINER(l, struct dfl_request, link));
    }
    dfl_timer_clear(&c->timers, &server->timer);
    dfl_timer_unroom(c);
    dfl_link_remove(&server->by_client);
    free(server);
}

/* -------------------------------------------------------------- connections */

/* The server's read time-out may close it any moment, in a race with what we would send. */
static bool too_old(const struct dfl_conn *conn)
{
    const struct dfl_client *c = conn->client;

    return conn->state == DFL_CONN_READY && conn->owned == 0 && dfl_conn_quiet(conn) &&
           c->now.ms - conn->last_answer_ms > c->settings.server_read_timeout_ms / 2;
}

enum dfl_status dfl_server_control(struct dfl_server *server, struct dfl_conn **conn,
                                   struct dfl_error *err)
{
    enum dfl_status st;

    if (server->control && too_old(server->control))
        dfl_conn_close(server->control);
    if (server->control == NULL) {
        st = dfl_conn_open(server, DFL_ROLE_CONTROL, &server->control, err);
        if (st != DFL_OK)
            return st;
    }
    *conn = server->control;
    return DFL_OK;
}

static void pool_take(struct dfl_conn *conn)
{
    dfl_link_remove(&conn->pooled);
    conn->server->pool_count--;
    conn->taken = true;
}

enum dfl_status dfl_server_waiting(struct dfl_server *server, struct dfl_conn **conn,
                                   struct dfl_error *err)
{
    while (!dfl_list_empty(&server->pool)) {
        struct dfl_conn *idle = DFL_CONTAINER(server->pool.prev, struct dfl_conn, pooled);

        pool_take(idle);
        dfl_conn_read(idle); /* the server may have closed it */
        if (idle->state == DFL_CONN_READY && !too_old(idle)) {
            *conn = idle;
            return DFL_OK;
        }
        dfl_conn_close(idle);
    }
    return dfl_conn_open(server, DFL_ROLE_WAITING, conn, err);
}

bool dfl_server_close_idle(struct dfl_client *c)
{
    DFL_EACH(l, &c->servers) {
        struct dfl_server *server = DFL_CONTAINER(l, struct dfl_server, by_client);

        if (!dfl_list_empty(&server->pool)) {
            dfl_conn_close(DFL_CONTAINER(server->pool.next, struct dfl_conn, pooled));
            return true;
        }
    }
    return false;
}

/* ---------------------------------------------------------- coming and going */

/* Ahead of what waits for the connection: else our own stale token would answer "busy" to a try. */
static void send_orphans(struct dfl_server *server, struct dfl_conn *conn)
{
    while (!dfl_list_empty(&server->orphans)) {
        struct dfl_request *r = DFL_CONTAINER(server->orphans.prev, struct dfl_request, link);

        dfl_link_remove(&r->link);
        dfl_conn_send(conn, r);
        dfl_list_prepend(&conn->urgent, &r->link);
        dfl_request_owe(r);
    }
}

static void note_up(struct dfl_server *server)
{
    struct dfl_client *c = server->client;

    if (server->down)
        dfl_client_log(c, DFL_LOG_INFO, "lock server %s is back", server->address.text);
    if (server->down || server->up_since_ms == 0)
        server->up_since_ms = c->now.ms;
    server->down = false;
}

void dfl_server_connected(struct dfl_server *server, struct dfl_conn *conn)
{
    if (server->up_since_ms == 0)
        server->up_since_ms = server->client->now.ms; /* one that was down is up when it answers */
    send_orphans(server, conn);
    while (server->pool_count > POOL_MAX)
        dfl_conn_close(DFL_CONTAINER(server->pool.next, struct dfl_conn, pooled));
}

void dfl_server_failed(struct dfl_server *server, const struct dfl_error *why)
{
    struct dfl_client *c = server->client;

    snprintf(server->last_error, sizeof server->last_error, "%s", why->text);
    if (server->down)
        return;
    server->down = true;
    server->down_since_ms = c->now.ms;
    dfl_client_log(c, DFL_LOG_WARNING, "lock server down: %s", why->text); /* names the address */
}

static enum dfl_kind kind_of(const struct dfl_request *release)
{
    return dfl_command_is_sem(release->cmd) ? DFL_SEMAPHORE : DFL_LOCK;
}

/* Unheard, it goes out once more over the next connection. */
static void given_back_twice(struct dfl_request *r, const struct dfl_answer_line *a,
                             const struct dfl_error *error)
{
    (void)a;
    if (error)
        dfl_server_orphan(r->owner, kind_of(r), r->key, r->token);
}

void dfl_server_released(struct dfl_server *server, const struct dfl_request *r,
                         const struct dfl_answer_line *a, const struct dfl_error *error)
{
    struct dfl_request *again;

    if (error)
        dfl_server_orphan(server, kind_of(r), r->key, r->token);
    if (error || !dfl_is_plain_error(a) || server->client->shut)
        return;
    again = dfl_request_new(r->cmd, r->key, r->token, given_back_twice, server);
    if (again == NULL)
        return;
    dfl_request_owe(again);
    dfl_conn_send(r->conn, again);
}

static void given_back(struct dfl_request *r, const struct dfl_answer_line *a,
                       const struct dfl_error *error)
{
    dfl_server_released(r->owner, r, a, error);
}

static struct dfl_request *new_release(struct dfl_server *server, enum dfl_kind kind,
                                       struct dfl_key *key, const char *token)
{
    return dfl_request_new(dfl_command_for(DFL_CMD_RELEASE, kind), key, token, given_back, server);
}

void dfl_server_give_back(struct dfl_conn *conn, enum dfl_kind kind, struct dfl_key *key,
                          const char *token)
{
    struct dfl_request *r = new_release(conn->server, kind, key, token);

    if (r == NULL) {
        conn->single_use = true;
        return;
    }
    dfl_request_owe(r);
    dfl_conn_send(conn, r);
}

void dfl_server_sees_to(struct dfl_server *server, struct dfl_request *release)
{
    release->done = given_back;
    release->owner = server;
}

void dfl_server_orphan(struct dfl_server *server, enum dfl_kind kind, struct dfl_key *key,
                       const char *token)
{
    struct dfl_request *r;

    if (token[0] == '\0' || server->client->shut)
        return;
    if (server->control && server->control->state == DFL_CONN_READY)
        dfl_server_give_back(server->control, kind, key, token);
    else if ((r = new_release(server, kind, key, token)) != NULL)
        dfl_list_append(&server->orphans, &r->link);
}

/* ------------------------------------------------------------- signs of life */

struct dfl_request *dfl_server_harmless(struct dfl_server *server, dfl_request_done *done,
                                        void *owner)
{
    static const char nobodys_token[DFL_TOKEN_LEN + 1] = "00000000000000000000000000000000";

    if (server->ping == DFL_PING_OK)
        return dfl_request_new(DFL_CMD_PING, NULL, NULL, done, owner);
    return dfl_request_new(DFL_CMD_RELEASE, NULL, nobodys_token, done, owner);
}

static void tell_no_life(struct dfl_server *server, const struct dfl_error *why)
{
    server->asked_ms = 0;
    while (!dfl_list_empty(&server->watchers)) {
        struct dfl_call *call = DFL_CONTAINER(server->watchers.next, struct dfl_call, by_server);

        dfl_link_remove(&call->by_server);
        call->no_life(call, why);
    }
}

static bool ask_over_control(struct dfl_server *server, struct dfl_error *err);

/* The answer itself is noted by dfl_server_alive; here only its absence counts. One broken
 * connection is replaced. */
static void life_done(struct dfl_request *r, const struct dfl_answer_line *a,
                      const struct dfl_error *error)
{
    struct dfl_server *server = r->owner;
    struct dfl_error why;

    if (a || server->asked_ms == 0)
        return;
    if (error->status == DFL_BROKEN && !server->asked_again) {
        server->asked_again = true;
        if (ask_over_control(server, &why))
            return;
    } else {
        dfl_fail(&why, DFL_BROKEN, "no sign of life from %s: %s", server->address.text,
                 error->text);
    }
    tell_no_life(server, &why);
}

static bool ask_over_control(struct dfl_server *server, struct dfl_error *err)
{
    struct dfl_conn *control;
    struct dfl_request *r;

    if (dfl_server_control(server, &control, err) != DFL_OK)
        return false;
    r = dfl_server_harmless(server, life_done, server);
    if (r == NULL) {
        dfl_fail(err, DFL_NOMEM, "out of memory");
        return false;
    }
    dfl_conn_send(control, r);
    return true;
}

void dfl_server_ask(struct dfl_server *server)
{
    struct dfl_error why;

    if (server->asked_ms)
        return;
    server->asked_ms = server->client->now.ms;
    server->asked_again = false;
    if (!ask_over_control(server, &why))
        tell_no_life(server, &why);
    dfl_server_schedule(server);
}

void dfl_server_alive(struct dfl_server *server, const struct dfl_request *r)
{
    struct dfl_client *c = server->client;

    if (r->sent_ms > server->proof_ms)
        server->proof_ms = r->sent_ms;
    if (server->down)
        note_up(server);
    server->round_trip_us = c->now.us - r->sent_us;
    if (server->asked_ms && r->sent_ms >= server->asked_ms)
        server->asked_ms = 0;
    if (dfl_list_empty(&server->watchers))
        return;
    DFL_EACH(l, &server->watchers) {
        struct dfl_call *call = DFL_CONTAINER(l, struct dfl_call, by_server);

        if (call->alive)
            call->alive(call);
    }
    dfl_server_schedule(server);
}

void dfl_server_watch(struct dfl_server *server, struct dfl_call *call)
{
    if (dfl_list_empty(&server->watchers)) {
        server->asked_ms = 0;
        server->watched_since_ms = server->client->now.ms;
    }
    dfl_list_append(&server->watchers, &call->by_server);
    dfl_server_schedule(server);
}

void dfl_server_schedule(struct dfl_server *server)
{
    struct dfl_client *c = server->client;
    int64_t newest =
        server->proof_ms > server->watched_since_ms ? server->proof_ms : server->watched_since_ms;

    if (dfl_list_empty(&server->watchers))
        dfl_timer_clear(&c->timers, &server->timer);
    else if (server->asked_ms)
        dfl_timer_set(&c->timers, &server->timer,
                      server->asked_ms + c->settings.connect_timeout_ms);
    else
        dfl_timer_set(&c->timers, &server->timer, newest + c->keepalive_ms);
}

static void server_due(struct dfl_timer *timer, struct dfl_now now)
{
    struct dfl_server *server = DFL_CONTAINER(timer, struct dfl_server, timer);
    struct dfl_error why;

    if (server->asked_ms && server->control)
        dfl_conn_read(server->control); /* it may be there already */
    if (dfl_list_empty(&server->watchers))
        return;
    if (server->asked_ms &&
        now.ms >= server->asked_ms + server->client->settings.connect_timeout_ms) {
        dfl_fail(&why, DFL_BROKEN, "no sign of life from %s for %.1f s", server->address.text,
                 (double)(now.ms - server->asked_ms) / 1000);
        tell_no_life(server, &why);
    } else if (server->asked_ms == 0) {
        dfl_server_ask(server);
    }
    dfl_server_schedule(server);
}
