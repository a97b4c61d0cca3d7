"""What a session asks one worker and the next one answers, and what it forgets while the worker still remembers."""

import itertools
import os
import signal

import pytest

from lib.eventually import eventually
from lib.wire import Wire
from pg.standstill import Moments, asks, go_on, stop, stop_worker
from pg.waiting import Background, await_free

LOST = "SELECT key FROM dflock_locks WHERE state = 'lost'"


@pytest.mark.every_version
@pytest.mark.parametrize("give_back", ["SELECT dflock_release('k')", "SELECT dflock_release('k', dflock_token('k'))"])
def test_a_release_that_the_next_worker_finds_leaves_nothing(pg, session, server, watcher, give_back):
    """The worker ends before it looks at the request; the next one takes it, and the session comes last."""
    assert session.value("SELECT dflock_acquire('k')")
    old = stop_worker(pg, watcher)
    asking = asks(session, watcher, give_back)
    os.kill(old, signal.SIGTERM)
    os.kill(old, signal.SIGCONT)
    pg.await_worker(other_than=old)
    os.kill(session.pid, signal.SIGCONT)
    assert asking.failure().sqlstate == "LK006"
    eventually(lambda: watcher.rows(LOST) == [], deadline=5)
    assert session.value("SELECT dflock_acquire('k', 5)")


@pytest.mark.every_version
def test_a_token_of_an_earlier_worker_takes_its_hold_along(pg, session, server, watcher):
    assert session.value("SELECT dflock_acquire('k')")
    token = session.value("SELECT dflock_token('k')")
    old = pg.worker_pid()
    watcher.run("SELECT pg_terminate_backend(%s)", old)
    pg.await_worker(other_than=old)
    await_free(server)
    assert session.value("SELECT dflock_release('k', %s)", token) is False
    eventually(lambda: watcher.rows(LOST) == [], deadline=5)


@pytest.mark.every_version
@pytest.mark.parametrize("forget", ["SELECT dflock_cancel('k')", "DISCARD ALL"])
def test_a_lost_place_that_is_given_up_is_forgotten(pg, session, server, watcher, forget):
    assert watcher.value("SELECT dflock_acquire('k')")
    assert session.value("SELECT dflock_enqueue('k')") == "queued"
    server.kill()
    eventually(lambda: watcher.value("SELECT count(*) FROM dflock_locks WHERE state = 'lost'") == 2)
    assert session.rows(forget) in ([], [(False,)])
    eventually(lambda: watcher.value("SELECT count(*) FROM dflock_locks WHERE state = 'lost'") == 1, deadline=5)


@pytest.mark.every_version
def test_a_long_answer_is_whole_or_an_error(pg, session, server, watcher):
    """The worker ends between two pieces of it: the next worker has none of the rest."""
    with Wire(server.address) as wire:
        count = 20000
        wire.send_raw(b"".join(b"l\nkey%d%s\n0 600\n" % (i, b"x" * 200) for i in range(count)))
        for _ in range(count):
            assert wire.receive().startswith("ok ")
        assert len(watcher.value("SELECT dflock_stats()")[str(server)]["locks"]) == count
        old = stop_worker(pg, watcher)
        asking = asks(session, watcher, "SELECT server, key, left(error, 300) FROM dflock_server_locks")
        os.kill(old, signal.SIGCONT)
        watcher.run("SELECT dflock_stats()")
        watcher.run("SELECT pg_terminate_backend(%s)", old)
        pg.await_worker(other_than=old)
        os.kill(session.pid, signal.SIGCONT)
        assert asking.failure().sqlstate == "LK006"
        assert watcher.value("SELECT 1") == 1


@pytest.mark.every_version
def test_what_was_told_as_lost_is_not_held_again(pg, session, server, make_proxy, watcher):
    """The worker stood still with the answer to a renewal before it; the session was told, and asks for the lock anew."""
    proxy = make_proxy(server)
    pg.reload({"dflockd.servers": str(proxy)})
    eventually(lambda: watcher.rows("SELECT address FROM dflock_servers WHERE state <> 'old'") == [(str(proxy),)])
    first = session.value("SELECT dflock_lock('k', 0, 6)")
    proxy.black_hole(up=False)
    up = proxy.bytes["up"]
    eventually(lambda: proxy.bytes["up"] > up, deadline=10)
    worker = pg.worker_pid()
    stop(worker)
    proxy.pass_through()
    try:
        eventually(lambda: not session.value("SELECT dflock_is_held('k')"), deadline=15)
        assert session.fails("SELECT dflock_assert_held('k')").sqlstate == "40001"
    finally:
        os.kill(worker, signal.SIGCONT)
    watcher.run("SELECT * FROM dflock_servers")
    assert session.value("SELECT dflock_is_held('k')") is False
    assert session.fails("SELECT dflock_assert_held('k')").sqlstate == "40001"
    assert session.value("SELECT dflock_lock('k', 0)") > first and session.value("SELECT dflock_is_held('k')")


@pytest.mark.every_version
def test_each_lost_slot_is_told(session, server, watcher):
    """That the session knows of one loss says nothing of its other slots, held or lost."""
    def take(scope="", lease=60):
        assert session.value(f"SELECT dflock_{scope}sem_acquire('s', 9, 0, {lease})")
        return session.value("SELECT dflock_token('s')")

    def lose(*tokens):
        assert all(watcher.value("SELECT dflock_sem_release('s', %s)", token) for token in tokens)

    def is_told(sql="SELECT dflock_sem_acquire('s', 9, 0)"):
        session.run("SAVEPOINT p")
        assert session.fails(sql).sqlstate == "40001"
        session.run("ROLLBACK TO p")

    check = "SELECT dflock_assert_held('s')"
    session.run("BEGIN")
    older, newer = take(), take()
    lose(newer)
    is_told(check)
    last = take()
    lose(older)
    is_told()
    newest = take()
    lose(last, newest)
    is_told(check)
    is_told()
    # A lost slot of the transaction stays until its end. No other session may release it, but another client can.
    with Wire(server.address) as wire:
        assert wire.ask("sr", "s", take("xact_", 1)) == "ok"
    eventually(lambda: watcher.rows("SELECT 1 FROM dflock_locks WHERE state = 'lost'"))
    is_told(check)
    lose(take())
    is_told()
    assert take()
    assert session.fails("COMMIT").sqlstate == "40001"


@pytest.mark.every_version
def test_a_lost_holds_token_forgets_nothing(pg, session, server, watcher):
    """What it answers is no telling: the loss is seen, and told by the next who asks for the key."""
    assert session.value("SELECT dflock_acquire('k')")
    token = session.value("SELECT dflock_token('k')")
    assert watcher.value("SELECT dflock_release('k', %s)", token)
    for _ in range(2):
        assert session.value("SELECT dflock_release('k', %s)", token) is False
        assert session.rows(LOST) == [("k",)]
    assert session.fails("SELECT dflock_assert_held('k')").sqlstate == "40001"
    assert session.value("SELECT dflock_release('k', %s)", token) is False
    assert session.rows(LOST) == [("k",)]
    assert session.value("SELECT dflock_acquire('k', 0)") and session.rows(LOST) == []
    token = session.value("SELECT dflock_token('k')")
    assert watcher.value("SELECT dflock_release('k', %s)", token)
    assert session.value("SELECT dflock_release('k', %s)", token) is False
    assert session.fails("SELECT dflock_acquire('k', 0)").sqlstate == "40001"


@pytest.mark.every_version
@pytest.mark.parametrize("use", ["renew", "release", "release of the token"])
def test_what_was_told_as_lost_is_not_held_when_its_renewal_is_noted(pg, server, use):
    """The worker has read the clock and then the answer; while it stands still there, the session is told."""
    moments = Moments(pg)
    session, worker = pg.session(), pg.await_worker()
    assert session.value("SELECT dflock_acquire('k', 0, 4)")
    token = session.value("SELECT dflock_token('k')")
    moments.stop_in(worker, "recv")
    try:
        eventually(lambda: moments.stopped_in(worker, "recv"))
        eventually(lambda: not session.value("SELECT dflock_is_held('k')"))
        assert session.fails("SELECT dflock_assert_held('k')").sqlstate == "40001"
    finally:
        go_on(worker)
    pg.session().rows("SELECT * FROM dflock_servers")  # the worker has noted it
    if use == "renew":
        assert session.fails("SELECT dflock_renew('k')").sqlstate == "40001"
        assert session.fails("SELECT dflock_renew('k', 30)").sqlstate == "40001"
    if use == "release of the token":
        assert session.value("SELECT dflock_release('k', %s)", token) is False
    else:
        assert session.value("SELECT dflock_release('k')") is False
        assert session.fails("SELECT dflock_assert_held('k')").sqlstate == "55000"


@pytest.mark.every_version
def test_the_worker_changes_at_any_moment_of_a_request(pg, server):
    """The session stands still in its nth look at the clock, while another worker comes: nobody grants anew what
    the session has not been told to have lost."""
    moments = Moments(pg)
    session = pg.session()
    said = []
    while not said or said[-1] != "done":
        assert session.value("SELECT dflock_acquire('k', 0)")
        old = pg.await_worker()
        moments.stop_in(session.pid, "clock_gettime", len(said) + 1)
        asking = Background(session, "SELECT dflock_acquire('k', 0)")
        eventually(lambda: not asking.busy() or moments.stopped_in(session.pid, "clock_gettime"))
        if not asking.busy():
            said.append("done")
            continue
        os.kill(old, signal.SIGTERM)
        pg.await_worker(other_than=old)
        await_free(server)
        go_on(session.pid)
        said.append(asking.failure().sqlstate)
        assert not server.stats()["locks"]
        if said[-1] != "40001":
            assert session.fails("SELECT dflock_assert_held('k')").sqlstate == "40001"
    assert "LK006" in said and set(said) <= {"LK006", "40001", "55006", "done"}
