/*
 * lockbench.c - the calls of server/locktable.h with the time, the lease and the outputs that the
 * tests do not care about filled in.
 */
#include "lockbench.h"

#include <string.h>

static bool mint_grant(void *ctx, int64_t lease_s, struct lock_token *token)
{
    struct bench *b = ctx;

    (void)lease_s;
    if (b->dry)
        return false;
    *token = (struct lock_token){++b->fence, b->fence * 7};
    return true;
}

static bool mint_extend(void *ctx, int64_t lease_s)
{
    (void)lease_s;
    return !((struct bench *)ctx)->dry;
}

struct locktable_config bench_config(struct bench *b)
{
    return (struct locktable_config){.max_locks = 1000000,
                                     .gc_interval_ms = 5000,
                                     .gc_max_idle_ms = 60000,
                                     .auto_release = true,
                                     .secret = {1, 2},
                                     .mint = {b, mint_grant, mint_extend}};
}

void bench_begin_with(struct bench *b, const struct locktable_config *c)
{
    b->t = locktable_new(c, b->now);
    assert_non_null(b->t);
}

void bench_begin(struct bench *b)
{
    *b = (struct bench){.now = 1000, .fence = 100};

    struct locktable_config c = bench_config(b);

    bench_begin_with(b, &c);
}

struct lock_owner *bench_owner(struct bench *b, uint64_t id)
{
    struct lock_owner *o = locktable_owner(b->t, id, (void *)(uintptr_t)id);

    assert_non_null(o);
    return o;
}

struct lock_request bench_request(const char *key, int64_t limit, int64_t timeout_s,
                                  int64_t lease_s)
{
    return (struct lock_request){key, strlen(key), limit, lease_s, timeout_s};
}

enum dfl_status bench_acquire(struct bench *b, struct lock_owner *o, const char *key, int64_t limit,
                              int64_t timeout_s, struct lock_given *given)
{
    struct lock_request rq = bench_request(key, limit, timeout_s, 10);
    struct lock_given unused;

    return locktable_acquire(b->t, o, &rq, b->now, given ? given : &unused);
}

enum dfl_status bench_enqueue(struct bench *b, struct lock_owner *o, const char *key,
                              struct lock_given *given)
{
    struct lock_request rq = bench_request(key, 1, 0, 10);
    struct lock_given unused;

    return locktable_enqueue(b->t, o, &rq, b->now, given ? given : &unused);
}

enum dfl_status bench_wait_for(struct bench *b, struct lock_owner *o, const char *key,
                               int64_t timeout_s, struct lock_given *given)
{
    struct lock_given unused;

    return locktable_wait(b->t, o, key, strlen(key), timeout_s, b->now, given ? given : &unused);
}

enum dfl_status bench_release(struct bench *b, const char *key, const struct lock_given *given)
{
    return locktable_release(b->t, key, strlen(key), &given->token, b->now);
}

enum dfl_status bench_renew(struct bench *b, const char *key, const struct lock_given *given,
                            int64_t lease_s, int64_t *left_s)
{
    return locktable_renew(b->t, key, strlen(key), &given->token, lease_s, b->now, left_s);
}

void bench_tick(struct bench *b, int64_t ms)
{
    b->now += ms;
    do
        locktable_tick(b->t, b->now);
    while (locktable_next_ms(b->t) <= b->now);
}

struct lock_given bench_expect(struct bench *b, uint64_t id, enum dfl_status status)
{
    struct lock_effect effect;

    assert_true(locktable_effect(b->t, &effect));
    assert_int_equal((uintptr_t)effect.user, id);
    assert_int_equal(effect.status, status);
    return effect.given;
}

void bench_expect_nothing(struct bench *b)
{
    struct lock_effect effect;

    assert_false(locktable_effect(b->t, &effect));
}
