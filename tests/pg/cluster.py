"""Private PostgreSQL clusters: a copy of an installation with the extension in it, and servers that run from it.

Nothing is installed into the system. Servers run as an unprivileged user, listen on a Unix socket in a directory of
their own, and are always stopped.
"""

import contextlib
import os
import pathlib
import pwd
import re
import shutil
import signal
import subprocess
import tempfile

import psycopg

from lib.eventually import eventually
from lib.paths import BUILD, ROOT
from lib.process import Process, check_sanitizers, clean_environment
from lib.under import UNDER, patient

# Client programs and tools that tests call beside those that tools/pg-tree copies.
TOOLS = ("pg_basebackup", "pg_restore", "pg_dumpall", "pgbench", "pg_upgrade", "pg_resetwal", "pg_controldata", "vacuumdb")
WORKER = "dflockd worker"


def unprivileged():
    """Whose process a server is: PostgreSQL refuses to be root's."""
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid())
    with contextlib.suppress(KeyError):
        return pwd.getpwnam("postgres")
    return pwd.getpwnam("nobody")


def run(args, check=True, user=None, **kw):
    """A program from start to end; its output is text, and is in the failure if it fails.

    The user may not be allowed to enter the folder that the tests run in.
    """
    who = unprivileged() if user is None else user
    kw.setdefault("cwd", "/")
    done = subprocess.run([str(a) for a in args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=patient(150),
                          user=who.pw_uid if os.geteuid() == 0 else None, env=clean_environment(kw.pop("env", None)),
                          **kw)
    assert not check or done.returncode == 0, f"{' '.join(map(str, args))}\n{done.stdout[-8000:]}"
    return done


def pg_configs():
    """The versions to test, the main one first."""
    given = os.environ.get("DFLOCKD_PG_CONFIGS")
    if given:
        return given.split(":")
    installed = [str(p) for p in sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/pg_config"))
                 if (BUILD / f"pg-{p.parts[-3]}" / "dflockd.so").exists()]
    first = os.environ.get("PG_CONFIG") or (installed[0] if installed else None)
    unpacked = ROOT / os.environ.get("PGSERVER", "build/pgserver")
    others = [str(p) for p in sorted(unpacked.glob("*/pginstall*/bin/pg_config"))]
    return [p for p in [first, *others] if p and not (os.environ.get("SANITIZE") and _hangs_under_asan(p))]


def _hangs_under_asan(pg_config):
    """Where AddressSanitizer is preloaded, programs that are linked with p11-kit (Debian's PostgreSQL is, by LDAP) do not end:
    that library's destructor waits for ever in freelocale()."""
    server = pathlib.Path(subprocess.check_output([pg_config, "--bindir"], text=True).strip()) / "postgres"
    return "libp11-kit" in subprocess.check_output(["ldd", server], text=True)


def major(pg_config):
    version = subprocess.run([str(pg_config), "--version"], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"(\d+)", version).group(1))


def first_pg_config():
    return pg_configs()[0]


class Installation:
    """One PostgreSQL version with the extension, and a data directory to copy new clusters from."""

    def __init__(self, pg_config, directory, template=None):
        self.pg_config = str(pg_config)
        self.major = major(self.pg_config)
        self.directory = pathlib.Path(directory) / str(self.major)
        self.module = BUILD / f"pg-{self.major}"
        assert (self.module / "dflockd.so").exists(), f"no module for PostgreSQL {self.major}: make pg"
        self.bin = self._tree()
        self.pgxs = pathlib.Path(self._ask("--pgxs")).parents[1]
        self._template = template

    def __str__(self):
        return str(self.major)

    def _ask(self, option):
        return subprocess.run([self.pg_config, option], capture_output=True, text=True, check=True).stdout.strip()

    def _tree(self):
        made = subprocess.run([ROOT / "tools" / "pg-tree", self.pg_config, self.module, self.directory],
                              capture_output=True, text=True, check=True)
        target = pathlib.Path(made.stdout.strip())
        source = pathlib.Path(self._ask("--bindir"))
        for tool in TOOLS:
            if (source / tool).exists():
                shutil.copy(source / tool, target / tool)
        # Programs out of a Python wheel look for their libraries beside the package, relative to themselves.
        for libraries in source.parents[2].glob("*.libs"):
            shutil.copytree(libraries, target.parents[2] / libraries.name, dirs_exist_ok=True)
        return target

    def program(self, name):
        return self.bin / name

    @property
    def extension_directory(self):
        """Where the tree has the extension's script."""
        return pathlib.Path(str(self.directory) + self._ask("--sharedir")) / "extension"

    @property
    def library(self):
        return pathlib.Path(str(self.directory) + self._ask("--pkglibdir")) / "dflockd.so"

    def template(self):
        """A data directory that was made once."""
        if self._template is None:
            self._template = self.directory / "template"
            run([self.program("initdb"), "-D", self._own_directory(self._template), "-A", "trust", "-U", "postgres",
                 "--no-sync", "-E", "UTF8", "--locale=C", "--wal-segsize=1"])
        return self._template

    @staticmethod
    def _own_directory(path):
        path.mkdir(mode=0o700, parents=True)
        if os.geteuid() == 0:
            os.chown(path, unprivileged().pw_uid, unprivileged().pw_gid)
        return path


class Cluster:
    """A running server. `settings` are lines of its configuration."""

    port = 5432

    def __init__(self, processes, installation, settings=None, preload=True, name=None, data=None):
        self.installation = installation
        self.name = name or f"postgres{len(processes.started)}"
        # Not below pytest's directory, which is root's alone; short, because a socket's name must be.
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="dflpg", dir="/tmp"))
        os.chmod(self.directory, 0o755)
        self._give_away(self.directory)
        self.data = self.directory / "data"
        self.process = None
        self.environment = {}
        self.connections = []
        self._processes = processes
        processes.add(self)
        if data is None:
            run(["cp", "-a", installation.template(), self.data], user=_root())
        else:
            data(self.data)
        self.configure({"listen_addresses": "", "unix_socket_directories": str(self.directory), "fsync": "off",
                        "shared_buffers": "16MB", "max_connections": 40,
                        "log_line_prefix": "%m [%p] %b ", "autovacuum": "off",
                        **({"shared_preload_libraries": "dflockd"} if preload else {}), **(settings or {})})
        self.start()

    @staticmethod
    def _give_away(path):
        if os.geteuid() == 0:
            os.chown(path, unprivileged().pw_uid, unprivileged().pw_gid)

    # -------------------------------------------------------------------- settings

    def configure(self, settings):
        """Appends settings; None takes one back to its default."""
        with open(self.data / "postgresql.conf", "a", encoding="utf-8") as file:
            for name, value in settings.items():
                quoted = str(value).replace("'", "''")
                file.write(f"{name} = '{quoted}'\n" if value is not None else f"{name} = default\n")

    def reload(self, settings=None):
        """New settings in force in every process that has looked; the worker says in the log when it has."""
        self.configure(settings or {})
        os.kill(self.process.pid, signal.SIGHUP)

    def private_file(self, name, text, mode=0o600):
        """A file that the server's user can read."""
        path = self.directory / name
        path.write_text(text)
        path.chmod(mode)
        self._give_away(path)
        return path

    def own_directory(self, name):
        """A folder that the server may write to."""
        path = self.directory / name
        path.mkdir(mode=0o700)
        self._give_away(path)
        return path

    # ------------------------------------------------------------------ start, end

    def start(self, ready=True):
        who = unprivileged()
        self.process = Process([*UNDER, self.installation.program("postgres"), "-D", self.data, "-p", self.port], self.directory,
                               "server", env=self.environment, user=who.pw_uid if os.geteuid() == 0 else None)
        if ready:
            self.await_ready()

    def await_ready(self):
        eventually(self._answers, what=f"{self.name} accepts connections\n{self.log()[-3000:]}")

    def _answers(self):
        assert self.process.running(), f"{self.name} ended:\n{self.log()[-6000:]}"
        try:
            with psycopg.connect(self.dsn()):
                return True
        except psycopg.OperationalError:
            return False

    def shut_down(self, number=signal.SIGINT, deadline=30):
        """Fast by default; SIGQUIT is immediate, SIGTERM smart. Returns the exit status."""
        if self.process.running():
            self.process.signal(number)
        return self.process.wait(deadline)

    def restart(self):
        self.shut_down()
        self.start()

    def stop(self):
        try:
            for connection in self.connections:
                with contextlib.suppress(psycopg.Error):
                    connection.close()
            if self.process and self.process.running():
                self._continue_all()
                try:
                    self.shut_down(signal.SIGINT, 15)
                except AssertionError:
                    self.shut_down(signal.SIGQUIT, 10)
        finally:
            log = self.log()
            shutil.rmtree(self.directory, ignore_errors=True)
        check_sanitizers(self.name, log)

    def _continue_all(self):
        for pid in self.children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def children(self):
        """Process ids of the server's own children."""
        listed = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in listed.split()]

    # ------------------------------------------------------------------------- use

    def dsn(self, dbname="postgres", user="postgres"):
        return f"host={self.directory} port={self.port} dbname={dbname} user={user}"

    def connect(self, dbname="postgres", user="postgres", **kw):
        """A psycopg connection in autocommit mode; closed when the cluster stops."""
        connection = psycopg.connect(self.dsn(dbname, user), autocommit=True, **kw)
        self.connections.append(connection)
        return connection

    def session(self, **kw):
        return Session(self.connect(**kw))

    def worker_pid(self):
        """None while there is none."""
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            row = connection.execute("SELECT pid FROM pg_stat_activity WHERE backend_type = %s", [WORKER]).fetchone()
        return row[0] if row else None

    def await_worker(self, other_than=None):
        """A worker that serves requests; its pid."""
        def serving():
            pid = self.worker_pid()
            if pid is None or pid == other_than:
                return None
            with psycopg.connect(self.dsn(), autocommit=True) as connection:
                connection.execute("SELECT count(*) FROM dflock_servers")
            return pid

        def tried():
            try:
                return serving()
            except psycopg.Error:
                return None
        return eventually(tried, what="the worker serves")

    def psql(self, sql, dbname="postgres", check=True):
        return run([self.installation.program("psql"), "-X", "-v", "ON_ERROR_STOP=1", "-At", "-h", self.directory,
                    "-p", self.port, "-U", "postgres", "-d", dbname, "-c", sql], check=check)

    def log(self):
        return self.process.log_path.read_text("utf-8", "replace") if self.process else ""

    @property
    def pid(self):
        return self.process.pid


def _root():
    return pwd.getpwuid(os.geteuid())


class Session:
    """One connection: short ways to ask, and statements that run in a thread of their own."""

    def __init__(self, connection):
        self.connection = connection
        self.pid = connection.info.backend_pid
        self.notices = []
        # A notice does not outlive its handler.
        connection.add_notice_handler(lambda notice: self.notices.append(f"{notice.severity}: {notice.message_primary}"))

    def rows(self, sql, *args):
        cursor = self.connection.execute(sql, args or None)
        return cursor.fetchall() if cursor.description else []

    def value(self, sql, *args):
        (row,) = self.rows(sql, *args)
        (field,) = row
        return field

    def run(self, sql, *args):
        self.connection.execute(sql, args or None)

    def fails(self, sql, *args):
        """The statement's error."""
        try:
            cursor = self.connection.execute(sql, args or None)
        except psycopg.Error as error:
            return error
        raise AssertionError(f"{sql} did not fail: {cursor.fetchall() if cursor.description else None}")

    def close(self):
        self.connection.close()
