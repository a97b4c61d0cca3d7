/*
 * renewer.c - the one background thread of a process.
 *
 * It renews what idle sessions hold, and reads the answers that their calls did not wait for. It
 * sleeps until the earliest moment that any session wants, and is woken earlier only by who needs
 * it earlier than that: an ordinary call costs no wake-up. It touches a session under its mutex
 * only, one at a time, and never calls SQLite.
 */
#include "renewer.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "process.h"
#include "session.h"

/* A session with a driver is the driver's business. It gets this much time before the thread steps
 * in: it may sit in a callback of the application. */
#define DRIVER_GRACE_MS 100
/* Where descriptors cannot be nested (no epoll, or no memory for it), left-behind sockets are
 * looked at this often. */
#define UNNESTED_INTERVAL_MS 20

#define AWAKE INT64_MIN /* about to look at all sessions anyway */

static atomic_bool running;
static _Atomic int64_t sleeps_until;
static _Atomic int64_t woken_for = INT64_MAX; /* the moment that the last wake-up was about */
static int wake[2] = {-1, -1};
static struct dfl_wait *wait_set; /* the thread's own: one descriptor per session left behind */
static struct dfl_wait_round own_round, session_round;
static struct sq_remains *remains; /* for these, when a child is forked */

bool sq_renewer_runs(void)
{
    return atomic_load(&running);
}

/* ------------------------------------------------------------------ wake-up */

static void wake_up(void)
{
    while (write(wake[1], "", 1) < 0 && errno == EINTR)
        ;
}

static void drain(void)
{
    char bytes[64];

    while (read(wake[0], bytes, sizeof bytes) > 0)
        ;
}

/* ---------------------------------------------------------------- sessions */

static bool nested(const struct sq_session *s)
{
    return dfl_wait_descriptor(s->wait) >= 0 && !atomic_load(&s->polled);
}

static int64_t with_grace(int64_t at_ms)
{
    return at_ms < INT64_MAX - DRIVER_GRACE_MS ? at_ms + DRIVER_GRACE_MS : INT64_MAX;
}

/* When this session is to be looked at. One with a driver is the driver's business first. */
static int64_t due_ms(struct sq_session *s)
{
    int64_t next = atomic_load(&s->next_ms);
    bool watched = atomic_load(&s->watched), left_behind = atomic_load(&s->left_behind);
    /* To be watched from now on, or not any longer. */
    bool changes = watched ? atomic_load(&s->closed) && !left_behind : left_behind;

    if (atomic_load(&s->ready) || changes)
        return INT64_MIN;
    if (atomic_load(&s->drivers) > 0)
        next = with_grace(next);
    if (watched && !nested(s)) {
        int64_t soon = dfl_clock().ms + UNNESTED_INTERVAL_MS;
        next = soon < next ? soon : next;
    }
    return next;
}

void sq_renewer_expect(struct sq_session *s)
{
    if (!atomic_load(&running))
        return;
    int64_t due = due_ms(s), until = atomic_load(&sleeps_until);
    /* One wake-up is enough, whoever else comes before the thread has looked. */
    if (until == AWAKE || due >= until ||
        !atomic_compare_exchange_strong(&sleeps_until, &until, AWAKE))
        return;
    atomic_store(&woken_for, due);
    wake_up();
}

static int64_t earliest(void)
{
    int64_t first = INT64_MAX;

    sq_process_gate_lock();
    for (struct sq_session *s = sq_process_first(); s; s = s->next) {
        int64_t due = due_ms(s);
        if (due < first)
            first = due;
    }
    sq_process_gate_unlock();
    return first;
}

/* The next session behind `at` (NULL: from the first) whose time has come, pinned. */
static struct sq_session *next_due(struct sq_session *at, int64_t now_ms)
{
    sq_process_gate_lock();
    struct sq_session *s = at ? at->next : sq_process_first();
    while (s && due_ms(s) > now_ms && !(atomic_load(&s->watched) && !nested(s)))
        s = s->next;
    if (s)
        sq_session_pin(s);
    sq_process_gate_unlock();
    return s;
}

/* Watches a session's own set of descriptors, or stops to. A watched one is pinned: its tag must
 * stay valid. */
static void set_watched(struct sq_session *s, bool watched)
{
    if (watched == atomic_load(&s->watched))
        return;
    if (nested(s) && dfl_wait_watch(wait_set, dfl_wait_descriptor(s->wait),
                                    watched ? DFL_READABLE : 0, s) != DFL_OK)
        atomic_store(&s->polled, watched);
    else if (!watched)
        atomic_store(&s->polled, false);
    atomic_store(&s->watched, watched);
    if (watched) {
        sq_process_gate_lock();
        sq_session_pin(s);
        sq_process_gate_unlock();
    } else {
        sq_session_unpin(s);
    }
}

/* A driver reads for itself: taking its answer just before it blocks would let it sleep on. Unless
 * it is late. */
static bool driver_at_work(const struct sq_session *s, struct dfl_now now)
{
    return s->drivers > 0 && now.ms < with_grace(atomic_load(&s->next_ms));
}

/*
 * Reads what has come and does what is due; says whether the sockets are to be watched. They stay
 * watched after their answer, so that a session with thousands of holds is not put in and out for
 * each renewal, until something arrives although nothing was left behind: an ordinary call's.
 */
static bool serve(struct sq_session *s)
{
    if (sq_session_lock(s) != DFL_OK)
        return false;
    struct dfl_now now = dfl_clock();
    bool arrived = atomic_exchange(&s->ready, false), expected = atomic_load(&s->left_behind);
    bool keep = atomic_load(&s->watched) && !s->closed && (!arrived || expected);
    if (driver_at_work(s, now)) {
        sq_session_unlock(s);
        return keep && !arrived;
    }
    sq_session_poll(s, &session_round);
    sq_session_publish(s, now);
    if (s->drivers > 0 && now.ms < atomic_load(&s->next_ms))
        atomic_store(&s->next_ms, now.ms); /* its driver is late: look again after another grace */
    keep = keep || atomic_load(&s->left_behind);
    sq_session_unlock(s);
    return keep;
}

static void serve_all(void)
{
    int64_t now_ms = dfl_clock().ms;
    struct sq_session *s = next_due(NULL, now_ms);

    while (s) {
        set_watched(s, serve(s));
        struct sq_session *next = next_due(s, now_ms);
        sq_session_unpin(s);
        s = next;
    }
}

/* ------------------------------------------------------------------ thread */

static void mark_ready(void *unused, void *tag, unsigned events)
{
    (void)unused, (void)events;
    atomic_store(&((struct sq_session *)tag)->ready, true);
}

static void sleep_until(int64_t until_ms)
{
    int64_t now_ms = dfl_clock().ms, timeout_ms = -1;

    if (until_ms != INT64_MAX)
        timeout_ms = until_ms > now_ms ? until_ms - now_ms : 0;
    if (dfl_wait_prepare(wait_set, &own_round) != DFL_OK) {
        poll(NULL, 0, UNNESTED_INTERVAL_MS); /* no memory now: look at everything again soon */
        return;
    }
    dfl_wait_block(&own_round, timeout_ms, wake[0]);
    dfl_wait_dispatch(wait_set, &own_round, mark_ready, NULL);
}

/*
 * When to look again. Who woke us may have released its lock meanwhile, and will wake us for the
 * next one just the same: so we sleep until the moment that it was about and no longer, which costs
 * one look for nothing instead of a wake-up per lock.
 */
static int64_t next_look(void)
{
    int64_t first = earliest(), asked = atomic_exchange(&woken_for, INT64_MAX);

    return asked < first && asked > dfl_clock().ms ? asked : first;
}

static void *renew(void *unused)
{
    (void)unused;
    for (;;) {
        atomic_store(&sleeps_until, AWAKE);
        drain();
        if (!sq_process_enter())
            return NULL;
        serve_all();
        int64_t until = next_look();
        atomic_store(&sleeps_until, until);
        /* Who published between the look and the store did not wake us. */
        int64_t again = earliest();
        sq_process_leave();
        if (again >= until)
            sleep_until(until);
    }
}

static enum dfl_status make_pipe(struct dfl_error *err)
{
    if (wake[0] >= 0)
        return DFL_OK;
    if (pipe(wake) != 0) {
        wake[0] = wake[1] = -1;
        return dfl_fail(err, DFL_TOO_MANY, "cannot start the renewal thread: pipe: %s",
                        strerror(errno));
    }
    for (int i = 0; i < 2; i++) {
        fcntl(wake[i], F_SETFD, FD_CLOEXEC);
        fcntl(wake[i], F_SETFL, O_NONBLOCK);
    }
    return DFL_OK;
}

/* The gate is held. The application's signals are not for us. */
static enum dfl_status start(struct dfl_error *err)
{
    sigset_t all, before;
    pthread_t thread;
    enum dfl_status status = make_pipe(err);

    if (status == DFL_OK && !remains && !(remains = malloc(sizeof *remains)))
        status = dfl_fail(err, DFL_NOMEM, "out of memory");
    if (status == DFL_OK && !wait_set) {
        status = dfl_wait_new(DFL_WAIT_DEFAULT, &wait_set);
        if (status != DFL_OK)
            status = dfl_fail(err, status, "cannot start the renewal thread: %s", strerror(errno));
    }
    if (status != DFL_OK)
        return status;
    atomic_store(&sleeps_until, AWAKE);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failure = pthread_create(&thread, NULL, renew, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failure)
        return dfl_fail(err, DFL_INTERNAL, "cannot start the renewal thread: %s",
                        strerror(failure));
#ifdef __linux__
    pthread_setname_np(thread, "dflockd");
#endif
    pthread_detach(thread);
    atomic_store(&running, true);
    return DFL_OK;
}

enum dfl_status sq_renewer_start(struct dfl_error *err)
{
    enum dfl_status status = DFL_OK;

    if (atomic_load(&running))
        return DFL_OK;
    sq_process_gate_lock();
    if (!atomic_load(&running))
        status = start(err);
    sq_process_gate_unlock();
    return status;
}

void sq_renewer_abandon(void)
{
    atomic_store(&running, false);
    if (wait_set) {
        dfl_wait_abandon(wait_set);
        *remains = (struct sq_remains){.part = {wait_set, own_round.state, session_round.state}};
        sq_process_keep(remains);
        remains = NULL;
    }
    wait_set = NULL;
    own_round = session_round = (struct dfl_wait_round){0};
    for (int i = 0; i < 2; i++) {
        if (wake[i] >= 0)
            close(wake[i]);
        wake[i] = -1;
    }
}
