"""What the programs under test run under: nothing, or a checker of memory, which slows them down.

`make valgrind` and `make check SANITIZE=` say so in the environment. UNDER is the command that goes before each
program that loads the extension; PATIENCE says how many times longer than usual everything may take.
"""

import os
import shlex

UNDER = shlex.split(os.environ.get("UNDER", ""))
# Memory as the system counts it is then the checker's, which keeps what was freed.
INSTRUMENTED = bool(UNDER or os.environ.get("SANITIZE"))
PATIENCE = float(os.environ.get("PATIENCE", 1))


def patient(seconds):
    """An upper bound for a duration."""
    return seconds * PATIENCE


def fewer(count):
    """An amount of work that fits into the usual time. For amounts only that make a test long, not a test good."""
    return max(1, int(count / PATIENCE))
