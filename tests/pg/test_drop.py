"""DROP DATABASE and DROP TABLESPACE make every process close its files: nobody's wait for a lock may hold them up."""

import os
import signal

import pytest

from lib.eventually import Stopwatch, eventually
from lib.under import patient
from pg.cluster import run
from pg.waiting import Background, await_free, await_queued

# What is far beyond a barrier's milliseconds, and far below any wait here.
SOON_S = 5


def waits(pg, watcher, count=3):
    """Backends that wait for a lock: in a function, in a procedure, in line."""
    holder = pg.session()
    holder.run("SELECT dflock_acquire('k')")
    sessions = [pg.session() for _ in range(count)]
    sessions[2].run("SELECT dflock_enqueue('k')")
    running = [Background(s, sql) for s, sql in zip(sessions, (
        "SELECT dflock_acquire('k', 'infinity')", "CALL dflock_take('k', 600)", "SELECT dflock_wait('k', 600)"))]
    await_queued(watcher, *(s.pid for s in sessions))
    return holder, running


def end(holder, running):
    """They wait still; then they get it one by one."""
    assert all(one.busy() for one in running)
    holder.run("SELECT dflock_release('k')")
    while running:
        one = eventually(lambda: next((r for r in running if not r.busy()), None), what="one of them has it")
        one.finish()
        one.session.run("SELECT dflock_release('k')")
        running.remove(one)


def tablespace(pg, session, name):
    """A tablespace that has been in use: its files were written, read, and dropped."""
    place = pg.own_directory(name)
    session.run(f"CREATE TABLESPACE {name} LOCATION '{place}'")
    session.run(f"CREATE TABLE in_{name} TABLESPACE {name} AS SELECT generate_series(1, 1000) AS i")
    session.run(f"DROP TABLE in_{name}")


def drops(session, name):
    """How long each drop takes, in seconds."""
    with Stopwatch() as space:
        session.run(f"DROP TABLESPACE {name}_space")
    with Stopwatch() as database:
        session.run(f"DROP DATABASE {name}_db")
    return space.s, database.s


@pytest.mark.every_version
@pytest.mark.parametrize("waiting", [False, True], ids=["idle", "waiting"])
def test_on_the_primary(waiting, pg, session, watcher, server):
    tablespace(pg, session, "a_space")
    session.run("CREATE DATABASE a_db")
    holder, running = waits(pg, watcher) if waiting else (None, [])
    session.run(f"SET statement_timeout = '{int(patient(30))}s'")
    space, database = drops(session, "a")
    assert space < patient(SOON_S) and database < patient(SOON_S)
    if waiting:
        end(holder, running)
    await_free(server)


@pytest.mark.every_version
def test_a_worker_that_stands_still_would_be_seen(pg, session, server, installation):
    """Both do wait for the worker, since version 15: what is measured above is not nothing."""
    tablespace(pg, session, "a_space")
    session.run("CREATE DATABASE a_db")
    session.run("SET statement_timeout = '1s'")
    worker = pg.await_worker()
    os.kill(worker, signal.SIGSTOP)
    try:
        if installation.major < 15:
            drops(session, "a")
        else:
            assert session.fails("DROP TABLESPACE a_space").sqlstate == "57014"
            assert session.fails("DROP DATABASE a_db").sqlstate == "57014"
    finally:
        os.kill(worker, signal.SIGCONT)
    if installation.major >= 15:
        session.run(f"SET statement_timeout = '{int(patient(30))}s'")
        drops(session, "a")


@pytest.mark.timeout(240)
@pytest.mark.every_version
@pytest.mark.parametrize("waiting", [False, True], ids=["idle", "waiting"])
def test_replayed_on_a_standby(waiting, pg, session, make_cluster, server, installation):
    with open(pg.data / "pg_hba.conf", "a", encoding="ascii") as hba:
        hba.write("local replication all trust\n")
    pg.reload()
    eventually(lambda: "received SIGHUP" in pg.log())
    tablespace(pg, session, "a_space")
    session.run("CREATE DATABASE a_db")
    elsewhere = pg.directory / "standby_space"

    def base_backup(target):
        run([installation.program("pg_basebackup"), "-h", pg.directory, "-p", pg.port, "-U", "postgres", "-D", target,
             "-R", "--checkpoint=fast", f"--tablespace-mapping={pg.directory / 'a_space'}={elsewhere}"])

    standby = make_cluster(server, data=base_backup, extension=False)
    there = standby.session()
    holder, running = waits(standby, there) if waiting else (None, [])
    drops(session, "a")
    target = session.value("SELECT pg_current_wal_lsn()")
    with Stopwatch() as took:
        eventually(lambda: there.value("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", target), deadline=patient(60))
    assert took.s < patient(SOON_S)
    assert there.value("SELECT count(*) FROM pg_tablespace WHERE spcname = 'a_space'") == 0
    if waiting:
        end(holder, running)
    await_free(server)
