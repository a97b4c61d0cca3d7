/*
 * fence.c - which tokens carry a fence, and the highest fence that this process has read from each
 * server.
 *
 * The book is shared by all clients of a process, which run in different threads under different
 * locks; it only grows, so atomics suffice. A token is taken for a fence only where everything
 * speaks for it: random digits presented as an order would make a stale writer look newer.
 */
#include "engine.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EARLIEST_NS UINT64_C(1767225600000000000) /* 2026-01-01T00:00:00Z */
#define DAY_MS INT64_C(86400000)

struct dfl_fence_entry {
    struct dfl_fence_entry *next;
    _Atomic uint64_t highest;
    char address[DFL_ADDRESS_MAX];
};

struct dfl_fence_book {
    _Atomic(struct dfl_fence_entry *) first;
};

enum dfl_status dfl_fence_book_new(struct dfl_fence_book **book)
{
    struct dfl_fence_book *b = calloc(1, sizeof *b);

    if (b == NULL)
        return DFL_NOMEM;
    atomic_init(&b->first, NULL);
    *book = b;
    return DFL_OK;
}

void dfl_fence_book_free(struct dfl_fence_book *book)
{
    struct dfl_fence_entry *e, *next;

    if (book == NULL)
        return;
    for (e = atomic_load(&book->first); e; e = next) {
        next = e->next;
        free(e);
    }
    free(book);
}

static struct dfl_fence_entry *find(struct dfl_fence_entry *e, const struct dfl_fence_entry *end,
                                    const char *address)
{
    for (; e != end; e = e->next) {
        if (strcmp(e->address, address) == 0)
            return e;
    }
    return NULL;
}

struct dfl_fence_entry *dfl_fence_entry(struct dfl_fence_book *book, const char *address)
{
    struct dfl_fence_entry *seen = atomic_load(&book->first), *e = find(seen, NULL, address),
                           *fresh;

    if (e)
        return e;
    fresh = calloc(1, sizeof *fresh);
    if (fresh == NULL)
        return NULL;
    snprintf(fresh->address, sizeof fresh->address, "%s", address);
    atomic_init(&fresh->highest, 0);
    fresh->next = seen;
    while (!atomic_compare_exchange_weak(&book->first, &fresh->next, fresh)) {
        e = find(fresh->next, seen, address); /* only what others have added meanwhile */
        if (e) {
            free(fresh);
            return e;
        }
        seen = fresh->next;
    }
    return fresh;
}

uint64_t dfl_fence_highest(const struct dfl_fence_entry *e)
{
    return atomic_load(&e->highest);
}

static void raise_to(struct dfl_fence_entry *e, uint64_t fence)
{
    uint64_t seen = atomic_load(&e->highest);

    while (seen < fence && !atomic_compare_exchange_weak(&e->highest, &seen, fence))
        continue;
}

static bool plausible(const struct dfl_client *c, uint64_t prefix)
{
    return prefix >= EARLIEST_NS && prefix / 1000000 <= (uint64_t)(c->now.wall_ms + DAY_MS);
}

enum dfl_status dfl_fence_read(struct dfl_server *server, const struct dfl_request *r,
                               const char *token, int64_t *fence, struct dfl_error *err)
{
    struct dfl_client *c = server->client;
    /* NOLINTNEXTLINE(clang-analyzer-deadcode.DeadStores): for a planted bug only */
    uint64_t prefix = dfl_token_prefix(token), before = dfl_fence_highest(server->fence);

    *fence = -1;
    if (c->settings.fences == DFL_FENCES_OFF)
        return DFL_OK;
    if (c->settings.fences == DFL_FENCES_ON) {
        if (prefix > INT64_MAX)
            return dfl_fail(
                err, DFL_PROTOCOL,
                "%s broke the protocol: fences are on, but its token has no fence (above 2^63-1)",
                server->address.text);
    } else {
        if (server->ping != DFL_PING_OK || server->fences_off)
            return DFL_OK;
        if (!plausible(c, prefix) || prefix <= r->fence_floor) {
            server->fences_off = true;
            dfl_client_log(c, DFL_LOG_WARNING,
                           "tokens of %s carry no growing fence: fences are off for it",
                           server->address.text);
            return DFL_OK;
        }
    }
    raise_to(server->fence, prefix);
    *fence = (int64_t)(DFL_PLANTED(9) ? before : prefix);
    return DFL_OK;
}
