"""Two-phase: `e` takes a place in the line and answers at once, `w` waits for the turn. Same connection for both."""

import time

import pytest

from lib.eventually import Stopwatch, always, eventually
from lib.wire import granted

own_server = pytest.mark.own_server


def test_enqueue_of_a_free_lock_is_a_grant(connect, key):
    wire, other = connect(), connect()
    answer = wire.ask("e", key, "")
    assert answer.startswith("acquired ") and granted(answer).lease == 33
    assert other.try_lock(key) == "timeout"
    assert wire.release(key, granted(answer).token) == "ok"


def test_enqueue_takes_a_lease(connect, key):
    assert granted(connect().ask("e", key, "8")).lease == 8


def test_enqueue_of_a_held_lock_is_a_place_and_wait_its_turn(connect, queue, key):
    holder, waiter = connect(), connect()
    token = holder.lock(key).token
    assert waiter.ask("e", key, "9") == "queued"
    waiter.send("w", key, "30")
    waiter.expect_silence(0.2)
    assert holder.release(key, token) == "ok"
    grant = granted(waiter.receive())
    assert grant.lease == 9
    assert waiter.release(key, grant.token) == "ok"


def test_a_wait_after_acquired_answers_with_the_same_token_at_once(connect, key):
    wire = connect()
    grant = granted(wire.ask("e", key, "9"))
    assert granted(wire.ask("w", key, "0")) == grant
    assert wire.release(key, grant.token) == "ok"


def test_a_turn_that_came_before_the_wait_is_granted_at_once(connect, key):
    holder, waiter, third = connect(), connect(), connect()
    token = holder.lock(key).token
    assert waiter.ask("e", key, "30") == "queued"
    assert holder.release(key, token) == "ok"
    assert third.try_lock(key) == "timeout", "the place has become a grant already"
    granted(waiter.ask("w", key, "5"))


def test_a_wait_that_times_out_leaves_the_line(target, connect, key):
    holder, waiter, other = connect(), connect(), connect()
    token = holder.lock(key).token
    assert waiter.ask("e", key, "") == "queued"
    with Stopwatch() as took:
        assert waiter.ask("w", key, "1") == "timeout"
    assert 0.9 <= took.s < 10
    assert holder.release(key, token) == "ok"
    other.lock(key)
    assert waiter.ask("w", key, "0") == target.dialect.not_enqueued


def test_a_wait_of_zero_seconds_looks_once_and_leaves_the_line(target, connect, key):
    holder, waiter = connect(), connect()
    holder.lock(key)
    assert waiter.ask("e", key, "") == "queued"
    assert waiter.ask("w", key, "0") == "timeout"
    assert waiter.ask("w", key, "0") == target.dialect.not_enqueued


def test_a_wait_without_a_place_is_refused(target, connect, key):
    wire = connect()
    assert wire.ask("w", key, "0") == target.dialect.not_enqueued
    assert wire.ask("w", key, "5") == target.dialect.not_enqueued


def test_a_place_belongs_to_its_connection(target, connect, key):
    holder, waiter, other = connect(), connect(), connect()
    holder.lock(key)
    assert waiter.ask("e", key, "") == "queued"
    assert other.ask("w", key, "1") == target.dialect.not_enqueued


def test_a_second_place_of_one_connection_is_refused(target, connect, key):
    holder, waiter = connect(), connect()
    holder.lock(key)
    assert waiter.ask("e", key, "") == "queued"
    waiter.send("e", key, "")
    assert waiter.receive() == target.dialect.already_enqueued
    if target.dialect.bad_request_closes:
        # The first server says `error` here and keeps the connection: it is no parse error.
        assert waiter.ask("w", key, "0") == "timeout"


def test_a_place_after_acquired_is_refused_until_it_was_waited_for(target, connect, key):
    wire = connect()
    token = granted(wire.ask("e", key, "")).token
    assert wire.ask("e", key, "") == target.dialect.already_enqueued
    assert granted(wire.ask("w", key, "0")).token == token
    assert wire.ask("e", key, "") == "queued", "in line behind its own hold"


def test_enqueue_again_after_acquired_and_release(target, connect, key):
    wire = connect()
    token = granted(wire.ask("e", key, "")).token
    assert wire.release(key, token) == "ok"
    answer = wire.ask("e", key, "")
    if target.dialect.enqueue_again:
        granted(answer)
    else:
        assert answer == "error"
        assert granted(connect().ask("e", key, "")), "another connection can"


def test_places_and_waiting_locks_are_one_line(connect, queue, key):
    holder, first, second, third = connect(), connect(), connect(), connect()
    token = holder.lock(key).token
    assert first.ask("e", key, "") == "queued"
    queue(second, "l", "60")
    assert third.ask("e", key, "") == "queued"
    first.send("w", key, "60")
    third.send("w", key, "60")
    for wire in (first, second, third):
        assert holder.release(key, token) == "ok"
        holder, token = wire, granted(wire.receive()).token
    assert holder.release(key, token) == "ok"


def test_a_place_whose_connection_closes_is_gone(connect, key):
    holder, quitter, waiter = connect(), connect(), connect()
    token = holder.lock(key).token
    assert quitter.ask("e", key, "") == "queued"
    assert waiter.ask("e", key, "") == "queued"
    quitter.close()
    waiter.send("w", key, "30")
    assert holder.release(key, token) == "ok"
    granted(waiter.receive())


def test_an_acquired_place_whose_connection_closes_is_free(connect, key):
    wire, other = connect(), connect()
    granted(wire.ask("e", key, "60"))
    wire.close()
    granted(other.ask("l", key, "20"))


def test_one_connection_may_have_places_for_many_keys(connect, key):
    holder, waiter = connect(), connect()
    tokens = {}
    for i in range(5):
        tokens[i] = holder.lock(f"{key}-{i}").token
        assert waiter.ask("e", f"{key}-{i}", "") == "queued"
    for i in (3, 0, 4, 1, 2):
        assert holder.release(f"{key}-{i}", tokens[i]) == "ok"
        granted(waiter.ask("w", f"{key}-{i}", "5"))


def test_a_grant_that_lapsed_before_its_wait_after_acquired(target, connect, key):
    wire, other = connect(), connect()
    granted(wire.ask("e", key, "1"))
    granted(other.ask("l", key, "30 60"))
    assert wire.ask("w", key, "0") in target.dialect.lapsed_acquired
    assert connect().try_lock(key) == "timeout", "it is the other's"


def test_a_grant_that_lapsed_before_its_wait_after_queued(target, connect, key):
    """The trap: some servers say `ok` although the lock is somebody else's by now. A client has to renew to know."""
    holder, waiter, other = connect(), connect(), connect()
    token = holder.lock(key).token
    assert waiter.ask("e", key, "1") == "queued"
    assert holder.release(key, token) == "ok"
    granted(other.ask("l", key, "30 60"))
    answer = waiter.ask("w", key, "5")
    assert answer.split(" ")[0] == target.dialect.lapsed_queued
    if target.dialect.lapsed_queued == "ok":
        assert waiter.renew(key, granted(answer).token, 5) == "error"
    assert connect().try_lock(key) == "timeout", "it is the other's"


@own_server
def test_a_place_without_its_wait_is_lost_with_the_read_timeout(target, key):
    server = target.start("--read-timeout", 1)
    with server.connect() as holder, server.connect() as waiter:
        token = holder.lock(key, lease=60).token
        assert waiter.ask("e", key, "") == "queued"

        def closed():
            assert holder.renew(key, token, 60).split(" ")[0] == "ok"
            return waiter.closed_by_peer()

        eventually(closed, every=0.2, what="the silent connection is closed")
        assert holder.release(key, token) == "ok"
        granted(holder.ask("l", key, "20"))


@own_server
def test_a_place_with_its_wait_outlives_the_read_timeout(target, key):
    server = target.start("--read-timeout", 1)
    with server.connect() as holder, server.connect() as waiter:
        token = holder.lock(key, lease=60).token
        assert waiter.ask("e", key, "") == "queued"
        waiter.send("w", key, "60")
        end = time.monotonic() + 2.5
        always(lambda: holder.renew(key, token, 60).startswith("ok") and not waiter.closed_by_peer(), 2.5, every=0.2)
        assert time.monotonic() >= end and holder.release(key, token) == "ok"
        granted(waiter.receive())
