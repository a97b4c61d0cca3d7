/*
 * tables.h - the eponymous virtual tables.
 */
#ifndef DFL_SQLITE_TABLES_H
#define DFL_SQLITE_TABLES_H

#include <stddef.h>

#include "../core/dflockd.h"

struct sq_session;
struct sq_snapshot;

/* A table: its columns, and how its rows are taken. */
struct sq_table {
    const char *name;
    const char *schema;
    size_t columns;
    int64_t rows_guess; /* for the planner: high, so that the table is the outer loop or is
                           materialized */
    enum dfl_status (*take)(struct sq_session *s, struct sq_snapshot *rows, struct dfl_error *err);
    bool reused; /* a snapshot serves for a second: taking one asks servers */
};

extern const struct sq_table sq_tables[];
extern const size_t sq_table_count;

/* What a table's module is registered with: a pointer to one of these, which lives as long as the
 * session. */
struct sq_table_binding {
    const struct sq_table *table;
    struct sq_session *session;
};

extern const struct sqlite3_module sq_table_module;

/* server_locks.c */
enum dfl_status sq_take_server_locks(struct sq_session *s, struct sq_snapshot *rows,
                                     struct dfl_error *err);
/* The key as the reader knows it: without its own prefix, or whole when it has not that prefix. */
void sq_show_key(const struct sq_session *s, const char *key, size_t len, struct sq_snapshot *rows,
                 size_t column);

#endif
