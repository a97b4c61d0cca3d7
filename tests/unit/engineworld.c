/*
 * engineworld.c - connections whose other end is a table of answers.
 */
#include "engineworld.h"

#include <stdlib.h>
#include <string.h>

static struct world world; /* the transports have no other way to it */

const char world_end[] = "";

/* ------------------------------------------------------------------ network */

static enum dfl_io link_connect(struct dfl_transport *t, struct dfl_now at, int64_t deadline_ms)
{
    (void)t, (void)at, (void)deadline_ms;
    return DFL_IO_DONE;
}

static struct link *link_of(struct dfl_transport *t)
{
    return (struct link *)t; /* base is the first member */
}

static enum dfl_io link_read(struct dfl_transport *t, void *buf, size_t cap, size_t *got)
{
    struct link *link = link_of(t);
    size_t n = link->in_len < cap ? link->in_len : cap;

    if (n == 0)
        return link->ended ? DFL_IO_EOF : DFL_IO_AGAIN;
    memcpy(buf, link->in, n);
    link->in_len -= n;
    memmove(link->in, link->in + n, link->in_len);
    *got = n;
    return DFL_IO_DONE;
}

static void say(struct link *link, const char *line)
{
    size_t len = strlen(line);

    assert_true(link->in_len + len + 1 <= sizeof link->in);
    memcpy(link->in + link->in_len, line, len);
    link->in_len += len;
    link->in[link->in_len++] = '\n';
}

static const char *answer_to(const char *command, const char *argument)
{
    bool semaphore = *command == 's' && command[1] != 't';
    char letter = command[semaphore];

    return world.answers[letter == 'l' && *argument != '0' ? 'L' : (unsigned char)letter];
}

/* Whole requests only: command, key, argument. */
static enum dfl_io link_write(struct dfl_transport *t, const void *buf, size_t len, size_t *put)
{
    const char *text = buf, *end = text + len, *command = text;
    unsigned line = 0;

    for (const char *next; text < end; text = next + 1, line++) {
        next = memchr(text, '\n', (size_t)(end - text));
        assert_non_null(next);
        if (line % 3 == 0)
            command = text;
        if (line % 3 != 2)
            continue;
        const char *answer = answer_to(command, text);
        if (answer == world_end)
            link_of(t)->ended = true;
        else if (answer)
            say(link_of(t), answer);
    }
    *put = len;
    return DFL_IO_DONE;
}

static size_t link_interest(struct dfl_transport *t, bool want_write, struct dfl_interest *out)
{
    (void)want_write;
    for (size_t i = 0; i < world.link_count; i++)
        if (world.links[i] == link_of(t))
            *out = (struct dfl_interest){(int)i, DFL_READABLE};
    return 1;
}

static bool link_buffered(struct dfl_transport *t)
{
    (void)t;
    return false;
}

static int64_t link_wake_ms(struct dfl_transport *t)
{
    (void)t;
    return INT64_MAX;
}

static const char *link_step(struct dfl_transport *t)
{
    (void)t;
    return "read";
}

static void link_close(struct dfl_transport *t)
{
    for (size_t i = 0; i < world.link_count; i++)
        if (world.links[i] == link_of(t))
            world.links[i] = NULL;
    free(t);
}

static void link_abandon(struct dfl_transport *t)
{
    (void)t;
}

static const struct dfl_transport_ops link_ops = {
    .connect = link_connect,
    .read = link_read,
    .write = link_write,
    .interest = link_interest,
    .buffered = link_buffered,
    .wake_ms = link_wake_ms,
    .step = link_step,
    .close = link_close,
    .abandon = link_abandon,
};

static enum dfl_status link_open(void *ctx, const struct dfl_endpoint *ep, struct dfl_tls *tls,
                                 struct dfl_transport **out, struct dfl_error *err)
{
    struct link *link = calloc(1, sizeof *link);

    (void)ctx, (void)ep, (void)tls, (void)err;
    assert_non_null(link);
    assert_true(world.link_count < LINKS_MAX);
    link->base.ops = &link_ops;
    world.links[world.link_count++] = link;
    *out = &link->base;
    return DFL_OK;
}

static void watch(void *ctx, int fd, unsigned events, void *tag)
{
    (void)ctx;
    world.links[fd]->tag = events ? tag : NULL;
}

/* ------------------------------------------------------------------ the world */

int world_open(void **state)
{
    struct world *w = &world;
    struct dfl_error err;
    struct dfl_client_config config = {.settings = &w->settings};

    *w = (struct world){.net = {.open = link_open},
                        .now = {1000000, 1000000000, INT64_C(1800000000000)}};
    for (char c = 'a'; c <= 'z'; c++)
        w->answers[(int)c] = "ok";
    w->answers['l'] = w->answers['L'] = "ok " TOKEN " 10";
    w->answers['e'] = "acquired " TOKEN " 10";
    w->answers['n'] = "ok 10";
    assert_int_equal(dfl_settings_init(&w->settings), DFL_OK);
    assert_int_equal(dfl_fence_book_new(&w->fences), DFL_OK);
    config.fences = w->fences;
    config.host.watch = watch;
    config.host.net = &w->net;
    assert_int_equal(dfl_client_new(&config, &w->client, &err), DFL_OK);
    assert_int_equal(dfl_session_new(w->client, NULL, &w->session), DFL_OK);
    assert_int_equal(dfl_session_new(w->client, NULL, &w->other), DFL_OK);
    *state = w;
    return 0;
}

int world_close(void **state)
{
    struct world *w = *state;

    dfl_client_shutdown(w->client, w->now);
    dfl_client_free(w->client);
    dfl_fence_book_free(w->fences);
    dfl_settings_free(&w->settings);
    return 0;
}

void world_pass(struct world *w, int64_t ms)
{
    w->now.ms += ms;
    w->now.us += ms * 1000;
    w->now.wall_ms += ms;
}

static bool read_one(struct world *w)
{
    for (size_t i = 0; i < w->link_count; i++) {
        struct link *link = w->links[i];

        if (link && link->tag && (link->in_len > 0 || link->ended)) {
            dfl_client_ready(w->client, link->tag, DFL_READABLE, w->now);
            return true;
        }
    }
    return false;
}

void world_settle(struct world *w)
{
    do {
        while (read_one(w))
            continue;
        dfl_client_run(w->client, w->now);
    } while (read_one(w));
}

void world_say(struct world *w, size_t link, const char *line)
{
    assert_true(link < w->link_count && w->links[link]);
    say(w->links[link], line);
}

struct dfl_call *world_acquire(struct world *w, const char *key, int64_t timeout_ms)
{
    struct dfl_request_args a = {.key = key, .key_len = strlen(key), .timeout_ms = timeout_ms};
    struct dfl_error err;
    struct dfl_call *call;

    assert_int_equal(dfl_acquire(w->session, &a, w->now, &call, &err), DFL_OK);
    return call;
}

void world_take(struct world *w, const char *key)
{
    struct dfl_call *call = world_acquire(w, key, 0);

    world_settle(w);
    assert_int_equal(dfl_call_status(call), DFL_OK);
    dfl_call_free(call, w->now);
    assert_true(world_holds(w, key));
}

bool world_holds(struct world *w, const char *key)
{
    return dfl_is_held(w->session, key, strlen(key), w->now);
}

unsigned world_connections(struct world *w)
{
    struct dfl_server_info info;

    dfl_client_server(w->client, 0, &info);
    return info.connections;
}
