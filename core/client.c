/*
 * client.c - the client as its host sees it: settings and servers, sessions, readiness and time.
 *
 * Owns everything below it. dfl_enter and dfl_leave bracket each entry: on leaving, what was queued
 * is written and what has died is freed.
 */
#include "engine.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --------------------------------------------------------- entering, leaving */

void dfl_enter(struct dfl_client *c, struct dfl_now now)
{
    if (c->depth++ == 0)
        c->now = now;
}

/* A server that has left the list stays as long as something refers to it. */
static void drop_old_servers(struct dfl_client *c)
{
    DFL_EACH(l, &c->servers) {
        struct dfl_server *server = DFL_CONTAINER(l, struct dfl_server, by_client);
        bool busy = server->configured || server->refs > 0 || !dfl_list_empty(&server->watchers);

        DFL_EACH(m, &server->conns)
            busy = busy || !dfl_conn_quiet(DFL_CONTAINER(m, struct dfl_conn, by_server));
        DFL_EACH(n, &c->sessions) {
            struct dfl_session *s = DFL_CONTAINER(n, struct dfl_session, by_client);

            DFL_EACH(o, &s->calls)
                busy = busy || DFL_CONTAINER(o, struct dfl_call, by_session)->server == server;
        }
        if (!busy)
            dfl_server_free(server);
    }
    c->old_servers = false;
    DFL_EACH(k, &c->servers)
        c->old_servers =
            c->old_servers || !DFL_CONTAINER(k, struct dfl_server, by_client)->configured;
}

static void free_dead(struct dfl_client *c)
{
    while (!dfl_list_empty(&c->dead)) {
        struct dfl_conn *conn = DFL_CONTAINER(c->dead.next, struct dfl_conn, by_server);

        dfl_link_remove(&conn->by_server);
        dfl_conn_free(conn);
    }
}

void dfl_leave(struct dfl_client *c)
{
    if (c->depth > 1) {
        c->depth--;
        return;
    }
    while (!dfl_list_empty(&c->dirty))
        dfl_conn_flush(DFL_CONTAINER(c->dirty.next, struct dfl_conn, dirty));
    if (c->old_servers)
        drop_old_servers(c);
    free_dead(c);
    c->depth--;
}

enum dfl_status dfl_timer_room(struct dfl_client *c)
{
    enum dfl_status st = dfl_timers_reserve(&c->timers, c->timer_users + 1);

    if (st == DFL_OK)
        c->timer_users++;
    return st;
}

void dfl_timer_unroom(struct dfl_client *c)
{
    c->timer_users--;
}

double dfl_random(struct dfl_client *c)
{
    uint64_t z = (c->random += UINT64_C(0x9e3779b97f4a7c15));

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return (double)((z ^ (z >> 31)) >> 11) / 9007199254740992.0;
}

void dfl_client_log(struct dfl_client *c, enum dfl_level level, const char *format, ...)
{
    char text[DFL_ERROR_MAX + DFL_ADDRESS_MAX];
    va_list ap;

    if (c->host.log == NULL)
        return;
    va_start(ap, format);
    vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    c->host.log(c->host.ctx, level, text);
}

struct dfl_server *dfl_client_server_of(struct dfl_client *c, const char *key, size_t len)
{
    return c->shards[dfl_shard(key, len, c->shard_count)];
}

/* ------------------------------------------------------------------ settings */

static struct dfl_server *server_at(struct dfl_client *c, const char *address)
{
    DFL_EACH(l, &c->servers) {
        struct dfl_server *server = DFL_CONTAINER(l, struct dfl_server, by_client);

        if (strcmp(server->address.text, address) == 0)
            return server;
    }
    return NULL;
}

/* The shards of a list: known servers stay, new ones are made. Nothing else changes until it cannot
 * fail any more. */
static enum dfl_status make_shards(struct dfl_client *c, const char *text, struct dfl_server ***out,
                                   size_t *count, struct dfl_error *err)
{
    struct dfl_server_address *list = NULL;
    enum dfl_status st = dfl_servers_parse(text, &list, count, err);
    struct dfl_server **shards;

    if (st != DFL_OK)
        return st;
    shards = calloc(*count, sizeof(struct dfl_server *));
    if (shards == NULL)
        st = DFL_NOMEM;
    for (size_t i = 0; st == DFL_OK && i < *count; i++) {
        shards[i] = server_at(c, list[i].text);
        if (shards[i])
            continue;
        st = dfl_server_new(c, &list[i], &shards[i]);
        if (st == DFL_OK) {
            shards[i]->configured = false; /* until all of them are there */
            dfl_list_append(&c->servers, &shards[i]->by_client);
        }
    }
    free(list);
    c->old_servers = true;
    if (st != DFL_OK) {
        free(shards);
        return dfl_fail(err, st, "out of memory");
    }
    *out = shards;
    return DFL_OK;
}

static void use_shards(struct dfl_client *c, struct dfl_server **shards, size_t count)
{
    struct dfl_link old;

    dfl_link_init(&old);
    while (!dfl_list_empty(&c->servers)) {
        struct dfl_server *server = DFL_CONTAINER(c->servers.next, struct dfl_server, by_client);

        server->configured = false;
        dfl_list_append(&old, &server->by_client);
    }
    for (size_t i = 0; i < count; i++) {
        /* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): count > 0 comes with shards */
        shards[i]->configured = true;
        dfl_list_append(&c->servers, &shards[i]->by_client);
    }
    while (!dfl_list_empty(&old))
        dfl_list_append(&c->servers, old.next);
    free(c->shards);
    c->shards = shards;
    c->shard_count = count;
}

static char *copy_token(const char *token)
{
    char *copy = token ? malloc(strlen(token) + 1) : NULL;

    return copy ? strcpy(copy, token) : NULL;
}

static void wipe_token(struct dfl_client *c)
{
    if (c->auth_token) {
        volatile char *p = c->auth_token;

        while (*p)
            *p++ = '\0';
    }
    free(c->auth_token);
    c->auth_token = NULL;
}

static enum dfl_status use_settings(struct dfl_client *c, const struct dfl_settings *settings,
                                    const char *auth_token, struct dfl_tls *tls,
                                    struct dfl_error *err)
{
    struct dfl_settings copy;
    struct dfl_server **shards = NULL;
    size_t count = 0;
    char *token = copy_token(auth_token);
    enum dfl_status st = DFL_OK;

    if ((auth_token && token == NULL) || dfl_settings_copy(&copy, settings) != DFL_OK) {
        free(token);
        return dfl_fail(err, DFL_NOMEM, "out of memory");
    }
    st = make_shards(c, settings->servers, &shards, &count, err);
    if (st != DFL_OK) {
        dfl_settings_free(&copy);
        free(token);
        return st;
    }
    use_shards(c, shards, count);
    dfl_settings_free(&c->settings);
    c->settings = copy;
    c->keepalive_ms = dfl_settings_keepalive_ms(&copy);
    wipe_token(c);
    c->auth_token = token;
    if (tls)
        dfl_tls_retain(tls);
    dfl_tls_release(c->tls);
    c->tls = tls;
    return DFL_OK;
}

enum dfl_status dfl_client_new(const struct dfl_client_config *config, struct dfl_client **out,
                               struct dfl_error *err)
{
    struct dfl_client *c = calloc(1, sizeof *c);
    enum dfl_status st;

    if (c == NULL || dfl_settings_init(&c->settings) != DFL_OK) {
        free(c);
        return dfl_fail(err, DFL_NOMEM, "out of memory");
    }
    c->host = config->host;
    c->net = config->host.net ? config->host.net : dfl_net_sockets();
    c->book = config->fences;
    c->random = config->seed;
    c->keep_warm = config->keep_warm;
    dfl_timers_init(&c->timers);
    dfl_link_init(&c->servers);
    dfl_link_init(&c->sessions);
    dfl_link_init(&c->dirty);
    dfl_link_init(&c->dead);
    st = use_settings(c, config->settings, config->auth_token, config->tls, err);
    if (st != DFL_OK) {
        dfl_client_free(c);
        return st;
    }
    *out = c;
    return DFL_OK;
}

enum dfl_status dfl_client_configure(struct dfl_client *c, const struct dfl_settings *settings,
                                     const char *auth_token, struct dfl_tls *tls,
                                     struct dfl_now now, struct dfl_error *err)
{
    enum dfl_status st;

    dfl_enter(c, now);
    st = use_settings(c, settings, auth_token, tls, err);
    /* What is idle was made with the old material; what owns nothing is dialled anew. */
    while (st == DFL_OK && dfl_server_close_idle(c))
        continue;
    DFL_EACH(l, &c->servers) {
        struct dfl_conn *control = DFL_CONTAINER(l, struct dfl_server, by_client)->control;

        if (st == DFL_OK && control && dfl_list_empty(&control->holds) && dfl_conn_quiet(control))
            dfl_conn_close(control);
    }
    dfl_leave(c);
    return st;
}

/* ------------------------------------------------------------ driven by a host */

void dfl_client_ready(struct dfl_client *c, void *tag, unsigned events, struct dfl_now now)
{
    struct dfl_conn *conn = tag;

    (void)events; /* reading and writing are tried; what is not possible says so */
    dfl_enter(c, now);
    if (conn->state != DFL_CONN_DEAD)
        dfl_conn_ready(conn);
    dfl_leave(c);
}

void dfl_client_run(struct dfl_client *c, struct dfl_now now)
{
    struct dfl_timer *timer;

    dfl_enter(c, now);
    while ((timer = dfl_timers_pop(&c->timers, c->now.ms)) != NULL)
        timer->fire(timer, c->now);
    dfl_leave(c);
}

void dfl_client_gather(struct dfl_client *c, struct dfl_now now)
{
    dfl_enter(c, now);
}

void dfl_client_send(struct dfl_client *c)
{
    dfl_leave(c);
}

int64_t dfl_client_next_ms(const struct dfl_client *c)
{
    return dfl_timers_next(&c->timers);
}

bool dfl_client_busy(const struct dfl_client *c)
{
    return c->active_conns > 0 || c->timers.count > 0;
}

bool dfl_client_left_behind(const struct dfl_client *c)
{
    return c->pending_calls == 0 && c->active_conns > 0;
}

void dfl_client_shutdown(struct dfl_client *c, struct dfl_now now)
{
    dfl_enter(c, now);
    while (!dfl_list_empty(&c->sessions))
        /* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): ending a session takes it off the list */
        dfl_session_end(DFL_CONTAINER(c->sessions.next, struct dfl_session, by_client), now);
    c->shut = true;
    while (dfl_server_close_idle(c))
        continue;
    dfl_leave(c);
}

static void free_servers(struct dfl_client *c)
{
    DFL_EACH(l, &c->servers) {
        struct dfl_server *server = DFL_CONTAINER(l, struct dfl_server, by_client);

        while (!dfl_list_empty(&server->conns))
            dfl_conn_close(DFL_CONTAINER(server->conns.next, struct dfl_conn, by_server));
    }
    while (!dfl_list_empty(&c->servers))
        dfl_server_free(DFL_CONTAINER(c->servers.next, struct dfl_server, by_client));
}

void dfl_client_free(struct dfl_client *c)
{
    struct dfl_now now;

    if (c == NULL)
        return;
    now = c->now;
    dfl_client_shutdown(c, now);
    c->depth++;
    free_servers(c);
    free_dead(c);
    dfl_timers_free(&c->timers);
    dfl_settings_free(&c->settings);
    wipe_token(c);
    dfl_tls_release(c->tls);
    free(c->shards);
    free(c->links);
    free(c->buckets);
    free(c);
}

void dfl_client_abandon(struct dfl_client *c)
{
    for (size_t i = 0; i < c->link_cap; i++) {
        struct dfl_conn *conn = c->links[i];

        if (conn && conn->transport)
            conn->transport->ops->abandon(conn->transport);
    }
}

/* ------------------------------------------------------------------- sessions */

enum dfl_status dfl_session_new(struct dfl_client *c, void *user, struct dfl_session **out)
{
    struct dfl_session *s = calloc(1, sizeof *s);

    if (s == NULL)
        return DFL_NOMEM;
    s->client = c;
    s->user = user;
    s->cap = c->settings.max_session_locks;
    dfl_link_init(&s->holds);
    dfl_link_init(&s->calls);
    dfl_link_init(&s->by_client);
    dfl_list_append(&c->sessions, &s->by_client);
    *out = s;
    return DFL_OK;
}

void *dfl_session_user(const struct dfl_session *s)
{
    return s->user;
}

void dfl_session_set_cap(struct dfl_session *s, int64_t max_session_locks)
{
    s->cap = max_session_locks;
}

void dfl_session_end(struct dfl_session *s, struct dfl_now now)
{
    struct dfl_client *c = s->client;

    dfl_enter(c, now);
    while (!dfl_list_empty(&s->calls))
        dfl_call_free(DFL_CONTAINER(s->calls.next, struct dfl_call, by_session), now);
    while (!dfl_list_empty(&s->holds)) {
        struct dfl_hold *h = DFL_CONTAINER(s->holds.next, struct dfl_hold, by_session);

        dfl_link_remove(&h->by_session);
        if (h->state == DFL_RELEASING) {
            h->session = NULL;
            continue;
        }
        if (h->state == DFL_HELD && dfl_hold_release(h) == DFL_OK)
            h->session = NULL; /* freed by the answer */
        else if (dfl_hold_is_place(h))
            dfl_place_leave(h);
        else
            dfl_hold_free(h);
    }
    dfl_link_remove(&s->by_client);
    free(s);
    dfl_leave(c);
}

/* False: stopped by fn. What fn does to its hold may end others, by what it reads. */
static bool each_hold(struct dfl_session *s, bool (*fn)(void *arg, struct dfl_hold *h), void *arg)
{
    s->walk = s->holds.next;
    while (s->walk != &s->holds) {
        struct dfl_link *l = s->walk;

        s->walk = l->next;
        if (!fn(arg, DFL_CONTAINER(l, struct dfl_hold, by_session)))
            return false;
    }
    return true;
}

void dfl_session_each(struct dfl_session *s, bool (*fn)(void *arg, struct dfl_hold *h), void *arg)
{
    (void)each_hold(s, fn, arg);
}

void dfl_client_each(struct dfl_client *c, bool (*fn)(void *arg, struct dfl_hold *h), void *arg)
{
    DFL_EACH(l, &c->sessions) {
        if (!each_hold(DFL_CONTAINER(l, struct dfl_session, by_client), fn, arg))
            return;
    }
}

/* -------------------------------------------------------------------- servers */

const char *dfl_server_state_name(enum dfl_server_state state)
{
    static const char *const names[] = {"unused", "connecting", "up", "down", "old"};

    return names[state];
}

size_t dfl_client_servers(const struct dfl_client *c)
{
    size_t n = 0;

    for (const struct dfl_link *l = c->servers.next; l != &c->servers; l = l->next) {
        const struct dfl_server *server = DFL_CONTAINER(l, struct dfl_server, by_client);

        n += server->configured || server->holds > 0;
    }
    return n;
}

static void describe(const struct dfl_server *server, struct dfl_server_info *info)
{
    info->address = server->address.text;
    info->connections = (unsigned)server->conn_count;
    info->round_trip_us = server->round_trip_us;
    info->last_error = server->last_error;
    if (!server->configured) {
        info->state = DFL_SERVER_OLD;
        info->since_ms = server->up_since_ms;
    } else if (!server->used) {
        info->state = DFL_SERVER_UNUSED;
        info->since_ms = 0;
    } else if (server->down) {
        info->state = DFL_SERVER_DOWN;
        info->since_ms = server->down_since_ms;
    } else if (server->up_since_ms) {
        info->state = DFL_SERVER_UP;
        info->since_ms = server->up_since_ms;
    } else {
        info->state = DFL_SERVER_CONNECTING;
        info->since_ms = server->connecting_since_ms;
    }
}

void dfl_client_server(const struct dfl_client *c, size_t i, struct dfl_server_info *info)
{
    for (const struct dfl_link *l = c->servers.next; l != &c->servers; l = l->next) {
        const struct dfl_server *server = DFL_CONTAINER(l, struct dfl_server, by_client);

        if ((server->configured || server->holds > 0) && i-- == 0) {
            describe(server, info);
            return;
        }
    }
}
