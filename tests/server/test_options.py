"""The command line and the environment of dflockd-local."""

import re
import subprocess

import pytest

from lib.paths import DFLOCKD_LOCAL, ROOT
from lib.process import clean_environment
from lib.server import StartFailed


def run(*args, **env):
    return subprocess.run([DFLOCKD_LOCAL, *map(str, args)], env=clean_environment(env), capture_output=True, text=True,
                          timeout=30)


def lease_of(server):
    with server.connect() as wire:
        return wire.lock("k").lease


@pytest.mark.parametrize("form", ["--version", "-version"])
def test_version(form):
    done = run(form)
    assert done.returncode == 0
    assert done.stdout == f"dflockd-local {(ROOT / 'VERSION').read_text().strip()}\n"


def test_help_names_every_flag_and_variable():
    done = run("--help")
    assert done.returncode == 0 and done.stderr == ""
    for flag, variable in {"host": "HOST", "port": "PORT", "default-lease-ttl": "DEFAULT_LEASE_TTL_S",
                           "lease-sweep-interval": "LEASE_SWEEP_INTERVAL_S", "gc-interval": "GC_INTERVAL_S",
                           "gc-max-idle": "GC_MAX_IDLE_S", "max-locks": "MAX_LOCKS",
                           "max-connections": "MAX_CONNECTIONS", "max-waiters": "MAX_WAITERS",
                           "read-timeout": "READ_TIMEOUT_S", "write-timeout": "WRITE_TIMEOUT_S",
                           "shutdown-timeout": "SHUTDOWN_TIMEOUT_S",
                           "auto-release-on-disconnect": "AUTO_RELEASE_ON_DISCONNECT", "tls-cert": "TLS_CERT",
                           "tls-key": "TLS_KEY", "auth-token": "AUTH_TOKEN", "auth-token-file": "AUTH_TOKEN_FILE",
                           "fence-state-file": "FENCE_STATE_FILE", "debug": "DEBUG"}.items():
        assert re.search(rf"--{flag}\b", done.stdout), flag
        assert f"DFLOCKD_{variable}" in done.stdout, variable
    assert "--no-recovery-wait" in done.stdout


@pytest.mark.parametrize("form", [["--default-lease-ttl", "7"], ["--default-lease-ttl=7"], ["-default-lease-ttl", "7"],
                                  ["-default-lease-ttl=7"]])
def test_forms_of_a_flag(make_server, form):
    assert lease_of(make_server(*form)) == 7


def test_flag_before_environment_before_default(make_server):
    assert lease_of(make_server()) == 33
    assert lease_of(make_server(env={"DFLOCKD_DEFAULT_LEASE_TTL_S": "5"})) == 5
    assert lease_of(make_server("--default-lease-ttl", 9, env={"DFLOCKD_DEFAULT_LEASE_TTL_S": "5"})) == 9
    assert lease_of(make_server(env={"DFLOCKD_DEFAULT_LEASE_TTL_S": ""})) == 33


@pytest.mark.parametrize("args, sentence", [
    (["--port", "65536"], "--port must be a whole number from 0 to 65535"),
    (["--port", "x"], "--port must be a whole number"),
    (["--port", "1 "], "--port must be a whole number"),
    (["--port", "\t1"], "--port must be a whole number"),
    (["--port", "+1"], "--port must be a whole number"),
    (["--port", "-0"], "--port must be a whole number"),
    (["--port", ""], "--port must be a whole number"),
    (["--default-lease-ttl", "0"], "--default-lease-ttl must be a whole number from 1"),
    (["--default-lease-ttl=1.5"], "--default-lease-ttl must be a whole number"),
    (["--max-locks", "0"], "--max-locks must be a whole number from 1"),
    (["--max-waiters", "-1"], "--max-waiters must be a whole number from 0"),
    (["--read-timeout", "0"], "--read-timeout must be seconds from 0.001"),
    (["--read-timeout", "1.2345"], "--read-timeout must be seconds"),
    (["--gc-interval", "99999999999999999999"], "--gc-interval must be seconds"),
    (["--auto-release-on-disconnect=maybe"], "--auto-release-on-disconnect must be true or false"),
    (["--tls-cert", "x"], "--tls-cert and --tls-key must be given together"),
    (["--auth-token", "a b"], "--auth-token must be"),
    (["--auth-token", ""], "--auth-token must not be empty"),
    (["--auth-token", "a", "--auth-token-file", "b"], "--auth-token and --auth-token-file exclude each other"),
    (["--auth-token-file", "/nowhere/at/all"], "--auth-token-file /nowhere/at/all: No such file or directory\n"),
    (["--auth-token-file", "a"], "--auth-token-file a: No such file or directory\n"),
    (["--auth-token-file", "/dev/null"], "--auth-token-file /dev/null: the login token is empty\n"),
    (["--nonsense"], 'unknown argument "--nonsense"'),
    (["---port", "1"], 'unknown argument "---port"'),
    (["--auth-tokn=secret"], 'unknown argument "--auth-tokn" '),
    (["stray"], 'unknown argument "stray"'),
    (["--port"], "--port needs a value"),
])
def test_bad_values_are_refused_by_name(args, sentence):
    done = run(*args)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stdout == ""


def test_bad_environment_is_refused_by_name():
    done = run(DFLOCKD_MAX_LOCKS="many")
    assert done.returncode == 2
    assert 'DFLOCKD_MAX_LOCKS must be a whole number from 1 to 4294967295, not "many"' in done.stderr


def test_a_taken_port_and_an_unknown_host(server, make_server):
    with pytest.raises(StartFailed) as failed:
        make_server(port=server.port)
    assert failed.value.status == 1
    assert "Address already in use" in failed.value.log
    with pytest.raises(StartFailed) as failed:
        make_server(host="no-such-host.invalid")
    assert "resolve" in failed.value.log


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_hosts(make_server, host):
    server = make_server(host=host)
    assert server.port > 0
    assert f'msg="listening" host={host} port={server.port}\n' in server.log()
    with server.connect() as wire:
        assert wire.ask("ping") == "ok"


@pytest.mark.parametrize("args, env", [(["--auto-release-on-disconnect=false"], {}),
                                       (["--no-auto-release-on-disconnect"], {}),
                                       ([], {"DFLOCKD_AUTO_RELEASE_ON_DISCONNECT": "0"})])
def test_auto_release_off(make_server, args, env):
    server = make_server(*args, env=env)
    with server.connect() as other:
        with server.connect() as wire:
            token = wire.lock("k", lease=60).token
        server.await_holders("k", 1)
        assert other.try_lock("k") == "timeout"
        assert other.renew("k", token, 60) == "ok 60"
        assert other.release("k", token) == "ok"
        assert other.try_lock("k") == "ok"


def test_the_token_on_the_command_line_is_wiped(make_server):
    server = make_server("--auth-token", "very-secret-word")
    with open(f"/proc/{server.pid}/cmdline") as cmdline:
        assert "very-secret-word" not in cmdline.read()
    with server.connect(login="very-secret-word") as wire:
        assert wire.ask("ping") == "ok"
