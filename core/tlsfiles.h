/*
 * tlsfiles.h - the files that the tls_* settings name, into an OpenSSL context. Each is read whole,
 * once, so that a failure can name the setting, the file and the reason.
 */
#ifndef DFL_TLSFILES_H
#define DFL_TLSFILES_H

#include <openssl/ssl.h>

#include "dflockd.h"

/* The certificates to trust: those of the file alone, or with "" the system's (SSL_CERT_FILE,
 * SSL_CERT_DIR count). */
enum dfl_status dfl_tls_load_ca(SSL_CTX *ctx, const char *path, struct dfl_error *err);

/* The client certificate with its chain, and its key; both "" = none. */
enum dfl_status dfl_tls_load_identity(SSL_CTX *ctx, const char *cert_path, const char *key_path,
                                      struct dfl_error *err);

#endif
