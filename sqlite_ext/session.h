/*
 * session.h - the state behind one sqlite3*: its engine, its settings, and how a thread drives a
 * call to its end.
 */
#ifndef DFL_SQLITE_SESSION_H
#define DFL_SQLITE_SESSION_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "../core/dflockd.h"
#include "interrupt.h"

struct sq_session {
    struct sqlite3 *db;

    /* The gate of process.h guards these. */
    struct sq_session *previous, *next;
    unsigned registrations; /* functions and modules that SQLite still has */
    unsigned pins; /* other users: the list of sessions, the renewal thread, a visiting thread */

    /*
     * Guards the engine's objects and nothing else. Never held while waiting, and never two of them
     * by one thread.
     */
    pthread_mutex_t mutex;
    struct dfl_client *client; /* NULL before the first use */
    struct dfl_session *owner; /* NULL once the connection is closed */
    struct dfl_wait *wait;
    struct dfl_error unwatched; /* why a descriptor is not watched; DFL_OK: all are */
    struct sq_remains *remains; /* for these, when a child is forked */
    int64_t patience_ms;        /* closed: when to stop waiting for what was left behind */

    /* Told to the renewal thread, which reads them without the mutex. */
    atomic_uint drivers; /* threads that drive a call here, blocked or not */
    atomic_bool closed;
    _Atomic int64_t next_ms; /* when the engine wants to run */
    atomic_bool left_behind; /* its sockets want to be watched */

    /* The renewal thread's own; others only read them. */
    atomic_bool watched; /* its sockets are */
    atomic_bool ready;   /* one of them has something */
    atomic_bool polled;  /* they could not be: looked at now and then instead */

    /* Only for the thread that SQLite lets in. */
    pid_t pid; /* of the process that made the connection, or has it by fork */
    struct dfl_settings settings;
    struct dfl_error environment; /* what was wrong with it; DFL_OK: nothing */
    struct dfl_wait_round round;
    struct dfl_tls *tls;
    char *token;                      /* the login token; wiped when freed */
    bool guarded;                     /* SQLite tells us of a close */
    struct sq_snapshot *server_locks; /* newest answer to stats, for a second */
};

/* The state for db, with settings from the environment. No socket, no thread. NULL: no memory. */
struct sq_session *sq_session_new(struct sqlite3 *db);

/* One registration more or less. With the last one the session ends: everything is given back,
 * memory is freed now or by the renewal thread. */
void sq_session_retain(struct sq_session *s);
void sq_session_release(void *session);

/* The connection is being closed, perhaps in vain: everything held or awaited is given back. Sends,
 * never waits. */
void sq_session_give_back(struct sq_session *s);

/* Makes the engine at first use. Every SQL function but those of pure arithmetic begins with it. */
enum dfl_status sq_session_open(struct sq_session *s, struct dfl_error *err);

/* Takes the settings as they are in s->settings to the engine. On failure the engine keeps the old
 * ones. */
enum dfl_status sq_session_configure(struct sq_session *s, struct dfl_error *err);

/* A request: how it is started, and what to read from its end. Both run under the session's mutex.
 */
struct sq_request {
    enum dfl_status (*start)(struct dfl_session *owner, void *arg, struct dfl_now now,
                             struct dfl_call **call, struct dfl_error *err);
    void (*finish)(struct dfl_call *call, void *arg); /* after DFL_OK; NULL = nothing to read */
    void *arg;
};

/* Opens the session, starts the request and drives it to its end; that is the result. */
enum dfl_status sq_session_call(struct sq_session *s, const struct sq_request *request,
                                struct dfl_error *err);

/* A request of s that runs on the engine of another session of this process, which the caller has
 * pinned. */
enum dfl_status sq_session_visit(struct sq_session *s, struct sq_session *other,
                                 const struct sq_request *request, struct dfl_error *err);

/* Opens the session and runs something that needs no answer, under the mutex. */
enum dfl_status sq_session_do(struct sq_session *s,
                              enum dfl_status (*step)(struct sq_session *s, void *arg,
                                                      struct dfl_now now, struct dfl_error *err),
                              void *arg, struct dfl_error *err);

/* All other sessions of this process one after the other, pinned, until fn says false. */
void sq_session_others(struct sq_session *s, bool (*fn)(struct sq_session *other, void *arg),
                       void *arg);

/* With DFL_OK the mutex is held and the engine is there; DFL_NOT_HELD: a session without an engine;
 * DFL_INTERNAL: the process is exiting. */
enum dfl_status sq_session_lock(struct sq_session *s);
void sq_session_unlock(struct sq_session *s);

/* With the mutex held: does what is due and tells the renewal thread what is left. Also for the
 * renewal thread itself. */
void sq_session_publish(struct sq_session *s, struct dfl_now now);
void sq_session_poll(struct sq_session *s,
                     struct dfl_wait_round *round); /* reads what has arrived, without waiting */

/* Pins (gate held) and unpins (gate not held); the last one to go frees the session. */
void sq_session_pin(struct sq_session *s);
void sq_session_unpin(struct sq_session *s);

/* In a forked child: back to a session that holds nothing, touching no lock and no client of the
 * parent. */
void sq_session_abandon(struct sq_session *s);

#endif
