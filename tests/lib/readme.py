"""The README's examples: fenced blocks whose first line names what runs them, as in ```sql sqlite.

In a block of SQL every statement ends at a `;` at the end of a line, or before the comment that says what is
expected:

    SELECT ...;                 succeeds; nothing more is said
    SELECT ...;  -- 1           one row, one column
    SELECT ...;  -- a|b, c|d    two rows of two columns
    SELECT ...;  -- ...         succeeds with whatever
    SELECT ...;  -- error LK010 fails with that code

Lines that begin with -- are for the reader.
"""

import re

from lib.paths import ROOT

README = ROOT / "README.md"


def blocks(language, host):
    """[(line number, text)] of the fenced blocks marked so."""
    text = README.read_text("utf-8")
    found = re.finditer(rf"^```{language} {host}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, m.start()) + 1, m.group(1)) for m in found]


def statements(block):
    """[(sql, expected)] of a block; expected is None where nothing is said."""
    found, sql = [], []
    for line in block.splitlines():
        if not line.strip() or line.lstrip().startswith("--"):
            continue
        end = re.fullmatch(r"(.*;)(?:\s*-- (.*))?", line)
        sql.append(end.group(1) if end else line)
        if end:
            found.append(("\n".join(sql), end.group(2)))
            sql = []
    assert not sql, f"a statement without its end: {sql}"
    return found


def check(shell, block):
    """Runs a block's statements in one session, each answer as the README says."""
    for sql, expected in statements(block):
        result = shell.run(sql)
        if expected is not None and expected.startswith("error "):
            assert result.failed and result.sqlstate == expected.split()[1], result
            continue
        assert not result.failed, result
        if expected not in (None, "..."):
            rows = ", ".join("|".join("" if f is None else f for f in row) for row in result.rows)
            assert rows == expected.strip(), result


def names(text):
    """The functions of ours that a text calls."""
    return set(re.findall(r"\b(dflock_[a-z_]+)\(", text))
