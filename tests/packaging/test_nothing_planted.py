"""What is built for use has nothing in it of the bugs that are planted for tests."""

import subprocess

import pytest

from lib.paths import BUILD, DFLOCKD_LOCAL, SQLITE_EXTENSION

MODULES = sorted(BUILD.glob("pg-*/dflockd.so"))


@pytest.mark.parametrize("built", [DFLOCKD_LOCAL, SQLITE_EXTENSION, *MODULES], ids=str)
def test_nothing_planted(built):
    names = subprocess.run(["nm", built], capture_output=True, text=True, check=True).stdout
    assert "dfl_fail" in names, "no symbols to look at"
    assert "dfl_planted" not in names
    assert b"PLANTED_BUG" not in built.read_bytes()
