/*
 * answers.c - asks every server something, and puts what each said into one JSON object:
 * dflock_stats() and dflock_ping().
 *
 * The answers are copied out of the call under the session's mutex, and read after it has been
 * given up: a large one takes time.
 */
#include "answers.h"

#include <jansson.h>
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

/* A server's own answer keeps its own spelling (a number stays 25.4), so it is checked to be JSON
 * and then used as it is. */
static char *json_value(const struct sq_answer *answer)
{
    char reason[JSON_ERROR_TEXT_LENGTH + 32];
    const char *error = answer->error;
    char *out = NULL;

    if (answer->status == DFL_OK) {
        json_error_t at;
        json_t *body = json_loadb(answer->body, answer->body_len, 0, &at);
        if (body) {
            json_decref(body);
            return copy(answer->body, answer->body_len);
        }
        snprintf(reason, sizeof reason, "stats is no JSON: %s", at.text);
        error = reason;
    }
    json_t *failure = json_pack("{s:s}", "error", error);
    if (failure)
        out = json_dumps(failure, JSON_COMPACT);
    json_decref(failure);
    return out;
}

static char *ping_value(const struct sq_answer *answer)
{
    char text[64];

    if (answer->status != DFL_OK)
        return json_value(answer);
    snprintf(text, sizeof text, "{\"round_trip_ms\":%.3f}", (double)answer->round_trip_us / 1000.0);
    return copy(text, strlen(text));
}

static char *quoted(const char *text)
{
    json_t *string = json_string(text);
    char *out = string ? json_dumps(string, JSON_ENCODE_ANY) : NULL;

    json_decref(string);
    return out;
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
        char *name = quoted(answers->list[i].address), *value = value_of(&answers->list[i]);
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
    return json_object_of(answers, json_value);
}

char *sq_ping_json(const struct sq_answers *answers)
{
    return json_object_of(answers, ping_value);
}
