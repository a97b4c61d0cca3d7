/*
 * request.c - one request from its making to its end: what it is, who waits for its outcome, and
 * what becomes of its answer when nobody does any more (a tombstone).
 */
#include "engine.h"

#include <stdlib.h>
#include <string.h>

static void drop_answer(struct dfl_request *r, const struct dfl_answer_line *answer,
                        const struct dfl_error *error)
{
    (void)r;
    (void)answer;
    (void)error;
}

/* A grant that nobody waits for any more goes back as soon as it is read. */
static void tombstone_done(struct dfl_request *r, const struct dfl_answer_line *a,
                           const struct dfl_error *error)
{
    bool sem = dfl_command_is_sem(r->cmd);

    (void)error;
    if (a && a->kind == DFL_ANS_QUEUED && !DFL_PLANTED(18))
        r->conn->in_line = true;
    if (a && a->kind == DFL_ANS_ACQUIRED)
        r->conn->single_use = true; /* 0.5.0 refuses the next `e` of that key on it */
    if (DFL_PLANTED(4) || a == NULL || r->key == NULL || a->token[0] == '\0' ||
        !(a->kind == DFL_ANS_OK || a->kind == DFL_ANS_ACQUIRED))
        return;
    dfl_server_give_back(r->conn, sem ? DFL_SEMAPHORE : DFL_LOCK, r->key, a->token);
}

enum dfl_command dfl_command_for(enum dfl_command cmd, enum dfl_kind kind)
{
    return kind == DFL_SEMAPHORE ? cmd + (DFL_CMD_SEM_LOCK - DFL_CMD_LOCK) : cmd;
}

struct dfl_request *dfl_request_new(enum dfl_command cmd, struct dfl_key *key, const char *token,
                                    dfl_request_done *done, void *owner)
{
    struct dfl_request *r = malloc(sizeof *r); /* glibc's calloc would pass the thread's cache by */

    if (r == NULL)
        return NULL;
    *r = (struct dfl_request){0};
    dfl_link_init(&r->link);
    dfl_link_init(&r->debt);
    r->cmd = cmd;
    r->done = done ? done : drop_answer;
    r->owner = owner;
    if (token)
        memcpy(r->token, token, DFL_TOKEN_LEN);
    r->key = key;
    if (key)
        key->refs++;
    return r;
}

void dfl_request_owe(struct dfl_request *r)
{
    if (r->key)
        dfl_list_append(&r->key->debts, &r->debt);
}

/* A given-up request that may yet be granted: what gives that back is sent only when it is read. */
static bool may_be_granted(const struct dfl_request *r)
{
    return r->done == tombstone_done && r->token[0] == '\0';
}

bool dfl_key_owed(const struct dfl_key *key, const struct dfl_conn *conn)
{
    if (DFL_PLANTED(13))
        return false;
    for (struct dfl_link *l = key->debts.next; l != &key->debts; l = l->next) {
        const struct dfl_request *r = DFL_CONTAINER(l, struct dfl_request, debt);

        if (r->conn != conn || may_be_granted(r))
            return true;
    }
    return false;
}

bool dfl_request_blocks(const struct dfl_request *r)
{
    return r->cmd == DFL_CMD_WAIT || r->cmd == DFL_CMD_SEM_WAIT ||
           ((r->cmd == DFL_CMD_LOCK || r->cmd == DFL_CMD_SEM_LOCK) && r->timeout_s > 0);
}

bool dfl_request_renews(const struct dfl_request *r)
{
    return r->cmd == DFL_CMD_RENEW || r->cmd == DFL_CMD_SEM_RENEW;
}

void dfl_request_bury(struct dfl_request *r)
{
    r->owner = NULL;
    r->done = tombstone_done;
    if (dfl_list_empty(&r->debt))
        dfl_request_owe(r);
}

/* Lets the calls go on that wait for a debt of the key. Each may block again behind another debt:
 * only those that wait now are tried. */
static void debt_paid(struct dfl_key *key)
{
    struct dfl_link waiting;

    dfl_link_init(&waiting);
    while (!dfl_list_empty(&key->blocked))
        dfl_list_append(&waiting, key->blocked.next);
    while (!dfl_list_empty(&waiting)) {
        struct dfl_call *call = DFL_CONTAINER(waiting.next, struct dfl_call, blocked);

        dfl_link_remove(&call->blocked);
        call->resume(call);
    }
}

void dfl_request_free(struct dfl_request *r)
{
    struct dfl_key *key = r->key;
    bool owed = !dfl_list_empty(&r->debt);

    dfl_link_remove(&r->link);
    dfl_link_remove(&r->debt);
    if (r->heeded)
        r->conn->heeded--;
    if (owed)
        debt_paid(key);
    if (key)
        dfl_key_put(key);
    free(r);
}
