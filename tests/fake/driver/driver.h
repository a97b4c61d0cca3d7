/*
 * driver.h - what the parts of the driver know of each other.
 */
#ifndef DRIVER_H
#define DRIVER_H

#include "dflockd.h"

#define WORDS_MAX 64

/* A command. */
struct words {
    char *word[WORDS_MAX];
    size_t count;
};

extern struct dfl_client *client; /* NULL until there is one */
extern bool finished;             /* told to quit, or no more input */

/* main.c: what the engine asks of its host */
void on_watch(void *ctx, int fd, unsigned events, void *tag);
void on_log(void *ctx, enum dfl_level level, const char *text);

/* commands.c */
bool commands_begin(void); /* false: no memory */
void commands_end(void);
void run_line(char *line);
struct dfl_session *session_named(const char *name); /* there is one, or the driver ends */

/* calls.c */
void command_start(const struct words *w);
void command_cancel(const struct words *w);
void report_all_done(void);
void forget_calls(const struct dfl_session *s); /* without an event; NULL = of all sessions */
void free_calls(void);

/* output.c */
void event_begin(const char *event);
void event_end(void);
void object_begin(void);
void object_end(void);
void name_of_field(const char *name); /* its value is the caller's to print */
void field(const char *name, const char *value);
void number(const char *name, int64_t value);
void status_fields(enum dfl_status status, const char *text);
void hold_fields(const struct dfl_hold *hold, struct dfl_now now);
void reply(enum dfl_status status, const char *text); /* a whole event */

#endif
