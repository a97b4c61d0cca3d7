/*
 * echo_server.c - a server that sends back what it is sent, on the bundled server's own event loop.
 * What it costs is the price of the loop and the network; what dflockd-local costs more is the
 * price of locks.
 *
 * Prints the same `listening` line as dflockd-local, takes a port or nothing, ends on SIGTERM.
 */
#include "server/log.h"
#include "server/loop.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

static struct dfl_link ready;
static bool stopped;

static struct peer *echo_open(void *ctx, struct dfl_now now)
{
    struct peer *p = calloc(1, sizeof *p);

    (void)ctx;
    if (!p)
        return NULL;
    dfl_line_reader_init(&p->in);
    dfl_link_init(&p->ready);
    p->owes_since_ms = now.ms;
    return p;
}

static void echo_run(struct peer *p, struct dfl_now now)
{
    struct dfl_line_reader *in = &p->in;

    if (!outbuf_add(&p->out, in->buf + in->start, in->end - in->start))
        p->broken = true;
    in->start = in->scanned = in->end;
    p->owes_since_ms = now.ms;
}

static void echo_silent(struct peer *p, struct dfl_now now)
{
    (void)now;
    p->broken = true;
    dfl_list_append(&ready, &p->ready);
}

static void echo_gone(struct peer *p, struct dfl_now now)
{
    (void)now;
    dfl_link_remove(&p->ready);
    dfl_line_reader_free(&p->in);
    outbuf_free(&p->out);
    free(p);
}

static void echo_tick(void *ctx, struct dfl_now now)
{
    (void)ctx;
    (void)now;
}

static int64_t echo_next_ms(void *ctx)
{
    (void)ctx;
    return INT64_MAX;
}

static void on_signal(void *ctx, int number, struct dfl_now now)
{
    (void)ctx;
    (void)number;
    (void)now;
    stopped = true;
}

static bool finished(void *ctx, struct dfl_now now)
{
    (void)ctx;
    (void)now;
    return stopped;
}

int main(int argc, char **argv)
{
    static const int signals[] = {SIGTERM, SIGINT, 0};
    struct loop_config config = {.read_timeout_ms = 3600000,
                                 .write_timeout_ms = 5000,
                                 .signals = signals,
                                 .on_signal = on_signal,
                                 .finished = finished};
    struct protocol protocol = {.ready = &ready,
                                .open = echo_open,
                                .run = echo_run,
                                .silent = echo_silent,
                                .gone = echo_gone,
                                .tick = echo_tick,
                                .next_ms = echo_next_ms};
    uint16_t port = (uint16_t)(argc > 1 ? atoi(argv[1]) : 0);
    struct dfl_error err;
    struct loop *loop;
    int listener;

    dfl_link_init(&ready);
    if (listen_on("127.0.0.1", &port, &listener, &err) != DFL_OK ||
        loop_new(&config, &protocol, listener, &loop, &err) != DFL_OK) {
        fprintf(stderr, "echo_server: %s\n", err.text);
        return 1;
    }
    log_line(LOG_INFO, "listening", "host=127.0.0.1 port=%u", port);
    loop_run(loop);
    loop_free(loop);
    return 0;
}
