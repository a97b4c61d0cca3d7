/*
 * test_tls.c - TLS over a network in memory: who is believed and who is not, what is shown to the
 * server, which files are usable, and the words for all of it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <openssl/err.h>
#include <openssl/pem.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "netpeer.h"
#include "tlsscene.h"

/* ----------------------------------------------------------------------------------- trust */
static void accepts(const struct dfl_settings *set, const struct identity *id, const char *name,
                    const char *sni)
{
    struct scene s;

    wire_open(&s.w, id, 0, 0);
    scene_begin(&s, set, name);
    if (scene_shake(&s) != DFL_IO_DONE)
        fail_msg("%s: %s", name, s.t->error.text);
    assert_string_equal(s.w.seen_name, sni);
    assert_string_equal(s.t->ops->step(s.t), "connected");
    scene_end(&s);
}

static void refuses(const struct dfl_settings *set, const struct identity *id, const char *name,
                    const char *why)
{
    static const int versions[] = {TLS1_2_VERSION, TLS1_3_VERSION};
    char text[DFL_ERROR_MAX];

    snprintf(text, sizeof text, "tls handshake with %s: %s", name, why);
    for (size_t i = 0; i < 2; i++) {
        struct scene s;

        wire_open(&s.w, id, versions[i], versions[i]);
        scene_begin(&s, set, name);
        assert_int_equal(scene_shake(&s), DFL_IO_ERROR);
        assert_int_equal(s.t->error.status, DFL_UNREACHABLE);
        assert_string_equal(s.t->error.text, text);
        assert_string_equal(s.t->ops->step(s.t), "tls handshake");
        assert_int_equal(scene_shake(&s), DFL_IO_ERROR); /* the first error sticks */
        assert_false(s.w.accepted);
        scene_end(&s);
    }
}

static void a_name_is_verified_and_sent(void **state)
{
    struct dfl_settings set = scene_settings(cast.ca.cert_path);

    (void)state;
    accepts(&set, &cast.server, "db.test", "db.test");
    accepts(&set, &cast.server, "DB.Test", "DB.Test");
    accepts(&set, &cast.server, "db.test.", "db.test");
    accepts(&set, &cast.wildcard, "any.db.test", "any.db.test");
}

static void an_address_is_verified_and_not_sent(void **state)
{
    struct dfl_settings set = scene_settings(cast.ca.cert_path);

    (void)state;
    accepts(&set, &cast.server, "127.0.0.1", "");
    accepts(&set, &cast.server, "::1", "");
    accepts(&set, &cast.server, "0:0:0:0:0:0:0:1", "");
    accepts(&set, &cast.server, "::1%1", "");
}

static void another_name_is_refused_with_those_it_is_for(void **state)
{
    struct dfl_settings set = scene_settings(cast.ca.cert_path);

    (void)state;
    refuses(&set, &cast.server, "db2.test",
            "certificate is for db.test, 127.0.0.1, ::1; not for db2.test");
    refuses(&set, &cast.server, "127.0.0.2",
            "certificate is for db.test, 127.0.0.1, ::1; not for 127.0.0.2");
    refuses(&set, &cast.server, "::2", "certificate is for db.test, 127.0.0.1, ::1; not for ::2");
    refuses(&set, &cast.wildcard, "a.b.db.test",
            "certificate is for *.db.test; not for a.b.db.test");
    refuses(&set, &cast.wildcard, "127.0.0.1", "certificate is for *.db.test; not for 127.0.0.1");
    refuses(&set, &cast.many_names, "db.test",
            "certificate is for a.test, b.test, c.test, d.test, e.test, f.test and 2 more; not for "
            "db.test");
    /* a common name is no host name */
    refuses(&set, &cast.nameless, "db.test",
            "certificate names no host (subjectAltName); not for db.test");
}

static void another_name_can_be_asked_for(void **state)
{
    struct dfl_settings set = scene_settings(cast.ca.cert_path);

    (void)state;
    set.tls_server_name = "db.test";
    accepts(&set, &cast.server, "10.0.0.5", "db.test");
    set.tls_server_name = "127.0.0.1";
    accepts(&set, &cast.server, "elsewhere.test", "");
    set.tls_server_name = "other.test";
    refuses(&set, &cast.server, "db.test",
            "certificate is for db.test, 127.0.0.1, ::1; not for other.test");
}

static void time_and_issuer_count(void **state)
{
    struct dfl_settings set = scene_settings(cast.ca.cert_path),
                        other = scene_settings(cast.other_ca.cert_path);
    char text[100], when[40];
    struct tm tm;

    (void)state;
    assert_true(ASN1_TIME_to_tm(X509_get0_notAfter(cast.expired.cert), &tm));
    strftime(when, sizeof when, "%Y-%m-%d %H:%M:%S UTC", &tm);
    snprintf(text, sizeof text, "certificate has expired (%s)", when);
    refuses(&set, &cast.expired, "db.test", text);
    assert_true(ASN1_TIME_to_tm(X509_get0_notBefore(cast.early.cert), &tm));
    strftime(when, sizeof when, "%Y-%m-%d %H:%M:%S UTC", &tm);
    snprintf(text, sizeof text, "certificate is not valid yet (%s)", when);
    refuses(&set, &cast.early, "db.test", text);
    refuses(&other, &cast.server, "db.test", "certificate is signed by an unknown ca");
    refuses(&set, &cast.by_middle, "db.test", "certificate is signed by an unknown ca");
    refuses(&set, &cast.self_signed, "db.test", "certificate is self-signed and not trusted");
}

static void whatever_is_in_the_ca_file_is_trusted(void **state)
{
    struct dfl_settings middle = scene_settings(cast.middle_ca.cert_path),
                        self = scene_settings(cast.self_signed.cert_path),
                        leaf = scene_settings(cast.server.cert_path);

    (void)state;
    accepts(&middle, &cast.by_middle, "db.test", "db.test");
    accepts(&self, &cast.self_signed, "db.test", "db.test");
    accepts(&leaf, &cast.server, "db.test", "db.test");
    refuses(&leaf, &cast.by_middle, "db.test", "certificate is signed by an unknown ca");
}

static void without_a_ca_file_the_system_decides(void **state)
{
    struct dfl_settings set = scene_settings("");

    (void)state;
    setenv("SSL_CERT_FILE", cast.ca.cert_path, 1);
    accepts(&set, &cast.server, "db.test", "db.test");
    setenv("SSL_CERT_FILE", cast.other_ca.cert_path, 1);
    refuses(&set, &cast.server, "db.test", "certificate is signed by an unknown ca");
    unsetenv("SSL_CERT_FILE");
    refuses(&set, &cast.server, "db.test", "certificate is signed by an unknown ca");
}

static void insecure_believes_everybody(void **state)
{
    struct dfl_settings set = scene_settings("/nowhere");

    (void)state;
    set.tls = DFL_TLS_INSECURE;
    accepts(&set, &cast.server, "db2.test", "db2.test");
    accepts(&set, &cast.expired, "db.test", "db.test");
    accepts(&set, &cast.self_signed, "127.0.0.9", "");
}

/* ------------------------------------------------------------------- the client's identity */
static void with_client(struct scene *s, const struct identity *id, int version)
{
    struct dfl_settings set = scene_settings(cast.ca.cert_path);

    if (id) {
        set.tls_cert = (char *)id->cert_path;
        set.tls_key = (char *)id->key_path;
    }
    wire_open(&s->w, &cast.server, version, version);
    wire_require_client(&s->w, cast.ca.cert_path);
    scene_begin(s, &set, "db.test");
}

/* TLS 1.2 says it in the handshake, 1.3 in answer to the first request. */
static void client_is_refused(const struct identity *id, int version, const char *why)
{
    struct scene s;
    char buf[16], text[200];
    enum dfl_io io;
    size_t n;

    with_client(&s, id, version);
    io = scene_shake(&s);
    if (version == TLS1_3_VERSION) {
        assert_int_equal(io, DFL_IO_DONE);
        io = s.t->ops->read(s.t, buf, sizeof buf, &n);
    }
    assert_int_equal(io, DFL_IO_ERROR);
    assert_int_equal(s.t->error.status, version == TLS1_3_VERSION ? DFL_BROKEN : DFL_UNREACHABLE);
    snprintf(text, sizeof text, "%s db.test: %s",
             version == TLS1_3_VERSION ? "read from" : "tls handshake with", why);
    assert_string_equal(s.t->error.text, text);
    scene_end(&s);
}

static void a_client_certificate_is_shown(void **state)
{
    static const int versions[] = {TLS1_2_VERSION, TLS1_3_VERSION};

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct scene s;
        char subject[64];
        X509 *seen;

        with_client(&s, &cast.client, versions[i]);
        assert_int_equal(scene_shake(&s), DFL_IO_DONE);
        assert_true(s.w.accepted);
        seen = SSL_get_peer_certificate(s.w.server);
        X509_NAME_get_text_by_NID(X509_get_subject_name(seen), NID_commonName, subject,
                                  sizeof subject);
        assert_string_equal(subject, "worker");
        X509_free(seen);
        scene_end(&s);
    }
}

static void a_missing_or_strange_client_certificate_is_named(void **state)
{
    (void)state;
    client_is_refused(NULL, TLS1_3_VERSION,
                      "the server requires a client certificate (tls_cert and tls_key)");
    client_is_refused(NULL, TLS1_2_VERSION,
                      "the server refused the handshake (does it want a client certificate?)");
    client_is_refused(&cast.alien_client, TLS1_3_VERSION,
                      "the server does not trust the ca of our certificate");
    client_is_refused(&cast.alien_client, TLS1_2_VERSION,
                      "the server does not trust the ca of our certificate");
}

static void an_alert_is_read_after_a_failed_write(void **state)
{
    struct scene s;
    char buf[8];
    size_t n;

    (void)state;
    with_client(&s, NULL, TLS1_3_VERSION);
    assert_int_equal(scene_shake(&s), DFL_IO_DONE);
    s.w.broken_write = true;
    assert_int_equal(s.t->ops->write(s.t, "x", 1, &n), DFL_IO_ERROR);
    assert_int_equal(s.t->ops->read(s.t, buf, sizeof buf, &n), DFL_IO_ERROR);
    assert_string_equal(
        s.t->error.text,
        "read from db.test: the server requires a client certificate (tls_cert and tls_key)");
    scene_end(&s);
}

/* ----------------------------------------------------------------------------- bad servers */
static void old_versions_are_refused(void **state)
{
    struct dfl_settings set = scene_settings(cast.ca.cert_path);
    struct scene s;

    (void)state;
    wire_open(&s.w, &cast.server, TLS1_VERSION, TLS1_1_VERSION);
    scene_begin(&s, &set, "db.test");
    assert_int_equal(scene_shake(&s), DFL_IO_ERROR);
    assert_string_equal(s.t->error.text,
                        "tls handshake with db.test: the server speaks no tls version from 1.2 on");
    scene_end(&s);
}

/* A server that says `text` to our first bytes, and then closes or stays. */
static void plain_server(const char *text, bool closes, const char *why)
{
    struct dfl_settings set = scene_settings(cast.ca.cert_path);
    struct scene s;
    char expected[200];

    wire_open(&s.w, NULL, 0, 0);
    if (text[0])
        wire_say(&s.w, text, strlen(text));
    s.w.shut = closes;
    scene_begin(&s, &set, "db.test");
    assert_int_equal(scene_shake(&s), DFL_IO_ERROR);
    snprintf(expected, sizeof expected, "tls handshake with db.test: %s", why);
    assert_string_equal(s.t->error.text, expected);
    assert_int_equal(s.t->error.status, DFL_UNREACHABLE);
    scene_end(&s);
}

static void a_server_without_tls_is_recognised(void **state)
{
    (void)state;
    plain_server("error\n", true, "the server does not speak tls");
    plain_server("error_auth\n", false, "the server does not speak tls");
    plain_server("HTTP/1.1 400 Bad Request\r\n\r\n", true, "the server does not speak tls");
    plain_server("SSH-2.0-OpenSSH_9.2\r\n", false, "the server does not speak tls");
    plain_server("ok\n", true, "the server closed the connection (does it speak tls?)");
    plain_server("", true, "the server closed the connection (does it speak tls?)");
}

static void a_mute_server_ends_at_the_deadline(void **state)
{
    struct dfl_settings set = scene_settings(cast.ca.cert_path);
    struct scene s;

    (void)state;
    wire_open(&s.w, NULL, 0, 0);
    scene_begin(&s, &set, "db.test");
    assert_int_equal(s.t->ops->connect(s.t, peer_at(0), 1000), DFL_IO_AGAIN);
    assert_int_equal(s.t->ops->wake_ms(s.t), 1000);
    assert_false(scene_wants_room(&s, true));
    assert_int_equal(s.t->ops->connect(s.t, peer_at(999), 1000), DFL_IO_AGAIN);
    assert_int_equal(s.t->ops->connect(s.t, peer_at(1000), 1000), DFL_IO_ERROR);
    assert_string_equal(
        s.t->error.text,
        "tls handshake with db.test: no answer in time (does the server speak tls?)");
    assert_true(s.t->ops->wake_ms(s.t) == INT64_MAX);
    scene_end(&s);
}

static void a_handshake_may_be_cut_anywhere(void **state)
{
    struct dfl_settings set = scene_settings(cast.ca.cert_path);
    static const int versions[] = {TLS1_2_VERSION, TLS1_3_VERSION};

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        enum dfl_io io = DFL_IO_ERROR;
        long cut;

        for (cut = 0; cut < 5000 && io == DFL_IO_ERROR; cut += cut < 16 ? 1 : 7) {
            struct scene s;

            wire_open(&s.w, &cast.server, versions[i], versions[i]);
            s.w.cut_after = cut;
            scene_begin(&s, &set, "db.test");
            io = scene_shake(&s);
            if (io == DFL_IO_ERROR)
                assert_string_equal(s.t->error.text,
                                    "tls handshake with db.test: the server closed the "
                                    "connection (does it speak tls?)");
            scene_end(&s);
        }
        assert_int_equal(io, DFL_IO_DONE); /* with enough bytes it is one */
        assert_in_range(cut, 500, 4999);
    }
}

/* ----------------------------------------------------------------------------------- files */
static const char *put_file(const char *name, const char *text)
{
    static char path[160];
    FILE *f;

    snprintf(path, sizeof path, "%s/%s", scene_folder, name);
    f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    return path;
}

static void is_refused(const struct dfl_settings *set, const char *format, const char *path)
{
    struct dfl_tls *tls = NULL;
    struct dfl_error err;
    char text[400];
    const char *at = strstr(format, "%s");

    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - format), format, path, at + 2);
    assert_int_equal(dfl_tls_new(set, &tls, &err), DFL_UNREACHABLE);
    assert_string_equal(err.text, text);
    assert_null(tls);
    assert_true(ERR_peek_error() == 0);
}

static void a_bad_ca_file_is_named(void **state)
{
    struct dfl_settings set = scene_settings("/nowhere/ca.crt");
    char loop[160];

    (void)state;
    is_refused(&set, "tls_ca %s: no such file or directory", set.tls_ca);
    set.tls_ca = scene_folder;
    is_refused(&set, "tls_ca %s: is a directory", scene_folder);
    set.tls_ca = (char *)put_file("empty", "");
    is_refused(&set, "tls_ca %s: no certificate in it", set.tls_ca);
    set.tls_ca = (char *)put_file("empty", "hello\n");
    is_refused(&set, "tls_ca %s: no certificate in it", set.tls_ca);
    set.tls_ca =
        (char *)put_file("empty", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    is_refused(&set, "tls_ca %s: not a file of pem certificates", set.tls_ca);
    unlink(set.tls_ca);
    snprintf(loop, sizeof loop, "%s/loop", scene_folder);
    assert_int_equal(symlink("loop", loop), 0);
    set.tls_ca = loop;
    is_refused(&set, "tls_ca %s: too many levels of symbolic links", loop);
    unlink(loop);
    assert_int_equal(mkfifo(loop, 0600), 0); /* nobody writes into it: must not hang */
    is_refused(&set, "tls_ca %s: invalid argument", loop);
    unlink(loop);
    set.tls_ca = cast.server.key_path;
    is_refused(&set, "tls_ca %s: no certificate in it", set.tls_ca);
}

static void a_bad_identity_is_named(void **state)
{
    struct dfl_settings set = scene_settings(cast.ca.cert_path);
    char path[160];
    FILE *f;

    (void)state;
    set.tls_cert = cast.client.cert_path;
    is_refused(&set, "tls_cert %s: tls_key is not set", cast.client.cert_path);
    set.tls_key = "/nowhere/key";
    is_refused(&set, "tls_key %s: no such file or directory", set.tls_key);
    set.tls_key = cast.server.key_path;
    is_refused(&set, "tls_key %s: does not belong to the certificate of tls_cert",
               cast.server.key_path);
    set.tls_key = cast.client.cert_path;
    is_refused(&set, "tls_key %s: no pem private key in it", cast.client.cert_path);
    set.tls_key = cast.client.key_path;
    set.tls_cert = "/nowhere/cert";
    is_refused(&set, "tls_cert %s: no such file or directory", set.tls_cert);
    set.tls_cert = cast.client.key_path;
    is_refused(&set, "tls_cert %s: no pem certificate in it", cast.client.key_path);
    set.tls_cert = "";
    is_refused(&set, "tls_key %s: tls_cert is not set", cast.client.key_path);

    snprintf(path, sizeof path, "%s/locked.key", scene_folder);
    f = fopen(path, "w");
    assert_non_null(f);
    assert_true(
        PEM_write_PKCS8PrivateKey(f, cast.client.key, EVP_aes_128_cbc(), "secret", 6, NULL, NULL));
    fclose(f);
    set.tls_cert = cast.client.cert_path;
    set.tls_key = path;
    is_refused(&set, "tls_key %s: the key is encrypted",
               path); /* and nobody was asked for the pass phrase */
    unlink(path);
}

static void a_chain_is_sent_with_the_certificate(void **state)
{
    struct dfl_settings set = scene_settings(cast.ca.cert_path);
    struct identity leaf;
    struct identity_wish wish = {.file = "leaf", .common_name = "leaf", .issuer = &cast.middle_ca};
    struct scene s;
    FILE *f;

    (void)state;
    identity_make(&leaf, scene_folder, &wish);
    f = fopen(leaf.cert_path, "a");
    assert_non_null(f);
    assert_true(PEM_write_X509(f, cast.middle_ca.cert));
    fclose(f);
    set.tls_cert = leaf.cert_path;
    set.tls_key = leaf.key_path;
    wire_open(&s.w, &cast.server, 0, 0);
    wire_require_client(&s.w, cast.ca.cert_path); /* knows nothing of the one in the middle */
    scene_begin(&s, &set, "db.test");
    assert_int_equal(scene_shake(&s), DFL_IO_DONE);
    assert_true(s.w.accepted);
    scene_end(&s);

    f = fopen(leaf.cert_path, "a");
    fputs("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", f);
    fclose(f);
    is_refused(&set, "tls_cert %s: a certificate of its chain is damaged", leaf.cert_path);
    unlink(leaf.cert_path);
    unlink(leaf.key_path);
    identity_free(&leaf);
}

static void off_means_none(void **state)
{
    struct dfl_settings set = scene_settings("/nowhere");
    struct dfl_tls *tls = (struct dfl_tls *)&set;
    struct dfl_error err;

    (void)state;
    set.tls = DFL_TLS_OFF;
    assert_int_equal(dfl_tls_new(&set, &tls, &err), DFL_OK);
    assert_null(tls);
    assert_null(dfl_tls_retain(NULL));
    dfl_tls_release(NULL);
    assert_memory_equal(dfl_tls_library(), "OpenSSL ", 8);
}

static void a_name_that_is_none_is_refused(void **state)
{
    struct dfl_settings set = scene_settings(cast.ca.cert_path);
    struct dfl_tls *tls;
    struct dfl_transport *t = NULL;
    struct dfl_error err;
    struct wire w;
    char name[280];

    (void)state;
    memset(name, 'a', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    wire_open(&w, NULL, 0, 0);
    assert_int_equal(dfl_tls_new(&set, &tls, &err), DFL_OK);
    assert_int_equal(dfl_tls_wrap(tls, &w.base, name, &t, &err), DFL_UNREACHABLE);
    assert_non_null(strstr(err.text, "cannot be the name of a server"));
    assert_null(t);
    assert_int_equal(w.closed, 1); /* it was ours from then on */
    dfl_tls_release(tls);
    wire_free(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_name_is_verified_and_sent),
        cmocka_unit_test(an_address_is_verified_and_not_sent),
        cmocka_unit_test(another_name_is_refused_with_those_it_is_for),
        cmocka_unit_test(another_name_can_be_asked_for),
        cmocka_unit_test(time_and_issuer_count),
        cmocka_unit_test(whatever_is_in_the_ca_file_is_trusted),
        cmocka_unit_test(without_a_ca_file_the_system_decides),
        cmocka_unit_test(insecure_believes_everybody),
        cmocka_unit_test(a_client_certificate_is_shown),
        cmocka_unit_test(a_missing_or_strange_client_certificate_is_named),
        cmocka_unit_test(an_alert_is_read_after_a_failed_write),
        cmocka_unit_test(old_versions_are_refused),
        cmocka_unit_test(a_server_without_tls_is_recognised),
        cmocka_unit_test(a_mute_server_ends_at_the_deadline),
        cmocka_unit_test(a_handshake_may_be_cut_anywhere),
        cmocka_unit_test(a_bad_ca_file_is_named),
        cmocka_unit_test(a_bad_identity_is_named),
        cmocka_unit_test(a_chain_is_sent_with_the_certificate),
        cmocka_unit_test(off_means_none),
        cmocka_unit_test(a_name_that_is_none_is_refused),
    };

    return cmocka_run_group_tests(tests, scene_make_cast, scene_free_cast);
}
