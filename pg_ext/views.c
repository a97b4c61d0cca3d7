/*
 * views.c - what can be looked at: dflock_locks(), dflock_servers(), dflock_stats(), dflock_ping(), dflock_version().
 * The views of the same names are made of these in the extension's script.
 *
 * dflock_locks reads shared memory only and needs no worker; dflock_servers asks the worker what it knows and dials
 * nothing; dflock_stats and dflock_ping ask every server.
 */
#include "backend.h"
#include "settings.h"

#include <math.h>

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "datatype/timestamp.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

/* ------------------------------------------------------------------- result sets */

/* Where the rows of a set-returning function go. */
struct rows
{
	Tuplestorestate *store;
	TupleDesc	desc;
};

static struct rows
begin_rows(FunctionCallInfo fcinfo)
{
	ReturnSetInfo *info = (ReturnSetInfo *) fcinfo->resultinfo;
	struct rows rows;
	MemoryContext old;

	if (info == NULL || !IsA(info, ReturnSetInfo) || (info->allowedModes & SFRM_Materialize) == 0)
		ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						errmsg("set-valued function called in context that cannot accept a set")));
	old = MemoryContextSwitchTo(info->econtext->ecxt_per_query_memory);
	if (get_call_result_type(fcinfo, NULL, &rows.desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	rows.desc = BlessTupleDesc(rows.desc);
	rows.store = tuplestore_begin_heap(true, false, work_mem);
	info->returnMode = SFRM_Materialize;
	info->setResult = rows.store;
	info->setDesc = rows.desc;
	MemoryContextSwitchTo(old);
	return rows;
}

static Datum
text_datum(const char *text)
{
	return CStringGetTextDatum(text);
}

static Datum
time_datum(int64 wall_ms)
{
	int64		epoch_s = (int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY;

	return TimestampTzGetDatum((wall_ms - epoch_s * 1000) * 1000);
}

/* A monotonic moment, on the wall. */
static Datum
moment_datum(struct dfl_now now, int64 ms)
{
	return time_datum(now.wall_ms + (ms - now.ms));
}

/* ------------------------------------------------------------------ dflock_locks */

enum
{
	LOCKS_PID, LOCKS_KEY, LOCKS_KIND, LOCKS_SCOPE, LOCKS_STATE, LOCKS_SLOTS, LOCKS_FENCE, LOCKS_LEASE,
	LOCKS_ACQUIRED_AT, LOCKS_EXPIRES_AT, LOCKS_RENEWED_AT, LOCKS_RENEWALS, LOCKS_LAST_ERROR, LOCKS_SERVER,
	LOCKS_BLOCKED_BY_PIDS, LOCKS_COLUMNS
};

/* A copy of an entry, as it is true at the time of reading. */
struct seen
{
	struct dfl_hold_data data;
	int64		deadline_ms;
};

struct listing
{
	struct dfl_now now;
	uint64		worker;
	struct seen **seen;			/* all that exist */
	uint32		count;
	struct seen **held;			/* of those, held, in order of key */
	uint32		held_count;
	char	   *prefix;			/* the reader's own, UTF-8 */
	int			prefix_len;
};

/* What shared memory says may be older than what the clock says. */
static void
correct_state(const struct listing *l, struct seen *s)
{
	struct dfl_hold_data *d = &s->data;

	if (d->worker != l->worker && d->state != DFL_STATE_LOST)
	{
		d->state = DFL_STATE_LOST;
		strlcpy(d->last_error, "the dflockd worker ended", sizeof(d->last_error));
	}
	else if (d->state == DFL_HELD && l->now.ms >= s->deadline_ms)
	{
		d->state = DFL_STATE_LOST;
		snprintf(d->last_error, sizeof(d->last_error), "no confirmed renewal from %.200s before the deadline", d->server);
	}
}

static int
compare_keys(const void *a, const void *b)
{
	const struct dfl_hold_data *x = &(*(struct seen *const *) a)->data;
	const struct dfl_hold_data *y = &(*(struct seen *const *) b)->data;
	int			order = memcmp(x->key, y->key, Min(x->key_len, y->key_len));

	return order != 0 ? order : x->key_len - y->key_len;
}

static void
copy_entries(struct listing *l)
{
	uint32		n = dfl_shared->entry_count;

	l->seen = MemoryContextAllocHuge(CurrentMemoryContext, (n + 1) * sizeof(*l->seen));
	l->held = MemoryContextAllocHuge(CurrentMemoryContext, (n + 1) * sizeof(*l->held));
	for (uint32 i = 0; i < n; i++)
	{
		struct seen *s;
		struct seen copy;

		if (dfl_entry_read(i, &copy.data, &copy.deadline_ms) == 0)
			continue;
		s = palloc(sizeof(*s));
		*s = copy;
		correct_state(l, s);
		l->seen[l->count++] = s;
		if (s->data.state == DFL_HELD)
			l->held[l->held_count++] = s;
	}
	qsort(l->held, l->held_count, sizeof(*l->held), compare_keys);
}

static void
begin_listing(struct listing *l)
{
	memset(l, 0, sizeof(*l));
	l->now = dfl_clock();
	l->worker = dfl_live_worker();
	l->prefix = pg_server_to_any(dfl_key_prefix, (int) strlen(dfl_key_prefix), PG_UTF8);
	l->prefix_len = (int) strlen(l->prefix);
	copy_entries(l);
}

/* The key as the reader knows it: without the prefix that is put before the reader's own keys. */
static Datum
key_datum(const struct listing *l, const struct dfl_hold_data *d)
{
	int			cut = 0;

	if (d->key_len > l->prefix_len && memcmp(d->key, l->prefix, l->prefix_len) == 0)
		cut = l->prefix_len;
	return text_datum(dfl_text_from_wire(d->key + cut, (size_t) (d->key_len - cut)));
}

/* Those who hold the key that s waits for, each once. */
static Datum
holders_datum(const struct listing *l, struct seen *s)
{
	Datum	   *pids = palloc((l->held_count + 1) * sizeof(*pids));
	uint32		low = 0;
	uint32		high = l->held_count;
	int			n = 0;

	while (low < high)
	{
		uint32		middle = low + (high - low) / 2;

		if (compare_keys(&l->held[middle], &s) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	for (; low < l->held_count && compare_keys(&l->held[low], &s) == 0; low++)
	{
		Datum		pid = Int32GetDatum(l->held[low]->data.pid);
		int			i = 0;

		while (i < n && pids[i] != pid)
			i++;
		if (i == n)
			pids[n++] = pid;
	}
	return PointerGetDatum(construct_array(pids, n, INT4OID, sizeof(int32), true, TYPALIGN_INT));
}

/* A time or number that some states do not have. */
static void
set_if(bool there, Datum value, Datum *values, bool *nulls, int column)
{
	values[column] = value;
	nulls[column] = !there;
}

static void
put_lock(struct rows *rows, const struct listing *l, struct seen *s)
{
	const struct dfl_hold_data *d = &s->data;
	bool		held = d->state == DFL_HELD;
	bool		waits = d->state == DFL_TRYING || d->state == DFL_QUEUED || d->state == DFL_CONFIRMING;
	Datum		values[LOCKS_COLUMNS];
	bool		nulls[LOCKS_COLUMNS] = {false};

	values[LOCKS_PID] = Int32GetDatum(d->pid);
	values[LOCKS_KEY] = key_datum(l, d);
	values[LOCKS_KIND] = text_datum(d->kind == DFL_LOCK ? "lock" : "semaphore");
	values[LOCKS_SCOPE] = text_datum(d->scope == DFL_SCOPE_SESSION ? "session" : "xact");
	values[LOCKS_STATE] = text_datum(dfl_state_name(d->state));
	values[LOCKS_SLOTS] = Int64GetDatum(d->slots);
	set_if(held && d->fence >= 0, Int64GetDatum(d->fence), values, nulls, LOCKS_FENCE);
	set_if(held, Int32GetDatum((int32) Min(d->lease_s, INT_MAX)), values, nulls, LOCKS_LEASE);
	set_if(d->acquired_wall_ms > 0, time_datum(d->acquired_wall_ms), values, nulls, LOCKS_ACQUIRED_AT);
	set_if(held, moment_datum(l->now, s->deadline_ms), values, nulls, LOCKS_EXPIRES_AT);
	set_if(d->renewed_ms > 0, moment_datum(l->now, d->renewed_ms), values, nulls, LOCKS_RENEWED_AT);
	values[LOCKS_RENEWALS] = Int64GetDatum(d->renewals);
	set_if(d->last_error[0] != '\0', text_datum(dfl_text_from_wire(d->last_error, strlen(d->last_error))), values, nulls,
		   LOCKS_LAST_ERROR);
	values[LOCKS_SERVER] = text_datum(dfl_text_from_wire(d->server, strlen(d->server)));
	nulls[LOCKS_BLOCKED_BY_PIDS] = !waits;
	if (waits)
		values[LOCKS_BLOCKED_BY_PIDS] = holders_datum(l, s);
	tuplestore_putvalues(rows->store, rows->desc, values, nulls);
}

static bool
is_mine(const struct dfl_hold_data *d)
{
	return d->slot == dfl_my_slot() && d->session == dfl_my_session();
}

PG_FUNCTION_INFO_V1(dflock_locks);
Datum
dflock_locks(PG_FUNCTION_ARGS)
{
	bool		all = has_privs_of_role(GetUserId(), COMPAT_ROLE_MONITOR);
	struct rows rows;
	struct listing l;

	dfl_attach();
	rows = begin_rows(fcinfo);
	begin_listing(&l);
	for (uint32 i = 0; i < l.count; i++)
		if (all || is_mine(&l.seen[i]->data))
			put_lock(&rows, &l, l.seen[i]);
	return (Datum) 0;
}

/* ---------------------------------------------------------------- dflock_servers */

struct server_rows
{
	struct rows rows;
	struct dfl_now now;
};

static void
put_server(void *arg, const struct dfl_row *row, const char *address, const char *error, const char *body)
{
	struct server_rows *s = arg;
	Datum		values[6];
	bool		nulls[6] = {false};

	values[0] = text_datum(address);
	values[1] = text_datum(dfl_server_state_name((enum dfl_server_state) row->state));
	values[2] = Int32GetDatum((int32) row->connections);
	set_if(row->round_trip_us >= 0 && row->state != DFL_SERVER_UNUSED, Float8GetDatum((double) row->round_trip_us / 1000),
		   values, nulls, 3);
	set_if(error[0] != '\0', text_datum(error), values, nulls, 4);
	set_if(row->since_ms > 0, moment_datum(s->now, row->since_ms), values, nulls, 5);
	tuplestore_putvalues(s->rows.store, s->rows.desc, values, nulls);
}

PG_FUNCTION_INFO_V1(dflock_servers);
Datum
dflock_servers(PG_FUNCTION_ARGS)
{
	struct server_rows s;
	StringInfoData data;

	s.rows = begin_rows(fcinfo);
	dfl_ask_rows(DFL_OP_SERVERS, &data);
	s.now = dfl_clock();
	dfl_each_row(&data, put_server, &s);
	return (Datum) 0;
}

/* ------------------------------------------------------------------- dflock_ping */

static void
put_ping(void *arg, const struct dfl_row *row, const char *address, const char *error, const char *body)
{
	struct rows *rows = arg;
	Datum		values[3];
	bool		nulls[3] = {false};

	values[0] = text_datum(address);
	set_if(row->status == DFL_OK, Float8GetDatum((double) row->round_trip_us / 1000), values, nulls, 1);
	set_if(row->status != DFL_OK, text_datum(error), values, nulls, 2);
	tuplestore_putvalues(rows->store, rows->desc, values, nulls);
}

PG_FUNCTION_INFO_V1(dflock_ping);
Datum
dflock_ping(PG_FUNCTION_ARGS)
{
	struct rows rows = begin_rows(fcinfo);
	StringInfoData data;

	dfl_ask_rows(DFL_OP_PING, &data);
	dfl_each_row(&data, put_ping, &rows);
	return (Datum) 0;
}

/* ------------------------------------------------------------------ dflock_stats */

/* A server's own answer as it is; a server that gave none, or no JSON, has an object with the reason. */
static void
append_stats(void *arg, const struct dfl_row *row, const char *address, const char *error, const char *body)
{
	StringInfo	json = arg;
	char	   *text = dfl_json_from_wire(body, row->body_len);

	appendStringInfoChar(json, json->len == 0 ? '{' : ',');
	escape_json(json, address);
	appendStringInfoChar(json, ':');
	if (row->status == DFL_OK && compat_is_json(text, (int) strlen(text)))
		appendStringInfoString(json, text);
	else
	{
		appendStringInfoString(json, "{\"error\":");
		escape_json(json, row->status == DFL_OK ? "the answer to stats is no JSON" : error);
		appendStringInfoChar(json, '}');
	}
	pfree(text);
}

PG_FUNCTION_INFO_V1(dflock_stats);
Datum
dflock_stats(PG_FUNCTION_ARGS)
{
	StringInfoData data;
	StringInfoData json;

	dfl_ask_rows(DFL_OP_STATS, &data);
	initStringInfo(&json);
	dfl_each_row(&data, append_stats, &json);
	appendStringInfoString(&json, json.len == 0 ? "{}" : "}");
	PG_RETURN_DATUM(DirectFunctionCall1(jsonb_in, CStringGetDatum(json.data)));
}

/* ---------------------------------------------------------------- dflock_version */

#ifdef __clang__
#define COMPILER "clang " __clang_version__
#else
#define COMPILER "gcc " __VERSION__
#endif

PG_FUNCTION_INFO_V1(dflock_version);
Datum
dflock_version(PG_FUNCTION_ARGS)
{
	const char *running = GetConfigOption("server_version", false, false);

	PG_RETURN_TEXT_P(cstring_to_text(psprintf("dflockd %s for PostgreSQL, core %s, %s, built by %s with PostgreSQL %s, "
											  "running in PostgreSQL %s", DFL_VERSION, DFL_VERSION, dfl_tls_library(),
											  COMPILER, PG_VERSION, running)));
}
