/*
 * echo_server.c - a server that sends back what it is sent, on the bundled server's own event loop.
 * What it costs is the price of the loop and the network; what dflockd-local costs more is the
 * price of locks.
 *
 *   echo_server [PORT]           sends back what comes
 *   echo_server PORT answers     says yes to every request: for clients that speak the protocol
 *
 * Prints the same `listening` line as dflockd-local, ends on SIGTERM.
 */
#include "server/log.h"
#include "server/loop.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct dfl_link ready;
static bool stopped;

struct yes_man {
    struct peer peer; /* first */
    int lines;        /* of the request that is being read */
    char command;     /* its first letter */
};

static struct peer *echo_open(void *ctx, struct dfl_now now)
{
    struct peer *p = calloc(1, sizeof(struct yes_man));

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

/* The third line of each request is answered: a grant, the seconds of a renewal, or plain ok. */
static void answer_run(struct peer *p, struct dfl_now now)
{
    static const char grant[] = "ok 0123456789abcdef0123456789abcdef 33\n", renewed[] = "ok 33\n";
    struct yes_man *y = (struct yes_man *)p;
    char *line;
    size_t len;

    while (dfl_line_reader_next(&p->in, DFL_REQUEST_LINE_MAX, &line, &len) == DFL_OK) {
        const char *text = y->command == 'l' ? grant : y->command == 'n' ? renewed : "ok\n";

        if (y->lines++ == 0)
            y->command = len > 0 ? line[0] : ' ';
        if (y->lines < 3)
            continue;
        y->lines = 0;
        if (!outbuf_add(&p->out, text, strlen(text)))
            p->broken = true;
    }
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
                                .run = argc > 2 ? answer_run : echo_run,
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
