/*
 * proto.h - dflockd's wire format as pure functions: bytes to structs and back.
 *
 * Shared by the client engine and by the bundled server, which read the same lines
 * from opposite ends. Nothing here does I/O, allocates after setup, or knows time.
 */
#ifndef DFL_PROTO_H
#define DFL_PROTO_H

#include "dflockd.h"

#define DFL_REQUEST_LINE_MAX 256       /* bytes of a request line, newline excluded */
#define DFL_AUTH_LINE_MAX 65536        /* the token line of `auth` */
#define DFL_REPLY_LINE_MAX 4096        /* longest answer that is not `stats` */
#define DFL_STATS_LINE_MAX (64u << 20) /* longest answer to `stats` */
#define DFL_REQUEST_MAX 600            /* bytes of any formatted request but `auth` */

enum dfl_command {
    DFL_CMD_AUTH,
    DFL_CMD_LOCK,     /* l  */
    DFL_CMD_RELEASE,  /* r  */
    DFL_CMD_RENEW,    /* n  */
    DFL_CMD_ENQUEUE,  /* e  */
    DFL_CMD_WAIT,     /* w  */
    DFL_CMD_SEM_LOCK, /* sl */
    DFL_CMD_SEM_RELEASE,
    DFL_CMD_SEM_RENEW,
    DFL_CMD_SEM_ENQUEUE,
    DFL_CMD_SEM_WAIT,
    DFL_CMD_PING,
    DFL_CMD_STATS,
    DFL_CMD_COUNT
};

/* One request, as a client means it and as a server understands it. Strings are not owned. */
struct dfl_request_line {
    enum dfl_command cmd;
    const char *key; /* `_` for auth, ping, stats */
    size_t key_len;
    const char *token; /* auth (any form), r, n, sr, sn */
    size_t token_len;
    int64_t timeout_s; /* l, sl, w, sw */
    int64_t lease_s;   /* l, sl, e, se, n, sn; 0 = not given, the server's default */
    int64_t limit;     /* sl, se */
};

/*
 * Writes the three lines of `req` to buf. Returns the number of bytes, or 0 when cap is too
 * small (DFL_REQUEST_MAX always suffices, for auth 16 + token_len).
 * The caller has validated key, token and numbers (dfl_key_check and friends).
 */
size_t dfl_request_format(char *buf, size_t cap, const struct dfl_request_line *req);

/*
 * Server side: understands three lines (without newlines or trailing CR). Fields of `out` point
 * into the arguments. Returns false for whatever dflockd answers with a plain `error`: unknown
 * command, empty or overlong key, white space in it, wrong argument count, a number out of range.
 */
bool dfl_request_parse(const char *cmd, size_t cmd_len, const char *key, size_t key_len,
                       const char *arg, size_t arg_len, struct dfl_request_line *out);

/* What an answer says. */
enum dfl_answer {
    DFL_ANS_OK,       /* `ok`, with token and lease where the command grants, seconds for n */
    DFL_ANS_ACQUIRED, /* `acquired <token> <lease>` */
    DFL_ANS_QUEUED,
    DFL_ANS_TIMEOUT,
    DFL_ANS_ERROR /* any word that begins with `error`; status says which */
};

struct dfl_answer_line {
    enum dfl_answer kind;
    enum dfl_status status; /* DFL_ANS_ERROR: DFL_REFUSED for plain `error` and words not known */
    char token[DFL_TOKEN_LEN + 1]; /* granting answers */
    int64_t seconds;               /* lease of a grant; seconds left after n */
    const char *text;              /* stats: the JSON; errors: the whole line. Not owned */
    size_t text_len;
};

/*
 * Understands the answer `line` (no newline, no CR) to a request `cmd`. DFL_OK and *out, or
 * DFL_PROTOCOL: the word does not fit the command, the token is not 32 lower-case hex digits, a
 * number is no number.
 */
enum dfl_status dfl_answer_parse(enum dfl_command cmd, const char *line, size_t len,
                                 struct dfl_answer_line *out);

/* Server side: writes an answer and its newline to buf; bytes written, 0 when cap is too small. Not
 * for stats. */
size_t dfl_answer_format(char *buf, size_t cap, enum dfl_command cmd,
                         const struct dfl_answer_line *a);

/* The command's word on the wire ("sl"), and whether it is one of the semaphore's. */
const char *dfl_command_word(enum dfl_command cmd);
bool dfl_command_is_sem(enum dfl_command cmd);

/* Copies at most 64 bytes of a peer's line into out, everything unprintable escaped: for messages.
 */
void dfl_escape(char *out, size_t cap, const char *line, size_t len);

/* 16 lower-case hex digits to a number; tokens are checked by dfl_token_check before. */
uint64_t dfl_token_prefix(const char *token);

/*
 * A line reader: bytes go in as they arrive, whole lines come out. Memory grows with the line that
 * is being received, up to the limit in force when its bytes are looked at.
 */
struct dfl_line_reader {
    char *buf;
    size_t start, end, cap; /* unread bytes are buf[start..end) */
    size_t scanned;         /* no newline before this offset */
    size_t limit;           /* of the last dfl_line_reader_next: what memory may grow to */
};

void dfl_line_reader_init(struct dfl_line_reader *r);
void dfl_line_reader_free(struct dfl_line_reader *r);

/* Room for at least `want` more bytes: where to read to and how many fit. DFL_NOMEM when there is
 * none. */
enum dfl_status dfl_line_reader_space(struct dfl_line_reader *r, size_t want, char **at,
                                      size_t *room);
void dfl_line_reader_added(struct dfl_line_reader *r, size_t n);

/*
 * The next whole line of at most max bytes: DFL_OK and *line, *len (valid until the next _space;
 * newline and a trailing CR removed). DFL_PENDING: not there yet. DFL_PROTOCOL: longer than max.
 */
enum dfl_status dfl_line_reader_next(struct dfl_line_reader *r, size_t max, char **line,
                                     size_t *len);

/* Bytes received that no line has consumed. */
size_t dfl_line_reader_left(const struct dfl_line_reader *r);

#endif
