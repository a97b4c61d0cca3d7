/*
 * sim.h - the simulated world: one queue of events, one random number, one time. Everything that a schedule makes lives in
 * an arena that the next schedule takes over, so nothing here is ever freed and every pointer stays valid to the end.
 *
 *   world.c   time, events, random numbers, trace, faults found
 *   net.c     connections: bytes that are late, split, cut, half closed, reset
 *   server.c  lock servers: processes on addresses; personalities in bundled.c and refserver.c
 *   model.c   the rules of a lock service, of a key: limit, holders, queue
 *   judge.c   every line of every server, by those rules; shares no code with servers or engine
 *   host.c    clients: the engine driven as its hosts drive it
 *   checks.c  what the clients say, against what the servers know
 *   script.c  what sessions ask for and what goes wrong meanwhile
 */
#ifndef SIM_H
#define SIM_H

#include "../../core/dflockd.h"
#include "../../core/transport.h"
#include "model.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ------------------------------------------------------------------- world */

#define SECOND INT64_C(1000000)
#define MS INT64_C(1000)

typedef void event_fn(void *arg, uint64_t n);

extern int64_t sim_now; /* true time, microseconds since the world began */
extern bool sim_tracing;

void world_begin(uint64_t seed);
bool world_step(int64_t until); /* one event, none later than `until`; false: time is `until` now */
void sim_at(int64_t at, event_fn *fn, void *arg, uint64_t n);
void *sim_new(size_t size); /* zeroed */

uint64_t rnd(void);
int64_t rnd_range(int64_t from, int64_t to); /* both included */
bool rnd_chance(int per_mille);
int64_t rnd_log(int64_t from, int64_t to); /* each order of magnitude alike */

void sim_trace(const char *format, ...) __attribute__((format(printf, 1, 2)));
#define TRACE(...) do { if (sim_tracing) sim_trace(__VA_ARGS__); } while (0)
/* A fault of what is tested: ends the schedule. `finder` names the check. */
void sim_fault(const char *finder, const char *format, ...) __attribute__((format(printf, 2, 3), noreturn));
void world_print_trace(void);

/* A clock of its own rate: milliseconds of its own. */
struct sim_clock {
    int64_t base_ms;
    int64_t ppm;
    int64_t stopped_us; /* of true time it has not counted */
    int64_t since_us;   /* it stands still since then; 0 = it runs */
};
int64_t clock_us(const struct sim_clock *c);
struct dfl_now clock_now(const struct sim_clock *c, int64_t wall_skew_ms);
int64_t clock_when(const struct sim_clock *c, int64_t ms); /* true time at which it shows ms */
void clock_stop(struct sim_clock *c);
void clock_go_on(struct sim_clock *c);

/* For how long in all something was out of reach; what overlaps counts once. */
struct outage {
    int64_t total_us, until_us;
};
#define FOR_EVER (INT64_MAX / 4)
void outage_add(struct outage *o, int64_t until); /* from now on */
int64_t outage_so_far(const struct outage *o);

/* What this schedule is like. */
struct profile {
    uint64_t seed;
    bool cuts, foreign_release, restarts; /* the three that allow a yes without a hold */
    bool suspends, crashes, cancels, drains, pauses, caps, list_changes;
    int64_t delay_max; /* of a rare late message */
    int late_per_mille; /* of what is sent from now on */
    bool late;          /* some of what was sent */
    int servers, clients, actions;
    int64_t read_timeout_s, connect_timeout_ms, keepalive_ms, default_lease_s;
    double renew_ratio;
    bool calm; /* nothing is late, nobody stops */
    bool places; /* a crowd that enqueues for short leases, and whose `queued` is late */
    bool asking; /* is_held and assert_held of everybody after every step */
};
extern struct profile profile;

/* What was seen, over all schedules. */
struct counters {
    uint64_t schedules, events, grants, calls, yes_checks, holds_lost;
    uint64_t allowed_cut, allowed_release, allowed_late_release, allowed_process;
    uint64_t asked;
    uint64_t expired_dead, expired_late, expired_unwanted, expired_left, expired_cut;
    uint64_t busy, waits_kept, cancelled, errors, recovered;
    uint64_t by_personality[8];
};
extern struct counters counters;

/* ----------------------------------------------------------------- network */

struct client;
struct server;
struct conn;
struct judge;

enum direction { TO_SERVER, TO_CLIENT };

struct bytes {
    char *at;
    size_t start, end, cap;
};
void bytes_add(struct bytes *b, const char *at, size_t len);

/* An answer line of a server's that has been read, or not, by the client: for the proofs of life. */
struct asked {
    int64_t sent_ms; /* client's clock */
    int64_t sent_us;
    bool blocks;
    char key[12];   /* as far as it goes */
    size_t key_len;
};

struct conn {
    struct dfl_transport transport; /* first: the engine's handle */
    struct conn *next;              /* of the world */
    struct conn *next_of_server;
    int id, fd;
    struct client *client;
    struct server *server; /* NULL until accepted */
    int address;
    enum { CONN_NEW, CONN_DIALLING, CONN_UP, CONN_REFUSED } state;
    int64_t last_at[2]; /* in order in each direction */
    bool cut[2];        /* whatever goes that way is lost */
    int64_t cut_us;     /* the first fault of the network on it; 0 = none */
    struct outage away; /* what was late or lost on it */
    int64_t asking_us;  /* when the request that is carried out was sent */
    int64_t ended_us;   /* when the server has closed it */
    bool placed[8];     /* it was told `queued`: by key */
    int64_t opened_us, left_us; /* by the client */
    bool client_closed, client_eof, client_error;
    bool server_closed, server_eof, server_error;
    struct bytes to_client, to_server;
    /* server side */
    void *peer;
    bool blocked;
    int64_t active_ms; /* server's clock: when a request was last answered */
    bool eof_told;     /* the implementation knows that it is over */
    bool hanging_up;   /* it reads no more requests */
    bool stale;        /* the answer that it gives is `ok` to what has lapsed */
    struct judged *judged; /* the request that is being carried out */
    /* what the client has asked and not yet read the answer to */
    struct asked asked[4096];
    unsigned asked_first, asked_end;
    unsigned taken; /* of these, by the server */
    char line[64];
    size_t line_len;
    unsigned lines; /* of the requests written so far */
    char word[8];   /* of the one being written */
    char arg[40];
    size_t word_len, arg_len;
};

extern struct conn *net_conns;
void net_begin(void);
struct dfl_net net_of(struct client *client);
void net_to_client(struct conn *c, const char *bytes, size_t len);
void net_server_close(struct conn *c, bool silently); /* the server's end; unread bytes make it a reset */
void net_client_crash(struct conn *c, bool silently);
void net_cut(struct conn *c, enum direction way);
void net_half_close(struct conn *c, enum direction way); /* one side sees the end of the other's bytes */
void net_reset(struct conn *c);      /* both ends, in their time; unread bytes are lost */
void net_partition(struct client *client, int address, enum direction way, int64_t until);

/* ----------------------------------------------------------------- servers */

enum personality { BUNDLED, V1_10, V2, V0_5, PERSONALITIES };

struct traits {
    const char *name;
    bool close_unseen;   /* while a request blocks */
    bool stale_wait;     /* `ok` to a `w` whose grant has lapsed */
    bool separate_kinds; /* locks and semaphores of a key do not meet */
    bool fences;
    bool ping;
    bool semaphores;
    bool closes_on_unknown;
    bool drain_closes; /* error_draining and close */
};
extern const struct traits traits_of[PERSONALITIES];

struct server_ops {
    void *(*start)(struct server *s);
    void (*stop)(void *impl);
    void *(*open)(void *impl, struct conn *c);
    void (*request)(void *peer, const char *const line[3], const size_t len[3]);
    void (*gone)(void *peer);
    void (*tick)(void *impl);
    int64_t (*next_ms)(void *impl);
    void (*drain)(void *impl);
};
extern const struct server_ops bundled_ops, reference_ops;

struct server { /* one process */
    struct server *next;
    int id, address;
    enum personality personality;
    const struct traits *traits;
    const struct server_ops *ops;
    void *impl;
    struct judge *judge;
    struct sim_clock clock;
    struct conn *conns;
    size_t conn_count, max_connections, max_locks, max_waiters;
    int64_t read_timeout_ms, default_lease_s, longest_lease_s, sweep_ms;
    bool auto_release, state_file, recovering;
    int64_t gate_ms; /* nothing is granted before */
    int64_t lease_end_us; /* latest end of a lease, true time */
    bool ended, draining, paused;
    int64_t ended_us;
    struct outage stopped;
    int64_t paused_us; /* latest end of a pause */
    int64_t wake_at;   /* true time of the event that is set */
};

struct address {
    char text[40];
    struct server *listening;
    bool silent; /* nobody there, and nobody says so */
    enum personality personality;
    uint64_t fence; /* kept across processes */
    int64_t lease_end_us;
    bool unclean;
    int processes;
};
#define ADDRESSES 6
extern struct address addresses[ADDRESSES];
extern struct server *all_servers;

void servers_begin(void);
struct server *server_start(int address);
void server_kill(struct server *s, bool silently);
void server_drain(struct server *s);
void server_pause(struct server *s, int64_t us);
void server_arrived(struct conn *c);  /* bytes, or the end */
void server_accept(struct conn *c);
void server_free_all(void);
struct dfl_now server_now(const struct server *s);
/* For implementations: a line to a connection, without newline; whether its request still blocks; the end of it. */
void server_emit(struct conn *c, const char *line, size_t len);
void server_block(struct conn *c, bool blocked);
void server_hang_up(struct conn *c);
uint64_t server_fence(struct server *s);
int64_t server_lease(const struct server *s, int64_t asked_s); /* what it grants instead */

/* ------------------------------------------------------------------- judge */

/* What is kept of a hold beside what the model knows. */
struct seen {
    struct model_key *key;
    struct server *server;
    int64_t set_us;                   /* true time of the newest grant or renewal */
    bool waited;                      /* answered to a `w` */
    uint64_t fence_floor;             /* a place that came up: the key's highest fence before that */
    int64_t ended_us;
    struct conn *released_by;
    bool judged; /* its expiry has been looked at */
    bool served; /* some client has held it */
    bool told;   /* its client has read its token */
    int64_t given_back_us; /* its client has released it; 0 = not yet */
    struct conn *back_over; /* the newest release of it that its client has written: over what, when, */
    int64_t back_us, back_away_us; /* and for how long that connection had been out of reach */
    int64_t asked_us;      /* when the request was sent that it answers */
    int64_t away_set_us, away_end_us; /* how long its client and server had been apart when it was set, and when it ended */
};

struct judge *judge_new(struct server *s);
/* Each returns NULL, or what is wrong. judge_request is called when its turn has come on its connection. */
const char *judge_request(struct judge *j, struct conn *c, const char *const line[3], const size_t len[3]);
const char *judge_answer(struct judge *j, struct conn *c, const char *line, size_t len);
const char *judge_blocks(struct judge *j, struct conn *c); /* its request was not answered at once */
/* Something that the asker's client had given back over another connection before it asked, and that still stands in its way. */
const struct model_hold *judge_unseen_release(struct judge *j, struct conn *c, int64_t asked_us);
const char *judge_settle(struct judge *j); /* after each step of the server */
const char *judge_empty(struct judge *j);
void judge_closed(struct judge *j, struct conn *c);
void judge_drained(struct judge *j);
void judge_expire(struct judge *j, void (*expired)(struct model_hold *h));
struct model_hold *judge_find(const char *token); /* in any process */
bool judge_lives(const struct model_hold *h);
bool judge_names(const struct model_key *k, int key); /* it is that one of key_names */
bool judge_has_place(struct judge *j, const struct conn *c, int key);

/* ------------------------------------------------------------------- hosts */

#define KEYS 5
#define USERS 4
#define CLIENTS 5

enum action_kind {
    ACT_ACQUIRE,
    ACT_ENQUEUE,
    ACT_WAIT,
    ACT_CANCEL,
    ACT_RELEASE,
    ACT_RELEASE_ALL,
    ACT_RENEW,
    ACT_TOKEN,
    ACT_CHECK,
    ACT_GIVE_BACK,
    ACT_STATS,
    ACT_PING,
    ACT_END
};

struct client;

struct user { /* a session of the SQL interface */
    struct client *client;
    int id;
    struct dfl_session *s;
    struct dfl_call *call;
    bool starting, cancelling, ended; /* ended: the call has, and nobody has looked yet */
    enum action_kind doing;
    enum dfl_kind kind;
    int key, address;
    int64_t timeout_ms, lock_timeout_ms, lease_s, slots;
    int64_t began_ms; /* client's clock */
    int64_t began_us;
    int64_t confirmed_ms; /* when a grant for it began to be confirmed */
    int64_t anew_ms;      /* when it went on after a plain `error` in line, or after an offer that was refused */
    bool said_busy; /* the server has, to a request sent since */
    struct conn *place[KEYS]; /* of its newest `queued`, where that is known */
    bool bare; /* its client had nothing at all then */
    struct {
        int key;
        int64_t began_us, ended_us;
    } before; /* its last call for a lock or a place that has ended: what it sent may still be on its way */
};

/* What the host has been told of a hold: the shared memory of PostgreSQL. */
struct shadow {
    struct shadow *next;
    struct dfl_hold *hold;
    struct client *client;
    struct user *user; /* NULL: its session is gone */
    enum dfl_state state;
    int key;
    enum dfl_kind kind;
    unsigned link;
    int64_t lease_deadline_ms, lease_s, fence;
    char token[40];
    struct model_hold *model;
};

struct watched {
    int fd;
    unsigned events;
    void *tag;
};

struct client { /* a process */
    struct client *next;
    int id;
    bool worker; /* driven as PostgreSQL's worker: many sessions; else as SQLite: one */
    struct dfl_client *c;
    struct dfl_fence_book *book;
    struct dfl_settings settings;
    struct sim_clock clock;
    int64_t wall_skew_ms;
    bool dead, suspended;
    struct outage stopped;
    struct outage away[ADDRESSES]; /* what was late between it and a server */
    int64_t resumed_ms, resume_us;
    struct user users[USERS];
    int user_count;
    struct shadow *shadows;
    int64_t links[256];
    struct watched watched[128];
    size_t watched_count;
    int64_t pump_at;
    uint64_t pump_number;
    int64_t locks, sockets, max_locks, max_sockets;
    int64_t heal[ADDRESSES][2]; /* partitions: nothing arrives before */
    int64_t proof_ms[ADDRESSES]; /* newest sign of life that has been read: when it was asked for */
    int64_t heard_ms[ADDRESSES]; /* and when it was read */
    int64_t refused_us[ADDRESSES]; /* newest plain `error` to a request for a lock */
    int list_start, list_length; /* servers in its list */
    int64_t list_changed_us;
    struct dfl_net net;
};
extern struct client *all_clients;

extern const char *const key_names[KEYS];

void hosts_begin(void);
struct client *client_start(bool worker);
void client_end(struct client *c); /* ends its sessions, and goes on being driven */
void client_free(struct client *c);
void client_crash(struct client *c, bool silently);
void client_suspend(struct client *c, int64_t us);
void client_notify(struct client *c); /* something has arrived */
void client_touched(struct client *c); /* after each entry into the engine */
void client_asked(struct client *c);   /* after one that is no more than a question */
void client_reconfigure(struct client *c, int list_length);
struct dfl_now client_now(const struct client *c);
int client_address(const struct client *c, int key);
void user_begin(struct user *u);
void user_end(struct user *u);
void user_cancel(struct user *u);

/* ------------------------------------------------------------------ checks */

bool check_says_yes(const struct shadow *h);
void check_all(void);                          /* after every event */
void check_expired(struct model_hold *h);      /* the server's lease of it is over */
void check_order(const struct model_hold *h, const struct client *c, int64_t asked_us); /* given back by c, and in the way of what c asks */
void check_harm(const struct conn *c, const char *word); /* the server closes on this word */
void check_new_hold(struct shadow *h);         /* it has become held */
void check_renewed(const struct user *u);      /* its call says that it is */
void check_call(struct user *u, enum dfl_status status); /* it has ended */
int64_t check_apart(const struct model_hold *h); /* how long its client and its server were out of each other's reach so far */
void check_asked(struct user *u, int key); /* is_held and assert_held against what is published */

/* ------------------------------------------------------------------ script */

void script_profile(uint64_t seed);
void script_begin(void);
void script_act(struct user *u); /* starts something */
void script_follow(struct user *u); /* its call has ended: who enqueues often waits at once */
bool script_over(void);
void script_settle(void); /* faults stop, sessions end, nothing may be left */

#endif
