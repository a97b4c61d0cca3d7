/* dflockd--1.0.0.sql: distributed locks and semaphores of a dflockd lock server. */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION dflockd" to load this file. \quit

-- Nothing is STRICT: a missing key must be an error, not a NULL that looks like "no". Parallel workers are other
-- sessions, so everything that is about holds stays with the leader.

-- ---------------------------------------------------------------- acquiring

CREATE FUNCTION dflock_acquire(key text, timeout double precision DEFAULT NULL, lease_ttl integer DEFAULT NULL)
RETURNS boolean
AS 'MODULE_PATHNAME', 'dflock_acquire'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION dflock_acquire(text, double precision, integer) IS
'take a lock for this session: true, or false when somebody else has it and the time is over';

CREATE FUNCTION dflock_lock(key text, timeout double precision DEFAULT NULL, lease_ttl integer DEFAULT NULL)
RETURNS bigint
AS 'MODULE_PATHNAME', 'dflock_lock'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION dflock_lock(text, double precision, integer) IS
'take a lock for this session or raise an error; returns its fence, -1 when the server has none';

CREATE FUNCTION dflock_sem_acquire(key text, slots bigint, timeout double precision DEFAULT NULL, lease_ttl integer DEFAULT NULL)
RETURNS boolean
AS 'MODULE_PATHNAME', 'dflock_sem_acquire'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION dflock_sem_acquire(text, bigint, double precision, integer) IS
'take one slot of a semaphore for this session: true, or false when all are taken and the time is over';

CREATE FUNCTION dflock_sem_lock(key text, slots bigint, timeout double precision DEFAULT NULL, lease_ttl integer DEFAULT NULL)
RETURNS bigint
AS 'MODULE_PATHNAME', 'dflock_sem_lock'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION dflock_sem_lock(text, bigint, double precision, integer) IS
'take one slot of a semaphore for this session or raise an error; returns its fence, -1 when the server has none';

CREATE FUNCTION dflock_xact_acquire(key text, timeout double precision DEFAULT NULL, lease_ttl integer DEFAULT NULL)
RETURNS boolean
AS 'MODULE_PATHNAME', 'dflock_xact_acquire'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION dflock_xact_acquire(text, double precision, integer) IS
'take a lock until the end of this transaction or savepoint: true, or false when somebody else has it and the time is over';

CREATE FUNCTION dflock_xact_lock(key text, timeout double precision DEFAULT NULL, lease_ttl integer DEFAULT NULL)
RETURNS bigint
AS 'MODULE_PATHNAME', 'dflock_xact_lock'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION dflock_xact_lock(text, double precision, integer) IS
'take a lock until the end of this transaction or savepoint, or raise an error; returns its fence';

CREATE FUNCTION dflock_xact_sem_acquire(key text, slots bigint, timeout double precision DEFAULT NULL, lease_ttl integer DEFAULT NULL)
RETURNS boolean
AS 'MODULE_PATHNAME', 'dflock_xact_sem_acquire'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION dflock_xact_sem_acquire(text, bigint, double precision, integer) IS
'take one slot of a semaphore until the end of this transaction or savepoint: true or false';

CREATE FUNCTION dflock_xact_sem_lock(key text, slots bigint, timeout double precision DEFAULT NULL, lease_ttl integer DEFAULT NULL)
RETURNS bigint
AS 'MODULE_PATHNAME', 'dflock_xact_sem_lock'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION dflock_xact_sem_lock(text, bigint, double precision, integer) IS
'take one slot of a semaphore until the end of this transaction or savepoint, or raise an error; returns its fence';

CREATE PROCEDURE dflock_take(key text, timeout double precision DEFAULT NULL, lease_ttl integer DEFAULT NULL)
AS 'MODULE_PATHNAME', 'dflock_take'
LANGUAGE C;
COMMENT ON PROCEDURE dflock_take(text, double precision, integer) IS
'take a lock for this session or raise an error; outside a transaction block it waits without holding a snapshot';

CREATE PROCEDURE dflock_sem_take(key text, slots bigint, timeout double precision DEFAULT NULL, lease_ttl integer DEFAULT NULL)
AS 'MODULE_PATHNAME', 'dflock_sem_take'
LANGUAGE C;
COMMENT ON PROCEDURE dflock_sem_take(text, bigint, double precision, integer) IS
'take one slot of a semaphore for this session or raise an error; outside a transaction block it waits without holding a snapshot';

-- --------------------------------------------------------------- two phases

CREATE FUNCTION dflock_enqueue(key text, lease_ttl integer DEFAULT NULL)
RETURNS text
AS 'MODULE_PATHNAME', 'dflock_enqueue'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION dflock_enqueue(text, integer) IS
'get in line for a lock without waiting: acquired or queued';

CREATE FUNCTION dflock_sem_enqueue(key text, slots bigint, lease_ttl integer DEFAULT NULL)
RETURNS text
AS 'MODULE_PATHNAME', 'dflock_sem_enqueue'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION dflock_sem_enqueue(text, bigint, integer) IS
'get in line for a slot of a semaphore without waiting: acquired or queued';

CREATE FUNCTION dflock_wait(key text, timeout double precision DEFAULT NULL)
RETURNS boolean
AS 'MODULE_PATHNAME', 'dflock_wait'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION dflock_wait(text, double precision) IS
'wait in line for a lock: true when it is held; false: not yet, the place is kept';

CREATE FUNCTION dflock_sem_wait(key text, timeout double precision DEFAULT NULL)
RETURNS boolean
AS 'MODULE_PATHNAME', 'dflock_sem_wait'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION dflock_sem_wait(text, double precision) IS
'wait in line for a slot of a semaphore: true when it is held; false: not yet, the place is kept';

CREATE FUNCTION dflock_cancel(key text)
RETURNS boolean
AS 'MODULE_PATHNAME', 'dflock_cancel'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION dflock_cancel(text) IS
'leave the line; true if there was a place to leave';

-- -------------------------------------------------------------- giving back

CREATE FUNCTION dflock_release(key text)
RETURNS boolean
AS 'MODULE_PATHNAME', 'dflock_release'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION dflock_release(text) IS
'give back a lock of this session; false with a warning when it was not held';

CREATE FUNCTION dflock_release(key text, token text)
RETURNS boolean
AS 'MODULE_PATHNAME', 'dflock_release_token'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION dflock_release(text, text) IS
'give back a lock by its token, from any session';

CREATE FUNCTION dflock_sem_release(key text)
RETURNS boolean
AS 'MODULE_PATHNAME', 'dflock_sem_release'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION dflock_sem_release(text) IS
'give back the newest slot of a semaphore of this session; false with a warning when none was held';

CREATE FUNCTION dflock_sem_release(key text, token text)
RETURNS boolean
AS 'MODULE_PATHNAME', 'dflock_sem_release_token'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION dflock_sem_release(text, text) IS
'give back a slot of a semaphore by its token, from any session';

CREATE FUNCTION dflock_release_all()
RETURNS integer
AS 'MODULE_PATHNAME', 'dflock_release_all'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION dflock_release_all() IS
'give back all session locks, slots and places in line; how many';

-- ------------------------------------------------------------------ holding

CREATE FUNCTION dflock_renew(key text, lease_ttl integer DEFAULT NULL)
RETURNS integer
AS 'MODULE_PATHNAME', 'dflock_renew'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION dflock_renew(text, integer) IS
'extend a lease by hand, with lease_ttl to another length; seconds left';

CREATE FUNCTION dflock_is_held(key text)
RETURNS boolean
AS 'MODULE_PATHNAME', 'dflock_is_held'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION dflock_is_held(text) IS
'does this session hold it now, by its own clock';

CREATE FUNCTION dflock_assert_held(key text, verify boolean DEFAULT false)
RETURNS boolean
AS 'MODULE_PATHNAME', 'dflock_assert_held'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION dflock_assert_held(text, boolean) IS
'true, or an error when this session does not hold it; the commit of this transaction is refused when it is lost until then';

CREATE FUNCTION dflock_token(key text)
RETURNS text
AS 'MODULE_PATHNAME', 'dflock_token'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION dflock_token(text) IS
'token of the hold, NULL when there is none';

CREATE FUNCTION dflock_lease(key text)
RETURNS integer
AS 'MODULE_PATHNAME', 'dflock_lease'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION dflock_lease(text) IS
'lease of the hold in seconds as granted, NULL when there is none';

CREATE FUNCTION dflock_fence(key text)
RETURNS bigint
AS 'MODULE_PATHNAME', 'dflock_fence'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION dflock_fence(text) IS
'fence of the hold, NULL when there is none: larger than that of every earlier holder of the key';

CREATE FUNCTION dflock_token_fence(token text)
RETURNS bigint
AS 'MODULE_PATHNAME', 'dflock_token_fence'
LANGUAGE C IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION dflock_token_fence(text) IS
'fence in a token; for tokens of servers with fences only';

CREATE FUNCTION dflock_version()
RETURNS text
AS 'MODULE_PATHNAME', 'dflock_version'
LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION dflock_version() IS
'versions of extension, engine, OpenSSL and PostgreSQL';

-- -------------------------------------------------------------- looking

CREATE FUNCTION dflock_locks(
    OUT pid integer,
    OUT key text,
    OUT kind text,
    OUT scope text,
    OUT state text,
    OUT slots bigint,
    OUT fence bigint,
    OUT lease integer,
    OUT acquired_at timestamptz,
    OUT expires_at timestamptz,
    OUT renewed_at timestamptz,
    OUT renewals bigint,
    OUT last_error text,
    OUT server text,
    OUT blocked_by_pids integer[])
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'dflock_locks'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION dflock_locks() IS
'rows of the view dflock_locks';

CREATE FUNCTION dflock_servers(
    OUT address text,
    OUT state text,
    OUT connections integer,
    OUT round_trip_ms double precision,
    OUT last_error text,
    OUT since timestamptz)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'dflock_servers'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION dflock_servers() IS
'rows of the view dflock_servers';

CREATE FUNCTION dflock_ping(OUT server text, OUT round_trip_ms double precision, OUT error text)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'dflock_ping'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION dflock_ping() IS
'round trip to every server in ms, or why there is none';

CREATE FUNCTION dflock_stats()
RETURNS jsonb
AS 'MODULE_PATHNAME', 'dflock_stats'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION dflock_stats() IS
'every server''s own answer to stats, by its address; a server that gave none has an object with the error';

CREATE VIEW dflock_locks AS
    SELECT * FROM dflock_locks();
COMMENT ON VIEW dflock_locks IS
'what this session holds, awaits or has lost; every session''s for members of pg_monitor';

CREATE VIEW dflock_servers AS
    SELECT * FROM dflock_servers();
COMMENT ON VIEW dflock_servers IS
'the lock servers as the worker knows them; asks none of them';

-- One row per key that a server has, one for a server that gave no answer. What is not known of a column is NULL.
CREATE VIEW dflock_server_locks AS
    WITH answer AS MATERIALIZED (
        SELECT a.key AS server, a.value AS body
        FROM pg_catalog.jsonb_each(dflock_stats()) AS a
    ), prefix AS (
        SELECT coalesce(pg_catalog.current_setting('dflockd.key_prefix', true), '') AS text
    ), entry AS (
        SELECT server, 'lock' AS kind, e.value AS e, 1 AS slots,
               CASE WHEN coalesce(e.value ->> 'owner_conn_id', '0') <> '0' THEN 1 ELSE 0 END AS holders
        FROM answer, pg_catalog.jsonb_array_elements(
            CASE WHEN pg_catalog.jsonb_typeof(body -> 'locks') = 'array' THEN body -> 'locks' END) AS e
        UNION ALL
        SELECT server, 'semaphore', e.value,
               CASE WHEN e.value ->> 'limit' ~ '^[0-9]{1,18}$' THEN (e.value ->> 'limit')::bigint END,
               CASE WHEN e.value ->> 'holders' ~ '^[0-9]{1,18}$' THEN (e.value ->> 'holders')::bigint END
        FROM answer, pg_catalog.jsonb_array_elements(
            CASE WHEN pg_catalog.jsonb_typeof(body -> 'semaphores') = 'array' THEN body -> 'semaphores' END) AS e
    ), named AS (
        SELECT server, kind, e, slots, holders,
               CASE WHEN prefix.text <> '' AND pg_catalog.starts_with(e ->> 'key', prefix.text)
                         AND pg_catalog.length(e ->> 'key') > pg_catalog.length(prefix.text)
                    THEN pg_catalog.substr(e ->> 'key', pg_catalog.length(prefix.text) + 1)
                    ELSE e ->> 'key' END AS key
        FROM entry, prefix
    ), holder AS MATERIALIZED (
        SELECT server, kind, key, pg_catalog.min(pid) AS pid
        FROM dflock_locks()
        WHERE state = 'held'
        GROUP BY server, kind, key
    )
    SELECT named.server, named.key, named.kind, named.slots, named.holders,
           CASE WHEN e ->> 'waiters' ~ '^[0-9]{1,18}$' THEN (e ->> 'waiters')::bigint END AS waiters,
           CASE WHEN named.holders > 0 AND e ->> 'lease_expires_in_s' ~ '^-?[0-9]{1,18}([.][0-9]{1,18})?$'
                THEN (e ->> 'lease_expires_in_s')::double precision END AS lease_expires_in,
           holder.pid AS held_by_pid,
           NULL::text AS error
    FROM named LEFT JOIN holder USING (server, kind, key)
    UNION ALL
    SELECT server, NULL, NULL, NULL, NULL, NULL, NULL, NULL, body ->> 'error'
    FROM answer
    WHERE body ? 'error';
COMMENT ON VIEW dflock_server_locks IS
'what the lock servers themselves say is held and awaited, by whomever; a server that gives no answer is a row with the error';

-- What shows other people's keys, and where the servers are, is for those who watch over the server.
GRANT SELECT ON dflock_locks TO PUBLIC;
REVOKE ALL ON FUNCTION dflock_servers(), dflock_ping(), dflock_stats() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION dflock_servers(), dflock_ping(), dflock_stats() TO pg_monitor;
GRANT SELECT ON dflock_servers, dflock_server_locks TO pg_monitor;
