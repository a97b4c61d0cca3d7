"""Statements that block, run in threads, and ways to see from outside how far they have come."""

import threading

import psycopg

from lib.eventually import DEADLINE_S, eventually
from lib.under import patient


class Background:
    """A statement of a session running in its own thread."""

    def __init__(self, session, sql, *args):
        self.session = session
        self.sql = sql
        self.answer = self.error = None
        self._thread = threading.Thread(target=self._run, args=(sql, args), daemon=True)
        self._thread.start()

    def _run(self, sql, args):
        try:
            cursor = self.session.connection.execute(sql, args or None)
            self.answer = cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            self.error = error

    def busy(self):
        return self._thread.is_alive()

    def finish(self, deadline=DEADLINE_S):
        """Waits for its end; raises what it raised."""
        self._thread.join(patient(deadline))
        assert not self.busy(), f"still running: {self.sql}"
        if self.error:
            raise self.error
        return self.answer

    def failure(self, deadline=DEADLINE_S):
        """Waits for its end, which must be an error; returns that."""
        self._thread.join(patient(deadline))
        assert not self.busy(), f"still running: {self.sql}"
        assert self.error, f"{self.sql} answered {self.answer}"
        return self.error


def await_queued(watcher, *pids, deadline=DEADLINE_S):
    """Returns when each of these backends waits in line for a lock, as the view says."""
    def all_queued():
        seen = watcher.rows("SELECT pid FROM dflock_locks WHERE state = 'queued'")
        return {pid for (pid,) in seen} >= set(pids)
    eventually(all_queued, deadline=deadline, what=f"{pids} are queued")


def locks(watcher, where="true", columns="key, state"):
    return watcher.rows(f"SELECT {columns} FROM dflock_locks WHERE state <> 'releasing' AND ({where}) ORDER BY key, pid")


def await_free(server, deadline=DEADLINE_S):
    """Returns when the lock server itself has nothing held or awaited."""
    def empty():
        stats = server.stats()
        return not stats["locks"] and not stats["semaphores"]
    eventually(empty, deadline=deadline, what="the server's table is empty")
