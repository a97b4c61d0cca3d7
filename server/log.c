/*
 * log.c - one write(2) per line, so that lines never mix. Owns the level. Is never given a login
 * token, and never waits: a line that cannot be written at once is left out, and counted.
 */
#include "log.h"

#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static bool debug;
static int out = STDERR_FILENO;
static unsigned long lost; /* lines that nobody took, or for which there was no room */
static bool cut;           /* the last one that was taken was taken in part */

void log_debug_on(void)
{
    debug = true;
}

/* A terminal takes a part of a line and makes us wait with the rest, unless opened not to. */
void log_open(void)
{
    int fd = isatty(STDERR_FILENO)
                 ? open("/proc/self/fd/2", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)
                 : -1;

    if (fd >= 0)
        out = fd;
}

/* False: it would have to wait, or there is no room. A pipe that is writable takes a line of ours
 * whole (PIPE_BUF). */
static bool put_line(const char *line, size_t n)
{
    struct pollfd p = {.fd = out, .events = POLLOUT};

    if (poll(&p, 1, 0) == 0)
        return false;

    ssize_t put = write(out, line, n);

    if (put > 0)
        cut = (size_t)put < n;
    return put == (ssize_t)n;
}

static size_t put_time(char *line, size_t cap)
{
    struct timespec ts;
    struct tm tm;
    char text[32];

    clock_gettime(CLOCK_REALTIME, &ts);
    gmtime_r(&ts.tv_sec, &tm);
    strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &tm);
    return (size_t)snprintf(line, cap, "time=%s.%03ldZ", text, ts.tv_nsec / 1000000);
}

void log_note(enum log_level level, const char *message)
{
    log_line(level, message, "%s", "");
}

__attribute__((format(printf, 5, 0))) static size_t make_line(char *line, size_t cap,
                                                              enum log_level level,
                                                              const char *message,
                                                              const char *pairs, va_list args)
{
    static const char *const names[] = {"debug", "info", "warn", "error"};
    size_t n = put_time(line, cap);

    n += (size_t)snprintf(line + n, cap - n, " level=%s msg=\"%s\" ", names[level], message);

    int more = vsnprintf(line + n, cap - n, pairs, args);

    if (more > 0)
        n += (size_t)more;
    if (n > cap - 1)
        n = cap - 1;
    if (line[n - 1] == ' ')
        n--;
    line[n++] = '\n';
    return n;
}

static bool tell_lost(void)
{
    char line[256];
    size_t n = 0;

    if (cut)
        line[n++] = '\n';
    n += put_time(line + n, sizeof line - n);
    n += (size_t)snprintf(line + n, sizeof line - n,
                          " level=warn msg=\"log lines left out: they could not be written\" lines=%lu\n",
                          lost);
    return put_line(line, n);
}

void log_line(enum log_level level, const char *message, const char *pairs, ...)
{
    char line[2048];
    va_list args;

    if (level == LOG_DEBUG && !debug)
        return;
    va_start(args, pairs);
    size_t n = make_line(line, sizeof line, level, message, pairs, args);
    va_end(args);
    if (lost > 0 && tell_lost())
        lost = 0;
    if (lost > 0 || !put_line(line, n))
        lost++;
}

static bool is_plain(const char *value)
{
    if (!*value)
        return false;
    for (; *value; value++)
        if (*value <= ' ' || *value == '"' || *value == '=' || *value == '\\' || *value == 0x7f)
            return false;
    return true;
}

const char *log_value(char *buf, size_t cap, const char *value)
{
    size_t n = 0;

    if (is_plain(value)) {
        snprintf(buf, cap, "%s", value);
        return buf;
    }
    buf[n++] = '"';
    for (; *value && n + 4 < cap; value++) {
        if (*value == '"' || *value == '\\')
            buf[n++] = '\\';
        buf[n++] = (unsigned char)*value < ' ' ? '?' : *value;
    }
    buf[n++] = '"';
    buf[n] = '\0';
    return buf;
}

bool log_allowed(struct log_limit *limit, int64_t now_ms, unsigned long *left_out)
{
    if (now_ms < limit->next_ms) {
        limit->left_out++;
        return false;
    }
    limit->next_ms = now_ms + 1000;
    *left_out = limit->left_out;
    limit->left_out = 0;
    return true;
}
