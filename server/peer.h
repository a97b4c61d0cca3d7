/*
 * peer.h - what a connection and its protocol share: bytes that came in, bytes to go out, and what
 * the protocol wants next. The loop moves the bytes and knows no protocol; the protocol runs on
 * them and knows no socket, so it runs as well where there is none.
 */
#ifndef DFL_SERVER_PEER_H
#define DFL_SERVER_PEER_H

#include "../core/dflockd.h"
#include "../core/list.h"
#include "../core/proto.h"

/* Bytes on their way out. */
struct outbuf {
    char *bytes;
    size_t start, end, cap; /* unsent are [start, end) */
};

void outbuf_free(struct outbuf *o);
char *outbuf_room(struct outbuf *o, size_t n); /* n bytes of room, or NULL: no memory */
bool outbuf_add(struct outbuf *o, const char *bytes, size_t n); /* false: no memory */
void outbuf_sent(struct outbuf *o, size_t n);
static inline size_t outbuf_left(const struct outbuf *o)
{
    return o->end - o->start;
}

struct peer {
    struct dfl_line_reader in;
    struct outbuf out;
    bool blocked; /* a request waits for its turn: what follows it waits too, and the end of the
                     stream is its end */
    bool more;    /* run again as soon as everything is sent */
    bool closing; /* close when everything is sent, and not before close_at_ms */
    bool broken;  /* close at once */
    int64_t close_at_ms;
    int64_t owes_since_ms; /* since when a whole request is expected of it */
    struct dfl_link ready; /* of the protocol's list of those with something to run or to send */
    void *conn;            /* the loop's */
};

/* A protocol, as the loop sees it. `ctx` is what it was given with. */
struct protocol {
    void *ctx;
    struct dfl_link *ready;                              /* list of struct peer.ready */
    struct peer *(*open)(void *ctx, struct dfl_now now); /* a new connection; NULL: no memory */
    void (*run)(
        struct peer *p,
        struct dfl_now now); /* handles what is in p->in, or stops for one of the reasons above */
    void (*silent)(struct peer *p,
                   struct dfl_now now); /* nothing whole came in time: says so, and closes */
    void (*gone)(struct peer *p, struct dfl_now now); /* the connection is over; frees p */
    void (*tick)(void *ctx, struct dfl_now now);      /* what is due */
    int64_t (*next_ms)(void *ctx);                    /* when tick is wanted next */
};

#endif
