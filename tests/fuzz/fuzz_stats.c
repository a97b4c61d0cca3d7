/*
 * fuzz_stats.c - the JSON that servers answer to `stats`, through the readers of the SQLite
 * extension: dflock_stats() and dflock_server_locks.
 *
 * The input is one server's answer; a second server did not answer. The session behind it is
 * replaced by a call that has ended, the only part of the engine that the readers see.
 */
#include "input.h"

#include <json-c/json.h>

#include "../../core/engine.h"
#include "../../sqlite_ext/answers.h"
#include "../../sqlite_ext/process.h"
#include "../../sqlite_ext/session.h"
#include "../../sqlite_ext/snapshot.h"
#include "../../sqlite_ext/tables.h"

static struct dfl_server_reply replies[2];

enum dfl_status sq_session_call(struct sq_session *s, const struct sq_request *request,
                                struct dfl_error *err)
{
    struct dfl_call call = {.status = DFL_OK, .replies = replies, .reply_count = 2};

    (void)s, (void)err;
    request->finish(&call, request->arg);
    return DFL_OK;
}

enum dfl_status sq_session_lock(struct sq_session *s)
{
    (void)s;
    return DFL_NOT_HELD;
}

void sq_session_unlock(struct sq_session *s)
{
    (void)s;
}

void sq_session_others(struct sq_session *s, bool (*fn)(struct sq_session *other, void *arg),
                       void *arg)
{
    (void)s, (void)fn, (void)arg;
}

void sq_show_key(const struct sq_session *s, const char *key, size_t len, struct sq_snapshot *rows,
                 size_t column)
{
    (void)s;
    sq_snapshot_text(rows, column, key, len);
}

static void set_replies(const uint8_t *data, size_t size)
{
    snprintf(replies[0].address, sizeof replies[0].address, "127.0.0.1:6388");
    snprintf(replies[1].address, sizeof replies[1].address, "[::1]:6388");
    replies[0].body = malloc(size + 1);
    REQUIRE(replies[0].body != NULL);
    memcpy(replies[0].body, data, size);
    replies[0].body[size] = '\0';
    replies[0].body_len = size;
    dfl_fail(&replies[1].error, DFL_UNREACHABLE, "connect to [::1]:6388: connection \"refused\"");
}

/* dflock_stats(): whatever the server said, the whole is JSON with both addresses. */
static void check_json(void)
{
    struct sq_answers answers;
    struct dfl_error err;
    struct json_object *whole, *part;
    char *text;

    REQUIRE(sq_ask_stats(NULL, &answers, &err) == DFL_OK);
    text = sq_stats_json(&answers);
    REQUIRE(text != NULL);
    whole = json_tokener_parse(text);
    /* json-c takes what it calls a deep nesting only up to 32 levels, ours is one more. */
    if (whole) {
        REQUIRE(json_object_object_length(whole) == 2);
        REQUIRE(json_object_object_get_ex(whole, "127.0.0.1:6388", &part));
        REQUIRE(json_object_is_type(part, json_type_object));
        REQUIRE(json_object_object_get_ex(whole, "[::1]:6388", &part));
        REQUIRE(json_object_object_get_ex(part, "error", NULL));
    }
    json_object_put(whole);
    free(text);
    sq_answers_free(&answers);
}

static void check_rows(void)
{
    struct sq_snapshot *rows = sq_snapshot_new(9);
    struct dfl_error err;

    REQUIRE(rows != NULL);
    REQUIRE(sq_take_server_locks(NULL, rows, &err) == DFL_OK);
    REQUIRE(!rows->failed && rows->rows >= 1); /* the silent server's row is always there */
    for (size_t i = 0; i < rows->rows; i++)
        REQUIRE(rows->cells[i * rows->columns].type == SQ_TEXT);
    sq_snapshot_release(rows);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    set_replies(data, size);
    check_json();
    check_rows();
    free(replies[0].body);
    return 0;
}
