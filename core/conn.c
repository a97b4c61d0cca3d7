/*
 * conn.c - one connection to a server: connect, login, hello, then a line of requests and their
 * answers, until it dies.
 *
 * Owns the transport, the bytes in flight and the queue of requests. Decides when silence means
 * death (dfl_conn_schedule) and tells the homes of holds so. Never decides what an answer means to
 * a hold or a call: that is the request's `done`.
 */
#include "engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RENEWALS_AT_ONCE 256
#define READ_FIRST_AFTER_MS 1000

static void conn_due(struct dfl_timer *timer, struct dfl_now now);

/* ------------------------------------------------------------- small things */

bool dfl_conn_setting_up(const struct dfl_conn *conn)
{
    return conn->state < DFL_CONN_READY;
}

bool dfl_conn_quiet(const struct dfl_conn *conn)
{
    return dfl_list_empty(&conn->sent) && dfl_list_empty(&conn->urgent) &&
           dfl_list_empty(&conn->renewals);
}

int64_t dfl_conn_deadline(const struct dfl_conn *conn)
{
    if (DFL_PLANTED(2))
        return INT64_MAX;
    return conn->s_conn_ms + dfl_less_margin(conn->client->settings.server_read_timeout_ms);
}

void dfl_conn_mark_dirty(struct dfl_conn *conn)
{
    if (conn->state != DFL_CONN_DEAD)
        dfl_list_append(&conn->client->dirty, &conn->dirty);
}

void dfl_conn_count_active(struct dfl_conn *conn)
{
    bool active = conn->state != DFL_CONN_DEAD && (dfl_conn_setting_up(conn) || conn->heeded > 0 ||
                                                   conn->out_end > conn->out_start);

    if (active && !conn->active)
        conn->client->active_conns++;
    else if (!active && conn->active)
        conn->client->active_conns--;
    conn->active = active;
}

static const struct dfl_interest *interest_in(const struct dfl_interest *list, size_t count, int fd)
{
    for (size_t i = 0; i < count; i++) {
        if (list[i].fd == fd)
            return &list[i];
    }
    return NULL;
}

/* Tells the host which descriptors to watch now, as far as that has changed. */
void dfl_conn_watch(struct dfl_conn *conn)
{
    struct dfl_interest now[DFL_INTEREST_MAX];
    struct dfl_host *host = &conn->client->host;
    size_t count = 0;

    if (conn->state != DFL_CONN_DEAD)
        count =
            conn->transport->ops->interest(conn->transport, conn->out_end > conn->out_start, now);
    for (size_t i = 0; i < conn->watched_count; i++) {
        if (interest_in(now, count, conn->watched[i].fd) == NULL)
            host->watch(host->ctx, conn->watched[i].fd, 0, conn);
    }
    for (size_t i = 0; i < count; i++) {
        const struct dfl_interest *old = interest_in(conn->watched, conn->watched_count, now[i].fd);

        if (old == NULL || old->events != now[i].events)
            host->watch(host->ctx, now[i].fd, now[i].events, conn);
    }
    memcpy(conn->watched, now, count * sizeof now[0]);
    conn->watched_count = count;
}

/* ----------------------------------------------------------- birth and death */

/*
 * The list of links and the transports that it leads to may be read at any moment, by
 * dfl_client_abandon() in a child that another thread forks: what is freed has been taken out
 * before.
 */
static enum dfl_status link_take(struct dfl_client *c, struct dfl_conn *conn)
{
    size_t cap;
    struct dfl_conn **links, **old = c->links;

    for (unsigned i = 0; i < c->link_cap; i++) {
        if (c->links[i] == NULL) {
            c->links[i] = conn;
            conn->link = i;
            return DFL_OK;
        }
    }
    cap = c->link_cap ? c->link_cap * 2 : 16;
    links = calloc(cap, sizeof(struct dfl_conn *));
    if (links == NULL)
        return DFL_NOMEM;
    if (old)
        memcpy(links, old, c->link_cap * sizeof(struct dfl_conn *));
    conn->link = (unsigned)c->link_cap;
    links[c->link_cap] = conn;
    c->links = links;
    c->link_cap = cap;
    free(old);
    return DFL_OK;
}

void dfl_conn_hang_up(struct dfl_conn *conn)
{
    struct dfl_transport *t = conn->transport;

    conn->transport = NULL;
    if (t)
        t->ops->close(t);
}

static bool socket_take(struct dfl_client *c)
{
    if (c->host.take_socket == NULL || c->host.take_socket(c->host.ctx))
        return true;
    return dfl_server_close_idle(c) && c->host.take_socket(c->host.ctx);
}

static void socket_give(struct dfl_client *c)
{
    if (c->host.give_socket)
        c->host.give_socket(c->host.ctx);
}

enum dfl_status dfl_conn_transport(struct dfl_conn *conn, struct dfl_error *err)
{
    struct dfl_client *c = conn->client;
    struct dfl_endpoint ep = {conn->server->address.host, conn->server->address.port};

    return c->net->open(c->net->ctx, &ep, c->tls, &conn->transport, err);
}

static struct dfl_conn *conn_alloc(struct dfl_server *server, enum dfl_role role)
{
    struct dfl_conn *conn = calloc(1, sizeof *conn);

    if (conn == NULL)
        return NULL;
    conn->client = server->client;
    conn->server = server;
    conn->role = role;
    conn->timer.fire = conn_due;
    dfl_line_reader_init(&conn->in);
    dfl_link_init(&conn->by_server);
    dfl_link_init(&conn->pooled);
    dfl_link_init(&conn->dirty);
    dfl_link_init(&conn->urgent);
    dfl_link_init(&conn->renewals);
    dfl_link_init(&conn->sent);
    dfl_link_init(&conn->holds);
    return conn;
}

enum dfl_status dfl_conn_open(struct dfl_server *server, enum dfl_role role, struct dfl_conn **out,
                              struct dfl_error *err)
{
    struct dfl_client *c = server->client;
    struct dfl_conn *conn;
    enum dfl_status st;

    if (!socket_take(c))
        return dfl_fail(err, DFL_TOO_MANY,
                        "too many connections to lock servers: raise max_connections (now %lld)",
                        (long long)c->settings.max_connections);
    conn = conn_alloc(server, role);
    if (conn == NULL || dfl_timer_room(c) != DFL_OK) {
        free(conn);
        socket_give(c);
        return dfl_fail(err, DFL_NOMEM, "out of memory");
    }
    st = link_take(c, conn) == DFL_OK ? dfl_conn_transport(conn, err)
                                      : dfl_fail(err, DFL_NOMEM, "out of memory");
    if (st != DFL_OK) {
        if (conn->link < c->link_cap && c->links[conn->link] == conn)
            c->links[conn->link] = NULL;
        dfl_timer_unroom(c);
        free(conn);
        socket_give(c);
        return st;
    }
    conn->taken = true;
    conn->setup_deadline_ms = c->now.ms + c->settings.connect_timeout_ms;
    dfl_list_append(&server->conns, &conn->by_server);
    server->conn_count++;
    server->used = true;
    if (server->connecting_since_ms == 0)
        server->connecting_since_ms = c->now.ms;
    dfl_conn_count_active(conn);
    dfl_conn_mark_dirty(conn); /* the first step of connecting is made on leaving */
    *out = conn;
    return DFL_OK;
}

void dfl_conn_free(struct dfl_conn *conn)
{
    dfl_line_reader_free(&conn->in);
    free(conn->out);
    free(conn);
}

static void fail_requests(struct dfl_link *queue, const struct dfl_error *why)
{
    while (!dfl_list_empty(queue)) {
        struct dfl_request *r = DFL_CONTAINER(queue->next, struct dfl_request, link);

        dfl_link_remove(&r->link);
        r->done(r, NULL, why);
        dfl_request_free(r);
    }
}

/* Takes the connection out of everything that could find it, before anybody is told. */
static void conn_detach(struct dfl_conn *conn)
{
    struct dfl_client *c = conn->client;
    struct dfl_server *server = conn->server;

    conn->state = DFL_CONN_DEAD;
    dfl_conn_watch(conn);
    dfl_conn_hang_up(conn);
    dfl_timer_clear(&c->timers, &conn->timer);
    dfl_timer_unroom(c);
    dfl_link_remove(&conn->dirty);
    if (!dfl_list_empty(&conn->pooled)) {
        dfl_link_remove(&conn->pooled);
        server->pool_count--;
    }
    dfl_link_remove(&conn->by_server);
    server->conn_count--;
    if (server->control == conn)
        server->control = NULL;
    c->links[conn->link] = NULL;
    if (c->host.link_changed)
        c->host.link_changed(c->host.ctx, conn->link, 0);
    socket_give(c);
}

static void conn_end(struct dfl_conn *conn, const struct dfl_error *why, bool failure)
{
    struct dfl_client *c = conn->client;
    struct dfl_error copy = *why; /* it may live in the transport */

    if (conn->state == DFL_CONN_DEAD)
        return;
    if (failure &&
        (dfl_conn_setting_up(conn) || !dfl_conn_quiet(conn) || !dfl_list_empty(&conn->holds)))
        dfl_server_failed(conn->server, &copy);
    conn_detach(conn);
    dfl_list_append(&c->dead, &conn->by_server);
    DFL_EACH(l, &conn->holds)
        dfl_hold_orphaned(DFL_CONTAINER(l, struct dfl_hold, by_conn), &copy);
    fail_requests(&conn->sent, &copy);
    fail_requests(&conn->urgent, &copy);
    fail_requests(&conn->renewals, &copy);
    dfl_conn_count_active(conn);
}

void dfl_conn_die(struct dfl_conn *conn, const struct dfl_error *why)
{
    conn_end(conn, why, true);
}

void dfl_conn_close(struct dfl_conn *conn)
{
    struct dfl_error why;

    dfl_fail(&why, DFL_CANCELED, "connection to %s closed", conn->server->address.text);
    conn_end(conn, &why, false);
}

/* ---------------------------------------------------------------- requests */

void dfl_conn_send(struct dfl_conn *conn, struct dfl_request *r)
{
    r->conn = conn;
    r->heeded = r->cmd != DFL_CMD_RELEASE && r->cmd != DFL_CMD_SEM_RELEASE;
    conn->heeded += r->heeded;
    dfl_list_append(dfl_request_renews(r) ? &conn->renewals : &conn->urgent, &r->link);
    dfl_conn_count_active(conn);
    dfl_conn_mark_dirty(conn);
}

void dfl_conn_withdraw(struct dfl_request *r)
{
    struct dfl_conn *conn = r->conn;

    if (r->sent && !DFL_PLANTED(5)) {
        dfl_request_bury(r);
        return;
    }
    dfl_link_remove(&r->link);
    dfl_request_free(r);
    if (dfl_conn_setting_up(conn) && dfl_list_empty(&conn->urgent) &&
        dfl_list_empty(&conn->renewals))
        dfl_conn_close(conn);
    else
        dfl_conn_count_active(conn);
}

/* Bytes of the request into the buffer. False: no memory. */
static bool conn_format(struct dfl_conn *conn, struct dfl_request *r)
{
    struct dfl_client *c = conn->client;
    const char *token = r->cmd == DFL_CMD_AUTH ? c->auth_token : r->token;
    struct dfl_request_line line = {.cmd = r->cmd,
                                    .key = r->key ? r->key->bytes : "_",
                                    .key_len = r->key ? r->key->len : 1,
                                    .token = token,
                                    .token_len = strlen(token),
                                    .timeout_s = r->timeout_s,
                                    .lease_s = r->lease_s,
                                    .limit = r->limit};
    size_t need = DFL_REQUEST_MAX + line.token_len;

    if (conn->out_start == conn->out_end)
        conn->out_start = conn->out_end = 0;
    if (conn->out_cap - conn->out_end < need) {
        size_t cap = (conn->out_end + need) * 2;
        char *out = realloc(conn->out, cap);

        if (out == NULL)
            return false;
        conn->out = out;
        conn->out_cap = cap;
    }
    conn->out_end += dfl_request_format(conn->out + conn->out_end, need, &line);
    return true;
}

/* Moves a queued request into the line of those that await an answer. */
bool dfl_conn_put(struct dfl_conn *conn, struct dfl_request *r)
{
    struct dfl_client *c = conn->client;

    if (!conn_format(conn, r)) {
        struct dfl_error why;

        dfl_fail(&why, DFL_NOMEM, "out of memory");
        dfl_conn_die(conn, &why);
        return false;
    }
    dfl_list_append(&conn->sent, &r->link);
    r->conn = conn;
    r->sent = true;
    r->sent_ms = conn->last_sent_ms = c->now.ms;
    r->sent_us = c->now.us;
    r->conn_owned = conn->owned > 0;
    r->fence_floor = dfl_fence_highest(conn->server->fence);
    conn->sent_renewals += dfl_request_renews(r);
    return true;
}

static bool conn_put_queued(struct dfl_conn *conn)
{
    while (!dfl_list_empty(&conn->urgent)) {
        if (!dfl_conn_put(conn, DFL_CONTAINER(conn->urgent.next, struct dfl_request, link)))
            return false;
    }
    while (!dfl_list_empty(&conn->renewals) && conn->sent_renewals < RENEWALS_AT_ONCE) {
        if (!dfl_conn_put(conn, DFL_CONTAINER(conn->renewals.next, struct dfl_request, link)))
            return false;
    }
    return true;
}

/* ----------------------------------------------------------------- writing */

static void conn_write(struct dfl_conn *conn)
{
    struct dfl_transport *t = conn->transport;

    while (conn->out_start < conn->out_end) {
        size_t put = 0;
        enum dfl_io io =
            t->ops->write(t, conn->out + conn->out_start, conn->out_end - conn->out_start, &put);

        if (io == DFL_IO_AGAIN)
            return;
        if (io != DFL_IO_DONE) {
            /* What the peer said before it closed comes first: it may be the answer, or why. */
            dfl_conn_read(conn);
            if (conn->state != DFL_CONN_DEAD && conn->state != DFL_CONN_CONNECTING)
                dfl_conn_broke(conn, t);
            return;
        }
        conn->out_start += put;
    }
}

void dfl_conn_flush(struct dfl_conn *conn)
{
    struct dfl_client *c = conn->client;

    dfl_link_remove(&conn->dirty);
    if (conn->state == DFL_CONN_CONNECTING)
        dfl_conn_step(conn);
    if (conn->state == DFL_CONN_READY) {
        bool pending = !dfl_list_empty(&conn->urgent) || !dfl_list_empty(&conn->renewals);

        if (pending && c->now.ms - conn->last_answer_ms > READ_FIRST_AFTER_MS)
            dfl_conn_read(conn);
        if (conn->state != DFL_CONN_READY || !conn_put_queued(conn))
            return;
    }
    if (conn->state != DFL_CONN_DEAD && conn->state != DFL_CONN_CONNECTING)
        conn_write(conn);
    if (conn->state == DFL_CONN_DEAD)
        return;
    dfl_link_remove(
        &conn->dirty); /* reading may have marked it again; all of that is written now */
    if (conn->state == DFL_CONN_READY && !dfl_list_empty(&conn->urgent))
        dfl_conn_mark_dirty(conn);
    dfl_conn_watch(conn);
    dfl_conn_count_active(conn);
    dfl_conn_schedule(conn);
}

void dfl_conn_idle(struct dfl_conn *conn)
{
    conn->taken = false;
    if (conn->state == DFL_CONN_DEAD || conn->role != DFL_ROLE_WAITING ||
        !dfl_list_empty(&conn->holds) || !dfl_list_empty(&conn->pooled))
        return;
    if (!dfl_conn_quiet(conn) && !conn->in_line) {
        struct dfl_request *r = DFL_CONTAINER(conn->sent.next, struct dfl_request, link);

        /* Closing is the one way to cancel a request that blocks. */
        if (!dfl_list_empty(&conn->sent) && dfl_request_blocks(r))
            dfl_conn_close(conn);
        return;
    }
    if (conn->single_use || conn->in_line || conn->state != DFL_CONN_READY || conn->client->shut ||
        !conn->server->configured) {
        dfl_conn_close(conn);
        return;
    }
    conn->idle_since_ms = conn->client->now.ms;
    dfl_list_append(&conn->server->pool, &conn->pooled);
    conn->server->pool_count++;
    dfl_conn_mark_dirty(conn);
}

/* -------------------------------------------------------------------- time */

static int64_t earlier(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* When a connection that owns nothing must have answered its oldest request; a request that blocks
 * may take its time. */
static int64_t answer_due(const struct dfl_conn *conn)
{
    const struct dfl_request *oldest;

    if (dfl_list_empty(&conn->sent))
        return INT64_MAX;
    oldest = DFL_CONTAINER(conn->sent.next, struct dfl_request, link);
    return dfl_request_blocks(oldest) ? INT64_MAX
                                      : oldest->sent_ms + conn->client->settings.connect_timeout_ms;
}

static bool conn_kept_warm(const struct dfl_conn *conn)
{
    return conn->owned == 0 && conn->client->keep_warm && conn->role == DFL_ROLE_CONTROL &&
           conn->server->configured && !conn->client->shut;
}

void dfl_conn_schedule(struct dfl_conn *conn)
{
    struct dfl_client *c = conn->client;
    int64_t due = INT64_MAX;

    if (conn->state == DFL_CONN_DEAD)
        return;
    if (conn->state == DFL_CONN_CONNECTING)
        due = earlier(conn->setup_deadline_ms, conn->transport->ops->wake_ms(conn->transport));
    else if (dfl_conn_setting_up(conn))
        due = conn->setup_deadline_ms;
    else if (conn->transport->ops->buffered(conn->transport))
        due = c->now.ms + 1; /* no descriptor tells of what TLS has decrypted already */
    else if (conn->owned > 0)
        due = earlier(dfl_conn_deadline(conn), conn->last_sent_ms + c->keepalive_ms);
    else {
        due = answer_due(conn);
        if (conn_kept_warm(conn))
            due = earlier(due, conn->last_sent_ms + c->keepalive_ms);
        if (!dfl_list_empty(&conn->pooled))
            due = earlier(due, conn->idle_since_ms + c->settings.server_read_timeout_ms / 2);
    }
    if (due == INT64_MAX)
        dfl_timer_clear(&c->timers, &conn->timer);
    else
        dfl_timer_set(&c->timers, &conn->timer, due);
}

static void too_silent(struct dfl_conn *conn, int64_t since_ms)
{
    struct dfl_error why;

    dfl_fail(&why, DFL_BROKEN, "no answer from %s for %.1f s", conn->server->address.text,
             (double)(conn->client->now.ms - since_ms) / 1000);
    dfl_conn_die(conn, &why);
}

bool dfl_conn_lapse(struct dfl_conn *conn)
{
    if (conn->owned == 0 || conn->client->now.ms < dfl_conn_deadline(conn))
        return false;
    too_silent(conn, conn->s_conn_ms);
    return true;
}

static void setup_too_slow(struct dfl_conn *conn)
{
    struct dfl_error why;
    double s = (double)conn->client->settings.connect_timeout_ms / 1000;

    if (conn->state == DFL_CONN_CONNECTING)
        dfl_fail(&why, DFL_UNREACHABLE, "connect to %s: no answer within %g s (step: %s)",
                 conn->server->address.text, s, conn->transport->ops->step(conn->transport));
    else
        dfl_fail(&why, DFL_BROKEN, "no answer from %s to %s within %g s",
                 conn->server->address.text,
                 conn->state == DFL_CONN_LOGIN ? "the login" : "the first request", s);
    dfl_conn_die(conn, &why);
}

/* Sends something for the sake of being heard: a renewal if anything is owned, else the harmless
 * request. */
static void conn_say_something(struct dfl_conn *conn)
{
    struct dfl_hold *earliest = NULL;
    struct dfl_request *r;

    DFL_EACH(l, &conn->holds) {
        struct dfl_hold *h = DFL_CONTAINER(l, struct dfl_hold, by_conn);

        if (h->state == DFL_HELD &&
            (earliest == NULL || h->lease_deadline_ms < earliest->lease_deadline_ms))
            earliest = h;
    }
    if (earliest) {
        if (earliest->renewal == NULL)
            dfl_hold_renew(earliest, NULL, NULL, NULL);
        return;
    }
    r = dfl_server_harmless(conn->server, NULL, NULL);
    if (r)
        dfl_conn_send(conn, r);
}

static void ready_due(struct dfl_conn *conn)
{
    struct dfl_client *c = conn->client;
    int64_t now = c->now.ms;

    if (conn->owned == 0 && now >= answer_due(conn)) {
        too_silent(conn, answer_due(conn) - c->settings.connect_timeout_ms);
        return;
    }
    if (!dfl_list_empty(&conn->pooled)) {
        if (now >= conn->idle_since_ms + c->settings.server_read_timeout_ms / 2)
            dfl_conn_close(conn);
        return;
    }
    if ((conn->owned > 0 || conn_kept_warm(conn)) && now >= conn->last_sent_ms + c->keepalive_ms) {
        if (conn->owned > 0 ? conn->heeded == 0 : dfl_list_empty(&conn->sent))
            conn_say_something(conn); /* the answer to a release need not prove anything */
        conn->last_sent_ms = now;     /* asked already: the answer is due soon enough */
    }
}

static void conn_due(struct dfl_timer *timer, struct dfl_now now)
{
    struct dfl_conn *conn = DFL_CONTAINER(timer, struct dfl_conn, timer);

    if (conn->state == DFL_CONN_DEAD)
        return;
    if (dfl_conn_setting_up(conn)) {
        if (conn->state == DFL_CONN_CONNECTING)
            dfl_conn_step(conn); /* at the deadline the transport knows best what was missing */
        if (dfl_conn_setting_up(conn) && now.ms >= conn->setup_deadline_ms)
            setup_too_slow(conn);
    } else {
        dfl_conn_read(conn); /* what has arrived may be the answer whose absence would kill it */
        if (conn->state == DFL_CONN_READY)
            ready_due(conn);
    }
    if (conn->state != DFL_CONN_DEAD) {
        dfl_conn_mark_dirty(conn);
        dfl_conn_schedule(conn);
    }
}
