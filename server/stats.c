/*
 * stats.c - the JSON of stats.h. While an answer is being made, the lock table's hash does not
 * grow: an answer that its reader takes too long over is given up, and so is one during which the
 * keys become so many that the hash has to grow. A short answer shows one moment; in one of several
 * slices a key may have changed its section meanwhile, and appear twice or not at all.
 */
#include "stats.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SLICE (256u << 10) /* bytes made before they are sent */
#define BUCKETS 16384      /* looked at in one slice */
#define PATIENCE_MS 60000

struct stats_job {
    struct session *session;
    size_t section, cursor;
    unsigned freeze;
    bool first; /* of its section */
    int64_t since_ms, now_ms;
};

/* ------------------------------------------------------------------ writing */

static void put(struct session *s, const char *bytes, size_t n)
{
    if (!outbuf_add(&s->peer.out, bytes, n))
        s->peer.broken = true;
}

static void put_text(struct session *s, const char *text)
{
    put(s, text, strlen(text));
}

/* The length of the UTF-8 character at p, 0 when it is none. */
static size_t character(const unsigned char *p, size_t left)
{
    size_t n = p[0] < 0x80                   ? 1
               : p[0] >= 0xc2 && p[0] < 0xe0 ? 2
               : (p[0] & 0xf0) == 0xe0       ? 3
               : p[0] >= 0xf0 && p[0] < 0xf5 ? 4
                                             : 0;

    if (n == 0 || n > left)
        return 0;
    for (size_t i = 1; i < n; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    /* overlong forms, surrogates, and what lies above the last plane */
    if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) ||
        (p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] > 0x8f))
        return 0;
    return n;
}

/* A JSON string. Bytes that are no UTF-8 become U+FFFD. */
static void put_string(struct session *s, const char *text, size_t len)
{
    char out[2 + DFL_KEY_MAX * 6];
    size_t n = 0;

    out[n++] = '"';
    for (size_t i = 0, step; i < len; i += step ? step : 1) {
        const unsigned char *p = (const unsigned char *)text + i;

        step = character(p, len - i);
        if (step == 0) {
            /* NOLINTNEXTLINE(bugprone-not-null-terminated-result): out is counted, not terminated */
            memcpy(out + n, "\\ufffd", 6);
            n += 6;
        } else if (*p < 0x20 || *p == 0x7f) {
            n += (size_t)snprintf(out + n, 7, "\\u%04x", *p);
        } else {
            if (*p == '"' || *p == '\\')
                out[n++] = '\\';
            memcpy(out + n, p, step);
            n += step;
        }
    }
    out[n++] = '"';
    put(s, out, n);
}

static void put_number(struct session *s, const char *name, int64_t n)
{
    char out[64];

    put(s, out, (size_t)snprintf(out, sizeof out, ",\"%s\":%" PRId64, name, n));
}

static void put_seconds(struct session *s, const char *name, int64_t ms)
{
    char out[64];

    ms = ms < 0 ? 0 : ms;
    put(s, out,
        (size_t)snprintf(out, sizeof out, ",\"%s\":%" PRId64 ".%03d", name, ms / 1000,
                         (int)(ms % 1000)));
}

/* ----------------------------------------------------------------- sections */

static bool is_lock(const struct lock_view *v)
{
    return !v->idle && v->limit == 1;
}

static bool is_semaphore(const struct lock_view *v)
{
    return !v->idle && v->limit > 1;
}

static bool is_idle_lock(const struct lock_view *v)
{
    return v->idle && v->limit == 1;
}

static bool is_idle_semaphore(const struct lock_view *v)
{
    return v->idle && v->limit > 1;
}

static void put_lock(struct session *s, const struct lock_view *v)
{
    put_number(s, "owner_conn_id", (int64_t)v->owner_id);
    put_seconds(s, "lease_expires_in_s", v->lease_left_ms);
    put_number(s, "waiters", (int64_t)v->waiters);
}

static void put_semaphore(struct session *s, const struct lock_view *v)
{
    put_number(s, "limit", v->limit);
    put_number(s, "holders", (int64_t)v->holders);
    put_number(s, "waiters", (int64_t)v->waiters);
}

static void put_idle(struct session *s, const struct lock_view *v)
{
    put_seconds(s, "idle_s", v->idle_ms);
}

static const struct section {
    const char *head;
    bool (*belongs)(const struct lock_view *v);
    void (*fields)(struct session *s, const struct lock_view *v);
} sections[] = {
    {",\"locks\":[", is_lock, put_lock},
    {"],\"semaphores\":[", is_semaphore, put_semaphore},
    {"],\"idle_locks\":[", is_idle_lock, put_idle},
    {"],\"idle_semaphores\":[", is_idle_semaphore, put_idle},
};

#define SECTIONS (sizeof sections / sizeof sections[0])

static void see(void *arg, const struct lock_view *view)
{
    struct stats_job *job = arg;
    struct session *s = job->session;
    const struct section *section = &sections[job->section];

    if (!section->belongs(view))
        return;
    put_text(s, job->first ? "{\"key\":" : ",{\"key\":");
    put_string(s, view->key, view->key_len);
    section->fields(s, view);
    put_text(s, "}");
    job->first = false;
}

/* ---------------------------------------------------------------------- job */

void stats_stop(struct session *s)
{
    if (!s->stats)
        return;
    locktable_thaw(s->service->table, s->stats->freeze);
    free(s->stats);
    s->stats = NULL;
}

/* One bucket of the table further, or on to the next section. False when there is none. */
static bool advance(struct stats_job *job)
{
    struct session *s = job->session;

    if (locktable_walk(s->service->table, &job->cursor, job->now_ms, see, job))
        return true;
    job->cursor = 0;
    job->first = true;
    if (++job->section < SECTIONS)
        put_text(s, sections[job->section].head);
    return job->section < SECTIONS;
}

bool stats_run(struct session *s, struct dfl_now now)
{
    struct stats_job *job = s->stats;
    bool more = true;

    job->now_ms = now.ms;
    if (!locktable_is_frozen(s->service->table, job->freeze)) {
        s->peer.broken = true;
        return true;
    }
    for (int i = 0; more && i < BUCKETS && outbuf_left(&s->peer.out) < SLICE; i++)
        more = advance(job);
    if (more && now.ms - job->since_ms > PATIENCE_MS)
        s->peer.broken = true;
    if (more && !s->peer.broken)
        return true;
    put_text(s, "]}\n");
    stats_stop(s);
    return false;
}

void stats_start(struct session *s, struct dfl_now now)
{
    struct stats_job *job = calloc(1, sizeof *job);
    char head[64];

    if (!job) {
        session_answer_error(s, DFL_REFUSED);
        return;
    }
    *job = (struct stats_job){.session = s,
                              .first = true,
                              .freeze = locktable_freeze(s->service->table),
                              .since_ms = now.ms};
    s->stats = job;
    put(s, head,
        (size_t)snprintf(head, sizeof head, "ok {\"connections\":%zu", s->service->sessions));
    put_text(s, sections[0].head);
    stats_run(s, now);
}
