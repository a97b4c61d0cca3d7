/*
 * threads.c - a C program as applications write them: a connection per thread without SQLite's mutexes, all contending for one key.
 *
 *   threads EXTENSION THREADS TURNS
 *
 * Prints the sum of all turns, which a lost lock would make smaller, and exits while one more thread still waits.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include <sqlite3.h>

static const char *extension;
static int turns;
static volatile long counter; /* guarded by the lock alone */

static void fail(sqlite3 *db, const char *what)
{
    fprintf(stderr, "%s: %s\n", what, sqlite3_errmsg(db));
    exit(1);
}

static sqlite3 *open_database(void)
{
    sqlite3 *db;
    int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX;

    if (sqlite3_open_v2(":memory:", &db, flags, NULL) != SQLITE_OK)
        fail(db, "open");
    sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 1, NULL);
    if (sqlite3_load_extension(db, extension, NULL, NULL) != SQLITE_OK)
        fail(db, "load");
    return db;
}

static void run(sqlite3 *db, const char *sql)
{
    if (sqlite3_exec(db, sql, NULL, NULL, NULL) != SQLITE_OK)
        fail(db, sql);
}

static void *work(void *unused)
{
    sqlite3 *db = open_database();

    (void)unused;
    for (int i = 0; i < turns; i++) {
        run(db, "SELECT dflock_lock('k', 60)");
        long seen = counter;
        if (i % 16 == 0)
            run(db, "SELECT dflock_assert_held('k', 1)");
        counter = seen + 1;
        run(db, "SELECT dflock_release('k')");
    }
    if (sqlite3_close(db) != SQLITE_OK)
        fail(db, "close");
    return NULL;
}

static void *wait_for_ever(void *unused)
{
    sqlite3 *db = open_database();

    (void)unused;
    sqlite3_exec(db, "SELECT dflock_lock('taken', 9e999)", NULL, NULL, NULL);
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t threads[64], last;
    int count = argc == 4 ? atoi(argv[2]) : 0;

    if (count < 1 || count > 64)
        return 2;
    extension = argv[1];
    turns = atoi(argv[3]);
    for (int i = 0; i < count; i++)
        pthread_create(&threads[i], NULL, work, NULL);
    for (int i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    printf("%ld\n", counter);
    run(open_database(), "SELECT dflock_lock('taken', 0, 600)");
    pthread_create(&last, NULL, wait_for_ever, NULL);
    pthread_detach(last);
    return 0;
}
