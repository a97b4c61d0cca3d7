/*
 * test_resolve.c - names to addresses: literals and localhost without a name server, everything
 * else by one of our own, in all the ways in which those fail.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <ares.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "netpeer.h"
#include "resolve.h"

static const struct dns_name names[] = {
    {"db.test", DNS_ADDRESSES, "127.0.0.1", NULL},
    {"both.test", DNS_ADDRESSES, "127.0.0.1", "::1"},
    {"six.test", DNS_ADDRESSES, NULL, "::1"},
    {"big.test", DNS_TRUNCATED, "127.0.0.1", NULL},
    {"cut.test", DNS_TCP_CUT, "127.0.0.1", NULL},
    {"empty.test", DNS_NO_DATA, NULL, NULL},
    {"sick.test", DNS_FAILURE, NULL, NULL},
    {"mute.test", DNS_MUTE, NULL, NULL},
    {"localhost", DNS_ADDRESSES, "192.0.2.1", NULL}, /* a liar */
    {"db.localhost", DNS_ADDRESSES, "192.0.2.1", NULL},
};

struct fixture {
    struct dns_server server;
    struct dfl_net_options options;
    struct dfl_net net;
    size_t descriptors;
};

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);

    if (!f)
        return -1;
    f->descriptors = peer_descriptors();
    dns_server_start(&f->server, names, sizeof names / sizeof *names);
    f->options.name_servers = f->server.address;
    f->net = *dfl_net_sockets();
    f->net.ctx = &f->options;
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    size_t before = f->descriptors;

    dns_server_stop(&f->server);
    free(f);
    return peer_descriptors() == before ? 0 : -1;
}

static struct dfl_transport *open_to(struct fixture *f, const char *host, uint16_t port)
{
    struct dfl_endpoint ep = {.host = host, .port = port};
    struct dfl_transport *t = NULL;
    struct dfl_error err;

    assert_int_equal(f->net.open(f->net.ctx, &ep, NULL, &t, &err), DFL_OK);
    return t;
}

static void connects(struct fixture *f, const char *host, int listener, uint16_t port)
{
    struct dfl_transport *t = open_to(f, host, port);

    if (peer_connect(t, PATIENCE_MS) != DFL_IO_DONE)
        fail_msg("%s", t->error.text);
    close(peer_accept(listener));
    t->ops->close(t);
}

static void fails(struct fixture *f, const char *host, int64_t timeout_ms, const char *text)
{
    struct dfl_transport *t = open_to(f, host, 6388);

    assert_int_equal(peer_connect(t, timeout_ms), DFL_IO_ERROR);
    assert_string_equal(t->error.text, text);
    assert_int_equal(t->error.status, DFL_UNREACHABLE);
    assert_string_equal(t->ops->step(t), "resolve");
    t->ops->close(t);
}

/* --------------------------------------------------------------------- literals */

static void literals_need_nobody(void **state)
{
    static const struct {
        const char *host;
        size_t count;
        const char *text;
        bool address;
    } rows[] = {
        {"127.0.0.1", 1, "127.0.0.1", true},
        {"10.0.0.5", 1, "10.0.0.5", true},
        {"::1", 1, "::1", true},
        {"2001:DB8::0:1", 1, "2001:db8::1", true},
        {"::ffff:10.0.0.5", 1, "::ffff:10.0.0.5", true},
        {"fe80::1%1", 1, "fe80::1", true},
        {"localhost", 2, "127.0.0.1", false},
        {"LocalHost.", 2, "127.0.0.1", false},
        {"db.localhost", 2, "127.0.0.1", false},
        {"mylocalhost", 0, "", false},
        {"localhost.example", 0, "", false},
        {"127.1", 0, "", false},
        {"0x7f.1", 0, "", false},
        {"1.2.3.4.5", 0, "", false},
        {"256.0.0.1", 0, "", false},
        {"::1::2", 0, "", false},
        {"1111:2222:3333:4444:5555:6666:7777:8888:9999:aaaa:bbbb:cccc", 0, "", false},
        {"db.example", 0, "", false},
        {".", 0, "", false},
        {"", 0, "", false},
    };
    struct dfl_socket_address out[DFL_RESOLVE_LITERAL_MAX];
    char text[DFL_SOCKET_ADDRESS_TEXT];

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        assert_int_equal(dfl_resolve_literal(rows[i].host, 6388, out), rows[i].count);
        assert_int_equal(dfl_host_is_address(rows[i].host), rows[i].address);
        if (rows[i].count > 0)
            assert_string_equal(dfl_socket_address_text(&out[0], text), rows[i].text);
        if (rows[i].count == 2)
            assert_string_equal(dfl_socket_address_text(&out[1], text), "::1");
    }
    dfl_resolve_literal("fe80::1%1", 6388, out);
    assert_int_equal(out[0].u.v6.sin6_scope_id, 1);
    assert_int_equal(ntohs(out[0].u.v6.sin6_port), 6388);
}

static void localhost_never_goes_to_a_name_server(void **state)
{
    struct fixture *f = *state;
    uint16_t port;
    int listener = peer_listen(AF_INET, 4, &port);

    connects(f, "localhost", listener, port);
    connects(f, "LOCALHOST.", listener, port);
    connects(f, "db.localhost", listener, port);
    connects(f, "127.0.0.1", listener, port);
    assert_int_equal(atomic_load(&f->server.queries), 0);
    close(listener);
}

/* ------------------------------------------------------------------------ names */

static void a_name_is_looked_up_and_dialled(void **state)
{
    struct fixture *f = *state;
    uint16_t port;
    int listener = peer_listen(AF_INET, 4, &port);

    connects(f, "db.test", listener, port);
    assert_int_equal(atomic_load(&f->server.queries), 2); /* both families, side by side */
    connects(f, "DB.Test.", listener, port);
    connects(f, "both.test", listener, port); /* ::1 refuses or does not exist, 127.0.0.1 answers */
    close(listener);
}

static void both_families_are_answered(void **state)
{
    struct fixture *f = *state;
    struct dfl_sockets sockets;
    struct dfl_resolver *r = NULL;
    struct dfl_socket_address *list = NULL;
    struct dfl_interest in[DFL_INTEREST_MAX];
    struct dfl_error err;
    enum dfl_status status;
    struct pollfd fds[4];
    size_t count = 0, n;
    int seen[2] = {0, 0};

    dfl_sockets_init(&sockets);
    assert_int_equal(
        dfl_resolver_new("both.test", 6388, PATIENCE_MS, &f->options, &sockets, &r, &err), DFL_OK);
    while ((status = dfl_resolver_run(r, peer_at(0), &list, &count, &err)) == DFL_PENDING) {
        assert_true(dfl_resolver_wake_ms(r) > 0 && dfl_resolver_wake_ms(r) < PATIENCE_MS);
        n = dfl_sockets_interest(&sockets, in);
        assert_in_range(n, 1, 4);
        for (size_t i = 0; i < n; i++)
            fds[i] = (struct pollfd){.fd = in[i].fd, .events = POLLIN};
        poll(fds, n, PATIENCE_MS);
        dfl_sockets_sweep(&sockets);
    }
    assert_int_equal(status, DFL_OK);
    assert_int_equal(count, 2);
    for (size_t i = 0; i < count; i++)
        seen[list[i].u.any.sa_family == AF_INET6]++;
    assert_int_equal(seen[0], 1);
    assert_int_equal(seen[1], 1);
    free(list);
    dfl_resolver_free(r);
    dfl_sockets_close(&sockets);
}

static void an_answer_too_big_for_udp_comes_by_tcp(void **state)
{
    struct fixture *f = *state;
    uint16_t port;
    int listener = peer_listen(AF_INET, 4, &port);

    connects(f, "big.test", listener, port);
    assert_true(atomic_load(&f->server.tcp_queries) > 0);
    close(listener);
}

static void the_hosts_file_comes_first(void **state)
{
    struct fixture *f = *state;
    char path[] = "/tmp/dflockd-hosts-XXXXXX";
    static const char text[] = "# ours\n127.0.0.1 from-hosts other-name\n";
    int fd = mkstemp(path), listener;
    uint16_t port;

    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, sizeof text - 1), sizeof text - 1);
    close(fd);
    setenv("CARES_HOSTS", path, 1);
    f->options.hosts_by_environment = true;
    listener = peer_listen(AF_INET, 4, &port);
    connects(f, "from-hosts", listener, port);
    connects(f, "other-name", listener, port);
    assert_int_equal(atomic_load(&f->server.queries), 0);
    unsetenv("CARES_HOSTS");
    unlink(path);
    close(listener);
}

static void every_failure_has_its_sentence(void **state)
{
    struct fixture *f = *state;

    fails(f, "nosuch.test.", PATIENCE_MS, "resolve nosuch.test.:6388: host not found");
    fails(f, "empty.test.", PATIENCE_MS, "resolve empty.test.:6388: host has no address");
    fails(f, "sick.test.", PATIENCE_MS, "resolve sick.test.:6388: no name server gave an answer");
    fails(f, "a..b", PATIENCE_MS, "resolve a..b:6388: not a valid host name");
    f->options.name_servers = "127.0.0.1:1";
    fails(f, "db.test.", PATIENCE_MS, "resolve db.test.:6388: no name server gave an answer");
}

static void a_mute_name_server_ends_before_the_deadline(void **state)
{
    struct fixture *f = *state;
    int64_t begun = peer_now_ms();

    fails(f, "mute.test.", 5000, "resolve mute.test.:6388: no name server answered in time");
    assert_true(peer_now_ms() - begun < 5000);
}

static void the_deadline_ends_a_look_up(void **state)
{
    struct fixture *f = *state;
    struct dfl_transport *t = open_to(f, "mute.test", 6388);

    assert_int_equal(t->ops->connect(t, peer_at(0), 3000), DFL_IO_AGAIN);
    assert_true(t->ops->wake_ms(t) > 0 && t->ops->wake_ms(t) <= 3000);
    assert_int_equal(t->ops->connect(t, peer_at(3000), 3000), DFL_IO_ERROR);
    assert_string_equal(t->error.text, "resolve mute.test:6388: no name server answered in time");
    t->ops->close(t);
}

static void a_dead_name_server_leaves_time_for_the_next(void **state)
{
    struct fixture *f = *state;
    struct dfl_socket_address silent = peer_address("127.0.0.1", 0);
    int udp = socket(AF_INET, SOCK_DGRAM, 0), listener;
    char servers[80];
    uint16_t port;

    assert_int_equal(bind(udp, &silent.u.any, silent.len), 0); /* receives, never answers */
    assert_int_equal(getsockname(udp, &silent.u.any, &silent.len), 0);
    snprintf(servers, sizeof servers, "127.0.0.1:%u,%s", (unsigned)ntohs(silent.u.v4.sin_port),
             f->server.address);
    f->options.name_servers = servers;
    listener = peer_listen(AF_INET, 4, &port);
    connects(f, "db.test", listener, port);
    close(listener);
    close(udp);
}

static void a_look_up_by_tcp_can_be_cut(void **state)
{
    struct fixture *f = *state;
    struct dfl_transport *t = open_to(f, "cut.test.", 6388);

    assert_int_equal(peer_connect(t, 3000), DFL_IO_ERROR);
    assert_memory_equal(t->error.text, "resolve cut.test.:6388: ", 24);
    assert_true(atomic_load(&f->server.tcp_queries) > 0);
    t->ops->close(t);
}

/* The calls that c-ares makes when its server goes away between two questions. */
static void asking_nobody_by_tcp_raises_no_signal(void **state)
{
    const struct ares_socket_functions *calls = &dfl_dns_socket_functions;
    struct iovec parts[2] = {{.iov_base = "ab", .iov_len = 2}, {.iov_base = "c", .iov_len = 1}};
    struct dfl_sockets sockets;
    struct dfl_socket_address a;
    char got[4] = "";
    uint16_t port;
    int listener = peer_listen(AF_INET, 4, &port), fd, peer;

    (void)state;
    signal(SIGPIPE, SIG_DFL);
    dfl_sockets_init(&sockets);
    a = peer_address("127.0.0.1", port);
    fd = calls->asocket(AF_INET, SOCK_STREAM, 0, &sockets);
    assert_true(fd >= 0);
    assert_true(calls->aconnect(fd, &a.u.any, a.len, &sockets) == 0 || errno == EINPROGRESS);
    peer = peer_accept(listener);
    assert_int_equal(calls->asendv(fd, parts, 2, &sockets), 3);
    assert_int_equal(recv(peer, got, 3, MSG_WAITALL), 3);
    assert_string_equal(got, "abc");
    close(peer);
    while (calls->asendv(fd, parts, 2, &sockets) >= 0 || errno == EAGAIN)
        poll(&(struct pollfd){.fd = fd, .events = POLLOUT}, 1, PATIENCE_MS);
    assert_true(errno == EPIPE || errno == ECONNRESET);
    assert_int_equal(calls->aclose(fd, &sockets), 0);
    close(listener);
}

static void a_look_up_can_be_dropped_in_the_middle(void **state)
{
    struct fixture *f = *state;
    struct dfl_interest in[DFL_INTEREST_MAX];

    for (int i = 0; i < 3; i++) {
        struct dfl_transport *t = open_to(f, "mute.test", 6388);

        assert_int_equal(t->ops->connect(t, peer_at(0), 3000), DFL_IO_AGAIN);
        if (i > 0)
            assert_true(t->ops->interest(t, false, in) > 0);
        if (i > 1)
            assert_int_equal(t->ops->connect(t, peer_at(1), 3000), DFL_IO_AGAIN);
        t->ops->close(t);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(literals_need_nobody),
        TEST(localhost_never_goes_to_a_name_server),
        TEST(a_name_is_looked_up_and_dialled),
        TEST(both_families_are_answered),
        TEST(an_answer_too_big_for_udp_comes_by_tcp),
        TEST(the_hosts_file_comes_first),
        TEST(every_failure_has_its_sentence),
        TEST(a_mute_name_server_ends_before_the_deadline),
        TEST(the_deadline_ends_a_look_up),
        TEST(a_dead_name_server_leaves_time_for_the_next),
        TEST(a_look_up_by_tcp_can_be_cut),
        TEST(asking_nobody_by_tcp_raises_no_signal),
        TEST(a_look_up_can_be_dropped_in_the_middle),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
