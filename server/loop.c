/*
 * loop.c - the loop of loop.h: wait, handle what is ready, send. Owns the connections, the listener
 * and the epoll descriptor; the bytes' meaning is the protocol's. Every connection has at most one
 * timer, which is moved only when it would ring too late: a connection in use costs the heap
 * nothing.
 *
 * What a connection may cost is bounded: it is not read while it does not take its answers, nor
 * beyond a few kilobytes while a request of it blocks.
 */
#include "loop.h"

#include "../core/planted.h"
#include "../core/timers.h"
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define EVENTS 256
#define CHUNK 16384         /* bytes read at a time, as much as one TLS record has */
#define BEHIND_BLOCKED 4096 /* bytes accepted behind a request that blocks */
#define ACCEPTS 64          /* new connections per round */
#define ACCEPT_PAUSE_MS 100 /* when there are no descriptors even to refuse with */
#define LINGER_MS 1000      /* a closed client may take so long to read the last answer */
#define LINGER_BYTES 262144 /* and may still send so much */
#define NEWS_MS 100         /* when its time is up, for an event of it that is to be handled yet */

struct conn {
    struct dfl_link link; /* of the loop's connections, or of its dead */
    int fd;
    uint32_t events;   /* watched now */
    struct peer *peer; /* NULL: over */
    struct tls *tls;
    struct dfl_timer timer;
    int64_t progress_ms; /* the last time that something was sent, or had to be */
    int64_t linger_ms;   /* closed for us, until then for the client; 0 = no */
    size_t linger_bytes; /* thrown away since */
    bool shaking;        /* TLS handshake; owes_since_ms counts */
    bool wants_write;    /* TLS, to be able to read */
    bool eof;
};

struct loop {
    struct loop_config config;
    struct protocol protocol;
    struct dfl_timers timers;
    struct dfl_link conns, dead;
    struct dfl_link again; /* peers that have more to do, but not in this round */
    size_t count;
    int epoll, listener, signals, reserve;
    int64_t accept_again_ms; /* the listener is not watched until then; 0 = it is */
    struct log_limit said_full, said_tls, said_accept;
    bool stop;
    char chunk[CHUNK];
};

/* The tags of epoll events that are no connection. */
static char listener_tag, signal_tag;

/* --------------------------------------------------------------- interests */

static uint32_t wanted_events(const struct conn *c)
{
    const struct peer *p = c->peer;
    uint32_t events = 0;

    if (c->linger_ms)
        return EPOLLIN;
    if (outbuf_left(&p->out) > 0 || c->wants_write)
        events |= EPOLLOUT;
    else if (!c->eof && !p->closing && !p->more)
        events |= EPOLLIN | EPOLLRDHUP;
    if (p->blocked && !c->eof)
        events |= EPOLLIN | EPOLLRDHUP; /* its close must be seen at once */
    return events;
}

static int64_t deadline_of(const struct loop *l, const struct conn *c)
{
    const struct peer *p = c->peer;

    if (c->linger_ms)
        return c->linger_ms;
    if (p->closing && p->close_at_ms)
        return p->close_at_ms;
    if ((DFL_PLANTED(31) && outbuf_left(&p->out) > 0) || (DFL_PLANTED(38) && c->shaking))
        return INT64_MAX;
    if (outbuf_left(&p->out) > 0)
        return l->config.write_timeout_ms ? c->progress_ms + l->config.write_timeout_ms : INT64_MAX;
    if (p->blocked || p->more)
        return INT64_MAX;
    return p->owes_since_ms + l->config.read_timeout_ms;
}

static void update(struct loop *l, struct conn *c)
{
    uint32_t events = wanted_events(c);
    int64_t deadline = deadline_of(l, c);

    if (events != c->events) {
        struct epoll_event e = {.events = events, .data.ptr = c};

        epoll_ctl(l->epoll, EPOLL_CTL_MOD, c->fd, &e);
        c->events = events;
    }
    if (deadline != INT64_MAX && (c->timer.index == 0 || c->timer.at_ms > deadline))
        dfl_timer_set(&l->timers, &c->timer, deadline);
}

/* --------------------------------------------------------------------- end */

/* The descriptor is closed now; the memory stays until the round is over, for events that name it.
 */
static void end_conn(struct loop *l, struct conn *c, struct dfl_now now)
{
    struct peer *p = c->peer;

    c->peer = NULL;
    dfl_timer_clear(&l->timers, &c->timer);
    dfl_list_append(&l->dead, &c->link);
    l->count--;
    if (c->tls) {
        if (!c->shaking)
            tls_finish(c->tls);
        tls_free(c->tls);
    }
    close(c->fd);
    if (p)
        l->protocol.gone(p, now);
}

/*
 * We have said our last: what the client still sends is thrown away for a moment, because closing a
 * socket with unread bytes would take the answer with it.
 */
static void begin_linger(struct loop *l, struct conn *c, struct dfl_now now)
{
    if (c->eof) {
        end_conn(l, c, now);
        return;
    }
    if (c->tls)
        tls_finish(c->tls);
    shutdown(c->fd, SHUT_WR);
    c->linger_ms = now.ms + LINGER_MS;
    update(l, c);
}

/* ----------------------------------------------------------------- sending */

static bool send_some(struct conn *c, size_t *put, bool *again)
{
    struct outbuf *o = &c->peer->out;

    *again = false;
    if (c->tls) {
        enum tls_io io = tls_write(c->tls, o->bytes + o->start, outbuf_left(o), put);

        *again = io == TLS_WANT_WRITE || io == TLS_WANT_READ;
        return io == TLS_DONE || *again;
    }

    ssize_t n = send(c->fd, o->bytes + o->start, outbuf_left(o), MSG_NOSIGNAL | MSG_DONTWAIT);

    if (n >= 0)
        *put = (size_t)n;
    else
        *again = errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
    return n >= 0 || *again;
}

/* Sends what the socket takes. False: the connection is broken. */
static bool flush(struct conn *c, struct dfl_now now)
{
    struct outbuf *o = &c->peer->out;

    while (outbuf_left(o) > 0) {
        size_t put;
        bool again;

        if (!send_some(c, &put, &again))
            return false;
        if (again)
            break;
        outbuf_sent(o, put);
        c->progress_ms = now.ms;
    }
    return true;
}

static void make_ready(struct loop *l, struct conn *c)
{
    if (dfl_list_empty(&c->peer->ready))
        dfl_list_append(l->protocol.ready, &c->peer->ready);
}

/* A request blocks, and its client has gone or sends too much behind it. */
static bool overstayed(const struct conn *c)
{
    const struct peer *p = c->peer;

    if (DFL_PLANTED(37) && c->eof)
        return false;
    return p->blocked &&
           (c->eof || (dfl_line_reader_left(&p->in) > BEHIND_BLOCKED && !DFL_PLANTED(36)));
}

/* What comes next for a peer whose answers are on their way. */
static void settle_peer(struct loop *l, struct conn *c, struct dfl_now now)
{
    struct peer *p = c->peer;
    bool sent = outbuf_left(&p->out) == 0;

    if (DFL_PLANTED(33) && p->close_at_ms > now.ms)
        usleep((useconds_t)(p->close_at_ms - now.ms) * 1000);
    if (overstayed(c)) {
        end_conn(l, c, now);
    } else if (sent && p->closing && now.ms >= p->close_at_ms) {
        begin_linger(l, c, now);
    } else if (sent && c->eof && !p->more && !p->closing && !DFL_PLANTED(37)) {
        end_conn(l, c, now);
    } else {
        if (sent && p->more && dfl_list_empty(&p->ready))
            dfl_list_append(&l->again, &p->ready);
        update(l, c);
    }
}

/* Runs the protocol on what has come, and sends what it answers. What was left over last time goes
 * first. */
static void handle_peer(struct loop *l, struct peer *p, struct dfl_now now)
{
    struct conn *c = p->conn;
    bool ok = true;

    if (c->linger_ms || c->shaking)
        return;
    if (c->events & EPOLLOUT)
        ok = flush(c, now);
    if (ok && (outbuf_left(&p->out) == 0 || !(c->events & EPOLLOUT))) {
        c->progress_ms = now.ms;
        l->protocol.run(p, now);
        ok = !p->broken && flush(c, now);
    }
    if (ok)
        settle_peer(l, c, now);
    else
        end_conn(l, c, now);
}

/* Whoever has something to do; he who is not done then gets his next turn after everybody else. */
static void handle_ready(struct loop *l, struct dfl_now now)
{
    while (!dfl_list_empty(l->protocol.ready)) {
        struct dfl_link *first = l->protocol.ready->next;

        dfl_link_remove(first);
        handle_peer(l, DFL_CONTAINER(first, struct peer, ready), now);
    }
    while (!dfl_list_empty(&l->again))
        dfl_list_append(l->protocol.ready, l->again.next);
}

/* --------------------------------------------------------------- receiving */

enum got { GOT_SOME, GOT_NOTHING, GOT_EOF, GOT_BROKEN };

static enum got receive_tls(struct conn *c, char *buf, size_t cap, size_t *n)
{
    enum tls_io io = tls_read(c->tls, buf, cap, n);

    c->wants_write = io == TLS_WANT_WRITE;
    switch (io) {
    case TLS_DONE:
        return GOT_SOME;
    case TLS_EOF:
        return GOT_EOF;
    case TLS_ERROR:
        return GOT_BROKEN;
    default:
        return GOT_NOTHING;
    }
}

static enum got receive(struct conn *c, char *buf, size_t cap, size_t *n)
{
    if (c->tls)
        return receive_tls(c, buf, cap, n);

    ssize_t got = recv(c->fd, buf, cap, MSG_DONTWAIT);

    if (got > 0) {
        *n = (size_t)got;
        return GOT_SOME;
    }
    if (got == 0)
        return GOT_EOF;
    return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? GOT_NOTHING : GOT_BROKEN;
}

static bool keep(struct peer *p, const char *bytes, size_t n)
{
    char *at;
    size_t room;

    if (dfl_line_reader_space(&p->in, n, &at, &room) != DFL_OK)
        return false;
    memcpy(at, bytes, n);
    dfl_line_reader_added(&p->in, n);
    return true;
}

static void read_conn(struct loop *l, struct conn *c, struct dfl_now now)
{
    size_t n;

    switch (receive(c, l->chunk, sizeof l->chunk, &n)) {
    case GOT_SOME:
        if (DFL_PLANTED(32))
            c->peer->owes_since_ms = now.ms;
        if (!keep(c->peer, l->chunk, n))
            end_conn(l, c, now);
        else
            make_ready(l, c);
        break;
    case GOT_EOF:
        c->eof = true;
        make_ready(l, c);
        break;
    case GOT_BROKEN:
        end_conn(l, c, now);
        break;
    case GOT_NOTHING:
        update(l, c);
        break;
    }
}

static void linger_conn(struct loop *l, struct conn *c, struct dfl_now now)
{
    ssize_t n = recv(c->fd, l->chunk, sizeof l->chunk, MSG_DONTWAIT);

    if (n > 0)
        c->linger_bytes += (size_t)n;
    if (n == 0 || c->linger_bytes > LINGER_BYTES || (n < 0 && errno != EAGAIN && errno != EINTR))
        end_conn(l, c, now);
}

static void shake_conn(struct loop *l, struct conn *c, struct dfl_now now)
{
    enum tls_io io = tls_handshake(c->tls);
    unsigned long left_out;

    c->wants_write = io == TLS_WANT_WRITE;
    if (io == TLS_DONE) {
        c->shaking = false;
        c->peer->owes_since_ms = now.ms;
        read_conn(l, c, now); /* a request may have come with the last of the handshake */
    } else if (io == TLS_WANT_READ || io == TLS_WANT_WRITE) {
        update(l, c);
    } else {
        if (log_allowed(&l->said_tls, now.ms, &left_out))
            log_line(LOG_WARN, "tls handshake failed", "reason=\"%s\" more=%lu", tls_reason(),
                     left_out);
        c->shaking = false;
        begin_linger(l, c, now); /* so that the alert, which says why, is not lost in a reset */
    }
}

static void handle_conn(struct loop *l, struct conn *c, uint32_t events, struct dfl_now now)
{
    if (!c->peer)
        return;
    if (c->shaking)
        shake_conn(l, c, now);
    else if (c->linger_ms)
        linger_conn(l, c, now);
    else if (events & (EPOLLERR | EPOLLHUP))
        end_conn(l, c, now);
    else if (c->wants_write || (events & (EPOLLIN | EPOLLRDHUP)))
        read_conn(l, c, now);
    if (c->peer && !c->shaking && !c->linger_ms && (events & EPOLLOUT))
        make_ready(l, c);
}

/* What it has sent or taken and the loop has not been told yet: after a hold-up of the server, more
 * may be waiting than one round takes. */
static bool has_news(const struct conn *c)
{
    struct pollfd p = {.fd = c->fd, .events = (short)c->events}; /* epoll's bits are poll's */

    return poll(&p, 1, 0) > 0;
}

static void ring_conn(struct loop *l, struct conn *c, struct dfl_now now)
{
    struct peer *p = c->peer;

    if (deadline_of(l, c) > now.ms)
        update(l, c); /* it has been in use since the timer was set */
    else if (has_news(c))
        dfl_timer_set(&l->timers, &c->timer, now.ms + NEWS_MS);
    else if (c->linger_ms || c->shaking || outbuf_left(&p->out) > 0)
        end_conn(l, c, now);
    else if (p->closing)
        begin_linger(l, c, now);
    else
        l->protocol.silent(p, now);
}

/* --------------------------------------------------------------- accepting */

static void set_options(int fd)
{
    int on = 1, idle = 60, interval = 10, probes = 6;

    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
}

static struct conn *make_conn(struct loop *l, int fd, struct dfl_now now)
{
    struct conn *c = calloc(1, sizeof *c);

    if (!c || dfl_timers_reserve(&l->timers, l->count + 1) != DFL_OK)
        goto none;
    if (l->config.tls && !(c->tls = tls_accept(l->config.tls, fd)))
        goto none;
    c->peer = l->protocol.open(l->protocol.ctx, now);
    if (c->peer)
        return c;
none:
    if (c && c->tls)
        tls_free(c->tls);
    free(c);
    return NULL;
}

static void add_conn(struct loop *l, int fd, struct dfl_now now)
{
    struct conn *c = NULL;

    if (l->config.max_connections == 0 || l->count < l->config.max_connections)
        c = make_conn(l, fd, now);
    if (!c) {
        close(fd);
        return;
    }
    set_options(fd);
    c->fd = fd;
    c->shaking = c->tls != NULL;
    c->peer->conn = c;
    c->events = EPOLLIN | EPOLLRDHUP;
    dfl_link_init(&c->link);
    dfl_list_append(&l->conns, &c->link);
    l->count++;

    struct epoll_event e = {.events = c->events, .data.ptr = c};

    if (epoll_ctl(l->epoll, EPOLL_CTL_ADD, fd, &e) != 0)
        end_conn(l, c, now);
    else
        update(l, c);
}

static void watch_listener(struct loop *l, bool on)
{
    struct epoll_event e = {.events = on ? EPOLLIN : 0, .data.ptr = &listener_tag};

    epoll_ctl(l->epoll, EPOLL_CTL_MOD, l->listener, &e);
}

static void open_reserve(struct loop *l)
{
    if (l->reserve < 0)
        l->reserve = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

/* Out of descriptors: the one in reserve serves to take a client off the queue and to close it. */
static bool refuse_conn(struct loop *l, struct dfl_now now)
{
    unsigned long left_out;

    if (log_allowed(&l->said_full, now.ms, &left_out))
        log_line(LOG_WARN, "out of descriptors: connection refused", "connections=%zu more=%lu",
                 l->count, left_out);
    if (DFL_PLANTED(35) && !dfl_list_empty(&l->conns))
        end_conn(l, DFL_CONTAINER(l->conns.next, struct conn, link), now);
    close(l->reserve);
    l->reserve = -1;

    int fd = accept4(l->listener, NULL, NULL, SOCK_CLOEXEC);

    if (fd >= 0)
        close(fd);
    open_reserve(l);
    return fd >= 0;
}

/* False: no more now. */
static bool accept_one(struct loop *l, struct dfl_now now)
{
    int fd = accept4(l->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    unsigned long left_out;

    if (fd >= 0) {
        add_conn(l, fd, now);
        return true;
    }
    if (errno == EAGAIN || errno == EWOULDBLOCK || (DFL_PLANTED(34) && errno == EMFILE))
        return false;
    if (errno == EINTR || errno == ECONNABORTED || errno == EPROTO)
        return true;
    if ((errno == EMFILE || errno == ENFILE) && l->reserve >= 0)
        return refuse_conn(l, now);
    if (log_allowed(&l->said_accept, now.ms, &left_out))
        log_line(LOG_ERROR, "accept failed", "error=\"%s\"", strerror(errno));
    watch_listener(l, false);
    l->accept_again_ms = now.ms + ACCEPT_PAUSE_MS;
    return false;
}

static void accept_some(struct loop *l, struct dfl_now now)
{
    open_reserve(l);
    for (int i = 0; i < ACCEPTS && accept_one(l, now); i++)
        ;
}

/* -------------------------------------------------------------------- loop */

static int wait_ms(const struct loop *l, struct dfl_now now)
{
    int64_t times[] = {dfl_timers_next(&l->timers), l->protocol.next_ms(l->protocol.ctx),
                       l->config.wake_ms ? l->config.wake_ms(l->config.ctx) : INT64_MAX,
                       l->accept_again_ms ? l->accept_again_ms : INT64_MAX};
    int64_t next = times[0];

    if (!dfl_list_empty(l->protocol.ready))
        return 0;
    for (size_t i = 1; i < sizeof times / sizeof times[0]; i++)
        next = times[i] < next ? times[i] : next;
    if (next <= now.ms)
        return 0;
    return next - now.ms > 60000 ? 60000 : (int)(next - now.ms);
}

static void take_signals(struct loop *l, struct dfl_now now)
{
    struct signalfd_siginfo info;

    while (read(l->signals, &info, sizeof info) == (ssize_t)sizeof info)
        l->config.on_signal(l->config.ctx, (int)info.ssi_signo, now);
}

static void handle_event(struct loop *l, const struct epoll_event *e, struct dfl_now now)
{
    if (e->data.ptr == &listener_tag)
        accept_some(l, now);
    else if (e->data.ptr == &signal_tag)
        take_signals(l, now);
    else
        handle_conn(l, e->data.ptr, e->events, now);
}

static void ring_timers(struct loop *l, struct dfl_now now)
{
    struct dfl_timer *timer;

    if (l->accept_again_ms && now.ms >= l->accept_again_ms) {
        l->accept_again_ms = 0;
        watch_listener(l, true);
    }
    while ((timer = dfl_timers_pop(&l->timers, now.ms)))
        ring_conn(l, DFL_CONTAINER(timer, struct conn, timer), now);
}

static void bury_dead(struct loop *l)
{
    /* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): each link is off the list before it is freed */
    DFL_EACH(link, &l->dead) {
        dfl_link_remove(link);
        free(DFL_CONTAINER(link, struct conn, link));
    }
}

/* Sends what there is to send, waits for nobody, and closes. */
static void close_all(struct loop *l, struct dfl_now now)
{
    DFL_EACH(link, &l->conns) {
        struct conn *c = DFL_CONTAINER(link, struct conn, link);

        if (!c->shaking && !c->linger_ms)
            flush(c, now);
    }
    while (!dfl_list_empty(&l->conns))
        end_conn(l, DFL_CONTAINER(l->conns.next, struct conn, link), now);
    bury_dead(l);
}

/* Looks at the clock, and has done what is due by it. */
static struct dfl_now tick(struct loop *l)
{
    struct dfl_now now = dfl_clock();

    l->protocol.tick(l->protocol.ctx, now);
    return now;
}

/*
 * The clock is looked at again for the requests that have been read: their senders count leases
 * from the sending, which may have been after the round began. Handshakes take time, and so does a
 * process that is not run. Nobody's time is up before what he sent has been handled.
 */
void loop_run(struct loop *l)
{
    struct epoll_event events[EVENTS];
    struct dfl_now now = dfl_clock();

    for (;;) {
        int n = epoll_wait(l->epoll, events, EVENTS, wait_ms(l, now));

        now = tick(l);
        for (int i = 0; i < n; i++)
            handle_event(l, &events[i], now);
        if (n > 0)
            now = tick(l);
        handle_ready(l, now);
        ring_timers(l, now);
        bury_dead(l);
        if (l->config.finished && l->config.finished(l->config.ctx, now))
            break;
    }
    close_all(l, now);
}

static bool add_watch(struct loop *l, int fd, void *tag)
{
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = tag};

    return epoll_ctl(l->epoll, EPOLL_CTL_ADD, fd, &e) == 0;
}

static bool open_signals(struct loop *l)
{
    sigset_t set;

    sigemptyset(&set);
    for (const int *s = l->config.signals; s && *s; s++)
        sigaddset(&set, *s);
    if (sigprocmask(SIG_BLOCK, &set, NULL) != 0)
        return false;
    l->signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    return l->signals >= 0;
}

enum dfl_status loop_new(const struct loop_config *config, const struct protocol *protocol,
                         int listener, struct loop **out, struct dfl_error *err)
{
    struct loop *l = calloc(1, sizeof *l);

    if (!l) {
        close(listener);
        return dfl_fail(err, DFL_NOMEM, "out of memory");
    }
    l->config = *config;
    l->protocol = *protocol;
    l->listener = listener;
    l->signals = l->reserve = -1;
    dfl_timers_init(&l->timers);
    dfl_link_init(&l->conns);
    dfl_link_init(&l->dead);
    dfl_link_init(&l->again);
    l->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (l->epoll < 0 || !open_signals(l) || !add_watch(l, listener, &listener_tag) ||
        !add_watch(l, l->signals, &signal_tag)) {
        dfl_fail(err, DFL_INTERNAL, "set up the event loop: %s", strerror(errno));
        loop_free(l);
        return DFL_INTERNAL;
    }
    open_reserve(l);
    *out = l;
    return DFL_OK;
}

void loop_free(struct loop *l)
{
    int fds[] = {l->listener, l->signals, l->reserve, l->epoll};

    for (size_t i = 0; i < sizeof fds / sizeof fds[0]; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    dfl_timers_free(&l->timers);
    free(l);
}
