/*
 * shmem.h - what backends and the worker share, and the rules by which they touch it.
 *
 * Shared memory holds plain data only: no pointer, descriptor or TLS object of a process. It is made anew after every
 * crash restart of the server.
 */
#ifndef DFL_PG_SHMEM_H
#define DFL_PG_SHMEM_H

#include "postgres.h"
#include "port/atomics.h"

#include "dflockd.h"

#define DFL_CHUNK 8192			/* bytes of a large result that one answer carries */
#define DFL_LINKS_SPARE 64		/* links beyond max_connections: those of connections that are being given up */
#define DFL_REASON_MAX 256

/* ------------------------------------------------------------------- requests */

enum dfl_op
{
	DFL_OP_ACQUIRE,
	DFL_OP_ENQUEUE,
	DFL_OP_WAIT,
	DFL_OP_CANCEL,
	DFL_OP_RELEASE,
	DFL_OP_RELEASE_TOKEN,
	DFL_OP_RELEASE_ALL,
	DFL_OP_RENEW,
	DFL_OP_STATS,
	DFL_OP_PING,
	DFL_OP_SERVERS,
	DFL_OP_NEXT,				/* the next piece of the large result before */
	DFL_OP_COUNT
};

struct dfl_slot_request
{
	enum dfl_op op;
	enum dfl_kind kind;
	enum dfl_scope scope;
	bool		wait_answer;
	int			pid;
	uint64		session;		/* number of the session that asks */
	uint64		worker;			/* number of the worker that it asks */
	uint64		told;			/* acquire: number of a hold that the session knows to be lost, 0 = none */
	uint32		told_entry;		/* and its entry */
	int64		slots;
	int64		timeout_ms;
	int64		lock_timeout_ms;
	int64		lease_s;
	int64		max_session_locks;
	int			key_len;
	char		key[DFL_KEY_MAX + 1];	/* full key, UTF-8 */
	char		token[DFL_TOKEN_LEN + 1];
};

struct dfl_slot_result
{
	bool		yes;			/* cancel: a place was left. wait: the place is gone for good */
	bool		more;			/* a large result goes on: ask DFL_OP_NEXT */
	enum dfl_state state;		/* of the hold, below */
	uint32		entry;
	uint64		hold;			/* number of the hold, 0 = none */
	int64		fence;			/* -1 when this server's tokens carry none */
	int64		seconds;
	char		token[DFL_TOKEN_LEN + 1];
	uint32		chunk_len;
	/* Last, because little of them is used: they are written and read to the ends of text and chunk only. */
	struct dfl_error error;		/* status, and text for every status but DFL_OK */
	char		chunk[DFL_CHUNK];
};

/*
 * One row of a large result (stats, ping, servers), followed by its address, error and body. A row may be cut
 * anywhere between two chunks.
 */
struct dfl_row
{
	int32		status;			/* enum dfl_status */
	int32		state;			/* enum dfl_server_state */
	uint32		connections;
	uint32		address_len;
	uint32		error_len;
	uint64		body_len;
	int64		round_trip_us;
	int64		since_ms;
};

/* ---------------------------------------------------------------------- slots */

enum dfl_slot_state
{
	DFL_SLOT_IDLE,
	DFL_SLOT_REQUEST,			/* the request area belongs to the worker */
	DFL_SLOT_TAKEN,				/* copied; the worker is at it */
	DFL_SLOT_DONE,				/* the result area belongs to the backend */
	DFL_SLOT_CANCELED			/* given up by the backend */
};

#define DFL_WORD(number, state) (((uint64) (number) << 8) | (uint64) (state))
#define DFL_WORD_NUMBER(word) ((word) >> 8)
#define DFL_WORD_STATE(word) ((enum dfl_slot_state) ((word) & 0xff))

struct dfl_slot
{
	pg_atomic_uint64 word;		/* (request number, state): who may touch what, in one atomic */
	pg_atomic_uint64 session;	/* odd: a session is attached; each attach and each end adds one */
	struct dfl_slot_request request;	/* written by the backend, before DFL_SLOT_REQUEST */
	struct dfl_slot_result result;	/* written by the worker, before DFL_SLOT_DONE */
};

/* ---------------------------------------------------------------------- holds */

/* What the worker tells about one hold, place or lost hold. */
struct dfl_hold_data
{
	uint64		worker;			/* number of the worker that has it */
	uint64		session;
	uint32		slot;
	int			pid;
	enum dfl_kind kind;
	enum dfl_scope scope;
	enum dfl_state state;
	bool		from_enqueue;
	uint32		link;			/* its home connection: index of dfl_shared.links */
	int64		slots;
	int64		fence;
	int64		lease_s;
	int64		lease_deadline_ms;
	int64		acquired_wall_ms;
	int64		renewed_ms;
	int64		renewals;
	int64		lost_ms;
	int			key_len;
	char		key[DFL_KEY_MAX + 1];
	char		server[DFL_ADDRESS_MAX];
	char		last_error[DFL_REASON_MAX];
};

/*
 * An entry is given out by the worker. `word` is (hold number, release mark); hold numbers are never used twice, so a
 * mark set by compare-and-swap can only hit the hold it is meant for. 0: free.
 */
struct dfl_entry
{
	pg_atomic_uint64 word;
	pg_atomic_uint32 sequence;	/* odd while the worker writes `data` */
	struct dfl_hold_data data;
};

#define DFL_ENTRY_WORD(number, marked) (((uint64) (number) << 1) | ((marked) ? 1 : 0))
#define DFL_ENTRY_NUMBER(word) ((word) >> 1)
#define DFL_ENTRY_MARKED(word) (((word) & 1) != 0)

/* ------------------------------------------------------------------ the whole */

struct dfl_shared
{
	uint32		slot_count;
	uint32		entry_count;
	uint32		link_count;
	pg_atomic_uint64 worker;	/* number of the worker that runs; 0 = none */
	pg_atomic_uint32 worker_index;	/* its process, for its latch */
	pg_atomic_uint64 heartbeat_ms;	/* when the worker last went round its loop */
	uint64		last_worker;	/* written by starting workers only */
	uint64		last_hold;		/* written by the worker only */
};

extern struct dfl_shared *dfl_shared;	/* NULL: not preloaded */

extern void dfl_shmem_init(void);	/* in _PG_init: asks for the memory, hooks its making */

extern struct dfl_slot *dfl_slot(uint32 index);
extern struct dfl_entry *dfl_entry(uint32 index);
extern pg_atomic_uint64 *dfl_link(uint32 index);	/* deadline in ms, 0 = dead */

/* Work for the worker: this slot's word or session number has changed. Wakes it. */
extern void dfl_slot_ring(uint32 slot);

/* Takes all rung slots: calls fn for each. */
extern void dfl_slots_rung(void (*fn) (uint32 slot));

/*
 * Marks the hold for release; false when the entry is not that hold's any more. Never waits, allocates or fails: for
 * transaction callbacks. The worker wakes by dfl_slot_ring, or by dfl_marks_ring, which does nothing when this process
 * has marked nothing since.
 */
extern bool dfl_entry_mark(uint32 entry, uint64 hold);
extern void dfl_marks_ring(void);

/* Takes all release marks: calls fn with each entry that may carry one. */
extern void dfl_entries_marked(void (*fn) (uint32 entry));

/* The worker's side of an entry. */
extern void dfl_entry_write_begin(struct dfl_entry *e);
extern void dfl_entry_write_end(struct dfl_entry *e);

/*
 * A consistent copy, with its deadline: the earlier of lease and home connection. Returns the number of the hold it
 * belongs to, marked ones being DFL_RELEASING; 0 when the entry is free, or was left half-written by a worker that stands still. Any process.
 */
extern uint64 dfl_entry_read(uint32 entry, struct dfl_hold_data *data, int64 *deadline_ms);

#endif
