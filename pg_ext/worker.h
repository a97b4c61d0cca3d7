/*
 * worker.h - the parts of the background worker: worker.c (loop, settings, start and end), worker_slots.c (requests and
 * results), worker_holds.c (entries of holds in shared memory). All state here belongs to the worker's process.
 */
#ifndef DFL_PG_WORKER_H
#define DFL_PG_WORKER_H

#include "postgres.h"

#include "dflockd.h"
#include "shmem.h"

/* ------------------------------------------------------------------ worker.c */

extern void dfl_worker_register(void);	/* in _PG_init */
extern PGDLLEXPORT void dfl_worker_main(Datum argument);

extern struct dfl_client *dfl_worker_client;
extern uint64 dfl_worker_number;

/* Why the servers cannot be used (login token or TLS material unreadable since the start); status DFL_OK: they can. */
extern struct dfl_error dfl_worker_unusable;

/* ------------------------------------------------------------ worker_slots.c */

extern void dfl_slots_init(void);	/* may ereport: at start */

/*
 * One round: takes requests, then ends sessions and gives back marked holds, then starts the requests. True: more has
 * come meanwhile, go round again before sleeping.
 */
extern bool dfl_slots_serve(void);
extern void dfl_slots_publish(void);	/* hands out the results that are there */
extern void dfl_slots_call_done(void *ctx, struct dfl_call *call);	/* the engine's callback */
extern uint32 dfl_slots_attached(void); /* sessions that are attached, as shared memory says now */
extern bool dfl_slots_pending(void);	/* is any request being worked at? */

/* The request that is being started, for the holds that it makes; number 0: none. */
struct dfl_origin
{
	uint32		slot;
	uint64		session;
	uint64		request;
	int			pid;
};
extern struct dfl_origin dfl_slots_origin(struct dfl_session *session);

/* ------------------------------------------------------------ worker_holds.c */

extern void dfl_holds_init(void);	/* may ereport: at start. Marks the holds of earlier workers lost */
extern bool dfl_holds_take_lock(void *ctx);
extern void dfl_holds_give_lock(void *ctx);
extern void dfl_holds_changed(void *ctx, struct dfl_hold *hold);
extern void dfl_holds_gone(void *ctx, struct dfl_hold *hold);
extern void dfl_holds_link_changed(void *ctx, unsigned link, int64_t deadline_ms);
extern void dfl_holds_serve_marks(void);	/* gives back what is marked for release */
extern void dfl_holds_session_ended(uint32 slot, uint64 session);	/* forgets what earlier workers left to earlier
																	 * sessions of this slot than this one */

/* The hold of that number, if the entry is still its own, is known to its session to be lost. */
extern void dfl_holds_set_told(uint32 entry, uint64 hold);

/* Fills entry, number, state, token and fence of a result. False when the hold has no entry. */
extern bool dfl_holds_describe(struct dfl_hold *hold, struct dfl_slot_result *result);
extern uint64 dfl_holds_request(struct dfl_hold *hold); /* number of the request that made it */

#endif
