"""A server, somebody who holds a short lease there, somebody who takes and gives back a lock now and then; and attackers."""

import contextlib
import os
import resource
import select
import socket
import time

import pytest

from lib.eventually import Stopwatch, eventually
from lib.process import descriptors, resident
from lib.wire import split_address
from sqlite.support import Database

LEASE_S = 2
SPAN_S = 4 * LEASE_S  # of an attack: several renewals of the lease fall into it
VISIT_S = 10.0  # an ordinary acquire and release under attack, on a small machine that also runs the attackers
MEGABYTE = 1 << 20
KEY = "guarded"


class Scene:
    """The server and its two ordinary users, in processes of their own."""

    def __init__(self, processes, server, env=None):
        self.server = server
        env = {"DFLOCK_CONNECT_TIMEOUT": "20", **(env or {})}
        self.holder = Database(processes, server, env=env, name="holder")
        self.visitor = Database(processes, server, env=env, name="visitor")
        self.visits, self.slowest = 0, 0.0
        self.fence = self.holder.value("SELECT dflock_lock(?, 0, ?)", KEY, LEASE_S)
        self.visit()
        self.descriptors = descriptors(server.pid)
        self.resident = resident(server.pid)
        self.peak = self.resident
        self.since = time.monotonic()

    def visit(self):
        with Stopwatch() as took:
            assert self.visitor.value("SELECT dflock_acquire('visited', 5, 30)") == 1
            assert self.visitor.value("SELECT dflock_release('visited')") == 1
        assert took.s < VISIT_S, f"an ordinary lock took {took.s:.1f} s"
        self.visits += 1
        self.slowest = max(self.slowest, took.s)

    def check(self, room_mb):
        """The lock is held as it was, others are served, and the server has not grown beyond its room."""
        assert self.holder.value("SELECT dflock_is_held(?)", KEY) == 1, self.holder.rows("SELECT * FROM dflock_locks")
        self.visit()
        assert self.server.running(), self.server.log()[-4000:]
        self.peak = max(self.peak, resident(self.server.pid))
        grown = (self.peak - self.resident) / MEGABYTE
        assert grown < room_mb, f"the server has grown by {grown:.0f} MB"

    def endure(self, step, room_mb, span=SPAN_S):
        """Repeats a step of an attack for a while."""
        end = time.monotonic() + span
        while time.monotonic() < end:
            step()
            self.check(room_mb)

    def aftermath(self, room_mb=8):
        """The same hold, renewed in time all along; what the attackers took is given back. Prints what was seen."""
        elapsed = time.monotonic() - self.since
        assert self.holder.value("SELECT dflock_assert_held(?, 1)", KEY) == 1
        assert self.holder.value("SELECT dflock_fence(?)", KEY) == self.fence
        renewals = self.holder.value("SELECT renewals FROM dflock_locks WHERE key = ?", KEY)
        assert renewals >= elapsed / LEASE_S, f"{renewals} renewals of {LEASE_S} s in {elapsed:.1f} s"
        # Connections of the two users may have come and gone.
        eventually(lambda: descriptors(self.server.pid) <= self.descriptors + 4,
                   what=f"descriptors back at {self.descriptors}", deadline=60)
        eventually(lambda: resident(self.server.pid) - self.resident < room_mb * MEGABYTE,
                   what=f"memory back within {room_mb} MB", deadline=60)
        grown = (self.peak - self.resident) / MEGABYTE
        left = (resident(self.server.pid) - self.resident) / MEGABYTE
        print(f"\n{elapsed:.1f} s: {renewals} renewals, {self.visits} visits, slowest {self.slowest * 1000:.0f} ms, "
              f"memory +{grown:.1f} MB at most, +{left:.1f} MB afterwards")


class Attackers:
    """Sockets that never block; what the server does to them is their own fault."""

    def __init__(self, address):
        self.target = split_address(address)
        self.sockets = []

    def connect(self, count=1, receive_buffer=None):
        """That many more, all established."""
        new = []
        for _ in range(count):
            sock = socket.socket()
            if receive_buffer:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.settimeout(20)
            sock.connect(self.target)
            sock.setblocking(False)
            new.append(sock)
        self.sockets += new
        return new

    @staticmethod
    def send(sock, data):
        """As much as fits; how much that was, -1 when the server has closed."""
        try:
            return sock.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            return -1

    @staticmethod
    def receive(sock):
        """What is there; None when the server has closed."""
        try:
            return sock.recv(1 << 16) or None
        except BlockingIOError:
            return b""
        except OSError:
            return None

    def send_all(self, data):
        for sock in self.sockets:
            self.send(sock, data)

    def drop_closed(self):
        """Forgets whom the server has closed; how many those were."""
        poll = select.poll()
        by_number = {sock.fileno(): sock for sock in self.sockets}
        for number in by_number:
            poll.register(number, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
        closed = [by_number[number] for number, events in poll.poll(0) if events]
        for sock in closed:
            sock.close()
        gone = set(closed)
        self.sockets = [s for s in self.sockets if s not in gone]
        return len(closed)

    def all_closed(self):
        self.drop_closed()
        return not self.sockets

    def leave(self):
        for sock in self.sockets:
            with contextlib.suppress(OSError):
                sock.close()
        self.sockets = []

    stop = leave


@pytest.fixture
def many_files():
    """As many descriptors as this process may have; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield hard if hard != resource.RLIM_INFINITY else 1 << 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def make_scene(processes, make_server):
    """make_scene('--read-timeout', 3, env={...}): a server with its users."""
    def make(*flags, env=None):
        return Scene(processes, make_server(*flags), env)
    return make


@pytest.fixture
def attackers(processes):
    """attackers(server): a crowd that is gone at the end."""
    return lambda server: processes.add(Attackers(server.address))


@pytest.fixture
def noise():
    """noise(n): that many random bytes."""
    return os.urandom
