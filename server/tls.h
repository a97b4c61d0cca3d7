/*
 * tls.h - TLS for accepted connections: 1.2 and later, never waiting. Certificates can be read
 * again while it runs.
 */
#ifndef DFL_SERVER_TLS_H
#define DFL_SERVER_TLS_H

#include "../core/dflockd.h"

enum tls_io { TLS_DONE, TLS_WANT_READ, TLS_WANT_WRITE, TLS_EOF, TLS_ERROR };

struct tls_server; /* certificate and key in force */
enum dfl_status tls_server_new(const char *cert, const char *key, struct tls_server **out,
                               struct dfl_error *err);
/* Reads the same files again; on failure the old ones stay in force. */
enum dfl_status tls_server_reload(struct tls_server *s, struct dfl_error *err);
void tls_server_free(struct tls_server *s);

struct tls;                                           /* one connection */
struct tls *tls_accept(struct tls_server *s, int fd); /* NULL: no memory */
enum tls_io tls_handshake(struct tls *t);
enum tls_io tls_read(struct tls *t, void *buf, size_t cap, size_t *got);
enum tls_io tls_write(struct tls *t, const void *bytes, size_t len, size_t *put);
void tls_finish(struct tls *t); /* says goodbye, if that does not wait */
void tls_free(struct tls *t);
const char *tls_reason(void); /* of the last TLS_ERROR */

#endif
