/* Readiness with several threads: what wakes those that block, and what a signal does. */
#include "waitfixture.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* A thread that waits as the renewal thread of a host does: the lock is free while it blocks. */
struct waiter {
    struct fixture *f;
    pthread_mutex_t *lock;
    pthread_t thread;
    struct dfl_wait_round round;
    int64_t give_up_ms;
    atomic_bool blocking, saw, done;
    atomic_int rounds, returned;
};

static void note(void *arg, void *tag, unsigned events)
{
    struct waiter *w = arg;

    if (tag == &tag_a && events == DFL_READABLE)
        w->saw = true;
}

static void *wait_until_seen(void *arg)
{
    struct waiter *w = arg;

    while (!w->saw && dfl_clock().ms < w->give_up_ms) {
        pthread_mutex_lock(w->lock);
        if (dfl_wait_prepare(w->f->w, &w->round) != DFL_OK)
            abort();
        pthread_mutex_unlock(w->lock);
        w->blocking = true;
        dfl_wait_block(&w->round, PATIENCE_MS, -1);
        w->rounds++;
        pthread_mutex_lock(w->lock);
        dfl_wait_dispatch(w->f->w, &w->round, note, w);
        pthread_mutex_unlock(w->lock);
    }
    pthread_mutex_lock(w->lock);
    dfl_wait_round_free(&w->round);
    pthread_mutex_unlock(w->lock);
    w->done = true;
    return NULL;
}

static void start(struct waiter *w, struct fixture *f, pthread_mutex_t *lock, void *(*run)(void *))
{
    memset(w, 0, sizeof *w);
    w->f = f;
    w->lock = lock;
    w->give_up_ms = dfl_clock().ms + PATIENCE_MS;
    assert_int_equal(pthread_create(&w->thread, NULL, run, w), 0);
    while (!w->blocking)
        sched_yield();
}

static void watching_wakes_every_thread_that_blocks(void **state)
{
    struct fixture *f = *state;
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    struct waiter waiters[3];
    int64_t before = dfl_clock().ms;
    int p[2];

    pair_open(p);
    send_byte(p[1]);
    for (size_t i = 0; i < COUNT(waiters); i++)
        start(&waiters[i], f, &lock, wait_until_seen);
    pthread_mutex_lock(&lock);
    fixture_watch(f, p[0], DFL_READABLE, &tag_a);
    pthread_mutex_unlock(&lock);
    for (size_t i = 0; i < COUNT(waiters); i++) {
        pthread_join(waiters[i].thread, NULL);
        assert_true(waiters[i].saw);
    }
    /* They were woken, they did not just come to the end of their patience. */
    assert_true(dfl_clock().ms - before < PATIENCE_MS / 2);
    assert_int_equal(fixture_block(f, 0, -1), 1);
    fixture_dispatch(f);
    fixture_watch(f, p[0], 0, NULL);
    assert_int_equal(fixture_block(f, 0, -1), 0); /* no wake-up is left over */
    fixture_dispatch(f);
    pair_close(p);
}

/* The same again and again: each wake-up is used up, none is lost. */
static void wakings_can_be_repeated(void **state)
{
    struct fixture *f = *state;
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

    for (int i = 0; i < 20; i++) {
        struct waiter waiter;
        int p[2];

        pair_open(p);
        send_byte(p[1]);
        start(&waiter, f, &lock, wait_until_seen);
        pthread_mutex_lock(&lock);
        fixture_watch(f, p[0], DFL_READABLE, &tag_a);
        pthread_mutex_unlock(&lock);
        pthread_join(waiter.thread, NULL);
        assert_true(waiter.saw);
        assert_in_range(waiter.rounds, 1, 3);
        fixture_watch(f, p[0], 0, NULL);
        pair_close(p);
    }
}

/* One that leaves must not take the wake-up away from one that has yet to see it. */
static void a_wake_up_is_for_all_who_had_prepared(void **state)
{
    struct fixture *f = *state;
    struct dfl_wait_round late = {NULL};
    int64_t before = dfl_clock().ms;
    int p[2];

    pair_open(p);
    send_byte(p[1]);
    assert_int_equal(dfl_wait_prepare(f->w, &f->round), DFL_OK);
    assert_int_equal(dfl_wait_prepare(f->w, &late), DFL_OK);
    fixture_watch(f, p[0], DFL_READABLE, &tag_a);
    dfl_wait_block(&f->round, PATIENCE_MS, -1);
    fixture_dispatch(f);
    dfl_wait_block(&late, PATIENCE_MS, -1);
    dfl_wait_dispatch(f->w, &late, fixture_on_ready, f);
    assert_true(dfl_clock().ms - before < PATIENCE_MS / 2);
    dfl_wait_round_free(&late);
    fixture_watch(f, p[0], 0, NULL);
    pair_close(p);
}

static void a_wake_up_alone_is_nothing_ready(void **state)
{
    struct fixture *f = *state;
    int p[2];

    pair_open(p);
    assert_int_equal(dfl_wait_prepare(f->w, &f->round), DFL_OK);
    fixture_watch(f, p[0], DFL_READABLE, &tag_a);
    assert_int_equal(dfl_wait_block(&f->round, 0, -1), 0);
    fixture_dispatch(f);
    assert_int_equal(f->count, 0);
    fixture_watch(f, p[0], 0, NULL);
    pair_close(p);
}

static void *wait_once(void *arg)
{
    struct waiter *w = arg;

    pthread_mutex_lock(w->lock);
    if (dfl_wait_prepare(w->f->w, &w->round) != DFL_OK)
        abort();
    pthread_mutex_unlock(w->lock);
    w->blocking = true;
    w->returned = dfl_wait_block(&w->round, PATIENCE_MS, -1);
    w->done = true;
    pthread_mutex_lock(w->lock);
    dfl_wait_dispatch(w->f->w, &w->round, note, w);
    dfl_wait_round_free(&w->round);
    pthread_mutex_unlock(w->lock);
    return NULL;
}

static void on_signal(int number)
{
    (void)number;
}

static void a_signal_ends_a_wait_with_nothing_ready(void **state)
{
    struct fixture *f = *state;
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    struct sigaction action = {.sa_handler = on_signal}, before;
    int64_t began = dfl_clock().ms;
    struct waiter waiter;

    sigaction(SIGUSR1, &action, &before);
    start(&waiter, f, &lock, wait_once);
    /* Again and again, for the first ones may come just before it blocks. */
    while (!waiter.done) {
        pthread_kill(waiter.thread, SIGUSR1);
        sched_yield();
    }
    pthread_join(waiter.thread, NULL);
    sigaction(SIGUSR1, &before, NULL);
    assert_int_equal(waiter.returned, 0);
    assert_false(waiter.saw);
    assert_true(dfl_clock().ms - began < PATIENCE_MS / 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        BOTH(watching_wakes_every_thread_that_blocks), BOTH(wakings_can_be_repeated),
        BOTH(a_wake_up_is_for_all_who_had_prepared),   BOTH(a_wake_up_alone_is_nothing_ready),
        BOTH(a_signal_ends_a_wait_with_nothing_ready),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
