"""SQL shells as interactive coprocesses: the real `sqlite3` and `psql`, one statement sent, its answer read.

Both have one interface, so that a test of the SQL functions reads the same for either database:

    s.query(sql) -> rows        every field a string, NULL is None
    s.value(sql) -> field       of the only row and column
    s.fails(sql) -> Result      the statement must fail; .sqlstate and .error say how
    s.start(sql), s.finish()    for what blocks; s.busy() in between
    s.interrupt()               Ctrl-C

The answer to a statement ends with a marker that the shell prints itself. Errors are on stderr, unbuffered, and were
written before the marker; so whatever stderr holds when the marker arrives belongs to that statement.
"""

import os
import pty
import re
import select
import signal
import subprocess
import time
import tty

from lib.paths import SQLITE_EXTENSION
from lib.process import SANITIZER_MARKS, clean_environment
from lib.under import UNDER, patient

DEADLINE_S = 30.0
FIELD = "\x1f"
NULL = "\x02NULL\x02"


class Result:
    """What one statement (or several, sent at once) printed."""

    def __init__(self, sql, out, err, ended, seconds, shell):
        self.sql = sql
        self.rows = [tuple(None if f == NULL else f for f in line.split(FIELD)) for line in out]
        self.error = err.strip()  # everything on stderr, warnings too
        self.ended = ended  # the shell is gone
        self.seconds = seconds
        self._shell = shell

    @property
    def failed(self):
        return bool(self._shell.failure_pattern.search(self.error)) or self.ended

    @property
    def sqlstate(self):
        found = self._shell.sqlstate_pattern.search(self.error)
        return found.group(1) if found else None

    def __repr__(self):
        return f"<{self.sql!r}: rows {self.rows}, stderr {self.error!r}{', shell ended' if self.ended else ''}>"


class Shell:
    """The base of both; owns one child process."""

    failure_pattern = sqlstate_pattern = None

    def __init__(self, processes, args, name, env=None, user=None, terminal=False):
        self.name = name
        self.directory = processes.directory / name
        self.directory.mkdir(parents=True, exist_ok=True)
        self._transcript = []
        self._out = self._err = b""
        self._pending = None
        self._marks = 0
        stdin, stdout = self._open_streams(terminal)
        self.popen = subprocess.Popen([str(a) for a in args], stdin=stdin, stdout=stdout, stderr=subprocess.PIPE,
                                      env=clean_environment({**self._home(), **(env or {})}), bufsize=0, user=user,
                                      start_new_session=True)
        for fd in {stdin, stdout}:
            os.close(fd)
        os.set_blocking(self.popen.stderr.fileno(), False)
        processes.add(self)

    def _open_streams(self, terminal):
        """Our ends of the shell's stdin and stdout in self._to and self._from; returns the shell's."""
        if terminal:
            self._to, theirs = pty.openpty()
            tty.setraw(theirs)
            self._from = self._to
            return theirs, theirs
        stdin, self._to = os.pipe2(os.O_CLOEXEC)
        self._from, stdout = os.pipe2(os.O_CLOEXEC)
        return stdin, stdout

    def _home(self):
        """Nothing of the user's own start files, histories and key bindings; no line editing that shows."""
        inputrc = self.directory / "inputrc"
        inputrc.write_text("set disable-completion on\nset enable-bracketed-paste off\n")
        return {"HOME": str(self.directory), "INPUTRC": str(inputrc), "TERM": "dumb", "COLUMNS": "30000"}

    # ------------------------------------------------------------- statements

    def start(self, sql):
        """Sends a statement and does not wait."""
        assert self._pending is None, f"{self.name} is busy with {self._pending}"
        self._marks += 1
        mark = f"-- mark {self._marks} --"
        self._pending = (sql, mark, time.monotonic())
        self._transcript.append(f"> {sql}")
        self._sent = [*self.end_statement(sql).splitlines(), self.mark_command(mark)]
        self._write("\n".join(self._sent) + "\n")

    def finish(self, deadline=DEADLINE_S):
        """The answer to what start() has sent."""
        sql, mark, began = self._pending
        deadline = patient(deadline)
        ended = not self._read_until(mark.encode() + b"\n", began, deadline)
        out, _, self._out = (self._out, b"", b"") if ended else self._out.partition(mark.encode() + b"\n")
        self._pending = None
        if ended:
            self.popen.wait(patient(10))
        lines = self._without_echo(out.decode("utf-8", "replace").split("\n")[:-1])
        result = Result(sql, lines, self._take_stderr(), ended, time.monotonic() - began, self)
        self._transcript.append(repr(result))
        return result

    def busy(self):
        """True while the started statement has not been answered."""
        if self._pending is None:
            return False
        self._fill(0)
        return self._pending[1].encode() + b"\n" not in self._out and self.popen.poll() is None

    def run(self, sql, deadline=DEADLINE_S):
        """Sends a statement and returns its Result, whatever it is."""
        self.start(sql)
        return self.finish(deadline)

    def query(self, sql, deadline=DEADLINE_S):
        """The rows of a statement that must succeed."""
        result = self.run(sql, deadline)
        assert not result.failed, result
        return result.rows

    def value(self, sql, deadline=DEADLINE_S):
        rows = self.query(sql, deadline)
        assert len(rows) == 1 and len(rows[0]) == 1, f"{sql}: {rows}"
        return rows[0][0]

    def fails(self, sql, sqlstate=None, text=None, deadline=DEADLINE_S):
        """The Result of a statement that must fail, with this SQLSTATE and this text in its message if given."""
        result = self.run(sql, deadline)
        assert result.failed, f"did not fail: {result}"
        assert sqlstate is None or result.sqlstate == sqlstate, f"expected {sqlstate}: {result}"
        assert text is None or text in result.error, f"expected {text!r}: {result}"
        return result

    # ---------------------------------------------------------------- process

    @property
    def pid(self):
        return self.popen.pid

    def running(self):
        return self.popen.poll() is None

    def interrupt(self):
        """Ctrl-C."""
        self.popen.send_signal(signal.SIGINT)

    def pause(self):
        self.popen.send_signal(signal.SIGSTOP)

    def resume(self):
        self.popen.send_signal(signal.SIGCONT)

    def kill(self):
        if self.running():
            self.popen.send_signal(signal.SIGKILL)
        return self.popen.wait(patient(10))

    def close(self, deadline=DEADLINE_S):
        """Quits as a user does; returns the exit status."""
        self._write(self.quit_command + "\n")
        return self.popen.wait(patient(deadline))

    def stop(self):
        if self.running():
            self.resume()
            self.kill()
        self._take_stderr()
        self.popen.stderr.close()
        for fd in {self._to, self._from} - {None}:
            os.close(fd)
        self._to = self._from = None
        for mark in SANITIZER_MARKS:
            assert mark not in self.log(), self.log()[-6000:]

    def log(self):
        return "\n".join(self._transcript)

    # ----------------------------------------------------------------- inside

    def _write(self, text):
        try:
            data = text.encode("utf-8")
            while data:
                data = data[os.write(self._to, data):]
        except OSError:
            pass  # the shell is gone; finish() will see that

    def _without_echo(self, lines):
        """What was printed, less what a line editor has repeated of the input."""
        return lines

    def _fill(self, seconds):
        """Reads what there is. False at the end of the shell's output."""
        ready, _, _ = select.select([self._from, self.popen.stderr], [], [], seconds)
        if self.popen.stderr in ready:
            self._read_stderr()
        if self._from in ready:
            try:
                data = os.read(self._from, 1 << 16)
            except OSError:  # a terminal whose other end is closed
                data = b""
            self._out += data
            return bool(data)
        return True

    def _read_until(self, mark, began, deadline):
        while mark not in self._out:
            left = began + deadline - time.monotonic()
            assert left > 0, f"{self.name}: no answer within {deadline} s to {self._pending[0]!r}; so far {self._out!r}"
            if not self._fill(min(left, 1.0)):
                return False
        return True

    def _read_stderr(self):
        try:
            data = os.read(self.popen.stderr.fileno(), 1 << 16)
        except BlockingIOError:
            return False
        self._err += data
        return bool(data)

    def _take_stderr(self):
        while self._read_stderr():
            pass
        text, self._err = self._err.decode("utf-8", "replace"), b""
        if text:
            self._transcript.append(f"! {text}")
        return text


class SqliteShell(Shell):
    """A `sqlite3` process.

    bail=True: `sqlite3 -bail` reading a script: ends at the first error, and at Ctrl-C.
    bail=False: as typed by hand (-interactive): goes on after errors and after Ctrl-C.
    With `servers` the environment names them and the extension is loaded at once.
    """

    quit_command = ".quit"

    program = "sqlite3"
    failure_pattern = re.compile(r"^(?:Parse error|Runtime error|Error)\b", re.MULTILINE)
    sqlstate_pattern = re.compile(r"\bdflockd ([0-9A-Z]{5}):")

    def __init__(self, processes, servers=None, database=":memory:", bail=True, load=None, env=None, name=None,
                 wrapper=(), args=()):
        env = dict(env or {})
        if servers is not None:
            env.setdefault("DFLOCK_SERVERS", ",".join(str(s) for s in _list(servers)))
        command = [*(wrapper or UNDER), self.program, *(["-bail", "-batch"] if bail else ["-interactive"]), *args,
                   "-separator", FIELD, "-nullvalue", NULL, database]
        self._echoes = not bail
        super().__init__(processes, command, name or f"sqlite{len(processes.started)}", env)
        if not bail:
            self.run('.prompt "" ""')  # swallows the greeting too
        if load if load is not None else servers is not None:
            self.load()

    def load(self, path=None):
        result = self.run(f".load {path or SQLITE_EXTENSION}")
        assert not result.failed, result

    def set(self, setting, value):
        """dflock_config: the setting's old value."""
        return self.value(f"SELECT dflock_config('{setting}', '{value}')")

    @staticmethod
    def end_statement(sql):
        return sql if sql.lstrip().startswith(".") or sql.rstrip().endswith(";") else sql + ";"

    @staticmethod
    def mark_command(mark):
        return f'.print "{mark}"'

    def _without_echo(self, lines):
        if not self._echoes:
            return lines
        expected = list(self._sent)
        kept = []
        for line in lines:
            if expected and line == expected[0]:
                expected.pop(0)
            else:
                kept.append(line)
        return kept


class PsqlShell(Shell):
    """A `psql` process.

    bail=True: a script with -v ON_ERROR_STOP=1: ends at the first error, and at Ctrl-C.
    bail=False: as typed at a terminal: goes on after errors and after Ctrl-C.
    """

    quit_command = "\\q"

    program = "psql"
    failure_pattern = re.compile(r"^(?:psql:[^\n]*)?(?:ERROR|FATAL|PANIC):", re.MULTILINE)
    sqlstate_pattern = re.compile(r"^(?:psql:[^\n]*)?(?:ERROR|FATAL|PANIC):  ([0-9A-Z]{5}):", re.MULTILINE)

    def __init__(self, processes, dsn, bail=False, program=None, env=None, name=None, user=None, args=()):
        env = {"PGCLIENTENCODING": "UTF8", "PGOPTIONS": "", **(env or {})}
        command = [program or self.program, "-X", "-q", "-n", "-A", "-t", "-F", FIELD, "-P", f"null={NULL}",
                   "-P", "pager=off", "-v", "VERBOSITY=verbose", "-v", "SHOW_CONTEXT=never",
                   *(["-v", "ON_ERROR_STOP=1"] if bail else ["-v", "PROMPT1=", "-v", "PROMPT2="]), *args, dsn]
        super().__init__(processes, command, name or f"psql{len(processes.started)}", env, user=user,
                         terminal=not bail)

    def backend_pid(self):
        return int(self.value("SELECT pg_backend_pid()"))

    @staticmethod
    def end_statement(sql):
        return sql if sql.lstrip().startswith("\\") or sql.rstrip().endswith(";") else sql + ";"

    @staticmethod
    def mark_command(mark):
        return f"\\echo '{mark}'"


def _list(servers):
    return servers if isinstance(servers, (list, tuple)) else [servers]
