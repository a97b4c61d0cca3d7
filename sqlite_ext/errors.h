/*
 * errors.h - how the engine's errors reach SQLite: `dflockd CODE: text`, in one place for functions
 * and tables.
 */
#ifndef DFL_SQLITE_ERRORS_H
#define DFL_SQLITE_ERRORS_H

#include "../core/dflockd.h"

struct sqlite3_context;
struct sqlite3_vtab;

void sq_raise(struct sqlite3_context *context, const struct dfl_error *err);
/* For a table's method: sets its message and returns the result code to hand on. */
int sq_raise_vtab(struct sqlite3_vtab *vtab, const struct dfl_error *err);

#endif
