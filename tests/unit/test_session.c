/*
 * The server's conversation without a socket: bytes and a time in, bytes out. What is played here
 * is what the loop plays with real connections.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "session.h"

struct stage {
    struct service *service;
    struct protocol protocol;
    struct dfl_now now;
    uint64_t fence;
};

static bool mint_grant(void *ctx, int64_t lease_s, struct lock_token *token)
{
    struct stage *st = ctx;

    (void)lease_s;
    *token = (struct lock_token){++st->fence, 0xabcdef};
    return true;
}

static bool mint_extend(void *ctx, int64_t lease_s)
{
    (void)ctx;
    (void)lease_s;
    return true;
}

static void raise_curtain(struct stage *st, const char *auth_token)
{
    *st = (struct stage){.now = {.ms = 5000, .wall_ms = 1800000000000}};

    struct service_config config = {.table = {.max_locks = 100000,
                                              .gc_interval_ms = 5000,
                                              .gc_max_idle_ms = 60000,
                                              .auto_release = true,
                                              .mint = {st, mint_grant, mint_extend}},
                                    .default_lease_s = 33,
                                    .auth_token = auth_token};
    struct dfl_error err;

    assert_int_equal(service_new(&config, st->now, &st->service, &err), DFL_OK);
    st->protocol = service_protocol(st->service);
}

static struct peer *enter(struct stage *st)
{
    struct peer *p = st->protocol.open(st->protocol.ctx, st->now);

    assert_non_null(p);
    return p;
}

static void leave(struct stage *st, struct peer *p)
{
    st->protocol.gone(p, st->now);
}

static void run_ready(struct stage *st)
{
    while (!dfl_list_empty(st->protocol.ready)) {
        struct dfl_link *first = st->protocol.ready->next;

        dfl_link_remove(first);
        st->protocol.run(DFL_CONTAINER(first, struct peer, ready), st->now);
    }
}

static void say_bytes(struct stage *st, struct peer *p, const char *bytes, size_t n)
{
    char *at;
    size_t room;

    assert_int_equal(dfl_line_reader_space(&p->in, n, &at, &room), DFL_OK);
    memcpy(at, bytes, n);
    dfl_line_reader_added(&p->in, n);
    st->protocol.run(p, st->now);
    run_ready(st);
}

static void say(struct stage *st, struct peer *p, const char *text)
{
    say_bytes(st, p, text, strlen(text));
}

/* What has been answered since the last time must be this. */
static void hear(struct peer *p, const char *text)
{
    struct outbuf *o = &p->out;

    if (outbuf_left(o) != strlen(text) ||
        (outbuf_left(o) && memcmp(o->bytes + o->start, text, outbuf_left(o)) != 0))
        fail_msg("heard \"%.*s\", not \"%s\"", (int)outbuf_left(o),
                 o->bytes ? o->bytes + o->start : "", text);
    if (outbuf_left(o))
        outbuf_sent(o, outbuf_left(o));
}

static void pass_ms(struct stage *st, int64_t ms)
{
    st->now.ms += ms;
    st->now.wall_ms += ms;
    st->protocol.tick(st->protocol.ctx, st->now);
    run_ready(st);
}

#define TOKEN(n) "000000000000000" #n "0000000000abcdef"

static void test_one_byte_at_a_time(void **state)
{
    struct stage st;
    const char *text =
        "l\r\nkey\n10 20\nn\nkey\n" TOKEN(1) " 5\nr\nkey\n" TOKEN(1) "\r\nping\n\n\n";

    (void)state;
    raise_curtain(&st, NULL);
    struct peer *p = enter(&st);

    for (const char *c = text; *c; c++)
        say_bytes(&st, p, c, 1);
    hear(p, "ok " TOKEN(1) " 20\nok 5\nok\nok\n");
    leave(&st, p);
    service_free(st.service);
}

static void test_what_follows_a_blocking_request_waits(void **state)
{
    struct stage st;

    (void)state;
    raise_curtain(&st, NULL);
    struct peer *a = enter(&st), *b = enter(&st);

    say(&st, a, "l\nk\n0\n");
    hear(a, "ok " TOKEN(1) " 33\n");
    say(&st, b, "l\nk\n10 7\nping\n_\n_\nl\nk\n0\n");
    hear(b, "");
    assert_true(b->blocked);
    say(&st, a, "r\nk\n" TOKEN(1) "\n");
    hear(a, "ok\n");
    hear(b, "ok " TOKEN(2) " 7\nok\ntimeout\n");
    assert_false(b->blocked);
    leave(&st, a);
    leave(&st, b);
    service_free(st.service);
}

static void test_time(void **state)
{
    struct stage st;

    (void)state;
    raise_curtain(&st, NULL);
    struct peer *a = enter(&st), *b = enter(&st);

    say(&st, a, "l\nk\n0 3\n");
    hear(a, "ok " TOKEN(1) " 3\n");
    say(&st, b, "l\nk\n2\n");
    pass_ms(&st, 2001);
    hear(b, "timeout\n");
    say(&st, b, "e\nk\n5\nw\nk\n100\n");
    hear(b, "queued\n");
    pass_ms(&st, 1000);
    hear(b, "ok " TOKEN(2) " 5\n");
    assert_int_equal(b->owes_since_ms, st.now.ms);
    leave(&st, a);
    leave(&st, b);
    service_free(st.service);
}

static void test_leaving_hands_on(void **state)
{
    struct stage st;

    (void)state;
    raise_curtain(&st, NULL);
    struct peer *a = enter(&st), *b = enter(&st);

    say(&st, a, "sl\nk\n0 1\n");
    hear(a, "ok " TOKEN(1) " 33\n");
    say(&st, b, "l\nk\n2\n");
    leave(&st, a);
    hear(b, "ok " TOKEN(2) " 33\n");
    leave(&st, b);
    assert_int_equal(locktable_holds(st.service->table), 0);
    service_free(st.service);
}

static void test_errors(void **state)
{
    struct stage st;
    char line[300];

    (void)state;
    raise_curtain(&st, NULL);
    struct peer *p = enter(&st);

    say(&st, p,
        "nonsense\nk\n0\nl\nk k\n0\nl\n\n0\nl\nk\n-1\nl\nk\n1 "
        "0\nsl\nk\n0\nr\nk\nshort\nw\nk\n1\nauth\n_\nx\n");
    hear(p, "error\nerror\nerror\nerror\nerror\nerror\nerror\nerror_not_enqueued\nerror\n");
    assert_false(p->closing);
    memset(line, 'x', 257);
    line[257] = '\0';
    say(&st, p, line);
    hear(p, "error\n");
    assert_true(p->closing);
    leave(&st, p);

    p = enter(&st);
    st.protocol.silent(p, st.now);
    hear(p, "error\n");
    assert_true(p->closing);
    leave(&st, p);
    service_free(st.service);
}

static void test_login(void **state)
{
    struct stage st;

    (void)state;
    raise_curtain(&st, "secret");
    struct peer *good = enter(&st), *bad = enter(&st);

    say(&st, good, "auth\n_\nsecret\nping\n_\n_\n");
    hear(good, "ok\nok\n");
    say(&st, bad, "auth\n_\nsecreT\nl\nk\n0\n");
    hear(bad, "error_auth\n");
    assert_true(bad->closing);
    assert_int_equal(bad->close_at_ms, st.now.ms + 100);
    assert_int_equal(locktable_keys(st.service->table), 0);
    leave(&st, good);
    leave(&st, bad);
    service_free(st.service);
}

static void test_gate_and_drain(void **state)
{
    struct stage st;

    (void)state;
    raise_curtain(&st, NULL);
    struct peer *a = enter(&st), *b = enter(&st);

    service_close_gate(st.service, st.now.ms + 1000);
    say(&st, a, "l\nk\n0\n");
    hear(a, "timeout\n");
    say(&st, b, "l\nk\n60\n");
    pass_ms(&st, 999);
    hear(b, "");
    pass_ms(&st, 1);
    hear(b, "ok " TOKEN(1) " 33\n");
    say(&st, a, "l\nk\n60\n");
    service_drain(st.service, st.now);
    hear(a, "error_draining\n");
    say(&st, a, "l\nx\n0\nping\n_\n_\n");
    hear(a, "error_draining\nok\n");
    say(&st, b, "n\nk\n" TOKEN(1) " 9\nr\nk\n" TOKEN(1) "\n");
    hear(b, "ok 9\nok\n");
    leave(&st, a);
    leave(&st, b);
    service_free(st.service);
}

static void test_stats_in_slices(void **state)
{
    struct stage st;
    char request[64];
    size_t slices = 0, bytes = 0, largest = 0;

    (void)state;
    raise_curtain(&st, NULL);
    struct peer *p = enter(&st);

    for (int i = 0; i < 20000; i++) {
        snprintf(request, sizeof request, "l\nkey-%d\n0\n", i);
        say(&st, p, request);
        outbuf_sent(&p->out, outbuf_left(&p->out));
    }
    say(&st, p, "stats\n_\n_\nping\n_\n_\n");
    for (bool more = true; more; slices++) {
        largest = outbuf_left(&p->out) > largest ? outbuf_left(&p->out) : largest;
        bytes += outbuf_left(&p->out);
        more = p->more;
        if (!more)
            assert_memory_equal(p->out.bytes + p->out.end - 6, "]}\nok\n", 6);
        outbuf_sent(&p->out, outbuf_left(&p->out));
        if (more)
            st.protocol.run(p, st.now);
    }
    assert_true(slices > 4);
    assert_true(bytes > 20000 * 60);
    assert_true(largest < 300000);
    leave(&st, p);
    service_free(st.service);
}

static void test_a_long_pipeline_takes_turns(void **state)
{
    struct stage st;

    (void)state;
    raise_curtain(&st, NULL);
    struct peer *p = enter(&st);
    size_t n = 0, answers = 0;
    char *text = malloc(9 * 2000 + 1);

    assert_non_null(text);
    for (int i = 0; i < 2000; i++)
        n += (size_t)sprintf(text + n, "ping\n_\n_\n");
    say_bytes(&st, p, text, n);
    free(text);
    assert_true(p->more);
    for (int turns = 0; turns < 100; turns++) {
        answers += outbuf_left(&p->out) / 3;
        outbuf_sent(&p->out, outbuf_left(&p->out));
        if (p->more)
            st.protocol.run(p, st.now);
    }
    assert_int_equal(answers, 2000);
    leave(&st, p);
    service_free(st.service);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_byte_at_a_time),
        cmocka_unit_test(test_what_follows_a_blocking_request_waits),
        cmocka_unit_test(test_time),
        cmocka_unit_test(test_leaving_hands_on),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_login),
        cmocka_unit_test(test_gate_and_drain),
        cmocka_unit_test(test_stats_in_slices),
        cmocka_unit_test(test_a_long_pipeline_takes_turns),
    };

    return cmocka_run_group_tests_name("session", tests, NULL, NULL);
}
