/*
 * bundled.c - the bundled server as a personality: its own protocol handler and lock table, without its loop. One
 * request at a time goes in, so that the model sees in which order they were carried out.
 */
#include "sim.h"

#include "../../server/log.h"
#include "../../server/session.h"

#include <string.h>

struct bundled {
    struct server *server;
    struct service *service;
    struct protocol protocol;
};

struct bundled_peer {
    struct bundled *of;
    struct peer *peer;
    struct conn *conn;
};

/* Its log lines, in place of server/log.c. */
void log_note(enum log_level level, const char *message)
{
    (void)level;
    TRACE("server says: %s", message);
}

void log_line(enum log_level level, const char *message, const char *pairs, ...)
{
    (void)pairs;
    log_note(level, message);
}

const char *log_value(char *buf, size_t cap, const char *value)
{
    (void)buf, (void)cap;
    return value;
}

bool log_allowed(struct log_limit *limit, int64_t now_ms, unsigned long *left_out)
{
    (void)limit, (void)now_ms, (void)left_out;
    return false;
}

static bool mint_extend(void *ctx, int64_t lease_s)
{
    struct server *s = ctx;
    int64_t end = sim_now + lease_s * SECOND;
    struct address *a = &addresses[s->address];

    if (end > a->lease_end_us)
        a->lease_end_us = end;
    return true;
}

static bool mint_grant(void *ctx, int64_t lease_s, struct lock_token *token)
{
    token->fence = server_fence(ctx);
    token->random = rnd();
    return mint_extend(ctx, lease_s);
}

static void *start(struct server *s)
{
    struct bundled *b = sim_new(sizeof *b);
    struct service_config config = {
        .table = {.max_locks = s->max_locks,
                  .max_waiters = s->max_waiters,
                  .gc_interval_ms = 5000,
                  .gc_max_idle_ms = 60000,
                  .auto_release = s->auto_release,
                  .secret = {rnd(), rnd()},
                  .mint = {s, mint_grant, mint_extend}},
        .default_lease_s = s->default_lease_s};
    struct dfl_error err;

    if (service_new(&config, server_now(s), &b->service, &err) != DFL_OK)
        sim_fault("server", "cannot start: %s", err.text);
    b->server = s;
    b->protocol = service_protocol(b->service);
    if (s->recovering)
        service_close_gate(b->service, s->gate_ms);
    return b;
}

static void stop(void *impl)
{
    struct bundled *b = impl;

    service_free(b->service);
}

static void *open_peer(void *impl, struct conn *c)
{
    struct bundled *b = impl;
    struct bundled_peer *p = sim_new(sizeof *p);

    p->of = b;
    p->conn = c;
    p->peer = b->protocol.open(b->service, server_now(b->server));
    if (p->peer == NULL)
        sim_fault("server", "no memory");
    p->peer->conn = p;
    return p;
}

/* Whole lines to the world. */
static void take_out(struct bundled_peer *p)
{
    struct outbuf *o = &p->peer->out;

    while (outbuf_left(o) > 0) {
        char *at = o->bytes + o->start, *newline = memchr(at, '\n', outbuf_left(o));
        size_t len = newline ? (size_t)(newline - at) : outbuf_left(o);

        server_emit(p->conn, at, len);
        outbuf_sent(o, len + (newline != NULL));
    }
}

static void run(struct bundled_peer *p)
{
    struct bundled *b = p->of;

    do {
        b->protocol.run(p->peer, server_now(b->server));
        take_out(p);
    } while (p->peer->more && !p->peer->closing);
    server_block(p->conn, p->peer->blocked);
    if (p->peer->closing || p->peer->broken)
        server_hang_up(p->conn);
}

static void run_ready(struct bundled *b)
{
    while (!dfl_list_empty(b->protocol.ready)) {
        struct peer *p = DFL_CONTAINER(b->protocol.ready->next, struct peer, ready);

        dfl_link_remove(&p->ready);
        run(p->conn);
    }
}

static void request(void *peer, const char *const line[3], const size_t len[3])
{
    struct bundled_peer *p = peer;

    for (int i = 0; i < 3; i++) {
        char *at;
        size_t room;

        if (dfl_line_reader_space(&p->peer->in, len[i] + 1, &at, &room) != DFL_OK)
            sim_fault("server", "no memory");
        memcpy(at, line[i], len[i]);
        at[len[i]] = '\n';
        dfl_line_reader_added(&p->peer->in, len[i] + 1);
    }
    run(p);
    run_ready(p->of);
}

static void gone(void *peer)
{
    struct bundled_peer *p = peer;
    struct bundled *b = p->of;

    b->protocol.gone(p->peer, server_now(b->server));
    if (!b->server->ended)
        run_ready(b);
}

static void tick(void *impl)
{
    struct bundled *b = impl;

    b->protocol.tick(b->service, server_now(b->server));
    run_ready(b);
}

static int64_t next_ms(void *impl)
{
    struct bundled *b = impl;

    return b->protocol.next_ms(b->service);
}

static void drain(void *impl)
{
    struct bundled *b = impl;

    service_drain(b->service, server_now(b->server));
    run_ready(b);
}

const struct server_ops bundled_ops = {start, stop, open_peer, request, gone, tick, next_ms, drain};
