/*
 * listen.c - the listening socket: a name or literal address to a bound, listening descriptor. Used
 * once, at the start, when waiting for a resolver harms nobody.
 */
#include "loop.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define BACKLOG 4096

static int bind_one(const struct addrinfo *a)
{
    int fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, a->ai_protocol),
        on = 1;

    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, BACKLOG) == 0)
        return fd;

    int error = errno;

    close(fd);
    errno = error;
    return -1;
}

static uint16_t port_of(int fd)
{
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } a = {.any.sa_family = AF_UNSPEC};
    socklen_t len = sizeof a;

    if (getsockname(fd, &a.any, &len) != 0)
        return 0;
    return ntohs(a.any.sa_family == AF_INET6 ? a.v6.sin6_port : a.v4.sin_port);
}

enum dfl_status listen_on(const char *host, uint16_t *port, int *fd, struct dfl_error *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV},
                    *list = NULL;
    char service[8];

    snprintf(service, sizeof service, "%u", *port);

    int error = getaddrinfo(host, service, &hints, &list);

    if (error != 0)
        return dfl_fail(err, DFL_INVALID, "listen on %s: resolve: %s", host, gai_strerror(error));
    *fd = -1;
    for (const struct addrinfo *a = list; a && *fd < 0; a = a->ai_next)
        *fd = bind_one(a);
    error = errno;
    freeaddrinfo(list);
    if (*fd < 0)
        return dfl_fail(err, DFL_UNREACHABLE, "listen on %s port %u: %s", host, *port,
                        strerror(error));
    *port = port_of(*fd);
    return DFL_OK;
}
