/*
 * tlspeer.c - certificates and a TLS server in memory, for the tests. Whatever cannot fail on a
 * healthy machine aborts the test program with its line.
 */
#include "tlspeer.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MUST(condition) ((condition) ? (void)0 : give_up(#condition, __LINE__))

static void give_up(const char *what, int line)
{
    fprintf(stderr, "tlspeer.c:%d: not true: %s\n", line, what);
    ERR_print_errors_fp(stderr);
    abort();
}

/* --------------------------------------------------------------- certificates */

static void add_extension(X509 *cert, X509 *issuer, int nid, const char *value)
{
    X509V3_CTX ctx;
    X509_EXTENSION *extension;

    X509V3_set_ctx(&ctx, issuer, cert, NULL, NULL, 0);
    extension = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
    MUST(extension != NULL);
    MUST(X509_add_ext(cert, extension, -1));
    X509_EXTENSION_free(extension);
}

static void write_files(struct identity *id, const char *folder, const char *file)
{
    FILE *f;

    snprintf(id->cert_path, sizeof id->cert_path, "%s/%s.crt", folder, file);
    snprintf(id->key_path, sizeof id->key_path, "%s/%s.key", folder, file);
    MUST((f = fopen(id->cert_path, "w")) != NULL);
    MUST(PEM_write_X509(f, id->cert));
    fclose(f);
    MUST((f = fopen(id->key_path, "w")) != NULL);
    MUST(PEM_write_PrivateKey(f, id->key, NULL, NULL, 0, NULL, NULL));
    fclose(f);
}

/* With what OpenSSL 1.1.1 has, too. */
static EVP_PKEY *make_key(void)
{
    EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new_id(EVP_PKEY_EC, NULL);
    EVP_PKEY *key = NULL;

    MUST(ctx && EVP_PKEY_keygen_init(ctx) == 1);
    MUST(EVP_PKEY_CTX_set_ec_paramgen_curve_nid(ctx, NID_X9_62_prime256v1) == 1);
    MUST(EVP_PKEY_keygen(ctx, &key) == 1);
    EVP_PKEY_CTX_free(ctx);
    return key;
}

void identity_make(struct identity *out, const char *folder, const struct identity_wish *wish)
{
    static long serial = 1;
    bool usual = wish->from_days == 0 && wish->to_days == 0;
    X509 *cert = X509_new(), *issuer = wish->issuer ? wish->issuer->cert : cert;
    X509_NAME *name = X509_get_subject_name(cert);

    memset(out, 0, sizeof *out);
    out->cert = cert;
    out->key = make_key();
    MUST(cert && out->key);
    X509_set_version(cert, 2); /* which means v3 */
    ASN1_INTEGER_set(X509_get_serialNumber(cert), serial++);
    X509_gmtime_adj(X509_getm_notBefore(cert), (usual ? -1 : wish->from_days) * 86400L);
    X509_gmtime_adj(X509_getm_notAfter(cert), (usual ? 365 : wish->to_days) * 86400L);
    X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)wish->common_name,
                               -1, -1, 0);
    X509_set_issuer_name(cert, X509_get_subject_name(issuer));
    X509_set_pubkey(cert, out->key);
    add_extension(cert, issuer, NID_basic_constraints, wish->ca ? "critical,CA:TRUE" : "CA:FALSE");
    if (wish->names)
        add_extension(cert, issuer, NID_subject_alt_name, wish->names);
    MUST(X509_sign(cert, wish->issuer ? wish->issuer->key : out->key, EVP_sha256()) > 0);
    write_files(out, folder, wish->file);
}

void identity_free(struct identity *id)
{
    X509_free(id->cert);
    EVP_PKEY_free(id->key);
}

/* ------------------------------------------------------------------------ wire */

static struct wire *wire_of(struct dfl_transport *t)
{
    return (struct wire *)t;
}

void wire_pump(struct wire *w)
{
    int n;

    if (!w->server)
        return;
    ERR_set_mark(); /* the client's queue is this thread's too */
    if (!w->accepted && SSL_accept(w->server) == 1) {
        const char *name = SSL_get_servername(w->server, TLSEXT_NAMETYPE_host_name);

        w->accepted = true;
        snprintf(w->seen_name, sizeof w->seen_name, "%s", name ? name : "");
    }
    while (w->accepted && w->received_len < sizeof w->received &&
           (n = SSL_read(w->server, w->received + w->received_len,
                         (int)(sizeof w->received - w->received_len))) > 0)
        w->received_len += (size_t)n;
    ERR_pop_to_mark();
}

static enum dfl_io wire_connect(struct dfl_transport *t, struct dfl_now now, int64_t deadline_ms)
{
    (void)t;
    (void)now;
    (void)deadline_ms;
    return DFL_IO_DONE;
}

static enum dfl_io wire_error(struct wire *w, const char *what)
{
    dfl_fail(&w->base.error, DFL_BROKEN, "%s db.test: connection reset by peer", what);
    return DFL_IO_ERROR;
}

static enum dfl_io wire_read(struct dfl_transport *t, void *buf, size_t cap, size_t *got)
{
    struct wire *w = wire_of(t);
    int n;

    if (w->broken_read)
        return wire_error(w, "read from");
    wire_pump(w);
    if (w->chunk > 0 && cap > w->chunk)
        cap = w->chunk;
    if (w->cut_after >= 0 && cap > (size_t)(w->cut_after - w->delivered))
        cap = (size_t)(w->cut_after - w->delivered);
    if (cap == 0)
        return DFL_IO_EOF;
    n = BIO_read(w->out, buf, (int)cap);
    if (n <= 0)
        return w->shut ? DFL_IO_EOF : DFL_IO_AGAIN;
    w->delivered += n;
    *got = (size_t)n;
    return DFL_IO_DONE;
}

static enum dfl_io wire_write(struct dfl_transport *t, const void *buf, size_t len, size_t *put)
{
    struct wire *w = wire_of(t);
    int n;

    if (w->broken_write)
        return wire_error(w, "write to");
    if (w->full || w->room == 0)
        return DFL_IO_AGAIN;
    if (w->chunk > 0 && len > w->chunk)
        len = w->chunk;
    if (w->room > 0 && len > (size_t)w->room)
        len = (size_t)w->room;
    if (w->room > 0)
        w->room -= (long)len;
    n = BIO_write(w->in, buf, (int)len);
    MUST(n > 0);
    w->writes++;
    *put = (size_t)n;
    return DFL_IO_DONE;
}

static size_t wire_interest(struct dfl_transport *t, bool want_write, struct dfl_interest *out)
{
    (void)t;
    out[0] =
        (struct dfl_interest){.fd = 1000, .events = DFL_READABLE | (want_write ? DFL_WRITABLE : 0)};
    return 1;
}

static bool wire_buffered(struct dfl_transport *t)
{
    (void)t;
    return false;
}

static int64_t wire_wake_ms(struct dfl_transport *t)
{
    (void)t;
    return INT64_MAX;
}

static const char *wire_step(struct dfl_transport *t)
{
    (void)t;
    return "wire";
}

static void wire_close(struct dfl_transport *t)
{
    wire_of(t)->closed++;
}

static void wire_abandon(struct dfl_transport *t)
{
    wire_of(t)->abandoned++;
}

static const struct dfl_transport_ops wire_ops = {
    .connect = wire_connect,
    .read = wire_read,
    .write = wire_write,
    .interest = wire_interest,
    .buffered = wire_buffered,
    .wake_ms = wire_wake_ms,
    .step = wire_step,
    .close = wire_close,
    .abandon = wire_abandon,
};

void wire_open(struct wire *w, const struct identity *id, int min_version, int max_version)
{
    memset(w, 0, sizeof *w);
    w->base.ops = &wire_ops;
    w->cut_after = -1;
    w->room = -1;
    w->in = BIO_new(BIO_s_mem());
    w->out = BIO_new(BIO_s_mem());
    MUST(w->in && w->out);
    BIO_set_mem_eof_return(w->in, -1);
    if (!id)
        return;
    w->ctx = SSL_CTX_new(TLS_server_method());
    MUST(w->ctx);
    SSL_CTX_set_security_level(w->ctx, max_version != 0 && max_version < TLS1_2_VERSION ? 0 : 1);
    MUST(SSL_CTX_set_min_proto_version(w->ctx, min_version));
    MUST(SSL_CTX_set_max_proto_version(w->ctx, max_version));
    MUST(SSL_CTX_use_certificate(w->ctx, id->cert) && SSL_CTX_use_PrivateKey(w->ctx, id->key));
}

void wire_require_client(struct wire *w, const char *ca_path)
{
    MUST(SSL_CTX_load_verify_locations(w->ctx, ca_path, NULL));
    SSL_CTX_set_verify(w->ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
}

void wire_start(struct wire *w)
{
    if (!w->ctx)
        return;
    w->server = SSL_new(w->ctx);
    MUST(w->server);
    BIO_up_ref(w->in);
    BIO_up_ref(w->out);
    SSL_set_bio(w->server, w->in, w->out);
    SSL_set_accept_state(w->server);
}

void wire_say(struct wire *w, const void *buf, size_t len)
{
    if (w->server)
        MUST(SSL_write(w->server, buf, (int)len) == (int)len);
    else
        MUST(BIO_write(w->out, buf, (int)len) == (int)len);
}

void wire_free(struct wire *w)
{
    SSL_free(w->server);
    SSL_CTX_free(w->ctx);
    BIO_free(w->in);
    BIO_free(w->out);
}
