/*
 * release.c - the calls about what a session has, or knows the token of: release, release_all,
 * renew.
 */
#include "engine.h"

#include <string.h>

/* ---------------------------------------------------------------- release */

void dfl_call_released(struct dfl_call *call, const struct dfl_answer_line *a,
                       const struct dfl_error *error)
{
    if (call->status != DFL_PENDING || --call->outstanding > 0)
        return;
    if (call->all || (a && a->kind == DFL_ANS_OK)) {
        dfl_call_end(call, DFL_OK);
    } else if (error) {
        dfl_call_fail(call, error);
    } else if (a) {
        dfl_fail(&call->error, DFL_NOT_HELD, "%s no longer held it: %.*s",
                 call->server->address.text, (int)a->text_len, a->text);
        dfl_call_end(call, DFL_NOT_HELD);
    }
}

/* The releases stay sent; only their answers are not waited for any more. */
static void leave_releases(struct dfl_call *call)
{
    struct dfl_session *s = call->session;

    DFL_EACH(l, &s->holds) {
        struct dfl_hold *h = DFL_CONTAINER(l, struct dfl_hold, by_session);

        if (h->call == call)
            dfl_hold_set_call(h, NULL);
    }
}

static void releases_too_slow(struct dfl_call *call)
{
    leave_releases(call);
    if (call->all) {
        dfl_call_end(call, DFL_OK);
        return;
    }
    dfl_call_no_answer(call);
    dfl_call_end(call, DFL_BROKEN);
}

static enum dfl_status release_hold(struct dfl_call *call, struct dfl_hold *h, bool wait_answer)
{
    if (dfl_hold_release(h) != DFL_OK)
        return DFL_NOMEM;
    dfl_hold_set_call(h, NULL);
    if (wait_answer) {
        call->give_up = leave_releases;
        h->call = call; /* several holds may name one release_all: it does not name them */
        call->outstanding++;
    }
    return DFL_OK;
}

static enum dfl_status start_release(struct dfl_session *s, struct dfl_hold *h, bool wait_answer,
                                     void *user, struct dfl_call **out, struct dfl_error *err)
{
    struct dfl_call *call = dfl_call_new(s, user, err);

    if (call == NULL)
        return DFL_NOMEM;
    call->server = h->server;
    if (release_hold(call, h, wait_answer) != DFL_OK) {
        dfl_fail(&call->error, DFL_NOMEM, "out of memory");
        dfl_call_end(call, DFL_NOMEM);
    } else if (!wait_answer) {
        dfl_call_end(call, DFL_OK);
    } else {
        dfl_call_at(call, call->net_deadline_ms, releases_too_slow);
    }
    *out = call;
    return DFL_OK;
}

static enum dfl_status say_not_held(struct dfl_session *s, enum dfl_kind kind, const char *bytes,
                                    size_t len, struct dfl_hold *h, struct dfl_error *err)
{
    if (h && h->state == DFL_STATE_LOST && h->scope == DFL_SCOPE_SESSION) {
        dfl_fail(err, DFL_NOT_HELD, "%s \"%s\" was lost before: %s", dfl_kind_name(kind),
                 h->key->bytes, h->last_error ? h->last_error : "connection lost");
        dfl_hold_free(h);
        return DFL_NOT_HELD;
    }
    if (dfl_find_hold(s, bytes, len, kind, DFL_SCOPE_XACT))
        return dfl_fail(err, DFL_NOT_HELD,
                        "%s \"%.*s\" is held by the transaction, whose end gives it back",
                        dfl_kind_name(kind), (int)len, bytes);
    return dfl_fail(err, DFL_NOT_HELD, "%s \"%.*s\" is not held by this session",
                    dfl_kind_name(kind), (int)len, bytes);
}

enum dfl_status dfl_release(struct dfl_session *s, enum dfl_kind kind, const char *key, size_t len,
                            bool wait_answer, void *user, struct dfl_now now,
                            struct dfl_call **call, struct dfl_error *err)
{
    enum dfl_status st = dfl_key_check(key, len, err);
    struct dfl_hold *h;

    if (st != DFL_OK)
        return st;
    dfl_enter(s->client, now);
    h = dfl_known_hold(s, key, len, kind,
                       DFL_SCOPE_SESSION); /* sending reads first, when it is due */
    if (h && h->state == DFL_HELD)
        st = start_release(s, h, wait_answer, user, call, err);
    else
        st = say_not_held(s, kind, key, len, h, err);
    dfl_leave(s->client);
    return st;
}

/* Release of a token that is no hold of the session. */
static void token_done(struct dfl_request *r, const struct dfl_answer_line *a,
                       const struct dfl_error *error)
{
    struct dfl_call *call = r->owner;

    call->request = NULL;
    if (call->ours)
        dfl_server_released(call->server, r, a, error);
    if (error) {
        dfl_call_fail(call, error);
    } else if (a->kind == DFL_ANS_OK) {
        dfl_call_end(call, DFL_OK);
    } else {
        dfl_fail(&call->error, DFL_NOT_HELD, "%s \"%s\" is not held with this token",
                 dfl_kind_name(dfl_command_is_sem(r->cmd) ? DFL_SEMAPHORE : DFL_LOCK),
                 call->key->bytes);
        dfl_call_end(call, DFL_NOT_HELD);
    }
}

static void leave_request(struct dfl_call *call)
{
    if (call->request)
        dfl_conn_withdraw(call->request);
    call->request = NULL;
}

/* The hold is gone whatever becomes of the call, so its release stays sent. */
static void leave_token(struct dfl_call *call)
{
    if (call->request && call->ours) {
        dfl_server_sees_to(call->server, call->request);
        call->request = NULL;
    }
    leave_request(call);
}

static void request_too_slow(struct dfl_call *call)
{
    if (dfl_call_last_step(call))
        return;
    dfl_call_no_answer(call);
    call->give_up(call);
    dfl_call_end(call, call->error.status);
}

/* Where the hold is at home, else the control connection; what the server may not know goes over
 * one that owns nothing. */
static enum dfl_status token_conn(struct dfl_call *call, struct dfl_conn **conn)
{
    *conn = call->conn;
    call->conn = NULL;
    if (*conn)
        return DFL_OK;
    if (dfl_is_unproven(call))
        return dfl_server_waiting(call->server, conn, &call->error);
    return dfl_server_control(call->server, conn, &call->error);
}

static void send_token_release(struct dfl_call *call)
{
    struct dfl_conn *conn;
    struct dfl_request *r;

    if (token_conn(call, &conn) != DFL_OK) {
        dfl_call_end(call, call->error.status);
        return;
    }
    if (!call->ours && dfl_call_blocked(call, conn, send_token_release)) {
        dfl_conn_idle(conn);
        return;
    }
    r = dfl_request_new(dfl_command_for(DFL_CMD_RELEASE, call->args.kind), call->key, call->token,
                        token_done, call);
    if (r == NULL) {
        dfl_conn_idle(conn);
        dfl_call_end(call, DFL_NOMEM);
        return;
    }
    dfl_request_owe(r);
    dfl_conn_send(conn, r);
    if (dfl_list_empty(&conn->holds))
        conn->taken = false; /* to the pool with the answer */
    if (call->no_wait) {
        dfl_server_sees_to(call->server, r);
        dfl_call_end(call, DFL_OK);
    } else {
        call->request = r;
    }
}

enum dfl_status dfl_release_token(struct dfl_session *s, enum dfl_kind kind, const char *key,
                                  size_t len, const char *token, bool wait_answer, void *user,
                                  struct dfl_now now, struct dfl_call **out, struct dfl_error *err)
{
    struct dfl_client *c = s->client;
    enum dfl_status st = dfl_key_check(key, len, err);
    struct dfl_hold *h;
    struct dfl_call *call;

    if (st == DFL_OK)
        st = dfl_token_check(token, strlen(token), err);
    if (st != DFL_OK)
        return st;
    dfl_enter(c, now);
    h = dfl_check_deadline(dfl_client_token(c, DFL_ANY_KIND, key, len, token));
    if (h && h->state != DFL_HELD)
        h = NULL; /* lost just now: what its token still is, only the server can say */
    if (h &&
        h->kind != kind) { /* a server may not tell them apart, and its holder would not know */
        st = dfl_fail(err, DFL_NOT_HELD, "this token of \"%.*s\" is of a %s, not of a %s", (int)len,
                      key, dfl_kind_name(h->kind), dfl_kind_name(kind));
    } else if (h && h->scope == DFL_SCOPE_XACT) {
        st = dfl_fail(err, DFL_NOT_HELD,
                      "%s \"%.*s\" is held by a transaction, whose end gives it back",
                      dfl_kind_name(kind), (int)len, key);
    } else if (h && h->session == s) {
        st = start_release(s, h, wait_answer, user, out, err);
    } else if ((call = dfl_call_new(s, user, err)) == NULL) {
        st = DFL_NOMEM;
    } else if ((call->key = dfl_key_get(c, key, len)) == NULL) {
        dfl_call_free(call, now);
        st = dfl_fail(err, DFL_NOMEM, "out of memory");
    } else {
        memcpy(call->token, token, DFL_TOKEN_LEN);
        call->args.kind = kind;
        call->no_wait = !wait_answer && h; /* of an unknown token only the server can say true */
        call->give_up = leave_token;
        call->ours = h != NULL;
        call->server = h ? h->server : dfl_client_server_of(c, key, len);
        call->conn = h ? h->home : NULL;
        dfl_call_at(call, call->net_deadline_ms, request_too_slow);
        send_token_release(call);
        if (h && call->status != DFL_NOMEM)
            dfl_hold_forfeit(h); /* not when nothing was sent */
        *out = call;
    }
    dfl_leave(c);
    return st;
}

enum dfl_status dfl_release_all(struct dfl_session *s, bool wait_answer, void *user,
                                struct dfl_now now, struct dfl_call **out, struct dfl_error *err)
{
    struct dfl_client *c = s->client;
    struct dfl_call *call;

    dfl_enter(c, now);
    call = dfl_call_new(s, user, err);
    if (call == NULL) {
        dfl_leave(c);
        return DFL_NOMEM;
    }
    call->all = true;
    call->outstanding = 1; /* ours, until all are sent */
    s->walk = s->holds.next;
    while (s->walk != &s->holds) {
        struct dfl_hold *h = DFL_CONTAINER(s->walk, struct dfl_hold, by_session);

        s->walk = s->walk->next;
        if (h->scope != DFL_SCOPE_SESSION || h->state == DFL_RELEASING || dfl_hold_in_call(h))
            continue;
        if (dfl_check_deadline(h)->state == DFL_STATE_LOST) {
            dfl_hold_free(h);
        } else if (dfl_hold_is_place(h)) {
            dfl_place_leave(h);
            call->seconds++;
        } else if (h->state == DFL_HELD && release_hold(call, h, wait_answer) == DFL_OK) {
            call->seconds++;
        }
    }
    dfl_call_at(call, call->net_deadline_ms, releases_too_slow);
    dfl_call_released(call, NULL, NULL);
    *out = call;
    dfl_leave(c);
    return DFL_OK;
}

/* ------------------------------------------------------------------ renew */

static void renew_done(struct dfl_request *r, const struct dfl_answer_line *a,
                       const struct dfl_error *error)
{
    struct dfl_call *call = r->owner;
    struct dfl_hold *h = call->hold;

    call->request = NULL;
    if (error) {
        dfl_call_fail(call, error);
        return;
    }
    if (h == NULL || h->state != DFL_HELD) {
        dfl_fail(&call->error, DFL_LOST, "%s \"%s\" was lost while it was renewed",
                 dfl_kind_name(call->args.kind), call->key->bytes);
        dfl_call_end(call, DFL_LOST);
    } else if (a->kind == DFL_ANS_OK && dfl_hold_renewed(h, r, a)) {
        call->seconds = a->seconds;
        dfl_call_end(call, DFL_OK);
    } else {
        if (a->kind != DFL_ANS_OK)
            dfl_hold_lose(h, "%s refused the renewal: %.*s", h->server->address.text,
                          (int)a->text_len, a->text);
        dfl_say_lost(h, &call->error);
        dfl_call_end(call, DFL_LOST);
    }
}

static void leave_renewal(struct dfl_call *call)
{
    struct dfl_request *r = call->request;
    struct dfl_hold *h = call->hold;

    if (r && h && h->state == DFL_HELD) {
        dfl_hold_adopt_renewal(h, r);
        call->request = NULL;
    }
    leave_request(call);
}

static enum dfl_status start_renew(struct dfl_session *s, struct dfl_hold *h, int64_t lease_s,
                                   void *user, struct dfl_call **out, struct dfl_error *err)
{
    struct dfl_call *call = dfl_call_new(s, user, err);

    if (call == NULL)
        return DFL_NOMEM;
    call->server = h->server;
    call->args.kind = h->kind;
    call->key = h->key;
    call->key->refs++;
    call->give_up = leave_renewal;
    dfl_hold_set_call(h, call);
    if (lease_s > 0)
        dfl_hold_set_lease(h, lease_s);
    dfl_call_at(call, call->net_deadline_ms, request_too_slow);
    if (dfl_hold_renew(h, renew_done, call, &call->request) != DFL_OK)
        dfl_call_end(call, DFL_NOMEM);
    *out = call;
    return DFL_OK;
}

enum dfl_status dfl_renew(struct dfl_session *s, const char *key, size_t len, int64_t lease_s,
                          void *user, struct dfl_now now, struct dfl_call **call,
                          struct dfl_error *err)
{
    enum dfl_status st = dfl_key_check(key, len, err);
    struct dfl_hold *h;

    if (st == DFL_OK && lease_s != 0)
        st = dfl_lease_check(lease_s, err);
    if (st != DFL_OK)
        return st;
    dfl_enter(s->client, now);
    h = dfl_find_hold(s, key, len, DFL_ANY_KIND, -1);
    if (h == NULL)
        st = dfl_fail(err, DFL_NOT_HELD, "\"%.*s\" is not held by this session", (int)len, key);
    else if (h->state == DFL_STATE_LOST)
        st = dfl_say_lost(h, err);
    else
        st = start_renew(s, h, lease_s, user, call, err);
    dfl_leave(s->client);
    return st;
}
