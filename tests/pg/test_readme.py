"""What the README shows for PostgreSQL is what happens."""

import pytest

from lib import readme
from lib.shell import PsqlShell

SQL = readme.blocks("sql", "postgresql")


@pytest.mark.every_version
@pytest.mark.parametrize("block", [text for _, text in SQL], ids=[f"line{line}" for line, _ in SQL])
def test_sql(block, pg, processes):
    readme.check(PsqlShell(processes, pg.dsn(), program=pg.installation.program("psql")), block)


def test_every_function_is_in_the_readme(session):
    functions = {name for (name,) in session.rows(
        "SELECT DISTINCT p.proname FROM pg_proc p JOIN pg_depend d ON d.objid = p.oid AND d.deptype = 'e' "
        "JOIN pg_extension e ON e.oid = d.refobjid WHERE e.extname = 'dflockd' AND p.proname LIKE 'dflock\\_%'")}
    assert len(functions) > 25
    text = readme.README.read_text("utf-8")
    # the functions behind the views are named by the views
    assert [name for name in sorted(functions) if name not in text] == []


def test_every_setting_is_in_the_table(session):
    text = readme.README.read_text("utf-8")
    section = text[text.index("\n## Settings\n"):text.index("\n## Errors\n")]
    names = [name.removeprefix("dflockd.") for (name,) in session.rows(
        "SELECT name FROM pg_settings WHERE name LIKE 'dflockd.%'")]
    assert len(names) >= 19
    assert [name for name in names if f"`{name}`" not in section] == []
