"""The clients of other languages that are tested: the official Python one, or the program that PEER names. And the lock
server between them and us: the bundled one, or the program that SERVER_COMMAND names."""

import os
import pathlib
import shlex
import shutil
import sys
import tempfile
import uuid

import pytest

from conformance import dialects
from interop.comers import Peer, Postgres, Sqlite
from lib.paths import ROOT
from lib.process import Processes
from lib.server import ForeignServer, Server
from pg.cluster import Cluster, Installation, first_pg_config

PYTHON_PEER = [sys.executable, ROOT / "tests" / "interop" / "peers" / "python_peer.py"]
PEERS = {"python": PYTHON_PEER, "python-async": [*PYTHON_PEER, "async"]}
if os.environ.get("PEER"):
    # Peers run in directories of their own: what is a file here is named from the root.
    PEERS = {"given": [os.path.abspath(w) if os.path.exists(w) else w for w in shlex.split(os.environ["PEER"])]}
    if not shutil.which(PEERS["given"][0]):
        pytest.exit(f"PEER: there is no program {PEERS['given'][0]}", returncode=pytest.ExitCode.USAGE_ERROR)


@pytest.fixture(scope="module")
def lasting(tmp_path_factory):
    """What lives as long as a file of tests."""
    registry = Processes(tmp_path_factory.mktemp("lasting"))
    yield registry
    registry.close()


def new_server(processes, *flags):
    """A lock server, and as .dialect what it does otherwise than others."""
    if os.environ.get("SERVER_COMMAND"):
        server = ForeignServer(processes, *flags, program=[os.environ["SERVER_COMMAND"]])
        server.dialect = dialects.recognize(server.address)
    else:
        server = Server(processes, *flags)
        server.dialect = dialects.BUNDLED
    return server


@pytest.fixture(scope="module")
def locks(lasting):
    """The lock server; every test has keys of its own."""
    return new_server(lasting)


@pytest.fixture(scope="session")
def installation():
    """The first PostgreSQL version that is built."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="dflpgtree", dir="/tmp"))
    directory.chmod(0o755)
    yield Installation(first_pg_config(), directory)
    shutil.rmtree(directory, ignore_errors=True)


def new_cluster(processes, installation, servers):
    cluster = Cluster(processes, installation, {"dflockd.servers": ",".join(str(s) for s in servers)})
    cluster.psql("CREATE EXTENSION dflockd")
    return cluster


@pytest.fixture(scope="module")
def cluster(lasting, installation, locks):
    return new_cluster(lasting, installation, [locks])


@pytest.fixture(params=PEERS)
def peer_command(request):
    return PEERS[request.param]


@pytest.fixture
def new_comer(processes, peer_command, locks, cluster):
    """new_comer('peer'), new_comer('sqlite'), new_comer('postgres')"""
    kinds = {"peer": lambda: Peer(processes, peer_command, locks), "sqlite": lambda: Sqlite(processes, locks),
             "postgres": lambda: Postgres(cluster)}
    return lambda kind: kinds[kind]()


@pytest.fixture
def peer(new_comer):
    return new_comer("peer")


@pytest.fixture(params=["sqlite", "postgres"])
def ours(request, new_comer):
    """One of our databases."""
    return new_comer(request.param)


@pytest.fixture
def key():
    """A key that no other test has."""
    return f"key-{uuid.uuid4().hex[:12]}"
