"""The bundled server while others misbehave: whoever behaves notices nothing.

Every test ends with `aftermath`: the holder of a 2 s lease never lost it, and descriptors and memory are as before.
"""

import itertools
import resource
import socket
import ssl
import struct
import time

import pytest

from lib.eventually import eventually
from lib.process import cpu_s, descriptors
from lib.wire import Closed, Wire

MANY = 10_000
OWN_FILES = 500  # of this process, for other things


def test_slow_senders(make_scene, attackers):
    """A byte of a request now and then, from hundreds at once."""
    scene = make_scene("--read-timeout", 20)
    crowd = attackers(scene.server)
    crowd.connect(300)
    request = itertools.cycle(b"l\nslow-key\n0 30\n")

    def step():
        crowd.send_all(bytes([next(request)]))
    scene.endure(step, room_mb=16)
    assert crowd.drop_closed() == 0
    crowd.leave()
    scene.aftermath()


def test_a_sender_slower_than_the_read_timeout_is_closed(make_scene, attackers):
    """Bytes alone do not keep a connection: a whole request has to come in time."""
    scene = make_scene("--read-timeout", 3, env={"DFLOCK_SERVER_READ_TIMEOUT": "3"})
    crowd = attackers(scene.server)
    crowd.connect(100)
    closed, sent_at = [0], [0.0]

    def step():
        if time.monotonic() - sent_at[0] > 0.2:  # slow enough for the line not to become too long in this time
            sent_at[0] = time.monotonic()
            crowd.send_all(b"l")
        closed[0] += crowd.drop_closed()
    scene.endure(step, room_mb=16)
    eventually(lambda: step() or closed[0] == 100, what="all of them are closed")
    scene.aftermath()


def test_ten_thousand_connections(make_scene, attackers, many_files):
    scene = make_scene("--read-timeout", 60)
    crowd = attackers(scene.server)
    count = min(MANY, many_files - OWN_FILES)
    while len(crowd.sockets) < count:
        crowd.connect(min(500, count - len(crowd.sockets)))
        scene.check(room_mb=200)
    eventually(lambda: scene.server.stats()["connections"] >= count, what=f"{count} connections are served")
    print(f"\n{count} connections at once")
    some = itertools.cycle(crowd.sockets)

    def step():
        for _ in range(500):
            sock = next(some)
            crowd.send(sock, b"ping\n_\n\n")
            crowd.receive(sock)
    scene.endure(step, room_mb=200)
    assert crowd.drop_closed() == 0
    crowd.leave()
    scene.aftermath(room_mb=64)


def test_more_connections_than_allowed(make_scene, attackers):
    """Whoever comes too late is closed; whoever is in stays in, and can work."""
    scene = make_scene("--max-connections", 50)
    crowd = attackers(scene.server)

    def step():
        crowd.connect(200)
        crowd.drop_closed()
    # The visitor has its connection already, and keeps it.
    scene.endure(step, room_mb=16)
    eventually(lambda: crowd.drop_closed() == 0 and len(crowd.sockets) < 50, what="the others are closed")
    crowd.leave()
    scene.aftermath()


def test_out_of_descriptors(make_scene, attackers):
    """Whoever finds none left is closed at once; whoever is in stays in, and the server does not spin over those at the door."""
    scene = make_scene()
    limit = descriptors(scene.server.pid) + 20
    resource.prlimit(scene.server.pid, resource.RLIMIT_NOFILE, (limit, limit))
    crowd = attackers(scene.server)
    closed = [0]

    def step():
        crowd.connect(50)
        closed[0] += crowd.drop_closed()
    scene.endure(step, room_mb=16)
    eventually(lambda: crowd.drop_closed() == 0 and len(crowd.sockets) < limit, what="the others are closed")
    assert closed[0] > 50
    crowd.connect(20)
    before, since = cpu_s(scene.server.pid), time.monotonic()
    eventually(lambda: time.monotonic() - since > 1, what="a second has passed")
    assert cpu_s(scene.server.pid) - before < 0.3, "the server is busy although nobody asks anything"
    crowd.leave()
    scene.aftermath()


def test_huge_pipelines(make_scene, attackers):
    """As many requests as the network takes, answers read."""
    scene = make_scene()
    crowd = attackers(scene.server)
    crowd.connect(8)
    requests = b"ping\n_\n\n" * 8000
    behind = dict.fromkeys(crowd.sockets, b"")
    answers = [0]

    def step():
        for sock in crowd.sockets:
            left = behind[sock] or requests
            sent = crowd.send(sock, left)
            assert sent >= 0, "closed"
            behind[sock] = left[sent:]
            while data := crowd.receive(sock):
                answers[0] += data.count(b"\n")
                assert set(data) <= set(b"ok\n")
    scene.endure(step, room_mb=16)
    assert answers[0] > 50_000
    print(f"\n{answers[0]} pipelined requests answered")
    crowd.leave()
    scene.aftermath()


def test_a_pipeline_behind_a_wait(make_scene, attackers):
    """Nothing is read on while a request blocks: what comes stays bounded."""
    scene = make_scene()
    crowd = attackers(scene.server)

    def step():
        for sock in crowd.connect(20):
            crowd.send(sock, b"l\nguarded\n300\n" + b"ping\n_\n\n" * 20_000)
        for sock in crowd.sockets:
            crowd.send(sock, b"ping\n_\n\n" * 20_000)
        crowd.drop_closed()
    scene.endure(step, room_mb=32)
    crowd.leave()
    eventually(lambda: scene.server.waiters("guarded") == 0, what="nobody waits any more")
    scene.aftermath()


@pytest.mark.parametrize("request_line", [b"ping\n_\n\n", b"stats\n_\n\n", b"l\nbad key\n0\n"],
                         ids=["ping", "stats", "errors"])
def test_clients_that_never_read(make_scene, attackers, request_line):
    """Answers pile up in the kernel, then nothing more is read from them; at the write time-out they are closed."""
    scene = make_scene("--write-timeout", 3)
    with scene.server.connect() as wire:  # so that stats have something to say
        for i in range(2000):
            wire.release(f"idle-key-{i}", wire.lock(f"idle-key-{i}").token)
    crowd = attackers(scene.server)
    crowd.connect(20, receive_buffer=4096)
    closed = [0]

    def step():
        crowd.send_all(request_line * 2000)
        closed[0] += crowd.drop_closed()
    scene.endure(step, room_mb=48)
    eventually(lambda: step() or closed[0] == 20, what="all of them are closed")
    scene.aftermath(room_mb=16)


def test_half_open_connections(make_scene, attackers):
    """Silent ones, such as have closed their side, such as wait and then say nothing, such as end in a reset."""
    scene = make_scene("--read-timeout", 3, env={"DFLOCK_SERVER_READ_TIMEOUT": "3"})
    crowd = attackers(scene.server)
    closed = [0]

    def step():
        if len(crowd.sockets) < 1000:
            silent, half, waiting, reset = (crowd.connect(20) for _ in range(4))
            for sock in half:
                crowd.send(sock, b"l\nguarded\n300\n")
                sock.shutdown(socket.SHUT_WR)
            for sock in waiting:
                crowd.send(sock, b"l\nguarded\n5 30\n")
            for sock in reset:
                crowd.send(sock, b"l\nguarded\n300\n")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.close()
                crowd.sockets.remove(sock)
            assert silent
        closed[0] += crowd.drop_closed()
    scene.endure(step, room_mb=32)
    eventually(crowd.all_closed, what="silent ones are closed, and whose wait is over", deadline=60)
    assert scene.server.waiters("guarded") == 0
    scene.aftermath()


def test_a_crowd_in_line(make_scene, attackers):
    """Thousands who wait for the very lock that is held, come and go."""
    scene = make_scene()
    crowd = attackers(scene.server)

    def step():
        for sock in crowd.connect(200):
            crowd.send(sock, b"l\nguarded\n300\n")
        if len(crowd.sockets) > 2000:
            crowd.leave()
    scene.endure(step, room_mb=64)
    crowd.leave()
    eventually(lambda: scene.server.waiters("guarded") == 0, what="nobody waits any more")
    scene.aftermath(room_mb=16)


def test_connections_that_come_and_go(make_scene, attackers):
    scene = make_scene()
    crowd = attackers(scene.server)
    count = [0]

    def step():
        crowd.connect(300)
        count[0] += 300
        crowd.leave()
    scene.endure(step, room_mb=16)
    print(f"\n{count[0]} connections came and went")
    scene.aftermath()


def test_plain_garbage(make_scene, attackers, noise):
    scene = make_scene()
    crowd = attackers(scene.server)
    kinds = [lambda: noise(3000), lambda: bytes(5000), lambda: b"A" * 100_000, lambda: b"\n" * 9000,
             lambda: b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 50, lambda: b"l\n" + noise(200) + b"\n0\n",
             lambda: b"r\nguarded\n" + b"0" * 32 + b"\n", lambda: b"n\nguarded\n" + noise(20).hex().encode() + b" 1\n",
             lambda: b"sl\nguarded\n0 99999999999999999999\n", lambda: b"\x16\x03\x01\x02\x00\x01" + noise(600)]

    def step():
        for kind in kinds:
            for sock in crowd.connect(5):
                crowd.send(sock, kind())
        for sock in crowd.sockets:
            crowd.receive(sock)
        if len(crowd.sockets) > 500:
            crowd.leave()
    scene.endure(step, room_mb=16)
    crowd.leave()
    scene.aftermath()


def hello(noise):
    """The first flight of a TLS handshake, whole, and its pieces spoiled in several ways."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    client = context.wrap_bio(incoming, outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    whole = outgoing.read()
    spoiled = bytearray(whole)
    for at in range(9, len(spoiled), 17):
        spoiled[at] ^= noise(1)[0]
    return [whole, whole[: len(whole) // 2], bytes(spoiled), whole + noise(2000), whole * 20]


def test_tls_garbage(make_scene, attackers, noise, certs):
    """What is no TLS, half a handshake, a spoiled one, and one that is never finished."""
    scene = make_scene("--tls-cert", certs.server.cert, "--tls-key", certs.server.key, "--read-timeout", 3,
                       env={"DFLOCK_TLS": "on", "DFLOCK_TLS_CA": str(certs.ca.cert), "DFLOCK_SERVER_READ_TIMEOUT": "3"})
    crowd = attackers(scene.server)

    def step():
        kinds = hello(noise) + [b"l\nguarded\n0\n", noise(2000), bytes(2000), b"\x16\x03\x01\xff\xff" + noise(100),
                                b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03", b"\x15\x03\x03\x00\x02\x02\x28", b""]
        crowd.drop_closed()
        if len(crowd.sockets) > 400:
            return
        for data in kinds:
            for sock in crowd.connect(3):
                crowd.send(sock, data)
    scene.endure(step, room_mb=64)
    eventually(crowd.all_closed, what="unfinished handshakes are closed", deadline=60)
    scene.aftermath(room_mb=32)


def test_garbage_inside_tls(make_scene, certs, noise):
    scene = make_scene("--tls-cert", certs.server.cert, "--tls-key", certs.server.key,
                       env={"DFLOCK_TLS": "on", "DFLOCK_TLS_CA": str(certs.ca.cert)})
    context = certs.client_context()

    def step():
        for data in (noise(5000), b"A" * 50_000, b"ping\n_\n\n" * 2000):
            with Wire(scene.server.address, tls=context) as wire:
                try:
                    wire.send_raw(data)
                    wire.receive(5)
                except (Closed, OSError, UnicodeDecodeError):
                    continue  # closed on: that is what garbage gets
    scene.endure(step, room_mb=32)
    scene.aftermath(room_mb=16)


def test_wrong_login_tokens(make_scene, attackers, directory, noise):
    """Guessing goes on and on; and what comes without a login, or before one, is not looked at."""
    secret = directory / "token"
    secret.write_text("right-token\n")
    secret.chmod(0o600)
    scene = make_scene("--auth-token-file", secret, env={"DFLOCK_AUTH_TOKEN": "right-token"})
    crowd = attackers(scene.server)
    refused = [0]

    def step():
        for sock in crowd.connect(40):
            crowd.send(sock, b"auth\n_\n" + noise(16).hex().encode() + b"\n")
        for sock in crowd.connect(10):
            crowd.send(sock, b"l\nguarded\n0\n")
        for sock in crowd.connect(2):
            crowd.send(sock, b"auth\n_\n" + b"x" * 70_000 + b"\n")
        for sock in crowd.connect(2):
            crowd.send(sock, b"auth\n_\nright-token")
        for sock in crowd.sockets:
            refused[0] += (crowd.receive(sock) or b"").count(b"error_auth\n")
        crowd.drop_closed()
        if len(crowd.sockets) > 2000:
            crowd.leave()
    scene.endure(step, room_mb=32)
    assert refused[0] > 100
    print(f"\n{refused[0]} wrong tokens refused")
    crowd.leave()
    scene.aftermath()
