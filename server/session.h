/*
 * session.h - the server without its sockets: sessions turn bytes of a connection into requests to
 * the lock table, and answers into bytes. Time is an argument. The loop drives it through struct
 * protocol (peer.h); so can a test.
 */
#ifndef DFL_SERVER_SESSION_H
#define DFL_SERVER_SESSION_H

#include "fence.h"
#include "locktable.h"
#include "log.h"
#include "peer.h"

struct stats_job;

struct service_config {
    struct locktable_config table; /* its mint is used when there is no fence */
    int64_t default_lease_s;
    const char *auth_token; /* copied as a digest; NULL: no login */
    struct fence *fence;    /* not owned; NULL: tokens come from table.mint */
};

/* Everything that the sessions share. */
struct service {
    struct locktable *table;
    struct fence *fence;
    int64_t default_lease_s;
    bool wants_login;
    unsigned char login_digest[32];
    uint64_t next_id; /* of connections */
    size_t sessions;
    bool draining;
    int64_t closed_until_ms; /* monotonic: nothing is granted before; 0 = the gate is open */
    int64_t idle_since_ms;   /* nothing has been held since; INT64_MAX = something is */
    struct log_limit said_login;
    struct dfl_link ready; /* peers with something to run or to send */
};

struct session {
    struct peer peer;
    struct service *service;
    struct lock_owner *owner;
    uint64_t id;
    bool logged_in;
    enum dfl_command asked;  /* the request that blocks */
    struct stats_job *stats; /* an answer that is being made */
    /* The lines of a request that has not arrived whole: how many there are, and the first two. */
    unsigned lines;
    uint16_t command_len, key_len;
    char command[16], key[DFL_REQUEST_LINE_MAX];
};

enum dfl_status service_new(const struct service_config *config, struct dfl_now now,
                            struct service **out, struct dfl_error *err);
void service_free(struct service *s); /* all sessions are gone */
struct protocol service_protocol(struct service *s);

/* Nothing is granted before this moment. */
void service_close_gate(struct service *s, int64_t until_ms);
/* Waiters and whoever comes are answered error_draining; renew and release go on. */
void service_drain(struct service *s, struct dfl_now now);

/* ------------------------------------------------ for command.c and stats.c */

/* Puts an answer to the request that is being handled into the session's buffer. */
void session_answer(struct session *s, enum dfl_command cmd, const struct dfl_answer_line *answer);
void session_answer_error(struct session *s, enum dfl_status status);
/* The answer will come as an effect. */
void session_block(struct session *s, enum dfl_command cmd);
/* Login failed: answers, and closes after a pause. */
void session_reject(struct session *s, struct dfl_now now);
bool session_login(const struct service *service, const char *token, size_t len);

/* command.c: carries out one request. */
void command_run(struct session *s, const struct dfl_request_line *rq, struct dfl_now now);
/* command.c: the answer of a grant. */
struct dfl_answer_line command_granted(enum dfl_answer kind, const struct lock_given *given);

#endif
