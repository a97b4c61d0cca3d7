/*
 * origin.c - tells a call that somebody wrote from one that a database file makes.
 *
 * SQLITE_DIRECTONLY keeps our functions out of views and triggers. It does not keep them out of a
 * CHECK constraint (SQLite 3.40 does not look there, later ones only when the function was there
 * before the schema was read), nor out of generated columns and indexes of a schema that was read
 * before we were loaded. So we look ourselves: who calls a function has written its name in the
 * statement.
 */
#include "origin.h"

#include <ctype.h>
#include <string.h>
#include <strings.h>

#include <sqlite3ext.h>
SQLITE_EXTENSION_INIT3

static bool in_name(char c)
{
    return isalnum((unsigned char)c) || c == '_' || c == '$' || (unsigned char)c >= 0x80;
}

/*
 * The name as a whole word: dflock_locks does not mention dflock_lock. Done at every call, on short
 * statements: strcasestr() would prepare for long ones each time.
 */
static bool mentions(const char *sql, const char *function)
{
    size_t len = strlen(function);
    const char first[] = {function[0], (char)toupper((unsigned char)function[0]), '\0'};

    for (const char *at = sql; at && (at = strpbrk(at, first)); at++)
        if (strncasecmp(at, function, len) == 0 && !in_name(at[len]) &&
            (at == sql || !in_name(at[-1])))
            return true;
    return false;
}

/* Whether the definition of a table or an index of this file names the function; SQLITE_OK when
 * that could be read. */
static int file_mentions(sqlite3 *db, const char *schema, const char *function, bool *found)
{
    sqlite3_stmt *definitions = NULL;
    char *sql = sqlite3_mprintf("SELECT sql FROM \"%w\".sqlite_master"
                                " WHERE type IN ('table', 'index') AND sql LIKE '%%%q%%'",
                                schema, function);
    int rc = sql ? sqlite3_prepare_v2(db, sql, -1, &definitions, NULL) : SQLITE_NOMEM;

    while (rc == SQLITE_OK && !*found && (rc = sqlite3_step(definitions)) == SQLITE_ROW) {
        *found = mentions((const char *)sqlite3_column_text(definitions, 0), function);
        rc = SQLITE_OK;
    }
    sqlite3_finalize(definitions);
    sqlite3_free(sql);
    return rc == SQLITE_DONE ? SQLITE_OK : rc;
}

/* Of any attached file; the temporary schema is the connection's own. */
static int some_file_mentions(sqlite3 *db, const char *function, bool *found)
{
    sqlite3_stmt *list = NULL;
    int rc = sqlite3_prepare_v2(db, "PRAGMA database_list", -1, &list, NULL);

    while (rc == SQLITE_OK && !*found && (rc = sqlite3_step(list)) == SQLITE_ROW) {
        const char *schema = (const char *)sqlite3_column_text(list, 1);
        rc = !schema                       ? SQLITE_NOMEM
             : strcmp(schema, "temp") == 0 ? SQLITE_OK
                                           : file_mentions(db, schema, function, found);
    }
    sqlite3_finalize(list);
    return rc == SQLITE_DONE ? SQLITE_OK : rc;
}

/* Better no lock than one for a file that could not be read; but the reason is said. */
static enum dfl_status refuse_unread(int rc, const char *function, struct dfl_error *err)
{
    if ((rc & 0xff) == SQLITE_INTERRUPT)
        return dfl_fail(err, DFL_CANCELED, "interrupted");
    if ((rc & 0xff) == SQLITE_NOMEM)
        return dfl_fail(err, DFL_NOMEM, "out of memory");
    return dfl_fail(err, DFL_UNSUPPORTED, "cannot see whether a database file calls %s(): %s",
                    function, sqlite3_errstr(rc));
}

enum dfl_status sq_check_origin(sqlite3 *db, const char *function, struct dfl_error *err)
{
    bool asked = false, in_doubt = false, in_file = false;

    for (sqlite3_stmt *s = sqlite3_next_stmt(db, NULL); s; s = sqlite3_next_stmt(db, s)) {
        if (!sqlite3_stmt_busy(s))
            continue;
        bool named = mentions(sqlite3_sql(s), function);
        asked = asked || named;
        /* Beside what it was written for, it may run constraints of a file. */
        in_doubt = in_doubt || !named || !sqlite3_stmt_readonly(s);
    }
    int rc = asked && in_doubt ? some_file_mentions(db, function, &in_file) : SQLITE_OK;
    if (rc != SQLITE_OK && !in_file)
        return refuse_unread(rc, function, err);
    if (asked && !in_file)
        return DFL_OK;
    return dfl_fail(err, DFL_UNSUPPORTED,
                    "unsafe use of %s(): a table or index of a database file calls it", function);
}
