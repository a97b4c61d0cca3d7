/*
 * resolve.h - names to addresses without waiting: one look-up is one object, driven like a
 * transport.
 *
 * Literal addresses and `localhost` (RFC 6761: never asked of a name server) are answered by
 * dfl_resolve_literal at once. Everything else goes to c-ares, which reads /etc/hosts,
 * /etc/resolv.conf and nsswitch.conf anew for each look-up and starts no thread.
 */
#ifndef DFL_RESOLVE_H
#define DFL_RESOLVE_H

#include "net.h"

#define DFL_RESOLVE_LITERAL_MAX 2

/*
 * Addresses of an IPv4 or IPv6 literal (a %scope allowed) or of localhost and names below it.
 * Returns how many; 0: a name to look up.
 */
size_t dfl_resolve_literal(const char *host, uint16_t port,
                           struct dfl_socket_address out[DFL_RESOLVE_LITERAL_MAX]);

/* True when host is an IPv4 or IPv6 address rather than a name. */
bool dfl_host_is_address(const char *host);

struct dfl_resolver;

/*
 * Starts a look-up. Its sockets are opened in, and belong to, `sockets`, which must outlive the
 * resolver. The time-outs for name servers are cut from patience_ms so that a dead one leaves time
 * for the next, and for connecting. DFL_OK, DFL_NOMEM, or DFL_UNREACHABLE with the reason alone in
 * *err.
 */
enum dfl_status dfl_resolver_new(const char *host, uint16_t port, int64_t patience_ms,
                                 const struct dfl_net_options *options, struct dfl_sockets *sockets,
                                 struct dfl_resolver **out, struct dfl_error *err);

/*
 * Makes progress. DFL_OK: *list (malloc'd, the caller frees) and *count >= 1. DFL_PENDING: call
 * again when a socket is ready or dfl_resolver_wake_ms() has come. DFL_UNREACHABLE, DFL_NOMEM: the
 * reason alone in *err.
 */
enum dfl_status dfl_resolver_run(struct dfl_resolver *r, struct dfl_now now,
                                 struct dfl_socket_address **list, size_t *count,
                                 struct dfl_error *err);
int64_t dfl_resolver_wake_ms(const struct dfl_resolver *r);
void dfl_resolver_free(struct dfl_resolver *r); /* NULL allowed; retires its sockets */

#endif
