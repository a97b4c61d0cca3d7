/* The engine and leases that are not what was asked for: shorter in the answer to a renewal, or
 * changed by hand more than once before an answer comes. */
#include <unistd.h>

#include "engineworld.h"

#define STEP_MS 100

/* A moment that passes while the engine is driven. */
static void live(struct world *w, int64_t ms)
{
    for (; ms > 0; ms -= STEP_MS) {
        world_pass(w, STEP_MS);
        world_settle(w);
    }
}

static void a_shorter_lease_than_asked_for_is_renewed_in_time(void **state)
{
    struct world *w = *state;

    w->answers['l'] = "ok " TOKEN " 60";
    w->answers['n'] = "ok 2";
    world_take(w, "k");
    for (int i = 0; i < 600; i++) {
        live(w, STEP_MS);
        assert_true(world_holds(w, "k"));
    }
}

/* An offer that came late, and whose confirmation speaks of half of the lease: the hold is as long.
 */
static void take_confirmed(struct world *w, const char *confirmation)
{
    struct dfl_call *call;

    w->answers['l'] = "timeout";
    w->answers['L'] = NULL;
    w->answers['n'] = confirmation;
    call = world_acquire(w, "k", 30000);
    world_settle(w);
    live(w, 3000);
    assert_int_equal(dfl_call_status(call), DFL_PENDING);
    w->answers['l'] = NULL;
    world_say(w, 1, "ok " TOKEN " 4");
    world_settle(w);
    dfl_call_free(call, w->now);
}

static void a_confirmation_counts_for_what_it_says(void **state)
{
    struct world *w = *state;

    take_confirmed(w, "ok 2");
    assert_true(world_holds(w, "k"));
    w->answers['n'] = NULL;
    world_pass(w, 1950);
    assert_true(world_holds(w, "k"));
    world_pass(w, 50);
    assert_false(world_holds(w, "k"));
}

static void one_that_leaves_nothing_grants_nothing(void **state)
{
    struct world *w = *state;

    take_confirmed(w, "ok 0");
    assert_false(world_holds(w, "k"));
}

static struct dfl_call *renew(struct world *w, int64_t lease_s)
{
    struct dfl_error err;
    struct dfl_call *call;

    assert_int_equal(dfl_renew(w->session, "k", 1, lease_s, NULL, w->now, &call, &err), DFL_OK);
    return call;
}

static void a_renewal_that_leaves_nothing_is_a_loss(void **state)
{
    struct world *w = *state;
    struct dfl_call *call;

    world_take(w, "k");
    w->answers['n'] = "ok 0";
    call = renew(w, 0);
    world_settle(w);
    assert_int_equal(dfl_call_status(call), DFL_LOST);
    dfl_call_free(call, w->now);
    assert_false(world_holds(w, "k"));
}

/* Granted `grant`, renewed by hand for 5 s, answered `ok 4`. */
static void renew_for_five(struct world *w, const char *grant)
{
    struct dfl_call *call;

    w->answers['l'] = grant;
    w->answers['n'] = "ok 4";
    world_take(w, "k");
    call = renew(w, 5);
    world_settle(w);
    assert_int_equal(dfl_call_status(call), DFL_OK);
    dfl_call_free(call, w->now);
    w->answers['n'] = NULL;
    world_pass(w, 3900);
    assert_true(world_holds(w, "k"));
}

/* The server may have meant it. */
static void a_second_less_than_ever_granted_counts_as_it_stands(void **state)
{
    struct world *w = *state;

    renew_for_five(w, "ok " TOKEN " 4");
    world_pass(w, 100);
    assert_false(world_holds(w, "k"));
}

static void a_second_less_than_granted_before_is_cut(void **state)
{
    struct world *w = *state;

    renew_for_five(w, "ok " TOKEN " 5");
    world_pass(w, 900);
    assert_true(world_holds(w, "k"));
    world_pass(w, 200);
    assert_false(world_holds(w, "k"));
}

/* In one millisecond the engine renews by itself for 60 s, and by hand for 2 s and again for 60 s.
 */
static void renew_three_times(struct world *w, struct dfl_call *calls[2])
{
    w->answers['l'] = "ok " TOKEN " 60";
    w->answers['n'] = NULL;
    world_take(w, "k");
    world_pass(w, w->settings.keepalive_ms);
    world_settle(w);
    calls[0] = renew(w, 2);
    calls[1] = renew(w, 60);
    world_say(w, 0, "ok 60");
}

static void free_calls(struct world *w, struct dfl_call *calls[2])
{
    dfl_call_free(calls[0], w->now);
    dfl_call_free(calls[1], w->now);
}

/* The server may have read the second of them, and not yet the third. */
static void an_older_answer_does_not_lift_the_shorter_lease(void **state)
{
    struct world *w = *state;
    struct dfl_call *calls[2];

    renew_three_times(w, calls);
    world_settle(w);
    assert_true(world_holds(w, "k"));
    world_pass(w, 2000);
    assert_false(world_holds(w, "k"));
    free_calls(w, calls);
}

static void the_newest_one_does(void **state)
{
    struct world *w = *state;
    struct dfl_call *calls[2];

    renew_three_times(w, calls);
    world_say(w, 0, "ok 2");
    world_say(w, 0, "ok 60");
    world_settle(w);
    world_pass(w, 2000);
    assert_true(world_holds(w, "k"));
    free_calls(w, calls);
}

/* Between gather and send it stays the time of the gather, for the timers too. */
static void what_falls_due_between_gather_and_send_has_its_time_later(void **state)
{
    struct world *w = *state;

    world_take(w, "k");
    dfl_client_gather(w->client, w->now);
    world_pass(w, w->settings.keepalive_ms);
    alarm(20); /* who looks at two clocks never comes to an end */
    dfl_client_run(w->client, w->now);
    alarm(0);
    dfl_client_send(w->client);
    world_settle(w);
    assert_true(world_holds(w, "k"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_shorter_lease_than_asked_for_is_renewed_in_time,
                                        world_open, world_close),
        cmocka_unit_test_setup_teardown(a_confirmation_counts_for_what_it_says, world_open,
                                        world_close),
        cmocka_unit_test_setup_teardown(one_that_leaves_nothing_grants_nothing, world_open,
                                        world_close),
        cmocka_unit_test_setup_teardown(a_renewal_that_leaves_nothing_is_a_loss, world_open,
                                        world_close),
        cmocka_unit_test_setup_teardown(a_second_less_than_ever_granted_counts_as_it_stands,
                                        world_open, world_close),
        cmocka_unit_test_setup_teardown(a_second_less_than_granted_before_is_cut, world_open,
                                        world_close),
        cmocka_unit_test_setup_teardown(an_older_answer_does_not_lift_the_shorter_lease, world_open,
                                        world_close),
        cmocka_unit_test_setup_teardown(the_newest_one_does, world_open, world_close),
        cmocka_unit_test_setup_teardown(what_falls_due_between_gather_and_send_has_its_time_later,
                                        world_open, world_close),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
