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


WHO = {"reload": "sighup", "reload, superuser": "sighup", "anyone": "user", "superuser": "superuser",
       "restart": "postmaster"}


def test_the_table_of_settings(session):
    """Names, defaults, and who may set them, as the server has them."""
    text = readme.README.read_text("utf-8")
    section = text[text.index("\n## Settings\n"):text.index("\n## Errors\n")]
    documented = {}
    for row in section.splitlines():
        if row.startswith("| `"):
            names, default, _, who = (cell.strip() for cell in row.strip("|").split("|"))
            for name in names.replace("`", "").split(", "):
                documented[name] = (default.strip("`"), WHO[who.strip()])
    settings = {name.removeprefix("dflockd."): (default, context) for name, default, context in session.rows(
        "SELECT name, boot_val, context FROM pg_settings WHERE name LIKE 'dflockd.%'")}
    assert documented == settings
