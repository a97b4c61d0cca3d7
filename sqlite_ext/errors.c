/*
 * errors.c - how the engine's errors reach SQLite.
 *
 * SQLITE_ERROR always, SQLITE_INTERRUPT for a cancel, never SQLITE_BUSY: applications answer that
 * by trying again or by rolling back, since it means their database file.
 */
#include "errors.h"

#include <sqlite3ext.h>
SQLITE_EXTENSION_INIT3

static int result_code(const struct dfl_error *err)
{
    return err->status == DFL_CANCELED ? SQLITE_INTERRUPT : SQLITE_ERROR;
}

static char *message(const struct dfl_error *err)
{
    return sqlite3_mprintf("dflockd %s: %s", dfl_status_info(err->status)->sqlstate, err->text);
}

void sq_raise(sqlite3_context *context, const struct dfl_error *err)
{
    char *text = message(err);

    if (!text) {
        sqlite3_result_error_nomem(context);
        return;
    }
    sqlite3_result_error(context, text, -1);
    sqlite3_free(text);
    sqlite3_result_error_code(context, result_code(err));
}

int sq_raise_vtab(sqlite3_vtab *vtab, const struct dfl_error *err)
{
    sqlite3_free(vtab->zErrMsg);
    vtab->zErrMsg = message(err);
    return vtab->zErrMsg ? result_code(err) : SQLITE_NOMEM;
}
