/*
 * extension.c - the entry point of the SQLite extension, and the registration of its functions and
 * tables.
 *
 *   .load ./dflockd              in the sqlite3 shell
 *   SELECT dflock_lock('job');   one lock, until dflock_release('job') or the connection's end
 *
 * Everything is SQLITE_DIRECTONLY: a database file cannot call it from a view, a trigger or a
 * constraint.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include <sqlite3ext.h>
SQLITE_EXTENSION_INIT1

#include "functions.h"
#include "guard.h"
#include "process.h"
#include "session.h"
#include "tables.h"

#define OLDEST_SQLITE 3031000 /* older ones do not know SQLITE_VTAB_DIRECTONLY */

/* What one registration is called with; all of one connection in one block, which the last
 * destructor frees. */
struct binding {
    struct sq_session *session;
    const struct sq_function *function; /* or */
    struct sq_table_binding table;
    struct registration *block;
};

struct registration {
    unsigned users;
    sqlite3 *db;
    struct registration *next; /* of another connection; the gate guards the list */
    struct binding bindings[];
};

static struct registration *registrations;

static void enlist(struct registration *block)
{
    sq_process_gate_lock();
    block->next = registrations;
    registrations = block;
    sq_process_gate_unlock();
}

static void let_go(struct registration *block)
{
    if (--block->users > 0)
        return;
    sq_process_gate_lock();
    struct registration **at = &registrations;
    while (*at != block)
        at = &(*at)->next;
    *at = block->next;
    sq_process_gate_unlock();
    free(block);
}

static bool is_registered(const sqlite3 *db)
{
    sq_process_gate_lock();
    const struct registration *at = registrations;
    while (at && at->db != db)
        at = at->next;
    sq_process_gate_unlock();
    return at != NULL;
}

static void call(sqlite3_context *context, int argc, sqlite3_value **argv)
{
    const struct binding *b = sqlite3_user_data(context);
    struct sq_arguments arguments;

    arguments.context = context;
    arguments.session = b->session;
    arguments.function = b->function->name;
    arguments.count = argc;
    arguments.values = argv;
    sq_function_call(b->function, &arguments);
}

static void destroy_binding(void *binding)
{
    struct binding *b = binding;
    struct registration *block = b->block;

    sq_session_release(b->session);
    let_go(block);
}

static void destroy_table_binding(void *table)
{
    destroy_binding((char *)table - offsetof(struct binding, table));
}

/* --------------------------------------------------------------- registering */

static int register_function(sqlite3 *db, struct binding *b)
{
    return sqlite3_create_function_v2(db, b->function->name, -1, SQLITE_UTF8 | SQLITE_DIRECTONLY, b,
                                      call, NULL, NULL, destroy_binding);
}

static int register_table(sqlite3 *db, struct binding *b)
{
    return sqlite3_create_module_v2(db, b->table.table->name, &sq_table_module, &b->table,
                                    destroy_table_binding);
}

/* SQLite calls the destructor also when a registration fails, so each takes its share before it is
 * tried. */
static struct binding *take(struct registration *block, size_t i, struct sq_session *s)
{
    struct binding *b = &block->bindings[i];

    *b = (struct binding){.session = s, .block = block};
    block->users++;
    sq_session_retain(s);
    return b;
}

static int register_all(sqlite3 *db, struct registration *block, struct sq_session *s)
{
    size_t n = 0;
    int rc = SQLITE_OK;

    for (size_t i = 0; i < sq_function_count && rc == SQLITE_OK; i++) {
        struct binding *b = take(block, n++, s);
        b->function = &sq_functions[i];
        rc = register_function(db, b);
    }
    for (size_t i = 0; i < sq_table_count && rc == SQLITE_OK; i++) {
        struct binding *b = take(block, n++, s);
        b->table = (struct sq_table_binding){&sq_tables[i], s};
        rc = register_table(db, b);
    }
    if (rc == SQLITE_OK) {
        sq_session_retain(s);
        rc = sqlite3_create_module_v2(db, SQ_GUARD_MODULE, &sq_guard_module, s, sq_session_release);
    }
    return rc;
}

/* Takes back what has been registered: SQLite would unload us and keep the functions. */
static void unregister_all(sqlite3 *db)
{
    for (size_t i = 0; i < sq_function_count; i++)
        sqlite3_create_function_v2(db, sq_functions[i].name, -1, SQLITE_UTF8, NULL, NULL, NULL,
                                   NULL, NULL);
    for (size_t i = 0; i < sq_table_count; i++)
        sqlite3_create_module_v2(db, sq_tables[i].name, NULL, NULL, NULL);
    sqlite3_create_module_v2(db, SQ_GUARD_MODULE, NULL, NULL, NULL);
}

static int start_session(sqlite3 *db)
{
    size_t count = sq_function_count + sq_table_count;
    struct registration *block = calloc(1, sizeof *block + count * sizeof block->bindings[0]);
    struct sq_session *s = block ? sq_session_new(db) : NULL;

    if (!s) {
        free(block);
        return SQLITE_NOMEM;
    }
    /* Our own share of both, so that a failing first registration does not free them under us. */
    block->users++;
    block->db = db;
    enlist(block);
    sq_session_retain(s);
    int rc = register_all(db, block, s);
    if (rc == SQLITE_OK)
        sq_guard_connect(s);
    else
        unregister_all(db);
    let_go(block);
    sq_session_release(s);
    return rc;
}

/* --------------------------------------------------------------- entry point */

/*
 * Loaded again: the session that is there stays, with all it holds. Another file's shows by its
 * functions; who cannot ask for want of memory or in an interrupt must not register over them.
 */
static int is_loaded(sqlite3 *db, bool *loaded)
{
    sqlite3_stmt *statement = NULL;

    *loaded = is_registered(db);
    if (*loaded)
        return SQLITE_OK;
    int rc = sqlite3_prepare_v2(db, "SELECT dflock_version()", -1, &statement, NULL);
    /* What an authorizer does not let us call is there. */
    *loaded =
        rc == SQLITE_OK || strstr(sqlite3_errmsg(db), "not authorized to use function") != NULL;
    sqlite3_finalize(statement);
    return rc == SQLITE_NOMEM || rc == SQLITE_INTERRUPT ? rc : SQLITE_OK;
}

/*
 * The routines of SQLite are one pointer for the whole library. A process with two SQLites in it
 * (an application's own, and its Python's, say) gives two: calling the one with the other's objects
 * crashes, so only the first is served.
 */
static bool adopt_routines(const sqlite3_api_routines *routines)
{
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

    pthread_mutex_lock(&mutex);
    if (!sqlite3_api)
        sqlite3_api = routines;
    bool ours = sqlite3_api == routines;
    pthread_mutex_unlock(&mutex);
    return ours;
}

__attribute__((visibility("default"))) int sqlite3_dflockd_init(
    sqlite3 *db, char **error, const sqlite3_api_routines *routines);

int sqlite3_dflockd_init(sqlite3 *db, char **error, const sqlite3_api_routines *routines)
{
    if (routines->libversion_number() < OLDEST_SQLITE) {
        *error = routines->mprintf("dflockd needs SQLite 3.31 or later, this is %s",
                                   routines->libversion());
        return SQLITE_ERROR;
    }
    if (!adopt_routines(routines)) {
        *error = routines->mprintf("dflockd is in use by another SQLite library of this process; "
                                   "load it through one of them only");
        return SQLITE_ERROR;
    }
    bool loaded = false;
    int rc = is_loaded(db, &loaded);
    if (rc == SQLITE_OK && !loaded)
        rc = start_session(db);
    if (rc != SQLITE_OK) {
        *error = sqlite3_mprintf("dflockd could not be registered: %s", sqlite3_errstr(rc));
        return rc;
    }
    return SQLITE_OK_LOAD_PERMANENTLY;
}
