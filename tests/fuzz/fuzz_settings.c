/*
 * fuzz_settings.c - settings and server lists as text: lines `name=value`. What is taken must read
 * back as something that is taken and means the same; what is refused must change nothing and be
 * refused with a sentence.
 */
#include "input.h"

#include "dflockd.h"

static void check_sentence(const struct dfl_error *err)
{
    size_t len = strlen(err->text);

    REQUIRE(len > 0 && len < DFL_ERROR_MAX);
    REQUIRE(memchr(err->text, '\n', len) == NULL);
}

static void check_servers(const char *text)
{
    struct dfl_server_address *list, *again;
    size_t count, count_again;
    struct dfl_error err = {0};

    if (dfl_servers_parse(text, &list, &count, &err) != DFL_OK) {
        check_sentence(&err);
        return;
    }
    REQUIRE(count >= 1);
    for (size_t i = 0; i < count; i++) {
        REQUIRE(list[i].port != 0 && list[i].host[0] != '\0' && strpbrk(list[i].host, "[] ,") == NULL);
        /* The canonical form of an address is one address, the same. */
        REQUIRE(dfl_servers_parse(list[i].text, &again, &count_again, &err) == DFL_OK);
        REQUIRE(count_again == 1 && strcmp(again->text, list[i].text) == 0);
        REQUIRE(strcmp(again->host, list[i].host) == 0 && again->port == list[i].port);
        free(again);
        for (size_t j = 0; j < i; j++)
            REQUIRE(strcmp(list[i].text, list[j].text) != 0);
    }
    REQUIRE(dfl_shard(text, strlen(text), count) < count);
    free(list);
}

static void check_setting(struct dfl_settings *s, const char *name, const char *value)
{
    struct dfl_error err = {0};
    char *before = NULL, *after = NULL, *again = NULL;
    enum dfl_status known = dfl_settings_get(s, name, &before, &err);

    if (dfl_settings_set(s, name, value, &err) != DFL_OK) {
        check_sentence(&err);
        if (known == DFL_OK) {
            REQUIRE(dfl_settings_get(s, name, &after, &err) == DFL_OK);
            REQUIRE(strcmp(before, after) == 0);
        }
    } else if (dfl_settings_get(s, name, &after, &err) == DFL_OK) {
        REQUIRE(dfl_settings_set(s, name, after, &err) == DFL_OK);
        REQUIRE(dfl_settings_get(s, name, &again, &err) == DFL_OK);
        REQUIRE(strcmp(after, again) == 0);
    }
    free(before);
    free(after);
    free(again);
}

static void check_all(const struct dfl_settings *s)
{
    struct dfl_settings copy;
    int64_t keepalive = dfl_settings_keepalive_ms(s);

    REQUIRE(keepalive > 0 && keepalive <= s->server_read_timeout_ms / 3 + 1);
    REQUIRE(s->renew_ratio >= 0.1 && s->renew_ratio <= 0.8);
    REQUIRE(s->connect_timeout_ms > 0 && s->server_read_timeout_ms > 0 && s->max_locks > 0);
    REQUIRE(s->lease_ttl_s >= 0 && s->lease_ttl_s <= DFL_LEASE_MAX);
    REQUIRE(dfl_settings_copy(&copy, s) == DFL_OK);
    for (size_t i = 0; dfl_settings_name(i); i++) {
        char *a = NULL, *b = NULL;
        struct dfl_error err;

        if (dfl_settings_get(s, dfl_settings_name(i), &a, &err) == DFL_OK) {
            REQUIRE(dfl_settings_get(&copy, dfl_settings_name(i), &b, &err) == DFL_OK);
            REQUIRE(strcmp(a, b) == 0);
        }
        free(a);
        free(b);
    }
    dfl_settings_free(&copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    struct dfl_settings s;

    REQUIRE(dfl_settings_init(&s) == DFL_OK);
    while (in.left > 0) {
        const char *line;
        size_t len = take_line(&in, &line);
        char *text = malloc(len + 1), *value;

        REQUIRE(text != NULL);
        memcpy(text, line, len);
        text[len] = '\0';
        value = strchr(text, '=');
        if (value) {
            *value++ = '\0';
            check_setting(&s, text, value);
            if (strcmp(text, "servers") == 0)
                check_servers(value);
        }
        free(text);
    }
    check_all(&s);
    dfl_settings_free(&s);
    return 0;
}
