/*
 * The lock table on its own: time is a number that the test moves, tokens come from a counter. A
 * last part plays random requests against a model that keeps nothing but plain lists.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "locktable.h"

struct bench {
    struct locktable *t;
    int64_t now;
    uint64_t fence;
    bool dry; /* no tokens to be had */
};

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

static struct locktable_config config(struct bench *b)
{
    return (struct locktable_config){.max_locks = 1000000,
                                     .gc_interval_ms = 5000,
                                     .gc_max_idle_ms = 60000,
                                     .auto_release = true,
                                     .secret = {1, 2},
                                     .mint = {b, mint_grant, mint_extend}};
}

static void begin_with(struct bench *b, const struct locktable_config *c)
{
    b->t = locktable_new(c, b->now);
    assert_non_null(b->t);
}

static void begin(struct bench *b)
{
    *b = (struct bench){.now = 1000, .fence = 100};

    struct locktable_config c = config(b);

    begin_with(b, &c);
}

static struct lock_owner *owner(struct bench *b, uint64_t id)
{
    struct lock_owner *o = locktable_owner(b->t, id, (void *)(uintptr_t)id);

    assert_non_null(o);
    return o;
}

static struct lock_request request(const char *key, int64_t limit, int64_t timeout_s,
                                   int64_t lease_s)
{
    return (struct lock_request){key, strlen(key), limit, lease_s, timeout_s};
}

static enum dfl_status acquire(struct bench *b, struct lock_owner *o, const char *key,
                               int64_t limit, int64_t timeout_s, struct lock_given *given)
{
    struct lock_request rq = request(key, limit, timeout_s, 10);
    struct lock_given unused;

    return locktable_acquire(b->t, o, &rq, b->now, given ? given : &unused);
}

static enum dfl_status enqueue(struct bench *b, struct lock_owner *o, const char *key,
                               struct lock_given *given)
{
    struct lock_request rq = request(key, 1, 0, 10);
    struct lock_given unused;

    return locktable_enqueue(b->t, o, &rq, b->now, given ? given : &unused);
}

static enum dfl_status wait_for(struct bench *b, struct lock_owner *o, const char *key,
                                int64_t timeout_s, struct lock_given *given)
{
    struct lock_given unused;

    return locktable_wait(b->t, o, key, strlen(key), timeout_s, b->now, given ? given : &unused);
}

static enum dfl_status release(struct bench *b, const char *key, const struct lock_given *given)
{
    return locktable_release(b->t, key, strlen(key), &given->token, b->now);
}

static enum dfl_status renew(struct bench *b, const char *key, const struct lock_given *given,
                             int64_t lease_s, int64_t *left_s)
{
    return locktable_renew(b->t, key, strlen(key), &given->token, lease_s, b->now, left_s);
}

static void tick(struct bench *b, int64_t ms)
{
    b->now += ms;
    do
        locktable_tick(b->t, b->now);
    while (locktable_next_ms(b->t) <= b->now);
}

/* The next effect must be this answer to this owner. */
static struct lock_given expect(struct bench *b, uint64_t id, enum dfl_status status)
{
    struct lock_effect effect;

    assert_true(locktable_effect(b->t, &effect));
    assert_int_equal((uintptr_t)effect.user, id);
    assert_int_equal(effect.status, status);
    return effect.given;
}

static void expect_nothing(struct bench *b)
{
    struct lock_effect effect;

    assert_false(locktable_effect(b->t, &effect));
}

/* -------------------------------------------------------------------- tests */

static void test_try_and_release(void **state)
{
    struct bench b;
    struct lock_given g, h;

    (void)state;
    begin(&b);
    struct lock_owner *one = owner(&b, 1), *two = owner(&b, 2);

    assert_int_equal(acquire(&b, one, "k", 1, 0, &g), DFL_OK);
    assert_int_equal(g.lease_s, 10);
    assert_int_equal(acquire(&b, two, "k", 1, 0, NULL), DFL_TIMEOUT);
    assert_int_equal(release(&b, "other", &g), DFL_REFUSED);
    assert_int_equal(release(&b, "k", &g), DFL_OK);
    assert_int_equal(release(&b, "k", &g), DFL_REFUSED);
    assert_int_equal(acquire(&b, two, "k", 1, 0, &h), DFL_OK);
    assert_true(h.token.fence > g.token.fence);
    assert_int_equal(locktable_holds(b.t), 1);
    expect_nothing(&b);
    locktable_free(b.t);
}

static void test_token_must_fit_whole(void **state)
{
    struct bench b;
    struct lock_given g;
    int64_t left;

    (void)state;
    begin(&b);
    assert_int_equal(acquire(&b, owner(&b, 1), "k", 1, 0, &g), DFL_OK);

    struct lock_given wrong = g;

    wrong.token.random++;
    assert_int_equal(release(&b, "k", &wrong), DFL_REFUSED);
    assert_int_equal(renew(&b, "k", &wrong, 10, &left), DFL_REFUSED);
    wrong = g;
    wrong.token.fence++;
    assert_int_equal(release(&b, "k", &wrong), DFL_REFUSED);
    assert_int_equal(release(&b, "k", &g), DFL_OK);
    locktable_free(b.t);
}

static void test_fifo_of_locks_and_semaphores_of_one_slot(void **state)
{
    struct bench b;
    struct lock_given g;

    (void)state;
    begin(&b);
    assert_int_equal(acquire(&b, owner(&b, 1), "k", 1, 0, &g), DFL_OK);
    for (uint64_t id = 2; id <= 5; id++)
        assert_int_equal(acquire(&b, owner(&b, id), "k", 1, 60, NULL), DFL_PENDING);
    for (uint64_t id = 2; id <= 5; id++) {
        assert_int_equal(release(&b, "k", &g), DFL_OK);
        g = expect(&b, id, DFL_OK);
        expect_nothing(&b);
    }
    locktable_free(b.t);
}

static void test_a_try_does_not_overtake(void **state)
{
    struct bench b;
    struct lock_given g[2];

    (void)state;
    begin(&b);
    struct lock_owner *one = owner(&b, 1), *two = owner(&b, 2);

    assert_int_equal(acquire(&b, one, "s", 2, 0, &g[0]), DFL_OK);
    assert_int_equal(acquire(&b, one, "s", 2, 0, &g[1]), DFL_OK);
    assert_int_equal(acquire(&b, two, "s", 2, 60, NULL), DFL_PENDING);
    assert_int_equal(release(&b, "s", &g[0]), DFL_OK);
    assert_int_equal(acquire(&b, one, "s", 2, 0, NULL), DFL_TIMEOUT);
    expect(&b, 2, DFL_OK);
    assert_int_equal(locktable_holds(b.t), 2);
    locktable_free(b.t);
}

static void test_limits(void **state)
{
    struct bench b;
    struct lock_given g;

    (void)state;
    begin(&b);
    struct lock_owner *o = owner(&b, 1);

    assert_int_equal(acquire(&b, o, "s", 3, 0, &g), DFL_OK);
    assert_int_equal(acquire(&b, o, "s", 3, 0, NULL), DFL_OK);
    assert_int_equal(acquire(&b, o, "s", 3, 0, NULL), DFL_OK);
    assert_int_equal(acquire(&b, o, "s", 3, 0, NULL), DFL_TIMEOUT);
    assert_int_equal(acquire(&b, o, "s", 1, 0, NULL), DFL_LIMIT_MISMATCH);
    assert_int_equal(enqueue(&b, o, "s", NULL), DFL_LIMIT_MISMATCH);
    assert_int_equal(release(&b, "s", &g), DFL_OK);
    assert_int_equal(release(&b, "s", &g), DFL_REFUSED); /* a second release adds no slot */
    assert_int_equal(acquire(&b, o, "s", 3, 0, NULL), DFL_OK);
    assert_int_equal(acquire(&b, o, "s", 3, 0, NULL), DFL_TIMEOUT);
    locktable_free(b.t);
}

static void test_idle_keys_keep_their_limit_until_collected(void **state)
{
    struct bench b = {.now = 1000};
    struct locktable_config c = config(&b);
    struct lock_given g;

    (void)state;
    c.max_locks = 2;
    begin_with(&b, &c);
    struct lock_owner *o = owner(&b, 1);

    assert_int_equal(acquire(&b, o, "a", 2, 0, &g), DFL_OK);
    assert_int_equal(release(&b, "a", &g), DFL_OK);
    assert_int_equal(acquire(&b, o, "b", 1, 0, NULL), DFL_OK);
    assert_int_equal(acquire(&b, o, "c", 1, 0, NULL), DFL_MAX_LOCKS);
    tick(&b, 59000);
    assert_int_equal(acquire(&b, o, "a", 1, 0, NULL), DFL_LIMIT_MISMATCH);
    assert_int_equal(acquire(&b, o, "c", 1, 0, NULL), DFL_MAX_LOCKS);
    tick(&b, 6000);
    assert_int_equal(acquire(&b, o, "a", 1, 0, NULL), DFL_OK);
    locktable_free(b.t);
}

static void test_max_waiters(void **state)
{
    struct bench b = {.now = 1000};
    struct locktable_config c = config(&b);

    (void)state;
    c.max_waiters = 1;
    begin_with(&b, &c);
    assert_int_equal(acquire(&b, owner(&b, 1), "k", 1, 0, NULL), DFL_OK);
    assert_int_equal(acquire(&b, owner(&b, 2), "k", 1, 9, NULL), DFL_PENDING);
    assert_int_equal(acquire(&b, owner(&b, 3), "k", 1, 9, NULL), DFL_MAX_WAITERS);
    assert_int_equal(enqueue(&b, owner(&b, 4), "k", NULL), DFL_MAX_WAITERS);
    assert_int_equal(acquire(&b, owner(&b, 5), "k", 1, 0, NULL), DFL_TIMEOUT);
    locktable_free(b.t);
}

static void test_a_lease_never_ends_early(void **state)
{
    struct bench b;
    struct lock_given g;
    int64_t left;

    (void)state;
    begin(&b);
    struct lock_owner *two = owner(&b, 2);

    assert_int_equal(acquire(&b, owner(&b, 1), "k", 1, 0, &g), DFL_OK);
    assert_int_equal(acquire(&b, two, "k", 1, 60, NULL), DFL_PENDING);
    tick(&b, 10000);
    expect_nothing(&b);
    assert_int_equal(locktable_next_ms(b.t), b.now + 1);
    tick(&b, 1);
    expect(&b, 2, DFL_OK);
    assert_int_equal(renew(&b, "k", &g, 10, &left), DFL_REFUSED);
    assert_int_equal(release(&b, "k", &g), DFL_REFUSED);
    locktable_free(b.t);
}

static void test_due_but_not_ticked(void **state)
{
    struct bench b;
    struct lock_given g;
    int64_t left;

    (void)state;
    begin(&b);
    assert_int_equal(acquire(&b, owner(&b, 1), "k", 1, 0, &g), DFL_OK);
    b.now += 10001;
    assert_int_equal(renew(&b, "k", &g, 10, &left), DFL_REFUSED);
    assert_int_equal(release(&b, "k", &g), DFL_REFUSED);
    assert_int_equal(locktable_holds(b.t), 0);
    locktable_free(b.t);
}

static void test_renew(void **state)
{
    struct bench b;
    struct lock_given g;
    int64_t left = 0;

    (void)state;
    begin(&b);
    assert_int_equal(acquire(&b, owner(&b, 1), "k", 1, 0, &g), DFL_OK);
    tick(&b, 9000);
    assert_int_equal(renew(&b, "k", &g, 20, &left), DFL_OK);
    assert_int_equal(left, 20);
    tick(&b, 19999);
    assert_int_equal(renew(&b, "k", &g, 1, &left), DFL_OK);
    assert_int_equal(left, 1);
    tick(&b, 1001);
    assert_int_equal(locktable_holds(b.t), 0);
    locktable_free(b.t);
}

static void test_waiting_ends(void **state)
{
    struct bench b;

    (void)state;
    begin(&b);
    struct lock_owner *two = owner(&b, 2);
    struct lock_given g;

    assert_int_equal(acquire(&b, owner(&b, 1), "k", 1, 0, &g), DFL_OK);
    assert_int_equal(acquire(&b, two, "k", 1, 3, NULL), DFL_PENDING);
    tick(&b, 3000);
    expect_nothing(&b);
    tick(&b, 1);
    expect(&b, 2, DFL_TIMEOUT);
    assert_int_equal(release(&b, "k", &g), DFL_OK);
    expect_nothing(&b);
    assert_int_equal(locktable_holds(b.t), 0);
    locktable_free(b.t);
}

static void test_grant_and_time_limit_in_one_tick(void **state)
{
    struct bench b;

    (void)state;
    begin(&b);
    assert_int_equal(acquire(&b, owner(&b, 1), "k", 1, 0, NULL), DFL_OK);
    assert_int_equal(acquire(&b, owner(&b, 2), "k", 1, 10, NULL), DFL_PENDING);
    tick(&b, 10001);
    expect(&b, 2, DFL_OK);
    expect_nothing(&b);
    locktable_free(b.t);
}

static void test_two_phases(void **state)
{
    struct bench b;
    struct lock_given g, h;

    (void)state;
    begin(&b);
    struct lock_owner *one = owner(&b, 1), *two = owner(&b, 2);

    assert_int_equal(wait_for(&b, one, "k", 1, NULL), DFL_NOT_ENQUEUED);
    assert_int_equal(enqueue(&b, one, "k", &g), DFL_OK);
    assert_int_equal(enqueue(&b, one, "k", NULL), DFL_ALREADY_ENQUEUED);
    assert_int_equal(enqueue(&b, two, "k", NULL), DFL_PENDING);
    assert_int_equal(enqueue(&b, two, "k", NULL), DFL_ALREADY_ENQUEUED);
    tick(&b, 9000);
    assert_int_equal(wait_for(&b, one, "k", 0, &h), DFL_OK); /* the lease begins anew */
    assert_int_equal(h.token.fence, g.token.fence);
    assert_int_equal(wait_for(&b, one, "k", 0, NULL), DFL_NOT_ENQUEUED);
    tick(&b, 9000);
    assert_int_equal(wait_for(&b, two, "k", 5, NULL), DFL_PENDING);
    assert_int_equal(release(&b, "k", &g), DFL_OK);
    expect(&b, 2, DFL_OK);
    assert_int_equal(wait_for(&b, two, "k", 0, NULL), DFL_NOT_ENQUEUED);
    locktable_free(b.t);
}

static void test_a_wait_that_times_out_loses_the_place(void **state)
{
    struct bench b;
    struct lock_given g;

    (void)state;
    begin(&b);
    struct lock_owner *two = owner(&b, 2), *three = owner(&b, 3);

    assert_int_equal(acquire(&b, owner(&b, 1), "k", 1, 0, &g), DFL_OK);
    assert_int_equal(enqueue(&b, two, "k", NULL), DFL_PENDING);
    assert_int_equal(enqueue(&b, three, "k", NULL), DFL_PENDING);
    assert_int_equal(wait_for(&b, two, "k", 1, NULL), DFL_PENDING);
    tick(&b, 1001);
    expect(&b, 2, DFL_TIMEOUT);
    assert_int_equal(wait_for(&b, two, "k", 1, NULL), DFL_NOT_ENQUEUED);
    assert_int_equal(wait_for(&b, three, "k", 0, NULL), DFL_TIMEOUT);
    assert_int_equal(wait_for(&b, three, "k", 0, NULL), DFL_NOT_ENQUEUED);
    assert_int_equal(release(&b, "k", &g), DFL_OK);
    expect_nothing(&b);
    assert_int_equal(locktable_holds(b.t), 0);
    locktable_free(b.t);
}

static void test_a_place_comes_up_before_its_wait(void **state)
{
    struct bench b;
    struct lock_given g, h;

    (void)state;
    begin(&b);
    struct lock_owner *two = owner(&b, 2);

    assert_int_equal(acquire(&b, owner(&b, 1), "k", 1, 0, &g), DFL_OK);
    assert_int_equal(enqueue(&b, two, "k", NULL), DFL_PENDING);
    assert_int_equal(release(&b, "k", &g), DFL_OK);
    expect_nothing(&b);
    assert_int_equal(acquire(&b, owner(&b, 3), "k", 1, 0, NULL), DFL_TIMEOUT);
    tick(&b, 9000);
    assert_int_equal(wait_for(&b, two, "k", 5, &h), DFL_OK);
    assert_int_equal(h.lease_s, 10);
    assert_int_equal(release(&b, "k", &h), DFL_OK);
    locktable_free(b.t);
}

static void test_a_place_lapses(void **state)
{
    struct bench b;
    struct lock_given g;

    (void)state;
    begin(&b);
    struct lock_owner *one = owner(&b, 1), *two = owner(&b, 2);

    assert_int_equal(acquire(&b, one, "k", 1, 0, &g), DFL_OK);
    assert_int_equal(enqueue(&b, two, "k", NULL), DFL_PENDING);
    assert_int_equal(release(&b, "k", &g), DFL_OK);
    tick(&b, 10001);
    assert_int_equal(acquire(&b, one, "k", 1, 0, &g), DFL_OK);
    tick(&b, 200);
    assert_int_equal(wait_for(&b, two, "k", 5, NULL), DFL_LEASE_EXPIRED);
    assert_int_equal(wait_for(&b, two, "k", 5, NULL), DFL_NOT_ENQUEUED);
    assert_int_equal(release(&b, "k", &g), DFL_OK); /* the other's lock is untouched */

    /* due, though no tick has come by yet */
    assert_int_equal(enqueue(&b, two, "k", NULL), DFL_OK);
    b.now += 10001;
    assert_int_equal(wait_for(&b, two, "k", 5, NULL), DFL_LEASE_EXPIRED);
    assert_int_equal(acquire(&b, one, "k", 1, 0, &g), DFL_OK);

    /* a lapsed place does not stand in the way of a new one */
    assert_int_equal(release(&b, "k", &g), DFL_OK);
    assert_int_equal(enqueue(&b, two, "k", NULL), DFL_OK);
    tick(&b, 10001);
    assert_int_equal(enqueue(&b, two, "k", NULL), DFL_OK);
    locktable_free(b.t);
}

static void test_release_forgets_the_place(void **state)
{
    struct bench b;
    struct lock_given g;

    (void)state;
    begin(&b);
    struct lock_owner *one = owner(&b, 1);

    assert_int_equal(enqueue(&b, one, "k", &g), DFL_OK);
    assert_int_equal(release(&b, "k", &g), DFL_OK);
    assert_int_equal(wait_for(&b, one, "k", 5, NULL), DFL_NOT_ENQUEUED);
    assert_int_equal(enqueue(&b, one, "k", &g), DFL_OK);
    locktable_free(b.t);
}

static void test_closing_gives_everything_back(void **state)
{
    struct bench b;

    (void)state;
    begin(&b);
    struct lock_owner *one = owner(&b, 1), *two = owner(&b, 2), *three = owner(&b, 3);
    struct lock_given g;

    assert_int_equal(acquire(&b, one, "a", 1, 0, NULL), DFL_OK);
    assert_int_equal(enqueue(&b, one, "b", NULL), DFL_OK);
    assert_int_equal(acquire(&b, two, "c", 1, 0, &g), DFL_OK);
    assert_int_equal(enqueue(&b, one, "c", NULL), DFL_PENDING);
    assert_int_equal(acquire(&b, two, "a", 1, 60, NULL), DFL_PENDING);
    assert_int_equal(acquire(&b, three, "c", 1, 60, NULL), DFL_PENDING);
    locktable_close_owner(b.t, one, b.now);
    expect(&b, 2, DFL_OK);
    assert_int_equal(acquire(&b, two, "b", 1, 0, NULL), DFL_OK);
    assert_int_equal(release(&b, "c", &g), DFL_OK);
    expect(&b, 3, DFL_OK);
    expect_nothing(&b);
    assert_int_equal(locktable_holds(b.t), 3);
    locktable_free(b.t);
}

static void test_closing_without_auto_release(void **state)
{
    struct bench b = {.now = 1000};
    struct locktable_config c = config(&b);
    struct lock_given g;

    (void)state;
    c.auto_release = false;
    begin_with(&b, &c);
    struct lock_owner *one = owner(&b, 1), *two = owner(&b, 2);

    assert_int_equal(acquire(&b, one, "a", 1, 0, &g), DFL_OK);
    assert_int_equal(enqueue(&b, one, "b", NULL), DFL_OK);
    locktable_close_owner(b.t, one, b.now);
    assert_int_equal(acquire(&b, two, "a", 1, 0, NULL), DFL_TIMEOUT);
    assert_int_equal(release(&b, "a", &g), DFL_OK);
    assert_int_equal(acquire(&b, two, "b", 1, 0, NULL), DFL_TIMEOUT);
    tick(&b, 10001);
    assert_int_equal(acquire(&b, two, "b", 1, 0, NULL), DFL_OK);
    locktable_free(b.t);
}

static void test_closing_an_owner_of_very_much(void **state)
{
    struct bench b;
    char key[32];
    struct lock_effect effect;
    int granted = 0, steps = 0;

    (void)state;
    begin(&b);
    struct lock_owner *one = owner(&b, 1);

    for (int i = 0; i < 5000; i++) {
        snprintf(key, sizeof key, "k%d", i);
        assert_int_equal(acquire(&b, one, key, 1, 0, NULL), DFL_OK);
        assert_int_equal(acquire(&b, owner(&b, (uint64_t)i + 2), key, 1, 60, NULL), DFL_PENDING);
    }
    locktable_close_owner(b.t, one, b.now);
    for (;;) {
        int before = granted;

        while (locktable_effect(b.t, &effect))
            granted += effect.status == DFL_OK;
        assert_true(granted - before <= 1000); /* in steps */
        steps++;
        if (locktable_next_ms(b.t) > b.now)
            break;
        locktable_tick(b.t, b.now);
    }
    assert_int_equal(granted, 5000);
    assert_true(steps >= 5);
    locktable_free(b.t);
}

static void test_an_effect_for_one_who_has_gone(void **state)
{
    struct bench b;
    struct lock_given g;

    (void)state;
    begin(&b);
    struct lock_owner *two = owner(&b, 2), *three = owner(&b, 3);

    assert_int_equal(acquire(&b, owner(&b, 1), "k", 1, 0, &g), DFL_OK);
    assert_int_equal(acquire(&b, two, "k", 1, 60, NULL), DFL_PENDING);
    assert_int_equal(acquire(&b, three, "k", 1, 60, NULL), DFL_PENDING);
    assert_int_equal(release(&b, "k", &g), DFL_OK);
    locktable_close_owner(b.t, two, b.now); /* before it could see its grant */
    expect(&b, 3, DFL_OK);
    expect_nothing(&b);
    locktable_free(b.t);
}

static void test_no_tokens(void **state)
{
    struct bench b;
    struct lock_given g;
    int64_t left;

    (void)state;
    begin(&b);
    struct lock_owner *one = owner(&b, 1), *two = owner(&b, 2), *three = owner(&b, 3);

    assert_int_equal(acquire(&b, one, "k", 1, 0, &g), DFL_OK);
    assert_int_equal(acquire(&b, two, "k", 1, 60, NULL), DFL_PENDING);
    assert_int_equal(enqueue(&b, three, "k", NULL), DFL_PENDING);
    b.dry = true;
    assert_int_equal(acquire(&b, one, "x", 1, 0, NULL), DFL_REFUSED);
    assert_int_equal(enqueue(&b, one, "x", NULL), DFL_REFUSED);
    assert_int_equal(renew(&b, "k", &g, 10, &left), DFL_REFUSED);
    assert_int_equal(release(&b, "k", &g), DFL_OK);
    expect(&b, 2, DFL_REFUSED);
    expect_nothing(&b);
    assert_int_equal(wait_for(&b, three, "k", 1, NULL), DFL_NOT_ENQUEUED);
    b.dry = false;
    assert_int_equal(acquire(&b, one, "k", 1, 0, NULL), DFL_OK);
    assert_int_equal(locktable_holds(b.t), 1);
    locktable_free(b.t);
}

static void test_gate(void **state)
{
    struct bench b;
    struct lock_given g;

    (void)state;
    begin(&b);
    locktable_gate(b.t, false);
    struct lock_owner *one = owner(&b, 1), *two = owner(&b, 2), *three = owner(&b, 3);

    assert_int_equal(acquire(&b, one, "k", 1, 0, NULL), DFL_TIMEOUT);
    assert_int_equal(acquire(&b, one, "k", 1, 60, NULL), DFL_PENDING);
    assert_int_equal(enqueue(&b, two, "k", NULL), DFL_PENDING);
    assert_int_equal(enqueue(&b, two, "gone", NULL), DFL_PENDING);
    assert_int_equal(wait_for(&b, two, "gone", 1, NULL), DFL_PENDING);
    assert_int_equal(acquire(&b, three, "s", 2, 60, NULL), DFL_PENDING);
    tick(&b, 1001);
    expect(&b, 2, DFL_TIMEOUT);
    expect_nothing(&b);
    locktable_gate(b.t, true);
    assert_true(locktable_next_ms(b.t) <= b.now);
    tick(&b, 0);
    g = expect(&b, 1, DFL_OK);
    expect(&b, 3, DFL_OK);
    expect_nothing(&b);
    assert_int_equal(release(&b, "k", &g), DFL_OK);
    assert_int_equal(wait_for(&b, two, "k", 0, NULL), DFL_OK);
    assert_int_equal(locktable_holds(b.t), 2);
    locktable_free(b.t);
}

static void test_nobody_overtakes_when_the_gate_opens(void **state)
{
    struct bench b;

    (void)state;
    begin(&b);
    locktable_gate(b.t, false);
    assert_int_equal(acquire(&b, owner(&b, 1), "k", 1, 60, NULL), DFL_PENDING);
    locktable_gate(b.t, true);
    assert_int_equal(acquire(&b, owner(&b, 2), "k", 1, 0, NULL), DFL_TIMEOUT);
    tick(&b, 0);
    expect(&b, 1, DFL_OK);
    locktable_free(b.t);
}

/* More places than one step of a close takes back: the rest is passed over, and nobody is told. */
static void test_an_owner_that_is_still_being_stripped(void **state)
{
    struct bench b;
    struct lock_given held[1200], last;
    char key[32];

    (void)state;
    begin(&b);
    struct lock_owner *one = owner(&b, 1), *two = owner(&b, 2), *three = owner(&b, 3);

    for (int i = 0; i < 1200; i++) {
        snprintf(key, sizeof key, "k%d", i);
        assert_int_equal(acquire(&b, one, key, 1, 0, &held[i]), DFL_OK);
        assert_int_equal(enqueue(&b, two, key, NULL), DFL_PENDING);
    }
    assert_int_equal(acquire(&b, one, "x", 1, 0, &last), DFL_OK);
    assert_int_equal(acquire(&b, two, "x", 1, 60, NULL), DFL_PENDING);
    assert_int_equal(enqueue(&b, three, "k1199", NULL), DFL_PENDING);
    assert_int_equal(wait_for(&b, three, "k1199", 60, NULL), DFL_PENDING);
    assert_int_equal(release(&b, "x", &last), DFL_OK);
    locktable_close_owner(b.t, two, b.now); /* an effect for it is on its way */
    assert_int_equal(release(&b, "k1199", &held[1199]), DFL_OK);
    expect(&b, 3, DFL_OK);
    expect_nothing(&b);
    tick(&b, 0);
    expect_nothing(&b);
    assert_int_equal(acquire(&b, one, "x", 1, 0, NULL), DFL_OK);
    locktable_free(b.t);
}

static void test_a_lapsed_place_outlives_the_idle_time(void **state)
{
    struct bench b;

    (void)state;
    begin(&b);
    struct lock_owner *one = owner(&b, 1);

    assert_int_equal(enqueue(&b, one, "k", NULL), DFL_OK);
    tick(&b, 10001);
    tick(&b, 100000);
    assert_int_equal(wait_for(&b, one, "k", 5, NULL), DFL_LEASE_EXPIRED);
    tick(&b, 100000);
    assert_int_equal(locktable_keys(b.t), 0);
    locktable_free(b.t);
}

static void test_drain(void **state)
{
    struct bench b;
    struct lock_given g;
    int64_t left;

    (void)state;
    begin(&b);
    struct lock_owner *one = owner(&b, 1), *two = owner(&b, 2), *three = owner(&b, 3);

    assert_int_equal(acquire(&b, one, "k", 1, 0, &g), DFL_OK);
    assert_int_equal(acquire(&b, two, "k", 1, 60, NULL), DFL_PENDING);
    assert_int_equal(enqueue(&b, three, "k", NULL), DFL_PENDING);
    locktable_drain(b.t, b.now);
    expect(&b, 2, DFL_DRAINING);
    expect_nothing(&b);
    assert_int_equal(acquire(&b, two, "x", 1, 0, NULL), DFL_DRAINING);
    assert_int_equal(enqueue(&b, two, "x", NULL), DFL_DRAINING);
    assert_int_equal(wait_for(&b, three, "k", 1, NULL), DFL_DRAINING);
    assert_int_equal(renew(&b, "k", &g, 10, &left), DFL_OK);
    assert_int_equal(release(&b, "k", &g), DFL_OK);
    assert_int_equal(locktable_holds(b.t), 0);
    locktable_free(b.t);
}

/* -------------------------------------------------------------------- stats */

struct seen {
    size_t held, idle, waiting;
    struct lock_view last;
};

static void see(void *arg, const struct lock_view *view)
{
    struct seen *s = arg;

    s->held += view->holders > 0;
    s->idle += view->idle;
    s->waiting += view->waiters;
    s->last = *view;
}

static void test_walk(void **state)
{
    struct bench b;
    struct seen s = {0};
    struct lock_given g;
    size_t cursor = 0;
    char key[32];

    (void)state;
    begin(&b);
    struct lock_owner *one = owner(&b, 77);

    assert_int_equal(acquire(&b, one, "k", 1, 0, NULL), DFL_OK);
    assert_int_equal(acquire(&b, owner(&b, 2), "k", 1, 9, NULL), DFL_PENDING);
    b.now += 1000;
    while (locktable_walk(b.t, &cursor, b.now, see, &s))
        ;
    assert_int_equal(s.held, 1);
    assert_int_equal(s.waiting, 1);
    assert_int_equal(s.last.owner_id, 77);
    assert_int_equal(s.last.lease_left_ms, 9000);

    /* 1000 keys, half of them idle, seen once each though 5000 more come meanwhile */
    for (int i = 0; i < 1000; i++) {
        snprintf(key, sizeof key, "a%d", i);
        assert_int_equal(acquire(&b, one, key, 1, 0, &g), DFL_OK);
        if (i % 2)
            assert_int_equal(release(&b, key, &g), DFL_OK);
    }
    s = (struct seen){0};
    cursor = 0;
    locktable_freeze(b.t);
    for (int i = 0; locktable_walk(b.t, &cursor, b.now, see, &s); i++) {
        snprintf(key, sizeof key, "b%d", i);
        acquire(&b, one, key, 2, 0, NULL);
    }
    locktable_thaw(b.t);
    assert_int_equal(s.idle, 500);
    assert_true(s.held >= 501);
    locktable_free(b.t);
}

/* --------------------------------------------------------------------- cost */

#define MANY 1000000

static double seconds(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static long resident(void)
{
    long pages = 0, all = 0;
    FILE *f = fopen("/proc/self/statm", "r");

    assert_non_null(f);
    assert_int_equal(fscanf(f, "%ld %ld", &all, &pages), 2);
    fclose(f);
    return pages * 4096;
}

static void test_memory_of_a_million_keys(void **state)
{
    struct bench b;
    char key[32];
    double worst = 0, before, from;
    long rss;

    (void)state;
    begin(&b);
    struct lock_owner *one = owner(&b, 1);
    size_t empty = locktable_bytes(b.t);

    rss = resident();
    from = seconds();
    for (int i = 0; i < MANY; i++) {
        snprintf(key, sizeof key, "key-%016d", i);
        assert_int_equal(strlen(key), 20);
        before = seconds();
        assert_int_equal(acquire(&b, one, key, 1, 0, NULL), DFL_OK);
        before = seconds() - before;
        worst = before > worst ? before : worst;
    }

    double own = (double)(locktable_bytes(b.t) - empty) / MANY;

    print_message("a million keys: %.1f bytes each by own account, %.1f of RSS; %.2f us each, "
                  "worst %.2f ms\n",
                  own, (double)(resident() - rss) / MANY, (seconds() - from) * 1e6 / MANY,
                  worst * 1e3);
    assert_true(own <= 250);
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    assert_true((double)(resident() - rss) / MANY <= 250);
#endif
    locktable_free(b.t);
}

/* -------------------------------------------------------------------- model */

/*
 * Random requests of a few owners for a few keys, judged by a model that knows limits, order and
 * times, and nothing of hashes, heaps and lists.
 */
#define OWNERS 6
#define KEYS 4
#define SLOTS 64

struct model_item {
    bool used, hold, place; /* a hold, or a waiter */
    int owner, key;
    int64_t until; /* hold: last moment of the lease; asking waiter: its time; else INT64_MAX */
    uint64_t order;
    struct lock_given given;
};

struct model {
    struct bench b;
    struct lock_owner *owner[OWNERS];
    bool asks[OWNERS];
    struct model_item item[SLOTS];
    uint64_t order;
    unsigned seed;
    long grants, timeouts, lapses;
};

static const int64_t key_limit[KEYS] = {1, 1, 2, 3};
static const char *const key_name[KEYS] = {"a", "b", "c", "d"};

static unsigned roll(struct model *m, unsigned n)
{
    m->seed = m->seed * 1103515245u + 12345u;
    return (m->seed >> 16) % n;
}

static struct model_item *model_add(struct model *m, int owner_at, int key, bool hold)
{
    for (int i = 0; i < SLOTS; i++) {
        struct model_item *it = &m->item[i];

        if (it->used)
            continue;
        *it = (struct model_item){.used = true,
                                  .hold = hold,
                                  .owner = owner_at,
                                  .key = key,
                                  .until = INT64_MAX,
                                  .order = ++m->order};
        return it;
    }
    fail_msg("the model is full");
    return NULL;
}

static int model_count(const struct model *m, int key, bool hold)
{
    int n = 0;

    for (int i = 0; i < SLOTS; i++)
        n += m->item[i].used && m->item[i].hold == hold && m->item[i].key == key;
    return n;
}

static struct model_item *model_first(struct model *m, int key)
{
    struct model_item *first = NULL;

    for (int i = 0; i < SLOTS; i++) {
        struct model_item *it = &m->item[i];

        if (it->used && !it->hold && it->key == key && (!first || it->order < first->order))
            first = it;
    }
    return first;
}

static struct model_item *model_place(struct model *m, int owner_at, int key)
{
    for (int i = 0; i < SLOTS; i++) {
        struct model_item *it = &m->item[i];

        if (it->used && it->place && it->owner == owner_at && it->key == key)
            return it;
    }
    return NULL;
}

static void model_hold(struct model *m, struct model_item *it, const struct lock_given *given)
{
    it->hold = true;
    it->given = *given;
    it->until = m->b.now + 10000;
    m->grants++;
    assert_true(model_count(m, it->key, true) <= key_limit[it->key]);
}

/* A place that nobody asks about comes up silently. */
static void model_come_up(struct model *m, struct model_item *it)
{
    struct lock_given unknown = {0};

    assert_true(it->place && it->until == INT64_MAX);
    model_hold(m, it, &unknown);
}

static struct model_item *model_asking(struct model *m, int owner_at)
{
    for (int i = 0; i < SLOTS; i++) {
        struct model_item *it = &m->item[i];

        if (it->used && !it->hold && it->owner == owner_at && it->until != INT64_MAX)
            return it;
    }
    return NULL;
}

/* Whoever is granted something must be the first of its key, but for silent places before him. */
static void model_effects(struct model *m)
{
    struct lock_effect effect;

    while (locktable_effect(m->b.t, &effect)) {
        int who = (int)(uintptr_t)effect.user - 1;
        struct model_item *it = model_asking(m, who);

        assert_true(m->asks[who]);
        assert_non_null(it);
        m->asks[who] = false;
        it->place = false;
        if (effect.status == DFL_OK) {
            while (model_first(m, it->key) != it)
                model_come_up(m, model_first(m, it->key));
            assert_true(effect.given.token.fence > 100);
            model_hold(m, it, &effect.given);
        } else {
            assert_int_equal(effect.status, DFL_TIMEOUT);
            assert_true(m->b.now > it->until);
            m->timeouts++;
            it->used = false;
        }
    }
}

/* After each step: nobody who could have something is left waiting. */
static void model_settle(struct model *m)
{
    model_effects(m);
    for (int key = 0; key < KEYS; key++)
        while (model_count(m, key, true) < key_limit[key] && model_first(m, key))
            model_come_up(m, model_first(m, key));
}

static void model_acquire(struct model *m, int who, int key)
{
    int64_t timeout = roll(m, 2) ? roll(m, 15) : 0;
    bool free_slot = model_count(m, key, true) < key_limit[key] && !model_first(m, key);
    struct lock_given given;
    enum dfl_status status =
        acquire(&m->b, m->owner[who], key_name[key], key_limit[key], timeout, &given);

    if (free_slot) {
        assert_int_equal(status, DFL_OK);
        model_hold(m, model_add(m, who, key, true), &given);
    } else if (timeout == 0) {
        assert_int_equal(status, DFL_TIMEOUT);
    } else {
        assert_int_equal(status, DFL_PENDING);
        model_add(m, who, key, false)->until = m->b.now + timeout * 1000;
        m->asks[who] = true;
    }
}

static void model_release(struct model *m)
{
    struct model_item *it = &m->item[roll(m, SLOTS)];
    int64_t left;

    if (!it->used || !it->hold || it->given.token.fence == 0)
        return;
    if (roll(m, 3) == 0) {
        assert_int_equal(renew(&m->b, key_name[it->key], &it->given, 10, &left), DFL_OK);
        assert_int_equal(left, 10);
        it->until = m->b.now + 10000;
        return;
    }
    assert_int_equal(release(&m->b, key_name[it->key], &it->given), DFL_OK);
    it->used = false;
    model_settle(m);
}

static void model_two_phases(struct model *m, int who, int key)
{
    struct model_item *it = model_place(m, who, key);
    bool free_slot = model_count(m, key, true) < key_limit[key] && !model_first(m, key);
    struct lock_request rq = request(key_name[key], key_limit[key], 0, 10);
    struct lock_given given;

    if (!it) {
        enum dfl_status status = locktable_enqueue(m->b.t, m->owner[who], &rq, m->b.now, &given);

        assert_int_equal(status, free_slot ? DFL_OK : DFL_PENDING);
        it = model_add(m, who, key, free_slot);
        it->place = true;
        if (free_slot)
            model_hold(m, it, &given);
    } else if (it->hold) {
        assert_int_equal(wait_for(&m->b, m->owner[who], key_name[key], 5, &given), DFL_OK);
        it->place = false;
        it->given = given;
        it->until = m->b.now + 10000;
    } else {
        assert_int_equal(wait_for(&m->b, m->owner[who], key_name[key], 5, &given), DFL_PENDING);
        it->until = m->b.now + 5000;
        m->asks[who] = true;
    }
}

static void model_close(struct model *m, int who)
{
    locktable_close_owner(m->b.t, m->owner[who], m->b.now);
    for (int i = 0; i < SLOTS; i++)
        if (m->item[i].used && m->item[i].owner == who)
            m->item[i].used = false;
    m->asks[who] = false;
    model_settle(m);
    m->owner[who] = owner(&m->b, (uint64_t)who + 1);
}

/* Time passes: what is over by the model must be over in the table, and its place be told so. */
static void model_time(struct model *m)
{
    int64_t ms = roll(m, 4) ? roll(m, 300) : roll(m, 6000);

    while (ms-- > 0) {
        m->b.now++;
        locktable_tick(m->b.t, m->b.now);
        for (int i = 0; i < SLOTS; i++) {
            struct model_item *it = &m->item[i];

            if (!it->used || !it->hold || m->b.now <= it->until)
                continue;
            it->used = false;
            m->lapses++;
            if (it->place && !m->asks[it->owner])
                assert_int_equal(wait_for(&m->b, m->owner[it->owner], key_name[it->key], 5, NULL),
                                 DFL_LEASE_EXPIRED);
        }
        model_settle(m);
    }
}

static void test_against_a_model(void **state)
{
    (void)state;
    for (unsigned seed = 1; seed <= 40; seed++) {
        struct model m = {.seed = seed};

        begin(&m.b);
        for (int i = 0; i < OWNERS; i++)
            m.owner[i] = owner(&m.b, (uint64_t)i + 1);
        for (int step = 0; step < 2000; step++) {
            int who = (int)roll(&m, OWNERS), key = (int)roll(&m, KEYS);
            unsigned what = roll(&m, 10);

            if (what < 3)
                model_time(&m);
            else if (what < 6)
                model_release(&m);
            else if (what == 6 && roll(&m, 4) == 0)
                model_close(&m, who);
            else if (!m.asks[who] && model_count(&m, key, true) + model_count(&m, key, false) < 12)
                what % 2 ? model_acquire(&m, who, key) : model_two_phases(&m, who, key);
            model_settle(&m);
        }
        assert_true(m.grants > 50 && m.timeouts > 3 && m.lapses > 3);
        locktable_free(m.b.t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_try_and_release),
        cmocka_unit_test(test_token_must_fit_whole),
        cmocka_unit_test(test_fifo_of_locks_and_semaphores_of_one_slot),
        cmocka_unit_test(test_a_try_does_not_overtake),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_idle_keys_keep_their_limit_until_collected),
        cmocka_unit_test(test_max_waiters),
        cmocka_unit_test(test_a_lease_never_ends_early),
        cmocka_unit_test(test_due_but_not_ticked),
        cmocka_unit_test(test_renew),
        cmocka_unit_test(test_waiting_ends),
        cmocka_unit_test(test_grant_and_time_limit_in_one_tick),
        cmocka_unit_test(test_two_phases),
        cmocka_unit_test(test_a_wait_that_times_out_loses_the_place),
        cmocka_unit_test(test_a_place_comes_up_before_its_wait),
        cmocka_unit_test(test_a_place_lapses),
        cmocka_unit_test(test_release_forgets_the_place),
        cmocka_unit_test(test_closing_gives_everything_back),
        cmocka_unit_test(test_closing_without_auto_release),
        cmocka_unit_test(test_closing_an_owner_of_very_much),
        cmocka_unit_test(test_an_effect_for_one_who_has_gone),
        cmocka_unit_test(test_no_tokens),
        cmocka_unit_test(test_gate),
        cmocka_unit_test(test_nobody_overtakes_when_the_gate_opens),
        cmocka_unit_test(test_an_owner_that_is_still_being_stripped),
        cmocka_unit_test(test_a_lapsed_place_outlives_the_idle_time),
        cmocka_unit_test(test_drain),
        cmocka_unit_test(test_walk),
        cmocka_unit_test(test_memory_of_a_million_keys),
        cmocka_unit_test(test_against_a_model),
    };

    return cmocka_run_group_tests_name("locktable", tests, NULL, NULL);
}
