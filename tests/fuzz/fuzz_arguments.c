/*
 * fuzz_arguments.c - what callers hand to SQL functions: keys, prefixes, tokens, numbers. Input:
 * eight bytes that are a number, then a prefix, a key and a token, a line each.
 */
#include "input.h"

#include <math.h>

#include "proto.h"

static void check_key(const char *prefix, const char *key, size_t len)
{
    char full[DFL_KEY_MAX + 1];
    size_t full_len = 0;
    struct dfl_error err = {0};

    if (dfl_key_join(prefix, key, len, full, &full_len, &err) != DFL_OK) {
        REQUIRE(err.text[0] != '\0' && strlen(err.text) < DFL_ERROR_MAX);
        return;
    }
    REQUIRE(full_len == strlen(prefix) + len && full_len >= 1 && full_len <= DFL_KEY_MAX);
    REQUIRE(full[full_len] == '\0' && strpbrk(full, " \t\r\n") == NULL);
    REQUIRE(strlen(full) == full_len);
    REQUIRE(dfl_key_check(full, full_len, &err) == DFL_OK);
    REQUIRE(dfl_shard(full, full_len, 1) == 0 && dfl_shard(full, full_len, 3) < 3);
}

static void check_token(const char *token, size_t len)
{
    struct dfl_error err = {0};
    int64_t fence = -1;

    if (dfl_token_check(token, len, &err) != DFL_OK) {
        /* A token is a secret: never in a message. */
        REQUIRE(strlen(token) < 8 || strstr(err.text, token) == NULL);
        return;
    }
    REQUIRE(len == DFL_TOKEN_LEN);
    if (dfl_token_fence(token, &fence, &err) == DFL_OK)
        REQUIRE(fence >= 0 && (uint64_t)fence == dfl_token_prefix(token));
    else
        REQUIRE(dfl_token_prefix(token) > (uint64_t)INT64_MAX && fence == -1);
}

static void check_numbers(double seconds, int64_t n)
{
    struct dfl_error err = {0};
    int64_t ms = -2;

    if (dfl_timeout_check(seconds, &ms, &err) == DFL_OK) {
        REQUIRE(isinf(seconds) ? ms == DFL_FOREVER : ms >= 0);
        REQUIRE(!(seconds > 0) || ms != 0);
    } else {
        REQUIRE(ms == -2 && (isnan(seconds) || seconds < 0 || seconds > (double)DFL_SECONDS_MAX));
    }
    REQUIRE((dfl_lease_check(n, &err) == DFL_OK) == (n >= 1 && n <= DFL_LEASE_MAX));
    REQUIRE((dfl_slots_check(n, &err) == DFL_OK) == (n >= 1 && n <= DFL_SLOTS_MAX));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    const char *line;
    char prefix[600], token[600], bytes[8];
    struct dfl_error err;
    double seconds;
    int64_t n;
    size_t len;

    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (char)take_byte(&in);
    memcpy(&seconds, bytes, sizeof seconds);
    memcpy(&n, bytes, sizeof n);
    check_numbers(seconds, n);
    check_numbers((double)n / 1000, n / 1000);

    len = take_line(&in, &line);
    len = len < sizeof prefix ? len : sizeof prefix - 1;
    memcpy(prefix, line, len);
    prefix[len] = '\0';
    len = take_line(&in, &line);
    if (dfl_prefix_check(prefix, &err) == DFL_OK)
        check_key(prefix, line, len);
    check_key("", line, len);

    len = take_line(&in, &line);
    len = len < sizeof token ? len : sizeof token - 1;
    memcpy(token, line, len);
    token[len] = '\0';
    check_token(token, len);
    return 0;
}
