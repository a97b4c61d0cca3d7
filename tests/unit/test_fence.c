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
#include <sys/syscall.h>
#include <unistd.h>

#include "session.h"

#define WALL INT64_C(1900000000000)
#define HOUR INT64_C(3600000)

static bool disk_fails;   /* says that the bytes are not there, and they are */
static bool disk_refuses; /* they are not */

/* In place of the C library's. */
ssize_t pwrite(int fd, const void *bytes, size_t n, off_t at)
{
    if (!disk_refuses)
        return (ssize_t)syscall(SYS_pwrite64, fd, bytes, n, at);
    errno = EIO;
    return -1;
}

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

    disk_fails = disk_refuses = false;
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

/* How long the next run would wait if this one ended now without a word. */
static int64_t waits_ms(const char *path, struct dfl_now now)
{
    char copy[80], bytes[2048];
    FILE *from = fopen(path, "rb"), *to;
    size_t n = from ? fread(bytes, 1, sizeof bytes, from) : 0;

    snprintf(copy, sizeof copy, "%s-copy", path);
    to = fopen(copy, "wb");
    assert_non_null(to);
    assert_int_equal(fwrite(bytes, 1, n, to), n);
    fclose(from);
    fclose(to);

    struct fence *f = open_at(copy, now);
    int64_t until_ms = fence_unsafe_until_ms(f);

    fence_close(f, false);
    unlink(copy);
    return until_ms ? until_ms - now.wall_ms : 0;
}

static void test_a_lease_is_waited_for(void **state)
{
    struct fence *f = open_at(*state, at(0, 0));

    assert_true(fence_extend(f, 60));
    assert_in_range(waits_ms(*state, at(20000, 0)), 40000, 51000);
    fence_close(f, false);
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
    assert_in_range(waits_ms(*state, at(0, 0)), 30000, 71000);
    fence_close(f, false);
}

static void test_a_failed_write_forgets_no_longer_lease(void **state)
{
    struct fence *f = open_at(*state, at(0, 0));

    assert_true(fence_extend(f, 600));
    disk_fails = true;
    assert_false(fence_extend(f, 700));
    disk_fails = false;
    assert_true(fence_extend(f, 1));
    assert_in_range(waits_ms(*state, at(0, 0)), 600000, 711000);
    fence_close(f, false);
}

static void test_a_clock_set_forward_ends_no_lease(void **state)
{
    struct fence *f = open_at(*state, at(0, 0));

    assert_true(fence_extend(f, 60));
    fence_now(f, at(1000, 0));
    fence_now(f, at(2000, HOUR));
    assert_in_range(waits_ms(*state, at(20000, HOUR)), 40000, 51000);
    fence_close(f, false);
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
    assert_in_range(waits_ms(*state, at(20000, HOUR)), 40000, 51000);
    fence_close(f, false);
}

/* No lease is asked for when the disk can be written again. */
static void test_the_file_catches_up_with_a_clock_set_forward(void **state)
{
    struct fence *f = open_at(*state, at(0, 0));

    assert_true(fence_extend(f, 60));
    disk_refuses = true;
    fence_now(f, at(2000, HOUR));
    disk_refuses = false;
    assert_in_range(fence_next_ms(f), 2000, 3000);
    fence_now(f, at(3000, HOUR));
    assert_in_range(waits_ms(*state, at(20000, HOUR)), 40000, 51000);
    fence_close(f, false);
}

/* Each time by less than what two readings of the clocks may be apart. */
static void test_a_clock_set_forward_little_by_little(void **state)
{
    struct fence *f = open_at(*state, at(0, 0));

    assert_true(fence_extend(f, 60));
    fence_now(f, at(10000, 0));
    assert_true(fence_extend(f, 60)); /* ends when the file says */
    for (int i = 1; i <= 40; i++)
        fence_now(f, at(10000 + i * 1000, i * 80));
    assert_in_range(waits_ms(*state, at(50000, 3200)), 20000, 21000);
    fence_close(f, false);
}

/* Readings that are apart for once. */
static void test_a_reading_that_took_long_is_no_clock_set_forward(void **state)
{
    struct fence *f = open_at(*state, at(0, 0));

    assert_true(fence_extend(f, 60));
    for (int i = 1; i <= 40; i++)
        fence_now(f, at(i * 1000, i % 2 * 80));
    assert_in_range(waits_ms(*state, at(20000, 0)), 40000, 51000);
    fence_close(f, false);
}

static bool asks_for_a_look(struct fence *f, struct dfl_now now)
{
    struct service_config config = {.table = {.max_locks = 1}, .fence = f};
    struct service *service;
    struct dfl_error err;

    assert_int_equal(service_new(&config, now, &service, &err), DFL_OK);

    struct protocol protocol = service_protocol(service);
    bool asks = protocol.next_ms(protocol.ctx) <= now.ms + 1000;

    service_free(service);
    return asks;
}

static void test_the_clock_is_watched_while_leases_run(void **state)
{
    struct fence *f = open_at(*state, at(0, 0));

    assert_true(fence_next_ms(f) == INT64_MAX);
    assert_true(fence_extend(f, 60));
    assert_in_range(fence_next_ms(f), 1, 1000);
    fence_now(f, at(5000, 0));
    assert_in_range(fence_next_ms(f), 5001, 6000);
    assert_true(asks_for_a_look(f, at(5000, 0)));
    fence_nothing_held(f);
    assert_true(fence_next_ms(f) == INT64_MAX);
    assert_false(asks_for_a_look(f, at(5000, 0)));
    fence_close(f, false);
}

/* Set back and right again: a lease of the time between is as long as any other. */
static void test_a_clock_set_back_and_forward_ends_no_lease(void **state)
{
    struct fence *f = open_at(*state, at(0, 0));

    assert_true(fence_extend(f, 60));
    fence_now(f, at(1000, -HOUR));
    fence_now(f, at(600000, -HOUR));
    assert_true(fence_extend(f, 60));
    fence_now(f, at(601000, 0));
    assert_true(waits_ms(*state, at(601000, 0)) >= 59000);
    fence_close(f, false);
}

static void test_a_clock_set_back_ends_no_lease(void **state)
{
    struct fence *f = open_at(*state, at(0, 0));

    assert_true(fence_extend(f, 60));
    fence_now(f, at(1000, -HOUR));
    assert_true(fence_extend(f, 60));
    assert_true(waits_ms(*state, at(2000, -HOUR)) >= 59000);
    fence_close(f, false);
}

/* A machine without a clock of its own starts in the past: the wait is as long as a lease can still
 * run, also when the clock is set meanwhile and the next run starts by it. */
static void test_a_clock_that_starts_in_the_past_prolongs_no_wait(void **state)
{
    const int64_t years = 50 * 365 * 24 * HOUR;
    struct fence *f = open_at(*state, at(0, 0));

    assert_true(fence_extend(f, 60));
    fence_close(f, false);
    f = open_at(*state, at(0, -years));
    assert_in_range(fence_unsafe_until_ms(f) - at(0, -years).wall_ms, 60000, 71000);
    fence_now(f, at(20000, 0));
    assert_in_range(waits_ms(*state, at(20000, 0)), 40000, 51000);
    fence_close(f, false);
}

/* After a clock has been set back the moment in the file is late enough for a lease that is longer
 * than those that it was written for. */
static void test_a_longer_lease_after_a_clock_set_back(void **state)
{
    struct fence *f = open_at(*state, at(0, 0));

    assert_true(fence_extend(f, 60));
    fence_now(f, at(1000, -HOUR));
    assert_true(fence_extend(f, 500));
    assert_true(waits_ms(*state, at(1000, -HOUR)) >= 500000);
    fence_close(f, false);
}

/* A write that failed may be in the file, and names a shorter time than the one before: for the
 * next block of fences, when the leases have nearly ended. */
static void test_a_failed_write_of_a_shorter_time(void **state)
{
    struct fence *f = open_at(*state, at(0, 0));
    struct lock_token token;

    assert_true(fence_extend(f, 60));
    fence_now(f, at(60000, 0));
    disk_fails = true;
    while (fence_grant(f, 1, &token))
        ;
    disk_fails = false;
    fence_now(f, at(61000, -HOUR));
    assert_true(fence_extend(f, 30));
    assert_true(waits_ms(*state, at(61000, -HOUR)) >= 30000);
    fence_close(f, false);
}

/* In a container every server has the same process id: by it, two that make the file at a time
 * would take one name, and the later one would write over what the earlier one has linked and uses.
 */
static void test_who_makes_the_file_spoils_no_other(void **state)
{
    char other[80], of_this_process[128];
    struct fence *f = open_at(*state, at(0, 0));

    assert_true(fence_extend(f, 60));
    snprintf(other, sizeof other, "%s-other", (char *)*state);
    snprintf(of_this_process, sizeof of_this_process, "%s.new-%ld", other, (long)getpid());
    assert_int_equal(link(*state, of_this_process), 0);
    fence_close(open_at(other, at(0, 0)), true);
    unlink(of_this_process);
    unlink(other);
    assert_in_range(waits_ms(*state, at(20000, 0)), 40000, 51000);
    fence_close(f, false);
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
        TEST(test_the_file_catches_up_with_a_clock_set_forward),
        TEST(test_a_clock_set_forward_little_by_little),
        TEST(test_a_reading_that_took_long_is_no_clock_set_forward),
        TEST(test_the_clock_is_watched_while_leases_run),
        TEST(test_a_clock_set_back_ends_no_lease),
        TEST(test_a_clock_that_starts_in_the_past_prolongs_no_wait),
        TEST(test_a_longer_lease_after_a_clock_set_back),
        TEST(test_a_failed_write_of_a_shorter_time),
        TEST(test_who_makes_the_file_spoils_no_other),
        TEST(test_a_clock_set_back_and_forward_ends_no_lease),
    };

    return cmocka_run_group_tests_name("fence", tests, NULL, NULL);
}
