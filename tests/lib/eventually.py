"""Waiting for conditions, never for time."""

import time

from lib.under import patient

DEADLINE_S = 20.0  # generous: the machine may be small and busy


class NotInTime(AssertionError):
    """A condition did not come true before its deadline."""


def eventually(condition, deadline=DEADLINE_S, what=None, every=0.01):
    """Calls `condition` until it answers something true, and returns that.

    An AssertionError raised by the condition counts as "not yet" and is shown if the time runs out.
    """
    deadline = patient(deadline)
    end = time.monotonic() + deadline
    last = None
    while True:
        try:
            answer = condition()
            last = None
            if answer:
                return answer
        except AssertionError as error:
            last = error
        if time.monotonic() >= end:
            name = what or getattr(condition, "__doc__", None) or getattr(condition, "__name__", "condition")
            raise NotInTime(f"not true after {deadline} s: {name}") from last
        time.sleep(every)


def always(condition, seconds, what=None, every=0.02):
    """Checks that `condition` stays true for `seconds`. For "nothing happens" only, where no event can be awaited."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert condition(), what or getattr(condition, "__name__", "condition") + " stopped being true"
        time.sleep(every)


class Stopwatch:
    """How long a block took: `with Stopwatch() as took: ...; assert took.s < 1`."""

    def __enter__(self):
        self._from = time.monotonic()
        self._s = None
        return self

    def __exit__(self, *exc):
        self._s = time.monotonic() - self._from

    @property
    def s(self):
        return time.monotonic() - self._from if self._s is None else self._s
