/*
 * settings.c - dflock_config(): which settings a connection may read and change.
 *
 * Syntax and ranges are the core's business; who may set what is ours. SQL text may come from a
 * place that must not choose where the login token is sent, or whom TLS trusts: those come from the
 * environment only.
 */
#include "settings.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "process.h"
#include "session.h"

struct rule {
    const char *name;
    const char *refusal; /* behind "setting NAME " */
};

static const char from_environment[] = "comes from the environment only";

static const struct rule rules[] = {
    {"auth_token_file", from_environment},
    {"tls", from_environment},
    {"tls_ca", from_environment},
    {"tls_cert", from_environment},
    {"tls_key", from_environment},
    {"tls_server_name", from_environment},
    {"max_locks",
     "is for the whole process and comes from the environment variable DFLOCK_MAX_LOCKS only"},
    {"max_connections", "does not apply to SQLite"},
};

static bool has_login(const struct sq_session *s)
{
    return s->settings.auth_token_file[0] || s->settings.auth_token[0];
}

static enum dfl_status check_settable(const struct sq_session *s, const char *name,
                                      struct dfl_error *err)
{
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++)
        if (strcmp(rules[i].name, name) == 0)
            return dfl_fail(err, DFL_INVALID, "setting %s %s", name, rules[i].refusal);
    if (strcmp(name, "servers") == 0 && has_login(s))
        return dfl_fail(err, DFL_INVALID, "setting servers %s once a login token is configured",
                        from_environment);
    return DFL_OK;
}

enum dfl_status sq_settings_get(struct sq_session *s, const char *name, char **value,
                                struct dfl_error *err)
{
    if (strcmp(name, "max_locks") != 0)
        return dfl_settings_get(&s->settings, name, value, err);
    char text[32];
    snprintf(text, sizeof text, "%lld", (long long)sq_process_max_locks());
    *value = strdup(text);
    return *value ? DFL_OK : dfl_fail(err, DFL_NOMEM, "out of memory");
}

enum dfl_status sq_settings_set(struct sq_session *s, const char *name, const char *value,
                                struct dfl_error *err)
{
    struct dfl_settings old;
    enum dfl_status status = check_settable(s, name, err);

    if (status == DFL_OK && dfl_settings_copy(&old, &s->settings) != DFL_OK)
        status = dfl_fail(err, DFL_NOMEM, "out of memory");
    if (status != DFL_OK)
        return status;
    status = dfl_settings_set(&s->settings, name, value, err);
    if (status == DFL_OK)
        status = sq_session_configure(s, err);
    if (status != DFL_OK) {
        struct dfl_settings refused = s->settings;
        s->settings = old;
        old = refused;
    }
    dfl_settings_free(&old);
    return status;
}
