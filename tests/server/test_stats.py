"""The answer to `stats`: its form, strange keys, and very many of them."""

import json
import time

from lib import wire
from lib.eventually import eventually


def test_form(make_server):
    server = make_server("--gc-max-idle", 60)
    with server.connect() as a, server.connect() as b:
        a.lock("k", lease=60)
        b.send("l", "k", "60")
        for _ in range(2):
            a.slot("s", 3, lease=60)
        for key, limit in (("x", 1), ("y", 2)):
            grant = a.slot(key, limit)
            assert a.release(key, grant.token, "sr") == "ok"
        server.await_waiters("k", 1)
        stats = a.stats()
    assert list(stats) == ["connections", "locks", "semaphores", "idle_locks", "idle_semaphores"]
    assert stats["connections"] >= 2
    (lock,) = stats["locks"]
    assert list(lock) == ["key", "owner_conn_id", "lease_expires_in_s", "waiters"]
    assert lock["key"] == "k" and lock["waiters"] == 1 and lock["owner_conn_id"] > 0
    assert 50 < lock["lease_expires_in_s"] <= 60
    assert stats["semaphores"] == [{"key": "s", "limit": 3, "holders": 2, "waiters": 0}]
    (idle,) = stats["idle_locks"]
    assert list(idle) == ["key", "idle_s"] and idle["key"] == "x" and 0 <= idle["idle_s"] < 30
    assert [row["key"] for row in stats["idle_semaphores"]] == ["y"]


def test_strange_keys(server):
    keys = ["quote\"", "back\\slash", "sn\u00f6wman\u2603", "\U0001f512", "\x01\x1f\x7f", "</script>", "{}[],:", "\u2028"]
    with server.connect() as w:
        for key in keys:
            w.lock(key, lease=60)
        w.send_raw(b"l\nbad\xff\xc0\xaf\xed\xa0\x80end\n0 60\n")
        wire.granted(w.receive())
        found = {row["key"] for row in w.stats()["locks"]}
    bad = found - set(keys)
    assert found >= set(keys)
    assert len(bad) == 1 and bad.pop().replace("\ufffd", "") == "badend"


def test_idle_keys_are_collected(make_server):
    server = make_server("--gc-interval", 0.1, "--gc-max-idle", 0.3)
    with server.connect() as w:
        grant = w.slot("s", 5)
        assert w.release("s", grant.token, "sr") == "ok"
        assert w.ask("l", "s", "0") == "error_limit_mismatch"
        assert [row["key"] for row in w.stats()["idle_semaphores"]] == ["s"]
        eventually(lambda: not w.stats()["idle_semaphores"])
        assert w.try_lock("s") == "ok"


def test_a_waiter_without_a_holder_during_the_wait_after_a_crash(make_server, directory):
    server = make_server("--fence-state-file", directory / "fence")
    with server.connect() as w:
        w.lock("k", lease=60)
        server.restart()
    with server.connect() as w:
        assert w.ask("e", "k") == "queued"
        (row,) = w.stats()["locks"]
        assert row == {"key": "k", "owner_conn_id": 0, "lease_expires_in_s": 0, "waiters": 1}


def test_very_many_keys(make_server):
    """200,000 keys: others are served in between, keys that come meanwhile do no harm."""
    server = make_server()
    count, batch = 200000, 1000
    with server.connect() as owner, server.connect() as reader, server.connect() as other:
        for start in range(0, count, batch):
            owner.send_raw(b"".join(b"l\nkey-%016d\n0 600\n" % i for i in range(start, start + batch)))
            for _ in range(batch):
                assert owner.receive().startswith("ok ")
        reader.send("stats")
        worst = 0
        for i in range(200):
            began = time.monotonic()
            other.lock(f"new-{i}", lease=60)
            worst = max(worst, time.monotonic() - began)
        answer = json.loads(reader.receive(60)[3:])
        keys = [row["key"] for row in answer["locks"]]
        assert len(keys) == len(set(keys))
        assert sum(key.startswith("key-") for key in keys) == count
        assert worst < 0.5


def test_a_reader_that_stops_does_not_keep_the_table_small(make_server):
    """Its answer is given up when the keys become far too many for the table that it walks."""
    server = make_server("--write-timeout", 0)
    few, many, batch = 16000, 130000, 1000
    with server.connect() as owner, server.connect(receive_buffer=4096) as reader:
        for start in range(0, few + many, batch):
            owner.send_raw(b"".join(b"l\n%0250d\n0 600\n" % i for i in range(start, start + batch)))
            for _ in range(batch):
                assert owner.receive().startswith("ok ")
            if start + batch == few:
                reader.send("stats")
                assert reader.sock.recv(10) == b'ok {"conne'
        rest = b""
        while part := reader.sock.recv(1 << 20):
            rest += part
        assert not rest.endswith(b"\n") and rest.count(b'"key"') < few
        assert owner.ask("ping") == "ok"
