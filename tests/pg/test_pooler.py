"""Behind pgbouncer, in session and in transaction mode: what is right, and what the documentation warns of."""

import shutil

import psycopg
import pytest

from lib.eventually import eventually
from pg.cluster import unprivileged
from pg.waiting import await_free, locks


class Pooler:
    def __init__(self, processes, cluster, mode, reset="DISCARD ALL", size=1):
        self.cluster = cluster
        config = cluster.private_file(f"pgbouncer-{mode}.ini", "\n".join([
            "[databases]", f"* = host={cluster.directory} port={cluster.port}", "[pgbouncer]", "listen_addr =",
            f"unix_socket_dir = {cluster.directory}", "listen_port = 6432", "auth_type = any",
            f"pool_mode = {mode}", f"default_pool_size = {size}", f"server_reset_query = {reset}",
            "ignore_startup_parameters = extra_float_digits", ""]).replace(
                "* = host", "postgres = user=postgres dbname=postgres host"))
        program = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
        self.process = processes.run([program, str(config)], f"pgbouncer-{mode}", user=unprivileged().pw_uid)
        eventually(self._answers, what=f"pgbouncer\n{self.process.log()}")

    def dsn(self):
        return f"host={self.cluster.directory} port=6432 dbname=postgres user=postgres"

    def connect(self):
        connection = psycopg.connect(self.dsn(), autocommit=True, prepare_threshold=None)
        self.cluster.connections.append(connection)
        return connection

    def _answers(self):
        assert self.process.running(), self.process.log()
        try:
            with psycopg.connect(self.dsn(), autocommit=True) as connection:
                return connection.execute("SELECT 1").fetchone()
        except psycopg.OperationalError:
            return False


def one(connection, sql):
    return connection.execute(sql).fetchone()[0]


def test_session_mode_gives_locks_back_when_the_client_leaves(pg, server, processes, watcher):
    pooler = Pooler(processes, pg, "session")
    first = pooler.connect()
    assert one(first, "SELECT dflock_acquire('k')")
    assert one(first, "SELECT dflock_enqueue('q')") == "acquired"
    backend = one(first, "SELECT pg_backend_pid()")
    first.close()
    await_free(server)
    second = pooler.connect()
    assert one(second, "SELECT pg_backend_pid()") == backend  # the same session of PostgreSQL, by DISCARD ALL made clean
    assert one(second, "SELECT dflock_is_held('k')") is False
    assert one(second, "SELECT dflock_acquire('k', 0)")


def test_session_mode_with_RESET_ALL(pg, server, processes):
    pooler = Pooler(processes, pg, "session", reset="RESET ALL")
    first = pooler.connect()
    assert one(first, "SELECT dflock_acquire('k')")
    first.close()
    await_free(server)


def test_transaction_mode_xact_locks_are_right(pg, server, processes, watcher):
    pooler = Pooler(processes, pg, "transaction", size=2)
    first, second = pooler.connect(), pooler.connect()
    with first.transaction():
        assert one(first, "SELECT dflock_xact_acquire('k')")
        with second.transaction():
            assert one(second, "SELECT dflock_xact_acquire('k', 0)") is False
    with second.transaction():
        assert one(second, "SELECT dflock_xact_acquire('k', 0)")
    eventually(lambda: locks(watcher) == [])
    with pytest.raises(ZeroDivisionError):
        with first.transaction():
            assert one(first, "SELECT dflock_xact_acquire('k', 0)")
            raise ZeroDivisionError
    eventually(lambda: locks(watcher) == [])
    await_free(server)


def test_transaction_mode_a_session_lock_may_be_somebody_elses(pg, server, processes, watcher):
    """One session of PostgreSQL serves two clients: a session lock of one is the other's. Never silently: the second
    to ask is refused, not granted."""
    pooler = Pooler(processes, pg, "transaction", size=1)
    first, second = pooler.connect(), pooler.connect()
    assert one(first, "SELECT dflock_acquire('k')")
    with pytest.raises(psycopg.Error) as raised:
        one(second, "SELECT dflock_acquire('k')")
    assert raised.value.sqlstate == "55006"
    assert one(second, "SELECT dflock_release('k')")
