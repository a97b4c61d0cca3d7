/*
 * functions.c - the SQL functions and procedures about locks:
 *
 *   dflock_acquire  dflock_lock  dflock_sem_acquire  dflock_sem_lock, the same with dflock_xact_
 *   dflock_take  dflock_sem_take (procedures)  dflock_enqueue  dflock_sem_enqueue  dflock_wait  dflock_sem_wait
 *   dflock_cancel  dflock_release  dflock_sem_release  dflock_release_all  dflock_renew  dflock_is_held
 *   dflock_assert_held  dflock_token  dflock_lease  dflock_fence  dflock_token_fence
 *
 * They read arguments, ask the worker, and keep the session's own list of holds in step with what it does. The rules are
 * the engine's, so that both databases have the same; what the session knows better is only that its worker is gone.
 */
#include "backend.h"
#include "settings.h"

#include "access/xact.h"
#include "fmgr.h"
#include "nodes/parsenodes.h"
#include "utils/builtins.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"

/* -------------------------------------------------------------------- arguments */

static void
raise_if(enum dfl_status status, const struct dfl_error *err)
{
	if (status != DFL_OK)
		dfl_raise(err, NULL);
}

static COMPAT_NORETURN void
raise_null(const char *name)
{
	struct dfl_error err;

	dfl_fail(&err, DFL_NULL, "%s must not be NULL", name);
	dfl_raise(&err, NULL);
}

/* The first argument: a key, in UTF-8 and with its prefix. Every function begins with it, and so attaches here. */
static void
read_key(FunctionCallInfo fcinfo, struct dfl_slot_request *r)
{
	struct dfl_error err;
	char	   *prefix;
	char	   *key;
	char	   *wire;
	size_t		len;

	memset(r, 0, sizeof(*r));
	if (PG_ARGISNULL(0))
		raise_null("key");
	dfl_attach();
	key = text_to_cstring(PG_GETARG_TEXT_PP(0));
	wire = pg_server_to_any(key, (int) strlen(key), PG_UTF8);
	prefix = pg_server_to_any(dfl_key_prefix, (int) strlen(dfl_key_prefix), PG_UTF8);
	raise_if(dfl_key_join(prefix, wire, strlen(wire), r->key, &len, &err), &err);
	r->key_len = (int) len;
	r->slots = 1;
}

static void
read_slots(FunctionCallInfo fcinfo, int n, struct dfl_slot_request *r)
{
	struct dfl_error err;

	if (PG_ARGISNULL(n))
		raise_null("slots");
	r->slots = PG_GETARG_INT64(n);
	raise_if(dfl_slots_check(r->slots, &err), &err);
}

static void
read_timeout(FunctionCallInfo fcinfo, int n, struct dfl_slot_request *r)
{
	struct dfl_error err;
	int64_t		ms = dfl_acquire_timeout_ms();

	if (!PG_ARGISNULL(n))
		raise_if(dfl_timeout_check(PG_GETARG_FLOAT8(n), &ms, &err), &err);
	r->timeout_ms = ms;
	r->lock_timeout_ms = LockTimeout;
}

static void
read_lease(FunctionCallInfo fcinfo, int n, int64 otherwise, struct dfl_slot_request *r)
{
	struct dfl_error err;

	r->lease_s = otherwise;
	if (PG_ARGISNULL(n))
		return;
	r->lease_s = PG_GETARG_INT32(n);
	raise_if(dfl_lease_check(r->lease_s, &err), &err);
}

static void
read_token(FunctionCallInfo fcinfo, int n, char token[DFL_TOKEN_LEN + 1])
{
	struct dfl_error err;
	char	   *given;

	if (PG_ARGISNULL(n))
		raise_null("token");
	given = text_to_cstring(PG_GETARG_TEXT_PP(n));
	raise_if(dfl_token_check(given, strlen(given), &err), &err);
	strlcpy(token, given, DFL_TOKEN_LEN + 1);
}

/* Key, slots where there are some, timeout, lease. */
static void
read_acquire(FunctionCallInfo fcinfo, enum dfl_kind kind, enum dfl_scope scope, struct dfl_slot_request *r)
{
	int			next = 1;

	read_key(fcinfo, r);
	r->op = DFL_OP_ACQUIRE;
	r->kind = kind;
	r->scope = scope;
	if (kind == DFL_SEMAPHORE)
		read_slots(fcinfo, next++, r);
	read_timeout(fcinfo, next++, r);
	read_lease(fcinfo, next, dfl_lease_ttl, r);
}

/* --------------------------------------------------------------------- acquiring */

/* What an earlier worker took with it is told here; what this one lost, by the engine. */
struct settling
{
	struct dfl_slot_request *request;
	struct dfl_error untold;	/* status DFL_OK: none */
};

/* What was told as lost is: the worker may have got a late confirmation of it since. */
static void
settle_told(struct dfl_slot_request *r, struct dfl_own *own)
{
	if (own->scope == DFL_SCOPE_SESSION)
	{
		dfl_own_give_back(own);
		return;
	}
	r->told = own->hold;
	r->told_entry = own->entry;
}

static void
settle(void *arg, struct dfl_own *own)
{
	struct settling *s = arg;

	if (!dfl_own_orphaned(own))
	{
		if (own->told)
			settle_told(s->request, own);
		return;
	}
	if (!own->place && !own->told)
	{
		dfl_own_check(own, s->untold.text, sizeof(s->untold.text));
		s->untold.status = DFL_LOST;
		own->told = true;
	}
	/* A lost transaction lock stays until its transaction ends: it refuses the commit. */
	if (own->scope == DFL_SCOPE_SESSION)
		dfl_own_give_back(own);
}

static void
settle_losses(struct dfl_slot_request *r)
{
	struct settling s = {r, {DFL_OK, ""}};

	dfl_own_each_of(r->key, r->key_len, settle, &s);
	dfl_marks_ring();
	if (s.untold.status != DFL_OK)
		dfl_raise(&s.untold, NULL);
}

/* What the engine has told or forgotten in passing is forgotten here too. */
static void
forget(void *arg, struct dfl_own *own)
{
	if (own->scope == DFL_SCOPE_SESSION && dfl_own_forgotten(own))
		dfl_own_drop(own);
}

/* The session gave up before it saw the answer. */
static void
undo_acquire(void *arg, const struct dfl_slot_result *result, bool taken)
{
	struct dfl_own *own = arg;

	/* A repeated transaction lock answers with the hold that was there before. */
	if (result != NULL && result->error.status == DFL_OK &&
		dfl_own_by_hold(result->hold, own->key, own->key_len) == NULL)
		dfl_entry_mark(result->entry, result->hold);
	dfl_own_free(own);
}

/* Granted is said of what is still held now. */
static void
require_held(struct dfl_own *own)
{
	struct dfl_error err;

	if (dfl_own_check(own, err.text, sizeof(err.text)) == DFL_OWN_HELD)
		return;
	own->told = true;
	err.status = DFL_LOST;
	dfl_raise(&err, NULL);
}

/* Asks for a lock or slot, or a place. NULL: not granted in time, the error of that in *busy. */
static struct dfl_own *
acquire(struct dfl_slot_request *r, struct dfl_error *busy)
{
	struct dfl_own *own;
	struct dfl_own *had;
	const struct dfl_slot_result *result;

	r->worker = dfl_live_worker();
	settle_losses(r);
	own = dfl_own_new(r->key, r->key_len, r->kind, r->scope);
	result = dfl_ask(r, &(struct dfl_undo){undo_acquire, own});
	dfl_own_each_of(r->key, r->key_len, forget, NULL);
	if (result->error.status != DFL_OK)
	{
		*busy = result->error;
		dfl_own_free(own);
		if (busy->status != DFL_TIMEOUT)
			dfl_raise(busy, NULL);
		return NULL;
	}
	had = dfl_own_by_hold(result->hold, r->key, r->key_len);
	if (had != NULL)
		dfl_own_free(own);
	else
		dfl_own_add(own, result);
	own = had ? had : own;
	if (!own->place)
		require_held(own);
	return own;
}

static Datum
return_acquired(FunctionCallInfo fcinfo, enum dfl_kind kind, enum dfl_scope scope)
{
	struct dfl_slot_request r;
	struct dfl_error busy;

	read_acquire(fcinfo, kind, scope, &r);
	PG_RETURN_BOOL(acquire(&r, &busy) != NULL);
}

static Datum
return_fence(FunctionCallInfo fcinfo, enum dfl_kind kind, enum dfl_scope scope)
{
	struct dfl_slot_request r;
	struct dfl_error busy;
	struct dfl_own *own;

	read_acquire(fcinfo, kind, scope, &r);
	own = acquire(&r, &busy);
	if (own == NULL)
		dfl_raise(&busy, NULL);
	PG_RETURN_INT64(own->fence);
}

/*
 * Outside an atomic context no snapshot need be held while we wait: it would hold back VACUUM and CREATE INDEX
 * CONCURRENTLY. This is what COMMIT in a procedure does with them.
 */
static Datum
take(FunctionCallInfo fcinfo, enum dfl_kind kind)
{
	struct dfl_slot_request r;
	struct dfl_error busy;

	read_acquire(fcinfo, kind, DFL_SCOPE_SESSION, &r);
	if (fcinfo->context != NULL && IsA(fcinfo->context, CallContext) && !((CallContext *) fcinfo->context)->atomic)
	{
		ForgetPortalSnapshots();
		InvalidateCatalogSnapshot();
	}
	if (acquire(&r, &busy) == NULL)
		dfl_raise(&busy, NULL);
	PG_RETURN_VOID();
}

#define ACQUIRING(name, function, ...) \
	PG_FUNCTION_INFO_V1(name); \
	Datum \
	name(PG_FUNCTION_ARGS) \
	{ \
		return function(fcinfo, __VA_ARGS__); \
	}

ACQUIRING(dflock_acquire, return_acquired, DFL_LOCK, DFL_SCOPE_SESSION)
ACQUIRING(dflock_lock, return_fence, DFL_LOCK, DFL_SCOPE_SESSION)
ACQUIRING(dflock_sem_acquire, return_acquired, DFL_SEMAPHORE, DFL_SCOPE_SESSION)
ACQUIRING(dflock_sem_lock, return_fence, DFL_SEMAPHORE, DFL_SCOPE_SESSION)
ACQUIRING(dflock_xact_acquire, return_acquired, DFL_LOCK, DFL_SCOPE_XACT)
ACQUIRING(dflock_xact_lock, return_fence, DFL_LOCK, DFL_SCOPE_XACT)
ACQUIRING(dflock_xact_sem_acquire, return_acquired, DFL_SEMAPHORE, DFL_SCOPE_XACT)
ACQUIRING(dflock_xact_sem_lock, return_fence, DFL_SEMAPHORE, DFL_SCOPE_XACT)
ACQUIRING(dflock_take, take, DFL_LOCK)
ACQUIRING(dflock_sem_take, take, DFL_SEMAPHORE)

/* -------------------------------------------------------------------- two phases */

static Datum
enqueue(FunctionCallInfo fcinfo, enum dfl_kind kind)
{
	struct dfl_slot_request r;
	struct dfl_error busy;
	struct dfl_own *own;
	int			next = 1;

	read_key(fcinfo, &r);
	r.op = DFL_OP_ENQUEUE;
	r.kind = kind;
	r.scope = DFL_SCOPE_SESSION;
	if (kind == DFL_SEMAPHORE)
		read_slots(fcinfo, next++, &r);
	read_lease(fcinfo, next, dfl_lease_ttl, &r);
	own = acquire(&r, &busy);
	if (own == NULL)
		dfl_raise(&busy, NULL);
	PG_RETURN_TEXT_P(cstring_to_text(own->place ? "queued" : "acquired"));
}

ACQUIRING(dflock_enqueue, enqueue, DFL_LOCK)
ACQUIRING(dflock_sem_enqueue, enqueue, DFL_SEMAPHORE)

/* A wait that is cancelled gives its place up, however far it had come. */
static void
undo_wait(void *arg, const struct dfl_slot_result *result, bool taken)
{
	struct dfl_own *own = arg;

	if (own != NULL && own->place)
		dfl_own_give_back(own);
}

/* An earlier worker took the place, or what had come of it, with it. */
static COMPAT_NORETURN void
raise_orphaned_turn(struct dfl_own *own)
{
	struct dfl_error err;

	if (own->place)
	{
		dfl_fail(&err, DFL_BROKEN, "the place for %s \"%s\" was lost: the dflockd worker ended",
				 own->kind == DFL_LOCK ? "lock" : "semaphore", own->key);
		dfl_own_give_back(own);
		dfl_marks_ring();
	}
	else
	{
		dfl_own_check(own, err.text, sizeof(err.text));
		err.status = DFL_LOST;
		own->told = true;
	}
	dfl_raise(&err, NULL);
}

static Datum
wait_turn(FunctionCallInfo fcinfo, enum dfl_kind kind)
{
	struct dfl_slot_request r;
	const struct dfl_slot_result *result;
	struct dfl_error err;
	struct dfl_own *own;

	read_key(fcinfo, &r);
	r.op = DFL_OP_WAIT;
	r.kind = kind;
	read_timeout(fcinfo, 1, &r);
	r.worker = dfl_live_worker();
	own = dfl_own_find_place(r.key, r.key_len, kind);
	if (own == NULL)
		own = dfl_own_find(r.key, r.key_len, kind, DFL_SCOPE_SESSION);
	if (own != NULL && dfl_own_orphaned(own))
		raise_orphaned_turn(own);
	result = dfl_ask(&r, &(struct dfl_undo){undo_wait, own});
	err = result->error;
	/* Also when the place has died since this was found: the next wait tells. */
	if (err.status == DFL_TIMEOUT)
		PG_RETURN_BOOL(false);
	if (err.status == DFL_OK && own == NULL)
	{
		/* Both sides keep the same list. Should they ever not: nothing is held that the session does not know. */
		dfl_entry_mark(result->entry, result->hold);
		dfl_fail(&err, DFL_INTERNAL, "the worker answered for a place that this session does not know");
	}
	else if (err.status != DFL_OK && own != NULL && own->place && result->yes)
		dfl_own_give_back(own);
	dfl_marks_ring();
	if (err.status != DFL_OK || own == NULL)
		dfl_raise(&err, NULL);
	if (own->place)
		dfl_own_granted(own, result);
	require_held(own);
	PG_RETURN_BOOL(true);
}

ACQUIRING(dflock_wait, wait_turn, DFL_LOCK)
ACQUIRING(dflock_sem_wait, wait_turn, DFL_SEMAPHORE)

/* ------------------------------------------------------------------- giving back */

/*
 * What is given back is gone for the session from the sending on. A request that the worker which has the hold never took
 * is replaced by a mark; one that it took may not be, because several slots of a semaphore answer to one key.
 */
struct giving_back
{
	uint32		entry;
	uint64		hold;			/* 0: none of this session's */
	uint64		worker;
};

static void
undo_give_back(void *arg, const struct dfl_slot_result *result, bool taken)
{
	struct giving_back *g = arg;

	if (g->hold != 0 && (!taken || g->worker != dfl_live_worker()))
		dfl_entry_mark(g->entry, g->hold);
}

/* Asks with the session's own hold (NULL: none) already forgotten. */
static const struct dfl_slot_result *
ask_giving_back(struct dfl_slot_request *r, struct dfl_own *own)
{
	struct giving_back g = {0, 0, 0};
	const struct dfl_slot_result *result;

	if (own != NULL)
	{
		g.entry = own->entry;
		g.hold = own->hold;
		g.worker = own->worker;
		dfl_own_drop(own);
	}
	result = dfl_ask(r, &(struct dfl_undo){undo_give_back, &g});
	/* Lost, or left by an earlier worker, it may still be there: what the session forgets is forgotten. */
	if (g.hold != 0 && dfl_entry_mark(g.entry, g.hold))
		dfl_marks_ring();
	return result;
}

/* True, or false with a warning; everything else is an error. Told as lost, it was not held, whatever the worker says. */
static Datum
return_released(const struct dfl_error *error, bool told)
{
	struct dfl_error err = *error;

	if (err.status == DFL_OK && told)
		dfl_fail(&err, DFL_NOT_HELD, "what was given back had been lost before");
	if (err.status == DFL_NOT_HELD)
		dfl_warn(err.text);
	else if (err.status != DFL_OK)
		dfl_raise(&err, NULL);
	PG_RETURN_BOOL(err.status == DFL_OK);
}

static Datum
release(FunctionCallInfo fcinfo, enum dfl_kind kind)
{
	struct dfl_slot_request r;
	struct dfl_own *own;
	struct dfl_error err;

	read_key(fcinfo, &r);
	r.op = DFL_OP_RELEASE;
	r.kind = kind;
	r.wait_answer = dfl_release_wait;
	own = dfl_own_find(r.key, r.key_len, kind, DFL_SCOPE_SESSION);
	if (own != NULL && !dfl_release_wait && dfl_own_check(own, NULL, 0) == DFL_OWN_HELD)
	{
		/* Nothing to wait for: as at the end of a transaction. */
		dfl_own_give_back(own);
		dfl_marks_ring();
		PG_RETURN_BOOL(true);
	}
	if (own == NULL || (!own->told && !dfl_own_orphaned(own)))
		return return_released(&ask_giving_back(&r, own)->error, false);
	/* Lost for good. What this worker may still have of it goes by its mark. */
	dfl_own_check(own, err.text, sizeof(err.text));
	err.status = DFL_NOT_HELD;
	dfl_own_give_back(own);
	dfl_marks_ring();
	return return_released(&err, true);
}

ACQUIRING(dflock_release, release, DFL_LOCK)
ACQUIRING(dflock_sem_release, release, DFL_SEMAPHORE)

static Datum
release_token(FunctionCallInfo fcinfo, enum dfl_kind kind)
{
	struct dfl_slot_request r;
	struct dfl_own *own;
	bool		told;

	read_key(fcinfo, &r);
	read_token(fcinfo, 1, r.token);
	r.op = DFL_OP_RELEASE_TOKEN;
	r.kind = kind;
	r.wait_answer = dfl_release_wait;
	own = dfl_own_find_token(r.key, r.key_len, kind, r.token);
	told = own != NULL && own->told;
	/* The engine says why not, and a loss stays to be told, or told. */
	if (own != NULL && (own->scope == DFL_SCOPE_XACT || told ||
						(!dfl_own_orphaned(own) && dfl_own_check(own, NULL, 0) != DFL_OWN_HELD)))
		own = NULL;
	return return_released(&ask_giving_back(&r, own)->error, told);
}

ACQUIRING(dflock_release_token, release_token, DFL_LOCK)
ACQUIRING(dflock_sem_release_token, release_token, DFL_SEMAPHORE)

static void
undo_release_all(void *arg, const struct dfl_slot_result *result, bool taken)
{
	dfl_own_give_back_all();
}

PG_FUNCTION_INFO_V1(dflock_release_all);
Datum
dflock_release_all(PG_FUNCTION_ARGS)
{
	struct dfl_slot_request r;
	const struct dfl_slot_result *result;

	memset(&r, 0, sizeof(r));
	r.op = DFL_OP_RELEASE_ALL;
	r.wait_answer = dfl_release_wait;
	result = dfl_ask(&r, &(struct dfl_undo){undo_release_all, NULL});
	dfl_own_drop_all();
	if (result->error.status != DFL_OK)
		dfl_raise(&result->error, NULL);
	PG_RETURN_INT32((int32) result->seconds);
}

PG_FUNCTION_INFO_V1(dflock_cancel);
Datum
dflock_cancel(PG_FUNCTION_ARGS)
{
	struct dfl_slot_request r;
	struct dfl_own *own;

	read_key(fcinfo, &r);
	r.op = DFL_OP_CANCEL;
	own = dfl_own_find_place(r.key, r.key_len, DFL_ANY_KIND);
	if (own == NULL)
		PG_RETURN_BOOL(false);
	if (dfl_own_orphaned(own))
	{
		dfl_own_give_back(own);
		dfl_marks_ring();
		PG_RETURN_BOOL(false);
	}
	PG_RETURN_BOOL(ask_giving_back(&r, own)->yes);
}

/* ----------------------------------------------------------------------- holding */

static COMPAT_NORETURN void
raise_lost(struct dfl_own *own, const char *text)
{
	struct dfl_error err;

	own->told = true;
	dfl_fail(&err, DFL_LOST, "%s", text);
	dfl_raise(&err, NULL);
}

/* The hold of a key, or an error: not held, or lost to an earlier worker, or told as lost before. */
static struct dfl_own *
require_own(struct dfl_slot_request *r)
{
	struct dfl_own *own = dfl_own_find(r->key, r->key_len, DFL_ANY_KIND, DFL_ANY_SCOPE);
	struct dfl_error err;

	r->worker = dfl_live_worker();
	if (own == NULL)
	{
		dfl_fail(&err, DFL_NOT_HELD, "\"%s\" is not held by this session", r->key);
		dfl_raise(&err, NULL);
	}
	if (dfl_own_orphaned(own) || own->told)
	{
		dfl_own_check(own, err.text, sizeof(err.text));
		raise_lost(own, err.text);
	}
	return own;
}

/* Seconds left, by the server's word. */
static int64
renew(struct dfl_slot_request *r, struct dfl_own *own)
{
	const struct dfl_slot_result *result;

	r->op = DFL_OP_RENEW;
	result = dfl_ask(r, NULL);
	if (result->error.status == DFL_LOST)
		own->told = true;
	if (result->error.status != DFL_OK)
		dfl_raise(&result->error, NULL);
	return result->seconds;
}

PG_FUNCTION_INFO_V1(dflock_renew);
Datum
dflock_renew(PG_FUNCTION_ARGS)
{
	struct dfl_slot_request r;

	read_key(fcinfo, &r);
	read_lease(fcinfo, 1, 0, &r);
	PG_RETURN_INT32((int32) renew(&r, require_own(&r)));
}

PG_FUNCTION_INFO_V1(dflock_assert_held);
Datum
dflock_assert_held(PG_FUNCTION_ARGS)
{
	struct dfl_slot_request r;
	struct dfl_own *own;
	char		text[DFL_ERROR_MAX];

	read_key(fcinfo, &r);
	if (PG_ARGISNULL(1))
		raise_null("verify");
	own = require_own(&r);
	if (dfl_own_check(own, text, sizeof(text)) != DFL_OWN_HELD)
		raise_lost(own, text);
	if (PG_GETARG_BOOL(1))
		renew(&r, own);
	dfl_own_count_on(own);
	PG_RETURN_BOOL(true);
}

/* The hold of the first argument's key if it is held now, else NULL. */
static struct dfl_own *
held_now(FunctionCallInfo fcinfo)
{
	struct dfl_slot_request r;
	struct dfl_own *own;

	read_key(fcinfo, &r);
	own = dfl_own_find(r.key, r.key_len, DFL_ANY_KIND, DFL_ANY_SCOPE);
	return own != NULL && dfl_own_check(own, NULL, 0) == DFL_OWN_HELD ? own : NULL;
}

PG_FUNCTION_INFO_V1(dflock_is_held);
Datum
dflock_is_held(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(held_now(fcinfo) != NULL);
}

PG_FUNCTION_INFO_V1(dflock_token);
Datum
dflock_token(PG_FUNCTION_ARGS)
{
	struct dfl_own *own = held_now(fcinfo);

	if (own == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(own->token));
}

PG_FUNCTION_INFO_V1(dflock_lease);
Datum
dflock_lease(PG_FUNCTION_ARGS)
{
	struct dfl_own *own = held_now(fcinfo);
	struct dfl_hold_data data;
	int64		deadline_ms;

	/* The worker's word: a renewal that was cancelled has changed it all the same. */
	if (own == NULL || dfl_entry_read(own->entry, &data, &deadline_ms) != own->hold)
		PG_RETURN_NULL();
	PG_RETURN_INT32((int32) Min(data.lease_s, INT_MAX));
}

PG_FUNCTION_INFO_V1(dflock_fence);
Datum
dflock_fence(PG_FUNCTION_ARGS)
{
	struct dfl_own *own = held_now(fcinfo);
	struct dfl_hold_data data;
	int64		deadline_ms;
	struct dfl_error err;

	if (own == NULL)
		PG_RETURN_NULL();
	if (own->fence >= 0)
		PG_RETURN_INT64(own->fence);
	data.server[0] = '\0';
	(void) dfl_entry_read(own->entry, &data, &deadline_ms);
	dfl_fail(&err, DFL_NO_FENCE, "the tokens of %s carry no fence", data.server);
	dfl_raise(&err, NULL);
	PG_RETURN_NULL();
}

/* --------------------------------------------------------------------------- pure */

PG_FUNCTION_INFO_V1(dflock_token_fence);
Datum
dflock_token_fence(PG_FUNCTION_ARGS)
{
	char		token[DFL_TOKEN_LEN + 1];
	int64_t		fence = 0;
	struct dfl_error err;

	read_token(fcinfo, 0, token);
	raise_if(dfl_token_fence(token, &fence, &err), &err);
	PG_RETURN_INT64(fence);
}
