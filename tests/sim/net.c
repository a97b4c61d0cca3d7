/*
 * net.c - the network: a struct dfl_net over memory. Each direction of a connection keeps its order; what is sent may
 * arrive in pieces, late, or never (cut); a close with unread bytes, or a reset, takes unread bytes with it, as TCP does.
 */
#include "sim.h"

#include <stdio.h>
#include <string.h>

#define USER_TIMEOUT (16 * SECOND)        /* unacknowledged bytes end the client's side */
#define SERVER_KEEPALIVE (120 * SECOND)   /* a silent peer ends the server's side */

enum chunk_kind { CHUNK_SYN, CHUNK_ACCEPTED, CHUNK_REFUSED, CHUNK_BYTES, CHUNK_END, CHUNK_RESET };

struct chunk {
    struct conn *conn;
    enum direction way;
    enum chunk_kind kind;
    size_t len;
    char bytes[];
};

struct conn *net_conns;
static int conn_count;

void net_begin(void)
{
    net_conns = NULL;
    conn_count = 0;
}

void bytes_add(struct bytes *b, const char *at, size_t len)
{
    if (b->start == b->end)
        b->start = b->end = 0;
    if (b->end + len > b->cap) {
        size_t cap = (b->end + len) * 2 + 256;
        char *more = sim_new(cap);

        if (b->end)
            memcpy(more, b->at, b->end);
        b->at = more;
        b->cap = cap;
    }
    memcpy(b->at + b->end, at, len);
    b->end += len;
}

/* ------------------------------------------------------------------ delays */

static int64_t delay(void)
{
    if (profile.late_per_mille && rnd_chance(profile.late_per_mille))
        return rnd_log(10 * MS, profile.delay_max);
    return rnd_range(50, 2 * MS);
}

static void deliver(void *arg, uint64_t n);

static void send_chunk(struct conn *c, enum direction way, enum chunk_kind kind, const char *at, size_t len)
{
    struct chunk *k = sim_new(sizeof *k + len);
    int64_t when = sim_now + delay(), heal = c->client->heal[c->address][way];

    k->conn = c;
    k->way = way;
    k->kind = kind;
    k->len = len;
    if (len)
        memcpy(k->bytes, at, len);
    if (when < heal)
        when = heal + rnd_range(0, 100 * MS);
    if (when < c->last_at[way])
        when = c->last_at[way];
    c->last_at[way] = when;
    if (when > sim_now + 2 * MS) {
        outage_add(&c->away, when);
        outage_add(&c->client->away[c->address], when);
    }
    sim_at(when, deliver, k, 0);
}

static void send_bytes(struct conn *c, enum direction way, const char *at, size_t len)
{
    while (len > 0) {
        size_t n = len > 1 && rnd_chance(150) ? (size_t)rnd_range(1, (int64_t)len - 1) : len;

        send_chunk(c, way, CHUNK_BYTES, at, n);
        at += n;
        len -= n;
    }
}

/* ---------------------------------------------------------------- delivery */

static void broken_at_client(struct conn *c)
{
    c->to_client.start = c->to_client.end = 0;
    c->client_error = true;
    client_notify(c->client);
}

static void broken_at_server(struct conn *c)
{
    c->to_server.start = c->to_server.end = 0;
    c->server_error = true;
    server_arrived(c);
}

static void to_client(struct conn *c, const struct chunk *k)
{
    if (c->client_closed || c->client->dead || c->client_error || c->client_eof)
        return;
    switch (k->kind) {
    case CHUNK_ACCEPTED:
        c->state = CONN_UP;
        break;
    case CHUNK_REFUSED:
        c->state = CONN_REFUSED;
        break;
    case CHUNK_BYTES:
        bytes_add(&c->to_client, k->bytes, k->len);
        break;
    case CHUNK_END:
        c->client_eof = true;
        break;
    default:
        broken_at_client(c);
        return;
    }
    client_notify(c->client);
}

static void to_server(struct conn *c, const struct chunk *k)
{
    if (k->kind == CHUNK_SYN) {
        struct address *a = &addresses[c->address];

        if (a->silent)
            return;
        /* Before anything that the server says or does. */
        send_chunk(c, TO_CLIENT, a->listening ? CHUNK_ACCEPTED : CHUNK_REFUSED, NULL, 0);
        if (a->listening)
            server_accept(c);
        return;
    }
    if (c->server == NULL || c->server_error)
        return;
    if (c->server_closed) {
        if (k->kind == CHUNK_BYTES)
            send_chunk(c, TO_CLIENT, CHUNK_RESET, NULL, 0);
        return;
    }
    if (k->kind == CHUNK_RESET) {
        broken_at_server(c);
        return;
    }
    if (c->server_eof)
        return;
    if (k->kind == CHUNK_END)
        c->server_eof = true;
    else
        bytes_add(&c->to_server, k->bytes, k->len);
    server_arrived(c);
}

static void deliver(void *arg, uint64_t n)
{
    struct chunk *k = arg;
    struct conn *c = k->conn;

    (void)n;
    if (c->cut[k->way])
        return;
    if (k->way == TO_CLIENT)
        to_client(c, k);
    else
        to_server(c, k);
}

/* ------------------------------------------------------- the engine's end */

static struct conn *conn_of(struct dfl_transport *t)
{
    return (struct conn *)t; /* its first member */
}

static enum dfl_io t_connect(struct dfl_transport *t, struct dfl_now now, int64_t deadline_ms)
{
    struct conn *c = conn_of(t);

    (void)now, (void)deadline_ms;
    if (c->state == CONN_NEW) {
        c->state = CONN_DIALLING;
        send_chunk(c, TO_SERVER, CHUNK_SYN, NULL, 0);
    }
    if (c->client_error || c->state == CONN_REFUSED) {
        dfl_fail(&t->error, DFL_UNREACHABLE, "connect to %s: connection refused", addresses[c->address].text);
        return DFL_IO_ERROR;
    }
    return c->state == CONN_UP ? DFL_IO_DONE : DFL_IO_AGAIN;
}

static bool asked_for(const struct conn *c, const struct asked *a)
{
    for (int i = 0; i < c->client->user_count; i++) {
        const struct user *u = &c->client->users[i];

        if (u->doing == ACT_ENQUEUE && u->call && !u->ended && a->sent_us >= u->began_us &&
            a->key_len == strlen(key_names[u->key]) && memcmp(a->key, key_names[u->key], a->key_len) == 0)
            return true;
    }
    return false;
}

/* Closing is the one way out of a queue. */
static void must_be_closed(void *arg, uint64_t n)
{
    const struct conn *c = arg;

    (void)n;
    if (!c->client_closed && !c->client->dead && !c->client->suspended)
        sim_fault("cancel", "client %d keeps #%d, where it has a place that was given up", c->client->id, c->id);
}

/* Who waits for that word, and which token the client knows from here on. */
static void note_word(struct conn *c, const struct asked *a)
{
    char word[40] = "", token[40] = "";
    struct model_hold *h;

    sscanf(c->line, "%39s %39s", word, token);
    for (int i = 0; i < c->client->user_count; i++) {
        struct user *u = &c->client->users[i];

        if (a->sent_us < u->began_us || a->key_len != strlen(key_names[u->key]) || memcmp(a->key, key_names[u->key], a->key_len) != 0)
            continue;
        if (strcmp(word, "timeout") == 0 || strcmp(word, "error_max_waiters") == 0)
            u->said_busy = true;
        if (strcmp(word, "error") == 0 && a->blocks && u->doing == ACT_ACQUIRE)
            u->anew_ms = client_now(c->client).ms;
    }
    if (strcmp(word, "queued") == 0 && !asked_for(c, a))
        sim_at(sim_now + 30 * MS, must_be_closed, c, 0);
    h = strlen(token) == 32 ? judge_find(token) : NULL;
    if (h)
        h->seen->told = true;
}

/* Which requests are answered now, for the checks of what "false" is based on. */
static void note_read(struct conn *c, const char *at, size_t len)
{
    int64_t *proof = &c->client->proof_ms[c->address];

    for (size_t i = 0; i < len; i++) {
        struct asked *a;
        int64_t when;

        if (at[i] != '\n') {
            if (c->line_len < sizeof c->line - 1)
                c->line[c->line_len++] = at[i];
            continue;
        }
        c->line[c->line_len] = '\0';
        c->line_len = 0;
        if (c->asked_first == c->asked_end)
            continue; /* a read time-out speaks unasked */
        a = &c->asked[c->asked_first++ % 4096];
        note_word(c, a);
        when = a->blocks ? 0 : a->sent_ms; /* what has blocked may have been said long ago */
        if (when > *proof) {
            *proof = when;
            c->client->heard_ms[c->address] = client_now(c->client).ms;
        }
    }
}

static enum dfl_io t_read(struct dfl_transport *t, void *buf, size_t cap, size_t *got)
{
    struct conn *c = conn_of(t);
    size_t n = c->to_client.end - c->to_client.start;

    if (c->client_closed)
        sim_fault("transport", "the engine reads from a closed connection");
    if (n > 0) {
        n = n < cap ? n : cap;
        memcpy(buf, c->to_client.at + c->to_client.start, n);
        c->to_client.start += n;
        *got = n;
        note_read(c, buf, n);
        return DFL_IO_DONE;
    }
    if (c->client_error) {
        dfl_fail(&t->error, DFL_BROKEN, "connection reset by peer");
        return DFL_IO_ERROR;
    }
    return c->client_eof ? DFL_IO_EOF : DFL_IO_AGAIN;
}

static bool word_blocks(const struct conn *c)
{
    static const char *const waits[] = {"w", "sw", "l", "sl"};

    for (size_t i = 0; i < 4; i++) {
        if (strlen(waits[i]) == c->word_len && memcmp(waits[i], c->word, c->word_len) == 0)
            return true;
    }
    return false;
}

/* Over which connection a hold is given back. */
static void note_release(struct conn *c)
{
    struct model_hold *h = c->word[c->word_len - 1] == 'r' && c->arg_len == 32 ? judge_find(c->arg) : NULL;

    if (h == NULL || h->conn->client != c->client)
        return;
    h->seen->back_over = c;
    h->seen->back_us = sim_now;
    h->seen->back_away_us = outage_so_far(&c->away);
}

/* The requests that go out, as they will be answered. */
static void note_written(struct conn *c, const char *at, size_t len)
{
    struct asked *a = &c->asked[c->asked_end % 4096];

    for (size_t i = 0; i < len; i++) {
        unsigned line = c->lines % 3;

        if (at[i] != '\n') {
            if (line == 0 && c->word_len < sizeof c->word)
                c->word[c->word_len++] = at[i];
            else if (line == 1 && a->key_len < sizeof a->key)
                a->key[a->key_len++] = at[i];
            else if (line == 2 && c->arg_len == 0 && at[i] == '0')
                a->blocks = false; /* a timeout of 0 */
            if (line == 2 && c->arg_len < sizeof c->arg - 1)
                c->arg[c->arg_len++] = at[i];
            continue;
        }
        if (line == 0) {
            a->blocks = word_blocks(c);
            a->key_len = 0;
            a->sent_ms = client_now(c->client).ms;
            a->sent_us = sim_now;
        }
        c->lines++;
        if (line == 2) {
            c->arg[c->arg_len] = '\0';
            note_release(c);
            c->word_len = c->arg_len = 0;
            a = &c->asked[++c->asked_end % 4096];
        }
    }
}

static void user_timeout(void *arg, uint64_t n)
{
    struct conn *c = arg;

    (void)n;
    if (c->client_closed || c->client->dead || c->client_error)
        return;
    broken_at_client(c);
}

static enum dfl_io t_write(struct dfl_transport *t, const void *buf, size_t len, size_t *put)
{
    struct conn *c = conn_of(t);
    size_t n = len;

    if (c->client_closed)
        sim_fault("transport", "the engine writes to a closed connection");
    if (c->client_error) {
        dfl_fail(&t->error, DFL_BROKEN, "broken pipe");
        return DFL_IO_ERROR;
    }
    if (len > 1 && rnd_chance(30))
        n = (size_t)rnd_range(1, (int64_t)len - 1);
    note_written(c, buf, n);
    *put = n;
    if (c->client->dead)
        return DFL_IO_DONE;
    if (c->cut[TO_SERVER] || addresses[c->address].silent)
        sim_at(sim_now + USER_TIMEOUT, user_timeout, c, 0);
    send_bytes(c, TO_SERVER, buf, n);
    return DFL_IO_DONE;
}

static size_t t_interest(struct dfl_transport *t, bool want_write, struct dfl_interest *out)
{
    struct conn *c = conn_of(t);

    out->fd = c->fd;
    out->events = DFL_READABLE | (want_write || c->state == CONN_DIALLING ? DFL_WRITABLE : 0);
    return 1;
}

static bool t_buffered(struct dfl_transport *t)
{
    (void)t;
    return false;
}

static int64_t t_wake(struct dfl_transport *t)
{
    (void)t;
    return INT64_MAX;
}

static const char *t_step(struct dfl_transport *t)
{
    return conn_of(t)->state == CONN_UP ? "read" : "connect";
}

static void end_client(struct conn *c, bool silently)
{
    bool unread = c->to_client.end > c->to_client.start;

    if (c->client_closed)
        return;
    c->client_closed = true;
    c->left_us = sim_now;
    if (c->server == NULL || c->client_error || silently)
        return;
    send_chunk(c, TO_SERVER, unread ? CHUNK_RESET : CHUNK_END, NULL, 0);
}

static void t_close(struct dfl_transport *t)
{
    struct conn *c = conn_of(t);

    if (c->client_closed)
        sim_fault("transport", "the engine closes a connection twice");
    TRACE("client %d closes #%d", c->client->id, c->id);
    end_client(c, c->client->dead);
    c->client_closed = true;
}

static void t_abandon(struct dfl_transport *t)
{
    (void)t;
}

static const struct dfl_transport_ops ops = {t_connect, t_read,  t_write, t_interest, t_buffered,
                                             t_wake,    t_step, t_close, t_abandon};

static enum dfl_status net_open(void *ctx, const struct dfl_endpoint *ep, struct dfl_tls *tls, struct dfl_transport **out,
                                struct dfl_error *err)
{
    struct conn *c = sim_new(sizeof *c);

    (void)tls, (void)err;
    c->transport.ops = &ops;
    c->client = ctx;
    c->address = ep->port - 7001;
    c->id = ++conn_count;
    c->opened_us = sim_now;
    c->fd = 1000 + c->id;
    c->next = net_conns;
    net_conns = c;
    TRACE("client %d opens #%d to %s", c->client->id, c->id, addresses[c->address].text);
    *out = &c->transport;
    return DFL_OK;
}

struct dfl_net net_of(struct client *client)
{
    return (struct dfl_net){client, net_open};
}

/* -------------------------------------------------------- the server's end */

void net_to_client(struct conn *c, const char *bytes, size_t len)
{
    if (c->server_closed || c->server_error)
        return;
    if (c->client_closed && sim_now > c->last_at[TO_SERVER]) {
        send_chunk(c, TO_SERVER, CHUNK_RESET, NULL, 0); /* nobody there any more */
        return;
    }
    send_bytes(c, TO_CLIENT, bytes, len);
}

void net_server_close(struct conn *c, bool silently)
{
    bool unread = c->to_server.end > c->to_server.start;

    if (c->server_closed)
        return;
    c->server_closed = true;
    if (silently || c->server_error)
        return;
    send_chunk(c, TO_CLIENT, unread ? CHUNK_RESET : CHUNK_END, NULL, 0);
}

/* ------------------------------------------------------------------ faults */

static void keepalive_failed(void *arg, uint64_t n)
{
    struct conn *c = arg;

    (void)n;
    if (c->server && !c->server_closed && !c->server_error)
        broken_at_server(c);
}

void net_client_crash(struct conn *c, bool silently)
{
    end_client(c, silently);
    if (silently && c->server)
        sim_at(sim_now + SERVER_KEEPALIVE, keepalive_failed, c, 0);
}

static void noted(struct conn *c)
{
    if (c->cut_us == 0)
        c->cut_us = sim_now;
}

void net_cut(struct conn *c, enum direction way)
{
    noted(c);
    outage_add(&c->away, FOR_EVER);
    c->cut[way] = true;
    TRACE("network: #%d cut on its way to the %s", c->id, way == TO_SERVER ? "server" : "client");
    sim_at(sim_now + USER_TIMEOUT + SECOND, user_timeout, c, 0);
    sim_at(sim_now + SERVER_KEEPALIVE, keepalive_failed, c, 0);
}

void net_half_close(struct conn *c, enum direction way)
{
    noted(c);
    TRACE("network: #%d half closed towards the %s", c->id, way == TO_SERVER ? "server" : "client");
    send_chunk(c, way, CHUNK_END, NULL, 0);
}

void net_reset(struct conn *c)
{
    noted(c);
    TRACE("network: #%d reset", c->id);
    send_chunk(c, TO_SERVER, CHUNK_RESET, NULL, 0);
    send_chunk(c, TO_CLIENT, CHUNK_RESET, NULL, 0);
}

void net_partition(struct client *client, int address, enum direction way, int64_t until)
{
    TRACE("network: client %d and %s parted towards the %s until %.3f", client->id, addresses[address].text,
          way == TO_SERVER ? "server" : "client", (double)until / 1e6);
    outage_add(&client->away[address], until);
    for (struct conn *c = net_conns; c; c = c->next) {
        if (c->client == client && c->address == address)
            outage_add(&c->away, until);
    }
    if (until > client->heal[address][way])
        client->heal[address][way] = until;
}

/* ------------------------------------------------------- what is not simulated */

/* The engine's way to real sockets and TLS, not linked in here: nothing of a schedule can leave this process. */
const struct dfl_net *dfl_net_sockets(void)
{
    sim_fault("transport", "the engine asks for real sockets");
}

struct dfl_tls *dfl_tls_retain(struct dfl_tls *tls)
{
    return tls;
}

void dfl_tls_release(struct dfl_tls *tls)
{
    (void)tls;
}
