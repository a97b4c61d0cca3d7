/*
 * transport.h - the seam through which every byte of the engine passes: a table of functions over
 * one connection's byte stream. transport.c implements it over TCP, tls.c over OpenSSL on top of
 * any other transport, tests/sim in memory. No function of the table ever waits.
 */
#ifndef DFL_TRANSPORT_H
#define DFL_TRANSPORT_H

#include "dflockd.h"

enum dfl_io {
    DFL_IO_DONE,  /* made progress: connected; read or written at least a byte */
    DFL_IO_AGAIN, /* nothing possible now; wait for what interest() says */
    DFL_IO_EOF,   /* read: the peer closed in order */
    DFL_IO_ERROR  /* broken; the text is in the transport's error */
};

/*
 * A descriptor that the host should watch, and for what. One that interest() has named is not
 * closed before interest() has been called again without naming it.
 */
struct dfl_interest {
    int fd;
    unsigned events; /* DFL_READABLE | DFL_WRITABLE */
};
#define DFL_INTEREST_MAX 16

struct dfl_transport {
    const struct dfl_transport_ops *ops;
    struct dfl_error
        error; /* after DFL_IO_ERROR: DFL_UNREACHABLE while connecting, DFL_BROKEN after */
};

struct dfl_transport_ops {
    /*
     * Makes progress towards a usable stream (names, addresses, TCP, TLS): DONE when it is one,
     * AGAIN, or ERROR. Called first at once, then whenever a descriptor is ready or wake_ms() has
     * come. deadline_ms is the caller's for the whole connection; it ends the attempt itself, the
     * transport only divides what is left among the addresses of a name.
     */
    enum dfl_io (*connect)(struct dfl_transport *t, struct dfl_now now, int64_t deadline_ms);
    enum dfl_io (*read)(struct dfl_transport *t, void *buf, size_t cap, size_t *got);
    /* After an ERROR, read still hands out what the peer said before it closed. */
    enum dfl_io (*write)(struct dfl_transport *t, const void *buf, size_t len, size_t *put);
    /*
     * Fills at most DFL_INTEREST_MAX descriptors, returns how many. want_write: the caller has
     * bytes to send. To be asked after every other call, by whoever watches: what it has once shown
     * stays open until it has been asked again and left it out, so a descriptor can be forgotten
     * before its number means something else. Whatever becomes ready may be what a read waits for
     * (TLS): read first, then write.
     */
    size_t (*interest)(struct dfl_transport *t, bool want_write, struct dfl_interest *out);
    /* True when bytes can be read without the descriptor becoming ready (inside TLS records). */
    bool (*buffered)(struct dfl_transport *t);
    /* While connecting: when connect() wants to be called even if nothing is ready; else INT64_MAX.
     */
    int64_t (*wake_ms)(struct dfl_transport *t);
    /* Where it is and what it was doing, for messages: "resolve", "connect", "tls handshake",
     * "read", "write". */
    const char *(*step)(struct dfl_transport *t);
    /* Closes in order (TLS: sends close_notify if that does not wait) and frees. */
    void (*close)(struct dfl_transport *t);
    /* Closes the descriptors with close(2) and nothing else, frees nothing: for a forked child.
     * Async-signal-safe. */
    void (*abandon)(struct dfl_transport *t);
};

struct dfl_endpoint {
    const char *host; /* name, IPv4 or IPv6 literal without brackets */
    uint16_t port;
};

/* Makes transports. The engine is given one such table; dfl_net_sockets() is the real one. */
struct dfl_net {
    void *ctx;
    /*
     * A transport that is not connected yet. tls NULL: plain. DFL_OK or DFL_NOMEM or, for TLS
     * material that cannot be used, DFL_UNREACHABLE with the sentence in *err.
     */
    enum dfl_status (*open)(void *ctx, const struct dfl_endpoint *ep, struct dfl_tls *tls,
                            struct dfl_transport **out, struct dfl_error *err);
};

const struct dfl_net *dfl_net_sockets(void);

/*
 * TLS over another transport, which it owns from then on (also on failure). `name` is verified
 * against the certificate: as an IP SAN when it is a literal address, else as a DNS name, sent as
 * SNI too.
 */
enum dfl_status dfl_tls_wrap(struct dfl_tls *tls, struct dfl_transport *inner, const char *name,
                             struct dfl_transport **out, struct dfl_error *err);

#endif
