"""The background worker: its death, its absence, its settings, the server's starts and ends."""

import errno
import os
import signal
import time

import psycopg
import pytest

from lib.eventually import Stopwatch, eventually
from lib.under import patient
from pg.cluster import run, unprivileged
from pg.waiting import Background, await_free, await_queued, locks


@pytest.mark.every_version
def test_terminated_with_fifty_sessions_holding(make_cluster, server):
    """Each is told at its next use; everything works again with the next worker."""
    pg = make_cluster(server, max_connections=70)
    sessions = [pg.session() for _ in range(50)]
    for i, session in enumerate(sessions):
        assert session.value("SELECT dflock_acquire(%s)", f"k{i}")
    waiter = pg.session()
    waiting = Background(waiter, "SELECT dflock_acquire('k0', 60)")
    in_line = pg.session()
    assert in_line.value("SELECT dflock_enqueue('k1')") == "queued"
    counting = pg.session()
    counting.run("BEGIN")
    counting.run("SELECT dflock_xact_lock('counts')")
    watcher = pg.session()
    await_queued(watcher, waiter.pid)
    old = pg.worker_pid()
    with Stopwatch() as took:
        watcher.run("SELECT pg_terminate_backend(%s)", old)
        assert waiting.failure().sqlstate == "LK006"
    assert took.s < patient(1)
    assert counting.fails("COMMIT").sqlstate == "40001"
    assert sessions[0].value("SELECT dflock_is_held('k0')") is False
    pg.await_worker(other_than=old)
    assert watcher.value("SELECT count(*) FROM dflock_locks WHERE state = 'lost' AND scope = 'session'") == 51
    assert in_line.fails("SELECT dflock_wait('k1')").sqlstate == "LK011"
    assert in_line.fails("SELECT dflock_wait('k1')").sqlstate == "55000"
    for i, session in enumerate(sessions):
        if i % 3 == 0:
            assert session.fails(f"SELECT dflock_assert_held('k{i}')").sqlstate == "40001"
        elif i % 3 == 1:
            error = session.fails(f"SELECT dflock_lock('k{i}')")
            assert error.sqlstate == "40001" and "worker ended" in str(error)
        else:
            assert session.value(f"SELECT dflock_release('k{i}')") is False
            continue
        assert session.value(f"SELECT dflock_acquire('k{i}', 5)")
        assert session.value("SELECT dflock_release_all()") == 1
    assert watcher.rows("SELECT key FROM dflock_locks WHERE state = 'lost'") == []
    await_free(server)


@pytest.mark.every_version
def test_killed_worker_restarts_the_cluster_with_all_locks_free(pg, session, server):
    session.run("SELECT dflock_acquire('k'), dflock_enqueue('q')")
    os.kill(pg.await_worker(), signal.SIGKILL)
    await_free(server, 3)
    pg.await_ready()
    pg.await_worker()
    again = pg.session()
    assert again.rows("SELECT * FROM dflock_locks") == []
    assert again.value("SELECT dflock_acquire('k')")


@pytest.mark.every_version
def test_stopped_past_the_lease(pg, session, server, watcher):
    """COMMIT is refused, a check says no, and a grant that came meanwhile goes to nobody who gave up."""
    session.run("BEGIN")
    session.run("SELECT dflock_xact_acquire('k', 0, 1)")
    held = pg.session()
    held.run("SELECT dflock_acquire('h', 0, 1)")
    blocker = pg.session()
    blocker.run("SELECT dflock_acquire('w')")
    waiter = pg.session()
    waiting = Background(waiter, "SELECT dflock_acquire('w', 60)")
    await_queued(watcher, waiter.pid)
    # Another client of the server takes over what the stopped worker's sessions lose.
    worker = pg.await_worker()
    os.kill(worker, signal.SIGSTOP)
    try:
        eventually(lambda: not held.value("SELECT dflock_is_held('h')"), deadline=5)
        assert held.fails("SELECT dflock_assert_held('h')").sqlstate == "40001"
        assert session.fails("COMMIT").sqlstate == "40001"
        watcher.run("SELECT pg_cancel_backend(%s)", waiter.pid)
        assert waiting.failure().sqlstate == "57014"
        asking = Background(pg.session(), "SELECT dflock_acquire('late')")
        eventually(lambda: watcher.rows("SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Extension'",
                                        asking.session.pid))
        watcher.run("SELECT pg_cancel_backend(%s)", asking.session.pid)
        assert asking.failure().sqlstate == "57014"
    finally:
        os.kill(worker, signal.SIGCONT)
    assert blocker.value("SELECT dflock_release_all()") == 1
    eventually(lambda: locks(watcher, "key IN ('w', 'late', 'k') AND state <> 'lost'") == [])
    eventually(lambda: not server.holders("w") and not server.holders("late") and not server.holders("k"))
    assert waiter.value("SELECT dflock_is_held('w')") is False


@pytest.mark.every_version
def test_release_without_waiting_asks_nobody(pg, session, server, watcher):
    """With release_wait off a session goes on at once, and who asks next finds the lock free."""
    session.run("SET dflockd.release_wait = off")
    assert session.value("SELECT dflock_acquire('k', 0) AND dflock_sem_acquire('s', 1, 0) AND dflock_acquire('again', 0)")
    worker = pg.await_worker()
    os.kill(worker, signal.SIGSTOP)
    try:
        assert session.value("SELECT dflock_release('k') AND dflock_sem_release('s') AND dflock_release('again')")
        assert session.value("SELECT dflock_is_held('k') OR dflock_is_held('s')") is False
        assert {state for state, in watcher.rows("SELECT state FROM dflock_locks")} == {"releasing"}
        asking = Background(session, "SELECT dflock_acquire('again', 0)")
    finally:
        os.kill(worker, signal.SIGCONT)
    assert asking.finish() == [(True,)]
    assert watcher.value("SELECT dflock_acquire('k', 0) AND dflock_sem_acquire('s', 1, 0)")
    # Nothing to give back is still told.
    assert session.value("SELECT dflock_release('k')") is False
    assert "is not held by this session" in session.notices[-1]


def test_slot_is_used_again_while_the_old_grant_arrives(pg, server, make_proxy, watcher):
    """Sessions that leave in the middle of a request; the next one in their slot gets its own answers only."""
    proxy = make_proxy(server)
    pg.reload({"dflockd.servers": str(proxy)})
    eventually(lambda: watcher.rows("SELECT address FROM dflock_servers WHERE state <> 'old'") == [(str(proxy),)])
    assert watcher.value("SELECT dflock_acquire('warm') AND dflock_release('warm')")
    for i in range(40):
        proxy.delay(down=0.02 if i % 2 else 0.005)
        leaving = pg.session()
        Background(leaving, f"SELECT dflock_acquire('old{i}')")
        with psycopg.connect(pg.dsn(), autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s)", [leaving.pid])
        following = pg.session()
        assert following.rows(f"SELECT dflock_acquire('new{i}'), dflock_is_held('new{i}'), dflock_is_held('old{i}')") == [
            (True, True, False)]
        assert following.rows("SELECT key FROM dflock_locks WHERE pid = pg_backend_pid() AND state = 'held'") == [(f"new{i}",)]
        following.close()
    proxy.delay()
    await_free(server)


def test_an_entry_used_again_says_nothing_of_the_old_hold(make_cluster, server):
    """More lost holds than there are entries: the oldest one's entry is another session's hold now."""
    pg = make_cluster(server, dflockd__max_locks=2)
    loser, other, watcher = pg.session(), pg.session(), pg.session()
    entries = 2 + 64
    for i in range(entries):
        assert loser.value(f"SELECT dflock_acquire('k{i}')")
        assert other.value(f"SELECT dflock_release('k{i}', %s)", loser.value(f"SELECT dflock_token('k{i}')"))
    eventually(lambda: watcher.value("SELECT count(*) FROM dflock_locks WHERE state = 'lost'") == entries)
    assert other.value("SELECT dflock_acquire('new')")
    assert watcher.value("SELECT count(*) FROM dflock_locks WHERE state = 'lost'") == entries - 1
    assert loser.value("SELECT dflock_is_held('k0')") is False
    assert loser.fails("SELECT dflock_assert_held('k0')").sqlstate == "40001"
    assert locks(watcher, "state = 'held'") == [("new", "held")]


@pytest.mark.every_version
def test_reload(pg, session, server, make_server, watcher):
    """A new list of servers is for new requests; what is held stays where it is, and moves no key."""
    session.run("SELECT dflock_acquire('k')")
    second = make_server()
    pg.reload({"dflockd.servers": str(second)})
    eventually(lambda: {row[0] for row in watcher.rows("SELECT address FROM dflock_servers WHERE state <> 'old'")}
               == {str(second)})
    assert session.value("SELECT dflock_acquire('new')") and second.holders("new") == 1
    assert session.value("SELECT dflock_assert_held('k', true)")
    other = pg.session()
    assert other.fails("SELECT dflock_acquire('k')").sqlstate == "55000"
    assert watcher.rows("SELECT state FROM dflock_servers WHERE address = %s", str(server)) == [("old",)]
    assert session.value("SELECT dflock_release('k')")
    assert other.value("SELECT dflock_acquire('k')") and second.holders("k") == 1
    # A value that makes no sense is logged, and the old one stays.
    pg.reload({"dflockd.servers": "nonsense:0"})
    eventually(lambda: "invalid value for parameter \"dflockd.servers\"" in pg.log())
    pg.reload({"dflockd.servers": str(second), "dflockd.tls": "on", "dflockd.tls_ca": "/nowhere/ca.pem"})
    eventually(lambda: "new settings are not used" in pg.log() and "/nowhere/ca.pem" in pg.log())
    assert other.value("SELECT dflock_assert_held('k', true) AND dflock_acquire('k2')")


@pytest.mark.every_version
def test_a_cancel_takes_no_reload_away(pg, session, watcher, make_server):
    """It arrives while the worker reads the settings, and is heard where that writes to the log."""
    second = make_server()
    worker = pg.worker_pid()
    pipe = pg.directory / "pipe"
    os.mkfifo(pipe)
    pipe.chmod(0o644)
    pg.configure({"include": str(pipe), "include_if_exists": "nowhere.conf", "dflockd.servers": str(second)})
    os.kill(worker, signal.SIGHUP)
    with eventually(lambda: open_pipe(pipe)):
        # From now on there is nothing to wait for in its place.
        pipe.rename(pg.directory / "old_pipe")
        pipe.write_text("")
        pipe.chmod(0o644)
        assert watcher.value("SELECT pg_cancel_backend(%s)", worker)
    eventually(lambda: "canceling statement" in pg.log())
    eventually(lambda: watcher.rows("SELECT address FROM dflock_servers") == [(str(second),)], deadline=5)
    assert session.value("SELECT dflock_acquire('k')") and second.holders("k") == 1


def open_pipe(path):
    """Its end to write to, once somebody reads; else None."""
    try:
        return open(os.open(path, os.O_WRONLY | os.O_NONBLOCK), "w", encoding="utf-8")
    except OSError as error:
        assert error.errno == errno.ENXIO
        return None


@pytest.mark.every_version
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["fast", "immediate"])
def test_shutdown_frees_everything(make_cluster, server, how):
    pg = make_cluster(server, max_connections=120)
    holder = pg.session()
    holder.run("SELECT dflock_acquire('k'), dflock_sem_acquire('s', 2)")
    waiting = [Background(pg.session(), "SELECT dflock_acquire('k', 'infinity')") for _ in range(100)]
    server.await_waiters("k", 100)
    with Stopwatch() as took:
        pg.shut_down(how)
    assert took.s < patient(8)
    await_free(server, 3)
    for one in waiting:
        assert isinstance(one.failure(), psycopg.OperationalError)
    pg.start()
    assert pg.session().value("SELECT dflock_acquire('k', 5)")


def test_restart_with_a_prepared_neighbour(pg, session, server):
    """A fast restart: sessions that held are gone, their releases have been answered."""
    session.run("SELECT dflock_acquire('k')")
    pg.restart()
    assert server.holders("k") == 0
    assert pg.session().value("SELECT dflock_acquire('k', 0)")
    assert "PANIC" not in pg.log()


@pytest.mark.every_version
def test_not_preloaded(make_cluster, server):
    """CREATE EXTENSION and pure functions work; the rest says which line to add."""
    pg = make_cluster(preload=False)
    session = pg.session()
    for sql in ("SELECT dflock_acquire('k')", "SELECT dflock_is_held('k')", "SELECT dflock_release_all()",
                "CALL dflock_take('k')", "SELECT * FROM dflock_locks", "SELECT * FROM dflock_servers"):
        error = session.fails(sql)
        assert error.sqlstate == "LK006", error
        assert "shared_preload_libraries = 'dflockd'" in error.diag.message_hint
    assert session.value("SELECT dflock_token_fence('00000000000000070000000000000000')") == 7
    assert session.value("SELECT dflock_version() LIKE 'dflockd %%'")
    assert session.fails("SELECT dflock_acquire(NULL)").sqlstate == "22004"
    session.run("DISCARD ALL")


def test_no_worker_slot_left(make_cluster, server):
    """Each session gives a worker time to start: after a long recovery both start at the same moment."""
    pg = make_cluster(server, max_worker_processes=0)
    for _ in range(2):
        session = pg.session()
        began = time.monotonic()
        error = session.fails("SELECT dflock_acquire('k')")
        assert error.sqlstate == "LK006" and "max_worker_processes" in error.diag.message_hint
        assert time.monotonic() - began >= 1.5


def test_single_user_mode(pg, server):
    pg.shut_down()
    done = run([pg.installation.program("postgres"), "--single", "-D", pg.data, "postgres"],
               input="SELECT dflock_acquire('k');\n")
    assert "single-user mode" in done.stdout
    assert unprivileged().pw_uid != 0


@pytest.mark.every_version
def test_standby_and_promotion(pg, session, server, make_cluster, processes, installation):
    """A hot standby locks, its worker survives promotion, and dropped databases are replayed without delay."""
    with open(pg.data / "pg_hba.conf", "a", encoding="ascii") as hba:
        hba.write("local replication all trust\n")
    pg.reload()

    def base_backup(target):
        run([installation.program("pg_basebackup"), "-h", pg.directory, "-p", pg.port, "-U", "postgres", "-D", target,
             "-R", "--checkpoint=fast"])

    eventually(lambda: "received SIGHUP" in pg.log())
    session.run("CREATE DATABASE d")
    standby = make_cluster(server, data=base_backup, extension=False)
    there = standby.session()
    assert there.value("SELECT pg_is_in_recovery()")
    there.run("SELECT dflock_acquire('k')")
    assert session.value("SELECT dflock_acquire('k', 0)") is False
    there.run("BEGIN READ ONLY")
    assert there.value("SELECT dflock_xact_acquire('x')")
    there.run("COMMIT")
    worker = standby.worker_pid()
    session.run("DROP DATABASE d")
    target = session.value("SELECT pg_current_wal_lsn()")
    with Stopwatch() as took:
        eventually(lambda: there.value("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", target))
    assert took.s < patient(5)
    there.run("SELECT pg_promote()")
    assert not there.value("SELECT pg_is_in_recovery()")
    assert standby.worker_pid() == worker
    assert there.value("SELECT dflock_assert_held('k', true)")
    there.close()
    assert session.value("SELECT dflock_acquire('k', 5)")


def test_postmaster_killed(pg, session, server):
    session.run("SELECT dflock_acquire('k')")
    pg.process.kill()
    await_free(server, 5)


@pytest.mark.every_version
def test_worker_is_seen(pg, session, watcher):
    (row,) = watcher.rows("SELECT wait_event_type, wait_event, state FROM pg_stat_activity "
                          "WHERE backend_type = 'dflockd worker'")
    expected = "DflockdWorkerMain" if pg.installation.major >= 17 else "Extension"
    assert row[:2] == ("Extension", expected)
    assert watcher.rows("SELECT state, since, round_trip_ms FROM dflock_servers")


def test_the_first_statement_of_all_waits_for_the_worker(make_cluster, server):
    """The worker may still be making its tables when sessions begin; that is not a worker that has ended."""
    pg = make_cluster(server, dflockd__max_locks=1000000, shared_buffers="1MB")
    for _ in range(10):
        pg.shut_down()
        pg.start()
        session = pg.session()
        assert session.value("SELECT dflock_acquire('k')")
        session.close()
