/*
 * settings.h - dflock_config(): which settings a connection may read and change.
 */
#ifndef DFL_SQLITE_SETTINGS_H
#define DFL_SQLITE_SETTINGS_H

#include "../core/dflockd.h"

struct sq_session;

/* Value as text, malloc'd. */
enum dfl_status sq_settings_get(struct sq_session *s, const char *name, char **value,
                                struct dfl_error *err);

/* Sets it for this connection, all or nothing. Refuses what comes from the environment only. */
enum dfl_status sq_settings_set(struct sq_session *s, const char *name, const char *value,
                                struct dfl_error *err);

#endif
