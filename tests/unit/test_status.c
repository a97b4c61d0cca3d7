/* The table of outcomes: complete, in order, unambiguous; and how an error text is made. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "dflockd.h"

static void every_status_has_its_row(void **state)
{
    (void)state;
    for (int i = 0; i < DFL_STATUS_COUNT; i++) {
        const struct dfl_status_info *info = dfl_status_info((enum dfl_status)i);

        assert_int_equal(info->status, i);
        assert_non_null(info->name);
        assert_true(strlen(info->name) > 0);
        assert_non_null(info->text);
        assert_true(strlen(info->text) > 0);
        assert_true(info->text[strlen(info->text) - 1] != '.');
    }
}

static void names_are_unique(void **state)
{
    (void)state;
    for (int i = 0; i < DFL_STATUS_COUNT; i++)
        for (int k = 0; k < i; k++)
            assert_string_not_equal(dfl_status_info((enum dfl_status)i)->name,
                                    dfl_status_info((enum dfl_status)k)->name);
}

static void sqlstates_have_their_form(void **state)
{
    (void)state;
    for (int i = 0; i < DFL_STATUS_COUNT; i++) {
        const char *sqlstate = dfl_status_info((enum dfl_status)i)->sqlstate;

        assert_int_equal(strlen(sqlstate), 5);
        assert_int_equal(strspn(sqlstate, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"), 5);
        /* 00000 is success, and nothing that fails may look like it. */
        assert_int_equal(strcmp(sqlstate, "00000") == 0, i == DFL_OK);
    }
}

/* What users program against: changing one of these is an incompatible change. */
static void sqlstates_are_the_documented_ones(void **state)
{
    static const struct {
        enum dfl_status status;
        const char *sqlstate;
    } documented[] = {
        {DFL_TIMEOUT, "55P03"},       {DFL_LOCK_TIMEOUT, "55P03"},
        {DFL_SELF, "55006"},          {DFL_NOT_QUEUED, "55000"},
        {DFL_NOT_HELD, "55000"},      {DFL_MOVED, "55000"},
        {DFL_LAPSED, "55000"},        {DFL_LOST, "40001"},
        {DFL_LIMIT_MISMATCH, "LK001"}, {DFL_NOT_ENQUEUED, "LK002"},
        {DFL_ALREADY_ENQUEUED, "LK003"}, {DFL_MAX_LOCKS, "LK004"},
        {DFL_MAX_WAITERS, "LK004"},   {DFL_DRAINING, "LK005"},
        {DFL_NOT_LEADER, "LK005"},    {DFL_REFUSED, "LK005"},
        {DFL_UNKNOWN_TO_SERVER, "LK005"}, {DFL_NO_WORKER, "LK006"},
        {DFL_UNREACHABLE, "LK010"},   {DFL_BROKEN, "LK011"},
        {DFL_PROTOCOL, "LK012"},      {DFL_AUTH, "LK013"},
        {DFL_NO_FENCE, "LK014"},      {DFL_NULL, "22004"},
        {DFL_INVALID, "22023"},       {DFL_RANGE, "22003"},
        {DFL_UNSUPPORTED, "0A000"},   {DFL_TOO_MANY, "53400"},
        {DFL_CANCELED, "57014"},      {DFL_NOMEM, "53200"},
        {DFL_INTERNAL, "XX000"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof documented / sizeof documented[0]; i++)
        assert_string_equal(dfl_status_info(documented[i].status)->sqlstate,
                            documented[i].sqlstate);
}

static void server_caps_name_the_flag_to_raise(void **state)
{
    (void)state;
    assert_non_null(strstr(dfl_status_info(DFL_MAX_LOCKS)->text, "--max-locks"));
    assert_non_null(strstr(dfl_status_info(DFL_MAX_WAITERS)->text, "--max-waiters"));
}

/* A lock that says no, a link that broke and a caller who erred are three different things. */
static void blame_is_told_apart(void **state)
{
    (void)state;
    assert_int_equal(dfl_status_info(DFL_OK)->blame, DFL_BLAME_NONE);
    assert_int_equal(dfl_status_info(DFL_TIMEOUT)->blame, DFL_BLAME_LOCK);
    assert_int_equal(dfl_status_info(DFL_LOST)->blame, DFL_BLAME_LOCK);
    assert_int_equal(dfl_status_info(DFL_UNREACHABLE)->blame, DFL_BLAME_LINK);
    assert_int_equal(dfl_status_info(DFL_BROKEN)->blame, DFL_BLAME_LINK);
    assert_int_equal(dfl_status_info(DFL_INVALID)->blame, DFL_BLAME_CALLER);
    assert_int_equal(dfl_status_info(DFL_NO_WORKER)->blame, DFL_BLAME_HOST);
    for (int i = DFL_TIMEOUT; i < DFL_STATUS_COUNT; i++)
        assert_int_not_equal(dfl_status_info((enum dfl_status)i)->blame, DFL_BLAME_NONE);
}

static void words_round_trip(void **state)
{
    int words = 0;

    (void)state;
    for (int i = 0; i < DFL_STATUS_COUNT; i++) {
        const char *word = dfl_status_info((enum dfl_status)i)->word;

        if (!word)
            continue;
        words++;
        assert_int_equal(dfl_status_from_word(word, strlen(word)), i);
    }
    assert_int_equal(words, 12);
}

static void unknown_words_are_refusals(void **state)
{
    static const char *const unknown[] = {"error_",    "error_max_lock", "error_max_locksx",
                                          "error_new", "Error",          ""};

    (void)state;
    for (size_t i = 0; i < sizeof unknown / sizeof unknown[0]; i++)
        assert_int_equal(dfl_status_from_word(unknown[i], strlen(unknown[i])), DFL_REFUSED);
    /* The length counts, not a NUL behind it. */
    assert_int_equal(dfl_status_from_word("error_authority", 10), DFL_AUTH);
}

static void a_status_out_of_the_table_is_a_bug_said_aloud(void **state)
{
    (void)state;
    assert_int_equal(dfl_status_info(DFL_STATUS_COUNT)->status, DFL_INTERNAL);
    assert_int_equal(dfl_status_info((enum dfl_status)-1)->status, DFL_INTERNAL);
}

static void fail_sets_status_and_text(void **state)
{
    struct dfl_error err;

    (void)state;
    assert_int_equal(dfl_fail(&err, DFL_BROKEN, "read %s:%d: %s", "h", 6388, "gone"), DFL_BROKEN);
    assert_int_equal(err.status, DFL_BROKEN);
    assert_string_equal(err.text, "read h:6388: gone");
    assert_int_equal(dfl_fail(NULL, DFL_RANGE, "%d", 1), DFL_RANGE);
}

static void fail_can_wrap_its_own_text(void **state)
{
    struct dfl_error err;

    (void)state;
    dfl_fail(&err, DFL_BROKEN, "inner");
    dfl_fail(&err, DFL_UNREACHABLE, "outer: %s", err.text);
    assert_string_equal(err.text, "outer: inner");
}

/* For every length of the tail before the cut, the text ends with a whole character. */
static void long_texts_end_with_a_whole_character(void **state)
{
    static const char *const characters[] = {"a", "\xC3\xA4", "\xE2\x82\xAC", "\xF0\x9F\x94\x92"};

    (void)state;
    for (size_t c = 0; c < 4; c++) {
        for (size_t shift = 0; shift < 4; shift++) {
            char text[2 * DFL_ERROR_MAX] = "";
            struct dfl_error err;
            size_t width = strlen(characters[c]);

            memset(text, '-', shift);
            for (size_t at = shift; at + width < sizeof text - 1; at += width)
                memcpy(text + at, characters[c], width + 1);
            dfl_fail(&err, DFL_INVALID, "%s", text);

            size_t len = strlen(err.text);

            assert_true(len < DFL_ERROR_MAX);
            assert_true(len > DFL_ERROR_MAX - 1 - width);
            assert_int_equal((len - shift) % width, 0);
            assert_memory_equal(err.text, text, len);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_status_has_its_row),
        cmocka_unit_test(names_are_unique),
        cmocka_unit_test(sqlstates_have_their_form),
        cmocka_unit_test(sqlstates_are_the_documented_ones),
        cmocka_unit_test(server_caps_name_the_flag_to_raise),
        cmocka_unit_test(blame_is_told_apart),
        cmocka_unit_test(words_round_trip),
        cmocka_unit_test(unknown_words_are_refusals),
        cmocka_unit_test(a_status_out_of_the_table_is_a_bug_said_aloud),
        cmocka_unit_test(fail_sets_status_and_text),
        cmocka_unit_test(fail_can_wrap_its_own_text),
        cmocka_unit_test(long_texts_end_with_a_whole_character),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
