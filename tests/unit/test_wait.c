/* Readiness, with epoll and with poll: what is reported, and what must not be any more. */
#include "waitfixture.h"

#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

/* ------------------------------------------------------------ what happens */

static void nothing_watched_waits_for_its_time(void **state)
{
    struct fixture *f = *state;
    int64_t before = dfl_clock().ms;

    assert_int_equal(fixture_block(f, 20, -1), 0);
    fixture_dispatch(f);
    assert_int_equal(f->count, 0);
    assert_true(dfl_clock().ms - before >= 19);
}

static void readable_is_reported_until_it_is_read(void **state)
{
    struct fixture *f = *state;
    int p[2];
    char byte;

    pair_open(p);
    fixture_watch(f, p[0], DFL_READABLE, &tag_a);
    assert_int_equal(fixture_block(f, 0, -1), 0);
    fixture_dispatch(f);
    assert_int_equal(f->count, 0);
    send_byte(p[1]);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(fixture_block(f, PATIENCE_MS, -1), 1);
        fixture_dispatch(f);
        assert_int_equal(f->count, 1);
        fixture_saw(f, &tag_a, DFL_READABLE);
    }
    assert_int_equal(read(p[0], &byte, 1), 1);
    assert_int_equal(fixture_block(f, 0, -1), 0);
    fixture_dispatch(f);
    assert_int_equal(f->count, 0);
    fixture_watch(f, p[0], 0, NULL);
    pair_close(p);
}

static void only_what_is_watched_is_reported(void **state)
{
    struct fixture *f = *state;
    int p[2];

    pair_open(p);
    send_byte(p[1]);
    fixture_watch(f, p[0], DFL_WRITABLE, &tag_a);
    assert_int_equal(fixture_block(f, PATIENCE_MS, -1), 1);
    fixture_dispatch(f);
    fixture_saw(f, &tag_a, DFL_WRITABLE);
    fixture_watch(f, p[0], DFL_READABLE | DFL_WRITABLE, &tag_b);
    assert_int_equal(fixture_block(f, PATIENCE_MS, -1), 1);
    fixture_dispatch(f);
    assert_int_equal(f->count, 1);
    fixture_saw(f, &tag_b, DFL_READABLE | DFL_WRITABLE);
    fixture_watch(f, p[0], 0, NULL);
    pair_close(p);
}

/* Whoever watches for anything learns of the end, in the form that he watches for. */
static void a_closed_peer_is_reported(void **state)
{
    static const unsigned forms[] = {DFL_READABLE, DFL_WRITABLE, DFL_READABLE | DFL_WRITABLE};
    struct fixture *f = *state;

    for (size_t i = 0; i < COUNT(forms); i++) {
        int p[2];

        pair_open(p);
        close(p[1]);
        fixture_watch(f, p[0], forms[i], &tag_a);
        assert_int_equal(fixture_block(f, PATIENCE_MS, -1), 1);
        fixture_dispatch(f);
        assert_int_equal(f->count, 1);
        fixture_saw(f, &tag_a, forms[i]);
        fixture_watch(f, p[0], 0, NULL);
        close(p[0]);
    }
}

static void forgotten_descriptors_are_silent(void **state)
{
    struct fixture *f = *state;
    int p[2];

    pair_open(p);
    send_byte(p[1]);
    fixture_watch(f, p[0], DFL_READABLE, &tag_a);
    fixture_watch(f, p[0], 0, NULL);
    fixture_watch(f, p[0], 0, NULL);   /* twice does nothing */
    fixture_watch(f, 100000, 0, NULL); /* nor does one never seen */
    assert_int_equal(fixture_block(f, 0, -1), 0);
    fixture_dispatch(f);
    assert_int_equal(f->count, 0);
    pair_close(p);
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
        pair_open(pairs[i]);
        send_byte(pairs[i][1]);
        fixture_watch(f, pairs[i][0], DFL_READABLE, &tags[i]);
    }
    for (int round = 0; missing > 0 && round < MANY; round++) {
        assert_true(fixture_block(f, PATIENCE_MS, -1) > 0);
        fixture_dispatch(f);
        for (size_t i = 0; i < f->count; i++) {
            size_t which = (size_t)((char *)f->seen[i].tag - tags);

            missing -= !seen[which];
            seen[which] = true;
        }
    }
    assert_int_equal(missing, 0);
    for (size_t i = 0; i < MANY; i++) {
        fixture_watch(f, pairs[i][0], 0, NULL);
        pair_close(pairs[i]);
    }
    assert_int_equal(fixture_block(f, 0, -1), 0);
    fixture_dispatch(f);
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

    pair_open(p);
    send_byte(p[1]);
    fixture_watch(f, p[0], DFL_READABLE, &tag_a);
    assert_int_equal(fixture_block(f, PATIENCE_MS, -1), 1);
    fixture_watch(f, p[0], 0, NULL);
    fixture_dispatch(f);
    assert_int_equal(f->count, 0);
    pair_close(p);
}

/* The worst case: same number, same tag, another socket. */
static void a_reused_descriptor_does_not_inherit_the_report(void **state)
{
    struct fixture *f = *state;
    int old[2], new[2];

    pair_open(old);
    pair_open(new);
    send_byte(old[1]);
    fixture_watch(f, old[0], DFL_READABLE, &tag_a);
    assert_int_equal(fixture_block(f, PATIENCE_MS, -1), 1);
    fixture_watch(f, old[0], 0, NULL);
    assert_int_equal(dup2(new[0], old[0]), old[0]);
    fixture_watch(f, old[0], DFL_READABLE, &tag_a);
    fixture_dispatch(f);
    assert_int_equal(f->count, 0);

    assert_int_equal(fixture_block(f, 0, -1), 0);
    fixture_dispatch(f);
    assert_int_equal(f->count, 0);
    send_byte(new[1]);
    assert_int_equal(fixture_block(f, PATIENCE_MS, -1), 1);
    fixture_dispatch(f);
    fixture_saw(f, &tag_a, DFL_READABLE);
    fixture_watch(f, old[0], 0, NULL);
    pair_close(old);
    pair_close(new);
}

static void what_is_watched_no_more_is_not_reported(void **state)
{
    struct fixture *f = *state;
    int p[2];

    pair_open(p);
    fixture_watch(f, p[0], DFL_READABLE | DFL_WRITABLE, &tag_a);
    assert_int_equal(fixture_block(f, PATIENCE_MS, -1), 1);
    fixture_watch(f, p[0], DFL_READABLE, &tag_a);
    fixture_dispatch(f);
    assert_int_equal(f->count, 0);
    fixture_watch(f, p[0], 0, NULL);
    pair_close(p);
}

static void forget_aside(struct fixture *f, void *tag)
{
    (void)tag;
    if (f->aside >= 0)
        fixture_watch(f, f->aside, 0, NULL);
    f->aside = -1;
}

/* A handler that closes other connections, as an error on a control connection does. */
static void a_report_may_forget_what_would_come_next(void **state)
{
    struct fixture *f = *state;
    int a[2], b[2];

    pair_open(a);
    pair_open(b);
    send_byte(a[1]);
    send_byte(b[1]);
    fixture_watch(f, a[0], DFL_READABLE, &tag_a);
    fixture_watch(f, b[0], DFL_READABLE, &tag_b);
    assert_int_equal(fixture_block(f, PATIENCE_MS, -1), 2);
    f->while_ready = forget_aside;
    f->aside = b[0];
    fixture_dispatch(f);
    /* Whichever came first: b was forgotten then, and a is reported in any case. */
    fixture_saw(f, &tag_a, DFL_READABLE);
    f->while_ready = NULL;
    assert_int_equal(fixture_block(f, PATIENCE_MS, -1), 1);
    fixture_dispatch(f);
    assert_int_equal(f->count, 1);
    fixture_saw(f, &tag_a, DFL_READABLE);
    fixture_watch(f, a[0], 0, NULL);
    pair_close(a);
    pair_close(b);
}

static void watch_a_crowd(struct fixture *f, void *tag)
{
    (void)tag;
    for (int i = 0; i < 300; i++) {
        int fd = fcntl(f->aside, F_DUPFD_CLOEXEC, 100 + i);

        assert_true(fd >= 0);
        fixture_watch(f, fd, DFL_WRITABLE, &tag_b);
    }
}

static void a_report_may_make_the_table_grow(void **state)
{
    struct fixture *f = *state;
    int p[2];

    pair_open(p);
    send_byte(p[1]);
    fixture_watch(f, p[0], DFL_READABLE, &tag_a);
    assert_int_equal(fixture_block(f, PATIENCE_MS, -1), 1);
    f->while_ready = watch_a_crowd;
    f->aside = p[1];
    fixture_dispatch(f);
    f->while_ready = NULL;
    assert_int_equal(f->count, 1);
    assert_true(fixture_block(f, PATIENCE_MS, -1) > 1);
    fixture_dispatch(f);
    for (int fd = 100; fd < 1000; fd++) {
        fixture_watch(f, fd, 0, NULL);
        close(fd);
    }
    fixture_watch(f, p[0], 0, NULL);
    pair_close(p);
}

/* ---------------------------------------------------------- the extra one */

static void the_extra_descriptor_wakes_and_is_not_reported(void **state)
{
    struct fixture *f = *state;
    int p[2], extra[2];

    pair_open(p);
    pair_open(extra);
    fixture_watch(f, p[0], DFL_READABLE, &tag_a);
    assert_int_equal(fixture_block(f, 0, extra[0]), 0);
    fixture_dispatch(f);
    send_byte(extra[1]);
    assert_int_equal(fixture_block(f, PATIENCE_MS, extra[0]), 1);
    fixture_dispatch(f);
    assert_int_equal(f->count, 0);
    send_byte(p[1]);
    assert_int_equal(fixture_block(f, PATIENCE_MS, extra[0]), 2);
    fixture_dispatch(f);
    assert_int_equal(f->count, 1);
    fixture_saw(f, &tag_a, DFL_READABLE);
    /* It was for that one wait only. */
    assert_int_equal(fixture_block(f, PATIENCE_MS, -1), 1);
    fixture_dispatch(f);
    fixture_watch(f, p[0], 0, NULL);
    assert_int_equal(fixture_block(f, 0, -1), 0);
    fixture_dispatch(f);
    pair_close(p);
    pair_close(extra);
}

static void watched_ones_wake_beside_an_extra_one(void **state)
{
    struct fixture *f = *state;
    int p[2], extra[2];

    pair_open(p);
    pair_open(extra);
    fixture_watch(f, p[0], DFL_READABLE, &tag_a);
    send_byte(p[1]);
    assert_int_equal(fixture_block(f, -1, extra[0]), 1);
    fixture_dispatch(f);
    fixture_saw(f, &tag_a, DFL_READABLE);
    fixture_watch(f, p[0], 0, NULL);
    pair_close(p);
    pair_close(extra);
}

/* ------------------------------------------------------------- life, clock */

static void a_round_can_be_prepared_again_without_dispatch(void **state)
{
    struct fixture *f = *state;
    int p[2];

    pair_open(p);
    for (int i = 0; i < 3; i++)
        assert_int_equal(dfl_wait_prepare(f->w, &f->round), DFL_OK);
    fixture_watch(f, p[0], DFL_READABLE, &tag_a);
    fixture_dispatch(f);
    assert_int_equal(fixture_block(f, 0, -1), 0);
    fixture_dispatch(f);
    fixture_watch(f, p[0], 0, NULL);
    pair_close(p);
}

static void a_round_may_serve_another_kind(void **state)
{
    struct fixture *f = *state;
    struct dfl_wait *other;
    int p[2];

    assert_int_equal(fixture_block(f, 0, -1), 0);
    fixture_dispatch(f);
    assert_int_equal(
        dfl_wait_new(f->kind == DFL_WAIT_POLL ? DFL_WAIT_EPOLL : DFL_WAIT_POLL, &other), DFL_OK);
    pair_open(p);
    send_byte(p[1]);
    assert_int_equal(dfl_wait_watch(other, p[0], DFL_READABLE, &tag_b), DFL_OK);
    assert_int_equal(dfl_wait_prepare(other, &f->round), DFL_OK);
    assert_int_equal(dfl_wait_block(&f->round, PATIENCE_MS, -1), 1);
    dfl_wait_dispatch(other, &f->round, fixture_on_ready, f);
    fixture_saw(f, &tag_b, DFL_READABLE);
    dfl_wait_round_free(&f->round);
    dfl_wait_free(other);
    pair_close(p);
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
    pair_open(p);
    fixture_watch(f, p[0], DFL_READABLE, &tag_a);
    assert_int_equal(poll(&set, 1, 0), 0);
    send_byte(p[1]);
    assert_int_equal(poll(&set, 1, PATIENCE_MS), 1);
    fixture_watch(f, p[0], 0, NULL);
    pair_close(p);
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
    pair_open(p);
    assert_int_equal(dfl_wait_watch(w, p[0], DFL_READABLE, &tag_a), DFL_OK);
    dfl_wait_abandon(w);
    assert_int_equal(open_descriptors(), before + 2); /* the watched one is not its own */
    pair_open(spare);                                 /* gets the numbers that became free */
    dfl_wait_free(w);
    assert_int_equal(open_descriptors(), before + 4);
    pair_close(p);
    pair_close(spare);
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
        BOTH(a_round_can_be_prepared_again_without_dispatch),
        BOTH(a_round_may_serve_another_kind),
        BOTH(the_descriptor_of_epoll_says_that_something_is_ready),
        BOTH(abandoning_closes_once),
        cmocka_unit_test(the_default_is_epoll_here),
        cmocka_unit_test(the_clock_goes_forward_in_all_its_units),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
