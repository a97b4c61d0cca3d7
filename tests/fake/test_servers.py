"""Several servers, login, TLS, what a server is not yet known to know, and fences."""

import time
import zlib

import pytest

from fake.peer import make_token
from lib.eventually import Stopwatch, always, eventually
from lib.under import patient

SEMAPHORE = {"kind": "sem", "slots": 3}


def keys_for(index, count, how_many=1):
    """Keys that belong to the server of that index, as every client reckons."""
    keys = (f"key-{i}" for i in range(10_000))
    found = [k for k in keys if zlib.crc32(k.encode()) % count == index]
    return found[:how_many] if how_many > 1 else found[0]


# -------------------------------------------------------------------------- what a server may not know


def test_the_first_semaphore_command_goes_where_nothing_is_owned(make_peer, make_engine):
    peer = make_peer("""
        EXPECT l / own / 0
        SEND ok {t1} 30
        EXPECT sl / s / 0 3
        SEND ok {t3} 30
        ACCEPT
        EXPECT sl / s / 0 3
        SEND ok {t2} 30
    """)
    engine = make_engine(peer, sessions="a b")
    engine.ok("acquire", key="own")
    engine.ok("acquire", key="s", **SEMAPHORE)
    engine.ok("acquire", "b", key="s", **SEMAPHORE)
    peer.check()
    assert [r.connection for r in peer.asked("sl")] == [2, 1], "from the second on, on the control connection"


@pytest.mark.parametrize("end", ["CLOSE", "EXPECT never"], ids=["close", "stay"])
def test_a_server_without_semaphores(make_peer, make_engine, end):
    peer = make_peer(f"""
        EXPECT l / own / 0
        SEND ok {{t1}} 30
        ACCEPT
        EXPECT sl / s / 0 3
        SEND error
        {end if end == "CLOSE" else ""}
    """)
    engine = make_engine(peer)
    engine.ok("acquire", key="own")
    answer = engine.run("acquire", key="s", **SEMAPHORE)
    assert answer.sqlstate == "LK005", answer
    if end == "CLOSE":
        assert answer.status == "unknown_to_server" and "not known to this server" in answer.text
    assert engine.is_held("own"), "on another connection"
    peer.check()


def test_a_key_of_256_bytes_goes_where_nothing_is_owned(make_peer, make_engine):
    longest = "x" * 256
    peer = make_peer("""
        EXPECT l / own / 0
        SEND ok {t1} 30
        ACCEPT
        EXPECT l / {longest} / 0
        SEND error
        CLOSE
    """, longest=longest)
    engine = make_engine(peer)
    engine.ok("acquire", key="own")
    answer = engine.fails("acquire", "unknown_to_server", key=longest)
    assert answer.sqlstate == "LK005" and "not known to this server" in answer.text
    assert engine.is_held("own")
    peer.check()


def test_semaphores_wait_and_release_with_their_own_commands(make_peer, make_engine):
    peer = make_peer("""
        EXPECT sl / s / 0 3 9
        SEND timeout
        ACCEPT
        EXPECT sl / s / 5 3 9
        SEND ok {t1} 9
        EXPECT sn / s / {t1} 9
        SEND ok 9
        EXPECT sr / s / {t1}
        SEND ok
    """, auto={"sn": "ok {lease}"})
    engine = make_engine(peer)
    hold = engine.ok("acquire", key="s", timeout=5, lease=9, **SEMAPHORE)
    assert hold.kind == "sem" and hold.slots == 3
    engine.ok("renew", key="s")
    engine.ok("release", key="s", kind="sem")
    peer.check()


def test_each_call_takes_one_more_slot_and_release_gives_the_newest_back(make_peer, make_engine):
    peer = make_peer("""
        EXPECT sl / s / 0 3
        SEND ok {t1} 30
        ACCEPT
        EXPECT sl / s / 0 3
        SEND ok {t2} 30
        ACCEPT
        EXPECT sr / s / {t2}
        SEND ok
        ACCEPT
        EXPECT sr / s / {t1}
        SEND ok
    """)
    engine = make_engine(peer)
    for _ in range(2):
        engine.ok("acquire", key="s", **SEMAPHORE)
    for _ in range(2):
        engine.ok("release", key="s", kind="sem")
    peer.check()


def test_semaphores_have_places_too(make_peer, make_engine):
    peer = make_peer("""
        EXPECT se / s / 3 9
        SEND queued
        EXPECT sw / s / 9223372036
        WAIT turn
        SEND ok {t1} 9
    """, auto={"sn": "ok {lease}"})
    engine = make_engine(peer)
    engine.ok("enqueue", key="s", lease=9, **SEMAPHORE)
    call = engine.start("wait", key="s", kind="sem", timeout=60)
    peer.go("turn")
    assert engine.finish(call).token == peer.value("t1")
    peer.check()


# --------------------------------------------------------------------------------------- shards


def test_keys_go_to_the_server_that_every_client_reckons(make_peer, make_engine):
    peers = [make_peer(auto={"l": "timeout"}) for _ in range(3)]
    engine = make_engine(peers)
    for i in range(12):
        engine.fails("acquire", "timeout", key=f"key-{i}", timeout=0)
    for index, peer in enumerate(peers):
        asked = {r.key for r in peer.asked("l")}
        assert asked == {f"key-{i}" for i in range(12) if zlib.crc32(f"key-{i}".encode()) % 3 == index}


def test_a_dead_shard_harms_its_own_keys_only(make_peer, make_engine):
    alive, dead = make_peer(auto={"l": "ok {t1} 30", "n": "ok {lease}"}), make_peer()
    dead.refuse()
    engine = make_engine([alive, dead])
    engine.fails("acquire", "unreachable", key=keys_for(1, 2), text=dead.address)
    engine.ok("acquire", key=keys_for(0, 2))
    states = {s.address: s.state for s in engine.servers()}
    assert states == {alive.address: "up", dead.address: "down"}


def test_a_mute_shard_delays_nobody_elses_renewals(make_peer, make_engine):
    alive, mute = make_peer(auto={"l": "ok {t1} 1", "n": "ok {lease}"}), make_peer("\nACCEPT\n".join(["HOLD"] * 20))
    engine = make_engine([alive, mute], sessions="a b", connect_timeout=1)
    key = keys_for(0, 2)
    engine.ok("acquire", key=key, lease=1)
    calls = [engine.start("acquire", "b", key=k, timeout=5) for k in keys_for(1, 2, 5)]
    always(lambda: engine.is_held(key), 2.5, every=0.02)
    assert [engine.finish(c).sqlstate for c in calls] == ["LK011"] * 5
    assert alive.count("n") >= 3


def test_servers_that_nobody_asked_are_unused(make_peer, make_engine):
    peers = [make_peer(auto={"l": "timeout"}) for _ in range(2)]
    engine = make_engine(peers)
    rows = engine.servers()
    assert [(s.address, s.state, s.connections) for s in rows] == [(p.address, "unused", 0) for p in peers]
    assert sum(p.accepted for p in peers) == 0
    engine.fails("acquire", "timeout", key=keys_for(0, 2), timeout=0)
    rows = engine.servers()
    assert [s.state for s in rows] == ["up", "unused"]
    assert rows[0].connections >= 1 and rows[0].round_trip_us >= 0 and rows[1].round_trip_us == -1


def test_a_key_that_moved_is_refused_and_its_hold_stays_where_it_was(make_peer, make_engine):
    old = make_peer("EXPECT l / k / 0\nSEND ok {t1} 2\nEXPECT r / k / {t1}\nSEND ok", auto={"n": "ok {lease}"})
    new = make_peer("EXPECT l / k / 0\nSEND ok {t1} 30")
    engine = make_engine(old, sessions="a b")
    engine.ok("acquire", key="k")
    engine.set(servers=new.address)
    for session in "ab":
        answer = engine.run("acquire", session, key="k")
        assert answer.status in ("moved", "self") and answer.sqlstate in ("55000", "55006")
    assert engine.run("acquire", "b", key="k").status == "moved"
    assert engine.is_held("k") and engine.hold("k").server == old.address
    eventually(lambda: old.count("n") >= 2, what="renewed at its old server")
    assert {s.address: s.state for s in engine.servers()} == {new.address: "unused", old.address: "old"}
    engine.ok("release", key="k")
    engine.ok("acquire", key="k")
    assert engine.hold("k").server == new.address
    old.check()
    new.check()
    assert [s.address for s in engine.servers()] == [new.address]


def test_a_bad_list_of_servers_changes_nothing(make_peer, make_engine):
    peer = make_peer(auto={"l": "ok {t1} 30"})
    engine = make_engine(peer)
    for bad in ("", "host:0", "host:70000", "a,,b", "[::1", f"{peer.address},{peer.address}"):
        assert engine.command("set", f"servers={bad}").status == "invalid", bad
    engine.ok("acquire", key="k")


# --------------------------------------------------------------------------------------- login


@pytest.fixture
def token_file(directory):
    path = directory / "token"
    path.write_text("s3cret\n")
    return path


def test_login_comes_first_on_every_connection(make_peer, make_engine, token_file):
    peer = make_peer("""
        EXPECT l / k / 0
        SEND timeout
        ACCEPT
        EXPECT l / k / 5
        SEND ok {t1} 30
    """, auto={"auth": "ok"})
    engine = make_engine(peer, auth_token_file=token_file)
    engine.ok("acquire", key="k", timeout=5)
    for connection in (1, 2):
        first = [r for r in peer.requests if r.connection == connection][0]
        assert (first.command, first.key, first.argument) == ("auth", "_", "s3cret")
    peer.check()


@pytest.mark.parametrize("answer, words", [("error_auth", "token"), ("error", "no login token"), ("ok x", "")])
def test_a_refused_login(make_peer, make_engine, token_file, answer, words):
    peer = make_peer("\nACCEPT\n".join([f"EXPECT auth / _ / s3cret\nSEND {answer}"] * 3))
    engine = make_engine(peer, auth_token_file=token_file)
    refused = engine.run("acquire", key="k")
    assert refused.sqlstate in (("LK013",) if answer != "ok x" else ("LK012", "LK013"))
    assert peer.address in refused.text and words in refused.text
    assert peer.count("l") == 0
    assert "s3cret" not in refused.text + " ".join(engine.logged) + engine.log().replace(str(token_file), "")


@pytest.mark.parametrize("end", ["CLOSE", "RESET", "HOLD", "EXPECT auth\nCLOSE", "EXPECT auth\nHOLD",
                                 "EXPECT auth\nRAW o\nCLOSE", "EXPECT auth\nSEND ok\nCLOSE"])
def test_a_connection_that_breaks_at_login(make_peer, make_engine, token_file, end):
    peer = make_peer("\nACCEPT\n".join([end] * 4))
    engine = make_engine(peer, auth_token_file=token_file, connect_timeout=0.6)
    answer = engine.run("acquire", key="k")
    # A reset may be seen already while connecting.
    assert answer.sqlstate == "LK011" or (end == "RESET" and answer.sqlstate == "LK010"), answer
    assert peer.address in answer.text and answer.ms < 4000
    assert engine.holds() == []


def test_a_server_that_wants_a_login(make_peer, make_engine):
    script = "EXPECT ping\nSEND error_auth\nCLOSE"
    peer = make_peer(f"{script}\nACCEPT\nEXPECT l\nSEND error_auth\nCLOSE\nACCEPT\n{script}")
    answer = make_engine(peer).run("acquire", key="k")
    assert answer.sqlstate == "LK013", answer


def test_the_login_may_change(make_peer, make_engine, token_file, directory):
    peer = make_peer("EXPECT auth / _ / s3cret\nSEND error_auth\nCLOSE\nACCEPT\nEXPECT auth / _ / new\nSEND ok\n"
                     "EXPECT l / k / 0\nSEND ok {t1} 30")
    engine = make_engine(peer, auth_token_file=token_file)
    engine.fails("acquire", "auth", key="k")
    other = directory / "other"
    other.write_text("new")
    engine.set(auth_token_file=other)
    engine.ok("acquire", key="k")
    peer.check()


# ----------------------------------------------------------------------------------------- TLS

GRANT = "EXPECT l / k / *\nSEND ok {t1} 30"


@pytest.fixture
def tls_peer(make_peer, certs):
    """tls_peer(script, certs.expired): a peer that speaks TLS with this certificate."""
    return lambda script="", pair=None, **kw: make_peer(
        script, tls=certs.server_context(pair or certs.server, kw.pop("ask_client", None)), **kw)


def tls_settings(certs, **more):
    return {"tls": "on", "tls_ca": certs.ca.cert, **more}


def test_tls_by_address_and_by_name(tls_peer, make_engine, certs):
    for host in ("127.0.0.1", "localhost"):
        peer = tls_peer(GRANT)
        engine = make_engine(f"{host}:{peer.port}", **tls_settings(certs))
        engine.ok("acquire", key="k")
        peer.check()


def test_tls_one_byte_at_a_time_and_long_answers(tls_peer, make_engine, certs):
    peer = tls_peer("EXPECT l / k / *\nSPLIT ok {t1} 30\nACCEPT\nEXPECT stats\nSEND ok {body}", body="x" * 200_000)
    engine = make_engine(peer, **tls_settings(certs))
    engine.ok("acquire", key="k")
    answer, = engine.ok("stats").answers
    assert len(answer["body"]) == 200_000
    peer.check()


@pytest.mark.parametrize("pair, settings, word", [
    ("expired", {}, "expired"), ("wrong_name", {}, "not for"), ("name_only", {}, "not for"),
    ("other_server", {}, "certificate"), ("server", {"tls_server_name": "elsewhere.example"}, "not for")])
def test_a_certificate_that_does_not_prove_the_server(tls_peer, make_engine, certs, pair, settings, word):
    peer = tls_peer("", getattr(certs, pair))
    answer = make_engine(peer, **tls_settings(certs, **settings)).fails("acquire", "unreachable", key="k")
    assert answer.sqlstate == "LK010" and peer.address in answer.text and word in answer.text.lower(), answer.text
    assert peer.requests == [], "not a byte of ours"


def test_each_kind_of_bad_certificate_has_its_own_sentence(tls_peer, make_engine, certs):
    texts = set()
    for pair in (certs.expired, certs.wrong_name, certs.other_server):
        peer = tls_peer("", pair)
        text = make_engine(peer, **tls_settings(certs)).fails("acquire", "unreachable", key="k").text
        texts.add(text.replace(str(peer.port), "port"))
    assert len(texts) == 3, texts


def test_insecure_takes_any_certificate(tls_peer, make_engine, certs):
    peer = tls_peer(GRANT, certs.expired)
    make_engine(peer, tls="insecure").ok("acquire", key="k")
    peer.check()


def test_another_name_may_be_asked_for(tls_peer, make_engine, certs):
    peer = tls_peer(GRANT, certs.name_only)
    make_engine(peer, **tls_settings(certs, tls_server_name="localhost")).ok("acquire", key="k")
    peer.check()


def test_a_client_certificate(tls_peer, make_engine, certs):
    settings = tls_settings(certs, tls_cert=certs.client.cert, tls_key=certs.client.key)
    peer = tls_peer(GRANT, ask_client=certs.ca)
    make_engine(peer, **settings).ok("acquire", key="k")
    peer.check()


def test_a_missing_client_certificate(tls_peer, make_engine, certs):
    peer = tls_peer("", ask_client=certs.ca)
    answer = make_engine(peer, **tls_settings(certs)).run("acquire", key="k")
    assert answer.sqlstate in ("LK010", "LK011") and peer.address in answer.text
    assert answer.status != "timeout"


def test_a_plain_server_behind_a_tls_setting(make_peer, make_engine, certs):
    peer = make_peer("RAW error\\n\nHOLD\nACCEPT\nRAW error\\n\nHOLD")
    answer = make_engine(peer, **tls_settings(certs)).fails("acquire", "unreachable", key="k")
    assert answer.sqlstate == "LK010" and "tls" in answer.text.lower() and peer.address in answer.text


def test_a_tls_server_behind_a_plain_setting(tls_peer, make_engine):
    peer = tls_peer()
    answer = make_engine(peer).run("acquire", key="k")
    assert answer.sqlstate in ("LK011", "LK012", "LK010") and peer.address in answer.text
    assert answer.status != "timeout"


def test_a_mute_server_behind_a_tls_setting(make_peer, make_engine, certs):
    peer = make_peer("HOLD\nACCEPT\nHOLD\nACCEPT\nHOLD")
    answer = make_engine(peer, connect_timeout=0.6, **tls_settings(certs)).fails("acquire", "unreachable", key="k")
    assert answer.sqlstate == "LK010" and "tls" in answer.text.lower() and 500 <= answer.ms < 3000


@pytest.mark.parametrize("end", ["CLOSE", "RESET", "RAW \\x16\\x03\nCLOSE", "RAW \\x15\\x03\\x03\\x00\\x02\\x02\\x28\nCLOSE"])
def test_a_connection_that_breaks_in_the_handshake(make_peer, make_engine, certs, end):
    peer = make_peer("\nACCEPT\n".join([end] * 4))
    answer = make_engine(peer, **tls_settings(certs)).run("acquire", key="k")
    assert answer.sqlstate in ("LK010", "LK011") and peer.address in answer.text


def test_a_cancel_in_the_handshake_closes_the_connection(make_peer, make_engine, certs):
    peer = make_peer("WAIT greeted\nCLOSE")
    engine = make_engine(peer, connect_timeout=30, **tls_settings(certs))
    call = engine.start("acquire", key="k", timeout=60)
    peer.reached("greeted")
    with Stopwatch() as took:
        engine.cancel(call)
        assert engine.finish(call).status == "canceled"
    assert took.s < patient(2) and engine.holds() == []
    peer.go("greeted")
    eventually(lambda: not engine.busy().left_behind, what="nothing is left behind")


def test_a_hold_over_tls_is_lost_with_its_connection(tls_peer, make_engine, certs):
    peer = tls_peer(GRANT + "\nWAIT die\nCLOSE", auto={"r": "ok"})
    engine = make_engine(peer, **tls_settings(certs))
    engine.ok("acquire", key="k")
    assert engine.is_held("k")
    peer.go("die")
    eventually(lambda: not engine.is_held("k"))


def test_a_mute_handshake_delays_no_renewal(make_peer, tls_peer, make_engine, certs):
    alive = tls_peer(auto={"l": "ok {t1} 1", "n": "ok {lease}"})
    mute = make_peer("\nACCEPT\n".join(["HOLD"] * 10))
    engine = make_engine([alive, mute], sessions="a b", connect_timeout=1.5, **tls_settings(certs))
    key = keys_for(0, 2)
    engine.ok("acquire", key=key, lease=1)
    call = engine.start("acquire", "b", key=keys_for(1, 2), timeout=5)
    always(lambda: engine.is_held(key), 2.0, every=0.02)
    assert engine.finish(call).sqlstate == "LK010"


# -------------------------------------------------------------------------------------- fences

NOW = time.time_ns


def test_fences_of_a_server_that_has_them(make_peer, make_engine):
    peer = make_peer(GRANT)
    hold = make_engine(peer).ok("acquire", key="k")
    assert hold.fence == int(peer.value("t1")[:16], 16)


def test_a_server_that_does_not_know_ping_has_no_fences(make_peer, make_engine):
    peer = make_peer(GRANT, auto={"ping": "error"})
    assert make_engine(peer).ok("acquire", key="k").fence == -1


@pytest.mark.parametrize("fence", [0, 1 << 20, 2**63 + 5, 2**64 - 1, 1_700_000_000_000_000_000],
                         ids=["zero", "small", "large", "largest", "2023"])
def test_digits_that_cannot_be_a_time_are_no_fence(make_peer, make_engine, fence):
    peer = make_peer("""
        EXPECT l / a / 0
        SEND ok {first} 30
        EXPECT l / b / 0
        SEND ok {second} 30
    """, first=make_token(fence), second=make_token())
    engine = make_engine(peer)
    assert engine.ok("acquire", key="a").fence == -1
    assert engine.ok("acquire", key="b").fence == -1, "switched off for that server"
    assert any("fence" in text for text in engine.logged), "and said in the log"


def test_tomorrow_is_no_fence(make_peer, make_engine):
    peer = make_peer(GRANT.replace("{t1}", "{late}"), late=make_token(NOW() + 3 * 86_400 * 10**9))
    assert make_engine(peer).ok("acquire", key="k").fence == -1


def test_digits_that_do_not_grow_are_no_fence(make_peer, make_engine):
    now = NOW()
    peer = make_peer("""
        EXPECT l / a / 0
        SEND ok {first} 30
        EXPECT l / b / 0
        SEND ok {second} 30
        EXPECT l / c / 0
        SEND ok {third} 30
    """, first=make_token(now), second=make_token(now - 1), third=make_token(now + 1))
    engine = make_engine(peer)
    assert engine.ok("acquire", key="a").fence == now
    assert engine.ok("acquire", key="b").fence == -1
    assert engine.ok("acquire", key="c").fence == -1


def test_answers_that_crossed_prove_nothing_against_fences(make_peer, make_engine):
    """A token that is older than one read meanwhile, but was asked for before that was read."""
    now = NOW()
    peer = make_peer("""
        EXPECT l / a / 0
        SEND timeout
        EXPECT l / b / 0
        WAIT both
        SEND ok {newer} 30
        ACCEPT
        EXPECT l / a / 60
        WAIT late
        SEND ok {older} 30
        ACCEPT
        EXPECT l / c / 0
        SEND ok {newest} 30
    """, newer=make_token(now + 5), older=make_token(now), newest=make_token(now + 9), auto={"n": "ok {lease}"})
    engine = make_engine(peer)
    waiting = engine.start("acquire", key="a", timeout=60)
    peer.reached("late")
    second = engine.start("acquire", key="b")
    peer.go("both")
    assert engine.finish(second).fence == now + 5
    peer.go("late")
    assert engine.finish(waiting).fence == now, "still a fence: it was asked for before the other was read"


def test_fences_off_and_on_by_setting(make_peer, make_engine):
    odd = make_token(77)
    for setting, expected in (("off", -1), ("on", 77)):
        peer = make_peer(GRANT.replace("{t1}", "{odd}"), odd=odd)
        assert make_engine(peer, fences=setting).ok("acquire", key="k").fence == expected


def test_a_fence_that_does_not_fit_is_a_protocol_violation_and_the_grant_is_given_back(make_peer, make_engine):
    huge = make_token(2**63)
    peer = make_peer(GRANT.replace("{t1}", "{huge}"), huge=huge, auto={"r": "ok"})
    engine = make_engine(peer, fences="on")
    assert engine.fails("acquire", "protocol", key="k").sqlstate == "LK012"
    assert engine.holds() == []
    peer.await_request("r", "k", huge)
