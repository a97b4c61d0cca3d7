"""Dump, restore and upgrade of a database with the extension, and what the library exports."""

import re

import pytest

from pg.cluster import Cluster, major, pg_configs, run
from pg.upgrade import catalog


@pytest.mark.every_version
def test_dump_and_restore(pg, session, make_cluster, server, installation):
    session.run("CREATE SCHEMA s")
    session.run("CREATE DATABASE other")
    there = pg.session(dbname="other")
    there.run("CREATE SCHEMA locks")
    there.run("CREATE EXTENSION dflockd SCHEMA locks")
    there.run("CREATE VIEW mine AS SELECT key FROM locks.dflock_locks")
    dump = run([installation.program("pg_dump"), "-h", pg.directory, "-p", pg.port, "-U", "postgres", "other"]).stdout
    assert "CREATE EXTENSION IF NOT EXISTS dflockd WITH SCHEMA locks" in dump
    # Also where the library is not preloaded.
    bare = make_cluster(preload=False, extension=False)
    bare.psql("SELECT 1")
    run([installation.program("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", bare.directory, "-p", bare.port, "-U",
         "postgres", "postgres"], input=dump)
    assert bare.session().value("SELECT count(*) FROM pg_extension WHERE extname = 'dflockd'") == 1


def upgraded(old, target, server):
    """A function that makes a data directory of `target` out of the ended cluster `old`, the library preloaded in both."""
    def make(data):
        # From 18 on clusters have checksums unless told otherwise, and pg_upgrade wants both alike.
        plain = ["--no-data-checksums"] if target.major >= 18 and old.installation.major < 18 else []
        run([target.program("initdb"), "-D", data, "-A", "trust", "-U", "postgres", "--no-sync", "-E", "UTF8", "--locale=C",
             "--wal-segsize=1", *plain])
        with open(data / "postgresql.conf", "a", encoding="ascii") as conf:
            conf.write(f"shared_preload_libraries = 'dflockd'\ndflockd.servers = '{server}'\n")
        # Its sockets need a short path.
        done = run([target.program("pg_upgrade"), "-b", old.installation.bin, "-B", target.bin, "-d", old.data, "-D", data,
                    "-U", "postgres", "-s", data.parent], cwd=data.parent, check=False)
        logs = "".join(f.read_text() for f in data.glob("pg_upgrade_output.d/*/log/*.log"))
        assert done.returncode == 0, done.stdout[-2000:] + logs[-6000:]
    return make


def lasting(objects):
    """Members, comments and privileges. Each version's own are: the text of definitions, what an owner may do, and
    whether the row type of a view is a member."""
    same = ("member", "comment", "who may call", "who may select", "column")
    return {of: re.sub(r" ?\(10,10,\w+,f\)", "", fact or "") for of, fact in objects.items()
            if of[0] in same and not of[1].startswith("type ")}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("to", [c for c in pg_configs() if major(c) > major(pg_configs()[0])], ids=major)
def test_pg_upgrade(to, make_cluster, server, processes, trees):
    target = trees(to)
    old = make_cluster(server)
    before = old.session()
    # No table: Debian's 15 writes a column option into them that the wheel's versions do not know.
    before.run("CREATE VIEW kept AS SELECT count(*) FILTER (WHERE state = 'lost') AS lost FROM dflock_locks")
    before.run("CREATE ROLE guard; REVOKE EXECUTE ON FUNCTION dflock_acquire FROM PUBLIC; "
               "GRANT EXECUTE ON FUNCTION dflock_acquire TO guard")
    objects = catalog(before.connection)
    old.shut_down()
    new = Cluster(processes, target, {"dflockd.servers": str(server)}, data=upgraded(old, target, server))
    session = new.session()
    assert session.value("SELECT lost FROM kept") == 0
    assert lasting(catalog(session.connection)) == lasting(objects)
    assert session.value("SELECT dflock_acquire('k') AND dflock_release('k')")
    assert server.holders("k") == 0
    session.run("SET ROLE guard")
    assert session.value("SELECT dflock_acquire('k') AND dflock_release('k')")


@pytest.mark.every_version
def test_the_libraries_symbols_are_few(pg, installation):
    """What PostgreSQL before 16 exports to everybody must not be the engine."""
    listed = run(["nm", "-D", "--defined-only", installation.library]).stdout.split()
    exported = {name for name in listed if name.startswith("dfl_")}
    engine = {name for name in exported if name.startswith(("dfl_client", "dfl_conn", "dfl_session", "dfl_hold_"))}
    assert not engine, sorted(engine)
