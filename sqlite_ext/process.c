/*
 * process.c - what all SQLite sessions of one process share.
 *
 * Owns the list of sessions, the gate in front of it, the fence book, the count of holds against
 * max_locks, and the handlers for fork and exit. Never touches a socket itself and never waits, but
 * for the bounded wait at exit.
 */
#include "process.h"

#include <openssl/ssl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "renewer.h"
#include "session.h"

#define EXIT_PATIENCE_MS 200

static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static struct sq_session *sessions; /* gate */
static struct sq_remains
    *remains; /* of processes before this one; written by a child's only thread */
static struct dfl_fence_book
    *fences; /* set once, never freed: sessions may outlive any moment we could choose */

static atomic_uint generation;
static atomic_int inside;    /* threads between enter and leave */
static atomic_bool stopping; /* exit() has begun */
static atomic_llong locks_taken;
static atomic_llong max_locks; /* 0: not decided yet */

void sq_process_gate_lock(void)
{
    pthread_mutex_lock(&gate);
}

void sq_process_gate_unlock(void)
{
    pthread_mutex_unlock(&gate);
}

/* -------------------------------------------------------------------- fork */

void sq_process_keep(struct sq_remains *r)
{
    r->next = remains;
    remains = r;
}

/*
 * The child has one thread. Whatever the others were doing in the parent stays undone for ever, so
 * their mutexes and clients are left where they are: sessions start anew, holding nothing. The gate
 * is ours, so the list is whole.
 */
static void in_child(void)
{
    atomic_fetch_add(&generation, 1);
    atomic_store(&inside, 0);
    atomic_store(&locks_taken, 0);
    sq_renewer_abandon();
    struct sq_session *s = sessions;
    sessions = NULL;
    while (s) {
        struct sq_session *next = s->next;
        sq_session_abandon(s);
        s = next;
    }
    sq_process_gate_unlock();
}

unsigned sq_process_generation(void)
{
    return atomic_load_explicit(&generation, memory_order_relaxed);
}

/* -------------------------------------------------------------------- exit */

bool sq_process_enter(void)
{
    atomic_fetch_add(&inside, 1);
    if (!atomic_load(&stopping))
        return true;
    atomic_fetch_sub(&inside, 1);
    return false;
}

void sq_process_leave(void)
{
    atomic_fetch_sub(&inside, 1);
}

/*
 * Runs before OpenSSL frees its tables: nobody starts anything new, and who is in the middle of a
 * step gets time to end it. Takes no mutex: the thread that calls exit() may be any thread, in any
 * state.
 */
static void at_exit(void)
{
    atomic_store(&stopping, true);
    for (int waited_ms = 0; waited_ms < EXIT_PATIENCE_MS && atomic_load(&inside) > 0; waited_ms++) {
        struct timespec one_ms = {.tv_nsec = 1000000};
        nanosleep(&one_ms, NULL);
    }
}

static void start_tls(void)
{
    /* Handlers run last in, first out: ours has to be registered after OpenSSL's. */
    OPENSSL_init_ssl(0, NULL);
    atexit(at_exit);
}

void sq_process_start_tls(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, start_tls);
}

/* ------------------------------------------------------------------- start */

static void register_handlers(void)
{
    pthread_atfork(sq_process_gate_lock, sq_process_gate_unlock, in_child);
    atexit(at_exit);
}

enum dfl_status sq_process_start(struct dfl_error *err)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    enum dfl_status status = DFL_OK;

    pthread_once(&once, register_handlers);
    sq_process_gate_lock();
    if (!fences)
        status = dfl_fence_book_new(&fences);
    sq_process_gate_unlock();
    return status == DFL_OK ? DFL_OK : dfl_fail(err, status, "out of memory");
}

struct dfl_fence_book *sq_process_fences(void)
{
    return fences;
}

/* -------------------------------------------------------------------- list */

struct sq_session *sq_process_first(void)
{
    return sessions;
}

void sq_process_add(struct sq_session *s)
{
    s->previous = NULL;
    s->next = sessions;
    if (sessions)
        sessions->previous = s;
    sessions = s;
}

void sq_process_remove(struct sq_session *s)
{
    if (s->next)
        s->next->previous = s->previous;
    if (s->previous)
        s->previous->next = s->next;
    else
        sessions = s->next;
    s->previous = s->next = NULL;
}

/* --------------------------------------------------------------- max_locks */

void sq_process_set_max_locks(int64_t value)
{
    long long undecided = 0;

    atomic_compare_exchange_strong(&max_locks, &undecided, value);
}

int64_t sq_process_max_locks(void)
{
    return atomic_load(&max_locks);
}

bool sq_process_take_lock(void *unused)
{
    (void)unused;
    if (atomic_fetch_add(&locks_taken, 1) < atomic_load(&max_locks))
        return true;
    atomic_fetch_sub(&locks_taken, 1);
    return false;
}

void sq_process_give_lock(void *unused)
{
    (void)unused;
    atomic_fetch_sub(&locks_taken, 1);
}
