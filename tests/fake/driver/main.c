/*
 * main.c - the client engine behind a pipe: commands on stdin, one JSON object per line on
 * stdout.
 *
 * A host as small as a host can be: one thread, dfl_wait for readiness, dfl_clock for time. It adds
 * no logic of its own, so whatever a test sees through it is the engine's doing. Never used outside
 * the tests.
 */
/* clang-format off
 *
 *   driver [epoll|poll]
 *
 *   client name=value ...      a client with these settings over the defaults; keep_warm=1
 *   set name=value ...         dfl_client_configure
 *   session S | end S | cap S n
 *   start ID S OP key=k ...    acquire enqueue wait release release_token renew release_all stats ping
 *                              kind=sem slots=3 timeout=1.5|inf lock_timeout=0.5 lease=30 token=...
 *                              wait=0 scope=xact tag=7
 *   cancel ID                  dfl_call_cancel
 *   held S key | held_later S key SECONDS | assert S key | leave S key | give S key
 *   info S | servers | busy | shutdown | quit
 *
 * Each command is answered by {"event":"reply",...}; calls end with {"event":"done","id":...}; the
 * log comes as {"event":"log",...}.
 */
/* clang-format on */
#include "driver.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LINE_MAX_BYTES 65536

static struct dfl_wait *readiness;

void on_watch(void *ctx, int fd, unsigned events, void *tag)
{
    (void)ctx;
    if (dfl_wait_watch(readiness, fd, events, tag) != DFL_OK) {
        fprintf(stderr, "driver: cannot watch descriptor %d\n", fd);
        abort();
    }
}

void on_log(void *ctx, enum dfl_level level, const char *text)
{
    (void)ctx;
    event_begin("log");
    number("level", level);
    field("text", text);
    event_end();
}

static void on_ready(void *arg, void *tag, unsigned events)
{
    (void)arg;
    dfl_client_ready(client, tag, events, dfl_clock());
}

/* Runs every whole line that has arrived; the end of input ends the program. */
static void read_commands(void)
{
    static char buf[LINE_MAX_BYTES];
    static size_t len;
    for (;;) {
        ssize_t n = read(0, buf + len, sizeof buf - len);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n <= 0) {
            finished = true;
            return;
        }
        len += (size_t)n;
        char *newline;
        while ((newline = memchr(buf, '\n', len))) {
            *newline = 0;
            run_line(buf);
            len -= (size_t)(newline + 1 - buf);
            memmove(buf, newline + 1, len);
        }
    }
}

static int64_t time_left(void)
{
    int64_t next = client ? dfl_client_next_ms(client) : INT64_MAX;
    if (next == INT64_MAX)
        return -1;
    int64_t left = next - dfl_clock().ms;
    return left < 0 ? 0 : left;
}

static void loop(void)
{
    struct dfl_wait_round round = {0};
    while (!finished) {
        if (dfl_wait_prepare(readiness, &round) != DFL_OK)
            abort();
        dfl_wait_block(&round, time_left(), 0);
        if (client) {
            dfl_wait_dispatch(readiness, &round, on_ready, NULL);
            dfl_client_run(client, dfl_clock());
            report_all_done();
        }
        read_commands();
    }
    dfl_wait_round_free(&round);
}

int main(int argc, char **argv)
{
    bool with_poll = argc > 1 && strcmp(argv[1], "poll") == 0;
    fcntl(0, F_SETFL, fcntl(0, F_GETFL) | O_NONBLOCK);
    if (dfl_wait_new(with_poll ? DFL_WAIT_POLL : DFL_WAIT_EPOLL, &readiness) != DFL_OK ||
        !commands_begin()) {
        fprintf(stderr, "driver: out of memory\n");
        return 1;
    }
    loop();
    commands_end();
    dfl_wait_free(readiness);
    return 0;
}
