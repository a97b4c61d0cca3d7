"""The tools themselves: each must be able to say no."""

import socket
import ssl
import threading

import pytest

from lib.eventually import NotInTime, Stopwatch, eventually
from lib.process import Process, cpu_s
from lib.proxy import DOWN, UP, Proxy
from lib.shell import SqliteShell
from lib.wire import Closed, Silent, Wire, granted


@pytest.fixture
def echo():
    """Answers every three lines with their first; its address, and the number of living connections as a list."""
    listener = socket.create_server(("127.0.0.1", 0))
    alive = []

    def talk(sock):
        alive.append(sock)
        stream = sock.makefile("rwb")
        try:
            while True:
                lines = [stream.readline() for _ in range(3)]
                if not lines[2]:
                    break
                stream.write(lines[0])
                stream.flush()
        except OSError:
            pass
        alive.remove(sock)
        sock.close()

    def accept():
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(sock,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname(), alive
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def test_eventually_gives_up_and_says_why():
    with pytest.raises(NotInTime, match="pigs fly"):
        eventually(lambda: False, deadline=0.05, what="pigs fly")
    assert eventually(lambda: "yes") == "yes"


def test_a_wire_that_gets_no_answer_says_silent(echo):
    with Wire(echo[0]) as wire:
        assert wire.ask("hello") == "hello"
        wire.send_raw(b"half\n")
        with pytest.raises(Silent):
            wire.receive(0.05)


@pytest.mark.parametrize("line", ["timeout", "ok", "ok abc 3", "ok " + "A" * 32 + " 3", "error"])
def test_what_is_no_grant_is_not_taken_for_one(line):
    with pytest.raises(AssertionError):
        granted(line)


def test_a_proxy_passes_and_cuts(echo):
    address, alive = echo
    with Proxy(address) as proxy, Wire(proxy.address) as wire:
        assert wire.ask("one") == "one"
        proxy.cut()
        with pytest.raises(Closed):
            wire.receive()
        eventually(lambda: not alive, what="the server sees the cut")
        with Wire(proxy.address) as again:
            assert again.ask("two") == "two"


def test_a_black_hole_swallows_without_closing_and_gives_back(echo):
    with Proxy(echo[0]) as proxy, Wire(proxy.address) as wire:
        assert wire.ask("one") == "one"
        proxy.black_hole()
        wire.send("two")
        wire.expect_silence(0.2)
        proxy.pass_through()
        assert wire.receive() == "two"


def test_a_black_hole_in_one_direction(echo):
    with Proxy(echo[0]) as proxy, Wire(proxy.address) as wire:
        assert wire.ask("one") == "one"
        proxy.black_hole(up=False, down=True)
        before = proxy.bytes[UP]
        wire.send("two")
        eventually(lambda: proxy.bytes[UP] > before, what="the request passes")
        wire.expect_silence(0.2)


def test_a_delay_delays(echo):
    with Proxy(echo[0]) as proxy, Wire(proxy.address) as wire:
        proxy.delay(up=0.2, down=0.1)
        with Stopwatch() as took:
            assert wire.ask("one") == "one"
        assert took.s >= 0.3


def test_half_close_reaches_one_side_only(echo):
    with Proxy(echo[0]) as proxy, Wire(proxy.address) as wire:
        assert wire.ask("one") == "one"
        proxy.half_close(DOWN)
        wire.expect_closed()
        assert len(echo[1]) == 1


def test_a_shut_proxy_refuses_and_opens_again_on_its_port(echo):
    with Proxy(echo[0]) as proxy:
        port = proxy.port
        proxy.shut()
        with pytest.raises(ConnectionRefusedError):
            Wire(proxy.address)
        proxy.open()
        assert proxy.port == port
        with Wire(proxy.address) as wire:
            assert wire.ask("one") == "one"


def test_certificates_are_what_their_names_say(certs):
    def handshake(pair, name="127.0.0.1", ca=None):
        listener = socket.create_server(("127.0.0.1", 0))

        def serve():
            sock, _ = listener.accept()
            try:
                certs.server_context(pair).wrap_socket(sock, server_side=True).close()
            except (ssl.SSLError, OSError):
                sock.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            Wire(listener.getsockname(), tls=certs.client_context(ca), server_name=name).close()
        finally:
            thread.join()
            listener.close()

    handshake(certs.server)
    handshake(certs.server, "localhost")
    for bad in (certs.expired, certs.wrong_name, certs.name_only, certs.other_server):
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(bad)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        handshake(certs.expired)
    handshake(certs.other_server, ca=certs.other_ca)


def test_a_process_is_paused_resumed_and_stopped(processes):
    process = processes.run(["sh", "-c", "echo up; exec sleep 100"], "sleeper")
    eventually(lambda: "up" in process.log())
    process.pause()
    process.resume()
    assert process.running()
    processes.close()
    assert not process.running()


def test_a_sanitizer_report_is_an_error(directory):
    process = Process(["sh", "-c", "echo 'x.c:1: runtime error: overflow' >&2"], directory, "bad")
    process.wait()
    with pytest.raises(AssertionError, match="runtime error"):
        process.stop()


def test_a_sqlite_session_answers_and_fails(processes):
    shell = SqliteShell(processes, bail=False)
    assert shell.query("SELECT 1, 'a b', NULL UNION ALL SELECT 2, '', 'x'") == [("1", "a b", None), ("2", "", "x")]
    result = shell.fails("SELECT x FROM nowhere", text="no such table")
    assert not result.ended and result.sqlstate is None
    assert shell.value("SELECT 3") == "3"
    with pytest.raises(AssertionError):
        shell.fails("SELECT 1")


def test_a_bailing_sqlite_session_ends_at_its_first_error(processes):
    shell = SqliteShell(processes)
    result = shell.fails("SELECT x FROM nowhere")
    assert result.ended and shell.close() == 1


def test_a_sqlite_statement_can_be_interrupted(processes):
    shell = SqliteShell(processes, bail=False)
    assert shell.value("SELECT 1") == "1"
    shell.start("WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c")
    assert shell.busy()
    eventually(lambda: cpu_s(shell.pid) > 0.1, what="the statement runs")
    shell.interrupt()
    assert "interrupted" in shell.finish().error
    assert shell.value("SELECT 2") == "2"
