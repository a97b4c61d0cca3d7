"""What a round consists of: lock servers, a proxy before each for every client, a PostgreSQL cluster, and the clients.

Owns every process of the round and ends all of them. The clients know the proxies' addresses only.
"""

import collections
import sqlite3
import sys

import psycopg

from fault.history import History
from fault.keys import LOCKS
from lib.eventually import DEADLINE_S, NotInTime, eventually
from lib.paths import ROOT, SQLITE_EXTENSION
from lib.process import Process, Processes
from lib.proxy import Proxy
from lib.server import Server, StartFailed
from pg.cluster import Cluster

SLOTS = {"sqlite": 4, "postgres": 4, "official": 2}  # clients of each kind
READ_TIMEOUT_S = 8
# A guard needs fences: `auto` would do without them for a while after a broken hello.
SETTINGS = {"connect_timeout": 2, "keepalive": 2, "server_read_timeout": READ_TIMEOUT_S, "fences": "on"}
DEADLY = ("terminated by signal 4", "terminated by signal 6", "terminated by signal 7", "terminated by signal 11", "PANIC:",
          "TRAP:")
GUARD_TABLES = ("CREATE TABLE guard (key text PRIMARY KEY, fence bigint NOT NULL)",
                "CREATE TABLE writes (seq {serial}, key text NOT NULL, fence bigint NOT NULL, who text NOT NULL,"
                " section text NOT NULL)",
                "INSERT INTO guard VALUES " + ", ".join(f"('{key}', 0)" for key in LOCKS))


class World:
    def __init__(self, directory, installation, servers, seed, calm):
        directory.mkdir(parents=True)
        self.directory, self.calm = directory, calm
        self.processes = Processes(directory)
        self.history_path = directory / "history.jsonl"
        self.history = History(self.history_path, "driver")
        self.finish = directory / "finish"
        self.guard = directory / "guard.db"
        self.clients = {}  # slot: Process
        self.killed = set()  # lives that the driver has ended
        self._seed, self._lives = seed, collections.Counter()
        try:
            self._start(installation, servers)
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------ start and end

    def _start(self, installation, servers):
        self.servers = [self._server(i) for i in range(servers)]
        self.links = {(place, i): self.processes.add(Proxy(server.address))
                      for place in self._places() for i, server in enumerate(self.servers)}
        self._make_guard()
        self.cluster = Cluster(self.processes, installation, {
            "dflockd.servers": self.addresses("pg"), "log_min_messages": "log",
            **{f"dflockd.{name}": value for name, value in SETTINGS.items()}})
        self.cluster.psql("CREATE EXTENSION dflockd;" + ";".join(GUARD_TABLES).format(serial="bigserial PRIMARY KEY"))
        for kind, count in SLOTS.items():
            for i in range(count):
                self.spawn(f"{kind}-{i}")

    def _server(self, index):
        return Server(self.processes, "--read-timeout", READ_TIMEOUT_S, "--default-lease-ttl", 3, "--shutdown-timeout", 1,
                      "--fence-state-file", self.directory / f"fences{index}", name=f"server{index}")

    @staticmethod
    def _places():
        return ["pg", *(f"{kind}-{i}" for kind in SLOTS if kind != "postgres" for i in range(SLOTS[kind]))]

    def _make_guard(self):
        db = sqlite3.connect(self.guard, isolation_level=None)
        db.execute("PRAGMA journal_mode = WAL")
        for statement in GUARD_TABLES:
            db.execute(statement.format(serial="INTEGER PRIMARY KEY AUTOINCREMENT"))
        db.close()

    def close(self):
        """Ends every process of the round, whatever state it is in."""
        self.processes.close()
        self.history.close()

    # ----------------------------------------------------------------- clients

    def addresses(self, place):
        return ",".join(self.links[place, i].address for i in range(len(self.servers)))

    def spawn(self, slot):
        """The next life of a client."""
        kind = slot.partition("-")[0]
        self._lives[slot] += 1
        name = f"{slot}.{self._lives[slot]}"
        place = "pg" if kind == "postgres" else slot
        command = [sys.executable, ROOT / "tests" / "fault" / "worker.py", "--kind", kind, "--name", name,
                   "--seed", self._seed * 1000 + len(self.processes.started), "--history", self.history_path,
                   "--guard", self.guard, "--finish", self.finish, "--servers", self.addresses(place),
                   "--extension", SQLITE_EXTENSION, *(["--dsn", self.cluster.dsn()] if kind == "postgres" else []),
                   *(["--calm"] if self.calm else [])]
        env = {"DFLOCK_SERVERS": self.addresses(place), "PYTHONDONTWRITEBYTECODE": "1",
               **{f"DFLOCK_{setting.upper()}": str(value) for setting, value in SETTINGS.items()}}
        self.clients[slot] = self.processes.add(Process(command, self.directory / "clients", name, env=env))

    def tend(self):
        """A client that has ended gets its next life; one that nobody killed is written down."""
        for slot, process in list(self.clients.items()):
            if not process.running():
                self._bury(process)
                self.spawn(slot)

    def _bury(self, process):
        self.processes.started.remove(process)
        process.stop()
        if process.name not in self.killed:
            self.history.record("died", client=process.name, status=process.popen.returncode, log=process.log()[-300:])

    # ----------------------------------------------------------------- servers

    def restart(self, server, *flags):
        """On its old port, which a connection of somebody else may have taken for a moment."""
        def started():
            try:
                server.start(*flags)
                return True
            except StartFailed as failed:
                if "in use" in failed.log:
                    return False
                raise
        eventually(started, what=f"{server.name} starts again")

    # -------------------------------------------------------------- the last round

    def let_finish(self, seconds):
        """Every client takes every key once more; who has not done so in time is written down."""
        self.finish.touch()
        try:
            eventually(lambda: not any(p.running() for p in self.clients.values()), deadline=seconds, every=0.1)
        except NotInTime:
            for process in self.clients.values():
                if process.running():
                    self.history.record("unfinished", client=process.name, seconds=seconds)
        for process in self.clients.values():
            if not process.running() and process.popen.returncode != 0:
                self.history.record("died", client=process.name, status=process.popen.returncode,
                                    log=process.log()[-300:])

    def look_for_leftovers(self):
        """What the servers have after all clients have gone."""
        def left():
            return [(server, self._used(server)) for server in self.servers if self._used(server)]
        try:
            eventually(lambda: not left(), deadline=DEADLINE_S, every=0.1)
        except NotInTime:
            for server, what in left():
                self.history.record("left", server=server.name, what=what)
        self.history.record("looked")
        for line in self.cluster.log().splitlines():
            if any(mark in line for mark in DEADLY):
                self.history.record("crash", line=line)

    @staticmethod
    def _used(server):
        stats = server.stats()
        return "; ".join(str(row) for row in stats["locks"] + stats["semaphores"])

    def guarded_rows(self):
        """Database: rows (key, fence, who, section) in the order of their commits."""
        sql = "SELECT key, fence, who, section FROM writes ORDER BY seq"
        db = sqlite3.connect(self.guard)
        rows = {"sqlite": db.execute(sql).fetchall()}
        db.close()
        with psycopg.connect(self.cluster.dsn()) as connection:
            rows["postgres"] = connection.execute(sql).fetchall()
        return rows
