"""Leases over time. The long ones run beside each other: a fixture starts them all, each test awaits one.

LONG=60 holds the black-hole test for the minute that the design was made for; otherwise it takes 20 s.
"""

import json
import os
import zlib

import pytest

from lib.eventually import Stopwatch, eventually
from lib.process import Processes
from lib.server import Server
from lib.under import patient
from sqlite.support import Script

LONG_S = float(os.environ.get("LONG", 20))


def key_for(shard, shards, prefix="k"):
    n = 0
    while zlib.crc32(f"{prefix}{n}".encode()) % shards != shard:
        n += 1
    return f"{prefix}{n}"


SCRIPTS = {
    # A wait longer than the lease that is asked for: the grant is confirmed before it counts, and then renewed.
    "wait longer than the lease": """
        holder, a = connect(), connect()
        holder.value("SELECT dflock_lock('long')")
        waiting = in_thread(a.value, "SELECT dflock_lock('long', 60, 2)")
        time.sleep(5)
        holder.value("SELECT dflock_release('long')")
        waiting()
        until = time.monotonic() + 30
        while time.monotonic() < until:
            assert a.value("SELECT dflock_is_held('long')") == 1
            time.sleep(0.1)
        assert a.value("SELECT dflock_assert_held('long', 1)") == 1
        print(a.value("SELECT renewals > 10 FROM dflock_locks"))
        """,
    # The server drops connections that are silent for its read time-out, whatever the lease.
    "25 s wait with a lease of 600 s": """
        holder, a = connect(), connect()
        holder.value("SELECT dflock_lock('patient')")
        waiting = in_thread(a.value, "SELECT dflock_lock('patient', 9e999, 600)")
        time.sleep(25)
        holder.value("SELECT dflock_release('patient')")
        waiting()
        until = time.monotonic() + 30
        while time.monotonic() < until:
            assert a.value("SELECT dflock_is_held('patient')") == 1
            time.sleep(0.1)
        print(a.value("SELECT dflock_assert_held('patient', 1)"))
        """,
    "a lease of 600 s on an idle connection": """
        a = connect()
        a.value("SELECT dflock_lock('idle', 0, 600)")
        until = time.monotonic() + 50
        while time.monotonic() < until:
            time.sleep(1)
        print(a.value("SELECT dflock_assert_held('idle', 1)"))
        """,
    "2,000 holds over their leases": """
        a, b = connect(), connect()
        began = time.monotonic()
        for n in range(1000):
            a.value("SELECT dflock_lock(?, 0, 3)", f"many{n}")
            b.value("SELECT dflock_lock(?, 0, 3)", f"more{n}")
        cpu = time.process_time()
        time.sleep(12)
        cpu = time.process_time() - cpu
        for c, prefix in ((a, "many"), (b, "more")):
            for n in range(1000):
                assert c.value("SELECT dflock_is_held(?)", f"{prefix}{n}") == 1, (prefix, n, c.rows("SELECT * FROM dflock_locks WHERE state <> 'held' LIMIT 5"))
            assert c.value("SELECT count(*) FROM dflock_locks WHERE state = 'held'") == 1000
            assert c.value("SELECT min(renewals) FROM dflock_locks") >= 5
        print("renewed, cpu seconds", cpu)
        """,
}

BLACK_HOLE = """
        holder, retrier = connect(), connect()
        keys, dead, own = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
        for key in keys:
            holder.value("SELECT dflock_lock(?, 0, 2)", key)
        retrier.value("SELECT dflock_lock(?, 0, 2)", own)
        print("holding", flush=True)
        while not os.path.exists("go"):
            time.sleep(0.01)
        until = time.monotonic() + float(sys.argv[4])
        def retry():
            tries = 0
            while time.monotonic() < until:
                message = retrier.error("SELECT dflock_acquire(?, 0)", dead)
                assert "LK01" in message, message
                tries += 1
            return tries
        retrying = in_thread(retry)
        while time.monotonic() < until:
            for key in keys:
                assert holder.value("SELECT dflock_is_held(?)", key) == 1
            time.sleep(0.05)
        print(retrying() > 2, retrier.value("SELECT dflock_assert_held(?, 1)", own),
              [holder.value("SELECT dflock_assert_held(?, 1)", key) for key in keys] == [1] * len(keys))
        """


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    processes = Processes(tmp_path_factory.mktemp("leases"))
    server = Server(processes, "--max-locks", "100000")
    started = {name: Script(processes, text, servers=server, name=name.replace(" ", "-").replace(",", ""))
               for name, text in SCRIPTS.items()}
    yield started
    processes.close()


@pytest.mark.parametrize("name", SCRIPTS)
def test_over_time(running, name):
    lines = running[name].wait(120)
    assert lines and not lines[-1].startswith("0"), lines


def test_a_black_holed_shard_delays_nobody_else(running, make_server, make_proxy, start_script):
    """One thread runs into a mute shard again and again; leases of 2 s on the other shard live, its own too."""
    live, mute = make_server(), make_server()
    proxy = make_proxy(mute)
    keys = [key_for(0, 2, f"live{n}.") for n in range(20)]
    script = start_script(BLACK_HOLE, servers=[live, proxy], env={"DFLOCK_CONNECT_TIMEOUT": "2"},
                          args=(json.dumps(keys), key_for(1, 2, "dead"), key_for(0, 2, "own"), str(LONG_S)))
    eventually(lambda: script.said("holding"))
    proxy.black_hole()
    (script.directory / "go").touch()
    assert script.wait(LONG_S + 40)[-1] == "True 1 True"


def test_a_lease_ends_when_the_process_is_stopped(make_db, server):
    a, b = make_db(server), make_db(server)
    a.value("SELECT dflock_lock('k', 0, 2)")
    a.process.pause()
    assert b.value("SELECT dflock_acquire('k', 20)") == 1
    a.process.resume()
    assert a.value("SELECT dflock_is_held('k')") == 0
    a.fails("SELECT dflock_assert_held('k')", sqlstate="40001")
    assert b.value("SELECT dflock_assert_held('k', 1)") == 1


def test_a_stopped_server_is_a_loss_at_the_local_deadline(make_db, server):
    db = make_db(server, env={"DFLOCK_CONNECT_TIMEOUT": "1"})
    db.value("SELECT dflock_lock('k', 0, 2)")
    server.pause()
    with Stopwatch() as took:
        eventually(lambda: db.value("SELECT dflock_is_held('k')") == 0, deadline=10)
    assert took.s < patient(3)
    db.fails("SELECT dflock_assert_held('k')", sqlstate="40001")
    server.resume()


def test_a_closed_connection_is_noticed_without_a_request(make_db, server, make_proxy):
    proxy = make_proxy(server)
    db = make_db(proxy)
    db.value("SELECT dflock_lock('k', 0, 600)")
    proxy.cut()
    with Stopwatch() as took:
        eventually(lambda: db.value("SELECT dflock_is_held('k')") == 0, deadline=5)
    assert took.s < patient(2)
    assert db.rows("SELECT state FROM dflock_locks") == [("lost",)]


def test_a_network_cut_costs_what_was_held_and_nothing_else(make_db, server, make_proxy):
    proxy = make_proxy(server)
    db = make_db(proxy)
    db.value("SELECT dflock_lock('k', 0, 600)")
    proxy.cut()
    eventually(lambda: db.value("SELECT dflock_is_held('k')") == 0)
    assert db.value("SELECT dflock_acquire('other', 0)") == 1
    db.fails("SELECT dflock_acquire('k', 0)", sqlstate="40001")
    assert db.value("SELECT dflock_acquire('k', 10)") == 1


def test_release_wait_off_sends_and_returns(make_db, server, make_proxy):
    proxy = make_proxy(server)
    db = make_db(proxy)
    db.value("SELECT dflock_config('release_wait', 'off')")
    db.value("SELECT dflock_lock('k')")
    proxy.delay(down=0.5)
    with Stopwatch() as took:
        assert db.value("SELECT dflock_release('k')") == 1
    assert took.s < patient(0.4)
    server.await_holders("k", 0)
    assert db.value("SELECT dflock_acquire('k', 0)") == 1, "the order on the connection is kept"


def test_a_release_without_an_answer_is_lk011_and_gone(make_db, server, make_proxy):
    proxy = make_proxy(server)
    db = make_db(proxy, env={"DFLOCK_CONNECT_TIMEOUT": "1"})
    db.value("SELECT dflock_lock('k', 0, 600)")
    proxy.black_hole(up=False, down=True)
    db.fails("SELECT dflock_release('k')", sqlstate="LK011", text=proxy.address)
    assert db.value("SELECT dflock_is_held('k')") == 0
    assert db.value("SELECT dflock_release('k')") == 0


def test_a_late_grant_of_a_given_up_try_is_given_back(make_db, server, make_proxy):
    """The answer comes after the caller has gone; the background thread reads it and releases."""
    proxy = make_proxy(server)
    db = make_db(proxy, env={"DFLOCK_CONNECT_TIMEOUT": "5"})
    db.value("SELECT dflock_lock('mine')")
    proxy.delay(down=1.0)
    db.start("SELECT dflock_acquire('k', 0, 600)")
    server.await_holders("k", 1)
    db.interrupt()
    with pytest.raises(Exception, match="57014"):
        db.finish()
    server.await_holders("k", 0)
    assert db.value("SELECT dflock_is_held('k')") == 0
    assert db.value("SELECT dflock_assert_held('mine', 1)") == 1
