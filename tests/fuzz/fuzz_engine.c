/*
 * fuzz_engine.c - the client engine on a network in memory: calls of two sessions, servers that
 * answer in order, out of order, in pieces, with any bytes or never, while time passes and memory
 * runs out.
 *
 * Judges what a host counts on: every request on the wire is one that a server understands; no
 * socket is watched after its end; held means a token and a deadline to come; time that stands
 * still comes to rest; with silent servers every call ends; and at the end nothing is left.
 */
#include "input.h"
#include "scarce_memory.h"

#include <inttypes.h>

#include "proto.h"
#include "transport.h"

#define LINKS 16 /* connections at a time */
#define CALLS 12
#define SESSIONS 2
#define KEYS 3
#define ASKED 64

/* ----------------------------------------------------------------- network */

struct link {
    struct dfl_transport base; /* first */
    bool used, open, refused, ended, broken, stuck;
    int fd;
    unsigned watched; /* by the host */
    void *tag;
    uint8_t in[600];
    size_t in_len;
    char out[70000];
    size_t out_len;
    enum dfl_command asked[ASKED]; /* not answered yet */
    size_t asked_count;
};

static struct link links[LINKS];
static struct input *bytes; /* of the input that is being run */
static struct dfl_now now;
static int sockets, locks, hold_count, next_fd;
static uint64_t next_token;

static struct link *link_of(struct dfl_transport *t)
{
    struct link *l = (struct link *)t;

    REQUIRE(l->used);
    return l;
}

static enum dfl_io broken(struct link *l, enum dfl_status status, const char *text)
{
    dfl_fail(&l->base.error, status, "%s", text);
    return DFL_IO_ERROR;
}

static enum dfl_io mem_connect(struct dfl_transport *t, struct dfl_now at, int64_t deadline_ms)
{
    struct link *l = link_of(t);

    (void)at, (void)deadline_ms;
    if (l->refused || l->broken)
        return broken(l, DFL_UNREACHABLE, "connect to memory: connection refused");
    return l->open ? DFL_IO_DONE : DFL_IO_AGAIN;
}

static enum dfl_io mem_read(struct dfl_transport *t, void *buf, size_t cap, size_t *got)
{
    struct link *l = link_of(t);
    size_t n = l->in_len < cap ? l->in_len : cap;

    REQUIRE(cap > 0);
    if (n > 0) {
        memcpy(buf, l->in, n);
        memmove(l->in, l->in + n, l->in_len - n);
        l->in_len -= n;
        *got = n;
        return DFL_IO_DONE;
    }
    if (l->broken)
        return broken(l, DFL_BROKEN, "read from memory: connection reset by peer");
    return l->ended ? DFL_IO_EOF : DFL_IO_AGAIN;
}

/* The requests that are whole by now; each must be one. */
static void take_requests(struct link *l)
{
    for (;;) {
        struct input in = {(const uint8_t *)l->out, l->out_len};
        const char *line[3];
        size_t len[3], whole = 0;
        struct dfl_request_line rq;

        for (size_t i = 0; i < l->out_len && whole < 3; i++)
            whole += l->out[i] == '\n';
        if (whole < 3)
            return;
        for (int i = 0; i < 3; i++)
            len[i] = take_line(&in, &line[i]);
        REQUIRE(dfl_request_parse(line[0], len[0], line[1], len[1], line[2], len[2], &rq));
        REQUIRE(len[0] <= DFL_REQUEST_LINE_MAX && len[1] <= DFL_REQUEST_LINE_MAX);
        if (l->asked_count < ASKED)
            l->asked[l->asked_count++] = rq.cmd;
        memmove(l->out, in.at, in.left);
        l->out_len = in.left;
    }
}

static enum dfl_io mem_write(struct dfl_transport *t, const void *buf, size_t len, size_t *put)
{
    struct link *l = link_of(t);
    size_t room = sizeof l->out - l->out_len, n = len < room ? len : room;

    REQUIRE(len > 0 && l->open);
    if (l->broken)
        return broken(l, DFL_BROKEN, "write to memory: broken pipe");
    if (l->stuck && n > 7)
        n = 7;
    if (l->stuck && l->out_len > 20)
        return DFL_IO_AGAIN;
    memcpy(l->out + l->out_len, buf, n);
    l->out_len += n;
    *put = n;
    if (!l->stuck)
        take_requests(l);
    return DFL_IO_DONE;
}

static size_t mem_interest(struct dfl_transport *t, bool want_write, struct dfl_interest *out)
{
    struct link *l = link_of(t);

    out->fd = l->fd;
    out->events = l->open ? DFL_READABLE | (want_write ? DFL_WRITABLE : 0) : DFL_WRITABLE;
    return 1;
}

static bool mem_buffered(struct dfl_transport *t)
{
    (void)t;
    return false;
}

static int64_t mem_wake_ms(struct dfl_transport *t)
{
    (void)t;
    return INT64_MAX;
}

static const char *mem_step(struct dfl_transport *t)
{
    return link_of(t)->open ? "read" : "connect";
}

static void mem_close(struct dfl_transport *t)
{
    struct link *l = link_of(t);

    REQUIRE(l->watched == 0); /* forgotten first, or the host would watch somebody else's */
    l->used = false;
}

static const struct dfl_transport_ops mem_ops = {
    .connect = mem_connect,
    .read = mem_read,
    .write = mem_write,
    .interest = mem_interest,
    .buffered = mem_buffered,
    .wake_ms = mem_wake_ms,
    .step = mem_step,
    .close = mem_close,
    .abandon = mem_close,
};

static enum dfl_status mem_open(void *ctx, const struct dfl_endpoint *ep, struct dfl_tls *tls,
                                struct dfl_transport **out, struct dfl_error *err)
{
    uint8_t choice = take_byte(bytes);

    (void)ctx, (void)ep, (void)tls;
    for (size_t i = 0; i < LINKS && choice != 255; i++) {
        struct link *l = &links[i];

        if (l->used)
            continue;
        memset(l, 0, offsetof(struct link, in));
        l->in_len = l->out_len = l->asked_count = 0;
        l->used = true;
        l->base.ops = &mem_ops;
        l->fd = ++next_fd;
        l->open = choice < 192;
        l->refused = choice >= 192 && choice < 224;
        *out = &l->base;
        return DFL_OK;
    }
    return dfl_fail(err, DFL_NOMEM, "out of memory");
}

/* -------------------------------------------------------------------- host */

static void host_watch(void *ctx, int fd, unsigned events, void *tag)
{
    (void)ctx;
    for (size_t i = 0; i < LINKS; i++) {
        if (links[i].used && links[i].fd == fd) {
            links[i].watched = events;
            links[i].tag = tag;
            return;
        }
    }
    REQUIRE(!"a descriptor that is open");
}

static bool take(void *counter)
{
    (*(int *)counter)++;
    return true;
}

static bool take_lock(void *ctx)
{
    (void)ctx;
    return take(&locks);
}

static void give_lock(void *ctx)
{
    (void)ctx;
    REQUIRE(--locks >= 0);
}

static bool take_socket(void *ctx)
{
    (void)ctx;
    return take(&sockets);
}

static void give_socket(void *ctx)
{
    (void)ctx;
    REQUIRE(--sockets >= 0);
}

static void hold_changed(void *ctx, struct dfl_hold *hold)
{
    (void)ctx;
    if (!dfl_hold_user(hold)) {
        dfl_hold_set_user(hold, links); /* seen */
        hold_count++;
    }
}

static void hold_gone(void *ctx, struct dfl_hold *hold)
{
    (void)ctx;
    if (dfl_hold_user(hold))
        hold_count--;
}

struct world {
    struct dfl_settings settings;
    struct dfl_fence_book *fences;
    struct dfl_client *client;
    struct dfl_session *sessions[SESSIONS];
    struct dfl_call *calls[CALLS];
    struct dfl_net net;
    bool gathering;
};

static bool wake_link(struct world *w, struct link *l)
{
    bool ready = l->used && l->watched &&
                 (l->in_len > 0 || l->ended || l->broken || l->refused ||
                  (l->open && (l->watched & DFL_WRITABLE)));

    if (ready)
        dfl_client_ready(w->client, l->tag, l->watched, now);
    return ready;
}

/* Everything that is ready and due, until nothing is: a host would spin otherwise. */
static void settle(struct world *w)
{
    bool ready = true;

    for (int n = 0; n < 8 && ready; n++) {
        ready = false;
        for (size_t i = 0; i < LINKS; i++)
            ready |= wake_link(w, &links[i]);
    }
    for (int n = 0;; n++) {
        dfl_client_run(w->client, now);
        if (dfl_client_next_ms(w->client) > now.ms)
            break;
        REQUIRE(n < 200);
    }
}

/* ----------------------------------------------------------------- servers */

static void deliver(struct link *l, const char *text, size_t len)
{
    len = len < sizeof l->in - l->in_len ? len : sizeof l->in - l->in_len;
    memcpy(l->in + l->in_len, text, len);
    l->in_len += len;
}

/* A good answer to the oldest request, of several that fit it. */
static void answer(struct link *l, uint8_t choice)
{
    static const enum dfl_status words[] = {DFL_REFUSED,        DFL_MAX_LOCKS,    DFL_MAX_WAITERS,
                                            DFL_LEASE_EXPIRED,  DFL_NOT_ENQUEUED, DFL_DRAINING,
                                            DFL_LIMIT_MISMATCH, DFL_AUTH};
    struct dfl_answer_line a = {.kind = DFL_ANS_OK, .seconds = choice % 40};
    enum dfl_command cmd;
    char text[256];

    if (l->asked_count == 0)
        return;
    cmd = l->asked[0];
    memmove(l->asked, l->asked + 1, --l->asked_count * sizeof l->asked[0]);
    if (cmd == DFL_CMD_STATS) {
        deliver(l, "ok {\"locks\":[]}\n", 16);
        return;
    }
    if (choice >= 232)
        a = (struct dfl_answer_line){.kind = DFL_ANS_ERROR, .status = words[choice % 8]};
    else if (choice >= 160 && (cmd == DFL_CMD_LOCK || cmd == DFL_CMD_SEM_LOCK ||
                               cmd == DFL_CMD_WAIT || cmd == DFL_CMD_SEM_WAIT))
        a.kind = DFL_ANS_TIMEOUT;
    else if (cmd == DFL_CMD_ENQUEUE || cmd == DFL_CMD_SEM_ENQUEUE)
        a.kind = choice >= 80 ? DFL_ANS_QUEUED : DFL_ANS_ACQUIRED;
    next_token++;
    snprintf(a.token, sizeof a.token, "%016" PRIx64 "%016" PRIx64,
             (uint64_t)now.wall_ms * 1000000 + next_token, next_token);
    deliver(l, text, dfl_answer_format(text, sizeof text, cmd, &a));
}

static void serve(struct link *l, struct input *in)
{
    uint8_t what = take_byte(in);

    if (!l->used)
        return;
    if (what < 120) {
        answer(l, take_byte(in));
    } else if (what < 160) {
        l->open = true;
        while (l->asked_count > 0)
            answer(l, take_byte(in));
    } else if (what < 200) {
        size_t n = what - 159u < in->left ? what - 159u : in->left;

        deliver(l, (const char *)in->at, n);
        in->at += n;
        in->left -= n;
    } else if (what < 215) {
        l->ended = true;
    } else if (what < 230) {
        l->broken = true;
    } else if (what < 240) {
        l->open = true;
    } else {
        l->stuck = !l->stuck;
        if (!l->stuck)
            take_requests(l);
    }
}

/* ------------------------------------------------------------------- calls */

static const char *const keys[KEYS] = {"a", "b", "key:c"};

static enum dfl_status start(struct world *w, struct dfl_session *s, struct input *in,
                             struct dfl_call **call)
{
    static const int64_t timeouts[] = {0, 1, 500, 1000, 30000, DFL_FOREVER};
    static const char token[] = "0123456789abcdef0123456789abcdef";
    struct dfl_error err = {0};
    uint8_t what = take_byte(in), how = take_byte(in);
    const char *key = keys[how % KEYS];
    size_t len = strlen(key);
    struct dfl_hold *hold = dfl_session_hold(s, key, len, DFL_ANY_KIND, now);
    struct dfl_hold_info info = {.token = ""};
    struct dfl_request_args a = {.key = key,
                                 .key_len = len,
                                 .kind = how & 64 ? DFL_SEMAPHORE : DFL_LOCK,
                                 .slots = 1 + how % 2,
                                 .timeout_ms = timeouts[how / 3 % 6],
                                 .lock_timeout_ms = how & 128 ? 700 : 0,
                                 .lease_s = what & 128 ? 0 : 1 + how % 30,
                                 .scope = what & 64 ? DFL_SCOPE_XACT : DFL_SCOPE_SESSION,
                                 .tag = how};

    if (hold)
        dfl_hold_info(hold, &info);
    switch (what % 11) {
    case 0:
    case 1:
        return dfl_acquire(s, &a, now, call, &err);
    case 2:
        return dfl_enqueue(s, &a, now, call, &err);
    case 3:
        return dfl_wait_turn(s, &a, now, call, &err);
    case 4:
        return dfl_release(s, a.kind, key, len, how & 32, w, now, call, &err);
    case 5:
        return dfl_release_token(s, a.kind, key, len, info.token[0] ? info.token : token, how & 32,
                                 w, now, call, &err);
    case 6:
        return dfl_renew(s, key, len, a.lease_s, w, now, call, &err);
    case 7:
        return dfl_release_all(s, how & 32, w, now, call, &err);
    case 8:
        return dfl_stats(s, w, now, call, &err);
    case 9:
        return dfl_ping(s, w, now, call, &err);
    default:
        return dfl_cancel(s, key, len, now) ? DFL_NOT_HELD : DFL_NOT_QUEUED;
    }
}

static void start_call(struct world *w, struct input *in)
{
    uint8_t where = take_byte(in);
    struct dfl_session *s = w->sessions[where % SESSIONS];

    for (size_t i = 0; i < CALLS; i++) {
        if (w->calls[i])
            continue;
        enum dfl_status status = start(w, s, in, &w->calls[i]);

        REQUIRE((status == DFL_OK) == (w->calls[i] != NULL));
        REQUIRE(status != DFL_INTERNAL && status != DFL_PENDING);
        return;
    }
}

static void end_call(struct world *w, size_t i)
{
    struct dfl_call *call = w->calls[i];
    struct dfl_server_answer a;

    if (!call)
        return;
    enum dfl_status status = dfl_call_status(call);

    REQUIRE(status != DFL_INTERNAL);
    if (status != DFL_OK && status != DFL_PENDING)
        REQUIRE(dfl_call_error(call)->text[0] != '\0');
    for (size_t n = 0; status == DFL_OK && n < dfl_call_answers(call); n++)
        dfl_call_answer(call, n, &a);
    dfl_call_free(call, now);
    w->calls[i] = NULL;
}

static bool check_hold(void *arg, struct dfl_hold *hold)
{
    struct dfl_hold_info info;
    struct dfl_error err;

    (void)arg;
    dfl_hold_info(hold, &info);
    REQUIRE(info.key_len == strlen(info.key) && info.server[0] != '\0');
    if (info.state == DFL_HELD) {
        REQUIRE(dfl_token_check(info.token, strlen(info.token), &err) == DFL_OK);
        REQUIRE(info.lease_s >= 1 && info.deadline_ms <= info.lease_deadline_ms);
        REQUIRE(info.lease_deadline_ms <= now.ms + info.lease_s * 1000);
    }
    return true;
}

static bool count_lock(void *arg, struct dfl_hold *hold)
{
    struct dfl_hold_info info;

    dfl_hold_info(hold, &info);
    *(int *)arg += info.kind == DFL_LOCK && info.state == DFL_HELD && strcmp(info.key, "a") == 0;
    return true;
}

static void check_session(struct world *w, struct dfl_session *s)
{
    int held = 0;
    struct dfl_error err;

    for (size_t k = 0; k < KEYS; k++) {
        bool is = dfl_is_held(s, keys[k], strlen(keys[k]), now);
        enum dfl_status asserted = dfl_assert_held(s, keys[k], strlen(keys[k]), now, &err);

        REQUIRE(is == (asserted == DFL_OK));
    }
    dfl_session_each(s, check_hold, w);
    dfl_session_each(s, count_lock, &held);
    REQUIRE(held <= 1); /* one hold of a lock per session and key */
}

static bool give_one_back(void *arg, struct dfl_hold *hold)
{
    (void)arg;
    dfl_hold_give_back(hold, now);
    return false;
}

/* --------------------------------------------------------------- the world */

static void pass_time(int64_t ms)
{
    now.ms += ms;
    now.us += ms * 1000;
    now.wall_ms += ms;
}

static void new_session(struct world *w, size_t i)
{
    if (w->sessions[i]) {
        for (size_t n = 0; n < CALLS; n++)
            if (w->calls[n] && dfl_call_session(w->calls[n]) == w->sessions[i])
                w->calls[n] = NULL; /* the session frees them */
        dfl_session_end(w->sessions[i], now);
    }
    for (size_t failed = memory_failed(); dfl_session_new(w->client, w, &w->sessions[i]) != DFL_OK;
         failed++)
        REQUIRE(memory_failed() > failed);
}

static void configure(struct world *w, uint8_t choice)
{
    static const char *const lists[] = {"one:1", "one:1,two:2", "two:2", "three:3,one:1,two:2"};
    struct dfl_error err;

    for (size_t failed = memory_failed();
         dfl_settings_set(&w->settings, "servers", lists[choice % 4], &err) != DFL_OK; failed++)
        REQUIRE(err.status == DFL_NOMEM && memory_failed() > failed);
    for (size_t failed = memory_failed();
         dfl_client_configure(w->client, &w->settings, choice & 4 ? "token" : NULL, NULL, now,
                              &err) != DFL_OK;
         failed++)
        REQUIRE(err.status == DFL_NOMEM && memory_failed() > failed);
}

static void look(struct world *w)
{
    if (w->gathering)
        dfl_client_send(w->client);
    w->gathering = false;
    settle(w);
}

static void operate(struct world *w, struct input *in)
{
    uint8_t what = take_byte(in);

    if (what >= 248 && !w->gathering) { /* several things happen before the host looks */
        dfl_client_gather(w->client, now);
        w->gathering = true;
    }
    switch (what % 16) {
    case 0:
    case 1:
    case 2:
    case 3:
        start_call(w, in);
        break;
    case 4:
        pass_time(take_byte(in));
        break;
    case 5:
        pass_time((int64_t)take_byte(in) * 100);
        break;
    case 6:
        end_call(w, take_below(in, CALLS));
        break;
    case 7:
        if (w->calls[what / 16 % CALLS])
            dfl_call_cancel(w->calls[what / 16 % CALLS], now);
        break;
    case 8:
        if (what / 16 == 1)
            new_session(w, take_below(in, SESSIONS));
        else if (what / 16 == 2)
            configure(w, take_byte(in));
        else if (what / 16 == 3)
            dfl_session_each(w->sessions[0], give_one_back, NULL);
        else if (what / 16 >= 4 && what / 16 < 12)
            memory_runs_out(in);
        else
            check_session(w, w->sessions[what / 16 % SESSIONS]);
        break;
    default:
        serve(&links[what / 16 % 8], in);
    }
    if (what < 248)
        look(w);
}

/* What worlds begin with, parsed once. */
static const struct dfl_settings *settings_of(uint8_t choice)
{
    static struct dfl_settings made[4];
    static bool is_made[4];
    size_t i = choice / 4 % 4;
    struct dfl_error err = {0};

    if (!is_made[i]) {
        REQUIRE(dfl_settings_init(&made[i]) == DFL_OK);
        REQUIRE(dfl_settings_set(&made[i], "connect_timeout", "2", &err) == DFL_OK);
        REQUIRE(dfl_settings_set(&made[i], "servers", i & 1 ? "one:1,two:2" : "one:1", &err) ==
                DFL_OK);
        REQUIRE(dfl_settings_set(&made[i], "fences", i & 2 ? "on" : "auto", &err) == DFL_OK);
        is_made[i] = true;
    }
    return &made[i];
}

static void begin(struct world *w, uint8_t choice)
{
    struct dfl_error err = {0};
    struct dfl_client_config config = {.settings = &w->settings,
                                       .auth_token = choice & 1 ? "token" : NULL,
                                       .seed = 1,
                                       .keep_warm = choice & 2,
                                       .host = {.watch = host_watch,
                                                .take_lock = take_lock,
                                                .give_lock = give_lock,
                                                .take_socket = take_socket,
                                                .give_socket = give_socket,
                                                .hold_changed = hold_changed,
                                                .hold_gone = hold_gone,
                                                .net = &w->net}};

    w->net.open = mem_open;
    now = (struct dfl_now){.ms = 1000000, .us = 1000000000, .wall_ms = INT64_C(1790000000000)};
    sockets = locks = hold_count = 0;
    REQUIRE(dfl_settings_copy(&w->settings, settings_of(choice)) == DFL_OK);
    REQUIRE(dfl_fence_book_new(&w->fences) == DFL_OK);
    config.fences = w->fences;
    REQUIRE(dfl_client_new(&config, &w->client, &err) == DFL_OK);
    for (size_t i = 0; i < SESSIONS; i++)
        new_session(w, i);
}

static bool pending(const struct world *w)
{
    for (size_t i = 0; i < CALLS; i++)
        if (w->calls[i] && dfl_call_status(w->calls[i]) == DFL_PENDING)
            return true;
    return false;
}

/* The servers say nothing any more: every call has to end by the clock, the infinite ones too. */
static void wait_for_calls(struct world *w)
{
    for (int n = 0; pending(w); n++) {
        int64_t next = dfl_client_next_ms(w->client);

        REQUIRE(next != INT64_MAX && n < 2000);
        if (next > now.ms)
            pass_time(next - now.ms);
        settle(w);
    }
}

static void finish(struct world *w)
{
    look(w);
    wait_for_calls(w);
    for (size_t i = 0; i < CALLS; i++)
        end_call(w, i);
    for (size_t i = 0; i < SESSIONS; i++)
        check_session(w, w->sessions[i]);
    dfl_client_shutdown(w->client, now);
    settle(w);
    dfl_client_free(w->client);
    REQUIRE(sockets == 0 && locks == 0 && hold_count == 0);
    for (size_t i = 0; i < LINKS; i++)
        REQUIRE(!links[i].used);
    dfl_fence_book_free(w->fences);
    dfl_settings_free(&w->settings);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    struct world w = {0};

    bytes = &in;
    memory_is_back();
    begin(&w, take_byte(&in));
    while (in.left > 0)
        operate(&w, &in);
    finish(&w);
    return 0;
}
