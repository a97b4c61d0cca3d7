/*
 * server.c - server processes on addresses: accepting, cutting bytes into requests, the read time-out, pauses, drains and deaths.
 * What a request means is the personality's; what it may mean is the model's, which sees every line that goes by.
 */
#include "sim.h"

#include <stdio.h>
#include <string.h>

#define BEHIND_BLOCKED 4096
#define EMITTED_MAX 1024

const struct traits traits_of[PERSONALITIES] = {
    [BUNDLED] = {.name = "bundled", .fences = true, .ping = true, .semaphores = true},
    [V1_10] = {.name = "v1.10", .close_unseen = true, .stale_wait = true, .semaphores = true},
    [V2] = {.name = "v2", .separate_kinds = true, .fences = true, .ping = true, .semaphores = true, .drain_closes = true},
    [V0_5] = {.name = "0.5.0", .close_unseen = true, .stale_wait = true, .closes_on_unknown = true},
};

struct emitted {
    struct conn *conn;
    size_t len;
    char line[120];
};

struct address addresses[ADDRESSES];
struct server *all_servers;

static struct emitted emitted[EMITTED_MAX];
static size_t emitted_count;
static bool look_again;

static void step(struct server *s);

void servers_begin(void)
{
    all_servers = NULL;
    emitted_count = 0;
    memset(addresses, 0, sizeof addresses);
    for (int i = 0; i < ADDRESSES; i++) {
        snprintf(addresses[i].text, sizeof addresses[i].text, "127.0.0.1:%d", 7001 + i);
        addresses[i].fence = (uint64_t)INT64_C(1790000000000) * 1000000;
        addresses[i].personality = (enum personality)rnd_range(0, PERSONALITIES - 1);
        if (rnd_chance(250))
            addresses[i].personality = BUNDLED;
    }
}

struct dfl_now server_now(const struct server *s)
{
    return clock_now(&s->clock, 0);
}

uint64_t server_fence(struct server *s)
{
    struct address *a = &addresses[s->address];

    return ++a->fence;
}

/* --------------------------------------------------------- what it says */

void server_emit(struct conn *c, const char *line, size_t len)
{
    struct emitted *e = &emitted[emitted_count++];

    if (emitted_count == EMITTED_MAX)
        sim_fault("server", "too many answers at once");
    e->conn = c;
    e->len = len < sizeof e->line ? len : sizeof e->line;
    memcpy(e->line, line, e->len);
}

/* A connection that stops to block may have more to be read, or its end to be seen. */
void server_block(struct conn *c, bool blocked)
{
    look_again = look_again || (c->blocked && !blocked);
    c->blocked = blocked;
}

static void judge(const char *wrong, const struct server *s, const struct conn *c)
{
    if (wrong)
        sim_fault("model", "server %d (%s), #%d: %s", s->id, s->traits->name, c ? c->id : 0, wrong);
}

static void send_emitted(struct server *s, const struct emitted *e)
{
    struct conn *c = e->conn;

    TRACE("server %d #%d <- %.*s%s", s->id, c->id, (int)e->len, e->line,
          c->server_eof || c->server_error ? " (to a closed connection)" : "");
    judge(judge_answer(s->judge, c, e->line, e->len), s, c);
    if (e->len == 5 && memcmp(e->line, "error", 5) == 0)
        c->client->refused_us[c->address] = sim_now;
    c->active_ms = server_now(s).ms;
    net_to_client(c, e->line, e->len);
    net_to_client(c, "\n", 1);
}

/* Grants of one step leave the queue together: the model takes the asker's own answer first, or last when others must have come before. */
static void flush_emitted(struct server *s, struct conn *asker, bool asker_first)
{
    for (int turn = 0; turn < 2; turn++) {
        for (size_t i = 0; i < emitted_count; i++) {
            if ((emitted[i].conn == asker) == ((turn == 0) == asker_first))
                send_emitted(s, &emitted[i]);
        }
    }
    emitted_count = 0;
}

/* ------------------------------------------------------------ connections */

static void forget(struct conn *c)
{
    struct server *s = c->server;
    struct conn **at = &s->conns;

    while (*at != c)
        at = &(*at)->next_of_server;
    *at = c->next_of_server;
    s->conn_count--;
}

/* The implementation and the model learn that a connection is over. */
static void over(struct conn *c, bool silently)
{
    struct server *s = c->server;

    if (c->eof_told)
        return;
    c->eof_told = true;
    c->ended_us = sim_now;
    TRACE("server %d sees the end of #%d", s->id, c->id);
    forget(c);
    judge_closed(s->judge, c);
    s->ops->gone(c->peer);
    net_server_close(c, silently);
    flush_emitted(s, NULL, false);
}

static void hang_up_later(void *arg, uint64_t n)
{
    struct conn *c = arg;

    (void)n;
    if (c->server->ended || c->eof_told)
        return;
    over(c, false);
    step(c->server);
}

void server_hang_up(struct conn *c)
{
    c->hanging_up = true;
    sim_at(sim_now, hang_up_later, c, 0);
}

void server_accept(struct conn *c)
{
    struct server *s = addresses[c->address].listening;

    c->server = s;
    c->active_ms = server_now(s).ms;
    if (s->max_connections && s->conn_count >= s->max_connections) {
        TRACE("server %d has no room for #%d", s->id, c->id);
        c->eof_told = true;
        net_server_close(c, false);
        return;
    }
    c->next_of_server = s->conns;
    s->conns = c;
    s->conn_count++;
    c->peer = s->ops->open(s->impl, c);
    step(s);
}

/* Three whole lines, or false. */
static bool take_request(struct conn *c, const char *line[3], size_t len[3], size_t *all)
{
    char *at = c->to_server.at + c->to_server.start, *end = c->to_server.at + c->to_server.end;

    *all = 0;
    for (int i = 0; i < 3; i++) {
        char *newline = at < end ? memchr(at, '\n', (size_t)(end - at)) : NULL;

        if (newline == NULL)
            return false;
        line[i] = at;
        len[i] = (size_t)(newline - at);
        *all += len[i] + 1;
        at = newline + 1;
    }
    return true;
}

static bool releases(const char *word, size_t len)
{
    return len > 0 && (word[len - 1] == 'r' || word[len - 1] == 'n');
}

/* Whoever asks for what his own side has released sees it released. */
static void judge_order(struct conn *c)
{
    const struct model_hold *h = judge_unseen_release(c->server->judge, c, c->asking_us);

    if (h)
        check_order(h, c->client, c->asking_us);
}

static void run_requests(struct conn *c)
{
    struct server *s = c->server;
    const char *line[3];
    size_t len[3], all;

    while (!c->eof_told && !c->hanging_up && !c->blocked && !c->server_error && take_request(c, line, len, &all)) {
        char copy[1024];

        if (all > sizeof copy)
            sim_fault("server", "a request of %zu bytes", all);
        memcpy(copy, line[0], all);
        for (int i = 2; i >= 0; i--)
            line[i] = copy + (line[i] - line[0]);
        c->to_server.start += all;
        TRACE("server %d #%d -> %.*s %.*s %.*s", s->id, c->id, (int)len[0], line[0], (int)len[1], line[1], (int)len[2],
              line[2]);
        c->active_ms = server_now(s).ms;
        c->asking_us = c->asked[c->taken++ % 4096].sent_us;
        judge(judge_request(s->judge, c, line, len), s, c);
        judge_order(c);
        s->ops->request(c->peer, line, len);
        flush_emitted(s, c, releases(line[0], len[0]));
        if (c->blocked)
            judge(judge_blocks(s->judge, c), s, c);
    }
}

static void look_at(struct conn *c)
{
    struct server *s = c->server;

    if (c->eof_told)
        return;
    run_requests(c);
    if (c->eof_told)
        return;
    if (c->blocked && s->traits->close_unseen)
        return; /* it reads nothing meanwhile */
    if (c->server_error || c->server_eof || (c->blocked && c->to_server.end - c->to_server.start > BEHIND_BLOCKED))
        over(c, false);
}

static void read_timeout(struct conn *c)
{
    struct server *s = c->server;

    if (c->blocked || server_now(s).ms < c->active_ms + s->read_timeout_ms)
        return;
    TRACE("server %d #%d was silent too long", s->id, c->id);
    net_to_client(c, "error\n", 6);
    over(c, false);
}

/* -------------------------------------------------------------- processes */

static void wake(void *arg, uint64_t n)
{
    struct server *s = arg;

    (void)n;
    if (s->wake_at > sim_now)
        return;
    s->wake_at = INT64_MAX;
    if (!s->ended && !s->paused)
        step(s);
}

static int64_t earliest(struct server *s)
{
    int64_t next = s->ops->next_ms(s->impl);

    for (struct conn *c = s->conns; c; c = c->next_of_server) {
        if (!c->blocked && c->active_ms + s->read_timeout_ms < next)
            next = c->active_ms + s->read_timeout_ms;
    }
    return next;
}

static void schedule(struct server *s)
{
    int64_t next = earliest(s), at;

    if (next == INT64_MAX)
        return;
    at = clock_when(&s->clock, next);
    if (at <= sim_now)
        at = sim_now + 1;
    if (at < s->wake_at) {
        s->wake_at = at;
        sim_at(at, wake, s, 0);
    }
}

/* Everything that a process can do now. */
static void step(struct server *s)
{
    struct conn *next;

    if (s->ended || s->paused)
        return;
    s->ops->tick(s->impl);
    flush_emitted(s, NULL, false);
    do {
        look_again = false;
        for (struct conn *c = s->conns; c; c = next) {
            next = c->next_of_server;
            look_at(c);
        }
        for (struct conn *c = s->conns; c; c = next) {
            next = c->next_of_server;
            read_timeout(c);
        }
    } while (look_again);
    judge_expire(s->judge, check_expired);
    judge(judge_settle(s->judge), s, NULL);
    schedule(s);
}

void server_arrived(struct conn *c)
{
    struct server *s = c->server;

    if (s && !s->ended && !s->paused && !c->eof_told)
        step(s);
}

static void limits(struct server *s)
{
    s->read_timeout_ms = profile.read_timeout_s * 1000;
    s->default_lease_s = profile.default_lease_s;
    s->max_locks = 1024;
    s->sweep_ms = 1000;
    s->auto_release = true;
    if (profile.caps) {
        if (rnd_chance(300))
            s->max_connections = (size_t)rnd_range(1, 6);
        if (rnd_chance(300))
            s->max_locks = (size_t)rnd_range(1, 4);
        if (rnd_chance(300))
            s->max_waiters = (size_t)rnd_range(1, 3);
    }
}

static void after_the_last(struct server *s, struct address *a)
{
    if (s->state_file && a->unclean && a->lease_end_us > sim_now) {
        s->recovering = true;
        s->gate_ms = server_now(s).ms + (a->lease_end_us - sim_now) / 1000 + 1;
        TRACE("server %d grants nothing for %.1f s", s->id, (double)(a->lease_end_us - sim_now) / 1e6);
    } else if (!s->state_file) {
        uint64_t clock = (uint64_t)(INT64_C(1790000000000) * 1000000 + sim_now * 1000);

        a->fence = clock > a->fence ? clock : a->fence;
    }
}

int64_t server_lease(const struct server *s, int64_t asked_s)
{
    return asked_s < s->longest_lease_s ? asked_s : s->longest_lease_s;
}

/* Some grant no lease longer than that, whatever is asked for. */
static int64_t some_longest_lease(const struct server *s)
{
    uint64_t n = profile.seed / 11 + (uint64_t)s->address;

    return s->personality != BUNDLED && n % 4 == 0 ? 1 + (int64_t)(n / 4 % 10) : DFL_SECONDS_MAX;
}

struct server *server_start(int address)
{
    struct address *a = &addresses[address];
    struct server *s = sim_new(sizeof *s);
    static int ids;

    if (all_servers == NULL)
        ids = 0;
    s->id = ++ids;
    s->address = address;
    s->personality = a->personality;
    s->traits = &traits_of[s->personality];
    s->ops = s->personality == BUNDLED ? &bundled_ops : &reference_ops;
    s->clock = (struct sim_clock){rnd_range(1000, 100000000), profile.calm ? 0 : rnd_range(-5000, 5000), 0, 0};
    s->wake_at = INT64_MAX;
    limits(s);
    s->auto_release = (profile.seed / 7 + (uint64_t)address) % 5 != 0;
    s->state_file = s->personality == BUNDLED && (profile.seed / 3 + (uint64_t)address) % 2 == 0;
    s->longest_lease_s = some_longest_lease(s);
    s->next = all_servers;
    all_servers = s;
    s->judge = judge_new(s);
    TRACE("server %d (%s) starts on %s%s, leases of at most %lld s", s->id, s->traits->name, a->text,
          s->auto_release ? "" : ", auto-release off", (long long)s->longest_lease_s);
    after_the_last(s, a);
    s->impl = s->ops->start(s);
    a->listening = s;
    a->silent = false;
    a->processes++;
    counters.by_personality[s->personality]++;
    return s;
}

void server_kill(struct server *s, bool silently)
{
    struct address *a = &addresses[s->address];
    struct conn *next;

    if (s->ended)
        return;
    TRACE("server %d ends%s", s->id, silently ? ", and its host with it" : "");
    s->ended = true;
    s->ended_us = sim_now;
    a->unclean = true;
    if (a->listening == s)
        a->listening = NULL;
    for (struct server *other = all_servers; silently && other; other = other->next) {
        if (other->address == s->address)
            server_kill(other, true); /* one that drains is on the same host */
    }
    if (a->listening == NULL)
        a->silent = silently;
    for (struct conn *c = s->conns; c; c = next) {
        next = c->next_of_server;
        c->eof_told = true;
        c->blocked = false;
        if (silently)
            net_cut(c, TO_CLIENT);
        net_server_close(c, silently);
        s->ops->gone(c->peer);
    }
    s->conns = NULL;
    emitted_count = 0;
    s->ops->stop(s->impl);
    s->impl = NULL;
}

static void drained(void *arg, uint64_t n)
{
    (void)n;
    server_kill(arg, false);
}

void server_drain(struct server *s)
{
    if (s->ended || s->draining)
        return;
    TRACE("server %d drains", s->id);
    s->draining = true;
    if (s->personality != BUNDLED && addresses[s->address].listening == s)
        addresses[s->address].listening = NULL;
    judge_drained(s->judge);
    s->ops->drain(s->impl);
    flush_emitted(s, NULL, false);
    step(s);
    sim_at(sim_now + 30 * SECOND, drained, s, 0);
}

static void resume(void *arg, uint64_t n)
{
    struct server *s = arg;

    (void)n;
    if (!s->paused || sim_now < s->paused_us)
        return;
    s->paused = false;
    clock_go_on(&s->clock);
    TRACE("server %d goes on", s->id);
    if (!s->ended)
        step(s);
}

void server_pause(struct server *s, int64_t us)
{
    if (s->ended)
        return;
    TRACE("server %d stops for %.3f s", s->id, (double)us / 1e6);
    s->paused = true;
    if (sim_now + us > s->paused_us)
        s->paused_us = sim_now + us;
    outage_add(&s->stopped, s->paused_us);
    if (s->personality != BUNDLED && rnd_chance(300))
        clock_stop(&s->clock); /* its machine sleeps, and its clock with it */
    sim_at(s->paused_us, resume, s, 0);
}

void server_free_all(void)
{
    for (struct server *s = all_servers; s; s = s->next) {
        if (!s->ended)
            server_kill(s, true);
    }
}
