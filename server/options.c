/*
 * options.c - flags and environment as rows of one table, which is also what --help prints. Owns
 * the strings of struct options. Reads the file of the login token, and nothing else.
 */
#include "options.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum kind { TEXT, NUMBER, SECONDS, SWITCH, ANTI_SWITCH };

#define YEAR_S INT64_C(31536000)

static const struct option {
    const char *flag, *variable;
    enum kind kind;
    size_t offset;
    int64_t min, max; /* NUMBER: as given; SECONDS: in milliseconds */
    const char *initial, *help;
} table[] = {
    {"host", "DFLOCKD_HOST", TEXT, offsetof(struct options, host), 0, 0, "127.0.0.1",
     "name or address to listen on"},
    {"port", "DFLOCKD_PORT", NUMBER, offsetof(struct options, port), 0, 65535, "6388",
     "port to listen on; 0 = a free one, which is printed"},
    {"default-lease-ttl", "DFLOCKD_DEFAULT_LEASE_TTL_S", NUMBER,
     offsetof(struct options, default_lease_s), 1, DFL_SECONDS_MAX, "33",
     "lease in seconds of a request that names none"},
    {"lease-sweep-interval", "DFLOCKD_LEASE_SWEEP_INTERVAL_S", SECONDS,
     offsetof(struct options, lease_sweep_ms), 1, YEAR_S * 1000, "1",
     "accepted for compatibility: leases end exactly"},
    {"gc-interval", "DFLOCKD_GC_INTERVAL_S", SECONDS, offsetof(struct options, gc_interval_ms), 1,
     YEAR_S * 1000, "5", "how often idle keys are looked for"},
    {"gc-max-idle", "DFLOCKD_GC_MAX_IDLE_S", SECONDS, offsetof(struct options, gc_max_idle_ms), 1,
     YEAR_S * 1000, "60", "how long a key that nobody uses keeps its limit"},
    {"max-locks", "DFLOCKD_MAX_LOCKS", NUMBER, offsetof(struct options, max_locks), 1, UINT32_MAX,
     "1000000", "most keys, idle ones too"},
    {"max-connections", "DFLOCKD_MAX_CONNECTIONS", NUMBER,
     offsetof(struct options, max_connections), 0, UINT32_MAX, "0", "most connections; 0 = no cap"},
    {"max-waiters", "DFLOCKD_MAX_WAITERS", NUMBER, offsetof(struct options, max_waiters), 0,
     UINT32_MAX, "0", "most waiters of one key; 0 = no cap"},
    {"read-timeout", "DFLOCKD_READ_TIMEOUT_S", SECONDS, offsetof(struct options, read_timeout_ms),
     1, YEAR_S * 1000, "23", "a connection that asks nothing for so long is closed"},
    {"write-timeout", "DFLOCKD_WRITE_TIMEOUT_S", SECONDS,
     offsetof(struct options, write_timeout_ms), 0, YEAR_S * 1000, "5",
     "a client that takes none of its answers for so long is closed; 0 = never"},
    {"shutdown-timeout", "DFLOCKD_SHUTDOWN_TIMEOUT_S", SECONDS,
     offsetof(struct options, shutdown_timeout_ms), 0, YEAR_S * 1000, "30",
     "how long holders may renew and release after SIGTERM; 0 = as long as they like"},
    {"auto-release-on-disconnect", "DFLOCKD_AUTO_RELEASE_ON_DISCONNECT", SWITCH,
     offsetof(struct options, auto_release), 0, 0, "true",
     "a closed connection gives back what it holds"},
    {"no-auto-release-on-disconnect", NULL, ANTI_SWITCH, offsetof(struct options, auto_release), 0,
     0, NULL, "the opposite"},
    {"tls-cert", "DFLOCKD_TLS_CERT", TEXT, offsetof(struct options, tls_cert), 0, 0, NULL,
     "certificate chain (PEM); read again on SIGHUP"},
    {"tls-key", "DFLOCKD_TLS_KEY", TEXT, offsetof(struct options, tls_key), 0, 0, NULL,
     "its private key (PEM), not encrypted"},
    {"auth-token", "DFLOCKD_AUTH_TOKEN", TEXT, offsetof(struct options, auth_token), 0, 0, NULL,
     "login token; better in a file"},
    {"auth-token-file", "DFLOCKD_AUTH_TOKEN_FILE", TEXT, offsetof(struct options, auth_token_file),
     0, 0, NULL, "file with the login token"},
    {"fence-state-file", "DFLOCKD_FENCE_STATE_FILE", TEXT,
     offsetof(struct options, fence_state_file), 0, 0, NULL,
     "keeps fences growing, and old leases safe, over a crash"},
    {"no-recovery-wait", NULL, SWITCH, offsetof(struct options, no_recovery_wait), 0, 0, "false",
     "after a crash, grant before the leases of the last run are over"},
    {"debug", "DFLOCKD_DEBUG", SWITCH, offsetof(struct options, debug), 0, 0, "false", "log more"},
    {"version", NULL, SWITCH, offsetof(struct options, version), 0, 0, NULL,
     "print the version and end"},
    {"help", NULL, SWITCH, offsetof(struct options, help), 0, 0, NULL, "print this and end"},
};

#define OPTIONS (sizeof table / sizeof table[0])

/* ------------------------------------------------------------------ values */

static void *field(struct options *o, const struct option *row)
{
    return (char *)o + row->offset;
}

static bool set_text(struct options *o, const struct option *row, const char *value)
{
    char **text = field(o, row), *copy = strdup(value);

    if (!copy)
        return false;
    free(*text);
    *text = copy;
    return true;
}

static bool set_number(struct options *o, const struct option *row, const char *value)
{
    errno = 0;

    long long n = strtoll(value, NULL, 10);

    /* Digits alone: strtoll also takes white space and signs. */
    if (!*value || value[strspn(value, "0123456789")] || errno || n < row->min || n > row->max)
        return false;
    *(int64_t *)field(o, row) = n;
    return true;
}

/* Seconds with at most three decimals, kept in milliseconds. */
static bool set_seconds(struct options *o, const struct option *row, const char *value)
{
    int64_t ms = 0;
    int decimals = -1;

    for (const char *p = value; *p; p++) {
        if (*p == '.' && decimals < 0 && p > value) {
            decimals = 0;
            continue;
        }
        if (*p < '0' || *p > '9' || decimals >= 3 || ms > row->max)
            return false;
        ms = ms * 10 + (*p - '0');
        decimals += decimals >= 0;
    }
    for (int i = decimals < 0 ? 0 : decimals; i < 3; i++)
        ms *= 10;
    if (!*value || decimals == 0 || ms < row->min || ms > row->max)
        return false;
    *(int64_t *)field(o, row) = ms;
    return true;
}

static bool set_switch(struct options *o, const struct option *row, const char *value)
{
    static const char *const yes[] = {"true", "1", "yes", "on"}, *const no[] = {"false", "0", "no",
                                                                                "off"};

    for (size_t i = 0; i < 4; i++) {
        bool is_yes = strcasecmp(value, yes[i]) == 0;

        if (!is_yes && strcasecmp(value, no[i]) != 0)
            continue;
        *(bool *)field(o, row) = is_yes != (row->kind == ANTI_SWITCH);
        return true;
    }
    return false;
}

static bool (*const set_value[])(struct options *, const struct option *,
                                 const char *) = {[TEXT] = set_text,
                                                  [NUMBER] = set_number,
                                                  [SECONDS] = set_seconds,
                                                  [SWITCH] = set_switch,
                                                  [ANTI_SWITCH] = set_switch};

static void print_seconds(char *out, size_t cap, int64_t ms)
{
    if (ms % 1000)
        snprintf(out, cap, "%" PRId64 ".%03d", ms / 1000, (int)(ms % 1000));
    else
        snprintf(out, cap, "%" PRId64, ms / 1000);
}

/* The rule of a row, in words. */
static void rule_of(const struct option *row, char *out, size_t cap)
{
    char min[32], max[32];

    if (row->kind == NUMBER) {
        snprintf(out, cap, "a whole number from %" PRId64 " to %" PRId64, row->min, row->max);
    } else if (row->kind == SECONDS) {
        print_seconds(min, sizeof min, row->min);
        print_seconds(max, sizeof max, row->max);
        snprintf(out, cap, "seconds from %s to %s", min, max);
    } else {
        snprintf(out, cap, "%s", row->kind == TEXT ? "text" : "true or false");
    }
}

/* `name` is the flag or variable that it came from. */
static enum dfl_status set_option(struct options *o, const struct option *row, const char *name,
                                  const char *value, struct dfl_error *err)
{
    char rule[96];

    if (set_value[row->kind](o, row, value))
        return DFL_OK;
    rule_of(row, rule, sizeof rule);
    return dfl_fail(err, DFL_INVALID, "%s must be %s, not \"%.100s\"", name, rule, value);
}

/* ----------------------------------------------------------------- sources */

static enum dfl_status read_defaults(struct options *o, struct dfl_error *err)
{
    for (size_t i = 0; i < OPTIONS; i++) {
        const struct option *row = &table[i];
        enum dfl_status status =
            row->initial ? set_option(o, row, row->flag, row->initial, err) : DFL_OK;

        if (status != DFL_OK)
            return status;
    }
    return DFL_OK;
}

static enum dfl_status read_environment(struct options *o, const bool *flagged,
                                        struct dfl_error *err)
{
    for (size_t i = 0; i < OPTIONS; i++) {
        const struct option *row = &table[i];
        const char *value = row->variable ? getenv(row->variable) : NULL;

        if (!value || !*value || flagged[row->offset])
            continue;

        enum dfl_status status = set_option(o, row, row->variable, value, err);

        if (status != DFL_OK)
            return status;
    }
    return DFL_OK;
}

static const struct option *find_flag(const char *name, size_t len)
{
    for (size_t i = 0; i < OPTIONS; i++)
        if (strlen(table[i].flag) == len && memcmp(table[i].flag, name, len) == 0)
            return &table[i];
    return NULL;
}

/* One flag; *at is its place in argv, moved to its last word. */
static enum dfl_status read_flag(struct options *o, int argc, char **argv, int *at, bool *flagged,
                                 struct dfl_error *err)
{
    char *word = argv[*at], shown[64];
    const char *name = word + strspn(word, "-");
    size_t len = strcspn(name, "=");
    const struct option *row = name - word >= 1 && name - word <= 2 ? find_flag(name, len) : NULL;
    char *value = name[len] ? word + (name - word) + len + 1 : NULL;

    if (!row) /* what stands behind the `=` may be a secret */
        return dfl_fail(err, DFL_INVALID, "unknown argument \"%.*s\" (see --help)",
                        (int)(strcspn(word, "=") < 100 ? strcspn(word, "=") : 100), word);
    snprintf(shown, sizeof shown, "--%s", row->flag);
    if (!value && (row->kind == SWITCH || row->kind == ANTI_SWITCH))
        value = "true";
    if (!value && *at + 1 >= argc)
        return dfl_fail(err, DFL_INVALID, "%s needs a value", shown);
    if (!value)
        value = argv[++*at];

    enum dfl_status status = set_option(o, row, shown, value, err);

    flagged[row->offset] = true;
    if (row->offset == offsetof(struct options, auth_token))
        memset(value, '*', strlen(value)); /* the list of processes is no place for it */
    return status;
}

/* ------------------------------------------------------------------- token */

static void wipe(char *text)
{
    if (!text)
        return;
    for (volatile char *p = text; *p; p++)
        *p = 0;
    free(text);
}

/* The core reads login token files the same way for clients. */
static enum dfl_status read_token_file(struct options *o, struct dfl_error *err)
{
    struct dfl_settings s;
    struct dfl_error why;
    char *token = NULL;
    enum dfl_status status = dfl_settings_init(&s);

    if (status != DFL_OK)
        return dfl_fail(err, status, "out of memory");
    status = dfl_settings_set(&s, "auth_token_file", o->auth_token_file, &why);
    if (status == DFL_OK)
        status = dfl_settings_read_token(&s, &token, &why);
    dfl_settings_free(&s);
    if (status != DFL_OK) {
        static const char setting[] = "auth_token_file ";
        const char *at = strstr(why.text, setting);

        return dfl_fail(err, DFL_INVALID, "--auth-token-file %s",
                        at ? at + strlen(setting) : why.text);
    }
    wipe(o->auth_token);
    o->auth_token = token;
    return DFL_OK;
}

/* Flags before environment, and of one source the token before the file. */
static enum dfl_status choose_token(struct options *o, const bool *flagged, struct dfl_error *err)
{
    bool by_flag = flagged[offsetof(struct options, auth_token)];
    bool file_by_flag = flagged[offsetof(struct options, auth_token_file)];

    if (by_flag && file_by_flag)
        return dfl_fail(err, DFL_INVALID, "--auth-token and --auth-token-file exclude each other");
    if (by_flag && !*o->auth_token)
        return dfl_fail(err, DFL_INVALID, "--auth-token must not be empty");
    if (o->auth_token_file && *o->auth_token_file && (file_by_flag || !o->auth_token))
        return read_token_file(o, err);
    if (o->auth_token && (strlen(o->auth_token) > 65536 || strpbrk(o->auth_token, " \t\r\n")))
        return dfl_fail(err, DFL_INVALID,
                        "--auth-token must be at most 65536 bytes without white space");
    return DFL_OK;
}

static bool given(const char *text)
{
    return text && *text;
}

static enum dfl_status check_together(const struct options *o, struct dfl_error *err)
{
    if (given(o->tls_cert) != given(o->tls_key))
        return dfl_fail(err, DFL_INVALID, "--tls-cert and --tls-key must be given together");
    return DFL_OK;
}

enum dfl_status options_read(struct options *o, int argc, char **argv, struct dfl_error *err)
{
    bool flagged[sizeof(struct options)] = {false}; /* by offset */

    *o = (struct options){0};

    enum dfl_status status = read_defaults(o, err);

    for (int i = 1; i < argc && status == DFL_OK; i++)
        status = read_flag(o, argc, argv, &i, flagged, err);
    if (status == DFL_OK && (o->help || o->version))
        return DFL_OK;
    if (status == DFL_OK)
        status = read_environment(o, flagged, err);
    if (status == DFL_OK)
        status = choose_token(o, flagged, err);
    if (status == DFL_OK)
        status = check_together(o, err);
    return status;
}

void options_free(struct options *o)
{
    free(o->host);
    free(o->tls_cert);
    free(o->tls_key);
    wipe(o->auth_token);
    free(o->auth_token_file);
    free(o->fence_state_file);
    *o = (struct options){0};
}

void options_print_help(void)
{
    printf(
        "dflockd-local: the lock server of dflockd for SQL, for one host, tests and first steps\n\n"
        "usage: dflockd-local [--flag value | --flag=value]...\n\n");
    for (size_t i = 0; i < OPTIONS; i++) {
        const struct option *row = &table[i];

        printf("  --%-30s %s%s%s%s\n", row->flag, row->help, row->initial ? " (" : "",
               row->initial ? row->initial : "", row->initial ? ")" : "");
        if (row->variable)
            printf("    %s\n", row->variable);
    }
    printf("\nA flag wins over the environment variable under it, which wins over the default in "
           "brackets. Times are in\n"
           "seconds. SIGTERM or SIGINT: drain and end; a second one: end at once. SIGHUP: read the "
           "certificate again.\n");
}
