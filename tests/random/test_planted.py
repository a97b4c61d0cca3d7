"""The random tester finds what is planted, says with which seed, and plays that seed again."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

RUN = pathlib.Path(__file__).resolve().parent / "run"
SEED = 7_000_000
LONG_ENOUGH = 150  # sequences; what is planted is found in the first few dozen

# Wrong expectations in the model, and bugs in the wrapper between it and the database.
ANYWHERE = ["re-entrant", "newest-first", "silent-loss", "busy-is-true", "wrong-code", "cancel-keeps"]
IN_TRANSACTIONS = ["rollback-keeps", "commit-anyway"]


def play(database, *more):
    done = subprocess.run([sys.executable, RUN, "--database", database, *map(str, more)], capture_output=True, text=True,
                          timeout=170, env=dict(os.environ), check=False)
    last = done.stdout.strip().splitlines()[-1]
    passed, failed = (int(n) for n in re.fullmatch(r"(\d+) passed, (\d+) failed", last).groups())
    assert (done.returncode == 0) == (failed == 0 and passed > 0), done.stdout
    return passed, failed, done.stdout


def found(database, planted):
    _, failed, shown = play(database, "--seed", SEED, "--sequences", LONG_ENOUGH, "--planted", planted, "--stop-at", 1)
    assert failed == 1, f"{planted} was not found"
    return int(re.search(r"failing seed (\d+)", shown).group(1)), shown


@pytest.mark.parametrize("planted", ANYWHERE)
def test_planted_in_sqlite(planted):
    seed, shown = found("sqlite", planted)
    assert "Difference" in shown
    again = play("sqlite", "--seed", seed, "--sequences", 1, "--planted", planted)
    assert again[:2] == (0, 1), again[2]
    assert play("sqlite", "--seed", seed, "--sequences", 1)[:2] == (1, 0)


@pytest.mark.parametrize("planted", IN_TRANSACTIONS)
def test_planted_in_postgres(planted):
    seed, _ = found("postgres", planted)
    assert play("postgres", "--seed", seed, "--sequences", 1)[:2] == (1, 0)


def test_a_crash_is_a_failure_with_its_seed():
    seed, shown = found("sqlite", "crash")
    assert seed == SEED and "Segmentation fault" in shown


def test_a_machine_that_stood_still_is_no_failure():
    passed, failed, shown = play("sqlite", "--seed", SEED, "--sequences", 1, "--planted", "standstill")
    assert (passed, failed) == (1, 0) and re.search(rf"stood still for \d+ s: sequence {SEED} once more", shown), shown
