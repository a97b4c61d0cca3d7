/* The engine without memory: what a call leaves that cannot begin or be sent, and what becomes of a
 * grant that cannot be given back. */
#include "engineworld.h"

/* The linker puts this in front of the engine's malloc. */
void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);

static int until_none; /* the one of the next allocations that fails; 0 = none */

void *__wrap_malloc(size_t size)
{
    if (until_none > 0 && --until_none == 0)
        return NULL;
    return __real_malloc(size);
}

static void release_without_memory(struct world *w, enum dfl_kind kind, int allocation,
                                   enum dfl_status *started, enum dfl_status *ended)
{
    struct dfl_error err = {.text = ""};
    struct dfl_call *call = NULL;

    until_none = allocation;
    *started =
        dfl_release_token(w->session, kind, "unknown", 7, TOKEN, true, NULL, w->now, &call, &err);
    until_none = 0;
    *ended = *started;
    if (*started != DFL_OK) {
        assert_string_equal(err.text, "out of memory");
        return;
    }
    *ended = dfl_call_status(call);
    dfl_call_free(call, w->now);
}

/* A call that stayed behind would keep the host from seeing to what others leave. */
static void a_release_that_cannot_begin_leaves_no_call(void **state)
{
    struct world *w = *state;
    struct dfl_call *call;
    enum dfl_status started, ended;

    world_take(w, "k");
    release_without_memory(w, DFL_LOCK, 1, &started, &ended);
    assert_int_equal(started, DFL_NOMEM);
    call = world_acquire(w, "j", 0);
    dfl_call_free(call, w->now); /* its grant is to be given back */
    assert_true(dfl_client_left_behind(w->client));
    world_settle(w);
}

static void a_release_that_cannot_be_sent_leaves_no_connection(void **state)
{
    struct world *w = *state;
    enum dfl_status started, ended;

    release_without_memory(w, DFL_SEMAPHORE, 2, &started, &ended);
    assert_int_equal(started, DFL_OK);
    assert_int_equal(ended, DFL_NOMEM);
    assert_int_equal(world_connections(w), 0);
}

static void nor_does_it_take_what_another_session_holds(void **state)
{
    struct world *w = *state;
    struct dfl_error err;
    struct dfl_call *call;

    world_take(w, "k");
    until_none = 1;
    assert_int_equal(
        dfl_release_token(w->other, DFL_LOCK, "k", 1, TOKEN, true, NULL, w->now, &call, &err),
        DFL_OK);
    until_none = 0;
    assert_int_equal(dfl_call_status(call), DFL_NOMEM);
    dfl_call_free(call, w->now);
    assert_true(world_holds(w, "k"));
}

/* ------------------------------------------------- a grant that nobody waits for */

/* Over the control connection, which has others to care for. */
static void one_that_cannot_be_given_back_costs_no_other_hold(void **state)
{
    struct world *w = *state;
    struct dfl_call *call;

    world_take(w, "k");
    w->answers['l'] = NULL;
    call = world_acquire(w, "j", 0);
    dfl_call_free(call, w->now);
    world_say(w, 0, "ok " TOKEN " 10");
    until_none = 1;
    world_settle(w);
    assert_int_equal(until_none, 0);
    assert_true(world_holds(w, "k"));
}

/* Over one that has nothing else: the server releases what a closed connection holds. */
static void its_connection_is_not_used_again(void **state)
{
    struct world *w = *state;
    struct dfl_request_args a = {.key = "s", .key_len = 1, .kind = DFL_SEMAPHORE, .slots = 2};
    struct dfl_error err;
    struct dfl_call *call;

    w->answers['l'] = NULL;
    assert_int_equal(dfl_acquire(w->session, &a, w->now, &call, &err), DFL_OK);
    world_settle(w); /* the hello, then the request */
    dfl_call_free(call, w->now);
    assert_int_equal(world_connections(w), 1);
    world_say(w, 0, "ok " TOKEN " 10");
    until_none = 1;
    world_settle(w);
    assert_int_equal(until_none, 0);
    assert_int_equal(world_connections(w), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_release_that_cannot_begin_leaves_no_call, world_open,
                                        world_close),
        cmocka_unit_test_setup_teardown(a_release_that_cannot_be_sent_leaves_no_connection,
                                        world_open, world_close),
        cmocka_unit_test_setup_teardown(nor_does_it_take_what_another_session_holds, world_open,
                                        world_close),
        cmocka_unit_test_setup_teardown(one_that_cannot_be_given_back_costs_no_other_hold,
                                        world_open, world_close),
        cmocka_unit_test_setup_teardown(its_connection_is_not_used_again, world_open, world_close),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
