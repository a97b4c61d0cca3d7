"""Times in which the whole process got nothing done: the machine was suspended or busy, and nobody has done it."""

import threading
import time

BEAT_S = 0.1


class Standstills:
    """Calls tell(start, end) for each of `seconds` or more, by the clock that goes on while the machine sleeps."""

    def __init__(self, seconds, tell):
        self._seconds, self._tell = seconds, tell
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()

    def _watch(self):
        last = _now()
        ended = False
        while not ended:
            ended = self._ended.wait(BEAT_S)
            here = _now()
            if here - last >= self._seconds:
                self._tell(last, here)
            last = here


def _now():
    return time.clock_gettime(time.CLOCK_BOOTTIME)
