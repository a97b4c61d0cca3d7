/*
 * reading.c - what arrives on a connection: bytes to lines, each line to the request that it
 * answers, and what the end of the stream, an unknown word or an answer to nothing means.
 */
#include "engine.h"

#include <stdio.h>
#include <string.h>

#define READ_CHUNK 4096
#define STATS_CHUNK 65536
#define READS_PER_TURN 32 /* so that a long answer does not keep the host from its other work */

void dfl_conn_broke(struct dfl_conn *conn, const struct dfl_transport *broken)
{
    struct dfl_error why;
    const char *address = conn->server->address.text;
    const char *tls = conn->client->tls ? "" : ", or it speaks TLS and tls is off";

    if (conn->in.end - conn->in.start >= 2 && conn->in.buf[conn->in.start] == 0x15 &&
        conn->in.buf[conn->in.start + 1] == 0x03)
        dfl_fail(&why, DFL_UNREACHABLE, "connect to %s: the server speaks TLS; set tls to on",
                 address);
    else if (broken && conn->answered)
        dfl_fail(&why, DFL_BROKEN, "%s", broken->error.text);
    else if (broken)
        dfl_fail(&why, DFL_BROKEN, "%s, before the first answer (max-connections?)%s",
                 broken->error.text, tls);
    else if (conn->state == DFL_CONN_LOGIN)
        dfl_fail(
            &why, DFL_BROKEN,
            "%s closed the connection during login, before the first answer (max-connections?)",
            address);
    else if (!conn->answered)
        dfl_fail(&why, DFL_BROKEN,
                 "%s closed the connection before the first answer (max-connections?)%s", address,
                 tls);
    else
        dfl_fail(&why, DFL_BROKEN, "%s closed the connection", address);
    dfl_conn_die(conn, &why);
}

static void die_of_protocol(struct dfl_conn *conn, const char *what, const char *line, size_t len)
{
    struct dfl_error why;
    char shown[300];

    if (len >= 2 && line[0] == 0x15 && line[1] == 0x03) {
        dfl_conn_broke(conn, NULL);
        return;
    }
    dfl_escape(shown, sizeof shown, line, len);
    dfl_fail(&why, DFL_PROTOCOL, "%s broke the protocol: %s \"%s\"", conn->server->address.text,
             what, shown);
    dfl_conn_die(conn, &why);
}

/* The server closes after its read time-out, and says `error` first; anything else unasked breaks
 * the protocol. */
static void conn_unasked(struct dfl_conn *conn, const char *line, size_t len)
{
    struct dfl_error why;

    if (len >= 5 && memcmp(line, "error", 5) == 0) {
        dfl_fail(&why, DFL_BROKEN, "%s closed the connection after a silence",
                 conn->server->address.text);
        dfl_conn_die(conn, &why);
        return;
    }
    die_of_protocol(conn, "when nothing was asked it sent", line, len);
}

static void conn_answer(struct dfl_conn *conn, const char *line, size_t len)
{
    struct dfl_client *c = conn->client;
    struct dfl_request *r;
    struct dfl_answer_line a;
    char what[64];

    if (dfl_list_empty(&conn->sent)) {
        conn_unasked(conn, line, len);
        return;
    }
    r = DFL_CONTAINER(conn->sent.next, struct dfl_request, link);
    memset(&a, 0, sizeof a);
    if (dfl_answer_parse(r->cmd, line, len, &a) != DFL_OK) {
        snprintf(what, sizeof what, "it answered `%s` with", dfl_command_word(r->cmd));
        die_of_protocol(conn, what, line, len);
        return;
    }
    dfl_link_remove(&r->link);
    conn->sent_renewals -= dfl_request_renews(r);
    conn->answered = true;
    conn->hello_refused = false; /* hello_done says otherwise */
    conn->last_answer_ms = c->now.ms;
    /* The server's read time-out says `error` too, in answer to nothing it has read. */
    if (dfl_is_plain_error(&a) && conn->owned > 0)
        conn->last_sent_ms = conn->s_conn_ms; /* as if not sent: keepalive asks for a better one */
    else if (r->sent_ms > conn->s_conn_ms)
        conn->s_conn_ms = r->sent_ms;
    if (!dfl_request_blocks(r))
        dfl_server_alive(conn->server, r);
    if (conn->owned > 0 && c->host.link_changed)
        c->host.link_changed(c->host.ctx, conn->link, dfl_conn_deadline(conn));
    r->done(r, &a, NULL);
    dfl_request_free(r);
}

static size_t answer_limit(const struct dfl_conn *conn)
{
    if (!dfl_list_empty(&conn->sent) &&
        DFL_CONTAINER(conn->sent.next, struct dfl_request, link)->cmd == DFL_CMD_STATS)
        return DFL_STATS_LINE_MAX;
    return DFL_REPLY_LINE_MAX;
}

/* Too much for us is no fault of the server, which is not down for that. */
static void stats_too_long(struct dfl_conn *conn)
{
    struct dfl_request *r = DFL_CONTAINER(conn->sent.next, struct dfl_request, link);
    struct dfl_error why;

    dfl_fail(&why, DFL_TOO_MANY, "the answer of %s to stats is longer than %u MiB: too many keys",
             conn->server->address.text, DFL_STATS_LINE_MAX >> 20);
    dfl_link_remove(&r->link);
    r->done(r, NULL, &why);
    dfl_request_free(r);
    dfl_conn_close(conn);
}

static void conn_lines(struct dfl_conn *conn)
{
    char *line;
    size_t len;

    while (conn->state != DFL_CONN_DEAD) {
        enum dfl_status st = dfl_line_reader_next(&conn->in, answer_limit(conn), &line, &len);

        if (st == DFL_PENDING)
            return;
        if (st != DFL_OK && answer_limit(conn) == DFL_STATS_LINE_MAX) {
            stats_too_long(conn);
            return;
        }
        if (st != DFL_OK) {
            die_of_protocol(conn, "its answer is too long:", conn->in.buf + conn->in.start,
                            conn->in.end - conn->in.start);
            return;
        }
        conn_answer(conn, line, len);
    }
}

/* One read. False when there is no more to read now, or ever. */
static bool conn_read_once(struct dfl_conn *conn)
{
    struct dfl_transport *t = conn->transport;
    size_t want = answer_limit(conn) > DFL_REPLY_LINE_MAX ? STATS_CHUNK : READ_CHUNK, room, got = 0;
    struct dfl_error why;
    enum dfl_io io;
    char *at;

    if (dfl_line_reader_space(&conn->in, want, &at, &room) != DFL_OK) {
        dfl_fail(&why, DFL_NOMEM, "out of memory");
        dfl_conn_die(conn, &why);
        return false;
    }
    io = t->ops->read(t, at, room, &got);
    if (io == DFL_IO_AGAIN)
        return false;
    if (io != DFL_IO_DONE) {
        if (conn->state == DFL_CONN_HELLO || conn->hello_refused)
            dfl_conn_redial(conn);
        else
            dfl_conn_broke(conn, io == DFL_IO_ERROR ? t : NULL);
        return false;
    }
    dfl_line_reader_added(&conn->in, got);
    conn_lines(conn);
    return conn->state != DFL_CONN_DEAD && !(conn->state == DFL_CONN_CONNECTING) &&
           (got == room || conn->transport->ops->buffered(conn->transport));
}

void dfl_conn_read(struct dfl_conn *conn)
{
    int turns = 0;

    if (conn->state == DFL_CONN_DEAD || conn->state == DFL_CONN_CONNECTING || dfl_conn_lapse(conn))
        return;
    while (conn_read_once(conn)) {
        if (++turns == READS_PER_TURN)
            break; /* readiness, or the timer for what TLS has buffered, goes on with what is left
                    */
    }
    if (conn->state == DFL_CONN_DEAD)
        return;
    if (conn->role == DFL_ROLE_WAITING && !conn->taken)
        dfl_conn_idle(conn);
    dfl_conn_mark_dirty(conn);
}

void dfl_conn_ready(struct dfl_conn *conn)
{
    if (conn->state == DFL_CONN_CONNECTING)
        dfl_conn_step(conn);
    else
        dfl_conn_read(conn);
    if (conn->state != DFL_CONN_DEAD)
        dfl_conn_mark_dirty(conn);
}
