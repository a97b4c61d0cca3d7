"""A scripted peer: plays a lock server that behaves exactly as badly as its script says.

A script is lines of text. A line `ACCEPT` begins the script of another connection; scripts run in parallel.

    EXPECT l / k / 0 30     the next request must be this; * matches within a line, {name} is a value of the peer
    SEND ok {t1} 30         one line
    RAW half a li           bytes without a newline (escapes as in Python)
    SPLIT ok {t1} 30        the line, one byte at a time
    SLEEP 0.3               says nothing meanwhile (and answers nothing)
    HOLD                    reads and answers nothing, until the other side closes
    EOF                     the other side must close now; answers what is automatic until then
    WAIT name               until the test calls peer.go(name); reads nothing meanwhile
    CLOSE, RESET, HALFCLOSE
    TLS                     TLS handshake from here on (peer's context)

At its end a script answers what is automatic until the other side closes.

A connection is given to the first unused script whose first EXPECT fits its first request that is not automatic; a
script that begins otherwise takes the next connection at once. At its end a connection may take another script in the
same way. So neither the order of connections nor which of them is used again matters where requests tell them apart.

`auto` says which commands are answered without a script, when no EXPECT at hand asks for them: {"ping": "ok"}. {lease}
in the answer is the lease that was asked for. A value of None: read and never answered. The release of an all-zero
token is always answered `error`. Every request is recorded.
"""

import contextlib
import fnmatch
import re
import secrets
import socket
import struct
import threading
import time
from collections import namedtuple

from lib.eventually import eventually

DEADLINE_S = 20.0
HARMLESS = ("r", "_", "0" * 32)  # answered `error` by every server
Request = namedtuple("Request", "connection command key argument at")


class Unscripted(AssertionError):
    """The other side did not do what the script expects."""


class _Over(Exception):
    """The connection is at its end; not an error by itself."""


class Peer:
    def __init__(self, script="", auto=None, tls=None, port=0, **values):
        self.auto = {"ping": "ok", **(auto or {})}
        self.tls = tls
        self.values = dict(values)
        self._lock = threading.Condition()
        self._scripts = [_parse(part) for part in _split(script)]
        self._gates = {}
        self.requests = []
        self.errors = []
        self.closed = []  # numbers of connections that the other side has closed
        self.handshakes = []  # errors of failed TLS handshakes
        self._claimed = self._finished = 0
        self._connections = []
        self._threads = []
        self._stopping = self._relaxed = False
        self.port = port
        self._listener = None
        self.listen()

    # -------------------------------------------------------------- for tests

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    def __str__(self):
        return self.address

    def listen(self):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(64)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._spawn(self._accept, listener)

    def refuse(self):
        """New connections are refused from now on; living ones go on."""
        listener, self._listener = self._listener, None
        if listener:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def add(self, script, **values):
        """More scripts, for connections to come."""
        self.values.update(values)
        with self._lock:
            self._scripts += [_parse(part) for part in _split(script)]

    def go(self, name):
        """Lets the WAIT of that name pass; first waits until it is reached."""
        self.reached(name)
        with self._lock:
            self._gates[name] = "open"
            self._lock.notify_all()

    def reached(self, name):
        eventually(lambda: name in self._gates, what=f"the script is at WAIT {name}; {self.describe()}")

    @property
    def accepted(self):
        return len(self._connections)

    def count(self, command, key="*", argument="*"):
        """How many such requests have come."""
        return len(self.asked(command, key, argument))

    def asked(self, command, key="*", argument="*"):
        return [r for r in list(self.requests) if fnmatch.fnmatchcase(r.command, command)
                and fnmatch.fnmatchcase(r.key, key) and fnmatch.fnmatchcase(r.argument, argument)]

    def await_request(self, command, key="*", argument="*", count=1):
        eventually(lambda: self.count(command, key, argument) >= count,
                   what=f"{count} x {command} / {key} / {argument}; {self.describe()}")
        return self.asked(command, key, argument)[count - 1]

    def check(self):
        """Every script has been played to its end as written."""
        eventually(lambda: self.errors or self._played(), what=f"all scripts are played; {self.describe()}")
        assert not self.errors, f"{self.errors[0]}; {self.describe()}"

    def relax(self):
        """The test is over: whatever comes now while the other side says good-bye is not judged."""
        self._relaxed = True

    def stop(self):
        """Ends everything. A script that failed is an error of the test; one not finished is check()'s business."""
        self._stopping = True
        self.refuse()
        with self._lock:
            self._lock.notify_all()
        for connection in self._connections:
            connection.shut()
        for thread in self._threads:
            thread.join(10)
        assert not self.errors, f"{self.errors[0]}; {self.describe()}"

    def log(self):
        return self.describe()

    name = "peer"

    def describe(self):
        lines = [f"{r.at:9.3f} connection {r.connection}: {r.command} / {r.key} / {r.argument}"
                 for r in list(self.requests)]
        left = [" ; ".join(" ".join(step) for step in script) for script in list(self._scripts)]
        return "\n".join(["requests so far:", *lines, f"closed by the other side: {self.closed}",
                          f"scripts not begun: {left}", f"errors: {self.errors}"])

    # ----------------------------------------------------------------- inside

    def _played(self):
        return not self._scripts and self._finished == self._claimed

    def _spawn(self, target, *args):
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener):
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = _Connection(self, sock, len(self._connections) + 1)
            with self._lock:
                if self._scripts and self._scripts[0][0][0] != "EXPECT":
                    self._claimed += 1
                    connection.take(self._scripts.pop(0))
            self._connections.append(connection)
            self._spawn(connection.run)

    def record(self, request):
        with self._lock:
            self.requests.append(request)

    def claim(self, request):
        """The script for a connection whose first request this is, or None."""
        with self._lock:
            for script in self._scripts:
                if script[0][0] == "EXPECT" and self.fits(script[0][1], request):
                    self._scripts.remove(script)
                    self._claimed += 1
                    return script
        return None

    def fits(self, pattern, request):
        parts = [p.strip() for p in re.split(r"\s/(?:\s|$)", self.fill(pattern))]
        parts += ["*"] * (3 - len(parts))
        return all(fnmatch.fnmatchcase(x, p) for x, p in zip((request.command, request.key, request.argument), parts))

    def fill(self, text):
        """Puts in the values; a name like t1, t2 that nobody has set becomes a token, later ones with larger fences."""
        return re.sub(r"\{([a-z]\w*)\}", lambda found: str(self.value(found.group(1))), text)

    def value(self, name):
        with self._lock:
            if name not in self.values and name.startswith("t"):
                for i in range(1, int(name[1:]) + 1):
                    self.values.setdefault(f"t{i}", make_token())
            return self.values[name]

    def wait_gate(self, name):
        with self._lock:
            self._gates.setdefault(name, "reached")
            self._lock.wait_for(lambda: self._gates[name] == "open" or self._stopping, DEADLINE_S)

    def finished(self):
        with self._lock:
            self._finished += 1


class _Connection:
    """One accepted connection, in a thread of its own."""

    def __init__(self, peer, sock, number):
        self.peer, self.sock, self.number = peer, sock, number
        self.script = None
        self._buffer = b""
        self._pending = None

    def take(self, script):
        self.script = list(script)

    def run(self):
        try:
            if self.peer.tls and not (self.script and self.script[0][0] in ("TLS", "CLOSE", "RESET", "HOLD", "RAW",
                                                                           "SLEEP", "WAIT", "SEND")):
                self.do_tls("")
            while True:
                if self.script is None:
                    self._find_script()
                while self.script:
                    word, rest = self.script.pop(0)
                    getattr(self, "do_" + word.lower())(rest)
                self.peer.finished()
                self.script = None
        except _Over:
            if self.script:
                self._fail(f"connection {self.number} ended before {self.script}")
        except (OSError, AssertionError, KeyError, ValueError) as error:
            self._fail(f"connection {self.number}: {error!r}")
        finally:
            self.sock.close()

    def _fail(self, text):
        if not (self.peer._stopping or self.peer._relaxed):
            self.peer.errors.append(text)

    def shut(self):
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def _find_script(self):
        """Answers what is automatic until the first request that is not, and takes the script for it."""
        while True:
            request = self._read()
            script = self.peer.claim(request)
            if script:
                self._pending = request
                self.take(script)
                return
            self._answer_automatically(request)

    # ------------------------------------------------------------------ steps

    def do_expect(self, pattern):
        while True:
            request = self._read()
            if self.peer.fits(pattern, request):
                return
            if request.command not in self.peer.auto and request[1:4] != HARMLESS:
                raise Unscripted(f"expected {self.peer.fill(pattern)!r}, got {request[1:4]}")
            self._answer_automatically(request)

    def do_send(self, line):
        self.sock.sendall(self.peer.fill(line).encode() + b"\n")

    def do_raw(self, text):
        self.sock.sendall(self.peer.fill(text).encode().decode("unicode_escape").encode("latin-1"))

    def do_split(self, line):
        for byte in self.peer.fill(line).encode() + b"\n":
            self.sock.sendall(bytes([byte]))
            time.sleep(0.002)

    def do_sleep(self, seconds):
        time.sleep(float(seconds))

    def do_wait(self, name):
        self.peer.wait_gate(name)

    def do_hold(self, _):
        self.peer.finished()
        while True:
            self._read()

    def do_eof(self, _):
        self.sock.settimeout(DEADLINE_S)
        try:
            while True:
                self._answer_automatically(self._read())
        except _Over:
            if self.peer._stopping and self.number not in self.peer.closed:
                raise
        except TimeoutError:
            raise Unscripted("the other side does not close") from None

    def do_close(self, _):
        self.sock.close()
        if not self.script:
            self.peer.finished()
        raise _Over

    def do_reset(self, _):
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.do_close("")

    def do_halfclose(self, _):
        self.sock.shutdown(socket.SHUT_WR)

    def do_tls(self, _):
        try:
            self.sock.settimeout(DEADLINE_S)
            self.sock = self.peer.tls.wrap_socket(self.sock, server_side=True)
        except OSError as error:
            self.peer.handshakes.append(str(error))
            if self.script:
                raise
            raise _Over from None
        finally:
            if self.sock.fileno() >= 0:
                self.sock.settimeout(None)

    # ---------------------------------------------------------------- reading

    def _read(self):
        """The next request; _Over when the other side has closed."""
        if self._pending:
            request, self._pending = self._pending, None
            return request
        while self._buffer.count(b"\n") < 3:
            try:
                data = self.sock.recv(65536)
            except TimeoutError:
                raise
            except OSError:
                data = b""
            if not data:
                if not self.peer._stopping and self.number not in self.peer.closed:
                    self.peer.closed.append(self.number)
                raise _Over
            self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n", 3)
        request = Request(self.number, *(line.decode("utf-8", "replace") for line in lines), time.monotonic())
        self.peer.record(request)
        return request

    def _answer_automatically(self, request):
        if request[1:4] == HARMLESS:
            return self.do_send("error")
        if request.command not in self.peer.auto:
            raise Unscripted(f"nobody expects {request[1:4]}")
        answer = self.peer.auto[request.command]
        if answer is None:
            return
        words = request.argument.split()
        lease = words[1] if len(words) > 1 else "33"
        self.do_send(answer.replace("{lease}", lease))


def make_token(fence=None):
    """A token with a fence that looks like one; larger every time."""
    return f"{fence if fence is not None else time.time_ns():016x}{secrets.token_hex(8)}"


def _split(script):
    parts, current = [], []
    for line in script.strip().splitlines():
        line = line.split("#", 1)[0].strip()
        if line == "ACCEPT":
            parts.append(current)
            current = []
        elif line:
            current.append(line)
    parts.append(current)
    return [p for p in parts if p]


def _parse(lines):
    steps = []
    for line in lines:
        word, _, rest = line.partition(" ")
        if not hasattr(_Connection, "do_" + word.lower()) or word != word.upper():
            raise ValueError(f"not a step of a script: {line}")
        steps.append((word, rest.strip()))
    return steps
