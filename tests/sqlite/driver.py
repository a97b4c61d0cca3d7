"""One face for the SQLite drivers of Python, for use inside a test's child processes.

`connect()` gives a connection with the extension loaded, of the driver named by SQLITE_DRIVER: `sqlite3` (Debian's,
SQLite 3.40), `pysqlite3` or `apsw` (recent SQLites of their own). Never two of them in one process.

Run as a program it is a database on a pipe: one JSON object per line in, one out (see `Database` in conftest.py).
"""

import json
import os
import sys
import threading

DRIVER = os.environ.get("SQLITE_DRIVER", "sqlite3")
EXTENSION = os.environ.get("SQLITE_EXTENSION_PATH", "")

if DRIVER == "apsw":
    import apsw as module

    Error = module.Error
elif DRIVER == "pysqlite3":
    from pysqlite3 import dbapi2 as module

    Error = module.Error
else:
    import sqlite3 as module

    Error = module.Error


class Connection:
    def __init__(self, path=":memory:", load=True):
        if DRIVER == "apsw":
            self.raw = module.Connection(path)
            self.raw.enable_load_extension(True)
        else:
            self.raw = module.connect(path, isolation_level=None, check_same_thread=False, timeout=0.5,
                                      cached_statements=0)  # Python 3.13 hands one to two threads
            self.raw.enable_load_extension(True)
        if load:
            self.load()

    def load(self, path=None):
        path = path or EXTENSION
        if DRIVER == "apsw":
            self.raw.load_extension(path)
        else:
            self.raw.load_extension(path)

    def rows(self, sql, *args):
        return [tuple(row) for row in self.raw.cursor().execute(sql, args)]

    def value(self, sql, *args):
        ((value,),) = self.rows(sql, *args)
        return value

    def error(self, sql, *args):
        """The message of a statement that must fail."""
        try:
            rows = self.rows(sql, *args)
        except Error as error:
            return str(error)
        raise AssertionError(f"{sql} {args} did not fail: {rows}")

    def interrupt(self):
        self.raw.interrupt()

    def close(self):
        self.raw.close()


def connect(path=":memory:", load=True):
    return Connection(path, load)


def sqlite_version():
    return module.sqlite_lib_version() if DRIVER == "apsw" else module.sqlite_version


def in_thread(work, *args):
    """Runs work in a thread; returns a function that waits for its end and hands on its result or exception."""
    box = {}

    def run():
        try:
            box["result"] = work(*args)
        except BaseException as error:
            box["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def result(timeout=30):
        thread.join(timeout)
        assert not thread.is_alive(), "the thread did not end in time"
        if "error" in box:
            raise box["error"]
        return box["result"]

    result.running = thread.is_alive
    return result


def renewal_threads():
    """How many threads of this process are ours."""
    names = (open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task"))
    return sum(name == "dflockd" for name in names)


# ------------------------------------------------------------------ as a program


def _argument(value):
    if isinstance(value, dict):
        return bytes.fromhex(value["blob"]) if "blob" in value else float(value["float"])
    return value


def _shown(value):
    return {"blob": value.hex()} if isinstance(value, bytes) else value


def _perform(connection, request):
    args = [_argument(a) for a in request.get("args", [])]
    return {"rows": [[_shown(v) for v in row] for row in connection.rows(request["sql"], *args)]}


def serve():
    """SIGUSR1 is sqlite3_interrupt()."""
    connection = connect(sys.argv[1])
    requests = sys.stdin
    print(json.dumps({"ready": sqlite_version()}), flush=True)
    interrupts = in_thread(_interrupt_on_signal, connection)
    for line in requests:
        request = json.loads(line)
        if request.get("close"):
            connection.close()
            answer = {"rows": []}
        else:
            try:
                answer = _perform(connection, request)
            except Error as error:
                answer = {"error": str(error), "type": type(error).__name__,
                          "code": getattr(error, "sqlite_errorcode", getattr(error, "result", None))}
        print(json.dumps(answer), flush=True)
    assert interrupts.running()


def _interrupt_on_signal(connection):
    import signal

    while True:
        signal.sigwait([signal.SIGUSR1])
        connection.interrupt()


if __name__ == "__main__":
    import signal

    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    serve()
