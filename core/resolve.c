/*
 * resolve.c - names to addresses with c-ares: no thread, no waiting, no getaddrinfo.
 *
 * Owns a c-ares channel for the length of one look-up; its sockets live in the transport's table.
 * Never touches the process beyond c-ares' own start, which happens once, at the first look-up.
 */
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE
#endif
/* c-ares 1.34 deprecates ares_set_socket_functions; older versions have nothing else. */
#define CARES_NO_DEPRECATED
#include "resolve.h"

#include <ares.h>
#include <arpa/inet.h>
#include <net/if.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/time.h>

struct dfl_resolver {
    ares_channel channel;
    struct dfl_sockets *sockets;
    uint16_t port;
    bool done, dropped;
    int result; /* ARES_..., once done */
    struct dfl_socket_address *list;
    size_t count;
    int64_t wake_ms;
};

/* ---------------------------------------------------------------- literals */

static void set_v4(struct dfl_socket_address *a, struct in_addr ip, uint16_t port)
{
    memset(a, 0, sizeof *a);
    a->u.v4.sin_family = AF_INET;
    a->u.v4.sin_addr = ip;
    a->u.v4.sin_port = htons(port);
    a->len = sizeof a->u.v4;
}

static void set_v6(struct dfl_socket_address *a, const struct in6_addr *ip, uint32_t scope,
                   uint16_t port)
{
    memset(a, 0, sizeof *a);
    a->u.v6.sin6_family = AF_INET6;
    a->u.v6.sin6_addr = *ip;
    a->u.v6.sin6_scope_id = scope;
    a->u.v6.sin6_port = htons(port);
    a->len = sizeof a->u.v6;
}

/* An interface by name or number; 0 when there is none of that name. */
static uint32_t scope_id(const char *text)
{
    char *end;
    unsigned long n = strtoul(text, &end, 10);

    if (end != text && *end == '\0' && n <= UINT32_MAX)
        return (uint32_t)n;
    return if_nametoindex(text);
}

static bool parse_v6(const char *host, struct in6_addr *ip, uint32_t *scope)
{
    const char *percent = strchr(host, '%');
    size_t len = percent ? (size_t)(percent - host) : strlen(host);
    char bare[INET6_ADDRSTRLEN];

    if (len >= sizeof bare)
        return false;
    memcpy(bare, host, len);
    bare[len] = '\0';
    *scope = percent ? scope_id(percent + 1) : 0;
    return inet_pton(AF_INET6, bare, ip) == 1;
}

static bool is_localhost(const char *host)
{
    static const char word[] = "localhost";
    size_t len = strlen(host), word_len = sizeof word - 1;

    if (len > 0 && host[len - 1] == '.')
        len--;
    if (len < word_len || strncasecmp(host + len - word_len, word, word_len) != 0)
        return false;
    return len == word_len || host[len - word_len - 1] == '.';
}

size_t dfl_resolve_literal(const char *host, uint16_t port,
                           struct dfl_socket_address out[DFL_RESOLVE_LITERAL_MAX])
{
    struct in_addr v4;
    struct in6_addr v6;
    uint32_t scope;

    if (inet_pton(AF_INET, host, &v4) == 1) {
        set_v4(&out[0], v4, port);
        return 1;
    }
    if (parse_v6(host, &v6, &scope)) {
        set_v6(&out[0], &v6, scope, port);
        return 1;
    }
    if (!is_localhost(host))
        return 0;
    /* IPv4 first: it is where a lock server listens unless told otherwise. */
    v4.s_addr = htonl(INADDR_LOOPBACK);
    set_v4(&out[0], v4, port);
    set_v6(&out[1], &in6addr_loopback, 0, port);
    return 2;
}

bool dfl_host_is_address(const char *host)
{
    struct in_addr v4;
    struct in6_addr v6;
    uint32_t scope;

    return inet_pton(AF_INET, host, &v4) == 1 || parse_v6(host, &v6, &scope);
}

const char *dfl_socket_address_text(const struct dfl_socket_address *a,
                                    char out[DFL_SOCKET_ADDRESS_TEXT])
{
    const void *ip = a->u.any.sa_family == AF_INET6 ? (const void *)&a->u.v6.sin6_addr
                                                    : (const void *)&a->u.v4.sin_addr;

    if (!inet_ntop(a->u.any.sa_family, ip, out, DFL_SOCKET_ADDRESS_TEXT))
        out[0] = '\0';
    return out;
}

/* ------------------------------------------------------------------ c-ares */

static void start_library(void)
{
    /* On Unix this only sets c-ares' memory functions; it counts its calls without a lock, so:
     * once. */
    ares_library_init(ARES_LIB_INIT_ALL);
}

static void socket_state(void *arg, ares_socket_t fd, int readable, int writable)
{
    struct dfl_resolver *r = arg;

    dfl_sockets_want(r->sockets, fd, (readable ? DFL_READABLE : 0) | (writable ? DFL_WRITABLE : 0));
}

static bool add_address(struct dfl_socket_address *to, const struct ares_addrinfo_node *node,
                        uint16_t port)
{
    if (node->ai_family == AF_INET) {
        struct sockaddr_in sin;

        memcpy(&sin, node->ai_addr, sizeof sin);
        set_v4(to, sin.sin_addr, port);
        return true;
    }
    if (node->ai_family == AF_INET6) {
        struct sockaddr_in6 sin6;

        memcpy(&sin6, node->ai_addr, sizeof sin6);
        set_v6(to, &sin6.sin6_addr, sin6.sin6_scope_id, port);
        return true;
    }
    return false;
}

static int take_addresses(struct dfl_resolver *r, const struct ares_addrinfo *info)
{
    const struct ares_addrinfo_node *node;
    size_t n = 0;

    for (node = info->nodes; node; node = node->ai_next)
        n++;
    if (n == 0)
        return ARES_ENODATA;
    r->list = calloc(n, sizeof *r->list);
    if (!r->list)
        return ARES_ENOMEM;
    for (node = info->nodes; node; node = node->ai_next)
        if (add_address(&r->list[r->count], node, r->port))
            r->count++;
    return r->count > 0 ? ARES_SUCCESS : ARES_ENODATA;
}

static void looked_up(void *arg, int status, int timeouts, struct ares_addrinfo *info)
{
    struct dfl_resolver *r = arg;

    (void)timeouts;
    if (r->dropped) {
        if (info)
            ares_freeaddrinfo(info);
        return;
    }
    r->done = true;
    r->result = status;
    if (info) {
        if (status == ARES_SUCCESS)
            r->result = take_addresses(r, info);
        ares_freeaddrinfo(info);
    }
}

static enum dfl_status why_not(int result, struct dfl_error *err)
{
    static const struct {
        int result;
        const char *text;
    } reasons[] = {
        {ARES_ENOTFOUND, "host not found"},
        {ARES_ENODATA, "host has no address"},
        {ARES_EBADNAME, "not a valid host name"},
        {ARES_ETIMEOUT, "no name server answered in time"},
        /* c-ares tells servers that are not there, fail or refuse apart in some versions only. */
        {ARES_ECONNREFUSED, "no name server gave an answer"},
        {ARES_ESERVFAIL, "no name server gave an answer"},
        {ARES_EREFUSED, "no name server gave an answer"},
        {ARES_EFILE, "cannot read the resolver's configuration"},
    };

    if (result == ARES_ENOMEM)
        return dfl_fail(err, DFL_NOMEM, "out of memory");
    for (size_t i = 0; i < sizeof reasons / sizeof *reasons; i++)
        if (reasons[i].result == result)
            return dfl_fail(err, DFL_UNREACHABLE, "%s", reasons[i].text);
    return dfl_fail(err, DFL_UNREACHABLE, "name look-up failed (c-ares: %s)",
                    ares_strerror(result));
}

/*
 * Two rounds over the name servers, the second with twice the time: three fifths of the patience
 * with one server. resolv.conf's own `timeout` and `attempts` would outlive the caller's deadline,
 * so they do not count.
 */
static int open_channel(struct dfl_resolver *r, int64_t patience_ms, const char *name_servers)
{
    struct ares_options options;
    int64_t share_ms = patience_ms / 5;
    int result;

    memset(&options, 0, sizeof options);
    options.timeout = (int)(share_ms < 100 ? 100 : share_ms > 5000 ? 5000 : share_ms);
    options.tries = 2;
    options.sock_state_cb = socket_state;
    options.sock_state_cb_data = r;
    result = ares_init_options(&r->channel, &options,
                               ARES_OPT_TIMEOUTMS | ARES_OPT_TRIES | ARES_OPT_SOCK_STATE_CB);
    if (result != ARES_SUCCESS)
        return result;
    ares_set_socket_functions(r->channel, &dfl_dns_socket_functions, r->sockets);
    if (name_servers)
        return ares_set_servers_ports_csv(r->channel, name_servers);
    return ARES_SUCCESS;
}

enum dfl_status dfl_resolver_new(const char *host, uint16_t port, int64_t patience_ms,
                                 const struct dfl_net_options *options, struct dfl_sockets *sockets,
                                 struct dfl_resolver **out, struct dfl_error *err)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct ares_addrinfo_hints hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    struct dfl_resolver *r;
    int result;

    pthread_once(&once, start_library);
    r = calloc(1, sizeof *r);
    if (!r)
        return dfl_fail(err, DFL_NOMEM, "out of memory");
    r->sockets = sockets;
    r->port = port;
    r->wake_ms = INT64_MAX;
    result = open_channel(r, patience_ms, options ? options->name_servers : NULL);
    if (result != ARES_SUCCESS) {
        dfl_resolver_free(r);
        return why_not(result, err);
    }
    if (options && options->hosts_by_environment)
        hints.ai_flags |= ARES_AI_ENVHOSTS;
    ares_getaddrinfo(r->channel, host, NULL, &hints, looked_up, r);
    *out = r;
    return DFL_OK;
}

/* Hands c-ares what is ready. It is asked about each socket, so that no version of it reads one
 * that is not. */
static void process(struct dfl_resolver *r)
{
    struct dfl_interest watched[DFL_INTEREST_MAX];
    struct pollfd fds[DFL_INTEREST_MAX];
    size_t n = 0;

    for (size_t i = 0; i < DFL_SOCKETS_MAX && n < DFL_INTEREST_MAX; i++) {
        const struct dfl_socket *s = &r->sockets->at[i];

        if (atomic_load(&s->fd) < 0 || s->retired || s->events == 0)
            continue;
        watched[n].events = s->events;
        fds[n].fd = atomic_load(&s->fd);
        fds[n].events = (short)((s->events & DFL_READABLE ? POLLIN : 0) |
                                (s->events & DFL_WRITABLE ? POLLOUT : 0));
        n++;
    }
    if (n > 0 && poll(fds, n, 0) > 0)
        for (size_t i = 0; i < n && !r->done; i++)
            if (fds[i].revents)
                ares_process_fd(r->channel,
                                watched[i].events & DFL_READABLE ? fds[i].fd : ARES_SOCKET_BAD,
                                watched[i].events & DFL_WRITABLE ? fds[i].fd : ARES_SOCKET_BAD);
    if (!r->done)
        ares_process_fd(r->channel, ARES_SOCKET_BAD, ARES_SOCKET_BAD); /* time-outs */
}

enum dfl_status dfl_resolver_run(struct dfl_resolver *r, struct dfl_now now,
                                 struct dfl_socket_address **list, size_t *count,
                                 struct dfl_error *err)
{
    struct timeval tv;

    if (!r->done)
        process(r);
    if (!r->done) {
        r->wake_ms = INT64_MAX;
        if (ares_timeout(r->channel, NULL, &tv))
            r->wake_ms = now.ms + (int64_t)tv.tv_sec * 1000 + tv.tv_usec / 1000 + 1;
        return DFL_PENDING;
    }
    r->wake_ms = INT64_MAX;
    if (r->result != ARES_SUCCESS)
        return why_not(r->result, err);
    *list = r->list;
    *count = r->count;
    r->list = NULL;
    return DFL_OK;
}

int64_t dfl_resolver_wake_ms(const struct dfl_resolver *r)
{
    return r->wake_ms;
}

void dfl_resolver_free(struct dfl_resolver *r)
{
    if (!r)
        return;
    if (r->channel) {
        r->dropped = true;
        /* c-ares 1.17 frees the look-up at its first query's ARES_EDESTRUCTION and reads it at the second's. */
        ares_cancel(r->channel);
        ares_destroy(r->channel);
    }
    free(r->list);
    free(r);
}
