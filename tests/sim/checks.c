/*
 * checks.c - what clients say against what servers know, after every event. The one lie that must not happen is a yes of a client
 * whose server has given the hold up; the causes for which nobody can be blamed are three, counted, and each has its time.
 */
#include "sim.h"

#include <stdlib.h>
#include <string.h>

#define ROUND_TRIP (30 * MS) /* of what is not late: the network both ways, and a host that takes its time */

static int64_t deadline_published(const struct shadow *h)
{
    int64_t link = h->client->links[h->link];

    return link < h->lease_deadline_ms ? link : h->lease_deadline_ms;
}

/* What a backend sees in shared memory, and what COMMIT goes by. */
bool check_says_yes(const struct shadow *h)
{
    struct dfl_hold_info info;
    int64_t now;

    if (h->state != DFL_HELD)
        return false;
    now = client_now(h->client).ms;
    dfl_hold_info(h->hold, &info);
    if (info.state != h->state || strcmp(info.token, h->token) != 0)
        sim_fault("published", "client %d: %s is published as held, and is not", h->client->id, key_names[h->key]);
    if (info.deadline_ms < deadline_published(h))
        sim_fault("published", "client %d: %s is published with a deadline %lld ms too late", h->client->id,
                  key_names[h->key], (long long)(deadline_published(h) - info.deadline_ms));
    return now < deadline_published(h);
}

/* ------------------------------------------------------------ a yes, and why */

int64_t check_apart(const struct model_hold *h)
{
    return outage_so_far(&h->conn->away) + outage_so_far(&h->conn->client->stopped) + outage_so_far(&h->seen->server->stopped);
}

/* No yes outlives the last sign of life by the read time-out: whatever happened at `since_us` came after that. */
static void in_time(const struct shadow *h, int64_t since_us, const char *what)
{
    int64_t age = sim_now - since_us;

    if (age >= profile.read_timeout_s * SECOND)
        sim_fault("yes", "client %d says yes to %s %.3f s after %s", h->client->id, key_names[h->key], (double)age / 1e6, what);
}

static void allowed_process(const struct shadow *h)
{
    const struct server *s = h->model->seen->server;

    if (!profile.restarts)
        sim_fault("yes", "client %d says yes to %s, whose server has ended though none does here", h->client->id,
                  key_names[h->key]);
    in_time(h, s->ended ? s->ended_us : h->model->seen->ended_us, "its server ended");
    counters.allowed_process++;
}

/* Until the next renewal is refused; what the network keeps back after the release comes on top, to the end of the lease at most. */
static void allowed_release(const struct shadow *h)
{
    const struct model_hold *m = h->model;
    int64_t age = sim_now - m->seen->ended_us, lease = m->lease_ms * 1000;
    int64_t interval = (int64_t)((double)lease * profile.renew_ratio), apart = check_apart(m) - m->seen->away_end_us;

    if (m->seen->released_by == NULL || m->seen->released_by->client == h->client)
        sim_fault("yes", "client %d says yes to %s, which it has released itself", h->client->id, key_names[h->key]);
    if (!profile.foreign_release)
        sim_fault("yes", "client %d says yes to %s, which somebody has released though nobody does here", h->client->id,
                  key_names[h->key]);
    if (age > interval + interval / 100 + apart + ROUND_TRIP || age > lease)
        sim_fault("yes", "client %d says yes to %s %.3f s after it was released by token", h->client->id, key_names[h->key],
                  (double)age / 1e6);
    if (age > interval)
        counters.allowed_late_release++;
    else
        counters.allowed_release++;
}

static void allowed_cut(const struct shadow *h)
{
    const struct model_hold *m = h->model;

    if (m->conn->cut_us == 0)
        sim_fault("yes", "client %d says yes to %s, whose connection #%d the server has closed", h->client->id,
                  key_names[h->key], m->conn->id);
    if (!profile.cuts)
        sim_fault("yes", "client %d says yes to %s after a cut though nothing is cut here", h->client->id, key_names[h->key]);
    in_time(h, m->conn->cut_us, "its connection was cut");
    counters.allowed_cut++;
}

static void judge_yes(struct shadow *h)
{
    struct model_hold *m = h->model;

    counters.yes_checks++;
    if (m == NULL || strcmp(m->token, h->token) != 0)
        m = h->model = judge_find(h->token);
    if (m == NULL)
        sim_fault("yes", "client %d holds %s with a token that no server has given", h->client->id, key_names[h->key]);
    m->seen->served = true;
    if (judge_lives(m))
        return;
    if (m->seen->server->ended || (m->seen->server->draining && m->ending == CLOSED))
        allowed_process(h);
    else if (m->ending == RELEASED)
        allowed_release(h);
    else if (m->ending == CLOSED)
        allowed_cut(h);
    else
        sim_fault("yes", "client %d says yes to %s, whose lease is over at the server", h->client->id, key_names[h->key]);
}

/* With a file that remembers leases, a server that restarts makes no second holder. */
static void judge_recovered(const struct shadow *h)
{
    for (struct client *c = all_clients; c; c = c->next) {
        for (struct shadow *other = c->shadows; other; other = other->next) {
            const struct model_hold *m = other->model;

            if (other == h || c->dead || m == NULL || m->seen->server == h->model->seen->server ||
                m->seen->server->address != h->model->seen->server->address || other->key != h->key ||
                m->seen->key->limit != 1 || h->model->seen->key->limit != 1 || !check_says_yes(other) || m->ending != LIVES)
                continue;
            sim_fault("recovery", "client %d and client %d both say yes to %s, before and after a restart that remembers",
                      c->id, h->client->id, key_names[h->key]);
        }
    }
}

/* `ping` cannot have met a reset, a full server or its read time-out, which look like a server that does not know it. */
static bool surely_asked(void)
{
    return !profile.caps && !profile.cuts && !profile.late && !profile.pauses && !profile.suspends;
}

void check_new_hold(struct shadow *h)
{
    struct user *u = h->user;
    struct model_hold *m = h->model = judge_find(h->token);
    bool asks = u && (u->doing == ACT_ACQUIRE || u->doing == ACT_ENQUEUE || u->doing == ACT_WAIT);

    TRACE("client %d holds %s until %.3f s of its clock from now", h->client->id, key_names[h->key],
          (double)(deadline_published(h) - client_now(h->client).ms) / 1000);
    if (u == NULL || u->cancelling || !asks || u->key != h->key || u->kind != h->kind ||
        !(u->starting || (u->call && !u->ended)))
        sim_fault("cancel", "client %d holds %s, which nobody asks for", h->client->id, key_names[h->key]);
    if (m == NULL)
        sim_fault("yes", "client %d holds %s with a token that no server has given", h->client->id, key_names[h->key]);
    if (!check_says_yes(h))
        sim_fault("hold", "client %d is granted %s after its deadline", h->client->id, key_names[h->key]);
    if (u->doing != ACT_WAIT && m->seen->asked_us < u->began_us)
        sim_fault("cancel", "client %d holds %s by a grant that was asked for before", h->client->id, key_names[h->key]);
    if (m->lease_ms != h->lease_s * 1000)
        sim_fault("hold", "client %d holds %s for %lld s, the server for %lld s", h->client->id, key_names[h->key],
                  (long long)h->lease_s, (long long)m->lease_ms / 1000);
    if (h->fence >= 0 && (uint64_t)h->fence != strtoull(strndupa(h->token, 16), NULL, 16))
        sim_fault("fence", "client %d has another fence of %s than its token", h->client->id, key_names[h->key]);
    if (h->fence >= 0 && !m->seen->server->traits->fences)
        sim_fault("fence", "client %d has a fence of %s from a server without", h->client->id, key_names[h->key]);
    if (h->fence < 0 && m->seen->server->traits->fences && surely_asked() && addresses[m->seen->server->address].processes == 1)
        sim_fault("fence", "client %d has no fence of %s", h->client->id, key_names[h->key]);
    if (m->seen->server->state_file)
        judge_recovered(h);
}

void check_renewed(const struct user *u)
{
    for (const struct shadow *h = u->client->shadows; h; h = h->next) {
        if (h->user == u && h->key == u->key && check_says_yes(h))
            return;
    }
    sim_fault("hold", "client %d.%d has renewed %s after its deadline", u->client->id, u->id, key_names[u->key]);
}

/* ------------------------------------------------------------------ expiry */

/* Somebody calls wait for what came up at h, and has for long enough. */
static bool wanted(const struct model_hold *h)
{
    const struct client *c = h->conn->client;

    for (int i = 0; i < c->user_count; i++) {
        const struct user *u = &c->users[i];

        if (u->doing == ACT_WAIT && u->call && !u->ended && u->place[u->key] == h->conn && judge_names(h->seen->key, u->key) &&
            sim_now - u->began_us > 2 * ROUND_TRIP + check_apart(h) - h->seen->away_set_us)
            return true;
    }
    return false;
}

/*
 * Without auto-release: its connection is over, which loses the hold for good. Its token goes out over the client's next connection to
 * that server, ahead of everything else: that was cut off then, or there was none.
 */
static bool was_cut(const struct model_hold *h)
{
    const struct conn *home = h->conn, *over = h->seen->back_over ? h->seen->back_over : home;

    if (h->seen->server->auto_release || !(home->client_closed || home->ended_us))
        return false;
    if (over->server != h->seen->server || home->client->list_changed_us > home->left_us)
        return true; /* it went to the process that listens instead of one that drains; or the server is on the list no more */
    if (h->seen->server->draining && h->seen->server->traits->drain_closes)
        return true; /* which refuses it */
    if (!over->client_closed)
        return over == home || over->cut_us || over->ended_us || outage_so_far(&over->away) > h->seen->back_away_us ||
               sim_now < h->seen->back_us + ROUND_TRIP;
    for (const struct conn *c = net_conns; c; c = c->next) {
        if (c->client == home->client && c->server == h->seen->server && c->opened_us >= over->left_us && c->taken > 1)
            return false;
    }
    return true;
}

/* Apart for more than what is left of a lease at its renewal; the clocks may differ by one per cent. */
static bool was_apart(const struct model_hold *h)
{
    int64_t lease = h->lease_ms * 1000, spare = (int64_t)((double)lease * (1 - profile.renew_ratio)) - lease / 100 - 2 * ROUND_TRIP;
    int64_t apart = check_apart(h) - h->seen->away_set_us;

    return apart > 0 && apart >= spare;
}

void check_expired(struct model_hold *h)
{
    const struct client *c = h->conn->client;

    if (h->seen->judged)
        return;
    h->seen->judged = true;
    TRACE("server %d: the lease of %s of #%d is over", h->seen->server->id, h->seen->key->name, h->conn->id);
    if (c->dead)
        counters.expired_dead++;
    else if (was_apart(h))
        counters.expired_late++;
    else if (h->seen->waited && !h->seen->served && !wanted(h))
        counters.expired_unwanted++;
    else if (h->conn->client_closed && !h->seen->server->auto_release && !h->seen->told)
        counters.expired_left++;
    else if (was_cut(h))
        counters.expired_cut++;
    else
        sim_fault("lease", "the lease of %s of client %d (#%d) ran out though nothing kept the client from renewing or releasing",
                  h->seen->key->name, c->id, h->conn->id);
}

/* ------------------------------------------------------------- harm, order */

void check_harm(const struct conn *c, const char *word)
{
    for (const struct shadow *h = c->client->shadows; h; h = h->next) {
        if (!c->client->dead && h->state == DFL_HELD && h->model && h->model->conn == c && check_says_yes(h))
            sim_fault("harm", "client %d sends `%s` over #%d, which ends it and %s that is held over it", c->client->id, word, c->id,
                      key_names[h->key]);
    }
}

/* Whoever asks for what his own side has released before sees it released. */
void check_order(const struct model_hold *h, const struct client *c, int64_t asked_us)
{
    int64_t first = INT64_MAX;

    for (int i = 0; i < c->user_count; i++) {
        const struct user *u = &c->users[i];

        if ((u->doing == ACT_ACQUIRE || u->doing == ACT_ENQUEUE) && u->call && !u->ended &&
            judge_names(h->seen->key, u->key) && u->began_us <= asked_us && u->began_us < first)
            first = u->began_us;
        if (u->before.began_us <= asked_us && asked_us <= u->before.ended_us && judge_names(h->seen->key, u->before.key) &&
            u->before.began_us < first)
            first = u->before.began_us;
    }
    if (first != INT64_MAX && first > h->seen->given_back_us)
        sim_fault("order", "client %d asks for %s before its release over #%d has arrived", c->id, h->seen->key->name, h->conn->id);
}

/* ------------------------------------------------------------------- calls */

/* Its own clock has ended it, and one last try decides. */
static bool tries_last(const struct user *u)
{
    int64_t busy = dfl_call_busy_since_ms(u->call), limit = u->timeout_ms;

    return u->doing == ACT_ACQUIRE && limit != DFL_FOREVER && client_now(u->client).ms >= busy + limit;
}

static bool waits(const struct user *u)
{
    return u->doing == ACT_WAIT || (u->doing == ACT_ACQUIRE && dfl_call_busy_since_ms(u->call) != 0);
}

/* Its grant is being confirmed, which is a network call of its own. */
static bool confirming(const struct user *u)
{
    for (const struct shadow *h = u->client->shadows; h; h = h->next) {
        if (h->user == u && h->key == u->key && h->kind == u->kind && h->state == DFL_CONFIRMING)
            return true;
    }
    return false;
}

/* The latest moment at which the call may end, by the client's clock. */
static int64_t latest_end(const struct user *u)
{
    int64_t busy = dfl_call_busy_since_ms(u->call), answer = profile.connect_timeout_ms, end, limit = u->timeout_ms;

    if (waits(u)) {
        if (u->lock_timeout_ms > 0 && (limit == DFL_FOREVER || u->lock_timeout_ms < limit))
            limit = u->lock_timeout_ms;
        if (limit == DFL_FOREVER)
            return INT64_MAX / 2;
        end = (busy ? busy : u->began_ms) + limit + 100 + answer; /* the last try, or the sign of life */
    } else {
        end = u->began_ms + answer;
    }
    if (u->confirmed_ms >= u->began_ms && u->confirmed_ms + (waits(u) ? 2 : 1) * answer > end)
        end = u->confirmed_ms + (waits(u) ? 2 : 1) * answer; /* refused, it may try for the last time */
    /* One that was stopped goes on with what has come meanwhile. */
    if (u->client->resumed_ms > u->began_ms && u->client->resumed_ms + 2 * answer > end)
        end = u->client->resumed_ms + 2 * answer;
    return end;
}

static int64_t proof_age(const struct user *u)
{
    int64_t since = u->client->proof_ms[u->address];

    return client_now(u->client).ms - since;
}

static int64_t keepalive(void)
{
    int64_t third = profile.read_timeout_s * 1000 / 3;

    return profile.keepalive_ms < third ? profile.keepalive_ms : third;
}

static void check_pending(const struct user *u)
{
    int64_t now = client_now(u->client).ms, busy; /* then, or when the server was last heard */

    if (now > latest_end(u) + 100)
        sim_fault("deadline", "client %d.%d: a call has not ended %lld ms after its deadline", u->client->id, u->id,
                  (long long)(now - latest_end(u)));
    if (confirming(u)) {
        if (u->client->resumed_ms < u->confirmed_ms && now > u->confirmed_ms + profile.connect_timeout_ms + 100)
            sim_fault("deadline", "client %d.%d: a confirmation has not ended %lld ms after its deadline", u->client->id, u->id,
                      (long long)(now - u->confirmed_ms - profile.connect_timeout_ms));
        return;
    }
    if (!waits(u) || tries_last(u))
        return;
    busy = dfl_call_busy_since_ms(u->call);
    if (busy < u->client->resumed_ms)
        busy = u->client->resumed_ms;
    if (busy < u->began_ms)
        busy = u->began_ms;
    if (busy < u->client->heard_ms[u->address])
        busy = u->client->heard_ms[u->address];
    if (busy < u->anew_ms)
        busy = u->anew_ms;
    if (now - busy > keepalive() + profile.connect_timeout_ms + 100)
        sim_fault("silence", "client %d.%d waits on though its server has been silent for %.1f s", u->client->id, u->id,
                  (double)(now - busy) / 1000);
}

/* What ends the place is on its way: a line, or the `w` that a server which drains will refuse. */
static bool coming(const struct conn *c)
{
    return c->last_at[TO_CLIENT] + ROUND_TRIP > sim_now || (c->server->draining && c->taken < c->asked_end);
}

/* "Not yet" promises a place: its connection is open, and the server has it unless the client cannot know better. */
static void check_place(const struct user *u)
{
    const char *key = key_names[u->key];
    const struct conn *c = net_conns; /* the newest first */

    if (dfl_session_place(u->s, key, strlen(key), u->kind) == NULL)
        sim_fault("place", "client %d.%d was told \"not yet\", and has no place", u->client->id, u->id);
    for (bool open = false;; c = c->next) {
        if (c == NULL && open)
            sim_fault("place", "client %d.%d was told \"not yet\", and the server has no place of it", u->client->id, u->id);
        if (c == NULL)
            sim_fault("place", "client %d.%d was told \"not yet\", and the connection of its place is closed", u->client->id, u->id);
        if (c->client != u->client || !c->placed[u->key] || c->client_closed)
            continue;
        open = true;
        if (c->cut_us || c->server->ended || coming(c) || judge_has_place(c->server->judge, c, u->key))
            return;
    }
}

static void check_busy(struct user *u)
{
    counters.busy++;
    if (u->doing == ACT_ACQUIRE && !u->said_busy)
        sim_fault("proof", "client %d.%d says busy, and the server has not", u->client->id, u->id);
    if (u->doing != ACT_WAIT)
        return;
    if (proof_age(u) > keepalive() + 3000 && u->client->proof_ms[u->address] < u->began_ms + u->timeout_ms)
        sim_fault("proof", "client %d.%d says \"not yet\", and the server's last sign of life is %.1f s old", u->client->id,
                  u->id, (double)proof_age(u) / 1000);
    counters.waits_kept++;
    check_place(u);
}

void check_call(struct user *u, enum dfl_status status)
{
    int64_t now = client_now(u->client).ms;
    bool taking = u->doing == ACT_ACQUIRE || u->doing == ACT_ENQUEUE || u->doing == ACT_WAIT;
    struct dfl_hold *hold = dfl_call_hold(u->call);

    counters.calls++;
    if (now > latest_end(u) + 100)
        sim_fault("deadline", "client %d.%d: a call has ended %lld ms after its deadline", u->client->id, u->id,
                  (long long)(now - latest_end(u)));
    if (status == DFL_INTERNAL || status == DFL_NOMEM || status == DFL_PENDING)
        sim_fault("status", "client %d.%d: %s", u->client->id, u->id, dfl_status_info(status)->name);
    if (status == DFL_PROTOCOL)
        sim_fault("status", "client %d.%d: %s", u->client->id, u->id, dfl_call_error(u->call)->text);
    if (status == DFL_REFUSED && taking && !waits(u) && u->bare && u->client->refused_us[u->address] < u->began_us)
        sim_fault("refused", "client %d.%d was refused, and the server has refused nothing: %s", u->client->id, u->id,
                  dfl_call_error(u->call)->text);
    if (status == DFL_TIMEOUT)
        check_busy(u);
    else if (status != DFL_OK)
        counters.errors++;
    if (taking && status == DFL_OK && hold) {
        struct dfl_hold_info info;

        dfl_hold_info(hold, &info);
        if (info.state == DFL_STATE_LOST || (info.state == DFL_QUEUED && u->doing == ACT_ENQUEUE))
            return;
        if (info.state != DFL_HELD)
            sim_fault("status", "client %d.%d: granted, and the hold is %s", u->client->id, u->id, dfl_state_name(info.state));
    }
}

/* ------------------------------------------------------------------- checks */

/* A yes of the functions must be a yes of the published state too; reading what has arrived can only make it a no. */
void check_asked(struct user *u, int key)
{
    struct client *c = u->client;
    struct dfl_now now = client_now(c);
    const char *name = key_names[key];
    bool held, published = false;
    enum dfl_status status;
    struct dfl_error err;

    held = dfl_is_held(u->s, name, strlen(name), now);
    for (struct shadow *h = c->shadows; h; h = h->next)
        published = published || (h->user == u && h->key == key && check_says_yes(h));
    if (held && !published)
        sim_fault("yes", "client %d.%d: is_held says yes to %s, what is published does not", c->id, u->id, name);
    for (struct shadow *h = c->shadows; held && h; h = h->next) {
        if (h->user == u && h->key == key && check_says_yes(h))
            judge_yes(h);
    }
    status = dfl_assert_held(u->s, name, strlen(name), now, &err);
    /* What is_held has sent may have broken the connection. */
    if ((status == DFL_OK && !held) || (status == DFL_NOT_HELD && held) || (status != DFL_OK && status != DFL_LOST && status != DFL_NOT_HELD))
        sim_fault("yes", "client %d.%d: is_held says %d to %s, assert_held says %s", c->id, u->id, held, name,
                  dfl_status_info(status)->name);
    client_asked(c);
}

/* What is_held of the engine itself goes by, in whatever process, whether it ran or not; nothing is read on the way. */
static void check_published(const struct shadow *h)
{
    struct dfl_hold_info info;

    dfl_hold_info(h->hold, &info);
    if (info.state != h->state)
        sim_fault("published", "client %d: %s is %s, and published as %s", h->client->id, key_names[h->key],
                  dfl_state_name(info.state), dfl_state_name(h->state));
}

static void ask_everybody(struct client *c)
{
    unsigned asked[USERS] = {0};

    for (const struct shadow *h = c->shadows, *next; h; h = next) {
        struct user *u = h->user;

        next = h->next;
        if (u == NULL || u->s == NULL || (asked[u->id - 1] & 1u << h->key))
            continue;
        asked[u->id - 1] |= 1u << h->key;
        check_asked(u, h->key);
        counters.asked++;
        next = c->shadows; /* what was read may have ended any of them */
    }
}

void check_all(void)
{
    for (struct client *c = all_clients; c; c = c->next) {
        if (c->dead)
            continue;
        if (profile.asking && !c->suspended)
            ask_everybody(c);
        for (struct shadow *h = c->shadows; h; h = h->next) {
            check_published(h);
            if (h->state == DFL_HELD && check_says_yes(h))
                judge_yes(h);
        }
        for (int i = 0; i < c->user_count && !c->suspended; i++) {
            if (c->users[i].call && !c->users[i].ended)
                check_pending(&c->users[i]);
        }
    }
}
