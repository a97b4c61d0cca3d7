/*
 * compat.h - every difference between PostgreSQL 13 and 18 that this extension meets.
 *
 * No other file of pg_ext looks at PG_VERSION_NUM. What a version lacks is given a meaning here, so that the code
 * elsewhere reads the same for all of them.
 */
#ifndef DFL_PG_COMPAT_H
#define DFL_PG_COMPAT_H

#include "postgres.h"

#include <poll.h>

#include "catalog/pg_authid.h"
#include "common/jsonapi.h"
#include "libpq/libpq.h"
#include "libpq/libpq-be.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "postmaster/autovacuum.h"
#include "replication/walsender.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "tcop/tcopprot.h"
#include "tcop/utility.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#if PG_VERSION_NUM >= 180000
#include "storage/waiteventset.h"
#endif
#if PG_VERSION_NUM >= 140000
#include "utils/wait_event.h"
#else
#include "pgstat.h"
#endif

/* PostgreSQL's own word for it moved and changed its name in 18. */
#define COMPAT_NORETURN __attribute__((noreturn))

/* ------------------------------------------------------------ slots of backends */

/* This process's place among all that can have a slot; always below the number of slots (slot_count). */
static inline uint32
compat_slot_index(void)
{
#if PG_VERSION_NUM >= 170000
	return (uint32) MyProcNumber;
#else
	return (uint32) MyProc->pgprocno;
#endif
}

static inline Latch *
compat_proc_latch(uint32 index)
{
	return &GetPGProcByNumber(index)->procLatch;
}

/* Slots that shared memory must have: MaxBackends, which 13 and 14 compute only after libraries are preloaded. */
static inline uint32
compat_slot_count(void)
{
#if PG_VERSION_NUM >= 150000
	return (uint32) MaxBackends;
#else
	return (uint32) (MaxConnections + autovacuum_max_workers + 1 + max_worker_processes + max_wal_senders);
#endif
}

/* ------------------------------------------------------------- shared memory */

/* 15 and later want the size asked for in a hook of its own; before, in _PG_init. */
#if PG_VERSION_NUM >= 150000
#define COMPAT_SHMEM_REQUEST_HOOK 1
#endif

/* --------------------------------------------------------------- wait events */

static inline WaitEventSet *
compat_wait_set_new(int nevents)
{
#if PG_VERSION_NUM >= 170000
	return CreateWaitEventSet(NULL, nevents);
#else
	return CreateWaitEventSet(TopMemoryContext, nevents);
#endif
}

/* The number of a wait event with a name of ours; older versions show "Extension". */
static inline uint32
compat_wait_event(uint32 *cache, const char *name)
{
#if PG_VERSION_NUM >= 170000
	if (*cache == 0)
		*cache = WaitEventExtensionNew(name);
	return *cache;
#else
	(void) cache;
	(void) name;
	return PG_WAIT_EXTENSION;
#endif
}

/* Can a wait set report that the client has closed its end? */
static inline bool
compat_can_watch_client(void)
{
#if PG_VERSION_NUM >= 150000
	return WaitEventSetCanReportClosed();
#else
	return false;
#endif
}

#if PG_VERSION_NUM >= 150000
#define COMPAT_SOCKET_CLOSED WL_SOCKET_CLOSED
#else
#define COMPAT_SOCKET_CLOSED 0	/* never used: compat_can_watch_client() is false */
#endif

/* Without that, the question to ask now and then. It may reset the process latch. */
static inline bool
compat_client_lives(void)
{
#if PG_VERSION_NUM >= 140000
	return pq_check_connection();
#else
	struct pollfd pollfd = {.fd = MyProcPort->sock, .events = POLLRDHUP};

	return poll(&pollfd, 1, 0) <= 0;
#endif
}

/* Ends this session, because its client is gone: at its next CHECK_FOR_INTERRUPTS, or (13) at once. */
static inline void
compat_client_is_gone(void)
{
#if PG_VERSION_NUM >= 140000
	ClientConnectionLost = true;
	InterruptPending = true;
#else
	whereToSendOutput = DestNone;
	ereport(FATAL, (errcode(ERRCODE_CONNECTION_FAILURE), errmsg("connection to client lost")));
#endif
}

/* ------------------------------------------------------------------ settings */

static inline void
compat_reserve_prefix(const char *prefix)
{
#if PG_VERSION_NUM >= 150000
	MarkGUCPrefixReserved(prefix);
#else
	EmitWarningsOnPlaceholders(prefix);
#endif
}

/* -------------------------------------------------------------------- roles */

#if PG_VERSION_NUM >= 140000
#define COMPAT_ROLE_MONITOR ROLE_PG_MONITOR
#else
#define COMPAT_ROLE_MONITOR DEFAULT_ROLE_MONITOR
#endif

/* ----------------------------------------------------------- utility commands */

#if PG_VERSION_NUM >= 140000
#define COMPAT_UTILITY_PARAMETERS \
	PlannedStmt *pstmt, const char *queryString, bool readOnlyTree, ProcessUtilityContext context, \
	ParamListInfo params, QueryEnvironment *queryEnv, DestReceiver *dest, QueryCompletion *qc
#define COMPAT_UTILITY_ARGUMENTS pstmt, queryString, readOnlyTree, context, params, queryEnv, dest, qc
#else
#define COMPAT_UTILITY_PARAMETERS \
	PlannedStmt *pstmt, const char *queryString, ProcessUtilityContext context, \
	ParamListInfo params, QueryEnvironment *queryEnv, DestReceiver *dest, QueryCompletion *qc
#define COMPAT_UTILITY_ARGUMENTS pstmt, queryString, context, params, queryEnv, dest, qc
#endif

/* ----------------------------------------------------------------- encodings */

/*
 * Converts the bytes of one character by the conversion function `proc`. False when the other encoding has no such
 * character. dest needs room for MAX_CONVERSION_GROWTH bytes per source byte and a NUL.
 */
static inline bool
compat_convert(Oid proc, int from, int to, const char *src, int len, char *dest, int dest_size)
{
#if PG_VERSION_NUM >= 140000
	return pg_do_encoding_conversion_buf(proc, from, to, (unsigned char *) unconstify(char *, src), len,
										 (unsigned char *) dest, dest_size, true) == len;
#else
	MemoryContext context = CurrentMemoryContext;
	volatile bool ok = true;

	(void) dest_size;
	PG_TRY();
	{
		OidFunctionCall5(proc, Int32GetDatum(from), Int32GetDatum(to), CStringGetDatum(src),
						 CStringGetDatum(dest), Int32GetDatum(len));
	}
	PG_CATCH();
	{
		/* A conversion function holds nothing that an abort would have to give back. */
		MemoryContextSwitchTo(context);
		FlushErrorState();
		ok = false;
	}
	PG_END_TRY();
	return ok;
#endif
}

/* ---------------------------------------------------------------------- JSON */

/* Is this JSON, in the encoding of the database? */
static inline bool
compat_is_json(char *text, int len)
{
	JsonLexContext *lex;

#if PG_VERSION_NUM >= 170000
	lex = makeJsonLexContextCstringLen(NULL, text, len, GetDatabaseEncoding(), false);
#else
	lex = makeJsonLexContextCstringLen(text, len, GetDatabaseEncoding(), false);
#endif
	return pg_parse_json(lex, &nullSemAction) == JSON_SUCCESS;
}

#endif
