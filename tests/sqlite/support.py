"""Databases behind Python's drivers, and scripts, each in a child process; and the sqlite3 shell fed with a script."""

import contextlib
import json
import os
import pathlib
import re
import select
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from lib.paths import SQLITE_EXTENSION
from lib.process import SANITIZER_MARKS, Process, clean_environment
from lib.under import UNDER, patient

HERE = pathlib.Path(__file__).resolve().parent
DRIVERS = ("sqlite3", "pysqlite3", "apsw")


def child_environment(servers=None, driver="sqlite3", env=None):
    extra = {"SQLITE_DRIVER": driver, "SQLITE_EXTENSION_PATH": str(SQLITE_EXTENSION),
             "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]), "PYTHONFAULTHANDLER": "1",
             "PYTHONWARNINGS": "ignore:This process:DeprecationWarning"}  # forks beside our thread are what tests are for
    if servers is not None:
        listed = servers if isinstance(servers, (list, tuple)) else [servers]
        extra["DFLOCK_SERVERS"] = ",".join(str(s) for s in listed)
    if "TSAN_OPTIONS" in os.environ:
        extra["TSAN_OPTIONS"] = os.environ["TSAN_OPTIONS"] + ":die_after_fork=0"  # our children start threads
    extra.update(env or {})
    return extra


class Failed(Exception):
    """A statement failed; .text, .sqlstate, .type and .code say how."""

    def __init__(self, answer):
        super().__init__(answer["error"])
        self.text = answer["error"]
        self.type, self.code = answer["type"], answer["code"]
        found = re.match(r"(?:.*?: )?dflockd ([0-9A-Z]{5}): ", self.text)
        self.sqlstate = found.group(1) if found else None


class Database:
    """One connection in a child process. Arguments are bound: bytes are BLOBs, infinities allowed."""

    def __init__(self, processes, servers=None, driver="sqlite3", path=":memory:", env=None, name=None):
        self.name = name or f"db{len(processes.started)}"
        self.process = Process([*UNDER, sys.executable, HERE / "driver.py", path], processes.directory / self.name, "python",
                               env=child_environment(servers, driver, env), stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE)
        processes.add(self)
        self._buffer = b""
        self.sqlite_version = self._answer(30)["ready"]

    @staticmethod
    def _sent(value):
        if isinstance(value, bytes):
            return {"blob": value.hex()}
        if isinstance(value, float) and value in (float("inf"), float("-inf")):
            return {"float": repr(value)}
        return value

    def _answer(self, deadline):
        deadline = patient(deadline)
        end = time.monotonic() + deadline
        stdout = self.process.popen.stdout
        while b"\n" not in self._buffer:
            left = end - time.monotonic()
            assert left > 0, f"{self.name}: no answer within {deadline} s\n{self.log()}"
            if select.select([stdout], [], [], left)[0]:
                data = os.read(stdout.fileno(), 1 << 16)
                assert data, f"{self.name} ended\n{self.log()}"
                self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def start(self, sql, *args):
        request = json.dumps({"sql": sql, "args": [self._sent(a) for a in args]})
        self.process.popen.stdin.write(request.encode() + b"\n")
        self.process.popen.stdin.flush()

    def finish(self, deadline=30):
        answer = self._answer(deadline)
        if "error" in answer:
            raise Failed(answer)
        return [tuple(row) for row in answer["rows"]]

    def rows(self, sql, *args, deadline=30):
        self.start(sql, *args)
        return self.finish(deadline)

    def value(self, sql, *args, deadline=30):
        ((value,),) = self.rows(sql, *args, deadline=deadline)
        return value

    def fails(self, sql, *args, sqlstate=None, text=None, deadline=30):
        with pytest.raises(Failed) as caught:
            self.rows(sql, *args, deadline=deadline)
        failed = caught.value
        assert sqlstate is None or failed.sqlstate == sqlstate, failed.text
        assert text is None or text in failed.text, failed.text
        return failed

    def busy(self):
        return b"\n" not in self._buffer and not select.select([self.process.popen.stdout], [], [], 0)[0]

    def interrupt(self):
        self.process.signal(signal.SIGUSR1)

    def close(self):
        """sqlite3_close; the process lives on."""
        self.process.popen.stdin.write(b'{"close": true}\n')
        self.process.popen.stdin.flush()
        self.finish()

    @property
    def pid(self):
        return self.process.pid

    def stop(self):
        """By the end of its input, if it is not in the middle of something."""
        popen = self.process.popen
        if self.process.running() and not popen.stdin.closed:
            with contextlib.suppress(OSError):
                popen.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                popen.wait(0.5)
        self.process.stop()

    def log(self):
        return self.process.log()


class Script:
    """A running child with a Python script; prints go to .lines()."""

    def __init__(self, processes, text, servers=None, driver="sqlite3", env=None, name=None, wrapper=(), args=()):
        self.name = name or f"script{len(processes.started)}"
        self.directory = processes.directory / self.name
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / "script.py"
        path.write_text("from driver import *\nimport json, os, signal, sys, threading, time\n" + textwrap.dedent(text))
        self.process = processes.run([*(wrapper or UNDER), sys.executable, path, *args], self.name,
                                     env=child_environment(servers, driver, env), cwd=self.directory)

    @property
    def pid(self):
        return self.process.pid

    def running(self):
        return self.process.running()

    def log(self):
        return self.process.log()

    def lines(self):
        return self.log().splitlines()

    def said(self, text):
        return text in self.lines()

    def wait(self, deadline=60, status=0):
        """Waits for its end; its exit status must be this one. Returns what it printed."""
        found = self.process.wait(deadline)
        assert found == status, f"{self.name} ended with {found}:\n{self.log()}"
        assert not any(mark in self.log() for mark in SANITIZER_MARKS), self.log()
        return self.lines()


def run_shell(commands, servers=None, env=None, bail=True, database=":memory:", deadline=60, args=()):
    """A sqlite3 shell that reads these lines from a pipe, as a script does: (exit status, stdout, stderr)."""
    done = subprocess.run([*UNDER, "sqlite3", *(["-bail"] if bail else []), "-batch", *args, str(database)],
                          input=f".load {SQLITE_EXTENSION}\n" + textwrap.dedent(commands), text=True,
                          capture_output=True, env=clean_environment(child_environment(servers, env=env)),
                          timeout=patient(deadline))
    return done.returncode, done.stdout, done.stderr
