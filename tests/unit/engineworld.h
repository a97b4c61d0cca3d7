/*
 * engineworld.h - the engine on a network in memory, as its tests use it: one server that answers
 * at once what the test has laid down, and a clock that the test moves.
 */
#ifndef ENGINEWORLD_H
#define ENGINEWORLD_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "dflockd.h"
#include "transport.h"

#define TOKEN "17dc6f0a11223344aabbccddeeff0011"
#define LEASE_S 10
#define LINKS_MAX 64

/* A connection, of which the server has the other end. */
struct link {
    struct dfl_transport base; /* first */
    char in[4096];             /* said and not yet read */
    size_t in_len;
    bool ended; /* behind that */
    void *tag;  /* the engine's, while it watches */
};

struct world {
    struct dfl_net net;
    struct dfl_settings settings;
    struct dfl_fence_book *fences;
    struct dfl_client *client;
    struct dfl_session *session, *other;
    struct dfl_now now;
    /* By the request's letter, a semaphore's as a lock's, 'L' for an `l` that blocks. NULL:
     * nothing, for now; world_end: the connection is closed. */
    const char *answers[128];
    struct link *links[LINKS_MAX]; /* in the order of opening; freed when closed */
    size_t link_count;
};

extern const char world_end[];

/* Set up and taken down by cmocka: *state is a struct world. Grants of LEASE_S, `ok` to the rest.
 */
int world_open(void **state);
int world_close(void **state);

void world_pass(struct world *w, int64_t ms); /* time, and nobody drives the engine */
void world_settle(struct world *w);           /* what was said is read, then what is due is done */
void world_say(struct world *w, size_t link, const char *line);
struct dfl_call *world_acquire(struct world *w, const char *key, int64_t timeout_ms); /* begins */
void world_take(struct world *w, const char *key); /* the session holds it */
bool world_holds(struct world *w, const char *key);
unsigned world_connections(struct world *w);

#endif
