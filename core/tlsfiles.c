/*
 * tlsfiles.c - reads tls_ca, tls_cert and tls_key into an OpenSSL context.
 *
 * Owns nothing beyond a call; what was read of a key is wiped. Never asks for a pass phrase: an
 * encrypted key is an error, for there is nobody to answer.
 */
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE
#endif
#include "tlsfiles.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "net.h"

#define FILE_MAX (4 << 20) /* the system's whole list of CAs is a quarter of a megabyte */

struct file {
    const char *setting, *path;
    char *data;
    size_t len;
    BIO *bio; /* over data */
};

static enum dfl_status bad_file(const struct file *f, const char *why, struct dfl_error *err)
{
    return dfl_fail(err, DFL_UNREACHABLE, "%s %s: %s", f->setting, f->path, why);
}

static void close_file(struct file *f)
{
    BIO_free(f->bio);
    if (f->data)
        OPENSSL_cleanse(f->data, f->len);
    free(f->data);
    f->bio = NULL;
    f->data = NULL;
}

/* Reads fd to its end or to FILE_MAX bytes. 0 or errno. */
static int read_all(int fd, struct file *f, size_t size)
{
    f->data = malloc(size);
    if (!f->data)
        return ENOMEM;
    while (f->len < size) {
        ssize_t n = read(fd, f->data + f->len, size - f->len);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno;
        if (n == 0)
            break;
        f->len += (size_t)n;
    }
    return 0;
}

/* O_NONBLOCK: a path that is a pipe without a writer must not hang the host. */
static enum dfl_status open_file(struct file *f, const char *setting, const char *path,
                                 struct dfl_error *err)
{
    struct stat st;
    char text[128];
    int fd, error = 0;

    *f = (struct file){.setting = setting, .path = path};
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0 || fstat(fd, &st) != 0)
        error = errno;
    else if (S_ISDIR(st.st_mode))
        error = EISDIR;
    else if (!S_ISREG(st.st_mode))
        error = EINVAL;
    else if (st.st_size > FILE_MAX)
        error = EFBIG;
    else
        error = read_all(fd, f, (size_t)st.st_size + 1);
    if (fd >= 0)
        close(fd);
    if (error == 0) {
        f->bio = BIO_new_mem_buf(f->data, (int)f->len);
        error = f->bio ? 0 : ENOMEM;
    }
    if (error == 0)
        return DFL_OK;
    close_file(f);
    return bad_file(f, dfl_errno_text(error, text, sizeof text), err);
}

/* Called instead of a prompt on the terminal. */
static int no_pass_phrase(char *buf, int size, int writing, void *asked)
{
    (void)buf;
    (void)size;
    (void)writing;
    *(bool *)asked = true;
    return -1;
}

/* ------------------------------------------------------------------------ CA */

static int add_all(X509_STORE *store, const STACK_OF(X509_INFO) * infos)
{
    int added = 0;

    for (int i = 0; i < sk_X509_INFO_num(infos); i++) {
        const X509_INFO *info = sk_X509_INFO_value(infos, i);

        if (info->x509 && X509_STORE_add_cert(store, info->x509))
            added++;
    }
    return added;
}

enum dfl_status dfl_tls_load_ca(SSL_CTX *ctx, const char *path, struct dfl_error *err)
{
    STACK_OF(X509_INFO) * infos;
    X509_STORE *store = SSL_CTX_get_cert_store(ctx);
    enum dfl_status status;
    struct file f;
    bool asked = false;

    if (path[0] == '\0') {
        SSL_CTX_set_default_verify_paths(ctx);
        return DFL_OK;
    }
    status = open_file(&f, "tls_ca", path, err);
    if (status != DFL_OK)
        return status;
    infos = PEM_X509_INFO_read_bio(f.bio, NULL, no_pass_phrase, &asked);
    if (!infos)
        status = bad_file(&f, "not a file of pem certificates", err);
    else if (add_all(store, infos) == 0)
        status = bad_file(&f, "no certificate in it", err);
    /* Whatever the administrator put there is trusted, also a server's own certificate or an
     * intermediate one. */
    X509_STORE_set_flags(store, X509_V_FLAG_PARTIAL_CHAIN);
    sk_X509_INFO_pop_free(infos, X509_INFO_free);
    close_file(&f);
    return status;
}

/* ------------------------------------------------------------------ identity */

/* Takes the chain behind the certificate. */
static bool add_chain(SSL_CTX *ctx, BIO *bio)
{
    bool asked = false;
    X509 *ca;

    while ((ca = PEM_read_bio_X509(bio, NULL, no_pass_phrase, &asked)) != NULL)
        if (!SSL_CTX_add0_chain_cert(ctx, ca)) {
            X509_free(ca);
            return false;
        }
    return ERR_GET_REASON(ERR_peek_last_error()) ==
           PEM_R_NO_START_LINE; /* the end, not a broken one */
}

static enum dfl_status load_certificate(SSL_CTX *ctx, const char *path, X509 **cert,
                                        struct dfl_error *err)
{
    enum dfl_status status;
    struct file f;
    bool asked = false;

    status = open_file(&f, "tls_cert", path, err);
    if (status != DFL_OK)
        return status;
    ERR_clear_error();
    *cert = PEM_read_bio_X509_AUX(f.bio, NULL, no_pass_phrase, &asked);
    if (!*cert)
        status = bad_file(&f, "no pem certificate in it", err);
    else if (!SSL_CTX_use_certificate(ctx, *cert)) {
        const char *why = ERR_reason_error_string(ERR_peek_error());

        status = bad_file(&f, why ? why : "cannot be used", err);
    } else if (!add_chain(ctx, f.bio))
        status = bad_file(&f, "a certificate of its chain is damaged", err);
    close_file(&f);
    return status;
}

static enum dfl_status load_key(SSL_CTX *ctx, const char *path, X509 *cert, struct dfl_error *err)
{
    EVP_PKEY *key;
    enum dfl_status status;
    struct file f;
    bool asked = false;

    status = open_file(&f, "tls_key", path, err);
    if (status != DFL_OK)
        return status;
    ERR_clear_error();
    key = PEM_read_bio_PrivateKey(f.bio, NULL, no_pass_phrase, &asked);
    if (!key)
        status = bad_file(&f, asked ? "the key is encrypted" : "no pem private key in it", err);
    else if (!X509_check_private_key(cert, key))
        status = bad_file(&f, "does not belong to the certificate of tls_cert", err);
    else if (!SSL_CTX_use_PrivateKey(ctx, key))
        status = bad_file(&f, "cannot be used", err);
    EVP_PKEY_free(key);
    close_file(&f);
    return status;
}

enum dfl_status dfl_tls_load_identity(SSL_CTX *ctx, const char *cert_path, const char *key_path,
                                      struct dfl_error *err)
{
    enum dfl_status status;
    X509 *cert = NULL;

    if (cert_path[0] == '\0' && key_path[0] == '\0')
        return DFL_OK;
    if (cert_path[0] == '\0')
        return dfl_fail(err, DFL_UNREACHABLE, "tls_key %s: tls_cert is not set", key_path);
    if (key_path[0] == '\0')
        return dfl_fail(err, DFL_UNREACHABLE, "tls_cert %s: tls_key is not set", cert_path);
    status = load_certificate(ctx, cert_path, &cert, err);
    if (status == DFL_OK)
        status = load_key(ctx, key_path, cert, err);
    X509_free(cert);
    return status;
}
