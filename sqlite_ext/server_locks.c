/*
 * server_locks.c - the rows of dflock_server_locks: what the servers say they have, and which of it
 * is this process's.
 *
 * Reads the JSON of `stats` with a library, takes what it knows and ignores the rest. A dead server
 * is a row with its address and the reason.
 */
#include <jansson.h>
#include <string.h>
#include <unistd.h>

#include "answers.h"
#include "process.h"
#include "session.h"
#include "snapshot.h"
#include "tables.h"

enum { SERVER, KEY, KIND, SLOTS, HOLDERS, WAITERS, EXPIRES, HELD_BY, ERROR };

/* ------------------------------------------------- what this process holds */

/* A JSON object used as a set of "server kind key"; none of the three has a space in it. */
struct own {
    json_t *set;
    bool failed;
};

#define NAME_MAX_LEN (DFL_ADDRESS_MAX + DFL_KEY_MAX + 16)

static void own_name(char out[NAME_MAX_LEN], const char *server, bool semaphore, const char *key,
                     size_t len)
{
    size_t at = strnlen(server, DFL_ADDRESS_MAX);

    if (len > DFL_KEY_MAX)
        len = DFL_KEY_MAX;
    memcpy(out, server, at);
    out[at++] = ' ';
    out[at++] = semaphore ? 's' : 'l';
    out[at++] = ' ';
    memcpy(out + at, key, len);
    out[at + len] = '\0';
}

static bool add_hold(void *arg, struct dfl_hold *hold)
{
    struct own *own = arg;
    struct dfl_hold_info info;
    char name[NAME_MAX_LEN];

    dfl_hold_info(hold, &info);
    if (info.state != DFL_HELD)
        return true;
    own_name(name, info.server, info.kind == DFL_SEMAPHORE, info.key, info.key_len);
    if (json_object_set_new_nocheck(own->set, name, json_true()) != 0)
        own->failed = true;
    return true;
}

static bool add_session(struct sq_session *s, void *arg)
{
    if (sq_session_lock(s) != DFL_OK)
        return true;
    dfl_client_each(s->client, add_hold, arg);
    sq_session_unlock(s);
    return true;
}

static struct own take_own(struct sq_session *s)
{
    struct own own = {.set = json_object()};

    own.failed = !own.set;
    if (!own.failed) {
        add_session(s, &own);
        sq_session_others(s, add_session, &own);
    }
    return own;
}

/* -------------------------------------------------------------------- rows */

struct page {
    const struct sq_session *session;
    const struct own *own;
    const char *server;
    struct sq_snapshot *rows;
};

static void show_integer(struct page *p, size_t column, const json_t *number)
{
    if (json_is_integer(number))
        sq_snapshot_integer(p->rows, column, json_integer_value(number));
}

/* The columns that locks and semaphores share. False: not a row of the kind we know. */
static bool begin_row(struct page *p, const json_t *entry, bool semaphore)
{
    const json_t *key = json_object_get(entry, "key");
    char name[NAME_MAX_LEN];

    if (!json_is_string(key))
        return false;
    sq_snapshot_row(p->rows);
    sq_snapshot_string(p->rows, SERVER, p->server);
    sq_show_key(p->session, json_string_value(key), json_string_length(key), p->rows, KEY);
    sq_snapshot_string(p->rows, KIND, semaphore ? "semaphore" : "lock");
    show_integer(p, WAITERS, json_object_get(entry, "waiters"));
    own_name(name, p->server, semaphore, json_string_value(key), json_string_length(key));
    if (json_object_get(p->own->set, name))
        sq_snapshot_integer(p->rows, HELD_BY, getpid());
    return true;
}

static void show_lock(struct page *p, const json_t *entry)
{
    const json_t *expires = json_object_get(entry, "lease_expires_in_s");
    bool held = json_integer_value(json_object_get(entry, "owner_conn_id")) != 0;

    if (!begin_row(p, entry, false))
        return;
    sq_snapshot_integer(p->rows, SLOTS, 1);
    sq_snapshot_integer(p->rows, HOLDERS, held);
    if (held && json_is_number(expires))
        sq_snapshot_real(p->rows, EXPIRES, json_number_value(expires));
}

static void show_semaphore(struct page *p, const json_t *entry)
{
    if (!begin_row(p, entry, true))
        return;
    show_integer(p, SLOTS, json_object_get(entry, "limit"));
    show_integer(p, HOLDERS, json_object_get(entry, "holders"));
}

static void show_error(struct page *p, const char *error)
{
    sq_snapshot_row(p->rows);
    sq_snapshot_string(p->rows, SERVER, p->server);
    sq_snapshot_string(p->rows, ERROR, error);
}

static void show_server(struct page *p, const struct sq_answer *answer)
{
    json_error_t at;
    json_t *body, *entry;
    size_t i;

    if (answer->status != DFL_OK) {
        show_error(p, answer->error);
        return;
    }
    body = json_loadb(answer->body, answer->body_len, 0, &at);
    if (!json_is_object(body)) {
        show_error(p, "the answer to stats is no JSON object");
        json_decref(body);
        return;
    }
    json_array_foreach(json_object_get(body, "locks"), i, entry) show_lock(p, entry);
    json_array_foreach(json_object_get(body, "semaphores"), i, entry) show_semaphore(p, entry);
    json_decref(body);
}

enum dfl_status sq_take_server_locks(struct sq_session *s, struct sq_snapshot *rows,
                                     struct dfl_error *err)
{
    struct sq_answers answers;
    enum dfl_status status = sq_ask_stats(s, &answers, err);

    if (status != DFL_OK)
        return status;
    struct own own = take_own(s);
    for (size_t i = 0; i < answers.count && !own.failed; i++) {
        struct page page = {s, &own, answers.list[i].address, rows};
        show_server(&page, &answers.list[i]);
    }
    if (own.failed)
        status = dfl_fail(err, DFL_NOMEM, "out of memory");
    json_decref(own.set);
    sq_answers_free(&answers);
    return status;
}
