"""Holds: renewal, deadlines, loss with when and why, release, and what is given back after a loss."""

import signal
import time

import pytest

from lib.eventually import always, eventually

HELD = """
    EXPECT l / k / 0*
    SEND ok {t1} {lease}
"""


def held(more="", lease=30):
    return HELD.replace("{lease}", str(lease)) + more


# What was lost is released again before the key is asked for, and once more when it is held.
LOST_THEN_AGAIN = held("WAIT die\nCLOSE") + """
    ACCEPT
    EXPECT r / k / {t1}
    SEND error
    EXPECT l / k / 0
    SEND ok {t2} 30
    EXPECT r / k / {t1}
    SEND error
"""


def acquire_and_lose(engine, peer):
    engine.ok("acquire", key="k")
    peer.go("die")
    eventually(lambda: not engine.is_held("k"))


def seconds_pass(seconds):
    end = time.monotonic() + seconds
    eventually(lambda: time.monotonic() > end)


# ------------------------------------------------------------------------------- renewal


def test_a_renewal_carries_the_holds_own_lease_and_keeps_it(make_peer, make_engine):
    peer = make_peer(held(lease=1), auto={"n": "ok {lease}"})
    engine = make_engine(peer)
    engine.ok("acquire", key="k", lease=1)
    always(lambda: engine.is_held("k"), 2.5, every=0.05)
    renewals = peer.asked("n", "k")
    assert len(renewals) >= 4 and {r.argument for r in renewals} == {peer.value("t1") + " 1"}
    gaps = [b.at - a.at for a, b in zip(renewals, renewals[1:])]
    assert all(0.35 < gap for gap in gaps), f"at about half of the lease, not more often: {gaps}"
    assert engine.hold("k").renewals >= 4


def test_the_servers_default_lease_is_the_holds_own(make_peer, make_engine):
    peer = make_peer(held(lease=2), auto={"n": "ok {lease}"})
    engine = make_engine(peer)
    assert engine.ok("acquire", key="k").lease == 2
    assert peer.await_request("n", "k").argument == peer.value("t1") + " 2"


def test_a_long_lease_is_renewed_to_keep_the_connection_alive(make_peer, make_engine):
    peer = make_peer(held(lease=600), auto={"n": "ok {lease}"})
    engine = make_engine(peer, keepalive=0.3)
    engine.ok("acquire", key="k", lease=600)
    peer.await_request("n", "k", peer.value("t1") + " 600", count=3)
    assert peer.count("ping") == 1
    assert engine.is_held("k")


def test_keepalive_is_at_most_a_third_of_the_read_timeout(make_peer, make_engine):
    peer = make_peer(held(lease=600), auto={"n": "ok {lease}"})
    engine = make_engine(peer, keepalive=100, server_read_timeout=1.5)
    engine.ok("acquire", key="k", lease=600)
    always(lambda: engine.is_held("k"), 2.5, every=0.05)
    assert peer.count("n", "k") >= 3


def test_a_waited_for_hold_keeps_its_own_connection_alive(make_peer, make_engine):
    peer = make_peer("""
        EXPECT l / k / 0 600
        SEND timeout
        ACCEPT
        EXPECT l / k / 2 600
        SEND ok {t1} 600
    """, auto={"n": "ok {lease}"})
    engine = make_engine(peer, keepalive=0.3)
    engine.ok("acquire", key="k", timeout=2, lease=600)
    peer.await_request("n", "k", count=3)
    assert {r.connection for r in peer.asked("n")} == {2}


@pytest.mark.parametrize("answer, left", [("ok 30", 30), ("ok 29", 30), ("ok 5", 5)])
def test_what_the_server_answers_counts_when_it_is_less(make_peer, make_engine, answer, left):
    peer = make_peer(held(f"EXPECT n / k / {{t1}} 30\nSEND {answer}"), auto={"n": "ok {lease}"})
    engine = make_engine(peer, server_read_timeout=600)
    engine.ok("acquire", key="k", lease=30)
    done = engine.ok("renew", key="k")
    assert done.seconds in (left, left - 1)
    hold = engine.hold("k")
    assert left * 980 - 1500 < hold.lease_deadline_in_ms <= left * 980


def test_a_renewal_that_answers_zero_seconds_is_a_success(make_peer, make_engine):
    peer = make_peer(held(lease=1), auto={"n": "ok 0"})
    engine = make_engine(peer)
    engine.ok("acquire", key="k", lease=1)
    always(lambda: engine.is_held("k"), 1.8, every=0.05)


def test_a_renewal_by_hand_may_change_the_lease(make_peer, make_engine):
    peer = make_peer(held("EXPECT n / k / {t1} 2\nSEND ok 2"), auto={"n": "ok {lease}"})
    engine = make_engine(peer)
    engine.ok("acquire", key="k", lease=30)
    engine.ok("renew", key="k", lease=2)
    assert engine.hold("k").lease == 2
    assert peer.await_request("n", "k", count=2).argument == peer.value("t1") + " 2"
    assert engine.is_held("k")


def test_a_renewal_whose_answer_a_stopped_process_reads_too_late_is_a_loss(make_peer, make_engine):
    """It reads the answer before it looks at the clock for what is due."""
    peer = make_peer(held(lease=60) + """
        EXPECT n / k / {t1} 1
        WAIT stopped
        SEND ok 1
    """, auto={"r": "ok"})
    engine = make_engine(peer)
    engine.ok("acquire", key="k", lease=60)
    call = engine.start("renew", key="k", lease=1)
    peer.reached("stopped")
    engine.popen.send_signal(signal.SIGSTOP)
    peer.go("stopped")
    seconds_pass(1.2)
    engine.popen.send_signal(signal.SIGCONT)
    done = engine.finish(call)
    assert (done.status, done.sqlstate) == ("lost", "40001") and not engine.is_held("k")


def test_no_late_confirmation_brings_back_what_its_deadline_has_ended(make_peer, make_engine):
    """Sent before the deadline and confirmed in time, read after it: others may have looked at the clock meanwhile."""
    peer = make_peer(held("""
        EXPECT n / k / {t1} 4
        WAIT stopped
        SEND ok 4
    """, lease=4), auto={"n": "ok 4", "r": "ok"})
    engine = make_engine(peer, renew_ratio=0.5)
    engine.ok("acquire", key="k", lease=4)
    peer.reached("stopped")
    engine.popen.send_signal(signal.SIGSTOP)
    peer.go("stopped")
    seconds_pass(2.9)
    engine.popen.send_signal(signal.SIGCONT)
    assert not engine.is_held("k")
    assert "no confirmed renewal" in engine.assert_held("k").text
    peer.await_request("r", "k")


@pytest.mark.parametrize("answer", ["ok 60", "error"])
def test_a_renewal_whose_call_is_cancelled_still_tells_of_the_hold(make_peer, make_engine, answer):
    """Nobody waits for the answer any more, but it says whether the hold stands, and how long."""
    peer = make_peer(held(f"EXPECT n / k / {{t1}} 60\nWAIT cancelled\nSEND {answer}", lease=2),
                     auto={"n": None, "r": "error"})
    engine = make_engine(peer)
    engine.ok("acquire", key="k", lease=2)
    call = engine.start("renew", key="k", lease=60)
    peer.reached("cancelled")
    engine.cancel(call)
    assert engine.finish(call).status == "canceled"
    assert engine.is_held("k")
    peer.go("cancelled")
    if answer == "error":
        eventually(lambda: not engine.is_held("k"))
        assert "refused the renewal" in engine.assert_held("k").text
    else:
        always(lambda: engine.is_held("k"), 2.5, every=0.05)


def test_a_hold_is_given_back_while_a_call_renews_it(make_peer, make_engine):
    peer = make_peer(held("EXPECT n / k / {t1} 60\nWAIT given\nSEND ok 60\nEXPECT r / k / {t1}\nSEND ok"))
    engine = make_engine(peer)
    engine.ok("acquire", key="k")
    call = engine.start("renew", key="k", lease=60)
    peer.reached("given")
    assert engine.give("k")
    assert engine.finish(call).status == "canceled"
    assert not engine.is_held("k")
    peer.go("given")
    peer.check()
    eventually(lambda: engine.holds() == [])


# -------------------------------------------------------------------------------- deadlines


def test_the_deadline_is_the_lease_less_two_per_cent(make_peer, make_engine):
    peer = make_peer(held(lease=30))
    engine = make_engine(peer, server_read_timeout=600, keepalive=100)
    hold = engine.ok("acquire", key="k", lease=30)
    assert 28_000 < hold.deadline_in_ms <= 29_400


def test_the_deadline_is_also_the_read_timeout_less_two_per_cent(make_peer, make_engine):
    peer = make_peer(held(lease=600))
    hold = make_engine(peer, server_read_timeout=10).ok("acquire", key="k", lease=600)
    assert 8_500 < hold.deadline_in_ms <= 9_800
    assert hold.lease_deadline_in_ms > 580_000


def test_the_deadline_counts_from_the_sending(make_peer, make_engine):
    peer = make_peer("""
        EXPECT l / k / 0 30
        SLEEP 1
        SEND ok {t1} 30
    """)
    hold = make_engine(peer, server_read_timeout=600, keepalive=100).ok("acquire", key="k", lease=30)
    assert hold.deadline_in_ms <= 28_400


def test_unanswered_renewals_end_in_loss_at_the_deadline(make_peer, make_engine):
    """Held until then, because the server may have renewed; not a moment longer."""
    peer = make_peer(held(lease=2), auto={"n": None, "r": None})
    engine = make_engine(peer)
    began = time.monotonic()
    engine.ok("acquire", key="k", lease=2)
    assert engine.is_held("k")
    eventually(lambda: not engine.is_held("k"), every=0.005)
    took = time.monotonic() - began
    assert 1.5 < took < 2.1, took
    lost = engine.assert_held("k")
    assert lost.status == "lost" and lost.sqlstate == "40001" and "ago" in lost.text


@pytest.mark.parametrize("lease, read_timeout", [(1, 6), (600, 1)], ids=["lease", "read timeout"])
def test_a_host_that_did_not_run_is_not_told_yes(make_peer, make_engine, lease, read_timeout):
    """The answer comes from the clock and the deadline, not from what was known when something last ran."""
    peer = make_peer(held(lease=lease), auto={"n": "ok {lease}", "r": "ok"})
    engine = make_engine(peer, server_read_timeout=read_timeout, keepalive=0.3)
    engine.ok("acquire", key="k", lease=lease)
    assert engine.is_held_later(0.2)
    assert not engine.is_held_later(1.1)


def test_an_unanswered_connection_dies_at_the_read_timeout(make_peer, make_engine):
    peer = make_peer(held(lease=600), auto={"n": None})
    engine = make_engine(peer, server_read_timeout=2, keepalive=0.3)
    began = time.monotonic()
    engine.ok("acquire", key="k", lease=600)
    eventually(lambda: not engine.is_held("k"), every=0.005)
    took = time.monotonic() - began
    assert 1.7 < took < 2.3, took
    eventually(lambda: peer.closed, what="the connection is closed")
    hold = engine.hold("k")
    assert hold.state == "lost" and peer.address in hold.last_error


# ------------------------------------------------------------------------------------ loss


@pytest.mark.parametrize("word", ["error", "error_draining", "error_new_word"])
def test_a_refused_renewal_is_a_loss_with_that_word_as_the_reason(make_peer, make_engine, word):
    peer = make_peer(held(lease=1), auto={"n": word, "r": "error"})
    engine = make_engine(peer)
    engine.ok("acquire", key="k", lease=1)
    eventually(lambda: not engine.is_held("k"), what="the loss is noticed")
    hold = engine.hold("k")
    assert hold.state == "lost" and word in hold.last_error and hold.token == "" and not hold.told
    answer = engine.assert_held("k")
    assert answer.sqlstate == "40001" and word in answer.text
    assert engine.hold("k").told
    peer.check()


@pytest.mark.parametrize("end", ["CLOSE", "RESET", "SEND banana\nEOF"])
def test_a_lost_connection_is_a_loss_at_once(make_peer, make_engine, end):
    peer = make_peer(held(f"WAIT die\n{end}"), auto={"r": "ok"})
    engine = make_engine(peer)
    engine.ok("acquire", key="k", lease=30)
    peer.go("die")
    eventually(lambda: not engine.is_held("k"), deadline=2)
    answer = engine.assert_held("k")
    assert answer.status == "lost" and peer.address in answer.text


def test_lost_is_for_good_even_if_the_server_is_back(make_peer, make_engine):
    peer = make_peer(held("WAIT die\nCLOSE"), auto={"n": "ok {lease}", "r": "ok", "l": "ok {t9} 30"})
    engine = make_engine(peer)
    acquire_and_lose(engine, peer)
    engine.ok("acquire", key="other")
    seconds_pass(0.3)
    assert not engine.is_held("k") and peer.count("l", "k") == 1 and peer.count("n", "k") == 0


def test_the_first_acquire_after_an_untold_loss_says_so_the_next_is_carried_out(make_peer, make_engine):
    peer = make_peer(LOST_THEN_AGAIN)
    engine = make_engine(peer)
    acquire_and_lose(engine, peer)
    assert engine.fails("acquire", "lost", key="k").sqlstate == "40001"
    assert engine.ok("acquire", key="k").token == peer.value("t2")
    peer.check()


def test_a_told_loss_does_not_stop_the_next_acquire(make_peer, make_engine):
    peer = make_peer(LOST_THEN_AGAIN)
    engine = make_engine(peer)
    acquire_and_lose(engine, peer)
    assert engine.assert_held("k").status == "lost"
    engine.ok("acquire", key="k")
    assert engine.is_held("k")
    peer.check()


def test_a_lost_hold_can_only_be_let_go(make_peer, make_engine):
    peer = make_peer(held("WAIT die\nCLOSE"), auto={"r": "ok"})
    engine = make_engine(peer)
    acquire_and_lose(engine, peer)
    assert engine.fails("renew", "lost", key="k").sqlstate == "40001"
    engine.fails("release", "not_held", key="k")
    assert engine.holds() == []
    assert engine.fails("renew", "not_held", key="k").sqlstate == "55000"
    assert engine.assert_held("k").sqlstate == "55000"


def test_an_error_of_the_read_timeout_does_not_make_the_other_holds_last(make_peer, make_engine):
    """It is no sign that the server has heard the request which it seems to answer."""
    peer = make_peer("""
        EXPECT l / a / 0 30
        SEND ok {t1} 30
        EXPECT l / b / 0 30
        SEND ok {t2} 30
        EXPECT n / a / *
        SEND error
        HOLD
    """)
    engine = make_engine(peer, server_read_timeout=6, keepalive=2)
    engine.ok("acquire", key="a", lease=30)
    engine.ok("acquire", key="b", lease=30)
    eventually(lambda: engine.hold("a").state == "lost")
    assert engine.is_held("b") and not engine.is_held_later(4.5, "b"), "its time began before the renewal of a"


def test_refused_releases_do_not_keep_a_renewal_from_being_asked_for(make_peer, make_engine):
    """What is answered `error` proves nothing, so it must not look like a connection that is busy proving itself."""
    peer = make_peer(held(lease=600), auto={"n": "ok {lease}", "r": "error"})
    engine = make_engine(peer, keepalive=0.5, server_read_timeout=2)
    engine.ok("acquire", key="k", lease=600)

    def still_held():
        engine.fails("release_token", "not_held", key="k", token="0123456789abcdef" * 2)
        return engine.is_held("k")

    always(still_held, 3, every=0.1)


def test_tokens_of_a_lost_connection_are_released_over_the_next(make_peer, make_engine):
    peer = make_peer("""
        EXPECT l / a / 0
        SEND ok {t1} 30
        EXPECT l / b / 0
        SEND ok {t2} 30
        WAIT die
        RESET
    """, auto={"r": "ok"})
    engine = make_engine(peer)
    engine.ok("acquire", key="a")
    engine.ok("acquire", key="b")
    peer.go("die")
    eventually(lambda: not engine.is_held("a"))
    engine.ok("ping")
    peer.await_request("r", "a", peer.value("t1"))
    peer.await_request("r", "b", peer.value("t2"))
    assert {r.connection for r in peer.asked("r", "?")} != {1}
    assert not engine.is_held("a") and not engine.is_held("b")
    engine.fails("release", "not_held", key="a")


def test_tokens_that_the_next_connection_does_not_take_go_over_the_one_after(make_peer, make_engine):
    """Neither one that breaks, nor one whose `error` may be the read time-out's: that one closes."""
    peer = make_peer("""
        EXPECT l / a / 0
        SEND ok {t1} 30
        WAIT die
        RESET
        ACCEPT
        EXPECT r / a / {t1}
        RESET
        ACCEPT
        EXPECT r / a / {t1}
        SEND error
        CLOSE
        ACCEPT
        EXPECT r / a / {t1}
        SEND error
        EXPECT r / a / {t1}
        SEND error
    """, auto={"l": "timeout"})
    engine = make_engine(peer)
    engine.ok("acquire", key="a")
    peer.go("die")
    eventually(lambda: not engine.is_held("a"))
    for count in (1, 2, 4):
        eventually(lambda n=count: engine.run("acquire", key="b", timeout=0) and peer.count("r", "a") >= n)
    peer.check()


# --------------------------------------------------------------------------------- release


def test_a_release_that_the_server_refuses_is_false(make_peer, make_engine):
    """The second one: a plain error may be the read time-out's, and then the first was not heard."""
    peer = make_peer(held("EXPECT r / k / {t1}\nSEND error\nEXPECT r / k / {t1}\nSEND error"))
    engine = make_engine(peer)
    engine.ok("acquire", key="k")
    engine.fails("release", "not_held", key="k")
    assert engine.holds() == []
    peer.await_request("r", count=2)
    peer.check()


@pytest.mark.parametrize("end", ["CLOSE", "RESET", "HOLD"])
def test_from_its_sending_on_a_released_hold_is_gone_whatever_comes(make_peer, make_engine, end):
    peer = make_peer(held(f"EXPECT r / k / {{t1}}\nWAIT sent\n{end}"), auto={"r": "error", "n": "ok {lease}"})
    engine = make_engine(peer, connect_timeout=0.6)
    engine.ok("acquire", key="k")
    call = engine.start("release", key="k")
    peer.reached("sent")
    assert not engine.is_held("k")
    assert [h.state for h in engine.holds()] in ([], ["releasing"])
    peer.go("sent")
    answer = engine.finish(call)
    assert answer.sqlstate == "LK011" and answer.ms < 4000
    assert engine.holds() == [] and peer.count("n") == 0
    engine.fails("release", "not_held", key="k")


def test_a_cancelled_release_stays_sent(make_peer, make_engine):
    peer = make_peer(held("EXPECT r / k / {t1}\nWAIT sent\nSEND ok"))
    engine = make_engine(peer)
    engine.ok("acquire", key="k")
    call = engine.start("release", key="k")
    peer.reached("sent")
    engine.cancel(call)
    assert engine.finish(call).status == "canceled"
    assert not engine.is_held("k")
    assert [h.state for h in engine.holds()] in ([], ["releasing"])
    peer.go("sent")
    peer.check()
    eventually(lambda: engine.holds() == [])


def test_a_release_need_not_be_waited_for(make_peer, make_engine):
    peer = make_peer(held("EXPECT r / k / {t1}\nWAIT sent\nSEND ok\nEXPECT l / k / 0\nSEND ok {t2} 30"))
    engine = make_engine(peer)
    engine.ok("acquire", key="k")
    assert engine.ok("release", key="k", wait=0).ms < 1500
    peer.reached("sent")
    call = engine.start("acquire", key="k", timeout=0)
    assert not engine.done(call)
    peer.go("sent")
    assert engine.finish(call).token == peer.value("t2"), "behind the release, on the same connection"
    peer.check()


def test_a_request_on_another_connection_waits_for_the_answer_to_the_release(make_peer, make_engine):
    peer = make_peer("""
        EXPECT l / k / 0
        SEND timeout
        EXPECT l / k / 0
        SEND ok {t2} 30
        ACCEPT
        EXPECT l / k / 2
        SEND ok {t1} 30
        EXPECT r / k / {t1}
        WAIT answer
        SEND ok
    """)
    engine = make_engine(peer, sessions="a b")
    engine.ok("acquire", key="k", timeout=2)
    engine.ok("release", key="k", wait=0)
    peer.reached("answer")
    call = engine.start("acquire", "b", key="k", timeout=0)
    always(lambda: peer.count("l", "k") == 2, 0.4, what="no request overtakes the release")
    peer.go("answer")
    assert engine.finish(call).status == "ok"
    peer.check()


def test_other_keys_do_not_wait_for_a_release(make_peer, make_engine):
    peer = make_peer("""
        EXPECT l / k / 0
        SEND timeout
        EXPECT l / other / 0
        SEND ok {t2} 30
        ACCEPT
        EXPECT l / k / 2
        SEND ok {t1} 30
        EXPECT r / k / {t1}
        HOLD
    """)
    engine = make_engine(peer)
    engine.ok("acquire", key="k", timeout=2)
    engine.ok("release", key="k", wait=0)
    engine.ok("acquire", key="other")
    peer.check()


def test_release_all_gives_everything_back(make_peer, make_engine):
    peer = make_peer("""
        EXPECT l / a / 0
        SEND ok {t1} 30
        EXPECT l / b / 0
        SEND ok {t2} 30
        ACCEPT
        EXPECT e / c /
        SEND queued
        EXPECT w / c / *
        EOF
    """, auto={"r": "ok"})
    engine = make_engine(peer)
    engine.ok("acquire", key="a")
    engine.ok("acquire", key="b")
    engine.ok("enqueue", key="c")
    assert engine.ok("release_all").seconds == 3
    assert engine.holds() == []
    assert {r.argument for r in peer.asked("r")} >= {peer.value("t1"), peer.value("t2")}
    assert engine.ok("release_all").seconds == 0
    peer.check()


def test_the_end_of_a_session_gives_everything_back(make_peer, make_engine):
    peer = make_peer(held("EXPECT r / k / {t1}\nSEND ok"))
    engine = make_engine(peer, sessions="a b")
    engine.ok("acquire", key="k")
    engine.must("end", "a")
    peer.check()
    assert engine.holds("b") == []


def test_the_end_of_a_client_gives_everything_back(make_peer, make_engine):
    peer = make_peer(held("EXPECT r / k / {t1}\nSEND ok"))
    engine = make_engine(peer, sessions="a")
    engine.ok("acquire", key="k")
    engine.must("shutdown")
    peer.check()
    eventually(lambda: not engine.busy().left_behind)


@pytest.mark.parametrize("operation, request_, answer", [("enqueue", "e / k /", "acquired"), ("acquire", "l / k / 0", "ok")])
def test_who_waits_for_a_release_to_be_answered_opens_no_connection(make_peer, make_engine, operation, request_, answer):
    """Where the server is full, such connections were closed and opened as fast as the network allowed."""
    peer = make_peer(f"""
        EXPECT e / k /
        SEND acquired {{t1}} 30
        EXPECT r / k / {{t1}}
        WAIT heard
        SEND ok
        ACCEPT
        EXPECT {request_}
        SEND {answer} {{t2}} 30
    """)
    engine = make_engine(peer)
    engine.ok("enqueue", key="k")
    release = engine.start("release", key="k")
    peer.reached("heard")
    call = engine.start(operation, key="k")
    always(lambda: peer.accepted == 1 and not engine.done(call), 0.4)
    peer.go("heard")
    assert engine.finish(release).status == "ok" and engine.finish(call).token == peer.value("t2")
    peer.check()


# ---------------------------------------------------------------------------- release by token


def test_a_token_of_somebody_far_away_is_released_over_the_control_connection(make_peer, make_engine):
    peer = make_peer("""
        EXPECT r / k / {t1}
        SEND ok
        EXPECT r / k / {t2}
        SEND error
    """)
    engine = make_engine(peer)
    engine.ok("release_token", key="k", token=peer.value("t1"))
    engine.fails("release_token", "not_held", key="k", token=peer.value("t2"))
    peer.check()


def test_the_own_holds_token(make_peer, make_engine):
    peer = make_peer(held("EXPECT r / k / {t1}\nSEND ok"))
    engine = make_engine(peer)
    engine.ok("acquire", key="k")
    engine.ok("release_token", key="k", token=peer.value("t1"))
    assert engine.holds() == []
    peer.check()


def test_another_sessions_token_is_lost_before_the_request_goes_out(make_peer, make_engine):
    peer = make_peer(held("EXPECT r / k / {t1}\nWAIT sent\nSEND ok"))
    engine = make_engine(peer, sessions="a b")
    engine.ok("acquire", "a", key="k")
    call = engine.start("release_token", "b", key="k", token=peer.value("t1"))
    peer.reached("sent")
    assert not engine.is_held("k", "a")
    answer = engine.assert_held("k", "a")
    assert answer.status == "lost" and "released by token" in answer.text
    peer.go("sent")
    assert engine.finish(call).status == "ok"
    peer.check()


def test_another_sessions_token_goes_out_whatever_else_of_its_key_is_unanswered(make_peer, make_engine):
    """Its hold is gone at once, so its release must not wait for a debt, nor be taken back by a cancel."""
    peer = make_peer(held("EXPECT r / k / {t1}\nWAIT sent\nSEND ok"), auto={"e": None})
    engine = make_engine(peer, sessions="a b")
    engine.ok("acquire", "a", key="k")
    place = engine.start("enqueue", "b", key="k")
    peer.await_request("e", "k")
    engine.cancel(place)
    assert engine.finish(place).status == "canceled"
    call = engine.start("release_token", "b", key="k", token=peer.value("t1"))
    peer.reached("sent")
    engine.cancel(call)
    assert engine.finish(call).status == "canceled"
    peer.go("sent")
    peer.check()


@pytest.mark.parametrize("how", ["cancelled", "told"])
def test_another_sessions_token_that_was_not_heard_goes_out_again(make_peer, make_engine, how):
    peer = make_peer(held("EXPECT r / k / {t1}\nWAIT sent\nRESET"), auto={"r": "ok", "l": "timeout"})
    engine = make_engine(peer, sessions="a b")
    engine.ok("acquire", "a", key="k")
    call = engine.start("release_token", "b", key="k", token=peer.value("t1"))
    peer.reached("sent")
    if how == "cancelled":
        engine.cancel(call)
    peer.go("sent")
    assert engine.finish(call).status == ("canceled" if how == "cancelled" else "broken")
    eventually(lambda: engine.run("acquire", key="b", timeout=0) and peer.count("r", "k", peer.value("t1")) == 2)


def test_another_sessions_token_answered_by_the_read_timeout_goes_out_again(make_peer, make_engine):
    """A plain `error` and a close may be the end of a connection that was silent too long: nothing was released."""
    peer = make_peer(held("EXPECT r / k / {t1}\nSEND error\nCLOSE"), auto={"r": "ok", "l": "timeout"})
    engine = make_engine(peer, sessions="a b")
    engine.ok("acquire", "a", key="k")
    engine.fails("release_token", "not_held", "b", key="k", token=peer.value("t1"))
    eventually(lambda: engine.run("acquire", key="b", timeout=0) and peer.count("r", "k", peer.value("t1")) == 2)


def test_a_transactions_hold_is_not_released_by_token(make_peer, make_engine):
    peer = make_peer(held())
    engine = make_engine(peer, sessions="a b")
    engine.ok("acquire", "a", key="k", scope="xact")
    for session in "ab":
        engine.fails("release_token", "not_held", session, key="k", token=peer.value("t1"))
    assert engine.is_held("k", "a") and peer.count("r", "k") == 0


# ------------------------------------------------------------------------------------- rules


def test_a_session_never_waits_for_itself(make_peer, make_engine):
    peer = make_peer(held())
    engine = make_engine(peer)
    engine.ok("acquire", key="k")
    for operation in ("acquire", "enqueue"):
        assert engine.fails(operation, "self", key="k").sqlstate == "55006"
    assert engine.fails("acquire", "self", key="k", kind="sem", slots=1).sqlstate == "55006"
    assert peer.count("l") == 1


def test_a_repeated_transaction_lock_answers_with_the_hold_that_it_has(make_peer, make_engine):
    peer = make_peer(held())
    engine = make_engine(peer)
    first = engine.ok("acquire", key="k", scope="xact")
    second = engine.ok("acquire", key="k", scope="xact")
    assert first.token == second.token and peer.count("l") == 1


def test_an_idle_connection_is_dialled_anew_before_use(make_peer, make_engine):
    """The server's read time-out would close it just now."""
    peer = make_peer(held("EXPECT r / k / {t1}\nSEND ok\nEOF") + """
        ACCEPT
        EXPECT l / k / 0
        SEND ok {t2} 30
    """)
    engine = make_engine(peer, server_read_timeout=1, keepalive=0.3)
    engine.ok("acquire", key="k")
    engine.ok("release", key="k")
    seconds_pass(0.7)
    assert engine.ok("acquire", key="k").token == peer.value("t2")
    peer.check()


def test_a_warm_client_keeps_its_idle_connection(make_peer, make_engine):
    peer = make_peer(held("EXPECT r / k / {t1}\nSEND ok\nEXPECT l / k / 0\nSEND ok {t2} 30"))
    engine = make_engine(peer, server_read_timeout=1, keepalive=0.3, keep_warm=1)
    engine.ok("acquire", key="k")
    engine.ok("release", key="k")
    peer.await_request("ping", count=6)
    engine.ok("acquire", key="k")
    assert peer.accepted == 1
    peer.check()


def test_a_warm_client_keeps_an_old_servers_connection_with_a_harmless_release(make_peer, make_engine):
    peer = make_peer(held("EXPECT r / k / {t1}\nSEND ok"), auto={"ping": "error"})
    engine = make_engine(peer, server_read_timeout=1, keepalive=0.3, keep_warm=1)
    engine.ok("acquire", key="k")
    engine.ok("release", key="k")
    peer.await_request("r", "_", "0" * 32, count=4)
    assert peer.accepted == 1 and peer.count("ping") == 1
