/*
 * backend.c - a backend's slot: one request to the worker at a time, the wait for its answer, and the end of that wait by
 * whatever may end it. Sends nothing to any server itself.
 *
 * Grant and cancel race on one compare-and-swap of the slot's word (request number, state); whoever loses cleans up.
 */
#include "backend.h"
#include "planted.h"
#include "settings.h"

#include "access/parallel.h"
#include "access/xact.h"
#include "storage/proc.h"
#include "utils/timestamp.h"

#define FIRST_WAIT_MS 50		/* most answers come before; then the client is watched too */
#define LONG_WAIT_MS 1000		/* between looks at the worker's health */
#define ASK_CLIENT_MS 100		/* where a wait set cannot watch the client */
#define START_GRACE_MS 2000		/* a worker that has never run yet may just be starting, with the session */
#define SILENCE_MS 10000		/* beyond connect_timeout: a worker that does not go round stands still */
#define WAKE_GRACE_MS 3000		/* between finding that and saying so */

static uint32 slot_index;
static uint64 my_session;		/* 0: not attached */
static uint32 wait_event;

/* One wait for one answer. */
struct wait
{
	struct dfl_slot *slot;
	const struct dfl_slot_request *request;
	uint64		number;			/* of the request; 0: not submitted yet */
	int64		started_ms;
	int64		silent_from_ms;	/* when the worker was first found silent for too long; 0: it is not */
	bool		settled;		/* past the first short wait */
	bool		logged;
	WaitEventSet *set;			/* NULL where the client cannot be watched */
};

/* ------------------------------------------------------------------- attaching */

bool
dfl_attached(void)
{
	return my_session != 0;
}

uint32
dfl_my_slot(void)
{
	return slot_index;
}

uint64
dfl_my_session(void)
{
	return my_session;
}

uint64
dfl_live_worker(void)
{
	return dfl_shared ? pg_atomic_read_u64(&dfl_shared->worker) : 0;
}

/* However this process ends: what it held belongs to an older session from now on. */
static void
detach(int code, Datum argument)
{
	my_session = 0;
	pg_atomic_fetch_add_u64(&dfl_slot(slot_index)->session, 1);
	dfl_slot_ring(slot_index);
}

static COMPAT_NORETURN void
no_worker(const char *text, const char *hint)
{
	struct dfl_error err;

	dfl_fail(&err, DFL_NO_WORKER, "%s", text);
	dfl_raise(&err, hint);
}

static void
require_library(void)
{
	/* First, because before 15 that mode does not preload libraries either. */
	if (!IsUnderPostmaster)
		no_worker("the dflockd worker does not run in single-user mode", NULL);
	if (dfl_shared == NULL)
		no_worker("dflockd is not preloaded: its worker does not run",
				  "Add to postgresql.conf: shared_preload_libraries = 'dflockd', and restart the server.");
	if (IsBinaryUpgrade)
		no_worker("the dflockd worker does not run during a binary upgrade", NULL);
}

/*
 * A worker that has never run starts when sessions can: after a recovery of any length, together with those
 * that had been waiting for it. The time counts from when this one asked first.
 */
static uint64
require_worker(void)
{
	static int64 asked_ms;
	uint64		worker;

	if (asked_ms == 0)
		asked_ms = dfl_clock().ms;
	while ((worker = dfl_live_worker()) == 0)
	{
		if (dfl_shared->last_worker != 0)
		{
			pg_memory_barrier();
			if ((worker = dfl_live_worker()) != 0)
				return worker;
			no_worker("the dflockd worker is not running",
					  "It starts again within a second or two; the server's log says why it ended.");
		}
		if (dfl_clock().ms - asked_ms > START_GRACE_MS)
			no_worker("the dflockd worker has not been started",
					  "Raise max_worker_processes in postgresql.conf and restart the server, "
					  "or see the server's log for why it does not start.");
		CHECK_FOR_INTERRUPTS();
		pg_usleep(10000);
	}
	return worker;
}

/* The worker to ask. It must be `seen`, unless that is 0: the one that the session has reckoned with. */
static uint64
require_same_worker(uint64 seen)
{
	uint64		worker = require_worker();

	if (seen != 0 && seen != worker)
		no_worker("the dflockd worker ended; all locks of this server are lost",
				  "Another one runs; the server's log says why the one before ended.");
	return worker;
}

/* It is another session than the one that runs the query: a lock that it takes ends with it, in the middle of the query. */
static void
refuse_parallel_worker(void)
{
	struct dfl_error err;

	if (!IsParallelWorker())
		return;
	dfl_fail(&err, DFL_UNSUPPORTED, "a parallel worker has no locks of its session");
	dfl_raise(&err, "Do not mark a function PARALLEL SAFE that calls functions of dflockd.");
}

void
dfl_attach(void)
{
	require_library();
	if (my_session == 0)
	{
		refuse_parallel_worker();
		slot_index = compat_slot_index();
		if (slot_index >= dfl_shared->slot_count)
			no_worker("this kind of process has no place among the sessions of dflockd", NULL);
		on_shmem_exit(detach, (Datum) 0);
		my_session = pg_atomic_fetch_add_u64(&dfl_slot(slot_index)->session, 1) + 1;
	}
}

/* --------------------------------------------------------------------- waiting */

static void
watch_client(struct wait *w)
{
	if (MyProcPort == NULL || !compat_can_watch_client())
		return;
	w->set = compat_wait_set_new(3);
	AddWaitEventToSet(w->set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(w->set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	AddWaitEventToSet(w->set, COMPAT_SOCKET_CLOSED, MyProcPort->sock, NULL, NULL);
}

static void
unwatch_client(struct wait *w)
{
	if (w->set != NULL)
		FreeWaitEventSet(w->set);
	w->set = NULL;
}

static bool
log_is_due(const struct wait *w)
{
	return log_lock_waits && !w->logged && w->request->op <= DFL_OP_WAIT &&
		dfl_clock().ms - w->started_ms >= DeadlockTimeout;
}

static void
log_wait(struct wait *w, const char *what)
{
	double		waited = (double) (dfl_clock().ms - w->started_ms);

	ereport(LOG, (errmsg("process %d %s dflockd %s \"%s\" after %.0f ms", MyProcPid, what,
						 w->request->kind == DFL_LOCK ? "lock" : "semaphore",
						 dfl_text_from_wire(w->request->key, (size_t) w->request->key_len), waited)));
}

/* How long to sleep before there is something to look at. */
static long
next_look_ms(const struct wait *w)
{
	int64		ms = LONG_WAIT_MS;

	if (!w->settled)
		ms = FIRST_WAIT_MS;
	else if (w->set == NULL && MyProcPort != NULL)
		ms = ASK_CLIENT_MS;
	if (log_lock_waits && !w->logged)
		ms = Min(ms, Max(1, w->started_ms + DeadlockTimeout - dfl_clock().ms));
	return (long) ms;
}

/* Sleeps until something has happened, or it is time to look around. */
static void
sleep_a_while(struct wait *w)
{
	uint32		event_id = compat_wait_event(&wait_event, "DflockdRequest");
	WaitEvent	event;

	if (w->set == NULL)
	{
		int			events = WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, next_look_ms(w), event_id);

		if (events & WL_LATCH_SET)
			ResetLatch(MyLatch);
		else if (w->settled && MyProcPort != NULL && !compat_client_lives())
			compat_client_is_gone();
		else if (!w->settled)
		{
			w->settled = true;
			watch_client(w);
		}
		return;
	}
	if (WaitEventSetWait(w->set, next_look_ms(w), &event, 1, event_id) == 0)
		return;
	if (event.events & WL_LATCH_SET)
		ResetLatch(MyLatch);
	else if (event.events & COMPAT_SOCKET_CLOSED)
		compat_client_is_gone();
}

/* A machine that wakes up finds the time gone: then the worker gets a moment for its first turn. */
static bool
is_silent(struct wait *w)
{
	int64		now_ms = dfl_clock().ms;
	int64		since_ms = Max(w->started_ms, (int64) pg_atomic_read_u64(&dfl_shared->heartbeat_ms));

	if (now_ms - since_ms <= SILENCE_MS + (int64) (dfl_connect_timeout * 1000))
		w->silent_from_ms = 0;
	else if (w->silent_from_ms == 0)
		w->silent_from_ms = now_ms;
	return w->silent_from_ms != 0 && now_ms - w->silent_from_ms >= WAKE_GRACE_MS;
}

/* Raises LK006 when nobody is going to answer. */
static void
check_worker(struct wait *w)
{
	if (dfl_live_worker() != w->request->worker && !DFL_PLANTED(23))
		no_worker("the dflockd worker ended; all locks of this server are lost",
				  "It starts again within a second or two; the server's log says why it ended.");
	if (is_silent(w))
		no_worker("the dflockd worker does not answer", "See what its process does; it may be stopped.");
}

static bool
is_done(const struct wait *w)
{
	return pg_atomic_read_u64(&w->slot->word) == DFL_WORD(w->number, DFL_SLOT_DONE);
}

static void
wait_for_answer(struct wait *w)
{
	while (!is_done(w))
	{
		check_worker(w);
		if (log_is_due(w))
		{
			w->logged = true;
			log_wait(w, "still waiting for");
		}
		sleep_a_while(w);
		/* An answer that is there goes first: whatever interrupts the statement comes after it. */
		if (!is_done(w))
			CHECK_FOR_INTERRUPTS();
	}
}

/* -------------------------------------------------------------------- giving up */

/*
 * Leaves a wait. Returns the result if the answer was there first, else NULL; *taken says whether the worker had begun.
 */
static const struct dfl_slot_result *
leave(struct wait *w, bool *taken)
{
	uint64		canceled = DFL_WORD(w->number, DFL_SLOT_CANCELED);
	uint64		expected = DFL_WORD(w->number, DFL_SLOT_REQUEST);

	*taken = false;
	if (w->number == 0)
		return NULL;
	if (pg_atomic_compare_exchange_u64(&w->slot->word, &expected, canceled))
		return NULL;
	*taken = true;
	expected = DFL_WORD(w->number, DFL_SLOT_TAKEN);
	if (pg_atomic_compare_exchange_u64(&w->slot->word, &expected, canceled))
	{
		dfl_slot_ring(slot_index);
		return NULL;
	}
	pg_read_barrier();
	return &w->slot->result;
}

static void
give_up(struct wait *w, const struct dfl_undo *undo)
{
	bool		taken;
	const struct dfl_slot_result *result = leave(w, &taken);

	unwatch_client(w);
	if (undo != NULL)
		undo->fn(undo->arg, result, taken);
	dfl_marks_ring();
}

/* ---------------------------------------------------------------------- asking */

static void
submit(struct wait *w, struct dfl_slot_request *request)
{
	uint64		word = pg_atomic_read_u64(&w->slot->word);

	w->number = DFL_WORD_NUMBER(word) + 1;
	request->pid = MyProcPid;
	request->session = my_session;
	request->max_session_locks = dfl_max_session_locks;
	w->slot->request = *request;
	w->request = &w->slot->request;
	pg_write_barrier();
	pg_atomic_write_u64(&w->slot->word, DFL_WORD(w->number, DFL_SLOT_REQUEST));
	dfl_slot_ring(slot_index);
}

const struct dfl_slot_result *
dfl_ask(struct dfl_slot_request *request, const struct dfl_undo *undo)
{
	struct wait *w;
	struct wait space;

	dfl_attach();
	memset(&space, 0, sizeof(space));
	w = &space;
	w->slot = dfl_slot(slot_index);
	w->started_ms = dfl_clock().ms;
	PG_TRY();
	{
		request->worker = require_same_worker(request->worker);
		submit(w, request);
		wait_for_answer(w);
		unwatch_client(w);
		/* Also in here, because whoever writes to the log may be interrupted. */
		pg_read_barrier();
		if (w->logged && w->slot->result.error.status == DFL_OK)
			log_wait(w, "acquired");
	}
	PG_CATCH();
	{
		give_up(w, undo);
		PG_RE_THROW();
	}
	PG_END_TRY();
	return &dfl_slot(slot_index)->result;
}

/* ---------------------------------------------------------------- large results */

/* The worker need not keep the rest of a large result. */
static void
forget_rest(void)
{
	struct dfl_slot *slot = dfl_slot(slot_index);
	uint64		word = pg_atomic_read_u64(&slot->word);

	if (DFL_WORD_STATE(word) != DFL_SLOT_DONE)
		return;
	pg_atomic_write_u64(&slot->word, DFL_WORD(DFL_WORD_NUMBER(word), DFL_SLOT_CANCELED));
	dfl_slot_ring(slot_index);
}

/* Calls fn for each row that is whole, and keeps what follows. */
static void
hand_on_rows(StringInfo rows, dfl_row_function fn, void *arg)
{
	struct dfl_row row;
	size_t		at = 0;

	for (; rows->len - at >= sizeof(row); at += sizeof(row) + row.address_len + row.error_len + row.body_len)
	{
		const char *text = rows->data + at + sizeof(row);
		char	   *address;
		char	   *error;

		memcpy(&row, rows->data + at, sizeof(row));
		if (rows->len - at - sizeof(row) < row.address_len + row.error_len + row.body_len)
			break;
		address = dfl_text_from_wire(text, row.address_len);
		error = dfl_text_from_wire(text + row.address_len, row.error_len);
		fn(arg, &row, address, error, text + row.address_len + row.error_len);
		pfree(address);
		pfree(error);
	}
	if (at == 0)
		return;
	rows->len -= (int) at;
	memmove(rows->data, rows->data + at, rows->len);
}

void
dfl_ask_rows(enum dfl_op op, dfl_row_function fn, void *arg)
{
	struct dfl_slot_request request;
	const struct dfl_slot_result *result;
	StringInfoData rows;		/* what fn has not seen yet: less than a row */

	dfl_attach();
	memset(&request, 0, sizeof(request));
	request.op = op;
	initStringInfo(&rows);
	PG_TRY();
	{
		do
		{
			/* From the second time on, the worker that has begun: another one knows nothing of the rest. */
			result = dfl_ask(&request, NULL);
			if (result->error.status != DFL_OK)
				dfl_raise(&result->error, NULL);
			appendBinaryStringInfo(&rows, result->chunk, (int) result->chunk_len);
			hand_on_rows(&rows, fn, arg);
			request.op = DFL_OP_NEXT;
		} while (result->more);
	}
	PG_CATCH();
	{
		forget_rest();
		PG_RE_THROW();
	}
	PG_END_TRY();
	pfree(rows.data);
}
