/*
 * scarce.c - a C program whose memory runs out: loads the extension and calls what it has, while
 * one allocation, or every one from a certain one on, fails. What reads JSON is called with memory:
 * json-c does not bear a lack of it.
 *
 *   scarce EXTENSION N once|always ours|all
 *
 * N counts the allocations that the extension makes itself (ours), or the whole process (all), from
 * before it is loaded. Prints what each statement said, a line each: "ok VALUE" or "CODE MESSAGE",
 * then how many allocations failed; and after the first failure how many of the extension's
 * descriptors a child has that is forked then. Memory is back before the connection is closed; then
 * it waits for the end of its input, so that locks which a close forgot are still there to be seen.
 */
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <sqlite3.h>

static atomic_bool scarce;
static atomic_long left, failed;
static bool always, everywhere;
static uintptr_t begin, end; /* of the extension's code */

/* Memory is asked for before a checker of threads has begun to look. */
#define UNCHECKED __attribute__((no_sanitize("thread")))

UNCHECKED static bool fails(const void *caller)
{
    uintptr_t at = (uintptr_t)caller;

    if (!atomic_load(&scarce) || (!everywhere && (at < begin || at >= end)))
        return false;
    long n = atomic_fetch_sub(&left, 1);
    if (n > 1 || (n < 1 && !always))
        return false;
    atomic_fetch_add(&failed, 1);
    errno = ENOMEM;
    return true;
}

/* Called by everybody in the process, like the functions that they stand before. */
#define EVERYBODYS __attribute__((visibility("default")))
EVERYBODYS void *malloc(size_t size);
EVERYBODYS void *calloc(size_t count, size_t size);
EVERYBODYS void *realloc(void *old, size_t size);
EVERYBODYS char *strdup(const char *text);

/* The next definition of a function behind this program's own: the C library's, or a checker's. */
UNCHECKED static void *next(const char *name)
{
    void *found = dlsym(RTLD_NEXT, name);

    if (!found)
        abort();
    return found;
}

UNCHECKED void *malloc(size_t size)
{
    static void *(*real)(size_t);

    if (!real)
        real = (void *(*)(size_t))next("malloc");
    return fails(__builtin_return_address(0)) ? NULL : real(size);
}

UNCHECKED void *realloc(void *old, size_t size)
{
    static void *(*real)(void *, size_t);

    if (!real)
        real = (void *(*)(void *, size_t))next("realloc");
    return fails(__builtin_return_address(0)) ? NULL : real(old, size);
}

UNCHECKED void *calloc(size_t count, size_t size)
{
    static void *(*real)(size_t, size_t);

    if (!real)
        real = (void *(*)(size_t, size_t))next("calloc");
    return fails(__builtin_return_address(0)) ? NULL : real(count, size);
}

UNCHECKED char *strdup(const char *text)
{
    static char *(*real)(const char *);

    if (!real)
        real = (char *(*)(const char *))next("strdup");
    return fails(__builtin_return_address(0)) ? NULL : real(text);
}

static int find_code(struct dl_phdr_info *info, size_t size, void *extension)
{
    (void)size;
    if (!strstr(info->dlpi_name, extension))
        return 0;
    begin = end = info->dlpi_addr;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        uintptr_t last = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr + info->dlpi_phdr[i].p_memsz;
        if (info->dlpi_phdr[i].p_type == PT_LOAD && last > end)
            end = last;
    }
    return 1;
}

static bool reads_json(const char *sql)
{
    return strstr(sql, "server_locks") || strstr(sql, "dflock_stats") || strstr(sql, "dflock_ping");
}

/* Sockets, and sets of descriptors to wait for: a child has none of its own yet. */
static int kept_descriptors(void)
{
    DIR *dir = opendir("/proc/self/fd");
    int kept = 0;

    for (struct dirent *at = dir ? readdir(dir) : NULL; at; at = readdir(dir)) {
        char what[64];
        ssize_t len = readlinkat(dirfd(dir), at->d_name, what, sizeof what - 1);

        what[len > 0 ? len : 0] = '\0';
        kept += strncmp(what, "socket:", 7) == 0 || strcmp(what, "anon_inode:[eventpoll]") == 0;
    }
    closedir(dir);
    return kept;
}

static int kept_by_a_child(void)
{
    int status = 0;
    pid_t child = fork();

    if (child == 0)
        _exit(kept_descriptors());
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void run(sqlite3 *db, const char *sql)
{
    sqlite3_stmt *statement = NULL;
    bool before = atomic_load(&scarce);
    static bool failed_before;

    atomic_store(&scarce, before && !reads_json(sql));
    int rc = sqlite3_prepare_v2(db, sql, -1, &statement, NULL);

    if (rc == SQLITE_OK)
        rc = sqlite3_step(statement);
    if (rc == SQLITE_ROW) {
        const char *value = (const char *)sqlite3_column_text(statement, 0);
        printf("%s -> ok %s\n", sql, value ? value : "NULL");
        while ((rc = sqlite3_step(statement)) == SQLITE_ROW)
            ;
    }
    if (rc != SQLITE_DONE) {
        printf("%s -> %d %s\n", sql, rc, sqlite3_errmsg(db));
        atomic_store(&scarce, false);
        if (!failed_before)
            printf("a child keeps %d\n", kept_by_a_child());
        failed_before = true;
    }
    sqlite3_finalize(statement);
    atomic_store(&scarce, before);
}

static const char *const script[] = {
    "SELECT dflock_version()",
    "SELECT dflock_config('lease_ttl', 60)",
    "SELECT dflock_config('servers')",
    "SELECT dflock_acquire('a', 1)",
    "SELECT dflock_lock('b', 1) > 0",
    "SELECT dflock_sem_acquire('s', 2, 1)",
    "SELECT dflock_sem_lock('s', 2, 1) > 0",
    "SELECT dflock_acquire('busy', 0.001)",
    "SELECT dflock_enqueue('busy')",
    "SELECT dflock_wait('busy', 0.001)",
    "SELECT dflock_cancel('busy')",
    "SELECT dflock_enqueue('c')",
    "SELECT dflock_wait('c', 0)",
    "SELECT dflock_is_held('a')",
    "SELECT dflock_assert_held('a', 1)",
    "SELECT dflock_renew('b', 40)",
    "SELECT length(dflock_token('a'))",
    "SELECT dflock_fence('a') > 0",
    "SELECT count(*) FROM dflock_locks",
    "SELECT count(*) FROM dflock_servers",
    "SELECT count(*) FROM dflock_server_locks WHERE error IS NULL",
    "SELECT json_valid(dflock_stats())",
    "SELECT json_valid(dflock_ping())",
    "SELECT dflock_release('b', dflock_token('b'))",
    "SELECT dflock_config('servers', dflock_config('servers'))",
    "CREATE TABLE t(x)",
    "INSERT INTO t SELECT dflock_acquire('d')", /* the files are looked at first */
    "SELECT dflock_release('d')",
    "SELECT dflock_sem_release('s')",
};

int main(int argc, char **argv)
{
    sqlite3 *db;
    char *error = NULL, byte;

    if (argc != 5 || sqlite3_open(":memory:", &db) != SQLITE_OK)
        return 2;
    always = strcmp(argv[3], "always") == 0;
    everywhere = strcmp(argv[4], "all") == 0;
    setvbuf(stdout, NULL, _IOLBF, 1 << 16);
    sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 1, NULL);
    /* Mapped, not yet loaded: its place is known before it makes its first step. */
    if (!dlopen(argv[1], RTLD_NOW) || dl_iterate_phdr(find_code, argv[1]) != 1)
        return 2;
    atomic_store(&left, atol(argv[2]));
    atomic_store(&scarce, true);
    int rc = sqlite3_load_extension(db, argv[1], NULL, &error);
    printf("load -> %d %s\n", rc, error ? error : "");
    sqlite3_free(error);
    for (size_t i = 0; rc == SQLITE_OK && i < sizeof script / sizeof script[0]; i++)
        run(db, script[i]);
    atomic_store(&scarce, false);
    printf("failed %ld of %ld\n", atomic_load(&failed), atol(argv[2]) - atomic_load(&left));
    if (rc == SQLITE_OK) {
        run(db, "SELECT group_concat(key || ' ' || kind || ' ' || state) FROM dflock_locks");
        run(db, "SELECT dflock_is_held('a')");
        run(db, "SELECT dflock_acquire('afterwards', 1)");
    }
    printf("close -> %d\n", sqlite3_close(db));
    while (read(0, &byte, 1) > 0)
        ;
    return 0;
}
