/*
 * netpeer.c - the peers of the transport tests. Owns the sockets and the one thread it is asked to
 * make. Anything that cannot fail on a healthy machine aborts the test program with its line.
 */
#include "netpeer.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

#include "resolve.h"

#define MUST(condition) ((condition) ? (void)0 : give_up(#condition, __LINE__))

static void give_up(const char *what, int line)
{
    fprintf(stderr, "netpeer.c:%d: not true: %s (%s)\n", line, what, strerror(errno));
    abort();
}

int64_t peer_now_ms(void)
{
    return dfl_clock().ms;
}

struct dfl_now peer_at(int64_t ms)
{
    return (struct dfl_now){.ms = ms, .us = ms * 1000, .wall_ms = 0};
}

/* ----------------------------------------------------------------- listeners */

static int bound_socket(int family, uint16_t *port)
{
    struct dfl_socket_address a = peer_address(family == AF_INET6 ? "::1" : "127.0.0.1", 0);
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;

    if (fd < 0)
        return -1;
    if (family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one);
    if (bind(fd, &a.u.any, a.len) != 0) {
        close(fd);
        return -1;
    }
    MUST(getsockname(fd, &a.u.any, &a.len) == 0);
    *port = ntohs(family == AF_INET6 ? a.u.v6.sin6_port : a.u.v4.sin_port);
    return fd;
}

int peer_listen(int family, int backlog, uint16_t *port)
{
    int fd = bound_socket(family, port);

    if (fd < 0)
        return -1;
    MUST(listen(fd, backlog) == 0);
    return fd;
}

int peer_closed_port(uint16_t *port)
{
    int fd = bound_socket(AF_INET, port);

    MUST(fd >= 0);
    return fd;
}

int peer_accept(int listener)
{
    struct pollfd p = {.fd = listener, .events = POLLIN};
    int fd;

    MUST(poll(&p, 1, PATIENCE_MS) == 1);
    fd = accept(listener, NULL, NULL);
    MUST(fd >= 0);
    return fd;
}

struct dfl_socket_address peer_address(const char *literal, uint16_t port)
{
    struct dfl_socket_address out[DFL_RESOLVE_LITERAL_MAX];

    MUST(dfl_resolve_literal(literal, port, out) == 1);
    return out[0];
}

void black_hole_open(struct black_hole *hole)
{
    struct dfl_socket_address a;
    struct pollfd p = {.events = POLLOUT};

    memset(hole, 0, sizeof *hole);
    hole->listener = peer_listen(AF_INET, 0, &hole->port);
    MUST(hole->listener >= 0);
    a = peer_address("127.0.0.1", hole->port);
    do {
        MUST(hole->filled < sizeof hole->fill / sizeof *hole->fill);
        p.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        MUST(p.fd >= 0);
        hole->fill[hole->filled++] = p.fd;
        MUST(connect(p.fd, &a.u.any, a.len) == 0 || errno == EINPROGRESS);
    } while (poll(&p, 1, 300) == 1); /* the first one that gets no answer says that it is full */
}

void black_hole_close(struct black_hole *hole)
{
    for (size_t i = 0; i < hole->filled; i++)
        close(hole->fill[i]);
    close(hole->listener);
}

/* -------------------------------------------------------------------- driving */

void peer_wait(struct dfl_transport *t, bool want_write)
{
    struct dfl_interest in[DFL_INTEREST_MAX];
    struct pollfd fds[DFL_INTEREST_MAX];
    size_t n = t->ops->interest(t, want_write, in);
    int64_t left = t->ops->wake_ms(t) - peer_now_ms();

    for (size_t i = 0; i < n; i++) {
        fds[i].fd = in[i].fd;
        fds[i].events = (short)((in[i].events & DFL_READABLE ? POLLIN : 0) |
                                (in[i].events & DFL_WRITABLE ? POLLOUT : 0));
    }
    poll(fds, n, left < 0 ? 0 : left > PATIENCE_MS ? PATIENCE_MS : (int)left);
}

enum dfl_io peer_connect(struct dfl_transport *t, int64_t timeout_ms)
{
    int64_t deadline = peer_now_ms() + timeout_ms;

    for (;;) {
        int64_t now = peer_now_ms();
        enum dfl_io io = t->ops->connect(t, peer_at(now), deadline);

        if (io != DFL_IO_AGAIN)
            return io;
        MUST(now < deadline);
        peer_wait(t, false);
    }
}

enum dfl_io peer_read(struct dfl_transport *t, void *buf, size_t cap, size_t *got)
{
    int64_t give_up_ms = peer_now_ms() + PATIENCE_MS;
    enum dfl_io io;

    while ((io = t->ops->read(t, buf, cap, got)) == DFL_IO_AGAIN) {
        MUST(peer_now_ms() < give_up_ms);
        peer_wait(t, false);
    }
    return io;
}

size_t peer_descriptors(void)
{
    DIR *dir = opendir("/proc/self/fd");
    size_t n = 0;

    MUST(dir != NULL);
    while (readdir(dir))
        n++;
    closedir(dir);
    return n;
}

/* ---------------------------------------------------------------- name server */

enum { TYPE_A = 1, TYPE_AAAA = 28 };

/* The question's name as text; returns the offset behind the whole question, 0 when it makes no
 * sense. */
static size_t read_question(const unsigned char *q, size_t len, char *name, size_t cap, int *type)
{
    size_t at = 12, used = 0;

    while (at < len && q[at] != 0) {
        size_t label = q[at++];

        if (at + label > len || used + label + 2 > cap)
            return 0;
        if (used > 0)
            name[used++] = '.';
        memcpy(name + used, q + at, label);
        used += label;
        at += label;
    }
    name[used] = '\0';
    if (at + 5 > len)
        return 0;
    *type = q[at + 1] << 8 | q[at + 2];
    return at + 5;
}

static const struct dns_name *known_name(const struct dns_server *s, const char *name)
{
    for (size_t i = 0; i < s->count; i++)
        if (strcasecmp(s->names[i].name, name) == 0)
            return &s->names[i];
    return NULL;
}

/* Appends one address record that points back to the question's name. */
static size_t put_address(unsigned char *out, int type, const char *literal)
{
    static const unsigned char head[] = {0xc0, 12, 0, 0, 0, 1, 0, 0, 0, 60, 0, 0};
    size_t len = type == TYPE_A ? 4 : 16;

    memcpy(out, head, sizeof head);
    out[3] = (unsigned char)type;
    out[11] = (unsigned char)len;
    MUST(inet_pton(type == TYPE_A ? AF_INET : AF_INET6, literal, out + sizeof head) == 1);
    return sizeof head + len;
}

/* Writes the answer to q into out (512 bytes, at least as many as q); 0: say nothing. */
static size_t answer(const struct dns_server *s, const unsigned char *q, size_t len, bool tcp,
                     unsigned char *out)
{
    const struct dns_name *known;
    const char *literal = NULL;
    char name[256];
    int type = 0;
    size_t end = len >= 12 ? read_question(q, len, name, sizeof name, &type) : 0;

    if (end == 0 || end > 400)
        return 0;
    known = known_name(s, name);
    if (known && (known->answer == DNS_MUTE || (tcp && known->answer == DNS_TCP_CUT)))
        return 0;
    memcpy(out, q, end);
    memset(out + 6, 0, 6);
    out[2] = 0x85; /* an answer, authoritative, recursion as asked */
    out[3] = (unsigned char)(!known || known->answer == DNS_NOT_FOUND ? 3
                             : known->answer == DNS_FAILURE           ? 2
                                                                      : 0);
    if (!known || (known->answer != DNS_ADDRESSES && known->answer != DNS_TRUNCATED &&
                   known->answer != DNS_TCP_CUT))
        return end;
    if (!tcp && known->answer != DNS_ADDRESSES) {
        out[2] |= 2;
        return end;
    }
    literal = type == TYPE_A ? known->v4 : type == TYPE_AAAA ? known->v6 : NULL;
    if (literal) {
        out[7] = 1;
        end += put_address(out + end, type, literal);
    }
    return end;
}

static void serve_udp(struct dns_server *s)
{
    unsigned char q[512], out[512];
    struct sockaddr_in from;
    socklen_t from_len = sizeof from;
    ssize_t n = recvfrom(s->udp, q, sizeof q, 0, (struct sockaddr *)&from, &from_len);
    size_t len;

    if (n <= 0)
        return;
    atomic_fetch_add(&s->queries, 1);
    len = answer(s, q, (size_t)n, false, out);
    if (len > 0)
        sendto(s->udp, out, len, 0, (struct sockaddr *)&from, from_len);
}

static bool receive_exactly(int fd, unsigned char *buf, size_t len)
{
    return recv(fd, buf, len, MSG_WAITALL) == (ssize_t)len;
}

/* Answers the queries of one connection, until it closes or one is to be cut. */
static void serve_tcp(struct dns_server *s)
{
    unsigned char q[514], out[514];
    struct linger reset = {.l_onoff = 1, .l_linger = 0};
    int fd = accept(s->tcp, NULL, NULL);

    MUST(fd >= 0);
    while (receive_exactly(fd, q, 2)) {
        size_t len = (size_t)(q[0] << 8 | q[1]);

        if (len > 512 || !receive_exactly(fd, q + 2, len))
            break;
        atomic_fetch_add(&s->tcp_queries, 1);
        len = answer(s, q + 2, len, true, out + 2);
        if (len == 0) {
            setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
            break;
        }
        out[0] = (unsigned char)(len >> 8);
        out[1] = (unsigned char)len;
        send(fd, out, len + 2, MSG_NOSIGNAL);
    }
    close(fd);
}

static void *serve(void *arg)
{
    struct dns_server *s = arg;
    struct pollfd fds[3] = {{.fd = s->udp, .events = POLLIN},
                            {.fd = s->tcp, .events = POLLIN},
                            {.fd = s->stop[0], .events = POLLIN}};

    for (;;) {
        MUST(poll(fds, 3, -1) > 0);
        if (fds[2].revents)
            return NULL;
        if (fds[0].revents)
            serve_udp(s);
        if (fds[1].revents)
            serve_tcp(s);
    }
}

void dns_server_start(struct dns_server *s, const struct dns_name *names, size_t count)
{
    struct dfl_socket_address a;
    uint16_t port;

    s->names = names;
    s->count = count;
    atomic_init(&s->queries, 0);
    atomic_init(&s->tcp_queries, 0);
    for (;;) { /* the same port for both */
        s->tcp = peer_listen(AF_INET, 16, &port);
        MUST(s->tcp >= 0);
        a = peer_address("127.0.0.1", port);
        s->udp = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        MUST(s->udp >= 0);
        if (bind(s->udp, &a.u.any, a.len) == 0)
            break;
        close(s->udp);
        close(s->tcp);
    }
    snprintf(s->address, sizeof s->address, "127.0.0.1:%u", (unsigned)port);
    MUST(pipe(s->stop) == 0);
    MUST(pthread_create(&s->thread, NULL, serve, s) == 0);
}

void dns_server_stop(struct dns_server *s)
{
    close(s->stop[1]);
    MUST(pthread_join(s->thread, NULL) == 0);
    close(s->stop[0]);
    close(s->udp);
    close(s->tcp);
}
