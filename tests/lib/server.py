"""Lock servers as child processes: the bundled one, any compatible program, and dflockd's first one in Python."""

import os
import re
import signal
import sys

from lib import wire
from lib.eventually import eventually
from lib.paths import DFLOCKD_LOCAL
from lib.process import Process


class StartFailed(RuntimeError):
    """The server ended before it listened."""

    def __init__(self, name, status, log):
        super().__init__(f"{name} ended with {status} before it listened:\n{log}")
        self.status = status
        self.log = log


class Server:
    """A running lock server on a port of its own.

    `flags` are the command line after the program. The port is 0 at first and read back, the same at every restart.
    """

    program = [DFLOCKD_LOCAL]
    listening = re.compile(r'msg="?listening"? .*?host="?([^"\s]+)"? port=(?P<port>\d+)')

    def __init__(self, processes, *flags, env=None, host="127.0.0.1", port=0, name=None, program=None, wrapper=()):
        if program is not None:
            self.program = program
        self.name = name or f"server{len(processes.started)}"
        self.directory = processes.directory / self.name
        self.flags = list(flags)
        self.env = env
        self.host, self.port = host, port
        self.wrapper = list(wrapper)
        self.process = None
        processes.add(self)
        self.start()

    @property
    def address(self):
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self):
        return self.address

    @property
    def pid(self):
        return self.process.pid

    def command(self):
        return [*self.wrapper, *self.program, "--host", self.host, "--port", self.port, *self.flags]

    def start(self, *flags):
        """Starts it, with `flags` in place of the old ones if given, and waits until it listens."""
        if flags:
            self.flags = list(flags)
        self.process = Process(self.command(), self.directory, "server", env=self.env)
        self.port = eventually(self._port, what=f"{self.name} listens")

    def _port(self):
        found = self.listening.search(self.process.log())
        if found:
            return int(found.group("port") or 0)
        if not self.process.running():
            raise StartFailed(self.name, self.process.popen.returncode, self.process.log()) from None
        return None

    def log(self):
        return self.process.log_path.read_text("utf-8", "replace") if self.process else ""

    def running(self):
        return self.process.running()

    def pause(self):
        self.process.pause()

    def resume(self):
        self.process.resume()

    def kill(self):
        return self.process.kill()

    def terminate(self, deadline=20):
        return self.process.terminate(deadline)

    def hang_up(self):
        """SIGHUP: certificates are read again."""
        self.process.signal(signal.SIGHUP)

    def restart(self, *flags):
        """kill -9, then the same program on the same port; has forgotten everything."""
        self.kill()
        self.start(*flags)

    def stop(self):
        if self.process:
            self.process.stop()

    def connect(self, **kw):
        return wire.Wire(self.address, **kw)

    def stats(self, **kw):
        return wire.stats(self.address, **kw)

    def waiters(self, key, **kw):
        return wire.waiters(self.address, key, **kw)

    def holders(self, key, **kw):
        return wire.holders(self.address, key, **kw)

    def await_waiters(self, key, count, **kw):
        """Returns when exactly `count` wait for the key."""
        eventually(lambda: self.waiters(key, **kw) == count, what=f"{count} waiters for {key}")

    def await_holders(self, key, count, **kw):
        eventually(lambda: self.holders(key, **kw) == count, what=f"{count} holders of {key}")


class ForeignServer(Server):
    """Another implementation with dflockd's command line. It may log the port as it was asked for, so with 0 the
    kernel's table of sockets is asked."""

    listening = re.compile(r"msg=\"?listening\b(?P<port>)")

    def _port(self):
        if super()._port() is None:
            return None
        return self.port or listening_port(self.pid)


class FirstServer(Server):
    """PyPI's `dflockd` 0.5.0: locks only, in Python. The package must be importable."""

    program = [sys.executable, "-c", "from dflockd.server import cli; cli()"]
    listening = re.compile(r"listening on \('([^']+)', (?P<port>\d+)")


def listening_port(pid):
    """The one TCP port on which a process of ours listens, from /proc."""
    inodes = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with open(table) as lines:
            for line in list(lines)[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[9] in inodes:
                    return int(fields[1].rpartition(":")[2], 16)
    return None
