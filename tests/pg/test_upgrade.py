"""A new library with the SQL objects of every version, ALTER EXTENSION UPDATE, and the scripts' symbols.

The checks are also run on versions that are made here for them, in a copy of the extension's directory: one with an
upgrade script that is right, and others with scripts that each forget one thing.
"""

import os
import shutil
import tempfile

import pytest

from lib.paths import BUILD, ROOT
from pg.cluster import Cluster, Installation
from pg.upgrade import broken, database, differences, missing_symbols, newest, versions

SCRIPTS = ROOT / "pg_ext"
KEPT = versions(SCRIPTS)
NEXT = "998.0.0"

# What a next version might bring: its part of the script that installs, and of the script that upgrades.
NEW_FUNCTION = """
CREATE FUNCTION dflock_next(key text) RETURNS boolean AS 'MODULE_PATHNAME', 'dflock_is_held'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;"""
NEW_COMMENT = "COMMENT ON FUNCTION dflock_next(text) IS 'does this session hold it';"
NEW_RIGHTS = "REVOKE ALL ON FUNCTION dflock_next(text) FROM PUBLIC;"
NEW_VIEW = "CREATE OR REPLACE VIEW dflock_servers AS SELECT * FROM dflock_servers() WHERE true;"
GONE = "DROP FUNCTION dflock_token_fence(text);"
STRICTER = "ALTER FUNCTION dflock_version() STRICT;"
STEADY = "ALTER FUNCTION dflock_fence(text) STABLE;"
SAFER = "ALTER FUNCTION dflock_lease(text) PARALLEL SAFE;"
OTHER_ARGUMENT = """
DROP FUNCTION dflock_cancel(text);
CREATE FUNCTION dflock_cancel(key text DEFAULT NULL) RETURNS boolean AS 'MODULE_PATHNAME', 'dflock_cancel'
LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION dflock_cancel(text) IS 'leave the line; true if there was a place to leave';"""
CHANGES = [NEW_FUNCTION, NEW_COMMENT, NEW_RIGHTS, NEW_VIEW, GONE, STRICTER, STEADY, SAFER, OTHER_ARGUMENT]

# What an upgrade script does instead of all of it, and what must be said of that.
MISTAKES = {
    "a comment": ([c for c in CHANGES if c is not NEW_COMMENT], "comment function dflock_next(text)"),
    "rights": ([c for c in CHANGES if c is not NEW_RIGHTS], "who may call dflock_next(text)"),
    "a view": ([c for c in CHANGES if c is not NEW_VIEW], "view dflock_servers"),
    "a function that goes": ([c for c in CHANGES if c is not GONE], "member function public.dflock_token_fence(pg_catalog.text)"),
    "strictness": ([c for c in CHANGES if c is not STRICTER], "function dflock_version()"),
    "volatility": ([c for c in CHANGES if c is not STEADY], "function dflock_fence(text)"),
    "parallel safety": ([c for c in CHANGES if c is not SAFER], "function dflock_lease(text)"),
    "a default": ([c for c in CHANGES if c is not OTHER_ARGUMENT], "function dflock_cancel(text)"),
    "a function that comes": ([c for c in CHANGES if c not in (NEW_FUNCTION, NEW_COMMENT, NEW_RIGHTS)],
                              "member function public.dflock_next(pg_catalog.text)"),
}


class Tree:
    """A copy of an installation that is one test's alone, and goes when what runs from it has ended."""

    def __init__(self, installation):
        # Not below pytest's directory, which is root's alone.
        self.directory = tempfile.mkdtemp(prefix="dflpgupgrade", dir="/tmp")
        os.chmod(self.directory, 0o755)
        self.installation = Installation(installation.pg_config, self.directory, template=installation.template())

    def stop(self):
        shutil.rmtree(self.directory, ignore_errors=True)


@pytest.fixture
def workshop(processes, installation, server):
    """A cluster whose extension directory is this test's alone."""
    return Cluster(processes, processes.add(Tree(installation)).installation, {"dflockd.servers": str(server)})


def add_version(directory, upgrade, changes=CHANGES):
    """Beside the newest version, a next one that is all that and `changes`, and a script that leads to it."""
    last = newest(directory)
    text = (directory / f"dflockd--{last}.sql").read_text("utf-8")
    (directory / f"dflockd--{NEXT}.sql").write_text(text + "\n".join(changes), "utf-8")
    (directory / f"dflockd--{last}--{NEXT}.sql").write_text("\n".join(upgrade), "utf-8")
    return last


# ---------------------------------------------------------------------- the versions of this tree


def test_the_newest_version_is_among_them():
    assert KEPT and newest(SCRIPTS) == KEPT[-1]


@pytest.mark.every_version
@pytest.mark.parametrize("version", KEPT)
def test_the_library_serves_the_objects_of_every_version(version, workshop):
    with database(workshop, "d", f"CREATE EXTENSION dflockd VERSION '{version}'") as connection:
        assert broken(connection) == []


@pytest.mark.every_version
@pytest.mark.parametrize("version", KEPT)
def test_an_update_leads_from_every_version_to_what_a_new_database_has(version, workshop):
    assert differences(workshop, version, newest(SCRIPTS)) == []


@pytest.mark.parametrize("module", sorted(BUILD.glob("pg-*/dflockd.so")), ids=lambda path: path.parent.name)
def test_the_library_has_every_symbol_that_a_script_names(module):
    assert missing_symbols(SCRIPTS, module) == []


# --------------------------------------------------------------------- do these checks find anything?


@pytest.mark.every_version
def test_a_right_upgrade_passes(workshop):
    last = add_version(workshop.installation.extension_directory, upgrade=CHANGES)
    assert differences(workshop, last, NEXT) == []
    with database(workshop, "d", f"CREATE EXTENSION dflockd VERSION '{last}'",
                  f"ALTER EXTENSION dflockd UPDATE TO '{NEXT}'") as connection:
        assert broken(connection) == []


def test_an_upgrade_that_forgets_something_is_found(workshop):
    for what, (upgrade, said) in MISTAKES.items():
        last = add_version(workshop.installation.extension_directory, upgrade)
        assert said in differences(workshop, last, NEXT), what


def test_a_function_that_the_library_lost_is_found(workshop):
    directory = workshop.installation.extension_directory
    lost = "CREATE FUNCTION dflock_gone() RETURNS boolean AS 'MODULE_PATHNAME', 'dflock_gone' LANGUAGE C;"
    (directory / "dflockd--0.0.1.sql").write_text(lost, "utf-8")
    assert versions(directory) == ["0.0.1", *KEPT]
    assert missing_symbols(directory, workshop.installation.module / "dflockd.so") == ["dflock_gone", "pg_finfo_dflock_gone"]
    # PostgreSQL itself looks when a function is made; somebody who made it before sees it when it is called.
    with database(workshop, "d", "CREATE EXTENSION dflockd",
                  "UPDATE pg_proc SET prosrc = 'dflock_gone' WHERE proname = 'dflock_is_held'") as connection:
        ((statement, error),) = broken(connection)
        assert "dflock_is_held" in statement and "could not find function" in error
