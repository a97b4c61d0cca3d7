/*
 * renewer.h - the one background thread of a process: renews what sessions hold, and reads what
 * their calls left unanswered.
 */
#ifndef DFL_SQLITE_RENEWER_H
#define DFL_SQLITE_RENEWER_H

#include "../core/dflockd.h"

struct sq_session;

/* Starts the thread unless it runs. An error with the reason when that is not possible. */
enum dfl_status sq_renewer_start(struct dfl_error *err);
bool sq_renewer_runs(void);

/*
 * The session's published wishes have changed. Wakes the thread only when it would sleep past them;
 * does nothing when there is none.
 */
void sq_renewer_expect(struct sq_session *s);

/* In a forked child: there is no such thread. */
void sq_renewer_abandon(void);

#endif
