"""Dump, restore and upgrade of a database with the extension, and what the library exports."""

import pytest

from pg.cluster import Cluster, pg_configs, run


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


@pytest.mark.timeout(300)
def test_pg_upgrade(make_cluster, server, installation, processes, trees):
    """To the next major version that is built, the library preloaded in both."""
    target = next((trees(c) for c in pg_configs()[1:]), None)
    assert target is not None and target.major > installation.major
    old = make_cluster(server)
    # No table: Debian's 15 writes a column option into them that the wheel's versions do not know.
    old.session().run("CREATE VIEW kept AS SELECT count(*) FILTER (WHERE state = 'lost') AS lost FROM dflock_locks")
    old.shut_down()

    def upgraded(data):
        # From 18 on clusters have checksums unless told otherwise, and pg_upgrade wants both alike.
        plain = ["--no-data-checksums"] if target.major >= 18 and old.installation.major < 18 else []
        run([target.program("initdb"), "-D", data, "-A", "trust", "-U", "postgres", "--no-sync", "-E", "UTF8", "--locale=C",
             "--wal-segsize=1", *plain])
        with open(data / "postgresql.conf", "a", encoding="ascii") as conf:
            conf.write(f"shared_preload_libraries = 'dflockd'\ndflockd.servers = '{server}'\n")
        # Its sockets need a short path.
        done = run([target.program("pg_upgrade"), "-b", installation.bin, "-B", target.bin, "-d", old.data, "-D", data,
                    "-U", "postgres", "-s", data.parent], cwd=data.parent, check=False)
        logs = "".join(f.read_text() for f in data.glob("pg_upgrade_output.d/*/log/*.log"))
        assert done.returncode == 0, done.stdout[-2000:] + logs[-6000:]

    new = Cluster(processes, target, {"dflockd.servers": str(server)}, data=upgraded)
    session = new.session()
    assert session.value("SELECT lost FROM kept") == 0
    assert session.value("SELECT dflock_acquire('k') AND dflock_release('k')")
    assert server.holders("k") == 0


@pytest.mark.every_version
def test_the_libraries_symbols_are_few(pg, installation):
    """What PostgreSQL before 16 exports to everybody must not be the engine."""
    listed = run(["nm", "-D", "--defined-only", installation.module / "dflockd.so"]).stdout.split()
    exported = {name for name in listed if name.startswith("dfl_")}
    engine = {name for name in exported if name.startswith(("dfl_client", "dfl_conn", "dfl_session", "dfl_hold_"))}
    assert not engine, sorted(engine)
