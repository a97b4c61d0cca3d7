"""pg_regress over sql/ and expected/, pg_isolation_regress over specs/, on every version."""

import os
import pathlib
import shutil

import pytest

from lib.paths import ROOT
from pg.cluster import pg_configs, run

pytestmark = [pytest.mark.every_version, pytest.mark.timeout(400)]

SQL = sorted(p.stem for p in (ROOT / "sql").glob("*.sql"))
SPECS = sorted(p.stem for p in (ROOT / "specs").glob("*.spec"))


def _regress(program, cluster, tests, extra=()):
    output = cluster.directory / "regress"
    output.mkdir()
    os.chmod(output, 0o777)
    source = cluster.directory / "source"  # where the user of the server can read it
    for folder in ("sql", "specs", "expected"):
        shutil.copytree(ROOT / folder, source / folder)
    done = run([program, f"--bindir={cluster.installation.bin}", f"--inputdir={source}", f"--outputdir={output}",
                f"--host={cluster.directory}", f"--port={cluster.port}", "--user=postgres", *extra, *tests],
               check=False, cwd=output)
    diffs = output / "regression.diffs"
    keep = os.environ.get("DFLOCKD_REGRESS_OUTPUT")  # where new expected files can be looked at
    if keep:
        shutil.copytree(output, pathlib.Path(keep) / pathlib.Path(program).name, dirs_exist_ok=True)
    assert done.returncode == 0, done.stdout[-3000:] + (diffs.read_text("utf-8", "replace")[-12000:] if diffs.exists() else "")


def _copy(installation, folder, name):
    """A program of the build tools, copied with its neighbours: a wheel unpacks them without the right to run. None
    where there is none: PostgreSQL 13 has no isolation tester."""
    source = installation.pgxs.parent / "src" / "test" / folder
    if not (source / name).exists():
        return None
    target = installation.directory / str(source).lstrip("/")
    target.mkdir(parents=True, exist_ok=True)
    for program in source.iterdir():
        (target / program.name).unlink(missing_ok=True)
        shutil.copy(program, target / program.name)
        (target / program.name).chmod(0o755)
    return target / name


@pytest.fixture
def tool(trees, installation):
    """tool(folder, name): the version's own, or another's where it has none, or one that does not even start (the wheel's
    PostgreSQL 18 has such programs); they talk to any server."""
    def find(folder, name):
        for tree in (installation, *map(trees, pg_configs())):
            program = _copy(tree, folder, name)
            if program and run([program, "--version"], check=False).returncode == 0:
                return program
        raise AssertionError(f"no version that is built has a {name} that starts")
    return find


def test_pg_regress(make_cluster, server, tool):
    assert SQL
    cluster = make_cluster(server, extension=False, max_prepared_transactions=2)
    _regress(tool("regress", "pg_regress"), cluster, SQL,
             extra=["--dbname=contrib_regression"])


def test_isolation(make_cluster, server, tool):
    assert SPECS
    cluster = make_cluster(server, extension=False)
    _regress(tool("isolation", "pg_isolation_regress"), cluster, SPECS,
             extra=["--dbname=isolation_regression"])
