/*
 * guard.c - the eponymous table dflock_close_guard, which exists to be disconnected.
 *
 * SQLite frees functions, and with them our session, only when the last statement of a connection
 * is gone: a refused sqlite3_close() or a deferred sqlite3_close_v2() would keep locks for as long.
 * But every close disconnects eponymous tables first. dflock_locks would do for that if no
 * statement ever read it; one that does delays its xDisconnect. This table is empty and of no use
 * to anybody.
 */
#include "guard.h"

#include <sqlite3ext.h>
SQLITE_EXTENSION_INIT3

#include "session.h"

struct guard {
    sqlite3_vtab base;
    struct sq_session *session;
};

static int guard_connect(sqlite3 *db, void *session, int argc, const char *const *argv,
                         sqlite3_vtab **out, char **error)
{
    (void)argc, (void)argv, (void)error;
    int rc = sqlite3_declare_vtab(db, "CREATE TABLE x(unused)");
    if (rc != SQLITE_OK)
        return rc;
    struct guard *guard = sqlite3_malloc(sizeof *guard);
    if (!guard)
        return SQLITE_NOMEM;
    *guard = (struct guard){.session = session};
    sq_session_retain(guard->session); /* SQLite may disconnect it after all that is registered */
    guard->session->guarded = true;
    sqlite3_vtab_config(db, SQLITE_VTAB_DIRECTONLY);
    *out = &guard->base;
    return SQLITE_OK;
}

static int guard_disconnect(sqlite3_vtab *vtab)
{
    struct guard *guard = (struct guard *)vtab;

    guard->session->guarded = false;
    sq_session_give_back(guard->session);
    sq_session_release(guard->session);
    sqlite3_free(guard);
    return SQLITE_OK;
}

static int guard_best_index(sqlite3_vtab *vtab, sqlite3_index_info *info)
{
    (void)vtab;
    info->estimatedCost = 1;
    return SQLITE_OK;
}

static int guard_open(sqlite3_vtab *vtab, sqlite3_vtab_cursor **out)
{
    (void)vtab;
    *out = sqlite3_malloc(sizeof **out);
    if (!*out)
        return SQLITE_NOMEM;
    **out = (sqlite3_vtab_cursor){0};
    return SQLITE_OK;
}

static int guard_close(sqlite3_vtab_cursor *cursor)
{
    sqlite3_free(cursor);
    return SQLITE_OK;
}

static int guard_filter(sqlite3_vtab_cursor *cursor, int plan, const char *text, int argc,
                        sqlite3_value **argv)
{
    (void)cursor, (void)plan, (void)text, (void)argc, (void)argv;
    return SQLITE_OK;
}

static int guard_next(sqlite3_vtab_cursor *cursor)
{
    (void)cursor;
    return SQLITE_OK;
}

static int guard_eof(sqlite3_vtab_cursor *cursor)
{
    (void)cursor;
    return 1;
}

static int guard_column(sqlite3_vtab_cursor *cursor, sqlite3_context *context, int column)
{
    (void)cursor, (void)context, (void)column;
    return SQLITE_OK;
}

static int guard_rowid(sqlite3_vtab_cursor *cursor, sqlite3_int64 *rowid)
{
    (void)cursor;
    *rowid = 0;
    return SQLITE_OK;
}

const sqlite3_module sq_guard_module = {
    .xConnect = guard_connect,
    .xDisconnect = guard_disconnect,
    .xBestIndex = guard_best_index,
    .xOpen = guard_open,
    .xClose = guard_close,
    .xFilter = guard_filter,
    .xNext = guard_next,
    .xEof = guard_eof,
    .xColumn = guard_column,
    .xRowid = guard_rowid,
};

void sq_guard_connect(struct sq_session *s)
{
    sqlite3_stmt *statement = NULL;

    if (s->guarded)
        return;
    /* Qualified by temp: a hostile file can have a table of this name in main, never in temp. An
     * authorizer may refuse: tried again at the next call. */
    sqlite3_prepare_v2(s->db, "SELECT 1 FROM temp." SQ_GUARD_MODULE, -1, &statement, NULL);
    sqlite3_finalize(statement);
}
