"""TLS and login, and the sentence for each thing that can be wrong with them."""

import pytest

from lib.eventually import Stopwatch
from lib.under import patient
from sqlite.support import run_shell


def tls_server(make_server, pair, *flags):
    return make_server("--tls-cert", pair.cert, "--tls-key", pair.key, *flags)


def settings(ca=None, mode="on", **more):
    env = {"DFLOCK_TLS": mode, "DFLOCK_CONNECT_TIMEOUT": "5"}
    if ca:
        env["DFLOCK_TLS_CA"] = str(ca)
    env.update({f"DFLOCK_{name.upper()}": str(value) for name, value in more.items()})
    return env


@pytest.mark.parametrize("driver", ["sqlite3", "apsw"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_lock_over_tls(make_db, make_server, certs, driver, host):
    server = tls_server(make_server, certs.server)
    db = make_db(f"{host}:{server.port}", driver=driver, env=settings(certs.ca.cert))
    assert db.value("SELECT dflock_lock('k', 0, 2)") > 0
    assert db.value("SELECT dflock_assert_held('k', 1)") == 1
    assert db.value("SELECT dflock_release('k')") == 1
    assert db.value("SELECT dflock_ping()")


def test_waiting_and_renewing_over_tls(make_db, make_server, certs):
    server = tls_server(make_server, certs.server)
    a, b = (make_db(server, env=settings(certs.ca.cert)) for _ in range(2))
    a.value("SELECT dflock_lock('k', 0, 1)")
    b.start("SELECT dflock_lock('k', 20, 1)")
    context = certs.client_context()
    server.await_waiters("k", 1, tls=context)
    for _ in range(60):
        assert a.value("SELECT dflock_is_held('k')") == 1
        a.value("SELECT dflock_ping()")
    assert b.busy()
    a.value("SELECT dflock_release('k')")
    b.finish()
    assert b.value("SELECT dflock_assert_held('k', 1)") == 1


def test_inside_python_after_import_ssl(run_script, make_server, certs):
    server = tls_server(make_server, certs.server)
    lines = run_script("""
        import ssl, hashlib
        hashlib.sha3_512(b"x").hexdigest()
        context = ssl.create_default_context()
        a = connect()
        print(a.value("SELECT dflock_acquire('k')"))
        import urllib.request
        try:
            urllib.request.urlopen("https://" + os.environ["DFLOCK_SERVERS"], timeout=5)
        except OSError as error:
            print("CERTIFICATE_VERIFY_FAILED" in str(error))
        print(a.value("SELECT dflock_release('k')"), ssl.OPENSSL_VERSION != "")
        """, servers=server, env=settings(certs.ca.cert))
    assert lines == ["1", "True", "1 True"]


def test_client_certificates(make_db, certs, processes, make_server):
    """The bundled server asks for none; one that is given does no harm."""
    server = tls_server(make_server, certs.server)
    db = make_db(server, env=settings(certs.ca.cert, tls_cert=certs.client.cert, tls_key=certs.client.key))
    assert db.value("SELECT dflock_acquire('k')") == 1


def test_insecure_by_name_only(make_db, make_server, certs):
    server = tls_server(make_server, certs.expired)
    db = make_db(server, env=settings(mode="insecure"))
    assert db.value("SELECT dflock_acquire('k')") == 1
    strict = make_db(server, env=settings(certs.ca.cert))
    strict.fails("SELECT dflock_acquire('k', 0)", sqlstate="LK010", text="expired")


WRONG = {
    "expired": ("expired", "ca", "127.0.0.1", "expired"),
    "wrong name": ("wrong_name", "ca", "localhost", "not for localhost"),
    "wrong address": ("name_only", "ca", "127.0.0.1", "not for 127.0.0.1"),
    "unknown CA": ("other_server", "ca", "127.0.0.1", "issuer"),
    "no CA at all": ("server", None, "127.0.0.1", "issuer"),
}


@pytest.mark.parametrize("how", WRONG)
def test_what_can_be_wrong_with_a_certificate(make_db, make_server, certs, how):
    pair, ca, host, word = WRONG[how]
    server = tls_server(make_server, getattr(certs, pair))
    db = make_db(f"{host}:{server.port}", env=settings(getattr(certs, ca).cert if ca else None))
    failed = db.fails("SELECT dflock_acquire('k', 0)", sqlstate="LK010", text=str(server.port))
    assert word in failed.text.lower() or (word == "issuer" and "certificate" in failed.text.lower()), failed.text


def test_tls_to_a_plain_server(make_db, server, certs):
    db = make_db(server, env=settings(certs.ca.cert))
    with Stopwatch() as took:
        failed = db.fails("SELECT dflock_acquire('k', 0)", text=server.address)
    assert failed.sqlstate in ("LK010", "LK011") and took.s < patient(8)
    assert "tls" in failed.text.lower()


def test_plain_to_a_tls_server(make_db, make_server, certs):
    server = tls_server(make_server, certs.server)
    db = make_db(server, env={"DFLOCK_CONNECT_TIMEOUT": "3"})
    with Stopwatch() as took:
        failed = db.fails("SELECT dflock_acquire('k', 0)", text=server.address)
    assert failed.sqlstate in ("LK010", "LK011", "LK012") and took.s < patient(8)


def test_another_name_to_verify(make_db, make_server, certs):
    server = tls_server(make_server, certs.wrong_name)
    db = make_db(server, env=settings(certs.ca.cert, tls_server_name="elsewhere.example"))
    assert db.value("SELECT dflock_acquire('k')") == 1


@pytest.mark.parametrize("name", ["tls_ca", "tls_cert", "tls_key"])
def test_files_that_are_not_there(make_db, server, certs, name):
    more = {"tls_cert": certs.client.cert, "tls_key": certs.client.key} if name != "tls_ca" else {}
    db = make_db(server, env=settings(certs.ca.cert, **{**more, name: "/nowhere/x.pem"}))
    db.fails("SELECT dflock_acquire('k', 0)", sqlstate="LK010", text="/nowhere/x.pem")


# --------------------------------------------------------------------- login


def test_login_by_environment_and_by_file(make_db, make_server, directory):
    server = make_server("--auth-token", "s3cret")
    token = directory / "token"
    token.write_text("s3cret\n")
    for env in ({"DFLOCK_AUTH_TOKEN": "s3cret"}, {"DFLOCK_AUTH_TOKEN_FILE": str(token)}):
        db = make_db(server, env=env)
        assert db.value("SELECT dflock_acquire('k', 5)") == 1
        assert db.value("SELECT dflock_release('k')") == 1


def test_login_over_tls(make_db, make_server, certs):
    server = tls_server(make_server, certs.server, "--auth-token", "s3cret")
    db = make_db(server, env=settings(certs.ca.cert, auth_token="s3cret"))
    assert db.value("SELECT dflock_acquire('k')") == 1


def test_a_wrong_token(make_db, make_server):
    server = make_server("--auth-token", "s3cret")
    db = make_db(server, env={"DFLOCK_AUTH_TOKEN": "guess"})
    failed = db.fails("SELECT dflock_acquire('k', 0)", sqlstate="LK013", text=server.address)
    assert "guess" not in failed.text and "s3cret" not in failed.text
    assert "guess" not in str(db.rows("SELECT * FROM dflock_servers"))


def test_no_token_where_one_is_needed(make_db, make_server):
    server = make_server("--auth-token", "s3cret")
    make_db(server).fails("SELECT dflock_acquire('k', 0)", sqlstate="LK013", text=server.address)


def test_a_token_where_none_is_needed(make_db, server):
    db = make_db(server, env={"DFLOCK_AUTH_TOKEN": "s3cret"})
    failed = db.fails("SELECT dflock_acquire('k', 0)", sqlstate="LK013", text="no login token")
    assert "s3cret" not in failed.text


@pytest.mark.parametrize("content", ["", "\n", "a b\n", "a\nb\n", "x" * 65537])
def test_token_files_that_are_refused(make_db, server, directory, content):
    token = directory / "token"
    token.write_text(content)
    failed = make_db(server, env={"DFLOCK_AUTH_TOKEN_FILE": str(token)}).fails("SELECT dflock_acquire('k', 0)")
    assert str(token) in failed.text and failed.sqlstate == "22023", failed.text


def test_a_token_file_that_is_not_there(make_db, server):
    failed = make_db(server, env={"DFLOCK_AUTH_TOKEN_FILE": "/nowhere/token"}).fails("SELECT dflock_acquire('k', 0)")
    assert "/nowhere/token" in failed.text and failed.sqlstate, failed.text


def test_the_token_is_in_no_message_of_the_shell(make_server):
    server = make_server("--auth-token", "right")
    _, out, err = run_shell("""
        SELECT dflock_acquire('k', 0);
        SELECT * FROM dflock_servers;
        SELECT dflock_stats();
        SELECT dflock_config('auth_token');
        """, servers=server, env={"DFLOCK_AUTH_TOKEN": "hunter2"}, bail=False)
    assert "LK013" in err and "hunter2" not in out + err
