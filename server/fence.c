/*
 * fence.c - tokens and the state file of fence.h. Owns the file's descriptor, and random bytes got
 * in advance.
 *
 * The file is two records of 512 bytes, written in turn, each one line of text with a sequence
 * number and a checksum: a write that a crash cuts short spoils only the one that nobody relies on.
 * It is made under another name and linked in place when it is whole.
 */
#include "fence.h"

#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#define RECORD 512
#define AHEAD_FENCES (UINT64_C(1) << 20)
#define AHEAD_MS 10000
#define APART_MS 100 /* two readings of a moment may be so far apart, and no clock has been set */
#define LOOK_MS 1000 /* from one look at the clocks to the next, while leases run */

struct record {
    uint64_t sequence;
    uint64_t fences_end; /* fences below this may have been given */
    int64_t leases_end;  /* real time in ms: leases may run until then */
    int64_t leases_ms;   /* and no longer than this from the writing or from their grant */
    int clean;
};

struct fence {
    uint64_t next;      /* the next fence */
    struct record last; /* what must be known after a crash */
    bool behind;        /* the file names an earlier end of the leases: the clock was set forward */
    int64_t retry_ms;   /* when to write it again */
    int64_t unsafe_until_ms;
    int64_t now_ms, wall_ms;
    int64_t apart_ms; /* wall_ms - now_ms, as last.leases_end has been told by it */
    int fd;           /* -1: no file */
    struct log_limit said;
    unsigned char random[4096];
    size_t random_left;
};

/* ------------------------------------------------------------------ records */

static void format_record(char out[RECORD], const struct record *r)
{
    char line[RECORD];
    int n = snprintf(line, sizeof line,
                     "dflockd-fence-1 sequence=%" PRIu64 " fences_end=%" PRIu64
                     " leases_end_ms=%" PRId64 " leases_ms=%" PRId64 " clean=%d",
                     r->sequence, r->fences_end, r->leases_end, r->leases_ms, r->clean);
    unsigned long sum = crc32(0, (const unsigned char *)line, (unsigned)n);

    memset(out, ' ', RECORD);
    n += snprintf(line + n, sizeof line - (size_t)n, " crc=%08lx", sum);
    memcpy(out, line, (size_t)n);
    out[RECORD - 1] = '\n';
}

/* A record is good when writing what was read gives the same bytes again. */
static bool parse_record(const char in[RECORD], struct record *r)
{
    char line[RECORD + 1], again[RECORD];

    memcpy(line, in, RECORD);
    line[RECORD] = '\0';
    /* NOLINTNEXTLINE(cert-err34-c): writing the record again finds what sscanf lets pass */
    if (sscanf(line,
               "dflockd-fence-1 sequence=%" SCNu64 " fences_end=%" SCNu64 " leases_end_ms=%" SCNd64
               " leases_ms=%" SCNd64 " clean=%d",
               &r->sequence, &r->fences_end, &r->leases_end, &r->leases_ms, &r->clean) != 5)
        return false;
    format_record(again, r);
    return memcmp(in, again, RECORD) == 0;
}

static bool write_whole(int fd, const char *bytes, size_t n, off_t at)
{
    while (n > 0) {
        ssize_t put = pwrite(fd, bytes, n, at);

        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0) {
            errno = put == 0 ? EIO : errno;
            return false;
        }
        bytes += put;
        at += put;
        n -= (size_t)put;
    }
    return true;
}

/* Over the older record, and on the disk before anybody relies on it. */
static bool write_record(struct fence *f, struct record r)
{
    char bytes[RECORD];

    r.sequence = f->last.sequence + 1;
    r.leases_ms = r.leases_end > f->wall_ms ? r.leases_end - f->wall_ms : 0;
    format_record(bytes, &r);
    if (write_whole(f->fd, bytes, RECORD, (off_t)(r.sequence % 2) * RECORD) &&
        fdatasync(f->fd) == 0) {
        f->last = r;
        f->behind = false;
        return true;
    }

    int error = errno;
    unsigned long left_out;

    if (f->last.leases_ms > r.leases_ms)
        f->last.leases_ms = r.leases_ms; /* it may be in the file all the same */
    if (log_allowed(&f->said, f->now_ms, &left_out))
        log_line(LOG_ERROR, "nothing is granted: the fence state file cannot be written",
                 "error=\"%s\"", strerror(error));
    errno = error;
    return false;
}

/* --------------------------------------------------------------------- file */

static enum dfl_status file_trouble(struct dfl_error *err, const char *path, const char *what)
{
    return dfl_fail(err, DFL_INVALID, "fence state file %s: %s", path, what);
}

static void sync_folder(const char *path)
{
    char folder[4096];
    const char *slash = strrchr(path, '/');

    snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - path + (slash == path)) : 1,
             slash ? path : ".");

    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0)
        return;
    fsync(fd);
    close(fd);
}

/* Makes a whole new file, or nothing. That somebody else has made it meanwhile is as good. Its
 * first name is nobody else's: servers in containers have the same process id. */
static enum dfl_status make_file(const char *path, struct dfl_error *err)
{
    char temporary[4096], bytes[2 * RECORD];
    struct record first = {.sequence = 1, .clean = 1}, second = {.sequence = 2, .clean = 1};

    if ((size_t)snprintf(temporary, sizeof temporary, "%s.new-XXXXXX", path) >= sizeof temporary)
        return file_trouble(err, path, "the name is too long");

    int fd = mkostemp(temporary, O_CLOEXEC);

    if (fd < 0)
        return file_trouble(err, path, strerror(errno));
    format_record(bytes, &second);
    format_record(bytes + RECORD, &first);

    bool ok = write_whole(fd, bytes, sizeof bytes, 0) && fsync(fd) == 0 &&
              (link(temporary, path) == 0 || errno == EEXIST);
    int error = errno;

    close(fd);
    unlink(temporary);
    sync_folder(path);
    return ok ? DFL_OK : file_trouble(err, path, strerror(error));
}

static enum dfl_status read_file(struct fence *f, const char *path, struct dfl_error *err)
{
    char bytes[2 * RECORD + 1];
    struct record r[2];
    ssize_t n = pread(f->fd, bytes, sizeof bytes, 0);

    if (n < 0)
        return file_trouble(err, path, strerror(errno));

    bool good[2] = {n == 2 * RECORD && parse_record(bytes, &r[0]),
                    n == 2 * RECORD && parse_record(bytes + RECORD, &r[1])};

    if (!good[0] && !good[1])
        return file_trouble(
            err, path,
            "is not a whole fence state file; put the right one there, or remove it to begin anew");
    f->last = good[0] && (!good[1] || r[0].sequence > r[1].sequence) ? r[0] : r[1];
    return DFL_OK;
}

static enum dfl_status open_file(struct fence *f, const char *path, struct dfl_error *err)
{
    f->fd = open(path, O_RDWR | O_CLOEXEC);
    if (f->fd < 0 && errno == ENOENT) {
        enum dfl_status status = make_file(path, err);

        if (status != DFL_OK)
            return status;
        f->fd = open(path, O_RDWR | O_CLOEXEC);
    }
    if (f->fd < 0)
        return file_trouble(err, path, strerror(errno));
    if (flock(f->fd, LOCK_EX | LOCK_NB) != 0)
        return file_trouble(err, path,
                            errno == EWOULDBLOCK ? "in use by another server" : strerror(errno));
    return read_file(f, path, err);
}

/* --------------------------------------------------------------------- life */

/* What the file said of the last run counts for this one, until it has ended by itself. The clock
 * may not have been set yet: a machine without one of its own starts years ago. */
static enum dfl_status take_over(struct fence *f, const char *path, struct dfl_error *err)
{
    struct record r = f->last;
    int64_t left_ms = r.leases_end - f->wall_ms;

    if (left_ms > r.leases_ms)
        left_ms = r.leases_ms;
    if (!r.clean && left_ms > 0)
        f->unsafe_until_ms = f->wall_ms + left_ms;
    if (f->next < r.fences_end)
        f->next = r.fences_end;
    r.fences_end = f->next + AHEAD_FENCES;
    r.leases_end = f->unsafe_until_ms;
    r.clean = 0;
    return write_record(f, r) ? DFL_OK : file_trouble(err, path, strerror(errno));
}

enum dfl_status fence_open(const char *path, struct dfl_now now, struct fence **out,
                           struct dfl_error *err)
{
    struct fence *f = calloc(1, sizeof *f);
    enum dfl_status status = DFL_OK;

    if (!f)
        return dfl_fail(err, DFL_NOMEM, "out of memory");
    f->fd = -1;
    fence_now(f, now);
    f->next = (uint64_t)now.wall_ms * 1000000;
    if (path)
        status = open_file(f, path, err);
    if (path && status == DFL_OK)
        status = take_over(f, path, err);
    if (status != DFL_OK) {
        if (f->fd >= 0)
            close(f->fd);
        free(f);
        return status;
    }
    *out = f;
    return DFL_OK;
}

int64_t fence_unsafe_until_ms(const struct fence *f)
{
    return f->unsafe_until_ms;
}

void fence_safe(struct fence *f)
{
    f->unsafe_until_ms = 0;
}

/*
 * Leases end by the other clock: when the real-time one is set forward, at once or little by
 * little, the moment in the file goes with it. When it is set back the file names too late a
 * moment, and goes on: the clock that the machine starts with may not have been set.
 */
void fence_now(struct fence *f, struct dfl_now now)
{
    int64_t apart_ms = now.wall_ms - now.ms, set_ms = apart_ms - f->apart_ms;
    bool running = f->last.leases_end > f->wall_ms;

    f->now_ms = now.ms;
    f->wall_ms = now.wall_ms;
    if (set_ms < 0 || set_ms >= APART_MS)
        f->apart_ms = apart_ms;
    if (running && set_ms >= APART_MS) {
        f->last.leases_end += set_ms;
        f->behind = true;
    }
    if (f->behind && now.ms >= f->retry_ms) {
        f->retry_ms = now.ms + LOOK_MS;
        write_record(f, f->last);
    }
}

int64_t fence_next_ms(const struct fence *f)
{
    return f->last.leases_end > f->wall_ms ? f->now_ms + LOOK_MS : INT64_MAX;
}

static bool take_random(struct fence *f, uint64_t *out)
{
    if (f->random_left < sizeof *out) {
        if (getrandom(f->random, sizeof f->random, 0) != (ssize_t)sizeof f->random)
            return false;
        f->random_left = sizeof f->random;
    }
    f->random_left -= sizeof *out;
    memcpy(out, f->random + f->random_left, sizeof *out);
    memset(f->random + f->random_left, 0, sizeof *out);
    return true;
}

bool fence_extend(void *ctx, int64_t lease_s)
{
    struct fence *f = ctx;
    struct record r = f->last;

    if (f->fd < 0)
        return true;

    /* The rest of the millisecond that wall_ms was cut by belongs to the lease as well. */
    int64_t lease_ms = lease_s * 1000 + 1 + APART_MS, end_ms = f->wall_ms + lease_ms;

    if (end_ms <= r.leases_end && lease_ms <= r.leases_ms && !f->behind)
        return true;
    if (end_ms > r.leases_end)
        r.leases_end = end_ms + AHEAD_MS;
    return write_record(f, r);
}

bool fence_grant(void *ctx, int64_t lease_s, struct lock_token *token)
{
    struct fence *f = ctx;
    struct record r;

    if (!fence_extend(f, lease_s))
        return false;
    if (f->fd >= 0 && f->next >= f->last.fences_end) {
        r = f->last;
        r.fences_end = f->next + AHEAD_FENCES;
        if (!write_record(f, r))
            return false;
    }
    if (!take_random(f, &token->random))
        return false;
    token->fence = f->next++;
    return true;
}

void fence_nothing_held(struct fence *f)
{
    if (f->unsafe_until_ms || f->last.leases_end <= f->wall_ms)
        return;
    f->last.leases_end = 0; /* whether or not it can be written: the next lease must be */
    write_record(f, f->last);
}

void fence_close(struct fence *f, bool clean)
{
    if (!f)
        return;
    if (f->fd >= 0) {
        struct record r = f->last;

        r.fences_end = f->next;
        r.clean = clean && !f->unsafe_until_ms;
        write_record(f, r);
        close(f->fd);
    }
    free(f);
}
