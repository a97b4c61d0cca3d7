/*
 * test_tls_stream.c - TLS once it is believed: records that come in pieces, in heaps, damaged or
 * not at all, full wires, broken ones, the two kinds of end. The last tests put it on a real
 * socket.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <openssl/err.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "netpeer.h"
#include "tlsscene.h"

/* ----------------------------------------------------------------------------------- bytes */
static void bytes_flow_in_every_version_and_size(void **state)
{
    static const int versions[] = {TLS1_2_VERSION, TLS1_3_VERSION};
    static const size_t chunks[] = {0, 1, 7, 1000};
    static char block[60000];

    (void)state;
    for (size_t i = 0; i < sizeof block; i++)
        block[i] = (char)(i * 7 + i / 251);
    for (size_t v = 0; v < 2; v++)
        for (size_t c = 0; c < sizeof chunks / sizeof *chunks; c++) {
            struct dfl_settings set = scene_settings(cast.ca.cert_path);
            struct scene s;

            wire_open(&s.w, &cast.server, versions[v], versions[v]);
            s.w.chunk = chunks[c];
            scene_begin(&s, &set, "db.test");
            assert_int_equal(scene_shake(&s), DFL_IO_DONE);
            wire_say(&s.w, block, sizeof block);
            scene_reads(&s, block, sizeof block);
            scene_writes(&s, block, sizeof block);
            assert_int_equal(s.w.received_len, sizeof block);
            assert_memory_equal(s.w.received, block, sizeof block);
            scene_end(&s);
        }
}

static void what_openssl_holds_is_told(void **state)
{
    struct scene s;
    char buf[16];
    size_t n;

    (void)state;
    scene_connected(&s, TLS1_3_VERSION);
    while (s.t->ops->read(s.t, buf, sizeof buf, &n) != DFL_IO_AGAIN)
        ;
    assert_false(s.t->ops->buffered(s.t));
    wire_say(&s.w, "one\n", 4); /* three records that arrive in one read */
    wire_say(&s.w, "two\n", 4);
    wire_say(&s.w, "three\n", 6);
    assert_int_equal(s.t->ops->read(s.t, buf, 2, &n), DFL_IO_DONE);
    assert_int_equal(n, 2);
    assert_true(s.t->ops->buffered(s.t));
    assert_int_equal(s.t->ops->read(s.t, buf, 16, &n), DFL_IO_DONE);
    assert_int_equal(n, 2);
    assert_true(s.t->ops->buffered(s.t)); /* whole records, nothing left on the wire */
    assert_int_equal(BIO_ctrl_pending(s.w.out), 0);
    scene_reads(&s, "two\nthree\n", 10);
    assert_int_equal(s.t->ops->read(s.t, buf, 16, &n), DFL_IO_AGAIN);
    assert_false(s.t->ops->buffered(s.t));
    scene_end(&s);
}

static void half_a_record_is_nothing_to_read(void **state)
{
    struct scene s;
    char buf[16], record[64];
    const int half = 9;
    size_t n;
    int len;

    (void)state;
    scene_connected(&s, TLS1_3_VERSION);
    while (s.t->ops->read(s.t, buf, sizeof buf, &n) != DFL_IO_AGAIN)
        ;
    wire_say(&s.w, "late\n", 5);
    len = BIO_read(s.w.out, record, sizeof record);
    assert_in_range(len, 20, sizeof record - 1);
    BIO_write(s.w.out, record, half);
    assert_int_equal(s.t->ops->read(s.t, buf, sizeof buf, &n), DFL_IO_AGAIN);
    assert_false(s.t->ops->buffered(s.t)); /* or the host would spin */
    BIO_write(s.w.out, record + half, len - half);
    scene_reads(&s, "late\n", 5);
    scene_end(&s);
}

static void a_full_wire_is_waited_for(void **state)
{
    struct dfl_settings set = scene_settings(cast.ca.cert_path);
    struct scene s;
    char first[5] = "lock\n", *again;
    size_t n;

    (void)state;
    wire_open(&s.w, &cast.server, 0, 0);
    s.w.full = true;
    scene_begin(&s, &set, "db.test");
    assert_int_equal(s.t->ops->connect(s.t, peer_at(0), 1000), DFL_IO_AGAIN);
    assert_true(scene_wants_room(&s, false)); /* also without bytes of the caller's */
    s.w.full = false;
    assert_int_equal(scene_shake(&s), DFL_IO_DONE);
    assert_false(scene_wants_room(&s, false));
    assert_true(scene_wants_room(&s, true));

    s.w.full = true;
    assert_int_equal(s.t->ops->write(s.t, first, 5, &n), DFL_IO_AGAIN);
    assert_true(scene_wants_room(&s, true));
    s.w.full = false;
    again = malloc(5); /* the caller's buffer may have moved */
    memcpy(again, first, 5);
    memset(first, 'x', 5);
    assert_int_equal(s.t->ops->write(s.t, again, 5, &n), DFL_IO_DONE);
    assert_int_equal(n, 5);
    free(again);
    wire_pump(&s.w);
    assert_int_equal(s.w.received_len, 5);
    assert_memory_equal(s.w.received, "lock\n", 5);
    scene_end(&s);
}

static void what_fits_is_taken(void **state)
{
    static char block[60000];
    struct scene s;
    size_t n = 0, all;

    (void)state;
    memset(block, 'b', sizeof block);
    scene_connected(&s, TLS1_3_VERSION);
    s.w.room = 40000; /* two records and a half */
    assert_int_equal(s.t->ops->write(s.t, block, sizeof block, &n), DFL_IO_DONE);
    assert_in_range(n, 1, sizeof block - 1);
    for (all = n; s.t->ops->write(s.t, block, sizeof block - all, &n) == DFL_IO_DONE; all += n)
        assert_true(all < 40000);
    s.w.room = -1;
    scene_writes(&s, block, sizeof block - all);
    assert_int_equal(s.w.received_len, sizeof block);
    scene_end(&s);
}

static void new_keys_in_the_middle_are_no_matter(void **state)
{
    struct scene s;

    (void)state;
    scene_connected(&s, TLS1_3_VERSION);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(SSL_key_update(s.w.server, SSL_KEY_UPDATE_REQUESTED), 1);
        wire_say(&s.w, "ok\n", 3);
        s.w.full = true; /* the answer to it has to wait */
        scene_reads(&s, "ok\n", 3);
        s.w.full = false;
        s.w.received_len = 0;
        scene_writes(&s, "ping\n", 5);
        assert_memory_equal(s.w.received, "ping\n", 5);
    }
    scene_end(&s);
}

/* OpenSSL's server takes the refusal badly and hangs up; that is its right. We neither wait nor
 * change keys. */
static void renegotiation_is_declined(void **state)
{
    struct scene s;
    char buf[16];
    size_t n;

    (void)state;
    scene_connected(&s, TLS1_2_VERSION);
    assert_int_equal(SSL_renegotiate(s.w.server), 1);
    SSL_do_handshake(s.w.server);
    assert_int_equal(s.t->ops->read(s.t, buf, sizeof buf, &n), DFL_IO_ERROR);
    assert_int_equal(s.t->error.status, DFL_BROKEN);
    assert_memory_equal(s.t->error.text, "read from db.test: the server refused the handshake", 50);
    scene_end(&s);
}

static void an_orderly_end_is_eof(void **state)
{
    struct scene s;
    char buf[16];
    size_t n;

    (void)state;
    scene_connected(&s, TLS1_3_VERSION);
    wire_say(&s.w, "bye\n", 4);
    SSL_shutdown(s.w.server);
    s.w.shut = true;
    scene_reads(&s, "bye\n", 4);
    assert_int_equal(s.t->ops->read(s.t, buf, sizeof buf, &n), DFL_IO_EOF);
    assert_int_equal(s.t->ops->read(s.t, buf, sizeof buf, &n), DFL_IO_EOF);
    scene_end(&s);
}

static void a_cut_stream_is_an_error(void **state)
{
    struct scene s;
    char buf[16];
    size_t n;

    (void)state;
    scene_connected(&s, TLS1_3_VERSION);
    wire_say(&s.w, "bye\n", 4);
    s.w.shut = true;
    scene_reads(&s, "bye\n", 4);
    assert_int_equal(s.t->ops->read(s.t, buf, sizeof buf, &n), DFL_IO_ERROR);
    assert_int_equal(s.t->error.status, DFL_BROKEN);
    assert_string_equal(s.t->error.text, "read from db.test: closed without a tls close_notify");
    assert_int_equal(s.t->ops->read(s.t, buf, sizeof buf, &n), DFL_IO_ERROR);
    assert_int_equal(s.t->ops->write(s.t, "x", 1, &n), DFL_IO_ERROR);
    scene_end(&s);
}

static void damaged_records_are_an_error(void **state)
{
    struct scene s;
    char record[64], buf[16];
    size_t n;
    int len;

    (void)state;
    scene_connected(&s, TLS1_3_VERSION);
    while (s.t->ops->read(s.t, buf, sizeof buf, &n) != DFL_IO_AGAIN)
        ;
    wire_say(&s.w, "ok\n", 3);
    len = BIO_read(s.w.out, record, sizeof record);
    record[len - 1] ^= 1;
    BIO_write(s.w.out, record, len);
    assert_int_equal(s.t->ops->read(s.t, buf, sizeof buf, &n), DFL_IO_ERROR);
    assert_memory_equal(s.t->error.text, "read from db.test: ", 19);
    scene_end(&s);
}

static void closing_says_goodbye_without_waiting(void **state)
{
    struct scene s;

    (void)state;
    scene_connected(&s, TLS1_3_VERSION);
    s.t->ops->close(s.t);
    wire_pump(&s.w);
    assert_true(SSL_get_shutdown(s.w.server) & SSL_RECEIVED_SHUTDOWN);
    assert_int_equal(s.w.closed, 1);
    dfl_tls_release(s.tls);
    wire_free(&s.w);

    scene_connected(&s, TLS1_3_VERSION);
    s.w.full = true; /* no room for it: closed all the same */
    scene_end(&s);
}

static void a_forked_child_says_nothing(void **state)
{
    struct scene s;
    int writes_before;

    (void)state;
    scene_connected(&s, TLS1_3_VERSION);
    writes_before = s.w.writes;
    s.t->ops->abandon(s.t);
    assert_int_equal(s.w.abandoned, 1);
    assert_int_equal(s.w.closed, 0);
    assert_int_equal(s.w.writes, writes_before);
    scene_end(&s);
}

static void errors_of_the_host_are_not_ours(void **state)
{
    struct scene s;
    char buf[16];
    size_t n;

    (void)state;
    scene_connected(&s, TLS1_3_VERSION);
    for (int i = 0; i < 2; i++) { /* with the server's tickets to read, and with nothing */
        SSLerr(0, SSL_R_WRONG_VERSION_NUMBER);
        assert_int_equal(s.t->ops->read(s.t, buf, sizeof buf, &n), DFL_IO_AGAIN);
    }
    SSLerr(0, SSL_R_WRONG_VERSION_NUMBER);
    assert_int_equal(s.t->ops->write(s.t, "x", 1, &n), DFL_IO_DONE);
    scene_end(&s);
}

/* ------------------------------------------------------------------------------ from below */
static void the_errors_of_what_is_below_come_through(void **state)
{
    struct dfl_settings set = scene_settings(cast.ca.cert_path);
    struct scene s;
    char buf[8];
    size_t n;

    (void)state;
    wire_open(&s.w, &cast.server, 0, 0);
    s.w.broken_read = true;
    scene_begin(&s, &set, "db.test");
    assert_int_equal(scene_shake(&s), DFL_IO_ERROR);
    assert_string_equal(s.t->error.text, "tls handshake with db.test: connection reset by peer");
    assert_int_equal(s.t->error.status, DFL_UNREACHABLE);
    scene_end(&s);

    scene_connected(&s, TLS1_3_VERSION);
    s.w.broken_write = true;
    assert_int_equal(s.t->ops->write(s.t, "x", 1, &n), DFL_IO_ERROR);
    assert_string_equal(s.t->error.text, "write to db.test: connection reset by peer");
    assert_int_equal(s.t->error.status, DFL_BROKEN);
    assert_int_equal(s.t->ops->write(s.t, "x", 1, &n), DFL_IO_ERROR);
    s.w.broken_read = true;
    while (s.t->ops->read(s.t, buf, sizeof buf, &n) != DFL_IO_ERROR)
        ;
    assert_string_equal(s.t->error.text, "read from db.test: connection reset by peer");
    assert_false(s.t->ops->buffered(s.t));
    scene_end(&s);
}

/* --------------------------------------------------------------------------- a real socket */
struct listener {
    int fd;
    pthread_t thread;
};

/* Shakes hands with one client, answers one line, and is gone without a word. */
static void *serve_one(void *arg)
{
    struct listener *l = arg;
    int fd = peer_accept(l->fd);
    SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());
    SSL *ssl;
    char buf[64];
    struct linger reset = {.l_onoff = 1, .l_linger = 0};
    sigset_t pipe_signal;

    sigemptyset(&pipe_signal); /* only the client's thread is under test */
    sigaddset(&pipe_signal, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe_signal, NULL);
    SSL_CTX_use_certificate(ctx, cast.server.cert);
    SSL_CTX_use_PrivateKey(ctx, cast.server.key);
    ssl = SSL_new(ctx);
    SSL_set_fd(ssl, fd);
    if (SSL_accept(ssl) == 1 && SSL_read(ssl, buf, sizeof buf) > 0)
        SSL_write(ssl, "ok\n", 3);
    SSL_read(ssl, buf, sizeof buf); /* until the client says that it has it */
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    close(fd);
    SSL_free(ssl);
    SSL_CTX_free(ctx);
    return NULL;
}

static void a_real_server_that_dies_raises_no_signal(void **state)
{
    struct dfl_settings set = scene_settings(cast.ca.cert_path);
    const struct dfl_net *net = dfl_net_sockets();
    struct dfl_endpoint ep = {.host = "127.0.0.1"};
    struct dfl_transport *t;
    struct listener l;
    struct dfl_tls *tls;
    struct dfl_error err;
    char buf[16], expected[64];
    enum dfl_io io;
    size_t n;

    (void)state;
    signal(SIGPIPE, SIG_DFL);
    l.fd = peer_listen(AF_INET, 4, &ep.port);
    assert_int_equal(pthread_create(&l.thread, NULL, serve_one, &l), 0);
    assert_int_equal(dfl_tls_new(&set, &tls, &err), DFL_OK);
    assert_int_equal(net->open(net->ctx, &ep, tls, &t, &err), DFL_OK);
    assert_int_equal(peer_connect(t, PATIENCE_MS), DFL_IO_DONE);
    assert_int_equal(t->ops->write(t, "ping\n", 5, &n), DFL_IO_DONE);
    assert_int_equal(peer_read(t, buf, sizeof buf, &n), DFL_IO_DONE);
    assert_int_equal(n, 3);
    assert_int_equal(t->ops->write(t, "bye\n", 4, &n), DFL_IO_DONE);
    pthread_join(l.thread, NULL);
    while ((io = t->ops->write(t, "more\n", 5, &n)) != DFL_IO_ERROR)
        peer_wait(t, true);
    snprintf(expected, sizeof expected, "write to 127.0.0.1:%u: ", (unsigned)ep.port);
    assert_memory_equal(t->error.text, expected, strlen(expected));
    t->ops->close(t);
    dfl_tls_release(tls);
    close(l.fd);
}

static void a_refusal_is_told_as_without_tls(void **state)
{
    struct dfl_settings set = scene_settings(cast.ca.cert_path);
    const struct dfl_net *net = dfl_net_sockets();
    struct dfl_endpoint ep = {.host = "127.0.0.1"};
    struct dfl_transport *t;
    struct dfl_tls *tls;
    struct dfl_error err;
    int reserved = peer_closed_port(&ep.port);
    char expected[100];

    (void)state;
    assert_int_equal(dfl_tls_new(&set, &tls, &err), DFL_OK);
    assert_int_equal(net->open(net->ctx, &ep, tls, &t, &err), DFL_OK);
    dfl_tls_release(tls); /* the transport has its own reference */
    assert_int_equal(peer_connect(t, PATIENCE_MS), DFL_IO_ERROR);
    snprintf(expected, sizeof expected, "connect to 127.0.0.1:%u: connection refused",
             (unsigned)ep.port);
    assert_string_equal(t->error.text, expected);
    assert_int_equal(t->error.status, DFL_UNREACHABLE);
    t->ops->close(t);
    close(reserved);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_flow_in_every_version_and_size),
        cmocka_unit_test(what_openssl_holds_is_told),
        cmocka_unit_test(half_a_record_is_nothing_to_read),
        cmocka_unit_test(a_full_wire_is_waited_for),
        cmocka_unit_test(what_fits_is_taken),
        cmocka_unit_test(new_keys_in_the_middle_are_no_matter),
        cmocka_unit_test(renegotiation_is_declined),
        cmocka_unit_test(an_orderly_end_is_eof),
        cmocka_unit_test(a_cut_stream_is_an_error),
        cmocka_unit_test(damaged_records_are_an_error),
        cmocka_unit_test(closing_says_goodbye_without_waiting),
        cmocka_unit_test(a_forked_child_says_nothing),
        cmocka_unit_test(errors_of_the_host_are_not_ours),
        cmocka_unit_test(the_errors_of_what_is_below_come_through),
        cmocka_unit_test(a_real_server_that_dies_raises_no_signal),
        cmocka_unit_test(a_refusal_is_told_as_without_tls),
    };

    return cmocka_run_group_tests(tests, scene_make_cast, scene_free_cast);
}
