/*
 * config.c - the settings: one row of a table each, with its name, its kind, where it lives, its
 * range and its default; and where their values come from: text, the environment, the file with the
 * login token. Owns nothing but what a struct dfl_settings owns. Never shows the login token.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "dflockd.h"
#include "proto.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SHOWN_MAX 300 /* a value in a message, escaped */

struct row;

/* A kind of value. Fields are addressed as bytes; each kind knows its own type. */
struct kind {
    /* Checks the text and replaces what is in the field. On failure the field is as it was. */
    enum dfl_status (*parse)(const struct row *row, void *field, const char *value,
                             struct dfl_error *err);
    /* The value as text, malloc'd. NULL: out of memory. */
    char *(*print)(const struct row *row, const void *field);
    bool owns_text; /* the field is a char * */
};

struct row {
    const char *name;
    const struct kind *kind;
    size_t offset;
    double min, max; /* in the unit of the SQL interface; numbers only */
    const char *initial;
    const char *const *words; /* of a choice, by value, NULL behind the last */
};

static enum dfl_status no_memory(struct dfl_error *err)
{
    return dfl_fail(err, DFL_NOMEM, "out of memory");
}

static enum dfl_status refuse(struct dfl_error *err, const struct row *row, const char *rule,
                              const char *value)
{
    char shown[SHOWN_MAX];

    dfl_escape(shown, sizeof shown, value, strlen(value));
    return dfl_fail(err, DFL_INVALID, "%s must be %s: \"%s\"", row->name, rule, shown);
}

/* ----------------------------------------------------------------- numbers */

/*
 * Numbers are read and written with a point, whatever locale the host program has chosen for
 * itself. What strtod knows beyond decimal digits (hex, inf, nan, leading spaces) is not wanted.
 */
static bool parse_real(const char *text, double *out)
{
    char *end;

    if (!*text || text[strspn(text, "0123456789+-.eE")])
        return false;

    locale_t plain = newlocale(LC_ALL_MASK, "C", (locale_t)0);

    if (!plain)
        return false;

    locale_t before = uselocale(plain);
    double x = strtod(text, &end);

    uselocale(before);
    freelocale(plain);
    if (*end || !isfinite(x))
        return false;
    *out = x;
    return true;
}

/* The shortest text, up to 17 digits, that reads back as the same number. */
static char *print_real(double x)
{
    char text[40] = "";
    locale_t plain = newlocale(LC_ALL_MASK, "C", (locale_t)0);

    if (!plain)
        return NULL;

    locale_t before = uselocale(plain);

    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, x);
        if (strtod(text, NULL) == x)
            break;
    }
    uselocale(before);
    freelocale(plain);
    return strdup(text);
}

/* "a number of seconds from 0.1 to 3600" */
static void describe_range(char *rule, size_t cap, const char *what, const struct row *row)
{
    char *min = print_real(row->min);
    int64_t max = (int64_t)row->max;

    if ((double)max == row->max) {
        snprintf(rule, cap, "%s from %s to %" PRId64, what, min ? min : "?", max);
    } else {
        char *text = print_real(row->max);

        snprintf(rule, cap, "%s from %s to %s", what, min ? min : "?", text ? text : "?");
        free(text);
    }
    free(min);
}

static enum dfl_status refuse_range(struct dfl_error *err, const struct row *row, const char *what,
                                    const char *tail, const char *value)
{
    char range[128], rule[160];

    describe_range(range, sizeof range, what, row);
    snprintf(rule, sizeof rule, "%s%s", range, tail);
    return refuse(err, row, rule, value);
}

static enum dfl_status parse_ratio(const struct row *row, void *field, const char *value,
                                   struct dfl_error *err)
{
    double x;

    if (!parse_real(value, &x) || x < row->min || x > row->max)
        return refuse_range(err, row, "a number", "", value);
    *(double *)field = x;
    return DFL_OK;
}

static char *print_ratio(const struct row *row, const void *field)
{
    (void)row;
    return print_real(*(const double *)field);
}

static enum dfl_status parse_integer(const struct row *row, void *field, const char *value,
                                     struct dfl_error *err)
{
    char *end = NULL;
    bool good = *value && !value[strspn(value, "0123456789+-")];

    errno = 0;

    long long n = good ? strtoll(value, &end, 10) : 0;

    if (!good || *end || errno || (double)n < row->min || (double)n > row->max)
        return refuse_range(err, row, "a whole number", "", value);
    *(int64_t *)field = n;
    return DFL_OK;
}

static char *print_integer(const struct row *row, const void *field)
{
    char text[24];

    (void)row;
    snprintf(text, sizeof text, "%" PRId64, *(const int64_t *)field);
    return strdup(text);
}

/* Seconds outside, milliseconds inside. What is more than nothing stays more than nothing. */
static enum dfl_status parse_seconds(const struct row *row, void *field, const char *value,
                                     struct dfl_error *err)
{
    double x;

    if (!parse_real(value, &x) || x < row->min || x > row->max)
        return refuse_range(err, row, "a number of seconds", "", value);

    int64_t ms = (int64_t)(x * 1000 + 0.5);

    *(int64_t *)field = ms == 0 && x > 0 ? 1 : ms;
    return DFL_OK;
}

static char *print_seconds(const struct row *row, const void *field)
{
    int64_t ms = *(const int64_t *)field;
    char text[32];

    (void)row;

    int n = snprintf(text, sizeof text, "%" PRId64 ".%03d", ms / 1000, (int)(ms % 1000));

    while (text[n - 1] == '0')
        text[--n] = '\0';
    if (text[n - 1] == '.')
        text[--n] = '\0';
    return strdup(text);
}

static enum dfl_status parse_patience(const struct row *row, void *field, const char *value,
                                      struct dfl_error *err)
{
    double x;

    if (parse_real(value, &x) && x == -1) {
        *(int64_t *)field = DFL_FOREVER;
        return DFL_OK;
    }
    if (parse_seconds(row, field, value, NULL) != DFL_OK)
        return refuse_range(err, row, "a number of seconds", ", or -1 for ever", value);
    return DFL_OK;
}

static char *print_patience(const struct row *row, const void *field)
{
    return *(const int64_t *)field == DFL_FOREVER ? strdup("-1") : print_seconds(row, field);
}

/* ----------------------------------------------------------------- choices */

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

static bool same_word(const char *a, const char *b)
{
    while (*a && lower(*a) == lower(*b)) {
        a++;
        b++;
    }
    return lower(*a) == lower(*b);
}

/* The field is an enum; the rule reads "one of off, on, insecure". */
static enum dfl_status parse_choice(const struct row *row, void *field, const char *value,
                                    struct dfl_error *err)
{
    char rule[128] = "one of";

    for (int i = 0; row->words[i]; i++) {
        if (same_word(value, row->words[i])) {
            memcpy(field, &i, sizeof i);
            return DFL_OK;
        }
        size_t len = strlen(rule);

        snprintf(rule + len, sizeof rule - len, "%s %s", i ? "," : "", row->words[i]);
    }
    return refuse(err, row, rule, value);
}

static char *print_choice(const struct row *row, const void *field)
{
    int i;

    memcpy(&i, field, sizeof i);
    return strdup(row->words[i]);
}

static const char *const tls_words[] = {
    [DFL_TLS_OFF] = "off", [DFL_TLS_ON] = "on", [DFL_TLS_INSECURE] = "insecure", NULL};
static const char *const fences_words[] = {
    [DFL_FENCES_AUTO] = "auto", [DFL_FENCES_ON] = "on", [DFL_FENCES_OFF] = "off", NULL};

_Static_assert(sizeof(enum dfl_tls_mode) == sizeof(int), "choices are stored as int");
_Static_assert(sizeof(enum dfl_fences) == sizeof(int), "choices are stored as int");

static enum dfl_status parse_switch(const struct row *row, void *field, const char *value,
                                    struct dfl_error *err)
{
    static const char *const words[] = {"off", "on", "false", "true", "no", "yes", "0", "1"};

    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        if (same_word(value, words[i])) {
            *(bool *)field = i % 2 == 1;
            return DFL_OK;
        }
    }
    return refuse(err, row, "on or off", value);
}

static char *print_switch(const struct row *row, const void *field)
{
    (void)row;
    return strdup(*(const bool *)field ? "on" : "off");
}

/* ------------------------------------------------------------------- texts */

static enum dfl_status parse_text(const struct row *row, void *field, const char *value,
                                  struct dfl_error *err)
{
    char *copy = strdup(value);

    (void)row;
    if (!copy)
        return no_memory(err);
    free(*(char **)field);
    *(char **)field = copy;
    return DFL_OK;
}

static char *print_text(const struct row *row, const void *field)
{
    (void)row;
    return strdup(*(char *const *)field);
}

static enum dfl_status parse_servers(const struct row *row, void *field, const char *value,
                                     struct dfl_error *err)
{
    struct dfl_server_address *list;
    size_t count;
    enum dfl_status status = dfl_servers_parse(value, &list, &count, err);

    if (status != DFL_OK)
        return status;
    free(list);
    return parse_text(row, field, value, err);
}

static enum dfl_status parse_prefix(const struct row *row, void *field, const char *value,
                                    struct dfl_error *err)
{
    enum dfl_status status = dfl_prefix_check(value, err);

    return status == DFL_OK ? parse_text(row, field, value, err) : status;
}

/* --------------------------------------------------------------- the table */

static const struct kind kind_servers = {parse_servers, print_text, true};
static const struct kind kind_prefix = {parse_prefix, print_text, true};
static const struct kind kind_text = {parse_text, print_text, true};
static const struct kind kind_choice = {parse_choice, print_choice, false};
static const struct kind kind_switch = {parse_switch, print_switch, false};
static const struct kind kind_seconds = {parse_seconds, print_seconds, false};
static const struct kind kind_patience = {parse_patience, print_patience, false};
static const struct kind kind_integer = {parse_integer, print_integer, false};
static const struct kind kind_ratio = {parse_ratio, print_ratio, false};

#define AT(field) offsetof(struct dfl_settings, field)

static const struct row rows[] = {
    {"servers", &kind_servers, AT(servers), 0, 0, "127.0.0.1:6388", NULL},
    {"auth_token_file", &kind_text, AT(auth_token_file), 0, 0, "", NULL},
    {"tls", &kind_choice, AT(tls), 0, 0, "off", tls_words},
    {"tls_ca", &kind_text, AT(tls_ca), 0, 0, "", NULL},
    {"tls_cert", &kind_text, AT(tls_cert), 0, 0, "", NULL},
    {"tls_key", &kind_text, AT(tls_key), 0, 0, "", NULL},
    {"tls_server_name", &kind_text, AT(tls_server_name), 0, 0, "", NULL},
    {"connect_timeout", &kind_seconds, AT(connect_timeout_ms), 0.1, 3600, "10", NULL},
    {"acquire_timeout", &kind_patience, AT(acquire_timeout_ms), 0, DFL_SECONDS_MAX, "10", NULL},
    {"lease_ttl", &kind_integer, AT(lease_ttl_s), 0, DFL_LEASE_MAX, "0", NULL},
    {"renew_ratio", &kind_ratio, AT(renew_ratio), 0.1, 0.8, "0.5", NULL},
    {"keepalive", &kind_seconds, AT(keepalive_ms), 0.1, 86400, "7", NULL},
    {"server_read_timeout", &kind_seconds, AT(server_read_timeout_ms), 1, 86400, "23", NULL},
    {"fences", &kind_choice, AT(fences), 0, 0, "auto", fences_words},
    {"release_wait", &kind_switch, AT(release_wait), 0, 0, "on", NULL},
    {"max_locks", &kind_integer, AT(max_locks), 1, 1000000, "10000", NULL},
    {"max_session_locks", &kind_integer, AT(max_session_locks), 0, INT32_MAX, "0", NULL},
    {"max_connections", &kind_integer, AT(max_connections), 4, 100000, "512", NULL},
    {"key_prefix", &kind_prefix, AT(key_prefix), 0, 0, "", NULL},
};

#define ROWS (sizeof rows / sizeof rows[0])

static void *field_of(struct dfl_settings *s, const struct row *row)
{
    return (char *)s + row->offset;
}

static const void *const_field_of(const struct dfl_settings *s, const struct row *row)
{
    return (const char *)s + row->offset;
}

static const struct row *find_row(const char *name, struct dfl_error *err)
{
    char shown[SHOWN_MAX];

    for (size_t i = 0; i < ROWS; i++)
        if (strcmp(rows[i].name, name) == 0)
            return &rows[i];
    dfl_escape(shown, sizeof shown, name, strlen(name));
    dfl_fail(err, DFL_INVALID, "there is no setting \"%s\"", shown);
    return NULL;
}

const char *dfl_settings_name(size_t i)
{
    return i < ROWS ? rows[i].name : NULL;
}

/* -------------------------------------------------------- life of a struct */

/* In a way that the compiler cannot leave out. */
static void wipe(char *secret, size_t len)
{
    volatile char *at = secret;

    while (len-- > 0)
        *at++ = 0;
}

static void free_secret(char *secret)
{
    if (secret)
        wipe(secret, strlen(secret));
    free(secret);
}

enum dfl_status dfl_settings_init(struct dfl_settings *s)
{
    struct dfl_settings new = {0};

    new.auth_token = strdup("");

    enum dfl_status status = new.auth_token ? DFL_OK : DFL_NOMEM;

    for (size_t i = 0; i < ROWS && status == DFL_OK; i++)
        status = rows[i].kind->parse(&rows[i], field_of(&new, &rows[i]), rows[i].initial, NULL);
    if (status != DFL_OK) {
        dfl_settings_free(&new);
        return status;
    }
    *s = new;
    return DFL_OK;
}

void dfl_settings_free(struct dfl_settings *s)
{
    for (size_t i = 0; i < ROWS; i++)
        if (rows[i].kind->owns_text)
            free(*(char **)field_of(s, &rows[i]));
    free_secret(s->auth_token);
    memset(s, 0, sizeof *s);
}

enum dfl_status dfl_settings_copy(struct dfl_settings *to, const struct dfl_settings *from)
{
    struct dfl_settings copy = *from;
    bool complete = true;

    for (size_t i = 0; i < ROWS; i++) {
        if (!rows[i].kind->owns_text)
            continue;

        char **field = field_of(&copy, &rows[i]);

        *field = strdup(*field);
        complete = complete && *field;
    }
    copy.auth_token = strdup(from->auth_token);
    if (!complete || !copy.auth_token) {
        dfl_settings_free(&copy);
        return DFL_NOMEM;
    }
    *to = copy;
    return DFL_OK;
}

enum dfl_status dfl_settings_set(struct dfl_settings *s, const char *name, const char *value,
                                 struct dfl_error *err)
{
    const struct row *row = find_row(name, err);

    if (!row)
        return DFL_INVALID;
    if (!value)
        return dfl_fail(err, DFL_NULL, "%s must not be NULL", name);
    return row->kind->parse(row, field_of(s, row), value, err);
}

enum dfl_status dfl_settings_get(const struct dfl_settings *s, const char *name, char **value,
                                 struct dfl_error *err)
{
    const struct row *row = find_row(name, err);

    if (!row)
        return DFL_INVALID;

    char *printed = row->kind->print(row, const_field_of(s, row));

    if (!printed)
        return no_memory(err);
    *value = printed;
    return DFL_OK;
}

int64_t dfl_settings_keepalive_ms(const struct dfl_settings *s)
{
    int64_t most = s->server_read_timeout_ms / 3;

    return s->keepalive_ms < most ? s->keepalive_ms : most;
}

/* --------------------------------------------------------- the login token */

/* What can be sent as one line, and comes out of the server's trimming as it went in. */
static enum dfl_status check_secret(const char *source, const char *secret, size_t len,
                                    struct dfl_error *err)
{
    if (len == 0)
        return dfl_fail(err, DFL_INVALID, "%s: the login token is empty", source);
    if (len > DFL_AUTH_LINE_MAX)
        return dfl_fail(err, DFL_INVALID, "%s: the login token is longer than %d bytes", source,
                        DFL_AUTH_LINE_MAX);
    for (size_t i = 0; i < len; i++)
        if (secret[i] == '\0' || strchr(" \t\n\v\f\r", secret[i]))
            return dfl_fail(err, DFL_INVALID,
                            "%s: the login token must not contain white space or NUL", source);
    return DFL_OK;
}

/* Reads at most cap bytes; *len == cap means that there may be more. */
static int read_all(int fd, char *buf, size_t cap, size_t *len)
{
    for (*len = 0; *len < cap;) {
        ssize_t n = read(fd, buf + *len, cap - *len);

        if (n == 0)
            break;
        if (n < 0 && errno != EINTR)
            return -1;
        if (n > 0)
            *len += (size_t)n;
    }
    return 0;
}

/* buf has room for the longest token, its line end, and a byte that shows that it was longer. */
static enum dfl_status read_secret_file(const char *path, char *buf, size_t cap,
                                        struct dfl_error *err)
{
    char source[DFL_ERROR_MAX];
    size_t len = 0;
    /* A pipe that nobody writes to must not stop the host. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    int failed = fd < 0 || read_all(fd, buf, cap - 1, &len) < 0 ? errno : 0;

    if (fd >= 0)
        close(fd);
    if (failed)
        return dfl_fail(err, DFL_INVALID, "read auth_token_file %s: %s", path, strerror(failed));
    if (len > 0 && buf[len - 1] == '\n')
        len--;
    if (len > 0 && buf[len - 1] == '\r')
        len--;
    snprintf(source, sizeof source, "auth_token_file %s", path);
    buf[len] = '\0';
    return check_secret(source, buf, len, err);
}

enum dfl_status dfl_settings_read_token(const struct dfl_settings *s, char **token,
                                        struct dfl_error *err)
{
    size_t cap = DFL_AUTH_LINE_MAX + 4;
    enum dfl_status status;

    if (!*s->auth_token_file && !*s->auth_token) {
        *token = NULL;
        return DFL_OK;
    }

    char *buf = calloc(1, cap);

    if (!buf)
        return no_memory(err);
    if (*s->auth_token_file)
        status = read_secret_file(s->auth_token_file, buf, cap, err);
    else
        status = check_secret("DFLOCK_AUTH_TOKEN", s->auth_token, strlen(s->auth_token), err);

    char *found = NULL;

    if (status == DFL_OK) {
        found = strdup(*s->auth_token_file ? buf : s->auth_token);
        if (!found)
            status = no_memory(err);
    }
    wipe(buf, cap);
    free(buf);
    if (status == DFL_OK)
        *token = found;
    return status;
}

/* ------------------------------------------------------------- environment */

/* Not in a program with more rights than its user: the variables name files and servers. */
static const char *from_environment(const char *variable)
{
#ifdef __GLIBC__
    const char *value = secure_getenv(variable);
#else
    const char *value = getenv(variable);
#endif

    return value && *value ? value : NULL;
}

static enum dfl_status set_from_environment(struct dfl_settings *s, const char *name,
                                            struct dfl_error *err)
{
    char variable[64] = "DFLOCK_";
    struct dfl_error reason;
    size_t len = strlen(variable);

    for (const char *c = name; *c && len < sizeof variable - 1; c++)
        variable[len++] = *c >= 'a' && *c <= 'z' ? (char)(*c - 'a' + 'A') : *c;
    variable[len] = '\0';

    const char *value = from_environment(variable);
    enum dfl_status status = value ? dfl_settings_set(s, name, value, &reason) : DFL_OK;

    return status == DFL_OK ? DFL_OK : dfl_fail(err, status, "%s: %s", variable, reason.text);
}

static enum dfl_status set_token_from_environment(struct dfl_settings *s, struct dfl_error *err)
{
    const char *value = from_environment("DFLOCK_AUTH_TOKEN");
    enum dfl_status status =
        value ? check_secret("DFLOCK_AUTH_TOKEN", value, strlen(value), err) : DFL_OK;

    if (!value || status != DFL_OK)
        return status;

    char *copy = strdup(value);

    if (!copy)
        return no_memory(err);
    free_secret(s->auth_token);
    s->auth_token = copy;
    return DFL_OK;
}

enum dfl_status dfl_settings_from_environment(struct dfl_settings *s, struct dfl_error *err)
{
    struct dfl_settings new;
    enum dfl_status status = dfl_settings_copy(&new, s);

    if (status != DFL_OK)
        return no_memory(err);
    for (size_t i = 0; i < ROWS && status == DFL_OK; i++)
        status = set_from_environment(&new, rows[i].name, err);
    if (status == DFL_OK)
        status = set_token_from_environment(&new, err);
    if (status != DFL_OK) {
        dfl_settings_free(&new);
        return status;
    }
    dfl_settings_free(s);
    *s = new;
    return DFL_OK;
}
