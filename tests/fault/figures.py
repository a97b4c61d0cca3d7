"""What a round was like, in numbers, for the reader of its report. Judges nothing."""

import collections

from fault.check import overlaps, silences
from fault.keys import KEYS, server_of

RECOVERY_WAIT_S = 20  # a server that remembers grants nothing for less than this after its start


def _counted(counter):
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items(), key=lambda i: (-i[1], i[0]))) or "none"


def lines(run):
    """(title, text) of each figure."""
    sections = run.sections.values()
    found = overlaps(run)
    writes = collections.Counter((where, result) for s in sections for where, result, _ in s.writes)
    quiet, waiting = recoveries(run)
    return [
        ("sections", str(len(sections))),
        ("grants", _counted(collections.Counter(s.kind for s in sections))),
        ("answers yes", str(sum(len(s.yes) for s in sections))),
        ("known losses", _counted(collections.Counter(s.kind for s in sections if s.lost is not None))),
        ("faults", _counted(collections.Counter(f["kind"] for f in run.faults))),
        ("silences past a lease", str(sum(1 for _ in silences(run)))),
        ("overlaps by cause", _counted(collections.Counter(o.cause or "NONE" for o in found))),
        ("guarded writes", _counted(collections.Counter(f"{where} {result}" for (where, result), n in writes.items()
                                                        for _ in range(n)))),
        ("refused stale writes", str(sum(n for (_, result), n in writes.items() if result == "stale"))),
        ("commits", _counted(collections.Counter(s.commit for s in sections if s.commit))),
        ("refused COMMITs", str(sum(s.commit == "refused" for s in sections))),
        ("COMMITs after a known loss", str(sum(s.lost is not None and s.commit is not None for s in sections))),
        ("refusals", _counted(collections.Counter(e["code"] for e in run.named("refused")))),
        ("cancelled, busy", f"{len(run.named('cancelled'))}, {len(run.named('busy'))}"),
        ("longest recovery", f"{quiet:.1f} s; {waiting:.1f} s where a server waited for old leases"),
    ]


def recoveries(run):
    """The longest time from the end of a fault to the next grant of a key of that server: without and with a recovery
    wait near."""
    begins = collections.defaultdict(list)
    for section in run.sections.values():
        begins[server_of(section.key, run.servers)].append(section.begin)
    longest = [0.0, 0.0]
    last = max((e["t"] for e in run.events), default=0)
    for fault in run.faults:
        for server in _met(run, fault):
            if not any(server_of(key, run.servers) == server for key in KEYS):
                continue
            following = min((b for b in begins[server] if b > fault["until"]), default=last)
            near = any(f["kind"] in ("server-kill-remember", "server-drain") and f["target"] == f"server:{server}"
                       and 0 <= fault["until"] + 0.001 - f["until"] < RECOVERY_WAIT_S for f in run.faults)
            longest[near] = max(longest[near], following - fault["until"])
    return longest


def _met(run, fault):
    kind, _, rest = fault["target"].partition(":")
    if kind == "server":
        return [int(rest)]
    if kind == "link":
        return [int(rest.rpartition(":")[2])]
    return range(run.servers)
