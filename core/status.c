/*
 * status.c - one table: what can come out of the engine, the word on the wire that means it, the
 * SQLSTATE that a database reports for it, and whose fault it is. Owns nothing but that table.
 * Everything that names a status, in the core and in the adapters, reads it here; nobody keeps a
 * second list.
 */
#include "dflockd.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const struct dfl_status_info table[DFL_STATUS_COUNT] = {
    {DFL_OK, "ok", "ok", "00000", DFL_BLAME_NONE, "done"},
    {DFL_PENDING, "pending", NULL, "XX000", DFL_BLAME_NONE, "not finished yet"},

    {DFL_TIMEOUT, "timeout", "timeout", "55P03", DFL_BLAME_LOCK, "not granted in time"},
    {DFL_LOCK_TIMEOUT, "lock_timeout", NULL, "55P03", DFL_BLAME_LOCK,
     "not granted within lock_timeout"},
    {DFL_SELF, "self", NULL, "55006", DFL_BLAME_LOCK,
     "this session already holds or awaits that key"},
    {DFL_NOT_QUEUED, "not_queued", NULL, "55000", DFL_BLAME_LOCK,
     "this session has no place in the queue of that key"},
    {DFL_NOT_HELD, "not_held", NULL, "55000", DFL_BLAME_LOCK,
     "this session does not hold that key"},
    {DFL_MOVED, "moved", NULL, "55000", DFL_BLAME_LOCK,
     "that key is still held or awaited at the server that it had before the list changed"},
    {DFL_LAPSED, "lapsed", NULL, "55000", DFL_BLAME_LOCK, "the place came up and lapsed"},
    {DFL_LOST, "lost", NULL, "40001", DFL_BLAME_LOCK, "the lease was lost"},
    {DFL_LIMIT_MISMATCH, "limit_mismatch", "error_limit_mismatch", "LK001", DFL_BLAME_LOCK,
     "the server knows that key with another limit"},
    {DFL_NOT_ENQUEUED, "not_enqueued", "error_not_enqueued", "LK002", DFL_BLAME_LOCK,
     "the server says that this key is not queued for"},
    {DFL_ALREADY_ENQUEUED, "already_enqueued", "error_already_enqueued", "LK003", DFL_BLAME_LOCK,
     "the server says that this key is queued for already"},
    {DFL_LEASE_EXPIRED, "lease_expired", "error_lease_expired", "55000", DFL_BLAME_LOCK,
     "granted, but the lease ran out before it could be seen"},
    {DFL_MAX_LOCKS, "max_locks", "error_max_locks", "LK004", DFL_BLAME_LOCK,
     "the server has as many keys as its --max-locks allows"},
    {DFL_MAX_WAITERS, "max_waiters", "error_max_waiters", "LK004", DFL_BLAME_LOCK,
     "as many wait for that key as the server's --max-waiters allows"},

    {DFL_DRAINING, "draining", "error_draining", "LK005", DFL_BLAME_LINK,
     "the server is shutting down"},
    {DFL_NOT_LEADER, "not_leader", "error_not_leader", "LK005", DFL_BLAME_LINK,
     "the server is not the leader of its cluster"},
    {DFL_REFUSED, "refused", "error", "LK005", DFL_BLAME_LINK, "the server refused the request"},
    {DFL_UNKNOWN_TO_SERVER, "unknown_to_server", NULL, "LK005", DFL_BLAME_LINK,
     "not known to this server"},
    {DFL_NO_WORKER, "no_worker", NULL, "LK006", DFL_BLAME_HOST,
     "the background worker of dflockd does not run"},
    {DFL_UNREACHABLE, "unreachable", NULL, "LK010", DFL_BLAME_LINK,
     "cannot connect to the lock server"},
    {DFL_BROKEN, "broken", NULL, "LK011", DFL_BLAME_LINK,
     "the connection to the lock server broke"},
    {DFL_PROTOCOL, "protocol", NULL, "LK012", DFL_BLAME_LINK, "the server broke the protocol"},
    {DFL_AUTH, "auth", "error_auth", "LK013", DFL_BLAME_LINK, "login refused"},
    {DFL_NO_FENCE, "no_fence", NULL, "LK014", DFL_BLAME_LINK,
     "this server's tokens carry no fence"},

    {DFL_NULL, "null", NULL, "22004", DFL_BLAME_CALLER, "NULL where a value is needed"},
    {DFL_INVALID, "invalid", NULL, "22023", DFL_BLAME_CALLER, "bad argument"},
    {DFL_RANGE, "range", NULL, "22003", DFL_BLAME_CALLER, "out of range"},
    {DFL_UNSUPPORTED, "unsupported", NULL, "0A000", DFL_BLAME_CALLER, "not supported"},
    {DFL_TOO_MANY, "too_many", NULL, "53400", DFL_BLAME_HOST,
     "too many locks, waits or connections"},
    {DFL_CANCELED, "canceled", NULL, "57014", DFL_BLAME_CALLER, "canceled"},
    {DFL_NOMEM, "nomem", NULL, "53200", DFL_BLAME_HOST, "out of memory"},
    {DFL_INTERNAL, "internal", NULL, "XX000", DFL_BLAME_HOST, "internal error of dflockd"},
};

const struct dfl_status_info *dfl_status_info(enum dfl_status status)
{
    if ((unsigned)status >= DFL_STATUS_COUNT)
        return &table[DFL_INTERNAL];
    return &table[status];
}

enum dfl_status dfl_status_from_word(const char *word, size_t len)
{
    for (size_t i = 0; i < DFL_STATUS_COUNT; i++) {
        const char *known = table[i].word;

        if (known && strlen(known) == len && memcmp(known, word, len) == 0)
            return table[i].status;
    }
    return DFL_REFUSED;
}

/* Takes the torn character off the end of a text that was cut in the middle of one. */
static void trim_torn_utf8(char *text)
{
    size_t len = strlen(text), back = 0;

    while (back < len && back < 3 && ((unsigned char)text[len - 1 - back] & 0xC0) == 0x80)
        back++;
    if (back >= len)
        return;

    unsigned char lead = (unsigned char)text[len - 1 - back];
    size_t want = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : lead >= 0xC0 ? 1 : 0;

    if (back < want)
        text[len - 1 - back] = '\0';
}

enum dfl_status dfl_fail(struct dfl_error *err, enum dfl_status status, const char *format, ...)
{
    char text[DFL_ERROR_MAX]; /* apart from err->text, which may be among the arguments */
    va_list args;

    if (!err)
        return status;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (n < 0)
        snprintf(text, sizeof text, "%s", dfl_status_info(status)->text);
    else if ((size_t)n >= sizeof text)
        trim_torn_utf8(text);
    err->status = status;
    memcpy(err->text, text, strlen(text) + 1);
    return status;
}
