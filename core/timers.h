/*
 * timers.h - a heap of deadlines whose elements know their place in it.
 *
 * Owns only its array of pointers; the timers live inside the things they time. Setting, moving and
 * removing cost O(log n). Knows no clock: the times are whatever the caller says.
 */
#ifndef DFL_TIMERS_H
#define DFL_TIMERS_H

#include "dflockd.h"

struct dfl_timer {
    int64_t at_ms; /* monotonic */
    size_t index;  /* place in the heap + 1; 0 = not set */
    void (*fire)(struct dfl_timer *timer, struct dfl_now now); /* already removed when called */
};

struct dfl_timers {
    struct dfl_timer **heap;
    size_t count, cap;
};

void dfl_timers_init(struct dfl_timers *ts);
void dfl_timers_free(struct dfl_timers *ts); /* the timers themselves are the callers' */

/*
 * Makes room for n timers in all, so that setting one of them cannot fail. Whoever creates a thing
 * with timers reserves for it first. DFL_OK or DFL_NOMEM.
 */
enum dfl_status dfl_timers_reserve(struct dfl_timers *ts, size_t n);

/* Sets or moves a timer. Room has been reserved. Equal times fire in no particular order. */
void dfl_timer_set(struct dfl_timers *ts, struct dfl_timer *timer, int64_t at_ms);
void dfl_timer_clear(struct dfl_timers *ts, struct dfl_timer *timer); /* not set: does nothing */

/* The earliest time, or INT64_MAX. */
int64_t dfl_timers_next(const struct dfl_timers *ts);

/* Removes and returns the earliest timer that is due (at_ms <= now_ms), or NULL. */
struct dfl_timer *dfl_timers_pop(struct dfl_timers *ts, int64_t now_ms);

#endif
