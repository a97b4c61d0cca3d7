/*
 * old_sqlite.c - loads the extension as a SQLite of a given version would, and prints what it answers.
 *
 *   old_sqlite EXTENSION VERSION_NUMBER
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#include <sqlite3.h>
#include <sqlite3ext.h>
#undef sqlite3_mprintf
#undef sqlite3_free
#undef sqlite3_libversion

static int version;

static int version_number(void)
{
    return version;
}

int main(int argc, char **argv)
{
    sqlite3_api_routines routines = {0};
    char *error = NULL;
    int (*entry)(sqlite3 *db, char **error, const sqlite3_api_routines *routines);
    void *library = argc == 3 ? dlopen(argv[1], RTLD_NOW) : NULL;

    if (!library) {
        fprintf(stderr, "%s\n", argc == 3 ? dlerror() : "usage: old_sqlite EXTENSION VERSION");
        return 2;
    }
    *(void **)&entry = dlsym(library, "sqlite3_dflockd_init");
    version = atoi(argv[2]);
    routines.libversion_number = version_number;
    routines.libversion = sqlite3_libversion;
    routines.mprintf = sqlite3_mprintf;
    int rc = entry(NULL, &error, &routines);
    printf("%d %s\n", rc, error ? error : "");
    sqlite3_free(error);
    return 0;
}
