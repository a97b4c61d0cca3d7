"""The append-only history of a run: what clients believed and did, and what was done to them, one JSON line each.

Times are seconds of CLOCK_BOOTTIME, the clock by which leases are counted; all processes of a machine share it.
Every line has `t` (when it was written), `who` and `event`. A critical section is one grant in the hands of one client:

    begin   section, kind, key, limit, fence, lease, asked (before the request), from (after the grant), deadline
    check   section, from and at (before and after the question), yes, deadline (only with a yes)
    write   section, where, result: written, stale (the guard refused it), failed
    lost    section: the client knows that the lease is gone
    end     section: the client stops counting on it; written before the release or COMMIT is sent
    commit  section, result: done, refused (40001), failed

Outside of sections: `refused` (no grant, code), `busy`, `cancelled`, `finished` (a client's last round is over). By the
driver: `fault` (kind, target, from, until), `died` (a client that nobody killed), `unfinished`, `left` (still on a
server at the end), `crash` (a line of PostgreSQL's log).
"""

import json
import os
import time


def now():
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class History:
    """One writer of a history that has many. A line is a single write to the end of the file, so none is torn."""

    def __init__(self, path, who):
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._who = who

    def record(self, event, **fields):
        line = json.dumps({"t": now(), "who": self._who, "event": event, **fields}, separators=(",", ":")) + "\n"
        data = line.encode()
        written = os.write(self._fd, data)
        assert written == len(data), "the history's disk is full"

    def close(self):
        os.close(self._fd)


def read(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
