"""Places in a queue: enqueue, wait, leave, and everything that can come between."""

import time

import pytest

from lib.eventually import eventually

QUEUED = """
    EXPECT e / k / {lease}
    SEND queued
    EXPECT w / k / *
"""


def queued(more, lease=""):
    """The script of a place's connection: `e` is queued, `w` follows at once, then `more`."""
    return QUEUED.replace("{lease}", str(lease)) + more


def test_the_wait_is_sent_right_after_queued_and_as_long_as_the_wire_allows(make_peer, make_engine):
    peer = make_peer("""
        EXPECT e / k / 9
        SEND queued
        EXPECT w / k / 9223372036
    """)
    engine = make_engine(peer)
    answer = engine.ok("enqueue", key="k", lease=9)
    assert answer.state == "queued" and answer.from_enqueue and answer.token == ""
    peer.check()
    assert not engine.is_held("k")


def test_a_place_that_comes_up_while_somebody_waits(make_peer, make_engine):
    peer = make_peer(queued("WAIT turn\nSEND ok {t1} 30\nEXPECT r / k / {t1}\nSEND ok", 30))
    engine = make_engine(peer)
    engine.ok("enqueue", key="k", lease=30)
    call = engine.start("wait", key="k", timeout=60)
    peer.reached("turn")
    peer.go("turn")
    hold = engine.finish(call)
    assert (hold.status, hold.state, hold.token) == ("ok", "held", peer.value("t1"))
    assert engine.is_held("k")
    engine.ok("release", key="k")
    peer.check()


def test_a_wait_that_ends_by_its_time_keeps_the_place(make_peer, make_engine):
    peer = make_peer(queued("WAIT turn\nSEND ok {t1} 30", 30), auto={"n": "ok {lease}"})
    engine = make_engine(peer)
    engine.ok("enqueue", key="k", lease=30)
    for timeout in (0, 0.3, 0.2):
        answer = engine.fails("wait", "timeout", key="k", timeout=timeout)
        assert answer.sqlstate == "55P03"
    assert engine.hold("k").state == "queued"
    call = engine.start("wait", key="k", timeout=60)
    peer.go("turn")
    assert engine.finish(call).status == "ok"
    assert peer.count("w") == 1 and peer.count("e") == 1, "the first w stayed outstanding"
    assert peer.count("l") == 0, "a wait never tries"
    peer.check()


def test_a_wait_is_never_false_without_a_sign_of_life(make_peer, make_engine):
    """Nothing on the place's own connection, and nobody answers on another: that is an error, and the place stays."""
    peer = make_peer(queued("WAIT turn\nSEND ok {t1} 60", 60), auto={"n": "ok {lease}"})
    engine = make_engine(peer, connect_timeout=0.5, keepalive=0.3)
    engine.ok("enqueue", key="k", lease=60)
    peer.auto["ping"] = None
    answer = engine.fails("wait", "broken", key="k", timeout=30)
    assert answer.sqlstate == "LK011" and answer.ms < 5000
    assert engine.hold("k").state == "queued", "as long as its own connection lives"
    peer.auto["ping"] = "ok"
    engine.fails("wait", "timeout", key="k", timeout=0.2)
    call = engine.start("wait", key="k", timeout=60)
    peer.go("turn")
    assert engine.finish(call).status == "ok"


def test_a_turn_that_came_up_is_seen_by_the_next_wait(make_peer, make_engine):
    peer = make_peer(queued("SEND ok {t1} 30\nWAIT sent", 30), auto={"n": "ok {lease}"})
    engine = make_engine(peer)
    engine.ok("enqueue", key="k", lease=30)
    peer.go("sent")
    assert engine.ok("wait", key="k", timeout=0).token == peer.value("t1")
    assert engine.is_held("k")
    peer.check()


def test_a_wait_of_what_is_held_already_is_true_at_once(make_peer, make_engine):
    peer = make_peer("""
        EXPECT e / k /
        SEND acquired {t1} 33
    """)
    engine = make_engine(peer)
    hold = engine.ok("enqueue", key="k")
    assert hold.state == "held" and hold.token == peer.value("t1")
    assert engine.ok("wait", key="k", timeout=0).token == peer.value("t1")
    assert peer.count("w") == 0
    peer.check()


def test_the_connection_of_an_acquired_place_is_not_used_again(make_peer, make_engine):
    """The first server refuses the next `e` of that key there."""
    peer = make_peer("""
        EXPECT e / k /
        SEND acquired {t1} 33
        EXPECT r / k / {t1}
        SEND ok
        EOF
        ACCEPT
        EXPECT e / k /
        SEND acquired {t2} 33
    """)
    engine = make_engine(peer)
    engine.ok("enqueue", key="k")
    engine.ok("release", key="k")
    assert engine.ok("enqueue", key="k").token == peer.value("t2")
    peer.check()


# ----------------------------------------------------------------------- came up and lapsed


def test_a_stale_ok_is_confirmed_refused_and_told_as_lapsed(make_peer, make_engine):
    """v1.10 and 0.5.0: `ok` for a grant that is somebody else's by now."""
    peer = make_peer(queued("""
        SLEEP 0.8
        SEND ok {t1} 1
        EXPECT n / k / {t1} 1
        SEND error
    """, 1), auto={"r": "error"})
    engine = make_engine(peer)
    engine.ok("enqueue", key="k", lease=1)
    answer = engine.fails("wait", "lapsed", key="k", timeout=60)
    assert answer.sqlstate == "55000" and "came up and lapsed" in answer.text
    assert not engine.is_held("k")
    engine.fails("wait", "not_queued", key="k", timeout=0)
    assert engine.leave("k") is False
    peer.check()


def test_a_grant_that_nobody_picked_up_is_not_renewed_and_lapses(make_peer, make_engine):
    peer = make_peer(queued("SEND ok {t1} 1\nEXPECT n / k / {t1} 1\nSEND error", 1), auto={"r": "error"})
    engine = make_engine(peer, keepalive=0.3)
    engine.ok("enqueue", key="k", lease=1)
    end = time.monotonic() + 1.6
    eventually(lambda: time.monotonic() > end)
    answer = engine.fails("wait", "lapsed", key="k", timeout=60)
    assert answer.sqlstate == "55000"
    engine.fails("wait", "not_queued", key="k", timeout=0)
    assert not engine.is_held("k")


def test_a_grant_picked_up_late_is_confirmed(make_peer, make_engine):
    peer = make_peer(queued("SEND ok {t1} 2\nEXPECT n / k / {t1} 2\nWAIT confirm\nSEND ok 2", 2))
    engine = make_engine(peer)
    engine.ok("enqueue", key="k", lease=2)
    end = time.monotonic() + 1.2
    eventually(lambda: time.monotonic() > end)
    call = engine.start("wait", key="k", timeout=60)
    peer.reached("confirm")
    assert not engine.done(call) and not engine.is_held("k")
    peer.go("confirm")
    assert engine.finish(call).state == "held"
    peer.check()


@pytest.mark.parametrize("word, status, sqlstate", [
    ("error_lease_expired", "lapsed", "55000"), ("error_not_enqueued", "not_enqueued", "LK002"),
    ("error_draining", "draining", "LK005"), ("error", "refused", "LK005")])
def test_an_error_word_to_a_wait(make_peer, make_engine, word, status, sqlstate):
    peer = make_peer(queued(f"WAIT word\nSEND {word}"))
    engine = make_engine(peer)
    engine.ok("enqueue", key="k")
    call = engine.start("wait", key="k", timeout=60)
    peer.go("word")
    answer = engine.finish(call)
    assert (answer.status, answer.sqlstate) == (status, sqlstate), answer
    engine.fails("wait", "not_queued", key="k", timeout=0)


@pytest.mark.parametrize("word, status, sqlstate", [
    ("error_already_enqueued", "already_enqueued", "LK003"), ("error_max_waiters", "max_waiters", "LK004"),
    ("error_max_locks", "max_locks", "LK004"), ("error", "refused", "LK005"), ("banana", "protocol", "LK012"),
    ("timeout", "protocol", "LK012"), ("ok {t1} 30", "protocol", "LK012")])
def test_an_error_word_to_an_enqueue(make_peer, make_engine, word, status, sqlstate):
    peer = make_peer(f"EXPECT e / k / *\nSEND {word}", auto={"r": "ok"})
    engine = make_engine(peer)
    answer = engine.fails("enqueue", status, key="k")
    assert answer.sqlstate == sqlstate
    assert engine.holds() == []


# -------------------------------------------------------------------------- the end of a place


@pytest.mark.parametrize("end", ["CLOSE", "RESET"])
def test_a_place_whose_connection_dies_is_told_once_with_when_and_why(make_peer, make_engine, end):
    peer = make_peer(queued(f"WAIT die\n{end}"))
    engine = make_engine(peer)
    engine.ok("enqueue", key="k")
    peer.go("die")
    eventually(lambda: engine.busy().left_behind == 0)
    answer = engine.fails("wait", "broken", key="k", timeout=30)
    assert answer.sqlstate == "LK011" and peer.address in answer.text and " ago" in answer.text
    engine.fails("wait", "not_queued", key="k", timeout=0)
    assert engine.leave("k") is False


def test_a_place_whose_connection_dies_while_somebody_waits(make_peer, make_engine):
    peer = make_peer(queued("WAIT die\nCLOSE"))
    engine = make_engine(peer)
    engine.ok("enqueue", key="k")
    call = engine.start("wait", key="k", timeout=60)
    peer.go("die")
    assert engine.finish(call).sqlstate == "LK011"
    engine.fails("wait", "not_queued", key="k", timeout=0)


def test_the_loss_of_the_control_connection_costs_no_place(make_peer, make_engine):
    peer = make_peer("""
        EXPECT l / own / 0
        SEND ok {t1} 30
        WAIT cut
        CLOSE
        ACCEPT
    """ + queued("WAIT turn\nSEND ok {t2} 30"), auto={"n": "ok {lease}", "r": "ok"})
    engine = make_engine(peer)
    engine.ok("acquire", key="own")
    engine.ok("enqueue", key="k")
    peer.go("cut")
    eventually(lambda: not engine.is_held("own"))
    assert engine.hold("k").state == "queued"
    call = engine.start("wait", key="k", timeout=60)
    peer.go("turn")
    assert engine.finish(call).token == peer.value("t2")


def test_leaving_closes_the_places_connection(make_peer, make_engine):
    peer = make_peer(queued("EOF"))
    engine = make_engine(peer)
    engine.ok("enqueue", key="k")
    peer.await_request("w")
    assert engine.leave("k") is True
    peer.check()
    assert engine.leave("k") is False
    engine.fails("wait", "not_queued", key="k", timeout=0)


def test_a_cancelled_wait_gives_the_place_up(make_peer, make_engine):
    peer = make_peer(queued("EOF"))
    engine = make_engine(peer)
    engine.ok("enqueue", key="k")
    call = engine.start("wait", key="k", timeout=60)
    engine.cancel(call)
    assert engine.finish(call).status == "canceled"
    peer.check()
    assert engine.holds() == []
    engine.fails("wait", "not_queued", key="k", timeout=0)


def test_a_lock_timeout_gives_the_place_up(make_peer, make_engine):
    peer = make_peer(queued("EOF"))
    engine = make_engine(peer)
    engine.ok("enqueue", key="k")
    answer = engine.fails("wait", "lock_timeout", key="k", timeout=60, lock_timeout=0.3)
    assert answer.sqlstate == "55P03" and answer.ms < 3000
    peer.check()
    engine.fails("wait", "not_queued", key="k", timeout=0)


def test_a_cancelled_enqueue_gives_back_what_comes(make_peer, make_engine):
    peer = make_peer("""
        EXPECT e / k /
        WAIT late
        SEND acquired {t1} 33
    """, auto={"r": "ok"})
    engine = make_engine(peer)
    call = engine.start("enqueue", key="k")
    peer.reached("late")
    engine.cancel(call)
    assert engine.finish(call).status == "canceled"
    assert engine.holds() == []
    peer.go("late")
    eventually(lambda: peer.closed or peer.count("r", "k"), what="closed or given back")
    assert not engine.is_held("k")


def test_a_cancelled_enqueue_stands_in_no_queue(make_peer, make_engine):
    peer = make_peer("""
        EXPECT e / k /
        WAIT late
        SEND queued
        EOF
    """)
    engine = make_engine(peer)
    call = engine.start("enqueue", key="k")
    peer.reached("late")
    engine.cancel(call)
    assert engine.finish(call).status == "canceled"
    peer.go("late")
    peer.check()
    assert peer.count("w") == 0


def test_a_place_is_in_the_way_of_further_requests_for_its_key(make_peer, make_engine):
    peer = make_peer(queued(""))
    engine = make_engine(peer)
    engine.ok("enqueue", key="k")
    for operation in ("acquire", "enqueue"):
        for kind in ("lock", "sem"):
            answer = engine.fails(operation, "self", key="k", kind=kind, slots=3)
            assert answer.sqlstate == "55006"
            assert "dflock_" in answer.text and "wait" in answer.text and "cancel" in answer.text, answer.text
    peer.check()
    assert [r.command for r in peer.requests if r.key == "k"] == ["e", "w"], "nothing was sent for those"


def test_a_wait_for_a_hold_that_did_not_come_from_enqueue(make_peer, make_engine):
    peer = make_peer("EXPECT l / k / 0\nSEND ok {t1} 30")
    engine = make_engine(peer)
    engine.ok("acquire", key="k")
    assert engine.fails("wait", "not_queued", key="k", timeout=0).sqlstate == "55000"
    assert engine.is_held("k")


def test_a_wait_without_a_place_sends_nothing(make_peer, make_engine):
    peer = make_peer()
    engine = make_engine(peer)
    assert engine.fails("wait", "not_queued", key="k", timeout=5).sqlstate == "55000"
    assert peer.accepted == 0


@pytest.mark.parametrize("answer", ["queued", "acquired {t1} 30"])
def test_a_connection_on_which_a_given_up_enqueue_is_answered_is_closed(make_peer, make_engine, answer):
    """Nobody wants that place any more, and closing is the one way out of a queue; a grant goes back first."""
    back = "EXPECT r / k / {t1}\nSEND ok\n" if "{t1}" in answer else ""
    peer = make_peer(f"EXPECT e / k / *\nWAIT late\nSEND {answer}\n{back}EOF")
    engine = make_engine(peer, server_read_timeout=300)  # an idle connection stays for longer than the test
    call = engine.start("enqueue", key="k", lease=30)
    peer.reached("late")
    engine.cancel(call)
    assert engine.finish(call).status == "canceled"
    peer.go("late")
    peer.check()
    assert peer.count("w") == 0 and not engine.holds()


def test_a_given_up_place_is_left_at_once_whatever_else_its_connection_waits_for(make_peer, make_engine):
    peer = make_peer("""
        EXPECT l / lost / 0
        SEND ok {t1} 30
        WAIT die
        CLOSE
        ACCEPT
        EXPECT r / lost / {t1}
        SEND error
        EXPECT e / k /
        WAIT given up
        SEND queued
        EOF
    """, auto={"r": None})
    engine = make_engine(peer, connect_timeout=60)
    engine.ok("acquire", key="lost")
    peer.go("die")
    eventually(lambda: not engine.is_held("lost"))
    call = engine.start("enqueue", key="k")
    peer.reached("given up")
    engine.cancel(call)
    assert engine.finish(call).status == "canceled"
    peer.go("given up")
    peer.check()
