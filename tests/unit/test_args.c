/* The rules of arguments: what is refused, with which status, and what the text says. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "dflockd.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static void assert_refused(enum dfl_status got, enum dfl_status want, const struct dfl_error *err,
                           const char *says)
{
    assert_int_equal(got, want);
    assert_int_equal(err->status, want);
    if (!strstr(err->text, says))
        fail_msg("'%s' does not say '%s'", err->text, says);
}

/* -------------------------------------------------------------------- keys */

static void good_keys_pass(void **state)
{
    static const char *const keys[] = {"k", "job:42", "a/b?c=d", "_", "\x01", "\x7F",
                                       "schl\xC3\xBCssel", "\xE2\x82\xAC", "\xF0\x9F\x94\x92",
                                       "\xED\x9F\xBF", "\xEE\x80\x80", "\xF4\x8F\xBF\xBF",
                                       "\xC2\x80", "\xE0\xA0\x80", "\xF0\x90\x80\x80"};

    (void)state;
    for (size_t i = 0; i < COUNT(keys); i++)
        assert_int_equal(dfl_key_check(keys[i], strlen(keys[i]), NULL), DFL_OK);
}

static void keys_are_1_to_256_bytes_not_characters(void **state)
{
    char key[300];
    struct dfl_error err;

    (void)state;
    memset(key, 'x', sizeof key);
    assert_int_equal(dfl_key_check(key, 256, &err), DFL_OK);
    assert_refused(dfl_key_check(key, 257, &err), DFL_INVALID, &err, "257");
    assert_refused(dfl_key_check(key, 0, &err), DFL_INVALID, &err, "empty");
    assert_refused(dfl_key_check(NULL, 0, &err), DFL_NULL, &err, "key");
    for (size_t i = 0; i < 258; i += 2)
        memcpy(key + i, "\xC3\xA4", 2);
    assert_int_equal(dfl_key_check(key, 256, &err), DFL_OK);
    assert_refused(dfl_key_check(key, 258, &err), DFL_INVALID, &err, "258");
}

/* A line feed in a key would be a second command. */
static void bytes_that_break_the_protocol_are_named(void **state)
{
    static const struct {
        const char *key;
        const char *says;
    } bad[] = {
        {"ab c", "byte 3 is a space"},     {"ab\tc", "byte 3 is a tab"},
        {"ab\rc", "byte 3 is a carriage"}, {"ab\nc", "byte 3 is a line feed"},
        {"ab\0c", "byte 3 is a NUL"},
    };
    struct dfl_error err;

    (void)state;
    for (size_t i = 0; i < COUNT(bad); i++)
        assert_refused(dfl_key_check(bad[i].key, 4, &err), DFL_INVALID, &err, bad[i].says);
    assert_refused(dfl_key_check("\xC3\xA4\n", 3, &err), DFL_INVALID, &err, "byte 3");
}

static void keys_that_are_no_utf8_are_refused(void **state)
{
    static const char *const bad[] = {
        "\x80",             /* a continuation alone */
        "\xC3",             /* cut */
        "\xC3(",            /* no continuation */
        "\xE2\x82",         /* cut */
        "\xF0\x9F\x94",     /* cut */
        "\xC0\xAF",         /* overlong */
        "\xC1\xBF",         /* overlong */
        "\xE0\x80\xAF",     /* overlong */
        "\xE0\x9F\xBF",     /* overlong */
        "\xF0\x80\x80\xAF", /* overlong */
        "\xF0\x8F\xBF\xBF", /* overlong */
        "\xED\xA0\x80",     /* a surrogate */
        "\xED\xBF\xBF",     /* a surrogate */
        "\xF4\x90\x80\x80", /* beyond U+10FFFF */
        "\xF5\x80\x80\x80", "\xFE", "\xFF",
        "\xE2\x28\xA1", "\xE2\x82\x28", "\xF0\x9F\x28\x92", "\xF0\x9F\x94\x28",
    };
    struct dfl_error err;

    (void)state;
    for (size_t i = 0; i < COUNT(bad); i++) {
        char key[8] = "ab";

        strcat(key, bad[i]);
        assert_refused(dfl_key_check(key, strlen(key), &err), DFL_INVALID, &err, "UTF-8: byte 3");
    }
}

static void a_prefix_is_put_in_front(void **state)
{
    char out[DFL_KEY_MAX + 1];
    size_t len = 0;

    (void)state;
    assert_int_equal(dfl_key_join("app:", "job", 3, out, &len, NULL), DFL_OK);
    assert_string_equal(out, "app:job");
    assert_int_equal(len, 7);
    assert_int_equal(dfl_key_join(NULL, "job", 3, out, &len, NULL), DFL_OK);
    assert_string_equal(out, "job");
    assert_int_equal(dfl_key_join("", "jobs", 3, out, &len, NULL), DFL_OK);
    assert_string_equal(out, "job");
    assert_int_equal(len, 3);
}

static void a_key_that_does_not_fit_its_prefix_names_both_lengths(void **state)
{
    char key[DFL_KEY_MAX + 1], out[DFL_KEY_MAX + 1] = "untouched";
    size_t len = 77;
    struct dfl_error err;

    (void)state;
    memset(key, 'x', sizeof key);
    assert_refused(dfl_key_join("four", key, 253, out, &len, &err), DFL_INVALID, &err, "253");
    assert_non_null(strstr(err.text, "4 bytes of key_prefix"));
    assert_non_null(strstr(err.text, "257"));
    assert_string_equal(out, "untouched");
    assert_int_equal(len, 77);
    assert_int_equal(dfl_key_join("four", key, 252, out, &len, &err), DFL_OK);
    assert_int_equal(len, DFL_KEY_MAX);
    assert_int_equal(strlen(out), DFL_KEY_MAX);
    assert_refused(dfl_key_join("four", key, 257, out, &len, &err), DFL_INVALID, &err, "257");
}

static void the_part_without_prefix_is_checked_as_a_key(void **state)
{
    char out[DFL_KEY_MAX + 1];
    size_t len;
    struct dfl_error err;

    (void)state;
    assert_refused(dfl_key_join("app:", "", 0, out, &len, &err), DFL_INVALID, &err, "empty");
    assert_refused(dfl_key_join("app:", NULL, 0, out, &len, &err), DFL_NULL, &err, "key");
    assert_refused(dfl_key_join("app:", "a b", 3, out, &len, &err), DFL_INVALID, &err, "byte 2");
    assert_refused(dfl_key_join("a pp", "k", 1, out, &len, &err), DFL_INVALID, &err, "key_prefix");
    /* Two halves of one character are none. */
    assert_refused(dfl_key_join("\xC3", "\xA4", 1, out, &len, &err), DFL_INVALID, &err, "UTF-8");
}

static void prefixes_leave_room_for_a_key(void **state)
{
    char prefix[DFL_KEY_MAX + 1];
    struct dfl_error err;

    (void)state;
    memset(prefix, 'p', sizeof prefix);
    prefix[DFL_KEY_MAX] = '\0';
    assert_refused(dfl_prefix_check(prefix, &err), DFL_INVALID, &err, "key_prefix");
    prefix[DFL_KEY_MAX - 1] = '\0';
    assert_int_equal(dfl_prefix_check(prefix, &err), DFL_OK);
    assert_int_equal(dfl_prefix_check("", &err), DFL_OK);
}

/* ------------------------------------------------------------------ tokens */

static void tokens_are_32_lower_case_hex_digits(void **state)
{
    static const char *const bad[] = {"", "0123", "0123456789abcdef0123456789abcde",
                                      "0123456789abcdef0123456789abcdef0",
                                      "0123456789ABCDEF0123456789abcdef",
                                      "0123456789abcdeg0123456789abcdef",
                                      "0123456789abcdef 123456789abcdef"};
    struct dfl_error err;

    (void)state;
    assert_int_equal(dfl_token_check("0123456789abcdef0123456789abcdef", 32, NULL), DFL_OK);
    for (size_t i = 0; i < COUNT(bad); i++) {
        assert_refused(dfl_token_check(bad[i], strlen(bad[i]), &err), DFL_INVALID, &err, "token");
        if (strlen(bad[i]) > 4)
            assert_null(strstr(err.text, "0123")); /* a token is never shown */
    }
    assert_refused(dfl_token_check(NULL, 0, &err), DFL_NULL, &err, "token");
    assert_refused(dfl_token_check(NULL, 32, &err), DFL_NULL, &err, "token");
}

static void the_fence_of_a_token_fits_a_bigint(void **state)
{
    int64_t fence = -77;
    struct dfl_error err;

    (void)state;
    assert_int_equal(dfl_token_fence("7fffffffffffffff0000000000000000", &fence, NULL), DFL_OK);
    assert_true(fence == INT64_MAX);
    assert_refused(dfl_token_fence("8000000000000000ffffffffffffffff", &fence, &err), DFL_RANGE,
                   &err, "2^63-1");
    assert_true(fence == INT64_MAX); /* untouched */
    assert_int_equal(dfl_token_fence("000000000000002a9999999999999999", &fence, NULL), DFL_OK);
    assert_int_equal(fence, 42);
}

/* ----------------------------------------------------------------- numbers */

static void timeouts_become_milliseconds(void **state)
{
    static const struct {
        double seconds;
        int64_t ms;
    } good[] = {
        {0, 0},          {-0.0, 0},         {1, 1000},       {0.1, 100},      {0.035, 35},
        {1.001, 1001},   {2.5, 2500},       {0.001, 1},      {0.0004, 1},     {1e-300, 1},
        {0.0006, 1},     {0.0016, 2},       {9223372036.0, INT64_C(9223372036000)},
        {INFINITY, DFL_FOREVER},
    };

    (void)state;
    for (size_t i = 0; i < COUNT(good); i++) {
        int64_t ms = -77;

        assert_int_equal(dfl_timeout_check(good[i].seconds, &ms, NULL), DFL_OK);
        assert_true(ms == good[i].ms);
    }
}

static void timeouts_that_mean_nothing_are_refused(void **state)
{
    int64_t ms = -77;
    struct dfl_error err;

    (void)state;
    assert_refused(dfl_timeout_check(NAN, &ms, &err), DFL_INVALID, &err, "timeout");
    assert_refused(dfl_timeout_check(-NAN, &ms, &err), DFL_INVALID, &err, "timeout");
    assert_refused(dfl_timeout_check(-0.001, &ms, &err), DFL_INVALID, &err, "negative");
    assert_refused(dfl_timeout_check(-INFINITY, &ms, &err), DFL_INVALID, &err, "negative");
    assert_refused(dfl_timeout_check(9223372036.5, &ms, &err), DFL_RANGE, &err, "9223372036");
    assert_refused(dfl_timeout_check(1e308, &ms, &err), DFL_RANGE, &err, "9223372036");
    assert_true(ms == -77); /* untouched */
}

static void leases_and_slots_start_at_one(void **state)
{
    struct dfl_error err;

    (void)state;
    assert_int_equal(dfl_lease_check(1, NULL), DFL_OK);
    assert_int_equal(dfl_lease_check(DFL_LEASE_MAX, NULL), DFL_OK);
    assert_refused(dfl_lease_check(0, &err), DFL_INVALID, &err, "lease_ttl");
    assert_refused(dfl_lease_check(INT64_MIN, &err), DFL_INVALID, &err, "lease_ttl");
    assert_refused(dfl_lease_check(DFL_LEASE_MAX + 1, &err), DFL_RANGE, &err, "2147483647");
    assert_int_equal(dfl_slots_check(1, NULL), DFL_OK);
    assert_int_equal(dfl_slots_check(DFL_SLOTS_MAX, NULL), DFL_OK);
    assert_refused(dfl_slots_check(0, &err), DFL_INVALID, &err, "slots");
    assert_refused(dfl_slots_check(-1, &err), DFL_INVALID, &err, "slots");
    assert_refused(dfl_slots_check(INT64_MAX, &err), DFL_RANGE, &err, "slots");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_keys_pass),
        cmocka_unit_test(keys_are_1_to_256_bytes_not_characters),
        cmocka_unit_test(bytes_that_break_the_protocol_are_named),
        cmocka_unit_test(keys_that_are_no_utf8_are_refused),
        cmocka_unit_test(a_prefix_is_put_in_front),
        cmocka_unit_test(a_key_that_does_not_fit_its_prefix_names_both_lengths),
        cmocka_unit_test(the_part_without_prefix_is_checked_as_a_key),
        cmocka_unit_test(prefixes_leave_room_for_a_key),
        cmocka_unit_test(tokens_are_32_lower_case_hex_digits),
        cmocka_unit_test(the_fence_of_a_token_fits_a_bigint),
        cmocka_unit_test(timeouts_become_milliseconds),
        cmocka_unit_test(timeouts_that_mean_nothing_are_refused),
        cmocka_unit_test(leases_and_slots_start_at_one),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
