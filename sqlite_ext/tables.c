/*
 * tables.c - the eponymous virtual tables dflock_locks, dflock_server_locks and dflock_servers.
 *
 * A scan takes all rows at once, under the session's mutex, and then reads from that snapshot. One
 * module serves all tables; they differ by a row of sq_tables.
 */
#include "tables.h"

#include <string.h>
#include <time.h>
#include <unistd.h>

#include <sqlite3ext.h>
SQLITE_EXTENSION_INIT3

#include "errors.h"
#include "session.h"
#include "snapshot.h"

#define REUSE_MS 1000

/* ------------------------------------------------------------------- cells */

void sq_show_key(const struct sq_session *s, const char *key, size_t len, struct sq_snapshot *rows,
                 size_t column)
{
    size_t prefix = strlen(s->settings.key_prefix);

    if (len > prefix && memcmp(key, s->settings.key_prefix, prefix) == 0)
        key += prefix, len -= prefix;
    sq_snapshot_text(rows, column, key, len);
}

/* UTC, `YYYY-MM-DD HH:MM:SS.SSS`. */
static void show_time(struct sq_snapshot *rows, size_t column, int64_t wall_ms)
{
    time_t seconds = (time_t)(wall_ms / 1000);
    struct tm utc;
    char text[40];

    if (!gmtime_r(&seconds, &utc))
        return;
    size_t len = strftime(text, sizeof text - 4, "%Y-%m-%d %H:%M:%S", &utc);
    sqlite3_snprintf((int)(sizeof text - len), text + len, ".%03d", (int)(wall_ms % 1000));
    sq_snapshot_text(rows, column, text, strlen(text));
}

/* A monotonic moment, told by the wall clock as it is now. */
static void show_moment(struct sq_snapshot *rows, size_t column, int64_t moment_ms,
                        struct dfl_now now)
{
    if (moment_ms > 0)
        show_time(rows, column, now.wall_ms + (moment_ms - now.ms));
}

/* ------------------------------------------------------------ dflock_locks */

enum {
    LOCKS_PID,
    LOCKS_KEY,
    LOCKS_KIND,
    LOCKS_SCOPE,
    LOCKS_STATE,
    LOCKS_SLOTS,
    LOCKS_FENCE,
    LOCKS_LEASE,
    LOCKS_ACQUIRED,
    LOCKS_EXPIRES,
    LOCKS_RENEWED,
    LOCKS_RENEWALS,
    LOCKS_ERROR,
    LOCKS_SERVER,
    LOCKS_BLOCKED_BY,
    LOCKS_COLUMNS
};

/* pid is this process, blocked_by_pids always NULL: both are there so that one query serves both
 * databases. */
static const char locks_schema[] = "CREATE TABLE x(pid INTEGER, key TEXT, kind TEXT, scope TEXT, "
                                   "state TEXT, slots INTEGER, fence INTEGER, lease INTEGER,"
                                   " acquired_at TEXT, expires_at TEXT, renewed_at TEXT, renewals "
                                   "INTEGER, last_error TEXT, server TEXT, blocked_by_pids TEXT)";

struct taking {
    struct sq_session *session;
    struct sq_snapshot *rows;
    struct dfl_now now;
};

static bool take_hold(void *arg, struct dfl_hold *hold)
{
    struct taking *t = arg;
    struct sq_snapshot *rows = t->rows;
    struct dfl_hold_info info;

    dfl_hold_info(hold, &info);
    bool held = info.state == DFL_HELD;
    sq_snapshot_row(rows);
    sq_snapshot_integer(rows, LOCKS_PID, getpid());
    sq_show_key(t->session, info.key, info.key_len, rows, LOCKS_KEY);
    sq_snapshot_string(rows, LOCKS_KIND, info.kind == DFL_SEMAPHORE ? "semaphore" : "lock");
    sq_snapshot_string(rows, LOCKS_SCOPE, "session");
    sq_snapshot_string(rows, LOCKS_STATE,
                       held && t->now.ms >= info.deadline_ms ? dfl_state_name(DFL_STATE_LOST)
                                                             : dfl_state_name(info.state));
    sq_snapshot_integer(rows, LOCKS_SLOTS, info.slots);
    if (held && info.fence >= 0)
        sq_snapshot_integer(rows, LOCKS_FENCE, info.fence);
    if (info.lease_s > 0)
        sq_snapshot_integer(rows, LOCKS_LEASE, info.lease_s);
    if (info.acquired_wall_ms > 0)
        show_time(rows, LOCKS_ACQUIRED, info.acquired_wall_ms);
    if (held)
        show_moment(rows, LOCKS_EXPIRES, info.deadline_ms, t->now);
    show_moment(rows, LOCKS_RENEWED, info.renewed_ms, t->now);
    sq_snapshot_integer(rows, LOCKS_RENEWALS, info.renewals);
    sq_snapshot_string(rows, LOCKS_ERROR, info.last_error);
    sq_snapshot_string(rows, LOCKS_SERVER, info.server);
    return true;
}

static enum dfl_status do_take_locks(struct sq_session *s, void *arg, struct dfl_now now,
                                     struct dfl_error *err)
{
    struct taking t = {s, arg, now};

    (void)err;
    sq_session_poll(s, &s->round); /* what has arrived may be the loss of a hold */
    dfl_session_each(s->owner, take_hold, &t);
    return DFL_OK;
}

static enum dfl_status take_locks(struct sq_session *s, struct sq_snapshot *rows,
                                  struct dfl_error *err)
{
    return sq_session_do(s, do_take_locks, rows, err);
}

/* ---------------------------------------------------------- dflock_servers */

enum {
    SERVERS_ADDRESS,
    SERVERS_STATE,
    SERVERS_CONNECTIONS,
    SERVERS_ROUND_TRIP,
    SERVERS_ERROR,
    SERVERS_SINCE,
    SERVERS_COLUMNS
};

static const char servers_schema[] = "CREATE TABLE x(address TEXT, state TEXT, connections "
                                     "INTEGER, round_trip_ms REAL, last_error TEXT, since TEXT)";

static enum dfl_status do_take_servers(struct sq_session *s, void *arg, struct dfl_now now,
                                       struct dfl_error *err)
{
    struct sq_snapshot *rows = arg;

    (void)err;
    for (size_t i = 0; i < dfl_client_servers(s->client); i++) {
        struct dfl_server_info info;
        dfl_client_server(s->client, i, &info);
        sq_snapshot_row(rows);
        sq_snapshot_string(rows, SERVERS_ADDRESS, info.address);
        sq_snapshot_string(rows, SERVERS_STATE, dfl_server_state_name(info.state));
        sq_snapshot_integer(rows, SERVERS_CONNECTIONS, info.connections);
        if (info.round_trip_us >= 0)
            sq_snapshot_real(rows, SERVERS_ROUND_TRIP, (double)info.round_trip_us / 1000.0);
        sq_snapshot_string(rows, SERVERS_ERROR, info.last_error);
        show_moment(rows, SERVERS_SINCE, info.since_ms, now);
    }
    return DFL_OK;
}

static enum dfl_status take_servers(struct sq_session *s, struct sq_snapshot *rows,
                                    struct dfl_error *err)
{
    return sq_session_do(s, do_take_servers, rows, err);
}

/* ------------------------------------------------------------------- table */

static const char server_locks_schema[] =
    "CREATE TABLE x(server TEXT, key TEXT, kind TEXT, slots INTEGER, holders INTEGER, waiters "
    "INTEGER, lease_expires_in REAL,"
    " held_by_pid INTEGER, error TEXT)";

const struct sq_table sq_tables[] = {
    {"dflock_locks", locks_schema, LOCKS_COLUMNS, 100000, take_locks, false},
    {"dflock_server_locks", server_locks_schema, 9, 1000000, sq_take_server_locks, true},
    {"dflock_servers", servers_schema, SERVERS_COLUMNS, 100000, take_servers, false},
};

const size_t sq_table_count = sizeof sq_tables / sizeof sq_tables[0];

/* ------------------------------------------------------------------ module */

struct table {
    sqlite3_vtab base;
    const struct sq_table_binding *binding;
};

struct cursor {
    sqlite3_vtab_cursor base;
    struct sq_snapshot *rows;
    size_t at;
};

static int table_connect(sqlite3 *db, void *binding, int argc, const char *const *argv,
                         sqlite3_vtab **out, char **error)
{
    (void)argc, (void)argv, (void)error;
    int rc = sqlite3_declare_vtab(db, ((const struct sq_table_binding *)binding)->table->schema);
    if (rc != SQLITE_OK)
        return rc;
    struct table *t = sqlite3_malloc(sizeof *t);
    if (!t)
        return SQLITE_NOMEM;
    *t = (struct table){.binding = binding};
    sqlite3_vtab_config(db, SQLITE_VTAB_DIRECTONLY);
    *out = &t->base;
    return SQLITE_OK;
}

static int table_disconnect(sqlite3_vtab *vtab)
{
    sqlite3_free(vtab);
    return SQLITE_OK;
}

static int table_best_index(sqlite3_vtab *vtab, sqlite3_index_info *info)
{
    info->estimatedRows = ((struct table *)vtab)->binding->table->rows_guess;
    info->estimatedCost = 10.0 * (double)info->estimatedRows;
    return SQLITE_OK;
}

static int table_open(sqlite3_vtab *vtab, sqlite3_vtab_cursor **out)
{
    struct cursor *c = sqlite3_malloc(sizeof *c);

    (void)vtab;
    if (!c)
        return SQLITE_NOMEM;
    *c = (struct cursor){.rows = NULL};
    *out = &c->base;
    return SQLITE_OK;
}

static int table_close(sqlite3_vtab_cursor *cursor)
{
    sq_snapshot_release(((struct cursor *)cursor)->rows);
    sqlite3_free(cursor);
    return SQLITE_OK;
}

static enum dfl_status take_rows(const struct sq_table_binding *b, struct sq_snapshot **out,
                                 struct dfl_error *err)
{
    struct sq_snapshot *rows = sq_snapshot_new(b->table->columns);

    if (!rows)
        return dfl_fail(err, DFL_NOMEM, "out of memory");
    enum dfl_status status = b->table->take(b->session, rows, err);
    if (status == DFL_OK && rows->failed)
        status = dfl_fail(err, DFL_NOMEM, "out of memory");
    if (status != DFL_OK) {
        sq_snapshot_release(rows);
        return status;
    }
    rows->taken_ms = dfl_clock().ms;
    *out = rows;
    return DFL_OK;
}

/* A join may start one scan for each of its outer rows: the servers are asked once for all of them.
 */
static enum dfl_status reuse_rows(const struct sq_table_binding *b, struct sq_snapshot **out,
                                  struct dfl_error *err)
{
    struct sq_snapshot **newest = &b->session->server_locks;

    if (!*newest || dfl_clock().ms - (*newest)->taken_ms >= REUSE_MS) {
        struct sq_snapshot *rows = NULL;
        enum dfl_status status = take_rows(b, &rows, err);
        if (status != DFL_OK)
            return status;
        sq_snapshot_release(*newest);
        *newest = rows;
    }
    *out = sq_snapshot_retain(*newest);
    return DFL_OK;
}

static int table_filter(sqlite3_vtab_cursor *cursor, int plan, const char *text, int argc,
                        sqlite3_value **argv)
{
    struct cursor *c = (struct cursor *)cursor;
    const struct sq_table_binding *b = ((struct table *)cursor->pVtab)->binding;
    struct sq_snapshot *rows = NULL;
    struct dfl_error error;

    (void)plan, (void)text, (void)argc, (void)argv;
    enum dfl_status status =
        b->table->reused ? reuse_rows(b, &rows, &error) : take_rows(b, &rows, &error);
    if (status != DFL_OK)
        return sq_raise_vtab(cursor->pVtab, &error);
    sq_snapshot_release(c->rows);
    c->rows = rows;
    c->at = 0;
    return SQLITE_OK;
}

static int table_next(sqlite3_vtab_cursor *cursor)
{
    ((struct cursor *)cursor)->at++;
    return SQLITE_OK;
}

static int table_eof(sqlite3_vtab_cursor *cursor)
{
    struct cursor *c = (struct cursor *)cursor;

    return !c->rows || c->at >= c->rows->rows;
}

static int table_column(sqlite3_vtab_cursor *cursor, sqlite3_context *context, int column)
{
    struct cursor *c = (struct cursor *)cursor;
    const struct sq_cell *cell = &c->rows->cells[c->at * c->rows->columns + (size_t)column];

    if (cell->type == SQ_INTEGER)
        sqlite3_result_int64(context, cell->value.integer);
    else if (cell->type == SQ_REAL)
        sqlite3_result_double(context, cell->value.real);
    else if (cell->type == SQ_TEXT)
        sqlite3_result_text(context, cell->value.text, -1, SQLITE_TRANSIENT);
    return SQLITE_OK;
}

static int table_rowid(sqlite3_vtab_cursor *cursor, sqlite3_int64 *rowid)
{
    *rowid = (sqlite3_int64)((struct cursor *)cursor)->at;
    return SQLITE_OK;
}

const sqlite3_module sq_table_module = {
    .xConnect = table_connect,
    .xDisconnect = table_disconnect,
    .xBestIndex = table_best_index,
    .xOpen = table_open,
    .xClose = table_close,
    .xFilter = table_filter,
    .xNext = table_next,
    .xEof = table_eof,
    .xColumn = table_column,
    .xRowid = table_rowid,
};
