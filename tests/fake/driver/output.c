/*
 * output.c - events on stdout: a JSON object per line, with the fields in the order of the calls.
 */
#include "driver.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static bool first_field;

static void print_string(const char *s)
{
    putchar('"');
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\')
            printf("\\%c", c);
        else if (c < 0x20)
            printf("\\u%04x", c);
        else
            putchar(c);
    }
    putchar('"');
}

void name_of_field(const char *name)
{
    printf(first_field ? "" : ",");
    first_field = false;
    print_string(name);
    putchar(':');
}

void field(const char *name, const char *value)
{
    name_of_field(name);
    print_string(value);
}

void number(const char *name, int64_t value)
{
    name_of_field(name);
    printf("%" PRId64, value);
}

void object_begin(void)
{
    putchar('{');
    first_field = true;
}

void object_end(void)
{
    putchar('}');
    first_field = false;
}

void event_begin(const char *event)
{
    object_begin();
    field("event", event);
}

void event_end(void)
{
    object_end();
    putchar('\n');
    fflush(stdout);
}

void status_fields(enum dfl_status status, const char *text)
{
    const struct dfl_status_info *info = dfl_status_info(status);
    field("status", info->name);
    field("sqlstate", info->sqlstate);
    field("text", text);
}

void reply(enum dfl_status status, const char *text)
{
    event_begin("reply");
    status_fields(status, text);
    event_end();
}

static const char *const kind_names[] = {
    [DFL_LOCK] = "lock", [DFL_SEMAPHORE] = "sem", [DFL_ANY_KIND] = "any"};

void hold_fields(const struct dfl_hold *hold, struct dfl_now now)
{
    struct dfl_hold_info info;
    char key[DFL_KEY_MAX + 1];
    dfl_hold_info(hold, &info);
    memcpy(key, info.key, info.key_len);
    key[info.key_len] = 0;
    field("key", key);
    field("kind", kind_names[info.kind]);
    field("state", dfl_state_name(info.state));
    field("token", info.token);
    number("slots", info.slots);
    number("fence", info.fence);
    number("lease", info.lease_s);
    number("link", info.link);
    number("deadline_in_ms", info.deadline_ms ? info.deadline_ms - now.ms : 0);
    number("lease_deadline_in_ms", info.lease_deadline_ms ? info.lease_deadline_ms - now.ms : 0);
    number("renewals", info.renewals);
    number("lost_ms_ago", info.lost_ms ? now.ms - info.lost_ms : -1);
    number("told", info.told);
    number("from_enqueue", info.from_enqueue);
    field("last_error", info.last_error);
    field("server", info.server);
}
