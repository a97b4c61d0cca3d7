/*
 * log.h - log lines on standard error, one per event, as key=value pairs that people and machines
 * read.
 */
#ifndef DFL_SERVER_LOG_H
#define DFL_SERVER_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };

void log_debug_on(void);
/* Before the first line. Without it a terminal that takes nothing may hold the caller up. */
void log_open(void);

void log_note(enum log_level level, const char *message);
/* `pairs` is printf's format of what follows the message: "host=%s port=%d". */
void log_line(enum log_level level, const char *message, const char *pairs, ...)
    __attribute__((format(printf, 3, 4)));

/* The value as it may stand behind a `=`: quoted when it must be. Writes to buf and returns it. */
const char *log_value(char *buf, size_t cap, const char *value);

/* For what strangers can make happen as often as they like: one line per second, with a count of
 * those left out. */
struct log_limit {
    int64_t next_ms;
    unsigned long left_out;
};
bool log_allowed(struct log_limit *limit, int64_t now_ms, unsigned long *left_out);

#endif
