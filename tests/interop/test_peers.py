"""The clients of other languages and our databases contend for the same keys: each sees the other's lock, in the queue's
order. The official Python client by default; `make interop PEER='program ...'` takes any other (see comers.py)."""

import itertools
import threading
import zlib

import pytest

from interop.comers import Peer, Postgres, Sqlite
from interop.conftest import PYTHON_PEER, new_cluster, new_server

KINDS = ("peer", "sqlite", "postgres")


def fence(token):
    return int(token[:16], 16)


def in_order(locks, *tokens):
    """These were granted one after the other."""
    fences = [fence(token) for token in tokens]
    if locks.dialect.fences:
        assert fences == sorted(fences)
    assert len(set(tokens)) == len(tokens)


# ---------------------------------------------------------------------- two of them


def test_what_they_have_is_busy_for_us(peer, ours, key):
    assert peer.lock(key)
    assert ours.lock(key) is None
    peer.release(key)
    assert ours.lock(key)


def test_what_we_have_is_busy_for_them(peer, ours, key):
    assert ours.lock(key)
    assert peer.lock(key) is None
    ours.release(key)
    assert peer.lock(key)


def test_we_wait_for_them(peer, ours, locks, key):
    theirs = peer.lock(key)
    ours.start_lock(key)
    locks.await_waiters(key, 1)
    peer.release(key)
    in_order(locks, theirs, ours.finish())


def test_they_wait_for_us(peer, ours, locks, key):
    mine = ours.lock(key)
    peer.start_lock(key)
    locks.await_waiters(key, 1)
    ours.release(key)
    in_order(locks, mine, peer.finish())


def test_the_fence_of_a_token_is_the_same_number(peer, ours, locks, key):
    token = ours.lock(key)
    mine = f"SELECT dflock_fence({ours.mark})"
    if not locks.dialect.fences:
        assert ours.sqlstate(mine, key) == "LK014"
    else:
        assert ours.value(mine, key) == ours.fence(token) == fence(token)
        assert peer.fence(token) in (fence(token), None)
    ours.release(key)
    theirs = peer.lock(key)
    in_order(locks, token, theirs)
    if locks.dialect.fences:
        assert ours.fence(theirs) == fence(theirs)
        assert peer.fence(theirs) in (fence(theirs), None)


def test_the_python_client_shows_fences(processes, locks):
    """What the test before lets pass for a client without fences is not the case of this one."""
    python = Peer(processes, PYTHON_PEER, locks)
    assert python.fence("0123456789abcdef" + "f" * 16) == 0x0123456789ABCDEF


def test_our_release_of_their_token(peer, ours, key):
    token = peer.lock(key)
    assert ours.release_token(key, token)
    assert ours.lock(key)


def test_enqueue_and_wait(peer, ours, new_comer, locks, key):
    """Places are kept in line whoever took them."""
    first = new_comer("sqlite")
    assert first.lock(key)
    assert peer.enqueue(key) is None
    locks.await_waiters(key, 1)
    assert ours.enqueue(key) is None
    locks.await_waiters(key, 2)
    first.release(key)
    token = peer.wait(key)
    assert token and ours.wait(key, 0) is None
    peer.release(key)
    in_order(locks, token, ours.wait(key))


def test_they_come_by_a_place_at_once(peer, ours, key):
    """`enqueue` of a free key is a lock."""
    assert peer.enqueue(key)
    assert ours.lock(key) is None
    peer.release(key)
    assert ours.enqueue(key) and peer.lock(key) is None


# --------------------------------------------------------------------------- leases


def test_their_renewal(peer, ours, locks, key):
    """They hold for more than two leases what we wait for all the time."""
    assert peer.lock(key, lease=2)
    assert ours.lock(key, timeout=5) is None
    assert locks.holders(key) == 1
    peer.release(key)
    assert ours.lock(key)


def test_our_renewal(peer, ours, locks, key):
    token = ours.lock(key, lease=2)
    assert peer.lock(key, timeout=5) is None
    assert locks.holders(key) == 1 and ours.token(key) == token
    ours.release(key)
    assert peer.lock(key)


def test_they_die(peer, ours, locks, key):
    assert peer.lock(key, lease=600)
    ours.start_lock(key)
    locks.await_waiters(key, 1)
    peer.kill()
    assert ours.finish()


def test_we_die(peer, ours, locks, key):
    assert ours.lock(key, lease=600)
    peer.start_lock(key)
    locks.await_waiters(key, 1)
    ours.kill()
    assert peer.finish()


def test_they_get_it_at_commit(peer, new_comer, locks, key):
    """A transaction's lock goes to them when the transaction ends, not before."""
    session = new_comer("postgres").session
    session.run("BEGIN")
    session.value("SELECT dflock_xact_lock(%s)", key)
    taken = session.value("SELECT dflock_token(%s)", key)
    peer.start_lock(key)
    locks.await_waiters(key, 1)
    assert session.value("SELECT dflock_assert_held(%s, true)", key)
    session.run("COMMIT")
    in_order(locks, taken, peer.finish())


# ----------------------------------------------------------------------- many of them


def test_a_mixed_queue_is_first_in_first_out(new_comer, locks, key):
    first = new_comer("sqlite")
    tokens = [first.lock(key)]
    line = [new_comer(kind) for kind in KINDS * 3]
    for n, comer in enumerate(line):
        comer.start_lock(key, timeout=50)
        locks.await_waiters(key, n + 1)
    first.release(key)
    for n, comer in enumerate(line):
        tokens.append(comer.finish())
        assert locks.waiters(key) == len(line) - n - 1
        comer.release(key)
    in_order(locks, *tokens)
    assert len(tokens) == 10


def test_slots_of_one_semaphore(new_comer, locks, key):
    """Three slots, and who waits for one gets it in turn."""
    holders = [new_comer(kind) for kind in KINDS]
    for comer in holders:
        assert comer.slot(key, 3)
    for kind in KINDS:
        assert new_comer(kind).slot(key, 3) is None
    line = [new_comer(kind) for kind in reversed(KINDS)]
    for n, comer in enumerate(line):
        comer.start_slot(key, 3, timeout=50)
        locks.await_waiters(key, n + 1)
    for leaver, comer in zip(holders, line, strict=True):
        leaver.release(key)
        assert comer.finish()
        assert locks.holders(key) == 3
    for comer in line:
        comer.release(key)
    locks.await_holders(key, 0)


def test_turns_lose_no_update(new_comer, directory, key):
    """A counter in a file, read and written again by whoever has the lock."""
    counter = directory / "counter"
    counter.write_text("0")
    errors = []

    def take_turns(comer):
        try:
            for _ in range(30):
                assert comer.lock(key, timeout=50)
                counter.write_text(str(int(counter.read_text()) + 1))
                comer.release(key)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=take_turns, args=(new_comer(kind),)) for kind in KINDS * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not errors and not any(thread.is_alive() for thread in threads)
    assert counter.read_text() == "180"


# ------------------------------------------------------------------------- sharding

ODD_KEYS = ["a", "my-key", "schlüssel", "ключ", "鍵", "🔑", "a/b:c", "'quoted\"", "%s", "\\", "k" * 256, "ü" * 128, "\x7f", "\x01"]
KEYS = ODD_KEYS + [f"{word}-{n}" for word, n in itertools.product(("order", "Größe", "鍵"), range(1000))]


@pytest.fixture
def three(processes):
    return [new_server(processes, "--max-locks", "5000") for _ in range(3)]


@pytest.fixture(params=["sqlite", "postgres"])
def sharded(request, processes, three, installation):
    """A session of ours over three servers."""
    if request.param == "sqlite":
        return Sqlite(processes, three)
    return Postgres(new_cluster(processes, installation, three))


def test_every_key_has_its_server(processes, peer_command, three, sharded):
    """We take three thousand keys, and each is at the server where the peer looks for it."""
    sharded.lock_all(KEYS)
    found = {entry["key"]: n for n, server in enumerate(three) for entry in server.stats()["locks"]}
    peer = Peer(processes, peer_command, three)
    assert peer.shards(KEYS, 3) == [found[key] for key in KEYS] == [zlib.crc32(key.encode()) % 3 for key in KEYS]


def test_over_three_servers_each_sees_the_other(processes, peer_command, three, sharded):
    peer = Peer(processes, peer_command, three)
    keys = [*ODD_KEYS, *(f"key-{n}" for n in range(16))]
    for key in keys:
        assert peer.lock(key)
        assert three[zlib.crc32(key.encode()) % 3].holders(key) == 1
        assert sharded.lock(key) is None
    for key in keys:
        sharded.start_lock(key)
        three[zlib.crc32(key.encode()) % 3].await_waiters(key, 1)
        peer.release(key)
        assert sharded.finish()
