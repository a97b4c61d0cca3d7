/*
 * The lock table while it gives nothing to anybody: the gate is shut, the server drains, there are
 * no tokens to be had.
 */
#include <stdio.h>

#include "lockbench.h"

static void test_no_tokens(void **state)
{
    struct bench b;
    struct lock_given g;
    int64_t left;

    (void)state;
    bench_begin(&b);
    struct lock_owner *one = bench_owner(&b, 1), *two = bench_owner(&b, 2),
                      *three = bench_owner(&b, 3);

    assert_int_equal(bench_acquire(&b, one, "k", 1, 0, &g), DFL_OK);
    assert_int_equal(bench_acquire(&b, two, "k", 1, 60, NULL), DFL_PENDING);
    assert_int_equal(bench_enqueue(&b, three, "k", NULL), DFL_PENDING);
    b.dry = true;
    assert_int_equal(bench_acquire(&b, one, "x", 1, 0, NULL), DFL_REFUSED);
    assert_int_equal(bench_enqueue(&b, one, "x", NULL), DFL_REFUSED);
    assert_int_equal(bench_renew(&b, "k", &g, 10, &left), DFL_REFUSED);
    assert_int_equal(bench_release(&b, "k", &g), DFL_OK);
    bench_expect(&b, 2, DFL_REFUSED);
    bench_expect_nothing(&b);
    assert_int_equal(bench_wait_for(&b, three, "k", 1, NULL), DFL_NOT_ENQUEUED);
    b.dry = false;
    assert_int_equal(bench_acquire(&b, one, "k", 1, 0, NULL), DFL_OK);
    assert_int_equal(locktable_holds(b.t), 1);
    locktable_free(b.t);
}

static void test_gate(void **state)
{
    struct bench b;
    struct lock_given g;

    (void)state;
    bench_begin(&b);
    locktable_gate(b.t, false);
    struct lock_owner *one = bench_owner(&b, 1), *two = bench_owner(&b, 2),
                      *three = bench_owner(&b, 3);

    assert_int_equal(bench_acquire(&b, one, "k", 1, 0, NULL), DFL_TIMEOUT);
    assert_int_equal(bench_acquire(&b, one, "k", 1, 60, NULL), DFL_PENDING);
    assert_int_equal(bench_enqueue(&b, two, "k", NULL), DFL_PENDING);
    assert_int_equal(bench_enqueue(&b, two, "gone", NULL), DFL_PENDING);
    assert_int_equal(bench_wait_for(&b, two, "gone", 1, NULL), DFL_PENDING);
    assert_int_equal(bench_acquire(&b, three, "s", 2, 60, NULL), DFL_PENDING);
    bench_tick(&b, 1001);
    bench_expect(&b, 2, DFL_TIMEOUT);
    bench_expect_nothing(&b);
    locktable_gate(b.t, true);
    assert_true(locktable_next_ms(b.t) <= b.now);
    bench_tick(&b, 0);
    g = bench_expect(&b, 1, DFL_OK);
    bench_expect(&b, 3, DFL_OK);
    bench_expect_nothing(&b);
    assert_int_equal(bench_release(&b, "k", &g), DFL_OK);
    assert_int_equal(bench_wait_for(&b, two, "k", 0, NULL), DFL_OK);
    assert_int_equal(locktable_holds(b.t), 2);
    locktable_free(b.t);
}

static void test_nobody_overtakes_when_the_gate_opens(void **state)
{
    struct bench b;

    (void)state;
    bench_begin(&b);
    locktable_gate(b.t, false);
    assert_int_equal(bench_acquire(&b, bench_owner(&b, 1), "k", 1, 60, NULL), DFL_PENDING);
    locktable_gate(b.t, true);
    assert_int_equal(bench_acquire(&b, bench_owner(&b, 2), "k", 1, 0, NULL), DFL_TIMEOUT);
    bench_tick(&b, 0);
    bench_expect(&b, 1, DFL_OK);
    locktable_free(b.t);
}

/* When the gate opens there are more keys to serve than one step does. Requests that come between
 * two steps find keys whose waiters have all gone. */
static void test_a_key_whose_waiters_left_before_the_gate_opened(void **state)
{
    struct bench b;
    struct lock_given given;
    char key[32];

    (void)state;
    bench_begin(&b);
    locktable_gate(b.t, false);
    struct lock_owner *one = bench_owner(&b, 1), *two = bench_owner(&b, 2),
                      *three = bench_owner(&b, 3);

    for (int i = 0; i < 1200; i++) {
        snprintf(key, sizeof key, "k%d", i);
        assert_int_equal(bench_acquire(&b, i == 1100 ? two : one, key, 1, 60, NULL), DFL_PENDING);
    }
    locktable_close_owner(b.t, two, b.now);
    locktable_gate(b.t, true);
    locktable_tick(b.t, b.now);
    assert_int_equal(bench_acquire(&b, three, "k1100", 1, 60, NULL), DFL_PENDING);
    bench_tick(&b, 0);
    for (int i = 0; i < 1200; i++)
        given = bench_expect(&b, i == 1100 ? 3 : 1, DFL_OK);
    bench_expect_nothing(&b);
    assert_int_equal(locktable_holds(b.t), 1200);
    assert_int_equal(bench_release(&b, "k1199", &given), DFL_OK);
    assert_int_equal(bench_acquire(&b, three, "k1199", 1, 0, NULL), DFL_OK);
    locktable_free(b.t);
}

static void test_drain(void **state)
{
    struct bench b;
    struct lock_given g;
    int64_t left;

    (void)state;
    bench_begin(&b);
    struct lock_owner *one = bench_owner(&b, 1), *two = bench_owner(&b, 2),
                      *three = bench_owner(&b, 3);

    assert_int_equal(bench_acquire(&b, one, "k", 1, 0, &g), DFL_OK);
    assert_int_equal(bench_acquire(&b, two, "k", 1, 60, NULL), DFL_PENDING);
    assert_int_equal(bench_enqueue(&b, three, "k", NULL), DFL_PENDING);
    locktable_drain(b.t, b.now);
    bench_expect(&b, 2, DFL_DRAINING);
    bench_expect_nothing(&b);
    assert_int_equal(bench_acquire(&b, two, "x", 1, 0, NULL), DFL_DRAINING);
    assert_int_equal(bench_enqueue(&b, two, "x", NULL), DFL_DRAINING);
    assert_int_equal(bench_wait_for(&b, three, "k", 1, NULL), DFL_DRAINING);
    assert_int_equal(bench_renew(&b, "k", &g, 10, &left), DFL_OK);
    assert_int_equal(bench_release(&b, "k", &g), DFL_OK);
    assert_int_equal(locktable_holds(b.t), 0);
    locktable_free(b.t);
}

/* Many waiters are not answered in one go; what is released meanwhile goes to none of them. */
static void test_draining_in_steps(void **state)
{
    struct bench b;
    char key[32];
    struct lock_effect effect;
    struct lock_given given[2500];
    int answered = 0;

    (void)state;
    bench_begin(&b);
    struct lock_owner *one = bench_owner(&b, 1), *two = bench_owner(&b, 2);

    for (int i = 0; i < 2500; i++) {
        snprintf(key, sizeof key, "k%d", i);
        assert_int_equal(bench_acquire(&b, one, key, 1, 0, &given[i]), DFL_OK);
        assert_int_equal(bench_enqueue(&b, two, key, NULL), DFL_PENDING);
        assert_int_equal(bench_acquire(&b, bench_owner(&b, (uint64_t)i + 3), key, 1, 60, NULL),
                         DFL_PENDING);
    }
    locktable_drain(b.t, b.now);
    for (int i = 0; i < 2500; i++) {
        snprintf(key, sizeof key, "k%d", i);
        assert_int_equal(bench_release(&b, key, &given[i]), DFL_OK);
        assert_int_equal(bench_acquire(&b, one, key, 1, 0, NULL), DFL_DRAINING);
    }
    assert_false(locktable_is_drained(b.t));
    assert_int_equal(locktable_holds(b.t), 0);
    for (;;) {
        int before = answered;

        for (; locktable_effect(b.t, &effect); answered++)
            assert_int_equal(effect.status, DFL_DRAINING);
        assert_in_range(answered - before, 0, 1000);
        if (locktable_next_ms(b.t) > b.now)
            break;
        locktable_tick(b.t, b.now);
    }
    assert_int_equal(answered, 2500);
    assert_true(locktable_is_drained(b.t));
    bench_tick(&b, 60000); /* nothing is left of them */
    bench_tick(&b, 5000);
    assert_int_equal(locktable_keys(b.t), 0);
    locktable_free(b.t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_tokens),
        cmocka_unit_test(test_gate),
        cmocka_unit_test(test_nobody_overtakes_when_the_gate_opens),
        cmocka_unit_test(test_a_key_whose_waiters_left_before_the_gate_opened),
        cmocka_unit_test(test_drain),
        cmocka_unit_test(test_draining_in_steps),
    };

    return cmocka_run_group_tests_name("locktable, refusing", tests, NULL, NULL);
}
