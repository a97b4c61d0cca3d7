/*
 * The lock table: who gets a lock or a slot of a semaphore, in which order, and how many may hold,
 * wait and be remembered.
 */
#include "lockbench.h"

static void test_try_and_release(void **state)
{
    struct bench b;
    struct lock_given g, h;

    (void)state;
    bench_begin(&b);
    struct lock_owner *one = bench_owner(&b, 1), *two = bench_owner(&b, 2);

    assert_int_equal(bench_acquire(&b, one, "k", 1, 0, &g), DFL_OK);
    assert_int_equal(g.lease_s, 10);
    assert_int_equal(bench_acquire(&b, two, "k", 1, 0, NULL), DFL_TIMEOUT);
    assert_int_equal(bench_release(&b, "other", &g), DFL_REFUSED);
    assert_int_equal(bench_release(&b, "k", &g), DFL_OK);
    assert_int_equal(bench_release(&b, "k", &g), DFL_REFUSED);
    assert_int_equal(bench_acquire(&b, two, "k", 1, 0, &h), DFL_OK);
    assert_true(h.token.fence > g.token.fence);
    assert_int_equal(locktable_holds(b.t), 1);
    bench_expect_nothing(&b);
    locktable_free(b.t);
}

static void test_token_must_fit_whole(void **state)
{
    struct bench b;
    struct lock_given g;
    int64_t left;

    (void)state;
    bench_begin(&b);
    assert_int_equal(bench_acquire(&b, bench_owner(&b, 1), "k", 1, 0, &g), DFL_OK);

    struct lock_given wrong = g;

    wrong.token.random++;
    assert_int_equal(bench_release(&b, "k", &wrong), DFL_REFUSED);
    assert_int_equal(bench_renew(&b, "k", &wrong, 10, &left), DFL_REFUSED);
    wrong = g;
    wrong.token.fence++;
    assert_int_equal(bench_release(&b, "k", &wrong), DFL_REFUSED);
    assert_int_equal(bench_release(&b, "k", &g), DFL_OK);
    locktable_free(b.t);
}

static void test_fifo_of_locks_and_semaphores_of_one_slot(void **state)
{
    struct bench b;
    struct lock_given g;

    (void)state;
    bench_begin(&b);
    assert_int_equal(bench_acquire(&b, bench_owner(&b, 1), "k", 1, 0, &g), DFL_OK);
    for (uint64_t id = 2; id <= 5; id++)
        assert_int_equal(bench_acquire(&b, bench_owner(&b, id), "k", 1, 60, NULL), DFL_PENDING);
    for (uint64_t id = 2; id <= 5; id++) {
        assert_int_equal(bench_release(&b, "k", &g), DFL_OK);
        g = bench_expect(&b, id, DFL_OK);
        bench_expect_nothing(&b);
    }
    locktable_free(b.t);
}

static void test_a_try_does_not_overtake(void **state)
{
    struct bench b;
    struct lock_given g[2];

    (void)state;
    bench_begin(&b);
    struct lock_owner *one = bench_owner(&b, 1), *two = bench_owner(&b, 2);

    assert_int_equal(bench_acquire(&b, one, "s", 2, 0, &g[0]), DFL_OK);
    assert_int_equal(bench_acquire(&b, one, "s", 2, 0, &g[1]), DFL_OK);
    assert_int_equal(bench_acquire(&b, two, "s", 2, 60, NULL), DFL_PENDING);
    assert_int_equal(bench_release(&b, "s", &g[0]), DFL_OK);
    assert_int_equal(bench_acquire(&b, one, "s", 2, 0, NULL), DFL_TIMEOUT);
    bench_expect(&b, 2, DFL_OK);
    assert_int_equal(locktable_holds(b.t), 2);
    locktable_free(b.t);
}

static void test_limits(void **state)
{
    struct bench b;
    struct lock_given g;

    (void)state;
    bench_begin(&b);
    struct lock_owner *o = bench_owner(&b, 1);

    assert_int_equal(bench_acquire(&b, o, "s", 3, 0, &g), DFL_OK);
    assert_int_equal(bench_acquire(&b, o, "s", 3, 0, NULL), DFL_OK);
    assert_int_equal(bench_acquire(&b, o, "s", 3, 0, NULL), DFL_OK);
    assert_int_equal(bench_acquire(&b, o, "s", 3, 0, NULL), DFL_TIMEOUT);
    assert_int_equal(bench_acquire(&b, o, "s", 1, 0, NULL), DFL_LIMIT_MISMATCH);
    assert_int_equal(bench_enqueue(&b, o, "s", NULL), DFL_LIMIT_MISMATCH);
    assert_int_equal(bench_release(&b, "s", &g), DFL_OK);
    assert_int_equal(bench_release(&b, "s", &g), DFL_REFUSED); /* a second release adds no slot */
    assert_int_equal(bench_acquire(&b, o, "s", 3, 0, NULL), DFL_OK);
    assert_int_equal(bench_acquire(&b, o, "s", 3, 0, NULL), DFL_TIMEOUT);
    locktable_free(b.t);
}

static void test_idle_keys_keep_their_limit_until_collected(void **state)
{
    struct bench b = {.now = 1000};
    struct locktable_config c = bench_config(&b);
    struct lock_given g;

    (void)state;
    c.max_locks = 2;
    bench_begin_with(&b, &c);
    struct lock_owner *o = bench_owner(&b, 1);

    assert_int_equal(bench_acquire(&b, o, "a", 2, 0, &g), DFL_OK);
    assert_int_equal(bench_release(&b, "a", &g), DFL_OK);
    assert_int_equal(bench_acquire(&b, o, "b", 1, 0, NULL), DFL_OK);
    assert_int_equal(bench_acquire(&b, o, "c", 1, 0, NULL), DFL_MAX_LOCKS);
    bench_tick(&b, 59000);
    assert_int_equal(bench_acquire(&b, o, "a", 1, 0, NULL), DFL_LIMIT_MISMATCH);
    assert_int_equal(bench_acquire(&b, o, "c", 1, 0, NULL), DFL_MAX_LOCKS);
    bench_tick(&b, 6000);
    assert_int_equal(bench_acquire(&b, o, "a", 1, 0, NULL), DFL_OK);
    locktable_free(b.t);
}

static void test_max_waiters(void **state)
{
    struct bench b = {.now = 1000};
    struct locktable_config c = bench_config(&b);

    (void)state;
    c.max_waiters = 1;
    bench_begin_with(&b, &c);
    assert_int_equal(bench_acquire(&b, bench_owner(&b, 1), "k", 1, 0, NULL), DFL_OK);
    assert_int_equal(bench_acquire(&b, bench_owner(&b, 2), "k", 1, 9, NULL), DFL_PENDING);
    assert_int_equal(bench_acquire(&b, bench_owner(&b, 3), "k", 1, 9, NULL), DFL_MAX_WAITERS);
    assert_int_equal(bench_enqueue(&b, bench_owner(&b, 4), "k", NULL), DFL_MAX_WAITERS);
    assert_int_equal(bench_acquire(&b, bench_owner(&b, 5), "k", 1, 0, NULL), DFL_TIMEOUT);
    locktable_free(b.t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_try_and_release),
        cmocka_unit_test(test_token_must_fit_whole),
        cmocka_unit_test(test_fifo_of_locks_and_semaphores_of_one_slot),
        cmocka_unit_test(test_a_try_does_not_overtake),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_idle_keys_keep_their_limit_until_collected),
        cmocka_unit_test(test_max_waiters),
    };

    return cmocka_run_group_tests_name("locktable, queue", tests, NULL, NULL);
}
