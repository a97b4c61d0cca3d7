"""What happens between two steps of one call: a cancel, a reload, a suspended machine."""

import os
import signal

import pytest

from fake.peer import Peer
from lib.eventually import Stopwatch, always, eventually
from lib.under import patient
from pg.standstill import asks, stop, stop_worker
from pg.waiting import Background, await_queued


@pytest.mark.every_version
def test_the_lease_of_a_renewal_without_an_answer(pg, session, server, make_proxy, watcher):
    """What the worker renews by from now on is what the session is told, however the call ended."""
    proxy = make_proxy(server)
    pg.reload({"dflockd.servers": str(proxy)})
    eventually(lambda: watcher.rows("SELECT address FROM dflock_servers WHERE state <> 'old'") == [(str(proxy),)])
    assert session.value("SELECT dflock_acquire('k', 0, 60)") and session.value("SELECT dflock_lease('k')") == 60
    proxy.black_hole(up=False)
    renewing = Background(session, "SELECT dflock_renew('k', 90)")
    eventually(lambda: watcher.value("SELECT lease FROM dflock_locks") == 90)
    session.connection.cancel()
    assert renewing.failure().sqlstate == "57014"
    assert session.value("SELECT dflock_lease('k')") == 90
    proxy.pass_through()
    assert session.value("SELECT dflock_renew('k')") in (89, 90)
    assert session.value("SELECT dflock_lease('k')") == 90


@pytest.mark.every_version
def test_a_list_of_servers_that_gets_shorter_while_it_is_read(make_cluster, server):
    pg = make_cluster(server, *[f"127.0.0.1:{port}" for port in range(2001, 2301)])
    session, watcher = pg.session(), pg.session()
    assert len(session.rows("SELECT * FROM dflock_servers")) == 301
    old = stop_worker(pg, watcher)
    asking = asks(session, watcher, "SELECT address FROM dflock_servers")
    os.kill(old, signal.SIGCONT)
    watcher.rows("SELECT * FROM dflock_servers")  # the first piece is out: slots are served in their order
    pg.reload({"dflockd.servers": str(server)})
    eventually(lambda: len(watcher.rows("SELECT * FROM dflock_servers WHERE state <> 'old'")) == 1)
    os.kill(session.pid, signal.SIGCONT)
    rows = asking.finish()
    assert rows[0] == (str(server),) and len(rows) < 301


@pytest.mark.every_version
def test_a_machine_that_was_suspended(make_cluster, server):
    """All processes stand still for longer than a worker may be silent; the one that waits runs first."""
    pg = make_cluster(server, dflockd__connect_timeout=1)
    holder, waiter, watcher = pg.session(), pg.session(), pg.session()
    assert holder.value("SELECT dflock_acquire('k', 0, 120)")
    waiting = Background(waiter, "SELECT dflock_acquire('k', 'infinity')")
    await_queued(watcher, waiter.pid)
    worker = pg.worker_pid()
    stop(waiter.pid)
    stop(worker)
    with Stopwatch() as still:
        eventually(lambda: still.s > 11.5)
    os.kill(waiter.pid, signal.SIGCONT)
    always(waiting.busy, 1)
    os.kill(worker, signal.SIGCONT)
    assert holder.value("SELECT dflock_release('k')")
    assert waiting.finish() == [(True,)]


@pytest.mark.every_version
def test_a_worker_that_stands_still_is_told(make_cluster, server):
    pg = make_cluster(server, dflockd__connect_timeout=0.1)
    session = pg.session()
    worker = pg.await_worker()
    stop(worker)
    try:
        with Stopwatch() as took:
            error = session.fails("SELECT dflock_acquire('k', 'infinity')")
        assert error.sqlstate == "LK006" and "does not answer" in str(error)
        assert 10 < took.s < patient(20)
    finally:
        os.kill(worker, signal.SIGCONT)
    assert session.value("SELECT dflock_acquire('k')")


LAST_LOOK = """
    EXPECT ping
    SEND ok
    EXPECT l / busy / 0
    SEND timeout
    EXPECT ping
    EXPECT ping
    WAIT life
    RAW ok\\nok\\n
    WAIT told
    ACCEPT
    EXPECT e / k /
    SEND queued
    EXPECT w / k / *
    WAIT end
    RAW o
    HALFCLOSE
    WAIT ended
"""


@pytest.mark.every_version
def test_a_place_that_dies_behind_a_not_yet(make_cluster, processes):
    """The sign of life is read, the place is looked at, which shows half a line; its end comes before the answer is out."""
    peer = processes.add(Peer(LAST_LOOK))
    pg = make_cluster(peer, dflockd__keepalive=0.1)
    session, watcher = pg.session(), pg.session()
    assert session.value("SELECT dflock_acquire('busy', 0)") is False
    with Stopwatch() as silent:
        assert session.value("SELECT dflock_enqueue('k')") == "queued"
        peer.await_request("ping", count=2)  # the second, which keeps the connection warm, is not answered
        eventually(lambda: silent.s > 3.5)  # beyond keepalive and 3 s "not yet" wants a sign of life of its own
    waiting = Background(session, "SELECT dflock_wait('k', 0)")
    peer.reached("life")
    worker = pg.worker_pid()
    stop(worker)
    try:
        for step, done in ("life", "told"), ("end", "ended"):
            peer.go(step)
            peer.reached(done)
    finally:
        os.kill(worker, signal.SIGCONT)
    assert waiting.finish() == [(False,)]
    eventually(lambda: watcher.rows("SELECT key, state FROM dflock_locks") == [("k", "lost")])
    session.run("DISCARD ALL")
    eventually(lambda: watcher.rows("SELECT key, state FROM dflock_locks") == [])
