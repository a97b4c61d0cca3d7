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
