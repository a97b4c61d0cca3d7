/* The lock table: when leases and waits are over, and what a renewal changes. */
#include "lockbench.h"

static void test_a_lease_never_ends_early(void **state)
{
    struct bench b;
    struct lock_given g;
    int64_t left;

    (void)state;
    bench_begin(&b);
    struct lock_owner *two = bench_owner(&b, 2);

    assert_int_equal(bench_acquire(&b, bench_owner(&b, 1), "k", 1, 0, &g), DFL_OK);
    assert_int_equal(bench_acquire(&b, two, "k", 1, 60, NULL), DFL_PENDING);
    bench_tick(&b, 10000);
    bench_expect_nothing(&b);
    assert_int_equal(locktable_next_ms(b.t), b.now + 1);
    bench_tick(&b, 1);
    bench_expect(&b, 2, DFL_OK);
    assert_int_equal(bench_renew(&b, "k", &g, 10, &left), DFL_REFUSED);
    assert_int_equal(bench_release(&b, "k", &g), DFL_REFUSED);
    locktable_free(b.t);
}

static void test_due_but_not_ticked(void **state)
{
    struct bench b;
    struct lock_given g;
    int64_t left;

    (void)state;
    bench_begin(&b);
    assert_int_equal(bench_acquire(&b, bench_owner(&b, 1), "k", 1, 0, &g), DFL_OK);
    b.now += 10001;
    assert_int_equal(bench_renew(&b, "k", &g, 10, &left), DFL_REFUSED);
    assert_int_equal(bench_release(&b, "k", &g), DFL_REFUSED);
    assert_int_equal(locktable_holds(b.t), 0);
    locktable_free(b.t);
}

static void test_renew(void **state)
{
    struct bench b;
    struct lock_given g;
    int64_t left = 0;

    (void)state;
    bench_begin(&b);
    assert_int_equal(bench_acquire(&b, bench_owner(&b, 1), "k", 1, 0, &g), DFL_OK);
    bench_tick(&b, 9000);
    assert_int_equal(bench_renew(&b, "k", &g, 20, &left), DFL_OK);
    assert_int_equal(left, 20);
    bench_tick(&b, 19999);
    assert_int_equal(bench_renew(&b, "k", &g, 1, &left), DFL_OK);
    assert_int_equal(left, 1);
    bench_tick(&b, 1001);
    assert_int_equal(locktable_holds(b.t), 0);
    locktable_free(b.t);
}

static void test_waiting_ends(void **state)
{
    struct bench b;

    (void)state;
    bench_begin(&b);
    struct lock_owner *two = bench_owner(&b, 2);
    struct lock_given g;

    assert_int_equal(bench_acquire(&b, bench_owner(&b, 1), "k", 1, 0, &g), DFL_OK);
    assert_int_equal(bench_acquire(&b, two, "k", 1, 3, NULL), DFL_PENDING);
    bench_tick(&b, 3000);
    bench_expect_nothing(&b);
    bench_tick(&b, 1);
    bench_expect(&b, 2, DFL_TIMEOUT);
    assert_int_equal(bench_release(&b, "k", &g), DFL_OK);
    bench_expect_nothing(&b);
    assert_int_equal(locktable_holds(b.t), 0);
    locktable_free(b.t);
}

static void test_grant_and_time_limit_in_one_tick(void **state)
{
    struct bench b;

    (void)state;
    bench_begin(&b);
    assert_int_equal(bench_acquire(&b, bench_owner(&b, 1), "k", 1, 0, NULL), DFL_OK);
    assert_int_equal(bench_acquire(&b, bench_owner(&b, 2), "k", 1, 10, NULL), DFL_PENDING);
    bench_tick(&b, 10001);
    bench_expect(&b, 2, DFL_OK);
    bench_expect_nothing(&b);
    locktable_free(b.t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_lease_never_ends_early),
        cmocka_unit_test(test_due_but_not_ticked),
        cmocka_unit_test(test_renew),
        cmocka_unit_test(test_waiting_ends),
        cmocka_unit_test(test_grant_and_time_limit_in_one_tick),
    };

    return cmocka_run_group_tests_name("locktable, leases", tests, NULL, NULL);
}
