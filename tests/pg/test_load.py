"""Many: holds, waiters, connections."""

import pytest

from lib.eventually import Stopwatch, always, eventually
from lib.process import cpu_s, descriptors, resident
from lib.under import INSTRUMENTED, fewer, patient
from pg.cluster import run
from pg.waiting import Background, await_free


def test_ten_thousand_holds_over_their_lease(make_cluster, server):
    count = fewer(10000)  # a slower worker has time for fewer renewals
    pg = make_cluster(server, dflockd__max_locks=count)
    session, watcher = pg.session(), pg.session()
    with Stopwatch() as taking:
        assert session.value("SELECT count(*) FROM generate_series(1, %s) AS i WHERE dflock_acquire('k' || i, 0, 6)", count) == count
    worker = pg.await_worker()
    assert session.fails("SELECT dflock_acquire('more')").sqlstate == "53400"
    before = cpu_s(worker)
    always(lambda: session.value("SELECT dflock_is_held('k1') AND dflock_is_held('k' || %s)", count), 9, every=0.5)
    used = (cpu_s(worker) - before) / 9
    held, renewed = watcher.rows("SELECT count(*) FILTER (WHERE state = 'held'), min(renewals) FROM dflock_locks")[0]
    assert held == count and renewed >= 1
    assert watcher.value("SELECT connections FROM dflock_servers") <= 2
    print(f"{count} holds: taken in {taking.s:.1f} s, worker {100 * used:.1f} % of a core at a lease of 6 s, "
          f"{resident(worker) >> 20} MB")
    with Stopwatch() as giving:
        assert session.value("SELECT dflock_release_all()") == count
    assert giving.s < patient(20)
    await_free(server)


@pytest.mark.timeout(240)
def test_five_hundred_waiters(make_cluster, make_server):
    server = make_server("--max-connections", 0)
    pg = make_cluster(server, max_connections=520, dflockd__max_connections=520)
    holder = pg.session()
    holder.run("SELECT dflock_acquire('k')")
    worker = pg.await_worker()
    count = fewer(500)
    waiters = [pg.session() for _ in range(count)]
    running = [Background(w, "SELECT dflock_acquire('k', 120)") for w in waiters]
    server.await_waiters("k", count)
    # The others go on meanwhile.
    with Stopwatch() as took:
        for i in range(20):
            assert holder.value("SELECT dflock_acquire('free') AND dflock_release('free')")
    assert took.s < patient(5)
    print(f"{count} waiters: {descriptors(worker)} descriptors, {resident(worker) >> 20} MB")
    assert descriptors(worker) > count
    # Half of them give up, the others get it one after the other.
    for waiter in waiters[::2]:
        waiter.connection.cancel()
    for one in running[::2]:
        assert one.failure().sqlstate == "57014"
    server.await_waiters("k", count // 2)
    holder.run("SELECT dflock_release('k')")
    left = running[1::2]
    while left:  # in the order of the server's queue, which is not that of the list: they came all at once
        one = eventually(lambda: next((w for w in left if not w.busy()), None), what=f"one of {len(left)} has it")
        assert one.finish() == [(True,)]
        one.session.run("SELECT dflock_release('k')")
        left.remove(one)
    await_free(server)
    eventually(lambda: descriptors(worker) < 100, deadline=40, what="idle connections are closed")


@pytest.mark.timeout(300)
def test_connect_lock_disconnect_leaks_nothing(pg, session, server):
    """Ten thousand sessions that come, lock, and leave without a word."""
    script = pg.directory / "cycle.sql"
    script.write_text("\\set n random(1, 50)\nSELECT dflock_acquire('c' || :n, 0), dflock_sem_acquire('sem', 100, 0);\n")
    script.chmod(0o644)
    worker = pg.await_worker()

    def cycles(count):
        run([pg.installation.program("pgbench"), "-n", "-C", "-c", "2", "-j", "2", "-t", count // 2, "-f", script, "-h",
             pg.directory, "-p", pg.port, "-U", "postgres", "postgres"])

    cycles(fewer(1000))
    await_free(server)
    before = (descriptors(worker), resident(worker))
    cycles(fewer(9000))
    await_free(server)
    after = (descriptors(worker), resident(worker))
    print(f"connect-lock-disconnect, {fewer(9000)} more: descriptors {before[0]} -> {after[0]}, "
          f"memory {before[1] >> 10} -> {after[1] >> 10} kB")
    assert after[0] <= before[0] + 2
    assert after[1] <= before[1] + (2 << 20) or INSTRUMENTED
    eventually(lambda: session.rows("SELECT * FROM dflock_locks") == [])


def test_large_stats(pg, session, server):
    """An answer of many pieces, whole."""
    session.run("SELECT count(*) FROM generate_series(1, 3000) AS i WHERE dflock_acquire(repeat('x', 200) || i, 0)")
    stats = session.value("SELECT dflock_stats()")[str(server)]
    assert len(stats["locks"]) == 3000
    assert len(session.rows("SELECT * FROM dflock_server_locks WHERE held_by_pid = %s", session.pid)) == 3000
    # Given up in the middle, again and again.
    session.run("SET statement_timeout = 5")
    failures = 0
    for _ in range(30):
        try:
            session.run("SELECT dflock_stats()")
        except Exception:
            failures += 1
    assert failures
    session.run("RESET statement_timeout")
    assert session.value("SELECT dflock_release_all()") == 3000


def test_data_checks_out_under_contention(pg, server):
    """A counter that is read and written without any lock of PostgreSQL's: only ours keeps it right."""
    session = pg.session()
    session.run("CREATE TABLE counter (n int)")
    session.run("INSERT INTO counter VALUES (0)")
    script = pg.directory / "add.sql"
    script.write_text("BEGIN;\nSELECT dflock_xact_lock('counter', 60);\nSELECT n AS n FROM counter \\gset\n"
                      "UPDATE counter SET n = :n + 1;\nCOMMIT;\n")
    script.chmod(0o644)
    run([pg.installation.program("pgbench"), "-n", "-c", "8", "-j", "2", "-t", "100", "-f", script, "-h", pg.directory,
         "-p", pg.port, "-U", "postgres", "postgres"])
    assert session.value("SELECT n FROM counter") == 800
    await_free(server)
