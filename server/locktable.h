/*
 * locktable.h - who holds what and who waits for it: the whole meaning of a lock server, and
 * nothing else.
 *
 * Pure: time comes in as an argument (monotonic milliseconds), tokens come from a function that the
 * caller gives, and what concerns a connection that is not asking at the moment comes out as
 * effects. Knows no socket, no clock, no file and no byte of the protocol. Every operation costs
 * the same whatever the number of keys, or its logarithm; work that could be long (a connection
 * with a million holds closes) is cut into steps of locktable_tick().
 *
 * Locks and semaphores of one key share one entry: a lock is a semaphore of limit 1. Memory that
 * cannot be had is told as the server's cap: DFL_MAX_LOCKS for a key or a grant, DFL_MAX_WAITERS
 * for a place in a queue. A grant to a waiter needs no memory: its room is reserved with the place.
 */
#ifndef DFL_SERVER_LOCKTABLE_H
#define DFL_SERVER_LOCKTABLE_H

#include "../core/dflockd.h"

struct locktable;
struct lock_owner; /* whoever holds and waits: a connection */

struct lock_token {
    uint64_t fence;
    uint64_t random;
};

/* Where tokens come from. Both return false to refuse: the request is then answered DFL_REFUSED,
 * and nothing is granted. */
struct lock_mint {
    void *ctx;
    bool (*grant)(void *ctx, int64_t lease_s,
                  struct lock_token *token);    /* fences grow with each call */
    bool (*extend)(void *ctx, int64_t lease_s); /* a lease of a hold begins again now */
};

struct locktable_config {
    size_t max_locks;       /* keys, idle ones too */
    size_t max_waiters;     /* per key; 0 = no cap */
    int64_t gc_interval_ms; /* how often idle keys are looked for */
    int64_t gc_max_idle_ms; /* an idle key keeps its limit so long */
    bool auto_release;      /* a closed owner's holds are released */
    uint64_t secret[2];     /* of the hash */
    struct lock_mint mint;
};

/* NULL: out of memory. */
struct locktable *locktable_new(const struct locktable_config *config, int64_t now_ms);
void locktable_free(struct locktable *t); /* owners too */

/* NULL: out of memory. `id` is shown by stats; `user` comes back in effects. */
struct lock_owner *locktable_owner(struct locktable *t, uint64_t id, void *user);
/* Gives up all places and, with auto-release, all holds. No effect names this owner any more. */
void locktable_close_owner(struct locktable *t, struct lock_owner *owner, int64_t now_ms);

struct lock_request {
    const char *key;
    size_t key_len;
    int64_t limit; /* 1 for a lock */
    int64_t lease_s;
    int64_t timeout_s; /* 0 = try */
};

struct lock_given {
    struct lock_token token;
    int64_t lease_s;
};

/*
 * DFL_OK and *given. DFL_PENDING: waits, the answer comes as an effect; an owner waits for one
 * thing at a time. DFL_TIMEOUT: busy, and timeout_s is 0. DFL_LIMIT_MISMATCH, DFL_MAX_LOCKS,
 * DFL_MAX_WAITERS, DFL_REFUSED (no token to be had), DFL_DRAINING.
 */
enum dfl_status locktable_acquire(struct locktable *t, struct lock_owner *owner,
                                  const struct lock_request *rq, int64_t now_ms,
                                  struct lock_given *given);
/* The first of two phases: DFL_OK and *given, DFL_PENDING = has a place in the queue,
 * DFL_ALREADY_ENQUEUED, or as above. */
enum dfl_status locktable_enqueue(struct locktable *t, struct lock_owner *owner,
                                  const struct lock_request *rq, int64_t now_ms,
                                  struct lock_given *given);
/*
 * The second phase, by the same owner: DFL_OK (the lease begins now), DFL_PENDING, DFL_TIMEOUT (the
 * place is gone), DFL_NOT_ENQUEUED, DFL_LEASE_EXPIRED (the place came up, and lapsed before this
 * call), DFL_REFUSED, DFL_DRAINING.
 */
enum dfl_status locktable_wait(struct locktable *t, struct lock_owner *owner, const char *key,
                               size_t key_len, int64_t timeout_s, int64_t now_ms,
                               struct lock_given *given);
/* By key and token alone, whoever asks. DFL_OK and the whole seconds left, or DFL_REFUSED. */
enum dfl_status locktable_renew(struct locktable *t, const char *key, size_t key_len,
                                const struct lock_token *token, int64_t lease_s, int64_t now_ms,
                                int64_t *left_s);
enum dfl_status locktable_release(struct locktable *t, const char *key, size_t key_len,
                                  const struct lock_token *token, int64_t now_ms);

/* What is due: leases, waiting times, closed owners, idle keys. A bounded number of each per call.
 */
void locktable_tick(struct locktable *t, int64_t now_ms);
/* When to call tick next: a time in the past when there is more to do at once. */
int64_t locktable_next_ms(const struct locktable *t);

/* The answer to a request that had been DFL_PENDING: DFL_OK, DFL_TIMEOUT, DFL_REFUSED or
 * DFL_DRAINING. */
struct lock_effect {
    void *user; /* of the owner */
    enum dfl_status status;
    struct lock_given given;
};
/* Takes the next effect; false when there is none. Call until then after each operation. */
bool locktable_effect(struct locktable *t, struct lock_effect *effect);

/* Closed: nothing is granted; tries are DFL_TIMEOUT, others queue. Opening grants what can be, in
 * order, in steps of tick. */
void locktable_gate(struct locktable *t, bool open);
/* For good: nobody is granted anything any more, who comes is answered DFL_DRAINING, and so are the
 * waiters, in steps of tick; renew and release go on. */
void locktable_drain(struct locktable *t, int64_t now_ms);
bool locktable_is_drained(const struct locktable *t); /* nobody waits any more */

size_t locktable_keys(const struct locktable *t); /* idle ones too */
size_t locktable_holds(const struct locktable *t);
size_t locktable_bytes(
    const struct locktable *t); /* memory in use, the allocator's overhead estimated */

/* One key as stats shows it. */
struct lock_view {
    const char *key;
    size_t key_len;
    int64_t limit;
    size_t holders, waiters;
    bool idle;
    int64_t idle_ms;
    uint64_t owner_id;     /* of a limit of 1 that is held; else 0 */
    int64_t lease_left_ms; /* likewise */
};
/*
 * Walks all keys a bucket at a time, from *cursor 0; false at the end. A key that stays is seen
 * once, while others come and go, if a walk is inside locktable_freeze / _thaw, which keep the hash
 * from growing. When it must grow all the same the table is not frozen any more: the walk is void.
 */
bool locktable_walk(struct locktable *t, size_t *cursor, int64_t now_ms,
                    void (*see)(void *arg, const struct lock_view *view), void *arg);
unsigned locktable_freeze(struct locktable *t); /* what the other two are called with */
void locktable_thaw(struct locktable *t, unsigned freeze);
bool locktable_is_frozen(const struct locktable *t, unsigned freeze);

#endif
