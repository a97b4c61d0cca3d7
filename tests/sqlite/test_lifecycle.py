"""Loading, closing, forking and exiting, in every order that a program can think of."""

import os
import shutil
import signal
import socket

import pytest

from lib.eventually import Stopwatch, eventually
from lib.paths import SQLITE_EXTENSION
from lib.process import cpu_s, descriptors
from lib.under import INSTRUMENTED, fewer, patient
from sqlite.support import Failed

# ------------------------------------------------------------------- loading


def test_loading_twice_keeps_the_session(run_script, server):
    lines = run_script("""
        a = connect()
        a.value("SELECT dflock_lock('k')")
        a.value("SELECT dflock_config('lease_ttl', 77)")
        a.load()
        print(a.value("SELECT dflock_is_held('k')"), a.value("SELECT dflock_config('lease_ttl')"))
        print(a.value("SELECT dflock_release('k')"))
        """, servers=server)
    assert lines == ["1 77", "1"]


@pytest.mark.parametrize("denied", [(31,), (21,), range(50)], ids=["SQLITE_FUNCTION", "SQLITE_SELECT", "everything"])
def test_loading_again_under_an_authorizer_keeps_the_session(run_script, server, denied):
    lines = run_script(f"""
        a = connect()
        a.value("SELECT dflock_lock('k')")
        a.raw.set_authorizer(lambda action, *_: 1 if action in {denied!r} else 0)  # SQLITE_DENY
        a.load()
        a.raw.set_authorizer(None)
        print(a.value("SELECT dflock_assert_held('k', 1)"))
        """, servers=server)
    assert lines == ["1"]


def test_a_second_copy_of_the_file_changes_nothing(run_script, server, directory):
    copy = directory / "dflockd.so"
    shutil.copy(SQLITE_EXTENSION, copy)
    lines = run_script(f"""
        a = connect()
        a.value("SELECT dflock_lock('k')")
        a.load({str(copy)!r})
        print(a.value("SELECT dflock_assert_held('k', 1)"))
        b = connect(load=False)
        b.load({str(copy)!r})
        print(b.value("SELECT dflock_acquire('k', 0)"))
        a.close()
        print(b.value("SELECT dflock_acquire('k', 10)"))
        """, servers=server)
    assert lines == ["1", "0", "1"]


def test_loading_in_many_threads(run_script, server):
    lines = run_script("""
        def work(n):
            for i in range(10):
                c = connect()
                assert c.value("SELECT dflock_acquire(?)", f"k{n}") == 1
                c.load()
                assert c.value("SELECT dflock_release(?)", f"k{n}") == 1
                c.close()
            return n
        print([r(60) for r in [in_thread(work, n) for n in range(16)]] == list(range(16)))
        """, servers=server)
    assert lines == ["True"]


def test_another_sqlite_library_in_the_process_is_refused(run_script, server):
    lines = run_script("""
        a = connect()
        a.value("SELECT dflock_lock('k')")
        import apsw
        other = apsw.Connection(":memory:")
        other.enable_load_extension(True)
        try:
            other.load_extension(EXTENSION)
        except apsw.Error as error:
            print(error)
        print(a.value("SELECT dflock_assert_held('k', 1)"))
        """, servers=server)
    assert "another SQLite library" in lines[0] and lines[1] == "1"


def test_a_failed_load_leaves_nothing_behind(run_script, server):
    """An authorizer that denies everything keeps the guard from its table; the functions work all the same."""
    lines = run_script("""
        import sqlite3
        a = connect(load=False)
        a.raw.set_authorizer(lambda *x: sqlite3.SQLITE_DENY)
        a.load()
        a.raw.set_authorizer(lambda *x: sqlite3.SQLITE_OK)
        print(a.value("SELECT dflock_acquire('k')"))
        b = connect()
        cursor = a.raw.execute("SELECT 1 UNION SELECT 2")
        next(cursor)
        a.close()
        print(b.value("SELECT dflock_acquire('k', 10)"))
        """, servers=server)
    assert lines == ["1", "1"]


# ------------------------------------------------------------------- closing

CLOSES = {
    "plain": "a.close()",
    "with an open statement (deferred)": "c = a.raw.execute('SELECT 1 UNION SELECT 2'); next(c); a.close()",
    "with our own table open (deferred)": "c = a.raw.execute('SELECT * FROM dflock_locks'); next(c); a.close()",
    "by garbage collection": "del a; import gc; gc.collect()",
}


@pytest.mark.parametrize("how", CLOSES)
def test_every_close_gives_everything_back(run_script, server, how):
    lines = run_script(f"""
        a, b, holder = connect(), connect(), connect()
        holder.value("SELECT dflock_lock('busy')")
        a.value("SELECT dflock_lock('k', 0, 600)")
        a.value("SELECT dflock_sem_lock('s', 2, 0, 600)")
        assert a.value("SELECT dflock_enqueue('busy', 600)") == "queued"
        began = time.monotonic()
        {CLOSES[how]}
        assert time.monotonic() - began < 1
        print(b.value("SELECT dflock_acquire('k', 5)"))
        print(b.value("SELECT dflock_sem_acquire('s', 2, 5) AND dflock_sem_acquire('s', 2, 5)"))
        """, servers=server)
    assert lines == ["1", "1"]
    server.await_waiters("busy", 0)


C_INTERFACE = """
import ctypes
library = ctypes.CDLL("libsqlite3.so.0")
for f in ("open", "enable_load_extension", "load_extension", "prepare_v2", "step", "column_int", "finalize", "close", "close_v2"):
    getattr(library, "sqlite3_" + f).restype = ctypes.c_int
def open_database():
    db = ctypes.c_void_p()
    assert library.sqlite3_open(b":memory:", ctypes.byref(db)) == 0
    library.sqlite3_enable_load_extension(db, 1)
    assert library.sqlite3_load_extension(db, EXTENSION.encode(), None, None) == 0
    return db
def prepare(db, sql):
    statement = ctypes.c_void_p()
    assert library.sqlite3_prepare_v2(db, sql, -1, ctypes.byref(statement), None) == 0
    return statement
def run(db, sql):
    "The number in the first row."
    statement = prepare(db, sql)
    assert library.sqlite3_step(statement) == 100
    value = library.sqlite3_column_int(statement, 0)
    library.sqlite3_finalize(statement)
    return value
"""


def test_a_refused_close_gives_back_and_the_session_goes_on(run_script, server):
    """sqlite3_close() with an open statement fails; called as C would."""
    lines = run_script(C_INTERFACE + """
db, other = open_database(), connect()
for _ in range(2):
    assert run(db, b"SELECT dflock_acquire('k', 0)") == 1
    assert other.value("SELECT dflock_acquire('k', 0)") == 0
    statement = prepare(db, b"SELECT 1")
    print(library.sqlite3_close(db))
    print(other.value("SELECT dflock_acquire('k', 5)"), other.value("SELECT dflock_release('k')"))
    library.sqlite3_finalize(statement)
print(library.sqlite3_close(db))
        """, servers=server)
    assert lines == ["5", "1 1", "5", "1 1", "0"]


def test_closing_with_a_mute_server_takes_a_second_at_most(make_db, server, make_proxy):
    proxy = make_proxy(server)
    db = make_db(proxy)
    for n in range(5):
        db.value("SELECT dflock_lock(?)", f"k{n}")
    proxy.black_hole()
    with Stopwatch() as took:
        db.close()
    assert took.s < patient(1.5)


def test_what_a_close_left_behind_is_waited_for_asleep(make_db, server):
    """A try that was interrupted may still be granted: its answer is waited for, for a second at most, at no cost."""
    db = make_db(server)
    before = descriptors(db.pid)
    assert db.value("SELECT dflock_acquire('k', 0)") == 1
    server.pause()
    db.start("SELECT dflock_acquire('other', 0)")
    eventually(lambda: not db.busy() or db.interrupt())
    with pytest.raises(Failed, match="57014"):
        db.finish()
    cpu = cpu_s(db.pid)
    db.close()
    # what stays: the pipe and the set of the thread, three descriptors
    eventually(lambda: descriptors(db.pid) <= before + 3)
    assert cpu_s(db.pid) - cpu < patient(0.15)
    server.resume()


def test_closing_while_another_thread_waits(run_script, server):
    """A connection's close stands behind its running statement, as behind any long one. Called as C would: Python's module looks
    into the closed connection once more."""
    lines = run_script(C_INTERFACE + """
holder, a = connect(), open_database()
holder.value("SELECT dflock_lock('k')")
assert run(a, b"SELECT dflock_acquire('own', 0)") == 1
waiting = in_thread(run, a, b"SELECT dflock_acquire('k', 2)")
while holder.value("SELECT max(waiters) FROM dflock_server_locks") != 1:
    pass
print(library.sqlite3_close_v2(a), waiting(20))
print(holder.value("SELECT dflock_assert_held('k', 1)"), holder.value("SELECT dflock_acquire('own', 5)"))
        """, servers=server)
    assert lines == ["0 0", "1 1"]
    server.await_waiters("k", 0)


def test_closing_one_connection_while_others_wait_and_hold(run_script, server):
    run_script("""
        holder = connect()
        holder.value("SELECT dflock_lock('k', 0, 2)")
        waiters = [in_thread(connect().value, "SELECT dflock_acquire('k', 30)") for _ in range(4)]
        for n in range(200):
            c = connect()
            c.value("SELECT dflock_lock(?)", f"other{n}")
            c.close()
        assert holder.value("SELECT dflock_assert_held('k', 1)") == 1
        holder.close()
        """, servers=server)


def test_two_thousand_connects_leak_nothing(run_script, server):
    lines = run_script("""
        def figures():
            with open("/proc/self/statm") as f:
                return len(os.listdir("/proc/self/fd")), int(f.read().split()[1]) * 4
        def cycles(n):
            for i in range(n):
                c = connect()
                assert c.value("SELECT dflock_acquire('k', 10)") == 1
                c.close()
        cycles(int(sys.argv[1]))
        before = figures()
        cycles(int(sys.argv[2]))
        after = figures()
        print(after[0] - before[0], after[1] - before[1], before, after)
        """, servers=server, deadline=120, args=(str(fewer(300)), str(fewer(2000))))
    descriptors, kilobytes = map(int, lines[0].split()[:2])
    assert descriptors <= 0, lines
    assert kilobytes < 4000 or INSTRUMENTED, lines
    eventually(lambda: server.stats()["connections"] <= 1)


# ---------------------------------------------------------------------- fork


def test_a_forked_child_holds_nothing_and_takes_its_own(run_script, server):
    lines = run_script("""
        a = connect()
        a.value("SELECT dflock_lock('k', 0, 2)")
        fds = lambda: sum("socket" in os.readlink(f"/proc/self/fd/{f}") for f in os.listdir("/proc/self/fd")
                          if os.path.islink(f"/proc/self/fd/{f}"))
        read, write = os.pipe()
        if os.fork() == 0:
            out = [fds(), a.value("SELECT dflock_is_held('k')"), a.value("SELECT dflock_acquire('k', 0)"),
                   a.value("SELECT dflock_release('k')"), a.value("SELECT count(*) FROM dflock_locks"),
                   a.value("SELECT dflock_acquire('child', 0, 1)"), renewal_threads()]
            until = time.monotonic() + 3
            while time.monotonic() < until:
                assert a.value("SELECT dflock_is_held('child')") == 1
                time.sleep(0.05)
            out.append(a.value("SELECT dflock_assert_held('child', 1)"))
            a.close()
            os.write(write, json.dumps(out).encode())
            os._exit(0)
        print(os.read(read, 1000).decode())
        assert os.wait()[1] == 0
        print(a.value("SELECT dflock_assert_held('k', 1)"), a.value("SELECT dflock_acquire('child', 5)"))
        """, servers=server)
    assert lines == ["[0, 0, 0, 0, 0, 1, 1, 1]", "1 1"]


def test_the_parent_killed_with_a_child_alive_loses_its_lock_at_once(start_script, make_db, server):
    script = start_script("""
        a = connect()
        a.value("SELECT dflock_lock('k', 0, 600)")
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        print(child, flush=True)
        signal.pause()
        """, servers=server)
    eventually(lambda: script.lines())
    child = int(script.lines()[0])
    db = make_db(server)
    assert db.value("SELECT dflock_acquire('k', 0)") == 0
    script.process.kill()
    try:
        assert db.value("SELECT dflock_acquire('k', 10)") == 1
    finally:
        os.kill(child, signal.SIGKILL)


REAP = """
def reap(pid):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert status == 0, status
            return
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError("a child hangs")
"""


FORKS = 100 if INSTRUMENTED else 500  # each takes long then


def test_500_forks_under_constant_renewal(run_script, server):
    """Children that use and close what they have inherited, while the thread renews all the time; none hangs."""
    run_script(REAP + """
sessions = [connect() for _ in range(4)]
for n, s in enumerate(sessions):
    for i in range(50):
        s.value("SELECT dflock_lock(?, 0, 1)", f"k{n}.{i}")
for n in range(int(sys.argv[1])):
    pid = os.fork()
    if pid == 0:
        if n % 5 == 1:
            assert sessions[3].value("SELECT dflock_is_held('k3.0')") == 0
        if n % 5 == 2:
            sessions[3].close()
        if n % 5 >= 3:
            assert sessions[3].value("SELECT dflock_acquire(?, 0)", f"child{n}") == 1
        if n % 5 == 4:
            sessions[3].close()
        os._exit(0)
    reap(pid)
for n, s in enumerate(sessions):
    for i in range(50):
        assert s.value("SELECT dflock_assert_held(?, 1)", f"k{n}.{i}") == 1
        """, servers=server, deadline=150, args=(str(FORKS),))


def test_forks_while_other_threads_work(run_script, server):
    """Such a child must not use SQLite, whose own mutexes may be taken; it leaves, and harms nobody."""
    run_script(REAP + """
sessions = [connect() for _ in range(4)]
stop = threading.Event()
def hammer(n):
    while not stop.is_set():
        sessions[n].value("SELECT dflock_acquire(?, 0, 1)", f"k{n}")
        sessions[n].value("SELECT dflock_release(?)", f"k{n}")
threads = [in_thread(hammer, n) for n in range(4)]
for n in range(300):
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    reap(pid)
stop.set()
for end in threads:
    end()
for n, s in enumerate(sessions):
    assert s.value("SELECT dflock_acquire(?, 5)", f"k{n}") == 1
        """, servers=server, deadline=150)


def test_a_fork_inside_a_wait(run_script, server):
    """From a progress handler, with a child that ends at once: more than that SQLite's own mutex forbids."""
    lines = run_script("""
        holder, a = connect(), connect()
        holder.value("SELECT dflock_lock('k')")
        forked = []
        def fork_once():
            if not forked:
                forked.append(os.fork())
                if forked[0] == 0:
                    os._exit(holder.value("SELECT dflock_is_held('k')"))
            return 0
        a.raw.set_progress_handler(fork_once, 1000)
        print(a.value("SELECT dflock_acquire('k', 1.5)"), os.waitpid(forked[0], 0)[1])
        print(holder.value("SELECT dflock_assert_held('k', 1)"))
        """, servers=server)
    assert lines == ["0 0", "1"]


# ---------------------------------------------------------------------- exit


@pytest.fixture
def half_a_handshake(certs):
    """Accepts, reads the first bytes of a TLS handshake and never goes on."""
    listener = socket.create_server(("127.0.0.1", 0))
    yield listener
    listener.close()


def test_exit_during_a_tls_handshake(start_script, certs, half_a_handshake, make_server):
    """exit() frees OpenSSL's tables while another thread uses them: forty processes, none crashes or hangs."""
    address = "127.0.0.1:%d" % half_a_handshake.getsockname()[1]
    server = make_server("--tls-cert", certs.server.cert, "--tls-key", certs.server.key)
    text = """
        a, b = connect(), connect()
        def work(c, key):
            while True:
                try:
                    c.value("SELECT dflock_acquire(?, 0)", key)
                    c.value("SELECT dflock_release(?)", key)
                    c.value("SELECT dflock_ping()")
                except Error:
                    pass
        in_thread(work, a, "k1")
        in_thread(work, b, "k2")
        started = time.monotonic()
        c = connect()
        c.value("SELECT dflock_config('release_wait')")
        while time.monotonic() < started + float(sys.argv[1]):
            pass
        import ctypes
        ctypes.CDLL(None).exit(0)
        """
    env = {"DFLOCK_TLS": "on", "DFLOCK_TLS_CA": str(certs.ca.cert), "DFLOCK_CONNECT_TIMEOUT": "20"}
    for n in range(20):
        target = f"{address},{server.address}" if n % 2 else server.address
        script = start_script(text, servers=target, env=env, args=(str(0.02 + n * 0.007),))
        with Stopwatch() as took:
            script.wait(20)
        assert took.s < patient(10)


def test_exit_with_locks_and_a_waiting_thread(start_script, make_db, server):
    script = start_script("""
        a, b = connect(), connect()
        a.value("SELECT dflock_lock('k', 0, 600)")
        in_thread(b.value, "SELECT dflock_lock('k', 9e999)")
        while a.value("SELECT max(waiters) FROM dflock_server_locks") != 1:
            pass
        import ctypes
        ctypes.CDLL(None).exit(0)
        """, servers=server)
    script.wait(20)
    assert make_db(server).value("SELECT dflock_acquire('k', 5)") == 1


def test_a_normal_end_of_python_gives_back(run_script, make_db, server):
    run_script("a = connect(); a.value(\"SELECT dflock_lock('k', 0, 600)\")", servers=server)
    assert make_db(server).value("SELECT dflock_acquire('k', 5)") == 1


def test_signals_go_to_the_application(run_script, server):
    """The renewal thread blocks all of them."""
    lines = run_script("""
        a = connect()
        a.value("SELECT dflock_lock('k')")
        (thread,) = [t for t in os.listdir("/proc/self/task") if "dflockd" in open(f"/proc/self/task/{t}/comm").read()]
        status = dict(line.split(":\\t", 1) for line in open(f"/proc/self/task/{thread}/status"))
        print(status["Name"].strip(), int(status["SigBlk"], 16) & 0x7fffffff == 0x7ffbfeff & 0x7fffffff)
        """, servers=server)
    assert lines == ["dflockd True"]
