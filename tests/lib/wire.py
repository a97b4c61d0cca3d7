"""The lock protocol, raw: bytes out, lines in, every wait with a deadline.

Written from the protocol's description alone, so that it can judge any server.
"""

import collections
import json
import socket
import struct
import time

from lib.under import patient

DEADLINE_S = patient(20.0)

Grant = collections.namedtuple("Grant", "token lease")


class Closed(ConnectionError):
    """The peer closed or reset the connection."""


class Silent(AssertionError):
    """No answer before the deadline."""


def split_address(address):
    """'127.0.0.1:6388', '[::1]:6388' or a (host, port) pair."""
    if isinstance(address, tuple):
        return address
    host, _, port = str(address).rpartition(":")
    return host.strip("[]"), int(port)


def fence_of(token):
    """The number that a token of dflockd 2.1 or later carries."""
    return int(token[:16], 16)


def granted(line):
    """The grant in `ok <token> <lease>` or `acquired <token> <lease>`; fails on any other answer."""
    words = line.split(" ")
    assert len(words) == 3 and words[0] in ("ok", "acquired"), f"not a grant: {line!r}"
    assert len(words[1]) == 32 and set(words[1]) <= set("0123456789abcdef"), f"no token: {line!r}"
    return Grant(words[1], int(words[2]))


class Wire:
    """One connection to a lock server.

    ask() is one request and its answer. send() and receive() are for pipelining and for blocking requests.
    """

    def __init__(self, address, deadline=DEADLINE_S, tls=None, server_name=None, login=None, receive_buffer=None):
        self.deadline = deadline
        self._buffer = b""
        self._eof = False
        host, port = split_address(address)
        if receive_buffer is None:
            self.sock = socket.create_connection((host, port), timeout=deadline)
        else:
            self.sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            self.sock.settimeout(deadline)
            self.sock.connect((host, port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            self.sock = tls.wrap_socket(self.sock, server_hostname=server_name or host)
        if login is not None:
            answer = self.ask("auth", "_", login)
            assert answer == "ok", f"login: {answer!r}"

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    # ------------------------------------------------------------------ bytes

    def send_raw(self, data):
        self.sock.settimeout(self.deadline)
        try:
            self.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Closed(str(error)) from None

    def receive(self, deadline=None):
        """The next line without its newline. Closed at the end of the stream, Silent at the deadline."""
        end = time.monotonic() + (self.deadline if deadline is None else deadline)
        while b"\n" not in self._buffer:
            self._fill(end)
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode("utf-8")

    def _fill(self, end):
        if self._eof:
            raise Closed(f"closed by the peer, left over: {self._buffer!r}")
        self.sock.settimeout(max(0.001, end - time.monotonic()))
        try:
            data = self.sock.recv(1 << 16)
        except (TimeoutError, socket.timeout):
            raise Silent(f"no answer in time, so far: {self._buffer!r}") from None
        except ConnectionResetError:
            data = b""
        if not data:
            self._eof = True
            raise Closed(f"closed by the peer, left over: {self._buffer!r}")
        self._buffer += data

    def expect_closed(self, deadline=None):
        """Nothing more comes, and the stream ends before the deadline."""
        try:
            line = self.receive(deadline)
        except Closed:
            assert not self._buffer, f"bytes before the end: {self._buffer!r}"
            return
        raise AssertionError(f"expected the end of the stream, got {line!r}")

    def expect_silence(self, seconds=0.3):
        """Nothing arrives for that long, and the connection stays open."""
        try:
            line = self.receive(seconds)
        except Silent:
            assert not self._buffer, f"half a line: {self._buffer!r}"
            return
        except Closed as error:
            raise AssertionError(f"closed instead of silent: {error}") from None
        raise AssertionError(f"expected silence, got {line!r}")

    def closed_by_peer(self):
        """True once the stream has ended; reads what has arrived, waits a moment only."""
        try:
            self._fill(time.monotonic() + 0.01)
        except Silent:
            return False
        except Closed:
            return True
        return False

    def close(self):
        self.sock.close()

    def half_close(self):
        """No more requests, but still listening."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self):
        """Closes with a reset (RST) instead of a farewell (FIN)."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    # --------------------------------------------------------------- requests

    def send(self, command, key="_", argument=""):
        self.send_raw(f"{command}\n{key}\n{argument}\n".encode("utf-8"))

    def ask(self, command, key="_", argument="", deadline=None):
        self.send(command, key, argument)
        return self.receive(deadline)

    def lock(self, key, timeout=0, lease=None):
        """A grant; fails on any other answer."""
        return granted(self.ask("l", key, _join(timeout, lease)))

    def try_lock(self, key, lease=None):
        """The answer's first word to a try: `ok` (then the lock is held), `timeout` or an error word."""
        return self.ask("l", key, _join(0, lease)).split(" ")[0]

    def slot(self, key, limit, timeout=0, lease=None):
        return granted(self.ask("sl", key, _join(timeout, limit, lease)))

    def release(self, key, token, command="r"):
        return self.ask(command, key, token)

    def renew(self, key, token, lease=None, command="n"):
        return self.ask(command, key, _join(token, lease))

    def stats(self):
        answer = self.ask("stats")
        assert answer.startswith("ok "), answer
        return json.loads(answer[3:])


def _join(*words):
    return " ".join(str(w) for w in words if w is not None)


def stats(address, **kw):
    """The server's stats, over a connection of their own."""
    with Wire(address, **kw) as wire:
        return wire.stats()


def lock_row(address, key, **kw):
    """The row of a held or awaited lock in stats, or None."""
    return next((row for row in stats(address, **kw)["locks"] if row["key"] == key), None)


def semaphore_row(address, key, **kw):
    return next((row for row in stats(address, **kw)["semaphores"] if row["key"] == key), None)


def waiters(address, key, **kw):
    """How many wait for a key, lock or semaphore."""
    answer = stats(address, **kw)
    return sum(row["waiters"] for row in answer["locks"] + answer["semaphores"] if row["key"] == key)


def holders(address, key, **kw):
    """How many hold a key, lock or semaphore."""
    answer = stats(address, **kw)
    locks = sum(1 for row in answer["locks"] if row["key"] == key and row.get("owner_conn_id"))
    return locks + sum(row["holders"] for row in answer["semaphores"] if row["key"] == key)
