/*
 * waitfixture.c - a fixture for each kind of waiting, and pairs of sockets.
 */
#include "waitfixture.h"

#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

char tag_a, tag_b;

static struct fixture *open_fixture(enum dfl_wait_kind kind)
{
    struct fixture *f = calloc(1, sizeof *f);

    if (!f || dfl_wait_new(kind, &f->w) != DFL_OK)
        abort();
    f->kind = kind;
    return f;
}

int fixture_epoll(void **state)
{
    *state = open_fixture(DFL_WAIT_EPOLL);
    return 0;
}

int fixture_poll(void **state)
{
    *state = open_fixture(DFL_WAIT_POLL);
    return 0;
}

int fixture_close(void **state)
{
    struct fixture *f = *state;

    dfl_wait_round_free(&f->round);
    dfl_wait_free(f->w);
    free(f);
    return 0;
}

void fixture_on_ready(void *arg, void *tag, unsigned events)
{
    struct fixture *f = arg;

    assert_true(f->count < COUNT(f->seen));
    f->seen[f->count].tag = tag;
    f->seen[f->count++].events = events;
    if (f->while_ready)
        f->while_ready(f, tag);
}

int fixture_block(struct fixture *f, int64_t timeout_ms, int extra_fd)
{
    assert_int_equal(dfl_wait_prepare(f->w, &f->round), DFL_OK);
    return dfl_wait_block(&f->round, timeout_ms, extra_fd);
}

void fixture_dispatch(struct fixture *f)
{
    f->count = 0;
    dfl_wait_dispatch(f->w, &f->round, fixture_on_ready, f);
}

void fixture_watch(struct fixture *f, int fd, unsigned events, void *tag)
{
    assert_int_equal(dfl_wait_watch(f->w, fd, events, tag), DFL_OK);
}

void fixture_saw(const struct fixture *f, const void *tag, unsigned events)
{
    for (size_t i = 0; i < f->count; i++)
        if (f->seen[i].tag == tag && f->seen[i].events == events)
            return;
    fail_msg("not reported");
}

void pair_open(int pair[2])
{
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
}

void pair_close(const int pair[2])
{
    close(pair[0]);
    close(pair[1]);
}

void send_byte(int fd)
{
    assert_int_equal(write(fd, "x", 1), 1);
}
