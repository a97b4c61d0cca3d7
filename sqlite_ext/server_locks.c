/*
 * server_locks.c - the rows of dflock_server_locks: what the servers say they have, and which of it
 * is this process's.
 *
 * Reads the JSON of `stats` with a library, takes what it knows and ignores the rest. A dead server
 * is a row with its address and the reason.
 */
#include <json-c/json.h>
#include <string.h>
#include <unistd.h>

#include "answers.h"
#include "planted.h"
#include "process.h"
#include "session.h"
#include "snapshot.h"
#include "tables.h"

enum { SERVER, KEY, KIND, SLOTS, HOLDERS, WAITERS, EXPIRES, HELD_BY, ERROR };

/* ------------------------------------------------- what this process holds */

/* A JSON object used as a set of "server kind key"; none of the three has a space in it. */
struct own {
    struct json_object *set;
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
    if (json_object_object_add(own->set, name, NULL) != 0)
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
    struct own own = {.set = json_object_new_object()};

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

static void show_integer(struct page *p, size_t column, struct json_object *entry, const char *name)
{
    struct json_object *number = json_object_object_get(entry, name);

    if (json_object_is_type(number, json_type_int))
        sq_snapshot_integer(p->rows, column, json_object_get_int64(number));
}

/* The columns that locks and semaphores share. False: not a row of the kind we know. */
static bool begin_row(struct page *p, struct json_object *entry, bool semaphore)
{
    struct json_object *key = json_object_object_get(entry, "key");
    char name[NAME_MAX_LEN];

    if (!json_object_is_type(key, json_type_string) && !DFL_PLANTED(45))
        return false;
    const char *text = json_object_get_string(key);
    size_t len = (size_t)json_object_get_string_len(key);
    sq_snapshot_row(p->rows);
    sq_snapshot_string(p->rows, SERVER, p->server);
    sq_show_key(p->session, text, len, p->rows, KEY);
    sq_snapshot_string(p->rows, KIND, semaphore ? "semaphore" : "lock");
    show_integer(p, WAITERS, entry, "waiters");
    own_name(name, p->server, semaphore, text, len);
    if (json_object_object_get_ex(p->own->set, name, NULL))
        sq_snapshot_integer(p->rows, HELD_BY, getpid());
    return true;
}

static void show_lock(struct page *p, struct json_object *entry)
{
    struct json_object *expires = json_object_object_get(entry, "lease_expires_in_s");
    bool held = json_object_get_int64(json_object_object_get(entry, "owner_conn_id")) != 0;

    if (!begin_row(p, entry, false))
        return;
    sq_snapshot_integer(p->rows, SLOTS, 1);
    sq_snapshot_integer(p->rows, HOLDERS, held);
    if (held && expires)
        sq_snapshot_real(p->rows, EXPIRES, json_object_get_double(expires));
}

static void show_semaphore(struct page *p, struct json_object *entry)
{
    if (!begin_row(p, entry, true))
        return;
    show_integer(p, SLOTS, entry, "limit");
    show_integer(p, HOLDERS, entry, "holders");
}

static void show_list(struct page *p, struct json_object *body, const char *name,
                      void (*show)(struct page *p, struct json_object *entry))
{
    struct json_object *list = json_object_object_get(body, name);

    if (!json_object_is_type(list, json_type_array))
        return;
    for (size_t i = 0; i < json_object_array_length(list); i++)
        if (json_object_is_type(json_object_array_get_idx(list, i), json_type_object))
            show(p, json_object_array_get_idx(list, i));
}

static void show_server(struct page *p, const struct sq_answer *answer)
{
    const char *reason;
    struct json_object *body = sq_answer_json(answer, &reason);

    if (!body) {
        sq_snapshot_row(p->rows);
        sq_snapshot_string(p->rows, SERVER, p->server);
        sq_snapshot_string(p->rows, ERROR, reason);
        return;
    }
    show_list(p, body, "locks", show_lock);
    show_list(p, body, "semaphores", show_semaphore);
    json_object_put(body);
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
    json_object_put(own.set);
    sq_answers_free(&answers);
    return status;
}
