"""The three kinds of clients that contend: SQL in SQLite, SQL in PostgreSQL, and the official Python client.

Each takes a key in several ways, says whether it still holds it, and gives it back. `take` answers a fence, or None
when somebody else has the key. Whatever else happens is a Refused with a code; nothing is hidden or tried again here.
"""

import datetime
import re
import sqlite3
import threading
import time

import psycopg
from dflockd_client import SyncDistributedLock, SyncDistributedSemaphore, fence_from_token

from fault.history import now

BUSY, CANCELLED, LOST, GONE = "55P03", "57014", "40001", "gone"


class Refused(Exception):
    """No grant, or no answer. `code` is the SQLSTATE, or a word where there is none."""

    def __init__(self, code, text):
        super().__init__(f"{code}: {text}")
        self.code = code


def open_guard(path):
    """The SQLite database with the guarded rows, that all clients share. No crash of the machine is played, so no fsync."""
    db = sqlite3.connect(path, isolation_level=None, timeout=3, check_same_thread=False)
    db.execute("PRAGMA synchronous = OFF")
    return db


def _seconds(wall):
    """A moment of the wall clock on the clock of the history."""
    return wall - time.time() + now()


class SqlClient:
    """What both databases share. `rows` runs a statement; its errors are Refused."""

    ways = ("lock", "lock", "try", "line", "forever")

    def rows(self, sql, *args):
        raise NotImplementedError

    def deadline(self, key):
        """Until when the session counts on its hold; None when it does not."""
        raise NotImplementedError

    def interrupt(self):
        raise NotImplementedError

    def ready(self):
        """Called before each turn."""

    def ask(self, sql, *args):
        """A statement's only value."""
        ((value,),) = self.rows(sql, *args)
        return value

    def take(self, way, key, limit, lease, rng, scope=""):
        prefix, slots = (scope, ()) if limit == 1 else (scope + "sem_", (limit,))
        marks = ", ".join("?" * (3 + len(slots)))
        if way == "line":
            return self._line(prefix, key, slots, lease, rng)
        timeout = {"try": 0.0, "lock": rng.uniform(1, 8), "forever": float("inf")}[way]
        cancelled = way == "forever" and rng.random() < 0.6
        timer = threading.Timer(rng.uniform(0.2, 6), self.interrupt) if cancelled else None
        try:
            if timer:
                timer.start()
            return self.ask(f"SELECT dflock_{prefix}lock({marks})", key, *slots, timeout, lease)
        except Refused as refused:
            if refused.code == BUSY:
                return None
            raise
        finally:
            if timer:
                timer.cancel()
                timer.join()

    def _line(self, prefix, key, slots, lease, rng):
        marks = ", ".join("?" * (2 + len(slots)))
        if self.ask(f"SELECT dflock_{prefix}enqueue({marks})", key, *slots, lease) == "queued":
            for _ in range(rng.randint(1, 4)):
                if self.ask(f"SELECT dflock_{prefix}wait(?, ?)", key, rng.uniform(0, 3)):
                    break
            else:
                self.ask("SELECT dflock_cancel(?)", key)
                return None
        return self.ask("SELECT dflock_fence(?)", key)

    def held(self, key):
        return bool(self.ask("SELECT dflock_is_held(?)", key))

    def verified(self, key):
        """The same, with the server's word. None: nobody can say."""
        try:
            return bool(self.ask("SELECT dflock_assert_held(?, ?)", key, self.true))
        except Refused as refused:
            if refused.code in (LOST, "55000"):
                return False
            if refused.code == GONE:
                raise
            return None

    def give_back(self, key, limit):
        return bool(self.ask(f"SELECT dflock_{'sem_' if limit > 1 else ''}release(?)", key))

    def clean(self):
        """After an error: nothing is kept."""
        self.ask("SELECT dflock_release_all()")


class SqliteClient(SqlClient):
    """The extension in the very connection that writes the guarded rows."""

    kind, true = "sqlite", 1

    def __init__(self, options):
        self.db = open_guard(options.guard)
        self.db.enable_load_extension(True)
        self.db.load_extension(options.extension)

    def rows(self, sql, *args):
        try:
            return self.db.execute(sql, args).fetchall()
        except sqlite3.Error as error:
            found = re.match(r"dflockd ([0-9A-Z]{5}):", str(error))
            code = found.group(1) if found else "57014" if str(error) == "interrupted" else "sqlite"
            raise Refused(code, str(error)) from None

    def deadline(self, key):
        rows = self.rows("SELECT expires_at FROM dflock_locks WHERE key = ? AND state = 'held'", key)
        if not rows or rows[0][0] is None:
            return None
        at = datetime.datetime.strptime(rows[0][0], "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=datetime.timezone.utc)
        return _seconds(at.timestamp())

    def interrupt(self):
        self.db.interrupt()


class PostgresClient(SqlClient):
    """A session of PostgreSQL; a new one whenever the old one has ended."""

    kind, true = "postgres", True

    def __init__(self, options):
        self._dsn = f"{options.dsn} application_name={options.name}"
        self.connection = None

    def ready(self):
        while self.connection is None or self.connection.closed:
            try:
                self.connection = psycopg.connect(self._dsn, autocommit=True, connect_timeout=5)
                self.connection.execute("SET client_min_messages = error")
            except psycopg.Error:
                self.connection = None
                time.sleep(0.1)

    def run(self, sql, *args):
        try:
            return self.connection.execute(sql.replace("?", "%s"), args or None)
        except psycopg.Error as error:
            if self.connection.closed:
                raise Refused(GONE, str(error)) from None
            raise Refused(error.sqlstate or "psycopg", str(error)) from None

    def rows(self, sql, *args):
        return self.run(sql, *args).fetchall()

    def deadline(self, key):
        rows = self.rows("SELECT extract(epoch FROM expires_at)::float8 FROM dflock_locks"
                         " WHERE key = ? AND state = 'held' AND pid = pg_backend_pid()", key)
        return _seconds(rows[0][0]) if rows and rows[0][0] is not None else None

    def interrupt(self):
        try:
            self.connection.cancel()
        except psycopg.Error:
            pass  # the session is gone, and so is what was to be cancelled

    def clean(self):
        if not self.connection.closed:
            self.run("ROLLBACK")
            super().clean()


class OfficialClient:
    """dflockd's own Python client. It knows no deadline: what it says of its lock promises nothing about time."""

    kind = "official"
    ways = ("lock", "lock", "try", "line")

    def __init__(self, options):
        self._servers = [(host, int(port)) for host, _, port in (s.rpartition(":") for s in options.servers.split(","))]
        self._lock = None

    def ready(self):
        """Every lock has a connection of its own."""

    def take(self, way, key, limit, lease, rng):
        settings = {"servers": self._servers, "lease_ttl_s": lease, "connect_timeout_s": 2,
                    "acquire_timeout_s": 0 if way == "try" else rng.randint(1, 8)}
        try:
            self._lock = (SyncDistributedLock(key, **settings) if limit == 1
                          else SyncDistributedSemaphore(key, limit=limit, **settings))
            if way == "line":
                granted = self._lock.enqueue() == "acquired" or self._lock.wait(rng.randint(1, 4))
            else:
                granted = self._lock.acquire()
            token = self._lock.token
        except Exception as error:  # it raises what its sockets raise
            raise Refused("official", repr(error)) from None
        return fence_from_token(token) if granted and token else None

    def held(self, _key):
        return self._lock.token is not None

    def deadline(self, _key):
        return None

    def verified(self, key):
        return self.held(key)

    def give_back(self, _key, _limit):
        return self._lock.release()

    def clean(self):
        if self._lock is not None:
            self._lock.close()


KINDS = {"sqlite": SqliteClient, "postgres": PostgresClient, "official": OfficialClient}


def make(options):
    return KINDS[options.kind](options)
