/*
 * judge.c - judges every line that a server sends, by the rules of model.c. Reads the bytes itself, sharing no code with servers and
 * engine; knows what the personalities may do differently, and keeps of each hold what checks.c asks for: when it was set and ended, who
 * has seen it. A lease is over here the moment it can be over; what sweeps once a second may be later by that much, never earlier.
 */
#include "sim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct judged { /* a request */
    struct model_key *key;
    char verb; /* l r n e w, or 0 */
    char token[40];
    int64_t limit, lease_s, timeout_s;
};

struct judge {
    struct server *server;
    struct model_key *keys;
    bool drained;
};

struct highest { /* fence of a key, whatever process of that address gave it */
    struct highest *next;
    int address;
    char name[260];
    uint64_t fence;
} *highest;

static char why[400];

#define WRONG(...) (snprintf(why, sizeof why, __VA_ARGS__), why)

struct judge *judge_new(struct server *s)
{
    struct judge *j = sim_new(sizeof *j);

    j->server = s;
    if (s->next == NULL)
        highest = NULL; /* the first one of this world */
    return j;
}

static int64_t now_of(const struct judge *j)
{
    return server_now(j->server).ms;
}

/* How much later than the model a server may know that a lease is over. */
static int64_t late_ms(const struct judge *j)
{
    return j->server->personality == BUNDLED ? 5 : j->server->sweep_ms + 10;
}

static bool gate_closed(const struct judge *j)
{
    return j->server->recovering && now_of(j) < j->server->gate_ms;
}

static const char *broken(const struct model_key *k, const char *rule)
{
    return rule ? WRONG("%s was %s", k->name, rule) : NULL;
}

/* -------------------------------------------------------------- what is kept */

/* The highest fence of a key that was ever answered at an address. */
static struct highest *highest_of(const struct judge *j, const struct model_key *k)
{
    struct highest *h = highest;

    while (h && !(h->address == j->server->address && strcmp(h->name, k->name) == 0))
        h = h->next;
    if (h == NULL) {
        h = sim_new(sizeof *h);
        h->address = j->server->address;
        snprintf(h->name, sizeof h->name, "%s", k->name);
        h->next = highest;
        highest = h;
    }
    return h;
}

static void note_set(struct model_hold *h)
{
    h->seen->set_us = sim_now;
    h->seen->ended_us = 0;
    h->seen->away_set_us = check_apart(h);
}

/* Holds that are new, and holds that have ended, since the last look. */
static void note(struct judge *j, struct model_key *k)
{
    for (struct model_hold *h = k->holds; h; h = h->next) {
        if (h->seen == NULL) {
            h->seen = sim_new(sizeof *h->seen);
            h->seen->key = k;
            h->seen->server = j->server;
            h->seen->asked_us = h->conn->asking_us;
            h->seen->waited = h->token[0] == '\0'; /* it came up without a word; its token is seen later than it was made */
            h->seen->fence_floor = highest_of(j, k)->fence;
            note_set(h);
            counters.grants++;
        }
        if (h->ending != LIVES && h->seen->ended_us == 0) {
            h->seen->ended_us = sim_now;
            h->seen->away_end_us = check_apart(h);
        }
    }
}

bool judge_lives(const struct model_hold *h)
{
    return h->ending == LIVES && !h->seen->server->ended && server_now(h->seen->server).ms < h->expires_ms;
}

struct model_hold *judge_find(const char *token)
{
    for (struct server *s = all_servers; s; s = s->next) {
        for (struct model_key *k = s->judge->keys; k; k = k->next) {
            struct model_hold *h = model_hold_of(k, token);

            if (h)
                return h;
        }
    }
    return NULL;
}

bool judge_names(const struct model_key *k, int key)
{
    return strcmp(k->name + (strncmp(k->name, "s ", 2) == 0 ? 2 : 0), key_names[key]) == 0;
}

/* Whose place it is, unless several ask. */
static void note_place(struct conn *c)
{
    const struct model_key *k = c->judged->key;
    struct user *asker = NULL;
    int askers = 0;

    for (int i = 0; i < KEYS; i++)
        c->placed[i] = c->placed[i] || judge_names(k, i);
    for (int i = 0; i < c->client->user_count; i++) {
        struct user *u = &c->client->users[i];

        if (u->doing == ACT_ENQUEUE && u->call && !u->ended && u->began_us <= c->asking_us && judge_names(k, u->key)) {
            asker = u;
            askers++;
            u->place[u->key] = NULL;
        }
    }
    if (askers == 1)
        asker->place[asker->key] = c;
}

/* ---------------------------------------------------------------- requests */

static struct model_key *key_of(struct judge *j, const char *name)
{
    struct model_key *k = j->keys;

    while (k && strcmp(k->name, name) != 0)
        k = k->next;
    if (k)
        return k;
    k = sim_new(sizeof *k);
    snprintf(k->name, sizeof k->name, "%s", name);
    k->next = j->keys;
    return j->keys = k;
}

/* A place whose turn comes while nobody asks is granted without a word on the wire. */
static void come_up(struct judge *j, struct model_key *k)
{
    if (!gate_closed(j))
        model_came_up(k, now_of(j), late_ms(j));
    note(j, k);
}

const char *judge_request(struct judge *j, struct conn *c, const char *const line[3], const size_t len[3])
{
    struct judged *a = c->judged ? c->judged : (c->judged = sim_new(sizeof *a));
    bool sem = len[0] == 2 && line[0][0] == 's';
    char name[260], arg[100];
    long long n[3] = {0, 0, 0};
    int count;

    memset(a, 0, sizeof *a);
    if (len[0] != (sem ? 2u : 1u) || len[1] > 256 || len[2] > 90)
        return NULL;
    a->verb = line[0][len[0] - 1];
    snprintf(name, sizeof name, "%s%.*s", sem && j->server->traits->separate_kinds ? "s " : "", (int)len[1], line[1]);
    snprintf(arg, sizeof arg, "%.*s", (int)len[2], line[2]);
    a->key = key_of(j, name);
    a->lease_s = j->server->default_lease_s;
    if (a->verb == 'r' || a->verb == 'n') {
        count = sscanf(arg, "%39s %lld", a->token, &n[0]);
        a->lease_s = server_lease(j->server, count == 2 ? n[0] : a->lease_s);
        return count < 1 ? WRONG("a request without token") : a->verb == 'n' && count < 2 ? WRONG("a renewal without lease") : NULL;
    }
    count = sscanf(arg, "%lld %lld %lld", &n[0], &n[1], &n[2]);
    a->timeout_s = a->verb == 'e' ? -1 : n[0];
    count -= a->verb != 'e';
    for (int i = 0; i < 2 && a->verb != 'e'; i++)
        n[i] = n[i + 1];
    a->limit = a->verb == 'w' ? 0 : sem ? n[0] : 1;
    if (count > (sem ? 1 : 0))
        a->lease_s = n[sem ? 1 : 0];
    a->lease_s = server_lease(j->server, a->lease_s);
    come_up(j, a->key);
    return NULL;
}

const char *judge_blocks(struct judge *j, struct conn *c)
{
    struct judged *a = c->judged;
    int i = model_place(a->key, c);

    if (a->verb == 'l')
        return broken(a->key, model_queued(a->key, c, true, a->limit, a->lease_s * 1000, now_of(j)));
    if (i >= 0)
        a->key->queue[i].asking = true;
    return NULL;
}

const struct model_hold *judge_unseen_release(struct judge *j, struct conn *c, int64_t asked_us)
{
    const struct judged *a = c->judged;

    for (struct model_hold *h = a->verb == 'l' || a->verb == 'e' ? a->key->holds : NULL; h; h = h->next) {
        if (h->seen->given_back_us && h->seen->given_back_us < asked_us && judge_lives(h) && h->conn != c &&
            h->conn->client == c->client && !h->conn->client_closed && !h->conn->cut_us && j->server == h->seen->server)
            return h;
    }
    return NULL;
}

/* ----------------------------------------------------------------- answers */

static const char *check_fence(struct judge *j, const struct model_hold *h, bool came_up)
{
    struct highest *top = highest_of(j, h->seen->key);
    char digits[17];
    uint64_t fence;

    if (!j->server->traits->fences)
        return NULL;
    snprintf(digits, sizeof digits, "%.16s", h->token);
    fence = strtoull(digits, NULL, 16);
    if (fence <= (came_up ? h->seen->fence_floor : top->fence))
        return WRONG("the fence of %s does not grow", h->seen->key->name);
    if (fence > top->fence)
        top->fence = fence;
    return NULL;
}

/* `ok` to a `w` whose grant has lapsed: v1.10 and 0.5.0 may. */
static const char *stale(struct judge *j, struct conn *c, const char *token)
{
    struct model_key *k = c->judged->key;
    struct model_hold *h = model_lapsed(k, c, now_of(j));

    c->stale = false;
    snprintf(h->token, sizeof h->token, "%s", token);
    note(j, k);
    h->seen->judged = true;
    return NULL;
}

static const char *granted(struct judge *j, struct conn *c, const char *token, int64_t lease_s)
{
    struct judged *a = c->judged;
    struct model_key *k = a->key;
    struct model_hold *h;
    const char *wrong;

    come_up(j, k);
    if (a->verb == 'w' && c->stale)
        return stale(j, c, token);
    if (a->verb == 'w' && model_place(k, c) < 0 && (h = model_unasked(k, c)) != NULL) {
        wrong = broken(k, model_taken_up(k, h, token, now_of(j)));
        note_set(h);
        return wrong ? wrong : check_fence(j, h, true);
    }
    if (a->limit && lease_s != a->lease_s)
        return WRONG("%s was granted for %lld s, not %lld", k->name, (long long)lease_s, (long long)a->lease_s);
    wrong = broken(k, model_granted(k, c, token, a->limit, lease_s * 1000, now_of(j)));
    note(j, k);
    if (wrong)
        return wrong;
    h = k->holds;
    h->seen->waited = a->verb == 'w';
    return check_fence(j, h, false);
}

static bool is(const char *line, size_t len, const char *word)
{
    return len == strlen(word) && memcmp(line, word, len) == 0;
}

/* No. Is it true? */
static const char *refused(struct judge *j, struct conn *c, const char *line, size_t len)
{
    struct judged *a = c->judged;
    struct model_key *k = a->key;
    bool placed = model_place(k, c) >= 0;

    if (is(line, len, "timeout")) {
        if (a->timeout_s < 0)
            return WRONG("`timeout` to %c", a->verb);
        model_left(k, c);
        return placed || a->verb != 'l' || a->timeout_s > 0 || gate_closed(j) ? NULL
                                                                            : broken(k, model_busy(k, now_of(j), late_ms(j)));
    }
    if (a->verb == 'r' || a->verb == 'n')
        return j->drained ? NULL : broken(k, model_unknown(k, a->token, now_of(j)));
    if (is(line, len, "error_lease_expired")) {
        const char *wrong = broken(k, model_too_late(k, c, now_of(j)));

        note(j, k);
        return wrong;
    }
    if (!is(line, len, "error_already_enqueued") && a->verb != 'e')
        model_left(k, c);
    if (is(line, len, "error_limit_mismatch"))
        return broken(k, model_mismatch(k, a->limit));
    if (is(line, len, "error_max_locks"))
        return j->server->max_locks < 1024 ? NULL : WRONG("too few keys for error_max_locks");
    if (is(line, len, "error_max_waiters"))
        return j->server->max_waiters ? NULL : WRONG("too few waiters for error_max_waiters");
    if (j->drained || j->server->personality == V0_5)
        return NULL;
    if (is(line, len, "error_already_enqueued"))
        return placed || model_unasked(k, c) ? NULL : WRONG("%s was not enqueued", k->name);
    if (is(line, len, "error_not_enqueued"))
        return !placed && !model_unasked(k, c) ? NULL : WRONG("%s was enqueued", k->name);
    return WRONG("%.*s to %c %s", (int)len, line, a->verb, k->name);
}

static const char *kept(struct judge *j, struct conn *c, int64_t left_s)
{
    struct judged *a = c->judged;
    struct model_hold *h = model_hold_of(a->key, a->token);
    const char *wrong;

    if (a->verb == 'r') {
        wrong = model_released(a->key, a->token, now_of(j), late_ms(j));
        note(j, a->key);
        if (h)
            h->seen->released_by = c;
        return broken(a->key, wrong);
    }
    if (left_s != a->lease_s && left_s != a->lease_s - 1)
        return WRONG("renewed for %lld s instead of %lld", (long long)left_s, (long long)a->lease_s);
    wrong = model_renewed(a->key, a->token, a->lease_s * 1000, now_of(j));
    if (h)
        note_set(h);
    return broken(a->key, wrong);
}

const char *judge_answer(struct judge *j, struct conn *c, const char *line, size_t len)
{
    struct judged *a = c->judged;
    char copy[120], word[40] = "", token[40] = "";
    long long seconds = 0;
    int count;

    if (a == NULL || a->key == NULL)
        return NULL; /* ping, stats, and what it does not know */
    snprintf(copy, sizeof copy, "%.*s", (int)len, line);
    count = sscanf(copy, "%39s %39s %lld", word, token, &seconds);
    if (strcmp(word, "queued") == 0) {
        note_place(c);
        if (a->verb != 'e')
            return WRONG("`queued` to %c", a->verb);
        return broken(a->key, model_queued(a->key, c, false, a->limit, a->lease_s * 1000, now_of(j)));
    }
    if (count == 3)
        return granted(j, c, token, seconds);
    if (strcmp(word, "ok") == 0)
        return kept(j, c, strtoll(token, NULL, 10));
    return refused(j, c, line, len);
}

/* -------------------------------------------------------------------- time */

void judge_closed(struct judge *j, struct conn *c)
{
    for (struct model_key *k = j->keys; k; k = k->next) {
        model_closed(k, c, j->server->auto_release, now_of(j));
        note(j, k);
    }
}

void judge_drained(struct judge *j)
{
    j->drained = true;
    if (j->server->traits->close_unseen)
        return; /* the old ones go on */
    for (struct model_key *k = j->keys; k; k = k->next)
        k->waiting = 0;
}

void judge_expire(struct judge *j, void (*expired)(struct model_hold *h))
{
    for (struct model_key *k = j->keys; k; k = k->next) {
        model_passed(k, now_of(j));
        note(j, k);
        for (struct model_hold *h = k->holds; h; h = h->next) {
            if (h->ending == EXPIRED && h->token[0] && !h->seen->judged)
                expired(h);
        }
        come_up(j, k);
    }
}

const char *judge_settle(struct judge *j)
{
    for (struct model_key *k = j->keys; k && !j->drained && !gate_closed(j); k = k->next) {
        if (k->waiting > 0 && model_is_free(k, now_of(j), late_ms(j)))
            return WRONG("%s is free, and #%d waits for it", k->name, k->queue[0].conn->id);
    }
    return NULL;
}

const char *judge_empty(struct judge *j)
{
    for (struct model_key *k = j->keys; k; k = k->next) {
        if (k->waiting > 0)
            return WRONG("#%d still waits for %s", k->queue[0].conn->id, k->name);
        if (model_maybe(k, now_of(j), 0) > 0)
            return WRONG("%s is still held", k->name);
    }
    return NULL;
}

bool judge_has_place(struct judge *j, const struct conn *c, int key)
{
    for (struct model_key *k = j->keys; k; k = k->next) {
        if (judge_names(k, key) && (model_place(k, c) >= 0 || model_unasked(k, c)))
            return true;
    }
    return false;
}
