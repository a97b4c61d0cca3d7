"""The SQLites that the extension is loaded into, each in a process of its own, with one another on the same keys.

Debian's sqlite3 module, pysqlite3, apsw and the shell; for Node see tests/interop, for C programs test_programs.py.
"""

import pytest

from lib.eventually import Stopwatch
from sqlite.support import DRIVERS


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_lease_is_renewed_in_each(make_db, db, server, driver):
    """The first waits for longer than the lease of the other, who does nothing."""
    holder = make_db(server, driver=driver)
    assert holder.value("SELECT dflock_lock('k', 0, 1)") > 0
    assert db.value("SELECT dflock_acquire('k', 3)") == 0
    assert holder.value("SELECT dflock_assert_held('k', 1)") == 1
    assert holder.value("SELECT renewals > 1 FROM dflock_locks") == 1


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_wait_is_interrupted_in_each(make_db, db, server, driver):
    db.value("SELECT dflock_lock('k')")
    waiter = make_db(server, driver=driver)
    waiter.value("SELECT dflock_lock('mine')")
    waiter.start("SELECT dflock_lock('k', 9e999)")
    server.await_waiters("k", 1)
    with Stopwatch() as took:
        waiter.interrupt()
        waiter_error = pytest.raises(Exception, waiter.finish).value
    assert "interrupt" in str(waiter_error).lower() or "57014" in str(waiter_error)
    assert took.s < 5
    server.await_waiters("k", 0)
    assert waiter.value("SELECT dflock_assert_held('mine', 1)") == 1


def test_all_of_them_in_one_line(make_db, make_sqlite, server):
    first = make_sqlite(servers=server)
    first.query("SELECT dflock_lock('k')")
    line = [make_db(server, driver=driver) for driver in (*DRIVERS, *reversed(DRIVERS))]
    assert len({comer.sqlite_version for comer in line}) > 1
    for n, comer in enumerate(line):
        comer.start("SELECT dflock_lock('k', 60)")
        server.await_waiters("k", n + 1)
    fences = []
    assert first.value("SELECT dflock_release('k')") == "1"
    for comer in line:
        fences.append(comer.finish()[0][0])
        comer.close()
    assert fences == sorted(set(fences))
    assert first.value("SELECT dflock_acquire('k', 5)") == "1"
