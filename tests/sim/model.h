/*
 * model.h - the rules of a lock service: per key a limit, holders and a queue. Judged by eye: this and model.c are all of it, know
 * nothing of servers, engine and wire, and are told what was answered, when, to whom.
 */
#ifndef SIM_MODEL_H
#define SIM_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#define QUEUE_MAX 128
#define FORGOTTEN_MS 60000 /* an unused key keeps its limit for that long */

struct conn; /* who: only compared */

enum ending { LIVES, RELEASED, EXPIRED, LAPSED, CLOSED }; /* LAPSED: expired, and nobody saw when */

struct model_hold {
    struct model_hold *next;
    struct conn *conn;
    char token[40]; /* "": a place that came up without a word on the wire */
    int64_t lease_ms, expires_ms;
    enum ending ending;
    struct seen *seen; /* the judge's; see judge.c */
};

struct model_waiter {
    struct conn *conn;
    bool asking; /* a request waits for the turn; else the grant waits for a request */
    int64_t lease_ms;
};

struct model_key {
    struct model_key *next;
    char name[260];
    int64_t limit, used_ms;
    struct model_hold *holds;
    struct model_waiter queue[QUEUE_MAX];
    int waiting;
};

/* How many hold it for certain, and how many may, at a server that notices the end of a lease up to late_ms late. */
int model_surely(const struct model_key *k, int64_t now_ms);
int model_maybe(const struct model_key *k, int64_t now_ms, int64_t late_ms);
bool model_is_free(const struct model_key *k, int64_t now_ms, int64_t late_ms); /* for certain, for the next in line */

/* Each takes what was answered as true, and returns the rule that it breaks, or NULL. */
const char *model_granted(struct model_key *k, struct conn *who, const char *token, int64_t limit, int64_t lease_ms, int64_t now_ms);
const char *model_taken_up(struct model_key *k, struct model_hold *h, const char *token, int64_t now_ms);
const char *model_queued(struct model_key *k, struct conn *who, bool asking, int64_t limit, int64_t lease_ms, int64_t now_ms);
const char *model_busy(const struct model_key *k, int64_t now_ms, int64_t late_ms);
const char *model_renewed(struct model_key *k, const char *token, int64_t lease_ms, int64_t now_ms);
const char *model_released(struct model_key *k, const char *token, int64_t now_ms, int64_t late_ms);
const char *model_unknown(const struct model_key *k, const char *token, int64_t now_ms); /* renewal or release refused */
const char *model_too_late(struct model_key *k, struct conn *who, int64_t now_ms); /* a wait for a place that has lapsed */
const char *model_mismatch(const struct model_key *k, int64_t limit);

/* What happens without an answer. */
void model_came_up(struct model_key *k, int64_t now_ms, int64_t late_ms); /* whoever is first and does not ask */
void model_left(struct model_key *k, struct conn *who);                   /* its place in the queue */
struct model_hold *model_lapsed(struct model_key *k, struct conn *who, int64_t now_ms); /* its place came up, and nobody asked in time */
void model_closed(struct model_key *k, struct conn *who, bool releases, int64_t now_ms);
void model_passed(struct model_key *k, int64_t now_ms); /* time: leases end */

int model_place(const struct model_key *k, const struct conn *who); /* 0 = first; -1 = none */
struct model_hold *model_hold_of(const struct model_key *k, const char *token);
struct model_hold *model_unasked(const struct model_key *k, const struct conn *who); /* what came up for it */

#endif
