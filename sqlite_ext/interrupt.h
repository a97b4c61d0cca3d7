/*
 * interrupt.h - notices sqlite3_interrupt() and progress handlers while a function waits.
 */
#ifndef DFL_SQLITE_INTERRUPT_H
#define DFL_SQLITE_INTERRUPT_H

#include <stdbool.h>

struct sqlite3;
struct sqlite3_stmt;

/* One call's probe: {.db = db} to begin with. It is prepared by its first use, so a call that never
 * waits never prepares it. */
struct sq_probe {
    struct sqlite3 *db;
    struct sqlite3_stmt *statement;
};

#define SQ_PROBE_INTERVAL_MS 50

/* True when the running statement is to end. Runs callbacks of the application: call it without any
 * lock of ours. */
bool sq_probe_interrupted(struct sq_probe *probe);
void sq_probe_end(struct sq_probe *probe); /* before the function returns: an open statement would
                                              make sqlite3_close() fail */

#endif
