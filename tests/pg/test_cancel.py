"""What ends a wait, how soon, and what it leaves behind: nothing of that lock, and every other one untouched."""

import os
import signal
import socket

import psycopg
import pytest

from lib.eventually import Stopwatch, eventually
from lib.under import patient
from pg.waiting import Background, await_free, await_queued

SOON_S = 0.5  # it is meant to be 0.1; the machine may be busy


@pytest.fixture
def holder(pg):
    """Somebody who has the lock that the others wait for."""
    session = pg.session()
    assert session.value("SELECT dflock_acquire('k')")
    return session


@pytest.fixture
def other(session):
    """A session that holds something else while it waits."""
    assert session.value("SELECT dflock_acquire('other')")
    return session


def check_left_behind(session, watcher, holder, server):
    """The wait is over in the view and at the server; the other lock is still there; the lock can be had again."""
    assert session.rows("SELECT dflock_is_held('k'), dflock_is_held('other')") == [(False, True)]
    # The session knows at once; what others see is the worker's, which may still have the cancel before it.
    eventually(lambda: watcher.rows("SELECT * FROM dflock_locks WHERE state = 'queued'") == [], deadline=SOON_S)
    server.await_waiters("k", 0)
    assert holder.value("SELECT dflock_release('k')")
    assert session.value("SELECT dflock_acquire('k', 5)")


@pytest.mark.parametrize("wait", ["SELECT dflock_acquire('k', 'infinity')", "SELECT dflock_lock('k', 60)",
                                  "SELECT dflock_xact_lock('k')", "CALL dflock_take('k', 60)"])
def test_cancel(pg, other, holder, watcher, server, wait):
    waiting = Background(other, wait)
    await_queued(watcher, other.pid)
    with Stopwatch() as took:
        watcher.run("SELECT pg_cancel_backend(%s)", other.pid)
        error = waiting.failure()
    assert error.sqlstate == "57014", error
    assert took.s < patient(SOON_S)
    check_left_behind(other, watcher, holder, server)


@pytest.mark.every_version
@pytest.mark.parametrize("setting,sqlstate", [("statement_timeout", "57014"), ("lock_timeout", "55P03")])
def test_timeouts_of_the_database(pg, other, holder, watcher, server, setting, sqlstate):
    other.run(f"SET {setting} = '300ms'")
    with Stopwatch() as took:
        error = other.fails("SELECT dflock_acquire('k', 30)")
    assert error.sqlstate == sqlstate, error
    assert 0.29 < took.s < patient(0.3 + SOON_S)
    other.run(f"RESET {setting}")
    check_left_behind(other, watcher, holder, server)


def test_lock_timeout_ends_a_wait_in_line_and_gives_the_place_up(pg, other, holder, watcher, server):
    assert other.value("SELECT dflock_enqueue('k')") == "queued"
    other.run("SET lock_timeout = '200ms'")
    assert other.fails("SELECT dflock_wait('k', 30)").sqlstate == "55P03"
    assert other.fails("SELECT dflock_wait('k', 30)").sqlstate == "55000"
    other.run("RESET lock_timeout")
    check_left_behind(other, watcher, holder, server)


def test_cancel_of_a_wait_in_line_gives_up_a_place_of_an_earlier_transaction(pg, other, holder, watcher, server):
    assert other.value("SELECT dflock_enqueue('k')") == "queued"
    assert other.value("SELECT dflock_wait('k', 0)") is False
    waiting = Background(other, "SELECT dflock_wait('k', 30)")
    eventually(lambda: watcher.value("SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND state = 'active' "
                                     "AND wait_event_type = 'Extension'", other.pid) == 1)
    watcher.run("SELECT pg_cancel_backend(%s)", other.pid)
    assert waiting.failure().sqlstate == "57014"
    assert other.value("SELECT dflock_cancel('k')") is False
    check_left_behind(other, watcher, holder, server)


def test_own_timeout_is_false_or_55P03_never_57014(pg, other, holder, watcher, server):
    with Stopwatch() as took:
        assert other.value("SELECT dflock_acquire('k', 0.3)") is False
    assert 0.29 < took.s < patient(0.3 + SOON_S)
    error = other.fails("SELECT dflock_lock('k', 0)")
    assert error.sqlstate == "55P03" and '"k"' in str(error), error
    assert other.fails("CALL dflock_take('k', 0.1)").sqlstate == "55P03"
    check_left_behind(other, watcher, holder, server)


@pytest.mark.every_version
def test_termination_and_a_killed_client(pg, other, holder, watcher, server):
    waiting = Background(other, "SELECT dflock_acquire('k', 60)")
    await_queued(watcher, other.pid)
    with Stopwatch() as took:
        watcher.run("SELECT pg_terminate_backend(%s)", other.pid)
        assert waiting.failure().sqlstate == "57P01"
    assert took.s < patient(SOON_S)
    server.await_waiters("k", 0)
    server.await_holders("other", 0)

    gone = pg.session()
    Background(gone, "SELECT dflock_acquire('k', 60)")
    await_queued(watcher, gone.pid)
    with socket.socket(fileno=os.dup(gone.connection.fileno())) as wire:
        wire.shutdown(socket.SHUT_RDWR)
    with Stopwatch() as took:
        eventually(lambda: not watcher.rows("SELECT 1 FROM pg_stat_activity WHERE pid = %s", gone.pid))
    assert took.s < patient(1)
    server.await_waiters("k", 0)
    assert holder.value("SELECT dflock_is_held('k')")


@pytest.mark.every_version
def test_exit_in_every_way_gives_everything_back(pg, server, watcher):
    ways = [lambda s: s.close(), lambda s: watcher.run("SELECT pg_terminate_backend(%s)", s.pid)]
    for leave in ways:
        session = pg.session()
        session.run("SELECT dflock_acquire('a'), dflock_sem_acquire('b', 3), dflock_enqueue('c')")
        session.run("BEGIN")
        session.run("SELECT dflock_xact_acquire('d')")
        assert server.holders("a") == 1
        leave(session)
        await_free(server)


@pytest.mark.every_version
def test_a_storm_of_cancels(pg, server, watcher):
    """Random cancels against random grants: nobody keeps what he was not told to have, nothing is left."""
    import random
    import threading
    import time
    rng = random.Random(7)
    sessions = [pg.session() for _ in range(6)]
    end = time.monotonic() + 4
    counts = {"granted": 0, "canceled": 0, "busy": 0}
    faults = []

    def work(session, seed):
        mine = random.Random(seed)
        while time.monotonic() < end:
            key = f"storm{mine.randrange(2)}"
            try:
                got = session.value(f"SELECT dflock_acquire('{key}', {mine.choice([0, 0.05, 5])})")
                counts["granted" if got else "busy"] += 1
            except psycopg.errors.QueryCanceled:
                counts["canceled"] += 1
            for _ in range(20):  # a cancel that came late hits the next statement
                try:
                    held = session.value(f"SELECT dflock_is_held('{key}')")
                    if held:
                        session.run(f"SELECT dflock_release('{key}')")
                    elif not session.value(f"SELECT NOT dflock_is_held('{key}')"):
                        faults.append(key)
                    break
                except psycopg.errors.QueryCanceled:
                    counts["canceled"] += 1

    threads = [threading.Thread(target=work, args=(s, i)) for i, s in enumerate(sessions)]
    for thread in threads:
        thread.start()
    while time.monotonic() < end:
        watcher.run("SELECT pg_cancel_backend(%s)", rng.choice(sessions).pid)
        time.sleep(rng.random() * 0.01)
    for thread in threads:
        thread.join(patient(30))
        assert not thread.is_alive()
    assert not faults
    assert counts["granted"] > 20 and counts["canceled"] > 20, counts
    for session in sessions:
        while True:
            try:
                session.run("SELECT dflock_release_all()")
                break
            except psycopg.errors.QueryCanceled:
                continue
    await_free(server)
    eventually(lambda: watcher.rows("SELECT * FROM dflock_locks") == [], what="no entry is left")


# Gives up each request just when the worker comes to it, and asks the next one at once. A scalar expression is not
# interrupted between its functions, so the cancel meets the wait.
HASTY = """
CREATE FUNCTION hasty(key text, seconds float8) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
    until timestamptz := clock_timestamp() + make_interval(secs => seconds);
    canceled int := 0;
BEGIN
    WHILE clock_timestamp() < until LOOP
        BEGIN
            PERFORM pg_cancel_backend(pg_backend_pid()) AND dflock_acquire(key, 0);
            PERFORM dflock_release(key);
        EXCEPTION WHEN query_canceled THEN
            canceled := canceled + 1;
        END;
        ASSERT dflock_acquire(key, 20), 'not granted after a cancelled acquire';
        BEGIN
            PERFORM pg_cancel_backend(pg_backend_pid()) AND dflock_release(key);
        EXCEPTION WHEN query_canceled THEN
            canceled := canceled + 1;
        END;
        ASSERT NOT dflock_is_held(key), 'held after a cancelled release';
        ASSERT dflock_acquire(key, 20), 'not granted after a cancelled release';
        ASSERT dflock_release(key), 'not held by the worker';
    END LOOP;
    RETURN canceled;
END $$"""


@pytest.mark.every_version
def test_the_next_request_follows_a_cancel_at_once(pg, server, watcher):
    """A request that comes while the one before it is being given up is neither lost nor done half."""
    watcher.run(HASTY)
    hasty = [Background(pg.session(), "SELECT hasty(%s, 3)", f"h{i}") for i in range(6)]
    for one in hasty:
        ((canceled,),) = one.finish(patient(30))
        assert canceled > 10
    await_free(server)


def test_a_grant_is_given_back_when_its_line_in_the_log_is_interrupted(make_cluster, server):
    """Whoever has waited long says so in the log, and a cancel that has come meanwhile is heard there first."""
    pg = make_cluster(server, log_lock_waits="on", deadlock_timeout="100ms")
    holder, other, watcher = pg.session(), pg.session(), pg.session()
    assert holder.value("SELECT dflock_acquire('k')")
    waiting = Background(other, "SELECT dflock_acquire('k', 60)")
    eventually(lambda: f'process {other.pid} still waiting for dflockd lock "k"' in pg.log())
    os.kill(other.pid, signal.SIGSTOP)
    try:
        assert holder.value("SELECT dflock_release('k')")
        eventually(lambda: watcher.rows("SELECT pid FROM dflock_locks WHERE state = 'held'") == [(other.pid,)])
        watcher.run("SELECT pg_cancel_backend(%s)", other.pid)
    finally:
        os.kill(other.pid, signal.SIGCONT)
    assert waiting.failure().sqlstate == "57014"
    assert other.value("SELECT dflock_is_held('k')") is False
    await_free(server)
    assert other.value("SELECT dflock_acquire('k', 5)")


@pytest.mark.every_version
def test_worker_is_asked_to_cancel(pg, session, server):
    """pg_cancel_backend on the worker: a line in the log, nothing lost."""
    assert session.value("SELECT dflock_acquire('k')")
    pid = pg.await_worker()
    session.run("SELECT pg_cancel_backend(%s)", pid)
    eventually(lambda: "canceling statement due to user request" in pg.log())
    assert session.value("SELECT dflock_assert_held('k', true)")
    assert pg.worker_pid() == pid
    os.kill(pid, signal.SIGINT)
    assert session.value("SELECT dflock_acquire('k2')")
