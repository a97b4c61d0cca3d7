/*
 * commands.c - a line of words in, a reply out: the client, its settings and its sessions.
 */
#include "driver.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SESSIONS_MAX 64

struct session {
    char name[32];
    struct dfl_session *session;
};

struct dfl_client *client;
bool finished;

static struct dfl_fence_book *fences;
static struct dfl_settings settings;
static struct dfl_tls *tls;
static struct session sessions[SESSIONS_MAX];
static bool keep_warm;

static struct session *find_session(const char *name)
{
    for (size_t i = 0; i < SESSIONS_MAX; i++)
        if (sessions[i].session && strcmp(sessions[i].name, name) == 0)
            return &sessions[i];
    fprintf(stderr, "driver: no session %s\n", name);
    exit(2);
}

struct dfl_session *session_named(const char *name)
{
    return find_session(name)->session;
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
    forget_calls(s->session);
    dfl_session_end(s->session, dfl_clock());
    s->session = NULL;
    reply(DFL_OK, "");
}

static void command_cap(const struct words *w)
{
    dfl_session_set_cap(session_named(w->word[1]), atoll(w->word[2]));
    reply(DFL_OK, "");
}

static void command_held(const struct words *w)
{
    bool held = dfl_is_held(session_named(w->word[1]), w->word[2], strlen(w->word[2]), dfl_clock());
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
    struct dfl_session *s = session_named(w->word[1]);
    enum dfl_status status = dfl_assert_held(s, w->word[2], strlen(w->word[2]), dfl_clock(), &err);
    reply(status, err.text);
}

static void command_leave(const struct words *w)
{
    bool left = dfl_cancel(session_named(w->word[1]), w->word[2], strlen(w->word[2]), dfl_clock());
    event_begin("reply");
    number("yes", left);
    event_end();
}

static void command_give(const struct words *w)
{
    struct dfl_now now = dfl_clock();
    struct dfl_session *s = session_named(w->word[1]);
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
    dfl_session_each(session_named(w->word[1]), print_hold, &any);
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
    forget_calls(NULL);
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

void run_line(char *line)
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

bool commands_begin(void)
{
    return dfl_fence_book_new(&fences) == DFL_OK && dfl_settings_init(&settings) == DFL_OK;
}

/* Everything is freed, so that a leak checker has the last word. */
void commands_end(void)
{
    if (client) {
        struct dfl_now now = dfl_clock();
        free_calls();
        for (size_t i = 0; i < SESSIONS_MAX; i++)
            if (sessions[i].session)
                dfl_session_end(sessions[i].session, now);
        dfl_client_free(client);
    }
    dfl_tls_release(tls);
    dfl_settings_free(&settings);
    dfl_fence_book_free(fences);
}
