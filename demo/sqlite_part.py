"""The demo in SQLite: what happens between a few sqlite3 shells."""

import re
import time

from stage import Sqlite, line, remark, title, until

SOME_FENCE = re.compile(r"\d{19}")


def show(stage, server):
    database = stage.directory / "shop.db"
    a, b, c = (Sqlite(stage, name, server, database) for name in "ABC")
    line("$ sqlite3 -bail shop.db          # three of them: A, B and C, each with")
    line("sqlite> .load ./build/dflockd")
    contention(a, b)
    queue(a, b, c)
    semaphore(a, b, c)
    renewal(a, b)
    fences(a, b)
    return a


def contention(a, b):
    title("Two sessions, one lock")
    a.ask("SELECT dflock_acquire('my-key', 0);", "1", "ours")
    b.ask("SELECT dflock_acquire('my-key', 0);", "0", "somebody else has it")
    a.ask("SELECT dflock_release('my-key');", "1")
    b.ask("SELECT dflock_acquire('my-key', 0);", "1")


def queue(a, b, c):
    title("A line, first come first served")
    a.begin("SELECT dflock_acquire('my-key', 20);")
    waiting(b, 1)
    c.begin("SELECT dflock_acquire('my-key', 20);")
    waiting(b, 2)
    b.ask("SELECT key, holders, waiters FROM dflock_server_locks;", "my-key|1|2")
    b.ask("SELECT dflock_release('my-key');", "1")
    a.end("1", "A was first in line")
    a.ask("SELECT dflock_release('my-key');", "1")
    c.end("1", "then C")
    c.ask("SELECT dflock_release('my-key');", "1")


def waiting(shell, count):
    question = "SELECT waiters FROM dflock_server_locks WHERE key = 'my-key';"
    until(f"{count} in line", lambda: shell.quietly(question) == str(count))


def semaphore(a, b, c):
    title("A semaphore: two slots, three comers")
    a.ask("SELECT dflock_sem_acquire('pool', 2, 0);", "1")
    b.ask("SELECT dflock_sem_acquire('pool', 2, 0);", "1")
    c.ask("SELECT dflock_sem_acquire('pool', 2, 0);", "0", "both are taken")
    a.ask("SELECT dflock_sem_release('pool');", "1")
    c.ask("SELECT dflock_sem_acquire('pool', 2, 0);", "1")
    for shell in (b, c):
        shell.ask("SELECT dflock_release_all();", "1")


def renewal(a, b):
    title("A lease of 2 seconds, held for 5")
    a.ask("SELECT dflock_lock('short', 0, 2) > 0;", "1")
    remark("A does nothing for 5 seconds; its background thread renews")
    end = time.monotonic() + 5
    while time.monotonic() < end:
        time.sleep(min(1, max(0, end - time.monotonic())))
        b.ask("SELECT dflock_acquire('short', 0);", "0")
    a.ask("SELECT dflock_assert_held('short', 1);", "1", "asked the server: still ours")
    a.ask("SELECT renewals > 1 FROM dflock_locks WHERE key = 'short';", "1")
    a.ask("SELECT dflock_release('short');", "1")


def fences(a, b):
    title("Fences: a writer that comes late is refused by the row itself")
    a.ask("CREATE TABLE account(id TEXT PRIMARY KEY, balance INTEGER, fence INTEGER);", "")
    a.ask("INSERT INTO account VALUES ('alice', 100, 0);", "")
    a.ask("SELECT dflock_lock('alice');", SOME_FENCE)
    old = a.quietly("SELECT dflock_fence('alice');")
    a.ask("SELECT dflock_release('alice');", "1", "say, A was taken for dead")
    b.ask("SELECT dflock_lock('alice');", SOME_FENCE)
    b.ask(f"SELECT dflock_fence('alice') > {old};", "1", "every grant has a larger one")
    b.ask("UPDATE account SET balance = 90, fence = (SELECT dflock_fence('alice')) "
          "WHERE id = 'alice' AND fence <= (SELECT dflock_fence('alice'));", "")
    b.ask("SELECT changes();", "1", "B's write is in")
    a.ask(f"UPDATE account SET balance = 0, fence = {old} WHERE id = 'alice' AND fence <= {old};", "")
    a.ask("SELECT changes(), balance FROM account;", "0|90", "A's late one is not")
    b.ask("SELECT dflock_release('alice');", "1")


def loss(a, server):
    """The last one: it ends the server and, because of -bail, the shell."""
    title("The lock server dies")
    a.ask("SELECT dflock_lock('my-key') > 0;", "1")
    line(f"$ kill -9 {server.process.pid}          # the lock server")
    server.kill()
    a.ask("SELECT dflock_is_held('my-key');", "0", "no pretending")
    a.ask("SELECT dflock_assert_held('my-key');", re.compile(r"(?s).*dflockd 40001: .*"))
    line(f"   -- sqlite3 -bail has stopped, exit status {a.ended()}: no line after this one would have run")
