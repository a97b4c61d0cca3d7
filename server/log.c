/*
 * log.c - one write(2) per line, so that lines never mix. Owns the level. Is never given a login
 * token.
 */
#include "log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static bool debug;

void log_debug_on(void)
{
    debug = true;
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

void log_line(enum log_level level, const char *message, const char *pairs, ...)
{
    static const char *const names[] = {"debug", "info", "warn", "error"};
    char line[2048];
    va_list args;

    if (level == LOG_DEBUG && !debug)
        return;

    size_t n = put_time(line, sizeof line);

    n +=
        (size_t)snprintf(line + n, sizeof line - n, " level=%s msg=\"%s\" ", names[level], message);
    va_start(args, pairs);
    int more = vsnprintf(line + n, sizeof line - n, pairs, args);
    va_end(args);
    if (more > 0)
        n += (size_t)more;
    if (n > sizeof line - 1)
        n = sizeof line - 1;
    if (line[n - 1] == ' ')
        n--;
    line[n++] = '\n';
    /* A log that cannot be written is no reason to stop serving locks. */
    if (write(STDERR_FILENO, line, n) < 0)
        return;
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
