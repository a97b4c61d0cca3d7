/* The engine on a network in memory, by a clock that the test moves: what it says of holds whose
 * time passed while nobody drove it, and what it leaves when memory runs out. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "dflockd.h"
#include "transport.h"

/* ------------------------------------------------------------------- memory */

/* The linker puts this in front of the engine's malloc. */
void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);

static int until_none; /* the one of the next allocations that fails; 0 = none */

void *__wrap_malloc(size_t size)
{
    if (until_none > 0 && --until_none == 0)
        return NULL;
    return __real_malloc(size);
}

/* ------------------------------------------------------------------ network */

#define TOKEN "17dc6f0a11223344aabbccddeeff0011"
#define LEASE_S 10

/* A server that answers at once: `ok` to whatever is asked, a grant to `l`. */
struct link {
    struct dfl_transport base; /* first */
    char in[4096];
    size_t in_len;
    unsigned releases;
};

static struct link link;
static struct dfl_now now;

static enum dfl_io link_connect(struct dfl_transport *t, struct dfl_now at, int64_t deadline_ms)
{
    (void)t, (void)at, (void)deadline_ms;
    return DFL_IO_DONE;
}

static enum dfl_io link_read(struct dfl_transport *t, void *buf, size_t cap, size_t *got)
{
    size_t n = link.in_len < cap ? link.in_len : cap;

    (void)t;
    if (n == 0)
        return DFL_IO_AGAIN;
    memcpy(buf, link.in, n);
    link.in_len -= n;
    memmove(link.in, link.in + n, link.in_len);
    *got = n;
    return DFL_IO_DONE;
}

static void answer(const char *line)
{
    size_t len = strlen(line);

    assert_true(link.in_len + len <= sizeof link.in);
    memcpy(link.in + link.in_len, line, len);
    link.in_len += len;
}

static enum dfl_io link_write(struct dfl_transport *t, const void *buf, size_t len, size_t *put)
{
    const char *text = buf, *end = text + len;
    unsigned line = 0;

    (void)t;
    for (const char *next; text < end; text = next + 1, line++) { /* whole requests only */
        next = memchr(text, '\n', (size_t)(end - text));
        assert_non_null(next);
        if (line % 3 != 0)
            continue;
        answer(*text == 'l' ? "ok " TOKEN " 10\n" : *text == 'n' ? "ok 10\n" : "ok\n");
        link.releases += *text == 'r';
    }
    *put = len;
    return DFL_IO_DONE;
}

static size_t link_interest(struct dfl_transport *t, bool want_write, struct dfl_interest *out)
{
    (void)t, (void)want_write;
    *out = (struct dfl_interest){3, DFL_READABLE};
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
    (void)t;
}

static const struct dfl_transport_ops link_ops = {link_connect,  link_read,     link_write,
                                                  link_interest, link_buffered, link_wake_ms,
                                                  link_step,     link_close,    link_close};

static enum dfl_status link_open(void *ctx, const struct dfl_endpoint *ep, struct dfl_tls *tls,
                                 struct dfl_transport **out, struct dfl_error *err)
{
    (void)ctx, (void)ep, (void)tls, (void)err;
    link = (struct link){.base.ops = &link_ops};
    *out = &link.base;
    return DFL_OK;
}

/* ------------------------------------------------------------------ a world */

static void *watched; /* the tag of the only connection */

static void watch(void *ctx, int fd, unsigned events, void *tag)
{
    (void)ctx, (void)fd;
    watched = events ? tag : NULL;
}

struct world {
    struct dfl_net net;
    struct dfl_settings settings;
    struct dfl_fence_book *fences;
    struct dfl_client *client;
    struct dfl_session *session, *other;
};

static void pass(int64_t ms)
{
    now.ms += ms;
    now.us += ms * 1000;
    now.wall_ms += ms;
}

static void settle(struct world *w)
{
    for (int i = 0; i < 8 && watched; i++)
        dfl_client_ready(w->client, watched, DFL_READABLE, now);
}

static int set_up(void **state)
{
    static struct world w;
    struct dfl_error err;
    struct dfl_client_config config;

    memset(&config, 0, sizeof config);
    w.net = (struct dfl_net){.open = link_open};
    now = (struct dfl_now){1000000, 1000000000, INT64_C(1800000000000)};
    assert_int_equal(dfl_settings_init(&w.settings), DFL_OK);
    assert_int_equal(dfl_fence_book_new(&w.fences), DFL_OK);
    config.settings = &w.settings;
    config.fences = w.fences;
    config.host.watch = watch;
    config.host.net = &w.net;
    assert_int_equal(dfl_client_new(&config, &w.client, &err), DFL_OK);
    assert_int_equal(dfl_session_new(w.client, NULL, &w.session), DFL_OK);
    assert_int_equal(dfl_session_new(w.client, NULL, &w.other), DFL_OK);
    *state = &w;
    return 0;
}

static int tear_down(void **state)
{
    struct world *w = *state;

    dfl_client_shutdown(w->client, now);
    dfl_client_free(w->client);
    dfl_fence_book_free(w->fences);
    dfl_settings_free(&w->settings);
    return 0;
}

/* The session holds "k". */
static void take(struct world *w)
{
    struct dfl_request_args a = {.key = "k", .key_len = 1, .lease_s = LEASE_S};
    struct dfl_error err;
    struct dfl_call *call;

    assert_int_equal(dfl_acquire(w->session, &a, now, &call, &err), DFL_OK);
    settle(w);
    assert_int_equal(dfl_call_status(call), DFL_OK);
    dfl_call_free(call, now);
    assert_true(dfl_is_held(w->session, "k", 1, now));
}

/* ------------------------------------------------------------------- tests */

static enum dfl_status release_by_token(struct dfl_session *s)
{
    struct dfl_error err;
    struct dfl_call *call = NULL;
    enum dfl_status st =
        dfl_release_token(s, DFL_LOCK, "k", 1, TOKEN, false, NULL, now, &call, &err);

    if (st != DFL_OK)
        return st;
    st = dfl_call_status(call); /* an answer that is waited for comes later */
    dfl_call_free(call, now);
    return st;
}

static void a_token_in_time_is_released_without_waiting(void **state)
{
    struct world *w = *state;

    take(w);
    pass(LEASE_S * 1000 / 2);
    assert_int_equal(release_by_token(w->session), DFL_OK);
    take(w);
    pass(LEASE_S * 1000 / 2);
    assert_int_equal(release_by_token(w->other), DFL_OK);
}

/* True without waiting means: was held by our clock when it was sent. */
static void a_token_whose_lease_is_over_is_not_said_to_be_released(void **state)
{
    struct world *w = *state;

    take(w);
    pass(LEASE_S * 1000);
    assert_int_not_equal(release_by_token(w->session), DFL_OK);
    assert_false(dfl_is_held(w->session, "k", 1, now));
    settle(w);
}

static void nor_one_of_another_session(void **state)
{
    struct world *w = *state;

    take(w);
    pass(LEASE_S * 1000);
    assert_int_not_equal(release_by_token(w->other), DFL_OK);
    settle(w);
}

static void what_is_over_does_not_count_in_release_all(void **state)
{
    struct world *w = *state;
    struct dfl_error err;
    struct dfl_call *call;

    take(w);
    pass(LEASE_S * 1000);
    assert_int_equal(dfl_release_all(w->session, false, NULL, now, &call, &err), DFL_OK);
    assert_int_equal(dfl_call_status(call), DFL_OK);
    assert_int_equal(dfl_call_seconds(call), 0);
    dfl_call_free(call, now);
    assert_null(dfl_session_hold(w->session, "k", 1, DFL_ANY_KIND, now)); /* forgotten */
}

static void release_without_memory(struct world *w, enum dfl_kind kind, int allocation,
                                   enum dfl_status *started, enum dfl_status *ended)
{
    struct dfl_error err = {.text = ""};
    struct dfl_call *call = NULL;

    until_none = allocation;
    *started =
        dfl_release_token(w->session, kind, "unknown", 7, TOKEN, true, NULL, now, &call, &err);
    until_none = 0;
    *ended = *started;
    if (*started != DFL_OK) {
        assert_string_equal(err.text, "out of memory");
        return;
    }
    *ended = dfl_call_status(call);
    dfl_call_free(call, now);
}

/* A call that stayed behind would keep the host from seeing to what others leave. */
static void a_release_that_cannot_begin_leaves_no_call(void **state)
{
    struct world *w = *state;
    struct dfl_request_args a = {.key = "j", .key_len = 1};
    struct dfl_error err;
    struct dfl_call *call;
    enum dfl_status started, ended;

    take(w);
    release_without_memory(w, DFL_LOCK, 1, &started, &ended);
    assert_int_equal(started, DFL_NOMEM);
    assert_int_equal(dfl_acquire(w->session, &a, now, &call, &err), DFL_OK);
    dfl_call_free(call, now); /* its grant is to be given back */
    assert_true(dfl_client_left_behind(w->client));
    settle(w);
}

static void a_release_that_cannot_be_sent_leaves_no_connection(void **state)
{
    struct world *w = *state;
    enum dfl_status started, ended;
    struct dfl_server_info info;

    release_without_memory(w, DFL_SEMAPHORE, 2, &started, &ended);
    assert_int_equal(started, DFL_OK);
    assert_int_equal(ended, DFL_NOMEM);
    dfl_client_server(w->client, 0, &info);
    assert_int_equal(info.connections, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_token_in_time_is_released_without_waiting, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_token_whose_lease_is_over_is_not_said_to_be_released,
                                        set_up, tear_down),
        cmocka_unit_test_setup_teardown(nor_one_of_another_session, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_is_over_does_not_count_in_release_all, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_release_that_cannot_begin_leaves_no_call, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_release_that_cannot_be_sent_leaves_no_connection, set_up,
                                        tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
