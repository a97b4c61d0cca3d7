/* The wire format: requests and answers in both directions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "proto.h"

#define TOKEN "0123456789abcdef0123456789abcdef"
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* ---------------------------------------------------------------- requests */

static const struct {
    struct dfl_request_line req;
    const char *bytes;
} requests[] = {
    {{.cmd = DFL_CMD_AUTH, .token = "secret", .token_len = 6}, "auth\n_\nsecret\n"},
    {{.cmd = DFL_CMD_LOCK, .key = "k", .key_len = 1, .timeout_s = 0}, "l\nk\n0\n"},
    {{.cmd = DFL_CMD_LOCK, .key = "k", .key_len = 1, .timeout_s = 10, .lease_s = 33},
     "l\nk\n10 33\n"},
    {{.cmd = DFL_CMD_LOCK, .key = "k", .key_len = 1, .timeout_s = DFL_SECONDS_MAX, .lease_s = 1},
     "l\nk\n9223372036 1\n"},
    {{.cmd = DFL_CMD_RELEASE, .key = "k", .key_len = 1, .token = TOKEN, .token_len = 32},
     "r\nk\n" TOKEN "\n"},
    {{.cmd = DFL_CMD_RENEW, .key = "k", .key_len = 1, .token = TOKEN, .token_len = 32,
      .lease_s = 5},
     "n\nk\n" TOKEN " 5\n"},
    {{.cmd = DFL_CMD_RENEW, .key = "k", .key_len = 1, .token = TOKEN, .token_len = 32},
     "n\nk\n" TOKEN "\n"},
    {{.cmd = DFL_CMD_ENQUEUE, .key = "k", .key_len = 1}, "e\nk\n\n"},
    {{.cmd = DFL_CMD_ENQUEUE, .key = "k", .key_len = 1, .lease_s = 60}, "e\nk\n60\n"},
    {{.cmd = DFL_CMD_WAIT, .key = "k", .key_len = 1, .timeout_s = 7}, "w\nk\n7\n"},
    {{.cmd = DFL_CMD_SEM_LOCK, .key = "k", .key_len = 1, .timeout_s = 1, .limit = 3},
     "sl\nk\n1 3\n"},
    {{.cmd = DFL_CMD_SEM_LOCK, .key = "k", .key_len = 1, .timeout_s = 1, .limit = DFL_SLOTS_MAX,
      .lease_s = 9},
     "sl\nk\n1 2147483647 9\n"},
    {{.cmd = DFL_CMD_SEM_RELEASE, .key = "k", .key_len = 1, .token = TOKEN, .token_len = 32},
     "sr\nk\n" TOKEN "\n"},
    {{.cmd = DFL_CMD_SEM_RENEW, .key = "k", .key_len = 1, .token = TOKEN, .token_len = 32,
      .lease_s = 5},
     "sn\nk\n" TOKEN " 5\n"},
    {{.cmd = DFL_CMD_SEM_ENQUEUE, .key = "k", .key_len = 1, .limit = 2}, "se\nk\n2\n"},
    {{.cmd = DFL_CMD_SEM_ENQUEUE, .key = "k", .key_len = 1, .limit = 2, .lease_s = 8},
     "se\nk\n2 8\n"},
    {{.cmd = DFL_CMD_SEM_WAIT, .key = "k", .key_len = 1, .timeout_s = 7}, "sw\nk\n7\n"},
    {{.cmd = DFL_CMD_PING}, "ping\n_\n_\n"},
    {{.cmd = DFL_CMD_STATS}, "stats\n_\n_\n"},
};

static void requests_have_these_bytes(void **state)
{
    bool seen[DFL_CMD_COUNT] = {false};

    (void)state;
    for (size_t i = 0; i < COUNT(requests); i++) {
        char buf[DFL_REQUEST_MAX];
        size_t n = dfl_request_format(buf, sizeof buf, &requests[i].req);

        assert_int_equal(n, strlen(requests[i].bytes));
        assert_memory_equal(buf, requests[i].bytes, n);
        seen[requests[i].req.cmd] = true;
    }
    for (int cmd = 0; cmd < DFL_CMD_COUNT; cmd++)
        assert_true(seen[cmd]);
}

static void a_request_is_written_whole_or_not_at_all(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(requests); i++) {
        size_t whole = strlen(requests[i].bytes);

        for (size_t cap = 0; cap <= whole; cap++) {
            char *buf = malloc(cap + 1); /* its end is watched by the address sanitizer */

            assert_int_equal(dfl_request_format(buf, cap, &requests[i].req),
                             cap < whole ? 0 : whole);
            free(buf);
        }
    }
}

static void the_largest_request_fits(void **state)
{
    char key[DFL_KEY_MAX], buf[DFL_REQUEST_MAX];
    struct dfl_request_line req = {.cmd = DFL_CMD_SEM_LOCK, .key = key, .key_len = sizeof key,
                                   .timeout_s = INT64_MAX, .limit = INT64_MAX,
                                   .lease_s = INT64_MAX};

    (void)state;
    memset(key, 'x', sizeof key);
    assert_true(dfl_request_format(buf, sizeof buf, &req) > DFL_KEY_MAX);

    size_t cap = 16 + DFL_AUTH_LINE_MAX;
    char *token = malloc(DFL_AUTH_LINE_MAX), *big = malloc(cap);

    memset(token, 't', DFL_AUTH_LINE_MAX);
    req = (struct dfl_request_line){.cmd = DFL_CMD_AUTH, .token = token,
                                    .token_len = DFL_AUTH_LINE_MAX};
    assert_int_equal(dfl_request_format(big, cap, &req), DFL_AUTH_LINE_MAX + 8);
    free(token);
    free(big);
}

static bool parse3(const char *cmd, const char *key, const char *arg, struct dfl_request_line *out)
{
    return dfl_request_parse(cmd, strlen(cmd), key, strlen(key), arg, strlen(arg), out);
}

static void assert_same_bytes(const char *a, size_t a_len, const char *b, size_t b_len)
{
    assert_int_equal(a_len, b_len);
    if (a_len > 0)
        assert_memory_equal(a, b, a_len);
}

static void what_is_written_is_understood(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(requests); i++) {
        const struct dfl_request_line *sent = &requests[i].req;
        struct dfl_request_line got;
        char bytes[DFL_REQUEST_MAX], *line[3], *at = bytes;

        strcpy(bytes, requests[i].bytes);
        for (int k = 0; k < 3; k++) {
            line[k] = at;
            at = strchr(at, '\n');
            *at++ = '\0';
        }
        assert_true(parse3(line[0], line[1], line[2], &got));
        assert_int_equal(got.cmd, sent->cmd);
        if (sent->key)
            assert_same_bytes(got.key, got.key_len, sent->key, sent->key_len);
        assert_same_bytes(got.token, got.token_len, sent->token, sent->token_len);
        assert_int_equal(got.timeout_s, sent->timeout_s);
        assert_int_equal(got.lease_s, sent->lease_s);
        assert_int_equal(got.limit, sent->limit);
    }
}

/* What dflockd answers with a plain `error`. */
static const char *const malformed[][3] = {
    /* commands */
    {"", "k", "0"}, {"L", "k", "0"}, {"lock", "k", "0"}, {"l ", "k", "0"}, {"x", "k", "0"},
    {"s", "k", "0"}, {"authx", "_", "t"}, {"pin", "_", "_"},
    /* keys */
    {"l", "", "0"}, {"l", "a b", "0"}, {"l", "a\tb", "0"}, {"l", " a", "0"}, {"l", "a\rb", "0"},
    {"r", "", TOKEN}, {"n", "a b", TOKEN}, {"e", "", ""}, {"w", "", "1"}, {"sl", "", "0 1"},
    {"sr", "", TOKEN}, {"sn", "", TOKEN}, {"se", "", "1"}, {"sw", "", "1"},
    /* number of arguments */
    {"l", "k", ""}, {"l", "k", "   "}, {"l", "k", "1 2 3"}, {"w", "k", ""}, {"w", "k", "1 2"},
    {"r", "k", ""}, {"r", "k", "  "}, {"n", "k", ""}, {"n", "k", TOKEN " 1 2"},
    {"e", "k", "1 2"}, {"sl", "k", "1"}, {"sl", "k", "1 2 3 4"}, {"sl", "k", ""},
    {"sr", "k", ""}, {"sn", "k", ""}, {"se", "k", ""}, {"se", "k", "1 2 3"}, {"sw", "k", ""},
    /* numbers */
    {"l", "k", "x"}, {"l", "k", "1x"}, {"l", "k", "-1"}, {"l", "k", "1.5"}, {"l", "k", "0x10"},
    {"l", "k", "1_0"}, {"l", "k", "+"}, {"l", "k", "-"}, {"l", "k", "--0"}, {"l", "k", "+-0"},
    {"l", "k", "1e3"}, {"l", "k", "inf"}, {"l", "k", "9223372037"},
    {"l", "k", "99999999999999999999999999"}, {"l", "k", "18446744073709551616"},
    {"l", "k", "0 0"}, {"l", "k", "0 -1"}, {"l", "k", "0 x"}, {"l", "k", "0 9223372037"},
    {"w", "k", "-1"}, {"w", "k", "9223372037"}, {"n", "k", TOKEN " 0"}, {"n", "k", TOKEN " -5"},
    {"n", "k", TOKEN " 9223372037"}, {"e", "k", "0"}, {"e", "k", "-1"}, {"e", "k", "x"},
    {"sl", "k", "0 0"}, {"sl", "k", "0 -1"}, {"sl", "k", "-1 1"}, {"sl", "k", "0 x"},
    {"sl", "k", "0 1 0"}, {"sl", "k", "0 9223372036854775808"}, {"se", "k", "0"},
    {"se", "k", "1 0"}, {"se", "k", "-1"}, {"sw", "k", "x"},
};

static void malformed_requests_are_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(malformed); i++) {
        struct dfl_request_line out = {.limit = -77};

        if (parse3(malformed[i][0], malformed[i][1], malformed[i][2], &out))
            fail_msg("accepted: '%s' '%s' '%s'", malformed[i][0], malformed[i][1],
                     malformed[i][2]);
        assert_int_equal(out.limit, -77); /* untouched */
    }
}

static void what_dflockd_tolerates_is_tolerated(void **state)
{
    struct dfl_request_line out;

    (void)state;
    assert_true(parse3("l", "k", "  5 \t 33  ", &out));
    assert_int_equal(out.timeout_s, 5);
    assert_int_equal(out.lease_s, 33);
    assert_true(parse3("l", "k", "+5 +007", &out));
    assert_int_equal(out.timeout_s, 5);
    assert_int_equal(out.lease_s, 7);
    assert_true(parse3("l", "k", "-0", &out));
    assert_int_equal(out.timeout_s, 0);
    assert_int_equal(out.lease_s, 0);
    assert_true(parse3("w", "k", "9223372036", &out));
    assert_true(out.timeout_s == DFL_SECONDS_MAX);
    assert_true(parse3("sl", "k", "0 9223372036854775807", &out));
    assert_true(out.limit == INT64_MAX);
    assert_true(parse3("r", "k", " any token at all ", &out));
    assert_same_bytes(out.token, out.token_len, "any token at all", 16);
    assert_true(parse3("e", "k", "   ", &out));
    assert_int_equal(out.lease_s, 0);
    assert_true(parse3("auth", "", "  secret ", &out));
    assert_same_bytes(out.token, out.token_len, "secret", 6);
    assert_true(parse3("auth", "_", "", &out));
    assert_int_equal(out.token_len, 0);
    assert_true(parse3("stats", "", "", &out));
    assert_true(parse3("stats", "_", "_", &out));
    assert_true(parse3("ping", "_", "", &out));
    assert_true(parse3("ping", "_", "_", &out));
}

static void keys_are_1_to_256_bytes(void **state)
{
    struct dfl_request_line out;
    char key[DFL_KEY_MAX + 1];

    (void)state;
    memset(key, 'x', sizeof key);
    assert_true(dfl_request_parse("l", 1, key, 1, "0", 1, &out));
    assert_true(dfl_request_parse("l", 1, key, DFL_KEY_MAX, "0", 1, &out));
    assert_int_equal(out.key_len, DFL_KEY_MAX);
    assert_false(dfl_request_parse("l", 1, key, DFL_KEY_MAX + 1, "0", 1, &out));
}

static void commands_know_their_word_and_kind(void **state)
{
    (void)state;
    for (int i = 0; i < DFL_CMD_COUNT; i++) {
        const char *word = dfl_command_word((enum dfl_command)i);

        assert_int_equal(dfl_command_is_sem((enum dfl_command)i),
                         word[0] == 's' && strlen(word) == 2);
    }
}

/* ----------------------------------------------------------------- answers */

static const struct {
    enum dfl_command cmd;
    const char *line;
    struct dfl_answer_line answer;
} answers[] = {
    {DFL_CMD_AUTH, "ok", {.kind = DFL_ANS_OK}},
    {DFL_CMD_AUTH, "error_auth", {.kind = DFL_ANS_ERROR, .status = DFL_AUTH}},
    {DFL_CMD_LOCK, "ok " TOKEN " 33", {.kind = DFL_ANS_OK, .token = TOKEN, .seconds = 33}},
    {DFL_CMD_LOCK, "timeout", {.kind = DFL_ANS_TIMEOUT}},
    {DFL_CMD_LOCK, "error_max_locks", {.kind = DFL_ANS_ERROR, .status = DFL_MAX_LOCKS}},
    {DFL_CMD_LOCK, "error_max_waiters", {.kind = DFL_ANS_ERROR, .status = DFL_MAX_WAITERS}},
    {DFL_CMD_LOCK, "error_lease_expired", {.kind = DFL_ANS_ERROR, .status = DFL_LEASE_EXPIRED}},
    {DFL_CMD_RELEASE, "ok", {.kind = DFL_ANS_OK}},
    {DFL_CMD_RELEASE, "error", {.kind = DFL_ANS_ERROR, .status = DFL_REFUSED}},
    {DFL_CMD_RENEW, "ok 32", {.kind = DFL_ANS_OK, .seconds = 32}},
    {DFL_CMD_RENEW, "ok 0", {.kind = DFL_ANS_OK, .seconds = 0}},
    {DFL_CMD_ENQUEUE, "acquired " TOKEN " 5",
     {.kind = DFL_ANS_ACQUIRED, .token = TOKEN, .seconds = 5}},
    {DFL_CMD_ENQUEUE, "queued", {.kind = DFL_ANS_QUEUED}},
    {DFL_CMD_ENQUEUE, "error_already_enqueued",
     {.kind = DFL_ANS_ERROR, .status = DFL_ALREADY_ENQUEUED}},
    {DFL_CMD_WAIT, "ok " TOKEN " 9223372036",
     {.kind = DFL_ANS_OK, .token = TOKEN, .seconds = DFL_SECONDS_MAX}},
    {DFL_CMD_WAIT, "timeout", {.kind = DFL_ANS_TIMEOUT}},
    {DFL_CMD_WAIT, "error_not_enqueued", {.kind = DFL_ANS_ERROR, .status = DFL_NOT_ENQUEUED}},
    {DFL_CMD_SEM_LOCK, "ok " TOKEN " 1", {.kind = DFL_ANS_OK, .token = TOKEN, .seconds = 1}},
    {DFL_CMD_SEM_LOCK, "error_limit_mismatch",
     {.kind = DFL_ANS_ERROR, .status = DFL_LIMIT_MISMATCH}},
    {DFL_CMD_SEM_RELEASE, "ok", {.kind = DFL_ANS_OK}},
    {DFL_CMD_SEM_RENEW, "ok 7", {.kind = DFL_ANS_OK, .seconds = 7}},
    {DFL_CMD_SEM_ENQUEUE, "queued", {.kind = DFL_ANS_QUEUED}},
    {DFL_CMD_SEM_WAIT, "timeout", {.kind = DFL_ANS_TIMEOUT}},
    {DFL_CMD_SEM_WAIT, "error_draining", {.kind = DFL_ANS_ERROR, .status = DFL_DRAINING}},
    {DFL_CMD_PING, "ok", {.kind = DFL_ANS_OK}},
};

static void assert_answer(const struct dfl_answer_line *got, const struct dfl_answer_line *want)
{
    assert_int_equal(got->kind, want->kind);
    assert_int_equal(got->status, want->status);
    assert_string_equal(got->token, want->token);
    assert_true(got->seconds == want->seconds);
}

static void answers_are_understood(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(answers); i++) {
        const char *line = answers[i].line;
        struct dfl_answer_line out;

        assert_int_equal(dfl_answer_parse(answers[i].cmd, line, strlen(line), &out), DFL_OK);
        assert_answer(&out, &answers[i].answer);
        if (out.kind == DFL_ANS_ERROR)
            assert_same_bytes(out.text, out.text_len, line, strlen(line));
    }
}

static void answers_are_written_as_they_are_read(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(answers); i++) {
        size_t whole = strlen(answers[i].line) + 1;

        for (size_t cap = 0; cap <= whole; cap++) {
            char *buf = malloc(cap + 1);
            size_t n = dfl_answer_format(buf, cap, answers[i].cmd, &answers[i].answer);

            assert_int_equal(n, cap < whole ? 0 : whole);
            if (n) {
                assert_memory_equal(buf, answers[i].line, n - 1);
                assert_int_equal(buf[n - 1], '\n');
            }
            free(buf);
        }
    }
}

static void an_error_without_a_word_is_a_plain_error(void **state)
{
    struct dfl_answer_line answer = {.kind = DFL_ANS_ERROR, .status = DFL_INTERNAL};
    char buf[64];

    (void)state;
    assert_int_equal(dfl_answer_format(buf, sizeof buf, DFL_CMD_LOCK, &answer), 6);
    assert_memory_equal(buf, "error\n", 6);
}

static void every_error_answers_every_command(void **state)
{
    static const struct {
        const char *line;
        enum dfl_status status;
    } errors[] = {
        {"error", DFL_REFUSED},
        {"error_draining", DFL_DRAINING},
        {"error_not_leader 10.0.0.2:6388", DFL_NOT_LEADER},
        {"error_not_leader", DFL_NOT_LEADER},
        {"error_from_the_future with words", DFL_REFUSED},
        {"errors", DFL_REFUSED},
        {"error_auth ", DFL_AUTH},
    };

    (void)state;
    for (int cmd = 0; cmd < DFL_CMD_COUNT; cmd++) {
        for (size_t i = 0; i < COUNT(errors); i++) {
            const char *line = errors[i].line;
            struct dfl_answer_line out;

            assert_int_equal(dfl_answer_parse((enum dfl_command)cmd, line, strlen(line), &out),
                             DFL_OK);
            assert_int_equal(out.kind, DFL_ANS_ERROR);
            assert_int_equal(out.status, errors[i].status);
            assert_same_bytes(out.text, out.text_len, line, strlen(line));
        }
    }
}

static void stats_hand_out_their_json(void **state)
{
    static const char line[] = "ok {\"connections\":2, \"locks\":[]}";
    struct dfl_answer_line out;

    (void)state;
    assert_int_equal(dfl_answer_parse(DFL_CMD_STATS, line, strlen(line), &out), DFL_OK);
    assert_same_bytes(out.text, out.text_len, line + 3, strlen(line) - 3);
}

/* No grant may be read out of any of these. */
static void answers_that_do_not_fit_are_violations(void **state)
{
    static const struct {
        enum dfl_command cmd;
        const char *line;
    } bad[] = {
        {DFL_CMD_LOCK, ""},
        {DFL_CMD_LOCK, "ok"},
        {DFL_CMD_LOCK, "ok "},
        {DFL_CMD_LOCK, "OK " TOKEN " 33"},
        {DFL_CMD_LOCK, "ok " TOKEN},
        {DFL_CMD_LOCK, "ok " TOKEN " "},
        {DFL_CMD_LOCK, "ok " TOKEN " 33 "},
        {DFL_CMD_LOCK, "ok " TOKEN " 33 44"},
        {DFL_CMD_LOCK, "ok " TOKEN "  33"},
        {DFL_CMD_LOCK, "ok  " TOKEN " 33"},
        {DFL_CMD_LOCK, " ok " TOKEN " 33"},
        {DFL_CMD_LOCK, "ok\t" TOKEN " 33"},
        {DFL_CMD_LOCK, "ok " TOKEN " -1"},
        {DFL_CMD_LOCK, "ok " TOKEN " +1"},
        {DFL_CMD_LOCK, "ok " TOKEN " 3x"},
        {DFL_CMD_LOCK, "ok " TOKEN " 9223372037"},
        {DFL_CMD_LOCK, "ok " TOKEN " 99999999999999999999999"},
        {DFL_CMD_LOCK, "ok 0123456789ABCDEF0123456789ABCDEF 33"},
        {DFL_CMD_LOCK, "ok 0123456789abcdef0123456789abcde 33"},
        {DFL_CMD_LOCK, "ok " TOKEN "0 33"},
        {DFL_CMD_LOCK, "ok g123456789abcdef0123456789abcdef 33"},
        {DFL_CMD_LOCK, "acquired " TOKEN " 33"},
        {DFL_CMD_LOCK, "queued"},
        {DFL_CMD_LOCK, "timeout 1"},
        {DFL_CMD_LOCK, "timeouts"},
        {DFL_CMD_LOCK, "erro"},
        {DFL_CMD_LOCK, "HTTP/1.1 400 Bad Request"},
        {DFL_CMD_WAIT, "queued"},
        {DFL_CMD_WAIT, "ok"},
        {DFL_CMD_ENQUEUE, "ok " TOKEN " 33"},
        {DFL_CMD_ENQUEUE, "timeout"},
        {DFL_CMD_ENQUEUE, "acquired"},
        {DFL_CMD_ENQUEUE, "queued 1"},
        {DFL_CMD_RELEASE, "ok 1"},
        {DFL_CMD_RELEASE, "ok "},
        {DFL_CMD_RELEASE, "timeout"},
        {DFL_CMD_RENEW, "ok"},
        {DFL_CMD_RENEW, "ok x"},
        {DFL_CMD_RENEW, "ok -1"},
        {DFL_CMD_RENEW, "ok " TOKEN " 33"},
        {DFL_CMD_RENEW, "timeout"},
        {DFL_CMD_PING, "pong"},
        {DFL_CMD_PING, "ok ok"},
        {DFL_CMD_STATS, "ok"},
        {DFL_CMD_STATS, "ok "},
        {DFL_CMD_STATS, "{}"},
        {DFL_CMD_AUTH, "okay"},
        {DFL_CMD_AUTH, "timeout"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT(bad); i++) {
        struct dfl_answer_line out = {.seconds = -77};

        if (dfl_answer_parse(bad[i].cmd, bad[i].line, strlen(bad[i].line), &out) != DFL_PROTOCOL)
            fail_msg("%s accepted: '%s'", dfl_command_word(bad[i].cmd), bad[i].line);
        assert_int_equal(out.seconds, -77); /* untouched */
    }
}

static void a_nul_inside_a_line_ends_nothing(void **state)
{
    struct dfl_answer_line out;

    (void)state;
    assert_int_equal(dfl_answer_parse(DFL_CMD_RELEASE, "ok\0", 3, &out), DFL_PROTOCOL);
    assert_int_equal(dfl_answer_parse(DFL_CMD_LOCK, "ok " TOKEN " 33\0", 39, &out), DFL_PROTOCOL);
}

/* Any bytes at all: nothing may crash, read outside, or be taken for a grant without its token. */
static void noise_does_no_harm(void **state)
{
    static const char alphabet[] = "ok timeoutqueuedacquirederror_ \t\r0123456789abcdef"
                                   "-+\x01\xff{}";
    uint32_t seed = 7;

    (void)state;
    for (int round = 0; round < 50000; round++) {
        size_t len = (seed >> 16) % 64, arg = len / 2;
        char *line = malloc(len + 1);
        struct dfl_answer_line answer;
        struct dfl_request_line req;

        for (size_t i = 0; i < len; i++) {
            seed = seed * 1664525u + 1013904223u;
            line[i] = alphabet[(seed >> 16) % (sizeof alphabet - 1)];
        }
        seed = seed * 1664525u + 1013904223u;

        enum dfl_command cmd = (enum dfl_command)((seed >> 16) % DFL_CMD_COUNT);
        const char *word = dfl_command_word(cmd);

        if (dfl_answer_parse(cmd, line, len, &answer) == DFL_OK && answer.kind == DFL_ANS_OK &&
            (cmd == DFL_CMD_LOCK || cmd == DFL_CMD_WAIT))
            assert_int_equal(strlen(answer.token), DFL_TOKEN_LEN);
        if (dfl_request_parse(word, strlen(word), line, arg, line + arg, len - arg, &req)) {
            assert_true(req.timeout_s >= 0 && req.timeout_s <= DFL_SECONDS_MAX);
            assert_true(req.lease_s >= 0 && req.lease_s <= DFL_SECONDS_MAX);
            assert_true(req.limit >= 0);
        }
        free(line);
    }
}

/* ------------------------------------------------------------ small things */

static void foreign_bytes_are_shown_escaped(void **state)
{
    char out[300], small[7];

    (void)state;
    dfl_escape(out, sizeof out, "pong", 4);
    assert_string_equal(out, "pong");
    dfl_escape(out, sizeof out, "a\\b\n\x1b[2J\xff\0z", 11);
    assert_string_equal(out, "a\\\\b\\x0a\\x1b[2J\\xff\\x00z");
    dfl_escape(out, sizeof out, "", 0);
    assert_string_equal(out, "");

    char line[100];

    memset(line, '\x80', sizeof line);
    dfl_escape(out, sizeof out, line, sizeof line);
    assert_int_equal(strlen(out), 64 * 4);
    /* An escape is whole or not there. */
    dfl_escape(small, sizeof small, "\x01\x02\x03", 3);
    assert_string_equal(small, "\\x01");
}

static void a_token_begins_with_its_fence(void **state)
{
    (void)state;
    assert_true(dfl_token_prefix(TOKEN) == UINT64_C(0x0123456789abcdef));
    assert_true(dfl_token_prefix("ffffffffffffffff0000000000000000") == UINT64_MAX);
    assert_true(dfl_token_prefix("0000000000000000ffffffffffffffff") == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(requests_have_these_bytes),
        cmocka_unit_test(a_request_is_written_whole_or_not_at_all),
        cmocka_unit_test(the_largest_request_fits),
        cmocka_unit_test(what_is_written_is_understood),
        cmocka_unit_test(malformed_requests_are_refused),
        cmocka_unit_test(what_dflockd_tolerates_is_tolerated),
        cmocka_unit_test(keys_are_1_to_256_bytes),
        cmocka_unit_test(commands_know_their_word_and_kind),
        cmocka_unit_test(answers_are_understood),
        cmocka_unit_test(answers_are_written_as_they_are_read),
        cmocka_unit_test(an_error_without_a_word_is_a_plain_error),
        cmocka_unit_test(every_error_answers_every_command),
        cmocka_unit_test(stats_hand_out_their_json),
        cmocka_unit_test(answers_that_do_not_fit_are_violations),
        cmocka_unit_test(a_nul_inside_a_line_ends_nothing),
        cmocka_unit_test(noise_does_no_harm),
        cmocka_unit_test(foreign_bytes_are_shown_escaped),
        cmocka_unit_test(a_token_begins_with_its_fence),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
