/*
 * scarce_memory.h - memory that runs out where the fuzzer's bytes say so. The linker puts it in
 * front of the C library's malloc, calloc, realloc and strdup.
 */
#ifndef FUZZ_SCARCE_MEMORY_H
#define FUZZ_SCARCE_MEMORY_H

#include "input.h"

/* From here on some allocations succeed, then up to eight fail, then all succeed. */
void memory_runs_out(struct input *in);
void memory_is_back(void);

size_t memory_failed(void); /* how many allocations, ever */

#endif
