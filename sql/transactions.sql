-- Locks and transactions.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS dflockd;
RESET client_min_messages;
CREATE VIEW mine AS SELECT key, kind, scope, state FROM dflock_locks
    WHERE pid = pg_backend_pid() AND state <> 'releasing' ORDER BY key;

-- Session locks survive COMMIT, transaction locks end with it.
BEGIN;
SELECT dflock_acquire('sess'), dflock_xact_acquire('x'), dflock_xact_sem_acquire('xs', 2);
SELECT * FROM mine;
COMMIT;
SELECT * FROM mine;

-- A transaction lock asked for again is the same; semaphore requests take one more slot.
BEGIN;
SELECT dflock_xact_lock('x') AS a \gset
SELECT dflock_xact_lock('x') = :a AS same;
SELECT dflock_xact_sem_acquire('xs', 2), dflock_xact_sem_acquire('xs', 2);
SELECT * FROM mine;
ROLLBACK;
SELECT * FROM mine;

-- It is never given back by hand.
BEGIN;
SELECT dflock_xact_acquire('x');
SELECT dflock_release('x');
SELECT dflock_release('x', dflock_token('x'));
SELECT dflock_release_all();
SELECT * FROM mine;
COMMIT;
SELECT * FROM mine;

-- A failed transaction holds nothing, whatever failed.
BEGIN;
SELECT dflock_acquire('f1'), dflock_enqueue('f2'), dflock_sem_acquire('f3', 2);
SELECT 1/0;
ROLLBACK;
SELECT * FROM mine;
SELECT dflock_acquire('f1'), 1/0;
SELECT * FROM mine;

-- Savepoints.
SELECT dflock_acquire('sess');
BEGIN;
SELECT dflock_acquire('b');
SAVEPOINT one;
SELECT dflock_acquire('in1'), dflock_xact_acquire('x1');
SAVEPOINT two;
SELECT dflock_acquire('in2');
ROLLBACK TO two;
SELECT * FROM mine;
RELEASE two;
RELEASE one;
SAVEPOINT three;
SELECT dflock_acquire('in3');
ROLLBACK TO three;
SELECT * FROM mine;
COMMIT;
SELECT * FROM mine;
SELECT dflock_release_all();

-- A savepoint takes back a hold that a wait in it made of an older place.
SELECT dflock_enqueue('p');
BEGIN;
SAVEPOINT s;
SELECT dflock_wait('p');
ROLLBACK TO s;
SELECT * FROM mine;
COMMIT;
SELECT dflock_release_all();

-- PL/pgSQL: an EXCEPTION block is a savepoint; procedures commit.
DO $$
BEGIN
    PERFORM dflock_acquire('kept');
    BEGIN
        PERFORM dflock_acquire('gone');
        RAISE division_by_zero;
    EXCEPTION WHEN division_by_zero THEN NULL;
    END;
END $$;
SELECT * FROM mine;
CREATE PROCEDURE steps() LANGUAGE plpgsql AS $$
BEGIN
    PERFORM dflock_xact_lock('step');
    CALL dflock_take('proc');
    COMMIT;
    PERFORM dflock_xact_lock('step2');
    ROLLBACK;
    PERFORM dflock_assert_held('proc');
END $$;
CALL steps();
SELECT * FROM mine;
DO $$ BEGIN CALL dflock_take('in-do'); PERFORM count(*) FROM pg_class; END $$;
BEGIN;
CALL dflock_take('in-block');
COMMIT;
SELECT * FROM mine;
SELECT dflock_release_all();

-- Prepared statements, cursors, triggers.
PREPARE take(text) AS SELECT dflock_acquire($1);
EXECUTE take('p1');
EXECUTE take('p2');
BEGIN;
DECLARE c CURSOR FOR SELECT dflock_xact_acquire('c' || i) FROM generate_series(1, 3) AS i;
FETCH 2 FROM c;
SELECT * FROM mine;
COMMIT;
CREATE TABLE t (id int);
CREATE FUNCTION guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM dflock_xact_lock('row:' || NEW.id); RETURN NEW; END $$;
CREATE TRIGGER guard BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION guard();
BEGIN;
INSERT INTO t VALUES (1), (2);
SELECT * FROM mine;
COMMIT;
SELECT * FROM mine;
SELECT dflock_release_all();

-- The leader of a parallel query.
SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0;
SET min_parallel_table_scan_size = 0;
ALTER TABLE t DISABLE TRIGGER guard;
INSERT INTO t SELECT generate_series(10, 20000);
ANALYZE t;
SELECT count(*) > 0 AS rows FROM t WHERE id > 5 AND (SELECT dflock_acquire('leader'));
SELECT * FROM mine;
SELECT dflock_release_all();

-- PREPARE TRANSACTION has no room for locks.
BEGIN;
SELECT dflock_xact_acquire('x');
\set VERBOSITY sqlstate
PREPARE TRANSACTION 'p';
BEGIN;
SELECT dflock_acquire('x');
PREPARE TRANSACTION 'p';
SELECT * FROM mine;

-- COMMIT is refused when a lock that the transaction counts on is gone.
SELECT dflock_acquire('a');
BEGIN;
SELECT dflock_assert_held('a');
SELECT dflock_release('a');
COMMIT;
SELECT dflock_acquire('a');
BEGIN;
SAVEPOINT s;
SELECT dflock_assert_held('a');
ROLLBACK TO s;
SELECT dflock_release('a');
COMMIT;
SELECT dflock_acquire('a');
BEGIN;
SAVEPOINT s;
SELECT dflock_assert_held('a');
RELEASE s;
SELECT dflock_release('a');
COMMIT;
BEGIN;
SELECT dflock_acquire('a'), dflock_assert_held('a');
COMMIT;
\set VERBOSITY default
SELECT * FROM mine;

-- Deferred constraints run before the check, AND CHAIN after it.
BEGIN;
SELECT dflock_xact_acquire('chain');
COMMIT AND CHAIN;
SELECT * FROM mine;
COMMIT;

-- DISCARD ALL and RESET ALL give session locks back, whatever becomes of the transaction.
SELECT dflock_acquire('d1'), dflock_enqueue('d2');
DISCARD ALL;
SELECT * FROM mine;
SELECT dflock_acquire('d1');
RESET dflockd.lease_ttl;
DISCARD PLANS;
SELECT * FROM mine;
BEGIN;
SELECT dflock_xact_acquire('d3');
RESET ALL;
ROLLBACK;
SELECT * FROM mine;
BEGIN;
SELECT dflock_xact_acquire('d3');
RESET ALL;
SELECT * FROM mine;
COMMIT;
SELECT * FROM mine;
DROP TABLE t;
DROP FUNCTION guard;
DROP PROCEDURE steps;
DROP VIEW mine;
