/*
 * net.h - what transport.c, resolve.c and tls.c share with each other and with their tests: the
 * table of open descriptors, addresses, and the ways to open a transport on something else than the
 * system's names. The engine and the hosts see transport.h only.
 */
#ifndef DFL_NET_H
#define DFL_NET_H

#include <netinet/in.h>
#include <stdatomic.h>
#include <sys/socket.h>

#include "transport.h"

/* strerror()'s words in lower case, whatever the host's locale. Rare errors use buf. */
const char *dfl_errno_text(int error, char *buf, size_t cap);

/* ---------------------------------------------------------------- addresses */

struct dfl_socket_address {
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } u;
    socklen_t len;
};

#define DFL_SOCKET_ADDRESS_TEXT 80

/* The bare address without port: "10.0.0.5", "fe80::1". Returns out. */
const char *dfl_socket_address_text(const struct dfl_socket_address *a,
                                    char out[DFL_SOCKET_ADDRESS_TEXT]);

/* ------------------------------------------------------ descriptors of one transport */

/*
 * Every descriptor that a transport owns, also those of its name look-up. What interest() has shown
 * is not closed before interest() has been called again without it, so that the host can forget a
 * descriptor before its number means something else: dfl_sockets_drop() retires it,
 * dfl_sockets_sweep() closes it.
 */
struct dfl_socket {
    atomic_int fd;   /* -1 = free; cleared before the descriptor is closed (dfl_sockets_abandon) */
    unsigned events; /* DFL_READABLE | DFL_WRITABLE that the owner wants */
    bool shown;      /* by the latest interest() */
    bool retired;    /* given up by the owner */
};

#define DFL_SOCKETS_MAX (2 * DFL_INTEREST_MAX)

struct dfl_sockets {
    struct dfl_socket at[DFL_SOCKETS_MAX];
    size_t used; /* entries behind these have always been free: most connections need one */
};

void dfl_sockets_init(struct dfl_sockets *set);
/* O_CLOEXEC, O_NONBLOCK. The descriptor, or -1 and errno (EMFILE also when the table is full). */
int dfl_sockets_open(struct dfl_sockets *set, int family, int type, int protocol);
void dfl_sockets_want(struct dfl_sockets *set, int fd, unsigned events); /* 0: watch it no longer */
void dfl_sockets_drop(struct dfl_sockets *set, int fd);
void dfl_sockets_sweep(struct dfl_sockets *set);
size_t dfl_sockets_interest(struct dfl_sockets *set, struct dfl_interest *out);
void dfl_sockets_close(struct dfl_sockets *set); /* all of them, now */
/* close(2) on all of them and nothing else: async-signal-safe. */
void dfl_sockets_abandon(struct dfl_sockets *set);

/*
 * True for a TCP socket that is connected to itself. While nobody listens on a local port of the
 * ephemeral range, the kernel may choose that very port for our end of a connection to it.
 */
bool dfl_socket_is_own_peer(int fd);

/* What c-ares does with sockets; its user data is a struct dfl_sockets. Never raises SIGPIPE. */
struct ares_socket_functions;
extern const struct ares_socket_functions dfl_dns_socket_functions;

/* ------------------------------------------------------------- ways to open */

/* May be the ctx of a copy of dfl_net_sockets(), where NULL means the system's name servers. */
struct dfl_net_options {
    const char *name_servers;  /* "address:port,..." instead of resolv.conf's; NULL = those */
    bool hosts_by_environment; /* CARES_HOSTS may name another file than /etc/hosts */
};

/* A plain TCP transport to a list of addresses that needs no look-up; ep is for messages only. */
enum dfl_status dfl_tcp_open_list(const struct dfl_endpoint *ep,
                                  const struct dfl_socket_address *list, size_t count,
                                  struct dfl_transport **out);

/* dfl_tls_wrap with the "host:port" that messages should name. */
enum dfl_status dfl_tls_wrap_peer(struct dfl_tls *tls, struct dfl_transport *inner,
                                  const char *name, const char *peer, struct dfl_transport **out,
                                  struct dfl_error *err);

#endif
