"""Waiting for a lock: the waiting connection, its time, its proofs of life, offers, cancels."""

import pytest

from lib.eventually import eventually


def busy(more=""):
    """A control connection whose first try of k is answered `timeout`."""
    return f"""
        EXPECT l / k / 0*
        SEND timeout
        {more}
    """


def test_a_wait_has_its_own_connection_and_the_lock_stays_there(make_peer, make_engine):
    peer = make_peer(busy() + """
        ACCEPT
        EXPECT l / k / 2 30
        WAIT turn
        SEND ok {t1} 30
        EXPECT r / k / {t1}
        SEND ok
    """)
    engine = make_engine(peer)
    call = engine.start("acquire", key="k", timeout=2, lease=30)
    peer.reached("turn")
    assert engine.hold("k").state in ("trying", "queued")
    peer.go("turn")
    hold = engine.finish(call)
    assert (hold.status, hold.state, hold.token, hold.lease) == ("ok", "held", peer.value("t1"), 30)
    assert engine.is_held("k")
    engine.ok("release", key="k")
    peer.check()
    assert peer.accepted == 2


def test_a_waiting_connection_is_used_again(make_peer, make_engine):
    peer = make_peer(busy("EXPECT l / k / 0\nSEND timeout") + """
        ACCEPT
        EXPECT l / k / 2
        SEND ok {t1} 30
        EXPECT r / k / {t1}
        SEND ok
        EXPECT l / k / 2
        SEND ok {t2} 30
    """)
    engine = make_engine(peer)
    for _ in range(2):
        engine.ok("acquire", key="k", timeout=2)
        if not peer.count("r", "k"):
            engine.ok("release", key="k")
    assert peer.accepted == 2
    peer.check()


def test_a_wait_for_ever_is_as_long_as_the_wire_allows(make_peer, make_engine):
    peer = make_peer(busy() + """
        ACCEPT
        EXPECT l / k / 9223372036
        SEND ok {t1} 30
    """, auto={"n": "ok {lease}"})
    make_engine(peer).ok("acquire", key="k", timeout="inf")
    peer.check()


# ------------------------------------------------------------------------------------- time


def test_the_server_itself_says_timeout(make_peer, make_engine):
    peer = make_peer(busy() + """
        ACCEPT
        EXPECT l / k / 1
        SLEEP 0.95
        SEND timeout
    """)
    answer = make_engine(peer).fails("acquire", "timeout", key="k", timeout=1)
    assert answer.sqlstate == "55P03" and answer.ms >= 900
    assert peer.count("l") == 2, "its word is enough, nothing is asked again"
    peer.check()


@pytest.mark.parametrize("timeout, least, most", [(1, 1050, 3000), (0.4, 395, 900)], ids=[
    "a whole one has a little patience", "a fraction ends before the second that the wire was told"])
def test_when_the_time_is_over_it_is_asked_once_more(make_peer, make_engine, timeout, least, most):
    peer = make_peer(busy("EXPECT l / k / 0\nSEND timeout") + """
        ACCEPT
        EXPECT l / k / 1
        EOF
    """)
    answer = make_engine(peer).fails("acquire", "timeout", key="k", timeout=timeout)
    assert least <= answer.ms < most
    peer.check()


def test_the_last_try_may_be_granted(make_peer, make_engine):
    peer = make_peer(busy("EXPECT l / k / 0 9\nSEND ok {t1} 9") + """
        ACCEPT
        EXPECT l / k / 1 9
        EOF
    """)
    engine = make_engine(peer)
    assert engine.ok("acquire", key="k", timeout=0.4, lease=9).token == peer.value("t1")
    assert engine.is_held("k")
    peer.check()


def test_the_last_try_goes_unanswered_so_it_is_not_false(make_peer, make_engine):
    peer = make_peer(busy("EXPECT l / k / 0\nHOLD") + """
        ACCEPT
        EXPECT l / k / 1
        EOF
    """)
    engine = make_engine(peer, connect_timeout=0.6)
    answer = engine.fails("acquire", "broken", key="k", timeout=0.4)
    assert answer.sqlstate == "LK011" and answer.ms < 4000


def test_an_answer_after_the_end_is_as_good_as_that_of_one_more_try(make_peer, make_engine):
    """A plain `error` may be the read time-out's, so it is asked again; the answer comes when the time is over."""
    peer = make_peer(busy() + """
        ACCEPT
        EXPECT l / k / 1
        SEND error
        CLOSE
        ACCEPT
        EXPECT l / k / 0
        SLEEP 1.3
        SEND timeout
    """)
    answer = make_engine(peer).fails("acquire", "timeout", key="k", timeout=0.6)
    assert answer.sqlstate == "55P03" and answer.ms >= 1290
    assert peer.count("l") == 3
    peer.check()


def test_lock_timeout_counts_from_busy_and_has_its_own_status(make_peer, make_engine):
    peer = make_peer("""
        EXPECT l / k / 0
        SLEEP 0.3
        SEND timeout
        ACCEPT
        EXPECT l / k / *
        EOF
    """, auto={"l": "timeout"})
    answer = make_engine(peer).fails("acquire", "lock_timeout", key="k", timeout=10, lock_timeout=0.4)
    assert answer.sqlstate == "55P03" and 690 <= answer.ms < 2500


# ---------------------------------------------------------------------------- proof of life


def test_while_a_call_waits_the_server_is_asked_for_signs_of_life(make_peer, make_engine):
    peer = make_peer(busy() + """
        ACCEPT
        EXPECT l / k / *
        WAIT turn
        SEND ok {t1} 30
    """, auto={"n": "ok {lease}"})
    engine = make_engine(peer, keepalive=0.3)
    call = engine.start("acquire", key="k", timeout=60)
    eventually(lambda: peer.count("ping") >= 4, what="three signs of life")
    pings = peer.asked("ping")[1:]
    gaps = [b.at - a.at for a, b in zip(pings, pings[1:])]
    assert all(gap < 2 for gap in gaps), gaps
    assert {r.connection for r in pings} == {1}, "never on the waiting connection"
    peer.go("turn")
    assert engine.finish(call).status == "ok"
    peer.check()


@pytest.mark.parametrize("timeout", ["inf", 60])
def test_a_server_that_goes_mute_ends_the_wait_with_an_error(make_peer, make_engine, timeout):
    peer = make_peer(busy("HOLD") + """
        ACCEPT
        EXPECT l / k / *
        EOF
    """)
    engine = make_engine(peer, keepalive=0.3, connect_timeout=0.5)
    answer = engine.fails("acquire", "broken", key="k", timeout=timeout)
    assert answer.sqlstate == "LK011" and peer.address in answer.text
    assert 700 <= answer.ms < 4000
    eventually(lambda: 2 in peer.closed, what="the waiting connection is closed")


def test_where_something_is_owned_a_renewal_is_the_sign_of_life(make_peer, make_engine):
    peer = make_peer("""
        EXPECT l / own / 0 600
        SEND ok {t1} 600
        EXPECT l / k / 0
        SEND timeout
        EXPECT n / own / {t1} 600
        SEND ok 600
        EXPECT n / own / {t1} 600
        HOLD
        ACCEPT
        EXPECT l / k / *
        EOF
    """)
    engine = make_engine(peer, keepalive=0.3, connect_timeout=0.5)
    engine.ok("acquire", key="own", lease=600)
    answer = engine.fails("acquire", "broken", key="k", timeout="inf")
    assert answer.sqlstate == "LK011"
    assert engine.is_held("own"), "its own deadline has not come"


def test_old_servers_are_asked_with_a_release_that_harms_nothing(make_peer, make_engine):
    peer = make_peer(busy() + """
        ACCEPT
        EXPECT l / k / *
        WAIT turn
        SEND ok {t1} 30
    """, auto={"ping": "error", "n": "ok {lease}"})
    engine = make_engine(peer, keepalive=0.3)
    call = engine.start("acquire", key="k", timeout=60)
    peer.await_request("r", "_", "0" * 32, count=3)
    peer.go("turn")
    assert engine.finish(call).status == "ok"
    assert peer.count("ping") == 1
    peer.check()


def test_a_timeout_needs_a_fresh_proof(make_peer, make_engine):
    """The waiting connection's `timeout` is the server's word; the clock alone is none: see the mute last try."""
    peer = make_peer(busy("HOLD") + """
        ACCEPT
        EXPECT l / k / 1
        SLEEP 0.9
        SEND timeout
    """)
    make_engine(peer, connect_timeout=5, keepalive=2).fails("acquire", "timeout", key="k", timeout=1)


# -------------------------------------------------------------------- the end of the connection


@pytest.mark.parametrize("end", ["CLOSE", "RESET", "SEND banana\nEOF"])
def test_a_waiting_connection_that_breaks_is_an_error_not_busy(make_peer, make_engine, end):
    peer = make_peer(busy() + f"""
        ACCEPT
        EXPECT l / k / *
        {end}
    """)
    engine = make_engine(peer)
    answer = engine.run("acquire", key="k", timeout=60)
    assert answer.sqlstate == ("LK012" if "banana" in end else "LK011"), answer
    assert engine.holds() == []


@pytest.mark.parametrize("word, sqlstate", [
    ("error", "LK005"), ("error_draining", "LK005"), ("error_max_locks", "LK004"), ("error_limit_mismatch", "LK001"),
    ("error_new", "LK005")])
def test_an_error_word_ends_the_wait(make_peer, make_engine, word, sqlstate):
    peer = make_peer(busy() + f"""
        ACCEPT
        EXPECT l / k / *
        SEND {word}
    """)
    assert make_engine(peer).run("acquire", key="k", timeout=60).sqlstate == sqlstate
    peer.check()


def test_the_loss_of_a_waiting_connection_harms_no_other_hold(make_peer, make_engine):
    peer = make_peer("""
        EXPECT l / own / 0
        SEND ok {t1} 30
        EXPECT l / k / 0
        SEND timeout
        ACCEPT
        EXPECT l / k / *
        RESET
    """)
    engine = make_engine(peer)
    engine.ok("acquire", key="own")
    engine.fails("acquire", "broken", key="k", timeout=60)
    assert engine.is_held("own")
    peer.check()


def test_the_loss_of_the_control_connection_while_waiting(make_peer, make_engine):
    """The wait goes on, over a new control connection for the signs of life."""
    peer = make_peer(busy("WAIT cut\nCLOSE") + """
        ACCEPT
        EXPECT l / k / *
        WAIT turn
        SEND ok {t1} 30
    """, auto={"n": "ok {lease}"})
    engine = make_engine(peer, keepalive=0.3)
    call = engine.start("acquire", key="k", timeout=60)
    peer.reached("turn")
    peer.go("cut")
    eventually(lambda: len({r.connection for r in peer.asked("ping")}) >= 2, what="a new control connection is asked")
    peer.go("turn")
    assert engine.finish(call).status == "ok"
    peer.check()


# --------------------------------------------------------------------------------- offers


def test_a_quick_grant_is_taken_as_it_is(make_peer, make_engine):
    peer = make_peer(busy() + """
        ACCEPT
        EXPECT l / k / * 60
        SEND ok {t1} 60
    """)
    engine = make_engine(peer)
    engine.ok("acquire", key="k", timeout=60, lease=60)
    assert peer.count("n") == 0
    peer.check()


def test_a_grant_that_may_be_old_is_confirmed_before_it_is_a_hold(make_peer, make_engine):
    peer = make_peer(busy() + """
        ACCEPT
        EXPECT l / k / 60 2
        SLEEP 1.2
        SEND ok {t1} 2
        EXPECT n / k / {t1} 2
        WAIT confirm
        SEND ok 2
    """)
    engine = make_engine(peer)
    call = engine.start("acquire", key="k", timeout=60, lease=2)
    peer.reached("confirm")
    assert not engine.done(call) and not engine.is_held("k")
    assert engine.hold("k").state == "confirming"
    peer.go("confirm")
    hold = engine.finish(call)
    assert hold.status == "ok" and hold.state == "held" and hold.renewals <= 1
    peer.check()


def test_the_read_timeout_counts_for_offers_too(make_peer, make_engine):
    peer = make_peer(busy() + """
        ACCEPT
        EXPECT l / k / 60 600
        SLEEP 1.2
        SEND ok {t1} 600
        EXPECT n / k / {t1} 600
        SEND ok 599
    """, auto={"n": "ok {lease}"})
    hold = make_engine(peer, server_read_timeout=2, keepalive=0.5).ok("acquire", key="k", timeout=60, lease=600)
    assert hold.lease == 600
    peer.check()


def test_an_offer_that_is_refused_was_no_grant_and_the_waiting_goes_on(make_peer, make_engine):
    peer = make_peer(busy() + """
        ACCEPT
        EXPECT l / k / 60 2
        SLEEP 1.2
        SEND ok {t1} 2
        EXPECT n / k / {t1} 2
        SEND error
        EXPECT r / k / {t1}
        SEND error
        EXPECT r / k / {t1}
        SEND error
        ACCEPT
        EXPECT l / k / 59 2
        SEND ok {t2} 2
    """, auto={"n": "ok {lease}"})
    hold = make_engine(peer).ok("acquire", key="k", timeout=60, lease=2)
    assert hold.token == peer.value("t2")


def test_an_offer_that_the_read_timeout_seems_to_refuse_is_given_back(make_peer, make_engine):
    """Its `error` was no answer: without auto-release the server keeps the grant."""
    peer = make_peer(busy() + """
        EXPECT r / k / {t1}
        SEND ok
        ACCEPT
        EXPECT l / k / 60 2
        SLEEP 1.2
        SEND ok {t1} 2
        EXPECT n / k / {t1} 2
        SEND error
        CLOSE
        ACCEPT
        EXPECT l / k / 59 2
        SEND ok {t2} 2
    """, auto={"n": "ok {lease}"})
    hold = make_engine(peer).ok("acquire", key="k", timeout=60, lease=2)
    assert hold.token == peer.value("t2")
    peer.check()


def test_an_offer_that_is_refused_at_the_end_of_the_time_is_busy(make_peer, make_engine):
    peer = make_peer(busy() + """
        ACCEPT
        EXPECT l / k / 2 2
        SLEEP 1.8
        SEND ok {t1} 2
        EXPECT n / k / {t1} 2
        SLEEP 0.4
        SEND error
    """, auto={"l": "timeout", "r": "error", "n": "error"})
    engine = make_engine(peer)
    engine.fails("acquire", "timeout", key="k", timeout=2, lease=2)
    assert engine.holds() == []


def test_a_confirmation_older_than_the_lease_is_asked_for_again(make_peer, make_engine):
    """It says that the lease began when it was sent, and that lease is over."""
    peer = make_peer(busy() + """
        ACCEPT
        EXPECT l / k / 60 1
        SLEEP 0.8
        SEND ok {t1} 1
        EXPECT n / k / {t1} 1
        SLEEP 1.2
        SEND ok 1
        EXPECT n / k / {t1} 1
        SEND ok 1
    """, auto={"n": "ok {lease}"})
    engine = make_engine(peer)
    engine.ok("acquire", key="k", timeout=60, lease=1)
    assert engine.is_held("k")
    peer.check()


def test_an_offer_whose_confirmation_is_never_answered_is_no_hold(make_peer, make_engine):
    peer = make_peer(busy() + """
        ACCEPT
        EXPECT l / k / 60 2
        SLEEP 1.2
        SEND ok {t1} 2
        EXPECT n / k / {t1} 2
        HOLD
    """, auto={"r": "error"})
    engine = make_engine(peer, connect_timeout=0.6)
    answer = engine.run("acquire", key="k", timeout=60, lease=2)
    assert answer.status == "broken" and answer.sqlstate == "LK011", answer
    assert not engine.is_held("k")


def test_a_lease_that_expired_unseen_is_no_grant_and_the_waiting_goes_on(make_peer, make_engine):
    peer = make_peer(busy() + """
        ACCEPT
        EXPECT l / k / 60
        SEND error_lease_expired
        EXPECT l / k / *
        SEND ok {t1} 30
    """)
    assert make_engine(peer).ok("acquire", key="k", timeout=60).token == peer.value("t1")
    peer.check()


# --------------------------------------------------------------------------------- cancels


def test_a_cancelled_wait_closes_its_connection_and_no_other(make_peer, make_engine):
    peer = make_peer("""
        EXPECT l / own / 0
        SEND ok {t1} 30
        EXPECT l / k / 0
        SEND timeout
        EXPECT l / other / 0
        SEND ok {t2} 30
        ACCEPT
        EXPECT l / k / 60
        EOF
    """)
    engine = make_engine(peer)
    engine.ok("acquire", key="own")
    call = engine.start("acquire", key="k", timeout=60)
    peer.await_request("l", "k", "60")
    engine.cancel(call)
    answer = engine.finish(call)
    assert answer.status == "canceled"
    eventually(lambda: 2 in peer.closed, what="the waiting connection is closed")
    assert engine.is_held("own") and [h.key for h in engine.holds()] == ["own"]
    engine.ok("acquire", key="other")
    peer.check()


def test_a_grant_that_races_the_cancel_never_becomes_a_hold(make_peer, make_engine):
    peer = make_peer(busy("EXPECT r / k / {t1}\nSEND error") + """
        ACCEPT
        EXPECT l / k / 60
        WAIT race
        SEND ok {t1} 30
    """, auto={"r": "error"})
    engine = make_engine(peer)
    call = engine.start("acquire", key="k", timeout=60)
    peer.reached("race")
    engine.cancel(call)
    peer.go("race")
    assert engine.finish(call).status == "canceled"
    assert engine.holds() == []
    eventually(lambda: 2 in peer.closed or peer.count("r", "k"), what="closed or given back")


def test_a_late_grant_of_a_cancelled_try_is_given_back(make_peer, make_engine):
    peer = make_peer("""
        EXPECT l / own / 0
        SEND ok {t1} 30
        EXPECT l / k / 0
        WAIT late
        SEND ok {t2} 30
        EXPECT r / k / {t2}
        SEND ok
        EXPECT l / k / 0
        SEND ok {t3} 30
    """)
    engine = make_engine(peer)
    engine.ok("acquire", key="own")
    call = engine.start("acquire", key="k")
    peer.reached("late")
    engine.cancel(call)
    assert engine.finish(call).status == "canceled"
    assert engine.busy().left_behind
    peer.go("late")
    peer.await_request("r", "k", "{t2}".format(t2=peer.value("t2")))
    assert engine.is_held("own") and [h.key for h in engine.holds()] == ["own"]
    eventually(lambda: not engine.busy().left_behind, what="nothing is left behind")
    engine.ok("acquire", key="k")
    peer.check()


def test_the_next_try_waits_for_what_a_given_up_one_may_yet_get(make_peer, make_engine):
    """Else the server would say "busy" of a lock that nobody else has."""
    peer = make_peer("""
        EXPECT l / k / 0
        WAIT late
        SEND ok {t1} 30
        EXPECT r / k / {t1}
        SEND ok
        EXPECT l / k / 0
        SEND ok {t2} 30
    """)
    engine = make_engine(peer)
    call = engine.start("acquire", key="k")
    peer.reached("late")
    engine.cancel(call)
    assert engine.finish(call).status == "canceled"
    next_one = engine.start("acquire", key="k")
    assert [h.state for h in engine.holds()] == ["trying"]
    peer.go("late")
    assert engine.finish(next_one).status == "ok"
    peer.check()
    assert engine.is_held("k")


def test_a_late_grant_of_a_try_that_ran_out_of_time_is_given_back(make_peer, make_engine):
    peer = make_peer("""
        EXPECT l / own / 0
        SEND ok {t1} 30
        EXPECT l / k / 0
        WAIT late
        SEND ok {t2} 30
        EXPECT r / k / {t2}
        SEND ok
    """, auto={"n": "ok {lease}"})
    engine = make_engine(peer, connect_timeout=0.5, keepalive=1.5)
    engine.ok("acquire", key="own")
    answer = engine.fails("acquire", "broken", key="k", timeout=60)
    assert answer.sqlstate == "LK011"
    peer.go("late")
    peer.await_request("r", "k", peer.value("t2"))
    assert engine.is_held("own"), "the connection stays, it owns something"
    peer.check()


def test_the_next_request_of_a_key_follows_a_tombstone_on_the_same_connection(make_peer, make_engine):
    peer = make_peer("""
        EXPECT l / own / 0
        SEND ok {t1} 30
        EXPECT l / k / 0
        WAIT late
        SEND ok {t2} 30
        EXPECT *
        WAIT second
    """)
    engine = make_engine(peer)
    engine.ok("acquire", key="own")
    call = engine.start("acquire", key="k")
    peer.reached("late")
    engine.cancel(call)
    again = engine.start("acquire", key="k", timeout=60)
    assert not engine.done(again)
    peer.go("late")
    peer.reached("second")
    assert {r.connection for r in peer.requests if r.key == "k"} == {1}
    assert peer.count("r", "k", peer.value("t2")) + peer.count("l", "k") >= 2


@pytest.mark.parametrize("where", ["HOLD", "EXPECT ping\nHOLD"], ids=["connect", "ping"])
def test_a_cancel_while_the_connection_is_being_made(make_peer, make_engine, where):
    peer = make_peer(where)
    engine = make_engine(peer, connect_timeout=30)
    call = engine.start("acquire", key="k", timeout=60)
    eventually(lambda: peer.accepted == 1)
    engine.cancel(call)
    answer = engine.finish(call)
    assert answer.status == "canceled" and answer.ms < 10_000
    assert engine.holds() == []


def test_two_waits_of_two_sessions_have_two_connections(make_peer, make_engine):
    peer = make_peer(busy() + """
        EXPECT l / k / 0
        SEND timeout
        ACCEPT
        EXPECT l / k / 50
        WAIT one
        SEND ok {t1} 30
        ACCEPT
        EXPECT l / k / 40
        WAIT two
        SEND ok {t2} 30
    """, auto={"n": "ok {lease}"})
    engine = make_engine(peer, sessions="a b")
    one = engine.start("acquire", "a", key="k", timeout=50)
    two = engine.start("acquire", "b", key="k", timeout=40)
    peer.reached("one")
    peer.reached("two")
    peer.go("two")
    assert engine.finish(two).token == peer.value("t2")
    assert not engine.done(one)
    peer.go("one")
    assert engine.finish(one).token == peer.value("t1")
    peer.check()
