"""TLS: what is accepted, certificates read again on SIGHUP, and peers that speak something else."""

import os
import pty
import shutil
import socket
import ssl
import subprocess

import pytest

from lib.eventually import eventually
from lib.server import StartFailed


@pytest.fixture
def files(directory, certs):
    """Certificate and key of a server's own, to be replaced while it runs."""
    cert, key = directory / "live.crt", directory / "live.key"
    shutil.copy(certs.server.cert, cert)
    shutil.copy(certs.server.key, key)
    return cert, key


@pytest.fixture
def secure(make_server, files):
    return lambda *flags: make_server("--tls-cert", files[0], "--tls-key", files[1], *flags)


def connect(server, certs, **kw):
    return server.connect(tls=certs.client_context(), **kw)


def serial(w):
    return w.sock.getpeercert()["serialNumber"]


def test_locks_over_tls(secure, certs):
    server = secure()
    with connect(server, certs) as a, connect(server, certs) as b:
        assert a.sock.version() in ("TLSv1.2", "TLSv1.3")
        token = a.lock("k", lease=60).token
        b.send("l", "k", "60")
        eventually(lambda: a.stats()["locks"][0]["waiters"] == 1)
        assert a.release("k", token) == "ok"
        assert b.receive().startswith("ok ")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_versions(secure, certs, version):
    context = certs.client_context()
    context.minimum_version = context.maximum_version = version
    with secure().connect(tls=context) as w:
        assert w.ask("ping") == "ok"


def test_older_versions_are_refused(secure, certs):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(certs.ca.cert)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        secure().connect(tls=context)


def test_big_pipelines_and_big_answers(secure, certs):
    with connect(secure(), certs) as w:
        for i in range(3000):
            w.send("l", f"key-{i:0200d}", "0 60")
        for _ in range(3000):
            assert w.receive().startswith("ok ")
        assert len(w.stats()["locks"]) == 3000


def test_certificates_are_read_again(secure, files, certs):
    server = secure()
    old = connect(server, certs)
    first = serial(old)
    token = old.lock("k", lease=60).token
    shutil.copy(certs.server2.key, files[1])
    shutil.copy(certs.server2.cert, files[0])
    server.hang_up()
    eventually(lambda: "certificate read again" in server.log())
    with connect(server, certs) as new:
        assert serial(new) != first
        assert new.try_lock("k") == "timeout"
    assert old.renew("k", token, 60) == "ok 60"


def test_bad_certificates_change_nothing(secure, files, certs):
    server = secure()
    with connect(server, certs) as w:
        first = serial(w)
    for spoil in (lambda: files[0].write_text("no certificate"), lambda: os.unlink(files[0]),
                  lambda: shutil.copy(certs.server2.cert, files[0])):  # a certificate of another key
        before = server.log().count("certificate not changed")
        spoil()
        server.hang_up()
        eventually(lambda: server.log().count("certificate not changed") == before + 1)
        with connect(server, certs) as w:
            assert serial(w) == first


def test_nobody_is_asked_for_a_pass_phrase(make_server, files, certs):
    """The server would wait for whoever sits at its terminal, and everybody for the server."""
    ours, theirs = pty.openpty()
    server = make_server("--tls-cert", files[0], "--tls-key", files[1],
                         wrapper=["sh", "-c", 'exec 3<"$0"; exec "$@"', os.ttyname(theirs)])  # the terminal of its session
    subprocess.run(["openssl", "ec", "-in", certs.server.key, "-out", files[1], "-aes256", "-passout", "pass:word"],
                   check=True, capture_output=True)
    server.hang_up()
    why = f'error="read private key {files[1]}: it is encrypted"'
    eventually(lambda: f'msg="certificate not changed" {why}' in server.log())
    with connect(server, certs) as w:
        assert w.ask("ping") == "ok"
    server.stop()
    with pytest.raises(StartFailed) as failed:
        server.start()
    assert f'msg="cannot start" {why}' in failed.value.log
    os.close(ours)
    os.close(theirs)


def test_hang_up_without_tls_is_harmless(server):
    server.hang_up()
    with server.connect() as w:
        assert w.ask("ping") == "ok"


def test_bad_files_at_the_start(make_server, certs, directory):
    none, empty = directory / "none", directory / "empty"
    empty.touch()
    for cert, key, why in [(none, certs.server.key, f"read certificate {none}: No such file or directory"),
                           (certs.server.cert, none, f"read private key {none}: No such file or directory"),
                           (empty, certs.server.key, f"read certificate {empty}: no start line"),
                           (certs.server.cert, certs.server2.key,
                            f"read private key {certs.server2.key}: key values mismatch")]:
        with pytest.raises(StartFailed) as failed:
            make_server("--tls-cert", cert, "--tls-key", key)
        assert failed.value.status == 1
        assert f'msg="cannot start" error="{why}"' in failed.value.log


def test_a_plain_client_and_garbage(secure, certs):
    server = secure()
    for noise in (b"l\nk\n0\n", b"\x16\x03\x01\xff\xff" + b"\0" * 300, os.urandom(4096)):
        sock = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        sock.sendall(noise)
        sock.settimeout(10)
        try:
            while sock.recv(4096):
                pass
        except ConnectionResetError:
            pass
    assert "tls handshake failed" in server.log()
    with connect(server, certs) as w:
        assert w.ask("ping") == "ok"


def test_a_handshake_that_never_ends(secure, certs):
    server = secure("--read-timeout", 0.5)
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    assert sock.recv(1) == b""
    with connect(server, certs) as w:
        assert w.ask("ping") == "ok"


def test_a_closed_waiter_over_tls(secure, certs):
    server = secure()
    with connect(server, certs) as holder:
        holder.lock("k", lease=60)
        waiter = connect(server, certs)
        waiter.send("l", "k", "3600")
        eventually(lambda: holder.stats()["locks"][0]["waiters"] == 1)
        waiter.close()
        eventually(lambda: holder.stats()["locks"][0]["waiters"] == 0)
