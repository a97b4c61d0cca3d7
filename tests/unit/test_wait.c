/*
 * Readiness, with epoll and with poll: what is reported, what must not be any more, waking by
 * another thread, and how many system calls a plain wait costs.
 *
 * epoll_wait, epoll_ctl and poll are defined here in front of the C library's, to count them.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "dflockd.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define PATIENCE_MS 20000

/* ------------------------------------------------------------------ counts */

static atomic_int calls_wait, calls_ctl, calls_poll, last_timeout;

int epoll_wait(int set, struct epoll_event *events, int max, int timeout)
{
    calls_wait++;
    last_timeout = timeout;
    return (int)syscall(SYS_epoll_pwait, set, events, max, timeout, NULL, (size_t)8);
}

int epoll_ctl(int set, int op, int fd, struct epoll_event *event)
{
    calls_ctl++;
    return (int)syscall(SYS_epoll_ctl, set, op, fd, event);
}

static int counted_poll(struct pollfd *fds, nfds_t n, int timeout)
{
    struct timespec t = {timeout / 1000, timeout % 1000 * 1000000L};

    calls_poll++;
    last_timeout = timeout;
    return (int)syscall(SYS_ppoll, fds, n, timeout < 0 ? NULL : &t, NULL, (size_t)8);
}

int poll(struct pollfd *fds, nfds_t n, int timeout)
{
    return counted_poll(fds, n, timeout);
}

/* What a build with _FORTIFY_SOURCE calls instead, as Ubuntu's compiler does by itself. */
int __poll_chk(struct pollfd *fds, nfds_t n, int timeout, size_t size);
int __poll_chk(struct pollfd *fds, nfds_t n, int timeout, size_t size)
{
    assert_true(n * sizeof *fds <= size);
    return counted_poll(fds, n, timeout);
}

static void forget_counts(void)
{
    calls_wait = calls_ctl = calls_poll = 0;
    last_timeout = -77;
}

/* ----------------------------------------------------------------- fixture */

/* One wait object, one round, and what was reported. */
struct fixture {
    enum dfl_wait_kind kind;
    struct dfl_wait *w;
    struct dfl_wait_round round;
    struct {
        void *tag;
        unsigned events;
    } seen[400];
    size_t count;
    void (*while_ready)(struct fixture *f, void *tag); /* called from within the report */
    int aside;
};

static struct fixture *open_fixture(enum dfl_wait_kind kind)
{
    struct fixture *f = calloc(1, sizeof *f);

    if (!f || dfl_wait_new(kind, &f->w) != DFL_OK)
        abort();
    f->kind = kind;
    return f;
}

static int setup_epoll(void **state)
{
    *state = open_fixture(DFL_WAIT_EPOLL);
    return 0;
}

static int setup_poll(void **state)
{
    *state = open_fixture(DFL_WAIT_POLL);
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    dfl_wait_round_free(&f->round);
    dfl_wait_free(f->w);
    free(f);
    return 0;
}

static void on_ready(void *arg, void *tag, unsigned events)
{
    struct fixture *f = arg;

    assert_true(f->count < COUNT(f->seen));
    f->seen[f->count].tag = tag;
    f->seen[f->count++].events = events;
    if (f->while_ready)
        f->while_ready(f, tag);
}

static int block(struct fixture *f, int64_t timeout_ms, int extra_fd)
{
    assert_int_equal(dfl_wait_prepare(f->w, &f->round), DFL_OK);
    return dfl_wait_block(&f->round, timeout_ms, extra_fd);
}

static void dispatch(struct fixture *f)
{
    f->count = 0;
    dfl_wait_dispatch(f->w, &f->round, on_ready, f);
}

static void watch(struct fixture *f, int fd, unsigned events, void *tag)
{
    assert_int_equal(dfl_wait_watch(f->w, fd, events, tag), DFL_OK);
}

static void assert_saw(const struct fixture *f, const void *tag, unsigned events)
{
    for (size_t i = 0; i < f->count; i++)
        if (f->seen[i].tag == tag && f->seen[i].events == events)
            return;
    fail_msg("not reported");
}

static void open_pair(int pair[2])
{
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
}

static void close_pair(const int pair[2])
{
    close(pair[0]);
    close(pair[1]);
}

static void send_byte(int fd)
{
    assert_int_equal(write(fd, "x", 1), 1);
}

static char tag_a, tag_b;

/* ------------------------------------------------------------ what happens */

static void nothing_watched_waits_for_its_time(void **state)
{
    struct fixture *f = *state;
    int64_t before = dfl_clock().ms;

    assert_int_equal(block(f, 20, -1), 0);
    dispatch(f);
    assert_int_equal(f->count, 0);
    assert_true(dfl_clock().ms - before >= 19);
}

static void readable_is_reported_until_it_is_read(void **state)
{
    struct fixture *f = *state;
    int p[2];
    char byte;

    open_pair(p);
    watch(f, p[0], DFL_READABLE, &tag_a);
    assert_int_equal(block(f, 0, -1), 0);
    dispatch(f);
    assert_int_equal(f->count, 0);
    send_byte(p[1]);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(block(f, PATIENCE_MS, -1), 1);
        dispatch(f);
        assert_int_equal(f->count, 1);
        assert_saw(f, &tag_a, DFL_READABLE);
    }
    assert_int_equal(read(p[0], &byte, 1), 1);
    assert_int_equal(block(f, 0, -1), 0);
    dispatch(f);
    assert_int_equal(f->count, 0);
    watch(f, p[0], 0, NULL);
    close_pair(p);
}

static void only_what_is_watched_is_reported(void **state)
{
    struct fixture *f = *state;
    int p[2];

    open_pair(p);
    send_byte(p[1]);
    watch(f, p[0], DFL_WRITABLE, &tag_a);
    assert_int_equal(block(f, PATIENCE_MS, -1), 1);
    dispatch(f);
    assert_saw(f, &tag_a, DFL_WRITABLE);
    watch(f, p[0], DFL_READABLE | DFL_WRITABLE, &tag_b);
    assert_int_equal(block(f, PATIENCE_MS, -1), 1);
    dispatch(f);
    assert_int_equal(f->count, 1);
    assert_saw(f, &tag_b, DFL_READABLE | DFL_WRITABLE);
    watch(f, p[0], 0, NULL);
    close_pair(p);
}

/* Whoever watches for anything learns of the end, in the form that he watches for. */
static void a_closed_peer_is_reported(void **state)
{
    static const unsigned forms[] = {DFL_READABLE, DFL_WRITABLE, DFL_READABLE | DFL_WRITABLE};
    struct fixture *f = *state;

    for (size_t i = 0; i < COUNT(forms); i++) {
        int p[2];

        open_pair(p);
        close(p[1]);
        watch(f, p[0], forms[i], &tag_a);
        assert_int_equal(block(f, PATIENCE_MS, -1), 1);
        dispatch(f);
        assert_int_equal(f->count, 1);
        assert_saw(f, &tag_a, forms[i]);
        watch(f, p[0], 0, NULL);
        close(p[0]);
    }
}

static void forgotten_descriptors_are_silent(void **state)
{
    struct fixture *f = *state;
    int p[2];

    open_pair(p);
    send_byte(p[1]);
    watch(f, p[0], DFL_READABLE, &tag_a);
    watch(f, p[0], 0, NULL);
    watch(f, p[0], 0, NULL);    /* twice does nothing */
    watch(f, 100000, 0, NULL);  /* nor does one never seen */
    assert_int_equal(block(f, 0, -1), 0);
    dispatch(f);
    assert_int_equal(f->count, 0);
    close_pair(p);
}

static void all_of_many_are_reported(void **state)
{
    enum { MANY = 150 };
    struct fixture *f = *state;
    int pairs[MANY][2];
    char tags[MANY];
    bool seen[MANY] = {false};
    size_t missing = MANY;

    for (size_t i = 0; i < MANY; i++) {
        open_pair(pairs[i]);
        send_byte(pairs[i][1]);
        watch(f, pairs[i][0], DFL_READABLE, &tags[i]);
    }
    for (int round = 0; missing > 0 && round < MANY; round++) {
        assert_true(block(f, PATIENCE_MS, -1) > 0);
        dispatch(f);
        for (size_t i = 0; i < f->count; i++) {
            size_t which = (size_t)((char *)f->seen[i].tag - tags);

            missing -= !seen[which];
            seen[which] = true;
        }
    }
    assert_int_equal(missing, 0);
    for (size_t i = 0; i < MANY; i++) {
        watch(f, pairs[i][0], 0, NULL);
        close_pair(pairs[i]);
    }
    assert_int_equal(block(f, 0, -1), 0);
    dispatch(f);
}

static void a_descriptor_that_cannot_be_is_refused(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(dfl_wait_watch(f->w, -1, DFL_READABLE, NULL), DFL_INTERNAL);
}

/* --------------------------------------- between the wait and its dispatch */

static void forgotten_meanwhile_is_not_reported(void **state)
{
    struct fixture *f = *state;
    int p[2];

    open_pair(p);
    send_byte(p[1]);
    watch(f, p[0], DFL_READABLE, &tag_a);
    assert_int_equal(block(f, PATIENCE_MS, -1), 1);
    watch(f, p[0], 0, NULL);
    dispatch(f);
    assert_int_equal(f->count, 0);
    close_pair(p);
}

/* The worst case: same number, same tag, another socket. */
static void a_reused_descriptor_does_not_inherit_the_report(void **state)
{
    struct fixture *f = *state;
    int old[2], new[2];

    open_pair(old);
    open_pair(new);
    send_byte(old[1]);
    watch(f, old[0], DFL_READABLE, &tag_a);
    assert_int_equal(block(f, PATIENCE_MS, -1), 1);
    watch(f, old[0], 0, NULL);
    assert_int_equal(dup2(new[0], old[0]), old[0]);
    watch(f, old[0], DFL_READABLE, &tag_a);
    dispatch(f);
    assert_int_equal(f->count, 0);

    assert_int_equal(block(f, 0, -1), 0);
    dispatch(f);
    assert_int_equal(f->count, 0);
    send_byte(new[1]);
    assert_int_equal(block(f, PATIENCE_MS, -1), 1);
    dispatch(f);
    assert_saw(f, &tag_a, DFL_READABLE);
    watch(f, old[0], 0, NULL);
    close_pair(old);
    close_pair(new);
}

static void what_is_watched_no_more_is_not_reported(void **state)
{
    struct fixture *f = *state;
    int p[2];

    open_pair(p);
    watch(f, p[0], DFL_READABLE | DFL_WRITABLE, &tag_a);
    assert_int_equal(block(f, PATIENCE_MS, -1), 1);
    watch(f, p[0], DFL_READABLE, &tag_a);
    dispatch(f);
    assert_int_equal(f->count, 0);
    watch(f, p[0], 0, NULL);
    close_pair(p);
}

static void forget_aside(struct fixture *f, void *tag)
{
    (void)tag;
    if (f->aside >= 0)
        watch(f, f->aside, 0, NULL);
    f->aside = -1;
}

/* A handler that closes other connections, as an error on a control connection does. */
static void a_report_may_forget_what_would_come_next(void **state)
{
    struct fixture *f = *state;
    int a[2], b[2];

    open_pair(a);
    open_pair(b);
    send_byte(a[1]);
    send_byte(b[1]);
    watch(f, a[0], DFL_READABLE, &tag_a);
    watch(f, b[0], DFL_READABLE, &tag_b);
    assert_int_equal(block(f, PATIENCE_MS, -1), 2);
    f->while_ready = forget_aside;
    f->aside = b[0];
    dispatch(f);
    /* Whichever came first: b was forgotten then, and a is reported in any case. */
    assert_saw(f, &tag_a, DFL_READABLE);
    f->while_ready = NULL;
    assert_int_equal(block(f, PATIENCE_MS, -1), 1);
    dispatch(f);
    assert_int_equal(f->count, 1);
    assert_saw(f, &tag_a, DFL_READABLE);
    watch(f, a[0], 0, NULL);
    close_pair(a);
    close_pair(b);
}

static void watch_a_crowd(struct fixture *f, void *tag)
{
    (void)tag;
    for (int i = 0; i < 300; i++) {
        int fd = fcntl(f->aside, F_DUPFD_CLOEXEC, 100 + i);

        assert_true(fd >= 0);
        watch(f, fd, DFL_WRITABLE, &tag_b);
    }
}

static void a_report_may_make_the_table_grow(void **state)
{
    struct fixture *f = *state;
    int p[2];

    open_pair(p);
    send_byte(p[1]);
    watch(f, p[0], DFL_READABLE, &tag_a);
    assert_int_equal(block(f, PATIENCE_MS, -1), 1);
    f->while_ready = watch_a_crowd;
    f->aside = p[1];
    dispatch(f);
    f->while_ready = NULL;
    assert_int_equal(f->count, 1);
    assert_true(block(f, PATIENCE_MS, -1) > 1);
    dispatch(f);
    for (int fd = 100; fd < 1000; fd++) {
        watch(f, fd, 0, NULL);
        close(fd);
    }
    watch(f, p[0], 0, NULL);
    close_pair(p);
}

/* ---------------------------------------------------------- the extra one */

static void the_extra_descriptor_wakes_and_is_not_reported(void **state)
{
    struct fixture *f = *state;
    int p[2], extra[2];

    open_pair(p);
    open_pair(extra);
    watch(f, p[0], DFL_READABLE, &tag_a);
    assert_int_equal(block(f, 0, extra[0]), 0);
    dispatch(f);
    send_byte(extra[1]);
    assert_int_equal(block(f, PATIENCE_MS, extra[0]), 1);
    dispatch(f);
    assert_int_equal(f->count, 0);
    send_byte(p[1]);
    assert_int_equal(block(f, PATIENCE_MS, extra[0]), 2);
    dispatch(f);
    assert_int_equal(f->count, 1);
    assert_saw(f, &tag_a, DFL_READABLE);
    /* It was for that one wait only. */
    assert_int_equal(block(f, PATIENCE_MS, -1), 1);
    dispatch(f);
    watch(f, p[0], 0, NULL);
    assert_int_equal(block(f, 0, -1), 0);
    dispatch(f);
    close_pair(p);
    close_pair(extra);
}

static void watched_ones_wake_beside_an_extra_one(void **state)
{
    struct fixture *f = *state;
    int p[2], extra[2];

    open_pair(p);
    open_pair(extra);
    watch(f, p[0], DFL_READABLE, &tag_a);
    send_byte(p[1]);
    assert_int_equal(block(f, -1, extra[0]), 1);
    dispatch(f);
    assert_saw(f, &tag_a, DFL_READABLE);
    watch(f, p[0], 0, NULL);
    close_pair(p);
    close_pair(extra);
}

/* ------------------------------------------------------------ system calls */

static void a_plain_wait_is_one_system_call(void **state)
{
    struct fixture *f = *state;
    int p[2];

    open_pair(p);
    watch(f, p[0], DFL_READABLE, &tag_a);
    send_byte(p[1]);
    assert_int_equal(block(f, PATIENCE_MS, -1), 1); /* the first one allocates */
    dispatch(f);
    forget_counts();
    assert_int_equal(block(f, PATIENCE_MS, -1), 1);
    dispatch(f);
    watch(f, p[0], DFL_READABLE, &tag_a); /* as it is already */
    assert_int_equal(f->count, 1);
    assert_int_equal(calls_wait + calls_poll, 1);
    assert_int_equal(calls_wait, f->kind == DFL_WAIT_EPOLL);
    assert_int_equal(calls_ctl, 0);
    watch(f, p[0], 0, NULL);
    close_pair(p);
}

static void long_timeouts_are_clamped(void **state)
{
    static const struct {
        int64_t ms;
        int timeout;
    } cases[] = {{INT64_C(1) << 32, INT_MAX}, {INT64_MAX, INT_MAX}, {INT_MAX, INT_MAX},
                 {-1, -1},                    {INT64_MIN, -1},      {0, 0}};
    struct fixture *f = *state;
    int p[2];

    open_pair(p);
    send_byte(p[1]);
    watch(f, p[0], DFL_READABLE, &tag_a);
    for (size_t i = 0; i < COUNT(cases); i++) {
        forget_counts();
        assert_int_equal(block(f, cases[i].ms, -1), 1);
        dispatch(f);
        assert_int_equal(last_timeout, cases[i].timeout);
    }
    watch(f, p[0], 0, NULL);
    close_pair(p);
}

/* ----------------------------------------------------------------- threads */

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

    open_pair(p);
    send_byte(p[1]);
    for (size_t i = 0; i < COUNT(waiters); i++)
        start(&waiters[i], f, &lock, wait_until_seen);
    pthread_mutex_lock(&lock);
    watch(f, p[0], DFL_READABLE, &tag_a);
    pthread_mutex_unlock(&lock);
    for (size_t i = 0; i < COUNT(waiters); i++) {
        pthread_join(waiters[i].thread, NULL);
        assert_true(waiters[i].saw);
    }
    /* They were woken, they did not just come to the end of their patience. */
    assert_true(dfl_clock().ms - before < PATIENCE_MS / 2);
    assert_int_equal(block(f, 0, -1), 1);
    dispatch(f);
    watch(f, p[0], 0, NULL);
    assert_int_equal(block(f, 0, -1), 0); /* no wake-up is left over */
    dispatch(f);
    close_pair(p);
}

/* The same again and again: each wake-up is used up, none is lost. */
static void wakings_can_be_repeated(void **state)
{
    struct fixture *f = *state;
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

    for (int i = 0; i < 20; i++) {
        struct waiter waiter;
        int p[2];

        open_pair(p);
        send_byte(p[1]);
        start(&waiter, f, &lock, wait_until_seen);
        pthread_mutex_lock(&lock);
        watch(f, p[0], DFL_READABLE, &tag_a);
        pthread_mutex_unlock(&lock);
        pthread_join(waiter.thread, NULL);
        assert_true(waiter.saw);
        assert_in_range(waiter.rounds, 1, 3);
        watch(f, p[0], 0, NULL);
        close_pair(p);
    }
}

/* One that leaves must not take the wake-up away from one that has yet to see it. */
static void a_wake_up_is_for_all_who_had_prepared(void **state)
{
    struct fixture *f = *state;
    struct dfl_wait_round late = {NULL};
    int64_t before = dfl_clock().ms;
    int p[2];

    open_pair(p);
    send_byte(p[1]);
    assert_int_equal(dfl_wait_prepare(f->w, &f->round), DFL_OK);
    assert_int_equal(dfl_wait_prepare(f->w, &late), DFL_OK);
    watch(f, p[0], DFL_READABLE, &tag_a);
    dfl_wait_block(&f->round, PATIENCE_MS, -1);
    dispatch(f);
    dfl_wait_block(&late, PATIENCE_MS, -1);
    dfl_wait_dispatch(f->w, &late, on_ready, f);
    assert_true(dfl_clock().ms - before < PATIENCE_MS / 2);
    dfl_wait_round_free(&late);
    watch(f, p[0], 0, NULL);
    close_pair(p);
}

static void a_wake_up_alone_is_nothing_ready(void **state)
{
    struct fixture *f = *state;
    int p[2];

    open_pair(p);
    assert_int_equal(dfl_wait_prepare(f->w, &f->round), DFL_OK);
    watch(f, p[0], DFL_READABLE, &tag_a);
    assert_int_equal(dfl_wait_block(&f->round, 0, -1), 0);
    dispatch(f);
    assert_int_equal(f->count, 0);
    watch(f, p[0], 0, NULL);
    close_pair(p);
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

/* ------------------------------------------------------------- life, clock */

static void a_round_can_be_prepared_again_without_dispatch(void **state)
{
    struct fixture *f = *state;
    int p[2];

    open_pair(p);
    for (int i = 0; i < 3; i++)
        assert_int_equal(dfl_wait_prepare(f->w, &f->round), DFL_OK);
    watch(f, p[0], DFL_READABLE, &tag_a);
    dispatch(f);
    assert_int_equal(block(f, 0, -1), 0);
    dispatch(f);
    watch(f, p[0], 0, NULL);
    close_pair(p);
}

static void a_round_may_serve_another_kind(void **state)
{
    struct fixture *f = *state;
    struct dfl_wait *other;
    int p[2];

    assert_int_equal(block(f, 0, -1), 0);
    dispatch(f);
    assert_int_equal(dfl_wait_new(f->kind == DFL_WAIT_POLL ? DFL_WAIT_EPOLL : DFL_WAIT_POLL,
                                  &other), DFL_OK);
    open_pair(p);
    send_byte(p[1]);
    assert_int_equal(dfl_wait_watch(other, p[0], DFL_READABLE, &tag_b), DFL_OK);
    assert_int_equal(dfl_wait_prepare(other, &f->round), DFL_OK);
    assert_int_equal(dfl_wait_block(&f->round, PATIENCE_MS, -1), 1);
    dfl_wait_dispatch(other, &f->round, on_ready, f);
    assert_saw(f, &tag_b, DFL_READABLE);
    dfl_wait_round_free(&f->round);
    dfl_wait_free(other);
    close_pair(p);
}

static void the_descriptor_of_epoll_says_that_something_is_ready(void **state)
{
    struct fixture *f = *state;
    int fd = dfl_wait_descriptor(f->w), p[2];

    if (f->kind == DFL_WAIT_POLL) {
        assert_int_equal(fd, -1);
        return;
    }

    struct pollfd set = {fd, POLLIN, 0};

    assert_int_equal(fcntl(fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    open_pair(p);
    watch(f, p[0], DFL_READABLE, &tag_a);
    assert_int_equal(poll(&set, 1, 0), 0);
    send_byte(p[1]);
    assert_int_equal(poll(&set, 1, PATIENCE_MS), 1);
    watch(f, p[0], 0, NULL);
    close_pair(p);
}

static size_t open_descriptors(void)
{
    size_t n = 0;

    for (int fd = 0; fd < 1024; fd++)
        n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

static void abandoning_closes_once(void **state)
{
    struct fixture *f = *state;
    size_t before = open_descriptors();
    struct dfl_wait *w;
    int p[2], spare[2];

    assert_int_equal(dfl_wait_new(f->kind, &w), DFL_OK);
    open_pair(p);
    assert_int_equal(dfl_wait_watch(w, p[0], DFL_READABLE, &tag_a), DFL_OK);
    dfl_wait_abandon(w);
    assert_int_equal(open_descriptors(), before + 2); /* the watched one is not its own */
    open_pair(spare); /* gets the numbers that became free */
    dfl_wait_free(w);
    assert_int_equal(open_descriptors(), before + 4);
    close_pair(p);
    close_pair(spare);
    dfl_wait_free(NULL);
    dfl_wait_round_free(&(struct dfl_wait_round){NULL});
}

static void the_default_is_epoll_here(void **state)
{
    struct dfl_wait *w;

    (void)state;
    assert_int_equal(dfl_wait_new(DFL_WAIT_DEFAULT, &w), DFL_OK);
    assert_true(dfl_wait_descriptor(w) >= 0);
    dfl_wait_free(w);
}

static void the_clock_goes_forward_in_all_its_units(void **state)
{
    struct dfl_now last = dfl_clock();

    (void)state;
    assert_true(llabs(last.wall_ms / 1000 - (int64_t)time(NULL)) <= 2);
    for (int i = 0; i < 1000; i++) {
        struct dfl_now now = dfl_clock();

        assert_true(now.us >= last.us && now.ms >= last.ms);
        assert_true(now.ms == now.us / 1000);
        last = now;
    }
}

#define BOTH(test)                                                                             \
    {#test " (epoll)", test, setup_epoll, teardown, NULL}, {                                   \
        #test " (poll)", test, setup_poll, teardown, NULL                                      \
    }

int main(void)
{
    const struct CMUnitTest tests[] = {
        BOTH(nothing_watched_waits_for_its_time),
        BOTH(readable_is_reported_until_it_is_read),
        BOTH(only_what_is_watched_is_reported),
        BOTH(a_closed_peer_is_reported),
        BOTH(forgotten_descriptors_are_silent),
        BOTH(all_of_many_are_reported),
        BOTH(a_descriptor_that_cannot_be_is_refused),
        BOTH(forgotten_meanwhile_is_not_reported),
        BOTH(a_reused_descriptor_does_not_inherit_the_report),
        BOTH(what_is_watched_no_more_is_not_reported),
        BOTH(a_report_may_forget_what_would_come_next),
        BOTH(a_report_may_make_the_table_grow),
        BOTH(the_extra_descriptor_wakes_and_is_not_reported),
        BOTH(watched_ones_wake_beside_an_extra_one),
        BOTH(a_plain_wait_is_one_system_call),
        BOTH(long_timeouts_are_clamped),
        BOTH(watching_wakes_every_thread_that_blocks),
        BOTH(wakings_can_be_repeated),
        BOTH(a_wake_up_is_for_all_who_had_prepared),
        BOTH(a_wake_up_alone_is_nothing_ready),
        BOTH(a_signal_ends_a_wait_with_nothing_ready),
        BOTH(a_round_can_be_prepared_again_without_dispatch),
        BOTH(a_round_may_serve_another_kind),
        BOTH(the_descriptor_of_epoll_says_that_something_is_ready),
        BOTH(abandoning_closes_once),
        cmocka_unit_test(the_default_is_epoll_here),
        cmocka_unit_test(the_clock_goes_forward_in_all_its_units),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
