/*
 * guard.h - hears of every sqlite3_close(), also of a refused or deferred one.
 */
#ifndef DFL_SQLITE_GUARD_H
#define DFL_SQLITE_GUARD_H

struct sq_session;

/* The name of its eponymous table: nobody reads it, so no open statement can keep it from hearing.
 */
#define SQ_GUARD_MODULE "dflock_close_guard"

extern const struct sqlite3_module sq_guard_module; /* user data: the session */

/* Puts the guard on duty (again, after a refused close); cheap when it is. */
void sq_guard_connect(struct sq_session *s);

#endif
