/*
 * timers.c - the binary heap of timers.h. Owns its array of pointers; never a timer, never a clock.
 */
#include "timers.h"

#include <assert.h>
#include <stdlib.h>

void dfl_timers_init(struct dfl_timers *ts)
{
    *ts = (struct dfl_timers){0};
}

void dfl_timers_free(struct dfl_timers *ts)
{
    for (size_t i = 0; i < ts->count; i++)
        ts->heap[i]->index = 0;
    free(ts->heap);
    *ts = (struct dfl_timers){0};
}

enum dfl_status dfl_timers_reserve(struct dfl_timers *ts, size_t n)
{
    if (n <= ts->cap)
        return DFL_OK;

    size_t cap = ts->cap ? ts->cap : 16;

    while (cap < n) {
        if (cap > SIZE_MAX / 2 / sizeof *ts->heap)
            return DFL_NOMEM;
        cap *= 2;
    }

    struct dfl_timer **heap = realloc(ts->heap, cap * sizeof *heap);

    if (!heap)
        return DFL_NOMEM;
    ts->heap = heap;
    ts->cap = cap;
    return DFL_OK;
}

static void put(struct dfl_timers *ts, size_t at, struct dfl_timer *timer)
{
    ts->heap[at] = timer;
    timer->index = at + 1;
}

static void sift_up(struct dfl_timers *ts, size_t at)
{
    struct dfl_timer *timer = ts->heap[at];

    while (at > 0) {
        size_t parent = (at - 1) / 2;

        if (ts->heap[parent]->at_ms <= timer->at_ms)
            break;
        put(ts, at, ts->heap[parent]);
        at = parent;
    }
    put(ts, at, timer);
}

static void sift_down(struct dfl_timers *ts, size_t at)
{
    struct dfl_timer *timer = ts->heap[at];

    for (;;) {
        size_t child = 2 * at + 1;

        if (child >= ts->count)
            break;
        if (child + 1 < ts->count && ts->heap[child + 1]->at_ms < ts->heap[child]->at_ms)
            child++;
        if (timer->at_ms <= ts->heap[child]->at_ms)
            break;
        put(ts, at, ts->heap[child]);
        at = child;
    }
    put(ts, at, timer);
}

void dfl_timer_set(struct dfl_timers *ts, struct dfl_timer *timer, int64_t at_ms)
{
    if (timer->index == 0) {
        assert(ts->count < ts->cap); /* dfl_timers_reserve comes first */
        put(ts, ts->count++, timer);
    }
    timer->at_ms = at_ms;
    sift_up(ts, timer->index - 1);
    sift_down(ts, timer->index - 1);
}

void dfl_timer_clear(struct dfl_timers *ts, struct dfl_timer *timer)
{
    if (timer->index == 0)
        return;

    size_t at = timer->index - 1;
    struct dfl_timer *last = ts->heap[--ts->count];

    timer->index = 0;
    if (last == timer)
        return;
    put(ts, at, last);
    sift_up(ts, at);
    sift_down(ts, last->index - 1);
}

int64_t dfl_timers_next(const struct dfl_timers *ts)
{
    return ts->count ? ts->heap[0]->at_ms : INT64_MAX;
}

struct dfl_timer *dfl_timers_pop(struct dfl_timers *ts, int64_t now_ms)
{
    if (ts->count == 0 || ts->heap[0]->at_ms > now_ms)
        return NULL;

    struct dfl_timer *timer = ts->heap[0];

    dfl_timer_clear(ts, timer);
    return timer;
}
