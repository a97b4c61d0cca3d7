/*
 * session.c - the state behind one sqlite3*: opened at first use, driven by the calling thread,
 * ended with the connection.
 *
 * Owns the engine of a connection and the mutex in front of it. The mutex is given up for every
 * wait, so the renewal thread and other threads of the process get their turn. Knows no SQL values;
 * functions.c and tables.c do.
 */
#include "session.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "guard.h"
#include "process.h"
#include "renewer.h"
#include "settings.h"
#include "snapshot.h"

#define CLOSE_PATIENCE_MS 1000
/* Two threads drive one engine: either may read what ends the other's call, so both look again
 * soon. Rare: a release by token of another session's hold. */
#define SHARED_INTERVAL_MS 5

/* -------------------------------------------------------------------- life */

struct sq_session *sq_session_new(struct sqlite3 *db)
{
    struct sq_session *s = calloc(1, sizeof *s);

    if (!s)
        return NULL;
    if (dfl_settings_init(&s->settings) != DFL_OK) {
        free(s);
        return NULL;
    }
    s->environment.status = dfl_settings_from_environment(&s->settings, &s->environment);
    if (s->environment.status == DFL_NOMEM) {
        dfl_settings_free(&s->settings);
        free(s);
        return NULL;
    }
    if (s->environment.status == DFL_OK)
        sq_process_set_max_locks(s->settings.max_locks);
    s->db = db;
    s->pid = getpid();
    s->next_ms = INT64_MAX;
    pthread_mutex_init(&s->mutex, NULL);
    return s;
}

static void wipe_token(struct sq_session *s)
{
    if (s->token) {
        volatile char *p = s->token;
        while (*p)
            *p++ = '\0';
    }
    free(s->token);
    s->token = NULL;
}

/* The gate is held, and nobody else knows s any more. */
static void destroy(struct sq_session *s)
{
    if (s->client)
        sq_process_remove(s);
    dfl_client_free(s->client);
    dfl_wait_round_free(&s->round);
    dfl_wait_free(s->wait);
    free(s->remains);
    dfl_tls_release(s->tls);
    wipe_token(s);
    dfl_settings_free(&s->settings);
    sq_snapshot_release(s->server_locks);
    pthread_mutex_destroy(&s->mutex);
    free(s);
}

void sq_session_retain(struct sq_session *s)
{
    sq_process_gate_lock();
    s->registrations++;
    sq_process_gate_unlock();
}

void sq_session_pin(struct sq_session *s)
{
    s->pins++;
}

void sq_session_unpin(struct sq_session *s)
{
    if (!sq_process_enter())
        return; /* the process ends, and its sockets with it */
    sq_process_gate_lock();
    s->pins--;
    bool unused = s->registrations == 0 && s->pins == 0;
    bool patient =
        atomic_load(&s->left_behind) && sq_renewer_runs() && dfl_clock().ms < s->patience_ms;
    if (unused && !patient)
        destroy(s);
    sq_process_gate_unlock();
    sq_process_leave();
}

/* A visitor's request is not ended with the owner's: dfl_client_shutdown() would pull it from under
 * its thread. */
static void end_owner(struct sq_session *s)
{
    if (sq_session_lock(s) != DFL_OK)
        return;
    struct dfl_now now = dfl_clock();
    s->closed = true;
    s->patience_ms = now.ms + CLOSE_PATIENCE_MS;
    dfl_session_end(s->owner, now);
    s->owner = NULL;
    if (s->drivers == 0)
        dfl_client_shutdown(s->client, now);
    sq_session_publish(s, now);
    sq_session_unlock(s);
}

void sq_session_release(void *session)
{
    struct sq_session *s = session;

    if (s->pid != getpid())
        return; /* a child that fork()'s handlers do not know of: the parent's business */
    sq_process_gate_lock();
    bool last = --s->registrations == 0;
    if (last)
        sq_session_pin(s);
    sq_process_gate_unlock();
    if (!last)
        return;
    end_owner(s);
    sq_session_unpin(s);
}

static bool give_back(void *arg, struct dfl_hold *hold)
{
    dfl_hold_give_back(hold, *(struct dfl_now *)arg);
    return true;
}

void sq_session_give_back(struct sq_session *s)
{
    if (s->pid != getpid() || sq_session_lock(s) != DFL_OK)
        return;
    struct dfl_now now = dfl_clock();
    dfl_session_each(s->owner, give_back, &now);
    sq_session_publish(s, now);
    sq_session_unlock(s);
}

void sq_session_abandon(struct sq_session *s)
{
    dfl_client_abandon(s->client);
    dfl_wait_abandon(s->wait);
    *s->remains = (struct sq_remains){
        .part = {s->client, s->wait, s->round.state, s->server_locks, s->registrations ? NULL : s}};
    sq_process_keep(s->remains);
    s->remains = NULL;
    pthread_mutex_init(&s->mutex, NULL);
    s->client = NULL;
    s->owner = NULL;
    s->wait = NULL;
    s->round = (struct dfl_wait_round){0};
    s->tls = NULL;
    s->pins = 0;
    atomic_store(&s->drivers, 0);
    atomic_store(&s->closed, false);
    atomic_store(&s->watched, false);
    atomic_store(&s->ready, false);
    atomic_store(&s->polled, false);
    s->server_locks = NULL;
    atomic_store(&s->left_behind, false);
    atomic_store(&s->next_ms, INT64_MAX);
    s->pid = getpid();
}

/* -------------------------------------------------------------------- open */

static void watch(void *ctx, int fd, unsigned events, void *tag)
{
    struct sq_session *s = ctx;

    enum dfl_status status = dfl_wait_watch(s->wait, fd, events, tag);
    if (status == DFL_NOMEM)
        dfl_fail(&s->unwatched, status, "out of memory");
    else if (status != DFL_OK)
        dfl_fail(&s->unwatched, status, "cannot wait for descriptors: %s", strerror(errno));
}

/* The login token and the certificates, read once. */
static enum dfl_status read_credentials(struct sq_session *s, struct dfl_error *err)
{
    if (!s->token) {
        enum dfl_status status = dfl_settings_read_token(&s->settings, &s->token, err);
        if (status != DFL_OK)
            return status;
    }
    if (s->settings.tls == DFL_TLS_OFF || s->tls)
        return DFL_OK;
    sq_process_start_tls();
    return dfl_tls_new(&s->settings, &s->tls, err);
}

static enum dfl_status make_client(struct sq_session *s, struct dfl_client **client,
                                   struct dfl_error *err)
{
    struct dfl_now now = dfl_clock();
    struct dfl_client_config config = {
        .settings = &s->settings,
        .auth_token = s->token,
        .tls = s->tls,
        .host =
            {
                .ctx = s,
                .watch = watch,
                .take_lock = sq_process_take_lock,
                .give_lock = sq_process_give_lock,
            },
        .fences = sq_process_fences(),
        .seed = (uint64_t)now.us ^ (uint64_t)now.wall_ms << 20 ^ (uint64_t)(uintptr_t)s ^
                (uint64_t)getpid() << 40,
    };
    enum dfl_status status = dfl_client_new(&config, client, err);
    if (status != DFL_OK)
        return status;
    status = dfl_session_new(*client, s, &s->owner);
    if (status != DFL_OK) {
        dfl_client_free(*client);
        return dfl_fail(err, status, "out of memory");
    }
    dfl_session_set_cap(s->owner, s->settings.max_session_locks);
    return DFL_OK;
}

static enum dfl_status start_engine(struct sq_session *s, struct dfl_error *err)
{
    struct dfl_client *client;
    enum dfl_status status = sq_process_start(err);

    if (status == DFL_OK)
        status = read_credentials(s, err);
    if (status == DFL_OK && !s->remains && !(s->remains = malloc(sizeof *s->remains)))
        status = dfl_fail(err, DFL_NOMEM, "out of memory");
    if (status == DFL_OK && !s->wait) {
        status = dfl_wait_new(DFL_WAIT_DEFAULT, &s->wait);
        if (status != DFL_OK)
            status = dfl_fail(err, status, "cannot wait for descriptors: %s", strerror(errno));
    }
    if (status == DFL_OK)
        status = make_client(s, &client, err);
    if (status != DFL_OK) {
        dfl_wait_free(s->wait); /* a child forked now would share the set, and not know it */
        s->wait = NULL;
        return status;
    }
    s->pid = getpid();
    sq_process_gate_lock();
    s->client = client;
    sq_process_add(s);
    sq_process_gate_unlock();
    return DFL_OK;
}

enum dfl_status sq_session_open(struct sq_session *s, struct dfl_error *err)
{
    enum dfl_status status = DFL_OK;

    if (s->environment.status != DFL_OK)
        return dfl_fail(err, s->environment.status, "%s", s->environment.text);
    if (!s->client) {
        if (!sq_process_enter())
            return dfl_fail(err, DFL_INTERNAL, "the process is exiting");
        status = start_engine(s, err);
        sq_process_leave();
    }
    if (status == DFL_OK)
        sq_guard_connect(s);
    return status;
}

enum dfl_status sq_session_configure(struct sq_session *s, struct dfl_error *err)
{
    if (sq_session_lock(s) != DFL_OK)
        return DFL_OK; /* nothing there yet that could be told */
    struct dfl_now now = dfl_clock();
    enum dfl_status status =
        dfl_client_configure(s->client, &s->settings, s->token, s->tls, now, err);
    if (status == DFL_OK)
        dfl_session_set_cap(s->owner, s->settings.max_session_locks);
    sq_session_publish(s, now);
    sq_session_unlock(s);
    return status;
}

/* ------------------------------------------------------------------- mutex */

enum dfl_status sq_session_lock(struct sq_session *s)
{
    if (!s->client)
        return DFL_NOT_HELD;
    if (!sq_process_enter())
        return DFL_INTERNAL;
    pthread_mutex_lock(&s->mutex);
    return DFL_OK;
}

void sq_session_unlock(struct sq_session *s)
{
    pthread_mutex_unlock(&s->mutex);
    sq_process_leave();
}

void sq_session_publish(struct sq_session *s, struct dfl_now now)
{
    dfl_client_run(s->client, now);
    bool left_behind = s->drivers == 0 && dfl_client_left_behind(s->client);
    int64_t next_ms = dfl_client_next_ms(s->client);
    if (s->closed && left_behind) {
        left_behind = now.ms < s->patience_ms;
        next_ms = s->patience_ms < next_ms ? s->patience_ms : next_ms;
    }
    if (dfl_client_busy(s->client))
        sq_renewer_start(NULL);
    atomic_store(&s->next_ms, next_ms);
    atomic_store(&s->left_behind, left_behind);
    sq_renewer_expect(s);
}

/* ----------------------------------------------------------------- driving */

struct arrival {
    struct sq_session *session;
    struct dfl_now now;
};

static void ready(void *arg, void *tag, unsigned events)
{
    struct arrival *arrival = arg;

    dfl_client_ready(arrival->session->client, tag, events, arrival->now);
}

/* The third step of a wait, with the mutex held again. */
static struct dfl_now dispatch(struct sq_session *s, struct dfl_wait_round *round)
{
    struct arrival arrival = {s, dfl_clock()};

    dfl_wait_dispatch(s->wait, round, ready, &arrival);
    dfl_client_run(s->client, arrival.now);
    return arrival.now;
}

void sq_session_poll(struct sq_session *s, struct dfl_wait_round *round)
{
    if (dfl_wait_prepare(s->wait, round) != DFL_OK)
        return;
    dfl_wait_block(round, 0, -1);
    dispatch(s, round);
}

/* One thread's way through one call. */
struct driver {
    struct sq_session *at; /* where the call runs */
    struct dfl_wait_round *round;
    struct sq_probe probe;
    unsigned generation;    /* of the process when the call began */
    int64_t probe_ms;       /* when to look for an interrupt */
    struct dfl_error blind; /* why the call could not wait; DFL_OK: it could */
};

/* Takes the mutex again after a wait; false: the call is out of reach, since the process exits or
 * this is a forked child. */
static bool lock_again(struct driver *d)
{
    return d->generation == sq_process_generation() && sq_session_lock(d->at) == DFL_OK;
}

static int64_t sleep_ms(const struct driver *d, struct dfl_now now)
{
    int64_t until = d->probe_ms, next = dfl_client_next_ms(d->at->client);

    if (next < until)
        until = next;
    if (d->at->drivers > 1 && now.ms + SHARED_INTERVAL_MS < until)
        until = now.ms + SHARED_INTERVAL_MS;
    return until > now.ms ? until - now.ms : 0;
}

/* Looks for an interrupt, without the mutex: the application's own callbacks may run, for as long
 * as they like. */
static bool probe(struct driver *d, struct dfl_call *call, struct dfl_now *now)
{
    sq_session_publish(d->at, *now);
    sq_session_unlock(d->at);
    bool interrupted = sq_probe_interrupted(&d->probe);
    if (!lock_again(d))
        return false;
    *now = dfl_clock();
    d->probe_ms = now->ms + SQ_PROBE_INTERVAL_MS;
    if (interrupted)
        dfl_call_cancel(call, *now);
    return true;
}

/* Its answer would not be seen: the call ends now, and not as if the server were silent. */
static bool can_wait(struct driver *d)
{
    struct sq_session *s = d->at;

    if (s->unwatched.status == DFL_OK && dfl_wait_prepare(s->wait, d->round) != DFL_OK)
        dfl_fail(&s->unwatched, DFL_NOMEM, "out of memory");
    return s->unwatched.status == DFL_OK;
}

/* With the mutex held; also afterwards, unless it says false. */
static bool drive(struct driver *d, struct dfl_call *call, struct dfl_now *now)
{
    struct sq_session *s = d->at;

    d->probe_ms = now->ms + SQ_PROBE_INTERVAL_MS;
    dfl_client_run(s->client, *now);
    while (dfl_call_status(call) == DFL_PENDING) {
        if (!can_wait(d)) {
            d->blind = s->unwatched;
            dfl_call_cancel(call, *now);
            break;
        }
        int64_t timeout_ms = sleep_ms(d, *now);
        sq_session_unlock(s);
        dfl_wait_block(d->round, timeout_ms, -1);
        if (!lock_again(d))
            return false;
        *now = dispatch(s, d->round);
        if (now->ms >= d->probe_ms && dfl_call_status(call) == DFL_PENDING && !probe(d, call, now))
            return false;
    }
    return true;
}

/*
 * What a call says at its end. A hold that nobody could renew is none: without the renewal thread
 * it is given back.
 */
static enum dfl_status read_end(struct sq_session *s, struct dfl_call *call,
                                const struct sq_request *request, struct dfl_now now,
                                struct dfl_error *err)
{
    enum dfl_status status = dfl_call_status(call);

    if (status != DFL_OK) {
        *err = *dfl_call_error(call);
        err->status = status;
        return status;
    }
    struct dfl_hold *hold = dfl_call_hold(call);
    if (hold && dfl_client_busy(s->client)) {
        status = sq_renewer_start(err);
        if (status != DFL_OK) {
            dfl_hold_give_back(hold, now);
            return status;
        }
    }
    if (request->finish)
        request->finish(call, request->arg);
    return DFL_OK;
}

/* With the mutex held, and given up at the end. */
static enum dfl_status run_request(struct driver *d, struct dfl_session *owner,
                                   const struct sq_request *request, struct dfl_error *err)
{
    struct sq_session *s = d->at;
    struct dfl_call *call = NULL;
    struct dfl_now now = dfl_clock();

    s->drivers++;
    s->unwatched.status = DFL_OK;
    enum dfl_status status = request->start(owner, request->arg, now, &call, err);
    if (status == DFL_OK) {
        if (!drive(d, call, &now))
            return dfl_fail(err, DFL_INTERNAL,
                            d->generation == sq_process_generation()
                                ? "the process is exiting"
                                : "the process was forked during the call");
        status = read_end(s, call, request, now, err);
        if (status == DFL_CANCELED && d->blind.status != DFL_OK)
            status = dfl_fail(err, d->blind.status, "%s", d->blind.text);
        dfl_call_free(call, now);
    }
    s->drivers--;
    sq_session_publish(s, now);
    sq_session_unlock(s);
    return status;
}

enum dfl_status sq_session_call(struct sq_session *s, const struct sq_request *request,
                                struct dfl_error *err)
{
    struct driver d = {
        .at = s, .round = &s->round, .probe = {.db = s->db}, .generation = sq_process_generation()};
    enum dfl_status status = sq_session_open(s, err);

    if (status != DFL_OK)
        return status;
    if (sq_session_lock(s) != DFL_OK)
        return dfl_fail(err, DFL_INTERNAL, "the process is exiting");
    status = run_request(&d, s->owner, request, err);
    sq_probe_end(&d.probe);
    return status;
}

enum dfl_status sq_session_visit(struct sq_session *s, struct sq_session *other,
                                 const struct sq_request *request, struct dfl_error *err)
{
    struct dfl_wait_round round = {0};
    struct dfl_session *visitor;
    struct driver d = {.at = other,
                       .round = &round,
                       .probe = {.db = s->db},
                       .generation = sq_process_generation()};

    if (sq_session_lock(other) != DFL_OK)
        return dfl_fail(err, DFL_INTERNAL, "the process is exiting");
    enum dfl_status status = dfl_session_new(other->client, NULL, &visitor);
    if (status != DFL_OK) {
        sq_session_unlock(other);
        return dfl_fail(err, status, "out of memory");
    }
    status = run_request(&d, visitor, request, err);
    sq_probe_end(&d.probe);
    dfl_wait_round_free(&round);
    if (!lock_again(&d))
        return status;
    dfl_session_end(visitor, dfl_clock());
    sq_session_publish(other, dfl_clock());
    sq_session_unlock(other);
    return status;
}

enum dfl_status sq_session_do(struct sq_session *s,
                              enum dfl_status (*step)(struct sq_session *s, void *arg,
                                                      struct dfl_now now, struct dfl_error *err),
                              void *arg, struct dfl_error *err)
{
    enum dfl_status status = sq_session_open(s, err);

    if (status != DFL_OK)
        return status;
    if (sq_session_lock(s) != DFL_OK)
        return dfl_fail(err, DFL_INTERNAL, "the process is exiting");
    struct dfl_now now = dfl_clock();
    status = step(s, arg, now, err);
    sq_session_publish(s, now);
    sq_session_unlock(s);
    return status;
}

/* ------------------------------------------------------------------ others */

/* The one behind `at` in the list (NULL: the first), pinned. */
static struct sq_session *next_pinned(struct sq_session *at)
{
    sq_process_gate_lock();
    struct sq_session *next = at ? at->next : sq_process_first();
    if (next)
        sq_session_pin(next);
    sq_process_gate_unlock();
    return next;
}

void sq_session_others(struct sq_session *s, bool (*fn)(struct sq_session *other, void *arg),
                       void *arg)
{
    unsigned generation = sq_process_generation();
    bool more = true;
    struct sq_session *other = next_pinned(NULL);

    while (other) {
        if (more && other != s)
            more = fn(other, arg);
        if (generation != sq_process_generation())
            return; /* a child: the others are not its own, and nothing is pinned here */
        struct sq_session *next = more ? next_pinned(other) : NULL;
        sq_session_unpin(other);
        other = next;
    }
}
