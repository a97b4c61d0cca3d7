"""Requests of every kind, given up in every state that a worker under load leaves them in: neither lost nor done half."""

import os
import random
import signal
import time

from lib.eventually import eventually
from lib.under import patient
from pg.waiting import Background, await_free

# {} is the request; most of the time the session cancels itself just before it. A scalar expression is not interrupted
# between its functions, so the cancel meets the wait for the answer.
KINDS = [
    "PERFORM {dflock_acquire(key, 0)};",
    "PERFORM dflock_acquire(key, 0); PERFORM {dflock_release(key)};",
    "PERFORM dflock_acquire(key, 0); PERFORM {dflock_renew(key) > 0};",
    "PERFORM dflock_acquire(key, 0); PERFORM {dflock_release_all() > 0};",
    "PERFORM dflock_sem_acquire(key || 's', 3), dflock_sem_acquire(key || 's', 3); PERFORM {dflock_sem_release(key || 's')};",
    "PERFORM {dflock_xact_lock(key) > 0}; RAISE query_canceled;",
    "PERFORM {dflock_enqueue(key || 'q') > ''};",
    "PERFORM {dflock_acquire(shared, 0.02)};",
    "PERFORM dflock_enqueue(shared); PERFORM {dflock_wait(shared, 0.05)};",
    "PERFORM dflock_enqueue(shared); PERFORM {dflock_cancel(shared)};",
    "PERFORM {(SELECT count(*) FROM dflock_server_locks) > 0};",
]

VICTIM = """
CREATE FUNCTION victim(key text, shared text, seconds float8) RETURNS int[] LANGUAGE plpgsql AS $$
DECLARE
    until timestamptz := clock_timestamp() + make_interval(secs => seconds);
    canceled int[] := array_fill(0, ARRAY[{count}]);
    kind int;
    stay bool;
BEGIN
    WHILE clock_timestamp() < until LOOP
        kind := 1 + floor(random() * {count});
        stay := random() < 0.3;
        BEGIN
            CASE kind {kinds} END CASE;
        EXCEPTION WHEN query_canceled THEN
            canceled[kind] := canceled[kind] + 1;
        END;
        PERFORM dflock_release_all();
        ASSERT NOT (dflock_is_held(key) OR dflock_is_held(key || 's') OR dflock_is_held(shared)), 'held, ' || kind;
        -- Nobody else wants it: never busy, not even while the request before is on its way back.
        ASSERT dflock_acquire(key, 0), 'not granted, ' || kind;
        ASSERT (SELECT bool_and(dflock_sem_acquire(key || 's', 3, 20)) FROM generate_series(1, 3)), 'no slots, ' || kind;
        ASSERT dflock_release_all() = 4, 'the worker holds something else, ' || kind;
    END LOOP;
    RETURN canceled;
END $$"""


def victim():
    kinds = [one.replace("{", "(stay OR pg_cancel_backend(pg_backend_pid())) AND ").replace("}", "") for one in KINDS]
    return VICTIM.format(count=len(kinds), kinds=" ".join(f"WHEN {i} THEN {one}" for i, one in enumerate(kinds, 1)))


def test_a_worker_that_comes_late(pg, server, watcher):
    """It is stopped again and again, for as long as a session needs to give up and ask the next thing, or several."""
    rng = random.Random(11)
    watcher.run(victim())
    worker = pg.await_worker()
    end = time.monotonic() + 6
    running = [Background(pg.session(), "SELECT victim(%s, %s, 6)", f"own{i}", f"shared{i % 2}") for i in range(8)]
    while time.monotonic() < end:
        os.kill(worker, signal.SIGSTOP)
        time.sleep(rng.random() * 0.003)
        os.kill(worker, signal.SIGCONT)
        time.sleep(rng.random() * 0.01)
    counts = [one.finish(patient(60))[0][0] for one in running]
    canceled = [sum(column) for column in zip(*counts)]
    print("given up, by kind:", canceled)
    assert min(canceled) > 0
    await_free(server)
    eventually(lambda: watcher.rows("SELECT * FROM dflock_locks") == [], what="no entry is left")
