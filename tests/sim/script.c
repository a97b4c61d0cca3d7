/*
 * script.c - what sessions ask for, and what goes wrong meanwhile: both from the schedule's random numbers. The first few of them make the
 * profile, so that each kind of trouble also appears alone, and some schedules have none.
 */
#include "sim.h"

#include <stdio.h>
#include <string.h>

#define END_OF_ACTS (150 * SECOND)

static int acts_left;


/* ----------------------------------------------------------------- profile */

void script_profile(uint64_t seed)
{
    bool quiet = rnd_chance(150);

    memset(&profile, 0, sizeof profile);
    profile.seed = seed;
    profile.calm = rnd_chance(80);
    profile.cuts = !quiet && rnd_chance(500);
    profile.foreign_release = !quiet && rnd_chance(400);
    profile.restarts = !quiet && rnd_chance(500);
    profile.drains = profile.restarts && rnd_chance(400);
    profile.suspends = rnd_chance(500);
    profile.crashes = rnd_chance(400);
    profile.cancels = rnd_chance(600);
    profile.pauses = rnd_chance(400);
    profile.caps = rnd_chance(200);
    profile.list_changes = rnd_chance(250);
    profile.default_lease_s = rnd_chance(500) ? 33 : rnd_range(1, 10);
    profile.delay_max = rnd_log(20 * MS, 2 * profile.default_lease_s * SECOND);
    profile.late_per_mille = rnd_chance(300) ? 0 : (int)rnd_range(1, 150);
    profile.servers = profile.list_changes || rnd_chance(200) ? 3 : 1;
    profile.clients = (int)rnd_range(1, 3);
    profile.actions = (int)rnd_range(20, 120);
    profile.read_timeout_s = rnd_chance(500) ? 23 : rnd_range(4, 15);
    profile.connect_timeout_ms = rnd_chance(500) ? rnd_range(300, 3000) : 10000;
    profile.keepalive_ms = rnd_range(1000, 7000);
    profile.renew_ratio = rnd_chance(600) ? 0.5 : (double)rnd_range(10, 80) / 100;
    if (profile.calm) {
        profile.cuts = profile.restarts = profile.drains = profile.suspends = profile.pauses = profile.crashes = false;
        profile.late_per_mille = 0;
        profile.list_changes = false;
    }
    profile.places = !profile.calm && rnd_chance(100);
    if (profile.places) {
        profile.late_per_mille = (int)rnd_range(50, 250);
        profile.connect_timeout_ms = 10000;
        profile.delay_max = rnd_range(2, 8) * SECOND;
    }
    profile.late = profile.late_per_mille > 0;
    profile.asking = rnd_chance(250);
    TRACE("seed %llu: %s%s%s%s%s%s%s%s%s%sread timeout %lld s, connect timeout %lld ms, keepalive %lld ms, lease %lld s, renewal %.2f",
          (unsigned long long)seed, profile.calm ? "calm " : "", profile.cuts ? "cuts " : "",
          profile.foreign_release ? "releases " : "", profile.restarts ? "restarts " : "", profile.drains ? "drains " : "",
          profile.suspends ? "stops " : "", profile.crashes ? "crashes " : "", profile.cancels ? "cancels " : "",
          profile.caps ? "caps " : "", profile.list_changes ? "lists " : "", (long long)profile.read_timeout_s,
          (long long)profile.connect_timeout_ms, (long long)profile.keepalive_ms, (long long)profile.default_lease_s,
          profile.renew_ratio);
}

/* -------------------------------------------------------------------- acts */

static int64_t some_lease(void)
{
    static const int64_t leases[] = {0, 0, 1, 2, 3, 5, 10, 33, 60};

    return profile.places ? rnd_range(1, 2) : leases[rnd_range(0, 8)];
}

static int64_t some_timeout(void)
{
    static const int64_t timeouts[] = {0, 0, 300, 1000, 1500, 2000, 2700, 5000, 20000, DFL_FOREVER};

    return timeouts[rnd_range(0, 9)];
}

static void choose(struct user *u)
{
    u->key = (int)rnd_range(0, KEYS - 1);
    if (rnd_chance(400))
        u->key = 0; /* there must be a crowd somewhere */
    u->kind = u->key >= 3 ? DFL_SEMAPHORE : DFL_LOCK;
    u->slots = u->key == 3 ? 2 : 3;
    if (rnd_chance(20))
        u->slots = 1;
    if (rnd_chance(20))
        u->kind = u->kind == DFL_LOCK ? DFL_SEMAPHORE : DFL_LOCK;
    u->lease_s = some_lease();
    u->timeout_ms = some_timeout();
    u->lock_timeout_ms = rnd_chance(100) ? rnd_range(1, 5000) : 0;
    u->began_ms = client_now(u->client).ms;
    u->began_us = sim_now;
    u->said_busy = false;
    u->bare = u->client->shadows == NULL;
    u->address = client_address(u->client, u->key);
}

/* Something that the session has is more interesting than nothing. */
static struct shadow *own(struct user *u, enum dfl_state state)
{
    struct shadow *found = NULL;
    int n = 0;

    for (struct shadow *h = u->client->shadows; h; h = h->next) {
        if (h->user == u && h->state == state && rnd_range(0, n++) == 0)
            found = h;
    }
    return found;
}

static void take_up(struct user *u, const struct shadow *h)
{
    struct dfl_hold_info info;

    if (h == NULL)
        return;
    dfl_hold_info(h->hold, &info);
    u->key = h->key;
    u->kind = h->kind;
    for (int i = 0; i < ADDRESSES; i++) {
        if (strcmp(addresses[i].text, info.server) == 0)
            u->address = i;
    }
}

static const struct shadow *anybodys(const struct user *u)
{
    const struct shadow *found = NULL;
    int n = 0;

    for (struct client *c = all_clients; c; c = c->next) {
        if (c->dead || (c != u->client && !profile.foreign_release))
            continue;
        for (const struct shadow *h = c->shadows; h; h = h->next) {
            if (h->state == DFL_HELD && rnd_range(0, n++) == 0)
                found = h;
        }
    }
    return found;
}

typedef enum dfl_status act_fn(struct user *u, struct dfl_now now, struct dfl_error *err);

static struct dfl_request_args args_of(struct user *u)
{
    return (struct dfl_request_args){.key = key_names[u->key],
                                     .key_len = strlen(key_names[u->key]),
                                     .kind = u->kind,
                                     .slots = u->slots,
                                     .timeout_ms = u->timeout_ms,
                                     .lock_timeout_ms = u->lock_timeout_ms,
                                     .lease_s = u->lease_s,
                                     .scope = u->client->worker && rnd_chance(200) ? DFL_SCOPE_XACT : DFL_SCOPE_SESSION,
                                     .user = u};
}

static enum dfl_status act_acquire(struct user *u, struct dfl_now now, struct dfl_error *err)
{
    struct dfl_request_args a = args_of(u);

    return dfl_acquire(u->s, &a, now, &u->call, err);
}

static enum dfl_status act_enqueue(struct user *u, struct dfl_now now, struct dfl_error *err)
{
    struct dfl_request_args a = args_of(u);

    return dfl_enqueue(u->s, &a, now, &u->call, err);
}

static enum dfl_status act_wait(struct user *u, struct dfl_now now, struct dfl_error *err)
{
    struct dfl_request_args a;

    take_up(u, own(u, DFL_QUEUED));
    a = args_of(u);
    return dfl_wait_turn(u->s, &a, now, &u->call, err);
}

static enum dfl_status act_cancel(struct user *u, struct dfl_now now, struct dfl_error *err)
{
    (void)err;
    take_up(u, own(u, DFL_QUEUED));
    u->cancelling = true;
    dfl_cancel(u->s, key_names[u->key], strlen(key_names[u->key]), now);
    u->cancelling = false;
    return DFL_NOT_QUEUED;
}

static enum dfl_status act_release(struct user *u, struct dfl_now now, struct dfl_error *err)
{
    take_up(u, own(u, DFL_HELD));
    return dfl_release(u->s, u->kind, key_names[u->key], strlen(key_names[u->key]), rnd_chance(700), u, now, &u->call, err);
}

static enum dfl_status act_release_all(struct user *u, struct dfl_now now, struct dfl_error *err)
{
    return dfl_release_all(u->s, rnd_chance(700), u, now, &u->call, err);
}

static enum dfl_status act_renew(struct user *u, struct dfl_now now, struct dfl_error *err)
{
    take_up(u, own(u, DFL_HELD));
    return dfl_renew(u->s, key_names[u->key], strlen(key_names[u->key]), rnd_chance(500) ? 0 : rnd_range(1, 20), u, now,
                     &u->call, err);
}

static enum dfl_status act_token(struct user *u, struct dfl_now now, struct dfl_error *err)
{
    const struct shadow *h = anybodys(u);
    char token[40] = "0123456789abcdef0123456789abcdef";

    if (h) {
        u->key = h->key;
        u->kind = h->kind;
        memcpy(token, h->token, sizeof token);
    }
    return dfl_release_token(u->s, u->kind, key_names[u->key], strlen(key_names[u->key]), token, rnd_chance(700), u, now,
                             &u->call, err);
}

static enum dfl_status act_check(struct user *u, struct dfl_now now, struct dfl_error *err)
{
    (void)now, (void)err;
    check_asked(u, (int)rnd_range(0, KEYS - 1));
    return DFL_NOT_HELD;
}

static enum dfl_status act_give_back(struct user *u, struct dfl_now now, struct dfl_error *err)
{
    struct shadow *h = own(u, rnd_chance(500) ? DFL_HELD : DFL_QUEUED);

    (void)err;
    u->cancelling = true;
    if (h)
        dfl_hold_give_back(h->hold, now);
    u->cancelling = false;
    return DFL_NOT_HELD;
}

static enum dfl_status act_stats(struct user *u, struct dfl_now now, struct dfl_error *err)
{
    return dfl_stats(u->s, u, now, &u->call, err);
}

static enum dfl_status act_ping(struct user *u, struct dfl_now now, struct dfl_error *err)
{
    return dfl_ping(u->s, u, now, &u->call, err);
}

static enum dfl_status act_end(struct user *u, struct dfl_now now, struct dfl_error *err)
{
    (void)now, (void)err;
    user_end(u);
    user_begin(u);
    return DFL_NOT_HELD;
}

static const struct {
    enum action_kind kind;
    int weight;
    act_fn *run;
    const char *name;
} acts[] = {
    {ACT_ACQUIRE, 40, act_acquire, "acquire"}, {ACT_ENQUEUE, 14, act_enqueue, "enqueue"},
    {ACT_WAIT, 20, act_wait, "wait"},          {ACT_CANCEL, 4, act_cancel, "cancel"},
    {ACT_RELEASE, 24, act_release, "release"}, {ACT_RELEASE_ALL, 3, act_release_all, "release_all"},
    {ACT_RENEW, 6, act_renew, "renew"},        {ACT_TOKEN, 5, act_token, "release by token"},
    {ACT_CHECK, 12, act_check, "check"},       {ACT_GIVE_BACK, 4, act_give_back, "give back"},
    {ACT_STATS, 1, act_stats, "stats"},        {ACT_PING, 1, act_ping, "ping"},
    {ACT_END, 3, act_end, "end"},
};
#define ACTS (sizeof acts / sizeof acts[0])

static size_t some_act(void)
{
    int64_t all = 0, at;
    size_t i = 0;

    for (size_t j = 0; j < ACTS; j++)
        all += acts[j].weight;
    for (at = rnd_range(0, all - 1); at >= acts[i].weight; i++)
        at -= acts[i].weight;
    return i;
}

static void act(struct user *u, size_t i)
{
    struct dfl_error err = {.text = ""};
    enum dfl_status status;

    choose(u);
    u->doing = acts[i].kind;
    u->starting = true;
    u->ended = false;
    u->call = NULL;
    status = acts[i].run(u, client_now(u->client), &err);
    u->starting = false;
    TRACE("client %d.%d: %s %s, timeout %lld ms, lease %lld s: %s", u->client->id, u->id, acts[i].name, key_names[u->key],
          (long long)u->timeout_ms, (long long)u->lease_s,
          status == DFL_OK ? "begun" : err.text[0] ? err.text : "done");
    if (status == DFL_INTERNAL || status == DFL_NOMEM)
        sim_fault("status", "client %d.%d: %s", u->client->id, u->id, err.text);
    client_touched(u->client);
}

static size_t act_of(enum action_kind kind)
{
    size_t i = 0;

    while (acts[i].kind != kind)
        i++;
    return i;
}

void script_act(struct user *u)
{
    act(u, profile.places && rnd_chance(400) ? act_of(ACT_ENQUEUE) : some_act());
}

void script_follow(struct user *u)
{
    if (acts_left <= 0 || u->doing != ACT_ENQUEUE || !rnd_chance(profile.places ? 900 : 300))
        return;
    acts_left--;
    act(u, act_of(ACT_WAIT));
}

static void user_due(void *arg, uint64_t n)
{
    struct user *u = arg;
    struct client *c = u->client;

    if (c->dead || acts_left <= 0)
        return;
    sim_at(sim_now + rnd_log(MS, rnd_chance(50) ? 2 * profile.default_lease_s * SECOND : 3 * SECOND), user_due, u, n);
    if (c->suspended || u->s == NULL)
        return;
    if (u->call == NULL) {
        acts_left--;
        script_act(u);
    } else if (!u->ended && profile.cancels && rnd_chance(250)) {
        user_cancel(u);
    }
}

static void begin_users(struct client *c)
{
    for (int i = 0; i < c->user_count; i++)
        sim_at(sim_now + rnd_range(0, 500 * MS), user_due, &c->users[i], 0);
}

/* ------------------------------------------------------------------ trouble */

static struct client *some_client(void)
{
    struct client *found = NULL;
    int n = 0;

    for (struct client *c = all_clients; c; c = c->next) {
        if (!c->dead && rnd_range(0, n++) == 0)
            found = c;
    }
    return found;
}

static struct server *some_server(void)
{
    struct server *found = NULL;
    int n = 0;

    for (struct server *s = all_servers; s; s = s->next) {
        if (!s->ended && rnd_range(0, n++) == 0)
            found = s;
    }
    return found;
}

static struct conn *some_conn(void)
{
    struct conn *found = NULL;
    int n = 0;

    for (struct conn *c = net_conns; c; c = c->next) {
        if (c->server && !c->server_closed && !c->client_closed && !c->client->dead && rnd_range(0, n++) == 0)
            found = c;
    }
    return found;
}

static void start_again(void *arg, uint64_t n)
{
    (void)arg;
    if (addresses[n].listening == NULL)
        server_start((int)n);
}

static void cut(void)
{
    struct conn *c = some_conn();

    if (c == NULL)
        return;
    switch (rnd_range(0, 4)) {
    case 0:
        net_cut(c, TO_SERVER);
        break;
    case 1:
        net_cut(c, TO_CLIENT);
        break;
    case 2:
        net_half_close(c, rnd_chance(700) ? TO_SERVER : TO_CLIENT);
        if (rnd_chance(500))
            net_cut(c, TO_CLIENT);
        break;
    default:
        net_reset(c);
    }
}

static void part(void)
{
    struct client *c = some_client();

    if (c && !profile.calm && profile.late_per_mille)
        net_partition(c, (int)rnd_range(0, profile.servers - 1), rnd_chance(500) ? TO_SERVER : TO_CLIENT,
                      sim_now + rnd_log(50 * MS, 2 * profile.default_lease_s * SECOND));
}

static void restart(void)
{
    struct server *s = some_server();

    if (s == NULL)
        return;
    server_kill(s, rnd_chance(250));
    if (s->draining && addresses[s->address].listening)
        return;
    sim_at(sim_now + rnd_log(MS, 20 * SECOND), start_again, NULL, (uint64_t)s->address);
}

static void drain(void)
{
    struct server *s = some_server();

    if (s == NULL)
        return;
    server_drain(s);
    sim_at(sim_now + rnd_log(MS, 35 * SECOND), start_again, NULL, (uint64_t)s->address);
}

static void suspend(void)
{
    struct client *c = some_client();

    if (c)
        client_suspend(c, rnd_log(MS, 2 * profile.default_lease_s * SECOND));
}

static void crash(void)
{
    struct client *c = some_client();

    if (c == NULL)
        return;
    client_crash(c, rnd_chance(300));
    begin_users(client_start(c->worker));
}

static void pause_server(void)
{
    struct server *s = some_server();

    if (s)
        server_pause(s, rnd_log(MS, profile.default_lease_s * SECOND));
}

static void change_list(void)
{
    struct client *c = some_client();

    if (c && !c->suspended)
        client_reconfigure(c, c->list_length == 3 ? 2 : 3);
}

static const struct {
    const bool *wanted;
    void (*make)(void);
} troubles[] = {
    {&profile.cuts, cut},       {&profile.cuts, cut},         {&profile.restarts, restart},  {&profile.drains, drain},
    {&profile.suspends, suspend}, {&profile.crashes, crash}, {&profile.pauses, pause_server}, {&profile.list_changes, change_list},
    {NULL, part},
};

static void trouble(void *arg, uint64_t n)
{
    size_t i = (size_t)rnd_range(0, (int64_t)(sizeof troubles / sizeof troubles[0]) - 1);

    if (acts_left <= 0)
        return;
    if (troubles[i].wanted == NULL || *troubles[i].wanted)
        troubles[i].make();
    sim_at(sim_now + rnd_log(20 * MS, 8 * SECOND), trouble, arg, n);
}

/* ------------------------------------------------------------ beginning, end */

void script_begin(void)
{
    for (int i = 0; i < 3; i++) {
        struct server *s = server_start(i);

        if (profile.pauses && rnd_chance(100))
            server_pause(s, rnd_range(5 * SECOND, 60 * SECOND)); /* one that is stopped from the beginning */
    }
    for (int i = 0; i < profile.clients; i++)
        begin_users(client_start(rnd_chance(500)));
    acts_left = profile.actions;
    sim_at(sim_now + SECOND, trouble, NULL, 0);
}

bool script_over(void)
{
    return acts_left <= 0 || sim_now > END_OF_ACTS;
}

static void run_until(int64_t until)
{
    while (world_step(until))
        check_all();
}

static void no_more_trouble(void)
{
    acts_left = 0;
    profile.late_per_mille = 0;
    for (struct client *c = all_clients; c; c = c->next) {
        if (c->suspended && !c->dead)
            client_suspend(c, c->resume_us > sim_now ? c->resume_us - sim_now : 0);
    }
    for (int i = 0; i < 3; i++) {
        if (addresses[i].listening == NULL)
            server_start(i);
    }
}

/* What waits unseen for one lease after the other at a server without auto-release; bounded, should it never end. */
static void last_leases(void)
{
    int64_t until = sim_now + 1200 * SECOND;

    for (struct server *s = all_servers; s; s = s->next) {
        while (!s->ended && !s->auto_release && s->traits->close_unseen && judge_empty(s->judge) && sim_now < until)
            run_until(sim_now + 30 * SECOND);
    }
}

static void nothing_left(void)
{
    for (struct server *s = all_servers; s; s = s->next) {
        const char *wrong = s->ended ? NULL : judge_empty(s->judge);

        if (wrong)
            sim_fault("left", "server %d, at the end: %s", s->id, wrong);
    }
    for (struct client *c = all_clients; c; c = c->next) {
        if (c->dead)
            continue;
        if (c->locks || c->shadows)
            sim_fault("left", "client %d has %lld holds and places left", c->id, (long long)c->locks);
        if (dfl_client_left_behind(c->c) && !c->worker)
            sim_fault("left", "client %d has requests left", c->id);
        if (!c->worker && (dfl_client_busy(c->c) || dfl_client_next_ms(c->c) != INT64_MAX))
            sim_fault("left", "client %d has timers left", c->id);
        if (c->sockets > c->list_length) /* control connections, which the client keeps */
            sim_fault("left", "client %d has %lld connections left", c->id, (long long)c->sockets);
    }
}

static void no_connection_left(void)
{
    for (const struct server *s = all_servers; s; s = s->next) {
        if (!s->ended && s->conns)
            sim_fault("left", "server %d, at the end: #%d is open", s->id, s->conns->id);
    }
}

void script_settle(void)
{
    no_more_trouble();
    run_until(sim_now + 130 * SECOND);
    for (struct client *c = all_clients; c; c = c->next) {
        if (!c->dead)
            client_end(c);
    }
    run_until(sim_now + 260 * SECOND);
    last_leases();
    nothing_left();
    for (struct client *c = all_clients; c; c = c->next) {
        if (!c->dead)
            client_free(c);
        c->dead = true;
    }
    run_until(sim_now + 30 * SECOND);
    no_connection_left();
}
