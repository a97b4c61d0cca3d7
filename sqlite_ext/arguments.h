/*
 * arguments.h - SQL values to checked C values. What is wrong is said before a byte is sent, and
 * which argument it was.
 */
#ifndef DFL_SQLITE_ARGUMENTS_H
#define DFL_SQLITE_ARGUMENTS_H

#include "../core/dflockd.h"

struct sq_session;
struct sqlite3_context;
struct sqlite3_value;

/* One call of a SQL function. */
struct sq_arguments {
    struct sqlite3_context *context;
    struct sq_session *session;
    const char *function;
    int count;
    struct sqlite3_value **values;
    struct dfl_error error;
};

/* A full key, prefix included. */
struct sq_key {
    char text[DFL_KEY_MAX + 1];
    size_t len;
};

bool sq_given(const struct sq_arguments *a, int i); /* there, and not NULL */

enum dfl_status sq_key_argument(struct sq_arguments *a, int i, struct sq_key *key);
/* Left out or NULL: the setting acquire_timeout. */
enum dfl_status sq_timeout_argument(struct sq_arguments *a, int i, int64_t *timeout_ms);
/* Left out or NULL: `otherwise`. */
enum dfl_status sq_lease_argument(struct sq_arguments *a, int i, int64_t otherwise,
                                  int64_t *lease_s);
enum dfl_status sq_slots_argument(struct sq_arguments *a, int i, int64_t *slots);
/* The 32 digits. *token points into the value. */
enum dfl_status sq_token_argument(struct sq_arguments *a, int i, const char **token);
/* Left out: false. */
enum dfl_status sq_flag_argument(struct sq_arguments *a, int i, const char *name, bool *flag);
/* Text without a NUL byte; numbers are taken as SQLite writes them when `numbers`. *text points
 * into the value. */
enum dfl_status sq_text_argument(struct sq_arguments *a, int i, const char *name, bool numbers,
                                 const char **text);

#endif
