"""memcheck's silence counts: planted faults are found, in a program, in a forked backend, and not hidden by our suppressions."""

import os
import re
import subprocess

import pytest

from lib import valgrind
from lib.paths import ROOT
from pg.cluster import Cluster, Installation, first_pg_config

PLANTED = {"UninitCondition", "InvalidRead", "Leak_DefinitelyLost"}


def build(directory, *flags):
    library = directory / valgrind.EXTENSION
    subprocess.run(["cc", "-std=gnu11", "-O1", "-g", "-fPIC", "-shared", "-Wl,-z,nodelete", "-w", *flags, "-o", library,
                    ROOT / "tests" / "valgrind" / "planted.c"], check=True)
    library.chmod(0o755)
    return library


@pytest.fixture
def findings(tmp_path_factory):
    """Where these findings go; not among those of the suites."""
    directory = tmp_path_factory.mktemp("findings")
    for path in (directory, *directory.parents[:2]):
        path.chmod(0o1777 if path == directory else 0o755)
    return directory


def found(directory):
    return {finding.kind for finding in valgrind.Findings(directory).counting}


def test_found_in_a_program(directory, findings):
    library = build(directory)
    subprocess.run([*valgrind.command(findings), "sqlite3", ":memory:", f".load {library}"], check=True)
    assert found(findings) >= PLANTED
    assert all("planted.c" in str(finding) for finding in valgrind.Findings(findings).counting)


def test_found_in_a_forked_child(directory, findings):
    """Of a process that is killed before its end, what came before."""
    library = build(directory)
    script = ("import os, signal, sqlite3\n"
              "read, write = os.pipe()\n"
              "child = os.fork()\n"
              "if child == 0:\n"
              "    a = sqlite3.connect(':memory:'); a.enable_load_extension(True)\n"
              f"    a.load_extension({str(library)!r})\n"
              "    os.write(write, b'.')\n"
              "    signal.pause()\n"
              "os.read(read, 1)\n"
              "os.kill(child, 9)\n"
              "os.wait()\n")
    subprocess.run([*valgrind.command(findings), "/usr/bin/python3", "-c", script], check=True)
    assert found(findings) == PLANTED - {"Leak_DefinitelyLost"}, "nobody looks for lost blocks in who is killed"


def test_found_in_a_backend(directory, findings, processes, tmp_path_factory, monkeypatch):
    config = first_pg_config()
    include = subprocess.check_output([config, "--includedir-server"], text=True).strip()
    tree = tmp_path_factory.mktemp("tree")
    for path in (tree, *tree.parents[:2]):
        path.chmod(0o755)
    installation = Installation(config, tree)
    library = build(directory, "-DPLANTED_PG", f"-I{include}")
    (module,) = [path for path in installation.directory.rglob(valgrind.EXTENSION) if not path.is_symlink()]
    module.write_bytes(library.read_bytes())
    monkeypatch.setattr("pg.cluster.UNDER", valgrind.command(findings))
    cluster = Cluster(processes, installation, preload=False)
    session = cluster.session()
    session.run("CREATE FUNCTION planted_faults() RETURNS void LANGUAGE c AS 'dflockd'")
    session.run("SELECT planted_faults()")
    cluster.shut_down()
    assert found(findings) >= PLANTED
    assert {finding.path.stem for finding in valgrind.Findings(findings).counting} == {str(session.pid)}


def entries():
    text = valgrind.SUPPRESSIONS.read_text("ascii")
    return [(comment, [line.strip() for line in body.splitlines() if line.strip()])
            for comment, body in re.findall(r"((?:^#.*\n)*)^\{\n(.*?)^\}", text, re.M | re.S)]


def test_suppressions_are_narrow():
    """Each says why, begins with a frame that is known to be a host's, and names none of ours."""
    for comment, (name, kind, *frames) in entries():
        assert comment.startswith("#"), f"{name} is not explained"
        assert kind.startswith("Memcheck:"), name
        if kind == "Memcheck:Param":
            frames = frames[1:]
        assert frames[0].startswith(("obj:", "fun:")), f"{name} begins with a wildcard"
        assert any(re.match(r"obj:\*/(postgres|python3\.\*)$", f) for f in frames), name
        assert not any("dfl" in f for f in frames), name


def test_the_file_is_read_by_memcheck(directory):
    done = subprocess.run([*valgrind.command(directory), "/bin/true"], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert os.listdir(directory)
