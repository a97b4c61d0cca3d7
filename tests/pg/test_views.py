"""What can be looked at: in bounded memory, by anybody, and whatever a lock server answers."""

import pathlib
import re

import pytest

from lib.under import INSTRUMENTED, fewer
from pg.waiting import Background, await_queued


def private_peak(pid):
    """Bytes of its own that a process had at most; what it shares only grows."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    high, file, shared = (int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) << 10 for name in ("VmHWM", "RssFile", "RssShmem"))
    return high - file - shared


@pytest.mark.every_version
def test_many_locks_are_shown_in_little_memory(make_cluster, server):
    count = fewer(8000)
    pg = make_cluster(server)
    session, watcher = pg.session(), pg.session()
    session.run("SELECT count(*) FROM generate_series(1, %s) AS i WHERE dflock_acquire('k' || i, 0)", count)
    watcher.run("SET work_mem = 64")
    watcher.run("SELECT * FROM dflock_locks LIMIT 0")
    before = private_peak(watcher.pid)
    assert watcher.value("SELECT count(*) FROM dflock_locks WHERE state = 'held'") == count
    grown = private_peak(watcher.pid) - before
    print(f"{count} locks: {grown >> 10} kB")
    assert grown < 4 << 20 or INSTRUMENTED


@pytest.mark.every_version
def test_who_blocks_whom(pg, session, watcher):
    """Among many, and several holders of one key; for those who see their own rows only, too."""
    other = pg.session()
    other.run("SELECT count(*) FROM generate_series(1, 300) AS i WHERE dflock_acquire('k' || i, 0)")
    assert other.value("SELECT dflock_sem_acquire('s', 3)") and other.value("SELECT dflock_sem_acquire('s', 3)")
    assert watcher.value("SELECT dflock_sem_acquire('s', 3)")
    watcher.run("CREATE ROLE nobody_much LOGIN")
    plain = pg.session(user="nobody_much")
    assert plain.value("SELECT dflock_enqueue('k7')") == "queued"
    assert plain.value("SELECT dflock_sem_enqueue('s', 3)") == "queued"
    waiting = Background(session, "SELECT dflock_acquire('k7', 30)")
    await_queued(watcher, session.pid)
    blocked = "SELECT key, pid, blocked_by_pids FROM dflock_locks WHERE blocked_by_pids IS NOT NULL"
    mine = {("k7", plain.pid, (other.pid,)), ("s", plain.pid, tuple(sorted((other.pid, watcher.pid))))}

    def seen_by(who):
        return {(key, pid, tuple(by)) for key, pid, by in who.rows(blocked)}
    assert seen_by(plain) == mine
    assert seen_by(watcher) == mine | {("k7", session.pid, (other.pid,))}
    assert plain.value("SELECT count(*) FROM dflock_locks") == 2
    plain.close()
    other.close()
    assert waiting.finish() == [(True,)]
