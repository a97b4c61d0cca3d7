"""One client as a process of its own: takes turns on the keys until it is told to finish, and writes down what it believes.

A turn: take a key in some way, be in the critical section for a while, ask now and then whether it is still held, do a
guarded write, give it back. Some turns never ask, some write although they know that the lease is gone: the guard and
COMMIT have to refuse those. When the file `finish` appears, each key is taken once more, with all patience.
"""

import argparse
import contextlib
import pathlib
import random
import sqlite3
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from fault import clients  # noqa: E402
from fault.clients import CANCELLED, GONE, LOST, Refused  # noqa: E402
from fault.history import History, now  # noqa: E402
from fault.keys import KEYS  # noqa: E402

GUARD = ("UPDATE guard SET fence = ? WHERE key = ? AND fence <= ?",
         "INSERT INTO writes (key, fence, who, section) VALUES (?, ?, ?, ?)")


class Section:
    """One grant in the hands of this client."""

    def __init__(self, worker, key, limit, lease, fence, asked):
        worker.sections += 1
        self.name = f"{worker.name}:{worker.sections}"
        self.worker, self.key, self.limit, self.fence = worker, key, limit, fence
        self.lost = self.in_transaction = False
        taken = now()
        self.record("begin", kind=worker.client.kind, key=key, limit=limit, fence=fence, lease=lease, asked=asked,
                    **{"from": taken}, deadline=self._deadline())

    def record(self, event, **fields):
        self.worker.history.record(event, section=self.name, **fields)

    def _deadline(self):
        try:
            return self.worker.client.deadline(self.key)
        except Refused:
            return None

    def check(self, verify=False):
        """Asks whether the key is still held, and writes the answer down."""
        since = now()
        yes = self.worker.client.verified(self.key) if verify else self.worker.client.held(self.key)
        at = now()
        if yes is None:
            return
        self.record("check", **{"from": since}, at=at, yes=yes, verified=verify,
                    **({"deadline": self._deadline()} if yes else {}))
        if not yes:
            self.lose("a check said no")

    def lose(self, why):
        if not self.lost:
            self.record("lost", why=why)
        self.lost = True

    def end(self):
        if not self.lost:
            self.record("end")


class Worker:
    def __init__(self, options):
        self.name = options.name
        self.rng = random.Random(options.seed)
        self.calm = options.calm
        self.finish = pathlib.Path(options.finish)
        self.history = History(options.history, options.name)
        self.client = clients.make(options)
        self.guard = getattr(self.client, "db", None) or clients.open_guard(options.guard)
        self.sections = 0

    # ----------------------------------------------------------------- the run

    def run(self):
        while not self.finish.exists():
            self.turn(*self.rng.choice(list(KEYS.items())))
        keys = list(KEYS.items())
        self.rng.shuffle(keys)
        for key, limit in keys:
            while not self.turn(key, limit, last=True):
                time.sleep(0.05)
        self.history.record("finished")

    def turn(self, key, limit, last=False):
        """True when it was in the section."""
        self.client.ready()
        lease = 5 if self.calm else self.rng.choice((2, 3))
        postgres = self.client.kind == "postgres" and limit == 1 and not last
        kind = self.rng.choice(("session", "transaction", "counted")) if postgres else "session"
        try:
            return getattr(self, f"_{kind}")(key, limit, lease, "lock" if last else self.rng.choice(self.client.ways), last)
        except Refused as refused:
            self.history.record("cancelled" if refused.code == CANCELLED else "refused", key=key, code=refused.code,
                                text=str(refused)[:200])
        except (OSError, sqlite3.Error) as error:
            self.history.record("refused", key=key, code="system", text=repr(error)[:200])
        with contextlib.suppress(Refused):
            self.client.clean()
        time.sleep(self.rng.uniform(0.02, 0.2))
        return False

    def _take(self, key, limit, lease, way, *scope):
        """A Section, or None."""
        asked = now()
        fence = self.client.take(way, key, limit, lease, self.rng, *scope)
        if fence is None:
            self.history.record("busy", key=key)
            with contextlib.suppress(Refused):
                self.client.clean()
            return None
        return Section(self, key, limit, lease, fence, asked)

    # ------------------------------------------------------------------- turns

    def _session(self, key, limit, lease, way, last):
        """A hold of the session, around a guarded write to SQLite."""
        section = self._take(key, limit, lease, way)
        if section is None:
            return False
        with self._knowing(section):
            self._dwell(section, 0 if last else self._length(lease))
            self._write(section)
        section.end()
        if not self.client.give_back(key, limit):
            self.history.record("returned", section=section.name, held=False)
        return True

    def _transaction(self, key, limit, lease, way, _last):
        """A lock of the transaction; COMMIT looks at it."""
        self.client.run("BEGIN")
        section = self._take(key, limit, lease, "try" if way == "line" else way, "xact_")
        if section is None:
            return False
        section.in_transaction = True
        with self._knowing(section):
            self._dwell(section, self._length(lease))
            self._write(section)
            self._write_postgres(section)
            self._dwell(section, self._length(lease) / 2)
        section.end()
        self._commit(section)
        return True

    def _counted(self, key, limit, lease, way, _last):
        """A hold of the session that a transaction counts on."""
        section = self._take(key, limit, lease, way)
        if section is None:
            return False
        with self._knowing(section):
            self._dwell(section, self._length(lease) / 2)
            self.client.run("BEGIN")
            section.in_transaction = True
            self.client.run("SELECT dflock_assert_held(?)", key)
            self._write(section)
            self._write_postgres(section)
            self._dwell(section, self._length(lease))
        section.end()
        self._commit(section)
        self.client.give_back(key, limit)
        return True

    @contextlib.contextmanager
    def _knowing(self, section):
        """Errors that mean the end of the hold are a known loss."""
        try:
            yield
        except Refused as refused:
            if refused.code in (LOST, GONE, "55000"):
                section.lose(str(refused)[:200])
            section.end()
            raise

    # ------------------------------------------------------- inside of a section

    def _length(self, lease):
        """Mostly short; some outlast their lease, if it is not renewed."""
        dice = self.rng.random()
        if dice < 0.7 or (self.calm and dice < 0.95):
            return self.rng.uniform(0, 0.25)
        if dice < 0.85:
            return self.rng.uniform(0.2, 1.2)
        return self.rng.uniform(0.5, 1.3) * lease

    def _dwell(self, section, seconds):
        until = now() + seconds
        checking = self.rng.random() < 0.65
        while (left := until - now()) > 0 and not section.lost:
            time.sleep(min(left, self.rng.uniform(0.05, 0.4)))
            if checking:
                # A check that fails would take the transaction with it, and COMMIT is to refuse it.
                section.check(verify=self.rng.random() < 0.08 and not section.in_transaction)

    def _write(self, section):
        """A guarded write to SQLite; a known loss does not keep everybody from trying."""
        if section.limit > 1 or (section.lost and self.rng.random() < 0.3):
            return
        if section.lost:  # who writes all the same is late, as such clients are
            time.sleep(self.rng.uniform(0, 2))
        if not section.lost and self.rng.random() < 0.5:
            section.check()
        since = now()
        try:
            self.guard.execute("BEGIN IMMEDIATE")
            changed = self.guard.execute(GUARD[0], (section.fence, section.key, section.fence)).rowcount
            if changed:
                self.guard.execute(GUARD[1], (section.key, section.fence, self.name, section.name))
            self.guard.execute("COMMIT")
            result = "written" if changed else "stale"
        except sqlite3.Error:
            result = "failed"
            if self.guard.in_transaction:
                self.guard.execute("ROLLBACK")
        section.record("write", **{"from": since}, where="sqlite", result=result)

    def _write_postgres(self, section):
        """The same in the open transaction of PostgreSQL."""
        since = now()
        changed = self.client.run(GUARD[0], section.fence, section.key, section.fence).rowcount
        if changed:
            self.client.run(GUARD[1], section.key, section.fence, self.name, section.name)
        section.record("write", **{"from": since}, where="postgres", result="written" if changed else "stale")

    def _commit(self, section):
        try:
            done = self.client.run("COMMIT").statusmessage == "COMMIT"
            section.record("commit", result="done" if done else "failed")
        except Refused as refused:
            section.record("commit", result="refused" if refused.code == LOST else "failed", code=refused.code)
            if refused.code != LOST:
                raise


def options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("kind", "name", "history", "guard", "finish", "servers"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--dsn", default="")
    parser.add_argument("--extension", default="")
    parser.add_argument("--calm", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    Worker(options()).run()
