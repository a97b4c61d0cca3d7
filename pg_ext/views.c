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
#include "common/hashfn.h"
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
	uint32		entry;
	struct dfl_hold_data data;
	int64		deadline_ms;
};

/* Where a held key is to be found. There may be a million: it is small. */
struct held_at
{
	uint32		hash;
	uint32		entry;
};

struct listing
{
	struct dfl_now now;
	struct held_at *held;		/* in order of hash; NULL: nobody has asked yet */
	uint32		held_count;
	char	   *prefix;			/* the reader's own, UTF-8 */
	int			prefix_len;
};

/* What shared memory says may be older than what the clock says. */
static void
correct_state(const struct listing *l, struct seen *s)
{
	struct dfl_hold_data *d = &s->data;

	if (d->worker != dfl_live_worker() && d->state != DFL_STATE_LOST)
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

/* False: the entry is free. */
static bool
see(const struct listing *l, uint32 entry, struct seen *s)
{
	CHECK_FOR_INTERRUPTS();
	if (dfl_entry_read(entry, &s->data, &s->deadline_ms) == 0)
		return false;
	s->entry = entry;
	correct_state(l, s);
	return true;
}

static uint32
hash_of(const struct dfl_hold_data *d)
{
	return hash_bytes((const unsigned char *) d->key, d->key_len);
}

static int
compare_hashes(const void *a, const void *b)
{
	uint32		x = ((const struct held_at *) a)->hash;
	uint32		y = ((const struct held_at *) b)->hash;

	return (x > y) - (x < y);
}

/* Once, for the first row that waits. */
static void
find_held(struct listing *l, MemoryContext context)
{
	struct seen s;

	l->held = MemoryContextAllocHuge(context, ((Size) dfl_shared->entry_count + 1) * sizeof(*l->held));
	for (uint32 i = 0; i < dfl_shared->entry_count; i++)
		if (see(l, i, &s) && s.data.state == DFL_HELD)
		{
			l->held[l->held_count].hash = hash_of(&s.data);
			l->held[l->held_count++].entry = i;
		}
	qsort(l->held, l->held_count, sizeof(*l->held), compare_hashes);
}

static void
begin_listing(struct listing *l)
{
	memset(l, 0, sizeof(*l));
	l->now = dfl_clock();
	l->prefix = pg_server_to_any(dfl_key_prefix, (int) strlen(dfl_key_prefix), PG_UTF8);
	l->prefix_len = (int) strlen(l->prefix);
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

/* Still held, and the key that s waits for; not s itself, granted meanwhile. */
static bool
holds_key_of(const struct listing *l, uint32 entry, const struct seen *s, int *pid)
{
	struct seen holder;

	if (entry == s->entry || !see(l, entry, &holder) || holder.data.state != DFL_HELD ||
		holder.data.key_len != s->data.key_len || memcmp(holder.data.key, s->data.key, s->data.key_len) != 0)
		return false;
	*pid = holder.data.pid;
	return true;
}

static int
compare_pids(const void *a, const void *b)
{
	int32		x = DatumGetInt32(*(const Datum *) a);
	int32		y = DatumGetInt32(*(const Datum *) b);

	return (x > y) - (x < y);
}

/* Those who hold the key that s waits for, each once. */
static Datum
holders_datum(const struct listing *l, const struct seen *s)
{
	uint32		hash = hash_of(&s->data);
	uint32		low = 0;
	uint32		high = l->held_count;
	uint32		end;
	Datum	   *pids;
	int			n = 0;
	int			distinct = 0;
	int			pid;

	while (low < high)
	{
		uint32		middle = low + (high - low) / 2;

		if (l->held[middle].hash < hash)
			low = middle + 1;
		else
			high = middle;
	}
	for (end = low; end < l->held_count && l->held[end].hash == hash;)
		end++;
	pids = MemoryContextAllocHuge(CurrentMemoryContext, ((Size) (end - low) + 1) * sizeof(*pids));
	for (; low < end; low++)
		if (holds_key_of(l, l->held[low].entry, s, &pid))
			pids[n++] = Int32GetDatum(pid);
	qsort(pids, n, sizeof(*pids), compare_pids);
	for (int i = 0; i < n; i++)
		if (distinct == 0 || pids[distinct - 1] != pids[i])
			pids[distinct++] = pids[i];
	return PointerGetDatum(construct_array(pids, distinct, INT4OID, sizeof(int32), true, TYPALIGN_INT));
}

/* A time or number that some states do not have. */
static void
set_if(bool there, Datum value, Datum *values, bool *nulls, int column)
{
	values[column] = value;
	nulls[column] = !there;
}

static bool
waits(const struct seen *s)
{
	return s->data.state == DFL_TRYING || s->data.state == DFL_QUEUED || s->data.state == DFL_CONFIRMING;
}

static void
put_lock(struct rows *rows, const struct listing *l, const struct seen *s)
{
	const struct dfl_hold_data *d = &s->data;
	bool		held = d->state == DFL_HELD;
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
	nulls[LOCKS_BLOCKED_BY_PIDS] = !waits(s);
	if (waits(s))
		values[LOCKS_BLOCKED_BY_PIDS] = holders_datum(l, s);
	tuplestore_putvalues(rows->store, rows->desc, values, nulls);
}

static bool
is_mine(const struct dfl_hold_data *d)
{
	return d->slot == dfl_my_slot() && d->session == dfl_my_session();
}

/* Row by row: of a row nothing stays but what the tuple store may write to a file. */
static void
put_locks(struct rows *rows, bool all)
{
	MemoryContext outer = CurrentMemoryContext;
	MemoryContext row = AllocSetContextCreate(outer, "dflock_locks row", ALLOCSET_SMALL_SIZES);
	struct listing l;
	struct seen s;

	begin_listing(&l);
	for (uint32 i = 0; i < dfl_shared->entry_count; i++)
	{
		if (!see(&l, i, &s) || !(all || is_mine(&s.data)))
			continue;
		if (l.held == NULL && waits(&s))
			find_held(&l, outer);
		MemoryContextSwitchTo(row);
		put_lock(rows, &l, &s);
		MemoryContextSwitchTo(outer);
		MemoryContextReset(row);
	}
	MemoryContextDelete(row);
}

PG_FUNCTION_INFO_V1(dflock_locks);
Datum
dflock_locks(PG_FUNCTION_ARGS)
{
	bool		all = has_privs_of_role(GetUserId(), COMPAT_ROLE_MONITOR);
	struct rows rows;

	dfl_attach();
	rows = begin_rows(fcinfo);
	put_locks(&rows, all);
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

	s.rows = begin_rows(fcinfo);
	s.now = dfl_clock();
	dfl_ask_rows(DFL_OP_SERVERS, put_server, &s);
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

	dfl_ask_rows(DFL_OP_PING, put_ping, &rows);
	return (Datum) 0;
}

/* ------------------------------------------------------------------ dflock_stats */

/*
 * What jsonb can hold is less than what JSON can say, and its input function raises: for the depth of an array, for a
 * number, for the size of the whole. One server's answer must not take away those of all others.
 */
#define STATS_DEPTH 100
#define STATS_NUMBER 100		/* characters of a number */
#define STATS_EXPONENT 4		/* characters of its exponent: up to e-999 */
#define STATS_VALUES 8000000	/* of all servers; 32 bytes each while jsonb is made of them */
#define STATS_TEXT (128 << 20)	/* bytes, likewise */

struct stats_text
{
	StringInfoData json;
	size_t		values;			/* commas, so far */
};

/* The length of the string that begins here, its quotes included. */
static size_t
string_length(const char *text, size_t left)
{
	size_t		n = 1;

	while (n < left && text[n] != '"')
		n += text[n] == '\\' ? 2 : 1;
	return Min(n + 1, left);
}

static bool
is_in_number(char c)
{
	return (c >= '0' && c <= '9') || c == '+' || c == '-' || c == '.' || c == 'e' || c == 'E';
}

/* Likewise of the number; 0: it is too large, or too small. */
static size_t
number_length(const char *text, size_t left)
{
	size_t		n = 0;
	size_t		exponent = 0;

	for (; n < left && is_in_number(text[n]); n++)
		if (exponent > 0 || text[n] == 'e' || text[n] == 'E')
			exponent++;
	return n > STATS_NUMBER || exponent > STATS_EXPONENT + 1 ? 0 : n;
}

/* Looks at the text only as far as it is JSON; what is none is found out later. NULL, or why jsonb cannot hold it. */
static const char *
why_not_jsonb(const struct stats_text *s, const char *text, size_t len, size_t *values)
{
	int			depth = 0;

	for (size_t i = 0, n; i < len; i += n)
	{
		n = 1;
		if (text[i] == '"')
			n = string_length(text + i, len - i);
		else if (text[i] == '-' || (text[i] >= '0' && text[i] <= '9'))
			n = number_length(text + i, len - i);
		else if (text[i] == '[' || text[i] == '{')
			depth++;
		else if (text[i] == ']' || text[i] == '}')
			depth--;
		else if (text[i] == ',')
			++*values;
		if (n == 0)
			return "the answer to stats has a number out of range";
		if (depth > STATS_DEPTH)
			return "the answer to stats is nested too deeply";
	}
	if (s->values + *values > STATS_VALUES || (size_t) s->json.len + len > STATS_TEXT)
		return "the answer to stats is too long";
	return NULL;
}

/* A server's own answer as it is; a server that gave none, or no JSON, has an object with the reason. */
static void
append_stats(void *arg, const struct dfl_row *row, const char *address, const char *error, const char *body)
{
	struct stats_text *s = arg;
	StringInfo	json = &s->json;
	char	   *text = dfl_json_from_wire(body, row->body_len);
	size_t		values = 0;
	const char *reason = row->status != DFL_OK ? error : why_not_jsonb(s, text, strlen(text), &values);

	if (reason == NULL && !compat_is_json(text, (int) strlen(text)))
		reason = "the answer to stats is no JSON";
	appendStringInfoChar(json, json->len == 0 ? '{' : ',');
	escape_json(json, address);
	appendStringInfoChar(json, ':');
	if (reason == NULL)
	{
		appendStringInfoString(json, text);
		s->values += values;
	}
	else
	{
		appendStringInfoString(json, "{\"error\":");
		escape_json(json, reason);
		appendStringInfoChar(json, '}');
	}
	pfree(text);
}

PG_FUNCTION_INFO_V1(dflock_stats);
Datum
dflock_stats(PG_FUNCTION_ARGS)
{
	struct stats_text s;

	memset(&s, 0, sizeof(s));
	initStringInfo(&s.json);
	dfl_ask_rows(DFL_OP_STATS, append_stats, &s);
	appendStringInfoString(&s.json, s.json.len == 0 ? "{}" : "}");
	PG_RETURN_DATUM(DirectFunctionCall1(jsonb_in, CStringGetDatum(s.json.data)));
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
