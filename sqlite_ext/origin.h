/*
 * origin.h - tells a call that somebody wrote from one that a database file makes.
 */
#ifndef DFL_SQLITE_ORIGIN_H
#define DFL_SQLITE_ORIGIN_H

#include "../core/dflockd.h"

struct sqlite3;

/* DFL_OK, or DFL_UNSUPPORTED when the running statement did not ask for `function` itself. */
enum dfl_status sq_check_origin(struct sqlite3 *db, const char *function, struct dfl_error *err);

#endif
