"""The engine in a process of its own, driven through tests/fake/driver."""

import json
import os
import queue
import subprocess
import threading
import time
from types import SimpleNamespace

from lib.eventually import NotInTime
from lib.paths import BUILD
from lib.process import SANITIZER_MARKS, clean_environment

DRIVER = os.environ.get("DFLOCKD_DRIVER", BUILD / "tests" / "fake" / "driver")
DEADLINE_S = 30.0


class Refused(AssertionError):
    """A call did not even start: .status, .sqlstate, .text."""

    def __init__(self, answer):
        super().__init__(f"{answer.status} {answer.sqlstate}: {answer.text}")
        self.status, self.sqlstate, self.text = answer.status, answer.sqlstate, answer.text


class Engine:
    """One client with one session named `a` to begin with.

    Settings have small times: what a test does not set itself must not make it wait.
    """

    name = "engine"

    def __init__(self, processes, servers, wait="epoll", sessions="a", **settings):
        env = {k: str(settings.pop(k)) for k in list(settings) if k.startswith("DFLOCK")}
        self._processes = processes
        self._transcript = []
        self._done = {}
        self._changed = threading.Condition()
        self._replies = queue.Queue()
        self._ids = 0
        self.logged = []
        self._errors = open(processes.directory / f"engine{len(processes.started)}.err", "w+b")
        self.popen = subprocess.Popen([str(DRIVER), wait], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                      stderr=self._errors, env=clean_environment(env), text=True, bufsize=1)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        processes.add(self)
        addresses = servers if isinstance(servers, (list, tuple)) else [servers]
        settings = {"servers": ",".join(str(s) for s in addresses), **settings}
        self.must("client", *(f"{k}={v}" for k, v in settings.items()))
        for session in sessions.split():
            self.must("session", session)

    # --------------------------------------------------------------- commands

    def command(self, *words):
        """Sends a command and returns its reply."""
        line = " ".join(str(w) for w in words)
        self._transcript.append(f"{time.monotonic():9.3f} > {line}")
        try:
            self.popen.stdin.write(line + "\n")
        except OSError:
            pass  # it has ended; the missing reply says so
        try:
            return self._replies.get(timeout=DEADLINE_S)
        except queue.Empty:
            raise NotInTime(f"no reply to {line}; status {self.popen.poll()}\n{self.log()}") from None

    def must(self, *words):
        answer = self.command(*words)
        if answer.status != "ok":
            raise Refused(answer)
        return answer

    def set(self, **settings):
        return self.must("set", *(f"{k}={v}" for k, v in settings.items()))

    def start(self, operation, session="a", **arguments):
        """Begins a call and returns its id; Refused when it does not begin."""
        self._ids += 1
        call = f"c{self._ids}"
        self.must("start", call, session, operation, *(f"{k}={v}" for k, v in arguments.items()))
        return call

    def done(self, call):
        with self._changed:
            return call in self._done

    def finish(self, call, deadline=DEADLINE_S):
        """The end of a call: status, sqlstate, text, ms, seconds, and the hold's fields if there is one."""
        with self._changed:
            self._changed.wait_for(lambda: call in self._done or not self._reader.is_alive(), deadline)
            if call not in self._done:
                raise NotInTime(f"{call} did not end within {deadline} s\n{self.log()}")
            return self._done[call]

    def run(self, operation, session="a", deadline=DEADLINE_S, **arguments):
        """A call from its start to its end, whatever that is; a call that does not begin ends with its refusal."""
        try:
            return self.finish(self.start(operation, session, **arguments), deadline)
        except Refused as refused:
            return SimpleNamespace(status=refused.status, sqlstate=refused.sqlstate, text=refused.text, ms=0)

    def ok(self, operation, session="a", **arguments):
        answer = self.run(operation, session, **arguments)
        assert answer.status == "ok", f"{operation} {arguments}: {answer}\n{self.log()}"
        return answer

    def fails(self, operation, status, session="a", text=None, **arguments):
        answer = self.run(operation, session, **arguments)
        assert answer.status == status, f"{operation} {arguments}: {answer}\n{self.log()}"
        assert text is None or text in answer.text, f"expected {text!r}: {answer}"
        return answer

    def cancel(self, call):
        return self.must("cancel", call)

    def is_held(self, key="k", session="a"):
        return bool(self.command("held", session, key).yes)

    def is_held_later(self, seconds, key="k", session="a"):
        """The same after a time in which the host was busy elsewhere and nothing of the engine ran."""
        return bool(self.command("held_later", session, key, seconds).yes)

    def assert_held(self, key="k", session="a"):
        return self.command("assert", session, key)

    def leave(self, key="k", session="a"):
        """dflock_cancel."""
        return bool(self.command("leave", session, key).yes)

    def give(self, key="k", session="a"):
        return bool(self.command("give", session, key).yes)

    def holds(self, session="a"):
        return [SimpleNamespace(**h) for h in self.command("info", session).holds]

    def hold(self, key="k", session="a"):
        """The only hold or place of that key."""
        found = [h for h in self.holds(session) if h.key == key]
        assert len(found) == 1, f"holds of {key}: {found}\n{self.log()}"
        return found[0]

    def servers(self):
        return [SimpleNamespace(**s) for s in self.command("servers").servers]

    def busy(self):
        return self.command("busy")

    # ---------------------------------------------------------------- process

    def log(self):
        self._errors.flush()
        with open(self._errors.name, "rb") as errors:
            return "\n".join([*self._transcript[-200:], errors.read().decode("utf-8", "replace")])

    def stop(self):
        """Quits in order, so that a leak checker has its say."""
        for thing in self._processes.started:
            if hasattr(thing, "relax"):
                thing.relax()
        if self.popen.poll() is None:
            try:
                self.popen.stdin.write("quit\n")
            except OSError:
                pass
            try:
                self.popen.wait(10)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait(10)
                raise AssertionError(f"the driver does not quit\n{self.log()}") from None
        self._reader.join(10)
        self.popen.stdin.close()
        self.popen.stdout.close()
        text = self.log()
        self._errors.close()
        for mark in SANITIZER_MARKS:
            assert mark not in text, text
        assert self.popen.returncode == 0, f"the driver ended with {self.popen.returncode}\n{text}"

    def _read(self):
        for line in self.popen.stdout:
            self._transcript.append(f"{time.monotonic():9.3f} < {line.rstrip()}")
            event = SimpleNamespace(**json.loads(line))
            if event.event == "reply":
                event.__dict__.setdefault("status", "ok")
                self._replies.put(event)
            elif event.event == "log":
                self.logged.append(event.text)
            else:
                with self._changed:
                    self._done[event.id] = event
                    self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()
