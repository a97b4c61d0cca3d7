/*
 * host.c - processes with an engine, driven as the two hosts do. A worker (PostgreSQL) watches its sockets all the time and has many
 * sessions, whose checks look at what was published only; a thread (SQLite) has one session, reads while a call runs or something was
 * left behind, and otherwise wakes for the timers only.
 */
#include "sim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const key_names[KEYS] = {"a", "job:2", "c", "pool", "pool:large"};

struct client *all_clients;
static int client_count;

void hosts_begin(void)
{
    all_clients = NULL;
    client_count = 0;
}

struct dfl_now client_now(const struct client *c)
{
    return clock_now(&c->clock, c->wall_skew_ms);
}

int client_address(const struct client *c, int key)
{
    return (int)dfl_shard(key_names[key], strlen(key_names[key]), (size_t)c->list_length) + c->list_start;
}

/* ---------------------------------------------------------------- callbacks */

static void on_watch(void *ctx, int fd, unsigned events, void *tag)
{
    struct client *c = ctx;
    size_t i = 0;

    while (i < c->watched_count && c->watched[i].fd != fd)
        i++;
    if (events == 0) {
        if (i == c->watched_count)
            sim_fault("host", "the engine forgets a descriptor that was not watched");
        c->watched[i] = c->watched[--c->watched_count];
        return;
    }
    if (i == sizeof c->watched / sizeof c->watched[0])
        sim_fault("host", "more than %zu connections", i);
    c->watched[i] = (struct watched){fd, events, tag};
    c->watched_count += i == c->watched_count;
}

static void on_log(void *ctx, enum dfl_level level, const char *text)
{
    struct client *c = ctx;

    (void)level;
    TRACE("client %d says: %s", c->id, text);
}

static void look_at_end(void *arg, uint64_t n)
{
    struct user *u = arg;
    struct client *c = u->client;
    enum dfl_status status;

    (void)n;
    if (c->dead || u->call == NULL || !u->ended)
        return;
    if (c->suspended)
        return; /* looked at when it goes on */
    status = dfl_call_status(u->call);
    TRACE("client %d.%d: %s%s%s", c->id, u->id, dfl_status_info(status)->name, status == DFL_OK ? "" : ": ",
          status == DFL_OK ? "" : dfl_call_error(u->call)->text);
    check_call(u, status);
    dfl_call_free(u->call, client_now(c));
    u->call = NULL;
    u->ended = false;
    client_touched(c);
    script_follow(u);
}

static void on_call_done(void *ctx, struct dfl_call *call)
{
    struct client *c = ctx;
    struct user *u = dfl_call_user(call);

    u->ended = true;
    if (u->doing == ACT_ACQUIRE || u->doing == ACT_ENQUEUE) {
        u->before.key = u->key;
        u->before.began_us = u->began_us;
        u->before.ended_us = sim_now;
    }
    if (!c->dead && u->doing == ACT_RENEW && dfl_call_status(call) == DFL_OK)
        check_renewed(u);
    if (!c->dead)
        sim_at(sim_now, look_at_end, u, 0);
}

static struct shadow *shadow_of(struct client *c, const struct dfl_hold *hold)
{
    struct shadow *h = c->shadows;

    while (h && h->hold != hold)
        h = h->next;
    return h;
}

static int key_index(const char *key, size_t len)
{
    for (int i = 0; i < KEYS; i++) {
        if (strlen(key_names[i]) == len && memcmp(key_names[i], key, len) == 0)
            return i;
    }
    sim_fault("host", "a hold of a key that nobody named");
}

static void on_hold_changed(void *ctx, struct dfl_hold *hold)
{
    struct client *c = ctx;
    struct shadow *h = shadow_of(c, hold);
    struct dfl_hold_info info;
    bool begins;

    dfl_hold_info(hold, &info);
    if (h == NULL) {
        h = sim_new(sizeof *h);
        h->hold = hold;
        h->next = c->shadows;
        c->shadows = h;
        h->key = key_index(info.key, info.key_len);
        h->kind = info.kind;
    }
    begins = info.state == DFL_HELD && h->state != DFL_HELD;
    if (info.state == DFL_STATE_LOST && h->state != info.state) {
        TRACE("client %d: lost %s: %s", c->id, key_names[h->key], info.last_error);
        counters.holds_lost++;
    }
    if (h->state == DFL_HELD && info.state == DFL_RELEASING && h->model)
        h->model->seen->given_back_us = sim_now;
    h->user = info.session ? dfl_session_user(info.session) : NULL;
    if (info.state == DFL_CONFIRMING && h->state != info.state && h->user)
        h->user->confirmed_ms = client_now(c).ms;
    if (h->state == DFL_CONFIRMING && info.state == DFL_TRYING && h->user)
        h->user->anew_ms = client_now(c).ms;
    h->client = c;
    h->state = info.state;
    h->link = info.link;
    h->lease_deadline_ms = info.lease_deadline_ms;
    h->lease_s = info.lease_s;
    h->fence = info.fence;
    snprintf(h->token, sizeof h->token, "%s", info.token);
    if (begins && !c->dead)
        check_new_hold(h);
}

static void on_hold_gone(void *ctx, struct dfl_hold *hold)
{
    struct client *c = ctx;
    struct shadow **at = &c->shadows;

    while (*at && (*at)->hold != hold)
        at = &(*at)->next;
    if (*at == NULL)
        sim_fault("host", "the end of a hold that nobody was told of");
    *at = (*at)->next;
}

static void on_link(void *ctx, unsigned link, int64_t deadline_ms)
{
    struct client *c = ctx;

    if (link >= sizeof c->links / sizeof c->links[0])
        sim_fault("host", "link %u", link);
    c->links[link] = deadline_ms;
}

static bool take(int64_t *count, int64_t max)
{
    if (*count >= max)
        return false;
    ++*count;
    return true;
}

static bool on_take_lock(void *ctx)
{
    return take(&((struct client *)ctx)->locks, ((struct client *)ctx)->max_locks);
}

static void on_give_lock(void *ctx)
{
    if (--((struct client *)ctx)->locks < 0)
        sim_fault("host", "a lock is given back twice");
}

static bool on_take_socket(void *ctx)
{
    return take(&((struct client *)ctx)->sockets, ((struct client *)ctx)->max_sockets);
}

static void on_give_socket(void *ctx)
{
    if (--((struct client *)ctx)->sockets < 0)
        sim_fault("host", "a socket is given back twice");
}

/* ------------------------------------------------------------------ driving */

static struct conn *conn_with(int fd)
{
    struct conn *c = net_conns;

    while (c && c->fd != fd)
        c = c->next;
    return c;
}

static unsigned readiness(const struct watched *w)
{
    const struct conn *c = conn_with(w->fd);
    unsigned is = 0;

    if (c->client_closed)
        sim_fault("host", "a closed descriptor is watched");
    if (c->to_client.end > c->to_client.start || c->client_eof || c->client_error || c->state == CONN_REFUSED)
        is |= DFL_READABLE;
    if (c->state == CONN_UP || c->state == CONN_REFUSED || c->client_error)
        is |= DFL_WRITABLE;
    return is & w->events;
}

static bool watches(const struct client *c)
{
    if (c->worker || dfl_client_left_behind(c->c))
        return true;
    return c->users[0].call && !c->users[0].ended;
}

static void read_sockets(struct client *c, struct dfl_now now)
{
    int fds[128];
    size_t count = c->watched_count;

    for (size_t i = 0; i < count; i++)
        fds[i] = c->watched[i].fd;
    for (size_t i = 0; i < count; i++) {
        for (size_t j = 0; j < c->watched_count; j++) {
            unsigned ready = c->watched[j].fd == fds[i] ? readiness(&c->watched[j]) : 0;

            if (ready) {
                dfl_client_ready(c->c, c->watched[j].tag, ready, now);
                break;
            }
        }
    }
}

static void pump(void *arg, uint64_t n)
{
    struct client *c = arg;
    struct dfl_now now = client_now(c);
    bool timers_first = rnd_chance(500);

    if (n != c->pump_number || c->dead || c->suspended)
        return;
    c->pump_at = INT64_MAX;
    if (timers_first)
        dfl_client_run(c->c, now);
    if (watches(c))
        read_sockets(c, now);
    if (!timers_first)
        dfl_client_run(c->c, now);
    client_touched(c);
}

static void pump_at(struct client *c, int64_t at)
{
    if (at >= c->pump_at)
        return;
    c->pump_at = at;
    sim_at(at, pump, c, ++c->pump_number);
}

static int64_t latency(const struct client *c)
{
    return c->worker && rnd_chance(20) ? rnd_range(0, 20 * MS) : rnd_range(0, 300);
}

void client_notify(struct client *c)
{
    if (!c->dead && !c->suspended && watches(c))
        pump_at(c, sim_now + latency(c));
}

/* At its next time, or when something can be read, unless it comes earlier anyhow. */
void client_asked(struct client *c)
{
    int64_t next, at;

    if (c->dead || c->suspended)
        return;
    next = dfl_client_next_ms(c->c);
    if (next != INT64_MAX) {
        at = clock_when(&c->clock, next);
        pump_at(c, at > sim_now ? at : sim_now + 1);
    }
    for (size_t i = 0; i < c->watched_count && watches(c); i++) {
        if (readiness(&c->watched[i])) {
            pump_at(c, sim_now + latency(c));
            break;
        }
    }
}

void client_touched(struct client *c)
{
    c->pump_at = INT64_MAX;
    c->pump_number++;
    client_asked(c);
}

/* --------------------------------------------------------- birth and death */

static void set(struct dfl_settings *s, const char *name, const char *value)
{
    struct dfl_error err;

    if (dfl_settings_set(s, name, value, &err) != DFL_OK)
        sim_fault("host", "%s", err.text);
}

static void set_servers(struct client *c)
{
    char list[400] = "";

    for (int i = 0; i < c->list_length; i++)
        snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s", i ? "," : "", addresses[c->list_start + i].text);
    set(&c->settings, "servers", list);
}

static void make_settings(struct client *c)
{
    if (dfl_settings_init(&c->settings) != DFL_OK)
        sim_fault("host", "no memory");
    c->settings.connect_timeout_ms = profile.connect_timeout_ms;
    c->settings.server_read_timeout_ms = profile.read_timeout_s * 1000;
    c->settings.keepalive_ms = profile.keepalive_ms;
    c->settings.renew_ratio = profile.renew_ratio;
    set_servers(c);
}

struct client *client_start(bool worker)
{
    struct client *c = sim_new(sizeof *c);
    struct dfl_client_config config = {.settings = &c->settings, .seed = rnd(), .keep_warm = worker};
    struct dfl_error err;

    c->id = ++client_count;
    c->worker = worker;
    c->clock = (struct sim_clock){rnd_range(1000, 1000000000), profile.calm ? 0 : rnd_range(-5000, 5000), 0, 0};
    c->wall_skew_ms = rnd_range(-3600000, 3600000);
    c->list_length = profile.servers;
    c->max_locks = profile.caps && rnd_chance(300) ? rnd_range(1, 4) : 1000;
    c->max_sockets = profile.caps && rnd_chance(300) ? rnd_range(1, 5) : 120;
    c->pump_at = INT64_MAX;
    c->next = all_clients;
    all_clients = c;
    c->net = net_of(c);
    make_settings(c);
    if (dfl_fence_book_new(&c->book) != DFL_OK)
        sim_fault("host", "no memory");
    config.fences = c->book;
    config.host = (struct dfl_host){c, on_watch, on_log, on_call_done, on_hold_changed, on_hold_gone, on_link, on_take_lock,
                                    on_give_lock, on_take_socket, on_give_socket, &c->net};
    if (dfl_client_new(&config, &c->c, &err) != DFL_OK)
        sim_fault("host", "%s", err.text);
    c->user_count = worker ? (int)rnd_range(1, USERS) : 1;
    for (int i = 0; i < c->user_count; i++) {
        c->users[i].client = c;
        c->users[i].id = i + 1;
        user_begin(&c->users[i]);
    }
    TRACE("client %d starts as a %s with %d sessions", c->id, worker ? "worker" : "thread", c->user_count);
    return c;
}

void user_begin(struct user *u)
{
    if (dfl_session_new(u->client->c, u, &u->s) != DFL_OK)
        sim_fault("host", "no memory");
}

void user_end(struct user *u)
{
    struct client *c = u->client;

    if (u->s == NULL)
        return;
    TRACE("client %d.%d ends", c->id, u->id);
    u->cancelling = true;
    dfl_session_end(u->s, client_now(c));
    u->s = NULL;
    u->call = NULL;
    u->cancelling = u->ended = false;
    client_touched(c);
}

void user_cancel(struct user *u)
{
    struct client *c = u->client;

    if (u->call == NULL || u->ended)
        return;
    TRACE("client %d.%d cancels", c->id, u->id);
    counters.cancelled++;
    u->cancelling = true;
    dfl_call_cancel(u->call, client_now(c));
    u->cancelling = false;
    if (!u->ended)
        sim_fault("cancel", "a cancelled call goes on");
    client_touched(c);
}

void client_end(struct client *c)
{
    for (int i = 0; i < c->user_count; i++)
        user_end(&c->users[i]);
}

void client_free(struct client *c)
{
    if (c->c == NULL)
        return;
    for (int i = 0; i < c->user_count; i++) {
        if (c->users[i].s)
            dfl_session_end(c->users[i].s, client_now(c));
        c->users[i].s = NULL;
        c->users[i].call = NULL;
    }
    dfl_client_free(c->c);
    c->c = NULL;
    dfl_fence_book_free(c->book);
    dfl_settings_free(&c->settings);
    if (c->locks || c->sockets || c->shadows)
        sim_fault("left", "client %d leaves %lld locks and %lld sockets counted", c->id, (long long)c->locks,
                  (long long)c->sockets);
    for (struct conn *conn = net_conns; conn; conn = conn->next) {
        if (conn->client == c && !conn->client_closed)
            sim_fault("left", "client %d leaves #%d open", c->id, conn->id);
    }
}

void client_crash(struct client *c, bool silently)
{
    TRACE("client %d dies%s", c->id, silently ? ", and its host with it" : "");
    c->dead = true;
    for (struct conn *conn = net_conns; conn; conn = conn->next) {
        if (conn->client != c || conn->client_closed)
            continue;
        net_client_crash(conn, silently);
        conn->client_closed = false; /* for the engine's own end, which nobody hears */
    }
    client_free(c);
}

static void resume(void *arg, uint64_t n)
{
    struct client *c = arg;

    (void)n;
    if (c->dead || !c->suspended || sim_now < c->resume_us)
        return;
    c->suspended = false;
    c->resumed_ms = client_now(c).ms;
    TRACE("client %d goes on", c->id);
    /* Who wakes up may ask before the engine has run. */
    for (int i = 0; i < c->user_count && rnd_chance(500); i++) {
        for (int key = 0; key < KEYS && c->users[i].s; key++)
            check_asked(&c->users[i], key);
    }
    client_touched(c);
    pump_at(c, sim_now + latency(c));
    for (int i = 0; i < c->user_count; i++) {
        if (c->users[i].ended)
            sim_at(sim_now, look_at_end, &c->users[i], 0);
    }
}

void client_suspend(struct client *c, int64_t us)
{
    TRACE("client %d stops for %.3f s", c->id, (double)us / 1e6);
    c->suspended = true;
    if (sim_now + us > c->resume_us)
        c->resume_us = sim_now + us;
    outage_add(&c->stopped, c->resume_us);
    sim_at(c->resume_us, resume, c, 0);
}

void client_reconfigure(struct client *c, int list_length)
{
    struct dfl_error err;
    enum dfl_status status;

    TRACE("client %d: list of %d servers", c->id, list_length);
    c->list_length = list_length;
    c->list_changed_us = sim_now;
    set_servers(c);
    status = dfl_client_configure(c->c, &c->settings, NULL, NULL, client_now(c), &err);
    if (status != DFL_OK)
        sim_fault("host", "%s", err.text);
    client_touched(c);
}
