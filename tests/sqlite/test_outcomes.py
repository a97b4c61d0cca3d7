"""Two sessions: the three outcomes, queue places, tokens, and what is said when a server cannot be asked."""

import itertools
import zlib

import pytest

from lib.eventually import Stopwatch, always, eventually
from lib.under import patient

counter = itertools.count()


@pytest.fixture
def two(make_db, server):
    return make_db(server), make_db(server)


def test_busy_is_false_or_55p03(two):
    a, b = two
    a.value("SELECT dflock_lock('k')")
    assert b.value("SELECT dflock_acquire('k', 0)") == 0
    with Stopwatch() as took:
        assert b.value("SELECT dflock_acquire('k', 0.4)") == 0
    assert 0.399 <= took.s < patient(3)  # clocks of whole milliseconds
    failed = b.fails("SELECT dflock_lock('k', 0)", sqlstate="55P03", text="k")
    assert failed.code == 1, "SQLITE_ERROR, not SQLITE_BUSY"
    assert a.value("SELECT dflock_release('k')") == 1
    assert b.value("SELECT dflock_acquire('k', 0)") == 1


def test_whole_seconds_are_timed_by_the_server(two):
    a, b = two
    a.value("SELECT dflock_lock('k')")
    with Stopwatch() as took:
        assert b.value("SELECT dflock_acquire('k', 1)") == 0
    assert 1 <= took.s < patient(4)


def test_a_wait_is_granted_at_the_release(two, server):
    a, b = two
    a.value("SELECT dflock_lock('k')")
    b.start("SELECT dflock_lock('k', 20)")
    server.await_waiters("k", 1)
    assert b.busy()
    before = a.value("SELECT dflock_fence('k')")
    a.value("SELECT dflock_release('k')")
    ((after,),) = b.finish()
    assert after > before
    assert b.value("SELECT dflock_assert_held('k', 1)") == 1


def test_the_setting_is_the_default_timeout(two):
    a, b = two
    a.value("SELECT dflock_lock('k')")
    assert b.value("SELECT dflock_config('acquire_timeout', 0.2)") == "10"
    with Stopwatch() as took:
        assert b.value("SELECT dflock_acquire('k')") == 0
        b.fails("SELECT dflock_lock('k', NULL)", sqlstate="55P03")
    assert took.s < patient(5)
    assert b.value("SELECT dflock_config('acquire_timeout', -1)") == "0.2"
    b.start("SELECT dflock_acquire('k')")
    a.value("SELECT dflock_release('k')")
    assert b.finish() == [(1,)]


def test_a_place_is_kept_over_waits(two, server):
    a, b = two
    a.value("SELECT dflock_lock('k')")
    assert b.value("SELECT dflock_enqueue('k')") == "queued"
    assert b.value("SELECT state FROM dflock_locks") == "queued"
    b.fails("SELECT dflock_acquire('k', 0)", sqlstate="55006", text="dflock_wait")
    b.fails("SELECT dflock_enqueue('k')", sqlstate="55006", text="dflock_cancel")
    assert b.value("SELECT dflock_wait('k', 0)") == 0
    assert b.value("SELECT dflock_wait('k', 0.3)") == 0
    assert server.waiters("k") == 1
    a.value("SELECT dflock_release('k')")
    assert b.value("SELECT dflock_wait('k', 10)") == 1
    assert b.value("SELECT dflock_assert_held('k', 1)") == 1
    assert b.value("SELECT dflock_wait('k')") == 1, "true at once when already acquired"


def test_cancel_leaves_the_queue(two, server):
    a, b = two
    a.value("SELECT dflock_lock('k')")
    b.value("SELECT dflock_enqueue('k')")
    server.await_waiters("k", 1)
    assert b.value("SELECT dflock_cancel('k')") == 1
    assert b.value("SELECT dflock_cancel('k')") == 0
    server.await_waiters("k", 0)
    b.fails("SELECT dflock_wait('k', 0)", sqlstate="55000")


def test_a_place_counts_in_release_all(two, server):
    a, b = two
    a.value("SELECT dflock_lock('k')")
    b.value("SELECT dflock_enqueue('k')")
    b.value("SELECT dflock_lock('other')")
    assert b.value("SELECT dflock_release_all()") == 2
    server.await_waiters("k", 0)
    server.await_holders("other", 0)


def test_a_place_that_comes_up_unseen_lapses(two, server):
    a, b = two
    a.value("SELECT dflock_lock('k')")
    assert b.value("SELECT dflock_enqueue('k', 1)") == "queued"
    a.value("SELECT dflock_release('k')")
    server.await_holders("k", 1)
    server.await_holders("k", 0)
    b.fails("SELECT dflock_wait('k', 5)", sqlstate="55000", text="lapsed")


def test_semaphore_with_three_comers(make_db, server):
    a, b, c = (make_db(server) for _ in range(3))
    assert a.value("SELECT dflock_sem_acquire('s', 2)") == 1
    assert b.value("SELECT dflock_sem_acquire('s', 2)") == 1
    assert c.value("SELECT dflock_sem_acquire('s', 2, 0)") == 0
    c.start("SELECT dflock_sem_lock('s', 2, 20)")
    server.await_waiters("s", 1)
    assert a.value("SELECT dflock_sem_release('s')") == 1
    assert c.finish()[0][0] > 0


def test_another_limit_is_lk001(two):
    a, b = two
    a.value("SELECT dflock_sem_acquire('s', 2)")
    b.fails("SELECT dflock_sem_acquire('s', 3, 0)", sqlstate="LK001")


def test_release_by_token_from_another_process(two, server):
    a, b = two
    a.value("SELECT dflock_lock('k')")
    token = a.value("SELECT dflock_token('k')")
    assert b.value("SELECT dflock_release('k', ?)", "0" * 32) == 0
    assert b.value("SELECT dflock_release('k', ?)", token) == 1
    assert server.holders("k") == 0
    a.fails("SELECT dflock_assert_held('k', 1)", sqlstate="40001")


def test_release_by_token_from_another_session_of_the_process(run_script, server):
    lines = run_script("""
        a, b = connect(), connect()
        a.value("SELECT dflock_lock('k')")
        token = a.value("SELECT dflock_token('k')")
        assert b.value("SELECT dflock_release('k', ?)", "f" * 32) == 0
        assert a.value("SELECT dflock_is_held('k')") == 1
        print(b.value("SELECT dflock_release('k', ?)", token))
        print(a.value("SELECT dflock_is_held('k')"), a.value("SELECT state FROM dflock_locks"))
        print(a.error("SELECT dflock_assert_held('k')"))
        print(a.value("SELECT dflock_release('k')"), b.value("SELECT dflock_acquire('k', 0)"))
        """, servers=server)
    assert lines[:2] == ["1", "0 lost"]
    assert lines[2].startswith("dflockd 40001: ") and "released by token" in lines[2]
    assert lines[3] == "0 1"


def test_two_connections_of_a_process_are_two_sessions(run_script, server):
    lines = run_script("""
        a, b = connect(), connect()
        print(a.value("SELECT dflock_acquire('k', 0)"), b.value("SELECT dflock_acquire('k', 0)"))
        print(b.value("SELECT dflock_release('k')"), b.value("SELECT count(*) FROM dflock_locks"))
        a.close()
        print(b.value("SELECT dflock_acquire('k', 5)"))
        """, servers=server)
    assert lines == ["1 0", "0 0", "1"]


# ------------------------------------------------------- servers that cannot say


def test_nobody_listens(make_db, make_server):
    server = make_server()
    address = server.address
    server.kill()
    db = make_db(address)
    with Stopwatch() as took:
        failed = db.fails("SELECT dflock_acquire('k', 0)", sqlstate="LK010", text=address)
    assert "refused" in failed.text and took.s < patient(5)
    db.fails("SELECT dflock_lock('k')", sqlstate="LK010")
    assert db.value("SELECT dflock_is_held('k')") == 0


def test_unresolvable_name(make_db):
    db = make_db("no-such-host.invalid:6388", env={"DFLOCK_CONNECT_TIMEOUT": "3"})
    with Stopwatch() as took:
        db.fails("SELECT dflock_acquire('k', 0)", sqlstate="LK010", text="no-such-host.invalid")
    assert took.s < patient(10)


def test_a_mute_server_is_an_error_in_time(make_db, server, make_proxy):
    proxy = make_proxy(server)
    proxy.black_hole()
    db = make_db(proxy, env={"DFLOCK_CONNECT_TIMEOUT": "1"})
    with Stopwatch() as took:
        failed = db.fails("SELECT dflock_acquire('k', 0)", text=proxy.address)
    assert failed.sqlstate in ("LK010", "LK011") and 0.9 <= took.s < patient(6)


def test_a_server_stopped_while_somebody_waits(make_db, server):
    a = make_db(server)
    b = make_db(server, env={"DFLOCK_CONNECT_TIMEOUT": "1", "DFLOCK_KEEPALIVE": "1"})
    a.value("SELECT dflock_lock('k')")
    b.start("SELECT dflock_acquire('k', 9e999)")
    server.await_waiters("k", 1)
    server.pause()
    with Stopwatch() as took:
        with pytest.raises(Exception) as caught:
            b.finish(20)
    assert "LK011" in str(caught.value) and took.s < patient(10)
    server.resume()


def test_a_restarted_server_is_a_loss_told_at_use(make_db, server):
    db = make_db(server)
    db.value("SELECT dflock_lock('k')")
    server.restart()
    eventually(lambda: db.value("SELECT dflock_is_held('k')") == 0)
    assert db.rows("SELECT state, key FROM dflock_locks") == [("lost", "k")]
    assert db.value("SELECT last_error FROM dflock_locks")
    assert db.rows("SELECT dflock_token('k'), dflock_lease('k'), dflock_fence('k')") == [(None, None, None)]
    db.fails("SELECT dflock_assert_held('k')", sqlstate="40001", text="k")
    assert db.value("SELECT dflock_acquire('k', 0)") == 1, "told already: carried out"


def test_a_loss_is_told_once_by_the_first_acquire(make_db, server):
    db = make_db(server)
    db.value("SELECT dflock_lock('k')")
    server.restart()
    eventually(lambda: db.value("SELECT dflock_is_held('k')") == 0)
    db.fails("SELECT dflock_acquire('k', 0)", sqlstate="40001")
    assert db.value("SELECT dflock_acquire('k', 0)") == 1


def test_a_lost_hold_is_forgotten_by_release(make_db, server):
    db = make_db(server)
    db.value("SELECT dflock_lock('k')")
    server.restart()
    eventually(lambda: db.value("SELECT dflock_is_held('k')") == 0)
    assert db.value("SELECT dflock_release('k')") == 0
    assert db.value("SELECT count(*) FROM dflock_locks") == 0
    db.fails("SELECT dflock_renew('k')", sqlstate="55000")


def test_a_place_whose_connection_died_is_lk011_once(make_db, server, make_proxy):
    a, proxy = make_db(server), make_proxy(server)
    b = make_db(proxy)
    a.value("SELECT dflock_lock('k')")
    assert b.value("SELECT dflock_enqueue('k')") == "queued"
    proxy.cut()
    b.fails("SELECT dflock_wait('k', 5)", sqlstate="LK011")
    b.fails("SELECT dflock_wait('k', 5)", sqlstate="55000")


def test_drain_is_lk005(make_db, make_server):
    server = make_server("--shutdown-timeout", "20")
    a, b = make_db(server), make_db(server)
    a.value("SELECT dflock_lock('k')")
    b.value("SELECT dflock_ping()")
    server.process.signal(15)
    eventually(lambda: "drain" in server.log(), what="the server says that it drains")
    b.fails("SELECT dflock_acquire('other', 0)", sqlstate="LK005")
    assert a.value("SELECT dflock_assert_held('k', 1)") == 1, "renewals go on"
    assert a.value("SELECT dflock_release('k')") == 1


def test_server_caps_are_lk004(make_db, make_server):
    db = make_db(make_server("--max-locks", "1"))
    db.value("SELECT dflock_lock('a')")
    db.fails("SELECT dflock_lock('b')", sqlstate="LK004", text="--max-locks")


def test_own_caps_are_53400(make_db, server):
    db = make_db(server, env={"DFLOCK_MAX_LOCKS": "2"})
    db.value("SELECT dflock_lock('a')")
    db.value("SELECT dflock_lock('b')")
    db.fails("SELECT dflock_lock('c')", sqlstate="53400", text="max_locks")
    db.value("SELECT dflock_release('a')")
    assert db.value("SELECT dflock_acquire('c')") == 1
    db.value("SELECT dflock_release_all()")
    db.value("SELECT dflock_config('max_session_locks', 1)")
    db.value("SELECT dflock_lock('a')")
    db.fails("SELECT dflock_lock('b')", sqlstate="53400", text="max_session_locks")


def test_a_dead_shard_harms_its_own_keys_only(make_db, make_server):
    servers = [make_server(), make_server(), make_server()]
    db = make_db(servers)
    key_of = {}
    for n in itertools.count():
        key_of.setdefault(zlib.crc32(f"k{n}".encode()) % 3, f"k{n}")
        if len(key_of) == 3:
            break
    servers[1].kill()
    assert db.value("SELECT dflock_acquire(?, 0)", key_of[0]) == 1
    db.fails("SELECT dflock_acquire(?, 0)", key_of[1], sqlstate="LK010", text=servers[1].address)
    assert db.value("SELECT dflock_acquire(?, 0)", key_of[2]) == 1
    assert servers[0].holders(key_of[0]) == 1 and servers[2].holders(key_of[2]) == 1


def test_an_idle_connection_is_not_culled(make_db, make_server):
    """The server's read time-out is shorter than the idle time; nothing shows of it."""
    server = make_server("--read-timeout", "1")
    db = make_db(server, env={"DFLOCK_SERVER_READ_TIMEOUT": "1"})
    db.value("SELECT dflock_lock('held', 0, 60)")
    db.value("SELECT dflock_acquire('x', 0)")
    db.value("SELECT dflock_release('x')")
    always(lambda: db.value("SELECT dflock_is_held('held')") == 1, seconds=3, every=0.1)
    assert db.value("SELECT dflock_assert_held('held', 1)") == 1
    assert server.holders("held") == 1
