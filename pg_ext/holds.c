/*
 * holds.c - what this session holds and awaits, as the session itself remembers it: found by key, and by the transaction
 * that took it or counts on it. Whether a hold is still held is never remembered: dfl_own_check asks shared memory and
 * the clock each time.
 *
 * What transaction callbacks call here (give_back, drop, leave_xact) never allocates, waits or fails.
 */
#include "backend.h"
#include "planted.h"

#include "access/xact.h"
#include "common/hashfn.h"
#include "utils/memutils.h"

#define BUCKETS 1024

static dlist_head buckets[BUCKETS];
static bool ready;

dlist_head	dfl_own_in_xact = DLIST_STATIC_INIT(dfl_own_in_xact);

static dlist_head *
bucket_of(uint32 hash)
{
	if (!ready)
	{
		for (int i = 0; i < BUCKETS; i++)
			dlist_init(&buckets[i]);
		ready = true;
	}
	return &buckets[hash % BUCKETS];
}

static uint32
hash_of(const char *key, int key_len)
{
	return hash_bytes((const unsigned char *) key, key_len);
}

static bool
is_key(const struct dfl_own *own, uint32 hash, const char *key, int key_len)
{
	return own->hash == hash && own->key_len == key_len && memcmp(own->key, key, key_len) == 0;
}

/* -------------------------------------------------------------- coming and going */

struct dfl_own *
dfl_own_new(const char *key, int key_len, enum dfl_kind kind, enum dfl_scope scope)
{
	struct dfl_own *own = MemoryContextAllocZero(TopMemoryContext, offsetof(struct dfl_own, key) + key_len + 1);

	own->kind = kind;
	own->scope = scope;
	own->key_len = key_len;
	memcpy(own->key, key, key_len);
	own->hash = hash_of(key, key_len);
	return own;
}

void
dfl_own_free(struct dfl_own *own)
{
	pfree(own);
}

static void
enter_xact(struct dfl_own *own)
{
	if (own->in_xact)
		return;
	own->in_xact = true;
	dlist_push_tail(&dfl_own_in_xact, &own->by_xact);
}

static void
note_grant(struct dfl_own *own, const struct dfl_slot_result *result)
{
	own->place = result->state != DFL_HELD;
	own->fence = result->fence;
	strlcpy(own->token, result->token, sizeof(own->token));
	own->taken_in = GetCurrentSubTransactionId();
	enter_xact(own);
}

void
dfl_own_add(struct dfl_own *own, const struct dfl_slot_result *result)
{
	own->entry = result->entry;
	own->hold = result->hold;
	own->worker = dfl_slot(dfl_my_slot())->request.worker;
	own->findable = true;
	/* Newest first: of several slots of a semaphore, the newest is meant. */
	dlist_push_head(bucket_of(own->hash), &own->by_key);
	note_grant(own, result);
}

void
dfl_own_granted(struct dfl_own *own, const struct dfl_slot_result *result)
{
	dlist_delete(&own->by_key);
	dlist_push_head(bucket_of(own->hash), &own->by_key);
	note_grant(own, result);
}

/* Nothing finds it or counts on it any more. */
static void
free_if_unused(struct dfl_own *own)
{
	if (!own->findable && !own->in_xact)
		dfl_own_free(own);
}

void
dfl_own_leave_xact(struct dfl_own *own)
{
	own->taken_in = InvalidSubTransactionId;
	own->asserted_in = InvalidSubTransactionId;
	if (own->in_xact)
		dlist_delete(&own->by_xact);
	own->in_xact = false;
	free_if_unused(own);
}

void
dfl_own_drop(struct dfl_own *own)
{
	if (own->findable)
		dlist_delete(&own->by_key);
	own->findable = false;
	if (own->in_xact && own->asserted_in == InvalidSubTransactionId)
		dfl_own_leave_xact(own);
	else
		free_if_unused(own);
}

void
dfl_own_give_back(struct dfl_own *own)
{
	dfl_entry_mark(own->entry, own->hold);
	dfl_own_drop(own);
}

void
dfl_own_count_on(struct dfl_own *own)
{
	/* An enclosing sub-transaction that counts on it already says more. */
	if (own->asserted_in == InvalidSubTransactionId)
		own->asserted_in = GetCurrentSubTransactionId();
	enter_xact(own);
}

void
dfl_own_each(void (*fn) (void *arg, struct dfl_own *own), void *arg)
{
	if (!ready)
		return;
	for (int i = 0; i < BUCKETS; i++)
	{
		dlist_mutable_iter iter;

		dlist_foreach_modify(iter, &buckets[i])
			fn(arg, dlist_container(struct dfl_own, by_key, iter.cur));
	}
}

void
dfl_own_each_of(const char *key, int key_len, void (*fn) (void *arg, struct dfl_own *own), void *arg)
{
	uint32		hash = hash_of(key, key_len);
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, bucket_of(hash))
	{
		struct dfl_own *own = dlist_container(struct dfl_own, by_key, iter.cur);

		if (is_key(own, hash, key, key_len))
			fn(arg, own);
	}
}

static void
give_back_session_scope(void *arg, struct dfl_own *own)
{
	if (own->scope == DFL_SCOPE_SESSION)
		dfl_own_give_back(own);
}

static void
drop_session_scope(void *arg, struct dfl_own *own)
{
	if (own->scope != DFL_SCOPE_SESSION)
		return;
	/* The engine has never heard of what an earlier worker left. */
	if (dfl_own_orphaned(own))
		dfl_own_give_back(own);
	else
		dfl_own_drop(own);
}

void
dfl_own_give_back_all(void)
{
	dfl_own_each(give_back_session_scope, NULL);
	dfl_marks_ring();
}

void
dfl_own_drop_all(void)
{
	dfl_own_each(drop_session_scope, NULL);
	dfl_marks_ring();
}

/* ---------------------------------------------------------------------- finding */

struct dfl_own *
dfl_own_find(const char *key, int key_len, enum dfl_kind kind, int scope)
{
	uint32		hash = hash_of(key, key_len);
	struct dfl_own *slot = NULL;
	dlist_iter	iter;

	dlist_foreach(iter, bucket_of(hash))
	{
		struct dfl_own *own = dlist_container(struct dfl_own, by_key, iter.cur);

		if (own->place || (kind != DFL_ANY_KIND && own->kind != kind) ||
			(scope != DFL_ANY_SCOPE && own->scope != (enum dfl_scope) scope) || !is_key(own, hash, key, key_len))
			continue;
		if (own->kind == DFL_LOCK)
			return own;
		if (slot == NULL)
			slot = own;
	}
	return slot;
}

struct dfl_own *
dfl_own_find_token(const char *key, int key_len, enum dfl_kind kind, const char *token)
{
	uint32		hash = hash_of(key, key_len);
	dlist_iter	iter;

	dlist_foreach(iter, bucket_of(hash))
	{
		struct dfl_own *own = dlist_container(struct dfl_own, by_key, iter.cur);

		if (!own->place && own->kind == kind && strcmp(own->token, token) == 0 && is_key(own, hash, key, key_len))
			return own;
	}
	return NULL;
}

struct dfl_own *
dfl_own_find_place(const char *key, int key_len, enum dfl_kind kind)
{
	uint32		hash = hash_of(key, key_len);
	dlist_iter	iter;

	dlist_foreach(iter, bucket_of(hash))
	{
		struct dfl_own *own = dlist_container(struct dfl_own, by_key, iter.cur);

		if (own->place && (kind == DFL_ANY_KIND || own->kind == kind) && is_key(own, hash, key, key_len))
			return own;
	}
	return NULL;
}

struct dfl_own *
dfl_own_by_hold(uint64 hold, const char *key, int key_len)
{
	uint32		hash = hash_of(key, key_len);
	dlist_iter	iter;

	dlist_foreach(iter, bucket_of(hash))
	{
		struct dfl_own *own = dlist_container(struct dfl_own, by_key, iter.cur);

		if (own->hold == hold)
			return own;
	}
	return NULL;
}

/* --------------------------------------------------------------------- checking */

bool
dfl_own_orphaned(const struct dfl_own *own)
{
	return own->worker != dfl_live_worker() && !DFL_PLANTED(14);
}

bool
dfl_own_forgotten(const struct dfl_own *own)
{
	return !dfl_own_orphaned(own) && DFL_ENTRY_NUMBER(pg_atomic_read_u64(&dfl_entry(own->entry)->word)) != own->hold;
}

static void
say_lost(const struct dfl_own *own, char *text, size_t size, int64 lost_ms, const char *why)
{
	const char *kind = own->kind == DFL_LOCK ? "lock" : "semaphore";

	if (text == NULL)
		return;
	if (lost_ms > 0)
		snprintf(text, size, "%s \"%s\" was lost %.1f s ago: %s", kind, own->key,
				 (double) (dfl_clock().ms - lost_ms) / 1000, why);
	else
		snprintf(text, size, "%s \"%s\" was lost: %s", kind, own->key, why);
}

/* Its entry is still the one of this hold of this session. */
static enum dfl_own_state
check_entry(const struct dfl_own *own, const struct dfl_hold_data *data, int64 deadline_ms, char *text, size_t size)
{
	int64		now_ms = dfl_clock().ms;
	char		why[DFL_ADDRESS_MAX + 64];

	if (data->state == DFL_HELD && !own->place)
	{
		if (now_ms < deadline_ms && !own->told)
			return DFL_OWN_HELD;
		/* Told once, it is lost for good, though a worker that comes late may find its renewal confirmed. */
		snprintf(why, sizeof(why), "no confirmed renewal from %s before the deadline", data->server);
		say_lost(own, text, size, Min(deadline_ms, now_ms), why);
		return DFL_OWN_LOST;
	}
	if (own->place && (data->state == DFL_QUEUED || data->state == DFL_CONFIRMING))
		return DFL_OWN_PLACE;
	if (data->state == DFL_STATE_LOST)
		say_lost(own, text, size, data->lost_ms, data->last_error[0] ? data->last_error : "connection lost");
	else
		say_lost(own, text, size, 0, "given back");
	return DFL_OWN_LOST;
}

enum dfl_own_state
dfl_own_check(const struct dfl_own *own, char *text, size_t size)
{
	struct dfl_hold_data data;
	int64		deadline_ms;
	uint64		number;

	if (!own->findable)
	{
		say_lost(own, text, size, 0, "its owner has given it back");
		return DFL_OWN_LOST;
	}
	if (dfl_own_orphaned(own))
	{
		say_lost(own, text, size, 0, "the dflockd worker ended");
		return DFL_OWN_LOST;
	}
	number = dfl_entry_read(own->entry, &data, &deadline_ms);
	if (DFL_PLANTED(20) && number != 0)
		return check_entry(own, &data, deadline_ms, text, size);
	if (number != own->hold || data.session != dfl_my_session() || data.slot != dfl_my_slot() ||
		data.worker != own->worker)
	{
		say_lost(own, text, size, 0, number == own->hold ? "its entry is of another session" :
				 "nothing more is known of it");
		return DFL_OWN_LOST;
	}
	return check_entry(own, &data, deadline_ms, text, size);
}
