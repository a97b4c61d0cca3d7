/*
 * command.c - what each word of the protocol does: a row of the table, a function of a few lines.
 * Knows the protocol's structs and the lock table; no bytes, no sockets.
 */
#include "session.h"
#include "stats.h"

#include <string.h>

struct dfl_answer_line command_granted(enum dfl_answer kind, const struct lock_given *given)
{
    static const char hex[] = "0123456789abcdef";
    struct dfl_answer_line answer = {.kind = kind, .seconds = given->lease_s};

    for (int i = 0; i < 16; i++) {
        answer.token[i] = hex[given->token.fence >> (60 - 4 * i) & 15];
        answer.token[16 + i] = hex[given->token.random >> (60 - 4 * i) & 15];
    }
    return answer;
}

/* The answer to whatever the lock table has said, but for grants. */
static void answer_status(struct session *s, enum dfl_command cmd, enum dfl_status status)
{
    struct dfl_answer_line answer = {.kind = DFL_ANS_ERROR, .status = status};

    if (status == DFL_OK)
        answer.kind = DFL_ANS_OK;
    else if (status == DFL_TIMEOUT)
        answer.kind = DFL_ANS_TIMEOUT;
    session_answer(s, cmd, &answer);
}

static void answer_granted(struct session *s, enum dfl_command cmd, enum dfl_answer kind,
                           const struct lock_given *given)
{
    struct dfl_answer_line answer = command_granted(kind, given);

    session_answer(s, cmd, &answer);
}

static struct lock_request table_request(const struct session *s, const struct dfl_request_line *rq)
{
    return (struct lock_request){.key = rq->key,
                                 .key_len = rq->key_len,
                                 .limit = dfl_command_is_sem(rq->cmd) ? rq->limit : 1,
                                 .lease_s = rq->lease_s ? rq->lease_s : s->service->default_lease_s,
                                 .timeout_s = rq->timeout_s};
}

static void run_auth(struct session *s, const struct dfl_request_line *rq, struct dfl_now now)
{
    if (!s->service->wants_login || s->logged_in) {
        session_answer_error(s, DFL_REFUSED);
    } else if (!session_login(s->service, rq->token, rq->token_len)) {
        session_reject(s, now);
    } else {
        s->logged_in = true;
        answer_status(s, rq->cmd, DFL_OK);
    }
}

static void run_lock(struct session *s, const struct dfl_request_line *rq, struct dfl_now now)
{
    struct lock_request want = table_request(s, rq);
    struct lock_given given;
    enum dfl_status status = locktable_acquire(s->service->table, s->owner, &want, now.ms, &given);

    if (status == DFL_OK)
        answer_granted(s, rq->cmd, DFL_ANS_OK, &given);
    else if (status == DFL_PENDING)
        session_block(s, rq->cmd);
    else
        answer_status(s, rq->cmd, status);
}

static void run_enqueue(struct session *s, const struct dfl_request_line *rq, struct dfl_now now)
{
    struct lock_request want = table_request(s, rq);
    struct lock_given given;
    enum dfl_status status = locktable_enqueue(s->service->table, s->owner, &want, now.ms, &given);
    struct dfl_answer_line queued = {.kind = DFL_ANS_QUEUED};

    if (status == DFL_OK)
        answer_granted(s, rq->cmd, DFL_ANS_ACQUIRED, &given);
    else if (status == DFL_PENDING)
        session_answer(s, rq->cmd, &queued);
    else
        answer_status(s, rq->cmd, status);
}

static void run_wait(struct session *s, const struct dfl_request_line *rq, struct dfl_now now)
{
    struct lock_given given;
    enum dfl_status status = locktable_wait(s->service->table, s->owner, rq->key, rq->key_len,
                                            rq->timeout_s, now.ms, &given);

    if (status == DFL_OK)
        answer_granted(s, rq->cmd, DFL_ANS_OK, &given);
    else if (status == DFL_PENDING)
        session_block(s, rq->cmd);
    else
        answer_status(s, rq->cmd, status);
}

/* A token of another form is one that holds nothing. */
static bool read_token(const struct dfl_request_line *rq, struct lock_token *token)
{
    if (dfl_token_check(rq->token, rq->token_len, NULL) != DFL_OK)
        return false;
    token->fence = dfl_token_prefix(rq->token);
    token->random = dfl_token_prefix(rq->token + 16);
    return true;
}

static void run_release(struct session *s, const struct dfl_request_line *rq, struct dfl_now now)
{
    struct lock_token token;
    enum dfl_status status = DFL_REFUSED;

    if (read_token(rq, &token))
        status = locktable_release(s->service->table, rq->key, rq->key_len, &token, now.ms);
    answer_status(s, rq->cmd, status);
}

static void run_renew(struct session *s, const struct dfl_request_line *rq, struct dfl_now now)
{
    struct lock_token token;
    struct dfl_answer_line answer = {.kind = DFL_ANS_ERROR, .status = DFL_REFUSED};
    int64_t lease_s = rq->lease_s ? rq->lease_s : s->service->default_lease_s;

    if (read_token(rq, &token) && locktable_renew(s->service->table, rq->key, rq->key_len, &token,
                                                  lease_s, now.ms, &answer.seconds) == DFL_OK)
        answer.kind = DFL_ANS_OK;
    session_answer(s, rq->cmd, &answer);
}

static void run_ping(struct session *s, const struct dfl_request_line *rq, struct dfl_now now)
{
    (void)now;
    answer_status(s, rq->cmd, DFL_OK);
}

static void run_stats(struct session *s, const struct dfl_request_line *rq, struct dfl_now now)
{
    (void)rq;
    stats_start(s, now);
}

static void (*const commands[DFL_CMD_COUNT])(struct session *, const struct dfl_request_line *,
                                             struct dfl_now) = {
    [DFL_CMD_AUTH] = run_auth,       [DFL_CMD_LOCK] = run_lock,
    [DFL_CMD_RELEASE] = run_release, [DFL_CMD_RENEW] = run_renew,
    [DFL_CMD_ENQUEUE] = run_enqueue, [DFL_CMD_WAIT] = run_wait,
    [DFL_CMD_SEM_LOCK] = run_lock,   [DFL_CMD_SEM_RELEASE] = run_release,
    [DFL_CMD_SEM_RENEW] = run_renew, [DFL_CMD_SEM_ENQUEUE] = run_enqueue,
    [DFL_CMD_SEM_WAIT] = run_wait,   [DFL_CMD_PING] = run_ping,
    [DFL_CMD_STATS] = run_stats,
};

void command_run(struct session *s, const struct dfl_request_line *rq, struct dfl_now now)
{
    commands[rq->cmd](s, rq, now);
}
