/*
 * functions.c - the SQL functions, one row of a table each:
 *
 *   dflock_acquire  dflock_lock  dflock_sem_acquire  dflock_sem_lock  dflock_xact_* (refused)
 *   dflock_enqueue  dflock_sem_enqueue  dflock_wait  dflock_sem_wait  dflock_cancel
 *   dflock_release  dflock_sem_release  dflock_release_all  dflock_renew
 *   dflock_is_held  dflock_assert_held  dflock_token  dflock_lease  dflock_fence dflock_token_fence
 *   dflock_stats  dflock_ping  dflock_version  dflock_config
 *
 * They read arguments, start a request of the engine and hand on its end. The rules are the
 * engine's, so that both databases have the same.
 */
#include "functions.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <sqlite3ext.h>
SQLITE_EXTENSION_INIT3

#include "answers.h"
#include "errors.h"
#include "origin.h"
#include "session.h"
#include "settings.h"

/* What a request needs and what came of it; the arg of its start and finish. */
struct request {
    struct dfl_request_args args;
    struct sq_key key;
    const char *token;
    bool wait_answer;
    /* afterwards */
    enum dfl_state state;
    int64_t fence;
    int64_t seconds;
};

static void return_flag(struct sq_arguments *a, bool flag)
{
    sqlite3_result_int(a->context, flag);
}

/* One argument after the other, until one is wrong. */
static enum dfl_status read_key(struct sq_arguments *a, const struct sq_function *f,
                                struct request *r)
{
    r->args.kind = f->kind;
    r->args.slots = 1;
    enum dfl_status status = sq_key_argument(a, 0, &r->key);
    r->args.key = r->key.text;
    r->args.key_len = r->key.len;
    return status;
}

static enum dfl_status read_slots(struct sq_arguments *a, const struct sq_function *f,
                                  struct request *r, int *next)
{
    if (f->kind != DFL_SEMAPHORE)
        return DFL_OK;
    return sq_slots_argument(a, (*next)++, &r->args.slots);
}

/* --------------------------------------------------------------- acquiring */

static void read_hold(struct dfl_call *call, void *arg)
{
    struct request *r = arg;
    struct dfl_hold *hold = dfl_call_hold(call);
    struct dfl_hold_info info;

    r->state = DFL_STATE_LOST;
    if (!hold)
        return;
    dfl_hold_info(hold, &info);
    r->state = info.state;
    r->fence = info.fence;
}

static enum dfl_status granted(struct sq_arguments *a, const struct request *r)
{
    if (r->state != DFL_STATE_LOST)
        return DFL_OK;
    return dfl_fail(&a->error, DFL_LOST, "the lock %s was granted and lost at once", r->key.text);
}

static enum dfl_status start_acquire(struct dfl_session *owner, void *arg, struct dfl_now now,
                                     struct dfl_call **call, struct dfl_error *err)
{
    return dfl_acquire(owner, &((struct request *)arg)->args, now, call, err);
}

static enum dfl_status acquire(struct sq_arguments *a, const struct sq_function *f)
{
    struct request r = {0};
    int next = 1;
    enum dfl_status status = read_key(a, f, &r);

    if (status == DFL_OK)
        status = read_slots(a, f, &r, &next);
    if (status == DFL_OK)
        status = sq_timeout_argument(a, next, &r.args.timeout_ms);
    if (status == DFL_OK)
        status = sq_lease_argument(a, next + 1, a->session->settings.lease_ttl_s, &r.args.lease_s);
    if (status == DFL_OK)
        status = sq_session_call(a->session, &(struct sq_request){start_acquire, read_hold, &r},
                                 &a->error);
    if (status == DFL_OK)
        status = granted(a, &r);
    if (status == DFL_TIMEOUT && !f->must) {
        return_flag(a, false);
        return DFL_OK;
    }
    if (status != DFL_OK)
        return status;
    if (f->must)
        sqlite3_result_int64(a->context, r.fence);
    else
        return_flag(a, true);
    return DFL_OK;
}

static enum dfl_status xact(struct sq_arguments *a, const struct sq_function *f)
{
    (void)f;
    return dfl_fail(&a->error, DFL_UNSUPPORTED,
                    "transaction locks need PostgreSQL; use dflock_lock and dflock_release");
}

static enum dfl_status start_enqueue(struct dfl_session *owner, void *arg, struct dfl_now now,
                                     struct dfl_call **call, struct dfl_error *err)
{
    return dfl_enqueue(owner, &((struct request *)arg)->args, now, call, err);
}

static enum dfl_status enqueue(struct sq_arguments *a, const struct sq_function *f)
{
    struct request r = {0};
    int next = 1;
    enum dfl_status status = read_key(a, f, &r);

    if (status == DFL_OK)
        status = read_slots(a, f, &r, &next);
    if (status == DFL_OK)
        status = sq_lease_argument(a, next, a->session->settings.lease_ttl_s, &r.args.lease_s);
    if (status == DFL_OK)
        status = sq_session_call(a->session, &(struct sq_request){start_enqueue, read_hold, &r},
                                 &a->error);
    if (status == DFL_OK)
        status = granted(a, &r);
    if (status == DFL_OK)
        sqlite3_result_text(a->context, r.state == DFL_HELD ? "acquired" : "queued", -1,
                            SQLITE_STATIC);
    return status;
}

static enum dfl_status start_wait(struct dfl_session *owner, void *arg, struct dfl_now now,
                                  struct dfl_call **call, struct dfl_error *err)
{
    return dfl_wait_turn(owner, &((struct request *)arg)->args, now, call, err);
}

static enum dfl_status wait_turn(struct sq_arguments *a, const struct sq_function *f)
{
    struct request r = {0};
    enum dfl_status status = read_key(a, f, &r);

    if (status == DFL_OK)
        status = sq_timeout_argument(a, 1, &r.args.timeout_ms);
    if (status == DFL_OK)
        status =
            sq_session_call(a->session, &(struct sq_request){start_wait, read_hold, &r}, &a->error);
    if (status == DFL_OK)
        status = granted(a, &r);
    if (status != DFL_OK && status != DFL_TIMEOUT)
        return status;
    return_flag(a, status == DFL_OK);
    return DFL_OK;
}

/* ------------------------------------------------------------- giving back */

static enum dfl_status start_release(struct dfl_session *owner, void *arg, struct dfl_now now,
                                     struct dfl_call **call, struct dfl_error *err)
{
    struct request *r = arg;

    return dfl_release(owner, r->args.kind, r->key.text, r->key.len, r->wait_answer, NULL, now,
                       call, err);
}

static enum dfl_status start_release_token(struct dfl_session *owner, void *arg, struct dfl_now now,
                                           struct dfl_call **call, struct dfl_error *err)
{
    struct request *r = arg;

    return dfl_release_token(owner, r->args.kind, r->key.text, r->key.len, r->token, r->wait_answer,
                             NULL, now, call, err);
}

/* A search for the session of this process that has a token. */
struct search {
    struct sq_arguments *a;
    struct request *request;
    bool found;
    enum dfl_status status; /* found: of the release */
};

static bool has_token(struct sq_session *s, const struct request *r)
{
    bool found = false;

    if (sq_session_lock(s) != DFL_OK)
        return false;
    if (!s->closed)
        found = dfl_client_token(s->client, DFL_ANY_KIND, r->key.text, r->key.len, r->token);
    sq_session_unlock(s);
    return found;
}

static bool release_elsewhere(struct sq_session *other, void *arg)
{
    struct search *search = arg;

    if (!has_token(other, search->request))
        return true;
    search->found = true;
    search->status = sq_session_visit(
        search->a->session, other, &(struct sq_request){start_release_token, NULL, search->request},
        &search->a->error);
    return false;
}

/* Another session of this process may have the hold: then it is told before the request goes out,
 * over its own connection. */
static enum dfl_status release_token(struct sq_arguments *a, struct request *r)
{
    struct search search = {.a = a, .request = r};

    if (!has_token(a->session, r))
        sq_session_others(a->session, release_elsewhere, &search);
    if (search.found)
        return search.status;
    return sq_session_call(a->session, &(struct sq_request){start_release_token, NULL, r},
                           &a->error);
}

static enum dfl_status release(struct sq_arguments *a, const struct sq_function *f)
{
    struct request r = {.wait_answer = a->session->settings.release_wait};
    enum dfl_status status = read_key(a, f, &r);

    if (status == DFL_OK && a->count > 1)
        status = sq_token_argument(a, 1, &r.token);
    if (status == DFL_OK)
        status = sq_session_open(a->session, &a->error);
    if (status != DFL_OK)
        return status;
    if (r.token)
        status = release_token(a, &r);
    else
        status =
            sq_session_call(a->session, &(struct sq_request){start_release, NULL, &r}, &a->error);
    if (status != DFL_OK && status != DFL_NOT_HELD)
        return status;
    return_flag(a, status == DFL_OK);
    return DFL_OK;
}

static void read_seconds(struct dfl_call *call, void *arg)
{
    ((struct request *)arg)->seconds = dfl_call_seconds(call);
}

static enum dfl_status start_release_all(struct dfl_session *owner, void *arg, struct dfl_now now,
                                         struct dfl_call **call, struct dfl_error *err)
{
    return dfl_release_all(owner, ((struct request *)arg)->wait_answer, NULL, now, call, err);
}

static enum dfl_status release_all(struct sq_arguments *a, const struct sq_function *f)
{
    struct request r = {.wait_answer = a->session->settings.release_wait};
    enum dfl_status status = sq_session_call(
        a->session, &(struct sq_request){start_release_all, read_seconds, &r}, &a->error);

    (void)f;
    if (status == DFL_OK)
        sqlite3_result_int64(a->context, r.seconds);
    return status;
}

static enum dfl_status do_cancel(struct sq_session *s, void *arg, struct dfl_now now,
                                 struct dfl_error *err)
{
    struct request *r = arg;

    (void)err;
    r->seconds = dfl_cancel(s->owner, r->key.text, r->key.len, now);
    return DFL_OK;
}

static enum dfl_status cancel(struct sq_arguments *a, const struct sq_function *f)
{
    struct request r = {0};
    enum dfl_status status = read_key(a, f, &r);

    if (status == DFL_OK)
        status = sq_session_do(a->session, do_cancel, &r, &a->error);
    if (status == DFL_OK)
        return_flag(a, r.seconds != 0);
    return status;
}

/* ----------------------------------------------------------------- holding */

static enum dfl_status start_renew(struct dfl_session *owner, void *arg, struct dfl_now now,
                                   struct dfl_call **call, struct dfl_error *err)
{
    struct request *r = arg;

    return dfl_renew(owner, r->key.text, r->key.len, r->args.lease_s, NULL, now, call, err);
}

static enum dfl_status renew(struct sq_arguments *a, const struct sq_function *f)
{
    struct request r = {0};
    enum dfl_status status = read_key(a, f, &r);

    if (status == DFL_OK)
        status = sq_lease_argument(a, 1, 0, &r.args.lease_s);
    if (status == DFL_OK)
        status = sq_session_call(a->session, &(struct sq_request){start_renew, read_seconds, &r},
                                 &a->error);
    if (status == DFL_OK)
        sqlite3_result_int64(a->context, r.seconds);
    return status;
}

static enum dfl_status do_is_held(struct sq_session *s, void *arg, struct dfl_now now,
                                  struct dfl_error *err)
{
    struct request *r = arg;

    (void)err;
    r->seconds = dfl_is_held(s->owner, r->key.text, r->key.len, now);
    return DFL_OK;
}

static enum dfl_status is_held(struct sq_arguments *a, const struct sq_function *f)
{
    struct request r = {0};
    enum dfl_status status = read_key(a, f, &r);

    if (status == DFL_OK)
        status = sq_session_do(a->session, do_is_held, &r, &a->error);
    if (status == DFL_OK)
        return_flag(a, r.seconds != 0);
    return status;
}

static enum dfl_status do_assert_held(struct sq_session *s, void *arg, struct dfl_now now,
                                      struct dfl_error *err)
{
    struct request *r = arg;

    return dfl_assert_held(s->owner, r->key.text, r->key.len, now, err);
}

static enum dfl_status assert_held(struct sq_arguments *a, const struct sq_function *f)
{
    struct request r = {0};
    bool verify = false;
    enum dfl_status status = read_key(a, f, &r);

    if (status == DFL_OK)
        status = sq_flag_argument(a, 1, "verify", &verify);
    if (status == DFL_OK)
        status = sq_session_do(a->session, do_assert_held, &r, &a->error);
    if (status == DFL_OK && verify)
        status = sq_session_call(a->session, &(struct sq_request){start_renew, read_seconds, &r},
                                 &a->error);
    if (status == DFL_OK)
        return_flag(a, true);
    return status;
}

/* What a hold shows of itself; *there false when none is held now. */
struct view {
    const struct sq_key *key;
    bool there;
    char token[DFL_TOKEN_LEN + 1];
    int64_t lease_s, fence;
    char server[DFL_ADDRESS_MAX];
};

static enum dfl_status do_view(struct sq_session *s, void *arg, struct dfl_now now,
                               struct dfl_error *err)
{
    struct view *view = arg;
    struct dfl_hold *hold =
        dfl_session_hold(s->owner, view->key->text, view->key->len, DFL_ANY_KIND, now);
    struct dfl_hold_info info;

    (void)err;
    if (!hold)
        return DFL_OK;
    dfl_hold_info(hold, &info);
    view->there = info.state == DFL_HELD && now.ms < info.deadline_ms;
    view->lease_s = info.lease_s;
    view->fence = info.fence;
    memcpy(view->token, info.token, strnlen(info.token, DFL_TOKEN_LEN) + 1);
    strncpy(view->server, info.server, sizeof view->server - 1);
    return DFL_OK;
}

static enum dfl_status view_hold(struct sq_arguments *a, const struct sq_function *f,
                                 struct view *view)
{
    struct request r = {0};
    enum dfl_status status = read_key(a, f, &r);

    view->key = &r.key;
    if (status == DFL_OK)
        status = sq_session_do(a->session, do_view, view, &a->error);
    view->key = NULL;
    return status;
}

static enum dfl_status token(struct sq_arguments *a, const struct sq_function *f)
{
    struct view view = {0};
    enum dfl_status status = view_hold(a, f, &view);

    if (status == DFL_OK && view.there)
        sqlite3_result_text(a->context, view.token, -1, SQLITE_TRANSIENT);
    return status;
}

static enum dfl_status lease(struct sq_arguments *a, const struct sq_function *f)
{
    struct view view = {0};
    enum dfl_status status = view_hold(a, f, &view);

    if (status == DFL_OK && view.there)
        sqlite3_result_int64(a->context, view.lease_s);
    return status;
}

static enum dfl_status fence(struct sq_arguments *a, const struct sq_function *f)
{
    struct view view = {0};
    enum dfl_status status = view_hold(a, f, &view);

    if (status != DFL_OK || !view.there)
        return status;
    if (view.fence < 0)
        return dfl_fail(&a->error, DFL_NO_FENCE, "the tokens of %s carry no fence", view.server);
    sqlite3_result_int64(a->context, view.fence);
    return DFL_OK;
}

static enum dfl_status token_fence(struct sq_arguments *a, const struct sq_function *f)
{
    const char *text;
    int64_t number;
    enum dfl_status status = sq_token_argument(a, 0, &text);

    (void)f;
    if (status == DFL_OK)
        status = dfl_token_fence(text, &number, &a->error);
    if (status == DFL_OK)
        sqlite3_result_int64(a->context, number);
    return status;
}

/* ------------------------------------------------------------------- others */

static enum dfl_status return_json(struct sq_arguments *a, struct sq_answers *answers,
                                   char *(*json_of)(const struct sq_answers *))
{
    char *text = json_of(answers);

    sq_answers_free(answers);
    if (!text)
        return dfl_fail(&a->error, DFL_NOMEM, "out of memory");
    sqlite3_result_text64(a->context, text, strlen(text), SQLITE_TRANSIENT, SQLITE_UTF8);
    free(text);
    return DFL_OK;
}

static enum dfl_status stats(struct sq_arguments *a, const struct sq_function *f)
{
    struct sq_answers answers;
    enum dfl_status status = sq_ask_stats(a->session, &answers, &a->error);

    (void)f;
    return status == DFL_OK ? return_json(a, &answers, sq_stats_json) : status;
}

static enum dfl_status ping(struct sq_arguments *a, const struct sq_function *f)
{
    struct sq_answers answers;
    enum dfl_status status = sq_ask_ping(a->session, &answers, &a->error);

    (void)f;
    return status == DFL_OK ? return_json(a, &answers, sq_ping_json) : status;
}

#ifdef __clang__
#define COMPILER "clang " __clang_version__
#else
#define COMPILER "gcc " __VERSION__
#endif

static enum dfl_status version(struct sq_arguments *a, const struct sq_function *f)
{
    char *text = sqlite3_mprintf(
        "dflockd %s for SQLite, core %s, %s, built by %s with SQLite %s, running in SQLite %s",
        DFL_VERSION, DFL_VERSION, dfl_tls_library(), COMPILER, SQLITE_VERSION,
        sqlite3_libversion());

    (void)f;
    if (!text)
        return dfl_fail(&a->error, DFL_NOMEM, "out of memory");
    sqlite3_result_text(a->context, text, -1, sqlite3_free);
    return DFL_OK;
}

/* A setting's value as text. Drivers with one kind of number hand us 10.0 where 10 was written. */
static enum dfl_status read_value(struct sq_arguments *a, char digits[32], const char **value)
{
    bool is_real =
        sqlite3_value_type(a->values[1]) == SQLITE_FLOAT; /* asked before it is made text */
    enum dfl_status status = sq_text_argument(a, 1, "value", true, value);

    if (status == DFL_OK && is_real) {
        double real = sqlite3_value_double(a->values[1]);
        if (fabs(real) < 0x1p53 && real == floor(real)) {
            sqlite3_snprintf(32, digits, "%lld", (sqlite3_int64)real);
            *value = digits;
        }
    }
    return status;
}

static enum dfl_status config(struct sq_arguments *a, const struct sq_function *f)
{
    const char *name, *value = NULL;
    char digits[32], *old;
    enum dfl_status status = sq_text_argument(a, 0, "name", false, &name);

    (void)f;
    if (status == DFL_OK && a->count > 1)
        status = read_value(a, digits, &value);
    if (status == DFL_OK && a->session->environment.status != DFL_OK)
        status = sq_session_open(a->session, &a->error); /* says what is wrong with it */
    if (status == DFL_OK)
        status = sq_settings_get(a->session, name, &old, &a->error);
    if (status != DFL_OK)
        return status;
    if (value)
        status = sq_settings_set(a->session, name, value, &a->error);
    if (status == DFL_OK)
        sqlite3_result_text(a->context, old, -1, SQLITE_TRANSIENT);
    free(old);
    return status;
}

/* ------------------------------------------------------------------- table */

const struct sq_function sq_functions[] = {
    {"dflock_acquire", 1, 3, acquire, DFL_LOCK, false},
    {"dflock_lock", 1, 3, acquire, DFL_LOCK, true},
    {"dflock_sem_acquire", 2, 4, acquire, DFL_SEMAPHORE, false},
    {"dflock_sem_lock", 2, 4, acquire, DFL_SEMAPHORE, true},
    {"dflock_xact_acquire", 1, 3, xact, DFL_LOCK, false},
    {"dflock_xact_lock", 1, 3, xact, DFL_LOCK, true},
    {"dflock_xact_sem_acquire", 2, 4, xact, DFL_SEMAPHORE, false},
    {"dflock_xact_sem_lock", 2, 4, xact, DFL_SEMAPHORE, true},
    {"dflock_enqueue", 1, 2, enqueue, DFL_LOCK, false},
    {"dflock_sem_enqueue", 2, 3, enqueue, DFL_SEMAPHORE, false},
    {"dflock_wait", 1, 2, wait_turn, DFL_LOCK, false},
    {"dflock_sem_wait", 1, 2, wait_turn, DFL_SEMAPHORE, false},
    {"dflock_cancel", 1, 1, cancel, DFL_ANY_KIND, false},
    {"dflock_release", 1, 2, release, DFL_LOCK, false},
    {"dflock_sem_release", 1, 2, release, DFL_SEMAPHORE, false},
    {"dflock_release_all", 0, 0, release_all, DFL_ANY_KIND, false},
    {"dflock_renew", 1, 2, renew, DFL_ANY_KIND, false},
    {"dflock_is_held", 1, 1, is_held, DFL_ANY_KIND, false},
    {"dflock_assert_held", 1, 2, assert_held, DFL_ANY_KIND, false},
    {"dflock_token", 1, 1, token, DFL_ANY_KIND, false},
    {"dflock_lease", 1, 1, lease, DFL_ANY_KIND, false},
    {"dflock_fence", 1, 1, fence, DFL_ANY_KIND, false},
    {"dflock_token_fence", 1, 1, token_fence, DFL_ANY_KIND, false},
    {"dflock_stats", 0, 0, stats, DFL_ANY_KIND, false},
    {"dflock_ping", 0, 0, ping, DFL_ANY_KIND, false},
    {"dflock_version", 0, 0, version, DFL_ANY_KIND, false},
    {"dflock_config", 1, 2, config, DFL_ANY_KIND, false},
};

const size_t sq_function_count = sizeof sq_functions / sizeof sq_functions[0];

static enum dfl_status check_count(struct sq_arguments *a, const struct sq_function *f)
{
    if (a->count >= f->min && a->count <= f->max)
        return DFL_OK;
    if (f->max == 0)
        return dfl_fail(&a->error, DFL_INVALID, "%s takes no arguments, not %d", f->name, a->count);
    if (f->min == f->max)
        return dfl_fail(&a->error, DFL_INVALID, "%s takes %d argument%s, not %d", f->name, f->min,
                        f->min == 1 ? "" : "s", a->count);
    return dfl_fail(&a->error, DFL_INVALID, "%s takes %d to %d arguments, not %d", f->name, f->min,
                    f->max, a->count);
}

void sq_function_call(const struct sq_function *f, struct sq_arguments *a)
{
    enum dfl_status status =
        sq_check_origin(sqlite3_context_db_handle(a->context), f->name, &a->error);

    if (status == DFL_OK)
        status = check_count(a, f);
    if (status == DFL_OK)
        status = f->run(a, f);
    if (status == DFL_OK)
        return;
    a->error.status = status;
    sq_raise(a->context, &a->error);
}
