/*
 * stats.h - the answer to `stats`: one line of JSON, made in slices, because it may be about a
 * million keys.
 */
#ifndef DFL_SERVER_STATS_H
#define DFL_SERVER_STATS_H

#include "session.h"

/* Begins the answer, and makes all of it if it is short. */
void stats_start(struct session *s, struct dfl_now now);
/* Makes the next slice, once the one before has been sent. False when that was the last. */
bool stats_run(struct session *s, struct dfl_now now);
void stats_stop(struct session *s);

#endif
