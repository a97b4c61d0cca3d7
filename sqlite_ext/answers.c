/*
 * answers.c - asks every server something, and puts what each said into one JSON object:
 * dflock_stats() and dflock_ping().
 *
 * The answers are copied out of the call under the session's mutex, and read after it has been
 * given up: a large one takes time.
 */
#include "answers.h"

#include <json-c/json.h>
#include <json-c/json_visit.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "session.h"

/* ------------------------------------------------------------------ asking */

static char *copy(const char *text, size_t len)
{
    char *out = malloc(len + 1);

    if (out) {
        memcpy(out, text, len);
        out[len] = '\0';
    }
    return out;
}

static void collect(struct dfl_call *call, void *arg)
{
    struct sq_answers *answers = arg;
    size_t count = dfl_call_answers(call);

    answers->list = calloc(count ? count : 1, sizeof *answers->list);
    if (!answers->list)
        return;
    answers->count = count;
    for (size_t i = 0; i < count; i++) {
        struct dfl_server_answer from;
        struct sq_answer *to = &answers->list[i];
        dfl_call_answer(call, i, &from);
        to->address = copy(from.address, strlen(from.address));
        to->status = from.status;
        to->error = copy(from.error, strlen(from.error));
        to->body = copy(from.body ? from.body : "", from.body_len);
        to->body_len = from.body_len;
        to->round_trip_us = from.round_trip_us;
    }
}

static bool complete(const struct sq_answers *answers)
{
    if (!answers->list)
        return false;
    for (size_t i = 0; i < answers->count; i++)
        if (!answers->list[i].address || !answers->list[i].error || !answers->list[i].body)
            return false;
    return true;
}

static enum dfl_status ask(struct sq_session *s, struct sq_request request,
                           struct sq_answers *answers, struct dfl_error *err)
{
    *answers = (struct sq_answers){0};
    request.finish = collect;
    request.arg = answers;
    enum dfl_status status = sq_session_call(s, &request, err);
    if (status == DFL_OK && !complete(answers))
        status = dfl_fail(err, DFL_NOMEM, "out of memory");
    if (status != DFL_OK)
        sq_answers_free(answers);
    return status;
}

static enum dfl_status start_stats(struct dfl_session *owner, void *arg, struct dfl_now now,
                                   struct dfl_call **call, struct dfl_error *err)
{
    (void)arg;
    return dfl_stats(owner, NULL, now, call, err);
}

static enum dfl_status start_ping(struct dfl_session *owner, void *arg, struct dfl_now now,
                                  struct dfl_call **call, struct dfl_error *err)
{
    (void)arg;
    return dfl_ping(owner, NULL, now, call, err);
}

enum dfl_status sq_ask_stats(struct sq_session *s, struct sq_answers *answers,
                             struct dfl_error *err)
{
    return ask(s, (struct sq_request){.start = start_stats}, answers, err);
}

enum dfl_status sq_ask_ping(struct sq_session *s, struct sq_answers *answers, struct dfl_error *err)
{
    return ask(s, (struct sq_request){.start = start_ping}, answers, err);
}

void sq_answers_free(struct sq_answers *answers)
{
    for (size_t i = 0; i < answers->count; i++) {
        free(answers->list[i].address);
        free(answers->list[i].error);
        free(answers->list[i].body);
    }
    free(answers->list);
    *answers = (struct sq_answers){0};
}

/* -------------------------------------------------------------------- JSON */

/* json_object as text; gives up its share of it. */
static char *to_text(struct json_object *object)
{
    int how = JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE;
    const char *text = object ? json_object_to_json_string_ext(object, how) : NULL;
    char *out = text ? copy(text, strlen(text)) : NULL;

    json_object_put(object);
    return out;
}

static char *failure(const char *reason)
{
    struct json_object *object = json_object_new_object();

    if (object)
        json_object_object_add(object, "error", json_object_new_string(reason));
    return to_text(object);
}

/* Even when it is strict, json-c reads NaN, 1., -.5 and 01.5, and writes them as they came. */
static int find_no_number(struct json_object *object, int flags, struct json_object *parent,
                          const char *name, size_t *index, void *unused)
{
    (void)flags, (void)parent, (void)name, (void)index, (void)unused;
    if (!json_object_is_type(object, json_type_double))
        return JSON_C_VISIT_RETURN_CONTINUE;
    static const char digits[] = "0123456789";
    const char *text = json_object_to_json_string(object), *point = strchr(text, '.');
    const char *whole = text + (*text == '-');
    size_t length = strspn(whole, digits);
    bool good =
        (length == 1 || (length > 1 && *whole != '0')) && (!point || strspn(point + 1, digits) > 0);
    return good ? JSON_C_VISIT_RETURN_CONTINUE : JSON_C_VISIT_RETURN_ERROR;
}

struct json_object *sq_answer_json(const struct sq_answer *answer, const char **reason)
{
    struct json_object *body = NULL;
    struct json_tokener *parser;

    *reason = answer->error;
    if (answer->status != DFL_OK)
        return NULL;
    *reason = "out of memory";
    if (!(parser = json_tokener_new()))
        return NULL;
    *reason = "the answer to stats is no JSON object";
    json_tokener_set_flags(parser, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);
    if (answer->body_len <= INT_MAX)
        body = json_tokener_parse_ex(parser, answer->body, (int)answer->body_len);
    if (json_tokener_get_error(parser) != json_tokener_success ||
        json_tokener_get_parse_end(parser) != answer->body_len ||
        !json_object_is_type(body, json_type_object) ||
        json_c_visit(body, 0, find_no_number, NULL) < 0) {
        json_object_put(body);
        body = NULL;
    }
    json_tokener_free(parser);
    return body;
}

/* As it was read, not as it came: json-c takes some of what is not quite JSON for it. */
static char *stats_value(const struct sq_answer *answer)
{
    const char *reason;
    struct json_object *body = sq_answer_json(answer, &reason);

    if (!body)
        return failure(reason);
    return to_text(body);
}

static char *ping_value(const struct sq_answer *answer)
{
    char text[64];

    if (answer->status != DFL_OK)
        return failure(answer->error);
    snprintf(text, sizeof text, "{\"round_trip_ms\":%.3f}", (double)answer->round_trip_us / 1000.0);
    return copy(text, strlen(text));
}

static char *json_object_of(const struct sq_answers *answers,
                            char *(*value_of)(const struct sq_answer *))
{
    char *out = NULL;
    size_t len = 0;
    bool failed = false;
    FILE *stream = open_memstream(&out, &len);

    if (!stream)
        return NULL;
    for (size_t i = 0; i < answers->count; i++) {
        char *name = to_text(json_object_new_string(answers->list[i].address)),
             *value = value_of(&answers->list[i]);
        failed = failed || !name || !value;
        if (!failed)
            fprintf(stream, "%s%s:%s", i ? "," : "{", name, value);
        free(name);
        free(value);
    }
    fputs(answers->count ? "}" : "{}", stream);
    failed = ferror(stream) || failed;
    failed = fclose(stream) != 0 || failed;
    if (!failed)
        return out;
    free(out);
    return NULL;
}

char *sq_stats_json(const struct sq_answers *answers)
{
    return json_object_of(answers, stats_value);
}

char *sq_ping_json(const struct sq_answers *answers)
{
    return json_object_of(answers, ping_value);
}
