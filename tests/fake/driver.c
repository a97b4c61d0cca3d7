/*
 * driver.c - the client engine behind a pipe: commands on stdin, one JSON object per line on
 * stdout.
 *
 * A host as small as a host can be: one thread, dfl_wait for readiness, dfl_clock for time. It adds
 * no logic of its own, so whatever a test sees through it is the engine's doing. Never used outside
 * the tests.
 */
/* clang-format off
 *
 *   driver [epoll|poll]
 *
 *   client name=value ...      a client with these settings over the defaults; keep_warm=1
 *   set name=value ...         dfl_client_configure
 *   session S | end S | cap S n
 *   start ID S OP key=k ...    acquire enqueue wait release release_token renew release_all stats ping
 *                              kind=sem slots=3 timeout=1.5|inf lock_timeout=0.5 lease=30 token=...
 *                              wait=0 scope=xact tag=7
 *   cancel ID                  dfl_call_cancel
 *   held S key | held_later S key SECONDS | assert S key | leave S key | give S key
 *   info S | servers | busy | shutdown | quit
 *
 * Each command is answered by {"event":"reply",...}; calls end with {"event":"done","id":...}; the
 * log comes as {"event":"log",...}.
 */
/* clang-format on */
#include "dflockd.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define CALLS_MAX 4096
#define SESSIONS_MAX 64
#define WORDS_MAX 64
#define LINE_MAX_BYTES 65536

struct call {
    char id[32];
    char op[24];
    struct dfl_call *call;
    int64_t start_us;
};

struct session {
    char name[32];
    struct dfl_session *session;
};

static struct dfl_client *client;
static struct dfl_wait *readiness;
static struct dfl_fence_book *fences;
static struct dfl_settings settings;
static struct dfl_tls *tls;
static struct call calls[CALLS_MAX];
static struct session sessions[SESSIONS_MAX];
static bool keep_warm, finished;

/* -------------------------------------------------------------------- JSON */

static bool first_field;

static void print_string(const char *s)
{
    putchar('"');
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\')
            printf("\\%c", c);
        else if (c < 0x20)
            printf("\\u%04x", c);
        else
            putchar(c);
    }
    putchar('"');
}

static void name_of_field(const char *name)
{
    printf(first_field ? "" : ",");
    first_field = false;
    print_string(name);
    putchar(':');
}

static void field(const char *name, const char *value)
{
    name_of_field(name);
    print_string(value);
}

static void number(const char *name, int64_t value)
{
    name_of_field(name);
    printf("%" PRId64, value);
}

static void object_begin(void)
{
    putchar('{');
    first_field = true;
}

static void object_end(void)
{
    putchar('}');
    first_field = false;
}

static void event_begin(const char *event)
{
    object_begin();
    field("event", event);
}

static void event_end(void)
{
    object_end();
    putchar('\n');
    fflush(stdout);
}

static void status_fields(enum dfl_status status, const char *text)
{
    const struct dfl_status_info *info = dfl_status_info(status);
    field("status", info->name);
    field("sqlstate", info->sqlstate);
    field("text", text);
}

static void reply(enum dfl_status status, const char *text)
{
    event_begin("reply");
    status_fields(status, text);
    event_end();
}

static const char *const kind_names[] = {
    [DFL_LOCK] = "lock", [DFL_SEMAPHORE] = "sem", [DFL_ANY_KIND] = "any"};

static void hold_fields(const struct dfl_hold *hold, struct dfl_now now)
{
    struct dfl_hold_info info;
    char key[DFL_KEY_MAX + 1];
    dfl_hold_info(hold, &info);
    memcpy(key, info.key, info.key_len);
    key[info.key_len] = 0;
    field("key", key);
    field("kind", kind_names[info.kind]);
    field("state", dfl_state_name(info.state));
    field("token", info.token);
    number("slots", info.slots);
    number("fence", info.fence);
    number("lease", info.lease_s);
    number("link", info.link);
    number("deadline_in_ms", info.deadline_ms ? info.deadline_ms - now.ms : 0);
    number("lease_deadline_in_ms", info.lease_deadline_ms ? info.lease_deadline_ms - now.ms : 0);
    number("renewals", info.renewals);
    number("lost_ms_ago", info.lost_ms ? now.ms - info.lost_ms : -1);
    number("told", info.told);
    number("from_enqueue", info.from_enqueue);
    field("last_error", info.last_error);
    field("server", info.server);
}

/* ------------------------------------------------------------------- hosts */

static void on_watch(void *ctx, int fd, unsigned events, void *tag)
{
    (void)ctx;
    if (dfl_wait_watch(readiness, fd, events, tag) != DFL_OK) {
        fprintf(stderr, "driver: cannot watch descriptor %d\n", fd);
        abort();
    }
}

static void on_log(void *ctx, enum dfl_level level, const char *text)
{
    (void)ctx;
    event_begin("log");
    number("level", level);
    field("text", text);
    event_end();
}

static void on_ready(void *arg, void *tag, unsigned events)
{
    (void)arg;
    dfl_client_ready(client, tag, events, dfl_clock());
}

/* ------------------------------------------------------------------- calls */

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

static void report_all_done(void)
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

static struct call *free_call(void)
{
    for (size_t i = 0; i < CALLS_MAX; i++)
        if (!calls[i].call)
            return &calls[i];
    abort();
}

/* ---------------------------------------------------------------- commands */

struct words {
    char *word[WORDS_MAX];
    size_t count;
};

/* The value of name=value among the words, or fallback. */
static const char *option(const struct words *w, const char *name, const char *fallback)
{
    size_t len = strlen(name);
    for (size_t i = 0; i < w->count; i++)
        if (strncmp(w->word[i], name, len) == 0 && w->word[i][len] == '=')
            return w->word[i] + len + 1;
    return fallback;
}

static struct session *find_session(const char *name)
{
    for (size_t i = 0; i < SESSIONS_MAX; i++)
        if (sessions[i].session && strcmp(sessions[i].name, name) == 0)
            return &sessions[i];
    fprintf(stderr, "driver: no session %s\n", name);
    exit(2);
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

static void command_start(const struct words *w)
{
    struct dfl_error err = {0};
    struct session *s = find_session(w->word[2]);
    struct call *c = free_call();
    snprintf(c->id, sizeof c->id, "%s", w->word[1]);
    snprintf(c->op, sizeof c->op, "%s", w->word[3]);
    c->start_us = dfl_clock().us;
    for (size_t i = 0; i < sizeof operations / sizeof *operations; i++) {
        if (strcmp(operations[i].name, c->op) != 0)
            continue;
        struct dfl_call *call = NULL;
        enum dfl_status status = operations[i].start(s->session, w, &call, &err);
        reply(status, status == DFL_OK ? "" : err.text);
        c->call = status == DFL_OK ? call : NULL;
        return;
    }
    fprintf(stderr, "driver: no operation %s\n", c->op);
    exit(2);
}

static void command_cancel(const struct words *w)
{
    struct call *c = find_call(w->word[1]);
    if (c)
        dfl_call_cancel(c->call, dfl_clock());
    reply(c ? DFL_OK : DFL_NOT_HELD, c ? "" : "no such call");
}

/* Applies name=value words to *s. keep_warm is the host's, not a setting. */
static enum dfl_status apply_settings(const struct words *w, struct dfl_settings *s,
                                      struct dfl_error *err)
{
    for (size_t i = 1; i < w->count; i++) {
        char *equals = strchr(w->word[i], '=');
        if (!equals) {
            fprintf(stderr, "driver: not name=value: %s\n", w->word[i]);
            exit(2);
        }
        *equals = 0;
        enum dfl_status status = DFL_OK;
        if (strcmp(w->word[i], "keep_warm") == 0)
            keep_warm = atoi(equals + 1);
        else
            status = dfl_settings_set(s, w->word[i], equals + 1, err);
        *equals = '=';
        if (status != DFL_OK)
            return status;
    }
    return DFL_OK;
}

/* Token and TLS material as the settings say; the caller frees and releases. */
static enum dfl_status read_material(const struct dfl_settings *s, char **token,
                                     struct dfl_tls **material, struct dfl_error *err)
{
    *token = NULL;
    *material = NULL;
    enum dfl_status status = dfl_settings_read_token(s, token, err);
    if (status == DFL_OK)
        status = dfl_tls_new(s, material, err);
    return status;
}

static void command_client(const struct words *w)
{
    struct dfl_error err = {0};
    char *token = NULL;
    enum dfl_status status = apply_settings(w, &settings, &err);
    if (status == DFL_OK)
        status = read_material(&settings, &token, &tls, &err);
    struct dfl_client_config config = {
        .settings = &settings,
        .auth_token = token,
        .tls = tls,
        .host = {.watch = on_watch, .log = on_log},
        .fences = fences,
        .seed = 1,
        .keep_warm = keep_warm,
    };
    if (status == DFL_OK)
        status = dfl_client_new(&config, &client, &err);
    free(token);
    reply(status, err.text);
}

static void command_set(const struct words *w)
{
    struct dfl_error err = {0};
    struct dfl_settings changed;
    char *token = NULL;
    struct dfl_tls *material = NULL;
    if (dfl_settings_copy(&changed, &settings) != DFL_OK)
        abort();
    enum dfl_status status = apply_settings(w, &changed, &err);
    if (status == DFL_OK)
        status = read_material(&changed, &token, &material, &err);
    if (status == DFL_OK)
        status = dfl_client_configure(client, &changed, token, material, dfl_clock(), &err);
    if (status == DFL_OK) {
        dfl_settings_free(&settings);
        settings = changed;
    } else {
        dfl_settings_free(&changed);
    }
    dfl_tls_release(material);
    free(token);
    reply(status, err.text);
}

static void command_session(const struct words *w)
{
    for (size_t i = 0; i < SESSIONS_MAX; i++) {
        if (sessions[i].session)
            continue;
        snprintf(sessions[i].name, sizeof sessions[i].name, "%s", w->word[1]);
        reply(dfl_session_new(client, NULL, &sessions[i].session), "");
        return;
    }
    abort();
}

/* Calls of an ended session must not be used any more: they are forgotten without an event. */
static void command_end(const struct words *w)
{
    struct session *s = find_session(w->word[1]);
    for (size_t i = 0; i < CALLS_MAX; i++)
        if (calls[i].call && dfl_call_session(calls[i].call) == s->session)
            calls[i].call = NULL;
    dfl_session_end(s->session, dfl_clock());
    s->session = NULL;
    reply(DFL_OK, "");
}

static void command_cap(const struct words *w)
{
    dfl_session_set_cap(find_session(w->word[1])->session, atoll(w->word[2]));
    reply(DFL_OK, "");
}

static void command_held(const struct words *w)
{
    bool held =
        dfl_is_held(find_session(w->word[1])->session, w->word[2], strlen(w->word[2]), dfl_clock());
    event_begin("reply");
    number("yes", held);
    event_end();
}

/* A host that was busy elsewhere: nothing of the client runs before the question. */
static void command_held_later(const struct words *w)
{
    struct timespec nap = {.tv_sec = atoll(w->word[3])};
    nap.tv_nsec = (long)(fmod(strtod(w->word[3], NULL), 1) * 1e9);
    nanosleep(&nap, NULL);
    command_held(w);
}

static void command_assert(const struct words *w)
{
    struct dfl_error err = {0};
    struct dfl_session *s = find_session(w->word[1])->session;
    enum dfl_status status = dfl_assert_held(s, w->word[2], strlen(w->word[2]), dfl_clock(), &err);
    reply(status, err.text);
}

static void command_leave(const struct words *w)
{
    bool left =
        dfl_cancel(find_session(w->word[1])->session, w->word[2], strlen(w->word[2]), dfl_clock());
    event_begin("reply");
    number("yes", left);
    event_end();
}

static void command_give(const struct words *w)
{
    struct dfl_now now = dfl_clock();
    struct dfl_session *s = find_session(w->word[1])->session;
    struct dfl_hold *hold = dfl_session_hold(s, w->word[2], strlen(w->word[2]), DFL_ANY_KIND, now);
    if (!hold)
        hold = dfl_session_place(s, w->word[2], strlen(w->word[2]), DFL_ANY_KIND);
    if (hold)
        dfl_hold_give_back(hold, now);
    event_begin("reply");
    number("yes", hold != NULL);
    event_end();
}

static bool print_hold(void *arg, struct dfl_hold *hold)
{
    bool *any = arg;
    printf(*any ? "," : "");
    *any = true;
    object_begin();
    hold_fields(hold, dfl_clock());
    object_end();
    return true;
}

static void command_info(const struct words *w)
{
    bool any = false;
    event_begin("reply");
    name_of_field("holds");
    putchar('[');
    dfl_session_each(find_session(w->word[1])->session, print_hold, &any);
    putchar(']');
    event_end();
}

static void command_servers(const struct words *w)
{
    (void)w;
    event_begin("reply");
    name_of_field("servers");
    putchar('[');
    for (size_t i = 0; i < dfl_client_servers(client); i++) {
        struct dfl_server_info info;
        dfl_client_server(client, i, &info);
        printf(i ? "," : "");
        object_begin();
        field("address", info.address);
        field("state", dfl_server_state_name(info.state));
        number("connections", info.connections);
        number("round_trip_us", info.round_trip_us);
        number("since_ms", info.since_ms);
        field("last_error", info.last_error ? info.last_error : "");
        object_end();
    }
    putchar(']');
    event_end();
}

static void command_busy(const struct words *w)
{
    (void)w;
    int64_t next = dfl_client_next_ms(client);
    event_begin("reply");
    number("busy", dfl_client_busy(client));
    number("left_behind", dfl_client_left_behind(client));
    number("next_in_ms", next == INT64_MAX ? -1 : next - dfl_clock().ms);
    event_end();
}

static void command_shutdown(const struct words *w)
{
    (void)w;
    for (size_t i = 0; i < CALLS_MAX; i++)
        calls[i].call = NULL;
    for (size_t i = 0; i < SESSIONS_MAX; i++)
        sessions[i].session = NULL;
    dfl_client_shutdown(client, dfl_clock());
    reply(DFL_OK, "");
}

static void command_quit(const struct words *w)
{
    (void)w;
    finished = true;
}

static const struct {
    const char *name;
    size_t words; /* at least, the command's own included */
    void (*run)(const struct words *w);
} commands[] = {
    {"client", 1, command_client},
    {"set", 2, command_set},
    {"session", 2, command_session},
    {"end", 2, command_end},
    {"cap", 3, command_cap},
    {"start", 4, command_start},
    {"cancel", 2, command_cancel},
    {"held", 3, command_held},
    {"held_later", 4, command_held_later},
    {"assert", 3, command_assert},
    {"leave", 3, command_leave},
    {"give", 3, command_give},
    {"info", 2, command_info},
    {"servers", 1, command_servers},
    {"busy", 1, command_busy},
    {"shutdown", 1, command_shutdown},
    {"quit", 1, command_quit},
};

static void run_line(char *line)
{
    struct words w = {.count = 0};
    for (char *p = strtok(line, " "); p && w.count < WORDS_MAX; p = strtok(NULL, " "))
        w.word[w.count++] = p;
    for (size_t i = 0; w.count && i < sizeof commands / sizeof *commands; i++) {
        if (strcmp(commands[i].name, w.word[0]) == 0 && w.count >= commands[i].words) {
            commands[i].run(&w);
            report_all_done();
            return;
        }
    }
    fprintf(stderr, "driver: not a command: %s\n", w.count ? w.word[0] : "");
    exit(2);
}

/* Runs every whole line that has arrived; the end of input ends the program. */
static void read_commands(void)
{
    static char buf[LINE_MAX_BYTES];
    static size_t len;
    for (;;) {
        ssize_t n = read(0, buf + len, sizeof buf - len);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n <= 0) {
            finished = true;
            return;
        }
        len += (size_t)n;
        char *newline;
        while ((newline = memchr(buf, '\n', len))) {
            *newline = 0;
            run_line(buf);
            len -= (size_t)(newline + 1 - buf);
            memmove(buf, newline + 1, len);
        }
    }
}

static int64_t time_left(void)
{
    int64_t next = client ? dfl_client_next_ms(client) : INT64_MAX;
    if (next == INT64_MAX)
        return -1;
    int64_t left = next - dfl_clock().ms;
    return left < 0 ? 0 : left;
}

static void loop(void)
{
    struct dfl_wait_round round = {0};
    while (!finished) {
        if (dfl_wait_prepare(readiness, &round) != DFL_OK)
            abort();
        dfl_wait_block(&round, time_left(), 0);
        if (client) {
            dfl_wait_dispatch(readiness, &round, on_ready, NULL);
            dfl_client_run(client, dfl_clock());
            report_all_done();
        }
        read_commands();
    }
    dfl_wait_round_free(&round);
}

/* Everything is freed, so that a leak checker has the last word. */
static void clean_up(void)
{
    if (client) {
        struct dfl_now now = dfl_clock();
        for (size_t i = 0; i < CALLS_MAX; i++)
            dfl_call_free(calls[i].call, now);
        for (size_t i = 0; i < SESSIONS_MAX; i++)
            if (sessions[i].session)
                dfl_session_end(sessions[i].session, now);
        dfl_client_free(client);
    }
    dfl_tls_release(tls);
    dfl_settings_free(&settings);
    dfl_fence_book_free(fences);
    dfl_wait_free(readiness);
}

int main(int argc, char **argv)
{
    bool with_poll = argc > 1 && strcmp(argv[1], "poll") == 0;
    fcntl(0, F_SETFL, fcntl(0, F_GETFL) | O_NONBLOCK);
    if (dfl_wait_new(with_poll ? DFL_WAIT_POLL : DFL_WAIT_EPOLL, &readiness) != DFL_OK ||
        dfl_fence_book_new(&fences) != DFL_OK || dfl_settings_init(&settings) != DFL_OK) {
        fprintf(stderr, "driver: out of memory\n");
        return 1;
    }
    loop();
    clean_up();
    return 0;
}
