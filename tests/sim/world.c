/*
 * world.c - time, the queue of events, random numbers, the trace and the end of a schedule that found a fault. Owns the arena in
 * which everything else of a schedule lives. Knows no network and no engine.
 */
#include "sim.h"

#include "run.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ARENA ((size_t)64 << 20)
#define TRACE_LINES 3000 /* of the last events */
#define TRACE_WIDTH 220
#define EVENTS_MAX 100000
#define STEPS_MAX 400000 /* more is a loop that never ends */

struct event {
    int64_t at;
    uint64_t order;
    event_fn *fn;
    void *arg;
    uint64_t n;
};

int64_t sim_now;
bool sim_tracing;
struct profile profile;
struct counters counters;
jmp_buf run_end;

static uint64_t state[2];
static char *arena;
static size_t arena_used;
static struct event *heap;
static size_t heap_count;
static uint64_t orders, steps;
static char lines[TRACE_LINES][TRACE_WIDTH];
static uint64_t line_count;

/* ---------------------------------------------------------------- random */

static uint64_t mix(uint64_t *x)
{
    uint64_t z = (*x += UINT64_C(0x9e3779b97f4a7c15));

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

uint64_t rnd(void)
{
    uint64_t a = state[0], b = state[1], r = a + b;

    b ^= a;
    state[0] = ((a << 24) | (a >> 40)) ^ b ^ (b << 16);
    state[1] = (b << 37) | (b >> 27);
    return r;
}

int64_t rnd_range(int64_t from, int64_t to)
{
    return from + (int64_t)(rnd() % (uint64_t)(to - from + 1));
}

bool rnd_chance(int per_mille)
{
    return (int)(rnd() % 1000) < per_mille;
}

int64_t rnd_log(int64_t from, int64_t to)
{
    int64_t top = from;
    int steps_up = 0;

    while (top < to) {
        top *= 2;
        steps_up++;
    }
    top = from << rnd_range(0, steps_up);
    return top >= to ? rnd_range(to / 2 > from ? to / 2 : from, to) : rnd_range(top, top * 2 < to ? top * 2 : to);
}

/* ------------------------------------------------------------------ arena */

void *sim_new(size_t size)
{
    void *at;

    size = (size + 15) & ~(size_t)15;
    if (arena_used + size > ARENA) {
        sim_fault("progress", "the arena is full: something turns in a circle");
    }
    at = arena + arena_used;
    arena_used += size;
    memset(at, 0, size);
    return at;
}

/* ----------------------------------------------------------------- events */

static bool before(const struct event *a, const struct event *b)
{
    return a->at != b->at ? a->at < b->at : a->order < b->order;
}

void sim_at(int64_t at, event_fn *fn, void *arg, uint64_t n)
{
    struct event e = {at < sim_now ? sim_now : at, ++orders, fn, arg, n};
    size_t i = heap_count++;

    if (heap_count > EVENTS_MAX)
        sim_fault("progress", "more than %d events at once", EVENTS_MAX);
    while (i > 0 && before(&e, &heap[(i - 1) / 2])) {
        heap[i] = heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap[i] = e;
}

static struct event pop(void)
{
    struct event first = heap[0], e = heap[--heap_count];
    size_t i = 0, child;

    while ((child = 2 * i + 1) < heap_count) {
        if (child + 1 < heap_count && before(&heap[child + 1], &heap[child]))
            child++;
        if (!before(&heap[child], &e))
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = e;
    return first;
}

bool world_step(int64_t until)
{
    struct event e;

    if (heap_count == 0 || heap[0].at > until) {
        sim_now = until;
        return false;
    }
    e = pop();
    sim_now = e.at;
    e.fn(e.arg, e.n);
    counters.events++;
    if (++steps > STEPS_MAX)
        sim_fault("progress", "more than %d events: something turns in a circle", STEPS_MAX);
    return true;
}

void world_begin(uint64_t seed)
{
    uint64_t x = seed * UINT64_C(0x2545f4914f6cdd1d) + 1;

    if (!arena) {
        arena = malloc(ARENA);
        heap = malloc((EVENTS_MAX + 1) * sizeof *heap);
    }
    if (!arena || !heap)
        abort();
    state[0] = mix(&x);
    state[1] = mix(&x);
    arena_used = 0;
    heap_count = 0;
    orders = steps = 0;
    line_count = 0;
    sim_now = 0;
}

/* ------------------------------------------------------------------ clocks */

int64_t clock_us(const struct sim_clock *c)
{
    int64_t t = (c->since_us ? c->since_us : sim_now) - c->stopped_us;

    return c->base_ms * 1000 + t + t * c->ppm / 1000000;
}

struct dfl_now clock_now(const struct sim_clock *c, int64_t wall_skew_ms)
{
    int64_t us = clock_us(c);

    return (struct dfl_now){us / 1000, us, INT64_C(1790000000000) + sim_now / 1000 + wall_skew_ms};
}

int64_t clock_when(const struct sim_clock *c, int64_t ms)
{
    int64_t left = (ms - c->base_ms) * 1000, t = left * 1000000 / (1000000 + c->ppm) - 2;

    while (t + t * c->ppm / 1000000 < left)
        t++;
    return t + c->stopped_us;
}

void clock_stop(struct sim_clock *c)
{
    if (c->since_us == 0)
        c->since_us = sim_now;
}

void clock_go_on(struct sim_clock *c)
{
    if (c->since_us)
        c->stopped_us += sim_now - c->since_us;
    c->since_us = 0;
}

/* ----------------------------------------------------------------- outages */

void outage_add(struct outage *o, int64_t until)
{
    int64_t from = o->until_us > sim_now ? o->until_us : sim_now;

    if (until <= from)
        return;
    o->total_us += until - from;
    o->until_us = until;
}

int64_t outage_so_far(const struct outage *o)
{
    return o->total_us - (o->until_us > sim_now ? o->until_us - sim_now : 0);
}

/* ------------------------------------------------------------------- trace */

void sim_trace(const char *format, ...)
{
    char *line = lines[line_count++ % TRACE_LINES];
    int n = snprintf(line, TRACE_WIDTH, "%9.3f  ", (double)sim_now / 1e6);
    va_list ap;

    va_start(ap, format);
    vsnprintf(line + n, (size_t)(TRACE_WIDTH - n), format, ap);
    va_end(ap);
}

void world_print_trace(void)
{
    uint64_t from = line_count > TRACE_LINES ? line_count - TRACE_LINES : 0;

    for (uint64_t i = from; i < line_count; i++)
        printf("  %s\n", lines[i % TRACE_LINES]);
}

char run_finder[64], run_what[512];

void sim_fault(const char *finder, const char *format, ...)
{
    va_list ap;

    snprintf(run_finder, sizeof run_finder, "%s", finder);
    va_start(ap, format);
    vsnprintf(run_what, sizeof run_what, format, ap);
    va_end(ap);
    TRACE("FAULT (%s): %s", run_finder, run_what);
    longjmp(run_end, 1);
}
