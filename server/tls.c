/*
 * tls.c - OpenSSL behind the few functions of tls.h. Owns the context; the descriptor is the
 * caller's. OpenSSL's error queue is cleared before each call and read right after it.
 */
#include "tls.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct tls_server {
    SSL_CTX *context;
    char *cert, *key;
};

static char reason[256];

const char *tls_reason(void)
{
    return reason;
}

static void keep_reason(void)
{
    unsigned long error = ERR_get_error();
    const char *text = error ? ERR_reason_error_string(error) : "connection closed";

    if (!text && ERR_GET_LIB(error) == ERR_LIB_SYS)
        text = strerror(ERR_GET_REASON(error));
    snprintf(reason, sizeof reason, "%s", text ? text : "OpenSSL does not say why");
    ERR_clear_error();
}

static enum dfl_status refuse(SSL_CTX *context, struct dfl_error *err, const char *what,
                              const char *file)
{
    keep_reason();
    SSL_CTX_free(context);
    return dfl_fail(err, DFL_INVALID, "%s %s: %s", what, file, reason);
}

/* OpenSSL's own would ask on the terminal, and everybody would wait for whoever sits there. */
static int no_pass_phrase(char *buf, int cap, int writing, void *asked)
{
    (void)buf;
    (void)cap;
    (void)writing;
    if (asked)
        *(bool *)asked = true;
    return -1;
}

static enum dfl_status use_key(SSL_CTX *context, const char *key, struct dfl_error *err)
{
    bool asked = false;

    SSL_CTX_set_default_passwd_cb_userdata(context, &asked);

    int used = SSL_CTX_use_PrivateKey_file(context, key, SSL_FILETYPE_PEM);

    SSL_CTX_set_default_passwd_cb_userdata(context, NULL);
    if (used == 1)
        return DFL_OK;
    if (!asked)
        return refuse(context, err, "read private key", key);
    ERR_clear_error();
    SSL_CTX_free(context);
    return dfl_fail(err, DFL_INVALID, "read private key %s: it is encrypted", key);
}

static enum dfl_status make_context(const char *cert, const char *key, SSL_CTX **out,
                                    struct dfl_error *err)
{
    ERR_clear_error();

    SSL_CTX *context = SSL_CTX_new(TLS_server_method());

    if (!context)
        return dfl_fail(err, DFL_NOMEM, "out of memory");
    SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);
    SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                  SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_default_passwd_cb(context, no_pass_phrase);
    if (SSL_CTX_use_certificate_chain_file(context, cert) != 1)
        return refuse(context, err, "read certificate", cert);
    if (use_key(context, key, err) != DFL_OK)
        return DFL_INVALID;
    if (SSL_CTX_check_private_key(context) != 1)
        return refuse(context, err, "private key does not belong to the certificate:", key);
    *out = context;
    return DFL_OK;
}

enum dfl_status tls_server_new(const char *cert, const char *key, struct tls_server **out,
                               struct dfl_error *err)
{
    struct tls_server *s = calloc(1, sizeof *s);
    enum dfl_status status = DFL_NOMEM;

    if (s) {
        s->cert = strdup(cert);
        s->key = strdup(key);
    }
    if (s && s->cert && s->key)
        status = make_context(cert, key, &s->context, err);
    else
        dfl_fail(err, DFL_NOMEM, "out of memory");
    if (status == DFL_OK)
        *out = s;
    else
        tls_server_free(s);
    return status;
}

enum dfl_status tls_server_reload(struct tls_server *s, struct dfl_error *err)
{
    SSL_CTX *context = NULL;
    enum dfl_status status = make_context(s->cert, s->key, &context, err);

    if (status != DFL_OK)
        return status;
    SSL_CTX_free(s->context); /* connections keep the one they have */
    s->context = context;
    return DFL_OK;
}

void tls_server_free(struct tls_server *s)
{
    if (!s)
        return;
    SSL_CTX_free(s->context);
    free(s->cert);
    free(s->key);
    free(s);
}

/* ------------------------------------------------------------- connections */

static SSL *ssl_of(struct tls *t)
{
    return (SSL *)(void *)t;
}

struct tls *tls_accept(struct tls_server *s, int fd)
{
    SSL *ssl = SSL_new(s->context);

    if (ssl && SSL_set_fd(ssl, fd) == 1) {
        SSL_set_accept_state(ssl);
        return (struct tls *)(void *)ssl;
    }
    SSL_free(ssl);
    ERR_clear_error();
    return NULL;
}

static enum tls_io outcome(struct tls *t, int result)
{
    if (result > 0)
        return TLS_DONE;
    switch (SSL_get_error(ssl_of(t), result)) {
    case SSL_ERROR_WANT_READ:
        return TLS_WANT_READ;
    case SSL_ERROR_WANT_WRITE:
        return TLS_WANT_WRITE;
    case SSL_ERROR_ZERO_RETURN:
        return TLS_EOF;
    default:
        keep_reason();
        return TLS_ERROR;
    }
}

enum tls_io tls_handshake(struct tls *t)
{
    ERR_clear_error();
    return outcome(t, SSL_do_handshake(ssl_of(t)));
}

enum tls_io tls_read(struct tls *t, void *buf, size_t cap, size_t *got)
{
    ERR_clear_error();
    return outcome(t, SSL_read_ex(ssl_of(t), buf, cap, got));
}

enum tls_io tls_write(struct tls *t, const void *bytes, size_t len, size_t *put)
{
    ERR_clear_error();
    return outcome(t, SSL_write_ex(ssl_of(t), bytes, len, put));
}

void tls_finish(struct tls *t)
{
    ERR_clear_error();
    SSL_shutdown(ssl_of(t));
    ERR_clear_error();
}

void tls_free(struct tls *t)
{
    SSL_free(ssl_of(t));
}
