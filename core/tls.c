/*
 * tls.c - TLS as a struct dfl_transport over any other one, with OpenSSL.
 *
 * Owns the client context made from the tls_* settings, and per connection an SSL object and the
 * transport below it; no descriptor. Bytes reach OpenSSL through a BIO over that transport's own
 * read and write, so they never raise SIGPIPE and a simulated network can carry them. Never asks
 * for a password on a terminal, never waits.
 *
 * OpenSSL starts itself in the first dfl_tls_new of a process, here with OPENSSL_INIT_NO_ATEXIT:
 * unless the host started the same library before, exit() does not take it down under a thread that
 * is in a handshake. Nothing happens when the library is loaded. OpenSSL's error queue belongs to
 * the thread and perhaps to the host as well: it is cleared before each call that may fail and
 * again after it was read.
 */
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE
#endif
#include <arpa/inet.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "resolve.h"
#include "tlsfiles.h"

struct dfl_tls {
    atomic_uint references;
    SSL_CTX *ctx;
    BIO_METHOD *method;
    char *server_name; /* instead of the host's; "" = none */
    bool verify;
    bool has_identity; /* a client certificate */
};

enum tls_state { TLS_BELOW, TLS_HANDSHAKE, TLS_OPEN };

struct tls {
    struct dfl_transport base;
    struct dfl_tls *shared;
    struct dfl_transport *inner;
    SSL *ssl;
    enum tls_state state;
    const char *step;
    char name[DFL_ADDRESS_MAX];     /* what the certificate must be for */
    char peer[DFL_ADDRESS_MAX + 8]; /* for messages */
    bool inner_eof;
    bool failed;       /* for good */
    bool write_failed; /* below; what the peer said before it closed can still be read */
    bool drained; /* the latest read found nothing more, so what OpenSSL has is half a record */
    /* What the latest AGAIN waits for: DFL_READABLE or DFL_WRITABLE. */
    unsigned handshake_wants, read_wants, write_wants;
    int64_t deadline_ms;
    char verdict[DFL_ERROR_MAX]; /* what is wrong with the peer's certificate */
};

/* ----------------------------------------------------- the peer's certificate */

#define NAMES_SHOWN 6

/* One name of a certificate, made printable; false for kinds that are no names of hosts. */
static bool name_text(const GENERAL_NAME *name, char *out, size_t cap)
{
    const unsigned char *data;
    size_t len, i;

    if (name->type == GEN_IPADD) {
        len = (size_t)ASN1_STRING_length(name->d.iPAddress);
        return (len == 4 || len == 16) &&
               inet_ntop(len == 4 ? AF_INET : AF_INET6, ASN1_STRING_get0_data(name->d.iPAddress),
                         out, (socklen_t)cap);
    }
    if (name->type != GEN_DNS)
        return false;
    data = ASN1_STRING_get0_data(name->d.dNSName);
    len = (size_t)ASN1_STRING_length(name->d.dNSName);
    for (i = 0; i < len && i + 1 < cap; i++)
        out[i] = (char)(data[i] > ' ' && data[i] < 0x7f ? data[i] : '?');
    out[i] = '\0';
    return true;
}

/* "a, b, 10.0.0.5" or "" when it is for no host at all. */
static void certificate_names(X509 *cert, char *out, size_t cap)
{
    GENERAL_NAMES *names = X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL);
    size_t used = 0;
    int shown = 0, more = 0;

    out[0] = '\0';
    for (int i = 0; i < sk_GENERAL_NAME_num(names); i++) {
        char one[80];

        if (!name_text(sk_GENERAL_NAME_value(names, i), one, sizeof one))
            continue;
        if (shown == NAMES_SHOWN || used >= cap)
            more++;
        else {
            used += (size_t)snprintf(out + used, cap - used, "%s%s", shown > 0 ? ", " : "", one);
            shown++;
        }
    }
    if (more > 0 && used < cap)
        snprintf(out + used, cap - used, " and %d more", more);
    GENERAL_NAMES_free(names);
}

static void say_wrong_name(struct tls *t, X509_STORE_CTX *store)
{
    char names[400] = "";
    X509 *cert = X509_STORE_CTX_get0_cert(store);

    if (cert)
        certificate_names(cert, names, sizeof names);
    if (names[0])
        snprintf(t->verdict, sizeof t->verdict, "certificate is for %s; not for %s", names,
                 t->name);
    else
        snprintf(t->verdict, sizeof t->verdict,
                 "certificate names no host (subjectAltName); not for %s", t->name);
}

static void say_dates(struct tls *t, X509_STORE_CTX *store, bool expired)
{
    X509 *cert = X509_STORE_CTX_get_current_cert(store);
    const char *which =
        X509_STORE_CTX_get_error_depth(store) > 0 ? "ca certificate" : "certificate";
    char when[40] = "";
    struct tm tm;

    if (cert &&
        ASN1_TIME_to_tm(expired ? X509_get0_notAfter(cert) : X509_get0_notBefore(cert), &tm))
        strftime(when, sizeof when, " (%Y-%m-%d %H:%M:%S UTC)", &tm);
    snprintf(t->verdict, sizeof t->verdict, "%s %s%s", which,
             expired ? "has expired" : "is not valid yet", when);
}

static void say_other(struct tls *t, int error)
{
    static const struct {
        int error;
        const char *text;
    } sentences[] = {
        {X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT, "certificate is signed by an unknown ca"},
        {X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY, "certificate is signed by an unknown ca"},
        {X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE, "certificate is signed by an unknown ca"},
        {X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN, "certificate is signed by an unknown ca"},
        {X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT, "certificate is self-signed and not trusted"},
        {X509_V_ERR_INVALID_PURPOSE, "certificate is not one for servers"},
    };

    for (size_t i = 0; i < sizeof sentences / sizeof *sentences; i++)
        if (sentences[i].error == error) {
            snprintf(t->verdict, sizeof t->verdict, "%s", sentences[i].text);
            return;
        }
    snprintf(t->verdict, sizeof t->verdict, "certificate refused: %s",
             X509_verify_cert_error_string(error));
}

/* OpenSSL calls it for each step of the verification; the first that fails ends it. */
static int verify(int ok, X509_STORE_CTX *store)
{
    SSL *ssl = X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx());
    struct tls *t = ssl ? SSL_get_app_data(ssl) : NULL;
    int error = X509_STORE_CTX_get_error(store);

    if (ok || !t)
        return ok;
    if (error == X509_V_ERR_HOSTNAME_MISMATCH || error == X509_V_ERR_IP_ADDRESS_MISMATCH)
        say_wrong_name(t, store);
    else if (error == X509_V_ERR_CERT_HAS_EXPIRED || error == X509_V_ERR_CERT_NOT_YET_VALID)
        say_dates(t, store, error == X509_V_ERR_CERT_HAS_EXPIRED);
    else
        say_other(t, error);
    return 0;
}

/* ------------------------------------------------------------------ the BIO */

static int bio_read(BIO *bio, char *buf, int cap)
{
    struct tls *t = BIO_get_data(bio);
    size_t got = 0;
    enum dfl_io io;

    BIO_clear_retry_flags(bio);
    if (cap <= 0)
        return 0;
    io = t->inner->ops->read(t->inner, buf, (size_t)cap, &got);
    if (io == DFL_IO_DONE)
        return (int)got;
    if (io == DFL_IO_AGAIN)
        BIO_set_retry_read(bio);
    t->inner_eof = io == DFL_IO_EOF;
    return t->inner_eof ? 0 : -1;
}

static int bio_write(BIO *bio, const char *buf, int len)
{
    struct tls *t = BIO_get_data(bio);
    size_t put = 0;
    enum dfl_io io;

    BIO_clear_retry_flags(bio);
    if (len <= 0)
        return 0;
    io = t->inner->ops->write(t->inner, buf, (size_t)len, &put);
    if (io == DFL_IO_DONE)
        return (int)put;
    if (io == DFL_IO_AGAIN)
        BIO_set_retry_write(bio);
    return -1;
}

static long bio_ctrl(BIO *bio, int command, long number, void *pointer)
{
    const struct tls *t = BIO_get_data(bio);

    (void)number;
    (void)pointer;
    if (command == BIO_CTRL_FLUSH)
        return 1;
    return command == BIO_CTRL_EOF && t->inner_eof;
}

/* No index of BIO_get_new_index: a process has about a hundred, and nobody looks for ours. */
static BIO_METHOD *new_method(void)
{
    BIO_METHOD *m = BIO_meth_new(BIO_TYPE_SOURCE_SINK, "dflockd transport");

    if (m && BIO_meth_set_read(m, bio_read) && BIO_meth_set_write(m, bio_write) &&
        BIO_meth_set_ctrl(m, bio_ctrl))
        return m;
    BIO_meth_free(m);
    return NULL;
}

/* ------------------------------------------------------------------- context */

static SSL_CTX *new_context(bool check)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());

    if (!ctx)
        return NULL;
    /* A stricter system-wide minimum stays. */
    if (SSL_CTX_get_min_proto_version(ctx) < TLS1_2_VERSION &&
        !SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION)) {
        SSL_CTX_free(ctx);
        return NULL;
    }
#ifdef SSL_OP_IGNORE_UNEXPECTED_EOF /* OpenSSL 1.1.1 never ignores it */
    SSL_CTX_clear_options(ctx, SSL_OP_IGNORE_UNEXPECTED_EOF);
#endif
    SSL_CTX_set_options(ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
    SSL_CTX_set_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                              SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_read_ahead(ctx, 1); /* one recv(2) for a whole record */
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_verify(ctx, check ? SSL_VERIFY_PEER : SSL_VERIFY_NONE, check ? verify : NULL);
    return ctx;
}

static enum dfl_status load_files(struct dfl_tls *tls, const struct dfl_settings *s,
                                  struct dfl_error *err)
{
    enum dfl_status status = DFL_OK;

    if (tls->verify)
        status = dfl_tls_load_ca(tls->ctx, s->tls_ca, err);
    if (status == DFL_OK)
        status = dfl_tls_load_identity(tls->ctx, s->tls_cert, s->tls_key, err);
    tls->has_identity = s->tls_cert[0] != '\0';
    ERR_clear_error();
    return status;
}

enum dfl_status dfl_tls_new(const struct dfl_settings *s, struct dfl_tls **out,
                            struct dfl_error *err)
{
    struct dfl_tls *tls;
    enum dfl_status status;

    if (s->tls == DFL_TLS_OFF) {
        *out = NULL;
        return DFL_OK;
    }
    ERR_clear_error();
    if (!OPENSSL_init_ssl(OPENSSL_INIT_NO_ATEXIT, NULL)) {
        ERR_clear_error();
        return dfl_fail(err, DFL_UNREACHABLE, "tls: openssl did not start");
    }
    tls = calloc(1, sizeof *tls);
    if (!tls)
        return dfl_fail(err, DFL_NOMEM, "out of memory");
    atomic_init(&tls->references, 1);
    tls->verify = s->tls != DFL_TLS_INSECURE;
    tls->server_name = strdup(s->tls_server_name);
    tls->method = new_method();
    tls->ctx = new_context(tls->verify);
    if (tls->server_name && tls->method && tls->ctx)
        status = load_files(tls, s, err);
    else
        status = dfl_fail(err, DFL_NOMEM, "tls: out of memory");
    if (status != DFL_OK) {
        dfl_tls_release(tls);
        return status;
    }
    *out = tls;
    return DFL_OK;
}

struct dfl_tls *dfl_tls_retain(struct dfl_tls *tls)
{
    if (tls)
        atomic_fetch_add(&tls->references, 1);
    return tls;
}

void dfl_tls_release(struct dfl_tls *tls)
{
    if (!tls || atomic_fetch_sub(&tls->references, 1) > 1)
        return;
    SSL_CTX_free(tls->ctx);
    BIO_meth_free(tls->method);
    free(tls->server_name);
    free(tls);
    ERR_clear_error();
}

const char *dfl_tls_library(void)
{
    return OpenSSL_version(OPENSSL_VERSION);
}

/* -------------------------------------------------------------------- errors */

static struct tls *tls_of(struct dfl_transport *t)
{
    return (struct tls *)t; /* base is the first member */
}

#define NEEDS_IDENTITY "the server requires a client certificate (tls_cert and tls_key)"

/* What OpenSSL's oldest error of the queue means, in our words where we have some. NULL when it has no text, as when
 * OpenSSL 3.5 only notes that what is below has failed. */
static const char *library_reason(const struct tls *t, unsigned long error)
{
    static const struct {
        int reason;
        const char *text, *without_identity;
    } sentences[] = {
        {SSL_R_WRONG_VERSION_NUMBER, "the server does not speak tls", NULL},
        {SSL_R_PACKET_LENGTH_TOO_LONG, "the server does not speak tls", NULL},
        {SSL_R_UNSUPPORTED_PROTOCOL, "the server speaks no tls version from 1.2 on", NULL},
        {SSL_R_TLSV1_ALERT_PROTOCOL_VERSION, "the server speaks no tls version from 1.2 on", NULL},
        {SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED, NEEDS_IDENTITY, NULL},
        {SSL_R_SSLV3_ALERT_BAD_CERTIFICATE, "the server refused our certificate", NEEDS_IDENTITY},
        {SSL_R_SSLV3_ALERT_CERTIFICATE_UNKNOWN, "the server refused our certificate", NULL},
        {SSL_R_SSLV3_ALERT_CERTIFICATE_EXPIRED, "the server says that our certificate has expired",
         NULL},
        {SSL_R_TLSV1_ALERT_UNKNOWN_CA, "the server does not trust the ca of our certificate", NULL},
        {SSL_R_SSLV3_ALERT_HANDSHAKE_FAILURE, "the server refused the handshake",
         "the server refused the handshake (does it want a client certificate?)"},
    };
    if (ERR_GET_LIB(error) == ERR_LIB_SSL)
        for (size_t i = 0; i < sizeof sentences / sizeof *sentences; i++)
            if (sentences[i].reason == ERR_GET_REASON(error))
                return !t->shared->has_identity && sentences[i].without_identity
                           ? sentences[i].without_identity
                           : sentences[i].text;
    return ERR_reason_error_string(error);
}

/* The inner transport's sentence without the step and the peer, which ours names itself. */
static const char *inner_reason(const struct tls *t)
{
    const char *text = t->inner->error.text, *at = strstr(text, t->peer);
    size_t len = strlen(t->peer);

    return at && strncmp(at + len, ": ", 2) == 0 ? at + len + 2 : text;
}

static const char *reason(const struct tls *t)
{
    unsigned long error = ERR_peek_error();
    const char *text;

    if (t->verdict[0])
        return t->verdict;
    if (t->inner_eof)
        return t->state == TLS_OPEN ? "closed without a tls close_notify"
                                    : "the server closed the connection (does it speak tls?)";
    text = error ? library_reason(t, error) : NULL;
    if (text)
        return text;
    return t->inner->error.status != DFL_OK ? inner_reason(t) : "unknown error of openssl";
}

static enum dfl_io failed_io(struct tls *t, const char *what, const char *why)
{
    dfl_fail(&t->base.error, t->state == TLS_OPEN ? DFL_BROKEN : DFL_UNREACHABLE, "%s %s: %s", what,
             t->peer, why);
    ERR_clear_error();
    t->failed = true;
    return DFL_IO_ERROR;
}

/* After a call of OpenSSL that did not succeed: what it waits for, or why it never will. */
static enum dfl_io unfinished(struct tls *t, int result, const char *what, unsigned *wants)
{
    int code = SSL_get_error(t->ssl, result);

    if (code == SSL_ERROR_WANT_READ || code == SSL_ERROR_WANT_WRITE) {
        *wants = code == SSL_ERROR_WANT_READ ? DFL_READABLE : DFL_WRITABLE;
        return DFL_IO_AGAIN;
    }
    if (code == SSL_ERROR_ZERO_RETURN && t->state == TLS_OPEN)
        return DFL_IO_EOF;
    return failed_io(
        t, what, code == SSL_ERROR_ZERO_RETURN ? "the server closed the connection" : reason(t));
}

/* ---------------------------------------------------------------- the transport */

static enum dfl_io handshake(struct tls *t, struct dfl_now now)
{
    enum dfl_io io;
    int result;

    ERR_clear_error();
    result = SSL_do_handshake(t->ssl);
    if (result == 1) {
        t->state = TLS_OPEN;
        t->step = "connected";
        return DFL_IO_DONE;
    }
    io = unfinished(t, result, "tls handshake with", &t->handshake_wants);
    if (io == DFL_IO_AGAIN && now.ms >= t->deadline_ms)
        return failed_io(t, "tls handshake with", "no answer in time (does the server speak tls?)");
    return io;
}

static enum dfl_io tls_connect(struct dfl_transport *base, struct dfl_now now, int64_t deadline_ms)
{
    struct tls *t = tls_of(base);
    enum dfl_io io;

    if (t->failed)
        return DFL_IO_ERROR;
    t->deadline_ms = deadline_ms;
    if (t->state == TLS_BELOW) {
        io = t->inner->ops->connect(t->inner, now, deadline_ms);
        if (io == DFL_IO_ERROR) {
            base->error = t->inner->error;
            t->failed = true;
        }
        if (io != DFL_IO_DONE)
            return io;
        t->state = TLS_HANDSHAKE;
        t->step = "tls handshake";
    }
    return t->state == TLS_OPEN ? DFL_IO_DONE : handshake(t, now);
}

/* True when bytes can flow; otherwise *io says what to return. */
static bool may_flow(struct tls *t, const char *step, enum dfl_io *io)
{
    *io = t->failed ? DFL_IO_ERROR : DFL_IO_AGAIN;
    if (t->failed || t->state != TLS_OPEN)
        return false;
    t->step = step;
    ERR_clear_error();
    return true;
}

static enum dfl_io tls_read(struct dfl_transport *base, void *buf, size_t cap, size_t *got)
{
    struct tls *t = tls_of(base);
    enum dfl_io io;
    size_t n;

    if (!may_flow(t, "read", &io))
        return io;
    t->read_wants = 0;
    if (SSL_read_ex(t->ssl, buf, cap, &n)) {
        t->drained = false;
        *got = n;
        return DFL_IO_DONE;
    }
    t->drained = true;
    return unfinished(t, 0, "read from", &t->read_wants);
}

static enum dfl_io tls_write(struct dfl_transport *base, const void *buf, size_t len, size_t *put)
{
    struct tls *t = tls_of(base);
    enum dfl_io io;
    size_t n;

    if (!may_flow(t, "write", &io))
        return io;
    if (t->write_failed)
        return DFL_IO_ERROR;
    t->write_wants = 0;
    if (SSL_write_ex(t->ssl, buf, len, &n)) {
        *put = n;
        return DFL_IO_DONE;
    }
    io = unfinished(t, 0, "write to", &t->write_wants);
    if (io == DFL_IO_EOF)
        return failed_io(t, "write to", "the server has closed the connection");
    if (io == DFL_IO_ERROR && t->inner->error.status != DFL_OK) {
        /* Not OpenSSL's own: an alert that says why may be waiting to be read. */
        t->failed = false;
        t->write_failed = true;
    }
    return io;
}

/* Below they always watch for bytes; whether for room as well depends on what OpenSSL is up to. */
static size_t tls_interest(struct dfl_transport *base, bool want_write, struct dfl_interest *out)
{
    struct tls *t = tls_of(base);

    if (t->failed)
        return 0;
    if (t->state == TLS_HANDSHAKE)
        want_write = t->handshake_wants == DFL_WRITABLE;
    else if (t->state == TLS_OPEN)
        want_write =
            t->read_wants == DFL_WRITABLE || (want_write && t->write_wants != DFL_READABLE);
    return t->inner->ops->interest(t->inner, want_write, out);
}

static bool tls_buffered(struct dfl_transport *base)
{
    struct tls *t = tls_of(base);

    return t->state == TLS_OPEN && !t->failed && !t->drained && SSL_has_pending(t->ssl);
}

static int64_t tls_wake_ms(struct dfl_transport *base)
{
    struct tls *t = tls_of(base);

    if (t->state == TLS_BELOW)
        return t->inner->ops->wake_ms(t->inner);
    return t->state == TLS_HANDSHAKE && !t->failed ? t->deadline_ms : INT64_MAX;
}

static const char *tls_step(struct dfl_transport *base)
{
    struct tls *t = tls_of(base);

    return t->state == TLS_BELOW ? t->inner->ops->step(t->inner) : t->step;
}

static void tls_close(struct dfl_transport *base)
{
    struct tls *t = tls_of(base);

    if (t->ssl && t->state == TLS_OPEN && !t->failed && !t->write_failed)
        SSL_shutdown(t->ssl); /* close_notify if there is room; the peer's is not waited for */
    SSL_free(t->ssl);
    t->inner->ops->close(t->inner);
    dfl_tls_release(t->shared);
    free(t);
    ERR_clear_error();
}

static void tls_abandon(struct dfl_transport *base)
{
    struct dfl_transport *inner = tls_of(base)->inner;

    inner->ops->abandon(inner);
}

static const struct dfl_transport_ops tls_ops = {
    .connect = tls_connect,
    .read = tls_read,
    .write = tls_write,
    .interest = tls_interest,
    .buffered = tls_buffered,
    .wake_ms = tls_wake_ms,
    .step = tls_step,
    .close = tls_close,
    .abandon = tls_abandon,
};

/* ------------------------------------------------------------------- opening */

/* A host name as certificates have it: no dot at its end; an address without its scope. */
static void set_name(struct tls *t, const char *name)
{
    size_t len;

    snprintf(t->name, sizeof t->name, "%s", name);
    if (dfl_host_is_address(t->name)) {
        t->name[strcspn(t->name, "%")] = '\0';
        return;
    }
    len = strlen(t->name);
    if (len > 0 && t->name[len - 1] == '.')
        t->name[len - 1] = '\0';
}

static bool set_up_name(struct tls *t)
{
    X509_VERIFY_PARAM *param = SSL_get0_param(t->ssl);
    bool address = dfl_host_is_address(t->name);

    if (!address && !SSL_set_tlsext_host_name(t->ssl, t->name))
        return false;
    if (!t->shared->verify)
        return true;
    /* As in Go and Python: the subject's common name is no host name. */
    X509_VERIFY_PARAM_set_hostflags(param, X509_CHECK_FLAG_NEVER_CHECK_SUBJECT |
                                               X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    return address ? X509_VERIFY_PARAM_set1_ip_asc(param, t->name)
                   : X509_VERIFY_PARAM_set1_host(param, t->name, 0);
}

static bool set_up_ssl(struct tls *t)
{
    BIO *bio;

    t->ssl = SSL_new(t->shared->ctx);
    bio = t->ssl ? BIO_new(t->shared->method) : NULL;
    if (!bio)
        return false;
    BIO_set_data(bio, t);
    BIO_set_init(bio, 1);
    SSL_set_bio(t->ssl, bio, bio);
    SSL_set_app_data(t->ssl, t);
    SSL_set_connect_state(t->ssl);
    return true;
}

enum dfl_status dfl_tls_wrap_peer(struct dfl_tls *tls, struct dfl_transport *inner,
                                  const char *name, const char *peer, struct dfl_transport **out,
                                  struct dfl_error *err)
{
    struct tls *t = calloc(1, sizeof *t);
    enum dfl_status status = DFL_OK;

    if (!t) {
        inner->ops->close(inner);
        return dfl_fail(err, DFL_NOMEM, "out of memory");
    }
    t->base.ops = &tls_ops;
    t->shared = dfl_tls_retain(tls);
    t->inner = inner;
    t->step = "connect";
    t->deadline_ms = INT64_MAX;
    set_name(t, tls->server_name[0] ? tls->server_name : name);
    snprintf(t->peer, sizeof t->peer, "%s", peer);
    ERR_clear_error();
    if (!set_up_ssl(t))
        status = dfl_fail(err, DFL_NOMEM, "tls: out of memory");
    else if (!set_up_name(t))
        status = dfl_fail(err, DFL_UNREACHABLE, "tls to %s: \"%s\" cannot be the name of a server",
                          peer, t->name);
    ERR_clear_error();
    if (status != DFL_OK) {
        tls_close(&t->base);
        return status;
    }
    *out = &t->base;
    return DFL_OK;
}

enum dfl_status dfl_tls_wrap(struct dfl_tls *tls, struct dfl_transport *inner, const char *name,
                             struct dfl_transport **out, struct dfl_error *err)
{
    return dfl_tls_wrap_peer(tls, inner, name, name, out, err);
}
