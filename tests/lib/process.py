"""Child processes that are always stopped, by their own pid, and whose output a failed test shows.

Owns the registry of what a test has started (`Processes`). Never signals anything it did not start.
"""

import os
import pathlib
import signal
import subprocess
import time

from lib.eventually import eventually
from lib.under import patient

SANITIZER_MARKS = ("ERROR: AddressSanitizer", "ERROR: LeakSanitizer", "WARNING: ThreadSanitizer", "runtime error:")


def clean_environment(extra=None):
    """The environment without anything that would configure a server or a client behind the test's back."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("DFLOCK", "PG"))}
    env.update(extra or {})
    return env


def _stat(pid):
    """What the kernel says of a process, from its state on."""
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def cpu_s(pid):
    """Processor time used so far, in seconds."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def stands_still(pid):
    """SIGSTOP has arrived."""
    return _stat(pid)[0] in "Tt"


def is_idle(pid, seconds=0.5):
    """Next to no processor time is used while nothing happens."""
    before = cpu_s(pid)
    time.sleep(seconds)
    return cpu_s(pid) - before <= 0.2 * seconds


def descriptors(pid):
    """How many file descriptors it has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident(pid):
    """Resident memory in bytes."""
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def check_sanitizers(name, text):
    """No report of a sanitizer in what a program has written."""
    for mark in SANITIZER_MARKS:
        assert mark not in text, f"{name}: {mark}\n{text[text.index(mark):][:6000]}"


class Process:
    """One child: started at once, output in files of its own, stopped by `stop` or when its registry closes."""

    def __init__(self, args, directory, name, env=None, stdin=subprocess.DEVNULL, stdout=None, cwd=None, user=None):
        self.args = [str(a) for a in args]
        self.name = name
        self.directory = pathlib.Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.log_path = self.directory / f"{name}.log"
        self.expected_exit = None
        with open(self.log_path, "ab") as log:
            self._start_of_log = log.tell()
            self.popen = subprocess.Popen(
                self.args, env=clean_environment(env), stdin=stdin, stdout=log if stdout is None else stdout,
                stderr=log, cwd=cwd or self.directory, start_new_session=True, user=user)

    @property
    def pid(self):
        return self.popen.pid

    def running(self):
        return self.popen.poll() is None

    def log(self):
        """What this process has written so far (not its predecessors under the same name)."""
        with open(self.log_path, "rb") as log:
            log.seek(self._start_of_log)
            return log.read().decode("utf-8", "replace")

    def signal(self, number):
        self.popen.send_signal(number)

    def pause(self):
        """SIGSTOP, and waits until the kernel says that it has stopped."""
        self.signal(signal.SIGSTOP)
        eventually(lambda: stands_still(self.pid), what=f"{self.name} is stopped")

    def resume(self):
        self.signal(signal.SIGCONT)

    def kill(self):
        """kill -9, and waits for the end."""
        if self.running():
            self.signal(signal.SIGKILL)
        return self.popen.wait(patient(20))

    def terminate(self, deadline=20):
        """SIGTERM, and waits for the end; returns the exit status."""
        if self.running():
            self.signal(signal.SIGTERM)
        return self.wait(deadline)

    def wait(self, deadline=20):
        try:
            return self.popen.wait(patient(deadline))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} (pid {self.pid}) did not end within {patient(deadline)} s") from None

    def stop(self):
        """Ends it whatever state it is in. A sanitizer's report in its output is an error of the test."""
        if self.running():
            self.resume()
            self.signal(signal.SIGTERM)
            try:
                self.popen.wait(patient(3))
            except subprocess.TimeoutExpired:
                self.kill()
        for stream in (self.popen.stdin, self.popen.stdout):
            if stream:
                stream.close()
        self.check_sanitizers()

    def check_sanitizers(self):
        check_sanitizers(self.name, self.log())


class Processes:
    """Whatever has a `stop()` and was started for one test; stopped in reverse order, all of them, whatever fails."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.started = []

    def add(self, thing):
        self.started.append(thing)
        return thing

    def run(self, args, name, **kw):
        return self.add(Process(args, self.directory, name, **kw))

    def close(self):
        errors = []
        while self.started:
            try:
                self.started.pop().stop()
            except Exception as error:  # the next one must be stopped all the same
                errors.append(error)
        if errors:
            raise errors[0]

    def logs(self):
        """(name, text) of everything that keeps a log."""
        for thing in self.started:
            if hasattr(thing, "log"):
                yield getattr(thing, "name", type(thing).__name__), thing.log()
