"""What the README shows for SQLite is what happens."""

import subprocess

import pytest

from lib import readme
from lib.paths import BUILD, ROOT
from lib.process import clean_environment
from lib.under import UNDER, patient

SQL = readme.blocks("sql", "sqlite")
PYTHON = readme.blocks("python", "sqlite")


@pytest.mark.parametrize("block", [text for _, text in SQL], ids=[f"line{line}" for line, _ in SQL])
def test_sql(block, server, make_sqlite):
    readme.check(make_sqlite(servers=server, bail=False), block)


@pytest.mark.parametrize("block", [text for _, text in PYTHON], ids=[f"line{line}" for line, _ in PYTHON])
def test_python(block, server):
    script = block.replace("./build/dflockd", str(BUILD / "dflockd"))
    done = subprocess.run([*UNDER, "/usr/bin/python3", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=patient(60),
                          env=clean_environment({"DFLOCK_SERVERS": server.address}))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "alone in the world\n"


def test_every_function_has_its_example(server, make_sqlite):
    shell = make_sqlite(servers=server)
    functions = {name for (name,) in shell.query(
        "SELECT DISTINCT name FROM pragma_function_list WHERE name LIKE 'dflock\\_%' ESCAPE '\\'")}
    tables = {name for (name,) in shell.query(
        "SELECT name FROM pragma_module_list WHERE name IN ('dflock_locks', 'dflock_server_locks', 'dflock_servers')")}
    assert len(tables) == 3
    shown = "".join(text for _, text in SQL)
    # The transaction forms are one row of the table and one example: they all say the same here.
    told = {"dflock_xact_lock", "dflock_xact_sem_acquire", "dflock_xact_sem_lock"}
    assert functions - told - readme.names(shown) == set()
    assert readme.names(shown) <= functions
    assert [name for name in tables if name not in shown] == []
    text = readme.README.read_text("utf-8")
    assert [name for name in functions if name not in text] == []


def test_every_setting_is_in_the_table(server, make_sqlite):
    shell = make_sqlite(servers=server)
    text = readme.README.read_text("utf-8")
    section = text[text.index("\n## Settings\n"):text.index("\n## Errors\n")]
    named = {name for row in section.splitlines() if row.startswith("| `")
             for name in row.split("|")[1].replace("`", "").replace(" ", "").split(",")}
    for name in sorted(named):
        assert shell.value(f"SELECT dflock_config('{name}') IS NOT NULL") == "1"
    assert len(named) == 19
