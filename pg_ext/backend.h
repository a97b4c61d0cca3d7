/*
 * backend.h - what a backend does: its slot and waits (backend.c), its own list of holds (holds.c), transactions
 * (xact.c), texts and errors (errors.c).
 */
#ifndef DFL_PG_BACKEND_H
#define DFL_PG_BACKEND_H

#include "postgres.h"
#include "compat.h"
#include "lib/ilist.h"
#include "lib/stringinfo.h"

#include "dflockd.h"
#include "shmem.h"

/* ------------------------------------------------------------------ errors.c */

/* The one way in which a status becomes an error: the engine's text, its SQLSTATE, a hint of ours or NULL. */
extern COMPAT_NORETURN void dfl_raise(const struct dfl_error *err, const char *hint);
extern void dfl_warn(const char *text);

/* UTF-8 from a server or another session, in the encodings of this database and client; what they lack as \uXXXX. */
extern char *dfl_text_from_wire(const char *text, size_t len);
/* The same for JSON text, where an escape must stay one for its reader. */
extern char *dfl_json_from_wire(const char *text, size_t len);

/* ----------------------------------------------------------------- backend.c */

/* Makes this session one of the extension's, or raises LK006. Every function that is about locks begins with it. */
extern void dfl_attach(void);
extern bool dfl_attached(void);
extern uint32 dfl_my_slot(void);
extern uint64 dfl_my_session(void);
extern uint64 dfl_live_worker(void);	/* number of the worker that runs; 0 = none */

/*
 * Asks the worker and waits for its answer, interruptibly. The result stays valid until the next request. Raises only
 * for interrupts and for a worker that is not there; then a grant that came too late has been given back. Where
 * request->worker is not 0, only the worker of that number is asked; afterwards it is that of the one that was.
 * undo is what that means for this session: it is called, with the result if there is one, before the error goes on.
 */
struct dfl_undo
{
	void		(*fn) (void *arg, const struct dfl_slot_result *result, bool taken);
	void	   *arg;
};
extern const struct dfl_slot_result *dfl_ask(struct dfl_slot_request *request, const struct dfl_undo *undo);

/* One row of a large result; what it is given is its own until it returns. */
typedef void (*dfl_row_function) (void *arg, const struct dfl_row *row, const char *address, const char *error,
								  const char *body);
/* Asks for a large result and calls fn for each of its rows as they come: only one is in memory at a time. */
extern void dfl_ask_rows(enum dfl_op op, dfl_row_function fn, void *arg);

/* ------------------------------------------------------------------- holds.c */

/* A hold or place of this session, as the session knows it. */
struct dfl_own
{
	dlist_node	by_key;
	dlist_node	by_xact;
	bool		in_xact;		/* in the list of this transaction */
	bool		findable;		/* in the table by key; no longer when its owner has given it back */
	enum dfl_kind kind;
	enum dfl_scope scope;
	bool		place;			/* in a queue, not held */
	bool		told;			/* the session knows that it is lost */
	SubTransactionId taken_in;	/* the open sub-transaction that took it; 0 = an earlier transaction */
	SubTransactionId asserted_in;	/* the outermost open one that counts on it; 0 = none */
	uint32		entry;
	uint64		hold;
	uint64		worker;
	int64		fence;
	uint32		hash;
	int			key_len;
	char		token[DFL_TOKEN_LEN + 1];
	char		key[FLEXIBLE_ARRAY_MEMBER];
};

/* What shared memory says of a hold. */
enum dfl_own_state
{
	DFL_OWN_HELD,
	DFL_OWN_LOST,				/* also: released by somebody else */
	DFL_OWN_PLACE
};

/* Allocated before a request, so that nothing can fail once its grant is there. Freed by dfl_own_free if unused. */
extern struct dfl_own *dfl_own_new(const char *key, int key_len, enum dfl_kind kind, enum dfl_scope scope);
extern void dfl_own_free(struct dfl_own *own);

/* From now on the session has it, taken in the current sub-transaction. */
extern void dfl_own_add(struct dfl_own *own, const struct dfl_slot_result *result);
extern struct dfl_own *dfl_own_by_hold(uint64 hold, const char *key, int key_len);

/* "Which hold of a key": the lock, else the newest semaphore slot; with a kind only that. Held and lost ones. */
#define DFL_ANY_SCOPE (-1)
extern struct dfl_own *dfl_own_find(const char *key, int key_len, enum dfl_kind kind, int scope);
extern struct dfl_own *dfl_own_find_token(const char *key, int key_len, enum dfl_kind kind, const char *token);
extern struct dfl_own *dfl_own_find_place(const char *key, int key_len, enum dfl_kind kind);

/* What shared memory and the clock say now. text (NULL allowed): when and why it was lost. */
extern enum dfl_own_state dfl_own_check(const struct dfl_own *own, char *text, size_t size);
extern bool dfl_own_orphaned(const struct dfl_own *own);	/* of a worker that is gone */
extern bool dfl_own_forgotten(const struct dfl_own *own);	/* the worker that runs has none of it any more */

/* The place has come up. */
extern void dfl_own_granted(struct dfl_own *own, const struct dfl_slot_result *result);

/* The session does not have it any more (the engine knows); what counts on it stays to refuse the commit. */
extern void dfl_own_drop(struct dfl_own *own);
/* Likewise, and the worker is told by a mark. Never fails, never waits. */
extern void dfl_own_give_back(struct dfl_own *own);
extern void dfl_own_give_back_all(void);	/* session holds and places: DISCARD ALL */
extern void dfl_own_drop_all(void); /* the same when the engine has released them */
/* Calls fn for each, or each of one key; fn may drop or give back what it is given. */
extern void dfl_own_each(void (*fn) (void *arg, struct dfl_own *own), void *arg);
extern void dfl_own_each_of(const char *key, int key_len, void (*fn) (void *arg, struct dfl_own *own), void *arg);
extern void dfl_own_count_on(struct dfl_own *own);	/* the transaction counts on it */

extern dlist_head dfl_own_in_xact;	/* what this transaction has taken or counts on */
extern void dfl_own_leave_xact(struct dfl_own *own);

/* -------------------------------------------------------------------- xact.c */

extern void dfl_xact_init(void);	/* in _PG_init, preloaded only */

#endif
