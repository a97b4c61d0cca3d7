/* The heap of deadlines: order, moving, clearing, and the same answers as a plain list. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "timers.h"

static void empty_heap_has_no_next(void **state)
{
    struct dfl_timers ts;
    struct dfl_timer never = {0};

    (void)state;
    dfl_timers_init(&ts);
    assert_true(dfl_timers_next(&ts) == INT64_MAX);
    assert_null(dfl_timers_pop(&ts, INT64_MAX));
    dfl_timer_clear(&ts, &never);
    assert_int_equal(ts.count, 0);
    dfl_timers_free(&ts);
}

static void they_come_out_in_order_and_not_early(void **state)
{
    static const int64_t at[] = {50, 10, 40, -5, 30, 20, INT64_MAX, 10};
    struct dfl_timer timers[8] = {{0}};
    struct dfl_timers ts;
    int64_t last = INT64_MIN;

    (void)state;
    dfl_timers_init(&ts);
    assert_int_equal(dfl_timers_reserve(&ts, 8), DFL_OK);
    for (size_t i = 0; i < 8; i++)
        dfl_timer_set(&ts, &timers[i], at[i]);
    assert_true(dfl_timers_next(&ts) == -5);
    assert_null(dfl_timers_pop(&ts, -6));
    for (size_t i = 0; i < 8; i++) {
        struct dfl_timer *timer = dfl_timers_pop(&ts, INT64_MAX);

        assert_non_null(timer);
        assert_int_equal(timer->index, 0);
        assert_true(timer->at_ms >= last);
        last = timer->at_ms;
    }
    assert_true(dfl_timers_next(&ts) == INT64_MAX);
    dfl_timers_free(&ts);
}

static void setting_again_moves(void **state)
{
    struct dfl_timer a = {0}, b = {0};
    struct dfl_timers ts;

    (void)state;
    dfl_timers_init(&ts);
    assert_int_equal(dfl_timers_reserve(&ts, 2), DFL_OK);
    dfl_timer_set(&ts, &a, 100);
    dfl_timer_set(&ts, &b, 200);
    dfl_timer_set(&ts, &a, 300);
    assert_int_equal(ts.count, 2);
    assert_true(dfl_timers_next(&ts) == 200);
    dfl_timer_set(&ts, &a, 50);
    assert_ptr_equal(dfl_timers_pop(&ts, 50), &a);
    assert_ptr_equal(dfl_timers_pop(&ts, 200), &b);
    dfl_timers_free(&ts);
}

static void freeing_leaves_timers_unset(void **state)
{
    struct dfl_timer a = {0};
    struct dfl_timers ts;

    (void)state;
    dfl_timers_init(&ts);
    assert_int_equal(dfl_timers_reserve(&ts, 1), DFL_OK);
    dfl_timer_set(&ts, &a, 1);
    dfl_timers_free(&ts);
    assert_int_equal(a.index, 0);
}

static void room_that_cannot_be_is_refused(void **state)
{
    struct dfl_timers ts;

    (void)state;
    dfl_timers_init(&ts);
    assert_int_equal(dfl_timers_reserve(&ts, SIZE_MAX / 2), DFL_NOMEM);
    assert_int_equal(dfl_timers_reserve(&ts, 3), DFL_OK);
    assert_true(ts.cap >= 3);
    dfl_timers_free(&ts);
}

/* ---------------------------------------------------------- against a list */

#define MODEL 97

static uint32_t next_random(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

static int64_t earliest(const struct dfl_timer timers[MODEL], const bool set[MODEL])
{
    int64_t min = INT64_MAX;

    for (int i = 0; i < MODEL; i++)
        if (set[i] && timers[i].at_ms < min)
            min = timers[i].at_ms;
    return min;
}

static void check_places(const struct dfl_timers *ts, const struct dfl_timer timers[MODEL],
                         const bool set[MODEL])
{
    size_t count = 0;

    for (int i = 0; i < MODEL; i++) {
        assert_int_equal(timers[i].index != 0, set[i]);
        if (!set[i])
            continue;
        count++;
        assert_ptr_equal(ts->heap[timers[i].index - 1], &timers[i]);
    }
    assert_int_equal(ts->count, count);
    for (size_t i = 1; i < count; i++)
        assert_true(ts->heap[(i - 1) / 2]->at_ms <= ts->heap[i]->at_ms);
}

static void it_agrees_with_a_plain_list(void **state)
{
    struct dfl_timer timers[MODEL] = {{0}};
    bool set[MODEL] = {false};
    struct dfl_timers ts;
    uint32_t seed = 20260101;

    (void)state;
    dfl_timers_init(&ts);
    assert_int_equal(dfl_timers_reserve(&ts, MODEL), DFL_OK);
    for (int step = 0; step < 20000; step++) {
        size_t i = next_random(&seed) % MODEL;
        uint32_t what = next_random(&seed) % 4;

        if (what < 2) {
            dfl_timer_set(&ts, &timers[i], next_random(&seed) % 500);
            set[i] = true;
        } else if (what == 2) {
            dfl_timer_clear(&ts, &timers[i]);
            set[i] = false;
        } else {
            int64_t now = next_random(&seed) % 200, first = earliest(timers, set);
            struct dfl_timer *timer = dfl_timers_pop(&ts, now);

            assert_int_equal(timer != NULL, first <= now);
            if (timer) {
                assert_true(timer->at_ms == first);
                set[timer - timers] = false;
            }
        }
        assert_true(dfl_timers_next(&ts) == earliest(timers, set));
        check_places(&ts, timers, set);
    }
    dfl_timers_free(&ts);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(empty_heap_has_no_next),
        cmocka_unit_test(they_come_out_in_order_and_not_early),
        cmocka_unit_test(setting_again_moves),
        cmocka_unit_test(freeing_leaves_timers_unset),
        cmocka_unit_test(room_that_cannot_be_is_refused),
        cmocka_unit_test(it_agrees_with_a_plain_list),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
