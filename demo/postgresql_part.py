"""The demo in PostgreSQL: a private server as somebody without rights, two psql sessions, and a sqlite3 shell."""

import os
import pwd
import re
import shutil
import subprocess

from stage import BUILD, ROOT, Shell, Sqlite, Surprise, line, remark, title, until

MODULE = BUILD / "pg"


def config(option):
    return subprocess.check_output([os.environ.get("PG_CONFIG", "pg_config"), option], text=True).strip()


def possible():
    """Built, and there is a PostgreSQL to run it in."""
    return (MODULE / "dflockd.so").exists() and shutil.which(os.environ.get("PG_CONFIG", "pg_config")) is not None


class Postgres:
    """A cluster in the demo's directory, on a Unix socket. PostgreSQL refuses to run as root."""

    def __init__(self, stage, server):
        self._user = self._somebody()
        self._options = {}
        self.directory = stage.directory / "postgresql"
        self.directory.mkdir()
        if self._user:
            os.chown(self.directory, self._user.pw_uid, self._user.pw_gid)
            self._options = {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}
        programs = subprocess.check_output(
            [ROOT / "tools" / "pg-tree", os.environ.get("PG_CONFIG", "pg_config"), MODULE, stage.directory / "tree"],
            text=True).strip()
        self._psql = shutil.which("psql", path=config("--bindir") + os.pathsep + os.environ["PATH"])
        self._initdb(programs)
        self._start(stage, programs, server)

    @staticmethod
    def _somebody():
        if os.getuid() != 0:
            return None
        for name in ("postgres", "nobody"):
            try:
                return pwd.getpwnam(name)
            except KeyError:
                continue
        raise Surprise("no user to run PostgreSQL as: neither postgres nor nobody")

    def _initdb(self, programs):
        line(f"$ initdb pgdata          # as {self._user.pw_name if self._user else 'you'}, in a temporary directory")
        done = subprocess.run([f"{programs}/initdb", "-D", self.directory / "data", "-A", "trust", "-U", "postgres",
                               "-E", "UTF8", "--locale=C", "--no-sync"], capture_output=True, text=True,
                              cwd=self.directory, stdin=subprocess.DEVNULL, **self._options)
        if done.returncode != 0:
            raise Surprise(f"initdb: {done.stdout}{done.stderr}")

    def _start(self, stage, programs, server):
        settings = {"shared_preload_libraries": "dflockd", "dflockd.servers": server.address,
                    "listen_addresses": "", "unix_socket_directories": str(self.directory), "fsync": "off"}
        command = [f"{programs}/postgres", "-D", str(self.directory / "data")]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        line(f"$ postgres -D pgdata -c shared_preload_libraries=dflockd -c dflockd.servers={server.address} &")
        log = stage.directory / "postgresql.log"
        with open(log, "wb") as out:
            process = stage.start(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                                  cwd=self.directory, **self._options)

        def ready():
            if process.poll() is not None:
                raise Surprise("PostgreSQL ended")
            return "ready to accept connections" in log.read_text("utf-8", "replace")

        until("PostgreSQL is ready", ready)

    def psql(self, stage, name):
        return Psql(stage, name, [self._psql, "-X", "-q", "-A", "-t", "-h", str(self.directory), "-U", "postgres",
                                  "-d", "postgres"], {"PGOPTIONS": "", "PGCLIENTENCODING": "UTF8"})


class Psql(Shell):
    def mark_command(self, mark):
        # A query's rows are written out at once; \echo's might wait in a buffer.
        return f"\\echo {mark}\n\\! true"


def show(stage, server):
    """Returns the cluster; the lock server still runs."""
    title("The same locks in PostgreSQL")
    postgres = Postgres(stage, server)
    p, q = postgres.psql(stage, "P"), postgres.psql(stage, "Q")
    line("$ psql                         # two of them: P and Q")
    p.ask("CREATE EXTENSION dflockd;", "")
    contention(p, q)
    transactions(p, q)
    cancel(p, q)
    with_sqlite(p, Sqlite(stage, "S", server))
    return p


def contention(p, q):
    p.ask("SELECT dflock_acquire('my-key', 0);", "t")
    q.ask("SELECT dflock_acquire('my-key', 0);", "f")
    p.ask("SELECT dflock_release('my-key');", "t")
    q.ask("SELECT dflock_acquire('my-key', 0);", "t")
    q.ask("SELECT dflock_release('my-key');", "t")


def transactions(p, q):
    title("Transaction locks: given back by COMMIT, and by ROLLBACK TO SAVEPOINT")
    p.ask("BEGIN;", "")
    p.ask("SELECT dflock_xact_acquire('invoice:42', 0);", "t")
    p.ask("SAVEPOINT s;", "")
    p.ask("SELECT dflock_xact_acquire('invoice:43', 0);", "t")
    q.ask("SELECT dflock_acquire('invoice:43', 0);", "f")
    p.ask("ROLLBACK TO SAVEPOINT s;", "")
    q.ask("SELECT dflock_acquire('invoice:43', 0);", "t", "the savepoint's lock is free")
    q.ask("SELECT dflock_acquire('invoice:42', 0);", "f", "the transaction's is not")
    p.ask("COMMIT;", "")
    q.ask("SELECT dflock_acquire('invoice:42', 0);", "t")


def cancel(p, q):
    title("A wait cancelled by statement_timeout; Q keeps what it has")
    p.ask("SET statement_timeout = '1s';", "")
    p.begin("SELECT dflock_lock('invoice:42', 'infinity');")
    p.end(re.compile("ERROR:  canceling statement due to statement timeout"))
    p.ask("RESET statement_timeout;", "")
    q.ask("SELECT dflock_assert_held('invoice:42', true);", "t")
    q.ask("SELECT dflock_release_all();", "2")


def with_sqlite(p, s):
    title("psql and sqlite3 contend for one key")
    p.ask("SELECT dflock_lock('shared-key') > 0;", "t")
    s.ask("SELECT dflock_acquire('shared-key', 0);", "0", "this is sqlite3: PostgreSQL has it")
    s.begin("SELECT dflock_acquire('shared-key', 20);")
    question = "SELECT waiters FROM dflock_server_locks WHERE key = 'shared-key';"
    until("sqlite3 in line", lambda: p.quietly(question) == "1")
    p.ask("SELECT dflock_release('shared-key');", "t")
    s.end("1")
    p.ask("SELECT dflock_acquire('shared-key', 0);", "f", "now sqlite3 has it")
    s.ask("SELECT dflock_release('shared-key');", "1")


def begin_transaction(p):
    """Before the lock server dies: a transaction that counts on its lock."""
    title("A transaction that counts on its lock")
    p.ask("CREATE TABLE ledger(entry text);", "")
    p.ask("BEGIN;", "")
    p.ask("SELECT dflock_xact_lock('ledger') > 0;", "t")
    p.ask("INSERT INTO ledger VALUES ('paid');", "")


def refused_commit(p):
    """After it: COMMIT does not pretend."""
    until("the worker has noticed", lambda: p.quietly("SELECT dflock_is_held('ledger');") == "f")
    p.ask("COMMIT;", re.compile(r"(?s)ERROR:  .*"))
    p.ask("\\echo :LAST_ERROR_SQLSTATE", "40001")
    p.ask("SELECT count(*) FROM ledger;", "0", "nothing was written")
    remark("the transaction can be done again when a lock server is back")
