/*
 * proto.c - dflockd's wire format, both ends of it: requests and answers as tables, and the line
 * reader under them. Owns only the reader's buffer. Never does I/O, never knows time, never trusts
 * a byte that a peer sent.
 */
#include "proto.h"

#include "planted.h"

#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- commands */

/* What the third line of a request carries. */
enum argument {
    ARG_NOTHING, /* anything, and it means nothing */
    ARG_TOKEN,   /* the whole line is one token */
    ARG_FIELDS   /* the fields below, in this order */
};

enum field { FIELD_NONE, FIELD_TIMEOUT, FIELD_LIMIT, FIELD_TOKEN, FIELD_LEASE };

#define FIELDS_MAX 3

/* What a good answer looks like. */
enum reply { REPLY_BARE, REPLY_SECONDS, REPLY_GRANT, REPLY_PLACE, REPLY_TEXT };

struct command {
    const char *word;
    enum argument argument;
    enum field fields[FIELDS_MAX]; /* a lease may always be left out */
    enum reply reply;
    bool keyed;
    bool sem;
};

static const struct command commands[DFL_CMD_COUNT] = {
    [DFL_CMD_AUTH] = {"auth", ARG_TOKEN, {FIELD_NONE}, REPLY_BARE, false, false},
    [DFL_CMD_LOCK] = {"l", ARG_FIELDS, {FIELD_TIMEOUT, FIELD_LEASE}, REPLY_GRANT, true, false},
    [DFL_CMD_RELEASE] = {"r", ARG_TOKEN, {FIELD_NONE}, REPLY_BARE, true, false},
    [DFL_CMD_RENEW] = {"n", ARG_FIELDS, {FIELD_TOKEN, FIELD_LEASE}, REPLY_SECONDS, true, false},
    [DFL_CMD_ENQUEUE] = {"e", ARG_FIELDS, {FIELD_LEASE}, REPLY_PLACE, true, false},
    [DFL_CMD_WAIT] = {"w", ARG_FIELDS, {FIELD_TIMEOUT}, REPLY_GRANT, true, false},
    [DFL_CMD_SEM_LOCK] =
        {"sl", ARG_FIELDS, {FIELD_TIMEOUT, FIELD_LIMIT, FIELD_LEASE}, REPLY_GRANT, true, true},
    [DFL_CMD_SEM_RELEASE] = {"sr", ARG_TOKEN, {FIELD_NONE}, REPLY_BARE, true, true},
    [DFL_CMD_SEM_RENEW] = {"sn", ARG_FIELDS, {FIELD_TOKEN, FIELD_LEASE}, REPLY_SECONDS, true, true},
    [DFL_CMD_SEM_ENQUEUE] = {"se", ARG_FIELDS, {FIELD_LIMIT, FIELD_LEASE}, REPLY_PLACE, true, true},
    [DFL_CMD_SEM_WAIT] = {"sw", ARG_FIELDS, {FIELD_TIMEOUT}, REPLY_GRANT, true, true},
    [DFL_CMD_PING] = {"ping", ARG_NOTHING, {FIELD_NONE}, REPLY_BARE, false, false},
    [DFL_CMD_STATS] = {"stats", ARG_NOTHING, {FIELD_NONE}, REPLY_TEXT, false, false},
};

const char *dfl_command_word(enum dfl_command cmd)
{
    return commands[cmd].word;
}

bool dfl_command_is_sem(enum dfl_command cmd)
{
    return commands[cmd].sem;
}

/* ----------------------------------------------------------------- writing */

/* A buffer that is being filled; `full` sticks once something did not fit. */
struct out {
    char *buf;
    size_t cap, len;
    bool full;
};

static void put_bytes(struct out *o, const char *bytes, size_t n)
{
    if (o->full || n > o->cap - o->len) {
        o->full = true;
        return;
    }
    if (n > 0)
        memcpy(o->buf + o->len, bytes, n);
    o->len += n;
}

static void put_char(struct out *o, char c)
{
    put_bytes(o, &c, 1);
}

static void put_text(struct out *o, const char *text)
{
    put_bytes(o, text, strlen(text));
}

/* By hand, because every request passes here and numbers of the wire are never negative. */
static void put_number(struct out *o, int64_t n)
{
    char digits[20];
    size_t at = sizeof digits;
    uint64_t left = n < 0 ? 0 : (uint64_t)n;

    do
        digits[--at] = (char)('0' + left % 10);
    while ((left /= 10) > 0);
    put_bytes(o, digits + at, sizeof digits - at);
}

static size_t finish(const struct out *o)
{
    return o->full ? 0 : o->len;
}

static void put_field(struct out *o, enum field field, const struct dfl_request_line *req)
{
    switch (field) {
    case FIELD_NONE:
        break;
    case FIELD_TIMEOUT:
        put_number(o, req->timeout_s);
        break;
    case FIELD_LIMIT:
        put_number(o, req->limit);
        break;
    case FIELD_TOKEN:
        put_bytes(o, req->token, req->token_len);
        break;
    case FIELD_LEASE:
        put_number(o, req->lease_s);
        break;
    }
}

static void put_argument(struct out *o, const struct command *c, const struct dfl_request_line *req)
{
    if (c->argument == ARG_NOTHING)
        put_char(o, '_');
    if (c->argument == ARG_TOKEN)
        put_bytes(o, req->token, req->token_len);
    for (size_t i = 0; i < FIELDS_MAX && c->fields[i] != FIELD_NONE; i++) {
        if (c->fields[i] == FIELD_LEASE && req->lease_s == 0)
            break;
        if (i > 0)
            put_char(o, ' ');
        put_field(o, c->fields[i], req);
    }
}

size_t dfl_request_format(char *buf, size_t cap, const struct dfl_request_line *req)
{
    const struct command *c = &commands[req->cmd];
    struct out o = {buf, cap, 0, false};

    put_text(&o, c->word);
    put_char(&o, '\n');
    if (c->keyed)
        put_bytes(&o, req->key, req->key_len);
    else
        put_char(&o, '_');
    put_char(&o, '\n');
    put_argument(&o, c, req);
    put_char(&o, '\n');
    return finish(&o);
}

/* ----------------------------------------------------------------- reading */

/* A piece of somebody's line. */
struct span {
    const char *at;
    size_t len;
};

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static struct span trim(struct span s)
{
    while (s.len > 0 && is_space(s.at[0])) {
        s.at++;
        s.len--;
    }
    while (s.len > 0 && is_space(s.at[s.len - 1]))
        s.len--;
    return s;
}

/* Cuts the next run of non-space off *rest; empty when there is none. */
static struct span next_field(struct span *rest)
{
    *rest = trim(*rest);

    struct span field = {rest->at, 0};

    while (field.len < rest->len + DFL_PLANTED(42) && !is_space(field.at[field.len]))
        field.len++;
    rest->at += field.len;
    rest->len -= field.len;
    return field;
}

/* Decimal digits and nothing else, at most max. */
static bool parse_digits(struct span s, int64_t max, int64_t *out)
{
    int64_t n = 0;

    if (s.len == 0)
        return false;
    for (size_t i = 0; i < s.len; i++) {
        if (s.at[i] < '0' || s.at[i] > '9')
            return false;

        int digit = s.at[i] - '0';

        if (n > (max - digit) / 10)
            return false;
        n = n * 10 + digit;
    }
    *out = n;
    return true;
}

/* A number of a request: one sign is allowed, though only 0 survives a minus. */
static bool parse_number(struct span s, int64_t min, int64_t max, int64_t *out)
{
    bool minus = s.len > 0 && s.at[0] == '-';
    int64_t n;

    if (s.len > 0 && (s.at[0] == '-' || s.at[0] == '+')) {
        s.at++;
        s.len--;
    }
    if (!parse_digits(s, max, &n) || n < min || (minus && n != 0))
        return false;
    *out = n;
    return true;
}

static bool parse_token(struct span s, struct dfl_request_line *out)
{
    if (s.len == 0)
        return false;
    out->token = s.at;
    out->token_len = s.len;
    return true;
}

static bool parse_field(enum field field, struct span s, struct dfl_request_line *out)
{
    switch (field) {
    case FIELD_NONE:
        return false;
    case FIELD_TIMEOUT:
        return parse_number(s, 0, DFL_SECONDS_MAX, &out->timeout_s);
    case FIELD_LIMIT:
        return parse_number(s, 1, INT64_MAX, &out->limit);
    case FIELD_TOKEN:
        return parse_token(s, out);
    case FIELD_LEASE:
        return parse_number(s, 1, DFL_SECONDS_MAX, &out->lease_s);
    }
    return false;
}

static bool parse_fields(const struct command *c, struct span arg, struct dfl_request_line *out)
{
    for (size_t i = 0; i < FIELDS_MAX && c->fields[i] != FIELD_NONE; i++) {
        struct span field = next_field(&arg);

        if (field.len == 0)
            return c->fields[i] == FIELD_LEASE;
        if (!parse_field(c->fields[i], field, out))
            return false;
    }
    return trim(arg).len == 0;
}

static bool parse_argument(const struct command *c, struct span arg, struct dfl_request_line *out)
{
    switch (c->argument) {
    case ARG_NOTHING:
        return true;
    case ARG_TOKEN:
        /* An empty login is a failed login, not a malformed one. */
        return parse_token(trim(arg), out) || !c->keyed;
    case ARG_FIELDS:
        return parse_fields(c, arg, out);
    }
    return false;
}

static bool good_key(struct span key)
{
    if (key.len == 0 || key.len > DFL_KEY_MAX)
        return false;
    for (size_t i = 0; i < key.len; i++)
        if (key.at[i] == ' ' || key.at[i] == '\t' || key.at[i] == '\r' || key.at[i] == '\n')
            return false;
    return true;
}

static bool find_command(struct span word, enum dfl_command *cmd)
{
    for (unsigned i = 0; i < DFL_CMD_COUNT; i++) {
        if (strlen(commands[i].word) == word.len &&
            memcmp(commands[i].word, word.at, word.len) == 0) {
            *cmd = (enum dfl_command)i;
            return true;
        }
    }
    return false;
}

bool dfl_request_parse(const char *cmd, size_t cmd_len, const char *key, size_t key_len,
                       const char *arg, size_t arg_len, struct dfl_request_line *out)
{
    struct dfl_request_line req = {.key = key, .key_len = key_len, .token = ""};

    if (!find_command((struct span){cmd, cmd_len}, &req.cmd))
        return false;

    const struct command *c = &commands[req.cmd];

    if (c->keyed && !good_key((struct span){key, key_len}))
        return false;
    if (!parse_argument(c, (struct span){arg, arg_len}, &req))
        return false;
    *out = req;
    return true;
}

/* ----------------------------------------------------------------- answers */

/* True, and *rest is what follows, when the line is `word` alone or `word` and a space. */
static bool begins_with_word(struct span line, const char *word, struct span *rest)
{
    size_t n = strlen(word);

    if (line.len < n || memcmp(line.at, word, n) != 0)
        return false;
    if (line.len > n && line.at[n] != ' ')
        return false;
    *rest = (struct span){line.at + n, line.len - n};
    return true;
}

/* Cuts ` field` off *rest: exactly one space in front, none inside. */
static bool cut_field(struct span *rest, struct span *field)
{
    if (rest->len < 2 || rest->at[0] != ' ')
        return false;

    const char *start = rest->at + 1;
    const char *space = memchr(start, ' ', rest->len - 1);
    size_t len = space ? (size_t)(space - start) : rest->len - 1;

    *field = (struct span){start, len};
    *rest = (struct span){start + len, rest->len - 1 - len};
    return len > 0;
}

static bool parse_seconds(struct span rest, struct dfl_answer_line *out)
{
    struct span seconds;

    return cut_field(&rest, &seconds) && rest.len == 0 &&
           parse_digits(seconds, DFL_SECONDS_MAX, &out->seconds);
}

static bool parse_grant(struct span rest, struct dfl_answer_line *out)
{
    struct span token;

    if (!cut_field(&rest, &token) ||
        (DFL_PLANTED(41) ? token.len > DFL_TOKEN_LEN
                         : dfl_token_check(token.at, token.len, NULL) != DFL_OK))
        return false;
    memcpy(out->token, token.at, DFL_TOKEN_LEN);
    out->token[DFL_TOKEN_LEN] = '\0';
    return parse_seconds(rest, out);
}

static bool parse_text(struct span rest, struct dfl_answer_line *out)
{
    if (rest.len < 2)
        return false;
    out->text = rest.at + 1;
    out->text_len = rest.len - 1;
    return true;
}

static bool parse_bare(struct span rest, struct dfl_answer_line *out)
{
    (void)out;
    return rest.len == 0;
}

/* Every line that is no error and that a server may answer with, by what was asked. */
static const struct good_answer {
    enum reply reply;
    const char *word;
    enum dfl_answer kind;
    bool (*parse)(struct span rest, struct dfl_answer_line *out);
} good_answers[] = {
    {REPLY_BARE, "ok", DFL_ANS_OK, parse_bare},
    {REPLY_SECONDS, "ok", DFL_ANS_OK, parse_seconds},
    {REPLY_GRANT, "ok", DFL_ANS_OK, parse_grant},
    {REPLY_GRANT, "timeout", DFL_ANS_TIMEOUT, parse_bare},
    {REPLY_PLACE, "acquired", DFL_ANS_ACQUIRED, parse_grant},
    {REPLY_PLACE, "queued", DFL_ANS_QUEUED, parse_bare},
    {REPLY_TEXT, "ok", DFL_ANS_OK, parse_text},
};

#define GOOD_ANSWERS (sizeof good_answers / sizeof good_answers[0])

/* A line that begins with `error` answers its request, whatever follows. */
static void parse_error(struct span line, struct dfl_answer_line *out)
{
    const char *space = memchr(line.at, ' ', line.len);

    out->kind = DFL_ANS_ERROR;
    out->status = dfl_status_from_word(line.at, space ? (size_t)(space - line.at) : line.len);
    out->text = line.at;
    out->text_len = line.len;
}

enum dfl_status dfl_answer_parse(enum dfl_command cmd, const char *line, size_t len,
                                 struct dfl_answer_line *out)
{
    struct dfl_answer_line answer = {.status = DFL_OK, .text = ""};
    struct span whole = {line, len}, rest;

    if (len >= 5 && memcmp(line, "error", 5) == 0) {
        parse_error(whole, &answer);
        *out = answer;
        return DFL_OK;
    }
    for (size_t i = 0; i < GOOD_ANSWERS; i++) {
        const struct good_answer *g = &good_answers[i];

        if (g->reply != commands[cmd].reply || !begins_with_word(whole, g->word, &rest))
            continue;
        answer.kind = g->kind;
        if (!g->parse(rest, &answer))
            return DFL_PROTOCOL;
        *out = answer;
        return DFL_OK;
    }
    return DFL_PROTOCOL;
}

static void put_grant(struct out *o, const char *word, const struct dfl_answer_line *a)
{
    put_text(o, word);
    put_char(o, ' ');
    put_bytes(o, a->token, strlen(a->token));
    put_char(o, ' ');
    put_number(o, a->seconds);
}

static void put_ok(struct out *o, enum reply reply, const struct dfl_answer_line *a)
{
    if (reply == REPLY_GRANT) {
        put_grant(o, "ok", a);
        return;
    }
    put_text(o, "ok");
    if (reply == REPLY_SECONDS) {
        put_char(o, ' ');
        put_number(o, a->seconds);
    }
}

static void put_error(struct out *o, enum dfl_status status)
{
    const char *word = dfl_status_info(status)->word;

    put_text(o, word ? word : "error");
}

size_t dfl_answer_format(char *buf, size_t cap, enum dfl_command cmd,
                         const struct dfl_answer_line *a)
{
    struct out o = {buf, cap, 0, false};

    switch (a->kind) {
    case DFL_ANS_OK:
        put_ok(&o, commands[cmd].reply, a);
        break;
    case DFL_ANS_ACQUIRED:
        put_grant(&o, "acquired", a);
        break;
    case DFL_ANS_QUEUED:
        put_text(&o, "queued");
        break;
    case DFL_ANS_TIMEOUT:
        put_text(&o, "timeout");
        break;
    case DFL_ANS_ERROR:
        put_error(&o, a->status);
        break;
    }
    put_char(&o, '\n');
    return finish(&o);
}

/* ------------------------------------------------------------ small things */

#define ESCAPE_MAX 64 /* bytes of the peer's line that a message shows */

void dfl_escape(char *out, size_t cap, const char *line, size_t len)
{
    static const char hex[] = "0123456789abcdef";
    struct out o = {out, cap, 0, false};

    if (cap == 0)
        return;
    o.cap--; /* the final NUL */
    for (size_t i = 0; i < len && i < ESCAPE_MAX; i++) {
        unsigned char c = (unsigned char)line[i];
        char escaped[4] = {'\\', 'x', hex[c >> 4], hex[c & 15]};

        if (c == '\\')
            put_bytes(&o, "\\\\", 2);
        else if (c >= 0x20 && c < 0x7F)
            put_char(&o, (char)c);
        else
            put_bytes(&o, escaped, sizeof escaped);
    }
    out[o.len] = '\0';
}

uint64_t dfl_token_prefix(const char *token)
{
    uint64_t n = 0;

    for (size_t i = 0; i < 16; i++) {
        char c = token[i];

        n = n << 4 | (uint64_t)(c <= '9' ? c - '0' : c - 'a' + 10);
    }
    return n;
}

/* ------------------------------------------------------------- line reader */

#define READER_MIN 1024
#define READER_KEEP 65536 /* a buffer larger than this is given back when it is needed no more */

void dfl_line_reader_init(struct dfl_line_reader *r)
{
    *r = (struct dfl_line_reader){0};
}

void dfl_line_reader_free(struct dfl_line_reader *r)
{
    free(r->buf);
    *r = (struct dfl_line_reader){0};
}

/* Moves what is unread to the front, so that all the room is behind it. */
static void compact(struct dfl_line_reader *r)
{
    if (r->start == 0)
        return;
    if (r->end > r->start)
        memmove(r->buf, r->buf + r->start, r->end - r->start);
    r->end -= r->start;
    r->scanned -= r->start;
    r->start = 0;
}

/*
 * The buffer to have when `need` bytes are needed at least: twice as much as now, so that a long
 * line is copied a few times only, but not more than the longest line allowed and one read.
 */
static size_t next_cap(const struct dfl_line_reader *r, size_t need, size_t want)
{
    size_t most = r->limit + 1 + want;
    size_t cap = r->cap * 2;

    if (cap < READER_MIN)
        cap = READER_MIN;
    if (cap > most)
        cap = most;
    return cap > need ? cap : need;
}

enum dfl_status dfl_line_reader_space(struct dfl_line_reader *r, size_t want, char **at,
                                      size_t *room)
{
    size_t need = dfl_line_reader_left(r) + want, cap = r->cap;

    if (want > r->cap - r->end || r->start == r->end)
        compact(r);
    if (need > r->cap)
        cap = next_cap(r, need, want);
    else if (r->cap > READER_KEEP && need < READER_KEEP / 2)
        cap = READER_KEEP / 2; /* a huge line is over */
    if (cap != r->cap) {
        compact(r);

        char *buf = realloc(r->buf, cap);

        if (!buf && cap > r->cap)
            return DFL_NOMEM;
        if (buf) {
            r->buf = buf;
            r->cap = cap;
        }
    }
    *at = r->buf + r->end;
    *room = r->cap - r->end;
    return DFL_OK;
}

void dfl_line_reader_added(struct dfl_line_reader *r, size_t n)
{
    r->end += n;
}

enum dfl_status dfl_line_reader_next(struct dfl_line_reader *r, size_t max, char **line,
                                     size_t *len)
{
    size_t left = dfl_line_reader_left(r);
    char *newline = NULL;

    r->limit = max;
    if (r->scanned < r->end)
        newline = memchr(r->buf + r->scanned, '\n', r->end - r->scanned);
    if (!newline) {
        r->scanned = r->end;
        return left > max ? DFL_PROTOCOL : DFL_PENDING;
    }

    char *start = r->buf + r->start;
    size_t n = (size_t)(newline - start);

    if (n > max) {
        r->scanned = (size_t)(newline - r->buf);
        return DFL_PROTOCOL;
    }
    r->start += n + 1;
    r->scanned = r->start;
    while (n > 0 && start[n - 1] == '\r')
        n--;
    start[n] = '\0';
    *line = start;
    *len = n;
    return DFL_OK;
}

size_t dfl_line_reader_left(const struct dfl_line_reader *r)
{
    return r->end - r->start;
}
