"""Login: where the token comes from, what a wrong one gets, and that it is never shown."""

import time

import pytest

from lib.server import StartFailed

TOKEN = "correct-horse-battery-staple"


@pytest.fixture
def token_file(directory):
    path = directory / "token"
    path.write_text(TOKEN + "\n")
    return path


def test_sources_and_their_order(make_server, token_file):
    for flags, env, good in [
        (["--auth-token", TOKEN], {}, TOKEN),
        (["--auth-token-file", token_file], {}, TOKEN),
        ([], {"DFLOCKD_AUTH_TOKEN": TOKEN}, TOKEN),
        ([], {"DFLOCKD_AUTH_TOKEN_FILE": str(token_file)}, TOKEN),
        (["--auth-token", "flag"], {"DFLOCKD_AUTH_TOKEN": "environment"}, "flag"),
        (["--auth-token-file", token_file], {"DFLOCKD_AUTH_TOKEN": "environment"}, TOKEN),
        ([], {"DFLOCKD_AUTH_TOKEN": "word", "DFLOCKD_AUTH_TOKEN_FILE": str(token_file)}, "word"),
    ]:
        server = make_server(*flags, env=env)
        with server.connect(login=good) as w:
            assert w.try_lock("k") == "ok"
        assert good not in server.log()


@pytest.mark.parametrize("content", ["", "\n", "two words\n", "x" * 65537])
def test_a_bad_file_is_refused(make_server, directory, content):
    path = directory / "bad"
    path.write_text(content)
    with pytest.raises(StartFailed) as failed:
        make_server("--auth-token-file", path)
    assert failed.value.status == 2
    assert f"--auth-token-file {path}: " in failed.value.log


@pytest.mark.parametrize("first", [("auth", "_", "wrong"), ("auth", "_", TOKEN + "x"), ("auth", "_", TOKEN[:-1]),
                                   ("auth", "_", ""), ("ping", "_", "_"), ("l", "k", "0"), ("nonsense", "_", "_"),
                                   ("stats", "_", "_"), ("auth", "_", "x" * 65536)])
def test_anything_else_first_is_refused_after_a_pause(make_server, first):
    server = make_server("--auth-token", TOKEN)
    with server.connect() as w:
        began = time.monotonic()
        w.send(*first)
        w.send("l", "stolen", "0 60")
        assert w.receive() == "error_auth"
        w.expect_closed()
        assert time.monotonic() - began >= 0.099
    with server.connect(login=TOKEN) as w:
        assert w.try_lock("stolen") == "ok"


def test_the_pause_delays_nobody_else(make_server):
    server = make_server("--auth-token", TOKEN)
    with server.connect(login=TOKEN) as good:
        for _ in range(20):
            bad = server.connect()
            bad.send("auth", "_", "wrong")
        began = time.monotonic()
        for _ in range(20):
            assert good.ask("ping") == "ok"
        assert time.monotonic() - began < 1


def test_a_long_token(make_server, directory):
    path = directory / "long"
    path.write_text("t" * 65536)
    server = make_server("--auth-token-file", path)
    with server.connect(login="t" * 65536) as w:
        assert w.try_lock("k") == "ok"
        w.send("l", "k", "x" * 257)
        assert w.receive() == "error"
        w.expect_closed()


def test_login_where_none_is_wanted_and_twice(server, make_server):
    with server.connect() as w:
        assert w.ask("auth", "_", "whatever") == "error"
        assert w.ask("ping") == "ok"
    with make_server("--auth-token", TOKEN).connect(login=TOKEN) as w:
        assert w.ask("auth", "_", TOKEN) == "error"
        assert w.ask("ping") == "ok"
