-- What every function answers when nothing goes wrong.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS dflockd;
RESET client_min_messages;

-- Locks of the session.
SELECT dflock_acquire('k');
SELECT dflock_is_held('k'), dflock_assert_held('k'), dflock_assert_held('k', true);
SELECT length(dflock_token('k')), dflock_lease('k'), dflock_fence('k') = dflock_token_fence(dflock_token('k')) AS same;
SELECT dflock_renew('k') BETWEEN 30 AND 33 AS seconds_left;
SELECT dflock_renew('k', 100) BETWEEN 98 AND 100 AS seconds_left, dflock_lease('k');
SELECT dflock_release('k');
SELECT dflock_is_held('k'), dflock_token('k'), dflock_lease('k'), dflock_fence('k');

-- The fence grows.
SELECT dflock_lock('k', 0) AS first \gset
SELECT dflock_release('k');
SELECT dflock_lock('k', timeout => 1.5, lease_ttl => 10) > :first AS grows, dflock_lease('k');

-- Whoever knows the token may release.
SELECT dflock_release('k', dflock_token('k'));
SELECT dflock_release('k', '00000000000000000000000000000000');

-- Nothing held is no error.
SELECT dflock_release('k');
SELECT dflock_sem_release('k');
SELECT dflock_cancel('k');
SELECT dflock_release_all();

-- Semaphores: each call takes one more slot, the newest is given back first.
SELECT dflock_sem_acquire('sem3', 3), dflock_sem_lock('sem3', 3) > 0 AS fence;
SELECT dflock_token('sem3') AS newest \gset
SELECT dflock_sem_release('sem3'), dflock_token('sem3') = :'newest' AS still_the_newest, dflock_is_held('sem3');
SELECT dflock_sem_release('sem3', dflock_token('sem3')), dflock_is_held('sem3');

-- Two phases.
SELECT dflock_enqueue('q'), dflock_wait('q'), dflock_wait('q', 0);
SELECT dflock_cancel('q'), dflock_is_held('q'), dflock_release('q');
SELECT dflock_sem_enqueue('semq', 2, 10), dflock_sem_wait('semq'), dflock_lease('semq'), dflock_sem_release('semq');

-- Procedures.
CALL dflock_take('t');
CALL dflock_sem_take('t2', 2, lease_ttl => 20);
SELECT key, kind, scope, state, slots, lease, fence IS NOT NULL AS fence, acquired_at <= now() + '1s' AS acquired,
       expires_at > now() AS expires, renewed_at, renewals, last_error, server IS NOT NULL AS server, blocked_by_pids
FROM dflock_locks WHERE state = 'held' AND pid = pg_backend_pid() ORDER BY key;
SELECT kind, slots, holders, waiters, lease_expires_in > 0 AS expires, held_by_pid = pg_backend_pid() AS mine, error
FROM dflock_server_locks WHERE key IN ('t', 't2') ORDER BY key;
SELECT dflock_release_all();

-- What the session holds or awaits already.
SELECT dflock_acquire('k'), dflock_sem_acquire('sem1', 1), dflock_sem_acquire('sem2', 2), dflock_sem_acquire('sem2', 2);
\set VERBOSITY sqlstate
SELECT dflock_acquire('k');
SELECT dflock_enqueue('k');
SELECT dflock_wait('k');
CALL dflock_take('k');
SELECT dflock_sem_acquire('k', 1);
SELECT dflock_acquire('sem1');
SELECT dflock_sem_acquire('sem1', 1);
SELECT dflock_sem_acquire('sem2', 2);
SELECT dflock_xact_acquire('k');
SELECT dflock_sem_acquire('sem2', 5);
\set VERBOSITY default
SELECT dflock_release_all();

-- Servers.
SELECT count(*), bool_and(error IS NULL AND round_trip_ms >= 0) AS answer FROM dflock_ping();
SELECT state, connections > 0 AS connected, round_trip_ms >= 0 AS measured, last_error, since <= now() + '1s' AS since
FROM dflock_servers;
SELECT jsonb_typeof(value), value ? 'locks' AS locks FROM jsonb_each(dflock_stats());
SELECT dflock_version() ~ '^dflockd \d.*OpenSSL.*PostgreSQL' AS version;

-- As a guard: once for the statement.
CREATE TABLE job (id int, done boolean DEFAULT false);
INSERT INTO job SELECT generate_series(1, 3);
UPDATE job SET done = true WHERE (SELECT dflock_acquire('guard'));
WITH g AS MATERIALIZED (SELECT dflock_acquire('guard2') AS ok) SELECT count(*) FROM job, g WHERE ok;
SELECT key FROM dflock_locks WHERE state = 'held' AND pid = pg_backend_pid() ORDER BY key;
-- Rows are chosen first, then locked.
WITH chosen AS MATERIALIZED (SELECT id FROM job ORDER BY id LIMIT 2)
SELECT id, dflock_acquire('job:' || id) FROM chosen ORDER BY id;
SELECT dflock_release_all();
DROP TABLE job;

-- Everything has a comment, nothing is strict, what is about holds stays with the leader.
SELECT p.oid::regprocedure FROM pg_proc p JOIN pg_depend d ON d.objid = p.oid AND d.deptype = 'e'
WHERE d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'dflockd') AND d.classid = 'pg_proc'::regclass
  AND (obj_description(p.oid, 'pg_proc') IS NULL OR p.proisstrict);
SELECT p.proname, p.provolatile, p.proparallel FROM pg_proc p JOIN pg_depend d ON d.objid = p.oid AND d.deptype = 'e'
WHERE d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'dflockd') AND d.classid = 'pg_proc'::regclass
  AND p.prokind = 'f' AND (p.provolatile <> 'v' OR p.proparallel <> 'r') ORDER BY 1;
SELECT c.relname FROM pg_class c WHERE c.relname LIKE 'dflock%' AND obj_description(c.oid, 'pg_class') IS NULL;
