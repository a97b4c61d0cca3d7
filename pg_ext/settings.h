/*
 * settings.h - the settings of the extension as variables of this process, `dflockd.NAME` each.
 */
#ifndef DFL_PG_SETTINGS_H
#define DFL_PG_SETTINGS_H

#include "postgres.h"

#include "dflockd.h"

/* Read by backends at call time. */
extern double dfl_acquire_timeout;	/* seconds, -1 = for ever */
extern int	dfl_lease_ttl;		/* seconds, 0 = the server's */
extern bool dfl_release_wait;
extern int	dfl_max_session_locks;	/* 0 = no cap */
extern char *dfl_key_prefix;	/* in the encoding of the database */
extern double dfl_connect_timeout;	/* seconds */

/* Fixed when the server starts. */
extern int	dfl_max_locks;
extern int	dfl_max_connections;

extern void dfl_settings_define(void);	/* in _PG_init, preloaded only */

/* All of them as the engine wants them, for the worker. The caller frees *s by dfl_settings_free. */
extern enum dfl_status dfl_settings_gather(struct dfl_settings *s, struct dfl_error *err);

/* The default wait of this session, in ms or DFL_FOREVER. */
extern int64 dfl_acquire_timeout_ms(void);

#endif
