"""The worker and its lock servers: login, TLS, death, silence, restarts."""

import zlib

import pytest

from lib.eventually import Stopwatch, always, eventually
from lib.under import patient
from pg.waiting import Background, await_free, await_queued


def key_of(shard, count, prefix="k"):
    """A key that CRC-32 sends to this server of the list."""
    return next(k for k in (f"{prefix}{i}" for i in range(1000)) if zlib.crc32(k.encode()) % count == shard)


@pytest.mark.every_version
def test_nobody_there(make_cluster):
    pg = make_cluster("127.0.0.1:1")
    session = pg.session()
    error = session.fails("SELECT dflock_acquire('k')")
    assert error.sqlstate == "LK010" and "127.0.0.1:1" in str(error) and "refused" in str(error)
    assert session.fails("SELECT dflock_lock('k', 'infinity')").sqlstate == "LK010"
    ((address, state, last_error),) = session.rows("SELECT address, state, last_error FROM dflock_servers")
    assert (address, state) == ("127.0.0.1:1", "down") and "refused" in last_error
    # A dead server is a row, not a failed query.
    ((server, key, error),) = session.rows("SELECT server, key, error FROM dflock_server_locks")
    assert server == "127.0.0.1:1" and key is None and "refused" in error
    ((_, trip, error),) = session.rows("SELECT * FROM dflock_ping()")
    assert trip is None and "refused" in error
    assert "error" in session.value("SELECT dflock_stats()")["127.0.0.1:1"]


@pytest.mark.every_version
def test_server_restarted_under_holds(pg, session, server, watcher):
    session.run("SELECT dflock_acquire('k'), dflock_enqueue('q')")
    other = pg.session()
    waiting = Background(other, "SELECT dflock_acquire('k', 'infinity')")
    await_queued(watcher, other.pid)
    server.kill()
    assert waiting.failure().sqlstate in ("LK010", "LK011")
    eventually(lambda: session.value("SELECT dflock_is_held('k')") is False)
    assert watcher.rows("SELECT state FROM dflock_servers") == [("down",)]
    server.start()
    assert session.fails("SELECT dflock_acquire('k')").sqlstate == "40001"
    assert session.value("SELECT dflock_acquire('k', 5)")
    eventually(lambda: watcher.rows("SELECT state FROM dflock_servers") == [("up",)])
    # Once when it went, once when it came back.
    lines = [line for line in pg.log().splitlines() if server.address in line and "dflockd:" in line]
    assert len(lines) <= 3, lines


@pytest.mark.every_version
def test_login_and_tls(make_cluster, make_server, certs, server):
    token = "correct-horse"
    guarded = make_server("--auth-token", token, "--tls-cert", certs.server.cert, "--tls-key", certs.server.key)
    pg = make_cluster(guarded, extension=True)
    session = pg.session()
    ca = pg.private_file("ca.pem", certs.ca.cert.read_text())
    good = pg.private_file("token", token + "\n")
    wrong = pg.private_file("wrong", "battery-staple\n")
    loose = pg.private_file("loose", token + "\n", mode=0o644)

    def try_with(**settings):
        pg.reload({f"dflockd.{k}": v for k, v in settings.items()})

    def answers(sqlstate, *words):
        def ask():
            error = session.fails("SELECT dflock_acquire('k')")
            return error.sqlstate == sqlstate and all(w in str(error) for w in words)
        eventually(ask, what=f"{sqlstate} {words}")

    answers("LK011", guarded.address)  # plain to a TLS port: the server hangs up
    try_with(tls="on", tls_ca=ca, auth_token_file=wrong)
    answers("LK013", guarded.address)
    # A file that others can read is not used: the log says so, and what was in force stays.
    try_with(auth_token_file=loose)
    eventually(lambda: "loose" in pg.log() and "new settings are not used" in pg.log())
    try_with(auth_token_file=good)
    eventually(lambda: session.connection.execute("SELECT 1") and _granted(session))
    assert session.value("SELECT dflock_release('k')")
    # Another name, another authority.
    try_with(tls_server_name="elsewhere.example")
    pg.await_worker()
    session.run("SELECT dflock_release_all()")
    fresh = make_cluster(guarded, dflockd__tls="on", dflockd__auth_token_file=good, dflockd__tls_ca=ca,
                         dflockd__tls_server_name="elsewhere.example")
    error = fresh.session().fails("SELECT dflock_acquire('k')")
    assert error.sqlstate == "LK010" and "tls" in str(error).lower()
    assert token not in pg.log() + fresh.log()
    # A token that cannot be read at the start: the reason is in the error, and a reload mends it.
    late = make_cluster(guarded, dflockd__tls="on", dflockd__auth_token_file=loose, dflockd__tls_ca=ca)
    there = late.session()
    error = there.fails("SELECT dflock_acquire('k')")
    assert error.sqlstate == "LK013" and "loose" in str(error)
    late.reload({"dflockd.auth_token_file": good})
    eventually(lambda: _granted(there))


def _granted(session):
    import psycopg
    try:
        return session.value("SELECT dflock_acquire('k')")
    except psycopg.Error:
        return False


def test_a_dead_and_a_silent_shard_harm_their_own_keys_only(make_cluster, make_server, make_proxy):
    """Three servers: one refuses, one says nothing. The third goes on, within its leases and without delay."""
    alive, silent, dead = make_server(), make_proxy(make_server()), make_server()
    pg = make_cluster(alive, silent, dead, dflockd__connect_timeout="1s")
    session, other = pg.session(), pg.session()
    keys = [key_of(i, 3) for i in range(3)]
    for key in keys:
        assert session.value("SELECT dflock_acquire(%s, 0, 2)", key)
    silent.black_hole()
    dead.kill()
    eventually(lambda: session.value("SELECT dflock_is_held(%s)", keys[2]) is False)
    refused = other.fails("SELECT dflock_acquire(%s)", key_of(2, 3, "other"))
    assert refused.sqlstate in ("LK010", "LK011"), refused
    with Stopwatch() as took:
        error = other.fails("SELECT dflock_acquire(%s, 'infinity')", key_of(1, 3, "other"))
    assert error.sqlstate in ("LK010", "LK011") and took.s < patient(4), error
    stuck = Background(pg.session(), "SELECT dflock_acquire(%s)", key_of(1, 3, "third"))
    for _ in range(30):
        with Stopwatch() as took:
            assert other.value("SELECT dflock_acquire(%s) AND dflock_release(%s)", key_of(0, 3, "x"), key_of(0, 3, "x"))
        assert took.s < patient(0.5)
    always(lambda: session.value("SELECT dflock_is_held(%s)", keys[0]), 4)
    assert session.value("SELECT dflock_is_held(%s)", keys[1]) is False
    assert stuck.failure().sqlstate in ("LK010", "LK011")
    states = dict(session.rows("SELECT address, state FROM dflock_servers"))
    assert states[str(alive)] == "up" and states[str(dead)] == "down"


def test_too_many_sockets(make_cluster, server):
    """Beyond max_connections new waits are 53400, while tries, renewals and releases go on."""
    pg = make_cluster(server, dflockd__max_connections=4)
    session, watcher = pg.session(), pg.session()
    session.run("SELECT dflock_acquire('k')")
    waiting, errors = [], []
    for _ in range(6):
        waiting.append(Background(pg.session(), "SELECT dflock_acquire('k', 60)"))
        eventually(lambda: watcher.value("SELECT count(*) FROM dflock_locks WHERE state = 'queued'")
                   + sum(not w.busy() for w in waiting) == len(waiting))
    errors = [w.failure() for w in waiting if not w.busy()]
    assert errors and all(e.sqlstate == "53400" and "max_connections" in str(e) for e in errors), errors
    assert session.value("SELECT dflock_acquire('k2') AND dflock_assert_held('k', true) AND dflock_release('k2')")
    assert session.value("SELECT dflock_release('k')")
    for one in [w for w in waiting if w.busy()]:
        one.session.connection.cancel()
    for one in waiting:
        one._thread.join(patient(20))
        one.session.close()
    await_free(server)


def test_too_many_locks(make_cluster, server):
    pg = make_cluster(server, dflockd__max_locks=5)
    session, other = pg.session(), pg.session()
    session.run("SELECT dflock_acquire('k' || i) FROM generate_series(1, 5) AS i")
    error = other.fails("SELECT dflock_acquire('one more')".replace(" more", "-more"))
    assert error.sqlstate == "53400" and "max_locks" in str(error)
    assert session.value("SELECT dflock_release('k1')")
    assert other.value("SELECT dflock_acquire('one-more')")
    # Lost ones make room, the longest lost first; their session remembers.
    server.restart()
    eventually(lambda: not session.value("SELECT dflock_is_held('k2')"))
    session.run("SELECT dflock_acquire('n' || i) FROM generate_series(1, 5) AS i")
    assert session.value("SELECT count(*) FROM dflock_locks WHERE state = 'held'") == 5
    assert session.fails("SELECT dflock_assert_held('k2')").sqlstate == "40001"
    assert session.value("SELECT dflock_release_all()") == 5
