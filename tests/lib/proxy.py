"""A TCP proxy that can spoil the network between a client and a server.

Every connection has two pumps, `up` (client to server) and `down`; each can be delayed, stopped (a black hole:
nothing is closed, nothing passes), or half-closed, and all can be cut. What is set counts for living and for new connections.
"""

import contextlib
import socket
import struct
import threading
import time

from lib.wire import split_address

UP, DOWN = "up", "down"


class Proxy:
    def __init__(self, target, port=0, host="127.0.0.1"):
        self.target = split_address(target)
        self.host = host
        self._changed = threading.Condition()
        self._links = []
        self._closing = False
        self._blocked = {UP: False, DOWN: False}
        self._delay = {UP: 0.0, DOWN: 0.0}
        self.bytes = {UP: 0, DOWN: 0}
        self.accepted = 0
        self._threads = []
        self._listener = None
        self.port = port
        self.open()

    @property
    def address(self):
        return f"{self.host}:{self.port}"

    def __str__(self):
        return self.address

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.stop()

    # ---------------------------------------------------------------- controls

    def black_hole(self, up=True, down=True):
        """Nothing passes any more in these directions; connections stay open, new ones are accepted."""
        with self._changed:
            self._blocked = {UP: up, DOWN: down}
            self._changed.notify_all()

    def pass_through(self):
        """Ends a black hole; what was held back is delivered."""
        self.black_hole(False, False)

    def delay(self, up=0.0, down=0.0):
        """Seconds that every piece of data waits before it passes on."""
        with self._changed:
            self._delay = {UP: up, DOWN: down}

    def cut(self, reset=True):
        """Breaks all living connections on both sides; new ones are accepted."""
        with self._changed:
            links, self._links = self._links, []
        for link in links:
            link.cut(reset)

    def half_close(self, direction):
        """Ends the stream in one direction (UP: the server sees the end; DOWN: the client does)."""
        for link in self.links():
            link.half_close(direction)

    def shut(self):
        """Connections are refused from now on; living ones go on."""
        listener, self._listener = self._listener, None
        if listener:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def open(self):
        """Listens (again), on the port it had."""
        listener = socket.socket(socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.host, self.port))
        listener.listen(512)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._spawn(self._accept, listener)

    def links(self):
        with self._changed:
            self._links = [link for link in self._links if not link.dead]
            return list(self._links)

    def stop(self):
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self.shut()
        self.cut()
        for thread in self._threads:
            thread.join(10)

    # ------------------------------------------------------------------- inside

    def _spawn(self, target, *args):
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads = [t for t in self._threads if t.is_alive()] + [thread]
        thread.start()

    def _accept(self, listener):
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self.target, timeout=10)
                server.settimeout(None)
            except OSError:
                _reset(client)
                continue
            self.accepted += 1
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = _Link(client, server)
            with self._changed:
                self._links.append(link)
            self._spawn(self._pump, link, UP)
            self._spawn(self._pump, link, DOWN)

    def _pump(self, link, direction):
        source, sink = (link.client, link.server) if direction == UP else (link.server, link.client)
        while True:
            try:
                data = source.recv(1 << 16)
            except OSError:
                data = b""
            if not self._let_pass(link, direction):
                return
            if not data:
                link.ended(direction)
                return
            try:
                sink.sendall(data)
                self.bytes[direction] += len(data)
            except OSError:
                link.cut(True)
                return

    def _let_pass(self, link, direction):
        """Waits as the controls say. False when the link or the proxy has ended meanwhile."""
        due = time.monotonic() + self._delay[direction]
        with self._changed:
            while not (self._closing or link.dead):
                left = due - time.monotonic()
                if not self._blocked[direction] and left <= 0:
                    return True
                self._changed.wait(0.2 if self._blocked[direction] else left)
        return False


class _Link:
    def __init__(self, client, server):
        self.client, self.server = client, server
        self._ends = set()
        self.dead = False

    def ended(self, direction):
        """One side has said its last word: hand that on, and close when both have."""
        sink = self.server if direction == UP else self.client
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
        self._ends.add(direction)
        if len(self._ends) == 2:
            self.cut(False)

    def half_close(self, direction):
        with contextlib.suppress(OSError):
            (self.server if direction == UP else self.client).shutdown(socket.SHUT_WR)

    def cut(self, reset):
        self.dead = True
        for sock in (self.client, self.server):
            if reset:
                _reset(sock)
            else:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()


def _reset(sock):
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.shutdown(socket.SHUT_RD)  # wakes the pump that sits in recv; SHUT_WR would send a FIN first
    sock.close()
