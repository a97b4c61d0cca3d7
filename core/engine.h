/*
 * engine.h - the engine's own structures, shared by its files and by nobody else.
 *
 *   client -> servers -> connections -> requests      (server.c, conn.c: the wire)
 *   client -> sessions -> holds, calls                (client.c, hold.c, call.c, acquire.c: what
 * the SQL means)
 *
 * What calls and holds know of the wire is the list of functions under "connections" and "servers"
 * below: try, wait, renew, release are requests with a `done` function; no other file sees a byte.
 *
 * Every public function that takes the time enters through dfl_enter() and leaves through
 * dfl_leave(), which writes what has been queued and frees what has died: inside, objects die by
 * being marked, so no function has to fear that the connection it is reading vanishes under it.
 */
#ifndef DFL_ENGINE_H
#define DFL_ENGINE_H

#include "dflockd.h"
#include "list.h"
#include "planted.h"
#include "proto.h"
#include "timers.h"
#include "transport.h"

struct dfl_conn;
struct dfl_server;
struct dfl_request;

/* --------------------------------------------------------------- requests */

/* Exactly one of answer and error is given. The request is freed when it returns. */
typedef void dfl_request_done(struct dfl_request *r, const struct dfl_answer_line *answer,
                              const struct dfl_error *error);

struct dfl_request {
    struct dfl_link link; /* in its connection's queue, or in its server's orphans */
    struct dfl_link debt; /* in its key's debts: its outcome decides whether the key is free */
    struct dfl_conn *conn;
    struct dfl_key *key; /* counted; NULL: `_` */
    enum dfl_command cmd;
    char token[DFL_TOKEN_LEN + 1];
    int64_t timeout_s, lease_s, limit;
    int64_t sent_ms, sent_us;
    uint64_t
        fence_floor; /* no fence of this server up to this one had been read when it was sent */
    uint32_t lease_change; /* of a renewal: the newest of its hold's that it knows of */
    bool known_lease; /* of a renewal: the server has granted that much before */
    bool sent;
    bool heeded;     /* its answer is worth a wake-up: it may grant, or end something */
    bool conn_owned; /* its connection owned something when it was sent */
    dfl_request_done *done;
    void *owner; /* the call, hold or server it is for; NULL: tombstone */
};

/* DFL_CMD_LOCK -> the same of the semaphore when kind says so. */
enum dfl_command dfl_command_for(enum dfl_command cmd, enum dfl_kind kind);
struct dfl_request *dfl_request_new(enum dfl_command cmd, struct dfl_key *key, const char *token,
                                    dfl_request_done *done, void *owner); /* NULL: no memory */
void dfl_request_free(struct dfl_request *r);
bool dfl_request_blocks(const struct dfl_request *r);
bool dfl_request_renews(const struct dfl_request *r);
void dfl_request_bury(struct dfl_request *r); /* nobody waits for it any more: a late grant goes
                                                 back when it is read */
/* Makes other connections' requests for the key wait for this one's answer. */
void dfl_request_owe(struct dfl_request *r);
/* True when a request for `key` over `conn` has to wait: for an answer on another connection, or
 * for the one that says whether a given-up request has to be given back. */
bool dfl_key_owed(const struct dfl_key *key, const struct dfl_conn *conn);

/* ------------------------------------------------------------ connections */

enum dfl_role { DFL_ROLE_CONTROL, DFL_ROLE_WAITING };
enum dfl_conn_state {
    DFL_CONN_CONNECTING,
    DFL_CONN_LOGIN,
    DFL_CONN_HELLO,
    DFL_CONN_READY,
    DFL_CONN_DEAD
};

struct dfl_conn {
    struct dfl_link by_server; /* server->conns */
    struct dfl_link pooled;    /* server->pool while idle */
    struct dfl_link dirty;     /* client->dirty: something to write or to decide */
    struct dfl_client *client;
    struct dfl_server *server;
    enum dfl_role role;
    enum dfl_conn_state state;
    struct dfl_transport *transport;
    struct dfl_interest watched[DFL_INTEREST_MAX];
    size_t watched_count;
    struct dfl_line_reader in;
    char *out;
    size_t out_start, out_end, out_cap;
    struct dfl_link urgent, renewals; /* not written yet */
    struct dfl_link sent;             /* written, oldest first */
    size_t sent_renewals;
    struct dfl_link holds; /* whose home this is */
    size_t owned;          /* of those, held */
    uint64_t looked;       /* the newest look at homes (client->looks) that has read it */
    unsigned link;         /* its small number, for the host */
    bool skip_hello;       /* it closed on `ping` once */
    bool answered;         /* any answer at all so far */
    bool hello_refused;    /* answered `ping` with an error, and nothing else so far */
    bool taken; /* waiting: a call, hold or place uses it; else it goes to the pool when quiet */
    bool single_use; /* not for the pool */
    bool in_line;    /* has a place that was given up: only closing leaves a queue */
    size_t heeded;   /* unanswered requests other than releases, whose answers can wait */
    bool active;     /* counted in client->active_conns */
    int64_t setup_deadline_ms;
    int64_t s_conn_ms; /* sending of the newest answered request */
    int64_t last_answer_ms, last_sent_ms, idle_since_ms;
    struct dfl_timer timer; /* the next thing that its state makes due */
};

/* A new connection that begins to connect. DFL_NOMEM, DFL_TOO_MANY, DFL_UNREACHABLE. */
enum dfl_status dfl_conn_open(struct dfl_server *server, enum dfl_role role, struct dfl_conn **conn,
                              struct dfl_error *err);
void dfl_conn_send(struct dfl_conn *conn, struct dfl_request *r);
/*
 * The owner gives a request up. Unsent: freed. Sent: it becomes a tombstone, whose late grant is
 * released as soon as it is read. A connection that is not set up and that nobody else waits for is
 * closed.
 */
void dfl_conn_withdraw(struct dfl_request *r);
void dfl_conn_ready(struct dfl_conn *conn);
void dfl_conn_read(struct dfl_conn *conn); /* what has arrived, without waiting */
void dfl_conn_flush(struct dfl_conn *conn);
void dfl_conn_die(struct dfl_conn *conn, const struct dfl_error *why);
void dfl_conn_close(struct dfl_conn *conn); /* nobody's fault: no loss is logged */
void dfl_conn_idle(
    struct dfl_conn *conn); /* a waiting connection that may be of no use any more: pool or close */
void dfl_conn_schedule(struct dfl_conn *conn);
int64_t dfl_conn_deadline(const struct dfl_conn *conn); /* S_conn + server_read_timeout less 2 % */
/* True: its deadline has passed, with that of all its holds, and it is dead: nothing is read any
 * more that could bring them back. */
bool dfl_conn_lapse(struct dfl_conn *conn);
bool dfl_conn_setting_up(const struct dfl_conn *conn);
bool dfl_conn_quiet(const struct dfl_conn *conn); /* nothing queued, nothing unanswered */
void dfl_conn_free(struct dfl_conn *conn);
/* Between conn.c and setup.c. */
enum dfl_status dfl_conn_transport(struct dfl_conn *conn,
                                   struct dfl_error *err); /* a new one, not connected */
void dfl_conn_hang_up(struct dfl_conn *conn);              /* closes its transport, if any */
void dfl_conn_step(struct dfl_conn *conn);                 /* goes on with connecting */
void dfl_conn_redial(struct dfl_conn *conn);               /* once more, without hello */
/* The end of the stream; `broken`: by the transport's error, else in order. Says why, as far as one
 * can know. */
void dfl_conn_broke(struct dfl_conn *conn, const struct dfl_transport *broken);
bool dfl_conn_put(struct dfl_conn *conn,
                  struct dfl_request *r); /* behind what was sent; false: it died */
void dfl_conn_watch(struct dfl_conn *conn);
void dfl_conn_mark_dirty(struct dfl_conn *conn);
void dfl_conn_count_active(struct dfl_conn *conn);

/* ---------------------------------------------------------------- servers */

enum dfl_ping { DFL_PING_UNKNOWN, DFL_PING_OK, DFL_PING_NO };

struct dfl_server {
    struct dfl_link by_client;
    struct dfl_client *client;
    struct dfl_server_address address;
    bool configured;
    struct dfl_conn *control;
    struct dfl_link conns, pool;
    size_t pool_count, conn_count;
    size_t refs;  /* holds of any state */
    size_t holds; /* held or awaited here */
    enum dfl_ping ping;
    int64_t no_hello_until_ms;
    bool knows_semaphores, knows_long_keys;
    bool fences_off; /* auto: a token that was no fence has been seen since the last fresh control
                        connection */
    struct dfl_fence_entry *fence;
    struct dfl_link orphans;  /* releases for the next connection */
    struct dfl_link watchers; /* calls that wait here and need signs of life */
    int64_t proof_ms;         /* sending of the newest answered request that does not block */
    int64_t asked_ms;         /* the sign of life asked for; 0 = none outstanding */
    bool asked_again;         /* over a second connection, because the first broke */
    int64_t watched_since_ms;
    struct dfl_timer timer; /* signs of life */
    bool down;
    bool used;
    int64_t up_since_ms, down_since_ms, connecting_since_ms;
    int64_t round_trip_us;
    char last_error[DFL_ERROR_MAX];
};

enum dfl_status dfl_server_new(struct dfl_client *c, const struct dfl_server_address *address,
                               struct dfl_server **server);
void dfl_server_free(struct dfl_server *server);
/* The control connection, fit for use; it may still be setting up. */
enum dfl_status dfl_server_control(struct dfl_server *server, struct dfl_conn **conn,
                                   struct dfl_error *err);
/* A connection that owns nothing: an idle one or a new one. */
enum dfl_status dfl_server_waiting(struct dfl_server *server, struct dfl_conn **conn,
                                   struct dfl_error *err);
bool dfl_server_close_idle(
    struct dfl_client *c); /* one pooled connection of any server; false: none */
void dfl_server_alive(struct dfl_server *server,
                      const struct dfl_request *r); /* r has been answered */
void dfl_server_connected(struct dfl_server *server, struct dfl_conn *conn);
void dfl_server_failed(struct dfl_server *server, const struct dfl_error *why);
/* Best effort: the token is released over the next connection that gets ready. Takes no ownership
 * of key. */
void dfl_server_orphan(struct dfl_server *server, enum dfl_kind kind, struct dfl_key *key,
                       const char *token);
/* Releases the token over conn, which got it, and nobody waits for that; should conn die first, it
 * is orphaned. Without memory the close of conn does it, which is not used again, or the end of the
 * lease, as nobody renews it: no other hold of conn is to pay for it. */
void dfl_server_give_back(struct dfl_conn *conn, enum dfl_kind kind, struct dfl_key *key,
                          const char *token);
/*
 * The answer to a release. A plain `error` is what a token gets that nobody holds, or what the read
 * time-out says, which has heard nothing and closes: asked again over the same connection, that one
 * has no answer. Unheard, the token is orphaned.
 */
void dfl_server_released(struct dfl_server *server, const struct dfl_request *r,
                         const struct dfl_answer_line *a, const struct dfl_error *error);
/* From here on nobody waits for that release either. */
void dfl_server_sees_to(struct dfl_server *server, struct dfl_request *release);
/* Asks for a sign of life unless one is being asked for. */
void dfl_server_ask(struct dfl_server *server);
/* Watches: while a call is in server->watchers, a sign of life is asked for every keepalive; its
 * absence ends the call. */
void dfl_server_watch(struct dfl_server *server, struct dfl_call *call);
/* The harmless request of this server. */
struct dfl_request *dfl_server_harmless(struct dfl_server *server, dfl_request_done *done,
                                        void *owner);
void dfl_server_schedule(struct dfl_server *server);

/* ----------------------------------------------------------------- fences */

struct dfl_fence_entry; /* one server's number in the process's book */
struct dfl_fence_entry *dfl_fence_entry(struct dfl_fence_book *book,
                                        const char *address); /* NULL: no memory */
uint64_t dfl_fence_highest(const struct dfl_fence_entry *e);
/*
 * The fence of a token just granted in answer to r, -1 when this server's tokens carry none.
 * DFL_PROTOCOL: fences are `on` and the prefix is above 2^63-1.
 */
enum dfl_status dfl_fence_read(struct dfl_server *server, const struct dfl_request *r,
                               const char *token, int64_t *fence, struct dfl_error *err);

/* ------------------------------------------------------------ keys, holds */

struct dfl_key {          /* one per key in use */
    struct dfl_key *next; /* in its bucket */
    struct dfl_client *client;
    uint32_t hash, refs;
    struct dfl_link holds;   /* every session's */
    struct dfl_link debts;   /* requests */
    struct dfl_link blocked; /* calls that wait for a debt */
    uint16_t len;
    char bytes[]; /* NUL behind */
};

struct dfl_key *dfl_key_get(struct dfl_client *c, const char *bytes,
                            size_t len); /* counted; NULL: no memory */
struct dfl_key *dfl_key_find(struct dfl_client *c, const char *bytes,
                             size_t len); /* not counted; NULL: unknown */
void dfl_key_put(struct dfl_key *key);

struct dfl_hold {
    struct dfl_link by_session, by_key, by_conn;
    struct dfl_session
        *session; /* NULL: its session is gone, only the answer to its release is awaited */
    struct dfl_key *key;
    struct dfl_server *server;
    struct dfl_conn *home;       /* NULL before it has one and when lost */
    struct dfl_call *call;       /* the newest call that is about it, pending or ended */
    struct dfl_request *waiting; /* a place: its `e` or `w` */
    struct dfl_request *renewal; /* the unanswered one, of several the newest */
    enum dfl_kind kind;
    enum dfl_scope scope;
    enum dfl_state state;
    uint32_t tag;
    bool from_enqueue;
    bool offered;                 /* a place whose grant came up and waits for its `wait` */
    bool came_up;                 /* it was offered once */
    enum dfl_status place_status; /* of a place that is lost: what the next `wait` raises */
    uint64_t fence_floor;  /* of a place: that of its `e`; it may come up before its `w` is sent */
    int64_t offer_sent_ms; /* sending of the request that the offer answers */
    bool counted;          /* in the host's quota */
    bool told;
    char token[DFL_TOKEN_LEN + 1];
    int64_t slots, fence;
    int64_t asked_lease_s; /* in requests; 0 = the server's */
    int64_t lease_s;
    int64_t granted_s; /* the longest one that the server has said it grants */
    int64_t s_hold_ms, lease_deadline_ms;
    uint32_t lease_changes; /* how often another lease was asked for by hand */
    int64_t cap_ms; /* until the last is answered, the shortest may be in force; 0 = no such */
    int64_t since_ms, acquired_ms, renewed_ms, acquired_wall_ms, lost_ms, renewals;
    struct dfl_timer timer; /* the next renewal, then the deadline */
    char *last_error;
    void *user;
};

struct dfl_hold *dfl_hold_new(
    struct dfl_session *s, struct dfl_key *key, struct dfl_server *server,
    const struct dfl_request_args *a,
    struct dfl_error *err); /* takes its own count of key; status in *err */
void dfl_hold_free(struct dfl_hold *h);
void dfl_hold_settle(struct dfl_hold *h, struct dfl_conn *home); /* its home from now on */
void dfl_hold_changed(struct dfl_hold *h);
bool dfl_hold_is_place(const struct dfl_hold *h);
/* Held from now on, with its token and fence; lease_s counts from sent_ms (S_hold). */
void dfl_hold_begin(struct dfl_hold *h, int64_t lease_s, int64_t sent_ms);
bool dfl_hold_valid(const struct dfl_hold *h, int64_t now_ms);
int64_t dfl_hold_deadline(const struct dfl_hold *h);
enum dfl_status dfl_hold_renew(struct dfl_hold *h, dfl_request_done *done, void *owner,
                               struct dfl_request **r);
/* A renewal whose call has gone: the answer is the hold's, a refusal as much as a confirmation. */
void dfl_hold_adopt_renewal(struct dfl_hold *h, struct dfl_request *r);
void dfl_hold_set_lease(struct dfl_hold *h, int64_t lease_s); /* a shorter one counts from now on */
/* What the `ok` to the renewal r leaves of the lease, from the sending of r. */
int64_t dfl_renewed_lease_s(const struct dfl_request *r, const struct dfl_answer_line *answer);
/* False: the confirmation came too late, and the hold is lost. No answer brings back what its
 * deadline has ended, though the server may say that it lasts: somebody may have been told. */
bool dfl_hold_renewed(struct dfl_hold *h, const struct dfl_request *r,
                      const struct dfl_answer_line *answer);
void dfl_hold_lose(struct dfl_hold *h, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* Sends the release. The hold is RELEASING and nobody's; it is freed when that is answered, h->call
 * (may be NULL) being told. */
enum dfl_status dfl_hold_release(struct dfl_hold *h);
/* Somebody releases it by its token: lost for its session; the request is the caller's. */
void dfl_hold_forfeit(struct dfl_hold *h);
bool dfl_hold_in_call(const struct dfl_hold *h); /* a pending call is about it */
void dfl_hold_set_call(struct dfl_hold *h, struct dfl_call *call);
void dfl_place_leave(struct dfl_hold *h); /* leaves the queue and frees h */
/* What a connection's death means for a hold or place at home on it. */
void dfl_hold_orphaned(struct dfl_hold *h, const struct dfl_error *why);

/* ------------------------------------------------------------------ calls */

struct dfl_call {
    struct dfl_link by_session, by_server, blocked;
    struct dfl_session *session;
    struct dfl_server *server;
    struct dfl_hold *hold;
    struct dfl_request *request; /* the one whose answer moves it on */
    struct dfl_conn *conn;       /* the waiting connection it has taken */
    struct dfl_key *key;         /* counted; what it is about */
    struct dfl_timer timer;
    void (*due)(struct dfl_call *call);     /* the timer's meaning in the present step */
    void (*resume)(struct dfl_call *call);  /* the step to repeat when a debt is paid */
    void (*give_up)(struct dfl_call *call); /* cancel in the present step */
    void (*again)(struct dfl_call *call);   /* sends the first request once more */
    void (*go_on)(struct dfl_call *call, struct dfl_conn *conn); /* its offer was refused on conn */
    void (*no_life)(struct dfl_call *call,
                    const struct dfl_error *why); /* no sign of life while waiting */
    void (*alive)(struct dfl_call *call);         /* a sign of life has come */
    enum dfl_status status;
    struct dfl_error error;
    struct dfl_request_args args; /* key not kept: see hold */
    int64_t net_deadline_ms, busy_since_ms, end_ms, lock_end_ms, asked_ms;
    int64_t seconds;
    size_t outstanding;
    char token[DFL_TOKEN_LEN + 1]; /* release by token */
    bool repeated;                 /* its try has been sent again over a new connection */
    bool final;     /* our own clock has ended the wait: this try's answer is the answer */
    bool giving_up; /* a grant read from now on is given back */
    bool unproven;  /* the server is not known to know this request */
    bool all;       /* release_all: errors of single releases do not count */
    bool no_wait;
    bool ours; /* release by token of a hold of this client, which is gone already */
    struct dfl_server_reply *replies;
    size_t reply_count;
};

struct dfl_server_reply { /* stats, ping: one server's part of the answer */
    struct dfl_call *call;
    struct dfl_request *request;
    struct dfl_conn *conn;
    char address[DFL_ADDRESS_MAX];
    struct dfl_error error;
    char *body;
    size_t body_len;
    int64_t round_trip_us;
};

/* The answer to the release of h, or why there is none. */
void dfl_call_released(struct dfl_call *call, const struct dfl_answer_line *a,
                       const struct dfl_error *error);
struct dfl_call *dfl_call_new(struct dfl_session *s, void *user,
                              struct dfl_error *err); /* NULL: no memory */
void dfl_call_end(struct dfl_call *call,
                  enum dfl_status status); /* call->error is set, or the status' text is taken */
void dfl_call_fail(struct dfl_call *call, const struct dfl_error *why);
void dfl_call_at(struct dfl_call *call, int64_t at_ms, void (*due)(struct dfl_call *call));
bool dfl_call_blocked(struct dfl_call *call, struct dfl_conn *conn,
                      void (*resume)(struct dfl_call *call));
/* Held (maybe lost a moment ago) or lost, after reading what has arrived; scope < 0: any. NULL:
 * none. */
struct dfl_hold *dfl_find_hold(struct dfl_session *s, const char *key, size_t len,
                               enum dfl_kind kind, int scope);
/* The same without reading first. */
struct dfl_hold *dfl_known_hold(struct dfl_session *s, const char *key, size_t len,
                                enum dfl_kind kind, int scope);
struct dfl_hold *dfl_check_deadline(struct dfl_hold *h); /* returns h, NULL too */
enum dfl_status dfl_say_lost(struct dfl_hold *h,
                             struct dfl_error *err); /* tells the session: DFL_LOST */
const char *dfl_kind_name(enum dfl_kind kind);
/* A connection that was not made in time knows best why: true when that has ended the call. */
bool dfl_call_last_step(struct dfl_call *call);
/* What no answer in time means: still connecting or sent without an answer. */
void dfl_call_no_answer(struct dfl_call *call);

/* ----------------------------------------------------- asking for a lock (grant.c) */

enum dfl_status dfl_check_args(const struct dfl_request_args *a, struct dfl_error *err);
/*
 * A call with its new hold; or one that has ended already, because of a cap or with the xact lock
 * that the session has. Not DFL_OK: the session's own holds forbid the request.
 */
enum dfl_status dfl_begin(struct dfl_session *s, const struct dfl_request_args *a, bool enqueue,
                          struct dfl_call **out, struct dfl_error *err);
struct dfl_request *dfl_lock_request(struct dfl_call *call, enum dfl_command cmd,
                                     dfl_request_done *done); /* NULL: no memory */
bool dfl_is_unproven(const struct dfl_call *call); /* this server may not know such a request */
void dfl_note_proven(struct dfl_call *call);       /* it does */
/* A request that broke with a connection which owned nothing has left nothing behind: true once,
 * then it may be sent again. */
bool dfl_may_repeat(struct dfl_call *call, const struct dfl_request *r,
                    const struct dfl_error *error);
/* A plain `error`: meant for us, or the read time-out's, which closes? What follows on the
 * connection decides. */
bool dfl_is_plain_error(const struct dfl_answer_line *a); /* `error` and no word more */
void dfl_suspect(struct dfl_call *call, struct dfl_conn *conn);
/* Too little of the grant is certain to be left. */
bool dfl_needs_confirming(const struct dfl_client *c, const struct dfl_request *r, int64_t lease_s);
void dfl_take_grant(struct dfl_call *call, const struct dfl_request *r,
                    const struct dfl_answer_line *a);
void dfl_confirm(
    struct dfl_call *call); /* asks the server whether the grant still stands, by renewing it */
void dfl_granted(struct dfl_call *call, struct dfl_conn *conn, int64_t lease_s, int64_t sent_ms);
/* The ends without a grant: the hold vanishes, what is known of a grant is given back, the
 * connection is left. */
void dfl_end_without(struct dfl_call *call, enum dfl_status status); /* call->error is set */
void dfl_fail_without(struct dfl_call *call, const struct dfl_error *why);
void dfl_fail_with_word(struct dfl_call *call, const struct dfl_answer_line *a);
void dfl_out_of_memory(struct dfl_call *call);
void dfl_too_slow(struct dfl_call *call);
void dfl_give_up(struct dfl_call *call);
void dfl_leave_conn(struct dfl_call *call);
double dfl_seconds_since(const struct dfl_client *c, int64_t ms);

/* ----------------------------------------------------------------- client */

struct dfl_session {
    struct dfl_link by_client;
    struct dfl_client *client;
    struct dfl_link holds, calls;
    struct dfl_link *walk; /* the next of holds, for a walk whose steps may end any of them */
    size_t hold_count;     /* lost ones not counted */
    int64_t cap;
    void *user;
};

struct dfl_client {
    struct dfl_host host;
    const struct dfl_net *net;
    struct dfl_settings settings;
    int64_t keepalive_ms;
    char *auth_token;
    struct dfl_tls *tls;
    struct dfl_fence_book *book;
    bool keep_warm;
    uint64_t random;
    struct dfl_now now;
    int depth;        /* of dfl_enter */
    bool old_servers; /* some server is not in the list (any more) */
    struct dfl_timers timers;
    size_t timer_users;
    struct dfl_link servers; /* the configured ones first, in the order of the list */
    struct dfl_server **shards;
    size_t shard_count;
    struct dfl_link sessions, dirty, dead;
    size_t active_conns, pending_calls;
    struct dfl_key **buckets;
    size_t bucket_count, key_count;
    uint64_t looks;          /* how often the homes of a key's holds have been read */
    struct dfl_conn **links; /* by small number */
    size_t link_cap;
    bool shut;
};

void dfl_enter(struct dfl_client *c, struct dfl_now now);
void dfl_leave(struct dfl_client *c);
enum dfl_status dfl_timer_room(
    struct dfl_client *c); /* room for one more timer for good; undone by dfl_timer_unroom */
void dfl_timer_unroom(struct dfl_client *c);
double dfl_random(struct dfl_client *c); /* 0 <= x < 1 */
struct dfl_server *dfl_client_server_of(struct dfl_client *c, const char *key, size_t len);
void dfl_client_log(struct dfl_client *c, enum dfl_level level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* 98 % of an interval: the margin for clocks that run at different rates. */
static inline int64_t dfl_less_margin(int64_t interval_ms)
{
    return DFL_PLANTED(3) ? interval_ms : interval_ms - interval_ms / 50;
}

#endif
