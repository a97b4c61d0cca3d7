/*
 * shmem.c - makes the shared memory and is the only file that does atomics on what many processes write: the bitmap of
 * slots with work, the marks of holds to release, the sequence counts of entries. Knows nothing of locks or servers.
 */
#include "compat.h"
#include "settings.h"
#include "shmem.h"

struct dfl_shared *dfl_shared = NULL;

static struct dfl_slot *slots;
static struct dfl_entry *entries;
static pg_atomic_uint64 *links;
static pg_atomic_uint64 *rung;	/* one bit per slot */
static pg_atomic_uint64 *marked;	/* one bit per entry */
static pg_atomic_uint64 *marked_words;	/* one bit per word of `marked` */

#ifdef COMPAT_SHMEM_REQUEST_HOOK
static shmem_request_hook_type previous_request_hook;
#endif
static shmem_startup_hook_type previous_startup_hook;

static uint32
words(uint32 bits)
{
	return (bits + 63) / 64;
}

/* Where each part lies, from the sizes that the settings give. Returns the size of it all. */
static Size
lay_out(struct dfl_shared *base, uint32 slot_count, uint32 entry_count, uint32 link_count)
{
	char	   *start = (char *) base;
	Size		at = CACHELINEALIGN(sizeof(struct dfl_shared));

#define PART(pointer, type, count) \
	do { \
		if (base != NULL) \
			(pointer) = (type *) (start + at); \
		at = CACHELINEALIGN(add_size(at, mul_size((count), sizeof(type)))); \
	} while (0)

	PART(slots, struct dfl_slot, slot_count);
	PART(entries, struct dfl_entry, entry_count);
	PART(links, pg_atomic_uint64, link_count);
	PART(rung, pg_atomic_uint64, words(slot_count));
	PART(marked, pg_atomic_uint64, words(entry_count));
	PART(marked_words, pg_atomic_uint64, words(words(entry_count)));
#undef PART
	return at;
}

/* Entries of holds that are being released do not count against max_locks; they must not keep others out. */
static uint32
entries_needed(void)
{
	return (uint32) dfl_max_locks + (uint32) dfl_max_locks / 8 + 64;
}

static uint32
links_needed(void)
{
	return (uint32) dfl_max_connections + DFL_LINKS_SPARE;
}

static Size
size_needed(void)
{
	return lay_out(NULL, compat_slot_count(), entries_needed(), links_needed());
}

static void
request_memory(void)
{
#ifdef COMPAT_SHMEM_REQUEST_HOOK
	if (previous_request_hook)
		previous_request_hook();
#endif
	RequestAddinShmemSpace(size_needed());
}

static void
zero_atomics(pg_atomic_uint64 *array, uint32 count)
{
	for (uint32 i = 0; i < count; i++)
		pg_atomic_init_u64(&array[i], 0);
}

static void
fill_memory(struct dfl_shared *s)
{
	memset(s, 0, size_needed());
	s->slot_count = compat_slot_count();
	s->entry_count = entries_needed();
	s->link_count = links_needed();
	pg_atomic_init_u64(&s->worker, 0);
	pg_atomic_init_u32(&s->worker_index, 0);
	pg_atomic_init_u64(&s->heartbeat_ms, 0);
	lay_out(s, s->slot_count, s->entry_count, s->link_count);
	for (uint32 i = 0; i < s->slot_count; i++)
	{
		pg_atomic_init_u64(&slots[i].word, DFL_WORD(0, DFL_SLOT_IDLE));
		pg_atomic_init_u64(&slots[i].session, 0);
	}
	for (uint32 i = 0; i < s->entry_count; i++)
	{
		pg_atomic_init_u64(&entries[i].word, 0);
		pg_atomic_init_u32(&entries[i].sequence, 0);
	}
	zero_atomics(links, s->link_count);
	zero_atomics(rung, words(s->slot_count));
	zero_atomics(marked, words(s->entry_count));
	zero_atomics(marked_words, words(words(s->entry_count)));
}

/* Runs in the postmaster at start and after every crash restart, and in each process where fork() is not to be had. */
static void
make_memory(void)
{
	bool		found;
	struct dfl_shared *s;

	if (previous_startup_hook)
		previous_startup_hook();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	s = ShmemInitStruct("dflockd", size_needed(), &found);
	if (!found)
		fill_memory(s);
	lay_out(s, s->slot_count, s->entry_count, s->link_count);
	LWLockRelease(AddinShmemInitLock);
	dfl_shared = s;
}

void
dfl_shmem_init(void)
{
#ifdef COMPAT_SHMEM_REQUEST_HOOK
	previous_request_hook = shmem_request_hook;
	shmem_request_hook = request_memory;
#else
	request_memory();
#endif
	previous_startup_hook = shmem_startup_hook;
	shmem_startup_hook = make_memory;
}

struct dfl_slot *
dfl_slot(uint32 index)
{
	return &slots[index];
}

struct dfl_entry *
dfl_entry(uint32 index)
{
	return &entries[index];
}

pg_atomic_uint64 *
dfl_link(uint32 index)
{
	return &links[index];
}

/* --------------------------------------------------------------------- wakes */

static bool marks_unheard;		/* this process has set marks since it last woke the worker */

static void
wake_worker(void)
{
	marks_unheard = false;
	/* A number that has just become stale wakes some other process, which looks and sleeps on. */
	if (pg_atomic_read_u64(&dfl_shared->worker) != 0)
		SetLatch(compat_proc_latch(pg_atomic_read_u32(&dfl_shared->worker_index)));
}

void
dfl_slot_ring(uint32 slot)
{
	pg_atomic_fetch_or_u64(&rung[slot / 64], UINT64CONST(1) << (slot % 64));
	wake_worker();
}

void
dfl_marks_ring(void)
{
	if (marks_unheard)
		wake_worker();
}

/* Takes the bits of one word and calls fn with the number of each. */
static void
take_bits(pg_atomic_uint64 *word, uint32 base, void (*fn) (uint32 bit))
{
	uint64		bits;

	if (pg_atomic_read_u64(word) == 0)
		return;
	bits = pg_atomic_exchange_u64(word, 0);
	for (uint32 i = 0; bits != 0; i++, bits >>= 1)
		if (bits & 1)
			fn(base + i);
}

void
dfl_slots_rung(void (*fn) (uint32 slot))
{
	for (uint32 i = 0; i < words(dfl_shared->slot_count); i++)
		take_bits(&rung[i], i * 64, fn);
}

/* --------------------------------------------------------------------- marks */

bool
dfl_entry_mark(uint32 entry, uint64 hold)
{
	uint64		expected = DFL_ENTRY_WORD(hold, false);
	uint32		word = entry / 64;

	if (!pg_atomic_compare_exchange_u64(&entries[entry].word, &expected, DFL_ENTRY_WORD(hold, true)))
		return false;
	pg_atomic_fetch_or_u64(&marked[word], UINT64CONST(1) << (entry % 64));
	pg_atomic_fetch_or_u64(&marked_words[word / 64], UINT64CONST(1) << (word % 64));
	marks_unheard = true;
	return true;
}

static void (*marked_fn) (uint32 entry);

static void
take_marked_word(uint32 word)
{
	take_bits(&marked[word], word * 64, marked_fn);
}

void
dfl_entries_marked(void (*fn) (uint32 entry))
{
	marked_fn = fn;
	for (uint32 i = 0; i < words(words(dfl_shared->entry_count)); i++)
		take_bits(&marked_words[i], i * 64, take_marked_word);
}

/* ------------------------------------------------------------------- entries */

void
dfl_entry_write_begin(struct dfl_entry *e)
{
	pg_atomic_write_u32(&e->sequence, pg_atomic_read_u32(&e->sequence) + 1);
	pg_write_barrier();
}

void
dfl_entry_write_end(struct dfl_entry *e)
{
	pg_write_barrier();
	pg_atomic_write_u32(&e->sequence, pg_atomic_read_u32(&e->sequence) + 1);
}

/*
 * The worker writes a few hundred bytes in one go. A reader that still meets a half-written entry after a moment sees
 * the work of a stopped worker: it must not wait for that, and may not believe it.
 */
#define READ_SPINS 1000
#define READ_NAPS 100			/* of a millisecond each */

uint64
dfl_entry_read(uint32 entry, struct dfl_hold_data *data, int64 *deadline_ms)
{
	struct dfl_entry *e = &entries[entry];

	for (int tries = 0; tries < READ_SPINS + READ_NAPS; tries++)
	{
		uint32		before = pg_atomic_read_u32(&e->sequence);
		uint64		word;
		int64		link_ms = 0;

		pg_read_barrier();
		word = pg_atomic_read_u64(&e->word);
		if (word == 0)
			return 0;
		memcpy(data, &e->data, sizeof(*data));
		/* Inside the section: a link that is given to another connection has first taken its holds from `held`. */
		if (data->link < dfl_shared->link_count)
			link_ms = (int64) pg_atomic_read_u64(&links[data->link]);
		pg_read_barrier();
		if ((before & 1) == 0 && before == pg_atomic_read_u32(&e->sequence))
		{
			*deadline_ms = Min(data->lease_deadline_ms, link_ms);
			/* Given back already, though the worker has not come to it yet. */
			if (DFL_ENTRY_MARKED(word))
				data->state = DFL_RELEASING;
			return DFL_ENTRY_NUMBER(word);
		}
		if (tries >= READ_SPINS)
			pg_usleep(1000);
	}
	return 0;
}
