"""Speed of the PostgreSQL extension: every function measures one thing on private clusters."""

import contextlib
import os
import re
import statistics
import subprocess
import tempfile
import time

from lib.eventually import eventually
from lib.process import clean_environment, cpu_s, resident
from lib.server import Server
from measure import ANY, LIMIT_S, ONE, Echo, in_turns, medians, processes, ratios
from pg.cluster import Cluster, Installation, first_pg_config, run

PAIR = "SELECT dflock_acquire('bench-' || :client_id, 0);\nSELECT dflock_release('bench-' || :client_id);\n"
XACT = "SELECT dflock_xact_acquire('bench-' || :client_id, 0);\n"
ADVISORY = "SELECT pg_try_advisory_lock(:client_id);\nSELECT pg_advisory_unlock(:client_id);\n"
ADVISORY_XACT = "SELECT pg_advisory_xact_lock(:client_id);\n"


class Bench:
    """pgbench against one private cluster, whose worker asks the server or echo server at `address`."""

    def __init__(self, started, installation, address, place, settings=None, preload=True):
        ours = {"dflockd.servers": address, "dflockd.fences": "off"} if preload else {}
        self.cluster = Cluster(started, installation, {**ours, **(settings or {})}, preload=preload)
        if preload:
            self.cluster.psql("CREATE EXTENSION dflockd")
            self.worker = self.cluster.await_worker()
        self.place = place
        for pid in (self.cluster.pid, *self.cluster.children()):
            os.sched_setaffinity(pid, place.cpus())  # backends inherit it

    def tps(self, script, clients, seconds, options=""):
        """Transactions per second; a script is one."""
        with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
            file.write(script)
            file.flush()
            return self.pgbench(["-M", "prepared", "-f", file.name], clients, seconds, options)

    def pgbench(self, what, clients, seconds, options=""):
        done = subprocess.run(
            [*self.place.client, self.cluster.installation.program("pgbench"), "-n", *what, "-c", str(clients), "-j",
             str(min(clients, 2)), "-T", str(seconds), *self.where()], capture_output=True, text=True,
            env=clean_environment({"PGOPTIONS": options}), timeout=LIMIT_S, check=False)
        found = re.search(r"^tps = ([0-9.]+)", done.stdout, re.M)
        if done.returncode != 0 or not found or "aborted" in done.stderr:
            raise RuntimeError(f"pgbench: exit status {done.returncode}\n{done.stdout}{done.stderr}")
        return float(found.group(1))

    def where(self):
        return ["-h", str(self.cluster.directory), "-p", str(self.cluster.port), "-U", "postgres", "postgres"]


@contextlib.contextmanager
def postgresql():
    """Processes, and the installation that they run from."""
    with processes() as started:
        os.chmod(started.directory, 0o755)
        yield started, Installation(first_pg_config(), started.directory / "pg")


def pairs(table, size, built):
    """Locks of one cluster at dflockd-local, of another at a server that only says yes, and advisory locks."""
    with postgresql() as (started, installation):
        for place in (ONE, ANY):
            pairs_at(table, size, started, installation, built, place)


def pairs_at(table, size, started, installation, built, place):
    lock = Bench(started, installation, Server(started, program=[built.server], wrapper=place.server).address, place)
    echo = Bench(started, installation, Echo(started, "answers", program=[built.echo], wrapper=place.server,
                                             name="yes").address, place)
    seconds, off = size.pgbench_s, "-c dflockd.release_wait=off"
    for clients in (1, 8):
        of = in_turns(size.pgbench_rounds, {
            "pair": lambda: lock.tps(PAIR, clients, seconds),
            "pair off": lambda: lock.tps(PAIR, clients, seconds, off),
            "echo": lambda: echo.tps(PAIR, clients, seconds),
            "advisory": lambda: lock.tps(ADVISORY, clients, seconds),
            "xact": lambda: lock.tps(XACT, clients, seconds),
            "advisory xact": lambda: lock.tps(ADVISORY_XACT, clients, seconds)})
        many = "1 client" if clients == 1 else f"{clients} clients"
        table.add(f"PostgreSQL acquire + release / answered by a yes-man, rate, {many}", place, ">= 0.85",
                  ratios(of, "pair", "echo"), medians(of, "tps"))
        table.add(f"the same / pg_try_advisory_lock + unlock, rate, {many}", place, ">= 0.5" if clients == 8 else "",
                  ratios(of, "pair", "advisory"))
        table.add(f"the same with `release_wait` off, rate, {many}", place, "", ratios(of, "pair off", "advisory"))
        table.add(f"dflock_xact_acquire / pg_advisory_xact_lock, rate, {many}", place, ">= 0.6" if clients == 8 else "",
                  ratios(of, "xact", "advisory xact"))


def idle_worker(table, size, built):
    """What the worker needs to keep many leases alive."""
    with postgresql() as (started, installation):
        lock = Server(started, "--max-locks", "1000000", program=[built.server])
        bench = Bench(started, installation, lock.address, ANY, {"dflockd.max_locks": 2 * size.renewed_holds})
        connection = bench.cluster.connect()
        before_bytes = resident(bench.worker)
        connection.execute(f"SELECT count(dflock_lock('hold-' || i, 0, 33)) FROM generate_series(1, {size.renewed_holds}) i")
        used = []
        for _ in range(size.renewal_rounds):
            before = cpu_s(bench.worker)
            time.sleep(size.renewal_s)
            used.append((cpu_s(bench.worker) - before) / size.renewal_s * 100)
        held = connection.execute("SELECT count(*) FROM dflock_locks WHERE state = 'held'").fetchone()[0]
        if held != size.renewed_holds:
            raise RuntimeError(f"{held} of {size.renewed_holds} locks are still held")
        table.add(f"worker with {size.renewed_holds} holds of 33 s, % of a CPU", ANY, "< 2", used,
                  f"{(resident(bench.worker) - before_bytes) / size.renewed_holds:.0f} bytes of the worker per hold")


# What one of two backends does with a key that both want: microseconds of asking, getting and giving back. The clock is
# read in the backend, within the statement that gets or gives back.
TURNS = """
CREATE FUNCTION turns(count int, pause float8, OUT asked float8, OUT got float8, OUT gave float8)
RETURNS SETOF record LANGUAGE plpgsql AS $$
DECLARE
    t timestamptz;
    ok bool;
BEGIN
    FOR i IN 1..count LOOP
        asked := extract(epoch FROM clock_timestamp()) * 1e6;
        SELECT dflock_acquire('turns', 60), clock_timestamp() INTO STRICT ok, t;
        IF NOT ok THEN RAISE 'not granted'; END IF;
        got := extract(epoch FROM t) * 1e6;
        PERFORM pg_sleep(pause);
        SELECT clock_timestamp(), dflock_release('turns') INTO STRICT t, ok;
        IF NOT ok THEN RAISE 'not given back'; END IF;
        gave := extract(epoch FROM t) * 1e6;
        RETURN NEXT;
    END LOOP;
END $$"""
PAUSE_MS = 2  # for so long a lock is kept; by then the other one waits in line
LINED_UP_US = 1000  # a hand-over counts when the other one has asked for it so long before


def hand_over_us(turns):
    """Median of what lies between giving back and the return of the one who had waited; turns are (who, asked, got, gave)."""
    turns = sorted(turns, key=lambda turn: turn[2])
    took = [then[2] - one[3] for one, then in zip(turns, turns[1:])
            if then[0] != one[0] and then[1] < one[3] - LINED_UP_US]
    if len(took) < len(turns) / 2:
        raise RuntimeError(f"only {len(took)} of {len(turns)} turns were contended")
    return statistics.median(took)


def hand_over(table, size, built):
    """A contended lock: from its release in one backend to the return of the waiter in the next."""
    with postgresql() as (started, installation):
        for place in (ONE, ANY):
            lock = Server(started, program=[built.server], wrapper=place.server)
            bench = Bench(started, installation, lock.address, place)
            bench.cluster.psql(TURNS)
            backends = [bench.cluster.connect() for _ in range(2)]

            def between_backends():
                return hand_over_us([(who, *turn) for who, rows in enumerate(together(
                    backends, f"SELECT asked, got, gave FROM turns({size.turns // 2}, {PAUSE_MS / 1000})")) for turn in rows])

            figures = in_turns(size.turn_rounds, {
                "raw": lambda: place.number([built.clients, "turns", lock.port, size.turns, PAUSE_MS, LINED_UP_US]),
                "backends": between_backends})
            table.add("release of a contended lock to the next backend's return / between two raw clients", place, "<= 2.5",
                      ratios(figures, "backends", "raw"), medians(figures, "µs"))


def together(connections, sql):
    """Sends the statement to all, then collects: [rows of each]."""
    for connection in connections:
        connection.pgconn.send_query_params(sql.encode(), None)
    return [rows_of(connection) for connection in connections]


def rows_of(connection):
    rows = []
    while (result := connection.pgconn.get_result()) is not None:
        if result.error_message:
            raise RuntimeError(result.error_message.decode())
        rows += [[float(result.get_value(row, column)) for column in range(result.nfields)] for row in range(result.ntuples)]
    return rows


# One of many backends: waits until the crowd is let in, then locks and unlocks for that long. The client has no part in it.
BUSY = """
CREATE FUNCTION busy(seconds float8, OUT began float8, OUT ended float8, OUT pairs int) LANGUAGE plpgsql AS $$
DECLARE
    key text := 'busy-' || pg_backend_pid();
    until timestamptz;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(1);
    began := extract(epoch FROM clock_timestamp());
    until := clock_timestamp() + make_interval(secs => seconds);
    pairs := 0;
    WHILE clock_timestamp() < until LOOP
        IF NOT (dflock_acquire(key, 0) AND dflock_release(key)) THEN RAISE 'not granted'; END IF;
        pairs := pairs + 1;
    END LOOP;
    ended := extract(epoch FROM clock_timestamp());
END $$"""


def rate_of_crowd(gate, connections, seconds):
    """Pairs per second of all these sessions, which are connected, and start together."""
    gate.execute("SELECT pg_advisory_lock(1)")
    for connection in connections:
        connection.pgconn.send_query_params(f"SELECT began, ended, pairs FROM busy({seconds})".encode(), None)
    eventually(lambda: gate.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone() == (len(connections),),
               deadline=60, every=0.1, what="all are at the gate")
    gate.execute("SELECT pg_advisory_unlock(1)")
    began, ended, pairs = zip(*(row for connection in connections for row in rows_of(connection)))
    return sum(pairs) / (max(ended) - min(began))


def crowd(table, size, built):
    """One worker and very many active backends."""
    for place in (ONE, ANY):
        with postgresql() as (started, installation):
            lock = Server(started, program=[built.server], wrapper=place.server)
            bench = Bench(started, installation, lock.address, place, {"max_connections": size.crowd + 20})
            bench.cluster.psql(BUSY)
            gate = bench.cluster.connect()
            everybody = [bench.cluster.connect() for _ in range(size.crowd)]
            few, many = "50", str(size.crowd)
            of = in_turns(size.crowd_rounds, {
                few: lambda: rate_of_crowd(gate, everybody[:50], size.crowd_s),
                many: lambda: rate_of_crowd(gate, everybody, size.crowd_s),
                "pipes " + few: lambda: place.number([built.clients, "crowd", few, size.crowd_s]),
                "pipes " + many: lambda: place.number([built.clients, "crowd", many, size.crowd_s])})
            table.add(f"PostgreSQL acquire + release, {many} active backends / {few}, rate", place, ">= 1",
                      ratios(of, many, few), medians(of, "/s"))
            table.add("the same of processes that wake each other by pipes and do nothing else", place, "",
                      ratios(of, "pipes " + many, "pipes " + few))


def builtin(table, size, built):
    """What the worker costs those who do not use it: pgbench's own scripts, with the library preloaded and without."""
    with postgresql() as (started, installation):
        address = Server(started, program=[built.server]).address
        benches = {name: Bench(started, installation, address, ANY, preload=name == "preloaded")
                   for name in ("preloaded", "without", "without too")}
        for bench in benches.values():
            run([installation.program("pgbench"), "-i", "-q", "-s", size.builtin_scale, *bench.where()])
        for script in ("tpcb-like", "select-only"):
            of = in_turns(size.builtin_rounds, {
                name: lambda bench=bench: bench.pgbench(["-b", script], 4, size.builtin_s) for name, bench in benches.items()})
            table.add(f"pgbench {script}, 4 clients, library preloaded / not", ANY, "noise", ratios(of, "preloaded", "without"),
                      medians(of, "tps"))
            table.add("the same, of two clusters without it: the noise", ANY, "", ratios(of, "without too", "without"))


PARTS = {"pairs": pairs, "worker": idle_worker, "hand-over": hand_over, "crowd": crowd, "builtin": builtin}
