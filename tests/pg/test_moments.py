"""What happens between two steps of one call: a cancel, a reload, a suspended machine."""

import os
import signal

import pytest

from lib.eventually import Stopwatch, always, eventually
from lib.under import patient
from pg.test_stale import asks, stop, stop_worker
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
