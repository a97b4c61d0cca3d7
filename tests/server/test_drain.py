"""SIGTERM: who is still served, and when the process ends."""

import os
import resource
import signal
import time

import pytest

from lib.eventually import eventually
from lib.process import descriptors


def drain(server, number=signal.SIGTERM):
    server.process.signal(number)
    eventually(lambda: "draining" in server.log())


def test_nothing_held_ends_at_once(server):
    with server.connect() as w:
        assert w.ask("ping") == "ok"
        began = time.monotonic()
        assert server.terminate() == 0
        assert time.monotonic() - began < 5
        w.expect_closed()


def test_holders_go_on_everybody_else_is_refused(make_server):
    server = make_server("--shutdown-timeout", 60)
    holder, waiter, queued = server.connect(), server.connect(), server.connect()
    token = holder.lock("k", lease=60).token
    slot = holder.slot("s", 2, lease=60).token
    waiter.send("l", "k", "3600")
    assert queued.ask("e", "k") == "queued"
    server.await_waiters("k", 2)
    drain(server)
    assert waiter.receive() == "error_draining"
    assert waiter.ask("ping") == "ok"
    for command, key, argument in [("l", "x", "0"), ("sl", "x", "0 2"), ("e", "x", ""), ("se", "x", "2"), ("w", "x", "1")]:
        assert waiter.ask(command, key, argument) == "error_draining"
    assert queued.ask("w", "k", "5") == "error_draining"
    with server.connect() as late:  # the port stays ours
        assert late.ask("l", "x", "0") == "error_draining"
        assert late.renew("k", token, 50) == "ok 50"
    assert holder.renew("k", token, 60) == "ok 60"
    assert holder.renew("s", slot, 60, command="sn") == "ok 60"
    assert holder.release("k", token) == "ok"
    assert server.running()
    assert holder.release("s", slot, command="sr") == "ok"
    assert server.process.wait() == 0
    assert 'msg="ended" holds=0' in server.log()


def test_everybody_is_told_before_the_end(make_server, directory):
    """More waiters than are answered in one go, and nothing held: leases of the last run are waited for."""
    server = make_server("--fence-state-file", directory / "fence")
    server.connect().lock("k", lease=60)
    server.restart()
    crowd = [server.connect() for _ in range(3000)]
    for w in crowd:
        w.send("l", "k", "60")
    server.await_waiters("k", len(crowd))
    assert server.terminate() == 0
    assert [w.receive() for w in crowd] == ["error_draining"] * len(crowd)


def test_the_close_of_the_last_holder_ends_it(server):
    holder = server.connect()
    holder.lock("k", lease=60)
    drain(server, signal.SIGINT)
    holder.close()
    assert server.process.wait() == 0


def test_the_end_of_a_lease_ends_it(server):
    holder = server.connect()
    holder.lock("k", lease=1)
    drain(server)
    assert server.process.wait() == 0


def test_patience_ends(make_server):
    server = make_server("--shutdown-timeout", 0.5)
    holder = server.connect()
    token = holder.lock("k", lease=60).token
    began = time.monotonic()
    drain(server)
    assert holder.renew("k", token, 60) == "ok 60"
    assert server.process.wait() == 0
    assert time.monotonic() - began >= 0.45
    assert 'msg="ended" holds=1' in server.log()
    holder.expect_closed()


def test_a_second_signal_ends_at_once(make_server):
    server = make_server("--shutdown-timeout", 0)
    holder = server.connect()
    holder.lock("k", lease=600)
    drain(server)
    server.process.signal(signal.SIGTERM)
    assert server.process.wait(5) == 0


# --------------------------------------------------------------------- terminals


@pytest.fixture
def terminal():
    """A terminal's other end, and how to start a server on it."""
    end, its = os.openpty()
    name = os.ttyname(its)
    os.close(its)

    class Terminal:
        # a session leader's first terminal is its own
        wrapper = ["sh", "-c", 'exec "$@" 0<>"$0"', name]

        def close(self):
            nonlocal end
            if end >= 0:
                os.close(end)
            end = -1

    yield Terminal()
    Terminal().close()


def test_a_closed_terminal_ends_it(make_server, terminal):
    server = make_server(wrapper=terminal.wrapper)
    terminal.close()
    assert server.process.wait() == 0
    assert "ended" in server.log()


def test_a_closed_terminal_is_no_reason_to_hurry(make_server, terminal):
    server = make_server("--shutdown-timeout", 60, wrapper=terminal.wrapper)
    with server.connect() as holder, server.connect() as other:
        token = holder.lock("k", lease=60).token
        terminal.close()
        eventually(lambda: "draining" in server.log())
        server.hang_up()  # a shell tells its jobs, as the kernel has done already
        assert other.ask("l", "x", "0") == "error_draining"
        assert holder.renew("k", token, 60) == "ok 60"
        assert holder.release("k", token) == "ok"
    assert server.process.wait() == 0


def test_sighup_with_the_terminal_open_changes_nothing(make_server, terminal):
    server = make_server(wrapper=terminal.wrapper)
    server.hang_up()
    with server.connect() as w:
        assert w.try_lock("k") == "ok"


def test_sighup_without_a_descriptor_left_changes_nothing(make_server, terminal):
    """It cannot look at its terminal then, which is no sign that it has been closed."""
    server = make_server(wrapper=terminal.wrapper)
    with server.connect() as w:
        assert w.try_lock("k") == "ok"
        limit = descriptors(server.pid)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (limit, limit))
        server.hang_up()
        assert w.ask("l", "other", "0") != "error_draining"
        assert w.try_lock("third") == "ok"


def test_nohup(make_server, terminal):
    server = make_server(wrapper=["nohup", *terminal.wrapper])
    terminal.close()
    with server.connect() as w:
        assert w.try_lock("k") == "ok"


def test_a_server_with_a_certificate_outlives_its_terminal(make_server, terminal, certs):
    server = make_server("--tls-cert", certs.server.cert, "--tls-key", certs.server.key, wrapper=terminal.wrapper)
    terminal.close()
    eventually(lambda: "certificate read again" in server.log())
    assert server.running()
    assert "draining" not in server.log()
