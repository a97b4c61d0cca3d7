"""The databases under test, each call in a thread of its session: SQLite in this process, PostgreSQL over its socket.

A call is a function's name and its arguments as (parameter, value) pairs; what comes back is an `Outcome`: a value, or
the error's code. `Text` is text given as bytes, which need not be UTF-8.
"""

import queue
import re
import sqlite3
import threading

import psycopg

CALL_DEADLINE_S = 25.0
CANCELED = "57014"


class Text(bytes):
    """Text, whatever its bytes are."""


class Stuck(Exception):
    """A call did not end."""


class Outcome:
    def __init__(self, value=None, code=None, text="", warned=False):
        self.value, self.code, self.text, self.warned = value, code, text, warned

    def __str__(self):
        return f"error {self.code}: {self.text}" if self.code else f"{self.value!r}"


class Connection:
    """One database session: runs what it is given in its own thread, one call after the other."""

    def __init__(self):
        self._work = queue.SimpleQueue()
        self._ended = queue.SimpleQueue()
        self._outcome = None
        self.busy = False
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def _loop(self):
        while (step := self._work.get()) is not None:
            try:
                outcome = self.execute(*step)
            except Exception as error:  # of the test itself: shown by whoever asks for the outcome
                outcome = error
            self._ended.put(outcome)

    def start(self, *step):
        assert not self.busy
        self.busy = True
        self._outcome = None
        self._work.put(step)

    def ended(self, deadline):
        """The outcome if it is there by then, else None; stays there until it is finished."""
        if self._outcome is None:
            try:
                self._outcome = self._ended.get(timeout=deadline) if deadline else self._ended.get_nowait()
            except queue.Empty:
                return None
        return self._outcome

    def finish(self):
        outcome = self.ended(CALL_DEADLINE_S)
        if outcome is None:
            raise Stuck(f"no end within {CALL_DEADLINE_S} s")
        self.busy = False
        self._outcome = None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def run(self, *step):
        self.start(*step)
        return self.finish()

    def end_thread(self):
        self._work.put(None)
        if not self.busy:
            self._thread.join(CALL_DEADLINE_S)


# ---------------------------------------------------------------------- SQLite


class SqliteConnection(Connection):
    def __init__(self, extension):
        self.db = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self.db.enable_load_extension(True)
        self.db.load_extension(str(extension))
        super().__init__()

    def execute(self, kind, name, arguments):
        if kind == "close":
            self.db.close()
            return Outcome()
        if kind == "sql":
            sql, values = name, arguments
        else:
            marks = ["CAST(? AS TEXT)" if isinstance(v, Text) else "?" for _, v in arguments]
            sql, values = f"SELECT {name}({', '.join(marks)})", [bytes(v) if isinstance(v, Text) else v for _, v in arguments]
        try:
            rows = self.db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            return self._failed(error)
        if kind == "sql":
            return Outcome(rows)
        return Outcome(rows[0][0])

    @staticmethod
    def _failed(error):
        found = re.search(r"dflockd ([0-9A-Z]{5}): ", str(error))
        name = getattr(error, "sqlite_errorname", "none")
        if name == "SQLITE_INTERRUPT":
            return Outcome(code=CANCELED, text=str(error))
        if name != "SQLITE_ERROR" or not found:
            return Outcome(code=name, text=str(error))
        return Outcome(code=found.group(1), text=str(error))

    def cancel(self):
        self.db.interrupt()

    def close(self):
        outcome = self.run("close", None, None)
        self.end_thread()
        return outcome


class Sqlite:
    """Sessions are connections of one process."""

    transactions = False
    name = "sqlite"

    def __init__(self, extension):
        self.extension = extension

    def open(self, _session):
        return SqliteConnection(self.extension)

    def locks(self, session, connection, family):
        """(key, kind, state) of a session that is not busy; its own view, so its own prefix is cut."""
        if connection.busy:
            return None
        rows = connection.run("sql", "SELECT key, kind, state FROM dflock_locks", ()).value
        # Views cut the reader's own prefix; with it, every key begins with the family's name.
        return [(key if key.startswith(family) else session.prefix + key, kind, state) for key, kind, state in rows]

    def cancel(self, connection):
        connection.cancel()

    def close(self):
        """Its connections have been closed one by one."""


# ------------------------------------------------------------------ PostgreSQL

CASTS = {"key": "text", "timeout": "float8", "lease_ttl": "integer", "slots": "bigint", "token": "text",
         "verify": "boolean"}


def render(name, arguments):
    """Positional as far as nothing is left out, then by name. A value of the wrong type goes without a cast."""
    order = {"key": 0, "slots": 1}
    parts, values = [], []
    by_name = False
    expected = ["key", "slots"] if "sem_" in name and name.endswith(("acquire", "lock", "take", "enqueue")) else ["key"]
    expected += ["timeout", "lease_ttl"] if not name.endswith("enqueue") else ["lease_ttl"]
    for i, (parameter, value) in enumerate(arguments):
        if parameter in ("timeout", "lease_ttl") and (i >= len(expected) or expected[i] != parameter):
            by_name = True
        cast = "" if parameter in order and isinstance(value, (int, bytes)) and parameter == "key" else f"::{CASTS[parameter]}"
        parts.append(f"{parameter} => %s{cast}" if by_name else f"%s{cast}")
        values.append(value)
    verb = "CALL" if name.endswith("take") else "SELECT"
    return f"{verb} {name}({', '.join(parts)})", values


class PostgresConnection(Connection):
    def __init__(self, dsn):
        self.db = psycopg.connect(dsn, autocommit=True, prepare_threshold=None)
        self.pid = self.db.info.backend_pid
        self._warned = False
        self.db.add_notice_handler(self._notice)
        super().__init__()

    def _notice(self, diagnostic):
        self._warned = self._warned or diagnostic.severity_nonlocalized == "WARNING"

    def execute(self, kind, name, arguments):
        if kind == "close":
            self.db.close()
            return Outcome()
        self._warned = False
        sql, values = (name, arguments) if kind == "sql" else render(name, arguments)
        try:
            cursor = self.db.execute(sql, values or None)
            rows = cursor.fetchall() if cursor.description else None
        except psycopg.Error as error:
            return Outcome(code=error.sqlstate or ("57P01" if self.db.closed else type(error).__name__), text=str(error))
        value = rows[0][0] if rows and kind == "call" and rows[0] else rows
        return Outcome(value, warned=self._warned)

    def close(self):
        outcome = self.run("close", None, None)
        self.end_thread()
        return outcome


class Postgres:
    """Sessions are backends of one cluster; one more of them only looks on."""

    transactions = True
    name = "postgres"

    def __init__(self, cluster):
        self.cluster = cluster
        self.observer = PostgresConnection(cluster.dsn())

    def open(self, _session):
        return PostgresConnection(self.cluster.dsn())

    def ask(self, sql, *values):
        outcome = self.observer.run("sql", sql, values)
        assert outcome.code is None, f"{sql}: {outcome}"
        return outcome.value

    def locks(self, _session, connection, _family):
        return self.ask("SELECT key, kind, state FROM dflock_locks WHERE pid = %s", connection.pid)

    def cancel(self, connection):
        self.ask("SELECT pg_cancel_backend(%s)", connection.pid)

    def terminate(self, connection):
        self.ask("SELECT pg_terminate_backend(%s)", connection.pid)

    def alive(self, connection):
        return bool(self.ask("SELECT 1 FROM pg_stat_activity WHERE pid = %s", connection.pid))

    def close(self):
        self.observer.close()
