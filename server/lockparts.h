/*
 * lockparts.h - what a lock table is made of, private to locktable.c and lockparts.c: entries
 * (keys), grants and waiters, tied together by lists.
 *
 * Three hashes find an entry by its key, a grant by its fence, and a place in a queue by owner and
 * key; two heaps know which lease and which waiting time ends next. An entry is idle exactly while
 * it has no grant, no waiter and no lapsed place.
 */
#ifndef DFL_SERVER_LOCKPARTS_H
#define DFL_SERVER_LOCKPARTS_H

#include "../core/list.h"
#include "../core/timers.h"
#include "../core/planted.h"
#include "hash.h"
#include "locktable.h"

#define STEP 1000 /* things of one kind that one tick handles */

struct entry {
    struct hash_node node;
    int64_t limit;
    uint32_t holders;
    uint32_t waiters; /* in the queue */
    uint32_t lapsed;  /* places whose grant came up and expired before anybody asked */
    uint16_t key_len;
    bool idle;
    bool stalled; /* has waiters that the opening of the gate will serve */
    union {
        struct {
            struct dfl_link queue; /* waiters, oldest first */
            union {
                struct grant *lone;         /* limit 1 and held: the grant */
                struct entry *next_stalled; /* stalled, so limit 1 is not held */
            } x;
        } busy;
        struct {
            struct dfl_link link; /* of the table's list, longest idle first */
            int64_t since_ms;
        } rest;
    } u;
    char key[];
};

struct grant {
    struct hash_node node; /* hashed by the fence itself */
    uint64_t random;
    struct dfl_timer lease;
    struct entry *entry;
    struct lock_owner *owner;
    struct dfl_link mine; /* of the owner's grants */
    struct waiter *place; /* that came up with it and has not been asked about; NULL = none */
};

enum place_state {
    ASKING,  /* a blocking request: no place that could be asked about */
    QUEUED,  /* enqueued, nobody asks */
    AWAITED, /* enqueued, and a wait is outstanding */
    CAME_UP, /* granted, nobody has asked yet */
    LAPSED,  /* granted and expired, nobody has asked yet */
    ANSWERED /* on its way out as an effect */
};

struct waiter {
    struct hash_node node; /* places only */
    struct dfl_link queue; /* of the entry's queue, or of the table's effects */
    struct dfl_link mine;  /* of the owner's waiters */
    struct dfl_timer until;
    struct lock_owner *owner;
    struct entry *entry;
    struct grant *grant; /* room for one, until it is a grant */
    int64_t lease_s;
    enum place_state state;
    bool place;
    enum dfl_status answer;
    struct lock_given given;
};

struct lock_owner {
    uint64_t id;
    void *user;
    struct dfl_link grants, waiters;
    struct dfl_link closed; /* of the table's owners, or of its closed ones */
    bool gone;
};

struct locktable {
    struct locktable_config config;
    struct hash entries, grants, places;
    struct dfl_timers leases, waits;
    size_t grant_room, wait_room; /* timers that exist or may come, for the heaps */
    struct dfl_link idle, effects, owners, closing;
    struct entry *stalled, *last_stalled;
    int64_t next_gc_ms;
    size_t bytes; /* of entries, grants, waiters, owners */
    bool gate, draining;
    size_t drained; /* buckets of the entries that draining has done with */
};

/* The end of seconds that begin now: never early, though now_ms is cut to whole milliseconds. */
static inline int64_t end_ms(int64_t now_ms, int64_t seconds)
{
    return now_ms + seconds * 1000 + 1;
}

/* Memory, counted. NULL is allowed in table_drop. */
void *table_take(struct locktable *t, size_t n);
void table_drop(struct locktable *t, void *p, size_t n);

struct entry *entry_find(struct locktable *t, const char *key, size_t len, uint64_t hash);
struct entry *entry_new(struct locktable *t, const struct lock_request *rq, uint64_t hash,
                        int64_t now_ms);
void entry_wake(struct entry *e); /* before something joins it */
void entry_settle(struct locktable *t, struct entry *e,
                  int64_t now_ms);                      /* after something has left it */
void entry_stall(struct locktable *t, struct entry *e); /* to be served when the gate opens */
void entry_hand_on(struct locktable *t, struct entry *e,
                   int64_t now_ms); /* gives what is free to those who wait */
void table_collect_idle(struct locktable *t, int64_t now_ms);

/* A waiter comes with room for its grant, and timers that can be set without fail. */
struct waiter *waiter_new(struct locktable *t);
void waiter_leave(struct waiter *w); /* its entry's queue */
void waiter_free(struct locktable *t,
                 struct waiter *w); /* it is in no queue any more; a grant that came up stays */
void waiter_answer(struct locktable *t, struct waiter *w,
                   enum dfl_status status); /* as an effect */
/* The same; who does not ask finds no place when he does. */
void waiter_refuse(struct locktable *t, struct waiter *w, enum dfl_status status);
uint64_t place_hash(const struct entry *e, const struct lock_owner *owner);
struct waiter *place_find(struct locktable *t, const struct entry *e,
                          const struct lock_owner *owner);

struct grant *grant_new(struct locktable *t); /* room for one */
void grant_free(struct locktable *t, struct grant *g);
struct grant *grant_find(struct locktable *t, const char *key, size_t key_len,
                         const struct lock_token *token);
/* Makes room `g` a grant. False: there is no token to be had, and g is the caller's still. */
bool grant_install(struct locktable *t, struct entry *e, struct grant *g, struct lock_owner *owner,
                   int64_t lease_s, int64_t now_ms, struct lock_given *given);
void grant_end(struct locktable *t, struct grant *g, bool expired, int64_t now_ms);
void grant_end_of(struct locktable *t, struct grant *g, bool expired,
                  int64_t now_ms); /* and its owner, if that was the last */

void owner_settle(struct locktable *t,
                  struct lock_owner *owner); /* a closed one stays while something names it */
void owner_free(struct locktable *t, struct lock_owner *owner);

#endif
