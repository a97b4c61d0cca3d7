/*
 * planted.c - faults that memcheck must find, in a library of our extension's name: a read behind the end, a read of freed memory, a
 * branch on what was never written, a lost block. An extension for SQLite; with PLANTED_PG a module for PostgreSQL.
 */
#include <stdlib.h>
#include <string.h>

#ifdef PLANTED_PG
#include "postgres.h"

#include "fmgr.h"

PG_MODULE_MAGIC;
PG_FUNCTION_INFO_V1(planted_faults);
#else
#include <sqlite3ext.h>
SQLITE_EXTENSION_INIT1
#endif

static volatile int sink; /* keeps the compiler from seeing that nothing comes of it */

__attribute__((noinline)) static void lose(void)
{
    char *volatile lost;

    for (int i = 0; i < 10; i++) { /* an address may stay behind somewhere, ten do not */
        lost = malloc(77);
        memset(lost, 1, 77);
    }
    lost = NULL;
}

__attribute__((noinline)) static void misuse(void)
{
    char *volatile block = malloc(16);

    if (block[5])
        sink++;
    sink += block[16];
    free(block);
    sink += block[3];
}

#ifdef PLANTED_PG
Datum planted_faults(PG_FUNCTION_ARGS)
{
    lose();
    misuse();
    PG_RETURN_VOID();
}
#else
__attribute__((visibility("default"))) int sqlite3_dflockd_init(sqlite3 *db, char **error, const sqlite3_api_routines *api)
{
    (void)db;
    (void)error;
    SQLITE_EXTENSION_INIT2(api);
    lose();
    misuse();
    return SQLITE_OK;
}
#endif
