"""Processes of a cluster that stand still, so that the others may go on at a moment of the test's choice."""

import os
import shutil
import signal

from lib.eventually import eventually
from lib.paths import BUILD
from lib.process import stands_still
from pg.waiting import Background

SHIM = BUILD / "tests" / "pg" / "standstill.so"


def stop(pid):
    """Returns when the process stands still."""
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: stands_still(pid))


def go_on(pid):
    os.kill(pid, signal.SIGCONT)


def stop_worker(pg, watcher):
    """The worker, standing still while it had nothing to do; its pid."""
    pid = pg.worker_pid()
    eventually(lambda: watcher.rows("SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Extension'", pid))
    stop(pid)
    return pid


def asks(session, watcher, sql):
    """The statement, whose request is made while the worker stands still; the session stands still with it."""
    asking = Background(session, sql)
    eventually(lambda: watcher.rows("SELECT 1 FROM pg_stat_activity WHERE pid = %s AND state = 'active' "
                                    "AND wait_event_type = 'Extension'", session.pid))
    stop(session.pid)
    return asking


class Moments:
    """Of a cluster that is started again with preload/standstill.c in it: its processes stop in a call of the library."""

    def __init__(self, pg):
        self._folder = pg.own_directory("standstill")
        self._pg = pg
        shim = pg.directory / SHIM.name
        shutil.copy(SHIM, shim)
        before = os.environ.get("LD_PRELOAD")
        pg.environment = {"LD_PRELOAD": f"{before}:{shim}" if before else str(shim), "STANDSTILL": str(self._folder)}
        pg.restart()

    def stop_in(self, pid, function, nth=1):
        """The process will stand still in its nth call of the function."""
        self._pg.private_file(f"{self._folder.name}/next", str(nth)).rename(self._at(pid, function))

    def stopped_in(self, pid, function):
        return not self._at(pid, function).exists() and stands_still(pid)

    def forget(self, pid, function):
        """It was not called as often."""
        self._at(pid, function).unlink()

    def _at(self, pid, function):
        return self._folder / f"{pid}.{function}"
