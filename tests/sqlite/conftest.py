"""What the SQLite suite needs besides the shared fixtures."""

import pytest

from lib.process import Processes
from lib.server import Server
from sqlite.support import DRIVERS, Database, Script


@pytest.fixture
def make_db(processes):
    """make_db(server, driver='apsw'): a connection in a process of its own."""
    return lambda *a, **kw: Database(processes, *a, **kw)


@pytest.fixture
def db(make_db, server):
    return make_db(server)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A server for a whole file of tests that use keys of their own."""
    processes = Processes(tmp_path_factory.mktemp("shared"))
    yield Server(processes)
    processes.close()


@pytest.fixture(scope="module", params=DRIVERS)
def any_db(request, shared, tmp_path_factory):
    """One connection per driver for a whole file."""
    processes = Processes(tmp_path_factory.mktemp(f"db-{request.param}"))
    yield Database(processes, shared, driver=request.param)
    processes.close()


@pytest.fixture
def start_script(processes):
    """start_script(text, servers=...): a child that runs the text with `connect()` and friends in scope."""
    return lambda *a, **kw: Script(processes, *a, **kw)


@pytest.fixture
def run_script(start_script):
    """Runs one to its end and returns the lines that it printed."""
    def run(*a, deadline=60, status=0, **kw):
        return start_script(*a, **kw).wait(deadline, status)

    return run
