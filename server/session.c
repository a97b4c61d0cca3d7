/*
 * session.c - one connection's conversation, and what all of them share. Reads requests of three
 * lines, runs them in order until one blocks, hands effects of the lock table to those whom they
 * concern. Never touches a socket or a clock.
 */
#include "session.h"

#include "../core/planted.h"

#include "stats.h"

#include <inttypes.h>
#include <openssl/crypto.h>
#include <openssl/sha.h>
#include <stdlib.h>
#include <string.h>

#define OUT_PENDING_MAX (64u << 10) /* with more to send, no further request is run */
#define RUN_MAX 256                 /* requests of one session in a row */
#define LOGIN_PAUSE_MS 100
#define FORGET_HELD_MS 10000 /* after nothing was held for so long, the fence file is told */

static struct session *session_of(struct peer *p)
{
    return DFL_CONTAINER(p, struct session, peer);
}

static void make_ready(struct session *s)
{
    if (dfl_list_empty(&s->peer.ready))
        dfl_list_append(&s->service->ready, &s->peer.ready);
}

/* ----------------------------------------------------------------- answers */

void session_answer(struct session *s, enum dfl_command cmd, const struct dfl_answer_line *answer)
{
    char *room = outbuf_room(&s->peer.out, 128);

    if (!room) {
        s->peer.broken = true; /* no answer is better than a lost one */
        return;
    }
    s->peer.out.end += dfl_answer_format(room, 128, cmd, answer);
}

void session_answer_error(struct session *s, enum dfl_status status)
{
    struct dfl_answer_line answer = {.kind = DFL_ANS_ERROR, .status = status};

    session_answer(s, DFL_CMD_PING, &answer);
}

void session_block(struct session *s, enum dfl_command cmd)
{
    s->asked = cmd;
    s->peer.blocked = true;
}

void session_reject(struct session *s, struct dfl_now now)
{
    unsigned long left_out;

    if (log_allowed(&s->service->said_login, now.ms, &left_out))
        log_line(LOG_WARN, "login refused", "conn_id=%" PRIu64 " more=%lu", s->id, left_out);
    session_answer_error(s, DFL_AUTH);
    s->peer.closing = true;
    s->peer.close_at_ms = now.ms + LOGIN_PAUSE_MS;
}

/* Compares digests, so that neither the length nor the beginning of the right token shows in the
 * time it takes. */
bool session_login(const struct service *service, const char *token, size_t len)
{
    unsigned char digest[SHA256_DIGEST_LENGTH];

    SHA256((const unsigned char *)token, len, digest);
    return CRYPTO_memcmp(digest, service->login_digest, sizeof digest) == 0;
}

static void answer_effect(const struct lock_effect *effect, struct dfl_now now)
{
    struct session *s = effect->user;
    struct dfl_answer_line answer = {.kind = DFL_ANS_TIMEOUT};

    if (effect->status == DFL_OK)
        answer = command_granted(DFL_ANS_OK, &effect->given);
    else if (effect->status != DFL_TIMEOUT)
        answer = (struct dfl_answer_line){.kind = DFL_ANS_ERROR, .status = effect->status};
    s->peer.blocked = false;
    s->peer.owes_since_ms = now.ms;
    session_answer(s, s->asked, &answer);
    make_ready(s);
}

static void pass_effects(struct service *service, struct dfl_now now)
{
    struct lock_effect effect;

    while (locktable_effect(service->table, &effect))
        answer_effect(&effect, now);
}

/* ---------------------------------------------------------------- requests */

static bool is_login(const struct session *s)
{
    return s->command_len == 4 && memcmp(s->command, "auth", 4) == 0;
}

static void keep_line(struct session *s, const char *line, size_t len)
{
    /* A longer word is no command, however it goes on. */
    if (s->lines == 0) {
        s->command_len = (uint16_t)(len < sizeof s->command ? len : sizeof s->command);
        memcpy(s->command, line, s->command_len);
    } else {
        s->key_len = (uint16_t)len;
        memcpy(s->key, line, len);
    }
    s->lines++;
}

/* The third line is there: understand and run. */
static void run_request(struct session *s, const char *arg, size_t arg_len, struct dfl_now now)
{
    struct dfl_request_line rq;
    bool understood =
        dfl_request_parse(s->command, s->command_len, s->key, s->key_len, arg, arg_len, &rq);

    s->lines = 0;
    if (s->service->wants_login && !s->logged_in && !(understood && rq.cmd == DFL_CMD_AUTH))
        session_reject(s, now);
    else if (!understood)
        session_answer_error(s, DFL_REFUSED);
    else
        command_run(s, &rq, now);
    s->peer.owes_since_ms = now.ms;
}

/* The next line of a request. False: nothing more to do now. */
static bool take_line(struct session *s, struct dfl_now now)
{
    char *line;
    size_t len, max = s->lines == 2 && is_login(s) ? DFL_AUTH_LINE_MAX : DFL_REQUEST_LINE_MAX;
    enum dfl_status status = dfl_line_reader_next(&s->peer.in, max, &line, &len);

    if (status == DFL_PENDING)
        return false;
    if (status != DFL_OK) {
        session_answer_error(s, DFL_REFUSED);
        s->peer.closing = true;
    } else if (s->lines < 2) {
        keep_line(s, line, len);
    } else {
        run_request(s, line, len, now);
    }
    return true;
}

static bool can_run(const struct session *s)
{
    const struct peer *p = &s->peer;

    return !p->blocked && !p->closing && !p->broken && !s->stats &&
           outbuf_left(&p->out) < OUT_PENDING_MAX;
}

static void session_run(struct peer *p, struct dfl_now now)
{
    struct session *s = session_of(p);
    int left = RUN_MAX * 3;

    p->more = false;
    if (s->stats && outbuf_left(&p->out) == 0 && !stats_run(s, now))
        p->owes_since_ms = now.ms;
    while (left > 0 && can_run(s) && take_line(s, now)) {
        pass_effects(s->service, now);
        left--;
    }
    p->more = !p->closing && (s->stats || (!p->blocked && (left == 0 || !can_run(s))));
}

static void session_silent(struct peer *p, struct dfl_now now)
{
    struct session *s = session_of(p);

    (void)now;
    session_answer_error(s, DFL_REFUSED);
    p->closing = true;
    make_ready(s);
}

static struct peer *session_open(void *ctx, struct dfl_now now)
{
    struct service *service = ctx;
    struct session *s = calloc(1, sizeof *s);

    if (!s)
        return NULL;
    s->service = service;
    s->id = ++service->next_id;
    s->owner = locktable_owner(service->table, s->id, s);
    if (!s->owner) {
        free(s);
        return NULL;
    }
    dfl_line_reader_init(&s->peer.in);
    dfl_link_init(&s->peer.ready);
    s->peer.owes_since_ms = now.ms;
    service->sessions++;
    log_line(LOG_DEBUG, "connection opened", "conn_id=%" PRIu64, s->id);
    return &s->peer;
}

static void session_gone(struct peer *p, struct dfl_now now)
{
    struct session *s = session_of(p);
    struct service *service = s->service;

    stats_stop(s);
    if (!DFL_PLANTED(47))
        dfl_link_remove(&p->ready);
    locktable_close_owner(service->table, s->owner, now.ms);
    dfl_line_reader_free(&p->in);
    outbuf_free(&p->out);
    service->sessions--;
    log_line(LOG_DEBUG, "connection closed", "conn_id=%" PRIu64, s->id);
    free(s);
    pass_effects(service, now);
}

/* ----------------------------------------------------------------- service */

/* The fence file keeps restarted servers waiting for leases; it is told when there are none any
 * more. */
static void watch_idle(struct service *s, struct dfl_now now)
{
    if (locktable_holds(s->table) > 0) {
        s->idle_since_ms = INT64_MAX;
    } else if (s->idle_since_ms == INT64_MAX) {
        s->idle_since_ms = now.ms;
    } else if (now.ms - s->idle_since_ms >= FORGET_HELD_MS) {
        s->idle_since_ms = now.ms;
        if (s->fence)
            fence_nothing_held(s->fence);
    }
}

static void service_tick(void *ctx, struct dfl_now now)
{
    struct service *s = ctx;

    if (s->fence)
        fence_now(s->fence, now);
    if (s->closed_until_ms && now.ms >= s->closed_until_ms) {
        s->closed_until_ms = 0;
        if (s->fence)
            fence_safe(s->fence);
        locktable_gate(s->table, true);
        log_note(LOG_INFO, "granting: the leases of the last run are over");
    }
    locktable_tick(s->table, now.ms);
    pass_effects(s, now);
    watch_idle(s, now);
}

static int64_t service_next_ms(void *ctx)
{
    const struct service *s = ctx;
    int64_t next = locktable_next_ms(s->table);

    if (s->closed_until_ms && s->closed_until_ms < next)
        next = s->closed_until_ms;
    if (s->idle_since_ms != INT64_MAX && s->idle_since_ms + FORGET_HELD_MS < next)
        next = s->idle_since_ms + FORGET_HELD_MS;
    if (s->fence && fence_next_ms(s->fence) < next)
        next = fence_next_ms(s->fence);
    return next;
}

enum dfl_status service_new(const struct service_config *config, struct dfl_now now,
                            struct service **out, struct dfl_error *err)
{
    struct service *s = calloc(1, sizeof *s);
    struct locktable_config table = config->table;

    if (config->fence)
        table.mint = (struct lock_mint){config->fence, fence_grant, fence_extend};
    if (s)
        s->table = locktable_new(&table, now.ms);
    if (!s || !s->table) {
        free(s);
        return dfl_fail(err, DFL_NOMEM, "out of memory");
    }
    s->fence = config->fence;
    s->default_lease_s = config->default_lease_s;
    s->wants_login = config->auth_token != NULL;
    if (s->wants_login)
        SHA256((const unsigned char *)config->auth_token, strlen(config->auth_token),
               s->login_digest);
    s->idle_since_ms = INT64_MAX;
    dfl_link_init(&s->ready);
    *out = s;
    return DFL_OK;
}

void service_free(struct service *s)
{
    if (!s)
        return;
    locktable_free(s->table);
    free(s);
}

struct protocol service_protocol(struct service *s)
{
    return (struct protocol){.ctx = s,
                             .ready = &s->ready,
                             .open = session_open,
                             .run = session_run,
                             .silent = session_silent,
                             .gone = session_gone,
                             .tick = service_tick,
                             .next_ms = service_next_ms};
}

void service_close_gate(struct service *s, int64_t until_ms)
{
    s->closed_until_ms = until_ms;
    locktable_gate(s->table, false);
}

void service_drain(struct service *s, struct dfl_now now)
{
    s->draining = true;
    locktable_drain(s->table, now.ms);
    pass_effects(s, now);
}
