/*
 * netpeer.h - what the tests of transports have in common: listeners, an address that never
 * answers, a name server of our own, and a loop that drives a transport as a host would.
 */
#ifndef NETPEER_H
#define NETPEER_H

#include <pthread.h>

#include "net.h"

#define PATIENCE_MS 20000 /* longer than anything here should take on a loaded machine */

int64_t peer_now_ms(void);
struct dfl_now peer_at(int64_t ms);

/* A listening socket of 127.0.0.1 or ::1 on a free port. -1 when the machine has no such address.
 */
int peer_listen(int family, int backlog, uint16_t *port);
/* A free port of 127.0.0.1 where nobody listens and, as long as the returned descriptor is open,
 * nobody can. */
int peer_closed_port(uint16_t *port);
int peer_accept(int listener);
struct dfl_socket_address peer_address(const char *literal, uint16_t port);

/* A listener whose queue is full: the kernel drops whatever comes to it. */
struct black_hole {
    int listener, fill[16];
    size_t filled;
    uint16_t port;
};
void black_hole_open(struct black_hole *hole);
void black_hole_close(struct black_hole *hole);

/* Drives connect() by the real clock until it is not AGAIN. */
enum dfl_io peer_connect(struct dfl_transport *t, int64_t timeout_ms);
/* Waits until something of interest() is ready, or wake_ms() has come. */
void peer_wait(struct dfl_transport *t, bool want_write);
/* Reads until something else than AGAIN comes. */
enum dfl_io peer_read(struct dfl_transport *t, void *buf, size_t cap, size_t *got);

size_t peer_descriptors(void); /* open ones of this process */

/* --------------------------------------------------------------- name server */

enum dns_answer {
    DNS_ADDRESSES,
    DNS_NOT_FOUND,
    DNS_NO_DATA,
    DNS_FAILURE,
    DNS_MUTE,
    DNS_TRUNCATED,
    DNS_TCP_CUT
};

/* One name that it knows; it has never heard of any other. */
struct dns_name {
    const char *name;
    enum dns_answer answer; /* DNS_TRUNCATED: the addresses, but over TCP only; DNS_TCP_CUT: and
                               closes instead */
    const char *v4, *v6;    /* NULL = none of that kind */
};

struct dns_server {
    const struct dns_name *names;
    size_t count;
    int udp, tcp, stop[2];
    char address[32]; /* "127.0.0.1:port" */
    atomic_int queries, tcp_queries;
    pthread_t thread;
};
void dns_server_start(struct dns_server *s, const struct dns_name *names, size_t count);
void dns_server_stop(struct dns_server *s);

#endif
