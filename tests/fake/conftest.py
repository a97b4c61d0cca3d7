"""The engine against a scripted peer; every test with both kinds of waiting for readiness."""

import pytest

from fake.engine import Engine
from fake.peer import Peer

# Small times: the behaviour is the same, the tests are short.
TIMES = {"connect_timeout": 2, "server_read_timeout": 6, "keepalive": 2, "acquire_timeout": 2}


@pytest.fixture(params=["epoll", "poll"])
def make_engine(request, processes):
    """make_engine(peer, keepalive=0.3): an engine with a session `a` for these servers."""
    return lambda servers, **kw: Engine(processes, servers, wait=request.param, **{**TIMES, **kw})


@pytest.fixture
def make_peer(processes):
    """make_peer(script, auto={...}): a scripted server."""
    return lambda *a, **kw: processes.add(Peer(*a, **kw))
