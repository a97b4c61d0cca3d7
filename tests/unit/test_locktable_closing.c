/* The lock table: what becomes of the locks, places and answers of an owner that goes. */
#include "lockbench.h"

#include <stdio.h>

static void test_closing_gives_everything_back(void **state)
{
    struct bench b;

    (void)state;
    bench_begin(&b);
    struct lock_owner *one = bench_owner(&b, 1), *two = bench_owner(&b, 2),
                      *three = bench_owner(&b, 3);
    struct lock_given g;

    assert_int_equal(bench_acquire(&b, one, "a", 1, 0, NULL), DFL_OK);
    assert_int_equal(bench_enqueue(&b, one, "b", NULL), DFL_OK);
    assert_int_equal(bench_acquire(&b, two, "c", 1, 0, &g), DFL_OK);
    assert_int_equal(bench_enqueue(&b, one, "c", NULL), DFL_PENDING);
    assert_int_equal(bench_acquire(&b, two, "a", 1, 60, NULL), DFL_PENDING);
    assert_int_equal(bench_acquire(&b, three, "c", 1, 60, NULL), DFL_PENDING);
    locktable_close_owner(b.t, one, b.now);
    bench_expect(&b, 2, DFL_OK);
    assert_int_equal(bench_acquire(&b, two, "b", 1, 0, NULL), DFL_OK);
    assert_int_equal(bench_release(&b, "c", &g), DFL_OK);
    bench_expect(&b, 3, DFL_OK);
    bench_expect_nothing(&b);
    assert_int_equal(locktable_holds(b.t), 3);
    locktable_free(b.t);
}

static void test_closing_without_auto_release(void **state)
{
    struct bench b = {.now = 1000};
    struct locktable_config c = bench_config(&b);
    struct lock_given g;

    (void)state;
    c.auto_release = false;
    bench_begin_with(&b, &c);
    struct lock_owner *one = bench_owner(&b, 1), *two = bench_owner(&b, 2);

    assert_int_equal(bench_acquire(&b, one, "a", 1, 0, &g), DFL_OK);
    assert_int_equal(bench_enqueue(&b, one, "b", NULL), DFL_OK);
    locktable_close_owner(b.t, one, b.now);
    assert_int_equal(bench_acquire(&b, two, "a", 1, 0, NULL), DFL_TIMEOUT);
    assert_int_equal(bench_release(&b, "a", &g), DFL_OK);
    assert_int_equal(bench_acquire(&b, two, "b", 1, 0, NULL), DFL_TIMEOUT);
    bench_tick(&b, 10001);
    assert_int_equal(bench_acquire(&b, two, "b", 1, 0, NULL), DFL_OK);
    locktable_free(b.t);
}

static void test_closing_an_owner_of_very_much(void **state)
{
    struct bench b;
    char key[32];
    struct lock_effect effect;
    int granted = 0, steps = 0;

    (void)state;
    bench_begin(&b);
    struct lock_owner *one = bench_owner(&b, 1);

    for (int i = 0; i < 5000; i++) {
        snprintf(key, sizeof key, "k%d", i);
        assert_int_equal(bench_acquire(&b, one, key, 1, 0, NULL), DFL_OK);
        assert_int_equal(bench_acquire(&b, bench_owner(&b, (uint64_t)i + 2), key, 1, 60, NULL),
                         DFL_PENDING);
    }
    locktable_close_owner(b.t, one, b.now);
    for (;;) {
        int before = granted;

        while (locktable_effect(b.t, &effect))
            granted += effect.status == DFL_OK;
        assert_true(granted - before <= 1000); /* in steps */
        steps++;
        if (locktable_next_ms(b.t) > b.now)
            break;
        locktable_tick(b.t, b.now);
    }
    assert_int_equal(granted, 5000);
    assert_true(steps >= 5);
    locktable_free(b.t);
}

static void test_an_effect_for_one_who_has_gone(void **state)
{
    struct bench b;
    struct lock_given g;

    (void)state;
    bench_begin(&b);
    struct lock_owner *two = bench_owner(&b, 2), *three = bench_owner(&b, 3);

    assert_int_equal(bench_acquire(&b, bench_owner(&b, 1), "k", 1, 0, &g), DFL_OK);
    assert_int_equal(bench_acquire(&b, two, "k", 1, 60, NULL), DFL_PENDING);
    assert_int_equal(bench_acquire(&b, three, "k", 1, 60, NULL), DFL_PENDING);
    assert_int_equal(bench_release(&b, "k", &g), DFL_OK);
    locktable_close_owner(b.t, two, b.now); /* before it could see its grant */
    bench_expect(&b, 3, DFL_OK);
    bench_expect_nothing(&b);
    locktable_free(b.t);
}

/* More places than one step of a close takes back: the rest is passed over, and nobody is told. */
static void test_an_owner_that_is_still_being_stripped(void **state)
{
    struct bench b;
    struct lock_given held[1200], last;
    char key[32];

    (void)state;
    bench_begin(&b);
    struct lock_owner *one = bench_owner(&b, 1), *two = bench_owner(&b, 2),
                      *three = bench_owner(&b, 3);

    for (int i = 0; i < 1200; i++) {
        snprintf(key, sizeof key, "k%d", i);
        assert_int_equal(bench_acquire(&b, one, key, 1, 0, &held[i]), DFL_OK);
        assert_int_equal(bench_enqueue(&b, two, key, NULL), DFL_PENDING);
    }
    assert_int_equal(bench_acquire(&b, one, "x", 1, 0, &last), DFL_OK);
    assert_int_equal(bench_acquire(&b, two, "x", 1, 60, NULL), DFL_PENDING);
    assert_int_equal(bench_enqueue(&b, three, "k1199", NULL), DFL_PENDING);
    assert_int_equal(bench_wait_for(&b, three, "k1199", 60, NULL), DFL_PENDING);
    assert_int_equal(bench_release(&b, "x", &last), DFL_OK);
    locktable_close_owner(b.t, two, b.now); /* an effect for it is on its way */
    assert_int_equal(bench_release(&b, "k1199", &held[1199]), DFL_OK);
    bench_expect(&b, 3, DFL_OK);
    bench_expect_nothing(&b);
    bench_tick(&b, 0);
    bench_expect_nothing(&b);
    assert_int_equal(bench_acquire(&b, one, "x", 1, 0, NULL), DFL_OK);
    locktable_free(b.t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_closing_gives_everything_back),
        cmocka_unit_test(test_closing_without_auto_release),
        cmocka_unit_test(test_closing_an_owner_of_very_much),
        cmocka_unit_test(test_an_effect_for_one_who_has_gone),
        cmocka_unit_test(test_an_owner_that_is_still_being_stripped),
    };

    return cmocka_run_group_tests_name("locktable, closing", tests, NULL, NULL);
}
