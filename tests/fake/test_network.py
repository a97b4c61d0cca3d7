"""Getting there: names, addresses, ports that swallow, and what is left behind when sessions end early."""

import socket

import pytest

from lib.eventually import eventually
from lib.proxy import Proxy


@pytest.fixture
def full_port():
    """The address of a port whose backlog is full: the kernel drops every further SYN."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    fillers = []
    for _ in range(3):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(listener.getsockname())
        fillers.append(filler)
    yield "127.0.0.1:%d" % listener.getsockname()[1]
    for sock in [*fillers, listener]:
        sock.close()


@pytest.fixture
def make_proxy(processes):
    return lambda target: processes.add(Proxy(target.address))


def test_a_name_whose_first_address_refuses(make_peer, make_engine):
    """localhost is ::1 too on many machines; the peer listens on 127.0.0.1 alone."""
    peer = make_peer("EXPECT l / k / 0\nSEND ok {t1} 30")
    engine = make_engine(f"localhost:{peer.port}")
    engine.ok("acquire", key="k")
    assert engine.servers()[0].address == f"localhost:{peer.port}"
    peer.check()


def test_a_name_that_does_not_exist(make_engine):
    answer = make_engine("no-such-host.invalid:6388").fails("acquire", "unreachable", key="k")
    assert answer.sqlstate == "LK010" and "no-such-host.invalid" in answer.text and answer.ms < 4000


def test_a_port_that_swallows_ends_at_the_deadline(make_engine, full_port):
    answer = make_engine(full_port, connect_timeout=0.5).fails("acquire", "unreachable", key="k", timeout=60)
    assert answer.sqlstate == "LK010" and "connect" in answer.text and full_port in answer.text
    assert 450 <= answer.ms < 2500


def test_a_cancel_while_connecting(make_engine, full_port):
    engine = make_engine(full_port, connect_timeout=60)
    call = engine.start("acquire", key="k", timeout=60)
    eventually(lambda: engine.servers()[0].state == "connecting")
    engine.cancel(call)
    assert engine.finish(call).status == "canceled"
    eventually(lambda: engine.servers()[0].connections == 0, what="the connection that nobody needs is closed")
    assert not engine.busy().left_behind and engine.holds() == []


def test_one_caller_gives_up_while_another_still_connects(make_peer, make_engine):
    peer = make_peer("EXPECT ping\nWAIT slow\nSEND ok\nEXPECT l / b / 0\nSEND ok {t1} 30")
    engine = make_engine(peer, sessions="a b", connect_timeout=20)
    one = engine.start("acquire", "a", key="a")
    two = engine.start("acquire", "b", key="b")
    peer.reached("slow")
    engine.cancel(one)
    assert engine.finish(one).status == "canceled"
    peer.go("slow")
    assert engine.finish(two).status == "ok" and peer.accepted == 1
    peer.check()


def test_answers_after_a_cancelled_request_go_to_their_own(make_peer, make_engine):
    peer = make_peer("""
        EXPECT l / own / 0
        SEND ok {t1} 30
        EXPECT l / a / 0
        EXPECT l / b / 0
        EXPECT l / c / 0
        WAIT all
        SEND ok {t2} 30
        SEND timeout
        SEND ok {t3} 30
        EXPECT r / a / {t2}
        SEND ok
    """)
    engine = make_engine(peer)
    engine.ok("acquire", key="own")
    a, b, c = (engine.start("acquire", key=key, timeout=0) for key in "abc")
    peer.reached("all")
    engine.cancel(a)
    assert engine.finish(a).status == "canceled"
    peer.go("all")
    assert engine.finish(b).status == "timeout"
    hold = engine.finish(c)
    assert hold.token == peer.value("t3") and hold.fence == int(peer.value("t3")[:16], 16)
    assert sorted(h.key for h in engine.holds()) == ["c", "own"]
    peer.check()


def test_a_session_that_ends_while_it_asks_keeps_nothing(make_peer, make_engine):
    peer = make_peer("""
        EXPECT l / own / 0
        SEND ok {t1} 30
        EXPECT l / k / 0
        WAIT late
        SEND ok {t2} 30
        EXPECT r / k / {t2}
        SEND ok
    """)
    engine = make_engine(peer, sessions="a b")
    engine.ok("acquire", "b", key="own")
    engine.start("acquire", "a", key="k")
    peer.reached("late")
    engine.must("end", "a")
    peer.go("late")
    peer.check()
    assert engine.is_held("own", "b")
    eventually(lambda: not engine.busy().left_behind)


def test_a_session_that_ends_while_it_waits_leaves_the_line(make_peer, make_engine):
    peer = make_peer("""
        EXPECT l / k / 0
        SEND timeout
        ACCEPT
        EXPECT l / k / 60
        EOF
        ACCEPT
        EXPECT e / p /
        SEND queued
        EXPECT w / p / *
        EOF
    """)
    engine = make_engine(peer, sessions="a b")
    engine.start("acquire", "a", key="k", timeout=60)
    peer.await_request("l", "k", "60")
    engine.ok("enqueue", "a", key="p")
    peer.await_request("w", "p")
    engine.must("end", "a")
    peer.check()


def test_a_cap_of_a_session(make_peer, make_engine):
    peer = make_peer(auto={"l": "ok {t1} 30", "r": "ok"})
    engine = make_engine(peer, sessions="a b")
    engine.must("cap", "a", 1)
    engine.ok("acquire", "a", key="k")
    answer = engine.fails("acquire", "too_many", "a", key="other")
    assert answer.sqlstate == "53400" and "max_session_locks" in answer.text
    engine.ok("acquire", "b", key="other")
    engine.ok("release", "a", key="k")
    engine.ok("acquire", "a", key="k2")


# ------------------------------------------------------------- real silence, through a proxy


def test_a_black_hole_under_a_hold(make_peer, make_proxy, make_engine):
    peer = make_peer("EXPECT l / k / 0 600\nSEND ok {t1} 600", auto={"n": "ok {lease}"})
    proxy = make_proxy(peer)
    engine = make_engine(proxy, server_read_timeout=2, keepalive=0.3)
    engine.ok("acquire", key="k", lease=600)
    # Both answered: while one is not, no further one is sent that could be held back.
    eventually(lambda: engine.holds()[0].renewals >= 2)
    proxy.black_hole()
    eventually(lambda: not engine.is_held("k"), deadline=4)
    assert engine.assert_held("k").sqlstate == "40001"
    proxy.pass_through()
    peer.await_request("n", count=3)  # the held back ones arrive now; nothing comes to life again
    assert not engine.is_held("k")


def test_answers_that_do_not_arrive_are_no_renewals(make_peer, make_proxy, make_engine):
    """The server renews and renews; we cannot know."""
    peer = make_peer("EXPECT l / k / 0 2\nSEND ok {t1} 2", auto={"n": "ok {lease}", "r": "ok"})
    proxy = make_proxy(peer)
    engine = make_engine(proxy)
    engine.ok("acquire", key="k", lease=2)
    proxy.black_hole(up=False, down=True)
    eventually(lambda: not engine.is_held("k"), deadline=4)
    assert peer.count("n") >= 1


def test_the_end_of_the_stream_in_one_direction(make_peer, make_proxy, make_engine):
    peer = make_peer("EXPECT l / k / 0\nSEND ok {t1} 30", auto={"r": "ok"})
    proxy = make_proxy(peer)
    engine = make_engine(proxy)
    engine.ok("acquire", key="k")
    proxy.half_close("down")
    eventually(lambda: not engine.is_held("k"), deadline=4)
