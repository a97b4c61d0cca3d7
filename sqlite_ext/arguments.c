/*
 * arguments.c - SQL values to checked C values.
 *
 * Types are judged here, ranges by the core, so that both databases draw the same lines. Text is
 * never taken for a number, nor a real number for a key: SQLite and its drivers would turn 42 into
 * '42.0' on the way.
 */
#include "arguments.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <sqlite3ext.h>
SQLITE_EXTENSION_INIT3

#include "session.h"

bool sq_given(const struct sq_arguments *a, int i)
{
    return i < a->count && sqlite3_value_type(a->values[i]) != SQLITE_NULL;
}

static const char *type_name(sqlite3_value *value)
{
    static const char *const names[] = {
        [SQLITE_INTEGER] = "an integer", [SQLITE_FLOAT] = "a real number", [SQLITE_TEXT] = "text",
        [SQLITE_BLOB] = "a blob",        [SQLITE_NULL] = "NULL",
    };
    return names[sqlite3_value_type(value)];
}

static enum dfl_status refuse_null(struct sq_arguments *a, const char *name)
{
    return dfl_fail(&a->error, DFL_NULL, "%s must not be NULL", name);
}

static enum dfl_status refuse_type(struct sq_arguments *a, int i, const char *name,
                                   const char *wanted)
{
    return dfl_fail(&a->error, DFL_INVALID, "%s must be %s, not %s", name, wanted,
                    type_name(a->values[i]));
}

enum dfl_status sq_key_argument(struct sq_arguments *a, int i, struct sq_key *key)
{
    const char *prefix = a->session->settings.key_prefix;
    char digits[32];

    if (!sq_given(a, i))
        return refuse_null(a, "key");
    switch (sqlite3_value_type(a->values[i])) {
    case SQLITE_INTEGER: {
        int n =
            snprintf(digits, sizeof digits, "%" PRId64, (int64_t)sqlite3_value_int64(a->values[i]));
        return dfl_key_join(prefix, digits, (size_t)n, key->text, &key->len, &a->error);
    }
    case SQLITE_TEXT: {
        const char *text = (const char *)sqlite3_value_text(a->values[i]);
        if (!text)
            return dfl_fail(&a->error, DFL_NOMEM, "out of memory");
        return dfl_key_join(prefix, text, (size_t)sqlite3_value_bytes(a->values[i]), key->text,
                            &key->len, &a->error);
    }
    default:
        return refuse_type(a, i, "key", "text or an integer");
    }
}

static bool is_number(sqlite3_value *value)
{
    int type = sqlite3_value_type(value);

    return type == SQLITE_INTEGER || type == SQLITE_FLOAT;
}

/* A whole number; drivers that know one kind of number only hand us 10.0. Out of int64_t's range:
 * its end on that side, for the range check to refuse. */
static enum dfl_status whole_argument(struct sq_arguments *a, int i, const char *name,
                                      int64_t *number)
{
    if (!is_number(a->values[i]))
        return refuse_type(a, i, name, "a whole number");
    if (sqlite3_value_type(a->values[i]) == SQLITE_INTEGER) {
        *number = sqlite3_value_int64(a->values[i]);
        return DFL_OK;
    }
    double real = sqlite3_value_double(a->values[i]);
    if (!isfinite(real) || real != floor(real))
        return dfl_fail(&a->error, DFL_INVALID, "%s must be a whole number, not %.17g", name, real);
    if (real >= 0x1p63)
        *number = INT64_MAX;
    else if (real < -0x1p63)
        *number = INT64_MIN;
    else
        *number = (int64_t)real;
    return DFL_OK;
}

enum dfl_status sq_timeout_argument(struct sq_arguments *a, int i, int64_t *timeout_ms)
{
    if (!sq_given(a, i)) {
        *timeout_ms = a->session->settings.acquire_timeout_ms;
        return DFL_OK;
    }
    if (!is_number(a->values[i]))
        return refuse_type(a, i, "timeout", "a number of seconds");
    return dfl_timeout_check(sqlite3_value_double(a->values[i]), timeout_ms, &a->error);
}

enum dfl_status sq_lease_argument(struct sq_arguments *a, int i, int64_t otherwise,
                                  int64_t *lease_s)
{
    int64_t given = 0;

    if (!sq_given(a, i)) {
        *lease_s = otherwise;
        return DFL_OK;
    }
    enum dfl_status status = whole_argument(a, i, "lease_ttl", &given);
    if (status == DFL_OK)
        status = dfl_lease_check(given, &a->error);
    if (status == DFL_OK)
        *lease_s = given;
    return status;
}

enum dfl_status sq_slots_argument(struct sq_arguments *a, int i, int64_t *slots)
{
    int64_t given = 0;

    if (!sq_given(a, i))
        return refuse_null(a, "slots");
    enum dfl_status status = whole_argument(a, i, "slots", &given);
    if (status == DFL_OK)
        status = dfl_slots_check(given, &a->error);
    if (status == DFL_OK)
        *slots = given;
    return status;
}

enum dfl_status sq_token_argument(struct sq_arguments *a, int i, const char **token)
{
    if (!sq_given(a, i))
        return refuse_null(a, "token");
    if (sqlite3_value_type(a->values[i]) != SQLITE_TEXT)
        return refuse_type(a, i, "token", "text");
    const char *text = (const char *)sqlite3_value_text(a->values[i]);
    if (!text)
        return dfl_fail(&a->error, DFL_NOMEM, "out of memory");
    enum dfl_status status =
        dfl_token_check(text, (size_t)sqlite3_value_bytes(a->values[i]), &a->error);
    if (status == DFL_OK)
        *token = text;
    return status;
}

enum dfl_status sq_flag_argument(struct sq_arguments *a, int i, const char *name, bool *flag)
{
    int64_t number = 0;

    if (i >= a->count) {
        *flag = false;
        return DFL_OK;
    }
    if (!sq_given(a, i))
        return refuse_null(a, name);
    if (!is_number(a->values[i]))
        return refuse_type(a, i, name, "true or false");
    enum dfl_status status = whole_argument(a, i, name, &number);
    if (status == DFL_OK)
        *flag = number != 0;
    return status;
}

enum dfl_status sq_text_argument(struct sq_arguments *a, int i, const char *name, bool numbers,
                                 const char **text)
{
    if (!sq_given(a, i))
        return refuse_null(a, name);
    if (sqlite3_value_type(a->values[i]) != SQLITE_TEXT && !(numbers && is_number(a->values[i])))
        return refuse_type(a, i, name, numbers ? "text or a number" : "text");
    const char *value = (const char *)sqlite3_value_text(a->values[i]);
    if (!value)
        return dfl_fail(&a->error, DFL_NOMEM, "out of memory");
    if (strlen(value) != (size_t)sqlite3_value_bytes(a->values[i]))
        return dfl_fail(&a->error, DFL_INVALID, "%s must not contain a NUL byte", name);
    *text = value;
    return DFL_OK;
}
