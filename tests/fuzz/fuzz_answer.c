/*
 * fuzz_answer.c - the answers of a server: cut anywhere, one line or many, to any command.
 *
 * Input: the command, the size of a cut, then the server's bytes. What is understood must keep its
 * promises and must survive being written and read again.
 */
#include "input.h"

#include "proto.h"

static bool grants(enum dfl_command cmd)
{
    return cmd == DFL_CMD_LOCK || cmd == DFL_CMD_ENQUEUE || cmd == DFL_CMD_WAIT ||
           cmd == DFL_CMD_SEM_LOCK || cmd == DFL_CMD_SEM_ENQUEUE || cmd == DFL_CMD_SEM_WAIT;
}

static void check_again(enum dfl_command cmd, const struct dfl_answer_line *a)
{
    char text[256];
    struct dfl_answer_line again = {0};
    size_t len = dfl_answer_format(text, sizeof text, cmd, a);

    REQUIRE(len > 0 && text[len - 1] == '\n');
    REQUIRE(dfl_answer_parse(cmd, text, len - 1, &again) == DFL_OK);
    REQUIRE(again.kind == a->kind && again.status == a->status && again.seconds == a->seconds);
    REQUIRE(strcmp(again.token, a->token) == 0);
}

static void check_answer(enum dfl_command cmd, const char *line, size_t len)
{
    struct dfl_answer_line a = {0};
    struct dfl_error err;
    char shown[300];

    dfl_escape(shown, sizeof shown, line, len);
    for (const char *c = shown; *c; c++)
        REQUIRE(*c >= ' ' && *c < 0x7F);
    if (dfl_answer_parse(cmd, line, len, &a) != DFL_OK)
        return;
    if (a.kind == DFL_ANS_ERROR) {
        REQUIRE(len >= 5 && memcmp(line, "error", 5) == 0);
        REQUIRE(a.status != DFL_OK && a.status != DFL_PENDING && a.status < DFL_STATUS_COUNT);
    } else if (grants(cmd) && (a.kind == DFL_ANS_OK || a.kind == DFL_ANS_ACQUIRED)) {
        REQUIRE(dfl_token_check(a.token, strlen(a.token), &err) == DFL_OK);
        REQUIRE(a.seconds >= 0 && a.seconds <= DFL_SECONDS_MAX);
    }
    if (cmd != DFL_CMD_STATS)
        check_again(cmd, &a);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    enum dfl_command cmd = (enum dfl_command)take_below(&in, DFL_CMD_COUNT);
    size_t cut = 1 + take_byte(&in), len;
    struct dfl_line_reader reader;
    char *line;
    enum dfl_status status = DFL_PENDING;

    dfl_line_reader_init(&reader);
    while (in.left > 0 && status == DFL_PENDING) {
        char *at;
        size_t room, n = cut < in.left ? cut : in.left;

        REQUIRE(dfl_line_reader_space(&reader, n, &at, &room) == DFL_OK && room >= n);
        memcpy(at, in.at, n);
        dfl_line_reader_added(&reader, n);
        in.at += n;
        in.left -= n;
        while ((status = dfl_line_reader_next(&reader, DFL_REPLY_LINE_MAX, &line, &len)) == DFL_OK) {
            REQUIRE(len <= DFL_REPLY_LINE_MAX && memchr(line, '\n', len) == NULL);
            check_answer(cmd, line, len);
        }
        REQUIRE(status == DFL_PENDING || status == DFL_PROTOCOL);
        REQUIRE(status == DFL_PROTOCOL || dfl_line_reader_left(&reader) <= DFL_REPLY_LINE_MAX + 1);
    }
    dfl_line_reader_free(&reader);
    return 0;
}
