/*
 * setup.c - a connection's way to be of use: connect, log in, say hello; and the hello's one
 * surprise, a server that closes on it.
 *
 * A fresh control connection asks `ping` before it owns anything: that tells old servers from new,
 * and the oldest closes on it.
 */
#include "engine.h"

#include <string.h>

#define NO_HELLO_MS 60000

/* ------------------------------------------------------ setting up: the steps */

static void conn_up(struct dfl_conn *conn)
{
    struct dfl_client *c = conn->client;

    conn->state = DFL_CONN_READY;
    conn->last_answer_ms = conn->s_conn_ms = conn->last_sent_ms = c->now.ms;
    dfl_server_connected(conn->server, conn);
    dfl_conn_mark_dirty(conn);
}

/* What a fresh control connection hears counts; another one's tells only what is not known yet: an
 * `error` there may also be the read time-out of a connection that was late. */
static void note_ping(struct dfl_conn *conn, enum dfl_ping ping)
{
    struct dfl_server *server = conn->server;

    if (conn->role == DFL_ROLE_CONTROL || server->ping != DFL_PING_OK)
        server->ping = ping;
}

/* Begins the connection again without asking `ping`: this server closes on it. What was sent behind
 * it is sent again. */
void dfl_conn_redial(struct dfl_conn *conn)
{
    struct dfl_error err;

    if (conn->hello_refused) { /* a close without a word says nothing of what the server knows */
        note_ping(conn, DFL_PING_NO);
        if (conn->server->ping == DFL_PING_NO)
            conn->server->no_hello_until_ms = conn->client->now.ms + NO_HELLO_MS;
    }
    conn->state = DFL_CONN_DEAD;
    dfl_conn_watch(conn);
    dfl_conn_hang_up(conn);
    if (dfl_conn_transport(conn, &err) != DFL_OK) {
        conn->state = DFL_CONN_CONNECTING;
        dfl_conn_die(conn, &err);
        return;
    }
    conn->state = DFL_CONN_CONNECTING;
    conn->skip_hello = true;
    conn->hello_refused = conn->answered = false;
    conn->out_start = conn->out_end = 0;
    conn->sent_renewals = 0;
    dfl_line_reader_free(&conn->in);
    dfl_line_reader_init(&conn->in);
    while (!dfl_list_empty(&conn->sent)) {
        struct dfl_link *last = conn->sent.prev;
        struct dfl_request *r = DFL_CONTAINER(last, struct dfl_request, link);

        r->sent = false;
        dfl_list_prepend(&conn->urgent, last); /* newest first: the order stays */
        if (r->cmd == DFL_CMD_PING && r->owner == conn)
            dfl_request_free(r);
    }
    conn->setup_deadline_ms = conn->client->now.ms + conn->client->settings.connect_timeout_ms;
    dfl_conn_count_active(conn);
    dfl_conn_mark_dirty(conn);
}

static void hello_done(struct dfl_request *r, const struct dfl_answer_line *a,
                       const struct dfl_error *error)
{
    struct dfl_conn *conn = r->conn;
    struct dfl_server *server = conn->server;

    if (error)
        return;
    note_ping(conn, a->kind == DFL_ANS_OK ? DFL_PING_OK : DFL_PING_NO);
    if (conn->role == DFL_ROLE_CONTROL)
        server->fences_off = false;
    conn->hello_refused = a->kind != DFL_ANS_OK;
    conn_up(conn);
}

/* A request of the connection's own, ahead of the queue. */
static void conn_ask(struct dfl_conn *conn, enum dfl_conn_state state, enum dfl_command cmd,
                     dfl_request_done *done)
{
    struct dfl_request *r = dfl_request_new(cmd, NULL, NULL, done, conn);
    struct dfl_error why;

    if (r == NULL) {
        dfl_fail(&why, DFL_NOMEM, "out of memory");
        dfl_conn_die(conn, &why);
        return;
    }
    conn->state = state;
    if (dfl_conn_put(conn, r))
        dfl_conn_mark_dirty(conn);
    else
        dfl_request_free(r);
}

static void conn_hello(struct dfl_conn *conn)
{
    struct dfl_server *server = conn->server;
    bool ask = conn->role == DFL_ROLE_CONTROL || server->ping == DFL_PING_UNKNOWN;

    if (ask && !conn->skip_hello && conn->client->now.ms >= server->no_hello_until_ms)
        conn_ask(conn, DFL_CONN_HELLO, DFL_CMD_PING, hello_done);
    else
        conn_up(conn);
}

static void login_done(struct dfl_request *r, const struct dfl_answer_line *a,
                       const struct dfl_error *error)
{
    struct dfl_conn *conn = r->conn;
    struct dfl_error why;

    if (error)
        return;
    if (a->kind == DFL_ANS_OK) {
        conn_hello(conn);
        return;
    }
    if (a->status == DFL_REFUSED)
        dfl_fail(&why, DFL_AUTH,
                 "login at %s refused: this server has no login token, or is too old for one",
                 conn->server->address.text);
    else
        dfl_fail(&why, DFL_AUTH, "login at %s refused: the server does not accept this login token",
                 conn->server->address.text);
    dfl_conn_die(conn, &why);
}

/* Why connecting failed, with what the reader can do where we know it. */
static void explain_failure(const struct dfl_conn *conn, struct dfl_error *why)
{
    const struct dfl_error *e = &conn->transport->error;
    const struct dfl_server_address *address = &conn->server->address;
    bool accepted =
        strncmp(e->text, "connect to ", 11) == 0 && strstr(e->text, ": connection reset");

    if (accepted) /* and closed at once */
        dfl_fail(why, DFL_BROKEN, "%s, before the first answer (max-connections?)%s", e->text,
                 conn->client->tls ? "" : ", or it speaks TLS and tls is off");
    else if (address->port == DFL_DEFAULT_PORT && strncmp(address->host, "127.", 4) == 0)
        dfl_fail(why, e->status, "%s (no server there? start one with: dflockd-local)", e->text);
    else
        *why = *e;
}

void dfl_conn_step(struct dfl_conn *conn)
{
    struct dfl_transport *t = conn->transport;
    struct dfl_error why;

    switch (t->ops->connect(t, conn->client->now, conn->setup_deadline_ms)) {
    case DFL_IO_DONE:
        if (conn->client->auth_token)
            conn_ask(conn, DFL_CONN_LOGIN, DFL_CMD_AUTH, login_done);
        else
            conn_hello(conn);
        break;
    case DFL_IO_AGAIN:
        break;
    default:
        explain_failure(conn, &why);
        dfl_conn_die(conn, &why);
    }
}
