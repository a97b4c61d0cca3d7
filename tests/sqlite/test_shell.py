"""The real sqlite3 shell: scripts under -bail, Ctrl-C, loading, how often a statement calls, hostile database files."""

import sqlite3
import subprocess

import pytest

from lib.eventually import Stopwatch, eventually
from lib.paths import SQLITE_EXTENSION
from lib.under import UNDER, patient
from sqlite.support import run_shell

# ------------------------------------------------------------------- scripts


def test_a_script_whose_lock_fails_does_not_run_its_next_line(make_sqlite, server):
    holder = make_sqlite(servers=server)
    holder.query("SELECT dflock_lock('job')")
    status, out, err = run_shell("""
        SELECT 'before';
        SELECT dflock_lock('job', 0);
        SELECT 'after';
        """, servers=server)
    assert status != 0
    assert out == "before\n"
    assert "dflockd 55P03: " in err


def test_without_bail_it_does(make_sqlite, server):
    """Why every example says -bail."""
    holder = make_sqlite(servers=server)
    holder.query("SELECT dflock_lock('job')")
    _, out, err = run_shell("SELECT dflock_lock('job', 0);\nSELECT 'after';", servers=server, bail=False)
    assert "after" in out and "dflockd 55P03: " in err


def test_a_script_that_gets_its_lock(server):
    status, out, err = run_shell("""
        SELECT dflock_lock('job') > 0;
        SELECT dflock_release('job');
        """, servers=server)
    assert (status, out, err) == (0, "1\n1\n", "")


def test_a_lock_lives_as_long_as_its_shell(make_sqlite, server):
    a, b = make_sqlite(servers=server), make_sqlite(servers=server)
    a.query("SELECT dflock_lock('job')")
    b.start("SELECT dflock_lock('job', 20)")
    server.await_waiters("job", 1)
    assert a.close() == 0
    assert not b.finish().failed


def test_a_killed_shell_loses_its_lock_at_once(make_sqlite, server):
    a, b = make_sqlite(servers=server), make_sqlite(servers=server)
    a.query("SELECT dflock_lock('job', 0, 600)")
    b.start("SELECT dflock_lock('job', 20)")
    server.await_waiters("job", 1)
    a.kill()
    assert not b.finish(deadline=10).failed


def test_default_address_says_how_to_start_a_server():
    """Of the loopback's addresses another than the usual one, where a developer's server may well run."""
    status, _, err = run_shell("SELECT dflock_lock('k', 0);", env={"DFLOCK_SERVERS": "127.0.0.77:6388"})
    assert status != 0
    assert "LK010" in err and "127.0.0.77:6388" in err and "dflockd-local" in err


# -------------------------------------------------------------------- Ctrl-C


@pytest.mark.parametrize("call", ["dflock_lock('k')", "dflock_acquire('k', 9e999)", "dflock_sem_acquire('k', 1, 9e999)"])
def test_ctrl_c_ends_a_wait(make_sqlite, server, call):
    a, b = make_sqlite(servers=server), make_sqlite(servers=server, bail=False)
    a.query("SELECT dflock_lock('k')")
    b.query("SELECT dflock_lock('mine')")
    b.start(f"SELECT {call}")
    server.await_waiters("k", 1)
    with Stopwatch() as took:
        b.interrupt()
        result = b.finish()
    assert took.s < patient(1) and "57014" in result.error, result
    server.await_waiters("k", 0)
    assert b.value("SELECT dflock_assert_held('mine', 1)") == "1", "no other lock is lost"
    assert b.value("SELECT count(*) FROM dflock_locks") == "1"
    a.query("SELECT dflock_release_all()")
    assert b.value("SELECT dflock_is_held('k')") == "0", "and it never gets that lock"
    assert server.holders("k") == 0


def test_an_interrupted_wait_gives_its_place_up(make_db, server):
    a, b = make_db(server), make_db(server)
    a.value("SELECT dflock_lock('k')")
    assert b.value("SELECT dflock_enqueue('k')") == "queued"
    b.start("SELECT dflock_wait('k', 9e999)")

    def interrupted():
        b.interrupt()  # one that comes before the statement has begun does nothing
        return not b.busy()

    eventually(interrupted, every=0.05)
    with pytest.raises(Exception, match="57014|interrupted"):
        b.finish()
    server.await_waiters("k", 0)
    b.fails("SELECT dflock_wait('k', 0)", sqlstate="55000")


def test_a_cancel_ends_within_100_ms(make_db, server):
    a, b = make_db(server), make_db(server)
    a.value("SELECT dflock_lock('k')")
    best = 9.0
    for _ in range(5):
        b.start("SELECT dflock_lock('k', 9e999)")
        server.await_waiters("k", 1)
        with Stopwatch() as took:
            b.interrupt()
            with pytest.raises(Exception, match="57014") as caught:
                b.finish()
        assert caught.value.code == 9, "SQLITE_INTERRUPT"
        server.await_waiters("k", 0)
        best = min(best, took.s)
    assert best < patient(0.1)


def test_interrupt_while_connecting(make_db, server, make_proxy):
    proxy = make_proxy(server)
    proxy.black_hole()
    b = make_db(proxy)
    b.start("SELECT dflock_acquire('k', 0)")
    eventually(lambda: proxy.accepted > 0)
    with Stopwatch() as took:
        b.interrupt()
        with pytest.raises(Exception, match="57014"):
            b.finish()
    assert took.s < patient(1)
    proxy.pass_through()
    assert b.value("SELECT dflock_acquire('k', 0)", deadline=20) == 1


def test_python_interrupt_and_progress_handler(run_script, server):
    lines = run_script("""
        holder = connect()
        holder.value("SELECT dflock_lock('k')")
        a = connect()
        waiting = in_thread(a.error, "SELECT dflock_lock('k', 9e999)")
        while holder.value("SELECT max(waiters) FROM dflock_server_locks") != 1:
            pass
        a.interrupt()
        print(waiting())
        calls = []
        a.raw.set_progress_handler(lambda: calls.append(1) or len(calls) > 5, 1000)
        began = time.monotonic()
        print(a.error("SELECT dflock_lock('k', 9e999)"))
        assert 0.2 < time.monotonic() - began < 5, time.monotonic() - began
        """, servers=server)
    assert all("57014" in line for line in lines) and len(lines) == 2


def test_an_interrupt_while_the_files_are_looked_at(run_script, server):
    """A statement that writes is looked at closely before it may lock: an interrupt then is one, not a file's fault."""
    lines = run_script("""
        a = connect()
        a.rows("CREATE TABLE t(x, y)")
        a.raw.create_function("interrupted", 0, lambda: a.interrupt() or 1)
        print(a.error("INSERT INTO t SELECT interrupted(), dflock_acquire('k')"))
        print(a.value("SELECT dflock_is_held('k')"))
        """, servers=server)
    assert "57014" in lines[0] or "OperationalError interrupted" in lines[0], lines
    assert lines[1:] == ["0"]


def test_ctrl_c_in_python_with_a_progress_handler(start_script, server, make_sqlite):
    holder = make_sqlite(servers=server)
    holder.query("SELECT dflock_lock('k')")
    script = start_script("""
        a = connect()
        a.raw.set_progress_handler(lambda: 0, 1000)
        try:
            a.value("SELECT dflock_lock('k', 9e999)")
        except (KeyboardInterrupt, Error) as error:
            print(type(error).__name__)
        """, servers=server)
    server.await_waiters("k", 1)
    script.process.signal(2)
    (line,) = script.wait(10)
    assert line in ("KeyboardInterrupt", "OperationalError")


def test_an_authorizer_that_denies_the_probe_only_delays_the_cancel(run_script, server):
    lines = run_script("""
        import sqlite3
        holder = connect()
        holder.value("SELECT dflock_lock('k')")
        a = connect()
        a.value("SELECT dflock_ping()")
        denied = []
        def authorize(action, *names):
            if denied is not None and action == sqlite3.SQLITE_RECURSIVE and len(denied) < 10:
                denied.append(names)
                return sqlite3.SQLITE_DENY
            return sqlite3.SQLITE_OK
        a.raw.set_authorizer(authorize)
        waiting = in_thread(a.error, "SELECT dflock_lock('k', 20)")
        while len(denied) < 3:
            time.sleep(0.01)
        a.interrupt()
        print(waiting(10))
        """, servers=server)
    assert "57014" in lines[0]


# ------------------------------------------------------------------- loading


def test_only_the_entry_point_is_exported():
    out = subprocess.check_output(["nm", "-D", "--defined-only", SQLITE_EXTENSION], text=True)
    assert [line.split()[-1] for line in out.splitlines()] == ["sqlite3_dflockd_init"]


def test_it_needs_no_library_but_the_systems():
    out = subprocess.check_output(["readelf", "-d", SQLITE_EXTENSION], text=True)
    needed = {line.split("[")[1].rstrip("]") for line in out.splitlines() if "(NEEDED)" in line}
    allowed = {"libc.so.6", "libdl.so.2", "libpthread.so.0", "libm.so.6", "ld-linux-x86-64.so.2"}
    sanitizers = {n for n in needed if n.startswith(("libasan", "libtsan", "libubsan", "libgcc_s"))}
    assert needed - sanitizers <= allowed
    assert "NODELETE" in out


def test_loading_opens_no_socket_and_starts_no_thread(run_script, server):
    lines = run_script("""
        descriptors = lambda: len(os.listdir("/proc/self/fd"))
        before = descriptors()
        a = connect()
        print(renewal_threads(), descriptors() - before)
        a.value("SELECT dflock_config('servers')")
        a.rows("SELECT * FROM dflock_servers")
        print(renewal_threads())
        a.value("SELECT dflock_lock('k')")
        print(renewal_threads())
        """, servers=server)
    assert lines == ["0 0", "0", "1"]


def test_safe_mode_refuses_to_load():
    done = subprocess.run([*UNDER, "sqlite3", "-safe", ":memory:"], input=f".load {SQLITE_EXTENSION}\n", text=True,
                          capture_output=True, timeout=patient(30))
    assert "safe mode" in done.stderr + done.stdout


def test_a_bad_environment_is_named_at_first_use():
    status, out, err = run_shell("SELECT 'loaded';\nSELECT dflock_version() IS NOT NULL;\nSELECT dflock_acquire('k', 0);",
                                 env={"DFLOCK_LEASE_TTL": "soon"})
    assert status != 0 and out == "loaded\n1\n"
    assert "dflockd 22023: " in err and "DFLOCK_LEASE_TTL" in err


# ------------------------------------------------------- calls per statement


@pytest.fixture
def ten_rows(make_db, make_server):
    db = make_db(make_server())
    db.rows("CREATE TABLE t(id INTEGER PRIMARY KEY, x, taken)")
    db.rows("INSERT INTO t(id, x) SELECT value, -value FROM json_each('[1,2,3,4,5,6,7,8,9,10]')")
    return db


def locks(db):
    return db.value("SELECT count(*) FROM dflock_locks")


def test_a_bare_where_calls_for_every_row(ten_rows):
    ten_rows.fails("UPDATE t SET taken = 1 WHERE dflock_acquire('k', 0)", sqlstate="55006")
    assert locks(ten_rows) == 1


def test_where_with_limit_locks_all_rows(ten_rows):
    ten_rows.rows("SELECT id FROM t WHERE dflock_acquire(id, 0) ORDER BY x LIMIT 1")
    assert locks(ten_rows) == 10


def test_rows_chosen_first_lock_one(ten_rows):
    rows = ten_rows.rows("WITH one AS MATERIALIZED (SELECT id FROM t ORDER BY x LIMIT 1) "
                         "SELECT id, dflock_acquire(id, 0) FROM one")
    assert rows == [(10, 1)] and locks(ten_rows) == 1


def test_scalar_subquery_calls_once(ten_rows):
    ten_rows.rows("UPDATE t SET taken = 1 WHERE (SELECT dflock_acquire('k', 0))")
    assert ten_rows.value("SELECT count(*) FROM t WHERE taken") == 10 and locks(ten_rows) == 1


def test_materialized_guard_calls_once(ten_rows):
    assert ten_rows.rows("WITH g AS MATERIALIZED (SELECT dflock_acquire('k', 0) AS ok) "
                         "SELECT CASE ok WHEN 1 THEN 'mine' END FROM g WHERE ok") == [("mine",)]


def test_flattened_subquery_calls_twice(ten_rows):
    ten_rows.fails("SELECT CASE ok WHEN 1 THEN 'mine' END FROM (SELECT dflock_acquire('k', 0) AS ok) WHERE ok",
                   sqlstate="55006")


def test_a_wait_in_its_own_select_holds_no_database_lock(make_db, server, directory):
    path = str(directory / "a.db")
    holder, a, b = make_db(server), make_db(server, path=path), make_db(server, path=path)
    holder.value("SELECT dflock_lock('k')")
    a.rows("CREATE TABLE t(x)")
    a.start("SELECT dflock_lock('k', 20)")
    server.await_waiters("k", 1)
    b.rows("INSERT INTO t VALUES (1)")
    holder.value("SELECT dflock_release('k')")
    a.finish()


def test_a_failed_lock_leaves_the_transaction_open(make_db, server):
    holder, a = make_db(server), make_db(server)
    holder.value("SELECT dflock_lock('k')")
    a.rows("CREATE TABLE t(x)")
    a.rows("BEGIN")
    a.rows("INSERT INTO t VALUES (1)")
    a.fails("SELECT dflock_lock('k', 0)", sqlstate="55P03")
    a.fails("INSERT INTO t SELECT dflock_lock('k', 0)", sqlstate="55P03")
    assert a.value("SELECT count(*) FROM t") == 1
    a.rows("COMMIT")


# --------------------------------------------------------------- hostile file

HOSTILE = {
    "view": ("CREATE VIEW v AS SELECT dflock_lock('victim') AS x", "SELECT * FROM v"),
    "trigger": ("CREATE TABLE t(x); CREATE TRIGGER r AFTER INSERT ON t BEGIN SELECT dflock_release_all(); END",
                "INSERT INTO t VALUES (1)"),
    "check": ("CREATE TABLE t(x CHECK (dflock_acquire(x)))", "INSERT INTO t VALUES ('victim')"),
    "check of the table": ("CREATE TABLE t(x, CHECK (\"DFLOCK_acquire\" (x)))", "INSERT INTO t VALUES ('victim')"),
    "check, riding on a call of ours": ("CREATE TABLE t(x CHECK (dflock_acquire('victim')))",
                                        "INSERT INTO t SELECT dflock_acquire('other')"),
    "check, by the integrity check": ("CREATE TABLE t(x CHECK (dflock_acquire('victim'))); INSERT INTO t VALUES (1)",
                                      "PRAGMA integrity_check"),
    "default": ("CREATE TABLE t(x, y DEFAULT (dflock_lock('victim')))", "INSERT INTO t(x) VALUES (1)"),
    "generated": ("CREATE TABLE t(x, y AS (dflock_lock(x))); INSERT INTO t(x) VALUES ('victim')", "SELECT * FROM t"),
    "index": ("CREATE TABLE t(x); CREATE INDEX i ON t(dflock_lock(x))", "INSERT INTO t VALUES (1)"),
    "partial index": ("CREATE TABLE t(x); CREATE INDEX i ON t(x) WHERE dflock_acquire(x)", "INSERT INTO t VALUES (1)"),
    "view over dflock_locks": ("CREATE VIEW v AS SELECT * FROM dflock_locks", "SELECT * FROM v"),
    "view over dflock_server_locks": ("CREATE VIEW v AS SELECT * FROM dflock_server_locks", "SELECT * FROM v"),
    "view over dflock_servers": ("CREATE VIEW v AS SELECT * FROM dflock_servers", "SELECT * FROM v"),
    "view over the guard": ("CREATE VIEW v AS SELECT * FROM dflock_close_guard", "SELECT * FROM v"),
    "trigger over a table of ours": ("CREATE TABLE t(x); CREATE TRIGGER r AFTER INSERT ON t BEGIN "
                                     "INSERT INTO t SELECT key FROM dflock_locks; END", "INSERT INTO t VALUES (1)"),
}


def hostile_file(path, schema):
    evil = sqlite3.connect(path)
    for name in ("dflock_lock", "dflock_acquire", "dflock_release_all"):
        evil.create_function(name, -1, lambda *a: 1, deterministic=True)
    evil.executescript("CREATE TABLE dflock_locks(key); CREATE TABLE dflock_server_locks(key);"
                       "CREATE TABLE dflock_servers(x); CREATE TABLE dflock_close_guard(x);")
    evil.executescript(schema)
    for name in ("dflock_locks", "dflock_server_locks", "dflock_servers", "dflock_close_guard"):
        evil.execute(f"DROP TABLE {name}")
    evil.close()


@pytest.mark.parametrize("driver", ["sqlite3", "apsw"])
@pytest.mark.parametrize("loaded", ["before the schema is read", "after"])
@pytest.mark.parametrize("how", HOSTILE)
def test_a_hostile_file_cannot_call_us(run_script, server, directory, how, loaded, driver):
    schema, victim = HOSTILE[how]
    path = directory / "hostile.db"
    hostile_file(path, schema)
    lines = run_script(f"""
        a, b = connect({str(path)!r}, load=False), connect()
        if {loaded == "after"}:
            a.rows("SELECT * FROM sqlite_schema")
        a.load()
        a.value("SELECT dflock_lock('mine')")
        try:
            print("rows", a.rows({victim!r}))
        except Error as error:
            print(error)
        print(b.rows("SELECT DISTINCT key FROM dflock_server_locks WHERE key <> 'other'"))
        """, servers=server, driver=driver)
    assert "unsafe use" in lines[0] or "non-deterministic functions prohibited" in lines[0], lines
    assert lines[1] == "[('mine',)]"


def test_a_table_whose_name_only_looks_like_ours(make_db, server):
    db = make_db(server)
    db.rows("CREATE TABLE dflock_locks_history(x CHECK (x <> 'dflock_'))")
    db.rows("INSERT INTO dflock_locks_history SELECT dflock_lock('k')")
    db.rows("UPDATE dflock_locks_history SET x = 1 WHERE (SELECT dflock_acquire('k2'))")


def test_a_file_may_shadow_the_tables_but_closing_still_gives_back(run_script, server, directory):
    path = directory / "shadow.db"
    evil = sqlite3.connect(path)
    evil.executescript("CREATE TABLE dflock_locks(key); CREATE TABLE dflock_close_guard(x);")
    evil.close()
    run_script(f"""
        a, b = connect({str(path)!r}), connect()
        assert a.rows("SELECT * FROM dflock_locks") == []
        a.value("SELECT dflock_lock('k')")
        assert a.value("SELECT dflock_is_held('k')") == 1
        cursor = a.raw.execute("SELECT 1 UNION SELECT 2")
        next(cursor)
        a.close()
        assert b.value("SELECT dflock_acquire('k', 10)") == 1
        """, servers=server)
