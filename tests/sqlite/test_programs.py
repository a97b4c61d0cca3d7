"""C programs: many threads without SQLite's mutexes, an old SQLite, an application short of everything."""

import math
import subprocess

import pytest

from lib.paths import BUILD, SQLITE_EXTENSION
from lib.process import clean_environment
from lib.under import PATIENCE, UNDER, patient
from sqlite.support import child_environment


def program(name, *args, servers=None):
    done = subprocess.run([*UNDER, BUILD / "tests" / "sqlite" / name, *map(str, args)], text=True, capture_output=True, timeout=patient(120),
                          env=clean_environment(child_environment(servers)))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("version", [3008000, 3030001])
def test_sqlite_before_3_31_is_refused(version):
    assert "1 dflockd needs SQLite 3.31 or later" in program("old_sqlite", SQLITE_EXTENSION, version)


def test_threads_of_a_c_program(server):
    assert program("threads", SQLITE_EXTENSION, 8, 200, servers=server) == "1600"
    server.await_holders("taken", 0)


def test_no_thread_no_lock(run_script, server):
    """A hold that nobody could renew is none: it is given back, and the reason said."""
    lines = run_script("""
        import resource
        a = connect()
        if os.getuid() == 0:
            os.setuid(54321)
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        print(a.error("SELECT dflock_lock('k')"))
        print(a.value("SELECT dflock_is_held('k')"))
        print(a.value("SELECT dflock_ping() LIKE '%round_trip_ms%'"), a.value("SELECT dflock_stats() LIKE '%idle_locks%'"))
        print(a.value("SELECT count(*) FROM dflock_server_locks WHERE error IS NOT NULL"))
        """, servers=server)
    assert "renewal thread" in lines[0] and "Resource temporarily unavailable" in lines[0]
    assert lines[1:] == ["0", "1 1", "0"]
    server.await_holders("k", 0)


def test_out_of_descriptors(run_script, server):
    lines = run_script("""
        import resource
        a = connect()
        b = connect()
        b.value("SELECT dflock_lock('mine')")
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        hoard = []
        try:
            while True:
                hoard.append(os.dup(1))
        except OSError:
            pass
        print(a.error("SELECT dflock_acquire('k', 0)"))
        print(b.value("SELECT dflock_assert_held('mine', 1)"))
        for fd in hoard:
            os.close(fd)
        print(a.value("SELECT dflock_acquire('k', 0)"))
        """, servers=server)
    assert "Too many open files" in lines[0], lines
    assert lines[1:] == ["1", "1"]


def scarce(server, n, how, whose):
    """One run of a program that calls everything while the n-th allocation fails, or all from there on: what it said."""
    with subprocess.Popen([BUILD / "tests" / "sqlite" / "scarce", SQLITE_EXTENSION, str(n), how, whose], text=True, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, env=clean_environment(child_environment(server))) as run:
        lines = []
        for line in run.stdout:
            lines.append(line.strip())
            if line.startswith("close"):
                break
        for key in ("a", "b", "s", "c", "d"):
            server.await_holders(key, 0)
        run.stdin.close()
        assert run.wait(patient(20)) == 0, lines
        assert lines[-1] == "close -> 0"
        assert "a child keeps" not in " ".join(lines) or "a child keeps 0" in lines, (n, lines)
        return [line for line in lines if " -> " in line and "dflock_config" not in line], "failed 0 of" in " ".join(lines)


@pytest.mark.parametrize("whose, step", [("ours", 1), ("all", 3)])
@pytest.mark.parametrize("how", ["once", "always"])
def test_out_of_memory_is_what_is_said(make_server, how, whose, step):
    """Whichever allocation fails: no crash, no wait for nothing, no other reason, nothing left to a child, and every lock is given back at
    the end."""
    server = make_server("--read-timeout", "3600")
    holder = server.connect()
    assert holder.ask("l", "busy", "0 600").startswith("ok")
    plenty, _ = scarce(server, 10**9, how, whose)
    assert "SELECT dflock_sem_release('s') -> ok 1" in plenty
    done, n = False, 0
    while not done:
        n += math.ceil(PATIENCE) * step
        said, done = scarce(server, n, how, whose)
        other = [line for line in said if line not in plenty]
        if whose == "ours":  # SQLite loses messages without memory, and a thread has another word for it
            assert not other or "53200" in other[0] or "out of memory" in other[0], (n, other)
        assert not any(blame in line for line in other for blame in ("LK0", "57014", "0A000")), (n, other)
    assert n > 100


def test_a_utf16_database(run_script, server):
    lines = run_script("""
        a = connect()
        a.rows("PRAGMA encoding = 'UTF-16'")
        a.rows("CREATE TABLE t(x)")
        a.rows("INSERT INTO t VALUES ('schlüssel-日本')")
        print(a.value("SELECT dflock_acquire(x, 0) FROM t"), a.value("SELECT key FROM dflock_locks"))
        """, servers=server)
    assert lines == ["1 schlüssel-日本"]


def test_text_that_is_not_utf8(db, server):
    """Whatever is made of such a key, no table of ours fails for it."""
    try:
        db.value("SELECT dflock_acquire(CAST(x'66ff66' AS TEXT), 0)")
    except Exception as error:
        assert "22023" in str(error)
    assert db.value("SELECT count(*) FROM dflock_locks") == db.value("SELECT count(*) FROM dflock_server_locks WHERE error IS NULL")
