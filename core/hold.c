/*
 * hold.c - holds and places: their leases, their renewal, their loss, their return.
 *
 * The rule of the whole house stands here: a hold is held while now < min(S_hold + lease, S_conn +
 * server_read_timeout), each interval less 2 %, S being moments of sending. Whatever makes that
 * untrue loses the hold for good, with when and why.
 */
#include "engine.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RENEWAL_STEP_MS 100

static void hold_due(struct dfl_timer *timer, struct dfl_now now);

static struct dfl_client *client_of(const struct dfl_hold *h)
{
    return h->server->client;
}

/* ---------------------------------------------------------- coming and going */

static bool quota_take(struct dfl_client *c)
{
    return c->host.take_lock == NULL || c->host.take_lock(c->host.ctx);
}

static void quota_give(struct dfl_hold *h)
{
    struct dfl_client *c = client_of(h);

    if (!h->counted)
        return;
    h->counted = DFL_PLANTED(46);
    h->server->holds--;
    if (h->session)
        h->session->hold_count--;
    if (c->host.give_lock)
        c->host.give_lock(c->host.ctx);
}

__attribute__((format(printf, 2, 0))) static void set_last_error(struct dfl_hold *h,
                                                                 const char *format, va_list ap)
{
    char text[DFL_ERROR_MAX];
    char *copy;

    vsnprintf(text, sizeof text, format, ap);
    copy = malloc(strlen(text) + 1);
    if (copy == NULL)
        return;
    strcpy(copy, text);
    free(h->last_error);
    h->last_error = copy;
}

struct dfl_hold *dfl_hold_new(struct dfl_session *s, struct dfl_key *key, struct dfl_server *server,
                              const struct dfl_request_args *a, struct dfl_error *err)
{
    struct dfl_client *c = s->client;
    struct dfl_hold *h;

    if (s->cap > 0 && (int64_t)s->hold_count >= s->cap) {
        dfl_fail(err, DFL_TOO_MANY,
                 "this session holds or awaits %zu locks: raise max_session_locks", s->hold_count);
        return NULL;
    }
    if (!quota_take(c)) {
        dfl_fail(err, DFL_TOO_MANY, "too many locks held or awaited: raise max_locks (now %lld)",
                 (long long)c->settings.max_locks);
        return NULL;
    }
    h = malloc(sizeof *h);
    if (h == NULL || dfl_timer_room(c) != DFL_OK) {
        free(h);
        if (c->host.give_lock)
            c->host.give_lock(c->host.ctx);
        dfl_fail(err, DFL_NOMEM, "out of memory");
        return NULL;
    }
    *h = (struct dfl_hold){0};
    h->session = s;
    h->key = key;
    key->refs++;
    h->server = server;
    h->kind = a->kind;
    h->slots = a->kind == DFL_SEMAPHORE ? a->slots : 1;
    h->asked_lease_s = a->lease_s;
    h->scope = a->scope;
    h->tag = a->tag;
    h->fence = -1;
    h->counted = true;
    h->since_ms = c->now.ms;
    h->timer.fire = hold_due;
    dfl_link_init(&h->by_session);
    dfl_link_init(&h->by_key);
    dfl_link_init(&h->by_conn);
    dfl_list_append(&s->holds, &h->by_session);
    dfl_list_append(&key->holds, &h->by_key);
    server->refs++;
    server->holds++;
    s->hold_count++;
    dfl_hold_changed(h);
    return h;
}

/* A hold that leaves its connection may leave it without use. */
static void leave_home(struct dfl_hold *h)
{
    struct dfl_conn *home = h->home;

    dfl_link_remove(&h->by_conn);
    h->home = NULL;
    if (home == NULL || home->state == DFL_CONN_DEAD)
        return;
    if (h->state == DFL_HELD)
        home->owned--;
    dfl_conn_schedule(home);
    if (home->role == DFL_ROLE_WAITING)
        dfl_conn_idle(home);
}

static void forget_renewal(struct dfl_hold *h)
{
    if (h->renewal && h->renewal->owner == h)
        h->renewal->owner = NULL;
    h->renewal = NULL;
}

void dfl_hold_free(struct dfl_hold *h)
{
    struct dfl_client *c = client_of(h);

    if (c->host.hold_gone)
        c->host.hold_gone(c->host.ctx, h);
    dfl_hold_set_call(h, NULL);
    forget_renewal(h);
    leave_home(h);
    quota_give(h);
    dfl_timer_clear(&c->timers, &h->timer);
    dfl_timer_unroom(c);
    if (h->session && h->session->walk == &h->by_session)
        h->session->walk = h->by_session.next;
    dfl_link_remove(&h->by_session);
    dfl_link_remove(&h->by_key);
    dfl_key_put(h->key);
    h->server->refs--;
    free(h->last_error);
    free(h);
}

bool dfl_hold_in_call(const struct dfl_hold *h)
{
    return h->call && h->call->status == DFL_PENDING;
}

void dfl_hold_set_call(struct dfl_hold *h, struct dfl_call *call)
{
    if (h->call)
        h->call->hold = NULL;
    h->call = call;
    if (call)
        call->hold = h;
}

void dfl_hold_settle(struct dfl_hold *h, struct dfl_conn *home)
{
    h->home = home;
    dfl_list_append(&home->holds, &h->by_conn);
}

void dfl_hold_changed(struct dfl_hold *h)
{
    struct dfl_client *c = client_of(h);

    if (c->host.hold_changed)
        c->host.hold_changed(c->host.ctx, h);
}

bool dfl_hold_is_place(const struct dfl_hold *h)
{
    return h->from_enqueue && (h->state == DFL_QUEUED || h->state == DFL_CONFIRMING);
}

/* ------------------------------------------------------------------ deadlines */

int64_t dfl_hold_deadline(const struct dfl_hold *h)
{
    int64_t conn;

    if (h->state != DFL_HELD || h->home == NULL)
        return 0;
    if (DFL_PLANTED(11))
        return INT64_MAX;
    conn = dfl_conn_deadline(h->home);
    return conn < h->lease_deadline_ms ? conn : h->lease_deadline_ms;
}

bool dfl_hold_valid(const struct dfl_hold *h, int64_t now_ms)
{
    return h->state == DFL_HELD && now_ms < dfl_hold_deadline(h);
}

static int64_t lease_deadline(int64_t sent_ms, int64_t lease_s)
{
    return sent_ms + dfl_less_margin(lease_s * 1000);
}

/*
 * Renewal at renew_ratio of the way to the deadline, up to 10 % earlier; once that is asked for,
 * the timer is the deadline. Not of the lease that is asked for: the one in force may be shorter.
 * Renewals of one step of time fall due together: a host with thousands of holds wakes up once for
 * all of them, and they leave in one packet.
 */
static void schedule(struct dfl_hold *h)
{
    struct dfl_client *c = client_of(h);
    double share = c->settings.renew_ratio * (1 - 0.1 * dfl_random(c));
    int64_t at = h->lease_deadline_ms, way = at - h->s_hold_ms, step = way / 64;

    if (step > RENEWAL_STEP_MS)
        step = RENEWAL_STEP_MS;
    if (h->renewal == NULL) {
        at = h->s_hold_ms + (int64_t)((double)way * share);
        if (step > 0)
            at -= at % step; /* earlier, by less than a sixty-fourth of the way */
    }
    dfl_timer_set(&c->timers, &h->timer, at);
}

void dfl_hold_begin(struct dfl_hold *h, int64_t lease_s, int64_t sent_ms)
{
    struct dfl_client *c = client_of(h);
    struct dfl_conn *home = h->home;

    h->s_hold_ms = sent_ms;
    h->lease_deadline_ms = lease_deadline(sent_ms, lease_s);
    h->state = DFL_HELD;
    h->offered = false;
    h->acquired_ms = c->now.ms;
    h->acquired_wall_ms = c->now.wall_ms;
    home->owned++;
    if (c->host.link_changed)
        c->host.link_changed(c->host.ctx, home->link, dfl_conn_deadline(home));
    dfl_conn_schedule(home);
    schedule(h);
    dfl_hold_changed(h);
}

/* -------------------------------------------------------------------- renewal */

/* Whole seconds, cut: asked - 1 means asked, unless the server may grant no more than that. Less
 * counts as it stands. */
int64_t dfl_renewed_lease_s(const struct dfl_request *r, const struct dfl_answer_line *a)
{
    int64_t cut = r->known_lease ? 1 : 0;

    if (DFL_PLANTED(19))
        return r->lease_s;
    return a->seconds < r->lease_s - cut ? a->seconds : r->lease_s;
}

static void lapse(struct dfl_hold *h)
{
    dfl_hold_lose(h, "no confirmed renewal from %s within the lease of %lld s",
                  h->server->address.text, (long long)h->lease_s);
}

bool dfl_hold_renewed(struct dfl_hold *h, const struct dfl_request *r,
                      const struct dfl_answer_line *a)
{
    struct dfl_client *c = client_of(h);

    if (c->now.ms >= h->lease_deadline_ms) {
        lapse(h); /* somebody may have been told so already */
        return false;
    }
    if (r->lease_change == h->lease_changes)
        h->cap_ms = 0;
    if (a->seconds > h->granted_s)
        h->granted_s = a->seconds;
    h->s_hold_ms = r->sent_ms;
    h->lease_deadline_ms = lease_deadline(r->sent_ms, dfl_renewed_lease_s(r, a));
    if (h->cap_ms && h->cap_ms < h->lease_deadline_ms)
        h->lease_deadline_ms = h->cap_ms;
    h->renewed_ms = c->now.ms;
    h->renewals++;
    free(h->last_error);
    h->last_error = NULL;
    if (c->now.ms >= h->lease_deadline_ms) {
        dfl_hold_lose(h, "the renewal's answer came when its lease was over");
        return false;
    }
    schedule(h);
    dfl_hold_changed(h);
    return true;
}

void dfl_hold_set_lease(struct dfl_hold *h, int64_t lease_s)
{
    int64_t shorter = lease_deadline(client_of(h)->now.ms, lease_s);

    h->lease_s = lease_s;
    h->lease_changes++;
    if (h->cap_ms == 0 || shorter < h->cap_ms)
        h->cap_ms = shorter;
    if (shorter < h->lease_deadline_ms)
        h->lease_deadline_ms = shorter;
    schedule(h);
    dfl_hold_changed(h);
}

static void renewal_done(struct dfl_request *r, const struct dfl_answer_line *a,
                         const struct dfl_error *error)
{
    struct dfl_hold *h = r->owner;

    if (h == NULL || error) /* the connection's death has told the hold already */
        return;
    if (h->renewal == r)
        h->renewal = NULL;
    if (a->kind == DFL_ANS_OK)
        dfl_hold_renewed(h, r, a);
    else
        dfl_hold_lose(h, "%s refused the renewal: %.*s", h->server->address.text, (int)a->text_len,
                      a->text);
}

enum dfl_status dfl_hold_renew(struct dfl_hold *h, dfl_request_done *done, void *owner,
                               struct dfl_request **out)
{
    struct dfl_request *r = dfl_request_new(dfl_command_for(DFL_CMD_RENEW, h->kind), h->key,
                                            h->token, done ? done : renewal_done, done ? owner : h);

    if (r == NULL)
        return DFL_NOMEM;
    r->lease_s = DFL_PLANTED(7) ? 0 : h->lease_s;
    r->lease_change = h->lease_changes;
    r->known_lease = h->lease_s <= h->granted_s;
    if (done == NULL) {
        forget_renewal(h); /* the newest one counts */
        h->renewal = r;
    }
    if (out)
        *out = r;
    dfl_conn_send(h->home, r);
    return DFL_OK;
}

void dfl_hold_adopt_renewal(struct dfl_hold *h, struct dfl_request *r)
{
    forget_renewal(h);
    r->owner = h;
    r->done = renewal_done;
    h->renewal = r;
    schedule(h);
}

static void hold_due(struct dfl_timer *timer, struct dfl_now now)
{
    struct dfl_hold *h = DFL_CONTAINER(timer, struct dfl_hold, timer);
    struct dfl_client *c = client_of(h);

    if (h->state != DFL_HELD)
        return;
    if (now.ms >= h->lease_deadline_ms) {
        lapse(h);
    } else if (h->renewal == NULL) {
        if (dfl_hold_renew(h, NULL, NULL, NULL) != DFL_OK)
            dfl_timer_set(&c->timers, &h->timer, now.ms + 100); /* no memory now: again soon */
        else
            schedule(h);
    } else {
        schedule(h);
    }
}

/* ----------------------------------------------------------------------- loss */

static void become_lost(struct dfl_hold *h)
{
    struct dfl_client *c = client_of(h);

    forget_renewal(h);
    leave_home(h);
    h->state = DFL_STATE_LOST;
    h->offered = false;
    h->token[0] = '\0';
    h->lost_ms = c->now.ms;
    quota_give(h);
    dfl_timer_clear(&c->timers, &h->timer);
    dfl_hold_changed(h);
}

void dfl_hold_lose(struct dfl_hold *h, const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    set_last_error(h, format, ap);
    va_end(ap);
    if (h->home && h->home->state != DFL_CONN_DEAD && h->token[0] != '\0')
        /* the server may not know yet that nobody counts on it */
        dfl_server_give_back(h->home, h->kind, h->key, h->token);
    else
        dfl_server_orphan(h->server, h->kind, h->key, h->token);
    become_lost(h);
}

__attribute__((format(printf, 2, 3))) static void note_error(struct dfl_hold *h, const char *format,
                                                             ...)
{
    va_list ap;

    va_start(ap, format);
    set_last_error(h, format, ap);
    va_end(ap);
}

void dfl_hold_forfeit(struct dfl_hold *h)
{
    note_error(h, "released by token");
    become_lost(h);
}

void dfl_hold_orphaned(struct dfl_hold *h, const struct dfl_error *why)
{
    dfl_link_remove(&h->by_conn);
    h->waiting = NULL; /* its request is told too */
    if (DFL_PLANTED(8) && h->state == DFL_HELD && !h->came_up) {
        struct dfl_conn *next;
        struct dfl_error err;

        h->came_up = true; /* once */
        forget_renewal(h);
        if (dfl_server_control(h->server, &next, &err) == DFL_OK) {
            dfl_hold_settle(h, next);
            next->owned++;
            return;
        }
    }
    if (h->state == DFL_HELD || (dfl_hold_is_place(h) && !dfl_hold_in_call(h))) {
        h->place_status = h->came_up ? DFL_LAPSED : DFL_BROKEN;
        dfl_hold_lose(h, "%s", why->text);
    } else {
        h->home = NULL; /* releasing, or a call is about it and is told by its request */
    }
}

/* --------------------------------------------------------------------- return */

static void released(struct dfl_request *r, const struct dfl_answer_line *a,
                     const struct dfl_error *error)
{
    struct dfl_hold *h = r->owner;
    struct dfl_call *call = dfl_hold_in_call(h) ? h->call : NULL;

    dfl_server_released(h->server, r, a, error);
    dfl_hold_free(h);
    if (call)
        dfl_call_released(call, a, error);
}

enum dfl_status dfl_hold_release(struct dfl_hold *h)
{
    struct dfl_client *c = client_of(h);
    struct dfl_conn *home = h->home;
    struct dfl_request *r =
        dfl_request_new(dfl_command_for(DFL_CMD_RELEASE, h->kind), h->key, h->token, released, h);

    if (r == NULL && !DFL_PLANTED(48))
        return DFL_NOMEM;
    dfl_timer_clear(&c->timers, &h->timer);
    forget_renewal(h);
    home->owned--;
    h->state = DFL_RELEASING;
    if (DFL_PLANTED(12))
        memset(r->token, '0', DFL_TOKEN_LEN);
    quota_give(h);
    dfl_request_owe(r);
    dfl_conn_send(home, r);
    dfl_hold_changed(h);
    return DFL_OK;
}

/* Gives back a grant that came up, or closes the connection: the one way to leave a queue. */
void dfl_place_leave(struct dfl_hold *h)
{
    struct dfl_conn *home = h->home;

    if (home && home->state != DFL_CONN_DEAD && h->waiting) {
        dfl_hold_set_call(h, NULL); /* nobody is waiting for it any more */
        h->from_enqueue =
            false; /* should reading kill the connection, it is not to become a lost place */
        dfl_conn_read(home); /* a grant that has arrived is returned by its token */
        home = h->home;
    }
    if (home && h->token[0] != '\0')
        dfl_server_give_back(home, h->kind, h->key, h->token);
    if (h->waiting)
        dfl_conn_withdraw(h->waiting);
    h->waiting = NULL;
    dfl_hold_free(h); /* dfl_conn_idle closes a connection whose request still blocks */
}

void dfl_hold_give_back(struct dfl_hold *h, struct dfl_now now)
{
    struct dfl_client *c = client_of(h);

    dfl_enter(c, now);
    if (h->state == DFL_HELD) {
        if (dfl_hold_in_call(h))
            dfl_call_cancel(h->call, now); /* a renewal: that keeps the hold */
        (void)dfl_hold_release(h);
    } else if (dfl_hold_in_call(h) && h->state != DFL_RELEASING) {
        dfl_call_cancel(h->call, now); /* with all that it has come to */
    } else if (dfl_hold_is_place(h)) {
        dfl_place_leave(h);
    } else if (h->state != DFL_RELEASING) {
        dfl_hold_free(h);
    }
    dfl_leave(c);
}

/* ---------------------------------------------------------------- for the host */

void dfl_hold_info(const struct dfl_hold *h, struct dfl_hold_info *info)
{
    memset(info, 0, sizeof *info);
    info->session = h->session;
    info->key = h->key->bytes;
    info->key_len = h->key->len;
    info->kind = h->kind;
    info->scope = h->scope;
    info->tag = h->tag;
    info->state = h->state;
    info->from_enqueue = h->from_enqueue;
    info->slots = h->slots;
    info->token = h->state == DFL_HELD ? h->token : "";
    info->fence = h->state == DFL_HELD ? h->fence : -1;
    info->lease_s = h->lease_s;
    info->lease_deadline_ms = h->state == DFL_HELD ? h->lease_deadline_ms : 0;
    info->link = h->home ? h->home->link : 0;
    info->deadline_ms = dfl_hold_deadline(h);
    info->since_ms = h->since_ms;
    info->acquired_ms = h->acquired_ms;
    info->renewed_ms = h->renewed_ms;
    info->acquired_wall_ms = h->acquired_wall_ms;
    info->renewals = h->renewals;
    info->lost_ms = h->lost_ms;
    info->told = h->told;
    info->last_error = h->last_error ? h->last_error : "";
    info->server = h->server->address.text;
}

void dfl_hold_set_user(struct dfl_hold *h, void *user)
{
    h->user = user;
}

void *dfl_hold_user(const struct dfl_hold *h)
{
    return h->user;
}

void dfl_hold_set_tag(struct dfl_hold *h, enum dfl_scope scope, uint32_t tag)
{
    h->scope = scope;
    h->tag = tag;
}

void dfl_hold_set_told(struct dfl_hold *h)
{
    h->told = true;
}

const char *dfl_state_name(enum dfl_state state)
{
    static const char *const names[] = {"trying", "queued",    "confirming",
                                        "held",   "releasing", "lost"};

    return names[state];
}
