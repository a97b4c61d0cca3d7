"""A server that was not run for a while: what its clients have done meanwhile counts."""

import socket
import time

import pytest

from lib import wire
from lib.eventually import eventually
from lib.process import is_idle

TIMEOUT_S = 0.5


def until_it_is_over(began):
    """A time-out that began before, by the clock of a server that does not run."""
    time.sleep(max(0, began + TIMEOUT_S + 0.1 - time.monotonic()))


@pytest.mark.parametrize("clients", [1, 700])
def test_a_request_that_waited_is_no_silence(make_server, clients):
    """Also when there are more than one round of the server takes."""
    server = make_server("--read-timeout", TIMEOUT_S)
    crowd = [server.connect() for _ in range(clients)]
    tokens = [w.lock(f"k{i}", lease=60).token for i, w in enumerate(crowd)]
    server.pause()
    began = time.monotonic()
    for i, w in enumerate(crowd):
        w.send("n", f"k{i}", f"{tokens[i]} 60")
    until_it_is_over(began)
    server.resume()
    assert [w.receive() for w in crowd] == ["ok 60"] * clients


def test_half_a_request_that_waited_is_silence(make_server):
    server = make_server("--read-timeout", TIMEOUT_S)
    with server.connect() as w:
        assert w.ask("ping") == "ok"
        server.pause()
        began = time.monotonic()
        w.send_raw(b"pi")
        until_it_is_over(began)
        server.resume()
        assert w.receive() == "error"
        w.expect_closed()


def test_an_answer_that_is_being_taken_is_sent_to_its_end(make_server):
    """Its reader made room for more while the server could not send."""
    server = make_server("--write-timeout", TIMEOUT_S)
    with server.connect() as owner, server.connect(receive_buffer=65536) as reader:
        for start in range(0, 30000, 1000):
            owner.send_raw(b"".join(b"l\n%0250d\n0 600\n" % i for i in range(start, start + 1000)))
            for _ in range(1000):
                wire.granted(owner.receive())
        reader.send("stats")
        answer = reader.sock.recv(1)
        eventually(lambda: is_idle(server.pid, 0.05), what="there is no room for more")
        server.pause()
        began = time.monotonic()
        reader.sock.settimeout(0.2)
        with pytest.raises((TimeoutError, socket.timeout)):
            while True:
                answer += reader.sock.recv(1 << 20)
        until_it_is_over(began)
        server.resume()
        reader.sock.settimeout(reader.deadline)
        while part := reader.sock.recv(1 << 20):
            answer += part
            if part.endswith(b"\n"):
                break
        assert answer.endswith(b"]}\n")


def test_a_lease_is_not_shortened_by_a_server_that_was_held_up(make_server, directory):
    """Its holder counts from the sending: what the server does between waking up and reading must not come before that.

    The server is held up for two seconds in its first read, and the request comes when most of them are over.
    """
    server = make_server(wrapper=["strace", "-D", "-o", directory / "trace", "-e", "trace=recvfrom",
                                  "-e", "inject=recvfrom:delay_enter=2000000:when=1"])
    with server.connect() as holder, server.connect() as other:
        holder.send("ping")
        holder.expect_silence(1.5)
        sent = time.monotonic()
        holder.send("l", "k", "0 1")
        assert holder.receive() == "ok"
        wire.granted(holder.receive())
        answer = other.try_lock("k")
        assert time.monotonic() - sent < 1, "too slow to see it"
        assert answer == "timeout"
    assert server.terminate() == 0
