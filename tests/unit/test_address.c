/* The list of servers as a setting has it: its forms, its rules and what a refusal says. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "dflockd.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static void assert_says(const struct dfl_error *err, const char *says)
{
    if (!strstr(err->text, says))
        fail_msg("'%s' does not say '%s'", err->text, says);
}

static void lists_of_servers_are_understood(void **state)
{
    static const struct {
        const char *text;
        size_t count;
        const char *addresses[3];
    } good[] = {
        {"127.0.0.1:6388", 1, {"127.0.0.1:6388"}},
        {"localhost", 1, {"localhost:6388"}},
        {"Lock1.Example.COM:1", 1, {"lock1.example.com:1"}},
        {"lock.example.com.:65535", 1, {"lock.example.com.:65535"}},
        {"[::1]:7000", 1, {"[::1]:7000"}},
        {"[::1]", 1, {"[::1]:6388"}},
        {"[0:0:0:0:0:0:0:1]:1", 1, {"[::1]:1"}},
        {"[2001:DB8::A]:1", 1, {"[2001:db8::a]:1"}},
        {"[fe80::1%eth0]:1", 1, {"[fe80::1%eth0]:1"}},
        {" a:1 ,\tb:2 , [::1]:3\n", 3, {"a:1", "b:2", "[::1]:3"}},
        {"a:1,a:2", 2, {"a:1", "a:2"}},
        {"lock_1,lock-2", 2, {"lock_1:6388", "lock-2:6388"}},
        {"a:007", 1, {"a:7"}},
    };

    (void)state;
    for (size_t i = 0; i < COUNT(good); i++) {
        struct dfl_server_address *list = NULL;
        struct dfl_error err = {.text = ""};
        size_t count = 0;

        if (dfl_servers_parse(good[i].text, &list, &count, &err) != DFL_OK)
            fail_msg("'%s': %s", good[i].text, err.text);
        assert_int_equal(count, good[i].count);
        for (size_t k = 0; k < count; k++)
            assert_string_equal(list[k].text, good[i].addresses[k]);
        free(list);
    }
}

static void hosts_come_without_brackets(void **state)
{
    struct dfl_server_address *list = NULL;
    size_t count = 0;

    (void)state;
    assert_int_equal(dfl_servers_parse("[::1]:7000,h:8", &list, &count, NULL), DFL_OK);
    assert_string_equal(list[0].host, "::1");
    assert_int_equal(list[0].port, 7000);
    assert_string_equal(list[1].host, "h");
    assert_int_equal(list[1].port, 8);
    free(list);
}

static void bad_lists_are_refused_with_the_rule(void **state)
{
    static const struct {
        const char *text, *says;
    } bad[] = {
        {"", "empty"},
        {" ", "empty"},
        {",", "empty"},
        {"a,", "empty"},
        {",a", "empty"},
        {"a,,b", "empty"},
        {"a:", "port"},
        {"a:0", "port"},
        {"a:65536", "port"},
        {"a:99999", "port"},
        {"a:123456", "port"},
        {"a:x", "port"},
        {"a:-1", "port"},
        {"a: 1", "port"},
        {":6388", "host name"},
        {"a b", "host name"},
        {"a b:1", "host name"},
        {"a/b:1", "host name"},
        {"a..b:1", "host name"},
        {".a:1", "host name"},
        {"sch\xC3\xB6n:1", "host name"},
        {"10.0.0.256:1", "host name"},
        {"127.1", "host name"},
        {"42:1", "host name"},
        {"::1", "brackets"},
        {"::1:6388", "brackets"},
        {"2001:db8::a", "brackets"},
        {"[::1", "[address]:port"},
        {"[::1]6388", "[address]:port"},
        {"[::1]:", "port"},
        {"[]:1", "IPv6"},
        {"[::g]:1", "IPv6"},
        {"[127.0.0.1]:1", "IPv6"},
        {"[fe80::1%]:1", "IPv6"},
        {"[fe80::1%a b]:1", "IPv6"},
        {"tcp://a:1", "port"},
        {"a:1,a:1", "twice"},
        {"a,A:6388", "twice"},
        {"[::1]:1,[0::1]:1", "twice"},
        {"b,a,b", "twice"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT(bad); i++) {
        struct dfl_server_address *list = NULL;
        struct dfl_error err = {.text = ""};
        size_t count = 77;

        if (dfl_servers_parse(bad[i].text, &list, &count, &err) != DFL_INVALID)
            fail_msg("taken: '%s'", bad[i].text);
        assert_null(list);
        assert_int_equal(count, 77);
        assert_says(&err, "servers");
        assert_says(&err, bad[i].says);
    }
}

static void names_have_their_longest_length(void **state)
{
    char text[300];
    struct dfl_server_address *list = NULL;
    size_t count = 0;

    (void)state;
    memset(text, 'h', sizeof text);
    strcpy(text + 253, ":65535");
    assert_int_equal(dfl_servers_parse(text, &list, &count, NULL), DFL_OK);
    assert_int_equal(strlen(list[0].text), 259);
    free(list);
    memset(text, 'h', sizeof text);
    strcpy(text + 254, ":1");
    assert_int_equal(dfl_servers_parse(text, &list, &count, NULL), DFL_INVALID);
    assert_int_equal(dfl_servers_parse(NULL, &list, &count, NULL), DFL_NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lists_of_servers_are_understood),
        cmocka_unit_test(hosts_come_without_brackets),
        cmocka_unit_test(bad_lists_are_refused_with_the_rule),
        cmocka_unit_test(names_have_their_longest_length),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
