/*
 * test_transport.c - plain TCP: how it connects under one deadline, what it says when it cannot,
 * and which descriptors it shows, keeps and closes. Time is an argument here too: only bytes are
 * waited for.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "netpeer.h"

static struct dfl_transport *open_to(const char *host, uint16_t port)
{
    const struct dfl_net *net = dfl_net_sockets();
    struct dfl_endpoint ep = {.host = host, .port = port};
    struct dfl_transport *t = NULL;
    struct dfl_error err;

    assert_int_equal(net->open(net->ctx, &ep, NULL, &t, &err), DFL_OK);
    return t;
}

/* A transport to "db:6388", whose addresses are given. */
static struct dfl_transport *open_list(const struct dfl_socket_address *list, size_t count)
{
    struct dfl_endpoint ep = {.host = "db", .port = 6388};
    struct dfl_transport *t = NULL;

    assert_int_equal(dfl_tcp_open_list(&ep, list, count, &t), DFL_OK);
    return t;
}

static int only_descriptor(struct dfl_transport *t, bool want_write, unsigned *events)
{
    struct dfl_interest in[DFL_INTEREST_MAX];

    assert_int_equal(t->ops->interest(t, want_write, in), 1);
    *events = in[0].events;
    return in[0].fd;
}

static bool is_open(int fd)
{
    return fcntl(fd, F_GETFD) >= 0;
}

/* Connects to a listener of ours; *peer is the other end. */
static struct dfl_transport *connected(int *peer)
{
    uint16_t port;
    int listener = peer_listen(AF_INET, 4, &port);
    struct dfl_transport *t = open_to("127.0.0.1", port);

    assert_int_equal(peer_connect(t, PATIENCE_MS), DFL_IO_DONE);
    *peer = peer_accept(listener);
    close(listener);
    return t;
}

static int int_option(int fd, int level, int name)
{
    int value = -1;
    socklen_t len = sizeof value;

    assert_int_equal(getsockopt(fd, level, name, &value, &len), 0);
    return value;
}

/* ------------------------------------------------------------------ one address */

static void bytes_flow_both_ways(void **state)
{
    int peer;
    struct dfl_transport *t = connected(&peer);
    char buf[64];
    size_t n = 0;
    unsigned events;

    (void)state;
    assert_int_equal(t->ops->read(t, buf, sizeof buf, &n), DFL_IO_AGAIN);
    assert_int_equal(t->ops->write(t, "ping\n_\n_\n", 9, &n), DFL_IO_DONE);
    assert_int_equal(n, 9);
    assert_int_equal(recv(peer, buf, 9, MSG_WAITALL | MSG_PEEK), 9);
    assert_int_equal(send(peer, "ok\n", 3, 0), 3);
    assert_int_equal(peer_read(t, buf, sizeof buf, &n), DFL_IO_DONE);
    assert_int_equal(n, 3);
    assert_memory_equal(buf, "ok\n", 3);
    assert_false(t->ops->buffered(t));
    only_descriptor(t, false, &events);
    assert_int_equal(events, DFL_READABLE);
    only_descriptor(t, true, &events);
    assert_int_equal(events, DFL_READABLE | DFL_WRITABLE);
    assert_true(t->ops->wake_ms(t) == INT64_MAX);
    recv(peer, buf, sizeof buf, 0); /* or the close would be a reset */
    close(peer);
    assert_int_equal(peer_read(t, buf, sizeof buf, &n), DFL_IO_EOF);
    t->ops->close(t);
}

static void the_socket_is_tuned(void **state)
{
    int peer;
    struct dfl_transport *t = connected(&peer);
    unsigned events;
    int fd = only_descriptor(t, false, &events);

    (void)state;
    assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    assert_true(fcntl(fd, F_GETFL) & O_NONBLOCK);
    assert_int_not_equal(int_option(fd, IPPROTO_TCP, TCP_NODELAY), 0);
    assert_int_not_equal(int_option(fd, SOL_SOCKET, SO_KEEPALIVE), 0);
    assert_int_equal(int_option(fd, IPPROTO_TCP, TCP_KEEPIDLE), 7);
    assert_int_equal(int_option(fd, IPPROTO_TCP, TCP_KEEPINTVL), 3);
    assert_int_equal(int_option(fd, IPPROTO_TCP, TCP_KEEPCNT), 3);
    assert_int_equal(int_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT), 16000);
    close(peer);
    t->ops->close(t);
}

static void a_full_socket_asks_to_come_back(void **state)
{
    static char block[65536];
    int peer;
    struct dfl_transport *t = connected(&peer);
    size_t n = 0, all = 0, back = 0;
    enum dfl_io io;

    (void)state;
    while ((io = t->ops->write(t, block, sizeof block, &n)) == DFL_IO_DONE)
        all += n;
    assert_int_equal(io, DFL_IO_AGAIN);
    while (back < all)
        back += (size_t)recv(peer, block, sizeof block, 0);
    assert_int_equal(back, all);
    assert_int_equal(t->ops->write(t, block, 1, &n), DFL_IO_DONE);
    close(peer);
    t->ops->close(t);
}

static void a_refusal_names_host_port_and_reason(void **state)
{
    uint16_t port;
    int reserved = peer_closed_port(&port);
    struct dfl_transport *t = open_to("127.0.0.1", port);
    char expected[100];

    (void)state;
    snprintf(expected, sizeof expected, "connect to 127.0.0.1:%u: connection refused",
             (unsigned)port);
    assert_int_equal(peer_connect(t, PATIENCE_MS), DFL_IO_ERROR);
    assert_int_equal(t->error.status, DFL_UNREACHABLE);
    assert_string_equal(t->error.text, expected);
    assert_string_equal(t->ops->step(t), "connect");
    /* the first error sticks */
    assert_int_equal(peer_connect(t, PATIENCE_MS), DFL_IO_ERROR);
    assert_string_equal(t->error.text, expected);
    t->ops->close(t);
    close(reserved);
}

static void ipv6_works_or_says_why(void **state)
{
    uint16_t port = 9;
    int listener = peer_listen(AF_INET6, 4, &port);
    struct dfl_transport *t = open_to("::1", port);
    char expected[100];

    (void)state;
    if (listener >= 0) {
        assert_int_equal(peer_connect(t, PATIENCE_MS), DFL_IO_DONE);
        close(peer_accept(listener));
        close(listener);
    } else {
        snprintf(expected, sizeof expected, "connect to [::1]:%u: ", (unsigned)port);
        assert_int_equal(peer_connect(t, PATIENCE_MS), DFL_IO_ERROR);
        assert_memory_equal(t->error.text, expected, strlen(expected));
    }
    t->ops->close(t);
}

/* ------------------------------------------------------------- several addresses */

static void localhost_means_both_families(void **state)
{
    uint16_t port;
    int v6 = peer_listen(AF_INET6, 4, &port);
    struct dfl_socket_address a;
    struct dfl_transport *t;
    int v4 = socket(AF_INET, SOCK_STREAM, 0);

    (void)state;
    if (v6 < 0)
        v6 = peer_listen(AF_INET, 4, &port); /* a machine without IPv6: the first address answers */
    a = peer_address("127.0.0.1", port);
    bind(v4, &a.u.any, a.len); /* nobody else's listener may be there, and we do not listen */
    t = open_to("localhost", port);
    assert_int_equal(peer_connect(t, PATIENCE_MS), DFL_IO_DONE);
    close(peer_accept(v6));
    t->ops->close(t);
    close(v6);
    close(v4);
}

static void a_silent_address_gets_its_share_only(void **state)
{
    struct black_hole hole;
    struct dfl_socket_address list[2];
    struct dfl_transport *t;
    uint16_t port;
    int listener = peer_listen(AF_INET, 4, &port), first, second;
    unsigned events;

    (void)state;
    black_hole_open(&hole);
    list[0] = peer_address("127.0.0.1", hole.port);
    list[1] = peer_address("127.0.0.1", port);
    t = open_list(list, 2);
    assert_int_equal(t->ops->connect(t, peer_at(0), 1000), DFL_IO_AGAIN);
    assert_int_equal(t->ops->wake_ms(t), 500);
    first = only_descriptor(t, false, &events);
    assert_int_equal(events, DFL_WRITABLE);
    assert_int_equal(t->ops->connect(t, peer_at(499), 1000), DFL_IO_AGAIN);
    assert_int_equal(only_descriptor(t, false, &events), first);

    /* its share is over: the next one has all that is left */
    if (t->ops->connect(t, peer_at(500), 1000) == DFL_IO_AGAIN)
        assert_int_equal(t->ops->wake_ms(t), 1000);
    second = only_descriptor(t, false, &events);
    assert_int_not_equal(first, second);
    assert_true(is_open(first)); /* so that the host could forget it */
    while (t->ops->connect(t, peer_at(501), 1000) == DFL_IO_AGAIN)
        peer_wait(t, false);
    assert_int_equal(t->error.status, DFL_OK);
    close(peer_accept(listener));
    t->ops->write(t, "x", 1, &(size_t){0});
    assert_false(is_open(first));
    t->ops->close(t);
    black_hole_close(&hole);
    close(listener);
}

static void what_was_shown_stays_open_until_left_out(void **state)
{
    struct black_hole hole;
    struct dfl_socket_address list[3];
    struct dfl_transport *t;
    unsigned events;
    int first, second;

    (void)state;
    black_hole_open(&hole);
    for (int i = 0; i < 3; i++)
        list[i] = peer_address("127.0.0.1", hole.port);
    t = open_list(list, 3);
    assert_int_equal(t->ops->connect(t, peer_at(0), 900), DFL_IO_AGAIN);
    first = only_descriptor(t, false, &events);
    assert_int_equal(t->ops->connect(t, peer_at(300), 900), DFL_IO_AGAIN);
    assert_int_equal(t->ops->wake_ms(t), 600);
    /* nobody has asked yet: even the next call must not close it */
    assert_int_equal(t->ops->connect(t, peer_at(301), 900), DFL_IO_AGAIN);
    assert_true(is_open(first));
    second = only_descriptor(t, false, &events);
    assert_int_not_equal(first, second);
    assert_int_equal(t->ops->connect(t, peer_at(302), 900), DFL_IO_AGAIN);
    assert_false(is_open(first));
    /* never shown: closed at once, its number is free for the next address */
    assert_int_equal(t->ops->connect(t, peer_at(600), 900), DFL_IO_AGAIN);
    assert_int_equal(t->ops->connect(t, peer_at(900), 900), DFL_IO_ERROR);
    assert_string_equal(t->error.text, "connect to db:6388: connection timed out");
    t->ops->close(t);
    black_hole_close(&hole);
}

static void a_refusal_costs_no_time(void **state)
{
    struct black_hole hole;
    struct dfl_socket_address list[3];
    struct dfl_transport *t;
    uint16_t closed;
    int reserved = peer_closed_port(&closed);
    enum dfl_io io;

    (void)state;
    black_hole_open(&hole);
    list[0] = peer_address("127.0.0.1", closed);
    list[1] = peer_address("127.0.0.1", closed);
    list[2] = peer_address("127.0.0.1", hole.port);
    t = open_list(list, 3);
    while ((io = t->ops->connect(t, peer_at(100), 1000)) == DFL_IO_AGAIN &&
           t->ops->wake_ms(t) != 1000)
        peer_wait(t, false);
    assert_int_equal(io,
                     DFL_IO_AGAIN); /* both refused within the same moment, the last has the rest */
    assert_int_equal(t->ops->connect(t, peer_at(1000), 1000), DFL_IO_ERROR);
    assert_string_equal(
        t->error.text,
        "connect to db:6388: 127.0.0.1: connection refused; 127.0.0.1: connection refused; "
        "127.0.0.1: connection timed out");
    assert_int_equal(t->error.status, DFL_UNREACHABLE);
    t->ops->close(t);
    black_hole_close(&hole);
    close(reserved);
}

static void the_deadline_ends_all_addresses(void **state)
{
    struct black_hole hole;
    struct dfl_socket_address list[3];
    struct dfl_transport *t;

    (void)state;
    black_hole_open(&hole);
    for (int i = 0; i < 3; i++)
        list[i] = peer_address("127.0.0.1", hole.port);
    t = open_list(list, 3);
    assert_int_equal(t->ops->connect(t, peer_at(0), 900), DFL_IO_AGAIN);
    /* the host comes back far too late, after a suspend: no address is tried any more */
    assert_int_equal(t->ops->connect(t, peer_at(100000), 900), DFL_IO_ERROR);
    assert_string_equal(t->error.text, "connect to db:6388: connection timed out");
    t->ops->close(t);
    black_hole_close(&hole);
}

static void a_hundred_reasons_are_cut_not_overrun(void **state)
{
    struct black_hole hole;
    struct dfl_socket_address list[100];
    struct dfl_transport *t;
    uint16_t closed;
    int reserved = peer_closed_port(&closed);

    (void)state;
    black_hole_open(&hole);
    list[0] = peer_address("127.0.0.1", hole.port);
    for (int i = 1; i < 100; i++)
        list[i] = peer_address("127.0.0.1", closed);
    t = open_list(list, 100);
    assert_int_equal(peer_connect(t, 1000), DFL_IO_ERROR);
    assert_true(strlen(t->error.text) < DFL_ERROR_MAX);
    assert_non_null(strstr(t->error.text, "connect to db:6388: 127.0.0.1: connection timed out; "));
    t->ops->close(t);
    black_hole_close(&hole);
    close(reserved);
}

/* What the kernel does one day in thirty thousand dials of a dead local port, made on purpose. */
static void a_socket_never_talks_to_itself(void **state)
{
    uint16_t port;
    int self = peer_closed_port(&port), peer;
    struct dfl_socket_address a = peer_address("127.0.0.1", port);
    struct dfl_transport *t;
    unsigned events;

    (void)state;
    assert_int_equal(connect(self, &a.u.any, a.len), 0);
    assert_true(dfl_socket_is_own_peer(self));
    close(self);
    t = connected(&peer);
    assert_false(dfl_socket_is_own_peer(only_descriptor(t, false, &events)));
    assert_false(dfl_socket_is_own_peer(peer));
    t->ops->close(t);
    close(peer);
}

/* ----------------------------------------------------------------- a broken peer */

static void a_reset_is_an_error_with_a_reason(void **state)
{
    int peer;
    struct dfl_transport *t = connected(&peer);
    struct linger reset = {.l_onoff = 1, .l_linger = 0};
    struct dfl_interest in[DFL_INTEREST_MAX];
    char buf[8];
    size_t n;

    (void)state;
    setsockopt(peer, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    close(peer);
    assert_int_equal(peer_read(t, buf, sizeof buf, &n), DFL_IO_ERROR);
    assert_int_equal(t->error.status, DFL_BROKEN);
    assert_memory_equal(t->error.text, "read from 127.0.0.1:", 20);
    assert_non_null(strstr(t->error.text, ": connection reset by peer"));
    assert_int_equal(t->ops->write(t, "x", 1, &n), DFL_IO_ERROR);
    assert_int_equal(t->ops->interest(t, true, in), 0);
    t->ops->close(t);
}

static void writing_to_nobody_raises_no_signal(void **state)
{
    int peer;
    struct dfl_transport *t = connected(&peer);
    char block[4096] = "";
    size_t n;
    enum dfl_io io;

    (void)state;
    signal(SIGPIPE, SIG_DFL);
    close(peer);
    while ((io = t->ops->write(t, block, sizeof block, &n)) != DFL_IO_ERROR)
        peer_wait(t, true);
    assert_int_equal(t->error.status, DFL_BROKEN);
    assert_memory_equal(t->error.text, "write to 127.0.0.1:", 19);
    assert_true(strstr(t->error.text, ": broken pipe") ||
                strstr(t->error.text, ": connection reset by peer"));
    assert_string_equal(t->ops->step(t), "write");
    t->ops->close(t);
}

static void last_words_can_be_read_after_a_failed_write(void **state)
{
    int peer;
    struct dfl_transport *t = connected(&peer);
    char buf[64];
    size_t n;
    unsigned events;

    (void)state;
    assert_int_equal(t->ops->write(t, "never read\n", 11, &n), DFL_IO_DONE);
    assert_int_equal(recv(peer, buf, 1, MSG_PEEK), 1);
    assert_int_equal(send(peer, "error_auth\n", 11, 0), 11);
    close(peer); /* with bytes unread: a reset */
    while (t->ops->write(t, "more\n", 5, &n) != DFL_IO_ERROR)
        peer_wait(t, true);
    assert_int_equal(t->ops->write(t, "more\n", 5, &n), DFL_IO_ERROR); /* sticks */
    only_descriptor(t, true, &events);
    assert_int_equal(events, DFL_READABLE);
    assert_int_equal(peer_read(t, buf, sizeof buf, &n), DFL_IO_DONE);
    assert_int_equal(n, 11);
    assert_memory_equal(buf, "error_auth\n", 11);
    assert_int_not_equal(peer_read(t, buf, sizeof buf, &n), DFL_IO_DONE);
    t->ops->close(t);
}

static void without_descriptors_it_says_so(void **state)
{
    struct dfl_transport *t = open_to("127.0.0.1", 9);
    struct rlimit old, none;

    (void)state;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
    none = old;
    none.rlim_cur = 0;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    assert_int_equal(t->ops->connect(t, peer_at(0), 1000), DFL_IO_ERROR);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
    assert_string_equal(t->error.text, "connect to 127.0.0.1:9: too many open files");
    t->ops->close(t);
}

static void a_forked_child_only_closes(void **state)
{
    int peer, status;
    struct dfl_transport *t = connected(&peer);
    unsigned events;
    int fd = only_descriptor(t, false, &events);
    size_t n;
    char buf[4];
    pid_t pid = fork();

    (void)state;
    if (pid == 0) {
        t->ops->abandon(t);
        _exit(is_open(fd) ? 1 : 0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_int_equal(t->ops->write(t, "x", 1, &n), DFL_IO_DONE); /* the parent's is untouched */
    assert_int_equal(recv(peer, buf, 1, 0), 1);
    t->ops->close(t);
    close(peer);
}

static void errors_have_words_in_every_locale(void **state)
{
    char buf[64];

    (void)state;
    assert_string_equal(dfl_errno_text(ECONNREFUSED, buf, sizeof buf), "connection refused");
    assert_string_equal(dfl_errno_text(ENOENT, buf, sizeof buf), "no such file or directory");
    assert_string_equal(dfl_errno_text(EDOM, buf, sizeof buf), "numerical argument out of domain");
    assert_true(dfl_errno_text(999999, buf, sizeof buf)[0] != '\0');
}

static size_t descriptors_before;

static int remember(void **state)
{
    (void)state;
    descriptors_before = peer_descriptors();
    return 0;
}

static int nothing_left_open(void **state)
{
    (void)state;
    return peer_descriptors() == descriptors_before ? 0 : -1;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, remember, nothing_left_open)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(bytes_flow_both_ways),
        TEST(the_socket_is_tuned),
        TEST(a_full_socket_asks_to_come_back),
        TEST(a_refusal_names_host_port_and_reason),
        TEST(ipv6_works_or_says_why),
        TEST(localhost_means_both_families),
        TEST(a_silent_address_gets_its_share_only),
        TEST(what_was_shown_stays_open_until_left_out),
        TEST(a_refusal_costs_no_time),
        TEST(the_deadline_ends_all_addresses),
        TEST(a_hundred_reasons_are_cut_not_overrun),
        TEST(a_socket_never_talks_to_itself),
        TEST(a_reset_is_an_error_with_a_reason),
        TEST(writing_to_nobody_raises_no_signal),
        TEST(last_words_can_be_read_after_a_failed_write),
        TEST(without_descriptors_it_says_so),
        TEST(a_forked_child_only_closes),
        TEST(errors_have_words_in_every_locale),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
