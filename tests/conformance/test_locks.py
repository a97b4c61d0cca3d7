"""Locks: l, r, n, and what the server does on its own."""

import time

import pytest

from lib.eventually import Stopwatch, always, eventually
from lib.wire import fence_of, granted

DEFAULT_LEASE = 33
SECONDS_OF_A_SWEEP = 1.0
own_server = pytest.mark.own_server


# ---------------------------------------------------------------------- l and r


def test_a_free_lock_is_granted_with_a_token_and_the_default_lease(connect, key):
    assert connect().lock(key).lease == DEFAULT_LEASE


def test_the_lease_asked_for_is_granted(connect, key):
    assert connect().lock(key, lease=7).lease == 7


@own_server
def test_the_default_lease_is_a_setting(target, key):
    server = target.start("--default-lease-ttl", 5)
    with server.connect() as wire:
        assert wire.lock(key).lease == 5
        assert wire.ask("e", key + "-2").endswith(" 5")


def test_tokens_are_never_used_twice(connect, key):
    wire = connect()
    tokens = set()
    for _ in range(50):
        grant = wire.lock(key)
        tokens.add(grant.token)
        wire.release(key, grant.token)
    assert len(tokens) == 50


def test_a_try_of_a_held_lock_times_out_at_once(connect, key):
    holder, other = connect(), connect()
    holder.lock(key)
    with Stopwatch() as took:
        assert other.ask("l", key, "0") == "timeout"
    assert took.s < 0.9


def test_a_lock_is_not_reentrant(connect, key):
    wire = connect()
    wire.lock(key)
    assert wire.ask("l", key, "0") == "timeout"
    assert wire.ask("l", key, "1") == "timeout"


def test_locks_of_different_keys_do_not_exclude_each_other(connect, key):
    wire, other = connect(), connect()
    wire.lock(key)
    other.lock(key + "-2")


def test_a_released_lock_is_free(connect, key):
    one, two = connect(), connect()
    assert one.release(key, one.lock(key).token) == "ok"
    two.lock(key)


def test_release_needs_the_token(connect, key):
    wire, other = connect(), connect()
    grant = wire.lock(key)
    assert wire.release(key, "0" * 32) == "error"
    assert wire.release(key + "-2", grant.token) == "error"
    assert wire.release(key, "nonsense") == "error"
    assert other.try_lock(key) == "timeout"
    assert wire.release(key, grant.token) == "ok"
    assert wire.release(key, grant.token) == "error"


def test_an_old_token_does_not_release_the_next_holder(connect, key):
    wire, other = connect(), connect()
    old = wire.lock(key).token
    wire.release(key, old)
    other.lock(key)
    assert wire.release(key, old) == "error"
    assert connect().try_lock(key) == "timeout"


def test_whoever_knows_the_token_may_release_and_renew(connect, key):
    wire, other, third = connect(), connect(), connect()
    grant = wire.lock(key)
    assert other.renew(key, grant.token, 9).split(" ")[0] == "ok"
    assert other.release(key, grant.token) == "ok"
    third.lock(key)


def test_release_with_an_all_zero_token_harms_nothing(connect, key):
    wire = connect()
    grant = wire.lock(key)
    assert wire.ask("r", "_", "0" * 32) == "error"
    assert wire.renew(key, grant.token).startswith("ok ")


# ----------------------------------------------------------------------- waiting


def test_a_waiter_gets_the_lock_when_it_is_released(connect, queue, key):
    holder, waiter = connect(), connect()
    token = holder.lock(key).token
    queue(waiter, "l", "30 11")
    assert holder.release(key, token) == "ok"
    assert granted(waiter.receive()).lease == 11
    assert holder.try_lock(key) == "timeout"


def test_a_wait_that_is_not_granted_times_out(connect, key):
    holder, waiter = connect(), connect()
    holder.lock(key)
    with Stopwatch() as took:
        assert waiter.ask("l", key, "1") == "timeout"
    assert 0.9 <= took.s < 10


def test_a_waiter_that_timed_out_is_not_granted_later(connect, queue, key):
    holder, quitter, waiter = connect(), connect(), connect()
    token = holder.lock(key).token
    queue(quitter, "l", "1")
    queue(waiter, "l", "30")
    assert quitter.receive() == "timeout"
    assert holder.release(key, token) == "ok"
    granted(waiter.receive())
    quitter.expect_silence(0.1)


def test_waiters_are_served_in_the_order_of_their_coming(connect, queue, key):
    holder = connect()
    token = holder.lock(key).token
    line = [connect() for _ in range(8)]
    for wire in line:
        queue(wire, "l", "60")
    for wire in line:
        assert holder.release(key, token) == "ok"
        holder, token = wire, granted(wire.receive()).token
        for later in line[line.index(wire) + 1:]:
            assert not later.closed_by_peer()


def test_a_try_does_not_overtake_the_line(connect, queue, key):
    holder, waiter, third = connect(), connect(), connect()
    token = holder.lock(key).token
    queue(waiter, "l", "30")
    holder.send_raw(f"r\n{key}\n{token}\nl\n{key}\n0\n".encode())
    assert holder.receive() == "ok"
    assert holder.receive() == "timeout"
    granted(waiter.receive())
    assert third.try_lock(key) == "timeout"


def test_a_closed_waiter_does_not_keep_the_lock(target, server, connect, queue, key):
    """Gone at once, or when its turn comes: then it is granted and released at once. Never later."""
    holder, vanishing, waiter = connect(), connect(), connect()
    token = holder.lock(key).token
    queue(vanishing, "l", "60")
    queue(waiter, "l", "60")
    vanishing.close()
    if target.dialect.stats:
        if target.dialect.closed_waiter_leaves:
            eventually(lambda: server.waiters(key) == 1, what="the vanished waiter is out of the line")
        else:
            always(lambda: server.waiters(key) == 2, 0.5, what="the vanished waiter keeps its place")
    assert holder.release(key, token) == "ok"
    granted(waiter.receive())


def test_a_waiter_that_is_reset_does_not_keep_the_lock(connect, queue, key):
    holder, vanishing, waiter = connect(), connect(), connect()
    token = holder.lock(key).token
    queue(vanishing, "l", "60")
    queue(waiter, "l", "60")
    vanishing.reset()
    assert holder.release(key, token) == "ok"
    granted(waiter.receive())


# ------------------------------------------------------------------------ leases


def test_a_renewal_answers_the_seconds_left(connect, key):
    wire = connect()
    token = wire.lock(key, lease=5).token
    word, seconds = wire.renew(key, token, 20).split(" ")
    assert word == "ok" and int(seconds) in (19, 20)


def test_a_renewal_of_one_second_may_answer_zero(connect, key):
    wire = connect()
    token = wire.lock(key, lease=5).token
    assert wire.renew(key, token, 1) in ("ok 0", "ok 1")


def test_a_renewal_without_a_lease_sets_the_default(connect, key):
    wire = connect()
    token = wire.lock(key, lease=600).token
    assert wire.renew(key, token) in (f"ok {DEFAULT_LEASE}", f"ok {DEFAULT_LEASE - 1}")


def test_a_renewal_needs_the_token(connect, key):
    wire = connect()
    wire.lock(key)
    assert wire.renew(key, "0" * 32, 5) == "error"
    assert wire.renew(key + "-2", "0" * 32, 5) == "error"


def test_a_released_lock_cannot_be_renewed(connect, key):
    wire = connect()
    token = wire.lock(key).token
    wire.release(key, token)
    assert wire.renew(key, token, 5) == "error"


def test_a_lease_ends_and_the_next_in_line_gets_the_lock(connect, key):
    holder, waiter = connect(), connect()
    with Stopwatch() as took:
        token = holder.lock(key, lease=1).token
        granted(waiter.ask("l", key, "30"))
    assert took.s >= 0.95, "never before the lease is over"
    assert took.s < 1 + SECONDS_OF_A_SWEEP + 5
    assert holder.renew(key, token, 5) == "error"
    assert holder.release(key, token) == "error"


def test_a_lease_ends_without_anybody_waiting(connect, key):
    holder, other = connect(), connect()
    holder.lock(key, lease=1)
    eventually(lambda: other.try_lock(key) == "ok", what="the lock is free after its lease")


def test_an_expired_lease_cannot_be_renewed(connect, key):
    """Nobody else asks, so only the clock can have ended it."""
    wire = connect()
    began = time.monotonic()
    token = wire.lock(key, lease=1).token
    eventually(lambda: time.monotonic() > began + 1.2, what="the lease is over")
    assert wire.renew(key, token, 5) == "error"
    connect().lock(key)


def test_renewals_keep_a_lock_beyond_its_lease(connect, key):
    holder, other = connect(), connect()
    token = holder.lock(key, lease=2).token
    end = time.monotonic() + 4.5

    def still_held():
        assert holder.renew(key, token, 2).split(" ")[0] == "ok"
        assert other.try_lock(key) == "timeout"
        return time.monotonic() > end

    eventually(still_held, every=0.3)


def test_a_shorter_lease_takes_effect(connect, key):
    holder, other = connect(), connect()
    token = holder.lock(key, lease=600).token
    assert holder.renew(key, token, 1).split(" ")[0] == "ok"
    granted(other.ask("l", key, "30"))


# ------------------------------------------------------------------- connections


@pytest.mark.parametrize("how", ["close", "reset", "half_close"])
def test_a_lost_connection_gives_its_locks_back(connect, key, how):
    holder, other = connect(), connect()
    holder.lock(key)
    holder.lock(key + "-2")
    getattr(holder, how)()
    granted(other.ask("l", key, "20"))
    granted(other.ask("l", key + "-2", "20"))


def test_a_lost_connection_hands_the_lock_to_the_next_in_line(connect, queue, key):
    holder, waiter = connect(), connect()
    holder.lock(key)
    queue(waiter, "l", "30")
    holder.close()
    granted(waiter.receive())


def test_a_request_before_a_half_close_is_still_answered(connect, key):
    wire = connect()
    wire.send("l", key, "0")
    wire.half_close()
    granted(wire.receive())
    wire.expect_closed()
    granted(connect().ask("l", key, "20"))


def test_a_lock_that_was_released_and_taken_by_another_is_not_given_back(connect, key):
    first, second, third = connect(), connect(), connect()
    first.release(key, first.lock(key).token)
    second.lock(key)
    first.close()
    assert third.ask("l", key, "1") == "timeout"


@own_server
def test_locks_outlive_their_connection_where_that_is_set(target, key):
    server = target.start(target.dialect.no_auto_release)
    with server.connect() as holder:
        token = holder.lock(key, lease=30).token
    with server.connect() as other:
        assert other.ask("l", key, "1") == "timeout"
        assert other.renew(key, token, 30).split(" ")[0] == "ok"
        assert other.release(key, token) == "ok"
        other.lock(key)


@own_server
def test_a_silent_connection_is_closed_after_the_read_timeout(target, key):
    server = target.start("--read-timeout", 1)
    with server.connect() as silent, server.connect() as other:
        silent.lock(key)
        with Stopwatch() as took:
            assert silent.receive() == "error"
            silent.expect_closed()
        assert took.s >= 0.9
    with server.connect() as other:
        granted(other.ask("l", key, "20"))


@own_server
def test_half_a_request_does_not_hold_a_connection_open(target, key):
    server = target.start("--read-timeout", 1)
    with server.connect() as wire:
        wire.send_raw(f"l\n{key}".encode())
        assert wire.receive() == "error"
        wire.expect_closed()


@own_server
def test_a_wait_longer_than_the_read_timeout_is_not_cut(target, key):
    server = target.start("--read-timeout", 1)
    with server.connect() as holder, server.connect() as waiter:
        token = holder.lock(key, lease=30).token
        target.await_queued(server, key, lambda: waiter.send("l", key, "30"))
        end = time.monotonic() + 2.5

        def holder_stays():
            assert holder.renew(key, token, 30).split(" ")[0] == "ok"
            return time.monotonic() > end

        eventually(holder_stays, every=0.2)
        assert holder.release(key, token) == "ok"
        granted(waiter.receive())


@own_server
def test_max_locks_counts_keys(target, key):
    server = target.start("--max-locks", 2)
    with server.connect() as wire, server.connect() as other:
        token = wire.lock(key + "-1").token
        wire.lock(key + "-2")
        assert wire.ask("l", key + "-3", "0") == "error_max_locks"
        assert wire.ask("l", key + "-3", "5") == "error_max_locks"
        assert wire.ask("e", key + "-3", "") == "error_max_locks"
        known = "error_max_locks" if target.dialect.max_locks_counts_known else "timeout"
        assert other.ask("l", key + "-2", "0") == known
        assert wire.renew(key + "-1", token, 5).split(" ")[0] == "ok"
        if target.dialect.semaphores:
            assert wire.ask("sl", key + "-3", "0 2") == "error_max_locks"
            assert wire.ask("se", key + "-3", "2") == "error_max_locks"


@own_server
def test_idle_keys_are_collected(target, key):
    server = target.start("--max-locks", 1, "--gc-interval", 1, "--gc-max-idle", 1)
    with server.connect() as wire, server.connect() as other:
        wire.release(key, wire.lock(key).token)
        assert other.ask("l", key + "-2", "0") == "error_max_locks"
        eventually(lambda: other.try_lock(key + "-2") == "ok", every=0.2, what="the idle key is collected")


@own_server
def test_a_held_key_is_never_collected(target, key):
    server = target.start("--gc-interval", 1, "--gc-max-idle", 1)
    with server.connect() as wire, server.connect() as other:
        token = wire.lock(key, lease=30).token
        end = time.monotonic() + 3.5
        eventually(lambda: time.monotonic() > end and other.try_lock(key + "-2"), every=0.2)
        assert other.try_lock(key) == "timeout"
        assert wire.release(key, token) == "ok"


@own_server
def test_max_waiters_limits_the_line_of_each_key(target, key):
    if not target.has("--max-waiters"):
        return target.refuses("--max-waiters", 1)
    server = target.start("--max-waiters", 1)
    with server.connect() as holder, server.connect() as waiter, server.connect() as third:
        token = holder.lock(key).token
        target.await_queued(server, key, lambda: waiter.send("l", key, "30"))
        assert third.ask("l", key, "30") == "error_max_waiters"
        assert third.ask("e", key, "") == "error_max_waiters"
        assert third.ask("l", key, "0") in target.dialect.try_at_max_waiters
        assert third.try_lock(key + "-2") == "ok", "another key has a line of its own"
        assert holder.release(key, token) == "ok"
        granted(waiter.receive())
        third.send("l", key, "30")
        server.await_waiters(key, 1)


@own_server
def test_max_connections_closes_the_next_one_without_a_word(target, key):
    if not target.has("--max-connections"):
        return target.refuses("--max-connections", 1)
    server = target.start("--max-connections", 2)
    with server.connect() as one, server.connect() as two:
        token = one.lock(key).token
        two.try_lock(key)
        with server.connect() as third:
            third.expect_closed()
        assert one.renew(key, token, 5).split(" ")[0] == "ok"
        two.close()

        def served():
            with server.connect() as wire:
                wire.send("l", key, "0")
                return not wire.closed_by_peer() and wire.receive() == "timeout"

        eventually(served, what="a connection is accepted again")


# ------------------------------------------------------------------------ fences


def test_fences_grow_with_every_grant(target, connect, key):
    wire = connect()
    tokens = []
    for i in range(20):
        grant = wire.lock(f"{key}-{i % 3}")
        tokens.append(grant.token)
        wire.release(f"{key}-{i % 3}", grant.token)
    fences = [fence_of(t) for t in tokens]
    if target.dialect.fences:
        assert fences == sorted(set(fences))
        now = time.time_ns()
        day = 24 * 3600 * 10**9
        assert now - 10_000 * day < fences[0] < now + day, "a fence is seeded from the clock in nanoseconds"
    else:
        assert fences != sorted(fences), "random digits have no order"


def test_the_next_in_line_has_a_larger_fence(target, connect, queue, key):
    holder, waiter, late = connect(), connect(), connect()
    old = holder.lock(key)
    queue(waiter, "l", "30")
    assert late.ask("e", key, "") == "queued"
    holder.release(key, old.token)
    new = granted(waiter.receive())
    waiter.release(key, new.token)
    last = granted(late.ask("w", key, "5"))
    assert len({old.token, new.token, last.token}) == 3
    if target.dialect.fences:
        assert fence_of(old.token) < fence_of(new.token) < fence_of(last.token)


def test_a_renewal_does_not_change_the_token(connect, key):
    wire = connect()
    token = wire.lock(key).token
    assert wire.renew(key, token, 5).split(" ")[0] == "ok"
    assert wire.release(key, token) == "ok"


@own_server
def test_fences_grow_over_a_restart(target, key):
    server = target.start()
    with server.connect() as wire:
        before = wire.lock(key).token
    server.restart()
    with server.connect() as wire:
        after = wire.lock(key).token
        assert before != after
        if target.dialect.fences:
            assert fence_of(after) > fence_of(before)
        assert wire.release(key, before) == "error", "the old server's grants are forgotten"
