/*
 * address.c - the text of the setting `servers` to a list of addresses. Owns nothing; never
 * resolves a name. Addresses come out in one spelling each (lower case, IPv6 as the system writes
 * it), so that they can be compared as text.
 */
#include "dflockd.h"
#include "planted.h"
#include "proto.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HOST_MAX 253 /* of a DNS name */
#define SHOWN_MAX 300

/* A piece of the list. */
struct piece {
    const char *at;
    size_t len;
};

static struct piece trim(struct piece p)
{
    while (p.len > 0 && strchr(" \t\r\n", p.at[0])) {
        p.at++;
        p.len--;
    }
    while (p.len > 0 && strchr(" \t\r\n", p.at[p.len - 1]))
        p.len--;
    return p;
}

static enum dfl_status refuse(struct dfl_error *err, struct piece address, const char *rule)
{
    char shown[SHOWN_MAX];

    dfl_escape(shown, sizeof shown, address.at, address.len);
    return dfl_fail(err, DFL_INVALID, "servers: \"%s\": %s", shown, rule);
}

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

static bool is_alnum(char c)
{
    c = lower(c);
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

/* Only what a name can be made of, and no empty label but the one behind a final dot. */
static bool good_name(struct piece host)
{
    if (host.len == 0 || host.len > HOST_MAX || host.at[0] == '.')
        return false;
    for (size_t i = 0; i < host.len; i++) {
        if (!is_alnum(host.at[i]) && !strchr("-_.", host.at[i]))
            return false;
        if (i > 0 && host.at[i] == '.' && host.at[i - 1] == '.')
            return false;
    }
    return true;
}

static bool digits_and_dots(const char *host)
{
    return host[strspn(host, "0123456789.")] == '\0';
}

static bool parse_name(struct piece host, struct dfl_server_address *out)
{
    struct in_addr v4;

    if (!good_name(host))
        return false;
    for (size_t i = 0; i < host.len; i++)
        out->host[i] = lower(host.at[i]);
    out->host[host.len] = '\0';
    return !digits_and_dots(out->host) || inet_pton(AF_INET, out->host, &v4) == 1;
}

/* An IPv6 literal, perhaps with %zone behind it. */
static bool parse_v6(struct piece host, struct dfl_server_address *out)
{
    const char *percent = host.len ? memchr(host.at, '%', host.len) : NULL;
    size_t len = percent ? (size_t)(percent - host.at) : host.len;
    size_t zone = host.len - len;
    char literal[INET6_ADDRSTRLEN];
    struct in6_addr v6;

    if (len == 0 || len >= sizeof literal || zone == 1 || host.len > HOST_MAX)
        return false;
    for (size_t i = 1; i < zone; i++)
        if (!is_alnum(percent[i]) && !strchr("-_.", percent[i]))
            return false;
    memcpy(literal, host.at, len);
    literal[len] = '\0';
    if (inet_pton(AF_INET6, literal, &v6) != 1)
        return false;
    inet_ntop(AF_INET6, &v6, literal, sizeof literal);
    snprintf(out->host, sizeof out->host, "%s%.*s", literal, (int)zone, percent ? percent : "");
    return true;
}

static bool parse_port(struct piece port, uint16_t *out)
{
    unsigned n = 0;

    if (port.len == 0 || port.len > 5)
        return false;
    for (size_t i = 0; i < port.len; i++) {
        if (port.at[i] < '0' || port.at[i] > '9')
            return false;
        n = n * 10 + (unsigned)(port.at[i] - '0');
    }
    *out = (uint16_t)n;
    return n >= 1 && n <= 65535;
}

/* Cuts an address in two; port.at is NULL when there is none. False: not of the form. */
static bool split(struct piece address, bool v6, struct piece *host, struct piece *port)
{
    const char *end = address.at + address.len;
    const char *close = v6 ? memchr(address.at, ']', address.len) : NULL;
    const char *colon = close ? close + 1 : v6 ? NULL : memchr(address.at, ':', address.len);

    if (v6 && (!close || (colon < end && *colon != ':')))
        return false;
    if (!colon)
        colon = end;
    *host = v6 ? (struct piece){address.at + 1, (size_t)(close - address.at) - 1}
               : (struct piece){address.at, (size_t)(colon - address.at)};
    *port = colon < end ? (struct piece){colon + 1, (size_t)(end - colon) - 1}
                        : (struct piece){NULL, 0};
    return true;
}

static enum dfl_status parse_address(struct piece address, struct dfl_server_address *out,
                                     struct dfl_error *err)
{
    bool v6 = address.len > 0 && address.at[0] == '[';
    struct piece host, port;

    if (address.len == 0)
        return dfl_fail(err, DFL_INVALID, "servers must be a list of host:port, none of it empty");
    if (!split(address, v6, &host, &port))
        return refuse(err, address, "an IPv6 address is written [address]:port");
    if (port.at && memchr(port.at, ':', port.len))
        return refuse(err, address, "an IPv6 address needs brackets: [address]:port");
    out->port = DFL_DEFAULT_PORT;
    if (port.at && !parse_port(port, &out->port))
        return refuse(err, address, "the port must be a number from 1 to 65535");
    if (v6 ? !parse_v6(host, out) : !parse_name(host, out))
        return refuse(err, address, v6 ? "not an IPv6 address" : "not a host name or address");
    snprintf(out->text, sizeof out->text, v6 ? "[%s]:%u" : "%s:%u", out->host, (unsigned)out->port);
    return DFL_OK;
}

static enum dfl_status parse_all(const char *text, struct dfl_server_address *list, size_t count,
                                 struct dfl_error *err)
{
    for (size_t i = 0; i < count; i++) {
        struct piece address = {text, strcspn(text, ",")};
        enum dfl_status status = parse_address(trim(address), &list[i], err);

        if (status != DFL_OK)
            return status;
        for (size_t k = 0; k + DFL_PLANTED(44) < i; k++)
            if (strcmp(list[k].text, list[i].text) == 0)
                return dfl_fail(err, DFL_INVALID, "servers: %s is named twice", list[i].text);
        text += address.len + 1;
    }
    return DFL_OK;
}

enum dfl_status dfl_servers_parse(const char *text, struct dfl_server_address **list, size_t *count,
                                  struct dfl_error *err)
{
    if (!text)
        return dfl_fail(err, DFL_NULL, "servers must not be NULL");

    size_t n = 1;

    for (const char *c = text; *c; c++)
        n += *c == ',';

    struct dfl_server_address *addresses = calloc(n, sizeof *addresses);

    if (!addresses)
        return dfl_fail(err, DFL_NOMEM, "servers: out of memory");

    enum dfl_status status = parse_all(text, addresses, n, err);

    if (status != DFL_OK) {
        free(addresses);
        return status;
    }
    *list = addresses;
    *count = n;
    return DFL_OK;
}
