"""A log that nobody reads must not hold the lock server up."""

import fcntl
import os
import pty
import re
import resource
import select
import signal
import subprocess
import threading

import pytest

from lib import wire
from lib.eventually import eventually
from lib.paths import DFLOCKD_LOCAL
from lib.process import clean_environment

CONNECTIONS = 1000


def a_pipe():
    ours, theirs = os.pipe()
    fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, 8192)
    return ours, theirs


def read_until(fd, what):
    """Everything up to the first match."""
    text = ""
    while not re.search(what, text):
        text += os.read(fd, 65536).decode()
    return text


def test_a_full_disk(make_server):
    """Lines that do not fit any more are counted in the first one that does."""
    server = make_server("--debug")
    size = len(server.log())
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (size + 30, resource.RLIM_INFINITY))
    with server.connect() as w:
        assert w.ask("ping") == "ok"
    eventually(lambda: server.stats()["connections"] == 1)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    with server.connect() as w:
        assert w.ask("ping") == "ok"
    lines = server.log().splitlines()
    assert len(lines[1]) == 30 and "" not in lines
    assert int(re.search(r'msg="log lines left out: they could not be written" lines=(\d+)$', lines[2])[1]) >= 3
    assert "connection " in lines[3]


def test_a_terminal_that_stops_who_writes_in_the_background():
    """stty tostop: a log line of a background job would stop it, and all leases with it."""
    ours, theirs = pty.openpty()

    def on_the_terminal():
        os.setsid()
        for fd in (0, 2):
            os.dup2(os.open(os.ttyname(theirs), os.O_RDWR), fd)  # the first one becomes the session's own

    shell = subprocess.Popen(["sh", "-m", "-c", 'stty tostop; "$@" & echo $!; exec cat', "sh", DFLOCKD_LOCAL, "--port", "0"],
                             env=clean_environment(), preexec_fn=on_the_terminal, stdout=subprocess.PIPE, text=True)
    server = int(shell.stdout.readline())
    try:
        eventually(lambda: select.select([ours], [], [], 0)[0])
        assert "listening" in read_until(ours, r"port=\d+\s")
    finally:
        os.kill(server, signal.SIGKILL)
        shell.kill()
        shell.communicate()
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("make", [a_pipe, pty.openpty])
def test_a_log_that_nobody_reads(make):
    """Two lines per connection go to somebody who has stopped reading."""
    ours, theirs = make()
    server = subprocess.Popen([DFLOCKD_LOCAL, "--port", "0", "--debug"], env=clean_environment({}),
                              stdin=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    try:
        port = re.search(r"port=(\d+)", read_until(ours, r"port=\d+\s"))[1]
        address = f"127.0.0.1:{port}"
        with wire.Wire(address) as holder:
            assert holder.try_lock("k") == "ok"
            for _ in range(CONNECTIONS):
                with wire.Wire(address) as w:
                    assert w.ask("ping") == "ok"
            unread = []
            told = threading.Thread(target=lambda: unread.append(read_until(ours, r'msg="log lines left out[^"]*" lines=\d+\s')))
            told.start()

            def is_told():
                with wire.Wire(address) as w:
                    assert w.ask("ping") == "ok"
                return not told.is_alive()
            eventually(is_told)
            assert make is pty.openpty or "\n\n" not in unread[0]
    finally:
        server.kill()
        server.wait()
        os.close(ours)
