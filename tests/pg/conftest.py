"""PostgreSQL: which versions are tested, and a cluster for each test.

The first version (PG_CONFIG, else what is installed) runs everything, the others that are built run what is marked
`every_version`. DFLOCKD_PG_CONFIGS, a list of pg_config programs separated by colons, replaces this choice.
"""

import functools
import pathlib
import shutil
import tempfile

import pytest

from pg.cluster import Cluster, Installation, major, pg_configs


def pytest_configure(config):
    config.addinivalue_line("markers", "every_version: runs on each PostgreSQL version that is built, not on the first alone")


def pytest_generate_tests(metafunc):
    if "installation" not in metafunc.fixturenames:
        return
    every = metafunc.definition.get_closest_marker("every_version") is not None
    chosen = pg_configs() if every else pg_configs()[:1]
    metafunc.parametrize("installation", chosen, indirect=True, scope="session", ids=major)


@pytest.fixture(scope="session")
def trees():
    """trees(pg_config): an installation, copied when it is first asked for."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="dflpgtree", dir="/tmp"))
    directory.chmod(0o755)
    yield functools.cache(lambda pg_config: Installation(pg_config, directory))
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def installation(request, trees):
    """One PostgreSQL version."""
    return trees(request.param)


@pytest.fixture
def make_cluster(processes, installation):
    """make_cluster(server, setting=value): a fresh cluster whose worker talks to these lock servers."""
    def make(*servers, preload=True, extension=True, data=None, **settings):
        if servers:
            settings["dflockd.servers"] = ",".join(str(s) for s in servers)
        settings = {name.replace("__", "."): value for name, value in settings.items()}
        cluster = Cluster(processes, installation, settings, preload=preload, data=data)
        if extension:
            cluster.psql("CREATE EXTENSION dflockd")
        return cluster
    return make


@pytest.fixture
def pg(make_cluster, server):
    """A cluster, and `server` is its lock server."""
    return make_cluster(server)


@pytest.fixture
def session(pg):
    return pg.session()


@pytest.fixture
def watcher(pg):
    """A session that only looks."""
    return pg.session()
