/*
 * The fence state file over the two things that no process can be made to suffer: a disk that takes
 * a write and then says that it has not, and a clock that is set.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "fence.h"

#define WALL INT64_C(1900000000000)
#define HOUR INT64_C(3600000)

static bool disk_fails;

/* In place of the C library's: the bytes are in the file, and it says that they are not. */
int fdatasync(int fd)
{
    if (!disk_fails)
        return fsync(fd);
    errno = EIO;
    return -1;
}

static struct dfl_now at(int64_t ms, int64_t set_forward_ms)
{
    return (struct dfl_now){.ms = ms, .us = ms * 1000, .wall_ms = WALL + ms + set_forward_ms};
}

static int make_folder(void **state)
{
    static char path[64];
    char folder[] = "/tmp/fence-XXXXXX";

    disk_fails = false;
    if (!mkdtemp(folder))
        return -1;
    snprintf(path, sizeof path, "%s/f", folder);
    *state = path;
    return 0;
}

static int remove_folder(void **state)
{
    char *path = *state;

    unlink(path);
    path[sizeof "/tmp/fence-XXXXXX" - 1] = '\0';
    return rmdir(path);
}

static struct fence *open_at(const char *path, struct dfl_now now)
{
    struct fence *f = NULL;
    struct dfl_error err;

    assert_int_equal(fence_open(path, now, &f, &err), DFL_OK);
    return f;
}

/* How long the next run waits after an end of this one that was not clean. */
static int64_t waits_ms(struct fence *f, const char *path, struct dfl_now now)
{
    fence_close(f, false);
    f = open_at(path, now);

    int64_t until_ms = fence_unsafe_until_ms(f);

    fence_close(f, false);
    return until_ms ? until_ms - now.wall_ms : 0;
}

static void test_a_lease_is_waited_for(void **state)
{
    struct fence *f = open_at(*state, at(0, 0));

    assert_true(fence_extend(f, 60));
    assert_in_range(waits_ms(f, *state, at(20000, 0)), 40000, 51000);
}

/* Whether the failed write is in the file nobody knows: the next lease must not rely on the last
 * one that succeeded. */
static void test_a_failed_write_may_be_in_the_file(void **state)
{
    struct fence *f = open_at(*state, at(0, 0));

    assert_true(fence_extend(f, 60));
    disk_fails = true;
    fence_nothing_held(f);
    assert_false(fence_extend(f, 30));
    disk_fails = false;
    assert_true(fence_extend(f, 30));
    assert_in_range(waits_ms(f, *state, at(0, 0)), 60000, 71000);
}

static void test_a_failed_write_forgets_no_longer_lease(void **state)
{
    struct fence *f = open_at(*state, at(0, 0));

    assert_true(fence_extend(f, 600));
    disk_fails = true;
    assert_false(fence_extend(f, 700));
    disk_fails = false;
    assert_true(fence_extend(f, 1));
    assert_in_range(waits_ms(f, *state, at(0, 0)), 600000, 611000);
}

static void test_a_clock_set_forward_ends_no_lease(void **state)
{
    struct fence *f = open_at(*state, at(0, 0));

    assert_true(fence_extend(f, 60));
    fence_now(f, at(1000, 0));
    fence_now(f, at(2000, HOUR));
    assert_in_range(waits_ms(f, *state, at(20000, HOUR)), 40000, 51000);
}

/* The same while the disk fails: told when it can be, and nothing is granted before. */
static void test_a_clock_set_forward_while_the_disk_fails(void **state)
{
    struct fence *f = open_at(*state, at(0, 0));

    assert_true(fence_extend(f, 60));
    disk_fails = true;
    fence_now(f, at(2000, HOUR));
    assert_false(fence_extend(f, 1));
    disk_fails = false;
    fence_now(f, at(3000, HOUR));
    assert_true(fence_extend(f, 1));
    assert_in_range(waits_ms(f, *state, at(20000, HOUR)), 40000, 51000);
}

static void test_a_clock_set_back_ends_no_lease(void **state)
{
    struct fence *f = open_at(*state, at(0, 0));

    assert_true(fence_extend(f, 60));
    fence_now(f, at(1000, -HOUR));
    assert_true(fence_extend(f, 60));
    assert_true(waits_ms(f, *state, at(2000, -HOUR)) >= 59000);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, make_folder, remove_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_a_lease_is_waited_for),
        TEST(test_a_failed_write_may_be_in_the_file),
        TEST(test_a_failed_write_forgets_no_longer_lease),
        TEST(test_a_clock_set_forward_ends_no_lease),
        TEST(test_a_clock_set_forward_while_the_disk_fails),
        TEST(test_a_clock_set_back_ends_no_lease),
    };

    return cmocka_run_group_tests_name("fence", tests, NULL, NULL);
}
