"""Semaphores: sl, sr, sn, se, sw. The first server has none, and answers each of them `error`."""

import pytest

from lib.eventually import eventually
from lib.wire import fence_of, granted

own_server = pytest.mark.own_server


@pytest.fixture(autouse=True)
def semaphores_or_errors(request, target):
    """On a server without semaphores each test is instead that its commands are unknown there, and close."""
    request.node.without = not target.dialect.semaphores


def unknown(request, connect, key):
    """True on a server without semaphores, after having seen it refuse all five commands."""
    if not request.node.without:
        return False
    for command, argument in (("sl", "0 2"), ("sr", "0" * 32), ("sn", "0" * 32), ("se", "2"), ("sw", "0")):
        wire = connect()
        wire.lock(key)
        assert wire.ask(command, key + "-s", argument) == "error"
        wire.expect_closed()
        other = connect()
        token = granted(other.ask("l", key, "20")).token
        other.release(key, token)
    return True


def test_up_to_the_limit_hold_at_once(request, connect, key):
    if unknown(request, connect, key):
        return
    wires = [connect() for _ in range(4)]
    grants = [wire.slot(key, 3) for wire in wires[:3]]
    assert len({g.token for g in grants}) == 3 and all(g.lease == 33 for g in grants)
    assert wires[3].ask("sl", key, "0 3") == "timeout"
    assert wires[3].ask("sl", key, "1 3") == "timeout"
    assert wires[3].ask("sr", key, grants[1].token) == "ok"
    wires[3].slot(key, 3)
    assert wires[0].ask("sl", key, "0 3") == "timeout"


def test_one_connection_may_hold_several_slots(request, connect, key):
    if unknown(request, connect, key):
        return
    wire, other = connect(), connect()
    for _ in range(2):
        wire.slot(key, 3)
    other.slot(key, 3)
    assert other.ask("sl", key, "0 3") == "timeout"
    wire.close()
    granted(other.ask("sl", key, "20 3"))
    granted(other.ask("sl", key, "20 3"))
    assert other.ask("sl", key, "0 3") == "timeout"


def test_the_lease_asked_for_is_granted(request, connect, key):
    if unknown(request, connect, key):
        return
    wire = connect()
    assert granted(wire.ask("sl", key, "0 2 6")).lease == 6
    assert granted(wire.ask("se", key, "2 8")).lease == 8


def test_release_and_renew_need_a_token_of_the_key(request, connect, key):
    if unknown(request, connect, key):
        return
    wire = connect()
    one, two = wire.slot(key, 2), wire.slot(key, 2)
    assert wire.ask("sr", key, "0" * 32) == "error"
    assert wire.ask("sn", key, "0" * 32) == "error"
    assert wire.ask("sn", key, f"{two.token} 20") in ("ok 20", "ok 19")
    assert wire.ask("sr", key, one.token) == "ok"
    assert wire.ask("sr", key, one.token) == "error", "a second release gives no second slot"
    assert wire.ask("sn", key, one.token) == "error"
    wire.slot(key, 2)
    assert wire.ask("sl", key, "0 2") == "timeout"


def test_waiters_are_served_in_the_order_of_their_coming(request, connect, queue, key):
    if unknown(request, connect, key):
        return
    holder = connect()
    tokens = [holder.slot(key, 2).token for _ in range(2)]
    line = [connect() for _ in range(5)]
    for wire in line:
        queue(wire, "sl", "60 2")
    for wire in line:
        assert holder.ask("sr", key, tokens.pop(0)) == "ok"
        tokens.append(granted(wire.receive()).token)


def test_a_try_does_not_overtake_the_line(request, connect, queue, key):
    if unknown(request, connect, key):
        return
    holder, waiter = connect(), connect()
    token = holder.slot(key, 1).token
    queue(waiter, "sl", "30 1")
    holder.send_raw(f"sr\n{key}\n{token}\nsl\n{key}\n0 1\n".encode())
    assert holder.receive() == "ok"
    assert holder.receive() == "timeout"
    granted(waiter.receive())


def test_a_lease_ends_and_frees_its_slot_only(request, connect, key):
    if unknown(request, connect, key):
        return
    wire, other = connect(), connect()
    short = wire.slot(key, 2, lease=1)
    long = wire.slot(key, 2, lease=60)
    granted(other.ask("sl", key, "30 2"))
    assert other.ask("sl", key, "0 2") == "timeout"
    assert wire.ask("sn", key, f"{short.token} 5") == "error"
    assert wire.ask("sn", key, f"{long.token} 60").startswith("ok ")


def test_two_phases(request, target, connect, key):
    if unknown(request, connect, key):
        return
    holder, waiter = connect(), connect()
    one = granted(holder.ask("se", key, "2"))
    assert granted(holder.ask("sw", key, "0")).token == one.token
    two = holder.slot(key, 2)
    assert waiter.ask("se", key, "2 9") == "queued"
    assert waiter.ask("se", key, "2 9") == target.dialect.already_enqueued
    waiter.send("sw", key, "30")
    waiter.expect_silence(0.2)
    assert holder.ask("sr", key, two.token) == "ok"
    assert granted(waiter.receive()).lease == 9
    assert waiter.ask("sw", key, "0") == target.dialect.not_enqueued
    assert connect().ask("sw", key, "1") == target.dialect.not_enqueued


def test_a_wait_that_times_out_leaves_the_line(request, target, connect, key):
    if unknown(request, connect, key):
        return
    holder, waiter = connect(), connect()
    token = holder.slot(key, 1).token
    assert waiter.ask("se", key, "1") == "queued"
    assert waiter.ask("sw", key, "1") == "timeout"
    assert holder.ask("sr", key, token) == "ok"
    holder.slot(key, 1)
    assert waiter.ask("sw", key, "0") == target.dialect.not_enqueued


def test_a_closed_waiter_does_not_keep_a_slot(request, connect, queue, key):
    if unknown(request, connect, key):
        return
    holder, vanishing, waiter = connect(), connect(), connect()
    token = holder.slot(key, 1).token
    queue(vanishing, "sl", "60 1")
    queue(waiter, "sl", "60 1")
    vanishing.close()
    assert holder.ask("sr", key, token) == "ok"
    granted(waiter.receive())


def test_another_limit_is_refused(request, connect, key):
    if unknown(request, connect, key):
        return
    wire, other = connect(), connect()
    token = wire.slot(key, 3).token
    for argument in ("0 2", "5 2", "0 4"):
        assert other.ask("sl", key, argument) == "error_limit_mismatch"
    assert other.ask("se", key, "2") == "error_limit_mismatch"
    assert wire.ask("sr", key, token) == "ok"
    assert other.ask("sl", key, "0 2") == "error_limit_mismatch", "a key keeps its limit until it is collected"


@own_server
def test_a_collected_key_forgets_its_limit(request, target, connect, key):
    if unknown(request, connect, key):
        return
    server = target.start("--gc-interval", 1, "--gc-max-idle", 1)
    with server.connect() as wire, server.connect() as other:
        wire.ask("sr", key, wire.slot(key, 3).token)
        eventually(lambda: not server.stats()["idle_semaphores"], every=0.2, what="the key is collected")
        granted(other.ask("sl", key, "0 2"))


def test_a_semaphore_of_one_is_a_lock_or_another_thing(request, target, connect, key):
    if unknown(request, connect, key):
        return
    wire, other = connect(), connect()
    lock = wire.lock(key)
    answer = other.ask("sl", key, "0 1")
    if target.dialect.shared_namespace:
        assert answer == "timeout"
        assert other.ask("sl", key, "0 2") == "error_limit_mismatch"
        assert other.ask("se", key, "2") == "error_limit_mismatch"
        assert wire.release(key, lock.token) == "ok"
        slot = other.slot(key, 1)
        assert wire.ask("l", key, "0") == "timeout"
        assert fence_of(slot.token) > fence_of(lock.token) or not target.dialect.fences
    else:
        granted(answer)
        assert wire.release(key, lock.token) == "ok"


def test_a_lock_on_a_semaphores_key(request, target, connect, key):
    if unknown(request, connect, key):
        return
    wire, other = connect(), connect()
    wire.slot(key, 2)
    if target.dialect.shared_namespace:
        assert other.ask("l", key, "0") == "error_limit_mismatch"
        assert other.ask("e", key, "") == "error_limit_mismatch"
    else:
        other.lock(key)
