/*
 * fuzz_request.c - three lines that want to be a request. What the server understands must be
 * within the limits of the protocol, and must mean the same when the client writes it.
 */
#include "input.h"

#include "proto.h"

static void check_limits(const struct dfl_request_line *rq)
{
    REQUIRE(rq->cmd < DFL_CMD_COUNT);
    REQUIRE(rq->key_len >= 1 || rq->cmd == DFL_CMD_STATS || rq->cmd == DFL_CMD_PING ||
            rq->cmd == DFL_CMD_AUTH);
    REQUIRE(rq->key_len <= DFL_REQUEST_LINE_MAX);
    REQUIRE(rq->timeout_s >= 0 && rq->timeout_s <= DFL_SECONDS_MAX);
    REQUIRE(rq->lease_s >= 0 && rq->lease_s <= DFL_SECONDS_MAX);
    REQUIRE(rq->limit >= 0);
}

static bool same(const char *a, size_t a_len, const char *b, size_t b_len)
{
    return a_len == b_len && (a_len == 0 || memcmp(a, b, a_len) == 0);
}

static void check_again(const struct dfl_request_line *rq)
{
    size_t cap = DFL_REQUEST_MAX + rq->token_len, len;
    char *text = malloc(cap);
    const char *line[3];
    size_t line_len[3];
    struct dfl_request_line again = {0};

    REQUIRE(text != NULL);
    len = dfl_request_format(text, cap, rq);
    REQUIRE(len > 0);

    struct input in = {(const uint8_t *)text, len};

    for (int i = 0; i < 3; i++)
        line_len[i] = take_line(&in, &line[i]);
    REQUIRE(in.left == 0);
    REQUIRE(dfl_request_parse(line[0], line_len[0], line[1], line_len[1], line[2], line_len[2],
                              &again));
    REQUIRE(again.cmd == rq->cmd && again.timeout_s == rq->timeout_s &&
            again.lease_s == rq->lease_s && again.limit == rq->limit);
    REQUIRE(same(again.token, again.token_len, rq->token, rq->token_len));
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    const char *line[3];
    size_t len[3];
    struct dfl_request_line rq = {0};
    struct dfl_error err;

    for (int i = 0; i < 3; i++) {
        size_t max = i == 2 ? DFL_AUTH_LINE_MAX : DFL_REQUEST_LINE_MAX;

        len[i] = take_line(&in, &line[i]);
        if (len[i] > max)
            return 0; /* the line reader lets no longer one through */
    }
    if (!dfl_request_parse(line[0], len[0], line[1], len[1], line[2], len[2], &rq))
        return 0;
    check_limits(&rq);
    /* Servers take more than our client sends; what it may send must come through unchanged. */
    if (dfl_key_check(rq.key, rq.key_len, &err) == DFL_OK)
        check_again(&rq);
    return 0;
}
