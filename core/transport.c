/*
 * transport.c - plain TCP as a struct dfl_transport, and the only file with socket calls.
 *
 * Owns the descriptors of a connection: its own, and those of the name look-up before it. Tries
 * every address of a name in turn under the caller's one deadline. Never waits, never raises
 * SIGPIPE, reads no clock.
 */
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE
#endif
#include "transport.h"

#include <ares.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "resolve.h"

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0 /* those systems have SO_NOSIGPIPE, set in tune() */
#endif

#define KEEPALIVE_IDLE_S 7
#define KEEPALIVE_INTERVAL_S 3
#define KEEPALIVE_PROBES 3
#define USER_TIMEOUT_MS 16000

enum tcp_state { TCP_NEW, TCP_RESOLVING, TCP_CONNECTING, TCP_OPEN, TCP_FAILED };

struct tcp {
    struct dfl_transport base;
    const struct dfl_net_options *options;
    enum tcp_state state;
    const char *step;
    char host[DFL_ADDRESS_MAX];
    char peer[DFL_ADDRESS_MAX + 8]; /* "host:port", for messages */
    uint16_t port;
    struct dfl_sockets sockets;
    struct dfl_resolver *resolver;
    struct dfl_socket_address *list; /* addresses to try */
    int *failed;                     /* errno of each one that was tried */
    size_t count, next;
    int fd;             /* the attempt, or the connection; -1 = none */
    int64_t give_up_ms; /* when this address has used up its share */
    int64_t wake_ms;
    bool write_failed; /* reading goes on: what the peer said before it closed is still there */
};

/* ------------------------------------------------------------------ errors */

const char *dfl_errno_text(int error, char *buf, size_t cap)
{
    static const struct {
        int error;
        const char *text;
    } known[] = {
        {ECONNREFUSED, "connection refused"},
        {ECONNRESET, "connection reset by peer"},
        {ECONNABORTED, "software caused connection abort"},
        {ETIMEDOUT, "connection timed out"},
        {EPIPE, "broken pipe"},
        {ENETUNREACH, "network is unreachable"},
        {EHOSTUNREACH, "no route to host"},
        {ENETDOWN, "network is down"},
        {EHOSTDOWN, "host is down"},
        {EADDRNOTAVAIL, "cannot assign requested address"},
        {EAFNOSUPPORT, "address family not supported by protocol"},
        {EACCES, "permission denied"},
        {EPERM, "operation not permitted"},
        {EMFILE, "too many open files"},
        {ENFILE, "too many open files in system"},
        {ENOBUFS, "no buffer space available"},
        {ENOMEM, "cannot allocate memory"},
        {EINVAL, "invalid argument"},
        {ENOENT, "no such file or directory"},
        {ENOTDIR, "not a directory"},
        {EISDIR, "is a directory"},
        {EIO, "input/output error"},
        {ELOOP, "too many levels of symbolic links"},
        {ENAMETOOLONG, "file name too long"},
    };

    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].error == error)
            return known[i].text;
    snprintf(buf, cap, "%s", strerror(error));
    if (cap > 1 && isupper((unsigned char)buf[0]) && islower((unsigned char)buf[1]))
        buf[0] = (char)tolower((unsigned char)buf[0]);
    return buf;
}

/* ------------------------------------------------------ descriptors of one transport */

void dfl_sockets_init(struct dfl_sockets *set)
{
    memset(set, 0, sizeof *set);
    for (size_t i = 0; i < DFL_SOCKETS_MAX; i++)
        atomic_init(&set->at[i].fd, -1);
}

/* The entry of a descriptor that its owner has not given up, or NULL. */
static struct dfl_socket *entry_of(struct dfl_sockets *set, int fd)
{
    for (size_t i = 0; fd >= 0 && i < set->used; i++)
        if (atomic_load(&set->at[i].fd) == fd && !set->at[i].retired)
            return &set->at[i];
    return NULL;
}

/* The first free entry, if the owner has fewer than interest() can show. */
static struct dfl_socket *free_entry(struct dfl_sockets *set)
{
    struct dfl_socket *found = NULL;
    size_t owned = 0;

    for (size_t i = 0; i < DFL_SOCKETS_MAX; i++) {
        if (atomic_load(&set->at[i].fd) < 0)
            found = found ? found : &set->at[i];
        else if (!set->at[i].retired)
            owned++;
    }
    return owned < DFL_INTEREST_MAX ? found : NULL;
}

static int new_socket(int family, int type, int protocol)
{
#if defined(SOCK_CLOEXEC) && defined(SOCK_NONBLOCK)
    return socket(family, type | SOCK_CLOEXEC | SOCK_NONBLOCK, protocol);
#else
    int fd = socket(family, type, protocol);

    if (fd >= 0) {
        fcntl(fd, F_SETFD, FD_CLOEXEC);
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    }
    return fd;
#endif
}

int dfl_sockets_open(struct dfl_sockets *set, int family, int type, int protocol)
{
    struct dfl_socket *s = free_entry(set);
    int fd;

    if (!s) {
        errno = EMFILE;
        return -1;
    }
    fd = new_socket(family, type, protocol);
    if (fd < 0)
        return -1;
    s->events = 0;
    s->shown = s->retired = false;
    atomic_store(&s->fd, fd);
    if ((size_t)(s - set->at) >= set->used)
        set->used = (size_t)(s - set->at) + 1;
    return fd;
}

void dfl_sockets_want(struct dfl_sockets *set, int fd, unsigned events)
{
    struct dfl_socket *s = entry_of(set, fd);

    if (s)
        s->events = events;
}

/* The entry is cleared first: a child forked in between must not close somebody else's number. */
static void close_entry(struct dfl_socket *s)
{
    int fd = atomic_exchange(&s->fd, -1);

    s->events = 0;
    s->shown = s->retired = false;
    if (fd >= 0)
        close(fd);
}

void dfl_sockets_drop(struct dfl_sockets *set, int fd)
{
    struct dfl_socket *s = entry_of(set, fd);

    if (!s)
        return;
    if (s->shown)
        s->retired = true;
    else
        close_entry(s);
}

void dfl_sockets_sweep(struct dfl_sockets *set)
{
    for (size_t i = 0; i < set->used; i++)
        if (set->at[i].retired && !set->at[i].shown)
            close_entry(&set->at[i]);
}

size_t dfl_sockets_interest(struct dfl_sockets *set, struct dfl_interest *out)
{
    size_t n = 0;

    for (size_t i = 0; i < set->used; i++) {
        struct dfl_socket *s = &set->at[i];
        int fd = atomic_load(&s->fd);

        s->shown = fd >= 0 && !s->retired && s->events != 0 && n < DFL_INTEREST_MAX;
        if (s->shown) {
            out[n].fd = fd;
            out[n].events = s->events;
            n++;
        }
    }
    return n;
}

void dfl_sockets_close(struct dfl_sockets *set)
{
    for (size_t i = 0; i < DFL_SOCKETS_MAX; i++)
        close_entry(&set->at[i]);
}

void dfl_sockets_abandon(struct dfl_sockets *set)
{
    for (size_t i = 0; i < DFL_SOCKETS_MAX; i++) {
        int fd = atomic_load(&set->at[i].fd);

        if (fd >= 0)
            close(fd);
    }
}

/* -------------------------------------------------- the sockets of a look-up */

static ares_socket_t dns_socket(int family, int type, int protocol, void *set)
{
    return dfl_sockets_open(set, family, type, protocol);
}

static int dns_close(ares_socket_t fd, void *set)
{
    dfl_sockets_drop(set, fd);
    return 0;
}

static int dns_connect(ares_socket_t fd, const struct sockaddr *to, ares_socklen_t len, void *set)
{
    (void)set;
    return connect(fd, to, len);
}

static ares_ssize_t dns_receive(ares_socket_t fd, void *buf, size_t cap, int flags,
                                struct sockaddr *from, ares_socklen_t *len, void *set)
{
    (void)set;
    return recvfrom(fd, buf, cap, flags, from, len);
}

/* c-ares' own call is writev(2), which raises SIGPIPE on a look-up over TCP. */
static ares_ssize_t dns_send(ares_socket_t fd, const struct iovec *parts, int count, void *set)
{
    struct msghdr message;
    struct iovec copy[16];

    (void)set;
    if (count < 0 || (size_t)count > sizeof copy / sizeof *copy)
        count = sizeof copy / sizeof *copy; /* a short write: c-ares sends the rest later */
    memcpy(copy, parts, (size_t)count * sizeof *copy);
    memset(&message, 0, sizeof message);
    message.msg_iov = copy;
    message.msg_iovlen = (size_t)count;
    return sendmsg(fd, &message, MSG_NOSIGNAL);
}

const struct ares_socket_functions dfl_dns_socket_functions = {
    .asocket = dns_socket,
    .aclose = dns_close,
    .aconnect = dns_connect,
    .arecvfrom = dns_receive,
    .asendv = dns_send,
};

/* ----------------------------------------------------------------- connect */

static struct tcp *tcp_of(struct dfl_transport *t)
{
    return (struct tcp *)t; /* base is the first member */
}

static void set_int(int fd, int level, int option, int value)
{
    /* Best effort: these notice a dead peer sooner, but no promise of the engine rests on them. */
    (void)setsockopt(fd, level, option, &value, sizeof value);
}

static void tune(int fd)
{
    set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    set_int(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
#if defined(TCP_KEEPIDLE)
    set_int(fd, IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE_S);
#elif defined(TCP_KEEPALIVE)
    set_int(fd, IPPROTO_TCP, TCP_KEEPALIVE, KEEPALIVE_IDLE_S);
#endif
#ifdef TCP_KEEPINTVL
    set_int(fd, IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S);
    set_int(fd, IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_PROBES);
#endif
#ifdef TCP_USER_TIMEOUT
    set_int(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, USER_TIMEOUT_MS);
#endif
#ifdef SO_NOSIGPIPE
    set_int(fd, SOL_SOCKET, SO_NOSIGPIPE, 1);
#endif
}

static enum dfl_io failed_io(struct tcp *t, enum dfl_status status, const char *step,
                             const char *reason)
{
    dfl_fail(&t->base.error, status, "%s %s: %s", step, t->peer, reason);
    t->state = TCP_FAILED;
    t->wake_ms = INT64_MAX;
    return DFL_IO_ERROR;
}

/* Opens a socket and begins to connect it. 0: connected at once; EINPROGRESS; else why not. */
static int begin_attempt(struct tcp *t, struct dfl_now now, int64_t deadline_ms)
{
    const struct dfl_socket_address *a = &t->list[t->next];

    t->fd = dfl_sockets_open(&t->sockets, a->u.any.sa_family, SOCK_STREAM, IPPROTO_TCP);
    if (t->fd < 0)
        return errno;
    tune(t->fd);
    t->give_up_ms = now.ms + (deadline_ms - now.ms) / (int64_t)(t->count - t->next);
    dfl_sockets_want(&t->sockets, t->fd, DFL_WRITABLE);
    if (connect(t->fd, &a->u.any, a->len) == 0)
        return 0;
    return errno == EINTR ? EINPROGRESS : errno;
}

bool dfl_socket_is_own_peer(int fd)
{
    struct dfl_socket_address here, there;

    memset(&here, 0, sizeof here);
    memset(&there, 0, sizeof there);
    here.len = there.len = sizeof here.u;
    if (getsockname(fd, &here.u.any, &here.len) != 0 ||
        getpeername(fd, &there.u.any, &there.len) != 0)
        return false;
    return here.len == there.len && memcmp(&here.u, &there.u, here.len) == 0;
}

static int check_attempt(const struct tcp *t, struct dfl_now now)
{
    struct pollfd p = {.fd = t->fd, .events = POLLOUT};
    int error = 0;
    socklen_t len = sizeof error;

    if (poll(&p, 1, 0) <= 0)
        return now.ms >= t->give_up_ms ? ETIMEDOUT : EINPROGRESS;
    if (getsockopt(t->fd, SOL_SOCKET, SO_ERROR, &error, &len) != 0)
        return errno;
    return error;
}

/* Every address failed: their one reason, or each with its own. */
static enum dfl_io all_failed(struct tcp *t, size_t tried)
{
    char text[DFL_ERROR_MAX / 2], buf[128], where[DFL_SOCKET_ADDRESS_TEXT];
    size_t used = 0;
    bool same = true;

    for (size_t i = 1; i < tried; i++)
        same = same && t->failed[i] == t->failed[0];
    if (same)
        return failed_io(t, DFL_UNREACHABLE, "connect to",
                         dfl_errno_text(t->failed[0], buf, sizeof buf));
    for (size_t i = 0; i < tried && used < sizeof text; i++)
        used += (size_t)snprintf(text + used, sizeof text - used, "%s%s: %s", i > 0 ? "; " : "",
                                 dfl_socket_address_text(&t->list[i], where),
                                 dfl_errno_text(t->failed[i], buf, sizeof buf));
    return failed_io(t, DFL_UNREACHABLE, "connect to", text);
}

static enum dfl_io try_addresses(struct tcp *t, struct dfl_now now, int64_t deadline_ms)
{
    while (t->next < t->count) {
        int error = t->fd < 0 ? begin_attempt(t, now, deadline_ms) : check_attempt(t, now);

        if (error == 0 && dfl_socket_is_own_peer(t->fd))
            error = ECONNREFUSED; /* nobody else is there */
        if (error == 0) {
            t->state = TCP_OPEN;
            t->step = "connected";
            t->wake_ms = INT64_MAX;
            return DFL_IO_DONE;
        }
        if (error == EINPROGRESS) {
            t->wake_ms = t->give_up_ms;
            return DFL_IO_AGAIN;
        }
        t->failed[t->next++] = error;
        dfl_sockets_drop(&t->sockets, t->fd);
        t->fd = -1;
        if (now.ms >= deadline_ms)
            break;
    }
    return all_failed(t, t->next);
}

static enum dfl_io take_list(struct tcp *t, struct dfl_socket_address *list, size_t count)
{
    t->list = list;
    t->count = count;
    t->failed = calloc(count, sizeof *t->failed);
    if (!list || !t->failed)
        return failed_io(t, DFL_NOMEM, "connect to", "out of memory");
    t->state = TCP_CONNECTING;
    t->step = "connect";
    return DFL_IO_DONE;
}

/* Literals need no look-up; everything else starts one. */
static enum dfl_io begin_resolve(struct tcp *t, struct dfl_now now, int64_t deadline_ms)
{
    struct dfl_socket_address literal[DFL_RESOLVE_LITERAL_MAX];
    struct dfl_error why;
    size_t n = dfl_resolve_literal(t->host, t->port, literal);
    enum dfl_status status;

    if (n > 0) {
        struct dfl_socket_address *list = malloc(n * sizeof *list);

        if (list)
            memcpy(list, literal, n * sizeof *list);
        return take_list(t, list, n);
    }
    t->state = TCP_RESOLVING;
    t->step = "resolve";
    status = dfl_resolver_new(t->host, t->port, deadline_ms - now.ms, t->options, &t->sockets,
                              &t->resolver, &why);
    if (status != DFL_OK)
        return failed_io(t, status, "resolve", why.text);
    return DFL_IO_DONE;
}

static enum dfl_io go_on_resolving(struct tcp *t, struct dfl_now now, int64_t deadline_ms)
{
    struct dfl_socket_address *list = NULL;
    struct dfl_error why;
    size_t count = 0;
    enum dfl_status status = dfl_resolver_run(t->resolver, now, &list, &count, &why);

    if (status == DFL_PENDING && now.ms < deadline_ms) {
        t->wake_ms = dfl_resolver_wake_ms(t->resolver);
        if (t->wake_ms > deadline_ms)
            t->wake_ms = deadline_ms;
        return DFL_IO_AGAIN;
    }
    dfl_resolver_free(t->resolver);
    t->resolver = NULL;
    if (status == DFL_PENDING)
        return failed_io(t, DFL_UNREACHABLE, "resolve", "no name server answered in time");
    if (status != DFL_OK)
        return failed_io(t, status, "resolve", why.text);
    return take_list(t, list, count);
}

static enum dfl_io tcp_connect(struct dfl_transport *base, struct dfl_now now, int64_t deadline_ms)
{
    struct tcp *t = tcp_of(base);
    enum dfl_io io = DFL_IO_DONE;

    if (t->state == TCP_FAILED)
        return DFL_IO_ERROR;
    dfl_sockets_sweep(&t->sockets);
    if (t->state == TCP_NEW)
        io = begin_resolve(t, now, deadline_ms);
    if (io == DFL_IO_DONE && t->state == TCP_RESOLVING)
        io = go_on_resolving(t, now, deadline_ms);
    if (io == DFL_IO_DONE && t->state == TCP_CONNECTING)
        io = try_addresses(t, now, deadline_ms);
    return io;
}

/* ------------------------------------------------------------ read and write */

static bool not_now(int error)
{
    return error == EAGAIN || error == EWOULDBLOCK;
}

/* True when bytes can flow; otherwise *io says what to return. */
static bool may_flow(struct tcp *t, const char *step, enum dfl_io *io)
{
    *io = t->state == TCP_FAILED ? DFL_IO_ERROR : DFL_IO_AGAIN;
    if (t->state != TCP_OPEN)
        return false;
    t->step = step;
    dfl_sockets_sweep(&t->sockets);
    return true;
}

static enum dfl_io tcp_read(struct dfl_transport *base, void *buf, size_t cap, size_t *got)
{
    struct tcp *t = tcp_of(base);
    char text[128];
    enum dfl_io io;
    ssize_t n;

    if (!may_flow(t, "read", &io))
        return io;
    do
        n = recv(t->fd, buf, cap, 0);
    while (n < 0 && errno == EINTR);
    if (n > 0) {
        *got = (size_t)n;
        return DFL_IO_DONE;
    }
    if (n == 0)
        return DFL_IO_EOF;
    if (not_now(errno))
        return DFL_IO_AGAIN;
    return failed_io(t, DFL_BROKEN, "read from", dfl_errno_text(errno, text, sizeof text));
}

static enum dfl_io tcp_write(struct dfl_transport *base, const void *buf, size_t len, size_t *put)
{
    struct tcp *t = tcp_of(base);
    char text[128];
    enum dfl_io io;
    ssize_t n;

    if (!may_flow(t, "write", &io))
        return io;
    if (t->write_failed)
        return DFL_IO_ERROR;
    do
        n = send(t->fd, buf, len, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    if (n >= 0) {
        *put = (size_t)n;
        return DFL_IO_DONE;
    }
    if (not_now(errno))
        return DFL_IO_AGAIN;
    t->write_failed = true;
    dfl_fail(&base->error, DFL_BROKEN, "write to %s: %s", t->peer,
             dfl_errno_text(errno, text, sizeof text));
    return DFL_IO_ERROR;
}

/* ------------------------------------------------------------------ the rest */

static size_t tcp_interest(struct dfl_transport *base, bool want_write, struct dfl_interest *out)
{
    struct tcp *t = tcp_of(base);

    if (t->state == TCP_FAILED)
        dfl_sockets_want(&t->sockets, t->fd, 0);
    else if (t->state == TCP_OPEN)
        dfl_sockets_want(&t->sockets, t->fd,
                         DFL_READABLE | (want_write && !t->write_failed ? DFL_WRITABLE : 0));
    return dfl_sockets_interest(&t->sockets, out);
}

static bool tcp_buffered(struct dfl_transport *base)
{
    (void)base;
    return false;
}

static int64_t tcp_wake_ms(struct dfl_transport *base)
{
    return tcp_of(base)->wake_ms;
}

static const char *tcp_step(struct dfl_transport *base)
{
    return tcp_of(base)->step;
}

static void tcp_close(struct dfl_transport *base)
{
    struct tcp *t = tcp_of(base);

    dfl_resolver_free(t->resolver);
    dfl_sockets_close(&t->sockets);
    free(t->list);
    free(t->failed);
    free(t);
}

static void tcp_abandon(struct dfl_transport *base)
{
    dfl_sockets_abandon(&tcp_of(base)->sockets);
}

static const struct dfl_transport_ops tcp_ops = {
    .connect = tcp_connect,
    .read = tcp_read,
    .write = tcp_write,
    .interest = tcp_interest,
    .buffered = tcp_buffered,
    .wake_ms = tcp_wake_ms,
    .step = tcp_step,
    .close = tcp_close,
    .abandon = tcp_abandon,
};

static struct tcp *tcp_new(const struct dfl_endpoint *ep, const struct dfl_net_options *options)
{
    struct tcp *t = calloc(1, sizeof *t);
    bool v6 = strchr(ep->host, ':') != NULL;

    if (!t)
        return NULL;
    t->base.ops = &tcp_ops;
    t->options = options;
    t->step = "connect";
    t->port = ep->port;
    t->fd = -1;
    t->wake_ms = INT64_MAX;
    snprintf(t->host, sizeof t->host, "%s", ep->host);
    snprintf(t->peer, sizeof t->peer, v6 ? "[%s]:%u" : "%s:%u", t->host, (unsigned)ep->port);
    dfl_sockets_init(&t->sockets);
    return t;
}

enum dfl_status dfl_tcp_open_list(const struct dfl_endpoint *ep,
                                  const struct dfl_socket_address *list, size_t count,
                                  struct dfl_transport **out)
{
    struct tcp *t = tcp_new(ep, NULL);
    struct dfl_socket_address *copy = malloc(count * sizeof *copy);

    if (copy)
        memcpy(copy, list, count * sizeof *copy);
    if (!t || !copy || take_list(t, copy, count) != DFL_IO_DONE) {
        if (t)
            tcp_close(&t->base);
        else
            free(copy);
        return DFL_NOMEM;
    }
    *out = &t->base;
    return DFL_OK;
}

static enum dfl_status open_transport(void *ctx, const struct dfl_endpoint *ep, struct dfl_tls *tls,
                                      struct dfl_transport **out, struct dfl_error *err)
{
    struct tcp *t = tcp_new(ep, ctx);

    if (!t)
        return dfl_fail(err, DFL_NOMEM, "out of memory");
    if (tls)
        return dfl_tls_wrap_peer(tls, &t->base, t->host, t->peer, out, err);
    *out = &t->base;
    return DFL_OK;
}

const struct dfl_net *dfl_net_sockets(void)
{
    static const struct dfl_net sockets = {.ctx = NULL, .open = open_transport};

    return &sockets;
}
