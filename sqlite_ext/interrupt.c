/*
 * interrupt.c - notices sqlite3_interrupt() and progress handlers while a function waits.
 *
 * SQLite before 3.41 has no way to ask. But a statement on the same connection sees the interrupt,
 * and runs the application's progress handler as any long statement would. So one endless
 * statement, without a table, is stepped now and then.
 */
#include "interrupt.h"

#include <stddef.h>

#include <sqlite3ext.h>
SQLITE_EXTENSION_INIT3

/* About 1,500 opcodes: runs progress handlers registered for every 1,000 opcodes or fewer. */
#define STEPS 100

static const char endless[] =
    "WITH RECURSIVE c(x) AS (VALUES(1) UNION ALL SELECT 1 FROM c) SELECT 1 FROM c";

bool sq_probe_interrupted(struct sq_probe *probe)
{
    int rc = SQLITE_OK;

    if (!probe->statement)
        rc = sqlite3_prepare_v2(probe->db, endless, -1, &probe->statement, NULL);
    for (int i = 0; i < STEPS && probe->statement; i++) {
        rc = sqlite3_step(probe->statement);
        if (rc != SQLITE_ROW)
            sq_probe_end(
                probe); /* an authorizer or a lack of memory is no cancel: tried again next time */
    }
    return (rc & 0xff) == SQLITE_INTERRUPT;
}

void sq_probe_end(struct sq_probe *probe)
{
    sqlite3_finalize(probe->statement);
    probe->statement = NULL;
}
