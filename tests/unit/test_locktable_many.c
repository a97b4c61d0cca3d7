/* The lock table with very many keys: a walk over all of them, and what each costs. */
#include "lockbench.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

struct seen {
    size_t held, idle, waiting;
    struct lock_view last;
};

static void see(void *arg, const struct lock_view *view)
{
    struct seen *s = arg;

    s->held += view->holders > 0;
    s->idle += view->idle;
    s->waiting += view->waiters;
    s->last = *view;
}

static void test_walk(void **state)
{
    struct bench b;
    struct seen s = {0};
    struct lock_given g;
    size_t cursor = 0;
    char key[32];

    (void)state;
    bench_begin(&b);
    struct lock_owner *one = bench_owner(&b, 77);

    assert_int_equal(bench_acquire(&b, one, "k", 1, 0, NULL), DFL_OK);
    assert_int_equal(bench_acquire(&b, bench_owner(&b, 2), "k", 1, 9, NULL), DFL_PENDING);
    b.now += 1000;
    while (locktable_walk(b.t, &cursor, b.now, see, &s))
        ;
    assert_int_equal(s.held, 1);
    assert_int_equal(s.waiting, 1);
    assert_int_equal(s.last.owner_id, 77);
    assert_int_equal(s.last.lease_left_ms, 9000);

    /* 1000 keys, half of them idle, seen once each though 5000 more come meanwhile */
    for (int i = 0; i < 1000; i++) {
        snprintf(key, sizeof key, "a%d", i);
        assert_int_equal(bench_acquire(&b, one, key, 1, 0, &g), DFL_OK);
        if (i % 2)
            assert_int_equal(bench_release(&b, key, &g), DFL_OK);
    }
    s = (struct seen){0};
    cursor = 0;
    unsigned freeze = locktable_freeze(b.t);

    for (int i = 0; locktable_walk(b.t, &cursor, b.now, see, &s); i++) {
        snprintf(key, sizeof key, "b%d", i);
        bench_acquire(&b, one, key, 2, 0, NULL);
    }
    assert_true(locktable_is_frozen(b.t, freeze));
    locktable_thaw(b.t, freeze);
    assert_int_equal(s.idle, 500);
    assert_true(s.held >= 501);
    locktable_free(b.t);
}

#define MANY 1000000

static double seconds(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static long resident(void)
{
    long pages = 0, all = 0;
    FILE *f = fopen("/proc/self/statm", "r");

    assert_non_null(f);
    assert_int_equal(fscanf(f, "%ld %ld", &all, &pages), 2);
    fclose(f);
    return pages * 4096;
}

static void test_memory_of_a_million_keys(void **state)
{
    struct bench b;
    char key[32];
    double worst = 0, before, from;
    long rss;

    (void)state;
    bench_begin(&b);
    struct lock_owner *one = bench_owner(&b, 1);
    size_t empty = locktable_bytes(b.t);

    rss = resident();
    from = seconds();
    for (int i = 0; i < MANY; i++) {
        snprintf(key, sizeof key, "key-%016d", i);
        assert_int_equal(strlen(key), 20);
        before = seconds();
        assert_int_equal(bench_acquire(&b, one, key, 1, 0, NULL), DFL_OK);
        before = seconds() - before;
        worst = before > worst ? before : worst;
    }

    double own = (double)(locktable_bytes(b.t) - empty) / MANY;

    print_message("a million keys: %.1f bytes each by own account, %.1f of RSS; %.2f us each, "
                  "worst %.2f ms\n",
                  own, (double)(resident() - rss) / MANY, (seconds() - from) * 1e6 / MANY,
                  worst * 1e3);
    assert_true(own <= 250);
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    assert_true((double)(resident() - rss) / MANY <= 250);
#endif
    locktable_free(b.t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_walk),
        cmocka_unit_test(test_memory_of_a_million_keys),
    };

    return cmocka_run_group_tests_name("locktable, many keys", tests, NULL, NULL);
}
