/*
 * scarce_memory.c - counts allocations, and lets those fail that memory_runs_out() has chosen.
 */
#include "scarce_memory.h"

#include <stdbool.h>

static unsigned good, bad; /* so many succeed, then so many fail */
static size_t failed;

void memory_runs_out(struct input *in)
{
    good = (unsigned)take_below(in, 32);
    bad = 1 + (unsigned)take_below(in, 8);
}

void memory_is_back(void)
{
    bad = 0;
}

size_t memory_failed(void)
{
    return failed;
}

static bool fails(void)
{
    if (bad == 0)
        return false;
    if (good > 0) {
        good--;
        return false;
    }
    bad--;
    failed++;
    return true;
}

/* The names are the linker's: --wrap in the Makefile. */
/* NOLINTBEGIN(bugprone-reserved-identifier) */
void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
char *__real_strdup(const char *text);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *old, size_t size);
char *__wrap_strdup(const char *text);

void *__wrap_malloc(size_t size)
{
    return fails() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return fails() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *old, size_t size)
{
    return fails() ? NULL : __real_realloc(old, size);
}

char *__wrap_strdup(const char *text)
{
    return fails() ? NULL : __real_strdup(text);
}
/* NOLINTEND(bugprone-reserved-identifier) */
