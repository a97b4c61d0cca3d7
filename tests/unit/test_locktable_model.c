/*
 * The lock table against a model: random requests of a few owners for a few keys, judged by one
 * that knows limits, order and times, and nothing of hashes, heaps and lists.
 */
#include "lockbench.h"

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
        bench_acquire(&m->b, m->owner[who], key_name[key], key_limit[key], timeout, &given);

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
        assert_int_equal(bench_renew(&m->b, key_name[it->key], &it->given, 10, &left), DFL_OK);
        assert_int_equal(left, 10);
        it->until = m->b.now + 10000;
        return;
    }
    assert_int_equal(bench_release(&m->b, key_name[it->key], &it->given), DFL_OK);
    it->used = false;
    model_settle(m);
}

static void model_two_phases(struct model *m, int who, int key)
{
    struct model_item *it = model_place(m, who, key);
    bool free_slot = model_count(m, key, true) < key_limit[key] && !model_first(m, key);
    struct lock_request rq = bench_request(key_name[key], key_limit[key], 0, 10);
    struct lock_given given;

    if (!it) {
        enum dfl_status status = locktable_enqueue(m->b.t, m->owner[who], &rq, m->b.now, &given);

        assert_int_equal(status, free_slot ? DFL_OK : DFL_PENDING);
        it = model_add(m, who, key, free_slot);
        it->place = true;
        if (free_slot)
            model_hold(m, it, &given);
    } else if (it->hold) {
        assert_int_equal(bench_wait_for(&m->b, m->owner[who], key_name[key], 5, &given), DFL_OK);
        it->place = false;
        it->given = given;
        it->until = m->b.now + 10000;
    } else {
        assert_int_equal(bench_wait_for(&m->b, m->owner[who], key_name[key], 5, &given),
                         DFL_PENDING);
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
    m->owner[who] = bench_owner(&m->b, (uint64_t)who + 1);
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
                assert_int_equal(
                    bench_wait_for(&m->b, m->owner[it->owner], key_name[it->key], 5, NULL),
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

        bench_begin(&m.b);
        for (int i = 0; i < OWNERS; i++)
            m.owner[i] = bench_owner(&m.b, (uint64_t)i + 1);
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
        cmocka_unit_test(test_against_a_model),
    };

    return cmocka_run_group_tests_name("locktable, model", tests, NULL, NULL);
}
