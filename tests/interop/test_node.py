"""The extension inside Node: better-sqlite3, which brings a SQLite of its own, in a program that has another OpenSSL."""

import os
import pathlib
import textwrap

import pytest

from lib.paths import ROOT, SQLITE_EXTENSION

NODE = pathlib.Path(os.environ.get("NODE", ROOT / "build" / "node"))
if not NODE.is_absolute():
    NODE = ROOT / NODE

PRELUDE = f"""
const Database = require({str(NODE / "node_modules" / "better-sqlite3")!r});
const open = () => {{
    const db = new Database(':memory:');
    db.loadExtension({str(SQLITE_EXTENSION)!r});
    return db;
}};
const value = (db, sql, ...args) => db.prepare(sql).safeIntegers().pluck().get(...args);
const failure = (db, sql, ...args) => {{
    try {{ db.prepare(sql).all(...args); }} catch (error) {{ return error.code + ' ' + error.message; }}
    throw new Error('did not fail: ' + sql);
}};
"""


@pytest.fixture
def node(processes, directory):
    """Runs a script to its end; returns the lines that it printed."""
    def run(text, server, **env):
        path = directory / f"script{len(processes.started)}.js"
        path.write_text(PRELUDE + textwrap.dedent(text))
        process = processes.run(["node", path], path.stem, env={"DFLOCK_SERVERS": str(server), **env})
        status = process.wait(60)
        assert status == 0, process.log()
        return process.log().splitlines()

    return run


def test_lock_and_release(node, server):
    lines = node("""
        const db = open(), other = open();
        console.log(value(db, "SELECT dflock_lock('k')") > 0n, value(other, "SELECT dflock_acquire('k', 0)"));
        console.log(value(db, "SELECT typeof(dflock_fence('k'))"));
        console.log(value(db, "SELECT dflock_release('k')"), value(other, "SELECT dflock_acquire('k', 0)"));
        console.log(failure(db, "SELECT dflock_lock('k', 0)"));
        """, server)
    assert lines[:3] == ["true 0n", "integer", "1n 1n"]
    assert lines[3].startswith("SQLITE_ERROR dflockd 55P03: ")


def test_numbers_as_node_binds_them(node, server):
    """Every number is a REAL here: fine where a number is meant, refused as a key."""
    lines = node("""
        const db = open();
        console.log(value(db, "SELECT dflock_acquire('k', ?, ?)", 0, 60), value(db, "SELECT dflock_lease('k')"));
        console.log(value(db, "SELECT dflock_sem_acquire('s', ?)", 3));
        console.log(value(db, "SELECT dflock_config('lease_ttl', ?)", 45), value(db, "SELECT dflock_config('lease_ttl')"));
        console.log(failure(db, "SELECT dflock_acquire(?)", 42));
        console.log(value(db, "SELECT dflock_acquire(?)", 42n), value(db, "SELECT dflock_is_held('42')"));
        """, server)
    assert lines[:3] == ["1n 60n", "1n", "0 45"]
    assert "22023" in lines[3] and lines[4] == "1n 1n"


def test_tls_with_our_own_library(node, make_server, certs):
    server = make_server("--tls-cert", certs.server.cert, "--tls-key", certs.server.key, "--auth-token", "s3cret")
    env = {"DFLOCK_TLS": "on", "DFLOCK_TLS_CA": str(certs.ca.cert), "DFLOCK_AUTH_TOKEN": "s3cret"}
    lines = node("""
        const db = open();
        const tls = require('tls'), https = require('https');
        console.log(value(db, "SELECT dflock_lock('k', 0, 2)") > 0n);
        https.get('https://' + process.env.DFLOCK_SERVERS, () => {}).on('error', (error) => {
            console.log(error.code);
            setTimeout(() => {
                console.log(value(db, "SELECT dflock_assert_held('k', 1)"));
                console.log(value(db, "SELECT dflock_version()").includes(process.versions.openssl));
            }, 4000);
        });
        """, server, **env)
    assert lines[0] == "true" and lines[2] == "1n"
    assert lines[1] in ("UNABLE_TO_VERIFY_LEAF_SIGNATURE", "SELF_SIGNED_CERT_IN_CHAIN", "UNABLE_TO_GET_ISSUER_CERT_LOCALLY")
    bad = node("console.log(failure(open(), \"SELECT dflock_acquire('k', 0)\"));", server,
               **{**env, "DFLOCK_TLS_CA": str(certs.other_ca.cert)})
    assert "LK010" in bad[0] and "certificate" in bad[0]


def test_worker_threads(node, server):
    lines = node("""
        const { Worker, isMainThread, workerData } = require('worker_threads');
        const box = isMainThread ? new SharedArrayBuffer(4) : workerData;
        const cell = new Int32Array(box);
        if (isMainThread) {
            let left = 4;
            for (let i = 0; i < 4; i++)
                new Worker(__filename, { workerData: box }).on('exit', () => { if (--left === 0) console.log(cell[0]); });
        } else {
            const db = open();
            for (let i = 0; i < 25; i++) {
                value(db, "SELECT dflock_lock('k', 60)");
                cell[0] = cell[0] + 1;
                value(db, "SELECT dflock_release('k')");
            }
            db.close();
        }
        """, server)
    assert lines == ["100"]


def test_exit_with_a_lock_gives_it_back(node, server):
    node("const db = open(); value(db, \"SELECT dflock_lock('k', 0, 600)\");", server)
    server.await_holders("k", 0)
    node("const db = open(); value(db, \"SELECT dflock_lock('k', 0, 600)\"); process.exit(0);", server)
    server.await_holders("k", 0)
