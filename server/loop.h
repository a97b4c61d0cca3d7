/*
 * loop.h - the event loop: accepts connections, moves their bytes, keeps their time-outs. One
 * thread, epoll. Knows no protocol but struct protocol (peer.h).
 */
#ifndef DFL_SERVER_LOOP_H
#define DFL_SERVER_LOOP_H

#include "peer.h"
#include "tls.h"

struct loop;

struct loop_config {
    int64_t read_timeout_ms;
    int64_t write_timeout_ms; /* 0 = none */
    size_t max_connections;   /* 0 = no cap */
    struct tls_server *tls;   /* not owned; NULL = plain */
    const int *signals;       /* 0-terminated: blocked, and handed to on_signal */
    void (*on_signal)(void *ctx, int number, struct dfl_now now);
    bool (*finished)(
        void *ctx,
        struct dfl_now now);       /* asked after every round; true: send what there is and end */
    int64_t (*wake_ms)(void *ctx); /* when finished() wants to be asked at the latest */
    void *ctx;
};

/* Listens on the first address of `host` that it can; *port is what it got. *err: the sentence. */
enum dfl_status listen_on(const char *host, uint16_t *port, int *fd, struct dfl_error *err);

/* Takes the listener over. */
enum dfl_status loop_new(const struct loop_config *config, const struct protocol *protocol,
                         int listener, struct loop **out, struct dfl_error *err);
/* Runs until finished() says so. Every connection is closed by then. */
void loop_run(struct loop *l);
void loop_free(struct loop *l);

#endif
