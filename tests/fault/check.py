"""Judges a history: each property is a function that yields what speaks against it, and is silent otherwise.

What is known for certain is little: clocks are read before and after, never at the moment itself. So every rule here is
one that no correct client can break whatever the machine's delays, and test_check.py shows that each can be broken.
"""

import bisect
import collections
import dataclasses

from fault.keys import KEYS, server_of

OFFICIAL = "official"
MS = 0.001
ROUNDING = 5 * MS  # the views show whole milliseconds
DELIVERY_S = 0.02  # for an end of a connection to arrive, on one machine

# After these the server may have given a lock away while its holder's last word is still yes.
UNSEEN = {"cut", "half-close", "server-kill-forget", "worker-kill"}
# These keep every answer from a holder: a lease that they outlast is over, for good.
SILENCE = {"client-stop", "server-stop", "black-hole", "worker-stop"}
HARMLESS = {"descriptors", "client-kill"}


@dataclasses.dataclass
class Section:
    """One grant in the hands of one client, as its lines in the history tell it."""

    name: str
    who: str
    kind: str
    key: str
    limit: int
    fence: int
    lease: float
    asked: float
    begin: float
    yes: list  # (from, deadline or None): moments at or after which the client was told that it holds the key
    end: float
    lost: float = None
    ended: bool = False
    commit: str = None
    commit_at: float = None
    writes: list = dataclasses.field(default_factory=list)  # (where, result, t)

    @property
    def slot(self):
        """The client's place, whichever life of it."""
        return self.who.rpartition(".")[0]


@dataclasses.dataclass
class Run:
    """All that a run has left behind."""

    events: list
    writes: dict  # database: rows (key, fence, who, section) in the order in which they were committed
    servers: int
    calm: bool = False
    sections: dict = dataclasses.field(default_factory=dict)
    faults: list = dataclasses.field(default_factory=list)
    malformed: list = dataclasses.field(default_factory=list)

    def __post_init__(self):
        for event in self.events:
            try:
                self._take(event)
            except (KeyError, TypeError) as error:
                self.malformed.append(f"{event}: {error!r}")
        self.by_key = collections.defaultdict(list)
        for section in self.sections.values():
            self.by_key[section.key].append(section)
        self.newest = {}
        for key, sections in self.by_key.items():
            sections.sort(key=lambda s: s.begin)
            self.newest[key] = Newest(sections)

    def _take(self, event):
        what = event["event"]
        if what == "begin":
            if event["section"] in self.sections:
                raise KeyError("begins twice")
            # Who takes a grant looks until when it holds: no deadline is a no. Official clients cannot say.
            sure = event["kind"] == OFFICIAL or event["deadline"] is not None
            self.sections[event["section"]] = Section(
                event["section"], event["who"], event["kind"], event["key"], event["limit"], event["fence"],
                event["lease"], event["asked"], event["from"], [(event["from"], event["deadline"])] if sure else [],
                event["t"])
        elif what == "fault":
            self.faults.append(event)
        elif "section" in event:
            self._add(self.sections[event["section"]], what, event)

    @staticmethod
    def _add(section, what, event):
        if what == "check" and event["yes"]:
            section.yes.append((event["from"], event["deadline"]))
        elif what == "write":
            section.writes.append((event["where"], event["result"], event["t"]))
        elif what == "commit":
            section.commit, section.commit_at = event["result"], event["t"]
        elif what == "lost":
            section.lost = event["t"]
        # A client that was killed believed in its hold until its last line; what is told after the end is afterwards.
        if not section.ended:
            section.end = max(section.end, event["t"])
        section.ended = section.ended or what in ("lost", "end")

    def named(self, what):
        return [e for e in self.events if e["event"] == what]

    def touches(self, fault, section):
        """Whether a fault can have met this grant at all."""
        target = fault["target"]
        server = server_of(section.key, self.servers)
        place = "pg" if section.kind == "postgres" else section.slot
        return target in (f"server:{server}", f"link:{place}:{server}", f"client:{section.who}", "machine") or (
            target == "pg" and section.kind == "postgres")

    def causes(self, section, until):
        """Faults between the request for this grant and a moment that met the grant."""
        return [f for f in self.faults if f["from"] <= until and f["until"] >= section.asked
                and f["kind"] not in HARMLESS and self.touches(f, section)]

    def unseen(self, section, since):
        """Whether a yes at this moment can be a loss that the client had not seen: that lasts for a lease at most."""
        return any(f["kind"] in UNSEEN and since - f["until"] <= section.lease for f in self.causes(section, since))


class Newest:
    """For one key: the section with the highest fence among all that had begun before a moment."""

    def __init__(self, sections):
        self._begins = [s.begin for s in sections]
        self._highest = []
        for section in sections:
            last = self._highest[-1] if self._highest else section
            self._highest.append(section if section.fence > last.fence else last)

    def before(self, moment):
        index = bisect.bisect_left(self._begins, moment)
        return self._highest[index - 1] if index else None


@dataclasses.dataclass
class Overlap:
    """More sections of a key at one moment than may be. `losers` may have lost theirs; the others may have not."""

    at: float
    losers: list
    winner: Section
    rivals: list  # all of them
    cause: str = None


def overlaps(run):
    found = []
    for key, sections in run.by_key.items():
        active = []
        for section in sections:
            active = [s for s in active if s.end > section.begin] + [section]
            if len(active) > KEYS.get(key, section.limit):
                found.append(_overlap(run, section, active))
    return found


def _overlap(run, section, active):
    newest_first = sorted(active, key=lambda s: -s.fence)
    losers = newest_first[1:] if section.limit == 1 else active
    overlap = Overlap(section.begin, losers, newest_first[0], active)
    causes = [f for loser in losers for f in run.causes(loser, section.begin)]
    if causes:
        overlap.cause = max(causes, key=lambda f: f["from"])["kind"]
    return overlap


# ------------------------------------------------------------------------ properties


def whole(run):
    """the history is whole, and every kind of client was in every kind of section"""
    yield from run.malformed
    seen = collections.Counter((s.kind, s.limit > 1) for s in run.sections.values())
    for kind in ("sqlite", "postgres", OFFICIAL):
        for semaphore in (False, True):
            if not seen[kind, semaphore]:
                yield f"no section of a {kind} client with a {'semaphore' if semaphore else 'lock'}"
    for database, rows in run.writes.items():
        if not rows:
            yield f"no guarded write in {database}"
    for kind in ("sqlite", "postgres"):
        if not any(deadline for s in run.sections.values() if s.kind == kind for _, deadline in s.yes):
            yield f"no deadline of a {kind} client was seen"


def fences(run):
    """fences of a key are never given twice, and grow with every grant, across restarts too"""
    for key, sections in run.by_key.items():
        by_fence = {}
        for section in sections:
            if section.fence in by_fence:
                yield f"{key}: {section.name} and {by_fence[section.fence]} have fence {section.fence}"
            by_fence[section.fence] = section.name
        yield from _order(key, sections, run.newest[key])


def _order(key, sections, newest):
    """A grant that was there before another was asked for has the lower fence."""
    for section in sections:
        before = newest.before(section.asked)
        if before and before.fence >= section.fence:
            yield f"{key}: {section.name} asked after {before.name} had begun and has no higher fence"


def guarded(run):
    """the guarded rows show no stale writer"""
    for database, rows in run.writes.items():
        highest = {}
        for key, fence, who, name in rows:
            if fence < highest.get(key, 0):
                yield f"{database}: {name} wrote {key} with fence {fence} after {highest[key]}"
            highest[key] = max(fence, highest.get(key, 0))
            section = run.sections.get(name)
            if section is None or (section.key, section.fence, section.who) != (key, fence, who):
                yield f"{database}: {name} wrote {key} with fence {fence}, which is nobody's section"


def refusals(run):
    """a guarded write is refused only to a client that somebody with a higher fence has followed"""
    for section in run.sections.values():
        for where, result, at in section.writes:
            if result == "stale" and run.newest[section.key].before(at).fence <= section.fence:
                yield f"{section.name}: its write to {where} was refused, and nobody was there after it"


def deadlines(run):
    """every yes of a check was said before the deadline that the client knew"""
    for section in run.sections.values():
        for since, deadline in section.yes:
            if deadline is not None and since > deadline + ROUNDING:
                yield f"{section.name}: yes {since - deadline:.3f} s after the deadline"


def silence(run):
    """a holder that hears nothing for a lease never says yes again"""
    for section, fault, said in silences(run):
        if said:
            yield (f"{section.name}: yes {said - fault['from']:.3f} s after a {fault['kind']} of "
                   f"{fault['until'] - fault['from']:.3f} s began, with a lease of {section.lease} s")


def silences(run):
    """(section, fault, moment of a yes or None) for every silence that outlasted a lease."""
    for fault in run.faults:
        if fault["kind"] not in SILENCE or fault["until"] - fault["from"] < min(2, run_lease(run)):
            continue
        for section in run.sections.values():
            if (section.kind != OFFICIAL and section.begin < fault["from"] < section.end
                    and fault["until"] - fault["from"] >= section.lease and _hears_nothing(run, fault, section)):
                late = [since for since, _ in section.yes if since > fault["from"] + section.lease]
                yield section, fault, late[0] if late else None


def run_lease(run):
    return min((s.lease for s in run.sections.values()), default=0)


def _hears_nothing(run, fault, section):
    """A stop of the client stops what renews only where that is the same process."""
    return run.touches(fault, section) and (fault["kind"] != "client-stop" or section.kind == "sqlite")


def cuts(run):
    """a SQLite client whose connection was reset or closed hears of it at its next check"""
    for fault in run.faults:
        if fault["kind"] != "cut":
            continue
        for section in run.sections.values():
            if section.kind == "sqlite" and section.begin < fault["from"] and run.touches(fault, section):
                late = [since for since, _ in section.yes if since > fault["until"] + DELIVERY_S]
                if late:
                    yield f"{section.name}: yes {late[0] - fault['until']:.3f} s after its connection was cut"


def overlapping(run):
    """two sections of a key overlap only after a fault that met the loser"""
    for overlap in overlaps(run):
        if overlap.cause is None:
            yield f"{overlap.winner.key}: {_names(overlap)} at {overlap.at:.3f}, and nothing had happened to a loser"


def _names(overlap):
    return ", ".join(f"{s.name} (fence {s.fence})" for s in overlap.rivals)


def claims(run):
    """a yes of a check while somebody else holds the key only after a cut, or a server that has forgotten"""
    for key, sections in run.by_key.items():
        if KEYS.get(key) == 1:
            yield from _claims_of_lock(run, sections, run.newest[key])
    for overlap in overlaps(run):
        if overlap.winner.limit > 1:
            sure = [s for s in overlap.rivals if s.kind != OFFICIAL and any(since > overlap.at for since, _ in s.yes)]
            newcomer = [s for s in overlap.rivals if s.begin == overlap.at and s not in sure]
            if len(sure) + len(newcomer) > overlap.winner.limit and not any(
                    run.unseen(s, overlap.at) for s in overlap.rivals):
                yield f"{overlap.winner.key}: {_names(overlap)} are all sure of it at {overlap.at:.3f}"


def _claims_of_lock(run, sections, newest):
    """A higher fence in a section means that the server had given up every lower one of that lock."""
    for loser in sections:
        if loser.kind == OFFICIAL:
            continue
        for since, _ in loser.yes:
            winner = newest.before(since)
            if winner and winner.fence > loser.fence and not run.unseen(loser, since):
                yield f"{loser.name} was told yes at {since:.3f}, {winner.name} had the lock since {winner.begin:.3f}"


def commits(run):
    """no COMMIT succeeds after a known loss"""
    committed = {name for _, _, _, name in run.writes.get("postgres", ())}
    for section in run.sections.values():
        if section.lost is not None and (section.commit == "done" or (section.commit and section.name in committed)):
            yield f"{section.name}: lost at {section.lost:.3f}, committed at {section.commit_at:.3f}"


def refused_commits(run):
    """a refused COMMIT leaves nothing behind"""
    committed = {name for _, _, _, name in run.writes.get("postgres", ())}
    for section in run.sections.values():
        if section.commit == "refused" and section.name in committed:
            yield f"{section.name}: its COMMIT was refused, and its row is there"
        if section.commit == "done" and section.name not in committed and any(
                w[:2] == ("postgres", "written") for w in section.writes):
            yield f"{section.name}: its COMMIT was done, and its row is not there"


def finished(run):
    """nobody waits for ever: once the faults stop, every client takes every key once more"""
    finishers = {e["who"] for e in run.named("finished")}
    if not finishers:
        yield "nobody has finished"
    for event in run.named("unfinished"):
        yield f"{event['client']} has not finished {event['seconds']:.0f} s after the last fault"


def free(run):
    """all locks are free at the end"""
    if not run.named("looked"):
        yield "nobody has looked"
    for event in run.named("left"):
        yield f"{event['server']}: {event['what']}"


def alive(run):
    """no client, server or backend died that was not killed"""
    for event in run.named("died"):
        yield f"{event['client']} ended with {event['status']}: {event['log']}"
    for event in run.named("crash"):
        yield event["line"]


def quiet(run):
    """without faults there is no overlap, no loss and no refused write"""
    for overlap in overlaps(run):
        yield f"{overlap.winner.key}: {_names(overlap)} at {overlap.at:.3f}"
    for section in run.sections.values():
        if section.lost is not None:
            yield f"{section.name} was lost"
        if any(result == "stale" for _, result, _ in section.writes):
            yield f"{section.name}: its write was refused"
        if section.commit not in (None, "done"):
            yield f"{section.name}: its COMMIT was {section.commit}"


PROPERTIES = (whole, fences, guarded, refusals, deadlines, silence, cuts, overlapping, claims, commits, refused_commits,
              finished, free, alive)


def judge(run):
    """(property, what speaks against it) for each."""
    return [(rule, list(rule(run))) for rule in (*PROPERTIES, *((quiet,) if run.calm else ()))]
