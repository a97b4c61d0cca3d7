/*
 * init.c - what happens when the library is loaded. Preloaded, it defines the settings, asks for shared memory, installs
 * the hooks and registers the worker. Otherwise it stays silent, so that CREATE EXTENSION, pg_restore and pg_upgrade
 * work everywhere; the functions say what is missing when they are called.
 */
#include "compat.h"
#include "backend.h"
#include "settings.h"
#include "worker.h"

#include "fmgr.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT void _PG_init(void);

void
_PG_init(void)
{
	if (!process_shared_preload_libraries_in_progress)
		return;
	dfl_settings_define();
	dfl_shmem_init();
	dfl_xact_init();
	/* A binary upgrade runs nothing of its own; a single process can run nothing beside itself. */
	if (!IsBinaryUpgrade && IsUnderPostmaster == false && IsPostmasterEnvironment)
		dfl_worker_register();
}
