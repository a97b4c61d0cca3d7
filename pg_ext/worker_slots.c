/*
 * worker_slots.c - the worker's side of the slots: takes requests, starts them in the engine, hands out their results.
 *
 * A slot has one session of the engine for each session number, and at most one call. The order of a round answers
 * races: ended sessions and marked holds are given back before any request is looked at, so that a session that has seen
 * another's COMMIT or end asks only afterwards.
 */
#include "compat.h"
#include "planted.h"
#include "worker.h"

/* What is left to send of a large result. */
struct stream
{
	struct dfl_call *call;		/* stats, ping; NULL: the list of servers */
	size_t		rows;
	size_t		row;			/* being sent */
	char	   *head;			/* of that row: struct dfl_row, address, error */
	size_t		head_len;
	size_t		body_len;
	const char *body;
	size_t		sent;			/* bytes of head and body */
};

struct own_slot
{
	struct dfl_session *session;
	uint64		session_number;
	struct dfl_call *call;		/* being worked at */
	uint64		number;			/* of its request */
	bool		was_held;		/* wait: there was nothing to wait for */
	bool		listed;			/* among those of this round */
	bool		taken;			/* a request that this round will start */
	bool		done;			/* in the list of finished ones */
	bool		streaming;
	struct dfl_slot_request request;
	struct stream stream;
};

static struct own_slot *own;
static uint32 *rung;			/* slots with work in this round */
static uint32 rung_count;
static uint32 *late;			/* slots that were rung during it */
static uint32 late_count;
static uint32 *finished;		/* slots whose call has ended */
static uint32 finished_count;
static uint32 pending;			/* calls being worked at */

/* The request being started: its slot's number and its own. */
static struct dfl_origin starting;

void
dfl_slots_init(void)
{
	uint32		n = dfl_shared->slot_count;

	own = MemoryContextAllocZero(TopMemoryContext, n * sizeof(*own));
	rung = MemoryContextAlloc(TopMemoryContext, n * sizeof(*rung));
	late = MemoryContextAlloc(TopMemoryContext, n * sizeof(*late));
	finished = MemoryContextAlloc(TopMemoryContext, n * sizeof(*finished));
}

static uint32
index_of(const struct own_slot *o)
{
	return (uint32) (o - own);
}

struct dfl_origin
dfl_slots_origin(struct dfl_session *session)
{
	struct own_slot *o = dfl_session_user(session);
	struct dfl_origin origin = starting;

	origin.slot = index_of(o);
	origin.session = o->session_number;
	return origin;
}

uint32
dfl_slots_attached(void)
{
	uint32		attached = 0;

	for (uint32 i = 0; i < dfl_shared->slot_count; i++)
		if (pg_atomic_read_u64(&dfl_slot(i)->session) & 1)
			attached++;
	return attached;
}

bool
dfl_slots_pending(void)
{
	return pending > 0;
}

/* ------------------------------------------------------------------- results */

/* An empty result. Behind the end of its text and of its chunk, here none, there may lie anything: nobody looks there. */
static void
clear(struct dfl_slot_result *result)
{
	memset(result, 0, offsetof(struct dfl_slot_result, error));
	result->error.status = DFL_OK;
	result->error.text[0] = '\0';
}

/* The bytes of a result that mean something, its chunk not counted. */
static size_t
used(const struct dfl_slot_result *result)
{
	return offsetof(struct dfl_slot_result, error) + offsetof(struct dfl_error, text) +
		strlen(result->error.text) + 1;
}

/*
 * Writes and hands out a result; a chunk is in the slot already. False when the backend has given the request up: then
 * nobody sees it. Only the holder of (this request, TAKEN) may write.
 */
static bool
hand_out(struct own_slot *o, const struct dfl_slot_result *result)
{
	struct dfl_slot *slot = dfl_slot(index_of(o));
	uint64		expected = DFL_WORD(o->number, DFL_SLOT_TAKEN);

	if (pg_atomic_read_u64(&slot->word) != expected)
		return false;
	if (result != &slot->result)
		memcpy(&slot->result, result, used(result));
	if (!pg_atomic_compare_exchange_u64(&slot->word, &expected, DFL_WORD(o->number, DFL_SLOT_DONE)))
		return false;
	SetLatch(compat_proc_latch(index_of(o)));
	return true;
}

static void
hand_out_error(struct own_slot *o, const struct dfl_error *err)
{
	struct dfl_slot_result result;

	clear(&result);
	result.error = *err;
	hand_out(o, &result);
}

/* ------------------------------------------------------------- large results */

static void
stream_end(struct own_slot *o)
{
	if (!o->streaming)
		return;
	o->streaming = false;
	dfl_call_free(o->stream.call, dfl_clock());
	free(o->stream.head);
	memset(&o->stream, 0, sizeof(o->stream));
}

/* Puts a row's fixed part and texts into stream->head. */
static bool
stream_head(struct stream *s, struct dfl_row *row, const char *address, const char *error)
{
	row->address_len = (uint32) strlen(address);
	row->error_len = (uint32) strlen(error);
	s->head_len = sizeof(*row) + row->address_len + row->error_len;
	s->head = malloc(s->head_len);
	if (s->head == NULL)
		return false;
	memcpy(s->head, row, sizeof(*row));
	memcpy(s->head + sizeof(*row), address, row->address_len);
	memcpy(s->head + sizeof(*row) + row->address_len, error, row->error_len);
	s->sent = 0;
	return true;
}

static bool
load_server(struct stream *s)
{
	struct dfl_server_info info;
	struct dfl_row row;

	memset(&info, 0, sizeof(info));
	dfl_client_server(dfl_worker_client, s->row, &info);
	memset(&row, 0, sizeof(row));
	row.state = info.state;
	row.connections = info.connections;
	row.round_trip_us = info.round_trip_us;
	row.since_ms = info.since_ms;
	s->body = NULL;
	s->body_len = 0;
	return stream_head(s, &row, info.address, info.last_error ? info.last_error : "");
}

static bool
load_answer(struct stream *s)
{
	struct dfl_server_answer answer;
	struct dfl_row row;

	dfl_call_answer(s->call, s->row, &answer);
	memset(&row, 0, sizeof(row));
	row.status = answer.status;
	row.round_trip_us = answer.round_trip_us;
	row.body_len = answer.body_len;
	s->body = answer.body;
	s->body_len = answer.body_len;
	return stream_head(s, &row, answer.address, answer.error ? answer.error : "");
}

/* Copies what fits of the present row. Returns the bytes copied, moves on to the next row at its end. */
static size_t
stream_copy(struct stream *s, char *to, size_t room)
{
	size_t		n;

	if (s->sent < s->head_len)
	{
		n = Min(room, s->head_len - s->sent);
		memcpy(to, s->head + s->sent, n);
	}
	else
	{
		n = Min(room, s->head_len + s->body_len - s->sent);
		if (n > 0)
			memcpy(to, s->body + (s->sent - s->head_len), n);
	}
	s->sent += n;
	if (s->sent == s->head_len + s->body_len)
	{
		free(s->head);
		s->head = NULL;
		s->row++;
	}
	return n;
}

/* A reload between two pieces may have shortened the list of servers. */
static bool
goes_on(struct stream *s)
{
	if (s->call == NULL && s->head == NULL)
		s->rows = Min(s->rows, dfl_client_servers(dfl_worker_client));
	return s->row < s->rows;
}

/* Hands out the next piece. */
static void
stream_next(struct own_slot *o)
{
	struct dfl_slot *slot = dfl_slot(index_of(o));
	struct dfl_slot_result *result = &slot->result;
	struct stream *s = &o->stream;
	struct dfl_error no_memory;
	size_t		n = 0;

	if (pg_atomic_read_u64(&slot->word) != DFL_WORD(o->number, DFL_SLOT_TAKEN))
		return;
	clear(result);
	while (goes_on(s) && n < DFL_CHUNK)
	{
		if (s->head == NULL && !(s->call ? load_answer(s) : load_server(s)))
		{
			dfl_fail(&no_memory, DFL_NOMEM, "out of memory");
			hand_out_error(o, &no_memory);
			stream_end(o);
			return;
		}
		n += stream_copy(s, result->chunk + n, DFL_CHUNK - n);
	}
	result->chunk_len = (uint32) n;
	result->more = goes_on(s);
	if (!hand_out(o, result) || !result->more)
		stream_end(o);
}

static void
stream_begin(struct own_slot *o, struct dfl_call *call, size_t rows)
{
	o->streaming = true;
	o->stream.call = call;
	o->stream.rows = rows;
	stream_next(o);
}

/* ---------------------------------------------------------------- ended calls */

/* The backend does not know of this grant or place: it is given back, unless it was the session's before. */
static void
return_unseen(struct own_slot *o, struct dfl_hold *hold)
{
	bool		older = dfl_holds_request(hold) != o->number;

	if (o->request.op == DFL_OP_WAIT ? !o->was_held : !older)
		dfl_hold_give_back(hold, dfl_clock());
}

static void
fill_result(struct own_slot *o, struct dfl_slot_result *result)
{
	struct dfl_call *call = o->call;
	enum dfl_status status = dfl_call_status(call);
	struct dfl_slot_request *r = &o->request;

	clear(result);
	if (status != DFL_OK)
		result->error = *dfl_call_error(call);
	result->error.status = status;
	result->seconds = dfl_call_seconds(call);
	if (r->op == DFL_OP_WAIT && status != DFL_OK)
		result->yes = dfl_session_place(o->session, r->key, (size_t) r->key_len, r->kind) == NULL;
}

/* A grant or place that ended the call. False: it is gone already, or has no entry to be seen by. */
static bool
describe_hold(struct own_slot *o, struct dfl_slot_result *result)
{
	struct dfl_hold *hold = dfl_call_hold(o->call);

	if (result->error.status != DFL_OK || o->request.op > DFL_OP_WAIT)
		return true;
	if (hold != NULL && dfl_holds_describe(hold, result) && result->state != DFL_STATE_LOST)
		return true;
	clear(result);
	dfl_fail(&result->error, DFL_LOST, "the lock was lost before it could be used");
	return false;
}

static void
publish(struct own_slot *o)
{
	struct dfl_slot_result result;
	struct dfl_call *call = o->call;
	struct dfl_hold *hold;
	bool		described;
	bool		seen;

	pending--;
	if ((o->request.op == DFL_OP_STATS || o->request.op == DFL_OP_PING) && dfl_call_status(call) == DFL_OK)
	{
		o->call = NULL;
		stream_begin(o, call, dfl_call_answers(call));
		return;
	}
	fill_result(o, &result);
	described = describe_hold(o, &result);
	seen = hand_out(o, &result);
	hold = result.error.status == DFL_OK || !described ? dfl_call_hold(call) : NULL;
	if (hold != NULL && o->request.op <= DFL_OP_WAIT && (!seen || !described))
		return_unseen(o, hold);
	o->call = NULL;
	dfl_call_free(call, dfl_clock());
}

void
dfl_slots_call_done(void *ctx, struct dfl_call *call)
{
	struct own_slot *o = dfl_call_user(call);

	if (o->done)
		return;
	o->done = true;
	finished[finished_count++] = index_of(o);
}

void
dfl_slots_publish(void)
{
	/* Giving back and freeing may end nothing else of another slot, but may add to the list: read it as it grows. */
	for (uint32 i = 0; i < finished_count; i++)
	{
		struct own_slot *o = &own[finished[i]];

		o->done = false;
		if (o->call != NULL && dfl_call_status(o->call) != DFL_PENDING)
			publish(o);
	}
	finished_count = 0;
}

/* The request is not wanted any more, or its session is about to ask something else. */
static void
give_up(struct own_slot *o)
{
	struct dfl_call *call = o->call;
	struct dfl_hold *hold;

	stream_end(o);
	if (call == NULL)
		return;
	if (dfl_call_status(call) == DFL_PENDING)
		dfl_call_cancel(call, dfl_clock());
	else if (dfl_call_status(call) == DFL_OK && o->request.op <= DFL_OP_WAIT && (hold = dfl_call_hold(call)) != NULL)
		return_unseen(o, hold);
	pending--;
	o->call = NULL;
	dfl_call_free(call, dfl_clock());
}

/* ---------------------------------------------------------------- sessions */

static void
end_session(struct own_slot *o)
{
	stream_end(o);
	if (o->call != NULL)
	{
		pending--;
		o->call = NULL;
	}
	if (o->session != NULL)
		dfl_session_end(o->session, dfl_clock());
	o->session = NULL;
}

/* Ends what belongs to earlier sessions of this slot. */
static void
follow_session(uint32 index)
{
	struct own_slot *o = &own[index];
	uint64		number = pg_atomic_read_u64(&dfl_slot(index)->session);

	if (o->session_number == number)
		return;
	if (!DFL_PLANTED(10))
		end_session(o);
	o->session_number = number;
	dfl_holds_session_ended(index, number);
}

/* ---------------------------------------------------------------- requests */

static struct dfl_request_args
arguments(struct own_slot *o)
{
	const struct dfl_slot_request *r = &o->request;
	struct dfl_request_args a;

	memset(&a, 0, sizeof(a));
	a.key = r->key;
	a.key_len = (size_t) r->key_len;
	a.kind = r->kind;
	a.slots = r->slots;
	a.timeout_ms = r->timeout_ms;
	a.lock_timeout_ms = r->lock_timeout_ms;
	a.lease_s = r->lease_s;
	a.scope = r->scope;
	a.user = o;
	return a;
}

/* Starts a request in the engine: a call, or an answer at once in *result. */
typedef enum dfl_status (*start_function) (struct own_slot *o, struct dfl_call **call, struct dfl_slot_result *result);

static enum dfl_status
start_acquire(struct own_slot *o, struct dfl_call **call, struct dfl_slot_result *result)
{
	struct dfl_request_args a = arguments(o);

	dfl_session_set_cap(o->session, o->request.max_session_locks);
	if (o->request.told != 0)
		dfl_holds_set_told(o->request.told_entry, o->request.told);
	if (o->request.op == DFL_OP_ENQUEUE)
		return dfl_enqueue(o->session, &a, dfl_clock(), call, &result->error);
	return dfl_acquire(o->session, &a, dfl_clock(), call, &result->error);
}

static enum dfl_status
start_wait(struct own_slot *o, struct dfl_call **call, struct dfl_slot_result *result)
{
	struct dfl_request_args a = arguments(o);
	enum dfl_status status;

	o->was_held = dfl_session_place(o->session, a.key, a.key_len, a.kind) == NULL;
	status = dfl_wait_turn(o->session, &a, dfl_clock(), call, &result->error);
	if (status != DFL_OK)
		result->yes = dfl_session_place(o->session, a.key, a.key_len, a.kind) == NULL;
	return status;
}

static enum dfl_status
start_cancel(struct own_slot *o, struct dfl_call **call, struct dfl_slot_result *result)
{
	result->yes = dfl_cancel(o->session, o->request.key, (size_t) o->request.key_len, dfl_clock());
	return DFL_OK;
}

static enum dfl_status
start_release(struct own_slot *o, struct dfl_call **call, struct dfl_slot_result *result)
{
	const struct dfl_slot_request *r = &o->request;

	return dfl_release(o->session, r->kind, r->key, (size_t) r->key_len, r->wait_answer, o, dfl_clock(), call,
					   &result->error);
}

static enum dfl_status
start_release_token(struct own_slot *o, struct dfl_call **call, struct dfl_slot_result *result)
{
	const struct dfl_slot_request *r = &o->request;

	return dfl_release_token(o->session, r->kind, r->key, (size_t) r->key_len, r->token, r->wait_answer, o, dfl_clock(),
							 call, &result->error);
}

static enum dfl_status
start_release_all(struct own_slot *o, struct dfl_call **call, struct dfl_slot_result *result)
{
	return dfl_release_all(o->session, o->request.wait_answer, o, dfl_clock(), call, &result->error);
}

static enum dfl_status
start_renew(struct own_slot *o, struct dfl_call **call, struct dfl_slot_result *result)
{
	const struct dfl_slot_request *r = &o->request;

	return dfl_renew(o->session, r->key, (size_t) r->key_len, r->lease_s, o, dfl_clock(), call, &result->error);
}

static enum dfl_status
start_stats(struct own_slot *o, struct dfl_call **call, struct dfl_slot_result *result)
{
	return dfl_stats(o->session, o, dfl_clock(), call, &result->error);
}

static enum dfl_status
start_ping(struct own_slot *o, struct dfl_call **call, struct dfl_slot_result *result)
{
	return dfl_ping(o->session, o, dfl_clock(), call, &result->error);
}

/* What each request needs, and how it starts. The two without a function are answered by the stream. */
static const struct
{
	start_function start;
	bool		needs_servers;	/* refused while the login token or the TLS material cannot be read */
}			operations[DFL_OP_COUNT] = {
	[DFL_OP_ACQUIRE] = {start_acquire, true},
	[DFL_OP_ENQUEUE] = {start_acquire, true},
	[DFL_OP_WAIT] = {start_wait, false},
	[DFL_OP_CANCEL] = {start_cancel, false},
	[DFL_OP_RELEASE] = {start_release, false},
	[DFL_OP_RELEASE_TOKEN] = {start_release_token, true},
	[DFL_OP_RELEASE_ALL] = {start_release_all, false},
	[DFL_OP_RENEW] = {start_renew, false},
	[DFL_OP_STATS] = {start_stats, true},
	[DFL_OP_PING] = {start_ping, true},
	[DFL_OP_SERVERS] = {NULL, false},
	[DFL_OP_NEXT] = {NULL, false},
};

/* Copies the request that the word tells of, then takes it. False: there is none, or it was given up meanwhile. */
static bool
take_request(struct own_slot *o, uint64 word)
{
	struct dfl_slot *slot = dfl_slot(index_of(o));
	struct dfl_slot_request copy;

	if (DFL_WORD_STATE(word) != DFL_SLOT_REQUEST)
		return false;
	pg_read_barrier();
	copy = slot->request;
	if (!pg_atomic_compare_exchange_u64(&slot->word, &word, DFL_WORD(DFL_WORD_NUMBER(word), DFL_SLOT_TAKEN)))
		return false;
	o->request = copy;
	o->number = DFL_WORD_NUMBER(word);
	return true;
}

/* A request of this session to this worker, for which there is a session of the engine. */
static bool
may_start(struct own_slot *o)
{
	struct dfl_error err;

	if (o->request.session != o->session_number || o->request.worker != dfl_worker_number ||
		o->request.op >= DFL_OP_COUNT)
		return false;
	if (operations[o->request.op].needs_servers && dfl_worker_unusable.status != DFL_OK)
	{
		hand_out_error(o, &dfl_worker_unusable);
		return false;
	}
	if (o->session == NULL && dfl_session_new(dfl_worker_client, o, &o->session) != DFL_OK)
	{
		dfl_fail(&err, DFL_NOMEM, "out of memory");
		hand_out_error(o, &err);
		return false;
	}
	return true;
}

static void
start(struct own_slot *o)
{
	struct dfl_slot_result result;
	struct dfl_call *call = NULL;
	enum dfl_status status;

	clear(&result);
	starting.request = o->number;
	starting.pid = o->request.pid;
	status = operations[o->request.op].start(o, &call, &result);
	memset(&starting, 0, sizeof(starting));
	if (call == NULL)
	{
		result.error.status = status;
		hand_out(o, &result);
		return;
	}
	o->call = call;
	pending++;
	if (dfl_call_status(call) != DFL_PENDING)
		dfl_slots_call_done(NULL, call);
}

/*
 * First step: what is over is given up, what is new is taken. By one reading of the word: the request after this one may
 * come at any moment, and may not be taken before this one is given up.
 */
static void
take(uint32 index)
{
	struct own_slot *o = &own[index];
	uint64		word = pg_atomic_read_u64(&dfl_slot(index)->word);

	o->listed = false;
	/* While it is worked at, the word says so; anything else means that the backend went on without it. */
	if (o->call != NULL && word != DFL_WORD(o->number, DFL_SLOT_TAKEN) && !DFL_PLANTED(21))
		give_up(o);
	if (DFL_WORD_STATE(word) == DFL_SLOT_CANCELED)
		stream_end(o);
	o->taken = take_request(o, word);
}

/* Last step: what was taken is started. */
static void
serve(uint32 index)
{
	struct own_slot *o = &own[index];

	if (!o->taken)
		return;
	o->taken = false;
	if (o->request.op != DFL_OP_NEXT)
		stream_end(o);
	if (!may_start(o))
		return;
	if (o->request.op == DFL_OP_NEXT)
		stream_next(o);
	else if (o->request.op == DFL_OP_SERVERS)
		stream_begin(o, NULL, dfl_client_servers(dfl_worker_client));
	else
		start(o);
}

/* One look at each slot in a round, however often it was rung: a second one would forget what the first has taken. */
static void
note_rung(uint32 index)
{
	if (own[index].listed && !DFL_PLANTED(22))
		return;
	own[index].listed = true;
	rung[rung_count++] = index;
}

/* A slot that is rung during the round: its session is followed now, its request looked at in the next one. */
static void
note_late(uint32 index)
{
	follow_session(index);
	late[late_count++] = index;
}

bool
dfl_slots_serve(void)
{
	rung_count = 0;
	for (uint32 i = 0; i < late_count; i++)
		note_rung(late[i]);
	late_count = 0;
	dfl_slots_rung(note_rung);
	for (uint32 i = 0; i < rung_count; i++)
		take(rung[i]);
	/* Whatever ended or was committed before one of these requests was made is visible now, and goes first. */
	for (uint32 i = 0; i < rung_count; i++)
		follow_session(rung[i]);
	dfl_slots_rung(note_late);
	dfl_holds_serve_marks();
	for (uint32 i = 0; i < rung_count; i++)
		serve(rung[i]);
	return late_count > 0;
}
