"""What can be looked at: in bounded memory, by anybody, and whatever a lock server answers."""

import pathlib
import re

import pytest

from fake.peer import Peer
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


HOSTILE = {
    "a number beyond numeric": '{"locks": [], "n": 1e999999}',
    "a number too small": '{"locks": [], "n": 1e-99999}',
    "a number of many digits": '{"locks": [], "n": ' + "9" * 200000 + "}",
    "deep": "[" * 200000 + "]" * 200000,
    "deep objects": '{"a":' * 100000 + "1" + "}" * 100000,
    "half a surrogate": '{"locks": [], "n": "\\ud800"}',
    "NUL": '{"locks": [], "n": "\\u0000"}',
    "no hex": '{"locks": [], "n": "\\u12"}',
    "hex of a program": '{"locks": [], "n": "\\u0x00"}',
    "an unfinished string": '{"locks": [], "n": "\\',
    "no JSON": "locks: none",
    "empty": "",
    "a word": '"error"',
    "words for numbers": '{"locks": [{"key": "k", "owner_conn_id": 1, "waiters": "many", "lease_expires_in_s": "soon"}, 5, null],'
                         ' "semaphores": [{"key": "s", "limit": 1e80, "holders": [], "waiters": {}}]}',
}


@pytest.mark.every_version
@pytest.mark.parametrize("answer", HOSTILE.values(), ids=[name.replace(" ", "_") for name in HOSTILE])
def test_one_servers_answer_takes_none_of_the_others_away(make_cluster, processes, server, answer):
    hostile = processes.add(Peer(auto={"stats": "ok " + answer}))
    session = make_cluster(f"{hostile.address},{server}").session()
    stats = session.value("SELECT dflock_stats()")
    assert set(stats) == {hostile.address, str(server)} and "locks" in stats[str(server)]
    session.rows("SELECT * FROM dflock_server_locks")


@pytest.mark.every_version
@pytest.mark.parametrize("digits", ["0x00", "0X7f", " 000", "+000", "-001"])
def test_an_escape_has_four_digits(make_cluster, processes, digits):
    """What C reads as a number is no JSON for that, and is not shown as if it were."""
    hostile = processes.add(Peer(auto={"stats": 'ok {"n": "\\u%s"}' % digits}))
    session = make_cluster(hostile.address).session()
    assert session.value("SELECT dflock_stats()") == {hostile.address: {"error": "the answer to stats is no JSON"}}


@pytest.mark.every_version
def test_more_values_than_jsonb_takes(make_cluster, processes, server):
    hostile = processes.add(Peer(auto={"stats": "ok [" + "1," * (17 << 20) + "1]"}))
    session = make_cluster(f"{hostile.address},{server}").session()
    stats = session.value("SELECT dflock_stats()")
    assert "locks" in stats[str(server)] and "too long" in stats[hostile.address]["error"]
