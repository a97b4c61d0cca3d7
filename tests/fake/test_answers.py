"""Answers to a try: cut, mute, wrong, refused, and what the caller is told."""

import pytest

from lib.eventually import Stopwatch, eventually
from lib.under import patient


def test_an_answer_may_come_one_byte_at_a_time(make_peer, make_engine):
    peer = make_peer("""
        EXPECT l / k / 0 30
        SPLIT ok {t1} 30
        EXPECT r / k / {t1}
        SPLIT ok
    """)
    engine = make_engine(peer)
    hold = engine.ok("acquire", key="k", lease=30)
    assert (hold.state, hold.token, hold.lease) == ("held", peer.value("t1"), 30)
    assert engine.is_held("k")
    engine.ok("release", key="k")
    assert not engine.is_held("k") and engine.holds() == []
    peer.check()


def test_two_answers_in_one_piece(make_peer, make_engine):
    peer = make_peer("""
        EXPECT l / a / 0
        EXPECT l / b / 0
        RAW ok {t1} 30\\nok {t2} 30\\n
    """)
    engine = make_engine(peer)
    engine.ok("ping")  # the server is known, both tries can go out together
    one, two = engine.start("acquire", key="a"), engine.start("acquire", key="b")
    assert engine.finish(one).token == peer.value("t1")
    assert engine.finish(two).token == peer.value("t2")
    peer.check()


def test_an_uncontended_lock_is_one_round_trip_on_a_warm_connection(make_peer, make_engine):
    peer = make_peer("""
        EXPECT l / k / 0
        SEND ok {t1} 33
        EXPECT r / k / {t1}
        SEND ok
        EXPECT l / k / 0
        SEND ok {t2} 33
        EXPECT r / k / {t2}
        SEND ok
    """)
    engine = make_engine(peer)
    for _ in range(2):
        engine.ok("acquire", key="k")
        engine.ok("release", key="k")
    peer.check()
    assert [r.command for r in peer.requests] == ["ping", "l", "r", "l", "r"]
    assert peer.accepted == 1


def test_busy_is_false_at_once_when_nobody_wants_to_wait(make_peer, make_engine):
    peer = make_peer("""
        EXPECT l / k / 0
        SEND timeout
    """)
    answer = make_engine(peer).fails("acquire", "timeout", key="k", timeout=0)
    assert answer.sqlstate == "55P03" and answer.ms < 1500
    peer.check()


# --------------------------------------------------------------------------------- silence


@pytest.mark.parametrize("said", ["", "RAW ok {t1}", "RAW ok {t1} 30", "RAW time"])
def test_a_server_that_goes_mute_is_an_error_in_time_and_never_busy(make_peer, make_engine, said):
    script = f"""
        EXPECT l / k / *
        {said}
        HOLD
    """
    peer = make_peer(script + "ACCEPT" + script)
    engine = make_engine(peer, connect_timeout=0.6)
    answer = engine.fails("acquire", "broken", key="k", timeout=5)
    assert answer.sqlstate == "LK011" and peer.address in answer.text
    assert 500 <= answer.ms < 2500
    assert engine.holds() == []


def test_a_server_that_never_says_anything(make_peer, make_engine):
    peer = make_peer("HOLD\nACCEPT\nHOLD\nACCEPT\nHOLD")
    answer = make_engine(peer, connect_timeout=0.6).fails("acquire", "broken", key="k")
    assert answer.sqlstate == "LK011" and peer.address in answer.text and 500 <= answer.ms < 2500


def test_a_port_that_nobody_listens_on(make_peer, make_engine):
    peer = make_peer()
    peer.refuse()
    answer = make_engine(peer).fails("acquire", "unreachable", key="k")
    assert answer.sqlstate == "LK010"
    assert peer.address in answer.text and "connect" in answer.text and "refused" in answer.text
    assert answer.ms < 1500


def test_an_error_is_told_again_and_a_server_that_came_back_is_used(make_peer, make_engine):
    peer = make_peer("""
        EXPECT l / k / 0
        SEND ok {t1} 30
    """)
    peer.refuse()
    engine = make_engine(peer)
    engine.fails("acquire", "unreachable", key="k")
    engine.fails("acquire", "unreachable", key="k")
    peer.listen()
    engine.ok("acquire", key="k")
    peer.check()


# ------------------------------------------------------------------------------ wrong words


@pytest.mark.parametrize("line, seen", [
    ("banana", "banana"), ("OK {t1} 30", "OK"), ("acquired {t1} 30", "acquired"), ("queued", "queued"), ("ok", "ok"),
    ("ok 30", "ok 30"), ("ok {t1}", "ok "), ("ok {t1} x", "ok "), ("ok {t1} -1", "ok "), ("ok {t1} 30 40", "ok "),
    ("ok {t1}0 30", "ok "), (f"ok {'AB' * 16} 30", "ok "), ("timeouts", "timeouts"), ("okay {t1} 30", "okay"),
    ("erro", "erro"), ("", '""')])
def test_a_word_that_is_no_answer_is_a_protocol_violation(make_peer, make_engine, line, seen):
    peer = make_peer(f"""
        EXPECT l / k / 0
        SEND {line}
        EOF
    """)
    engine = make_engine(peer)
    answer = engine.fails("acquire", "protocol", key="k", timeout=5, text=seen)
    assert answer.sqlstate == "LK012" and peer.address in answer.text
    assert engine.holds() == []
    peer.check()


def test_what_a_server_said_is_shown_cut_and_escaped(make_peer, make_engine):
    peer = make_peer(f"""
        EXPECT l / k / 0
        RAW b\\x01\\x1b[31m\\xff{"n" * 500}\\n
        EOF
    """)
    text = make_engine(peer).fails("acquire", "protocol", key="k").text
    assert "\x1b" not in text and "\x01" not in text and "b" in text and "n" * 65 not in text
    peer.check()


@pytest.mark.parametrize("end", ["", "\\n"])
def test_a_line_without_end_is_a_protocol_violation(make_peer, make_engine, end):
    peer = make_peer(f"""
        EXPECT l / k / 0
        RAW ok {"0" * 70000}{end}
        EOF
    """)
    answer = make_engine(peer).fails("acquire", "protocol", key="k")
    assert answer.ms < 1500, "not only at the deadline"
    peer.check()


def test_carriage_returns_are_no_part_of_an_answer(make_peer, make_engine):
    peer = make_peer("""
        EXPECT l / k / 0
        RAW ok {t1} 30\\r\\n
    """)
    assert make_engine(peer).ok("acquire", key="k").token == peer.value("t1")
    peer.check()


@pytest.mark.parametrize("line", ["ok", "timeout", "error", "ok {t2} 30", "x"])
def test_bytes_when_nothing_was_asked_end_the_connection(make_peer, make_engine, line):
    peer = make_peer(f"""
        EXPECT l / k / 0
        SEND ok {{t1}} 30
        WAIT more
        SEND {line}
        EOF
    """)
    engine = make_engine(peer)
    engine.ok("acquire", key="k")
    peer.go("more")
    eventually(lambda: not engine.is_held("k"), what="the hold is lost")
    hold = engine.hold("k")
    assert hold.state == "lost" and hold.last_error
    peer.check()


# ------------------------------------------------------------------------------ error words


@pytest.mark.parametrize("word, status, sqlstate", [
    ("error", "refused", "LK005"), ("error_max_locks", "max_locks", "LK004"),
    ("error_limit_mismatch", "limit_mismatch", "LK001"), ("error_draining", "draining", "LK005"),
    ("error_not_leader 10.0.0.1:6388", "not_leader", "LK005"), ("error_from_the_future", "refused", "LK005"),
    ("error_auth", "auth", "LK013")])
def test_an_error_word_answers_its_request_and_leaves_the_connection(make_peer, make_engine, word, status, sqlstate):
    peer = make_peer(f"""
        EXPECT l / k / 0
        SEND {word}
        EXPECT l / k / 0
        SEND ok {{t1}} 30
    """)
    engine = make_engine(peer)
    answer = engine.fails("acquire", status, key="k", timeout=5)
    assert answer.sqlstate == sqlstate, answer
    engine.ok("acquire", key="k")
    assert peer.accepted == 1
    peer.check()


@pytest.mark.parametrize("word, shown", [
    ("error_from_the_future", "error_from_the_future"), ("error_not_leader 10.0.0.1:6388", "10.0.0.1:6388"),
    ("error_max_locks", "--max-locks")])
def test_an_error_word_is_explained(make_peer, make_engine, word, shown):
    peer = make_peer(f"EXPECT l / k / 0\nSEND {word}")
    text = make_engine(peer).run("acquire", key="k").text
    assert shown in text and (peer.address in text or "server" in text)


def test_max_waiters_to_a_try_means_busy(make_peer, make_engine):
    peer = make_peer("""
        EXPECT l / k / 0
        SEND error_max_waiters
    """)
    make_engine(peer).fails("acquire", "timeout", key="k", timeout=0)
    peer.check()


def test_max_waiters_to_one_who_wants_to_wait_is_an_error(make_peer, make_engine):
    peer = make_peer("""
        EXPECT l / k / 0
        SEND error_max_waiters
        ACCEPT
        EXPECT l / k / 2
        SEND error_max_waiters
    """)
    answer = make_engine(peer).fails("acquire", "max_waiters", key="k", timeout=2)
    assert answer.sqlstate == "LK004" and "--max-waiters" in answer.text
    peer.check()


# ------------------------------------------------------------- repeated once, and only where harmless

END = {"error and close": "SEND error\nCLOSE", "close": "CLOSE", "reset": "RESET"}


@pytest.mark.parametrize("end", END.values(), ids=END.keys())
def test_a_try_of_a_connection_that_owned_nothing_is_repeated_once(make_peer, make_engine, end):
    peer = make_peer(f"""
        EXPECT l / a / 0
        SEND ok {{t1}} 30
        EXPECT r / a / {{t1}}
        SEND ok
        EXPECT l / k / 0
        {end}
        ACCEPT
        EXPECT l / k / 0
        SEND ok {{t2}} 30
    """)
    engine = make_engine(peer)
    engine.ok("acquire", key="a")
    engine.ok("release", key="a")
    assert engine.ok("acquire", key="k").token == peer.value("t2")
    peer.check()


@pytest.mark.parametrize("end", END.values(), ids=END.keys())
def test_it_is_not_repeated_twice(make_peer, make_engine, end):
    script = f"""
        EXPECT l / k / 0
        {end}
    """
    peer = make_peer(script + "ACCEPT" + script + "ACCEPT\nEXPECT never")
    engine = make_engine(peer)
    answer = engine.run("acquire", key="k", timeout=5)
    assert answer.sqlstate in ("LK011", "LK005") and answer.status != "timeout", answer
    assert peer.count("l") == 2
    assert engine.holds() == []


def test_a_try_of_a_connection_that_owns_something_is_not_repeated(make_peer, make_engine):
    """It could have been granted, on a connection whose loss the server has not noticed."""
    peer = make_peer("""
        EXPECT l / a / 0
        SEND ok {t1} 30
        EXPECT l / k / 0
        CLOSE
    """, auto={"r": "ok"})
    engine = make_engine(peer)
    engine.ok("acquire", key="a")
    assert engine.fails("acquire", "broken", key="k", timeout=0).sqlstate == "LK011"
    assert peer.count("l", "k") == 1
    assert engine.hold("a").state == "lost" and not engine.is_held("a")


@pytest.mark.parametrize("end", ["CLOSE", "RESET", "EXPECT *\nCLOSE"])
def test_a_connection_that_is_closed_before_its_first_answer_may_be_one_too_many(make_peer, make_engine, end):
    """Closed with our request unread, the kernel makes a reset of it: the same thing."""
    peer = make_peer("\nACCEPT\n".join([end] * 5))
    answer = make_engine(peer).fails("acquire", "broken", key="k")
    assert answer.sqlstate == "LK011" and "max-connections" in answer.text and peer.address in answer.text


# ------------------------------------------------------------------------------ old and new servers


def test_a_first_server_closes_on_ping_and_is_dialled_again_without(make_peer, make_engine):
    peer = make_peer("""
        EXPECT ping
        SEND error
        CLOSE
        ACCEPT
        EXPECT l / k / 0 30
        SEND ok {t1} 30
        EXPECT r / k / {t1}
        CLOSE
        ACCEPT
        EXPECT r / k / {t1}
        SEND error
        EXPECT l / k / 0
        SEND ok {t2} 33
        EXPECT r / k / {t1}
        SEND error
    """)
    engine = make_engine(peer)
    assert engine.ok("acquire", key="k", lease=30).token == peer.value("t1")
    assert peer.count("ping") == 1
    engine.fails("release", "broken", key="k")
    engine.ok("acquire", key="k")
    assert peer.count("ping") == 1, "not asked again for a minute"
    peer.check()


def test_a_server_that_says_error_to_ping_and_stays_is_used(make_peer, make_engine):
    peer = make_peer("""
        EXPECT ping
        SEND error
        EXPECT l / k / 0
        SEND ok {t1} 30
    """)
    make_engine(peer).ok("acquire", key="k")
    assert peer.accepted == 1
    peer.check()


def test_ping_measures_and_reports_each_server(make_peer, make_engine):
    new, old, dead = make_peer(), make_peer(auto={"ping": "error"}), make_peer()
    dead.refuse()
    engine = make_engine([new, old, dead])
    answers = {a["address"]: a for a in engine.ok("ping").answers}
    assert answers[new.address]["status"] == "ok" and answers[new.address]["round_trip_us"] > 0
    assert answers[old.address]["status"] == "ok" and answers[old.address]["round_trip_us"] > 0
    assert answers[dead.address]["sqlstate"] == "LK010" and "refused" in answers[dead.address]["text"]
    assert answers[dead.address]["round_trip_us"] <= 0


def test_stats_of_a_server_that_has_none(make_peer, make_engine):
    peer = make_peer("""
        EXPECT l / k / 0
        SEND ok {t1} 30
        ACCEPT
        EXPECT stats
        SEND error
        CLOSE
    """)
    engine = make_engine(peer)
    engine.ok("acquire", key="k")
    answer, = engine.ok("stats").answers
    assert answer["sqlstate"] == "LK005" and "not known" in answer["text"]
    assert engine.is_held("k"), "asked over a connection that owns nothing"
    peer.check()


@pytest.mark.parametrize("bad", ['RAW ok {"connections"', "SEND nonsense", "CLOSE", "SEND ok"], ids=range(4))
def test_bad_stats_harm_that_call_only(make_peer, make_engine, bad):
    peer = make_peer(f"""
        EXPECT l / k / 0
        SEND ok {{t1}} 30
        ACCEPT
        EXPECT stats
        {bad}
        {"HOLD" if bad != "CLOSE" else ""}
    """)
    engine = make_engine(peer, connect_timeout=0.6)
    engine.ok("acquire", key="k")
    with Stopwatch() as took:
        answer, = engine.ok("stats").answers
    assert answer["status"] != "ok" and answer["sqlstate"].startswith("LK") and took.s < patient(4)
    assert engine.is_held("k")


def test_stats_may_be_very_long_and_come_in_pieces(make_peer, make_engine):
    body = "x" * 300_000
    peer = make_peer("""
        EXPECT stats
        RAW ok {body}
        SLEEP 0.1
        RAW {body}
        SEND {body}
    """, body=body)
    answer, = make_engine(peer).ok("stats").answers
    assert answer["status"] == "ok" and answer["body"] == body * 3
    peer.check()


def test_stats_longer_than_is_read(make_peer, make_engine):
    """A server with very many keys is not down, nor is its answer a breach of the protocol."""
    peer = make_peer("""
        EXPECT l / k / 0
        SEND ok {t1} 600
        ACCEPT
        EXPECT stats
        RAW ok {body}
        HOLD
    """, body="x" * (64 << 20))
    engine = make_engine(peer, connect_timeout=60, server_read_timeout=600, keepalive=200)
    engine.ok("acquire", key="k")
    answer, = engine.ok("stats").answers
    assert answer["status"] != "ok"
    assert answer["text"] == f"the answer of {peer.address} to stats is longer than 64 MiB: too many keys"
    server, = engine.servers()
    assert server.state == "up" and not server.last_error
    assert engine.is_held("k")
