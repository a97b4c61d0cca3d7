"""Everything around the locks: login, TLS, ping, stats, drain, fence file, settings."""

import signal
import subprocess
import time

import pytest

from lib.eventually import Stopwatch, eventually
from lib.wire import Closed, fence_of, granted

own_server = pytest.mark.own_server


# ----------------------------------------------------------------------------- ping and stats


def test_ping(target, connect, key):
    wire = connect()
    wire.lock(key)
    assert wire.ask("ping", "_", "") == target.dialect.ping
    if target.dialect.bad_request_closes:
        wire.expect_closed()
        granted(connect().ask("l", key, "20"))
    else:
        assert connect().try_lock(key) == "timeout", "ping harms nothing"


def stats_or_error(target, connect, key):
    """The stats, or None from a server that has none, after it has said `error` and closed."""
    wire = connect()
    if target.dialect.stats:
        return wire.stats()
    wire.lock(key + "-for-stats")
    assert wire.ask("stats") == "error"
    wire.expect_closed()
    return None


def test_stats_have_their_five_parts(target, connect, key):
    answer = stats_or_error(target, connect, key)
    if answer is None:
        return
    assert set(answer) >= {"connections", "locks", "semaphores", "idle_locks", "idle_semaphores"}
    assert all(isinstance(answer[part], list) for part in answer if part != "connections" and part != "cluster")


def test_stats_take_an_empty_key(target, connect):
    wire = connect()
    wire.send("stats", "", "")
    answer = wire.receive()
    if target.dialect.stats:
        assert answer.startswith("ok {")
    else:
        assert answer == "error"


def test_stats_show_a_held_lock_and_its_waiters(target, server, connect, queue, key):
    holder, waiter = connect(), connect()
    holder.lock(key, lease=30)
    queue(waiter, "l", "60")
    answer = stats_or_error(target, connect, key)
    if answer is None:
        return
    row, = [r for r in answer["locks"] if r["key"] == key]
    assert isinstance(row["owner_conn_id"], int) and row["owner_conn_id"] > 0
    assert 20 < row["lease_expires_in_s"] <= 30
    assert row["waiters"] == 1
    assert answer["connections"] >= 3


def test_stats_name_different_owners(target, connect, key):
    one, two = connect(), connect()
    one.lock(key + "-1")
    one.lock(key + "-2")
    two.lock(key + "-3")
    answer = stats_or_error(target, connect, key)
    if answer is None:
        return
    owner = {r["key"]: r["owner_conn_id"] for r in answer["locks"]}
    assert owner[key + "-1"] == owner[key + "-2"] != owner[key + "-3"]


def test_stats_show_semaphores(target, connect, queue, key):
    answer = stats_or_error(target, connect, key)
    if answer is None:
        return
    wire, waiter = connect(), connect()
    wire.slot(key, 2)
    wire.slot(key, 2)
    queue(waiter, "sl", "60 2")
    row, = [r for r in wire.stats()["semaphores"] if r["key"] == key]
    assert (row["limit"], row["holders"], row["waiters"]) == (2, 2, 1)


def test_stats_show_idle_keys(target, connect, key):
    answer = stats_or_error(target, connect, key)
    if answer is None:
        return
    wire = connect()
    wire.release(key, wire.lock(key).token)
    wire.ask("sr", key + "-s", wire.slot(key + "-s", 2).token)
    answer = wire.stats()
    assert key not in [r["key"] for r in answer["locks"]]
    row, = [r for r in answer["idle_locks"] if r["key"] == key]
    assert 0 <= row["idle_s"] < 30
    row, = [r for r in answer["idle_semaphores"] if r["key"] == key + "-s"]
    assert 0 <= row["idle_s"] < 30


@pytest.mark.parametrize("odd", ['"', "\\", '\\"', "\x01", "\x1f", "\x7f", "/", "<&>", "é", "\u2028", "🔒", "{}[]:,"])
def test_stats_escape_keys(target, connect, key, odd):
    wire = connect()
    wire.lock(key + odd)
    if stats_or_error(target, connect, key) is None:
        return
    assert key + odd in [r["key"] for r in wire.stats()["locks"]]


@own_server
def test_stats_of_many_keys_are_one_line(target, connect, key):
    wire = connect()
    wire.send_raw("".join(f"l\n{key}-{i:05}\n0 60\n" for i in range(900)).encode())
    for _ in range(900):
        granted(wire.receive())
    answer = stats_or_error(target, connect, key)
    if answer is None:
        return
    mine = [r["key"] for r in answer["locks"] if r["key"].startswith(key)]
    assert len(mine) == len(set(mine)) == 900


# -------------------------------------------------------------------------------------- login

TOKEN = "s3cret-token-of-this-test"


def test_auth_to_a_server_without_a_token(target, connect, key):
    wire = connect()
    wire.lock(key)
    assert wire.ask("auth", "_", TOKEN) in ("error",)
    if target.dialect.auth_unasked_closes:
        wire.expect_closed()
    else:
        assert wire.try_lock(key) == "timeout"


@own_server
@pytest.mark.parametrize("way", ["flag", "environment", "file"])
def test_login(target, directory, key, way):
    if not target.has("--auth-token"):
        return target.refuses("--auth-token", TOKEN)
    if way == "flag":
        server = target.start("--auth-token", TOKEN)
    elif way == "environment":
        server = target.start(env={"DFLOCKD_AUTH_TOKEN": TOKEN})
    else:
        (directory / "token").write_text(TOKEN + "\n")
        server = target.start("--auth-token-file", directory / "token")
    with server.connect() as wire:
        assert wire.ask("auth", "_", TOKEN) == "ok"
        wire.lock(key)
    for wrong in (TOKEN + "x", TOKEN[:-1], "x", TOKEN.upper(), ""):
        with server.connect() as wire, Stopwatch() as took:
            assert wire.ask("auth", "_", wrong) == "error_auth"
            wire.expect_closed()
        assert took.s >= 0.09, "a pause before closing"
    assert TOKEN not in server.log()


@own_server
def test_nothing_works_before_login(target, key):
    if not target.has("--auth-token"):
        return target.refuses("--auth-token", TOKEN)
    server = target.start("--auth-token", TOKEN)
    requests = [("l", key, "0"), ("r", key, "0" * 32), ("stats", "_", ""), ("ping", "_", ""), ("nonsense", "_", "")]
    for request in requests:
        with server.connect() as wire:
            assert wire.ask(*request) == "error_auth"
            wire.expect_closed()
    with server.connect(login=TOKEN) as wire:
        assert wire.try_lock(key) == "ok"
        assert wire.ask("r", key, "0" * 32) == "error"


@own_server
def test_a_bad_login_delays_nobody_else(target, key):
    if not target.has("--auth-token"):
        return target.refuses("--auth-token", TOKEN)
    server = target.start("--auth-token", TOKEN)
    bad = [server.connect() for _ in range(20)]
    for wire in bad:
        wire.send("auth", "_", "wrong")
    with Stopwatch() as took, server.connect(login=TOKEN) as wire:
        wire.lock(key)
    assert took.s < 1.5, "not behind twenty pauses"
    for wire in bad:
        assert wire.receive() == "error_auth"
        wire.close()


@own_server
def test_a_long_login_token(target, directory, key):
    if not target.has("--auth-token"):
        return target.refuses("--auth-token", TOKEN)
    longest = "t" * target.dialect.auth_line_max
    (directory / "token").write_text(longest)
    server = target.start("--auth-token-file", directory / "token")
    with server.connect(login=longest) as wire:
        wire.lock(key)
    with server.connect() as wire:
        assert wire.ask("auth", "_", longest + "x").startswith("error")
        wire.expect_closed()


@own_server
def test_which_setting_of_the_token_wins(target, key):
    if not target.has("--auth-token"):
        return target.refuses("--auth-token", TOKEN)
    server = target.start("--auth-token", "from-flag", env={"DFLOCKD_AUTH_TOKEN": "from-environment"})
    winner = "from-environment" if target.dialect.environment_token_wins else "from-flag"
    with server.connect(login=winner) as wire:
        wire.lock(key)


@own_server
def test_the_environment_sets_what_no_flag_sets(target, key):
    server = target.start(env={"DFLOCKD_READ_TIMEOUT_S": "1"})
    with server.connect() as wire:
        wire.lock(key)
        assert wire.receive() == "error"
        wire.expect_closed()


@own_server
def test_an_unknown_flag_is_refused(target):
    target.refuses("--no-such-flag", 1)


@own_server
@pytest.mark.parametrize("flag", ["--read-timeout", "--max-locks", "--default-lease-ttl"])
def test_a_flag_that_is_no_number_is_refused(target, flag):
    target.refuses(flag, "many")


# ---------------------------------------------------------------------------------------- TLS


@own_server
def test_tls(target, certs, key):
    if not target.has("--tls-cert"):
        return target.refuses("--tls-cert", certs.server.cert)
    server = target.start("--tls-cert", certs.server.cert, "--tls-key", certs.server.key)
    tls = certs.client_context()
    with server.connect(tls=tls) as wire, server.connect(tls=tls, server_name="localhost") as other:
        assert wire.sock.version() in ("TLSv1.2", "TLSv1.3")
        token = wire.lock(key).token
        other.send("l", key, "30")
        eventually(lambda: server.waiters(key, tls=tls) == 1)
        assert wire.release(key, token) == "ok"
        granted(other.receive())
        other.close()
        granted(wire.ask("l", key, "20"))


@own_server
def test_tls_pipelining_and_partial_writes(target, certs, key):
    if not target.has("--tls-cert"):
        return target.refuses("--tls-cert", certs.server.cert)
    server = target.start("--tls-cert", certs.server.cert, "--tls-key", certs.server.key)
    with server.connect(tls=certs.client_context()) as wire:
        wire.send_raw("".join(f"l\n{key}-{i}\n0\n" for i in range(500)).encode())
        for _ in range(500):
            granted(wire.receive())
        for byte in f"l\n{key}\n0\n".encode():
            wire.send_raw(bytes([byte]))
        granted(wire.receive())
        assert len(wire.stats()["locks"]) == 501


@own_server
def test_a_tls_server_serves_no_plain_client(target, certs, key):
    if not target.has("--tls-cert"):
        return target.refuses("--tls-cert", certs.server.cert)
    server = target.start("--tls-cert", certs.server.cert, "--tls-key", certs.server.key)
    with server.connect() as wire:
        wire.send("l", key, "0")
        with pytest.raises((Closed, UnicodeDecodeError)):
            while True:  # at most a TLS alert
                assert not wire.receive().startswith("ok")
    with server.connect(tls=certs.client_context()) as wire:
        wire.lock(key)


@own_server
def test_old_tls_versions_are_refused(target, certs):
    if not target.has("--tls-cert"):
        return target.refuses("--tls-cert", certs.server.cert)
    server = target.start("--tls-cert", certs.server.cert, "--tls-key", certs.server.key)
    # The ssl module's floor would refuse before the server can: the command line tool may go lower.
    host, port = server.host, server.port
    done = subprocess.run(["openssl", "s_client", "-connect", f"{host}:{port}", "-tls1_1", "-cipher",
                           "DEFAULT@SECLEVEL=0"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
    assert done.returncode != 0 and "Cipher is (NONE)" in done.stdout, done.stdout
    assert "alert protocol version" in done.stderr or "unsupported protocol" in done.stderr, done.stderr


@own_server
def test_tls_and_login(target, certs, key):
    if not target.has("--tls-cert"):
        return target.refuses("--tls-cert", certs.server.cert)
    server = target.start("--tls-cert", certs.server.cert, "--tls-key", certs.server.key, "--auth-token", TOKEN)
    tls = certs.client_context()
    with server.connect(tls=tls, login=TOKEN) as wire:
        wire.lock(key)
    with server.connect(tls=tls) as wire:
        assert wire.ask("l", key, "0") == "error_auth"
        wire.expect_closed()


@own_server
def test_half_of_the_tls_settings_is_refused(target, certs):
    target.refuses("--tls-cert", certs.server.cert)


@own_server
def test_a_mute_tls_client_is_closed_and_harms_nobody(target, certs, key):
    if not target.has("--tls-cert"):
        return target.refuses("--tls-cert", certs.server.cert)
    server = target.start("--tls-cert", certs.server.cert, "--tls-key", certs.server.key, "--read-timeout", 1)
    with server.connect() as mute, server.connect(tls=certs.client_context()) as wire:
        token = wire.lock(key, lease=60).token

        def closed():
            assert wire.renew(key, token, 60).startswith("ok ")
            return mute.closed_by_peer()

        eventually(closed, every=0.2, what="the mute client is closed by the read time-out")


# ---------------------------------------------------------------------------- the end of a server


@own_server
def test_a_stopped_server_drains(target, key):
    """SIGTERM: what waiters, holders and newcomers get until the process ends."""
    dialect = target.dialect
    server = target.start(*(["--shutdown-timeout", 30] if target.has("--shutdown-timeout") else []))
    holder, waiter, idle = server.connect(), server.connect(), server.connect()
    token = holder.lock(key, lease=60).token
    assert idle.try_lock(key) == "timeout"
    target.await_queued(server, key, lambda: waiter.send("l", key, "60"))
    server.process.signal(signal.SIGTERM)
    if dialect.ends_at_once:
        for wire in (holder, waiter, idle):
            wire.expect_closed()
        assert server.process.wait() != 0
        return
    assert waiter.receive() == dialect.drain_waiter
    answer = idle.ask("l", key + "-2", "0")
    assert answer.split(" ")[0] == dialect.drain_request
    if dialect.drain_accepts:
        with server.connect() as late:
            assert late.ask("l", key + "-3", "0") == "error_draining"
    else:
        with pytest.raises(ConnectionRefusedError):
            server.connect()
    if dialect.drain_renews:
        assert holder.renew(key, token, 60).split(" ")[0] == "ok"
        assert holder.release(key, token) == "ok"
    else:
        assert holder.renew(key, token, 60) == "error_draining"
    for wire in (holder, waiter, idle):
        wire.close()
    assert server.process.wait() == 0


@own_server
def test_the_shutdown_timeout_ends_a_drain(target, key):
    if not target.has("--shutdown-timeout"):
        return target.refuses("--shutdown-timeout", 1)
    server = target.start("--shutdown-timeout", 1)
    with server.connect() as holder, Stopwatch() as took:
        holder.lock(key, lease=60)
        server.process.signal(signal.SIGTERM)
        assert server.process.wait() == 0
        assert 0.9 <= took.s
        holder.expect_closed()


@own_server
def test_an_idle_server_ends_at_once(target):
    server = target.start()
    with Stopwatch() as took:
        status = server.terminate()
    assert took.s < 5
    assert (status == 0) != target.dialect.ends_at_once


@own_server
def test_a_paused_server_goes_on_where_it_was(target, key):
    server = target.start()
    with server.connect() as holder, server.connect() as other:
        token = holder.lock(key, lease=60).token
        server.pause()
        other.send("l", key, "0")
        other.expect_silence(0.3)
        server.resume()
        assert other.receive() == "timeout"
        assert holder.renew(key, token, 60).startswith("ok ")


# -------------------------------------------------------------------------------- the fence file


@own_server
def test_fences_grow_over_a_kill_with_a_state_file(target, directory, key):
    if not target.has("--fence-state-file"):
        return target.refuses("--fence-state-file", directory / "fence")
    flags = ["--fence-state-file", directory / "fence"]
    if target.has("--no-recovery-wait"):
        flags.append("--no-recovery-wait")
    server = target.start(*flags)
    newest = 0
    for _ in range(3):
        with server.connect() as wire:
            for _ in range(10):
                grant = wire.lock(key)
                assert fence_of(grant.token) > newest
                newest = fence_of(grant.token)
                wire.release(key, grant.token)
        server.restart()


@own_server
def test_after_a_kill_nothing_is_granted_while_old_leases_may_run(target, directory, key):
    if not target.has("--no-recovery-wait"):
        return target.refuses("--no-recovery-wait")
    server = target.start("--fence-state-file", directory / "fence")
    began = time.monotonic()
    with server.connect() as wire:
        token = wire.lock(key, lease=3).token
        server.restart()
    with server.connect() as wire, server.connect() as waiter:
        assert wire.ask("l", key, "0") == "timeout"
        assert wire.ask("l", key + "-2", "0") == "timeout", "any key: nobody knows which were held"
        assert wire.renew(key, token, 5) == "error"
        assert wire.release(key, token) == "error"
        assert wire.ask("e", key + "-3", "") == "queued"
        granted(waiter.ask("l", key, "60", deadline=60))
        assert time.monotonic() - began >= 2.9, "not before the old lease is over"
        granted(wire.ask("w", key + "-3", "10"))


@own_server
def test_after_an_orderly_end_there_is_no_recovery_wait(target, directory, key):
    if not target.has("--no-recovery-wait"):
        return target.refuses("--no-recovery-wait")
    server = target.start("--fence-state-file", directory / "fence", "--shutdown-timeout", 1)
    with server.connect() as wire:
        before = wire.lock(key, lease=60)
        wire.release(key, before.token)
    assert server.terminate() == 0
    server.start()
    with server.connect() as wire:
        assert fence_of(wire.lock(key).token) > fence_of(before.token)


# -------------------------------------------------------------------------------- under pressure


@own_server
def test_a_client_that_does_not_read_is_closed(target, key):
    """The write time-out: others are served meanwhile, and what the client held is free afterwards."""
    if not target.has("--write-timeout"):
        return target.refuses("--write-timeout", 1)
    server = target.start("--write-timeout", 1, "--max-locks", 2000)
    with server.connect() as filler, server.connect(receive_buffer=4096) as deaf, server.connect() as other:
        filler.send_raw("".join(f"l\n{key}-{i:05}-{'x' * 200}\n0 60\n" for i in range(900)).encode())
        for _ in range(900):
            granted(filler.receive())
        deaf.lock(key, lease=600)
        deaf.sock.setblocking(False)
        try:
            for _ in range(400):
                deaf.sock.send(b"stats\n_\n\n")
        except BlockingIOError:
            pass
        eventually(lambda: other.try_lock(key) == "ok", deadline=40, every=0.2, what="the deaf client's lock is free")
        assert filler.try_lock(key + "-more") == "ok"


def test_many_connections(connect, key):
    wires = [connect() for _ in range(100)]
    for i, wire in enumerate(wires):
        wire.send("l", f"{key}-{i}", "0")
    for wire in wires:
        granted(wire.receive())
