/*
 * model.c - the rules of a lock service; see model.h.
 */
#include "model.h"

#include "sim.h"

#include <stdio.h>
#include <string.h>

static bool counts(const struct model_hold *h, int64_t now_ms)
{
    return h->ending != RELEASED && h->ending != CLOSED && now_ms < h->expires_ms;
}

int model_surely(const struct model_key *k, int64_t now_ms)
{
    int n = 0;

    for (const struct model_hold *h = k->holds; h; h = h->next)
        n += h->token[0] && counts(h, now_ms); /* when a place came up is not known exactly */
    return n;
}

int model_maybe(const struct model_key *k, int64_t now_ms, int64_t late_ms)
{
    int n = 0;

    for (const struct model_hold *h = k->holds; h; h = h->next)
        n += counts(h, now_ms - late_ms);
    return n;
}

bool model_is_free(const struct model_key *k, int64_t now_ms, int64_t late_ms)
{
    return model_maybe(k, now_ms, late_ms) < k->limit;
}

int model_place(const struct model_key *k, const struct conn *who)
{
    for (int i = 0; i < k->waiting; i++) {
        if (k->queue[i].conn == who)
            return i;
    }
    return -1;
}

struct model_hold *model_hold_of(const struct model_key *k, const char *token)
{
    struct model_hold *h = k->holds;

    while (h && strcmp(h->token, token) != 0)
        h = h->next;
    return token[0] ? h : NULL;
}

struct model_hold *model_unasked(const struct model_key *k, const struct conn *who)
{
    struct model_hold *h = k->holds;

    while (h && !(h->conn == who && h->token[0] == '\0' && (h->ending == LIVES || h->ending == EXPIRED)))
        h = h->next;
    return h;
}

static struct model_hold *add(struct model_key *k, struct conn *who, const char *token, int64_t lease_ms, int64_t now_ms)
{
    struct model_hold *h = sim_new(sizeof *h);

    *h = (struct model_hold){k->holds, who, "", lease_ms, now_ms + lease_ms, LIVES, NULL};
    snprintf(h->token, sizeof h->token, "%s", token);
    return k->holds = h;
}

static void end(struct model_hold *h, enum ending ending, int64_t now_ms)
{
    h->ending = ending;
    if (now_ms < h->expires_ms)
        h->expires_ms = now_ms;
}

static void leave_place(struct model_key *k, int i)
{
    memmove(&k->queue[i], &k->queue[i + 1], (size_t)(--k->waiting - i) * sizeof k->queue[0]);
}

/* The limit of a key is the one it is used with, until it has not been used for a minute. */
static const char *same_limit(struct model_key *k, int64_t limit, int64_t now_ms)
{
    if (k->waiting > 0 || model_surely(k, now_ms) > 0)
        k->used_ms = now_ms;
    if (k->limit == 0 || now_ms - k->used_ms >= FORGOTTEN_MS)
        k->limit = limit;
    k->used_ms = now_ms;
    return k->limit == limit ? NULL : "with another limit";
}

void model_left(struct model_key *k, struct conn *who)
{
    int i = model_place(k, who);

    if (i >= 0)
        leave_place(k, i);
}

struct model_hold *model_lapsed(struct model_key *k, struct conn *who, int64_t now_ms)
{
    struct model_hold *h = model_unasked(k, who);

    if (h == NULL) { /* it came up unseen, too */
        model_left(k, who);
        h = add(k, who, "", 0, now_ms);
    }
    h->ending = LAPSED;
    if (now_ms < h->expires_ms)
        h->expires_ms = now_ms;
    return h;
}

/* Whoever is first and does not ask may have come up since the last answer: beside what is granted now, or to lapse before. */
static bool came_up_unseen(struct model_key *k, int64_t now_ms, int *beside, int64_t *since_ms)
{
    int n = 0;

    if (k->waiting == 0 || k->queue[0].asking)
        return false;
    if (model_surely(k, now_ms) + *beside + 1 < k->limit) {
        add(k, k->queue[0].conn, "", k->queue[0].lease_ms, now_ms);
        leave_place(k, 0);
        ++*beside;
        return true;
    }
    *since_ms -= k->queue[0].lease_ms / k->limit; /* one lease after the other, at each of its slots */
    for (const struct model_hold *h = k->holds; h; h = h->next)
        n += h->token[0] && h->ending != LAPSED && *since_ms < h->expires_ms;
    if (n >= k->limit)
        return false;
    add(k, k->queue[0].conn, "", 0, 0)->ending = EXPIRED;
    leave_place(k, 0);
    return true;
}

const char *model_granted(struct model_key *k, struct conn *who, const char *token, int64_t limit, int64_t lease_ms, int64_t now_ms)
{
    int place = model_place(k, who), beside = 0;
    int64_t since_ms = now_ms;
    const char *wrong = limit ? same_limit(k, limit, now_ms) : NULL;

    while (place != 0 && came_up_unseen(k, now_ms, &beside, &since_ms))
        place -= place > 0;
    if (place > 0 || (place < 0 && k->waiting > 0))
        return "granted past the queue";
    if (place < 0 && limit == 0)
        return "granted to a wait without a place";
    if (place == 0 && k->queue[0].lease_ms != lease_ms)
        return "granted with another lease";
    if (place == 0)
        leave_place(k, 0);
    if (model_surely(k, now_ms) >= k->limit)
        return "granted to more than its limit";
    add(k, who, token, lease_ms, now_ms);
    return wrong;
}

const char *model_too_late(struct model_key *k, struct conn *who, int64_t now_ms)
{
    int beside = (int)k->limit; /* none: it has lapsed, after those before it */
    int64_t since_ms = now_ms;

    while (model_unasked(k, who) == NULL) {
        if (!came_up_unseen(k, now_ms, &beside, &since_ms))
            return "refused as lapsed, and cannot have come up";
    }
    model_lapsed(k, who, now_ms)->expires_ms = now_ms; /* at the latest */
    return NULL;
}

const char *model_taken_up(struct model_key *k, struct model_hold *h, const char *token, int64_t now_ms)
{
    const char *wrong = model_surely(k, now_ms) >= k->limit ? "given to a place beyond its limit" : NULL;

    snprintf(h->token, sizeof h->token, "%s", token);
    h->ending = LIVES;
    h->expires_ms = now_ms + h->lease_ms;
    return wrong;
}

const char *model_queued(struct model_key *k, struct conn *who, bool asking, int64_t limit, int64_t lease_ms, int64_t now_ms)
{
    if (k->waiting == QUEUE_MAX)
        return "queued for by too many";
    k->queue[k->waiting++] = (struct model_waiter){who, asking, lease_ms};
    return same_limit(k, limit, now_ms);
}

const char *model_busy(const struct model_key *k, int64_t now_ms, int64_t late_ms)
{
    return k->waiting == 0 && model_is_free(k, now_ms, late_ms) ? "free, and was refused as busy" : NULL;
}

const char *model_renewed(struct model_key *k, const char *token, int64_t lease_ms, int64_t now_ms)
{
    struct model_hold *h = model_hold_of(k, token);

    if (h == NULL || !counts(h, now_ms - 1)) /* some round the end of a lease up */
        return "renewed for a token that does not hold it";
    h->ending = LIVES;
    h->lease_ms = lease_ms;
    h->expires_ms = now_ms + lease_ms;
    return model_surely(k, now_ms) > k->limit ? "renewed after its lease, and others hold it" : NULL;
}

const char *model_released(struct model_key *k, const char *token, int64_t now_ms, int64_t late_ms)
{
    struct model_hold *h = model_hold_of(k, token);

    if (h == NULL || !counts(h, now_ms - late_ms))
        return "released by a token that does not hold it";
    end(h, RELEASED, now_ms);
    return NULL;
}

const char *model_unknown(const struct model_key *k, const char *token, int64_t now_ms)
{
    const struct model_hold *h = model_hold_of(k, token);

    return h && h->ending == LIVES && now_ms < h->expires_ms ? "refused to the token that holds it" : NULL;
}

const char *model_mismatch(const struct model_key *k, int64_t limit)
{
    return k->limit == limit ? "refused for its limit, which is the same" : NULL;
}

void model_came_up(struct model_key *k, int64_t now_ms, int64_t late_ms)
{
    while (k->waiting > 0 && !k->queue[0].asking && model_is_free(k, now_ms, late_ms)) {
        add(k, k->queue[0].conn, "", k->queue[0].lease_ms, now_ms);
        leave_place(k, 0);
    }
}

void model_closed(struct model_key *k, struct conn *who, bool releases, int64_t now_ms)
{
    for (int i; (i = model_place(k, who)) >= 0; leave_place(k, i)) {
        /* It may just have come up without asking, and then stays where closing releases nothing. */
        if (i == 0 && !k->queue[0].asking && !releases && model_surely(k, now_ms) < k->limit)
            add(k, who, "", k->queue[0].lease_ms, now_ms);
    }
    for (struct model_hold *h = k->holds; h && releases; h = h->next) {
        if (h->conn == who && h->ending == LIVES && now_ms < h->expires_ms)
            end(h, CLOSED, now_ms);
    }
}

void model_passed(struct model_key *k, int64_t now_ms)
{
    for (struct model_hold *h = k->holds; h; h = h->next) {
        if (h->ending == LIVES && now_ms >= h->expires_ms)
            h->ending = EXPIRED;
    }
}
