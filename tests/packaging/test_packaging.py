"""What is shipped: one version everywhere, one exported symbol, an installation that can be undone."""

import os
import pathlib
import shutil
import subprocess

from lib.paths import BUILD, ROOT, SQLITE_EXTENSION


def run(*command, cwd=ROOT, **env):
    # MAKEFLAGS of the make that runs the tests are not those of a user's make.
    clean = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "BUILD")}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=dict(clean, **env), capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, timeout=120)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def files(directory):
    return sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file())


def test_one_version_everywhere():
    run("tools/version-check")


def copy_of_what_says_the_version(directory):
    for name in ("VERSION", "CHANGELOG.md", "META.json", "tools/version-check", "core/dflockd.h"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, directory / name)
    (directory / "pg_ext").mkdir()
    for source in [*ROOT.glob("pg_ext/*.control"), *ROOT.glob("pg_ext/*.sql")]:
        shutil.copy2(source, directory / "pg_ext")


def test_a_forgotten_version_is_found(directory):
    copy_of_what_says_the_version(directory)
    run("tools/version-check", cwd=directory)
    for name in ("CHANGELOG.md", "META.json", "core/dflockd.h", "pg_ext/dflockd.control"):
        text = (directory / name).read_text()
        assert "1.0.0" in text
        (directory / name).write_text(text.replace("1.0.0", "0.9.9"))
        done = subprocess.run(["tools/version-check"], cwd=directory, capture_output=True, text=True)
        assert done.returncode == 1 and name in done.stderr, (name, done.stderr)
        (directory / name).write_text(text)


def test_the_sqlite_extension_exports_its_entry_alone():
    symbols = run("nm", "-D", "--defined-only", SQLITE_EXTENSION).split("\n")
    assert [line.split()[-1] for line in symbols if line] == ["sqlite3_dflockd_init"]


def test_the_sqlite_extension_brings_its_own_openssl():
    needed = run("readelf", "-d", SQLITE_EXTENSION)
    assert "libc.so" in needed
    for library in ("libssl", "libcrypto", "libz", "libcares", "libjson-c", "libsqlite3"):
        assert library not in needed
    assert "NODELETE" in needed


def test_install_and_uninstall_of_sqlite_and_server(directory):
    prefix = directory / "prefix"
    out = run("make", "install", "WITHOUT_PG=1", f"DESTDIR={directory}", f"PREFIX={prefix}", f"BUILD={BUILD}")
    there = pathlib.Path(f"{directory}{prefix}")
    assert files(there) == ["bin/dflockd-local", "lib/dflockd/dflockd.so"]
    assert f".load {prefix}/lib/dflockd/dflockd" in out
    version = run("sqlite3", "-bail", ":memory:", f".load {there}/lib/dflockd/dflockd", "SELECT dflock_version();")
    assert (ROOT / "VERSION").read_text().strip() in version
    assert (ROOT / "VERSION").read_text().strip() in run(there / "bin" / "dflockd-local", "--version")
    run("make", "uninstall", "WITHOUT_PG=1", f"DESTDIR={directory}", f"PREFIX={prefix}", f"BUILD={BUILD}")
    assert files(there) == []


def test_install_and_uninstall_of_the_postgresql_module(directory):
    out = run("make", "install", f"DESTDIR={directory}", f"PREFIX={directory}/prefix", f"BUILD={BUILD}")
    assert "shared_preload_libraries = 'dflockd'" in out
    names = {pathlib.Path(name).name for name in files(directory)}
    release = (ROOT / "VERSION").read_text().strip().removesuffix("-dev")
    assert {"dflockd.so", "dflockd.control", f"dflockd--{release}.sql"} <= names
    run("make", "uninstall", f"DESTDIR={directory}", f"PREFIX={directory}/prefix", f"BUILD={BUILD}")
    assert files(directory) == []


def test_the_postgresql_module_exports_what_is_looked_up_by_name():
    modules = sorted(BUILD.glob("pg-*/dflockd.so"))
    assert modules
    for module in modules:
        names = sorted(line.split()[-1] for line in run("nm", "-D", "--defined-only", module).splitlines())
        assert [name for name in names if not name.startswith(("dflock_", "pg_finfo_dflock_"))] == [
            "Pg_magic_func", "_PG_init", "dfl_worker_main"]


def test_deps_names_what_is_missing_to_those_who_may_not_install(directory):
    """With an empty dpkg database nothing is installed, and somebody else than root gets the command to type."""
    empty = directory / "bin"
    empty.mkdir()
    for name, text in {"dpkg-query": "exit 1", "id": "echo 1000"}.items():
        (empty / name).write_text(f"#!/bin/sh\n{text}\n")
        (empty / name).chmod(0o755)
    for name in ("sh", "sed", "tr", "cat", "head", "printf"):
        (empty / name).symlink_to(shutil.which(name))
    done = subprocess.run([ROOT / "tools" / "deps", "build"], env={"PATH": str(empty)}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "apt-get install -y gcc " in done.stderr
    for package in ("libssl-dev", "libc-ares-dev", "zlib1g-dev", "sqlite3", "postgresql-server-dev-"):
        assert package in done.stderr
    assert "libcmocka-dev" not in done.stderr


def refused(*command, **env):
    clean = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "BUILD")}
    done = subprocess.run([str(c) for c in command], cwd=ROOT, env=dict(clean, **env), capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, timeout=120)
    assert done.returncode != 0 and done.stdout == ""
    return done.stderr.splitlines()


def test_make_names_what_is_missing(directory):
    """In one line, and then only make's own that it stops."""
    for variables, line in (
            (["CC=no-such-cc"], "there is no compiler (no-such-cc); make deps installs what is needed"),
            (["HEADERS=zlib.h no-such.h"], "the header no-such.h is missing; make deps installs what is needed"),
            (["pg", "PG_CONFIG=no-such-config"], "no PostgreSQL headers found by no-such-config: "
             "make deps installs them, PG_CONFIG= names another"),
            (["installcheck", "PG_CONFIG=no-such-config"], "no PostgreSQL headers found by no-such-config: "
             "make deps installs them, PG_CONFIG= names another")):
        said = refused("make", "WITHOUT_PG=1", f"BUILD={directory / 'build'}", *variables)
        assert said[0] == line and len(said) == 2 and said[1].startswith("make: *** "), said


def test_make_says_that_postgresql_was_left_out():
    left_out = "  PGXS  left out: no PostgreSQL server headers found by no-such-config\n"
    assert left_out in run("make", "PG_CONFIG=no-such-config", f"BUILD={BUILD}")
    assert "PGXS" not in run("make", "WITHOUT_PG=1", f"BUILD={BUILD}")


def test_lint_does_not_pass_for_want_of_a_checker(directory):
    for name in ("sh", "dirname", "mktemp", "rm"):
        (directory / name).symlink_to(shutil.which(name))
    assert refused(ROOT / "tests" / "lint", PATH=str(directory)) == [
        "not ok - clang-14 is missing: make lint as root installs it"]


def test_functions_fit_a_screen():
    """No function of the shipped C code is longer than 80 lines."""
    too_long = []
    for source in sorted(p for d in ("core", "server", "sqlite_ext", "pg_ext") for p in (ROOT / d).glob("*.c")):
        start = None
        for number, line in enumerate(source.read_text().splitlines(), 1):
            if line == "{" or (line.endswith("{") and line[:1].isalpha() and "(" in line):
                start = number
            elif line == "}" and start is not None:
                if number - start - 1 > 80:
                    too_long.append(f"{source.relative_to(ROOT)}:{start}: {number - start - 1} lines")
                start = None
    assert too_long == []
