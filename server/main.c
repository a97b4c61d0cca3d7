/*
 * main.c - dflockd-local: puts options, fence, service, listener and loop together, and says what
 * it does in the log. Drains on the first SIGTERM or SIGINT, or when its terminal is closed; ends
 * on the second.
 */
#include "log.h"
#include "loop.h"
#include "options.h"
#include "session.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

struct program {
    struct options options;
    struct fence *fence;
    struct service *service;
    struct tls_server *tls;
    struct loop *loop;
    bool terminal; /* ends when the terminal that it was started on is closed */
    int stops;     /* how often it was told to end */
    int64_t stop_at_ms;
    size_t holds; /* at the end */
};

/* ----------------------------------------------------------------- signals */

static void stop(struct program *p, struct dfl_now now)
{
    if (++p->stops > 1) {
        log_note(LOG_INFO, "ending at once");
        return;
    }
    log_line(LOG_INFO, "draining", "holds=%zu hint=\"a second signal ends it at once\"",
             locktable_holds(p->service->table));
    p->stop_at_ms =
        p->options.shutdown_timeout_ms ? now.ms + p->options.shutdown_timeout_ms : INT64_MAX;
    service_drain(p->service, now);
}

static void reload(struct program *p)
{
    struct dfl_error err;
    char text[DFL_ERROR_MAX + 8];

    if (!p->tls)
        return;
    if (tls_server_reload(p->tls, &err) == DFL_OK)
        log_note(LOG_INFO, "certificate read again");
    else
        log_line(LOG_ERROR, "certificate not changed", "error=%s",
                 log_value(text, sizeof text, err.text));
}

static bool has_terminal(void)
{
    int fd = open("/dev/tty", O_RDONLY | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);

    if (fd >= 0)
        close(fd);
    return fd >= 0 || errno != ENXIO; /* out of descriptors says nothing */
}

/* Not under nohup. With a certificate SIGHUP is for that alone: who was started on a terminal may
 * have outlived it, and is asked to read the new one. */
static bool ends_with_terminal(const struct program *p)
{
    struct sigaction action;

    return !p->tls && sigaction(SIGHUP, NULL, &action) == 0 && action.sa_handler != SIG_IGN &&
           has_terminal();
}

/* A closed terminal may say so more than once. */
static void hang_up(struct program *p, struct dfl_now now)
{
    reload(p);
    if (p->terminal && p->stops == 0 && !has_terminal())
        stop(p, now);
}

static void on_signal(void *ctx, int number, struct dfl_now now)
{
    if (number == SIGHUP)
        hang_up(ctx, now);
    else
        stop(ctx, now);
}

static bool finished(void *ctx, struct dfl_now now)
{
    struct program *p = ctx;

    if (p->stops == 0)
        return false;
    p->holds = locktable_holds(p->service->table);
    return (p->holds == 0 && locktable_is_drained(p->service->table)) || p->stops > 1 ||
           now.ms >= p->stop_at_ms;
}

static int64_t wake_ms(void *ctx)
{
    const struct program *p = ctx;

    return p->stops ? p->stop_at_ms : INT64_MAX;
}

/* ------------------------------------------------------------------- start */

static int fail(const struct dfl_error *err)
{
    char text[DFL_ERROR_MAX + 8];

    log_line(LOG_ERROR, "cannot start", "error=%s", log_value(text, sizeof text, err->text));
    return 1;
}

/* Leases of a run that did not end by itself may still be counted on by their holders. */
static void wait_for_old_leases(struct program *p, struct dfl_now now)
{
    int64_t until_ms = fence_unsafe_until_ms(p->fence), left_ms = until_ms - now.wall_ms;
    time_t until_s = (time_t)((until_ms + 999) / 1000);
    struct tm tm;
    char text[32];

    if (until_ms == 0)
        return;
    gmtime_r(&until_s, &tm);
    strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &tm);
    if (p->options.no_recovery_wait) {
        log_line(LOG_WARN, "granting although leases of the last run may not be over",
                 "until=%s seconds=%" PRId64, text, (left_ms + 999) / 1000);
        fence_safe(p->fence);
        return;
    }
    log_line(LOG_WARN, "granting nothing until the leases of the last run are over",
             "until=%s seconds=%" PRId64, text, (left_ms + 999) / 1000);
    service_close_gate(p->service, now.ms + left_ms);
}

static enum dfl_status make_service(struct program *p, struct dfl_now now, struct dfl_error *err)
{
    const struct options *o = &p->options;
    struct service_config config = {.table = {.max_locks = (size_t)o->max_locks,
                                              .max_waiters = (size_t)o->max_waiters,
                                              .gc_interval_ms = o->gc_interval_ms,
                                              .gc_max_idle_ms = o->gc_max_idle_ms,
                                              .auto_release = o->auto_release},
                                    .default_lease_s = o->default_lease_s,
                                    .auth_token = o->auth_token};
    enum dfl_status status = fence_open(o->fence_state_file, now, &p->fence, err);

    if (status != DFL_OK)
        return status;
    config.fence = p->fence;
    if (getrandom(config.table.secret, sizeof config.table.secret, 0) !=
        (ssize_t)sizeof config.table.secret)
        return dfl_fail(err, DFL_INTERNAL, "no random numbers to be had");
    return service_new(&config, now, &p->service, err);
}

static enum dfl_status make_loop(struct program *p, uint16_t *port, struct dfl_error *err)
{
    static const int signals[] = {SIGTERM, SIGINT, SIGHUP, 0};
    const struct options *o = &p->options;
    struct loop_config config = {.read_timeout_ms = o->read_timeout_ms,
                                 .write_timeout_ms = o->write_timeout_ms,
                                 .max_connections = (size_t)o->max_connections,
                                 .signals = signals,
                                 .on_signal = on_signal,
                                 .finished = finished,
                                 .wake_ms = wake_ms,
                                 .ctx = p};
    struct protocol protocol = service_protocol(p->service);
    enum dfl_status status = DFL_OK;
    int listener;

    if (o->tls_cert && *o->tls_cert)
        status = tls_server_new(o->tls_cert, o->tls_key, &p->tls, err);
    if (status == DFL_OK)
        status = listen_on(o->host, port, &listener, err);
    config.tls = p->tls;
    if (status == DFL_OK)
        status = loop_new(&config, &protocol, listener, &p->loop, err);
    return status;
}

/* Whatever the process was started with, made fit for a server. */
static void prepare_process(void)
{
    struct rlimit limit;
    int fd;

    do /* none of our files may become the one that log lines go to */
        fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd >= 0)
        close(fd);
    signal(SIGPIPE, SIG_IGN); /* OpenSSL writes without MSG_NOSIGNAL */
    signal(SIGXFSZ, SIG_IGN); /* a file that may not grow is an error, not the end */
    signal(SIGTTOU, SIG_IGN); /* a terminal must not stop us for a log line */
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static int serve(struct program *p)
{
    struct dfl_error err;
    struct dfl_now now = dfl_clock();
    uint16_t port = (uint16_t)p->options.port;
    char host[300];

    if (make_service(p, now, &err) != DFL_OK)
        return fail(&err);
    if (make_loop(p, &port, &err) != DFL_OK)
        return fail(&err);
    wait_for_old_leases(p, now); /* waived only by a server that does start */
    p->terminal = ends_with_terminal(p);
    log_line(LOG_INFO, "listening", "host=%s port=%u",
             log_value(host, sizeof host, p->options.host), port);
    loop_run(p->loop);
    log_line(LOG_INFO, "ended", "holds=%zu", p->holds);
    return 0;
}

static void clean_up(struct program *p)
{
    if (p->loop)
        loop_free(p->loop);
    tls_server_free(p->tls);
    service_free(p->service);
    fence_close(p->fence, p->holds == 0);
    options_free(&p->options);
}

int main(int argc, char **argv)
{
    struct program p = {0};
    struct dfl_error err;
    int status = 0;

    prepare_process();
    log_open();
    if (options_read(&p.options, argc, argv, &err) != DFL_OK) {
        fprintf(stderr, "dflockd-local: %s\n", err.text);
        options_free(&p.options);
        return 2;
    }
    if (p.options.debug)
        log_debug_on();
    if (p.options.help)
        options_print_help();
    else if (p.options.version)
        printf("dflockd-local %s\n", DFL_VERSION);
    else
        status = serve(&p);
    clean_up(&p);
    return status;
}
