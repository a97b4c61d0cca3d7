/* The lock table: a place in the line and the wait for it, as two requests. */
#include "lockbench.h"

static void test_two_phases(void **state)
{
    struct bench b;
    struct lock_given g, h;

    (void)state;
    bench_begin(&b);
    struct lock_owner *one = bench_owner(&b, 1), *two = bench_owner(&b, 2);

    assert_int_equal(bench_wait_for(&b, one, "k", 1, NULL), DFL_NOT_ENQUEUED);
    assert_int_equal(bench_enqueue(&b, one, "k", &g), DFL_OK);
    assert_int_equal(bench_enqueue(&b, one, "k", NULL), DFL_ALREADY_ENQUEUED);
    assert_int_equal(bench_enqueue(&b, two, "k", NULL), DFL_PENDING);
    assert_int_equal(bench_enqueue(&b, two, "k", NULL), DFL_ALREADY_ENQUEUED);
    bench_tick(&b, 9000);
    assert_int_equal(bench_wait_for(&b, one, "k", 0, &h), DFL_OK); /* the lease begins anew */
    assert_int_equal(h.token.fence, g.token.fence);
    assert_int_equal(bench_wait_for(&b, one, "k", 0, NULL), DFL_NOT_ENQUEUED);
    bench_tick(&b, 9000);
    assert_int_equal(bench_wait_for(&b, two, "k", 5, NULL), DFL_PENDING);
    assert_int_equal(bench_release(&b, "k", &g), DFL_OK);
    bench_expect(&b, 2, DFL_OK);
    assert_int_equal(bench_wait_for(&b, two, "k", 0, NULL), DFL_NOT_ENQUEUED);
    locktable_free(b.t);
}

static void test_a_wait_that_times_out_loses_the_place(void **state)
{
    struct bench b;
    struct lock_given g;

    (void)state;
    bench_begin(&b);
    struct lock_owner *two = bench_owner(&b, 2), *three = bench_owner(&b, 3);

    assert_int_equal(bench_acquire(&b, bench_owner(&b, 1), "k", 1, 0, &g), DFL_OK);
    assert_int_equal(bench_enqueue(&b, two, "k", NULL), DFL_PENDING);
    assert_int_equal(bench_enqueue(&b, three, "k", NULL), DFL_PENDING);
    assert_int_equal(bench_wait_for(&b, two, "k", 1, NULL), DFL_PENDING);
    bench_tick(&b, 1001);
    bench_expect(&b, 2, DFL_TIMEOUT);
    assert_int_equal(bench_wait_for(&b, two, "k", 1, NULL), DFL_NOT_ENQUEUED);
    assert_int_equal(bench_wait_for(&b, three, "k", 0, NULL), DFL_TIMEOUT);
    assert_int_equal(bench_wait_for(&b, three, "k", 0, NULL), DFL_NOT_ENQUEUED);
    assert_int_equal(bench_release(&b, "k", &g), DFL_OK);
    bench_expect_nothing(&b);
    assert_int_equal(locktable_holds(b.t), 0);
    locktable_free(b.t);
}

static void test_a_place_comes_up_before_its_wait(void **state)
{
    struct bench b;
    struct lock_given g, h;

    (void)state;
    bench_begin(&b);
    struct lock_owner *two = bench_owner(&b, 2);

    assert_int_equal(bench_acquire(&b, bench_owner(&b, 1), "k", 1, 0, &g), DFL_OK);
    assert_int_equal(bench_enqueue(&b, two, "k", NULL), DFL_PENDING);
    assert_int_equal(bench_release(&b, "k", &g), DFL_OK);
    bench_expect_nothing(&b);
    assert_int_equal(bench_acquire(&b, bench_owner(&b, 3), "k", 1, 0, NULL), DFL_TIMEOUT);
    bench_tick(&b, 9000);
    assert_int_equal(bench_wait_for(&b, two, "k", 5, &h), DFL_OK);
    assert_int_equal(h.lease_s, 10);
    assert_int_equal(bench_release(&b, "k", &h), DFL_OK);
    locktable_free(b.t);
}

static void test_a_place_lapses(void **state)
{
    struct bench b;
    struct lock_given g;

    (void)state;
    bench_begin(&b);
    struct lock_owner *one = bench_owner(&b, 1), *two = bench_owner(&b, 2);

    assert_int_equal(bench_acquire(&b, one, "k", 1, 0, &g), DFL_OK);
    assert_int_equal(bench_enqueue(&b, two, "k", NULL), DFL_PENDING);
    assert_int_equal(bench_release(&b, "k", &g), DFL_OK);
    bench_tick(&b, 10001);
    assert_int_equal(bench_acquire(&b, one, "k", 1, 0, &g), DFL_OK);
    bench_tick(&b, 200);
    assert_int_equal(bench_wait_for(&b, two, "k", 5, NULL), DFL_LEASE_EXPIRED);
    assert_int_equal(bench_wait_for(&b, two, "k", 5, NULL), DFL_NOT_ENQUEUED);
    assert_int_equal(bench_release(&b, "k", &g), DFL_OK); /* the other's lock is untouched */

    /* due, though no tick has come by yet */
    assert_int_equal(bench_enqueue(&b, two, "k", NULL), DFL_OK);
    b.now += 10001;
    assert_int_equal(bench_wait_for(&b, two, "k", 5, NULL), DFL_LEASE_EXPIRED);
    assert_int_equal(bench_acquire(&b, one, "k", 1, 0, &g), DFL_OK);

    /* a lapsed place does not stand in the way of a new one */
    assert_int_equal(bench_release(&b, "k", &g), DFL_OK);
    assert_int_equal(bench_enqueue(&b, two, "k", NULL), DFL_OK);
    bench_tick(&b, 10001);
    assert_int_equal(bench_enqueue(&b, two, "k", NULL), DFL_OK);
    locktable_free(b.t);
}

static void test_release_forgets_the_place(void **state)
{
    struct bench b;
    struct lock_given g;

    (void)state;
    bench_begin(&b);
    struct lock_owner *one = bench_owner(&b, 1);

    assert_int_equal(bench_enqueue(&b, one, "k", &g), DFL_OK);
    assert_int_equal(bench_release(&b, "k", &g), DFL_OK);
    assert_int_equal(bench_wait_for(&b, one, "k", 5, NULL), DFL_NOT_ENQUEUED);
    assert_int_equal(bench_enqueue(&b, one, "k", &g), DFL_OK);
    locktable_free(b.t);
}

static void test_a_lapsed_place_outlives_the_idle_time(void **state)
{
    struct bench b;

    (void)state;
    bench_begin(&b);
    struct lock_owner *one = bench_owner(&b, 1);

    assert_int_equal(bench_enqueue(&b, one, "k", NULL), DFL_OK);
    bench_tick(&b, 10001);
    bench_tick(&b, 100000);
    assert_int_equal(bench_wait_for(&b, one, "k", 5, NULL), DFL_LEASE_EXPIRED);
    bench_tick(&b, 100000);
    assert_int_equal(locktable_keys(b.t), 0);
    locktable_free(b.t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_two_phases),
        cmocka_unit_test(test_a_wait_that_times_out_loses_the_place),
        cmocka_unit_test(test_a_place_comes_up_before_its_wait),
        cmocka_unit_test(test_a_place_lapses),
        cmocka_unit_test(test_release_forgets_the_place),
        cmocka_unit_test(test_a_lapsed_place_outlives_the_idle_time),
    };

    return cmocka_run_group_tests_name("locktable, places", tests, NULL, NULL);
}
