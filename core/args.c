/*
 * args.c - the limits of the protocol, checked before a byte is sent: keys, tokens, timeouts,
 * leases, slots. Pure: owns nothing. Every refusal says which argument and what the rule is; never
 * a token.
 *
 * What makes no sense (negative, zero where there is none, not a number) is DFL_INVALID, what is
 * only too large is DFL_RANGE.
 */
#include "dflockd.h"
#include "planted.h"
#include "proto.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/* --------------------------------------------------------------------- keys */

/*
 * Length of the character at s, 0 when it is no valid UTF-8: overlong forms, surrogates and what
 * lies beyond U+10FFFF are none. The second byte's range is what tells them apart.
 */
static size_t utf8_length(const unsigned char *s, size_t len)
{
    static const struct {
        unsigned char first, last, low, high, length;
    } forms[] = {
        {0x00, 0x7F, 0x00, 0x00, 1}, {0xC2, 0xDF, 0x80, 0xBF, 2}, {0xE0, 0xE0, 0xA0, 0xBF, 3},
        {0xE1, 0xEC, 0x80, 0xBF, 3}, {0xED, 0xED, 0x80, 0x9F, 3}, {0xEE, 0xEF, 0x80, 0xBF, 3},
        {0xF0, 0xF0, 0x90, 0xBF, 4}, {0xF1, 0xF3, 0x80, 0xBF, 4}, {0xF4, 0xF4, 0x80, 0x8F, 4},
    };

    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++) {
        if (s[0] < forms[i].first || s[0] > forms[i].last)
            continue;
        if (forms[i].length > len + DFL_PLANTED(43))
            return 0;
        if (forms[i].length > 1 && (s[1] < forms[i].low || s[1] > forms[i].high))
            return 0;
        for (size_t k = 2; k < forms[i].length; k++)
            if ((s[k] & 0xC0) != 0x80)
                return 0;
        return forms[i].length;
    }
    return 0;
}

static const char *forbidden_name(char c)
{
    switch (c) {
    case ' ':
        return "a space";
    case '\t':
        return "a tab";
    case '\r':
        return "a carriage return";
    case '\n':
        return "a line feed";
    case '\0':
        return "a NUL byte";
    default:
        return NULL;
    }
}

/* The rules for the bytes of a key, or of a part of one. `what` names it: "key", "key_prefix". */
static enum dfl_status check_bytes(const char *what, const char *s, size_t len,
                                   struct dfl_error *err)
{
    for (size_t i = 0; i < len;) {
        if (s[i] > ' ' && s[i] < 0x7F) { /* nearly all of nearly every key */
            i++;
            continue;
        }

        const char *forbidden = forbidden_name(s[i]);
        size_t n = utf8_length((const unsigned char *)s + i, len - i);

        if (forbidden)
            return dfl_fail(err, DFL_INVALID,
                            "%s must not contain space, tab, CR, LF or NUL: byte %zu is %s", what,
                            i + 1, forbidden);
        if (n == 0)
            return dfl_fail(err, DFL_INVALID, "%s must be valid UTF-8: byte %zu is not", what,
                            i + 1);
        i += n;
    }
    return DFL_OK;
}

enum dfl_status dfl_key_check(const char *key, size_t len, struct dfl_error *err)
{
    if (!key)
        return dfl_fail(err, DFL_NULL, "key must not be NULL");
    if (len == 0)
        return dfl_fail(err, DFL_INVALID, "key must not be empty");
    if (len > DFL_KEY_MAX)
        return dfl_fail(err, DFL_INVALID, "key must be at most %d bytes long, this one has %zu",
                        DFL_KEY_MAX, len);
    return check_bytes("key", key, len, err);
}

enum dfl_status dfl_prefix_check(const char *prefix, struct dfl_error *err)
{
    size_t len = strlen(prefix);

    if (len >= DFL_KEY_MAX)
        return dfl_fail(err, DFL_INVALID,
                        "key_prefix must be at most %d bytes long, this one has %zu",
                        DFL_KEY_MAX - 1, len);
    return check_bytes("key_prefix", prefix, len, err);
}

enum dfl_status dfl_key_join(const char *prefix, const char *key, size_t len,
                             char out[DFL_KEY_MAX + 1], size_t *out_len, struct dfl_error *err)
{
    size_t prefix_len = prefix ? strlen(prefix) : 0;
    enum dfl_status status;

    if (prefix_len == 0 || !key || len == 0 || len > DFL_KEY_MAX) {
        status = dfl_key_check(key, len, err);
    } else if (prefix_len + len > DFL_KEY_MAX) {
        status = dfl_fail(err, DFL_INVALID,
                          "key must be at most %d bytes long with its key_prefix: "
                          "%zu bytes of key_prefix and %zu of key make %zu",
                          DFL_KEY_MAX, prefix_len, len, prefix_len + len);
    } else {
        status = dfl_prefix_check(prefix, err);
        if (status == DFL_OK)
            status = dfl_key_check(key, len, err);
    }
    if (status != DFL_OK)
        return status;
    if (prefix_len > 0)
        memcpy(out, prefix, prefix_len);
    /* NOLINTNEXTLINE(clang-analyzer-core.NonNullParamChecker): dfl_key_check refuses NULL */
    memcpy(out + prefix_len, key, len);
    out[prefix_len + len] = '\0';
    *out_len = prefix_len + len;
    return DFL_OK;
}

/* ------------------------------------------------------------------- tokens */

enum dfl_status dfl_token_check(const char *token, size_t len, struct dfl_error *err)
{
    bool good = len == DFL_TOKEN_LEN;

    if (!token)
        return dfl_fail(err, DFL_NULL, "token must not be NULL");
    for (size_t i = 0; good && i < len; i++)
        good = (token[i] >= '0' && token[i] <= '9') || (token[i] >= 'a' && token[i] <= 'f');
    if (!good)
        return dfl_fail(err, DFL_INVALID, "token must be %d lower-case hexadecimal digits",
                        DFL_TOKEN_LEN);
    return DFL_OK;
}

enum dfl_status dfl_token_fence(const char *token, int64_t *fence, struct dfl_error *err)
{
    uint64_t prefix = dfl_token_prefix(token);

    if (prefix > INT64_MAX)
        return dfl_fail(err, DFL_RANGE, "the first 16 digits of the token are above 2^63-1");
    *fence = (int64_t)prefix;
    return DFL_OK;
}

/* ------------------------------------------------------------------ numbers */

enum dfl_status dfl_timeout_check(double seconds, int64_t *timeout_ms, struct dfl_error *err)
{
    if (isnan(seconds))
        return dfl_fail(err, DFL_INVALID, "timeout must be a number of seconds, not NaN");
    if (seconds < 0)
        return dfl_fail(err, DFL_INVALID, "timeout must not be negative: %.15g", seconds);
    if (isinf(seconds)) {
        *timeout_ms = DFL_FOREVER;
        return DFL_OK;
    }
    if (seconds > (double)DFL_SECONDS_MAX)
        return dfl_fail(err, DFL_RANGE,
                        "timeout must be at most %" PRId64 " seconds, or infinity: %.15g",
                        DFL_SECONDS_MAX, seconds);

    int64_t ms = (int64_t)(seconds * 1000 + 0.5);

    /* 0 means "never queue": nobody who asked for a little time may get that. */
    *timeout_ms = ms == 0 && seconds > 0 ? 1 : ms;
    return DFL_OK;
}

static enum dfl_status check_count(const char *what, int64_t n, int64_t max, struct dfl_error *err)
{
    if (n < 1)
        return dfl_fail(err, DFL_INVALID, "%s must be at least 1: %" PRId64, what, n);
    if (n > max)
        return dfl_fail(err, DFL_RANGE, "%s must be at most %" PRId64 ": %" PRId64, what, max, n);
    return DFL_OK;
}

enum dfl_status dfl_lease_check(int64_t lease_s, struct dfl_error *err)
{
    return check_count("lease_ttl", lease_s, DFL_LEASE_MAX, err);
}

enum dfl_status dfl_slots_check(int64_t slots, struct dfl_error *err)
{
    return check_count("slots", slots, DFL_SLOTS_MAX, err);
}
