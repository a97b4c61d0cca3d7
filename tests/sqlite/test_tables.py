"""The eponymous tables dflock_locks, dflock_server_locks and dflock_servers."""

import re

import pytest

from fake.peer import Peer
from lib.eventually import eventually

TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}")


def columns(db, table):
    return [row[0] for row in db.rows(f"SELECT name FROM pragma_table_info('{table}')")]


def test_columns(db):
    assert columns(db, "dflock_locks") == [
        "pid", "key", "kind", "scope", "state", "slots", "fence", "lease", "acquired_at", "expires_at", "renewed_at",
        "renewals", "last_error", "server", "blocked_by_pids"]
    assert columns(db, "dflock_server_locks") == [
        "server", "key", "kind", "slots", "holders", "waiters", "lease_expires_in", "held_by_pid", "error"]
    assert columns(db, "dflock_servers") == [
        "address", "state", "connections", "round_trip_ms", "last_error", "since"]


def test_what_is_held(db, server):
    fence = db.value("SELECT dflock_lock('k', 0, 60)")
    db.value("SELECT dflock_sem_lock('s', 4)")
    assert db.rows("SELECT pid, key, kind, scope, state, slots, fence, lease, renewals, last_error, server, blocked_by_pids "
                   "FROM dflock_locks WHERE kind = 'lock'") == [
        (db.pid, "k", "lock", "session", "held", 1, fence, 60, 0, None, server.address, None)]
    assert db.rows("SELECT key, slots, lease FROM dflock_locks WHERE kind = 'semaphore'") == [("s", 4, 33)]
    acquired, expires, renewed = db.rows("SELECT acquired_at, expires_at, renewed_at FROM dflock_locks LIMIT 1")[0]
    assert TIME.fullmatch(acquired) and TIME.fullmatch(expires)
    assert renewed is None or TIME.fullmatch(renewed)
    assert 15 < db.value("SELECT (julianday(expires_at) - julianday('now')) * 86400 FROM dflock_locks WHERE key = 'k'") < 60
    assert abs(db.value("SELECT (julianday(acquired_at) - julianday('now')) * 86400 FROM dflock_locks WHERE key = 'k'")) < 10
    db.value("SELECT dflock_renew('k')")
    assert db.value("SELECT renewals FROM dflock_locks WHERE key = 'k'") == 1
    assert TIME.fullmatch(db.value("SELECT renewed_at FROM dflock_locks WHERE key = 'k'"))


def test_a_place_is_shown(make_db, server):
    a, b = make_db(server), make_db(server)
    a.value("SELECT dflock_lock('k')")
    b.value("SELECT dflock_enqueue('k')")
    assert b.rows("SELECT key, state, fence, acquired_at, expires_at FROM dflock_locks") == [("k", "queued", None, None, None)]
    assert a.rows("SELECT key, state FROM dflock_locks") == [("k", "held")], "everybody sees their own"


def test_server_locks(make_db, server):
    a, b = make_db(server), make_db(server)
    a.value("SELECT dflock_lock('k', 0, 60)")
    a.value("SELECT dflock_sem_lock('s', 4)")
    b.value("SELECT dflock_enqueue('k')")
    server.await_waiters("k", 1)
    rows = a.rows("SELECT server, key, kind, slots, holders, waiters, held_by_pid, error FROM dflock_server_locks ORDER BY key")
    assert rows == [(server.address, "k", "lock", 1, 1, 1, a.pid, None), (server.address, "s", "semaphore", 4, 1, 0, a.pid, None)]
    assert b.rows("SELECT key, held_by_pid FROM dflock_server_locks ORDER BY key") == [("k", None), ("s", None)]
    assert 50 < b.value("SELECT lease_expires_in FROM dflock_server_locks WHERE key = 'k'") <= 60


def test_another_session_of_the_process_is_this_pid(run_script, server):
    lines = run_script("""
        a, b = connect(), connect()
        a.value("SELECT dflock_lock('k')")
        print(b.value("SELECT held_by_pid = ? FROM dflock_server_locks", os.getpid()))
        """, servers=server)
    assert lines == ["1"]


def test_a_dead_server_is_a_row(make_db, make_server):
    live, dead = make_server(), make_server()
    db = make_db([live, dead])
    dead.kill()
    db.value("SELECT dflock_config('connect_timeout', 2)")
    rows = db.rows("SELECT server, key, error FROM dflock_server_locks")
    ((server, key, error),) = [row for row in rows if row[0] == dead.address]
    assert key is None and "refused" in error
    assert not [row for row in rows if row[0] == live.address and row[2]]
    stats = db.value("SELECT json_extract(dflock_stats(), '$.\"' || ? || '\".error')", dead.address)
    assert "refused" in stats
    ping = db.value("SELECT json_extract(dflock_ping(), '$.\"' || ? || '\".error')", dead.address)
    assert "refused" in ping
    assert db.value("SELECT json_extract(dflock_ping(), '$.\"' || ? || '\".round_trip_ms')", live.address) > 0


@pytest.mark.parametrize("body", ['{"locks":[],"n":NaN}', '{"locks":[],"n":[-Infinity]}', '{/* none */"locks":[]}', '{"n":1.}', '{"n":-.5}', '{"n":01.5}',
                                  '{"locks":[]} {}', '{"locks":[],}', '{"n":nUll}', r'{"n":"\xff"}'])
def test_what_is_not_quite_json_is_an_error(make_db, processes, body):
    """JSON by the letter, since it is handed on inside ours."""
    peer = processes.add(Peer("EXPECT stats\nRAW ok " + body + r"\n" + "\nACCEPT\nEXPECT stats\nRAW ok " + body + r"\n"))
    db = make_db(peer)
    assert db.rows("SELECT error FROM dflock_server_locks") == [("the answer to stats is no JSON object",)]
    assert db.value("SELECT json_extract(dflock_stats(), '$.\"' || ? || '\".error')", peer.address) == "the answer to stats is no JSON object"


def test_what_is_handed_on_is_json(make_db, processes):
    body = '{\'locks\':[], "n":[1e3, -0.50, null], "s":"NaN /* */"}'
    peer = processes.add(Peer("EXPECT stats\nRAW ok " + body + r"\n"))
    db = make_db(peer)
    assert db.value("SELECT dflock_stats()").endswith(':{"locks":[],"n":[1e3,-0.50,null],"s":"NaN /* */"}}')


def test_a_join_asks_the_server_once(db, server, make_proxy):
    proxy = make_proxy(server)
    db.value("SELECT dflock_config('servers', ?)", proxy.address)
    db.rows("CREATE TABLE t(x)")
    db.rows("INSERT INTO t SELECT value FROM json_each('[" + ",".join(map(str, range(200))) + "]')")
    db.value("SELECT dflock_lock('7')")
    before = proxy.bytes["up"]
    assert db.value("SELECT count(*) FROM t LEFT JOIN dflock_server_locks s ON s.key = t.x") == 200
    assert db.value("SELECT count(*) FROM t WHERE EXISTS (SELECT 1 FROM dflock_server_locks s WHERE s.key = t.x || '')") == 1
    assert proxy.bytes["up"] - before < 20 * len("stats\n_\n\n")


def test_an_old_snapshot_is_taken_anew(db):
    assert db.rows("SELECT key FROM dflock_server_locks") == []
    db.value("SELECT dflock_lock('k')")
    eventually(lambda: db.rows("SELECT key FROM dflock_server_locks") == [("k",)], deadline=5)


def test_servers_before_and_after(make_db, make_server):
    a, b = make_server(), make_server()
    db = make_db([a, b])
    unused = [(s.address, "unused", 0, None, None, None) for s in (a, b)]
    assert db.rows("SELECT * FROM dflock_servers") == unused
    db.value("SELECT dflock_ping()")
    for address, state, _, round_trip, error, since in db.rows("SELECT * FROM dflock_servers"):
        assert address in (a.address, b.address) and state in ("up", "unused"), (address, state)
    db.value("SELECT dflock_lock('k')")
    up = [row for row in db.rows("SELECT state, connections, round_trip_ms, last_error, since FROM dflock_servers") if row[1]]
    assert up and up[0][0] == "up" and up[0][2] > 0 and up[0][3] is None and TIME.fullmatch(up[0][4])


def test_a_down_server_says_why(make_db, make_server):
    server = make_server()
    db = make_db(server)
    server.kill()
    db.fails("SELECT dflock_acquire('k', 0)", sqlstate="LK010")
    state, error = db.rows("SELECT state, last_error FROM dflock_servers")[0]
    assert state == "down" and "refused" in error


def test_the_prefix_is_cut_for_its_reader_only(make_db, server):
    a = make_db(server, env={"DFLOCK_KEY_PREFIX": "app1:"})
    b = make_db(server)
    a.value("SELECT dflock_lock('k')")
    assert server.holders("app1:k") == 1
    assert a.value("SELECT key FROM dflock_locks") == "k"
    assert a.value("SELECT key FROM dflock_server_locks") == "k"
    assert b.value("SELECT key FROM dflock_server_locks") == "app1:k"
    a.value("SELECT dflock_config('key_prefix', 'app2:')")
    assert a.value("SELECT key FROM dflock_locks") == "app1:k", "not the prefix in force now: whole"
    assert a.value("SELECT dflock_is_held('k')") == 0
    a.value("SELECT dflock_config('key_prefix', 'app')")
    assert a.value("SELECT key FROM dflock_locks") == "1:k"
    assert a.value("SELECT dflock_release('1:k')") == 1


def test_the_part_behind_the_prefix_is_not_empty(make_db, server):
    db = make_db(server, env={"DFLOCK_KEY_PREFIX": "p" * 255})
    db.fails("SELECT dflock_acquire('')", sqlstate="22023")
    assert db.value("SELECT dflock_acquire('x')") == 1
    db.fails("SELECT dflock_acquire('xy')", sqlstate="22023", text="256")


def test_the_tables_are_read_only(db):
    for table in ("dflock_locks", "dflock_server_locks", "dflock_servers"):
        assert "may not be modified" in db.fails(f"DELETE FROM {table}").text
        db.fails(f"CREATE VIRTUAL TABLE x USING {table}", text="no such module")


def test_the_guard_is_an_empty_table(db):
    assert db.rows("SELECT * FROM dflock_close_guard") == []


def test_a_cancel_ends_a_scan(make_db, server, make_proxy):
    proxy = make_proxy(server)
    proxy.black_hole()
    db = make_db(proxy)
    db.start("SELECT * FROM dflock_server_locks")
    eventually(lambda: proxy.accepted > 0)
    db.interrupt()
    try:
        db.finish(5)
        raise AssertionError("was not cancelled")
    except Exception as error:
        assert "57014" in str(error) and error.code == 9
