SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS dflockd;
RESET client_min_messages;
-- Bad input is refused before a byte is sent: NULL 22004, bad 22023, too large 22003.
\set VERBOSITY terse
SELECT dflock_acquire(NULL);
SELECT dflock_lock(NULL);
SELECT dflock_xact_lock(NULL);
SELECT dflock_sem_acquire(NULL, 1);
SELECT dflock_release(NULL);
SELECT dflock_release('k', NULL);
SELECT dflock_sem_release('k', NULL);
SELECT dflock_wait(NULL);
SELECT dflock_enqueue(NULL);
SELECT dflock_cancel(NULL);
SELECT dflock_renew(NULL);
SELECT dflock_is_held(NULL);
SELECT dflock_assert_held(NULL);
SELECT dflock_assert_held('k', NULL);
SELECT dflock_token(NULL);
SELECT dflock_lease(NULL);
SELECT dflock_fence(NULL);
SELECT dflock_token_fence(NULL);
SELECT dflock_sem_acquire('k', NULL);
CALL dflock_take(NULL);

-- Keys: 1 to 256 bytes of UTF-8, no white space.
SELECT dflock_acquire('');
SELECT dflock_acquire('a b');
SELECT dflock_acquire(E'a\tb');
SELECT dflock_acquire(E'a\rb');
SELECT dflock_acquire(E'a\nb');
SELECT dflock_acquire(repeat('x', 257));
SELECT dflock_acquire(repeat('x', 256)), dflock_release(repeat('x', 256));
SELECT dflock_acquire(repeat('é', 129));
SELECT dflock_acquire(repeat('é', 128)), dflock_is_held(repeat('é', 128)), dflock_release(repeat('é', 128));

-- Timeouts: seconds, 0 tries once, infinity waits for ever.
SELECT dflock_acquire('k', -1);
SELECT dflock_acquire('k', -0.001);
SELECT dflock_acquire('k', 'NaN');
SELECT dflock_acquire('k', '-Infinity');
SELECT dflock_acquire('k', 1e10);
SELECT dflock_acquire('k', 9223372037);
SELECT dflock_acquire('k', 'Infinity'), dflock_release('k');
SELECT dflock_acquire('k', 9223372036), dflock_release('k');
SELECT dflock_wait('k', -1);

-- Leases: 1 to 2147483647 seconds.
SELECT dflock_acquire('k', 0, 0);
SELECT dflock_acquire('k', 0, -1);
SELECT dflock_acquire('k', lease_ttl => 2147483648);
SELECT dflock_acquire('k', 0, 2147483647), dflock_lease('k'), dflock_release('k');
SELECT dflock_enqueue('k', 0);
SELECT dflock_acquire('k'), dflock_renew('k', 1) <= 1 AS renewed;
SELECT dflock_renew('k', 0);
SELECT dflock_release('k');

-- Slots: 1 to 2147483647.
SELECT dflock_sem_acquire('k', 0);
SELECT dflock_sem_acquire('k', -1);
SELECT dflock_sem_acquire('k', 2147483648);
SELECT dflock_sem_acquire('k-many', 2147483647), dflock_sem_release('k-many');

-- Tokens: 32 lower-case hexadecimal digits.
SELECT dflock_release('k', 'abc');
SELECT dflock_release('k', '0000000000000000000000000000000G');
SELECT dflock_release('k', 'ABCDEF00000000000000000000000000');
SELECT dflock_token_fence('');
SELECT dflock_token_fence('00000000000000ff0000000000000000');
SELECT dflock_token_fence('7fffffffffffffff0000000000000000');
SELECT dflock_token_fence('80000000000000000000000000000000');

-- Nothing held, nothing queued.
SELECT dflock_wait('k');
SELECT dflock_sem_wait('k');
SELECT dflock_renew('k');
SELECT dflock_assert_held('k');
SELECT dflock_assert_held('k', true);

-- Their codes.
\set VERBOSITY sqlstate
SELECT dflock_acquire(NULL);
SELECT dflock_acquire('');
SELECT dflock_acquire('k', 1e10);
SELECT dflock_token_fence('80000000000000000000000000000000');
SELECT dflock_release('k', 'abc');
SELECT dflock_wait('k');
SELECT dflock_renew('k');
SELECT dflock_assert_held('k');

-- Defaults come from the settings.
\set VERBOSITY terse
SET dflockd.lease_ttl = '44s';
SELECT dflock_acquire('k'), dflock_lease('k'), dflock_release('k');
SELECT dflock_acquire('k', NULL, NULL), dflock_lease('k'), dflock_release('k');
RESET dflockd.lease_ttl;
SELECT count(*) FROM dflock_locks WHERE state <> 'releasing' AND pid = pg_backend_pid();
