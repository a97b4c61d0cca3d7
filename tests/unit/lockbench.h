/*
 * lockbench.h - a lock table on its own, as the tests of it use it: time is a number that the test
 * moves, tokens come from a counter.
 */
#ifndef LOCKBENCH_H
#define LOCKBENCH_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "locktable.h"

struct bench {
    struct locktable *t;
    int64_t now;
    uint64_t fence;
    bool dry; /* no tokens to be had */
};

/* Of the bench only the time need be set. The first fence is the one after .fence. */
struct locktable_config bench_config(struct bench *b);
void bench_begin_with(struct bench *b, const struct locktable_config *c);
void bench_begin(struct bench *b); /* everything, as bench_config() has it */

struct lock_owner *bench_owner(struct bench *b, uint64_t id);
struct lock_request bench_request(const char *key, int64_t limit, int64_t timeout_s,
                                  int64_t lease_s);

/* Leases are 10 seconds; given may be NULL. */
enum dfl_status bench_acquire(struct bench *b, struct lock_owner *o, const char *key, int64_t limit,
                              int64_t timeout_s, struct lock_given *given);
enum dfl_status bench_enqueue(struct bench *b, struct lock_owner *o, const char *key,
                              struct lock_given *given);
enum dfl_status bench_wait_for(struct bench *b, struct lock_owner *o, const char *key,
                               int64_t timeout_s, struct lock_given *given);
enum dfl_status bench_release(struct bench *b, const char *key, const struct lock_given *given);
enum dfl_status bench_renew(struct bench *b, const char *key, const struct lock_given *given,
                            int64_t lease_s, int64_t *left_s);

/* Time passes, and the table is called as often as it asks to be. */
void bench_tick(struct bench *b, int64_t ms);
/* The next effect must be this answer to this owner. */
struct lock_given bench_expect(struct bench *b, uint64_t id, enum dfl_status status);
void bench_expect_nothing(struct bench *b);

#endif
