"""What a server must survive: no descriptors, too many clients, clients that do not read, do not write, or write too much."""

import resource
import socket
import time

import pytest

from lib import wire
from lib.eventually import always, eventually
from lib.process import descriptors, is_idle, resident


def raw(server, data=b""):
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    sock.sendall(data)
    return sock


def test_out_of_descriptors(make_server):
    server = make_server("--read-timeout", 60)
    holder, other = server.connect(), server.connect()
    token = holder.lock("k", lease=60).token
    limit = descriptors(server.pid) + 5
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (limit, limit))
    crowd = [raw(server) for _ in range(60)]
    eventually(lambda: "out of descriptors" in server.log())
    refused = 0
    for sock in crowd[10:]:
        assert sock.recv(1) == b""  # closed at once, not left to hang
        refused += 1
    assert refused == 50
    assert is_idle(server.pid)
    assert holder.renew("k", token, 60) == "ok 60"
    assert other.try_lock("k") == "timeout"
    for sock in crowd:
        sock.close()

    def connects():
        try:
            with server.connect(deadline=2) as late:
                return late.ask("ping") == "ok"
        except (wire.Closed, OSError):
            return False

    eventually(connects)
    assert holder.release("k", token) == "ok"
    assert server.log().count("out of descriptors") < 10


def test_max_connections(make_server):
    server = make_server("--max-connections", 2)
    one, two = server.connect(), server.connect()
    assert one.ask("ping") == two.ask("ping") == "ok"
    with server.connect() as three:
        three.expect_closed()
    two.close()

    def connects():
        with server.connect() as late:
            try:
                return late.ask("ping") == "ok"
            except wire.Closed:
                return False

    eventually(connects)
    assert one.ask("ping") == "ok"


def test_a_waiter_that_goes_is_noticed_at_once(server):
    with server.connect() as holder:
        token = holder.lock("k", lease=60).token
        waiter = server.connect()
        waiter.send("l", "k", "3600")
        server.await_waiters("k", 1)
        waiter.close()
        server.await_waiters("k", 0, deadline=5)
        half = server.connect()
        half.send("l", "k", "3600")
        server.await_waiters("k", 1)
        half.half_close()
        server.await_waiters("k", 0, deadline=5)
        reset = server.connect()
        assert reset.ask("e", "k") == "queued"
        reset.send("w", "k", "3600")
        server.await_waiters("k", 1)
        reset.reset()
        server.await_waiters("k", 0, deadline=5)
        assert holder.release("k", token) == "ok"
        assert holder.try_lock("k") == "ok"


def test_answers_before_a_half_close_are_still_given(server):
    with server.connect() as w:
        w.send("l", "k", "0")
        w.send("ping")
        w.half_close()
        wire.granted(w.receive())
        assert w.receive() == "ok"
        w.expect_closed()
    server.await_holders("k", 0)


@pytest.mark.parametrize("behind, closed", [(4000, False), (4200, True)])
def test_bytes_behind_a_blocking_request(server, behind, closed):
    with server.connect() as holder, server.connect() as waiter:
        token = holder.lock("k", lease=60).token
        waiter.send("l", "k", "3600")
        server.await_waiters("k", 1)
        request = b"ping\n_\n_\n"
        waiter.send_raw(request * (behind // len(request)))
        if closed:
            waiter.expect_closed()
            server.await_waiters("k", 0)
        else:
            waiter.expect_silence(0.2)
            assert holder.release("k", token) == "ok"
            wire.granted(waiter.receive())
            for _ in range(behind // len(request)):
                assert waiter.receive() == "ok"


def test_read_timeout(make_server):
    server = make_server("--read-timeout", 0.4)
    with server.connect() as silent, server.connect() as holder, server.connect() as slow:
        token = holder.lock("k", lease=60).token
        began = time.monotonic()
        slow.send_raw(b"pi")
        assert silent.receive() == "error"
        silent.expect_closed()
        assert 0.35 < time.monotonic() - began < 5
        # half a request, however often it grows, is not a request
        assert slow.receive() == "error"
        slow.expect_closed()
        holder.expect_closed() if holder.receive() == "error" else pytest.fail("no error before the end")
    with server.connect() as late:
        assert late.renew("k", token, 9) == "error"


def test_no_read_timeout_while_a_request_blocks(make_server):
    server = make_server("--read-timeout", 0.3)
    with server.connect() as holder, server.connect() as waiter:
        token = holder.lock("k", lease=60).token
        waiter.send("l", "k", "3600")
        for _ in range(10):
            assert holder.renew("k", token, 60) == "ok 60"
            time.sleep(0.1)
        assert holder.release("k", token) == "ok"
        wire.granted(waiter.receive())


def test_a_client_that_never_reads(make_server):
    server = make_server("--write-timeout", 1)
    with server.connect() as keys:
        for i in range(2000):
            keys.send("l", f"key-{i:0200d}", "0 600")
            wire.granted(keys.receive())
        before = resident(server.pid)
        deaf = wire.Wire(server.address, receive_buffer=4096)
        deaf.sock.settimeout(0.5)
        peak = before
        end = time.monotonic() + 15
        closed = False
        while time.monotonic() < end and not closed:
            try:
                deaf.sock.send(b"stats\n_\n_\n" * 500)
            except (TimeoutError, socket.timeout):
                pass
            except OSError:
                closed = True
            peak = max(peak, resident(server.pid))
            assert keys.ask("ping") == "ok"
        assert closed, "still open after 15 s without reading"
        assert peak - before < 32 << 20  # unbounded, the first 500 answers alone would be 250 MB


def test_pipelines(server):
    with server.connect() as w:
        count = 20000
        w.send_raw(b"ping\n_\n_\n" * count)
        for _ in range(count):
            assert w.receive() == "ok"


def test_an_endless_line_costs_nothing(server):
    before = resident(server.pid)
    sock = raw(server)
    sock.settimeout(5)
    sent = 0
    try:
        while sent < 64 << 20:
            sent += sock.send(b"x" * 65536)
    except OSError:
        pass
    assert sent < 64 << 20
    assert resident(server.pid) - before < 4 << 20


@pytest.mark.parametrize("line, ok", [(b"k" * 256, True), (b"k" * 257, False)])
def test_longest_line(server, line, ok):
    with server.connect() as w:
        w.send_raw(b"l\n" + line + b"\n0\n")
        if ok:
            wire.granted(w.receive())
        else:
            assert w.receive() == "error"
            w.expect_closed()


def test_a_thousand_connections_come_and_go(server):
    for _ in range(3):
        crowd = [server.connect() for _ in range(300)]
        for i, w in enumerate(crowd):
            w.send("l", f"k{i % 10}", "0 60")
        for w in crowd:
            assert w.receive().split(" ")[0] in ("ok", "timeout")
        for w in crowd:
            w.close()
        eventually(lambda: server.stats()["connections"] == 1)
    assert not server.stats()["locks"]
    always(lambda: is_idle(server.pid, 0.2), 0.3)


def test_a_connection_with_many_holds_closes_in_steps(server):
    """100,000 holds of one connection: another client is served while they are given back, and all of them are."""
    owner = server.connect()
    count, batch = 100000, 500
    for start in range(0, count, batch):
        owner.send_raw(b"".join(b"l\nkey-%d\n0 600\n" % i for i in range(start, start + batch)))
        for _ in range(batch):
            assert owner.receive().startswith("ok ")
    with server.connect() as other:
        owner.close()
        worst = 0
        while other.try_lock(f"key-{count - 1}") != "ok":
            began = time.monotonic()
            other.ask("ping")
            worst = max(worst, time.monotonic() - began)
        assert worst < 0.5
        eventually(lambda: len(other.stats()["locks"]) == 1)
