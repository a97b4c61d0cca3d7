-- The extension itself: dropped, made again, in a schema of its own, in a database of another encoding.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS dflockd;
RESET client_min_messages;
SELECT dflock_acquire('before');
DROP EXTENSION dflockd;
CREATE EXTENSION dflockd;
SELECT dflock_is_held('before'), dflock_release('before');
DROP EXTENSION dflockd;
CREATE SCHEMA locks;
CREATE EXTENSION dflockd SCHEMA locks;
SELECT locks.dflock_acquire('k'), locks.dflock_release('k');
SELECT count(*) FROM locks.dflock_server_locks WHERE key = 'nothing';
SELECT count(*) FROM locks.dflock_servers;
ALTER EXTENSION dflockd SET SCHEMA public;
SELECT dflock_acquire('k'), dflock_release('k');
SELECT count(*) FROM dflock_server_locks WHERE key = 'nothing';
DROP SCHEMA locks;
SELECT * FROM pg_extension_update_paths('dflockd') WHERE path IS NOT NULL;

-- A database that cannot show every key.
SELECT dflock_acquire('smile-😀'), dflock_acquire('accent-é');
CREATE DATABASE regress_dflockd_latin1 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0;
\c regress_dflockd_latin1
SET client_encoding = 'UTF8';
CREATE EXTENSION dflockd;
SELECT dflock_acquire('accent-ü'), dflock_is_held('accent-ü');
\c contrib_regression
SET client_encoding = 'LATIN1';
SELECT dflock_acquire('plain');
SELECT key FROM dflock_locks WHERE state = 'held' AND pid = pg_backend_pid();
SET client_encoding = 'UTF8';
SELECT dflock_acquire('smile-😀');
SET client_encoding = 'LATIN1';
SELECT key FROM dflock_locks WHERE state = 'held' AND pid = pg_backend_pid() ORDER BY key;
SELECT key FROM dflock_server_locks WHERE key LIKE 'smile%';
SET client_encoding = 'UTF8';
-- Not aligned: versions of psql disagree about the width of this character.
\pset format unaligned
SELECT key FROM dflock_locks WHERE state = 'held' AND pid = pg_backend_pid() ORDER BY key;
\pset format aligned
DROP DATABASE regress_dflockd_latin1;
DROP EXTENSION dflockd;
