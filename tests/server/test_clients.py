"""dflockd's own Python client against the bundled server: locks, semaphores, two phases, login, TLS, fences."""

import threading
import time

import pytest

import dflockd_client as client
from lib.eventually import eventually


def lock(server, key="k", **kw):
    kw.setdefault("acquire_timeout_s", 5)
    return client.SyncDistributedLock(key, servers=[("127.0.0.1", server.port)], **kw)


def semaphore(server, key="s", limit=2, **kw):
    kw.setdefault("acquire_timeout_s", 5)
    return client.SyncDistributedSemaphore(key, limit=limit, servers=[("127.0.0.1", server.port)], **kw)


def test_with_block(server):
    with lock(server) as held:
        assert len(held.token) == 32 and held.lease == 33
        assert not lock(server, acquire_timeout_s=0).acquire()
    with lock(server, acquire_timeout_s=0) as again:
        assert again.token


def test_fences_grow(server):
    fences = []
    for _ in range(3):
        with lock(server) as held:
            fences.append(client.fence_from_token(held.token))
    assert fences == sorted(set(fences))


def test_fifo(server):
    order, threads = [], []

    def take(n):
        with lock(server, acquire_timeout_s=30):
            order.append(n)

    with lock(server):
        for n in range(5):
            threads.append(threading.Thread(target=take, args=(n,)))
            threads[-1].start()
            server.await_waiters("k", n + 1)
    for thread in threads:
        thread.join(20)
    assert order == list(range(5))


def test_renewal_over_the_lease(server):
    with lock(server, lease_ttl_s=3) as held:
        end = time.monotonic() + 5
        while time.monotonic() < end:
            assert not lock(server, acquire_timeout_s=0).acquire()
            time.sleep(0.1)
        assert held.token


def test_semaphores(server):
    a, b, c = semaphore(server), semaphore(server), semaphore(server, acquire_timeout_s=0)
    assert a.acquire() and b.acquire() and not c.acquire()
    a.release()
    assert c.acquire()
    with pytest.raises(client.LimitMismatchError):
        semaphore(server, limit=3).acquire()
    with pytest.raises(client.LimitMismatchError):
        lock(server, key="s").acquire()
    b.release()
    c.release()


def test_two_phases(server):
    first, second = lock(server), lock(server)
    assert first.enqueue() == "acquired"
    assert first.wait(timeout_s=1)
    assert second.enqueue() == "queued"
    first.release()
    assert second.wait(timeout_s=5)
    second.release()


def test_login_and_tls(make_server, certs):
    server = make_server("--auth-token", "word", "--tls-cert", certs.server.cert, "--tls-key", certs.server.key)
    with lock(server, auth_token="word", ssl_context=certs.client_context()) as held:
        assert held.token
    with pytest.raises(Exception) as refused:
        lock(server, auth_token="wrong", ssl_context=certs.client_context()).acquire()
    assert "auth" in str(refused.value).lower() or "auth" in type(refused.value).__name__.lower()


def test_stats(server):
    with lock(server):
        eventually(lambda: server.holders("k") == 1)
