/*
 * lockparts.c - the mechanics of the lock table: how entries, grants and waiters come, are tied
 * together, and go. What a request means is in locktable.c. Never calls out, but for a token.
 */
#include "lockparts.h"

#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ memory */

/* What malloc really takes for n bytes, on the systems that we know. */
static size_t chunk(size_t n)
{
    return (n + sizeof(size_t) + 15) & ~(size_t)15;
}

void *table_take(struct locktable *t, size_t n)
{
    void *p = malloc(n); /* calloc is slower for small pieces */

    if (!p)
        return NULL;
    t->bytes += chunk(n);
    return memset(p, 0, n);
}

void table_drop(struct locktable *t, void *p, size_t n)
{
    if (!p)
        return;
    t->bytes -= chunk(n);
    free(p);
}

static size_t entry_size(size_t key_len)
{
    return offsetof(struct entry, key) + key_len;
}

struct grant *grant_new(struct locktable *t)
{
    if (dfl_timers_reserve(&t->leases, t->grant_room + 1) != DFL_OK)
        return NULL;

    struct grant *g = table_take(t, sizeof *g);

    if (g)
        t->grant_room++;
    return g;
}

void grant_free(struct locktable *t, struct grant *g)
{
    if (!g)
        return;
    t->grant_room--;
    table_drop(t, g, sizeof *g);
}

struct waiter *waiter_new(struct locktable *t)
{
    if (dfl_timers_reserve(&t->waits, t->wait_room + 1) != DFL_OK)
        return NULL;

    struct waiter *w = table_take(t, sizeof *w);

    if (!w)
        return NULL;
    t->wait_room++;
    dfl_link_init(&w->queue);
    dfl_link_init(&w->mine);
    w->grant = grant_new(t);
    if (w->grant)
        return w;
    t->wait_room--;
    table_drop(t, w, sizeof *w);
    return NULL;
}

/* ----------------------------------------------------------------- entries */

struct entry *entry_find(struct locktable *t, const char *key, size_t len, uint64_t hash)
{
    for (struct hash_node *n = hash_chain(&t->entries, hash); n; n = n->next) {
        struct entry *e = DFL_CONTAINER(n, struct entry, node);

        if (n->hash == hash && e->key_len == len && memcmp(e->key, key, len) == 0)
            return e;
    }
    return NULL;
}

struct entry *entry_new(struct locktable *t, const struct lock_request *rq, uint64_t hash,
                        int64_t now_ms)
{
    struct entry *e = table_take(t, entry_size(rq->key_len));

    if (!e)
        return NULL;
    e->limit = rq->limit;
    e->key_len = (uint16_t)rq->key_len;
    memcpy(e->key, rq->key, rq->key_len);
    e->idle = true;
    e->u.rest.since_ms = now_ms;
    dfl_link_init(&e->u.rest.link);
    dfl_list_append(&t->idle, &e->u.rest.link);
    hash_add(&t->entries, &e->node, hash);
    return e;
}

void entry_wake(struct entry *e)
{
    if (!e->idle)
        return;
    dfl_link_remove(&e->u.rest.link);
    e->idle = false;
    dfl_link_init(&e->u.busy.queue);
    e->u.busy.x.lone = NULL;
}

/* After something has left the entry. */
void entry_settle(struct locktable *t, struct entry *e, int64_t now_ms)
{
    if (e->idle || e->stalled || e->holders || e->waiters || e->lapsed)
        return;
    e->idle = true;
    e->u.rest.since_ms = now_ms;
    dfl_link_init(&e->u.rest.link);
    dfl_list_append(&t->idle, &e->u.rest.link);
}

void table_collect_idle(struct locktable *t, int64_t now_ms)
{
    if (now_ms < t->next_gc_ms)
        return;
    for (int i = 0; i < STEP; i++) {
        struct dfl_link *first = t->idle.next;
        struct entry *e = DFL_CONTAINER(first, struct entry, u.rest.link);

        if (first == &t->idle || now_ms - e->u.rest.since_ms < t->config.gc_max_idle_ms) {
            t->next_gc_ms = now_ms + t->config.gc_interval_ms;
            return;
        }
        dfl_link_remove(first);
        hash_remove(&t->entries, &e->node);
        table_drop(t, e, entry_size(e->key_len));
    }
}

/* ------------------------------------------------------------------ places */

uint64_t place_hash(const struct entry *e, const struct lock_owner *owner)
{
    return e->node.hash ^ owner->id * UINT64_C(0x9e3779b97f4a7c15);
}

struct waiter *place_find(struct locktable *t, const struct entry *e,
                          const struct lock_owner *owner)
{
    uint64_t hash = place_hash(e, owner);

    for (struct hash_node *n = hash_chain(&t->places, hash); n; n = n->next) {
        struct waiter *w = DFL_CONTAINER(n, struct waiter, node);

        if (n->hash == hash && w->entry == e && w->owner == owner)
            return w;
    }
    return NULL;
}

static void forget_place(struct locktable *t, struct waiter *w)
{
    if (w->place)
        hash_remove(&t->places, &w->node);
    w->place = false;
}

void waiter_leave(struct waiter *w)
{
    dfl_link_remove(&w->queue);
    /* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): a waiter in a queue has an entry */
    w->entry->waiters--;
}

/* The end of a waiter that is in no queue any more. A grant that came up stays, without it. */
void waiter_free(struct locktable *t, struct waiter *w)
{
    forget_place(t, w);
    dfl_timer_clear(&t->waits, &w->until);
    dfl_link_remove(&w->queue);
    dfl_link_remove(&w->mine);
    if (w->state == CAME_UP)
        w->grant->place = NULL;
    else
        grant_free(t, w->grant);
    if (w->state == LAPSED)
        w->entry->lapsed--;
    t->wait_room--;
    table_drop(t, w, sizeof *w);
}

/* Sends a waiter on its way out, to be seen by locktable_effect(). Its entry may be gone by then.
 */
void waiter_answer(struct locktable *t, struct waiter *w, enum dfl_status status)
{
    forget_place(t, w);
    dfl_timer_clear(&t->waits, &w->until);
    w->state = ANSWERED;
    w->answer = status;
    w->entry = NULL;
    dfl_list_append(&t->effects, &w->queue);
}

/* Nobody asks for its answer: a place that came to nothing is gone, and its next wait is told so.
 */
void waiter_refuse(struct locktable *t, struct waiter *w, enum dfl_status status)
{
    if (w->state == QUEUED)
        waiter_free(t, w);
    else
        waiter_answer(t, w, status);
}

/* ------------------------------------------------------------------ grants */

struct grant *grant_find(struct locktable *t, const char *key, size_t key_len,
                         const struct lock_token *token)
{
    for (struct hash_node *n = hash_chain(&t->grants, token->fence); n; n = n->next) {
        struct grant *g = DFL_CONTAINER(n, struct grant, node);

        if (n->hash == token->fence && g->random == token->random && g->entry->key_len == key_len &&
            memcmp(g->entry->key, key, key_len) == 0)
            return g;
    }
    return NULL;
}

/* Makes room `g` a grant. False: there is no token to be had, and g is the caller's still. */
bool grant_install(struct locktable *t, struct entry *e, struct grant *g, struct lock_owner *owner,
                   int64_t lease_s, int64_t now_ms, struct lock_given *given)
{
    if (!t->config.mint.grant(t->config.mint.ctx, lease_s, &given->token))
        return false;
    given->lease_s = lease_s;
    entry_wake(e);
    g->random = given->token.random;
    g->entry = e;
    g->owner = owner;
    g->place = NULL;
    dfl_link_init(&g->mine);
    dfl_list_append(&owner->grants, &g->mine);
    hash_add(&t->grants, &g->node, given->token.fence);
    dfl_timer_set(&t->leases, &g->lease, end_ms(now_ms, lease_s));
    e->holders++;
    if (e->limit == 1)
        e->u.busy.x.lone = g;
    return true;
}

/* The room of a waiter becomes its grant; who asks is told, who does not finds it when he asks. */
static void grant_waiter(struct locktable *t, struct waiter *w, int64_t now_ms)
{
    struct grant *g = w->grant;

    if (!grant_install(t, w->entry, g, w->owner, w->lease_s, now_ms, &w->given)) {
        waiter_refuse(t, w, DFL_REFUSED);
    } else if (w->state == QUEUED) {
        w->state = CAME_UP;
        g->place = w;
    } else {
        w->grant = NULL;
        waiter_answer(t, w, DFL_OK);
    }
}

void entry_stall(struct locktable *t, struct entry *e)
{
    if (e->stalled)
        return;
    e->stalled = true;
    e->u.busy.x.next_stalled = NULL;
    if (t->stalled)
        t->last_stalled->u.busy.x.next_stalled = e;
    else
        t->stalled = e;
    t->last_stalled = e;
}

/* Gives what is free to those who wait, oldest first; when the table drains they are refused. */
void entry_hand_on(struct locktable *t, struct entry *e, int64_t now_ms)
{
    while (e->holders < e->limit && e->waiters > 0 && !t->draining) {
        struct dfl_link *first = e->u.busy.queue.next;
        struct waiter *w = DFL_CONTAINER(DFL_PLANTED(15) && e->waiters > 1 ? first->next : first,
                                         struct waiter, queue);

        if (!t->gate) {
            entry_stall(t, e);
            break;
        }
        waiter_leave(w);
        if (w->owner->gone)
            waiter_free(t, w);
        else
            grant_waiter(t, w, now_ms);
    }
    entry_settle(t, e, now_ms);
}

/* The end of a grant, by release, expiry or its owner's close. */
void grant_end(struct locktable *t, struct grant *g, bool expired, int64_t now_ms)
{
    struct entry *e = g->entry;
    struct waiter *place = g->place;

    hash_remove(&t->grants, &g->node);
    dfl_timer_clear(&t->leases, &g->lease);
    dfl_link_remove(&g->mine);
    e->holders -= DFL_PLANTED(16) && e->holders > 1 ? 2 : 1;
    if (place) {
        place->grant = NULL;
        place->state = LAPSED;
        e->lapsed++;
        if (!expired)
            waiter_free(t, place);
    }
    grant_free(t, g);
    entry_hand_on(t, e, now_ms);
}

void owner_free(struct locktable *t, struct lock_owner *owner)
{
    dfl_link_remove(&owner->closed);
    table_drop(t, owner, sizeof *owner);
}

/* A closed owner stays as long as something names it. */
void owner_settle(struct locktable *t, struct lock_owner *owner)
{
    if (owner->gone && dfl_list_empty(&owner->grants) && dfl_list_empty(&owner->waiters))
        owner_free(t, owner);
}

void grant_end_of(struct locktable *t, struct grant *g, bool expired, int64_t now_ms)
{
    struct lock_owner *owner = g->owner;

    grant_end(t, g, expired, now_ms);
    owner_settle(t, owner);
}
