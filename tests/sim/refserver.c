/*
 * refserver.c - the other servers, in few lines and small arrays: v1.10, v2 and 0.5.0 as docs/protocol.md describes
 * them. Shares no code with the bundled server, so that a wrong idea of one of them shows in the other.
 */
#include "sim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KEYS_MAX 64
#define HOLDERS_MAX 64

struct ref_hold {
    char token[33];
    struct ref_peer *peer;
    int64_t expires_ms;
};

struct ref_waiter {
    struct ref_peer *peer;
    bool asking; /* its `l` or `w` blocks */
    int64_t until_ms, lease_s;
};

struct ref_key {
    char name[260];
    int64_t limit, idle_since_ms;
    int holders, waiters;
    struct ref_hold hold[HOLDERS_MAX];
    struct ref_waiter queue[HOLDERS_MAX];
};

struct ref_place { /* came up, and not asked for yet */
    struct ref_key *key;
    char token[33];
    int64_t lease_s;
};

struct ref_peer {
    struct ref *of;
    struct conn *conn;
    struct ref_place came_up[16];
    int came_up_count;
    char spoilt[260]; /* 0.5.0: key of which it refuses the next `e` */
};

struct ref {
    struct server *server;
    struct ref_key *keys[KEYS_MAX];
    int key_count;
    int64_t swept_ms;
};

struct ref_request {
    char word[8], key[260], arg[80];
    long long number[3];
    int numbers;
    bool sem;
};

static int64_t now_of(const struct ref *r)
{
    return server_now(r->server).ms;
}

static void say(struct ref_peer *p, const char *line)
{
    server_emit(p->conn, line, strlen(line));
}

/* -------------------------------------------------------------------- keys */

static struct ref_key *find_key(struct ref *r, const struct ref_request *q)
{
    char name[260];

    snprintf(name, sizeof name, "%s%.250s", r->server->traits->separate_kinds && q->sem ? "s " : "", q->key);
    for (int i = 0; i < r->key_count; i++) {
        if (strcmp(r->keys[i]->name, name) == 0)
            return r->keys[i];
    }
    if ((size_t)r->key_count >= r->server->max_locks || r->key_count == KEYS_MAX)
        return NULL;
    r->keys[r->key_count] = sim_new(sizeof *r->keys[0]);
    memcpy(r->keys[r->key_count]->name, name, sizeof name);
    return r->keys[r->key_count++];
}

static void drop_hold(struct ref_key *k, int i)
{
    k->hold[i] = k->hold[--k->holders];
}

static void drop_waiter(struct ref_key *k, int i)
{
    k->waiters--;
    memmove(&k->queue[i], &k->queue[i + 1], (size_t)(k->waiters - i) * sizeof k->queue[0]);
}

static int hold_with(const struct ref_key *k, const char *token)
{
    for (int i = 0; i < k->holders; i++) {
        if (strcmp(k->hold[i].token, token) == 0)
            return i;
    }
    return -1;
}

static int waiter_of(const struct ref_key *k, const struct ref_peer *p)
{
    for (int i = 0; i < k->waiters; i++) {
        if (k->queue[i].peer == p)
            return i;
    }
    return -1;
}

static const char *give(struct ref *r, struct ref_key *k, struct ref_peer *p, int64_t lease_s)
{
    struct ref_hold *h = &k->hold[k->holders++];
    uint64_t high = r->server->traits->fences ? server_fence(r->server) : rnd();

    snprintf(h->token, sizeof h->token, "%016llx%016llx", (unsigned long long)high, (unsigned long long)rnd());
    h->peer = p;
    h->expires_ms = now_of(r) + lease_s * 1000;
    return h->token;
}

static void say_granted(struct ref_peer *p, const char *word, const char *token, int64_t lease_s)
{
    char line[100];

    snprintf(line, sizeof line, "%s %s %lld", word, token, (long long)lease_s);
    say(p, line);
}

static void grant_next(struct ref *r, struct ref_key *k)
{
    while (k->waiters > 0 && k->holders < k->limit) {
        struct ref_waiter w = k->queue[0];
        const char *token = give(r, k, w.peer, w.lease_s);

        drop_waiter(k, 0);
        if (w.asking) {
            server_block(w.peer->conn, false);
            say_granted(w.peer, "ok", token, w.lease_s);
        } else if (w.peer->came_up_count < 16) {
            struct ref_place *place = &w.peer->came_up[w.peer->came_up_count++];

            place->key = k;
            place->lease_s = w.lease_s;
            memcpy(place->token, token, sizeof place->token);
        }
    }
    if (k->holders == 0 && k->waiters == 0)
        k->idle_since_ms = now_of(r);
}

/* ---------------------------------------------------------------- requests */

static void refuse(struct ref_peer *p)
{
    say(p, "error");
}

static void do_release(struct ref_peer *p, struct ref_request *q)
{
    struct ref_key *k = find_key(p->of, q);
    int i = k ? hold_with(k, q->arg) : -1;

    if (i < 0) {
        refuse(p);
        return;
    }
    say(p, "ok");
    drop_hold(k, i);
    if (p->of->server->personality == V0_5)
        snprintf(p->spoilt, sizeof p->spoilt, "%.250s", q->key);
    grant_next(p->of, k);
}

static void do_renew(struct ref_peer *p, struct ref_request *q)
{
    struct ref_key *k = find_key(p->of, q);
    char token[80] = "", line[40];
    long long lease = p->of->server->default_lease_s;
    int i;

    sscanf(q->arg, "%79s %lld", token, &lease);
    i = k ? hold_with(k, token) : -1;
    if (i < 0 || k->hold[i].expires_ms <= now_of(p->of)) {
        refuse(p);
        return;
    }
    lease = server_lease(p->of->server, lease);
    k->hold[i].expires_ms = now_of(p->of) + lease * 1000;
    snprintf(line, sizeof line, "ok %lld", rnd_chance(500) ? lease : lease - 1);
    say(p, line);
}

static bool may_ask(struct ref_peer *p, struct ref_key *k, int64_t limit)
{
    if (k == NULL) {
        say(p, "error_max_locks");
        return false;
    }
    if (k->limit == 0)
        k->limit = limit;
    if (k->limit != limit) {
        say(p, "error_limit_mismatch");
        return false;
    }
    return true;
}

static bool full(const struct ref *r, const struct ref_key *k)
{
    size_t max = r->server->max_waiters;

    return (max && (size_t)k->waiters >= max) || k->waiters == HOLDERS_MAX - 1;
}

static void stand(struct ref_key *k, struct ref_peer *p, bool asking, int64_t until_ms, int64_t lease_s)
{
    k->queue[k->waiters++] = (struct ref_waiter){p, asking, until_ms, lease_s};
}

static int64_t in_seconds(const struct ref *r, long long seconds)
{
    return seconds > 100000000 ? INT64_MAX / 2 : now_of(r) + seconds * 1000;
}

/* The number at that place, or without one the default. */
static int64_t lease_of(const struct ref *r, const struct ref_request *q, int at)
{
    return server_lease(r->server, q->numbers > at ? q->number[at] : r->server->default_lease_s);
}

static void do_lock(struct ref_peer *p, struct ref_request *q)
{
    struct ref *r = p->of;
    struct ref_key *k;
    int at = q->sem ? 2 : 1;
    int64_t limit = q->sem ? q->number[1] : 1, lease = lease_of(r, q, at);

    if (r->server->draining && r->server->personality == V1_10 && rnd_chance(500)) {
        refuse(p);
        return;
    }
    k = find_key(r, q);
    if (!may_ask(p, k, limit))
        return;
    if (k->holders < k->limit && k->waiters == 0) {
        say_granted(p, "ok", give(r, k, p, lease), lease);
    } else if (q->number[0] == 0) {
        say(p, full(r, k) && r->server->max_waiters ? "error_max_waiters" : "timeout");
    } else if (full(r, k)) {
        say(p, "error_max_waiters");
    } else {
        stand(k, p, true, in_seconds(r, q->number[0]), lease);
        server_block(p->conn, true);
    }
}

static void do_enqueue(struct ref_peer *p, struct ref_request *q)
{
    struct ref *r = p->of;
    struct ref_key *k;
    int at = q->sem ? 1 : 0;
    int64_t limit = q->sem ? q->number[0] : 1, lease = lease_of(r, q, at);
    bool old = r->server->personality == V0_5, already = false;

    if ((r->server->draining && r->server->personality == V1_10 && rnd_chance(500)) ||
        (old && strcmp(p->spoilt, q->key) == 0)) {
        refuse(p);
        return;
    }
    k = find_key(r, q);
    if (!may_ask(p, k, limit))
        return;
    for (int i = 0; i < p->came_up_count; i++)
        already = already || p->came_up[i].key == k;
    if (already || waiter_of(k, p) >= 0) {
        say(p, old ? "error" : "error_already_enqueued");
    } else if (k->holders < k->limit && k->waiters == 0) {
        say_granted(p, "acquired", give(r, k, p, lease), lease);
    } else if (full(r, k)) {
        say(p, "error_max_waiters");
    } else {
        stand(k, p, false, INT64_MAX, lease);
        say(p, "queued");
    }
}

static void take_place(struct ref_peer *p, int i)
{
    struct ref_place place = p->came_up[i];
    int h = hold_with(place.key, place.token);

    p->came_up[i] = p->came_up[--p->came_up_count];
    if (h >= 0 && place.key->hold[h].expires_ms > now_of(p->of)) {
        place.key->hold[h].expires_ms = now_of(p->of) + place.lease_s * 1000;
        say_granted(p, "ok", place.token, place.lease_s);
    } else if (p->of->server->traits->stale_wait) {
        p->conn->stale = true;
        say_granted(p, "ok", place.token, place.lease_s);
    } else {
        say(p, "error_lease_expired");
    }
}

static void do_wait(struct ref_peer *p, struct ref_request *q)
{
    struct ref *r = p->of;
    struct ref_key *k = find_key(r, q);
    int w = k ? waiter_of(k, p) : -1;

    for (int i = 0; i < p->came_up_count; i++) {
        if (p->came_up[i].key == k) {
            take_place(p, i);
            return;
        }
    }
    if (w < 0) {
        say(p, r->server->personality == V0_5 ? "error" : "error_not_enqueued");
        return;
    }
    if (q->number[0] == 0) {
        drop_waiter(k, w);
        say(p, "timeout");
        return;
    }
    k->queue[w].asking = true;
    k->queue[w].until_ms = in_seconds(r, q->number[0]);
    server_block(p->conn, true);
}

static void do_ping(struct ref_peer *p, struct ref_request *q)
{
    (void)q;
    if (p->of->server->traits->ping)
        say(p, "ok");
    else
        refuse(p);
}

static void do_stats(struct ref_peer *p, struct ref_request *q)
{
    (void)q;
    say(p, "ok {\"connections\":1,\"locks\":[],\"semaphores\":[]}");
}

static const struct {
    const char *word;
    void (*run)(struct ref_peer *p, struct ref_request *q);
    bool sem, old;
} commands[] = {
    {"l", do_lock, false, true},      {"r", do_release, false, true}, {"n", do_renew, false, true},
    {"e", do_enqueue, false, true},   {"w", do_wait, false, true},    {"sl", do_lock, true, false},
    {"sr", do_release, true, false},  {"sn", do_renew, true, false},  {"se", do_enqueue, true, false},
    {"sw", do_wait, true, false},     {"ping", do_ping, false, false}, {"stats", do_stats, false, false},
};

static void read_request(struct ref_request *q, const char *const line[3], const size_t len[3])
{
    memset(q, 0, sizeof *q);
    snprintf(q->word, sizeof q->word, "%.*s", (int)len[0], line[0]);
    snprintf(q->key, sizeof q->key, "%.*s", (int)len[1], line[1]);
    snprintf(q->arg, sizeof q->arg, "%.*s", (int)len[2], line[2]);
    q->numbers = sscanf(q->arg, "%lld %lld %lld", &q->number[0], &q->number[1], &q->number[2]);
    if (q->numbers < 0)
        q->numbers = 0;
}

static void request(void *peer, const char *const line[3], const size_t len[3])
{
    struct ref_peer *p = peer;
    const struct traits *t = p->of->server->traits;
    struct ref_request q;

    read_request(&q, line, len);
    if (p->of->server->draining && t->drain_closes) {
        say(p, "error_draining");
        server_hang_up(p->conn);
        return;
    }
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        if (strcmp(commands[i].word, q.word) == 0 && (commands[i].old || !t->closes_on_unknown)) {
            q.sem = commands[i].sem;
            commands[i].run(p, &q);
            return;
        }
    }
    refuse(p);
    if (!t->closes_on_unknown)
        return;
    check_harm(p->conn, q.word);
    server_hang_up(p->conn);
}

/* ------------------------------------------------------------------- time */

static void sweep_key(struct ref *r, struct ref_key *k)
{
    int64_t now = now_of(r);

    for (int i = k->holders - 1; i >= 0; i--) {
        if (k->hold[i].expires_ms <= now)
            drop_hold(k, i);
    }
    grant_next(r, k);
}

static void end_waits(struct ref *r, struct ref_key *k)
{
    int64_t now = now_of(r);

    for (int i = k->waiters - 1; i >= 0; i--) {
        if (k->queue[i].asking && k->queue[i].until_ms <= now) {
            struct ref_peer *p = k->queue[i].peer;

            drop_waiter(k, i);
            server_block(p->conn, false);
            say(p, "timeout");
        }
    }
}

static void collect_idle(struct ref *r)
{
    for (int i = r->key_count - 1; i >= 0; i--) {
        struct ref_key *k = r->keys[i];

        if (k->holders == 0 && k->waiters == 0 && now_of(r) - k->idle_since_ms > 60000)
            r->keys[i] = r->keys[--r->key_count];
    }
}

static void tick(void *impl)
{
    struct ref *r = impl;
    int64_t now = now_of(r);

    for (int i = 0; i < r->key_count; i++)
        end_waits(r, r->keys[i]);
    if (now - r->swept_ms < r->server->sweep_ms)
        return;
    r->swept_ms = now;
    for (int i = 0; i < r->key_count; i++)
        sweep_key(r, r->keys[i]);
    collect_idle(r);
}

static int64_t next_ms(void *impl)
{
    struct ref *r = impl;
    int64_t next = INT64_MAX;

    for (int i = 0; i < r->key_count; i++) {
        struct ref_key *k = r->keys[i];

        if (k->holders > 0 && r->swept_ms + r->server->sweep_ms < next)
            next = r->swept_ms + r->server->sweep_ms;
        for (int w = 0; w < k->waiters; w++) {
            if (k->queue[w].asking && k->queue[w].until_ms < next)
                next = k->queue[w].until_ms;
        }
    }
    return next;
}

/* ------------------------------------------------------- coming and going */

static void *start(struct server *s)
{
    struct ref *r = sim_new(sizeof *r);

    r->server = s;
    r->swept_ms = server_now(s).ms;
    return r;
}

static void stop(void *impl)
{
    (void)impl;
}

static void *open_peer(void *impl, struct conn *c)
{
    struct ref_peer *p = sim_new(sizeof *p);

    p->of = impl;
    p->conn = c;
    return p;
}

static void gone(void *peer)
{
    struct ref_peer *p = peer;
    struct ref *r = p->of;

    if (r->server->ended)
        return;
    for (int i = 0; i < r->key_count; i++) {
        struct ref_key *k = r->keys[i];
        int w;

        while ((w = waiter_of(k, p)) >= 0)
            drop_waiter(k, w);
        for (int h = k->holders - 1; h >= 0 && r->server->auto_release; h--) {
            if (k->hold[h].peer == p)
                drop_hold(k, h);
        }
        grant_next(r, k);
    }
}

/* v1.10 goes on with what it has; v2 sends its waiters away. */
static void drain(void *impl)
{
    struct ref *r = impl;

    if (!r->server->traits->drain_closes)
        return;
    for (int i = 0; i < r->key_count; i++) {
        struct ref_key *k = r->keys[i];

        for (int w = k->waiters - 1; w >= 0; w--) {
            struct ref_peer *p = k->queue[w].peer;
            bool asking = k->queue[w].asking;

            drop_waiter(k, w);
            if (asking) {
                server_block(p->conn, false);
                say(p, "error");
                server_hang_up(p->conn);
            }
        }
    }
}

const struct server_ops reference_ops = {start, stop, open_peer, request, gone, tick, next_ms, drain};
