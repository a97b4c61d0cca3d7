-- The settings, their defaults, and who may set them.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS dflockd;
RESET client_min_messages;
SELECT name, setting, unit, context, vartype, min_val, max_val, enumvals FROM pg_settings
WHERE name LIKE 'dflockd.%' AND name NOT IN ('dflockd.servers') ORDER BY name;
SELECT boot_val FROM pg_settings WHERE name = 'dflockd.servers';

-- Values that make no sense are refused.
\set VERBOSITY sqlstate
SET dflockd.acquire_timeout = -2;
SET dflockd.lease_ttl = -1;
ALTER SYSTEM SET dflockd.renew_ratio = 0.9;
ALTER SYSTEM SET dflockd.connect_timeout = 0;
\set VERBOSITY default
SET dflockd.acquire_timeout = '-0.5';
SET dflockd.acquire_timeout = -1;
SHOW dflockd.acquire_timeout;
SET dflockd.acquire_timeout = '1500ms';
SHOW dflockd.acquire_timeout;
SET dflockd.lease_ttl = '2min';
SHOW dflockd.lease_ttl;
SET dflockd.key_prefix = 'a b';
SET dflockd.key_prefix = 'app:';
RESET ALL;
ALTER SYSTEM SET dflockd.servers = '';
ALTER SYSTEM SET dflockd.servers = 'a:1,a:1';
ALTER SYSTEM SET dflockd.servers = 'a:99999';
ALTER SYSTEM SET dflockd.tls = 'maybe';

-- Settings of the server are not a session's.
SET dflockd.servers = 'a:1';
SET dflockd.tls = off;
SET dflockd.max_locks = 5;

-- The prefix: part of the key, not of what its owner sees.
SET dflockd.key_prefix = 'one:';
SELECT dflock_acquire('k');
SELECT key FROM dflock_locks WHERE state = 'held' AND pid = pg_backend_pid();
SELECT key, kind FROM dflock_server_locks WHERE key = 'k';
SELECT dflock_acquire(repeat('x', 253));
SET dflockd.key_prefix = 'two:';
SELECT dflock_is_held('k'), dflock_acquire('k');
SELECT key FROM dflock_locks WHERE state = 'held' AND pid = pg_backend_pid() ORDER BY key;
RESET dflockd.key_prefix;
SELECT dflock_is_held('k'), dflock_is_held('one:k'), dflock_release('one:k'), dflock_release_all();

-- A cap for each session.
SET dflockd.max_session_locks = 2;
SELECT dflock_acquire('c1'), dflock_acquire('c2');
\set VERBOSITY sqlstate
SELECT dflock_acquire('c3');
\set VERBOSITY default
SELECT dflock_release('c1'), dflock_acquire('c3');
RESET dflockd.max_session_locks;
SELECT dflock_release_all();

-- release_wait off: the release is sent, the next request follows it.
SET dflockd.release_wait = off;
SELECT dflock_acquire('w'), dflock_release('w'), dflock_acquire('w'), dflock_release('w'), dflock_release('w');
RESET dflockd.release_wait;

-- An ordinary role.
CREATE ROLE regress_dflockd_user LOGIN;
SET SESSION AUTHORIZATION regress_dflockd_user;
SET dflockd.acquire_timeout = 3;
SET dflockd.release_wait = on;
\set VERBOSITY sqlstate
SET dflockd.key_prefix = 'x';
SET dflockd.max_session_locks = 100;
SHOW dflockd.auth_token_file;
SELECT dflock_stats();
SELECT * FROM dflock_ping();
SELECT * FROM dflock_servers;
SELECT * FROM dflock_servers();
SELECT * FROM dflock_server_locks;
\set VERBOSITY default
SELECT dflock_acquire('u'), dflock_is_held('u');
SELECT key, pid = pg_backend_pid() AS mine FROM dflock_locks WHERE state = 'held';
SELECT dflock_release('u'), dflock_version() IS NOT NULL AS version;
RESET SESSION AUTHORIZATION;
GRANT pg_monitor TO regress_dflockd_user;
SET SESSION AUTHORIZATION regress_dflockd_user;
SELECT count(*) FROM dflock_servers;
SELECT count(*) FROM dflock_ping();
SELECT count(*) >= 0 AS ok FROM dflock_server_locks;
RESET SESSION AUTHORIZATION;
-- Locking kept for one role.
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA public FROM PUBLIC;
SET SESSION AUTHORIZATION regress_dflockd_user;
\set VERBOSITY sqlstate
SELECT dflock_acquire('u');
RESET SESSION AUTHORIZATION;
\set VERBOSITY default
DROP EXTENSION dflockd;
CREATE EXTENSION dflockd;
DROP ROLE regress_dflockd_user;
