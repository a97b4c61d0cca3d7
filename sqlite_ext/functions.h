/*
 * functions.h - the table of SQL functions.
 */
#ifndef DFL_SQLITE_FUNCTIONS_H
#define DFL_SQLITE_FUNCTIONS_H

#include "arguments.h"

struct sq_function {
    const char *name;
    int min, max; /* arguments */
    enum dfl_status (*run)(struct sq_arguments *a, const struct sq_function *f);
    enum dfl_kind kind;
    bool must; /* the `lock` forms: an error unless granted, and the fence as the answer */
};

extern const struct sq_function sq_functions[];
extern const size_t sq_function_count;

/* Counts the arguments, runs f, raises what it failed with. */
void sq_function_call(const struct sq_function *f, struct sq_arguments *a);

#endif
