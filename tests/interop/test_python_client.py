"""The official Python client and our SQL contend for the same keys: each sees the other's lock, in the queue's order."""

import textwrap
import zlib

import pytest

from lib.eventually import eventually
from sqlite.support import Database, Script

PRELUDE = """
from dflockd_client import SyncDistributedLock, SyncDistributedSemaphore, fence_from_token
SERVER = ("127.0.0.1", int(os.environ["DFLOCK_SERVERS"].rpartition(":")[2]))
def lock(key, timeout=20, **kw):
    return SyncDistributedLock(key, acquire_timeout_s=timeout, servers=[SERVER], **kw)
def semaphore(key, limit, timeout=20, **kw):
    return SyncDistributedSemaphore(key, limit=limit, acquire_timeout_s=timeout, servers=[SERVER], **kw)
def told(word):
    "Waits until the test has made a file of this name."
    while not os.path.exists(word):
        time.sleep(0.01)
"""


@pytest.fixture
def client(processes, server):
    """client(text): a process with the official client."""
    return lambda text: Script(processes, PRELUDE + textwrap.dedent(text), servers=server)


@pytest.fixture
def db(processes, server):
    return Database(processes, server)


def tell(script, word):
    (script.directory / word).touch()


def says(script, word):
    eventually(lambda: script.said(word), what=f"{script.name} says {word}: {script.log()}")


def test_they_have_it_we_wait(client, db, server):
    theirs = client("""
        held = lock("k")
        assert held.acquire()
        print(fence_from_token(held.token), flush=True)
        told("release")
        held.release()
        print(lock("k", 0).acquire())
        """)
    eventually(theirs.lines)
    assert db.value("SELECT dflock_acquire('k', 0)") == 0
    db.fails("SELECT dflock_lock('k', 0)", sqlstate="55P03")
    db.start("SELECT dflock_lock('k', 20)")
    server.await_waiters("k", 1)
    tell(theirs, "release")
    ((fence,),) = db.finish()
    lines = theirs.wait()
    assert fence > int(lines[0]) and lines[1] == "False"


def test_we_have_it_they_wait(client, db, server):
    ours = db.value("SELECT dflock_lock('k')")
    theirs = client("""
        held = lock("k")
        assert held.acquire()
        print(fence_from_token(held.token), flush=True)
        told("end")
        """)
    server.await_waiters("k", 1)
    assert db.value("SELECT dflock_release('k')") == 1
    eventually(theirs.lines)
    assert int(theirs.lines()[0]) > ours
    assert db.value("SELECT dflock_acquire('k', 0)") == 0
    tell(theirs, "end")
    theirs.wait()
    assert db.value("SELECT dflock_acquire('k', 5)") == 1


def test_a_mixed_queue_is_first_in_first_out(client, db, processes, server):
    db.value("SELECT dflock_lock('k')")
    queue = []
    for n in range(6):
        if n % 2:
            comer = Database(processes, server)
            comer.start("SELECT dflock_lock('k', 60)")
        else:
            comer = client("""
                held = lock("k", 60)
                assert held.acquire()
                print(fence_from_token(held.token), flush=True)
                told("release")
                held.release()
                """)
        queue.append(comer)
        server.await_waiters("k", n + 1)
    fences = []
    db.value("SELECT dflock_release('k')")
    for n, comer in enumerate(queue):
        if isinstance(comer, Database):
            fences.append(comer.finish()[0][0])
            server.await_waiters("k", 5 - n)
            comer.value("SELECT dflock_release('k')")
        else:
            eventually(comer.lines)
            fences.append(int(comer.lines()[0]))
            server.await_waiters("k", 5 - n)
            tell(comer, "release")
    assert fences == sorted(fences) and len(set(fences)) == 6


def test_their_fence_of_our_token_is_ours(client, db):
    fence = db.value("SELECT dflock_lock('k')")
    token = db.value("SELECT dflock_token('k')")
    (line,) = client(f"print(fence_from_token({token!r}))").wait()
    assert int(line) == fence == db.value("SELECT dflock_token_fence(?)", token)


def test_our_release_of_their_token(client, db, server):
    theirs = client("""
        held = lock("k")
        held.acquire()
        print(held.token, flush=True)
        told("end")
        """)
    eventually(theirs.lines)
    assert db.value("SELECT dflock_release('k', ?)", theirs.lines()[0]) == 1
    assert db.value("SELECT dflock_acquire('k', 0)") == 1
    tell(theirs, "end")
    theirs.wait()
    assert db.value("SELECT dflock_assert_held('k', 1)") == 1


def test_slots_of_one_semaphore(client, db, server):
    theirs = client("""
        held = semaphore("s", 2)
        assert held.acquire()
        print("held", flush=True)
        told("release")
        held.release()
        """)
    says(theirs, "held")
    assert db.value("SELECT dflock_sem_acquire('s', 2, 0)") == 1
    assert db.value("SELECT holders FROM dflock_server_locks") == 2
    tell(theirs, "release")
    theirs.wait()
    assert db.value("SELECT dflock_sem_acquire('s', 2, 5)") == 1


def test_shards_agree(make_server, processes):
    """The same key goes to the same server in both."""
    servers = [make_server() for _ in range(3)]
    ours = Database(processes, servers)
    for n in range(20):
        assert ours.value("SELECT dflock_acquire(?, 0)", f"key-{n}") == 1
        assert servers[zlib.crc32(f"key-{n}".encode()) % 3].holders(f"key-{n}") == 1
    lines = Script(processes, """
        from dflockd_client import SyncDistributedLock
        servers = [("127.0.0.1", int(a.rpartition(":")[2])) for a in os.environ["DFLOCK_SERVERS"].split(",")]
        print([SyncDistributedLock(f"key-{n}", acquire_timeout_s=0, servers=servers).acquire() for n in range(20)])
        """, servers=servers).wait()
    assert lines == [str([False] * 20)]


def test_turns_lose_no_update(client, processes, server, directory):
    counter = directory / "counter"
    counter.write_text("0")
    step = f"n = int(open({str(counter)!r}).read()); open({str(counter)!r}, 'w').write(str(n + 1))"
    theirs = [client(f"""
        for i in range(40):
            with lock("k", 60):
                {step}
        """) for _ in range(2)]
    ours = [Script(processes, f"""
        a = connect()
        for i in range(40):
            a.value("SELECT dflock_lock('k', 60)")
            {step}
            a.value("SELECT dflock_release('k')")
        """, servers=server) for _ in range(2)]
    for script in theirs + ours:
        script.wait(90)
    assert counter.read_text() == "160"
