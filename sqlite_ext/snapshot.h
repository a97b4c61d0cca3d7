/*
 * snapshot.h - the rows of a virtual table as they were at one moment.
 */
#ifndef DFL_SQLITE_SNAPSHOT_H
#define DFL_SQLITE_SNAPSHOT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum sq_cell_type { SQ_NULL, SQ_INTEGER, SQ_REAL, SQ_TEXT };

struct sq_cell {
    enum sq_cell_type type;
    union {
        int64_t integer;
        double real;
        char *text; /* owned */
    } value;
};

/* Counted: cursors share the newest one. Used by one thread at a time. */
struct sq_snapshot {
    unsigned users;
    int64_t taken_ms;
    size_t columns, rows, cap;
    struct sq_cell *cells; /* rows * columns */
    bool failed;           /* out of memory on the way */
};

struct sq_snapshot *sq_snapshot_new(size_t columns); /* NULL: no memory */
struct sq_snapshot *sq_snapshot_retain(struct sq_snapshot *s);
void sq_snapshot_release(struct sq_snapshot *s); /* NULL allowed */

/* A new row, all NULL. Setting a cell of it that fails marks the snapshot failed. */
void sq_snapshot_row(struct sq_snapshot *s);
void sq_snapshot_integer(struct sq_snapshot *s, size_t column, int64_t value);
void sq_snapshot_real(struct sq_snapshot *s, size_t column, double value);
void sq_snapshot_text(struct sq_snapshot *s, size_t column, const char *text, size_t len);
void sq_snapshot_string(struct sq_snapshot *s, size_t column, const char *text); /* "" stays NULL */

#endif
