"""The README's table of error texts, made to happen one by one: what stands there is what comes."""

import http.server
import re
import socket
import threading

import pytest

from lib import readme

TRY = "SELECT dflock_acquire('k', 0)"


def table():
    """The first cells of the table as patterns; ... stands for whatever comes."""
    text = readme.README.read_text("utf-8")
    section = text[text.index("\n## Troubleshooting\n"):text.index("\n## Coming from other locks\n")]
    cells = re.findall(r"^\| `([0-9A-Z]{5}: [^\n|]+)` \|", section, re.MULTILINE)
    return {cell: re.compile(re.escape(cell).replace(re.escape("..."), ".+")) for cell in cells}


class Stage:
    """What a situation needs; text() is what a shell says after `dflockd `."""

    def __init__(self, make_sqlite, make_server, certs):
        self.make_sqlite, self.make_server, self.certs = make_sqlite, make_server, certs

    def shell(self, servers, **settings):
        env = {f"DFLOCK_{name.upper()}": str(value) for name, value in settings.items()}
        return self.make_sqlite(servers=servers, env=env, bail=False)

    def text(self, shell, sql=TRY):
        said = shell.fails(sql).error.partition("dflockd ")[2].strip()
        return re.sub(r" \(\d+\)$", "", said)  # the shell of SQLite 3.37 adds the result code

    def tls_server(self, pair):
        return self.make_server("--tls-cert", pair.cert, "--tls-key", pair.key)


def nobody_there(stage):
    with socket.create_server(("127.0.0.1", 0)) as s:
        port = s.getsockname()[1]
    return stage.text(stage.shell(f"127.0.0.1:{port}"))


def no_such_name(stage):
    return stage.text(stage.shell("no-such-host.invalid:6388"))


def tls_to_a_plain_server(stage):
    return stage.text(stage.shell(stage.make_server(), tls="on", tls_ca=stage.certs.ca.cert))


def wrong_name(stage):
    server = stage.tls_server(stage.certs.wrong_name)
    return stage.text(stage.shell(server, tls="on", tls_ca=stage.certs.ca.cert))


def unknown_ca(stage):
    server = stage.tls_server(stage.certs.server)
    return stage.text(stage.shell(server, tls="on", tls_ca=stage.certs.other_ca.cert))


def expired(stage):
    server = stage.tls_server(stage.certs.expired)
    return stage.text(stage.shell(server, tls="on", tls_ca=stage.certs.ca.cert))


def mute(stage):
    with socket.create_server(("127.0.0.1", 0)) as s:
        return stage.text(stage.shell(f"127.0.0.1:{s.getsockname()[1]}", connect_timeout=0.3))


def stopped(stage):
    server = stage.make_server()
    shell = stage.shell(server, connect_timeout=0.5)
    assert shell.value("SELECT dflock_acquire('mine', 0)") == "1"
    server.pause()
    try:
        return stage.text(shell)
    finally:
        server.resume()


def another_service(stage):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        try:
            return stage.text(stage.shell(f"127.0.0.1:{web.server_address[1]}"))
        finally:
            web.shutdown()


def no_token(stage):
    return stage.text(stage.shell(stage.make_server("--auth-token", "secret")))


def wrong_token(stage):
    return stage.text(stage.shell(stage.make_server("--auth-token", "secret"), auth_token="guess"))


def needless_token(stage):
    return stage.text(stage.shell(stage.make_server(), auth_token="secret"))


def other_limit(stage):
    server = stage.make_server()
    assert stage.shell(server).value("SELECT dflock_sem_acquire('k', 2, 0)") == "1"
    return stage.text(stage.shell(server), "SELECT dflock_sem_acquire('k', 3, 0)")


def full(stage):
    server = stage.make_server("--max-locks", "1")
    shell = stage.shell(server)
    assert shell.value("SELECT dflock_acquire('mine', 0)") == "1"
    return stage.text(shell)


def busy(stage):
    server = stage.make_server()
    assert stage.shell(server).value(TRY) == "1"
    return stage.text(stage.shell(server), "SELECT dflock_lock('k', 0.3)")


def twice(stage):
    shell = stage.shell(stage.make_server())
    assert shell.value(TRY) == "1"
    return stage.text(shell)


def never_held(stage):
    return stage.text(stage.shell(stage.make_server()), "SELECT dflock_assert_held('k')")


def never_queued(stage):
    return stage.text(stage.shell(stage.make_server()), "SELECT dflock_wait('k')")


def lost(stage):
    server = stage.make_server()
    shell = stage.shell(server)
    assert shell.value(TRY) == "1"
    server.kill()
    return stage.text(shell, "SELECT dflock_assert_held('k')")


def bad_key(stage):
    return stage.text(stage.shell(stage.make_server()), "SELECT dflock_acquire('my key')")


SITUATIONS = {
    "LK010: connect to ...: connection refused": nobody_there,
    "LK010: resolve ...: host not found": no_such_name,
    "LK010: tls handshake with ...: the server does not speak tls": tls_to_a_plain_server,
    "LK010: tls handshake with ...: certificate is for ...; not for ...": wrong_name,
    "LK010: tls handshake with ...: certificate is signed by an unknown ca": unknown_ca,
    "LK010: tls handshake with ...: certificate has expired ...": expired,
    "LK011: no answer from ... within ... s": [mute, stopped],
    "LK012: ... broke the protocol: ...": another_service,
    'LK013: ... answered the request for lock "..." with error_auth: login refused': no_token,
    "LK013: login at ... refused: the server does not accept this login token": wrong_token,
    "LK013: login at ... refused: this server has no login token, or is too old for one": needless_token,
    'LK001: limit mismatch: "..." is in use at ... with another limit than ...': other_limit,
    'LK004: ... answered the request for lock "..." with error_max_locks: ...': full,
    '55P03: lock "..." was not granted within ... s': busy,
    '55006: lock "..." is already held by this session (for ... s)': twice,
    '55000: "..." is not held by this session': never_held,
    '55000: this session is not in line for lock "...": use dflock_enqueue first': never_queued,
    '40001: lock "..." was lost ... s ago: ...': lost,
    "22023: key must not contain space, tab, CR, LF or NUL: byte ... is a space": bad_key,
}
ELSEWHERE = {
    # on the default address alone, where somebody else's server may run
    "LK010: connect to 127.0.0.1:6388: connection refused (no server there? start one with: dflockd-local)",
    # the scripted peers of tests/fake close at each of its moments
    "LK011: ... closed the connection before the first answer (max-connections?)",
}
CASES = [(row, s) for row, listed in SITUATIONS.items() for s in (listed if isinstance(listed, list) else [listed])]


@pytest.mark.parametrize("row, situation", CASES, ids=[s.__name__ for _, s in CASES])
def test_text(row, situation, make_sqlite, make_server, certs):
    said = situation(Stage(make_sqlite, make_server, certs))
    assert table()[row].fullmatch(said), f"the README says {row!r}, what came is {said!r}"


def test_every_row_is_tried():
    assert set(table()) - ELSEWHERE == set(SITUATIONS)
