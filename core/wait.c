/*
 * wait.c - readiness for hosts without a loop of their own: which descriptors are watched, for
 * what, and whose they are; epoll on Linux, poll everywhere. Also the hosts' clock.
 *
 * Owns its table and its own descriptors, never a watched one. A report is matched against the
 * table when it is dispatched: each time a descriptor is watched anew it gets a new number, so a
 * report of one that was forgotten meanwhile, or closed and opened again as something else, reaches
 * nobody.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "dflockd.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/epoll.h>
#endif

/* One descriptor; the table is indexed by its number. */
struct entry {
    void *tag;
    unsigned events; /* 0 = not watched */
    uint32_t serial; /* which watching this is */
};

/* What a kind of waiting does differently. */
struct kind {
    enum dfl_status (*open)(struct dfl_wait *w);
    enum dfl_status (*change)(struct dfl_wait *w, int fd, const struct entry *old,
                              const struct entry *now);
    enum dfl_status (*prepare)(struct dfl_wait *w, struct dfl_wait_round *round);
    int (*block)(struct dfl_wait_round *round, int timeout_ms, int extra_fd);
    void (*dispatch)(struct dfl_wait *w, struct dfl_wait_round *round,
                     void (*ready)(void *arg, void *tag, unsigned events), void *arg);
    void (*end)(struct dfl_wait_round *round);
};

struct dfl_wait {
    const struct kind *kind;
    struct entry *table;
    size_t cap;
    size_t watched; /* entries in use */
    uint32_t serial;
    int fds[2];       /* epoll: the set, and -1. poll: the pipe that ends a wait */
    unsigned waiting; /* poll: rounds between prepare and dispatch */
    bool woken;       /* poll: there is a byte in the pipe */
};

struct round_state {
    const struct kind *kind;
};

/* ----------------------------------------------------------------- shared */

/* A wait that failed in a way that would fail again at once must not become a busy loop. */
static int nothing_ready(int timeout_ms)
{
    if (errno != EINTR && timeout_ms != 0)
        poll(NULL, 0, 10);
    return 0;
}

static void deliver(struct dfl_wait *w, int fd, uint32_t serial, unsigned events,
                    void (*ready)(void *arg, void *tag, unsigned events), void *arg)
{
    if ((size_t)fd >= w->cap || w->table[fd].serial != serial)
        return;
    events &= w->table[fd].events;
    if (events)
        ready(arg, w->table[fd].tag, events);
}

/* ------------------------------------------------------------------- epoll */

#ifdef __linux__

#define EPOLL_BATCH 64 /* level-triggered: what does not fit is reported next time */

struct epoll_round {
    struct round_state base;
    int set;
    int count;
    struct epoll_event events[EPOLL_BATCH];
};

static enum dfl_status epoll_open(struct dfl_wait *w)
{
    w->fds[0] = epoll_create1(EPOLL_CLOEXEC);
    return w->fds[0] >= 0 ? DFL_OK : errno == ENOMEM ? DFL_NOMEM : DFL_TOO_MANY;
}

/* The table decides, not what the kernel remembers of a descriptor that was closed unforgotten. */
static int epoll_apply(int set, int op, int fd, struct epoll_event *event)
{
    int rc = epoll_ctl(set, op, fd, event);

    if (rc < 0 && op == EPOLL_CTL_MOD && errno == ENOENT)
        rc = epoll_ctl(set, EPOLL_CTL_ADD, fd, event);
    else if (rc < 0 && op == EPOLL_CTL_ADD && errno == EEXIST)
        rc = epoll_ctl(set, EPOLL_CTL_MOD, fd, event);
    else if (rc < 0 && op == EPOLL_CTL_DEL && (errno == ENOENT || errno == EBADF))
        rc = 0;
    return rc;
}

static enum dfl_status epoll_change(struct dfl_wait *w, int fd, const struct entry *old,
                                    const struct entry *now)
{
    struct epoll_event event = {0};
    int op = !now->events ? EPOLL_CTL_DEL : old->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;

    event.events =
        (now->events & DFL_READABLE ? EPOLLIN : 0u) | (now->events & DFL_WRITABLE ? EPOLLOUT : 0u);
    event.data.u64 = (uint64_t)now->serial << 32 | (uint32_t)fd;
    if (epoll_apply(w->fds[0], op, fd, &event) == 0)
        return DFL_OK;
    return errno == ENOMEM ? DFL_NOMEM : errno == ENOSPC ? DFL_TOO_MANY : DFL_INTERNAL;
}

static enum dfl_status epoll_prepare(struct dfl_wait *w, struct dfl_wait_round *round)
{
    struct epoll_round *r = round->state;

    if (!r) {
        r = malloc(sizeof *r);
        if (!r)
            return DFL_NOMEM;
        r->base.kind = w->kind;
        round->state = r;
    }
    r->set = w->fds[0];
    r->count = 0;
    return DFL_OK;
}

static int epoll_collect(struct epoll_round *r, int timeout_ms)
{
    int n = epoll_wait(r->set, r->events, EPOLL_BATCH, timeout_ms);

    r->count = n > 0 ? n : 0;
    return n >= 0 ? n : nothing_ready(timeout_ms);
}

static int epoll_block(struct dfl_wait_round *round, int timeout_ms, int extra_fd)
{
    struct epoll_round *r = round->state;
    struct pollfd both[2] = {{r->set, POLLIN, 0}, {extra_fd, POLLIN, 0}};

    if (extra_fd < 0)
        return epoll_collect(r, timeout_ms);
    if (poll(both, 2, timeout_ms) < 0)
        return nothing_ready(timeout_ms);
    return (both[0].revents ? epoll_collect(r, 0) : 0) + (both[1].revents ? 1 : 0);
}

static void epoll_dispatch(struct dfl_wait *w, struct dfl_wait_round *round,
                           void (*ready)(void *arg, void *tag, unsigned events), void *arg)
{
    struct epoll_round *r = round->state;

    for (int i = 0; i < r->count; i++) {
        uint32_t seen = r->events[i].events;
        uint64_t data = r->events[i].data.u64;
        unsigned events = (seen & (EPOLLIN | EPOLLHUP | EPOLLERR) ? DFL_READABLE : 0) |
                          (seen & (EPOLLOUT | EPOLLHUP | EPOLLERR) ? DFL_WRITABLE : 0);

        deliver(w, (int)(uint32_t)data, (uint32_t)(data >> 32), events, ready, arg);
    }
    r->count = 0;
}

static void epoll_end(struct dfl_wait_round *round)
{
    free(round->state);
}

static const struct kind kind_epoll = {epoll_open,  epoll_change,   epoll_prepare,
                                       epoll_block, epoll_dispatch, epoll_end};

#endif

/* -------------------------------------------------------------------- poll */

/*
 * A round is a copy of the table. When there is more to watch while somebody blocks on such a copy,
 * a byte in the pipe ends that wait; it stays there until nobody waits any more, because several
 * may have to see it.
 */
struct poll_round {
    struct round_state base;
    struct dfl_wait *wait; /* NULL unless between prepare and dispatch */
    size_t cap, count;
    struct pollfd *fds; /* [0] the pipe, then the watched ones, then room for the extra one */
    uint32_t *serials;  /* of fds[i] */
};

static enum dfl_status poll_open(struct dfl_wait *w)
{
    if (pipe(w->fds) < 0) {
        w->fds[0] = w->fds[1] = -1;
        return DFL_TOO_MANY;
    }
    for (int i = 0; i < 2; i++) {
        fcntl(w->fds[i], F_SETFD, FD_CLOEXEC);
        fcntl(w->fds[i], F_SETFL, O_NONBLOCK);
    }
    return DFL_OK;
}

static enum dfl_status poll_change(struct dfl_wait *w, int fd, const struct entry *old,
                                   const struct entry *now)
{
    bool more = now->events && (now->serial != old->serial || (now->events & ~old->events));

    (void)fd;
    if (more && w->waiting > 0 && !w->woken)
        w->woken = write(w->fds[1], "", 1) == 1;
    return DFL_OK;
}

static enum dfl_status poll_grow(struct poll_round *r, size_t need)
{
    size_t cap = r->cap ? r->cap : 16;

    if (need <= r->cap)
        return DFL_OK;
    while (cap < need)
        cap *= 2;

    struct pollfd *fds = realloc(r->fds, cap * sizeof *fds);

    if (!fds)
        return DFL_NOMEM;
    r->fds = fds;

    uint32_t *serials = realloc(r->serials, cap * sizeof *serials);

    if (!serials)
        return DFL_NOMEM;
    r->serials = serials;
    r->cap = cap;
    return DFL_OK;
}

static void poll_snapshot(struct poll_round *r, const struct dfl_wait *w)
{
    /* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): the caller has made room for one */
    r->fds[0] = (struct pollfd){w->fds[0], POLLIN, 0};
    r->count = 1;
    for (size_t fd = 0; fd < w->cap && r->count <= w->watched; fd++) {
        const struct entry *e = &w->table[fd];

        if (!e->events)
            continue;
        r->fds[r->count] = (struct pollfd){(int)fd, 0, 0};
        r->fds[r->count].events = (short)((e->events & DFL_READABLE ? POLLIN : 0) |
                                          (e->events & DFL_WRITABLE ? POLLOUT : 0));
        r->serials[r->count++] = e->serial;
    }
}

/* The round waits no more; the last one to leave empties the pipe. */
static void poll_leave(struct poll_round *r)
{
    struct dfl_wait *w = r->wait;
    char byte;

    r->wait = NULL;
    if (!w || --w->waiting > 0 || !w->woken)
        return;
    w->woken = read(w->fds[0], &byte, 1) != 1;
}

static enum dfl_status poll_prepare(struct dfl_wait *w, struct dfl_wait_round *round)
{
    struct poll_round *r = round->state;

    if (!r) {
        r = calloc(1, sizeof *r);
        if (!r)
            return DFL_NOMEM;
        r->base.kind = w->kind;
        round->state = r;
    }
    poll_leave(r);
    if (poll_grow(r, w->watched + 2) != DFL_OK)
        return DFL_NOMEM;
    poll_snapshot(r, w);
    r->wait = w;
    w->waiting++;
    return DFL_OK;
}

static int poll_block(struct dfl_wait_round *round, int timeout_ms, int extra_fd)
{
    struct poll_round *r = round->state;
    size_t n = r->count;

    if (extra_fd >= 0)
        r->fds[n++] = (struct pollfd){extra_fd, POLLIN, 0};

    int ready = poll(r->fds, (nfds_t)n, timeout_ms);

    if (ready >= 0)
        return ready - (r->fds[0].revents ? 1 : 0);
    for (size_t i = 0; i < n; i++)
        r->fds[i].revents = 0;
    return nothing_ready(timeout_ms);
}

static void poll_dispatch(struct dfl_wait *w, struct dfl_wait_round *round,
                          void (*ready)(void *arg, void *tag, unsigned events), void *arg)
{
    struct poll_round *r = round->state;

    poll_leave(r);
    for (size_t i = 1; i < r->count; i++) {
        int seen = r->fds[i].revents;
        int broken = POLLHUP | POLLERR | POLLNVAL;
        unsigned events = (seen & (POLLIN | broken) ? DFL_READABLE : 0) |
                          (seen & (POLLOUT | broken) ? DFL_WRITABLE : 0);

        if (events)
            deliver(w, r->fds[i].fd, r->serials[i], events, ready, arg);
    }
    r->count = 0;
}

static void poll_end(struct dfl_wait_round *round)
{
    struct poll_round *r = round->state;

    poll_leave(r);
    free(r->fds);
    free(r->serials);
    free(r);
}

static const struct kind kind_poll = {poll_open,  poll_change,   poll_prepare,
                                      poll_block, poll_dispatch, poll_end};

/* ------------------------------------------------------------------ public */

#ifdef __linux__
static const struct kind *const kinds[] = {&kind_epoll, &kind_epoll, &kind_poll};
#else
static const struct kind *const kinds[] = {&kind_poll, NULL, &kind_poll};
#endif

enum dfl_status dfl_wait_new(enum dfl_wait_kind kind, struct dfl_wait **w)
{
    if (!kinds[kind])
        return DFL_UNSUPPORTED;

    struct dfl_wait *new = calloc(1, sizeof *new);

    if (!new)
        return DFL_NOMEM;
    new->kind = kinds[kind];
    new->fds[0] = new->fds[1] = -1;

    enum dfl_status status = new->kind->open(new);

    if (status != DFL_OK) {
        dfl_wait_free(new);
        return status;
    }
    *w = new;
    return DFL_OK;
}

void dfl_wait_free(struct dfl_wait *w)
{
    if (!w)
        return;
    dfl_wait_abandon(w);
    free(w->table);
    free(w);
}

void dfl_wait_abandon(struct dfl_wait *w)
{
    for (int i = 0; i < 2; i++) {
        if (w->fds[i] >= 0)
            close(w->fds[i]);
        w->fds[i] = -1; /* or a later free would close somebody else's */
    }
}

static enum dfl_status grow_table(struct dfl_wait *w, size_t need)
{
    size_t cap = w->cap ? w->cap : 64;

    if (need <= w->cap)
        return DFL_OK;
    while (cap < need)
        cap *= 2;

    struct entry *table = realloc(w->table, cap * sizeof *table);

    if (!table)
        return DFL_NOMEM;
    memset(table + w->cap, 0, (cap - w->cap) * sizeof *table);
    w->table = table;
    w->cap = cap;
    return DFL_OK;
}

enum dfl_status dfl_wait_watch(struct dfl_wait *w, int fd, unsigned events, void *tag)
{
    static const struct entry none = {0};

    if (fd < 0)
        return DFL_INTERNAL;
    if (!events && ((size_t)fd >= w->cap || !w->table[fd].events))
        return DFL_OK;

    enum dfl_status status = grow_table(w, (size_t)fd + 1);

    if (status != DFL_OK)
        return status;

    struct entry *e = &w->table[fd];
    struct entry now = events ? (struct entry){tag, events, e->serial} : none;

    if (e->events && e->events == events && e->tag == tag)
        return DFL_OK;
    if (events && (!e->events || e->tag != tag))
        now.serial = ++w->serial;
    status = w->kind->change(w, fd, e, &now);
    if (status != DFL_OK)
        return status;
    if (!e->events)
        w->watched++;
    if (!now.events)
        w->watched--;
    *e = now;
    return DFL_OK;
}

int dfl_wait_descriptor(const struct dfl_wait *w)
{
    return w->kind == &kind_poll ? -1 : w->fds[0];
}

enum dfl_status dfl_wait_prepare(struct dfl_wait *w, struct dfl_wait_round *round)
{
    struct round_state *state = round->state;

    if (state && state->kind != w->kind)
        dfl_wait_round_free(round);
    return w->kind->prepare(w, round);
}

int dfl_wait_block(struct dfl_wait_round *round, int64_t timeout_ms, int extra_fd)
{
    const struct round_state *state = round->state;
    int timeout = timeout_ms < 0 ? -1 : timeout_ms > INT_MAX ? INT_MAX : (int)timeout_ms;

    return state->kind->block(round, timeout, extra_fd);
}

void dfl_wait_dispatch(struct dfl_wait *w, struct dfl_wait_round *round,
                       void (*ready)(void *arg, void *tag, unsigned events), void *arg)
{
    w->kind->dispatch(w, round, ready, arg);
}

void dfl_wait_round_free(struct dfl_wait_round *round)
{
    const struct round_state *state = round->state;

    if (state)
        state->kind->end(round);
    round->state = NULL;
}

/* ------------------------------------------------------------------- clock */

static int64_t microseconds(clockid_t clock)
{
    struct timespec t;

    if (clock_gettime(clock, &t) < 0)
        return -1;
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

struct dfl_now dfl_clock(void)
{
    struct dfl_now now = {.us = -1};

#ifdef CLOCK_BOOTTIME
    now.us = microseconds(CLOCK_BOOTTIME);
#endif
    if (now.us < 0)
        now.us = microseconds(CLOCK_MONOTONIC);
    now.ms = now.us / 1000;
    now.wall_ms = microseconds(CLOCK_REALTIME) / 1000;
    return now;
}
