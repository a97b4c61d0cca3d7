"""What the parts of the bench share: sizes, places, rounds in turns, and the table of figures."""

import contextlib
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

from lib.paths import BUILD, DFLOCKD_LOCAL, ROOT, SQLITE_EXTENSION
from lib.process import Processes, clean_environment
from lib.server import Server

PYTHON = ROOT / os.environ.get("VENV", "build/venv") / "bin" / "python"
CPUS = sorted(os.sched_getaffinity(0))
LIMIT_S = 600  # a measurement that takes longer hangs


class Size:
    rounds, pairs, official_pairs, load_s = 9, 8000, 400, 1.0
    many_holds, many_rounds = 100_000, 5
    memory_keys = 1_000_000
    renewed_holds, renewal_s, renewal_rounds = 10_000, 35, 2
    pgbench_rounds, pgbench_s = 11, 1
    turns, turn_rounds = 300, 15
    crowd, crowd_rounds, crowd_s = 500, 5, 2
    builtin_scale, builtin_rounds, builtin_s = 4, 13, 1


class Built:
    """Copies of what is measured: a build meanwhile changes nothing."""

    def __init__(self, folder):
        programs = BUILD / "tests" / "bench"
        self.server, self.extension, self.clients, self.echo = (
            shutil.copy2(path, folder) for path in (DFLOCKD_LOCAL, SQLITE_EXTENSION, programs / "clients",
                                                    programs / "echo_server"))


class Quick(Size):
    rounds, pairs, official_pairs, load_s = 3, 400, 40, 0.1
    many_holds, many_rounds = 1000, 2
    memory_keys = 10_000
    renewed_holds, renewal_s, renewal_rounds = 500, 3, 1
    pgbench_rounds, pgbench_s = 2, 1
    turns, turn_rounds = 40, 2
    crowd, crowd_rounds, crowd_s = 100, 2, 1
    builtin_scale, builtin_rounds, builtin_s = 1, 2, 1


class Echo(Server):
    """The echo server of echo_server.c; takes its port, and maybe a word, as its only arguments."""

    def command(self):
        return [*self.wrapper, *self.program, self.port, *self.flags]


class Table:
    """What was measured, a row each: figure = median of the rounds, noise = the smallest and the largest of them."""

    def __init__(self):
        self.rows = []

    def add(self, what, place, aim, rounds, note=""):
        figures = sorted(rounds)
        self.rows.append((what, place.name, aim, f"{statistics.median(figures):.3g}",
                          f"{figures[0]:.3g} – {figures[-1]:.3g}", note))
        print("  " + " · ".join(filter(None, self.rows[-1])), file=sys.stderr, flush=True)

    def show(self):
        print("\n| measured | CPUs | aim | figure | rounds: least – most | medians |")
        print("|---|---|---|---|---|---|")
        for row in self.rows:
            print("| " + " | ".join(row) + " |")


def in_turns(rounds, measurements):
    """{name: function} -> {name: figures}. Every round calls each once, in alternating order."""
    figures = {name: [] for name in measurements}
    for i in range(rounds):
        for name in list(measurements)[:: -1 if i % 2 else 1]:
            figures[name].append(measurements[name]())
    return figures


def ratios(figures, what, by):
    return [a / b for a, b in zip(figures[what], figures[by])]


def medians(figures, unit):
    return ", ".join(f"{name} {statistics.median(of):.4g}" for name, of in figures.items()) + f" {unit}"


@contextlib.contextmanager
def processes():
    with tempfile.TemporaryDirectory(prefix="dflockd-bench-") as directory:
        started = Processes(pathlib.Path(directory))
        try:
            yield started
        finally:
            started.close()


def on(*cpus):
    return ["taskset", "-c", ",".join(map(str, cpus))]


class Place:
    """Where client and server run: the CPUs column, and what both are started with."""

    def __init__(self, name, server, client):
        self.name, self.server, self.client = name, server, client

    def cpus(self):
        return {CPUS[-1]} if self.server else set(CPUS)

    def number(self, command, env=None):
        """Runs a measuring program and returns the number it prints."""
        command = [*self.client, *map(str, command)]
        done = subprocess.run(command, env=clean_environment(env), capture_output=True, text=True, timeout=LIMIT_S,
                              check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stderr}")
        return float(done.stdout)


ONE = Place("one", on(CPUS[-1]), on(CPUS[-1]))
TWO = Place("one each", on(CPUS[-1]), on(CPUS[0]))
ANY = Place("any", [], [])
