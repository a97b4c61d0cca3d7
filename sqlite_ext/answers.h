/*
 * answers.h - asks every server something, and keeps what each said beyond the call.
 */
#ifndef DFL_SQLITE_ANSWERS_H
#define DFL_SQLITE_ANSWERS_H

#include "../core/dflockd.h"

struct sq_session;

struct sq_answer {
    char *address;
    enum dfl_status status;
    char *error; /* "" when DFL_OK */
    char *body;  /* stats: JSON text */
    size_t body_len;
    int64_t round_trip_us;
};

struct sq_answers {
    struct sq_answer *list;
    size_t count;
};

/* One answer per server; a dead server's says why. */
enum dfl_status sq_ask_stats(struct sq_session *s, struct sq_answers *answers,
                             struct dfl_error *err);
enum dfl_status sq_ask_ping(struct sq_session *s, struct sq_answers *answers,
                            struct dfl_error *err);
void sq_answers_free(struct sq_answers *answers);

/* The parsed answer to stats, the caller's to put; NULL with the reason when there is none. */
struct json_object *sq_answer_json(const struct sq_answer *answer, const char **reason);

/* As one JSON object keyed by address, malloc'd; NULL: no memory. A failed server's value is
 * {"error": ...}. */
char *sq_stats_json(const struct sq_answers *answers);
char *sq_ping_json(const struct sq_answers *answers);

#endif
