"""Who comes for a lock: another language's client, the SQLite extension, the PostgreSQL extension. One face for all.

    comer.lock(key, timeout)            -> token, or None when it was busy for so long; timeouts are whole seconds
    comer.slot(key, limit, timeout)     the same for a semaphore
    comer.start_lock(...), comer.finish()   for what waits
    comer.enqueue(key), comer.wait(key, timeout)
    comer.release(key)                  gives back the lock or slot of that key

A foreign client is a program of a few lines around it (peers/), spoken to over a pipe: a request is one line, and so
is its answer. It finds the lock servers in DFLOCK_SERVERS and begins with a line `ready`.

    lock KEY TIMEOUT LEASE              -> `held TOKEN`, `timeout` or `error TEXT`; LEASE 0 is the server's own
    slot KEY TIMEOUT LEASE LIMIT        -> the same
    enqueue KEY LEASE                   -> `held TOKEN` or `queued`
    wait KEY TIMEOUT                    -> as lock
    release KEY                         -> `released`
    fence TOKEN                         -> its number, or `-` when this client shows no fences
    shard COUNT KEY                     -> the index of the key's server among so many
"""

import os
import select
import subprocess
import time

import psycopg

from lib.process import Process
from pg.waiting import Background
from sqlite.support import Database, Failed


def addresses(servers):
    return ",".join(str(s) for s in (servers if isinstance(servers, (list, tuple)) else [servers]))


class Peer:
    """A foreign client in a process of its own."""

    def __init__(self, processes, command, servers):
        self.name = f"peer{len(processes.started)}"
        self.process = Process(command, processes.directory / self.name, self.name, env={"DFLOCK_SERVERS": addresses(servers)},
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        processes.add(self)
        self._buffer = b""
        assert self._line(30) == "ready", self.log()

    def _line(self, deadline):
        end = time.monotonic() + deadline
        out = self.process.popen.stdout
        while b"\n" not in self._buffer:
            left = end - time.monotonic()
            assert left > 0, f"{self.name}: no answer within {deadline} s\n{self.log()}"
            if select.select([out], [], [], left)[0]:
                data = os.read(out.fileno(), 1 << 16)
                assert data, f"{self.name} ended\n{self.log()}"
                self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()

    def send(self, *words):
        self.process.popen.stdin.write(" ".join(str(w) for w in words).encode() + b"\n")
        self.process.popen.stdin.flush()

    def ask(self, *words, deadline=60):
        self.send(*words)
        return self._line(deadline)

    @staticmethod
    def _granted(answer):
        word, _, rest = answer.partition(" ")
        assert word in ("held", "timeout"), answer
        return rest if word == "held" else None

    def start_lock(self, key, timeout=20, lease=0):
        self.send("lock", key, timeout, lease)

    def start_slot(self, key, limit, timeout=20, lease=0):
        self.send("slot", key, timeout, lease, limit)

    def finish(self, deadline=60):
        return self._granted(self._line(deadline))

    def lock(self, key, timeout=0, lease=0):
        self.start_lock(key, timeout, lease)
        return self.finish()

    def slot(self, key, limit, timeout=0, lease=0):
        self.start_slot(key, limit, timeout, lease)
        return self.finish()

    def enqueue(self, key, lease=0):
        """The token, or None when queued."""
        answer = self.ask("enqueue", key, lease)
        return None if answer == "queued" else self._granted(answer)

    def wait(self, key, timeout=20):
        return self._granted(self.ask("wait", key, timeout))

    def release(self, key):
        answer = self.ask("release", key)
        assert answer == "released", answer

    def fence(self, token):
        """What the client reads out of a token; None when it reads none."""
        answer = self.ask("fence", token)
        return None if answer == "-" else int(answer)

    def shards(self, keys, count):
        """The index of the server of each key."""
        found = []
        for first in range(0, len(keys), 100):  # so many that neither pipe is ever full
            part = keys[first:first + 100]
            for key in part:
                self.send("shard", count, key)
            found += [int(self._line(30)) for _ in part]
        return found

    def kill(self):
        self.process.kill()

    def stop(self):
        self.process.stop()

    def log(self):
        return self.process.log()


class Sql:
    """What both databases have in common; a child says how a statement is started, finished and killed."""

    def start(self, sql, *args):
        raise NotImplementedError

    def rows(self, sql, *args):
        raise NotImplementedError

    def kill(self):
        """Ends the process that holds the session, without a word."""
        raise NotImplementedError

    def _finish(self, deadline):
        raise NotImplementedError

    def value(self, sql, *args):
        ((value,),) = self.rows(sql, *args)
        return value

    def start_lock(self, key, timeout=20, lease=0):
        self._key, self._kind = key, ""
        self.start(f"SELECT dflock_acquire({self.mark}, {self.mark}, {self.mark})", key, timeout, lease or None)

    def start_slot(self, key, limit, timeout=20, lease=0):
        self._key, self._kind = key, "sem_"
        self.start(f"SELECT dflock_sem_acquire({self.mark}, {self.mark}, {self.mark}, {self.mark})", key, limit, timeout,
                   lease or None)

    def finish(self, deadline=60):
        ((granted,),) = self._finish(deadline)
        return self.token(self._key) if granted else None

    def lock(self, key, timeout=0, lease=0):
        self.start_lock(key, timeout, lease)
        return self.finish()

    def slot(self, key, limit, timeout=0, lease=0):
        self.start_slot(key, limit, timeout, lease)
        return self.finish()

    def enqueue(self, key, lease=0):
        self._key, self._kind = key, ""
        answer = self.value(f"SELECT dflock_enqueue({self.mark}, {self.mark})", key, lease or None)
        return self.token(key) if answer == "acquired" else None

    def wait(self, key, timeout=20):
        return self.token(key) if self.value(f"SELECT dflock_wait({self.mark}, {self.mark})", key, timeout) else None

    def release(self, key):
        assert self.value(f"SELECT dflock_{self._kind}release({self.mark})", key)

    def token(self, key):
        return self.value(f"SELECT dflock_token({self.mark})", key)

    def fence(self, token):
        return self.value(f"SELECT dflock_token_fence({self.mark})", token)

    def sqlstate(self, sql, *args):
        """The code of a statement that must fail."""
        try:
            rows = self.rows(sql, *args)
        except (Failed, psycopg.Error) as error:
            return error.sqlstate
        raise AssertionError(f"{sql} did not fail: {rows}")

    def release_token(self, key, token):
        return self.value(f"SELECT dflock_release({self.mark}, {self.mark})", key, token)

    def lock_all(self, keys):
        """Takes every one of these keys."""
        raise NotImplementedError


class Sqlite(Sql):
    mark = "?"

    def __init__(self, processes, servers):
        self.database = Database(processes, servers)

    def start(self, sql, *args):
        self.database.start(sql, *args)

    def _finish(self, deadline):
        return self.database.finish(deadline)

    def rows(self, sql, *args):
        return self.database.rows(sql, *args)

    def kill(self):
        self.database.process.kill()

    def lock_all(self, keys):
        for key in keys:
            assert self.value("SELECT dflock_acquire(?, 0)", key) == 1, key


class Postgres(Sql):
    """A backend of a running cluster."""

    mark = "%s"

    def __init__(self, cluster):
        self.session = cluster.session()
        self._waiting = None

    def start(self, sql, *args):
        self._waiting = Background(self.session, sql, *args)

    def _finish(self, deadline):
        return self._waiting.finish(deadline)

    def rows(self, sql, *args):
        return self.session.rows(sql, *args)

    def kill(self):
        self.session.connection.close()

    def lock_all(self, keys):
        taken = self.value("SELECT count(*) FROM unnest(%s::text[]) AS k WHERE dflock_acquire(k, 0)", keys)
        assert taken == len(keys)
