/*
 * Readiness: how many system calls a plain wait costs, and with which time-out.
 *
 * epoll_wait, epoll_ctl and poll are defined here in front of the C library's, to count them.
 */
#include "waitfixture.h"

#include <limits.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int calls_wait, calls_ctl, calls_poll, last_timeout;

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

static void a_plain_wait_is_one_system_call(void **state)
{
    struct fixture *f = *state;
    int p[2];

    pair_open(p);
    fixture_watch(f, p[0], DFL_READABLE, &tag_a);
    send_byte(p[1]);
    assert_int_equal(fixture_block(f, PATIENCE_MS, -1), 1); /* the first one allocates */
    fixture_dispatch(f);
    forget_counts();
    assert_int_equal(fixture_block(f, PATIENCE_MS, -1), 1);
    fixture_dispatch(f);
    fixture_watch(f, p[0], DFL_READABLE, &tag_a); /* as it is already */
    assert_int_equal(f->count, 1);
    assert_int_equal(calls_wait + calls_poll, 1);
    assert_int_equal(calls_wait, f->kind == DFL_WAIT_EPOLL);
    assert_int_equal(calls_ctl, 0);
    fixture_watch(f, p[0], 0, NULL);
    pair_close(p);
}

static void long_timeouts_are_clamped(void **state)
{
    static const struct {
        int64_t ms;
        int timeout;
    } cases[] = {{INT64_C(1) << 32, INT_MAX},
                 {INT64_MAX, INT_MAX},
                 {INT_MAX, INT_MAX},
                 {-1, -1},
                 {INT64_MIN, -1},
                 {0, 0}};
    struct fixture *f = *state;
    int p[2];

    pair_open(p);
    send_byte(p[1]);
    fixture_watch(f, p[0], DFL_READABLE, &tag_a);
    for (size_t i = 0; i < COUNT(cases); i++) {
        forget_counts();
        assert_int_equal(fixture_block(f, cases[i].ms, -1), 1);
        fixture_dispatch(f);
        assert_int_equal(last_timeout, cases[i].timeout);
    }
    fixture_watch(f, p[0], 0, NULL);
    pair_close(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        BOTH(a_plain_wait_is_one_system_call),
        BOTH(long_timeouts_are_clamped),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
