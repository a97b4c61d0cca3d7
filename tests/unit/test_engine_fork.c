/* The engine and a child that another thread forks at any moment: what it is left with can be read,
 * whatever was being freed. */
#include <malloc.h>
#include <stdio.h>
#include <string.h>

#include "engineworld.h"

/* The linker puts these in front of the engine's. What is freed is unreadable before the child
 * looks. */
void *__real_malloc(size_t size);
void *__real_realloc(void *at, size_t size);
void __real_free(void *at);
void *__wrap_realloc(void *at, size_t size);
void __wrap_free(void *at);

static struct dfl_client *forked; /* the client that a child might find; NULL: none is forked */
static unsigned children;

static void spoil_and_fork(void *freed)
{
    memset(freed, 0x55, malloc_usable_size(freed));
    dfl_client_abandon(forked);
    children++;
}

void __wrap_free(void *at)
{
    if (at && forked)
        spoil_and_fork(at);
    __real_free(at);
}

/* Never in place. */
void *__wrap_realloc(void *at, size_t size)
{
    void *moved;
    size_t old;

    if (!at || !forked)
        return __real_realloc(at, size);
    old = malloc_usable_size(at);
    moved = malloc(size);
    assert_non_null(moved);
    memcpy(moved, at, old < size ? old : size);
    spoil_and_fork(at);
    __real_free(at);
    return moved;
}

#define CONNECTIONS 40

static void enqueue(struct world *w, const char *key)
{
    struct dfl_request_args a = {.key = key, .key_len = strlen(key)};
    struct dfl_error err;
    struct dfl_call *call;

    assert_int_equal(dfl_enqueue(w->session, &a, w->now, &call, &err), DFL_OK);
    world_settle(w);
    assert_int_equal(dfl_call_status(call), DFL_OK);
    dfl_call_free(call, w->now);
}

static void connections_come_and_go(void **state)
{
    struct world *w = *state;
    char key[CONNECTIONS][8];

    children = 0;
    forked = w->client;
    w->answers['e'] = "queued";
    w->answers['w'] = NULL;
    for (int i = 0; i < CONNECTIONS; i++) {
        snprintf(key[i], sizeof key[i], "k%d", i);
        enqueue(w, key[i]);
    }
    assert_int_equal(world_connections(w), CONNECTIONS);
    for (int i = 0; i < CONNECTIONS; i++)
        assert_true(dfl_cancel(w->session, key[i], strlen(key[i]), w->now));
    assert_int_equal(world_connections(w), 0);
    forked = NULL;
    assert_true(children > CONNECTIONS);
}

/* An old server closes on the hello, and is dialled again. */
static void a_connection_is_dialled_again(void **state)
{
    struct world *w = *state;
    struct dfl_call *call;

    children = 0;
    forked = w->client;
    w->answers['p'] = world_end;
    call = world_acquire(w, "k", 0);
    world_settle(w);
    assert_int_equal(dfl_call_status(call), DFL_OK);
    assert_int_equal(w->link_count, 2);
    forked = NULL;
    dfl_call_free(call, w->now);
    assert_true(children > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(connections_come_and_go, world_open, world_close),
        cmocka_unit_test_setup_teardown(a_connection_is_dialled_again, world_open, world_close),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
