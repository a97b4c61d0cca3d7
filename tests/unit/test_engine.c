/* The engine and what came too late: holds whose time passed while nobody drove it, and answers
 * that lay there all the time. */
#include "engineworld.h"

static enum dfl_status release_by_token(struct world *w, struct dfl_session *s)
{
    struct dfl_error err;
    struct dfl_call *call = NULL;
    enum dfl_status st =
        dfl_release_token(s, DFL_LOCK, "k", 1, TOKEN, false, NULL, w->now, &call, &err);

    if (st != DFL_OK)
        return st;
    st = dfl_call_status(call); /* an answer that is waited for comes later */
    dfl_call_free(call, w->now);
    return st;
}

static void a_token_in_time_is_released_without_waiting(void **state)
{
    struct world *w = *state;

    world_take(w, "k");
    world_pass(w, LEASE_S * 1000 / 2);
    assert_int_equal(release_by_token(w, w->session), DFL_OK);
    world_take(w, "k");
    world_pass(w, LEASE_S * 1000 / 2);
    assert_int_equal(release_by_token(w, w->other), DFL_OK);
}

/* True without waiting means: was held by our clock when it was sent. */
static void a_token_whose_lease_is_over_is_not_said_to_be_released(void **state)
{
    struct world *w = *state;

    world_take(w, "k");
    world_pass(w, LEASE_S * 1000);
    assert_int_not_equal(release_by_token(w, w->session), DFL_OK);
    assert_false(world_holds(w, "k"));
    world_settle(w);
}

static void nor_one_of_another_session(void **state)
{
    struct world *w = *state;

    world_take(w, "k");
    world_pass(w, LEASE_S * 1000);
    assert_int_not_equal(release_by_token(w, w->other), DFL_OK);
    world_settle(w);
}

static void what_is_over_does_not_count_in_release_all(void **state)
{
    struct world *w = *state;
    struct dfl_error err;
    struct dfl_call *call;

    world_take(w, "k");
    world_pass(w, LEASE_S * 1000);
    assert_int_equal(dfl_release_all(w->session, false, NULL, w->now, &call, &err), DFL_OK);
    assert_int_equal(dfl_call_status(call), DFL_OK);
    assert_int_equal(dfl_call_seconds(call), 0);
    dfl_call_free(call, w->now);
    assert_null(dfl_session_hold(w->session, "k", 1, DFL_ANY_KIND, w->now)); /* forgotten */
}

/* What the server said in time and nobody read in time: somebody may have looked at the clock. */
static void an_answer_read_after_the_lease_brings_nothing_back(void **state)
{
    struct world *w = *state;

    world_take(w, "k");
    world_pass(w, LEASE_S * 1000 / 2);
    world_settle(w); /* renewed */
    world_pass(w, LEASE_S * 1000 / 2);
    w->answers['n'] = NULL;
    world_settle(w); /* asked for */
    world_say(w, 0, "ok 10");
    world_pass(w, LEASE_S * 1000 / 2);
    world_settle(w);
    assert_false(world_holds(w, "k"));
}

static void nor_does_one_read_after_the_connection_s_deadline(void **state)
{
    struct world *w = *state;

    w->answers['l'] = "ok " TOKEN " 3600";
    w->answers['n'] = NULL;
    world_take(w, "k");
    world_pass(w, w->settings.keepalive_ms);
    world_settle(w); /* asked for a sign of life */
    world_say(w, 0, "ok 3600");
    world_pass(w, w->settings.server_read_timeout_ms - w->settings.keepalive_ms);
    world_settle(w);
    assert_false(world_holds(w, "k"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_token_in_time_is_released_without_waiting, world_open,
                                        world_close),
        cmocka_unit_test_setup_teardown(a_token_whose_lease_is_over_is_not_said_to_be_released,
                                        world_open, world_close),
        cmocka_unit_test_setup_teardown(nor_one_of_another_session, world_open, world_close),
        cmocka_unit_test_setup_teardown(what_is_over_does_not_count_in_release_all, world_open,
                                        world_close),
        cmocka_unit_test_setup_teardown(an_answer_read_after_the_lease_brings_nothing_back,
                                        world_open, world_close),
        cmocka_unit_test_setup_teardown(nor_does_one_read_after_the_connection_s_deadline,
                                        world_open, world_close),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
