"""The README's table of error texts, made to happen one by one: the texts there are the ones that come."""

import contextlib
import re
import signal
import socket
import subprocess

import pytest

from fake.peer import Peer
from lib import readme
from lib.paths import SQLITE_EXTENSION
from lib.process import clean_environment

TRY = "SELECT dflock_acquire('k', 0)"


def rows():
    """The first cells of the table, as patterns; ... stands for whatever comes."""
    text = readme.README.read_text("utf-8")
    section = text[text.index("\n## Troubleshooting\n"):text.index("\n## Coming from other locks\n")]
    cells = re.findall(r"^\| `([^`]+)`", section, re.MULTILINE)
    return {cell: re.compile(re.escape(cell).replace(re.escape("..."), ".+")) for cell in cells}


def said(make_sqlite, servers, sql=TRY, **env):
    """What the shell prints after `dflockd `."""
    env = {f"DFLOCK_{name.upper()}": str(value) for name, value in env.items()}
    shell = make_sqlite(servers=servers, env=env, bail=False)
    return shell.fails(sql).error.partition("dflockd ")[2].strip()


@contextlib.contextmanager
def listener(answer=None):
    """A port that says nothing, or speaks first."""
    with socket.create_server(("127.0.0.1", 0)) as s:
        yield f"127.0.0.1:{s.getsockname()[1]}"


def refused(make_sqlite, **_):
    with socket.create_server(("127.0.0.1", 0)) as s:
        port = s.getsockname()[1]
    return said(make_sqlite, f"127.0.0.1:{port}")


def mute(make_sqlite, **_):
    with listener() as address:
        return said(make_sqlite, address, connect_timeout=0.3)


def stopped(make_sqlite, server, processes, **_):
    shell = make_sqlite(servers=server, env={"DFLOCK_CONNECT_TIMEOUT": "0.5"}, bail=False)
    assert shell.value("SELECT dflock_acquire('a', 0)") == "1"
    server.pause()
    text = shell.fails(TRY).error.partition("dflockd ")[2].strip()
    server.resume()
    return text


def plain_to_tls(make_sqlite, tls_server, **_):
    return said(make_sqlite, tls_server)


def tls_to_plain(make_sqlite, server, certs, **_):
    return said(make_sqlite, server, tls="on", tls_ca=certs.ca.cert)


def wrong_name(make_sqlite, make_server, certs, **_):
    server = make_server("--tls-cert", certs.wrong_name.cert, "--tls-key", certs.wrong_name.key)
    return said(make_sqlite, server, tls="on", tls_ca=certs.ca.cert)


def unknown_ca(make_sqlite, tls_server, certs, **_):
    return said(make_sqlite, tls_server, tls="on", tls_ca=certs.other_ca.cert)


def too_many(make_sqlite, make_server, **_):
    server = make_server("--max-connections", "1")
    assert make_sqlite(servers=server, bail=False).value(TRY) == "1"
    return said(make_sqlite, server)


def killed(make_sqlite, server, **_):
    shell = make_sqlite(servers=server, bail=False)
    assert shell.value(TRY) == "1"
    server.kill()
    return shell.fails("SELECT dflock_assert_held('k')").error.partition("dflockd ")[2].strip()


def expired_in_a_pause(make_sqlite, server, **_):
    pass


def test_print(make_sqlite, make_server, server, certs, processes):
    tls_server = make_server("--tls-cert", certs.server.cert, "--tls-key", certs.server.key)
    for f in (refused, mute, stopped, plain_to_tls, tls_to_plain, wrong_name, unknown_ca, too_many, killed):
        print(f.__name__, "::", f(make_sqlite=make_sqlite, make_server=make_server, server=server, tls_server=tls_server, certs=certs, processes=processes))
    auth = make_server("--auth-token", "secret")
    server = make_server()
    print(said(make_sqlite, auth))
    print(said(make_sqlite, auth, auth_token="other"))
    print(said(make_sqlite, server, auth_token="other"))
    print(said(make_sqlite, "10.255.255.1:1", connect_timeout=0.3))
    print(said(make_sqlite, "no-such-host.invalid:1"))
    s=make_sqlite(servers=server,bail=False)
    s.run("create view v as select dflock_acquire('a')")
    print(s.run("select * from v").error)
    print(make_sqlite(servers=None,bail=False).run(TRY).error)
    pass
    a=make_sqlite(servers=server,bail=False); a.run(TRY)
    print(said(make_sqlite, server, sql="SELECT dflock_lock('k', 0.5)", lease_ttl=3))
    print(said(make_sqlite, server, sql="SELECT dflock_sem_acquire('k', 3, 0)", lease_ttl=3))
    print(a.run("select dflock_acquire('k')").error)
    print(a.run("select dflock_wait('k2')").error)
    print(a.run("select dflock_assert_held('k2')").error)
    m=make_server("--max-locks", 1); said
    a=make_sqlite(servers=m,bail=False); a.run(TRY)
    print(a.run("select dflock_acquire('k2')").error)
    import http.server, threading
    h=http.server.ThreadingHTTPServer(("127.0.0.1",0), http.server.SimpleHTTPRequestHandler); threading.Thread(target=h.serve_forever,daemon=True).start()
    print(said(make_sqlite, f"127.0.0.1:{h.server_address[1]}"))
    assert 0
