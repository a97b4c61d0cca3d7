"""The demo's stage: real shells as persistent sessions, a lock server, and a transcript that checks itself.

Whatever is started here is known by its pid and stopped by it. An answer that is not the expected one ends
the demo: what it shows is what happened.
"""

import os
import pathlib
import re
import select
import shutil
import signal
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
BUILD = ROOT / os.environ.get("BUILD", "build")
PATIENCE_S = 30


class Surprise(Exception):
    """Something answered otherwise than it should."""


def line(text=""):
    print(text, flush=True)


def title(text):
    line(f"\n== {text}\n")


def remark(text):
    line(f"   -- {text}")


def until(what, condition):
    """Waits until condition() is true; raises after PATIENCE_S."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            raise Surprise(f"{what}: not within {PATIENCE_S} s")
        time.sleep(0.02)


class Stage:
    """A temporary directory and everything that runs."""

    def __init__(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="dflockd-demo-"))
        self.directory.chmod(0o755)
        self._running = []
        self._at_end = []

    def start(self, command, **options):
        process = subprocess.Popen([str(c) for c in command], start_new_session=True, **options)
        self._running.append(process)
        return process

    def at_end(self, action):
        """Something to do at the end before the processes are stopped."""
        self._at_end.append(action)

    def close(self):
        """Stops what runs, newest first."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for action in reversed(self._at_end):
            action()
        for process in reversed(self._running):
            if process.poll() is None:
                process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


class LockServer:
    """build/dflockd-local on a free port."""

    def __init__(self, stage):
        self.log_path = stage.directory / "lock-server.log"
        command = [BUILD / "dflockd-local", "--port", "0"]
        line(f"$ {os.path.relpath(command[0])} --port 0 &")
        with open(self.log_path, "wb") as log:
            self.process = stage.start(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        self.port = None
        until("the lock server listens", self._listens)
        self.address = f"127.0.0.1:{self.port}"
        line(f"  it listens on {self.address}")

    def log(self):
        return self.log_path.read_text("utf-8", "replace")

    def _listens(self):
        found = re.search(r"listening.*\bport=(\d+)", self.log())
        if self.process.poll() is not None:
            raise Surprise(f"the lock server ended:\n{self.log()}")
        self.port = int(found.group(1)) if found else None
        return self.port

    def kill(self):
        self.process.kill()
        self.process.wait()


class Shell:
    """One shell process; each statement's answer ends with a marker that the shell prints."""

    def __init__(self, stage, name, command, env, **options):
        self.name = name
        self._process = stage.start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                    env=dict(os.environ, **env), bufsize=0, **options)
        self._marks = 0
        self._waiting = None

    def mark_command(self, mark):
        raise NotImplementedError

    # -------------------------------------------------------------------- shown

    def ask(self, sql, expected, note=""):
        """Shows a statement and its answer, which has to be `expected` (a text, or a pattern for all of it)."""
        line(f"{self.name}> {sql}")
        self._show(self._answer(sql), expected, note)

    def begin(self, sql):
        """Shows a statement that waits."""
        line(f"{self.name}> {sql}")
        remark("waits ...")
        self._send(sql)
        self._waiting = (sql, time.monotonic())

    def end(self, expected, note=""):
        """Shows what the waiting statement answers."""
        sql, began = self._waiting
        answer = self._receive(sql)
        self._waiting = None
        line(f"{self.name}: (after {time.monotonic() - began:.1f} s)")
        self._show(answer, expected, note)

    # ------------------------------------------------------------------ not shown

    def quietly(self, sql):
        return self._answer(sql)

    def ended(self):
        """The exit status of a shell that has given up."""
        return self._process.wait(PATIENCE_S)

    def pid(self):
        return self._process.pid

    # --------------------------------------------------------------------- inside

    def _show(self, answer, expected, note):
        for number, text in enumerate(answer.split("\n") if answer else []):
            line(f"   {text}{f'   -- {note}' if note and number == 0 else ''}")
        good = expected.fullmatch(answer) if isinstance(expected, re.Pattern) else answer == expected
        if not good:
            wanted = expected.pattern if isinstance(expected, re.Pattern) else expected
            raise Surprise(f"{self.name} answered {answer!r}, expected {wanted!r}")

    def _answer(self, sql):
        self._send(sql)
        return self._receive(sql)

    def _send(self, sql):
        self._marks += 1
        try:
            self._process.stdin.write(f"{sql}\n{self.mark_command(self._mark())}\n".encode())
        except BrokenPipeError:
            raise Surprise(f"{self.name} has ended") from None

    def _mark(self):
        return f"--end-{self._marks}--"

    def _receive(self, sql):
        """What the shell printed until the marker, or until it ended."""
        mark, got = self._mark().encode() + b"\n", b""
        end = time.monotonic() + PATIENCE_S
        while mark not in got:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0, end - time.monotonic()))
            if not ready:
                raise Surprise(f"{self.name} did not answer {sql!r} within {PATIENCE_S} s; so far: {got!r}")
            piece = os.read(self._process.stdout.fileno(), 65536)
            if not piece:
                break
            got += piece
        return got.partition(mark)[0].decode("utf-8", "replace").strip("\n")


class Sqlite(Shell):
    """`sqlite3 -bail`, as in a script: it ends at the first error."""

    def __init__(self, stage, name, server, database=":memory:"):
        home = stage.directory / "home"
        home.mkdir(exist_ok=True)  # nobody's .sqliterc
        super().__init__(stage, name, ["sqlite3", "-bail", "-batch", database],
                         {"DFLOCK_SERVERS": server.address, "HOME": str(home)})
        self.quietly(f".load {BUILD}/dflockd")

    def mark_command(self, mark):
        return f".print {mark}"
