/*
 * main.c - runs schedules by their seeds and counts what was seen. A failing one prints itself and, replayed, the trace of its last events;
 * everything of it comes from its seed, so it replays exactly.
 */
#include "sim.h"

#include "../../core/planted.h"
#include "run.h"

#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

int dfl_planted;

/* --------------------------------------------------- memory that is not given back */

static int64_t blocks;

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *at, size_t size);
char *__real_strdup(const char *s);
void __real_free(void *at);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *at, size_t size);
char *__wrap_strdup(const char *s);
void __wrap_free(void *at);

void *__wrap_malloc(size_t size)
{
    blocks++;
    return __real_malloc(size);
}

void *__wrap_calloc(size_t n, size_t size)
{
    blocks++;
    return __real_calloc(n, size);
}

void *__wrap_realloc(void *at, size_t size)
{
    blocks += at == NULL;
    return __real_realloc(at, size);
}

char *__wrap_strdup(const char *s)
{
    blocks++;
    return __real_strdup(s);
}

void __wrap_free(void *at)
{
    blocks -= at != NULL;
    __real_free(at);
}

/* ----------------------------------------------------------------- schedules */

static volatile uint64_t current;

static void crashed(int number)
{
    printf("seed %llu FAILED, found by \"crash\": signal %d\n", (unsigned long long)current, number);
    if (sim_tracing)
        world_print_trace();
    fflush(stdout);
    signal(number, SIG_DFL);
    raise(number);
}

static void run_schedule(uint64_t seed)
{
    int64_t before;

    current = seed;
    world_begin(seed);
    script_profile(seed);
    net_begin();
    servers_begin();
    hosts_begin();
    before = blocks;
    script_begin();
    while (!script_over()) {
        if (!world_step(sim_now + 10 * SECOND))
            continue;
        check_all();
    }
    script_settle();
    server_free_all();
    if (blocks != before)
        sim_fault("memory", "%lld blocks of memory are not given back", (long long)(blocks - before));
    counters.schedules++;
}

static bool schedule_fails(uint64_t seed)
{
    if (setjmp(run_end) != 0)
        return true;
    run_schedule(seed);
    return false;
}

static void print_counters(double seconds)
{
    const struct counters *c = &counters;

    printf("%llu schedules, %llu events, %llu calls, %llu grants, %llu holds lost in %.1f s (%.0f schedules/s)\n",
           (unsigned long long)c->schedules, (unsigned long long)c->events, (unsigned long long)c->calls,
           (unsigned long long)c->grants, (unsigned long long)c->holds_lost, seconds, (double)c->schedules / seconds);
    printf("servers: %llu bundled, %llu v1.10, %llu v2, %llu 0.5.0\n", (unsigned long long)c->by_personality[BUNDLED],
           (unsigned long long)c->by_personality[V1_10], (unsigned long long)c->by_personality[V2],
           (unsigned long long)c->by_personality[V0_5]);
    printf("a yes was checked %llu times; allowed though the server had given up: (a) connection cut %llu, (b) released by "
           "token %llu (and %llu while the renewal's answer was late), (c) server process ended %llu; is_held and assert_held were "
           "called %llu times\n",
           (unsigned long long)c->yes_checks, (unsigned long long)c->allowed_cut, (unsigned long long)c->allowed_release,
           (unsigned long long)c->allowed_late_release, (unsigned long long)c->allowed_process, (unsigned long long)c->asked);
    printf("leases that ran out: client dead %llu, stopped or late %llu, nobody called wait %llu, waiting connection closed "
           "without auto-release %llu, connection cut without auto-release %llu\n",
           (unsigned long long)c->expired_dead, (unsigned long long)c->expired_late, (unsigned long long)c->expired_unwanted,
           (unsigned long long)c->expired_left, (unsigned long long)c->expired_cut);
    printf("busy %llu (of them waits that kept their place %llu), cancelled %llu, errors %llu\n", (unsigned long long)c->busy,
           (unsigned long long)c->waits_kept, (unsigned long long)c->cancelled, (unsigned long long)c->errors);
}

static volatile sig_atomic_t stop;

static void asked_to_stop(int number)
{
    (void)number;
    stop = 1;
}

static int usage(void)
{
    fprintf(stderr, "usage: sim [--seeds N] [--from SEED] [--seed SEED] [--trace] [--plant N] [--keep-going]\n");
    return 2;
}

static double seconds_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void report(uint64_t seed, bool with_trace)
{
    printf("seed %llu FAILED, found by \"%s\": %s\n", (unsigned long long)seed, run_finder, run_what);
    if (!with_trace)
        return;
    sim_tracing = true;
    if (!schedule_fails(seed))
        printf("  (it did not fail again: something does not come from the seed)\n");
    else
        world_print_trace();
    printf("replay: sim --seed %llu --trace%s\n", (unsigned long long)seed, dfl_planted ? " --plant as above" : "");
}

int main(int argc, char **argv)
{
    uint64_t from = 1, count = 1000, failures = 0;
    bool keep_going = false, show = false, one = false;
    double began = seconds_now();

    for (int i = 1; i < argc; i++) {
        bool more = i + 1 < argc;

        if (strcmp(argv[i], "--seeds") == 0 && more)
            count = strtoull(argv[++i], NULL, 10);
        else if (strcmp(argv[i], "--from") == 0 && more)
            from = strtoull(argv[++i], NULL, 10);
        else if (strcmp(argv[i], "--seed") == 0 && more)
            from = strtoull(argv[++i], NULL, 10), count = 1, one = true;
        else if (strcmp(argv[i], "--plant") == 0 && more)
            dfl_planted = atoi(argv[++i]);
        else if (strcmp(argv[i], "--trace") == 0)
            show = true;
        else if (strcmp(argv[i], "--keep-going") == 0)
            keep_going = true;
        else
            return usage();
    }
    sim_tracing = show && one;
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGSEGV, crashed);
    signal(SIGINT, asked_to_stop); /* what was counted so far is printed */
    signal(SIGTERM, asked_to_stop);
    signal(SIGABRT, crashed);
    for (uint64_t seed = from; seed < from + count && !stop; seed++) {
        if (!schedule_fails(seed))
            continue;
        failures++;
        report(seed, !keep_going);
        if (!keep_going)
            return 1;
    }
    if (show && one)
        world_print_trace();
    print_counters(seconds_now() - began);
    if (failures)
        printf("%llu seeds failed\n", (unsigned long long)failures);
    return failures != 0;
}
