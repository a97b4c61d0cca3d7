/*
 * worker_holds.c - shows the engine's holds, places and lost holds in shared memory, one entry each, and counts them
 * against max_locks. Owns the free entries. Its callbacks run inside the engine: they never ereport, allocate or wait.
 */
#include "compat.h"
#include "settings.h"
#include "worker.h"

/* What this process knows of an entry. */
struct own_entry
{
	struct dfl_hold *hold;		/* NULL: free, or left by an earlier worker */
	uint64		request;		/* that made the hold */
};

static struct own_entry *own;
static uint32 *free_entries;
static uint32 free_count;
static uint32 orphans;			/* entries that earlier workers left */
static int64 taken;				/* holds and waits that the engine has asked for; lost and releasing ones are not */

/* The engine keeps the entry's index + 1 as the hold's user; this stands for a lost hold without an entry. */
#define DETACHED ((void *) (intptr_t) -1)

static uint32
entry_of(struct dfl_hold *hold)
{
	return (uint32) ((uintptr_t) dfl_hold_user(hold) - 1);
}

static bool
has_entry(struct dfl_hold *hold)
{
	return dfl_hold_user(hold) != NULL && dfl_hold_user(hold) != DETACHED;
}

static void
free_entry(uint32 index)
{
	struct dfl_entry *e = dfl_entry(index);

	dfl_entry_write_begin(e);
	pg_atomic_write_u64(&e->word, 0);
	dfl_entry_write_end(e);
	own[index].hold = NULL;
	free_entries[free_count++] = index;
}

/* ------------------------------------------------------------ earlier workers */

/* Nobody counts on it any more: its session is gone, or was only waiting for it, or had given it back. */
static bool
is_unclaimed(struct dfl_entry *e)
{
	const struct dfl_hold_data *d = &e->data;

	if (pg_atomic_read_u64(&dfl_slot(d->slot)->session) != d->session)
		return true;
	if (DFL_ENTRY_MARKED(pg_atomic_read_u64(&e->word)) || d->state == DFL_RELEASING)
		return true;
	return d->state != DFL_HELD && d->state != DFL_STATE_LOST && !d->from_enqueue;
}

static void
lose_orphan(struct dfl_entry *e)
{
	dfl_entry_write_begin(e);
	if (e->data.state != DFL_STATE_LOST)
	{
		e->data.state = DFL_STATE_LOST;
		e->data.lost_ms = dfl_clock().ms;
		strlcpy(e->data.last_error, "the dflockd worker ended", sizeof(e->data.last_error));
	}
	dfl_entry_write_end(e);
}

void
dfl_holds_init(void)
{
	uint32		n = dfl_shared->entry_count;

	own = MemoryContextAllocZero(TopMemoryContext, n * sizeof(*own));
	free_entries = MemoryContextAlloc(TopMemoryContext, n * sizeof(*free_entries));
	for (uint32 i = n; i-- > 0;)
	{
		struct dfl_entry *e = dfl_entry(i);

		if (pg_atomic_read_u32(&e->sequence) & 1)
			pg_atomic_write_u32(&e->sequence, pg_atomic_read_u32(&e->sequence) + 1);
		if (pg_atomic_read_u64(&e->word) == 0)
			free_entries[free_count++] = i;
		else if (is_unclaimed(e))
			free_entry(i);
		else
		{
			lose_orphan(e);
			orphans++;
		}
	}
	for (uint32 i = 0; i < dfl_shared->link_count; i++)
		pg_atomic_write_u64(dfl_link(i), 0);
}

static bool
is_orphan(uint32 index)
{
	return own[index].hold == NULL && pg_atomic_read_u64(&dfl_entry(index)->word) != 0;
}

static void
forget_orphan(uint32 index)
{
	orphans--;
	free_entry(index);
}

void
dfl_holds_session_ended(uint32 slot, uint64 session)
{
	if (orphans == 0)
		return;
	for (uint32 i = 0; i < dfl_shared->entry_count; i++)
		if (is_orphan(i) && dfl_entry(i)->data.slot == slot && dfl_entry(i)->data.session != session)
			forget_orphan(i);
}

/* --------------------------------------------------------------------- caps */

/* The longest-lost entry is taken from its hold. False: nothing is lost. */
static bool
free_longest_lost(void)
{
	int64		best_ms = 0;
	uint32		best = 0;
	bool		found = false;

	for (uint32 i = 0; i < dfl_shared->entry_count; i++)
	{
		struct dfl_hold_data *d = &dfl_entry(i)->data;

		if (pg_atomic_read_u64(&dfl_entry(i)->word) == 0 || d->state != DFL_STATE_LOST)
			continue;
		if (!found || d->lost_ms < best_ms)
		{
			found = true;
			best = i;
			best_ms = d->lost_ms;
		}
	}
	if (!found)
		return false;
	if (is_orphan(best))
		forget_orphan(best);
	else
	{
		dfl_hold_set_user(own[best].hold, DETACHED);
		free_entry(best);
	}
	return true;
}

bool
dfl_holds_take_lock(void *ctx)
{
	if (taken >= dfl_max_locks || (free_count == 0 && !free_longest_lost()))
		return false;
	taken++;
	return true;
}

void
dfl_holds_give_lock(void *ctx)
{
	taken--;
}

/* ------------------------------------------------------------------ callbacks */

/* What never changes in the life of a hold. */
static void
write_identity(struct dfl_hold_data *d, const struct dfl_hold_info *info, const struct dfl_origin *origin)
{
	d->worker = dfl_worker_number;
	d->session = origin->session;
	d->slot = origin->slot;
	d->pid = origin->pid;
	d->kind = info->kind;
	d->scope = info->scope;
	d->key_len = (int) Min(info->key_len, DFL_KEY_MAX);
	memcpy(d->key, info->key, d->key_len);
	d->key[d->key_len] = '\0';
	d->server[0] = '\0';
	d->last_error[0] = '\0';
}

static void
write_text(char *to, size_t size, const char *from)
{
	if (strncmp(to, from ? from : "", size - 1) != 0)
		strlcpy(to, from ? from : "", size);
}

static void
write_state(struct dfl_hold_data *d, const struct dfl_hold_info *info)
{
	d->state = info->state;
	d->from_enqueue = info->from_enqueue;
	d->link = info->link;
	d->slots = info->slots;
	d->fence = info->fence;
	d->lease_s = info->lease_s;
	d->lease_deadline_ms = info->lease_deadline_ms;
	d->acquired_wall_ms = info->acquired_wall_ms;
	d->renewed_ms = info->renewed_ms;
	d->renewals = info->renewals;
	d->lost_ms = info->lost_ms;
	write_text(d->server, sizeof(d->server), info->server);
	write_text(d->last_error, sizeof(d->last_error), info->last_error);
}

/* The entry of a hold that has just come up; its number is new in this life of the server. */
static bool
give_entry(struct dfl_hold *hold, const struct dfl_hold_info *info)
{
	struct dfl_origin origin = dfl_slots_origin(info->session);
	struct dfl_entry *e;
	uint32		index;

	if (free_count == 0 && !free_longest_lost())
		return false;
	index = free_entries[--free_count];
	e = dfl_entry(index);
	own[index].hold = hold;
	own[index].request = origin.request;
	dfl_entry_write_begin(e);
	write_identity(&e->data, info, &origin);
	write_state(&e->data, info);
	pg_atomic_write_u64(&e->word, DFL_ENTRY_WORD(++dfl_shared->last_hold, false));
	dfl_entry_write_end(e);
	dfl_hold_set_user(hold, (void *) ((uintptr_t) index + 1));
	return true;
}

void
dfl_holds_changed(void *ctx, struct dfl_hold *hold)
{
	struct dfl_hold_info info;
	struct dfl_entry *e;

	if (dfl_hold_user(hold) == DETACHED)
		return;
	dfl_hold_info(hold, &info);
	if (!has_entry(hold))
	{
		give_entry(hold, &info);
		return;
	}
	e = dfl_entry(entry_of(hold));
	dfl_entry_write_begin(e);
	write_state(&e->data, &info);
	dfl_entry_write_end(e);
}

void
dfl_holds_gone(void *ctx, struct dfl_hold *hold)
{
	if (has_entry(hold))
		free_entry(entry_of(hold));
	dfl_hold_set_user(hold, NULL);
}

void
dfl_holds_link_changed(void *ctx, unsigned link, int64_t deadline_ms)
{
	/* A link beyond the array has no deadline there: what is at home on it does not count as held. */
	if (link < dfl_shared->link_count)
		pg_atomic_write_u64(dfl_link(link), (uint64) deadline_ms);
}

/* ----------------------------------------------------------------- the slots */

static void
serve_mark(uint32 index)
{
	struct dfl_hold *hold = own[index].hold;
	struct dfl_hold_info info;

	if (!DFL_ENTRY_MARKED(pg_atomic_read_u64(&dfl_entry(index)->word)))
		return;
	if (hold == NULL)
	{
		forget_orphan(index);
		return;
	}
	dfl_hold_info(hold, &info);
	if (info.state != DFL_RELEASING)
		dfl_hold_give_back(hold, dfl_clock());
}

void
dfl_holds_serve_marks(void)
{
	dfl_entries_marked(serve_mark);
}

void
dfl_holds_set_told(uint32 entry, uint64 hold)
{
	if (own[entry].hold != NULL && DFL_ENTRY_NUMBER(pg_atomic_read_u64(&dfl_entry(entry)->word)) == hold)
		dfl_hold_set_told(own[entry].hold);
}

bool
dfl_holds_describe(struct dfl_hold *hold, struct dfl_slot_result *result)
{
	struct dfl_hold_info info;

	if (!has_entry(hold))
		return false;
	dfl_hold_info(hold, &info);
	result->entry = entry_of(hold);
	result->hold = DFL_ENTRY_NUMBER(pg_atomic_read_u64(&dfl_entry(result->entry)->word));
	result->state = info.state;
	result->fence = info.fence;
	strlcpy(result->token, info.token ? info.token : "", sizeof(result->token));
	return true;
}

uint64
dfl_holds_request(struct dfl_hold *hold)
{
	return has_entry(hold) ? own[entry_of(hold)].request : 0;
}
