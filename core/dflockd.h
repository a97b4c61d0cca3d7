/*
 * dflockd.h - the client engine for the dflockd lock server: the one public header of core/.
 *
 * The engine is a set of state machines over non-blocking transports. It owns no thread, no loop,
 * no signal handler and no global, never waits and reads no clock: a host hands it readiness
 * (dfl_client_ready), time (dfl_client_run) and requests, and asks what to watch and when to come
 * back. Objects of one client may be used by one thread at a time; different clients are
 * independent of each other.
 *
 * Units are in the names: _ms milliseconds, _s seconds. Times named at/deadline/since are monotonic
 * unless they say wall. Strings given to a function are copied; strings handed out belong to the
 * object they come from.
 */
#ifndef DFL_DFLOCKD_H
#define DFL_DFLOCKD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DFL_VERSION "1.0.0-dev"

#define DFL_KEY_MAX 256                     /* bytes, prefix included */
#define DFL_TOKEN_LEN 32                    /* lower-case hex digits of a hold's token */
#define DFL_SECONDS_MAX INT64_C(9223372036) /* largest number of seconds of the wire */
#define DFL_LEASE_MAX INT64_C(2147483647)
#define DFL_SLOTS_MAX INT64_C(2147483647)
#define DFL_DEFAULT_PORT 6388
#define DFL_ERROR_MAX 1024
#define DFL_ADDRESS_MAX 300 /* "host:port" or "[v6]:port" as configured */
#define DFL_FOREVER (-1)    /* a timeout_ms */

#define DFL_READABLE 1u
#define DFL_WRITABLE 2u

/* ------------------------------------------------------------------ status */

enum dfl_status {
    DFL_OK,
    DFL_PENDING, /* not finished yet */
    /* the lock said no */
    DFL_TIMEOUT,      /* not granted in time; the server said so */
    DFL_LOCK_TIMEOUT, /* the caller's lock_timeout ran out */
    DFL_SELF,         /* already held or queued by this session */
    DFL_NOT_QUEUED,   /* no place of this session for that key */
    DFL_NOT_HELD,     /* nothing held */
    DFL_MOVED,        /* key still held or awaited at the server it had before the list changed */
    DFL_LAPSED,       /* the place came up and lapsed */
    DFL_LOST,         /* the lease was lost */
    DFL_LIMIT_MISMATCH,
    DFL_NOT_ENQUEUED,
    DFL_ALREADY_ENQUEUED,
    DFL_LEASE_EXPIRED, /* on the wire only: granted, but expired before it could be seen */
    DFL_MAX_LOCKS,
    DFL_MAX_WAITERS,
    /* the service cannot say */
    DFL_DRAINING,
    DFL_NOT_LEADER,
    DFL_REFUSED,           /* plain `error` to a well-formed request */
    DFL_UNKNOWN_TO_SERVER, /* a command or key length that this server does not know */
    DFL_NO_WORKER,         /* PostgreSQL: the background worker does not run */
    DFL_UNREACHABLE,       /* resolve, connect, TLS */
    DFL_BROKEN,            /* broke in the middle, or no answer in time */
    DFL_PROTOCOL,          /* the server broke the protocol */
    DFL_AUTH,              /* login refused */
    DFL_NO_FENCE,          /* this server's tokens carry no fence */
    /* the caller erred */
    DFL_NULL,    /* NULL where a value is needed */
    DFL_INVALID, /* bad argument */
    DFL_RANGE,   /* out of range */
    DFL_UNSUPPORTED,
    DFL_TOO_MANY, /* one of our own caps */
    DFL_CANCELED,
    DFL_NOMEM,
    DFL_INTERNAL, /* a bug of ours, said aloud */
    DFL_STATUS_COUNT
};

enum dfl_blame { DFL_BLAME_NONE, DFL_BLAME_LOCK, DFL_BLAME_LINK, DFL_BLAME_CALLER, DFL_BLAME_HOST };

struct dfl_status_info {
    enum dfl_status status;
    const char *name;     /* "timeout" */
    const char *word;     /* the word on the wire that means it ("error_max_locks"), or NULL */
    const char *sqlstate; /* five characters */
    enum dfl_blame blame;
    const char *text; /* what a message says when nothing better is known */
};

const struct dfl_status_info *dfl_status_info(enum dfl_status status); /* never NULL */
enum dfl_status dfl_status_from_word(const char *word,
                                     size_t len); /* "error..." words; DFL_REFUSED when new */

struct dfl_error {
    enum dfl_status status;
    char text[DFL_ERROR_MAX]; /* lower case, no full stop, names the peer and the step */
};

/* Sets *err (NULL allowed) from printf's arguments and returns status. Shortens at a UTF-8
 * boundary. */
enum dfl_status dfl_fail(struct dfl_error *err, enum dfl_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* -------------------------------------------------------------------- time */

/* The time, handed to every function that needs one. */
struct dfl_now {
    int64_t ms;      /* monotonic and counting while the machine is suspended */
    int64_t us;      /* the same clock in microseconds: round trips only */
    int64_t wall_ms; /* since 1970: the plausibility of fences and times shown to people only */
};

/* --------------------------------------------------------------- arguments */

enum dfl_kind { DFL_LOCK, DFL_SEMAPHORE, DFL_ANY_KIND };

/* Limits of the protocol, checked before a byte is sent. DFL_OK, or DFL_INVALID / DFL_NULL /
 * DFL_RANGE with the rule in *err. */
enum dfl_status dfl_key_check(const char *key, size_t len, struct dfl_error *err);
enum dfl_status dfl_key_join(const char *prefix, const char *key, size_t len,
                             char out[DFL_KEY_MAX + 1], size_t *out_len,
                             struct dfl_error *err); /* prefix NULL = none; checks the result */
enum dfl_status dfl_prefix_check(const char *prefix,
                                 struct dfl_error *err); /* a key_prefix; may be empty */
enum dfl_status dfl_token_check(const char *token, size_t len,
                                struct dfl_error *err); /* 32 lower-case hex digits */
enum dfl_status dfl_timeout_check(double seconds, int64_t *timeout_ms,
                                  struct dfl_error *err);                /* inf -> DFL_FOREVER */
enum dfl_status dfl_lease_check(int64_t lease_s, struct dfl_error *err); /* 1 .. DFL_LEASE_MAX */
enum dfl_status dfl_slots_check(int64_t slots, struct dfl_error *err);   /* 1 .. DFL_SLOTS_MAX */

/* `dflock_token_fence`: the first 16 digits of a checked token. DFL_RANGE above 2^63-1. */
enum dfl_status dfl_token_fence(const char *token, int64_t *fence, struct dfl_error *err);

/* ---------------------------------------------------------------- settings */

enum dfl_tls_mode { DFL_TLS_OFF, DFL_TLS_ON, DFL_TLS_INSECURE };
enum dfl_fences { DFL_FENCES_AUTO, DFL_FENCES_ON, DFL_FENCES_OFF };

/* The settings of the SQL interface, one field each. Strings are owned, never NULL ("" = not set).
 */
struct dfl_settings {
    char *servers;
    char *auth_token_file;
    char *auth_token; /* from DFLOCK_AUTH_TOKEN; never shown, never logged */
    enum dfl_tls_mode tls;
    char *tls_ca, *tls_cert, *tls_key, *tls_server_name;
    int64_t connect_timeout_ms;
    int64_t acquire_timeout_ms; /* DFL_FOREVER = -1 */
    int64_t lease_ttl_s;        /* 0 = the server's */
    double renew_ratio;
    int64_t keepalive_ms; /* as set; dfl_settings_keepalive_ms() is what counts */
    int64_t server_read_timeout_ms;
    enum dfl_fences fences;
    bool release_wait;
    int64_t max_locks;
    int64_t max_session_locks; /* 0 = no cap */
    int64_t max_connections;
    char *key_prefix;
};

enum dfl_status dfl_settings_init(struct dfl_settings *s); /* the defaults */
void dfl_settings_free(struct dfl_settings *s); /* what it owns; the login token is wiped */
enum dfl_status dfl_settings_copy(struct dfl_settings *to,
                                  const struct dfl_settings *from); /* `to` is uninitialised */

/*
 * By the setting's name ("acquire_timeout"), value as text in the units of the SQL interface
 * (seconds). A bad name or value leaves *s as it was: DFL_INVALID, naming the setting and the rule.
 * Knows syntax and range only; who may set what is the host's.
 */
enum dfl_status dfl_settings_set(struct dfl_settings *s, const char *name, const char *value,
                                 struct dfl_error *err);
/* Value as text (malloc'd, the caller frees). The login token itself: DFL_INVALID like an unknown
 * name. */
enum dfl_status dfl_settings_get(const struct dfl_settings *s, const char *name, char **value,
                                 struct dfl_error *err);
/* Name of the i-th setting in a fixed order, NULL behind the last. */
const char *dfl_settings_name(size_t i);
/* Every DFLOCK_NAME of the environment, and DFLOCK_AUTH_TOKEN. The first bad one is named in *err.
 */
enum dfl_status dfl_settings_from_environment(struct dfl_settings *s, struct dfl_error *err);
int64_t dfl_settings_keepalive_ms(
    const struct dfl_settings *s); /* min(keepalive, server_read_timeout / 3) */
/* Reads the login token: auth_token_file (trailing newline cut; empty, over 64 KiB, or with white
 * space inside: DFL_INVALID) or auth_token. *token malloc'd, NULL when none is set. */
enum dfl_status dfl_settings_read_token(const struct dfl_settings *s, char **token,
                                        struct dfl_error *err);

struct dfl_server_address {
    char text[DFL_ADDRESS_MAX]; /* canonical "host:port" / "[v6]:port", for messages and views */
    char host[DFL_ADDRESS_MAX]; /* without brackets */
    uint16_t port;
};
/* `host`, `host:port`, `[v6]:port`, comma separated, spaces around allowed; at least one, no
 * address twice. *list malloc'd. */
enum dfl_status dfl_servers_parse(const char *text, struct dfl_server_address **list, size_t *count,
                                  struct dfl_error *err);

/* CRC-32 (IEEE) of the key modulo count, as in every official client. count >= 1. */
size_t dfl_shard(const char *key, size_t len, size_t count);

/* --------------------------------------------------------------------- TLS */

struct dfl_tls; /* a client context, counted: one reference per holder */
/* From the tls_* settings; reads the files. *tls NULL when tls is off. DFL_UNREACHABLE with file
 * and reason. */
enum dfl_status dfl_tls_new(const struct dfl_settings *s, struct dfl_tls **tls,
                            struct dfl_error *err);
struct dfl_tls *dfl_tls_retain(struct dfl_tls *tls);
void dfl_tls_release(struct dfl_tls *tls); /* NULL allowed */
const char *dfl_tls_library(void);         /* OpenSSL's version, for dflock_version() */

/* ------------------------------------------------- readiness, for the hosts */

enum dfl_wait_kind { DFL_WAIT_DEFAULT, DFL_WAIT_EPOLL, DFL_WAIT_POLL };

struct dfl_wait; /* a set of watched descriptors; guarded by its host's lock, except while blocking
                  */
enum dfl_status dfl_wait_new(enum dfl_wait_kind kind, struct dfl_wait **w);
void dfl_wait_free(struct dfl_wait *w);
/* Watches fd for events (level-triggered), with a tag to hand back; events 0 forgets it (before it
 * is closed). */
enum dfl_status dfl_wait_watch(struct dfl_wait *w, int fd, unsigned events, void *tag);
int dfl_wait_descriptor(
    const struct dfl_wait *w); /* epoll: readable when anything is ready. poll: -1 */
void dfl_wait_abandon(
    struct dfl_wait *w); /* forked child: close(2) its own descriptor, nothing else */

/* One blocking wait, in three steps so that the lock can be given up for the middle one.
 * Zero-initialise once, free at the end. */
struct dfl_wait_round {
    void *state;
};
enum dfl_status dfl_wait_prepare(struct dfl_wait *w, struct dfl_wait_round *round);
/* Without the lock: at most timeout_ms (-1: for ever); extra_fd (or -1) is one more descriptor to
 * wake for. Returns the number of ready ones. */
int dfl_wait_block(struct dfl_wait_round *round, int64_t timeout_ms, int extra_fd);
/* With the lock again: calls ready(arg, tag, events) for what is ready and still watched. */
void dfl_wait_dispatch(struct dfl_wait *w, struct dfl_wait_round *round,
                       void (*ready)(void *arg, void *tag, unsigned events), void *arg);
void dfl_wait_round_free(struct dfl_wait_round *round);

/* The hosts' clock: CLOCK_BOOTTIME where there is one, else CLOCK_MONOTONIC; the engine never calls
 * it. */
struct dfl_now dfl_clock(void);

/* ------------------------------------------------------------------ client */

struct dfl_client;  /* servers, connections, sessions; SQLite: one per database connection,
                       PostgreSQL: one per worker */
struct dfl_session; /* an owner of holds */
struct dfl_hold;    /* a lock, a semaphore slot, or a place in a queue */
struct dfl_call;    /* one request of a session, from its start to its result */
struct dfl_net;     /* transport.h */

/* The highest fence read from each server, shared by all clients of a process; lock-free. One per
 * process, never freed before its clients. */
struct dfl_fence_book;
enum dfl_status dfl_fence_book_new(struct dfl_fence_book **book);
void dfl_fence_book_free(struct dfl_fence_book *book);

enum dfl_level { DFL_LOG_DEBUG, DFL_LOG_INFO, DFL_LOG_WARNING };

/* What a host provides. Callbacks must not call back into the client, except the read-only
 * functions on what they are given. NULL = not wanted. */
struct dfl_host {
    void *ctx;
    void (*watch)(void *ctx, int fd, unsigned events, void *tag); /* needed; events 0 = forget */
    void (*log)(void *ctx, enum dfl_level level, const char *text);
    void (*call_done)(void *ctx, struct dfl_call *call); /* its status is no longer DFL_PENDING */
    void (*hold_changed)(void *ctx,
                         struct dfl_hold *hold); /* created, or any field of its info changed */
    void (*hold_gone)(void *ctx, struct dfl_hold *hold); /* about to be freed */
    /* The newest moment until which holds at home on connection `link` can count on it; 0 = it is
     * dead. See dfl_hold_info.link. */
    void (*link_changed)(void *ctx, unsigned link, int64_t deadline_ms);
    bool (*take_lock)(void *ctx); /* one more hold or wait; false = max_locks reached */
    void (*give_lock)(void *ctx);
    bool (*take_socket)(void *ctx); /* one more socket; false = max_connections reached */
    void (*give_socket)(void *ctx);
    const struct dfl_net *net; /* NULL = real sockets */
};

struct dfl_client_config {
    const struct dfl_settings *settings; /* copied */
    const char *auth_token;              /* copied; NULL = no login */
    struct dfl_tls *tls;                 /* retained; NULL = plain */
    struct dfl_host host;
    struct dfl_fence_book *fences;
    uint64_t seed;  /* of the jitter */
    bool keep_warm; /* keep control connections that own nothing alive (PostgreSQL's worker) */
};

enum dfl_status dfl_client_new(const struct dfl_client_config *config, struct dfl_client **client,
                               struct dfl_error *err);

/*
 * New settings, token and TLS material for what comes next. Holds and places stay at their servers.
 * On failure (bad servers list) nothing has changed.
 */
enum dfl_status dfl_client_configure(struct dfl_client *c, const struct dfl_settings *settings,
                                     const char *auth_token, struct dfl_tls *tls,
                                     struct dfl_now now, struct dfl_error *err);

void dfl_client_ready(struct dfl_client *c, void *tag, unsigned events,
                      struct dfl_now now);                     /* tag from watch() */
void dfl_client_run(struct dfl_client *c, struct dfl_now now); /* everything whose time has come */
/* For a host with many sessions: what is asked for between the two leaves together, one packet per
 * connection. Every gather is followed by its send, before the host waits. Between them it is the
 * time of the gather for all calls; what falls due later is for the next run. */
void dfl_client_gather(struct dfl_client *c, struct dfl_now now);
void dfl_client_send(struct dfl_client *c);
int64_t dfl_client_next_ms(
    const struct dfl_client *c); /* when to call run at the latest; INT64_MAX = no need */
/*
 * True while something is unanswered, or being set up, or to be sent, or holds are renewed:
 * somebody has to watch the sockets and the clock even when no call is pending.
 */
bool dfl_client_busy(const struct dfl_client *c);
bool dfl_client_left_behind(const struct dfl_client *c); /* something is unanswered or being set up
                                                            that no pending call drives */

/* Ends every session as dfl_session_end does, then flushes what the sockets take at once. Call free
 * when !dfl_client_left_behind or at the end of patience. */
void dfl_client_shutdown(struct dfl_client *c, struct dfl_now now);
void dfl_client_free(
    struct dfl_client *c); /* closes what is open; pending calls must be freed before */
/* In a forked child, whatever state the parent's threads left the client in: close(2) on every
 * socket, no memory touched but the list of descriptors. The client must not be used afterwards.
 * Async-signal-safe. */
void dfl_client_abandon(struct dfl_client *c);

enum dfl_status dfl_session_new(struct dfl_client *c, void *user, struct dfl_session **s);
void *dfl_session_user(const struct dfl_session *s);
void dfl_session_set_cap(struct dfl_session *s, int64_t max_session_locks); /* 0 = none */
/* Gives back all holds and places, gives up all calls (they must not be used any more) and frees
 * the session. Sends, never waits. */
void dfl_session_end(struct dfl_session *s, struct dfl_now now);

/* ------------------------------------------------------------------- holds */

enum dfl_state { DFL_TRYING, DFL_QUEUED, DFL_CONFIRMING, DFL_HELD, DFL_RELEASING, DFL_STATE_LOST };
enum dfl_scope { DFL_SCOPE_SESSION, DFL_SCOPE_XACT };
const char *dfl_state_name(enum dfl_state state); /* "trying" ... "lost" */

struct dfl_hold_info {
    struct dfl_session *session;
    const char *key; /* full, with prefix, as it is on the wire */
    size_t key_len;
    enum dfl_kind kind;
    enum dfl_scope scope;
    uint32_t tag; /* the host's: PostgreSQL's sub-transaction */
    enum dfl_state state;
    bool from_enqueue;
    int64_t slots;             /* 1 for a lock */
    const char *token;         /* "" unless held */
    int64_t fence;             /* -1 when this server's tokens carry none */
    int64_t lease_s;           /* as granted */
    int64_t lease_deadline_ms; /* from the lease alone; 0 unless held */
    unsigned link; /* home connection, a small number; its own deadline comes by link_changed() */
    int64_t deadline_ms; /* min of both: held and now < deadline_ms is what "held" means */
    int64_t since_ms;    /* monotonic, of the state trying or queued: when the session asked */
    int64_t acquired_ms, renewed_ms; /* monotonic; 0 = not yet */
    int64_t acquired_wall_ms;
    int64_t renewals;
    int64_t lost_ms;        /* monotonic, when it was lost or noticed */
    bool told;              /* the session has been told of the loss */
    const char *last_error; /* why lost, or the last failed renewal; "" = none */
    const char *server;     /* address text */
};
void dfl_hold_info(const struct dfl_hold *h, struct dfl_hold_info *info);
void dfl_hold_set_user(struct dfl_hold *h, void *user);
void *dfl_hold_user(const struct dfl_hold *h);
void dfl_hold_set_tag(struct dfl_hold *h, enum dfl_scope scope, uint32_t tag);
void dfl_hold_set_told(struct dfl_hold *h);
/* Gives a hold or place back without telling anybody the answer, or forgets a lost one. h is gone
 * for its session afterwards. */
void dfl_hold_give_back(struct dfl_hold *h, struct dfl_now now);

/* Iterates over holds, places and lost holds; the callback returns false to stop and may give back
 * the hold it is given, no other. */
void dfl_session_each(struct dfl_session *s, bool (*fn)(void *arg, struct dfl_hold *h), void *arg);
void dfl_client_each(struct dfl_client *c, bool (*fn)(void *arg, struct dfl_hold *h), void *arg);

/*
 * "Which hold of a key": the lock if the session has one of that key, else its newest semaphore
 * slot; with kind given only that. Held and lost ones count, places do not. NULL: none. Reads
 * first, without waiting, what has arrived on the home connection.
 */
struct dfl_hold *dfl_session_hold(struct dfl_session *s, const char *key, size_t len,
                                  enum dfl_kind kind, struct dfl_now now);
/* Likewise for a place in a queue. */
struct dfl_hold *dfl_session_place(struct dfl_session *s, const char *key, size_t len,
                                   enum dfl_kind kind);

/* dflock_is_held: local state and `now`. */
bool dfl_is_held(struct dfl_session *s, const char *key, size_t len, struct dfl_now now);
/* dflock_assert_held without verify: DFL_OK, DFL_LOST (marks it told) or DFL_NOT_HELD. */
enum dfl_status dfl_assert_held(struct dfl_session *s, const char *key, size_t len,
                                struct dfl_now now, struct dfl_error *err);
/* dflock_cancel: true when a place was left. */
bool dfl_cancel(struct dfl_session *s, const char *key, size_t len, struct dfl_now now);
/* The hold of this client that has this token, any session; NULL: none. */
struct dfl_hold *dfl_client_token(struct dfl_client *c, enum dfl_kind kind, const char *key,
                                  size_t len, const char *token);

/* ------------------------------------------------------------------- calls */

/*
 * A call is started, runs while the client is driven, and ends once: dfl_call_status() is
 * DFL_PENDING until then. What is wrong with the arguments or the session's own holds is found at
 * the start: the function then returns that status with the text in *err and no call. Otherwise it
 * returns DFL_OK and *call, which may already have ended.
 */
struct dfl_request_args {
    const char *key; /* full key, checked again */
    size_t key_len;
    enum dfl_kind kind; /* DFL_LOCK or DFL_SEMAPHORE */
    int64_t slots;      /* semaphores */
    int64_t timeout_ms; /* from the moment the server said busy; DFL_FOREVER; 0 = never queue */
    int64_t lock_timeout_ms; /* 0 = none; from the same moment: DFL_LOCK_TIMEOUT, and a place is
                                given up */
    int64_t lease_s;         /* 0 = the server's default */
    enum dfl_scope scope;
    uint32_t tag;
    void *user; /* dfl_call_user() */
};

/* DFL_OK: dfl_call_hold() is held. DFL_TIMEOUT: busy. A repeated xact lock request answers with the
 * hold that it has. */
enum dfl_status dfl_acquire(struct dfl_session *s, const struct dfl_request_args *a,
                            struct dfl_now now, struct dfl_call **call, struct dfl_error *err);
/* DFL_OK: dfl_call_hold() is held ("acquired") or queued; see its state. */
enum dfl_status dfl_enqueue(struct dfl_session *s, const struct dfl_request_args *a,
                            struct dfl_now now, struct dfl_call **call, struct dfl_error *err);
/* DFL_OK: granted. DFL_TIMEOUT: not yet, the place is kept. DFL_SELF: another call of the session
 * waits for it. Uses key, kind, timeout, lock_timeout, scope, tag, user. */
enum dfl_status dfl_wait_turn(struct dfl_session *s, const struct dfl_request_args *a,
                              struct dfl_now now, struct dfl_call **call, struct dfl_error *err);
/* The session's own hold. DFL_OK: released. DFL_NOT_HELD: false. wait_answer false: ends as soon as
 * it is queued for sending. */
enum dfl_status dfl_release(struct dfl_session *s, enum dfl_kind kind, const char *key, size_t len,
                            bool wait_answer, void *user, struct dfl_now now,
                            struct dfl_call **call, struct dfl_error *err);
/* By token, whoever holds it: own session hold as dfl_release; an xact hold of this client
 * DFL_NOT_HELD (and *err says so); another session's is lost first. */
enum dfl_status dfl_release_token(struct dfl_session *s, enum dfl_kind kind, const char *key,
                                  size_t len, const char *token, bool wait_answer, void *user,
                                  struct dfl_now now, struct dfl_call **call,
                                  struct dfl_error *err);
/* lease_s 0: by the hold's own lease, else that becomes its lease. dfl_call_seconds() = seconds
 * left. Also dflock_assert_held(verify). */
enum dfl_status dfl_renew(struct dfl_session *s, const char *key, size_t len, int64_t lease_s,
                          void *user, struct dfl_now now, struct dfl_call **call,
                          struct dfl_error *err);
/* Session holds and places of scope session; how many were given back is in dfl_call_seconds().
 * DFL_OK even if an answer failed; lost ones are forgotten, not counted. */
enum dfl_status dfl_release_all(struct dfl_session *s, bool wait_answer, void *user,
                                struct dfl_now now, struct dfl_call **call, struct dfl_error *err);
/* Every server of the list, each over a connection that owns nothing. Ends DFL_OK; each answer has
 * its own status. */
enum dfl_status dfl_stats(struct dfl_session *s, void *user, struct dfl_now now,
                          struct dfl_call **call, struct dfl_error *err);
enum dfl_status dfl_ping(struct dfl_session *s, void *user, struct dfl_now now,
                         struct dfl_call **call, struct dfl_error *err);

enum dfl_status dfl_call_status(const struct dfl_call *call);
const struct dfl_error *dfl_call_error(
    const struct dfl_call *call); /* text for every end but DFL_OK */
void *dfl_call_user(const struct dfl_call *call);
struct dfl_session *dfl_call_session(const struct dfl_call *call);
struct dfl_hold *dfl_call_hold(
    const struct dfl_call
        *call); /* acquire, enqueue, wait: after DFL_OK; NULL once that hold is gone */
int64_t dfl_call_seconds(const struct dfl_call *call);
int64_t dfl_call_busy_since_ms(
    const struct dfl_call *call); /* when the server said busy; 0 = not yet */
/*
 * Gives a pending call up now: it ends with DFL_CANCELED. The session never gets that lock, a late
 * grant is given back; an acquire leaves its queue; wait_turn gives its place up; a release stays
 * sent.
 */
void dfl_call_cancel(struct dfl_call *call, struct dfl_now now);
void dfl_call_free(struct dfl_call *call,
                   struct dfl_now now); /* cancels first if pending; NULL allowed */

struct dfl_server_answer {
    const char *address;
    enum dfl_status status;
    const char *error; /* "" when DFL_OK */
    const char *body;  /* stats: JSON text as the server sent it */
    size_t body_len;
    int64_t round_trip_us; /* ping; -1 without an answer */
};
size_t dfl_call_answers(const struct dfl_call *call);
void dfl_call_answer(const struct dfl_call *call, size_t i, struct dfl_server_answer *a);

/* ----------------------------------------------------------------- servers */

enum dfl_server_state {
    DFL_SERVER_UNUSED,
    DFL_SERVER_CONNECTING,
    DFL_SERVER_UP,
    DFL_SERVER_DOWN,
    DFL_SERVER_OLD
};
const char *dfl_server_state_name(enum dfl_server_state state);

struct dfl_server_info {
    const char *address;
    enum dfl_server_state state;
    unsigned connections;
    int64_t round_trip_us; /* newest measured; -1 = none */
    const char *last_error;
    int64_t since_ms; /* monotonic, of the state; 0 while unused */
};
size_t dfl_client_servers(
    const struct dfl_client *c); /* configured ones first, then old ones where something is held */
void dfl_client_server(const struct dfl_client *c, size_t i, struct dfl_server_info *info);

#endif
