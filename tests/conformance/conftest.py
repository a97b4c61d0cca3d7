"""Which servers are judged, and how a test gets one.

Default: the bundled server, and dflockd's first server (PyPI, 0.5.0).
SERVER=host:port            judges a running server instead; tests that need flags or signals are left out, and said so
SERVER_COMMAND=path         judges that program: every test starts its own
SERVER_DIALECT=name         which row of dialects.py it is; otherwise found out by asking
"""

import os
import uuid

import pytest

from conformance import dialects
from lib.eventually import eventually
from lib.server import FirstServer, ForeignServer, Server, StartFailed
from lib.wire import Wire, stats, waiters

SERVER = os.environ.get("SERVER")
SERVER_COMMAND = os.environ.get("SERVER_COMMAND")


class Given:
    """A server that somebody else runs."""

    def __init__(self, address):
        self.address = address

    def connect(self, **kw):
        return Wire(self.address, **kw)

    def stats(self, **kw):
        return stats(self.address, **kw)

    def waiters(self, key, **kw):
        return waiters(self.address, key, **kw)


class Target:
    """The server under test for one test: its dialect, and ways to start one."""

    def __init__(self, name, processes):
        self.processes = processes
        self.name = name
        self._dialect = dialects.DIALECTS.get(os.environ.get("SERVER_DIALECT", name))

    @property
    def dialect(self):
        if self._dialect is None:
            self._dialect = dialects.recognize(self.start().address)
        return self._dialect

    def start(self, *flags, **kw):
        """A server; with flags always a fresh one."""
        if self.name == "first":
            return FirstServer(self.processes, *flags, **kw)
        if self.name == "bundled":
            return Server(self.processes, *flags, **kw)
        if SERVER_COMMAND:
            return ForeignServer(self.processes, *flags, program=[SERVER_COMMAND], **kw)
        assert not flags and not kw, "mark this test own_server"
        return Given(SERVER)

    def has(self, flag):
        return flag in self.dialect.flags

    def refuses(self, *flags):
        """It does not start with a flag that it does not have."""
        with pytest.raises(StartFailed) as failed:
            self.start(*flags)
        assert failed.value.status not in (0, None)

    def await_queued(self, server, key, ask):
        """Calls ask(), which sends a request that must queue for `key`, and returns when the server has it in its queue."""
        if self.dialect.stats:
            before = server.waiters(key)
            ask()
            eventually(lambda: server.waiters(key) == before + 1, what=f"one more waiter for {key}")
        else:
            # The first server logs a request when it begins with it, and begins with no other before this one waits.
            before = self._requests(server, key)
            ask()
            eventually(lambda: self._requests(server, key) == before + 1, what=f"one more request for {key}")

    @staticmethod
    def _requests(server, key):
        return server.log().count(f" key={key}\n")


def pytest_generate_tests(metafunc):
    if "target" in metafunc.fixturenames:
        if SERVER or SERVER_COMMAND:
            names = [os.environ.get("SERVER_DIALECT") or "given"]
            metafunc.parametrize("target", [f"given:{n}" for n in names], indirect=True)
        else:
            metafunc.parametrize("target", ["bundled", "first"], indirect=True)


def pytest_collection_modifyitems(config, items):
    if not SERVER or SERVER_COMMAND:
        return
    here = os.path.dirname(__file__)
    own = [i for i in items if str(i.path).startswith(here) and i.get_closest_marker("own_server")]
    config.hook.pytest_deselected(items=own)
    items[:] = [i for i in items if i not in own]
    print(f"\n{len(own)} tests need a server of their own: give SERVER_COMMAND=program for those")


@pytest.fixture
def target(request, processes):
    return Target(request.param, processes)


@pytest.fixture
def server(target):
    return target.start()


@pytest.fixture
def connect(server):
    """Opens connections to the server that are closed at the end."""
    wires = []

    def open_one(**kw):
        wires.append(server.connect(**kw))
        return wires[-1]

    yield open_one
    for wire in wires:
        wire.close()


@pytest.fixture
def key():
    """A key that no other test has."""
    return f"key-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def queue(target, server, key):
    """queue(wire, 'l', '30') sends a request that must wait, and returns when it does."""
    return lambda wire, command, argument, key=key: target.await_queued(
        server, key, lambda: wire.send(command, key, argument))
