"""Fixtures that every Python suite shares, and two rules: nothing is skipped, and an empty run is a failure."""

import pathlib

import pytest

from lib import proxy as proxy_module
from lib.certs import Certs
from lib.process import Processes
from lib.server import Server
from lib.shell import PsqlShell, SqliteShell
from lib.under import PATIENCE, patient

_processes = pytest.StashKey()


@pytest.fixture
def directory(tmp_path):
    """A directory of this test alone."""
    return pathlib.Path(tmp_path)


@pytest.fixture
def processes(request, directory):
    """What this test starts; all of it is stopped at its end."""
    registry = Processes(directory)
    request.node.stash[_processes] = registry
    yield registry
    registry.close()


@pytest.fixture
def make_server(processes):
    """make_server('--read-timeout', 1): a fresh bundled server."""
    return lambda *flags, **kw: Server(processes, *flags, **kw)


@pytest.fixture
def server(make_server):
    """A fresh bundled server with default settings."""
    return make_server()


@pytest.fixture
def make_proxy(processes):
    return lambda target, **kw: processes.add(proxy_module.Proxy(getattr(target, "address", target), **kw))


@pytest.fixture
def make_sqlite(processes):
    """make_sqlite(servers=server): a `sqlite3 -bail` session with the extension loaded."""
    return lambda *a, **kw: SqliteShell(processes, *a, **kw)


@pytest.fixture
def make_psql(processes):
    """make_psql(dsn): a psql session."""
    return lambda *a, **kw: PsqlShell(processes, *a, **kw)


@pytest.fixture(scope="session")
def certs(tmp_path_factory):
    """Throwaway certificates, made once."""
    return Certs(tmp_path_factory.mktemp("certs"))


# ----------------------------------------------------------------------- rules


def pytest_collection_modifyitems(config, items):
    """Under a checker of memory a test may take longer before it counts as hanging."""
    if PATIENCE > 1:
        for item in items:
            marked = item.get_closest_marker("timeout")
            seconds = marked.args[0] if marked else float(config.getini("timeout"))
            item.add_marker(pytest.mark.timeout(patient(seconds)), append=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    registry = item.stash.get(_processes, None)
    if report.failed and registry is not None:
        for name, text in registry.logs():
            report.sections.append((f"log of {name}", text[-20000:]))
    return report


def pytest_sessionfinish(session, exitstatus):
    """A skip is a failure: what cannot run here has to be said by the one who starts the suite, not hidden."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter and reporter.stats.get("skipped") and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
