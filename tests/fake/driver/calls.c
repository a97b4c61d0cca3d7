/*
 * calls.c - calls of the engine from `start` to `done`: their arguments, and what came of them.
 */
#include "driver.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CALLS_MAX 4096

struct call {
    char id[32];
    char op[24];
    struct dfl_call *call;
    int64_t start_us;
};

static struct call calls[CALLS_MAX];

/* -------------------------------------------------------------------- ends */

static void report_answers(const struct call *c)
{
    name_of_field("answers");
    putchar('[');
    for (size_t i = 0; i < dfl_call_answers(c->call); i++) {
        struct dfl_server_answer a;
        dfl_call_answer(c->call, i, &a);
        char *body = calloc(1, a.body_len + 1);
        if (!body)
            abort();
        if (a.body_len)
            memcpy(body, a.body, a.body_len);
        printf(i ? "," : "");
        object_begin();
        field("address", a.address);
        status_fields(a.status, a.error ? a.error : "");
        number("round_trip_us", a.round_trip_us);
        field("body", body);
        object_end();
        free(body);
    }
    putchar(']');
}

static void report_done(struct call *c)
{
    struct dfl_now now = dfl_clock();
    enum dfl_status status = dfl_call_status(c->call);
    const struct dfl_hold *hold = dfl_call_hold(c->call);
    event_begin("done");
    field("id", c->id);
    number("ms", (now.us - c->start_us) / 1000);
    number("seconds", dfl_call_seconds(c->call));
    number("busy", dfl_call_busy_since_ms(c->call) != 0);
    status_fields(status, status == DFL_OK ? "" : dfl_call_error(c->call)->text);
    if (hold)
        hold_fields(hold, now);
    if (dfl_call_answers(c->call))
        report_answers(c);
    event_end();
    dfl_call_free(c->call, now);
    c->call = NULL;
}

void report_all_done(void)
{
    for (size_t i = 0; i < CALLS_MAX; i++)
        if (calls[i].call && dfl_call_status(calls[i].call) != DFL_PENDING)
            report_done(&calls[i]);
}

static struct call *find_call(const char *id)
{
    for (size_t i = 0; i < CALLS_MAX; i++)
        if (calls[i].call && strcmp(calls[i].id, id) == 0)
            return &calls[i];
    return NULL;
}

static struct call *unused_call(void)
{
    for (size_t i = 0; i < CALLS_MAX; i++)
        if (!calls[i].call)
            return &calls[i];
    abort();
}

void forget_calls(const struct dfl_session *s)
{
    for (size_t i = 0; i < CALLS_MAX; i++)
        if (calls[i].call && (!s || dfl_call_session(calls[i].call) == s))
            calls[i].call = NULL;
}

void free_calls(void)
{
    struct dfl_now now = dfl_clock();
    for (size_t i = 0; i < CALLS_MAX; i++)
        dfl_call_free(calls[i].call, now);
}

/* ------------------------------------------------------------------ starts */

/* The value of name=value among the words, or fallback. */
static const char *option(const struct words *w, const char *name, const char *fallback)
{
    size_t len = strlen(name);
    for (size_t i = 0; i < w->count; i++)
        if (strncmp(w->word[i], name, len) == 0 && w->word[i][len] == '=')
            return w->word[i] + len + 1;
    return fallback;
}

static enum dfl_kind kind_of(const struct words *w)
{
    return strcmp(option(w, "kind", "lock"), "sem") == 0 ? DFL_SEMAPHORE : DFL_LOCK;
}

static struct dfl_request_args request_args(const struct words *w)
{
    struct dfl_error err;
    struct dfl_request_args a = {0};
    a.key = option(w, "key", "");
    a.key_len = strlen(a.key);
    a.kind = kind_of(w);
    a.slots = atoll(option(w, "slots", "1"));
    if (dfl_timeout_check(strtod(option(w, "timeout", "10"), NULL), &a.timeout_ms, &err) != DFL_OK)
        a.timeout_ms = -2;
    a.lock_timeout_ms = llround(1000 * strtod(option(w, "lock_timeout", "0"), NULL));
    a.lease_s = atoll(option(w, "lease", "0"));
    a.scope =
        strcmp(option(w, "scope", "session"), "xact") == 0 ? DFL_SCOPE_XACT : DFL_SCOPE_SESSION;
    a.tag = (uint32_t)atoll(option(w, "tag", "0"));
    return a;
}

static enum dfl_status start_acquire(struct dfl_session *s, const struct words *w,
                                     struct dfl_call **call, struct dfl_error *err)
{
    struct dfl_request_args a = request_args(w);
    return dfl_acquire(s, &a, dfl_clock(), call, err);
}

static enum dfl_status start_enqueue(struct dfl_session *s, const struct words *w,
                                     struct dfl_call **call, struct dfl_error *err)
{
    struct dfl_request_args a = request_args(w);
    return dfl_enqueue(s, &a, dfl_clock(), call, err);
}

static enum dfl_status start_wait(struct dfl_session *s, const struct words *w,
                                  struct dfl_call **call, struct dfl_error *err)
{
    struct dfl_request_args a = request_args(w);
    return dfl_wait_turn(s, &a, dfl_clock(), call, err);
}

static bool wait_answer(const struct words *w)
{
    return strcmp(option(w, "wait", "1"), "0") != 0;
}

static enum dfl_status start_release(struct dfl_session *s, const struct words *w,
                                     struct dfl_call **call, struct dfl_error *err)
{
    const char *key = option(w, "key", "");
    return dfl_release(s, kind_of(w), key, strlen(key), wait_answer(w), NULL, dfl_clock(), call,
                       err);
}

static enum dfl_status start_release_token(struct dfl_session *s, const struct words *w,
                                           struct dfl_call **call, struct dfl_error *err)
{
    const char *key = option(w, "key", "");
    return dfl_release_token(s, kind_of(w), key, strlen(key), option(w, "token", ""),
                             wait_answer(w), NULL, dfl_clock(), call, err);
}

static enum dfl_status start_renew(struct dfl_session *s, const struct words *w,
                                   struct dfl_call **call, struct dfl_error *err)
{
    const char *key = option(w, "key", "");
    return dfl_renew(s, key, strlen(key), atoll(option(w, "lease", "0")), NULL, dfl_clock(), call,
                     err);
}

static enum dfl_status start_release_all(struct dfl_session *s, const struct words *w,
                                         struct dfl_call **call, struct dfl_error *err)
{
    return dfl_release_all(s, wait_answer(w), NULL, dfl_clock(), call, err);
}

static enum dfl_status start_stats(struct dfl_session *s, const struct words *w,
                                   struct dfl_call **call, struct dfl_error *err)
{
    (void)w;
    return dfl_stats(s, NULL, dfl_clock(), call, err);
}

static enum dfl_status start_ping(struct dfl_session *s, const struct words *w,
                                  struct dfl_call **call, struct dfl_error *err)
{
    (void)w;
    return dfl_ping(s, NULL, dfl_clock(), call, err);
}

static const struct {
    const char *name;
    enum dfl_status (*start)(struct dfl_session *, const struct words *, struct dfl_call **,
                             struct dfl_error *);
} operations[] = {
    {"acquire", start_acquire},
    {"enqueue", start_enqueue},
    {"wait", start_wait},
    {"release", start_release},
    {"renew", start_renew},
    {"release_token", start_release_token},
    {"release_all", start_release_all},
    {"stats", start_stats},
    {"ping", start_ping},
};

void command_start(const struct words *w)
{
    struct dfl_error err = {0};
    struct dfl_session *s = session_named(w->word[2]);
    struct call *c = unused_call();
    snprintf(c->id, sizeof c->id, "%s", w->word[1]);
    snprintf(c->op, sizeof c->op, "%s", w->word[3]);
    c->start_us = dfl_clock().us;
    for (size_t i = 0; i < sizeof operations / sizeof *operations; i++) {
        if (strcmp(operations[i].name, c->op) != 0)
            continue;
        struct dfl_call *call = NULL;
        enum dfl_status status = operations[i].start(s, w, &call, &err);
        reply(status, status == DFL_OK ? "" : err.text);
        c->call = status == DFL_OK ? call : NULL;
        return;
    }
    fprintf(stderr, "driver: no operation %s\n", c->op);
    exit(2);
}

void command_cancel(const struct words *w)
{
    struct call *c = find_call(w->word[1]);
    if (c)
        dfl_call_cancel(c->call, dfl_clock());
    reply(c ? DFL_OK : DFL_NOT_HELD, c ? "" : "no such call");
}
