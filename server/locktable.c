/*
 * locktable.c - what each request means, what time does, and the table as a whole: the functions of
 * locktable.h. The mechanics under them are in lockparts.c.
 */
#include "lockparts.h"

#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- requests */

/* The entry of a request, made if there is none. */
static enum dfl_status open_entry(struct locktable *t, const struct lock_request *rq,
                                  int64_t now_ms, struct entry **out)
{
    uint64_t hash = hash_key(t->config.secret, rq->key, rq->key_len);
    struct entry *e = entry_find(t, rq->key, rq->key_len, hash);

    if (e && e->limit != rq->limit)
        return DFL_LIMIT_MISMATCH;
    if (!e && t->entries.count >= t->config.max_locks)
        return DFL_MAX_LOCKS;
    if (!e)
        e = entry_new(t, rq, hash, now_ms);
    if (!e)
        return DFL_MAX_LOCKS;
    *out = e;
    return DFL_OK;
}

/* For a stalled entry the gate opens when its turn comes, also if all its waiters have gone. */
static bool can_have(const struct locktable *t, const struct entry *e)
{
    return t->gate && !e->stalled && e->waiters == 0 && e->holders < e->limit;
}

/* Grants at once what can be had. */
static enum dfl_status grant_now(struct locktable *t, struct lock_owner *owner, struct entry *e,
                                 int64_t lease_s, int64_t now_ms, struct lock_given *given,
                                 struct grant **out)
{
    struct grant *g = grant_new(t);

    if (!g)
        return DFL_MAX_LOCKS;
    if (!grant_install(t, e, g, owner, lease_s, now_ms, given)) {
        grant_free(t, g);
        return DFL_REFUSED;
    }
    *out = g;
    return DFL_OK;
}

static enum dfl_status join_queue(struct locktable *t, struct lock_owner *owner, struct entry *e,
                                  int64_t lease_s, enum place_state state, struct waiter **out)
{
    if (t->config.max_waiters > 0 && e->waiters >= t->config.max_waiters)
        return DFL_MAX_WAITERS;

    struct waiter *w = waiter_new(t);

    if (!w)
        return DFL_MAX_WAITERS;
    entry_wake(e);
    w->owner = owner;
    w->entry = e;
    w->lease_s = lease_s;
    w->state = state;
    dfl_list_append(&e->u.busy.queue, &w->queue);
    dfl_list_append(&owner->waiters, &w->mine);
    e->waiters++;
    if (!t->gate)
        entry_stall(t, e);
    *out = w;
    return DFL_PENDING;
}

enum dfl_status locktable_acquire(struct locktable *t, struct lock_owner *owner,
                                  const struct lock_request *rq, int64_t now_ms,
                                  struct lock_given *given)
{
    struct entry *e;
    struct grant *g;
    struct waiter *w;

    if (t->draining)
        return DFL_DRAINING;

    enum dfl_status status = open_entry(t, rq, now_ms, &e);

    if (status != DFL_OK)
        return status;
    if (can_have(t, e))
        return grant_now(t, owner, e, rq->lease_s, now_ms, given, &g);
    if (rq->timeout_s == 0)
        return DFL_TIMEOUT;
    status = join_queue(t, owner, e, rq->lease_s, ASKING, &w);
    if (status == DFL_PENDING)
        dfl_timer_set(&t->waits, &w->until, end_ms(now_ms, rq->timeout_s));
    return status;
}

/* A place that came up is kept beside its grant, for the wait that will ask. */
static enum dfl_status enqueue_granted(struct locktable *t, struct lock_owner *owner,
                                       struct entry *e, int64_t lease_s, int64_t now_ms,
                                       struct lock_given *given)
{
    struct waiter *w = waiter_new(t);

    if (!w)
        return DFL_MAX_LOCKS;
    if (!grant_install(t, e, w->grant, owner, lease_s, now_ms, given)) {
        waiter_free(t, w);
        return DFL_REFUSED;
    }
    w->owner = owner;
    w->entry = e;
    w->lease_s = lease_s;
    w->state = CAME_UP;
    w->given = *given;
    w->grant->place = w;
    dfl_list_append(&owner->waiters, &w->mine);
    w->place = true;
    hash_add(&t->places, &w->node, place_hash(e, owner));
    return DFL_OK;
}

enum dfl_status locktable_enqueue(struct locktable *t, struct lock_owner *owner,
                                  const struct lock_request *rq, int64_t now_ms,
                                  struct lock_given *given)
{
    struct entry *e;

    if (t->draining)
        return DFL_DRAINING;

    enum dfl_status status = open_entry(t, rq, now_ms, &e);

    if (status != DFL_OK)
        return status;

    struct waiter *w = place_find(t, e, owner);

    if (w && w->state != LAPSED)
        return DFL_ALREADY_ENQUEUED;
    if (w)
        waiter_free(t, w); /* it came to nothing: begin anew */
    if (can_have(t, e)) {
        status = enqueue_granted(t, owner, e, rq->lease_s, now_ms, given);
    } else {
        status = join_queue(t, owner, e, rq->lease_s, QUEUED, &w);
        if (status == DFL_PENDING) {
            w->place = true;
            hash_add(&t->places, &w->node, place_hash(e, owner));
        }
    }
    entry_settle(t, e, now_ms);
    return status;
}

/* A wait for a place that has come up. */
static enum dfl_status wait_came_up(struct locktable *t, struct waiter *w, int64_t now_ms,
                                    struct lock_given *given)
{
    struct grant *g = w->grant;

    if (g->lease.at_ms <= now_ms) {
        grant_end(t, g, false, now_ms);
        return DFL_LEASE_EXPIRED;
    }
    if (!t->config.mint.extend(t->config.mint.ctx, w->lease_s))
        return DFL_REFUSED;
    dfl_timer_set(&t->leases, &g->lease, end_ms(now_ms, w->lease_s));
    *given = w->given;
    waiter_free(t, w);
    return DFL_OK;
}

enum dfl_status locktable_wait(struct locktable *t, struct lock_owner *owner, const char *key,
                               size_t key_len, int64_t timeout_s, int64_t now_ms,
                               struct lock_given *given)
{
    struct entry *e = entry_find(t, key, key_len, hash_key(t->config.secret, key, key_len));
    struct waiter *w = e ? place_find(t, e, owner) : NULL;
    enum dfl_status status = DFL_PENDING;

    if (t->draining)
        return DFL_DRAINING;
    if (!w)
        return DFL_NOT_ENQUEUED;
    if (w->state == CAME_UP)
        return wait_came_up(t, w, now_ms, given);
    if (w->state == LAPSED) {
        waiter_free(t, w);
        status = DFL_LEASE_EXPIRED;
    } else if (timeout_s == 0) {
        waiter_leave(w);
        waiter_free(t, w);
        status = DFL_TIMEOUT;
    } else {
        w->state = AWAITED;
        dfl_timer_set(&t->waits, &w->until, end_ms(now_ms, timeout_s));
    }
    entry_settle(t, e, now_ms);
    return status;
}

enum dfl_status locktable_renew(struct locktable *t, const char *key, size_t key_len,
                                const struct lock_token *token, int64_t lease_s, int64_t now_ms,
                                int64_t *left_s)
{
    struct grant *g = grant_find(t, key, key_len, token);

    if (!g || g->lease.at_ms <= now_ms)
        return DFL_REFUSED;
    if (!t->config.mint.extend(t->config.mint.ctx, lease_s))
        return DFL_REFUSED;
    dfl_timer_set(&t->leases, &g->lease, end_ms(now_ms, lease_s));
    *left_s = (g->lease.at_ms - now_ms) / 1000;
    return DFL_OK;
}

enum dfl_status locktable_release(struct locktable *t, const char *key, size_t key_len,
                                  const struct lock_token *token, int64_t now_ms)
{
    struct grant *g = grant_find(t, key, key_len, token);

    if (!g)
        return DFL_REFUSED;

    bool expired = g->lease.at_ms <= now_ms;

    grant_end_of(t, g, expired, now_ms);
    return expired ? DFL_REFUSED : DFL_OK;
}

/* ------------------------------------------------------------------ owners */

struct lock_owner *locktable_owner(struct locktable *t, uint64_t id, void *user)
{
    struct lock_owner *owner = table_take(t, sizeof *owner);

    if (!owner)
        return NULL;
    owner->id = id;
    owner->user = user;
    dfl_link_init(&owner->grants);
    dfl_link_init(&owner->waiters);
    dfl_link_init(&owner->closed);
    dfl_list_append(&t->owners, &owner->closed);
    return owner;
}

/* Takes one thing from a closed owner; false when there is nothing to take. */
static bool strip_owner(struct locktable *t, struct lock_owner *owner, int64_t now_ms)
{
    if (!dfl_list_empty(&owner->waiters)) {
        struct waiter *w = DFL_CONTAINER(owner->waiters.next, struct waiter, mine);
        struct entry *e = w->entry;

        if (w->state == ASKING || w->state == QUEUED || w->state == AWAITED)
            waiter_leave(w);
        waiter_free(t, w);
        if (e)
            entry_settle(t, e, now_ms);
        return true;
    }
    if (t->config.auto_release && !dfl_list_empty(&owner->grants)) {
        grant_end(t, DFL_CONTAINER(owner->grants.next, struct grant, mine), false, now_ms);
        return true;
    }
    return false;
}

/* Strips closed owners, a bounded number of things at a time. */
static void strip_owners(struct locktable *t, int64_t now_ms)
{
    for (int i = 0; i < STEP && !dfl_list_empty(&t->closing); i++) {
        struct lock_owner *owner = DFL_CONTAINER(t->closing.next, struct lock_owner, closed);

        if (strip_owner(t, owner, now_ms))
            continue;
        dfl_list_append(&t->owners, &owner->closed); /* what is left ends with its lease */
        owner_settle(t, owner);
    }
}

void locktable_close_owner(struct locktable *t, struct lock_owner *owner, int64_t now_ms)
{
    owner->gone = true;
    owner->user = NULL;
    dfl_list_append(&t->closing, &owner->closed);
    strip_owners(t, now_ms);
}

/* -------------------------------------------------------------------- time */

static void end_leases(struct locktable *t, int64_t now_ms)
{
    for (int i = 0; i < STEP; i++) {
        struct dfl_timer *timer = dfl_timers_pop(&t->leases, now_ms);

        if (!timer)
            break;
        grant_end_of(t, DFL_CONTAINER(timer, struct grant, lease), true, now_ms);
    }
}

static void end_waits(struct locktable *t, int64_t now_ms)
{
    for (int i = 0; i < STEP; i++) {
        struct dfl_timer *timer = dfl_timers_pop(&t->waits, now_ms);

        if (!timer)
            break;

        struct waiter *w = DFL_CONTAINER(timer, struct waiter, until);
        struct entry *e = w->entry;

        waiter_leave(w);
        waiter_answer(t, w, DFL_TIMEOUT);
        entry_settle(t, e, now_ms);
    }
}

static void serve_stalled(struct locktable *t, int64_t now_ms)
{
    for (int i = 0; i < STEP && t->gate && t->stalled; i++) {
        struct entry *e = t->stalled;

        t->stalled = e->u.busy.x.next_stalled;
        e->stalled = false;
        entry_hand_on(t, e, now_ms);
    }
}

/* How many of its waiters, at most so many, were sent away. */
static int drain_entry(struct locktable *t, struct entry *e, int most, int64_t now_ms)
{
    int n = 0;

    for (; n < most && !e->idle && e->waiters > 0; n++) {
        struct waiter *w = DFL_CONTAINER(e->u.busy.queue.next, struct waiter, queue);

        waiter_leave(w);
        waiter_refuse(t, w, DFL_DRAINING);
    }
    entry_settle(t, e, now_ms);
    return n;
}

/* No entries come any more, so the hash stays frozen as it is. */
static void drain_some(struct locktable *t, int64_t now_ms)
{
    int left = STEP;

    while (t->draining && left > 0 && t->drained < hash_buckets(&t->entries)) {
        for (struct hash_node *n = hash_bucket(&t->entries, t->drained); n; n = n->next)
            left -= drain_entry(t, DFL_CONTAINER(n, struct entry, node), left, now_ms);
        if (left > 0) {
            t->drained++;
            left--;
        }
    }
}

/* Leases before waiting times: who comes up in the very millisecond in which his time ends has it.
 */
void locktable_tick(struct locktable *t, int64_t now_ms)
{
    strip_owners(t, now_ms);
    drain_some(t, now_ms);
    serve_stalled(t, now_ms);
    end_leases(t, now_ms);
    if (dfl_timers_next(&t->leases) > now_ms)
        end_waits(t, now_ms);
    table_collect_idle(t, now_ms);
}

int64_t locktable_next_ms(const struct locktable *t)
{
    int64_t lease = dfl_timers_next(&t->leases), wait = dfl_timers_next(&t->waits);
    int64_t next = lease < wait ? lease : wait;

    if (!dfl_list_empty(&t->closing) || (t->gate && t->stalled) ||
        (t->draining && !locktable_is_drained(t)))
        return INT64_MIN;
    if (!dfl_list_empty(&t->idle) && t->next_gc_ms < next)
        next = t->next_gc_ms;
    return next;
}

bool locktable_effect(struct locktable *t, struct lock_effect *effect)
{
    while (!dfl_list_empty(&t->effects)) {
        struct waiter *w = DFL_CONTAINER(t->effects.next, struct waiter, queue);
        bool wanted = !w->owner->gone;

        *effect = (struct lock_effect){w->owner->user, w->answer, w->given};
        waiter_free(t, w);
        if (wanted)
            return true;
    }
    return false;
}

void locktable_gate(struct locktable *t, bool open)
{
    t->gate = open;
}

void locktable_drain(struct locktable *t, int64_t now_ms)
{
    if (t->draining)
        return;
    t->draining = true;
    hash_freeze(&t->entries);
    drain_some(t, now_ms);
}

bool locktable_is_drained(const struct locktable *t)
{
    return t->draining && t->drained == hash_buckets(&t->entries);
}

/* ------------------------------------------------------------------- table */

struct locktable *locktable_new(const struct locktable_config *config, int64_t now_ms)
{
    struct locktable *t = calloc(1, sizeof *t);

    if (!t)
        return NULL;
    t->config = *config;
    hash_init(&t->entries);
    hash_init(&t->grants);
    hash_init(&t->places);
    dfl_timers_init(&t->leases);
    dfl_timers_init(&t->waits);
    dfl_link_init(&t->idle);
    dfl_link_init(&t->effects);
    dfl_link_init(&t->owners);
    dfl_link_init(&t->closing);
    t->next_gc_ms = now_ms + config->gc_interval_ms;
    t->gate = true;
    return t;
}

static void free_owners(struct locktable *t, struct dfl_link *list)
{
    DFL_EACH(link, list) {
        struct lock_owner *owner = DFL_CONTAINER(link, struct lock_owner, closed);

        DFL_EACH(mine, &owner->waiters)
            waiter_free(t, DFL_CONTAINER(mine, struct waiter, mine));
        DFL_EACH(mine, &owner->grants)
            grant_free(t, DFL_CONTAINER(mine, struct grant, mine));
        owner_free(t, owner);
    }
}

void locktable_free(struct locktable *t)
{
    if (!t)
        return;
    free_owners(t, &t->owners);
    free_owners(t, &t->closing);
    for (size_t i = 0; i < hash_buckets(&t->entries); i++) {
        for (struct hash_node *n = hash_bucket(&t->entries, i), *next; n; n = next) {
            next = n->next;
            free(DFL_CONTAINER(n, struct entry, node));
        }
    }
    hash_free(&t->entries);
    hash_free(&t->grants);
    hash_free(&t->places);
    t->leases.count = t->waits.count = 0; /* the timers are gone already */
    dfl_timers_free(&t->leases);
    dfl_timers_free(&t->waits);
    free(t);
}

size_t locktable_keys(const struct locktable *t)
{
    return t->entries.count;
}

size_t locktable_holds(const struct locktable *t)
{
    return t->grants.count;
}

size_t locktable_bytes(const struct locktable *t)
{
    return sizeof *t + t->bytes + hash_bytes(&t->entries) + hash_bytes(&t->grants) +
           hash_bytes(&t->places) + (t->leases.cap + t->waits.cap) * sizeof(struct dfl_timer *);
}

static struct lock_view view_of(const struct entry *e, int64_t now_ms)
{
    struct lock_view view = {.key = e->key,
                             .key_len = e->key_len,
                             .limit = e->limit,
                             .holders = e->holders,
                             .waiters = e->waiters,
                             .idle = e->idle};

    if (e->idle) {
        view.idle_ms = now_ms - e->u.rest.since_ms;
    } else if (e->limit == 1 && e->holders == 1) {
        view.owner_id = e->u.busy.x.lone->owner->id;
        view.lease_left_ms = e->u.busy.x.lone->lease.at_ms - 1 - now_ms;
    }
    return view;
}

bool locktable_walk(struct locktable *t, size_t *cursor, int64_t now_ms,
                    void (*see)(void *arg, const struct lock_view *view), void *arg)
{
    if (*cursor >= hash_buckets(&t->entries))
        return false;
    for (struct hash_node *n = hash_bucket(&t->entries, (*cursor)++); n; n = n->next) {
        struct lock_view view = view_of(DFL_CONTAINER(n, struct entry, node), now_ms);

        see(arg, &view);
    }
    return true;
}

unsigned locktable_freeze(struct locktable *t)
{
    return hash_freeze(&t->entries);
}

void locktable_thaw(struct locktable *t, unsigned freeze)
{
    hash_thaw(&t->entries, freeze);
}

bool locktable_is_frozen(const struct locktable *t, unsigned freeze)
{
    return hash_is_frozen(&t->entries, freeze);
}
