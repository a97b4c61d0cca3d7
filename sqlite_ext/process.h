/*
 * process.h - what all SQLite sessions of one process share: the list of sessions, fork, exit, and
 * the process's own caps.
 */
#ifndef DFL_SQLITE_PROCESS_H
#define DFL_SQLITE_PROCESS_H

#include "../core/dflockd.h"

struct sq_session;

/* Registers the fork and exit handlers and makes the fence book; cheap when it has been done. */
enum dfl_status sq_process_start(struct dfl_error *err);

/* Has OpenSSL initialise itself now, and puts our exit handler in front of its own. */
void sq_process_start_tls(void);

/*
 * Brackets around every use of the engine and its TLS library. enter() says false once the process
 * is exiting: nothing of the engine may be touched from then on.
 */
bool sq_process_enter(void);
void sq_process_leave(void);

/*
 * What a forked child leaves as it is, because other threads of the parent were at work on it: kept
 * in reach, never used, never freed. The list's entry is made beforehand, as a child of many
 * threads had better not allocate.
 */
#define SQ_REMAINS_PARTS 5
struct sq_remains {
    void *part[SQ_REMAINS_PARTS];
    struct sq_remains *next;
};
void sq_process_keep(struct sq_remains *r);

/* Counts the forks between the first process and this one. */
unsigned sq_process_generation(void);

/*
 * The gate guards the list of sessions, their counts of users, the freeing of their clients and the
 * start of the renewal thread. It is held while the process forks, so a child finds all of these
 * whole. Never held while waiting or while a session's mutex is being taken.
 */
void sq_process_gate_lock(void);
void sq_process_gate_unlock(void);

/* The list of sessions that have a client; all with the gate locked. */
struct sq_session *sq_process_first(void);
void sq_process_add(struct sq_session *s);
void sq_process_remove(struct sq_session *s);

struct dfl_fence_book *sq_process_fences(void);

/* max_locks: the first session's environment decides for the process. */
void sq_process_set_max_locks(int64_t max_locks);
int64_t sq_process_max_locks(void);
bool sq_process_take_lock(void *unused);
void sq_process_give_lock(void *unused);

#endif
