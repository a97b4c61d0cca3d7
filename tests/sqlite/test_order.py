"""Many comers: the server's queue is first in, first out, for processes and for threads; no update is lost."""

import sqlite3

from lib.eventually import eventually


def test_ten_processes_are_served_in_their_order(make_db, server):
    holder = make_db(server)
    holder.value("SELECT dflock_lock('k')")
    comers = [make_db(server) for _ in range(10)]
    for n, comer in enumerate(comers):
        comer.start("SELECT dflock_lock('k', 60)")
        server.await_waiters("k", n + 1)
    holder.value("SELECT dflock_release('k')")
    fences = []
    for n, comer in enumerate(comers):
        fences.append(comer.finish()[0][0])
        assert all(later.busy() for later in comers[n + 1:])
        comer.value("SELECT dflock_release('k')")
    assert fences == sorted(fences) and len(set(fences)) == 10


def test_a_third_in_line_stays_third(make_db, server):
    """The second gives up; the first and third do not notice."""
    a, b, c = (make_db(server) for _ in range(3))
    a.value("SELECT dflock_lock('k')")
    b.start("SELECT dflock_lock('k', 9e999)")
    server.await_waiters("k", 1)
    c.start("SELECT dflock_lock('k', 9e999)")
    server.await_waiters("k", 2)
    b.interrupt()
    server.await_waiters("k", 1)
    a.value("SELECT dflock_release('k')")
    c.finish()
    assert a.value("SELECT dflock_acquire('k', 0)") == 0


def test_processes_never_lose_an_update(start_script, server, directory):
    path = directory / "counter.db"
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE t(n)")
    database.execute("INSERT INTO t VALUES (0)")
    database.commit()
    database.close()
    text = f"""
        lock, data = connect(), connect({str(path)!r}, load=False)
        data.rows("PRAGMA synchronous = off")
        for i in range(100):
            lock.value("SELECT dflock_lock('counter', 60)")
            n = data.value("SELECT n FROM t")
            data.rows("UPDATE t SET n = ?", n + 1)
            assert lock.value("SELECT dflock_release('counter')") == 1
        """
    for script in [start_script(text, servers=server) for _ in range(6)]:
        script.wait(100)
    database = sqlite3.connect(path)
    assert database.execute("SELECT n FROM t").fetchone() == (600,)
    database.close()


def test_threads_with_sessions_of_their_own(run_script, server):
    lines = run_script("""
        box = [0]
        def work(n):
            c = connect()
            for i in range(50):
                c.value("SELECT dflock_lock('k', 60)")
                seen = box[0]
                if i % 10 == 0:
                    time.sleep(0.001)
                box[0] = seen + 1
                assert c.value("SELECT dflock_release('k')") == 1
            c.close()
        for end in [in_thread(work, n) for n in range(12)]:
            end(100)
        print(box[0])
        """, servers=server, deadline=120)
    assert lines == ["600"]


def test_one_session_used_by_many_threads(run_script, server):
    """SQLite lets one of them in at a time."""
    run_script("""
        c = connect()
        def work(n):
            for i in range(100):
                assert c.value("SELECT dflock_acquire(?, 5)", f"k{n}") == 1
                assert c.value("SELECT dflock_assert_held(?, ?)", f"k{n}", i % 2) == 1
                assert c.value("SELECT dflock_release(?)", f"k{n}") == 1
        for end in [in_thread(work, n) for n in range(8)]:
            end(100)
        assert c.value("SELECT count(*) FROM dflock_locks") == 0
        """, servers=server, deadline=120)


def test_cancel_storm_leaves_nothing(run_script, server):
    """Random cancels against random grants; at the end the server's table is empty, and so is ours."""
    run_script("""
        import random
        random.seed(7)
        sessions = [connect() for _ in range(6)]
        stop = time.monotonic() + 8
        def emptied(c):
            try:
                return c.value("SELECT dflock_release_all()") >= 0
            except Error as error:  # perhaps before it had begun
                assert "57014" in str(error) or str(error) == "interrupted", error
        def work(c, seed):
            mine = random.Random(seed)
            counts = [0, 0, 0]
            while time.monotonic() < stop:
                try:
                    got = c.value("SELECT dflock_acquire(?, ?)", mine.choice("ab"), mine.choice([0, 0.05, 1, 5]))
                    counts[got] += 1
                except Error as error:
                    assert "57014" in str(error) or str(error) == "interrupted", error
                    counts[2] += 1
                while not emptied(c):
                    pass
            return counts
        ends = [in_thread(work, c, n) for n, c in enumerate(sessions)]
        while time.monotonic() < stop:
            time.sleep(random.random() * 0.05)
            random.choice(sessions).interrupt()
        print([e(30) for e in ends])
        for c in sessions:
            c.value("SELECT dflock_release_all()")
            assert c.value("SELECT count(*) FROM dflock_locks") == 0
        """, servers=server, deadline=90)
    eventually(lambda: server.holders("a") == server.holders("b") == 0)
    eventually(lambda: server.waiters("a") == server.waiters("b") == 0)


def test_release_by_token_across_threads_without_deadlock(run_script, server):
    """Every session releases the others' holds by token, while the others wait and work."""
    run_script("""
        sessions = [connect() for _ in range(5)]
        tokens = {}
        stop = time.monotonic() + 5
        def work(n):
            c, count = sessions[n], 0
            while time.monotonic() < stop:
                try:
                    c.value("SELECT dflock_acquire(?, 1)", f"k{n}")
                    tokens[n] = c.value("SELECT dflock_token(?)", f"k{n}")
                    victim = (n + 1) % 5
                    if tokens.get(victim):
                        count += c.value("SELECT dflock_release(?, ?)", f"k{victim}", tokens[victim])
                    c.value("SELECT dflock_release(?)", f"k{n}")
                except Error as error:
                    assert "40001" in str(error), error
            return count
        counts = [e(60) for e in [in_thread(work, n) for n in range(5)]]
        assert sum(counts) > 0, counts
        """, servers=server, deadline=90)
