"""Commits that are refused, holds that live on, waits without a snapshot."""

import pytest

from lib.eventually import Stopwatch, always, eventually
from lib.under import fewer, patient
from pg.waiting import Background, await_free, await_queued, locks


def break_server(server):
    """The server forgets everything."""
    server.restart()


@pytest.mark.every_version
@pytest.mark.parametrize("how", ["explicit", "implicit", "procedure", "assert"])
def test_commit_is_refused_when_the_lock_is_lost(pg, session, server, watcher, how):
    session.run("CREATE TABLE t (id int)")
    session.run("CREATE PROCEDURE p() LANGUAGE plpgsql AS $$ BEGIN PERFORM dflock_xact_lock('k'); INSERT INTO t VALUES (1); "
                "PERFORM pg_sleep(1.5); COMMIT; END $$")
    if how == "explicit":
        session.run("BEGIN")
        session.run("SELECT dflock_xact_lock('k')")
        session.run("INSERT INTO t VALUES (1)")
        break_server(server)
        eventually(lambda: not session.value("SELECT dflock_is_held('k')"))
        error = session.fails("COMMIT")
    elif how == "assert":
        session.run("SELECT dflock_lock('k')")
        session.run("BEGIN")
        session.run("SELECT dflock_assert_held('k')")
        session.run("INSERT INTO t VALUES (1)")
        break_server(server)
        eventually(lambda: not session.value("SELECT dflock_is_held('k')"))
        error = session.fails("COMMIT")
    else:
        sql = "CALL p()" if how == "procedure" else \
            "WITH l AS MATERIALIZED (SELECT dflock_xact_lock('k') AS f), w AS (SELECT pg_sleep(1.5)) " \
            "INSERT INTO t SELECT 1 FROM l, w"
        running = Background(session, sql)
        eventually(lambda: locks(watcher, "key = 'k' AND state = 'held'"))
        break_server(server)
        error = running.failure()
    assert error.sqlstate == "40001", error
    assert '"k" was lost' in str(error)
    assert watcher.value("SELECT count(*) FROM t") == 0


def test_loss_is_told_once_and_then_forgotten(pg, session, server):
    session.run("SELECT dflock_acquire('k'), dflock_acquire('seen')")
    server.restart()
    eventually(lambda: not session.value("SELECT dflock_is_held('k')"))
    assert session.rows("SELECT dflock_token('k'), dflock_lease('k'), dflock_fence('k')") == [(None, None, None)]
    assert session.rows("SELECT key, state, last_error IS NOT NULL FROM dflock_locks ORDER BY key") == [
        ("k", "lost", True), ("seen", "lost", True)]
    # Told by the first acquire, carried out by the second.
    assert session.fails("SELECT dflock_acquire('k')").sqlstate == "40001"
    assert session.value("SELECT dflock_acquire('k')")
    # Told by assert_held, so the next acquire is carried out.
    assert session.fails("SELECT dflock_assert_held('seen')").sqlstate == "40001"
    assert session.fails("SELECT dflock_renew('seen')").sqlstate == "40001"
    assert session.value("SELECT dflock_acquire('seen')")
    assert session.value("SELECT dflock_release_all()") == 2
    # Never held is another answer.
    assert session.fails("SELECT dflock_assert_held('k')").sqlstate == "55000"


def test_release_of_a_lost_hold_is_false_and_forgets_it(pg, session, server):
    session.run("SELECT dflock_acquire('k'), dflock_sem_acquire('s', 2)")
    server.restart()
    eventually(lambda: not session.value("SELECT dflock_is_held('k')"))
    assert session.value("SELECT dflock_release('k')") is False
    assert session.notices[-1].startswith('WARNING: lock "k" was lost'), session.notices
    assert session.fails("SELECT dflock_assert_held('k')").sqlstate == "55000"
    assert session.value("SELECT dflock_release_all()") == 0
    assert session.rows("SELECT * FROM dflock_locks") == []


@pytest.mark.every_version
def test_a_loss_that_commit_has_told_is_not_told_again(pg, session, server):
    """Not even when the lost lock's token was released in between, which is false."""
    assert session.value("SELECT dflock_acquire('k', 0)")
    token = session.value("SELECT dflock_token('k')")
    session.run("BEGIN")
    assert session.value("SELECT dflock_assert_held('k')")
    assert pg.session().value("SELECT dflock_release('k', %s)", token)
    assert session.fails("COMMIT").sqlstate == "40001"
    assert session.value("SELECT dflock_release('k', %s)", token) is False
    assert session.value("SELECT dflock_acquire('k', 0)")
    assert session.value("SELECT dflock_release('k')")
    await_free(server)


@pytest.mark.every_version
def test_released_by_token_from_another_session(pg, session, server):
    token = session.value("SELECT dflock_lock('k') IS NOT NULL") and session.value("SELECT dflock_token('k')")
    other = pg.session()
    assert other.value("SELECT dflock_release('k', %s)", token)
    assert session.value("SELECT dflock_is_held('k')") is False
    error = session.fails("SELECT dflock_assert_held('k')")
    assert error.sqlstate == "40001" and "released by token" in str(error)
    # A transaction's lock is nobody's to release.
    session.run("BEGIN")
    session.run("SELECT dflock_xact_lock('x')")
    token = session.value("SELECT dflock_token('x')")
    assert other.value("SELECT dflock_release('x', %s)", token) is False
    assert other.notices
    session.run("COMMIT")
    await_free(server)


@pytest.mark.timeout(300)
def test_commit_is_seen_by_the_next_session_ten_thousand_times(pg, session, server):
    """After COMMIT the lock is free for every session of the cluster, at once."""
    other = pg.session()
    for i in range(fewer(10000)):
        one, two = (session, other) if i % 2 else (other, session)
        one.run("DO $$ BEGIN IF NOT dflock_xact_acquire('k', 0) THEN RAISE 'not free: %', " + str(i) + "; END IF; END $$")
        assert two.value("SELECT dflock_acquire('k', 0) AND dflock_release('k')"), i


def test_a_wait_longer_than_the_lease_ends_in_a_held_lock(pg, session, server, watcher):
    assert session.value("SELECT dflock_acquire('k', 0, 2)")
    other = pg.session()
    waiting = Background(other, "SELECT dflock_acquire('k', 60, 2)")
    await_queued(watcher, other.pid)
    always(lambda: session.value("SELECT dflock_is_held('k')"), 3.5)
    session.run("SELECT dflock_release('k')")
    assert waiting.finish() == [(True,)]
    always(lambda: other.value("SELECT dflock_assert_held('k')"), 3.5)
    assert other.value("SELECT renewals > 0 FROM dflock_locks WHERE pid = pg_backend_pid()")


@pytest.mark.every_version
def test_views_say_who_waits_for_whom(pg, session, server, watcher):
    session.run("SELECT dflock_acquire('k')")
    other = pg.session()
    Background(other, "SELECT dflock_acquire('k', 60)")
    await_queued(watcher, other.pid)
    assert watcher.rows("SELECT pid, state, blocked_by_pids FROM dflock_locks ORDER BY state") == [
        (session.pid, "held", None), (other.pid, "queued", [session.pid])]
    assert watcher.rows("SELECT key, holders, waiters, held_by_pid FROM dflock_server_locks") == [("k", 1, 1, session.pid)]
    watcher.run("CREATE ROLE plain LOGIN")
    plain = pg.session(user="plain")
    assert plain.rows("SELECT * FROM dflock_locks") == []
    watcher.run("GRANT pg_monitor TO plain")
    assert len(plain.rows("SELECT * FROM dflock_locks")) == 2


def test_long_waits_are_logged(make_cluster, server):
    pg = make_cluster(server, log_lock_waits="on", deadlock_timeout="100ms")
    session, other, watcher = pg.session(), pg.session(), pg.session()
    session.run("SELECT dflock_acquire('k')")
    waiting = Background(other, "SELECT dflock_acquire('k', 60)")
    await_queued(watcher, other.pid)
    eventually(lambda: f'process {other.pid} still waiting for dflockd lock "k"' in pg.log())
    session.run("SELECT dflock_release('k')")
    waiting.finish()
    eventually(lambda: f'process {other.pid} acquired dflockd lock "k"' in pg.log())


@pytest.mark.every_version
def test_take_waits_without_a_snapshot(pg, session, server, watcher):
    session.run("SELECT dflock_acquire('k'), dflock_acquire('k2')")
    other, third = pg.session(), pg.session()
    other.run("CREATE TABLE t (id int)")
    taking = Background(other, "CALL dflock_take('k', 60)")
    in_do = Background(third, "DO $$ BEGIN CALL dflock_take('k2', 60); PERFORM count(*) FROM t; END $$")
    await_queued(watcher, other.pid, third.pid)
    xmins = "SELECT backend_xmin FROM pg_stat_activity WHERE pid IN (%s, %s)"
    eventually(lambda: watcher.rows(xmins, other.pid, third.pid) == [(None,), (None,)])
    with Stopwatch() as took:
        watcher.run("CREATE INDEX CONCURRENTLY ON t (id)")
    assert took.s < patient(5)
    assert taking.busy() and in_do.busy()
    session.run("SELECT dflock_release_all()")
    taking.finish()
    in_do.finish()
    assert other.value("SELECT dflock_is_held('k')") and third.value("SELECT dflock_is_held('k2')")


@pytest.mark.every_version
def test_drop_database_is_not_delayed(pg, session, server, watcher):
    """The worker and waiting backends take part in the server's barriers."""
    session.run("SELECT dflock_acquire('k')")
    other = pg.session()
    waiting = Background(other, "SELECT dflock_acquire('k', 60)")
    await_queued(watcher, other.pid)
    watcher.run("CREATE DATABASE d")
    watcher.run("SET statement_timeout = '20s'")
    with Stopwatch() as took:
        watcher.run("DROP DATABASE d")
    assert took.s < patient(5)
    assert waiting.busy()


def test_another_encoding(pg, session, server, watcher):
    """A key that a database or client cannot show is shown escaped, and never makes a view fail."""
    watcher.run("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    session.run("SELECT dflock_acquire('smile-😀'), dflock_acquire('accent-é')")
    latin = pg.session(dbname="latin")
    latin.run("CREATE EXTENSION dflockd")
    expected = [("accent-é",), ("smile-\\ud83d\\ude00",)]
    assert latin.rows("SELECT key FROM dflock_locks ORDER BY key") == expected
    assert latin.rows("SELECT key FROM dflock_server_locks ORDER BY key") == expected
    # One key, whatever the encoding it is written in.
    assert latin.value("SELECT dflock_acquire('accent-é', 0)") is False
    assert session.value("SELECT dflock_release('accent-é')")
    assert latin.value("SELECT dflock_acquire('accent-é', 0)")
    error = latin.fails("SELECT dflock_lock('accent-é')")
    assert error.sqlstate == "55006" and "accent-é" in str(error)


@pytest.mark.every_version
def test_a_parallel_worker_takes_no_lock(pg, session, server):
    """It would end with the worker, in the middle of the query that was told that it has it."""
    forced = "debug_parallel_query" if pg.installation.major >= 16 else "force_parallel_mode"
    session.run("CREATE FUNCTION wrapped() RETURNS boolean LANGUAGE plpgsql PARALLEL SAFE AS "
                "$$ BEGIN RETURN dflock_acquire('k'); END $$")
    session.run(f"SET {forced} = on")
    error = session.fails("SELECT wrapped()")
    assert error.sqlstate == "0A000" and "PARALLEL SAFE" in error.diag.message_hint, error
    # What is marked as it should be stays in the session.
    assert session.value("SELECT dflock_acquire('k')") and session.value("SELECT dflock_is_held('k')")
