/*
 * fence.h - where tokens come from: a number that grows with every grant, and random digits behind
 * it.
 *
 * With a state file the number goes on growing after a crash, also when the clock has been set
 * back, and the file keeps the moment up to which leases can run. Both are written and synced ahead
 * of what is answered, so the file is never behind an answer; each takes a write per many grants.
 * Fences of one server are never reused.
 */
#ifndef DFL_SERVER_FENCE_H
#define DFL_SERVER_FENCE_H

#include "locktable.h"

struct fence;

/*
 * path NULL: fences begin at the clock, nothing is kept. Otherwise the file is read, or made, and
 * locked against other servers. DFL_OK, or a refusal with the sentence in *err: a file that is not
 * a whole state file is never taken for a new one.
 */
enum dfl_status fence_open(const char *path, struct dfl_now now, struct fence **fence,
                           struct dfl_error *err);

/* Real time up to which leases of an earlier run, which did not end cleanly, can run; 0 = none. */
int64_t fence_unsafe_until_ms(const struct fence *f);
void fence_safe(struct fence *f); /* that has been waited for, or waived */

/* The time for what follows: leases are counted from it. To be called at fence_next_ms() at the
 * latest: a real-time clock that is set must be seen before the process ends without a word. */
void fence_now(struct fence *f, struct dfl_now now);
int64_t fence_next_ms(const struct fence *f); /* INT64_MAX: whenever */

/* For struct lock_mint; ctx is the fence. False when the file could not be written: nothing may be
 * granted then. */
bool fence_grant(void *ctx, int64_t lease_s, struct lock_token *token);
bool fence_extend(void *ctx, int64_t lease_s);

/* Nothing is held any more and has not been for a while: the file need not keep anybody waiting. */
void fence_nothing_held(struct fence *f);

/* clean: nothing is held, the next run may grant at once. */
void fence_close(struct fence *f, bool clean);

#endif
