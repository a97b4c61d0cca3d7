"""Every function with good, missing, NULL, wrong-typed, too long, negative and non-finite arguments, behind three drivers."""

import itertools
import json
import re

import pytest

INF = float("inf")
counter = itertools.count()


@pytest.fixture
def key():
    """A key of this test alone; servers and connections are shared by the file."""
    return f"key{next(counter)}"


# -------------------------------------------------------------------- good ones


def test_lock_gives_a_fence_that_grows(any_db, key):
    first = any_db.value("SELECT dflock_lock(?)", key)
    assert any_db.value("SELECT dflock_release(?)", key) == 1
    second = any_db.value("SELECT dflock_lock(?)", key)
    assert 0 < first < second
    assert any_db.value("SELECT typeof(dflock_fence(?))", key) == "integer"
    assert any_db.value("SELECT dflock_fence(?)", key) == second
    assert any_db.value("SELECT dflock_release(?)", key) == 1


def test_acquire_and_release_answer_one_and_zero(any_db, key):
    assert any_db.value("SELECT dflock_acquire(?)", key) == 1
    assert any_db.value("SELECT typeof(dflock_release(?))", key) == "integer"
    assert any_db.value("SELECT dflock_release(?)", key) == 0


@pytest.mark.parametrize("timeout", [0, 0.0, 1, 2.5, INF, None, 9223372036])
def test_acquire_with_every_kind_of_timeout(any_db, key, timeout):
    assert any_db.value("SELECT dflock_acquire(?, ?)", key, timeout) == 1
    assert any_db.value("SELECT dflock_release(?)", key) == 1


@pytest.mark.parametrize("lease, granted", [(1, 1), (60, 60), (60.0, 60), (2147483647, 2147483647), (None, 33)])
def test_lease_is_what_was_asked_for(any_db, key, lease, granted):
    assert any_db.value("SELECT dflock_acquire(?, 0, ?)", key, lease) == 1
    assert any_db.value("SELECT dflock_lease(?)", key) == granted
    assert any_db.value("SELECT dflock_release(?)", key) == 1


def test_infinity_may_be_written_in_sql(any_db, key):
    assert any_db.value("SELECT dflock_acquire(?, 9e999)", key) == 1
    assert any_db.value("SELECT dflock_release(?)", key) == 1


def test_integer_keys_are_decimal_text(any_db):
    number = 4200000 + next(counter)
    assert any_db.value("SELECT dflock_acquire(?)", number) == 1
    assert any_db.value("SELECT dflock_is_held(?)", str(number)) == 1
    assert any_db.value("SELECT dflock_release(?)", str(number)) == 1
    assert any_db.value("SELECT dflock_acquire(-9223372036854775807 - 1)") == 1
    assert any_db.value("SELECT dflock_release('-9223372036854775808')") == 1


@pytest.mark.parametrize("odd", ["x" * 255, "ä" * 127, "日本語", "a'b\"c", "_", "-", "%s%n", "\x01\x7f"])
def test_keys_with_odd_bytes(any_db, odd):
    assert any_db.value("SELECT dflock_acquire(?)", odd) == 1
    assert any_db.value("SELECT key FROM dflock_locks WHERE key = ?", odd) == odd
    assert any_db.value("SELECT dflock_release(?)", odd) == 1


def test_longest_key_is_256_bytes(any_db):
    assert any_db.value("SELECT dflock_acquire(?)", "y" * 256) == 1
    assert any_db.value("SELECT dflock_release(?)", "y" * 256) == 1
    any_db.fails("SELECT dflock_acquire(?)", "y" * 257, sqlstate="22023", text="256")


def test_semaphore_slots_one_by_one(any_db, key):
    assert any_db.value("SELECT dflock_sem_acquire(?, 2)", key) == 1
    assert any_db.value("SELECT dflock_sem_lock(?, 2.0, 0, 60)", key) > 0
    any_db.fails("SELECT dflock_sem_acquire(?, 2, 0)", key, sqlstate="55006")
    assert any_db.value("SELECT count(*) FROM dflock_locks WHERE key = ? AND kind = 'semaphore' AND state = 'held'", key) == 2
    assert any_db.value("SELECT dflock_lease(?)", key) == 60  # the newest
    assert any_db.value("SELECT dflock_sem_release(?)", key) == 1
    assert any_db.value("SELECT dflock_lease(?)", key) == 33
    assert any_db.value("SELECT dflock_sem_release(?)", key) == 1
    assert any_db.value("SELECT dflock_sem_release(?)", key) == 0


def test_enqueue_and_wait(any_db, key):
    assert any_db.value("SELECT dflock_enqueue(?)", key) == "acquired"
    assert any_db.value("SELECT dflock_wait(?, 0)", key) == 1
    assert any_db.value("SELECT dflock_cancel(?)", key) == 0
    assert any_db.value("SELECT dflock_release(?)", key) == 1
    assert any_db.value("SELECT dflock_sem_enqueue(?, 3, 45)", key + "s") == "acquired"
    assert any_db.value("SELECT dflock_sem_wait(?)", key + "s") == 1
    assert any_db.value("SELECT dflock_lease(?)", key + "s") == 45
    assert any_db.value("SELECT dflock_sem_release(?)", key + "s") == 1


def test_renew_and_its_lease(any_db, key):
    any_db.value("SELECT dflock_acquire(?, 0, 30)", key)
    assert 29 <= any_db.value("SELECT dflock_renew(?)", key) <= 30
    assert 99 <= any_db.value("SELECT dflock_renew(?, 100)", key) <= 100
    assert any_db.value("SELECT dflock_lease(?)", key) == 100
    assert 99 <= any_db.value("SELECT dflock_renew(?)", key) <= 100
    assert any_db.value("SELECT dflock_release(?)", key) == 1
    any_db.fails("SELECT dflock_renew(?)", key, sqlstate="55000")


def test_is_held_and_assert_held(any_db, key):
    assert any_db.value("SELECT dflock_is_held(?)", key) == 0
    any_db.fails("SELECT dflock_assert_held(?)", key, sqlstate="55000", text=key)
    any_db.value("SELECT dflock_acquire(?)", key)
    assert any_db.value("SELECT dflock_is_held(?)", key) == 1
    assert any_db.value("SELECT dflock_assert_held(?)", key) == 1
    assert any_db.value("SELECT dflock_assert_held(?, true)", key) == 1
    assert any_db.value("SELECT dflock_assert_held(?, 0)", key) == 1
    assert any_db.value("SELECT dflock_release(?)", key) == 1


def test_token_lease_fence_of_nothing_are_null(any_db, key):
    assert any_db.rows("SELECT dflock_token(?1), dflock_lease(?1), dflock_fence(?1)", key) == [(None, None, None)]


def test_token_and_its_fence(any_db, key):
    fence = any_db.value("SELECT dflock_lock(?)", key)
    token = any_db.value("SELECT dflock_token(?)", key)
    assert re.fullmatch("[0-9a-f]{32}", token)
    assert any_db.value("SELECT dflock_token_fence(?)", token) == fence == int(token[:16], 16)
    assert any_db.value("SELECT dflock_release(?, ?)", key, token) == 1
    assert any_db.value("SELECT dflock_release(?, ?)", key, token) == 0
    assert any_db.value("SELECT dflock_is_held(?)", key) == 0


def test_token_fence_is_arithmetic(any_db):
    assert any_db.value("SELECT dflock_token_fence(?)", "7fffffffffffffff" + "0" * 16) == 2**63 - 1
    any_db.fails("SELECT dflock_token_fence(?)", "8000000000000000" + "0" * 16, sqlstate="22003")


def test_release_all_counts(any_db, key):
    any_db.value("SELECT dflock_acquire(?)", key)
    any_db.value("SELECT dflock_sem_acquire(?, 5)", key + "s")
    any_db.value("SELECT dflock_sem_acquire(?, 5)", key + "s")
    assert any_db.value("SELECT dflock_release_all()") == 3
    assert any_db.value("SELECT dflock_release_all()") == 0
    assert any_db.value("SELECT count(*) FROM dflock_locks") == 0


def test_stats_ping_and_version(any_db, shared, key):
    any_db.value("SELECT dflock_acquire(?)", key)
    stats = json.loads(any_db.value("SELECT dflock_stats()"))
    assert list(stats) == [shared.address]
    assert key in [lock["key"] for lock in stats[shared.address]["locks"]]
    ping = json.loads(any_db.value("SELECT dflock_ping()"))
    assert 0 < ping[shared.address]["round_trip_ms"] < 5000
    version = any_db.value("SELECT dflock_version()")
    assert "dflockd" in version and "OpenSSL" in version and any_db.sqlite_version in version
    assert any_db.value("SELECT dflock_release(?)", key) == 1


def test_stats_is_json_that_sqlite_can_read(any_db, shared, key):
    any_db.value("SELECT dflock_acquire(?)", key)
    assert any_db.value("SELECT count(*) FROM json_each(json_extract(dflock_stats(), '$.\"' || ? || '\".locks')) "
                        "WHERE json_extract(value, '$.key') = ?", shared.address, key) == 1
    any_db.value("SELECT dflock_release(?)", key)


def test_xact_functions_say_what_to_use(any_db):
    for call in ("dflock_xact_acquire('k')", "dflock_xact_lock('k', 1)", "dflock_xact_sem_acquire('k', 2)",
                 "dflock_xact_sem_lock('k', 2, 0, 10)"):
        failed = any_db.fails(f"SELECT {call}", sqlstate="0A000")
        assert failed.text.endswith("transaction locks need PostgreSQL; use dflock_lock and dflock_release")


# --------------------------------------------------------------------- bad ones

LONG = "k" * 257
TOKEN = "0" * 32

BAD_KEY = [(None, "22004"), (b"blob", "22023"), (1.5, "22023"), (42.0, "22023"), ("", "22023"), ("a b", "22023"),
           ("a\tb", "22023"), ("a\nb", "22023"), ("a\rb", "22023"), (LONG, "22023"), ("ä" * 129, "22023")]
BAD_TIMEOUT = [(9223372037, "22003"), (1e300, "22003"), (-1, "22023"), (-0.001, "22023"), (-INF, "22023"), ("1", "22023"), ("infinity", "22023"), (b"1", "22023")]
BAD_LEASE = [(0, "22023"), (-1, "22023"), (2147483648, "22003"), (1.5, "22023"), (INF, "22023"), (-INF, "22023"),
             ("30", "22023"), (b"30", "22023"), (1e300, "22003")]
BAD_SLOTS = [(None, "22004"), *BAD_LEASE]
BAD_TOKEN = [(None, "22004"), ("", "22023"), ("xyz", "22023"), (TOKEN + "0", "22023"), ("G" * 32, "22023"),
             (TOKEN.replace("0", "A"), "22023"), (1, "22023"), (1.5, "22023"), (b"0" * 32, "22023")]
BAD_FLAG = [(None, "22004"), ("true", "22023"), (0.5, "22023"), (b"\x01", "22023")]
BAD_NAME = [(None, "22004"), ("nonsense", "22023"), ("", "22023"), (1, "22023"), (b"servers", "22023")]

SIGNATURES = {
    "dflock_acquire": [("key", BAD_KEY), ("timeout", BAD_TIMEOUT), ("lease_ttl", BAD_LEASE)],
    "dflock_lock": [("key", BAD_KEY), ("timeout", BAD_TIMEOUT), ("lease_ttl", BAD_LEASE)],
    "dflock_sem_acquire": [("key", BAD_KEY), ("slots", BAD_SLOTS), ("timeout", BAD_TIMEOUT), ("lease_ttl", BAD_LEASE)],
    "dflock_sem_lock": [("key", BAD_KEY), ("slots", BAD_SLOTS), ("timeout", BAD_TIMEOUT), ("lease_ttl", BAD_LEASE)],
    "dflock_enqueue": [("key", BAD_KEY), ("lease_ttl", BAD_LEASE)],
    "dflock_sem_enqueue": [("key", BAD_KEY), ("slots", BAD_SLOTS), ("lease_ttl", BAD_LEASE)],
    "dflock_wait": [("key", BAD_KEY), ("timeout", BAD_TIMEOUT)],
    "dflock_sem_wait": [("key", BAD_KEY), ("timeout", BAD_TIMEOUT)],
    "dflock_cancel": [("key", BAD_KEY)],
    "dflock_release": [("key", BAD_KEY), ("token", BAD_TOKEN)],
    "dflock_sem_release": [("key", BAD_KEY), ("token", BAD_TOKEN)],
    "dflock_release_all": [],
    "dflock_renew": [("key", BAD_KEY), ("lease_ttl", BAD_LEASE)],
    "dflock_is_held": [("key", BAD_KEY)],
    "dflock_assert_held": [("key", BAD_KEY), ("verify", BAD_FLAG)],
    "dflock_token": [("key", BAD_KEY)],
    "dflock_lease": [("key", BAD_KEY)],
    "dflock_fence": [("key", BAD_KEY)],
    "dflock_token_fence": [("token", BAD_TOKEN)],
    "dflock_stats": [],
    "dflock_ping": [],
    "dflock_version": [],
    "dflock_config": [("name", BAD_NAME)],
}
GOOD = {"key": "good", "timeout": 0, "lease_ttl": 30, "slots": 2, "token": TOKEN, "verify": 0, "name": "servers"}
REQUIRED = {"key", "slots", "name"}


@pytest.mark.parametrize("function", SIGNATURES)
def test_every_bad_argument_of(any_db, function):
    arguments = SIGNATURES[function]
    for i, (name, bad) in enumerate(arguments):
        before = [GOOD[n] for n, _ in arguments[:i]]
        behind = [GOOD[n] for n, _ in arguments[i + 1:] if n in REQUIRED]
        for value, sqlstate in bad:
            marks = ", ".join("?" * (i + 1 + len(behind)))
            failed = any_db.fails(f"SELECT {function}({marks})", *before, value, *behind)
            assert failed.sqlstate == sqlstate, (function, name, value, failed.text)
            assert name in failed.text or "setting" in failed.text, (function, name, value, failed.text)
    assert any_db.value("SELECT count(*) FROM dflock_locks") == 0


@pytest.mark.parametrize("function", SIGNATURES)
def test_too_many_and_too_few_arguments_of(any_db, function):
    arguments = SIGNATURES[function]
    most = 2 if function == "dflock_config" else len(arguments)
    fewest = 1 if function == "dflock_token_fence" else sum(1 for n, _ in arguments if n in REQUIRED)
    failed = any_db.fails(f"SELECT {function}({', '.join(['NULL'] * (most + 1))})", sqlstate="22023")
    assert function in failed.text and "argument" in failed.text
    if fewest:
        any_db.fails(f"SELECT {function}({', '.join(['NULL'] * (fewest - 1))})", sqlstate="22023", text="argument")


def test_nan_is_null_before_we_see_it(any_db, key):
    assert any_db.value("SELECT dflock_acquire(?, 9e999 - 9e999)", key) == 1  # the default timeout
    assert any_db.value("SELECT dflock_release(?)", key) == 1


def test_nul_byte_in_a_key(any_db):
    any_db.fails("SELECT dflock_acquire('a' || char(0) || 'b')", sqlstate="22023", text="key")


def test_errors_have_the_plain_result_code(any_db):
    """SQLITE_ERROR, never SQLITE_BUSY, which applications take for their database file."""
    failed = any_db.fails("SELECT dflock_acquire(NULL)")
    assert failed.code in (1, None)
    assert "Busy" not in failed.type


# ------------------------------------------------------------------------ rules


def test_asking_for_what_one_has(any_db, key):
    any_db.value("SELECT dflock_lock(?)", key)
    for function in ("dflock_acquire", "dflock_lock", "dflock_enqueue"):
        any_db.fails(f"SELECT {function}(?)", key, sqlstate="55006", text=key)
    any_db.fails("SELECT dflock_sem_acquire(?, 1, 0)", key, sqlstate="55006")
    any_db.value("SELECT dflock_release(?)", key)
    any_db.value("SELECT dflock_sem_acquire(?, 1)", key)
    any_db.fails("SELECT dflock_acquire(?, 0)", key, sqlstate="55006")
    any_db.value("SELECT dflock_sem_release(?)", key)


def test_wait_needs_a_place(any_db, key):
    any_db.fails("SELECT dflock_wait(?, 0)", key, sqlstate="55000")
    any_db.value("SELECT dflock_lock(?)", key)
    any_db.fails("SELECT dflock_wait(?, 0)", key, sqlstate="55000")
    any_db.value("SELECT dflock_release(?)", key)


def test_lock_and_semaphore_releases_do_not_mix(any_db, key):
    any_db.value("SELECT dflock_lock(?)", key)
    assert any_db.value("SELECT dflock_sem_release(?)", key) == 0
    assert any_db.value("SELECT dflock_is_held(?)", key) == 1
    assert any_db.value("SELECT dflock_release(?)", key) == 1
