"""Three lines in, one line out: what counts as a request, and what happens to everything else."""

import pytest

from lib.wire import Closed, granted


def expect_bad(target, wire, connect):
    """After a request that cannot be understood: `error`, then a usable connection, or none on the first server."""
    assert wire.receive() == "error"
    if target.dialect.bad_request_closes:
        wire.expect_closed()
        return connect()
    return wire


def test_a_request_is_three_lines_and_its_answer_one(connect, key):
    wire = connect()
    wire.send_raw(f"l\n{key}\n0\n".encode())
    grant = granted(wire.receive())
    wire.expect_silence(0.1)
    wire.send_raw(f"r\n{key}\n{grant.token}\n".encode())
    assert wire.receive() == "ok"


def test_pipelined_requests_are_answered_in_order(connect, key):
    wire = connect()
    wire.send_raw("".join(f"l\n{key}-{i}\n0 {i + 1}\n" for i in range(100)).encode())
    grants = [granted(wire.receive()) for _ in range(100)]
    assert [g.lease for g in grants] == list(range(1, 101))
    wire.send_raw("".join(f"r\n{key}-{i}\n{g.token}\n" for i, g in enumerate(grants)).encode())
    assert [wire.receive() for _ in range(100)] == ["ok"] * 100


def test_a_request_behind_a_blocking_one_waits_for_it(connect, queue, key):
    holder, waiter = connect(), connect()
    token = holder.lock(key).token
    queue(waiter, "l", "30")
    waiter.send("r", key, "0" * 32)
    waiter.expect_silence(0.2)
    assert holder.release(key, token) == "ok"
    granted(waiter.receive())
    assert waiter.receive() == "error"


def test_bytes_may_come_one_at_a_time(connect, key):
    wire = connect()
    for byte in f"l\n{key}\n0 7\n".encode():
        wire.send_raw(bytes([byte]))
    assert granted(wire.receive()).lease == 7


def test_a_request_may_be_cut_anywhere(connect, key):
    wire = connect()
    grant = wire.lock(key)
    request = f"n\n{key}\n{grant.token} 9\n".encode()
    for cut in range(1, len(request)):
        wire.send_raw(request[:cut])
        wire.send_raw(request[cut:])
        assert wire.receive().split(" ")[0] == "ok"


def test_crlf_ends_a_line_too(connect, key):
    wire = connect()
    wire.send_raw(f"l\r\n{key}\r\n0 5\r\n".encode())
    grant = granted(wire.receive())
    other = connect()
    assert other.release(key, grant.token) == "ok", "the key is the same without CR"


def test_keys_are_bytes_and_may_be_any_utf_8(connect, key):
    wire = connect()
    for name in (f"{key}/a:b=c;{{}}", f"{key}ключ", f"{key}🔒", f'{key}"\\', f"{key}\x01\x7f"):
        grant = wire.lock(name)
        assert wire.try_lock(name) == "timeout", name
        assert wire.release(name, grant.token) == "ok", name


def test_keys_that_differ_in_case_or_form_are_different(connect, key):
    wire = connect()
    for name in (key + "a", key + "A", key + "\u00e9", key + "e\u0301"):
        wire.lock(name)


def test_the_longest_key(target, connect, key):
    longest = key + "x" * (target.dialect.key_max - len(key))
    wire = connect()
    grant = wire.lock(longest)
    assert wire.release(longest, grant.token) == "ok"


def test_the_longest_key_is_counted_in_bytes(target, connect, key):
    count = target.dialect.key_max - len(key)
    wire = connect()
    wire.lock(key + "é" * (count // 2))
    wire.send("l", key + "é" * (count // 2 + 1), "0")
    assert wire.receive() == "error"
    wire.expect_closed()


@pytest.mark.parametrize("line", range(3), ids=["command", "key", "argument"])
def test_an_overlong_line_gets_error_and_the_connection_is_closed(connect, key, line):
    wire, other = connect(), connect()
    wire.lock(key)
    lines = ["l", key + "-2", "0"]
    lines[line] = "1" * 257
    wire.send_raw("".join(x + "\n" for x in lines).encode())
    assert wire.receive() == "error"
    wire.expect_closed()
    other.lock(key, timeout=10)  # what the connection held is free


def test_an_endless_line_does_not_grow_for_ever(connect, key):
    wire = connect()
    wire.lock(key)
    with pytest.raises(Closed):
        for _ in range(1 << 10):
            wire.send_raw(b"x" * (1 << 16))
        wire.send_raw(b"\n")
        while True:
            assert wire.receive() == "error"


@pytest.mark.parametrize("command", ["", "x", "L", "lock", "ll", "l ", " l", "lr", "\x00"])
def test_an_unknown_command_is_an_error(target, connect, key, command):
    wire = connect()
    wire.send(command, key, "0")
    wire = expect_bad(target, wire, connect)
    granted(wire.ask("l", key, "0"))


@pytest.mark.parametrize("command, argument", [("l", "0"), ("e", ""), ("w", "0"), ("r", "0" * 32), ("n", "0" * 32)])
def test_an_empty_key_is_an_error(target, connect, key, command, argument):
    wire = connect()
    wire.send(command, "", argument)
    wire = expect_bad(target, wire, connect)
    granted(wire.ask("l", key, "0"))


@pytest.mark.parametrize("white", [" ", "\t"], ids=["space", "tab"])
def test_white_space_in_a_key_is_an_error(target, connect, key, white):
    wire = connect()
    wire.send("l", f"{key}{white}b", "0")
    if target.dialect.key_white_space:
        granted(wire.receive())
    else:
        wire = expect_bad(target, wire, connect)
        granted(wire.ask("l", key, "0"))


BAD_ARGUMENTS = [
    ("l", ""), ("l", "x"), ("l", "-1"), ("l", "0 0"), ("l", "0 -1"), ("l", "0 x"), ("l", "0 1 2"), ("l", "1.5"),
    ("l", "0 1.5"), ("l", "0x10"), ("l", "1e3"), ("l", "99999999999999999999x"),
    ("r", ""), ("r", " "), ("n", ""), ("n", "0" * 32 + " 0"), ("n", "0" * 32 + " -5"), ("n", "0" * 32 + " x"),
    ("n", "0" * 32 + " 1 2"), ("e", "0"), ("e", "-1"), ("e", "x"), ("e", "1 2"), ("w", ""), ("w", "x"), ("w", "-1"),
    ("w", "1 2"),
]
BAD_SEMAPHORE_ARGUMENTS = [
    ("sl", ""), ("sl", "0"), ("sl", "0 0"), ("sl", "0 -1"), ("sl", "0 x"), ("sl", "x 1"), ("sl", "-1 1"),
    ("sl", "0 1 0"), ("sl", "0 1 -1"), ("sl", "0 1 x"), ("sl", "0 1 2 3"), ("se", ""), ("se", "0"), ("se", "-1"),
    ("se", "x"), ("se", "1 0"), ("se", "1 x"), ("se", "1 2 3"), ("sw", ""), ("sw", "x"), ("sw", "-1"), ("sr", ""),
    ("sn", ""), ("sn", "0" * 32 + " 0"),
]


@pytest.mark.parametrize("command, argument", BAD_ARGUMENTS + BAD_SEMAPHORE_ARGUMENTS)
def test_a_bad_argument_is_an_error_and_takes_nothing(target, connect, key, command, argument):
    wire = connect()
    wire.send(command, key, argument)
    wire = expect_bad(target, wire, connect)
    grant = granted(wire.ask("l", key, "0"))
    assert wire.release(key, grant.token) == "ok"


def test_white_space_around_arguments_is_ignored(connect, key):
    wire = connect()
    grant = granted(wire.ask("l", key, "  0   12 "))
    assert grant.lease == 12
    assert wire.ask("r", key, f" {grant.token} ") == "ok"


def test_the_largest_number_of_seconds(connect, key):
    wire, other = connect(), connect()
    grant = granted(wire.ask("l", key, "9223372036 9223372036"))
    assert grant.lease == 9223372036
    assert wire.renew(key, grant.token, 9223372036).split(" ")[0] == "ok"
    assert other.try_lock(key) == "timeout"


def test_a_huge_timeout_waits(connect, queue, key):
    holder, waiter = connect(), connect()
    token = holder.lock(key).token
    queue(waiter, "l", "9223372036")
    waiter.expect_silence(0.2)
    assert holder.release(key, token) == "ok"
    granted(waiter.receive())


def test_more_seconds_than_that(target, connect, queue, key):
    """2^64 ns are 18446744073.7 s: where nanoseconds are counted in 64 bits, 18446744075 s become 1.29 s."""
    holder, wire = connect(), connect()
    outcome = target.dialect.huge_seconds
    if outcome == "error":
        holder.send("l", key, "0 18446744075")
        holder = expect_bad(target, holder, connect)
        holder.lock(key)
        wire.send("l", key, "9223372037")
        expect_bad(target, wire, connect)
    elif outcome == "wraps":
        assert granted(holder.ask("l", key, "0 18446744075")).lease == 1
        assert holder.ask("l", key + "-2", "0 9223372037") == "error"
        holder.lock(key + "-3")
        assert wire.ask("l", key + "-3", "9223372037") == "timeout"
    else:
        assert granted(holder.ask("l", key, "0 18446744075")).lease == 18446744075
        queue(wire, "l", "9223372037")


def test_half_a_request_and_the_end_is_not_a_request(target, connect, key):
    wire, other = connect(), connect()
    wire.send_raw(f"l\n{key}\n0".encode())
    wire.half_close()
    if target.dialect.end_ends_a_line:
        granted(wire.receive())
    wire.expect_closed()
    other.lock(key)
