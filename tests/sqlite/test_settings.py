"""dflock_config(): environment, connection, who may set what."""

import pytest

DEFAULTS = {
    "servers": None, "auth_token_file": "", "tls": "off", "tls_ca": "", "tls_cert": "", "tls_key": "",
    "tls_server_name": "", "connect_timeout": "10", "acquire_timeout": "10", "lease_ttl": "0", "renew_ratio": "0.5",
    "keepalive": "7", "server_read_timeout": "23", "fences": "auto", "release_wait": "on", "max_locks": "10000",
    "max_session_locks": "0", "max_connections": "512", "key_prefix": "",
}


def test_defaults(db, server):
    for name, value in DEFAULTS.items():
        expected = server.address if name == "servers" else value
        assert db.value("SELECT dflock_config(?)", name) == expected, name


GOOD = {
    "connect_timeout": [("2.5", "2.5"), (3, "3"), (4.0, "4")], "acquire_timeout": [("0", "0"), (-1, "-1"), (1.5, "1.5")],
    "lease_ttl": [("60", "60"), (30.0, "30"), (0, "0")], "renew_ratio": [(0.25, "0.25"), ("0.8", "0.8")],
    "keepalive": [(2, "2")], "server_read_timeout": [("60", "60")], "fences": [("on", "on"), ("off", "off")],
    "release_wait": [("off", "off"), ("on", "on")], "max_session_locks": [(5, "5")], "key_prefix": [("a:", "a:"), ("", "")],
    "servers": [("127.0.0.1:1,[::1]:2", "127.0.0.1:1,[::1]:2")],
}


@pytest.mark.parametrize("name", GOOD)
def test_setting_returns_the_old_value(db, name):
    before = db.value("SELECT dflock_config(?)", name)
    for value, shown in GOOD[name]:
        assert db.value("SELECT dflock_config(?, ?)", name, value) == before
        before = db.value("SELECT dflock_config(?)", name)
        assert before == shown


BAD = {
    "connect_timeout": ["0", "-1", "3601", "soon", "", "nan"], "acquire_timeout": ["-2", "x", "nan"],
    "lease_ttl": ["-1", "2147483648", "1.5"], "renew_ratio": ["0", "0.9", "half"], "keepalive": ["0", "-1"],
    "server_read_timeout": ["0", "86401"], "fences": ["maybe"], "release_wait": ["perhaps"],
    "max_session_locks": ["-1", "x"], "key_prefix": ["a b", "x" * 256, "a\nb"],
    "servers": ["", ",", "host:0", "host:65536", "host:x", "[::1:5", "a:1,a:1", "a b:1"],
}


@pytest.mark.parametrize("name", BAD)
def test_bad_values_change_nothing(db, name):
    before = db.value("SELECT dflock_config(?)", name)
    for value in BAD[name]:
        failed = db.fails("SELECT dflock_config(?, ?)", name, value)
        assert failed.sqlstate in ("22023", "22003"), (value, failed.text)
        assert name in failed.text, (value, failed.text)
        assert db.value("SELECT dflock_config(?)", name) == before
    db.fails("SELECT dflock_config(?, ?)", name, None, sqlstate="22004")
    db.fails("SELECT dflock_config(?, ?)", name, b"1", sqlstate="22023")


@pytest.mark.parametrize("name", ["auth_token_file", "tls", "tls_ca", "tls_cert", "tls_key", "tls_server_name", "max_locks",
                                  "max_connections"])
def test_what_sql_cannot_set(db, name):
    failed = db.fails("SELECT dflock_config(?, ?)", name, "on" if name == "tls" else "1", sqlstate="22023", text=name)
    assert "environment" in failed.text or "does not apply" in failed.text


def test_servers_cannot_be_set_once_there_is_a_login_token(make_db, server, directory):
    token = directory / "token"
    token.write_text("secret\n")
    for env in ({"DFLOCK_AUTH_TOKEN": "secret"}, {"DFLOCK_AUTH_TOKEN_FILE": str(token)}):
        db = make_db(server, env=env)
        failed = db.fails("SELECT dflock_config('servers', '127.0.0.1:1')", sqlstate="22023", text="servers")
        assert "secret" not in failed.text
        assert db.value("SELECT dflock_config('servers')") == server.address


def test_the_token_itself_is_no_setting(make_db, server):
    db = make_db(server, env={"DFLOCK_AUTH_TOKEN": "secret"})
    for sql in ("SELECT dflock_config('auth_token')", "SELECT dflock_config('auth_token', 'x')"):
        failed = db.fails(sql, sqlstate="22023")
        assert "secret" not in failed.text


ENVIRONMENT = {"acquire_timeout": "0.5", "lease_ttl": "45", "key_prefix": "p:", "release_wait": "off", "max_locks": "77",
               "keepalive": "3"}


def test_the_environment(make_db, server):
    db = make_db(server, env={f"DFLOCK_{name.upper()}": value for name, value in ENVIRONMENT.items()})
    for name, value in ENVIRONMENT.items():
        assert db.value("SELECT dflock_config(?)", name) == value
    db.value("SELECT dflock_lock('k')")
    assert db.value("SELECT dflock_lease('k')") == 45
    assert server.holders("p:k") == 1


def test_the_servers_own_names_are_not_ours(make_db, server):
    db = make_db(server, env={"DFLOCKD_LEASE_TTL": "5", "DFLOCKD_PORT": "1"})
    assert db.value("SELECT dflock_config('lease_ttl')") == "0"


@pytest.mark.parametrize("name, value", [("DFLOCK_LEASE_TTL", "soon"), ("DFLOCK_SERVERS", "host:x"), ("DFLOCK_TLS", "maybe"),
                                         ("DFLOCK_KEY_PREFIX", "a b")])
def test_a_bad_environment_variable_is_named(make_db, server, name, value):
    db = make_db(None if name == "DFLOCK_SERVERS" else server, env={name: value})
    assert db.value("SELECT dflock_version()")
    for sql in ("SELECT dflock_acquire('k', 0)", "SELECT dflock_config('servers')", "SELECT * FROM dflock_locks"):
        failed = db.fails(sql, sqlstate="22023")
        assert name in failed.text, failed.text


def test_each_connection_has_its_own_settings(run_script, server):
    lines = run_script("""
        a, b = connect(), connect()
        a.value("SELECT dflock_config('lease_ttl', 50)")
        a.value("SELECT dflock_lock('a')"), b.value("SELECT dflock_lock('b')")
        print(a.value("SELECT dflock_lease('a')"), b.value("SELECT dflock_lease('b')"))
        """, servers=server)
    assert lines == ["50 33"]


def test_max_locks_counts_the_whole_process(run_script, server):
    lines = run_script("""
        a, b = connect(), connect()
        a.value("SELECT dflock_lock('a')"), b.value("SELECT dflock_lock('b')")
        print(a.error("SELECT dflock_lock('c')"))
        b.close()
        print(a.value("SELECT dflock_acquire('c')"))
        """, servers=server, env={"DFLOCK_MAX_LOCKS": "2"})
    assert lines[0].startswith("dflockd 53400: ") and lines[1] == "1"


def test_a_changed_list_of_servers(make_db, make_server):
    old, new = make_server(), make_server()
    db = make_db(old)
    db.value("SELECT dflock_lock('k')")
    db.value("SELECT dflock_sem_lock('s', 3)")
    db.value("SELECT dflock_config('servers', ?)", new.address)
    db.fails("SELECT dflock_acquire('k', 0)", sqlstate="55006", text="k")
    db.fails("SELECT dflock_sem_acquire('s', 3, 0)", sqlstate="55000", text=old.address)
    assert db.value("SELECT dflock_assert_held('k', 1)") == 1, "everything about the old hold goes on there"
    assert db.value("SELECT dflock_acquire('other', 0)") == 1 and new.holders("other") == 1
    states = dict(db.rows("SELECT address, state FROM dflock_servers"))
    assert states[old.address] == "old" and states[new.address] == "up"
    assert db.value("SELECT dflock_release('k')") == 1 and old.holders("k") == 0
    assert db.value("SELECT dflock_acquire('k', 0)") == 1 and new.holders("k") == 1
