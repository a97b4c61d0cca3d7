/* The line reader: lines wherever they were cut, their longest length, and memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "proto.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static void feed(struct dfl_line_reader *r, const char *bytes, size_t n)
{
    char *at;
    size_t room;

    assert_int_equal(dfl_line_reader_space(r, n, &at, &room), DFL_OK);
    assert_true(room >= n);
    memcpy(at, bytes, n);
    dfl_line_reader_added(r, n);
}

static void assert_line(struct dfl_line_reader *r, size_t max, const char *want)
{
    char *line;
    size_t len;

    assert_int_equal(dfl_line_reader_next(r, max, &line, &len), DFL_OK);
    assert_int_equal(len, strlen(want));
    assert_string_equal(line, want);
}

static void assert_no_line(struct dfl_line_reader *r, size_t max, enum dfl_status status)
{
    char *line = NULL;
    size_t len = 77;

    assert_int_equal(dfl_line_reader_next(r, max, &line, &len), status);
    assert_null(line);
    assert_int_equal(len, 77);
}

static void lines_come_out_wherever_they_were_cut(void **state)
{
    static const char bytes[] = "ok\nqueued\r\n\nerror\r\r\na\rb\n";
    static const char *const lines[] = {"ok", "queued", "", "error", "a\rb"};

    (void)state;
    for (size_t piece = 1; piece <= sizeof bytes - 1; piece++) {
        struct dfl_line_reader r;
        size_t found = 0;

        dfl_line_reader_init(&r);
        for (size_t at = 0; at < sizeof bytes - 1; at += piece) {
            size_t n = sizeof bytes - 1 - at < piece ? sizeof bytes - 1 - at : piece;
            char *line;
            size_t len;

            feed(&r, bytes + at, n);
            while (dfl_line_reader_next(&r, 256, &line, &len) == DFL_OK) {
                assert_true(found < COUNT(lines));
                assert_string_equal(line, lines[found++]);
            }
        }
        assert_int_equal(found, COUNT(lines));
        assert_int_equal(dfl_line_reader_left(&r), 0);
        dfl_line_reader_free(&r);
    }
}

static void an_empty_reader_has_no_line(void **state)
{
    struct dfl_line_reader r;

    (void)state;
    dfl_line_reader_init(&r);
    assert_no_line(&r, 256, DFL_PENDING);
    assert_int_equal(dfl_line_reader_left(&r), 0);
    dfl_line_reader_free(&r);
}

static void left_counts_what_no_line_consumed(void **state)
{
    struct dfl_line_reader r;

    (void)state;
    dfl_line_reader_init(&r);
    feed(&r, "ok\ntime", 7);
    assert_int_equal(dfl_line_reader_left(&r), 7);
    assert_line(&r, 256, "ok");
    assert_int_equal(dfl_line_reader_left(&r), 4);
    assert_no_line(&r, 256, DFL_PENDING);
    feed(&r, "out\n", 4);
    assert_line(&r, 256, "timeout");
    dfl_line_reader_free(&r);
}

static void a_line_may_be_as_long_as_the_limit_and_no_longer(void **state)
{
    char bytes[258];

    (void)state;
    memset(bytes, 'x', sizeof bytes);
    for (size_t len = 255; len <= 257; len++) {
        for (int ended = 0; ended <= 1; ended++) {
            struct dfl_line_reader r;

            dfl_line_reader_init(&r);
            feed(&r, bytes, len);
            if (ended)
                feed(&r, "\n", 1);
            if (len > 256) {
                assert_no_line(&r, 256, DFL_PROTOCOL);
                assert_no_line(&r, 256, DFL_PROTOCOL); /* it stays so */
            } else if (!ended) {
                assert_no_line(&r, 256, DFL_PENDING);
            } else {
                char *line;
                size_t got;

                assert_int_equal(dfl_line_reader_next(&r, 256, &line, &got), DFL_OK);
                assert_int_equal(got, len);
            }
            dfl_line_reader_free(&r);
        }
    }
}

/* The same bytes under another limit: a server reads the token line of `auth` with a larger one. */
static void the_limit_is_that_of_each_look(void **state)
{
    char bytes[301];
    struct dfl_line_reader r;

    (void)state;
    memset(bytes, 'x', sizeof bytes);
    bytes[300] = '\n';
    dfl_line_reader_init(&r);
    feed(&r, bytes, sizeof bytes);
    assert_no_line(&r, 256, DFL_PROTOCOL);

    char *line;
    size_t len;

    assert_int_equal(dfl_line_reader_next(&r, DFL_AUTH_LINE_MAX, &line, &len), DFL_OK);
    assert_int_equal(len, 300);
    dfl_line_reader_free(&r);
}

static void memory_grows_with_the_line_and_is_given_back(void **state)
{
    enum { READ = 4096, LIMIT = 1 << 20 };
    static char bytes[READ];
    struct dfl_line_reader r;
    char *line;
    size_t len, caps = 0, last = 0;

    (void)state;
    memset(bytes, 'j', sizeof bytes);
    dfl_line_reader_init(&r);
    for (size_t fed = 0; fed < LIMIT; fed += READ) {
        feed(&r, bytes, READ);
        assert_no_line(&r, LIMIT, DFL_PENDING);
        assert_true(r.cap <= LIMIT + 1 + READ);
        caps += r.cap != last;
        last = r.cap;
    }
    assert_in_range(caps, 5, 16); /* geometric: not a copy for each of 256 reads */
    feed(&r, "\n", 1);
    assert_int_equal(dfl_line_reader_next(&r, LIMIT, &line, &len), DFL_OK);
    assert_int_equal(len, LIMIT);
    feed(&r, "ok\n", 3);
    assert_in_range(r.cap, 3, 65536);
    assert_line(&r, 256, "ok");
    dfl_line_reader_free(&r);
}

static void a_peer_that_never_ends_its_line_costs_no_memory(void **state)
{
    static char bytes[1000];
    struct dfl_line_reader r;
    char *line;
    size_t len, fed = 0;

    (void)state;
    memset(bytes, 'x', sizeof bytes);
    dfl_line_reader_init(&r);
    do {
        feed(&r, bytes, sizeof bytes);
        fed += sizeof bytes;
    } while (dfl_line_reader_next(&r, 10000, &line, &len) == DFL_PENDING);
    assert_int_equal(fed, 11000);
    assert_true(r.cap <= 10000 + 1 + sizeof bytes);
    dfl_line_reader_free(&r);
}

/* A long conversation over a small buffer: what is read makes room for what comes. */
static void many_lines_need_no_more_room_than_one(void **state)
{
    struct dfl_line_reader r;
    size_t cap = 0;

    (void)state;
    dfl_line_reader_init(&r);
    feed(&r, "be", 2); /* never quite empty */
    for (int i = 0; i < 100000; i++) {
        feed(&r, "gin\nbe", 6);
        assert_line(&r, 256, "begin");
        if (i == 1000)
            cap = r.cap;
    }
    assert_int_equal(r.cap, cap);
    assert_int_equal(dfl_line_reader_left(&r), 2);
    dfl_line_reader_free(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lines_come_out_wherever_they_were_cut),
        cmocka_unit_test(an_empty_reader_has_no_line),
        cmocka_unit_test(left_counts_what_no_line_consumed),
        cmocka_unit_test(a_line_may_be_as_long_as_the_limit_and_no_longer),
        cmocka_unit_test(the_limit_is_that_of_each_look),
        cmocka_unit_test(memory_grows_with_the_line_and_is_given_back),
        cmocka_unit_test(a_peer_that_never_ends_its_line_costs_no_memory),
        cmocka_unit_test(many_lines_need_no_more_room_than_one),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
