/*
 * waitfixture.h - what the tests of readiness have in common: a wait object of either kind, and
 * sockets for it to watch.
 */
#ifndef WAITFIXTURE_H
#define WAITFIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "dflockd.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define PATIENCE_MS 20000 /* longer than anything here should take on a loaded machine */

/* One wait object, one round, and what was reported. */
struct fixture {
    enum dfl_wait_kind kind;
    struct dfl_wait *w;
    struct dfl_wait_round round;
    struct {
        void *tag;
        unsigned events;
    } seen[400];
    size_t count;
    void (*while_ready)(struct fixture *f, void *tag); /* called from within the report */
    int aside;
};

/* Set up and taken down by cmocka: *state is a struct fixture. */
int fixture_epoll(void **state);
int fixture_poll(void **state);
int fixture_close(void **state);

/* A row of cmocka's table for each kind. */
/* clang-format off */
#define BOTH(test) \
    {#test " (epoll)", test, fixture_epoll, fixture_close, NULL}, \
    {#test " (poll)", test, fixture_poll, fixture_close, NULL}
/* clang-format on */

/* Prepares the round and waits; dispatch puts what is reported into seen. */
int fixture_block(struct fixture *f, int64_t timeout_ms, int extra_fd);
void fixture_dispatch(struct fixture *f);
void fixture_on_ready(void *arg, void *tag, unsigned events); /* what dispatch calls */
void fixture_watch(struct fixture *f, int fd, unsigned events, void *tag);
void fixture_saw(const struct fixture *f, const void *tag, unsigned events); /* or the test fails */

/* Two Unix sockets that do not block, one the peer of the other. */
void pair_open(int pair[2]);
void pair_close(const int pair[2]);
void send_byte(int fd);

extern char tag_a, tag_b;

#endif
