"""What is done to a running round, a new one every one or two seconds: the driver and its faults.

A fault is a generator: it does the harm, yields for how long, and undoes it. So any number can be going on at a time,
each on a target of its own, and all are undone at the end. What was done, and from when until when for certain, goes
into the history.
"""

import contextlib
import heapq
import itertools
import json
import os
import resource
import signal
import time

import psycopg

from fault.history import now
from fault.keys import server_of
from lib.eventually import NotInTime, eventually
from lib.process import stands_still
from lib.standstill import Standstills

PAUSE_S = (0.5, 2.5)  # between the beginnings of two faults
STALL_S = 0.5  # the machine itself did not let us run for so long


class NoTarget(Exception):
    """All that this fault could be done to is suffering from another one."""


class Holders:
    """Who is in a section now, as the history tells: whom it hurts most."""

    def __init__(self, path):
        self._lines = open(path, encoding="utf-8")
        self._rest = ""
        self._sections = {}  # name: (who, key)

    def look(self):
        *lines, self._rest = (self._rest + self._lines.read()).split("\n")
        for event in map(json.loads, lines):
            if event["event"] == "begin":
                self._sections[event["section"]] = event["who"], event["key"]
            elif event["event"] in ("end", "lost"):
                self._sections.pop(event["section"], None)

    def now(self, clients):
        """(slot, key) of each, of clients that still live."""
        living = {process.name: slot for slot, process in clients.items()}
        self._sections = {name: s for name, s in self._sections.items() if s[0] in living}
        return [(living[who], key) for who, key in self._sections.values()]

    def close(self):
        self._lines.close()


class Driver:
    def __init__(self, world, rng):
        self.world, self.rng, self.history = world, rng, world.history
        self._holders = Holders(world.history_path)
        self._claimed = set()
        self._going_on = []  # heap of (undo at, number, generator)
        self._numbers = itertools.count()
        self._menu = [(weight, getattr(self, f"_{name}")) for name, weight in MENU.items()]

    def run(self, seconds):
        """Faults for so long; afterwards none is left."""
        end = now() + seconds
        following = now() + self.rng.uniform(*PAUSE_S)
        try:
            while now() < end:
                self.world.tend()
                self._holders.look()
                self._undo(now())
                if now() >= following:
                    self._inject()
                    following = now() + self.rng.uniform(*PAUSE_S)
                time.sleep(0.05)
        finally:
            self._undo(float("inf"))
            self._holders.close()
        self.world.tend()

    def _inject(self):
        for _ in range(10):
            (_, fault), = self.rng.choices(self._menu, [weight for weight, _ in self._menu])
            going_on = fault()
            try:
                lasts = next(going_on)
            except (NoTarget, psycopg.Error, OSError):
                continue
            heapq.heappush(self._going_on, (now() + lasts, next(self._numbers), going_on))
            return

    def _undo(self, until):
        while self._going_on and self._going_on[0][0] <= until:
            _, _, going_on = heapq.heappop(self._going_on)
            for _ in going_on:
                raise AssertionError("a fault is done once and undone once")

    @contextlib.contextmanager
    def _claim(self, candidates, rather=()):
        """One target at random that nothing else is being done to, mostly one of those that are named."""
        free = sorted(c for c in candidates if c not in self._claimed)
        if not free:
            raise NoTarget
        wanted = [c for c in free if c in rather]
        if wanted and self.rng.random() < 0.7:
            free = wanted
        target = self.rng.choice(free)
        self._claimed.add(target)
        try:
            yield target
        finally:
            self._claimed.remove(target)

    def _record(self, kind, target, since, until):
        self.history.record("fault", kind=kind, target=target, **{"from": since, "until": until})

    # ----------------------------------------------------------------- servers

    @contextlib.contextmanager
    def _a_server(self):
        with self._claim(f"server:{i}" for i in range(len(self.world.servers))) as target:
            yield target, self.world.servers[int(target.partition(":")[2])]

    def _server_kill(self, kind, *flags):
        with self._a_server() as (target, server):
            flags = [f for f in server.flags if f != "--no-recovery-wait"] + list(flags)
            since = now()
            server.kill()
            yield self.rng.uniform(0, 1.5)
            self.world.restart(server, *flags)
            self._record(kind, target, since, now())

    def _server_kill_forget(self):
        return self._server_kill("server-kill-forget", "--no-recovery-wait")

    def _server_kill_remember(self):
        return self._server_kill("server-kill-remember")

    def _server_drain(self):
        with self._a_server() as (target, server):
            since = now()
            server.process.signal(signal.SIGTERM)
            yield self.rng.uniform(0.5, 1.5)
            server.process.wait()
            self.world.restart(server, *(f for f in server.flags if f != "--no-recovery-wait"))
            self._record("server-drain", target, since, now())

    def _server_stop(self):
        """Shorter and longer than a lease."""
        with self._a_server() as (target, server):
            server.pause()
            since = now()
            yield self.rng.choice((self.rng.uniform(0.2, 1.2), self.rng.uniform(3.1, 4.5)))
            until = now()
            server.resume()
            self._record("server-stop", target, since, until)

    def _descriptors(self):
        """The server has none left for new connections."""
        with self._a_server() as (target, server):
            since, pid = now(), server.pid
            soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")), hard))
            yield self.rng.uniform(0.5, 2.5)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
            self._record("descriptors", target, since, now())

    # ----------------------------------------------------------------- network

    def _links_of_holders(self):
        return {("pg" if slot.startswith("postgres") else slot, server_of(key, len(self.world.servers)))
                for slot, key in self._holders.now(self.world.clients)}

    @contextlib.contextmanager
    def _some_links(self):
        """One connection's way, all ways of one client, or all ways to one server."""
        width = self.rng.choice(("one", "one", "client", "server"))
        with contextlib.ExitStack() as claims:
            place, i = first = claims.enter_context(self._claim(self.world.links, self._links_of_holders()))
            chosen = [first]
            for link in sorted(self.world.links):
                same = link[0] == place if width == "client" else width == "server" and link[1] == i
                if same and link not in self._claimed:
                    chosen.append(claims.enter_context(self._claim([link])))
            yield {link: self.world.links[link] for link in chosen}

    def _cut(self):
        return self._broken("cut", lambda link: link.cut(reset=self.rng.random() < 0.7))

    def _half_close(self):
        return self._broken("half-close", lambda link: link.half_close(self.rng.choice(("up", "down"))))

    def _broken(self, kind, harm):
        with self._some_links() as links:
            since = now()
            for link in links.values():
                harm(link)
            yield 0
            self._record_links(kind, links, since, now())

    def _black_hole(self):
        with self._some_links() as links:
            directions = self.rng.choice(((True, True), (True, False), (False, True)))
            for link in links.values():
                link.black_hole(*directions)
            since = now()
            yield self.rng.uniform(0.5, 6)
            until = now()
            for link in links.values():
                link.pass_through()
            self._record_links("black-hole", links, since, until)

    def _delay(self):
        with self._some_links() as links:
            since = now()
            for link in links.values():
                link.delay(self.rng.uniform(0, 0.8), self.rng.uniform(0, 0.8))
            yield self.rng.uniform(1, 5)
            for link in links.values():
                link.delay()
            self._record_links("delay", links, since, now())

    def _record_links(self, kind, links, since, until):
        for place, i in links:
            self._record(kind, f"link:{place}:{i}", since, until)

    # ----------------------------------------------------------------- clients

    @contextlib.contextmanager
    def _a_client(self):
        holders = {f"slot:{slot}" for slot, _ in self._holders.now(self.world.clients)}
        with self._claim((f"slot:{slot}" for slot in self.world.clients), holders) as target:
            process = self.world.clients[target.partition(":")[2]]
            if not process.running():
                raise NoTarget
            yield f"client:{process.name}", process

    def _client_kill(self):
        with self._a_client() as (target, process):
            since = now()
            self.world.killed.add(process.name)
            process.kill()
            yield 0
            self._record("client-kill", target, since, now())

    def _client_stop(self):
        with self._a_client() as (target, process):
            process.pause()
            since = now()
            yield self.rng.choice((self.rng.uniform(0.2, 1.5), self.rng.uniform(3.1, 5)))
            until = now()
            process.resume()
            self._record("client-stop", target, since, until)

    # -------------------------------------------------------------- PostgreSQL

    def _ask(self, sql, *args):
        with psycopg.connect(self.world.cluster.dsn(), autocommit=True, connect_timeout=5) as connection:
            return connection.execute(sql, args or None).fetchall()

    def _backend_terminate(self):
        backends = {f"client:{who}": pid for pid, who in self._ask(
            "SELECT pid, application_name FROM pg_stat_activity WHERE application_name LIKE 'postgres-%'")}
        with self._claim(backends) as target:
            since = now()
            self._ask("SELECT pg_terminate_backend(%s)", backends[target])
            yield 0
            self._record("backend-terminate", target, since, now())

    @contextlib.contextmanager
    def _the_worker(self):
        with self._claim(["pg"]) as target:
            pid = self.world.cluster.worker_pid()
            if pid is None:
                raise NoTarget
            yield target, pid

    def _worker_terminate(self):
        with self._the_worker() as (target, pid):
            since = now()
            self._ask("SELECT pg_terminate_backend(%s)", pid)
            yield 0.5
            self._record("worker-terminate", target, since, now())

    def _worker_kill(self):
        """PostgreSQL ends all its processes and starts again."""
        with self._the_worker() as (target, pid):
            since = now()
            os.kill(pid, signal.SIGKILL)
            yield 1
            self._record("worker-kill", target, since, now())

    def _worker_stop(self):
        with self._the_worker() as (target, pid):
            os.kill(pid, signal.SIGSTOP)
            try:
                eventually(lambda: stands_still(pid), deadline=5)
                since = now()
                yield self.rng.choice((self.rng.uniform(0.3, 1.2), self.rng.uniform(3.1, 4.5)))
                until = now()
            except NotInTime:
                raise NoTarget from None
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            self._record("worker-stop", target, since, until)


# Fault: how often, compared with the others.
MENU = {"server_kill_forget": 4, "server_kill_remember": 1, "server_drain": 2, "server_stop": 4, "descriptors": 2,
        "cut": 6, "half_close": 4, "black_hole": 6, "delay": 5,
        "client_kill": 4, "client_stop": 6,
        "backend_terminate": 3, "worker_terminate": 2, "worker_kill": 1, "worker_stop": 3}


def stalls(history):
    """Writes down when the machine did not let us run: that stops everybody, and nobody has done it."""
    return Standstills(STALL_S, lambda start, end: history.record(
        "fault", kind="stall", target="machine", **{"from": start, "until": end}))
