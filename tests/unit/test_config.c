/* The settings: defaults, ranges, texts, the environment, the file with the login token. */
#include <ctype.h>
#include <locale.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "dflockd.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static int setup(void **state)
{
    static struct dfl_settings s;

    *state = &s;
    return dfl_settings_init(&s) == DFL_OK ? 0 : -1;
}

static int teardown(void **state)
{
    dfl_settings_free(*state);
    return 0;
}

static void assert_value(const struct dfl_settings *s, const char *name, const char *want)
{
    char *value = NULL;

    assert_int_equal(dfl_settings_get(s, name, &value, NULL), DFL_OK);
    assert_string_equal(value, want);
    free(value);
}

static void assert_says(const struct dfl_error *err, const char *says)
{
    if (!strstr(err->text, says))
        fail_msg("'%s' does not say '%s'", err->text, says);
}

/* ------------------------------------------------------------------ values */

static const struct {
    const char *name, *value;
} defaults[] = {
    {"servers", "127.0.0.1:6388"},
    {"auth_token_file", ""},
    {"tls", "off"},
    {"tls_ca", ""},
    {"tls_cert", ""},
    {"tls_key", ""},
    {"tls_server_name", ""},
    {"connect_timeout", "10"},
    {"acquire_timeout", "10"},
    {"lease_ttl", "0"},
    {"renew_ratio", "0.5"},
    {"keepalive", "7"},
    {"server_read_timeout", "23"},
    {"fences", "auto"},
    {"release_wait", "on"},
    {"max_locks", "10000"},
    {"max_session_locks", "0"},
    {"max_connections", "512"},
    {"key_prefix", ""},
};

static void defaults_are_the_documented_ones(void **state)
{
    size_t i;

    for (i = 0; i < COUNT(defaults); i++) {
        assert_string_equal(dfl_settings_name(i), defaults[i].name);
        assert_value(*state, defaults[i].name, defaults[i].value);
    }
    assert_null(dfl_settings_name(i));
    assert_null(dfl_settings_name(SIZE_MAX));
}

static void fields_hold_the_units_of_the_engine(void **state)
{
    const struct dfl_settings *s = *state;

    assert_int_equal(s->connect_timeout_ms, 10000);
    assert_int_equal(s->acquire_timeout_ms, 10000);
    assert_int_equal(s->keepalive_ms, 7000);
    assert_int_equal(s->server_read_timeout_ms, 23000);
    assert_int_equal(s->tls, DFL_TLS_OFF);
    assert_int_equal(s->fences, DFL_FENCES_AUTO);
    assert_true(s->release_wait);
    assert_string_equal(s->auth_token, "");
}

static void good_values_are_taken_and_shown(void **state)
{
    static const struct {
        const char *name, *value, *shown;
    } good[] = {
        {"servers", "a:1, [::1]:2", "a:1, [::1]:2"},
        {"auth_token_file", "/etc/dflockd/token", "/etc/dflockd/token"},
        {"tls", "on", "on"},
        {"tls", "Insecure", "insecure"},
        {"tls", "OFF", "off"},
        {"tls_ca", "/a b/ca.pem", "/a b/ca.pem"},
        {"connect_timeout", "0.1", "0.1"},
        {"connect_timeout", "3600", "3600"},
        {"connect_timeout", "0.25", "0.25"},
        {"connect_timeout", "1e1", "10"},
        {"connect_timeout", "0.10000000000000001", "0.1"},
        {"acquire_timeout", "0", "0"},
        {"acquire_timeout", "-1", "-1"},
        {"acquire_timeout", "0.0001", "0.001"},
        {"acquire_timeout", "9223372036", "9223372036"},
        {"lease_ttl", "2147483647", "2147483647"},
        {"lease_ttl", "0", "0"},
        {"lease_ttl", "+5", "5"},
        {"renew_ratio", "0.1", "0.1"},
        {"renew_ratio", "0.8", "0.8"},
        {"renew_ratio", ".333", "0.333"},
        {"keepalive", "0.5", "0.5"},
        {"server_read_timeout", "1", "1"},
        {"server_read_timeout", "86400", "86400"},
        {"fences", "on", "on"},
        {"fences", "off", "off"},
        {"release_wait", "off", "off"},
        {"release_wait", "True", "on"},
        {"release_wait", "0", "off"},
        {"release_wait", "yes", "on"},
        {"max_locks", "1", "1"},
        {"max_session_locks", "2147483647", "2147483647"},
        {"max_connections", "8", "8"},
        {"key_prefix", "app:", "app:"},
        {"key_prefix", "", ""},
    };

    for (size_t i = 0; i < COUNT(good); i++) {
        struct dfl_error err = {.text = ""};

        if (dfl_settings_set(*state, good[i].name, good[i].value, &err) != DFL_OK)
            fail_msg("%s = %s: %s", good[i].name, good[i].value, err.text);
        assert_value(*state, good[i].name, good[i].shown);
    }
}

static void bad_values_are_refused_and_change_nothing(void **state)
{
    static const struct {
        const char *name, *value, *says;
    } bad[] = {
        {"servers", "", "servers"},
        {"servers", "a,,b", "servers"},
        {"tls", "yes", "one of off, on, insecure"},
        {"tls", "", "tls"},
        {"tls", "on ", "tls"},
        {"connect_timeout", "0", "from 0.1 to 3600"},
        {"connect_timeout", "0.09", "connect_timeout"},
        {"connect_timeout", "3600.5", "connect_timeout"},
        {"connect_timeout", "-1", "connect_timeout"},
        {"connect_timeout", "10s", "\"10s\""},
        {"connect_timeout", "nan", "connect_timeout"},
        {"connect_timeout", "inf", "connect_timeout"},
        {"connect_timeout", "0x10", "connect_timeout"},
        {"connect_timeout", "1,5", "connect_timeout"},
        {"connect_timeout", "", "connect_timeout"},
        {"connect_timeout", " 1", "connect_timeout"},
        {"connect_timeout", "1e", "connect_timeout"},
        {"connect_timeout", "1e999", "connect_timeout"},
        {"acquire_timeout", "-2", "or -1 for ever"},
        {"acquire_timeout", "-0.5", "acquire_timeout"},
        {"acquire_timeout", "9223372037", "from 0 to 9223372036"},
        {"acquire_timeout", "infinity", "acquire_timeout"},
        {"lease_ttl", "-1", "from 0 to 2147483647"},
        {"lease_ttl", "2147483648", "lease_ttl"},
        {"lease_ttl", "1.5", "a whole number"},
        {"lease_ttl", "99999999999999999999", "lease_ttl"},
        {"lease_ttl", "5-", "lease_ttl"},
        {"renew_ratio", "0.09", "from 0.1 to 0.8"},
        {"renew_ratio", "0.81", "renew_ratio"},
        {"renew_ratio", "half", "renew_ratio"},
        {"keepalive", "0", "keepalive"},
        {"server_read_timeout", "0.9", "from 1 to 86400"},
        {"fences", "maybe", "one of auto, on, off"},
        {"release_wait", "2", "on or off"},
        {"release_wait", "", "release_wait"},
        {"max_locks", "0", "max_locks"},
        {"max_session_locks", "-1", "max_session_locks"},
        {"max_connections", "0", "max_connections"},
        {"key_prefix", "a b", "key_prefix"},
        {"key_prefix", "a\n", "key_prefix"},
        {"key_prefix", "\xFF", "UTF-8"},
        {"no_such", "1", "no_such"},
        {"Servers", "a", "Servers"},
        {"auth_token", "secret", "auth_token"},
        {"", "", "there is no setting"},
    };

    for (size_t i = 0; i < COUNT(bad); i++) {
        struct dfl_error err = {.text = ""};

        if (dfl_settings_set(*state, bad[i].name, bad[i].value, &err) != DFL_INVALID)
            fail_msg("taken: %s = '%s'", bad[i].name, bad[i].value);
        assert_int_equal(err.status, DFL_INVALID);
        assert_says(&err, bad[i].says);
    }
    for (size_t i = 0; i < COUNT(defaults); i++)
        assert_value(*state, defaults[i].name, defaults[i].value);
}

static void null_is_no_value(void **state)
{
    struct dfl_error err;

    assert_int_equal(dfl_settings_set(*state, "tls_ca", NULL, &err), DFL_NULL);
    assert_says(&err, "tls_ca");
}

static void a_hostile_value_is_shown_escaped_and_cut(void **state)
{
    char value[2000];
    struct dfl_error err;

    memset(value, '\x1b', sizeof value - 1);
    value[sizeof value - 1] = '\0';
    assert_int_equal(dfl_settings_set(*state, "tls", value, &err), DFL_INVALID);
    assert_null(strchr(err.text, '\x1b'));
    assert_true(strlen(err.text) < 400);
}

static void the_login_token_is_never_shown(void **state)
{
    struct dfl_settings *s = *state;
    char *value = NULL;
    struct dfl_error err;

    free(s->auth_token);
    s->auth_token = strdup("hush");
    assert_int_equal(dfl_settings_get(s, "auth_token", &value, &err), DFL_INVALID);
    assert_null(value);
    for (size_t i = 0; dfl_settings_name(i); i++) {
        assert_int_equal(dfl_settings_get(s, dfl_settings_name(i), &value, NULL), DFL_OK);
        assert_null(strstr(value, "hush"));
        free(value);
    }
}

static void a_copy_is_a_copy(void **state)
{
    struct dfl_settings copy;

    assert_int_equal(dfl_settings_set(*state, "key_prefix", "a:", NULL), DFL_OK);
    assert_int_equal(dfl_settings_set(*state, "renew_ratio", "0.3", NULL), DFL_OK);
    assert_int_equal(dfl_settings_copy(&copy, *state), DFL_OK);
    assert_int_equal(dfl_settings_set(*state, "key_prefix", "b:", NULL), DFL_OK);
    assert_value(&copy, "key_prefix", "a:");
    assert_value(&copy, "renew_ratio", "0.3");
    assert_value(*state, "key_prefix", "b:");
    dfl_settings_free(&copy);
}

static void a_value_may_come_from_the_setting_itself(void **state)
{
    struct dfl_settings *s = *state;

    assert_int_equal(dfl_settings_set(s, "servers", s->servers, NULL), DFL_OK);
    assert_value(s, "servers", "127.0.0.1:6388");
}

static void keepalive_is_at_most_a_third_of_the_read_timeout(void **state)
{
    assert_int_equal(dfl_settings_keepalive_ms(*state), 7000);
    assert_int_equal(dfl_settings_set(*state, "server_read_timeout", "3", NULL), DFL_OK);
    assert_int_equal(dfl_settings_keepalive_ms(*state), 1000);
    assert_int_equal(dfl_settings_set(*state, "keepalive", "0.5", NULL), DFL_OK);
    assert_int_equal(dfl_settings_keepalive_ms(*state), 500);
}

/* The host program's locale is used for nothing, and is what it was afterwards. */
static void the_locale_stays_the_hosts(void **state)
{
    locale_t mine = newlocale(LC_ALL_MASK, "C", (locale_t)0), before = uselocale(mine);

    assert_int_equal(dfl_settings_set(*state, "renew_ratio", "0.25", NULL), DFL_OK);
    assert_value(*state, "renew_ratio", "0.25");
    assert_true(uselocale((locale_t)0) == mine);
    uselocale(before);
    freelocale(mine);
}

/* ------------------------------------------------------------- environment */

static void clear_environment(void)
{
    for (size_t i = 0; dfl_settings_name(i); i++) {
        char variable[64] = "DFLOCK_";
        char *end = variable + strlen(variable);

        for (const char *c = dfl_settings_name(i); *c; c++)
            *end++ = (char)toupper((unsigned char)*c);
        unsetenv(variable);
    }
    unsetenv("DFLOCK_AUTH_TOKEN");
}

static int setup_environment(void **state)
{
    clear_environment();
    return setup(state);
}

static int teardown_environment(void **state)
{
    clear_environment();
    return teardown(state);
}

static void every_setting_has_its_variable(void **state)
{
    static const struct {
        const char *variable, *value, *name;
    } all[] = {
        {"DFLOCK_SERVERS", "h:7", "servers"},
        {"DFLOCK_AUTH_TOKEN_FILE", "/t", "auth_token_file"},
        {"DFLOCK_TLS", "on", "tls"},
        {"DFLOCK_TLS_CA", "/ca", "tls_ca"},
        {"DFLOCK_TLS_CERT", "/cert", "tls_cert"},
        {"DFLOCK_TLS_KEY", "/key", "tls_key"},
        {"DFLOCK_TLS_SERVER_NAME", "n", "tls_server_name"},
        {"DFLOCK_CONNECT_TIMEOUT", "1", "connect_timeout"},
        {"DFLOCK_ACQUIRE_TIMEOUT", "-1", "acquire_timeout"},
        {"DFLOCK_LEASE_TTL", "5", "lease_ttl"},
        {"DFLOCK_RENEW_RATIO", "0.4", "renew_ratio"},
        {"DFLOCK_KEEPALIVE", "3", "keepalive"},
        {"DFLOCK_SERVER_READ_TIMEOUT", "12", "server_read_timeout"},
        {"DFLOCK_FENCES", "off", "fences"},
        {"DFLOCK_RELEASE_WAIT", "off", "release_wait"},
        {"DFLOCK_MAX_LOCKS", "9", "max_locks"},
        {"DFLOCK_MAX_SESSION_LOCKS", "8", "max_session_locks"},
        {"DFLOCK_MAX_CONNECTIONS", "7", "max_connections"},
        {"DFLOCK_KEY_PREFIX", "p:", "key_prefix"},
    };
    struct dfl_settings *s = *state;

    for (size_t i = 0; i < COUNT(all); i++)
        setenv(all[i].variable, all[i].value, 1);
    setenv("DFLOCK_AUTH_TOKEN", "secret", 1);
    assert_int_equal(dfl_settings_from_environment(s, NULL), DFL_OK);
    for (size_t i = 0; i < COUNT(all); i++)
        assert_value(s, all[i].name, all[i].value);
    assert_string_equal(s->auth_token, "secret");
    assert_null(dfl_settings_name(COUNT(all)));
}

static void an_empty_or_missing_variable_changes_nothing(void **state)
{
    assert_int_equal(dfl_settings_set(*state, "lease_ttl", "77", NULL), DFL_OK);
    setenv("DFLOCK_LEASE_TTL", "", 1);
    setenv("DFLOCK_SERVERS", "", 1);
    assert_int_equal(dfl_settings_from_environment(*state, NULL), DFL_OK);
    assert_value(*state, "lease_ttl", "77");
    assert_value(*state, "servers", "127.0.0.1:6388");
}

static void a_bad_variable_is_named_and_nothing_is_taken(void **state)
{
    struct dfl_error err;

    setenv("DFLOCK_SERVERS", "other:1", 1);
    setenv("DFLOCK_CONNECT_TIMEOUT", "soon", 1);
    setenv("DFLOCK_MAX_LOCKS", "many", 1);
    assert_int_equal(dfl_settings_from_environment(*state, &err), DFL_INVALID);
    assert_int_equal(err.status, DFL_INVALID);
    assert_says(&err, "DFLOCK_CONNECT_TIMEOUT");
    assert_says(&err, "from 0.1 to 3600");
    assert_value(*state, "servers", "127.0.0.1:6388");
}

static void a_bad_login_token_is_not_shown(void **state)
{
    struct dfl_error err;

    setenv("DFLOCK_AUTH_TOKEN", "hush hush", 1);
    assert_int_equal(dfl_settings_from_environment(*state, &err), DFL_INVALID);
    assert_says(&err, "DFLOCK_AUTH_TOKEN");
    assert_null(strstr(err.text, "hush"));
}

/* --------------------------------------------------------- the login token */

static void write_file(const char *path, const char *bytes, size_t len)
{
    FILE *f = fopen(path, "wb");

    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, len, f), len);
    assert_int_equal(fclose(f), 0);
}

/* A name of this process alone; nothing is left behind. */
static const char *token_path(void)
{
    static char path[64];

    snprintf(path, sizeof path, "/tmp/dflockd-test-token-%ld", (long)getpid());
    return path;
}

static int setup_token(void **state)
{
    struct dfl_settings *s;

    if (setup(state) != 0)
        return -1;
    s = *state;
    return dfl_settings_set(s, "auth_token_file", token_path(), NULL) == DFL_OK ? 0 : -1;
}

static int teardown_token(void **state)
{
    unlink(token_path());
    return teardown(state);
}

static void no_token_is_none(void **state)
{
    char *token = "untouched";

    assert_int_equal(dfl_settings_read_token(*state, &token, NULL), DFL_OK);
    assert_null(token);
}

static void the_token_of_the_environment_is_read(void **state)
{
    struct dfl_settings *s = *state;
    char *token = NULL;

    free(s->auth_token);
    s->auth_token = strdup("secret");
    assert_int_equal(dfl_settings_read_token(s, &token, NULL), DFL_OK);
    assert_string_equal(token, "secret");
    free(token);
}

static void the_end_of_the_line_is_not_part_of_the_token(void **state)
{
    static const char *const files[] = {"secret", "secret\n", "secret\r\n"};

    for (size_t i = 0; i < COUNT(files); i++) {
        char *token = NULL;

        write_file(token_path(), files[i], strlen(files[i]));
        assert_int_equal(dfl_settings_read_token(*state, &token, NULL), DFL_OK);
        assert_string_equal(token, "secret");
        free(token);
    }
}

static void files_that_hold_no_token_are_refused(void **state)
{
    static const struct {
        const char *bytes;
        size_t len;
        const char *says;
    } bad[] = {
        {"", 0, "empty"},
        {"\n", 1, "empty"},
        {"\r\n", 2, "empty"},
        {"hu sh", 5, "white space"},
        {"hush\n\n", 6, "white space"},
        {"hush\nmore", 9, "white space"},
        {" hush", 5, "white space"},
        {"hush\t", 5, "white space"},
        {"hu\0sh", 5, "NUL"},
    };

    for (size_t i = 0; i < COUNT(bad); i++) {
        char *token = NULL;
        struct dfl_error err;

        write_file(token_path(), bad[i].bytes, bad[i].len);
        assert_int_equal(dfl_settings_read_token(*state, &token, &err), DFL_INVALID);
        assert_null(token);
        assert_says(&err, token_path());
        assert_says(&err, bad[i].says);
        assert_null(strstr(err.text, "hu"));
    }
}

static void a_token_may_have_64_kib(void **state)
{
    size_t most = 65536;
    char *bytes = malloc(most + 3), *token = NULL;
    struct dfl_error err;

    memset(bytes, 't', most + 1);
    memcpy(bytes + most, "\r\n", 3);
    write_file(token_path(), bytes, most + 2);
    assert_int_equal(dfl_settings_read_token(*state, &token, &err), DFL_OK);
    assert_int_equal(strlen(token), most);
    free(token);
    token = NULL;
    memset(bytes, 't', most + 1);
    write_file(token_path(), bytes, most + 1);
    assert_int_equal(dfl_settings_read_token(*state, &token, &err), DFL_INVALID);
    assert_says(&err, "65536");
    assert_null(token);
    free(bytes);
}

static void a_file_that_cannot_be_read_says_why(void **state)
{
    char *token = NULL;
    struct dfl_error err;

    assert_int_equal(dfl_settings_read_token(*state, &token, &err), DFL_INVALID);
    assert_says(&err, token_path());
    assert_says(&err, "No such file");
    assert_int_equal(dfl_settings_set(*state, "auth_token_file", "/tmp", NULL), DFL_OK);
    assert_int_equal(dfl_settings_read_token(*state, &token, &err), DFL_INVALID);
    assert_says(&err, "directory");
    assert_null(token);
}

static void a_pipe_without_a_writer_stops_nobody(void **state)
{
    char *token = NULL;
    struct dfl_error err;

    assert_int_equal(mkfifo(token_path(), 0600), 0);
    assert_int_equal(dfl_settings_read_token(*state, &token, &err), DFL_INVALID);
    assert_says(&err, "empty");
}

#define FRESH(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
#define ENVIRONMENT(test) \
    cmocka_unit_test_setup_teardown(test, setup_environment, teardown_environment)
#define TOKEN(test) cmocka_unit_test_setup_teardown(test, setup_token, teardown_token)

int main(void)
{
    const struct CMUnitTest tests[] = {
        FRESH(defaults_are_the_documented_ones),
        FRESH(fields_hold_the_units_of_the_engine),
        FRESH(good_values_are_taken_and_shown),
        FRESH(bad_values_are_refused_and_change_nothing),
        FRESH(null_is_no_value),
        FRESH(a_hostile_value_is_shown_escaped_and_cut),
        FRESH(the_login_token_is_never_shown),
        FRESH(a_copy_is_a_copy),
        FRESH(a_value_may_come_from_the_setting_itself),
        FRESH(keepalive_is_at_most_a_third_of_the_read_timeout),
        FRESH(the_locale_stays_the_hosts),
        ENVIRONMENT(every_setting_has_its_variable),
        ENVIRONMENT(an_empty_or_missing_variable_changes_nothing),
        ENVIRONMENT(a_bad_variable_is_named_and_nothing_is_taken),
        ENVIRONMENT(a_bad_login_token_is_not_shown),
        FRESH(no_token_is_none),
        FRESH(the_token_of_the_environment_is_read),
        TOKEN(the_end_of_the_line_is_not_part_of_the_token),
        TOKEN(files_that_hold_no_token_are_refused),
        TOKEN(a_token_may_have_64_kib),
        TOKEN(a_file_that_cannot_be_read_says_why),
        TOKEN(a_pipe_without_a_writer_stops_nobody),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
