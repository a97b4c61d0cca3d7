"""The checker finds what it is there to find: each planted history breaks one property, and that one speaks up.

A history is told in a few words: `section` makes a grant with what follows it, and times are plain small numbers.
"""

import itertools

import pytest

from fault import check
from fault.history import History, read


class Story:
    """A history in the making. By itself it is a correct one, of every kind of client and section."""

    def __init__(self, calm=False):
        self.calm = calm
        self.events, self.rows = [], {"sqlite": [], "postgres": []}
        self._numbers = itertools.count(1)
        for kind in ("sqlite", "postgres", "official"):
            self.section("till", 1, kind=kind, end=2)
            self.section("seats", 1, kind=kind, end=2)
            self.shift(10)
        self.write(self.begun("sqlite", "till"))
        self.write(self.begun("postgres", "till"), where="postgres")
        self.add("finished", who="sqlite-0.1", t=0)
        self.add("looked", t=0)

    def shift(self, seconds):
        """What is already told happened earlier."""
        for event in self.events:
            for field in ("t", "from", "at", "asked", "deadline", "until"):
                if event.get(field) is not None:
                    event[field] -= seconds

    def begun(self, kind, key):
        return next(e["section"] for e in self.events if e["event"] == "begin" and e["kind"] == kind and e["key"] == key)

    def add(self, event, t, who="driver", **fields):
        self.events.append({"t": t, "who": who, "event": event, **fields})

    def section(self, key, begin, end=None, kind="sqlite", who=None, fence=None, lease=2, asked=None, deadline=None):
        """A grant; returns its name. Without `end` the client was killed at once."""
        number = next(self._numbers)
        who = who or f"{kind}-{number}.1"
        name = f"{who}:{number}"
        self.add("begin", begin, who, section=name, kind=kind, key=key, limit=2 if key == "seats" else 1,
                 fence=number if fence is None else fence, lease=lease, asked=begin - 0.1 if asked is None else asked,
                 **{"from": begin}, deadline=None if kind == "official" else deadline or begin + 1.96)
        if end is not None:
            self.add("end", end, who, section=name)
        return name

    def of(self, name):
        return next(e for e in self.events if e["event"] == "begin" and e["section"] == name)

    def tell(self, name, event, t, **fields):
        self.add(event, t, self.of(name)["who"], section=name, **fields)

    def yes(self, name, since, deadline=None):
        self.tell(name, "check", since, **{"from": since}, at=since, yes=True, deadline=deadline or since + 1.9)

    def write(self, name, where="sqlite", t=0, result="written"):
        begin = self.of(name)
        self.tell(name, "write", t, where=where, result=result, **{"from": t})
        if result == "written":
            self.rows[where].append((begin["key"], begin["fence"], begin["who"], name))

    def fault(self, kind, target, since, until=None):
        self.add("fault", since, kind=kind, target=target, **{"from": since, "until": since if until is None else until})

    def run(self):
        return check.Run(self.events, self.rows, 1, self.calm)

    def against(self):
        """Names of the properties that are broken."""
        return [rule.__name__ for rule, against in check.judge(self.run()) if against]


@pytest.fixture
def story():
    return Story()


def test_a_correct_history_is_accepted(story):
    assert story.against() == []
    assert Story(calm=True).against() == []


@pytest.mark.parametrize("rule", [*check.PROPERTIES, check.quiet], ids=lambda r: r.__name__)
def test_every_property_is_broken_by_a_test_below(rule):
    text = open(__file__, encoding="utf-8").read()
    assert f'== ["{rule.__name__}"' in text


# ------------------------------------------------------------------- the history itself


def test_a_line_of_no_section(story):
    story.add("check", 3, "sqlite-1.1", section="nobody:1", yes=True, **{"from": 3}, deadline=4)
    assert story.against() == ["whole"]


def test_a_kind_of_client_that_did_nothing(story):
    story.events = [e for e in story.events if not str(e.get("section", "")).startswith("official")]
    assert story.against() == ["whole"]


def test_no_guarded_write(story):
    story.rows["postgres"].clear()
    assert story.against() == ["whole"]


def test_no_deadline_was_ever_seen(story):
    for event in story.events:
        if event.get("kind") == "postgres":
            event["deadline"] = None
    assert story.against() == ["whole"]


def test_a_history_of_several_writers(tmp_path):
    for who in ("a", "b"):
        writer = History(tmp_path / "history", who)
        for i in range(50):
            writer.record("busy", number=i)
        writer.close()
    events = read(tmp_path / "history")
    assert [(e["who"], e["number"]) for e in events] == [(who, i) for who in "ab" for i in range(50)]


# -------------------------------------------------------------------------------- fences


def test_the_same_fence_twice(story):
    story.section("till", 1, end=2, fence=50)
    story.section("till", 3, end=4, fence=50)
    assert story.against() == ["fences"]


def test_a_fence_that_went_back(story):
    story.section("till", 1, end=2, fence=50)
    story.section("till", 3, end=4, fence=49)
    assert story.against() == ["fences", "claims"]


def test_a_fence_that_went_back_long_ago(story):
    """The highest counts, not the neighbour."""
    story.section("till", 1, end=2, fence=50)
    story.section("till", 2.5, end=3, fence=60, asked=0.5)
    story.section("till", 3.5, end=4, fence=55, asked=3.2)
    assert story.against() == ["fences", "claims"]


def test_asked_before_the_other_began_may_have_any_order(story):
    """Its grant can have been the first, and have been on its way for long."""
    story.section("till", 1, end=2, fence=50)
    story.section("till", 3, end=4, fence=49, asked=0.5)
    story.fault("delay", "link:sqlite-8:0", 0.9, 3)
    assert "fences" not in story.against()


# ------------------------------------------------------------------------ guarded writes


def test_a_stale_writer(story):
    old = story.section("till", 1, end=2)
    story.write(story.section("till", 3, end=4))
    story.write(old)
    assert story.against() == ["guarded"]


def test_a_stale_writer_in_postgres(story):
    old = story.section("till", 1, end=2, kind="postgres")
    story.write(story.section("till", 3, end=4, kind="postgres"), where="postgres")
    story.write(old, where="postgres")
    assert story.against() == ["guarded"]


def test_a_row_of_nobody(story):
    story.rows["sqlite"].append(("till", 99, "sqlite-9.1", "sqlite-9.1:1"))
    assert story.against() == ["guarded"]


def test_a_row_with_anothers_fence(story):
    name = story.section("till", 1, end=2)
    story.rows["sqlite"].append(("till", 99, story.of(name)["who"], name))
    assert story.against() == ["guarded"]


def test_a_refused_write_of_the_newest_holder(story):
    story.write(story.section("till", 1, end=2), result="stale", t=1.5)
    assert story.against() == ["refusals"]


def test_a_refused_write_of_an_old_holder(story):
    old = story.section("till", 1, end=2)
    story.section("till", 3, end=4)
    story.write(old, result="stale", t=3.5)
    assert story.against() == []


# ---------------------------------------------------------------------- deadlines, silence


def test_a_yes_after_the_deadline(story):
    story.yes(story.section("till", 1, end=5), 3.5, deadline=3)
    assert story.against() == ["deadlines"]


def test_a_grant_taken_after_its_deadline(story):
    story.section("till", 1, end=1.5, deadline=0.9)
    assert story.against() == ["deadlines"]


def test_a_yes_within_the_rounding_of_a_view(story):
    story.yes(story.section("till", 1, end=5), 3.004, deadline=3)
    assert story.against() == []


@pytest.mark.parametrize("kind, who, fault, target", [
    ("sqlite", "sqlite-0.1", "client-stop", "client:sqlite-0.1"),
    ("sqlite", "sqlite-0.1", "server-stop", "server:0"),
    ("sqlite", "sqlite-0.1", "black-hole", "link:sqlite-0:0"),
    ("postgres", "postgres-0.1", "worker-stop", "pg"),
    ("postgres", "postgres-0.1", "black-hole", "link:pg:0"),
])
def test_a_hold_that_outlives_a_silence(story, kind, who, fault, target):
    name = story.section("till", 1, end=9, kind=kind, who=who)
    story.fault(fault, target, 2, 5)
    story.yes(name, 5.1, deadline=7)
    assert story.against() == ["silence"]


@pytest.mark.parametrize("kind, fault, target, until", [
    ("sqlite", "client-stop", "client:sqlite-0.1", 3.9),  # shorter than the lease
    ("sqlite", "client-stop", "client:sqlite-1.1", 5),  # somebody else's
    ("postgres", "client-stop", "client:postgres-0.1", 5),  # the worker renews
    ("official", "client-stop", "client:official-0.1", 5),  # that one promises nothing
])
def test_a_hold_that_may_outlive_a_stop(story, kind, fault, target, until):
    name = story.section("till", 1, end=9, kind=kind, who=f"{kind}-0.1")
    story.fault(fault, target, 2, until)
    story.yes(name, 5.1, deadline=7)
    assert story.against() == []


def test_a_yes_after_the_connection_was_cut(story):
    name = story.section("till", 1, end=4, who="sqlite-0.1")
    story.fault("cut", "link:sqlite-0:0", 1.5)
    story.yes(name, 1.6)
    assert story.against() == ["cuts"]


@pytest.mark.parametrize("kind, fault, target, since", [
    ("sqlite", "cut", "link:sqlite-0:0", 1.59),  # on its way
    ("sqlite", "cut", "link:sqlite-0:0", 0.99),  # the hold came over the next connection
    ("sqlite", "cut", "link:sqlite-1:0", 1.5),  # somebody else's
    ("sqlite", "half-close", "link:sqlite-0:0", 1.5),  # only the server may have seen it
    ("postgres", "cut", "link:pg:0", 1.5),  # another process sees it
])
def test_a_yes_after_a_cut_that_was_none(story, kind, fault, target, since):
    name = story.section("till", 1, end=4, kind=kind, who=f"{kind}-0.1")
    story.fault(fault, target, since)
    story.yes(name, 1.6)
    assert story.against() == []


# ---------------------------------------------------------------------------- overlaps


def test_an_overlap_without_a_cause(story):
    story.section("till", 1, end=4)
    story.section("till", 3, end=5)
    assert story.against() == ["overlapping"]


def test_an_overlap_of_killed_clients(story):
    """A client that was killed held the key as long as it said so."""
    story.yes(story.section("till", 1), 3.5)
    story.section("till", 3, end=5)
    assert "overlapping" in story.against()


def test_three_slots_of_two(story):
    for begin in (1, 1.5, 1.8):
        story.section("seats", begin, end=4)
    assert story.against() == ["overlapping"]


def test_two_slots_of_two(story):
    story.section("seats", 1, end=4)
    story.section("seats", 2, end=5)
    assert story.against() == []


@pytest.mark.parametrize("fault, target, since, until", [
    ("cut", "link:sqlite-1:0", 2, 2),  # somebody else's connection
    ("cut", "link:sqlite-0:1", 2, 2),  # to another server
    ("cut", "link:sqlite-0:0", 0.5, 0.5),  # before the request
    ("cut", "link:sqlite-0:0", 3.5, 3.5),  # when the other was there already
    ("client-stop", "client:sqlite-0.2", 2, 5),  # another life
    ("worker-stop", "pg", 2, 5),  # not in PostgreSQL
    ("descriptors", "server:0", 2, 2.5),  # ends no lease
])
def test_a_fault_that_is_no_cause(story, fault, target, since, until):
    story.section("till", 1, end=4, who="sqlite-0.1")
    story.section("till", 3, end=5, who="sqlite-2.1")
    story.fault(fault, target, since, until)
    assert story.against() == ["overlapping"]


def test_an_overlap_with_its_cause(story):
    story.section("till", 1, end=4, who="sqlite-0.1")
    story.section("till", 3, end=5)
    story.fault("cut", "link:sqlite-0:0", 2)
    assert story.against() == []
    assert [o.cause for o in check.overlaps(story.run())] == ["cut"]


def test_a_fault_of_the_newcomer_is_no_cause(story):
    story.section("till", 1, end=4, who="sqlite-0.1")
    story.section("till", 3, end=5, who="sqlite-2.1")
    story.fault("cut", "link:sqlite-2:0", 2)
    assert story.against() == ["overlapping"]


# ------------------------------------------------------------------------------- claims


def two_holders(story, said=3.5):
    """One who says yes although another one has come, and both would have a cause to overlap."""
    first = story.section("till", 1, end=4, who="sqlite-0.1")
    story.section("till", 3, end=5)
    story.yes(first, said)
    return first


def test_a_yes_beside_another_holder(story):
    two_holders(story)
    story.fault("delay", "link:sqlite-0:0", 1.5, 2.5)
    assert story.against() == ["claims"]


def test_a_yes_after_another_holder_had_come_and_gone(story):
    first = story.section("till", 1, end=9, who="sqlite-0.1")
    story.section("till", 3, end=4)
    story.yes(first, 5)
    story.fault("delay", "link:sqlite-0:0", 1.5, 2.5)
    assert story.against() == ["claims"]


def test_a_grant_that_is_read_late_and_known_to_be_lost(story):
    """The client was stopped when its answer came, and its session knew of the loss when it went on."""
    loser = story.section("till", 3, end=3.1, kind="postgres", fence=20, asked=1)
    story.of(loser)["deadline"] = None
    story.section("till", 2, end=2.5, fence=21)
    story.tell(loser, "check", 3.05, **{"from": 3.05}, at=3.05, yes=False)
    assert story.against() == []


def test_a_server_that_remembers_is_no_excuse(story):
    two_holders(story)
    story.fault("server-kill-remember", "server:0", 2, 2.5)
    assert story.against() == ["claims"]


def test_a_server_that_forgets_is_one(story):
    two_holders(story)
    story.fault("server-kill-forget", "server:0", 2, 2.5)
    assert story.against() == []


def test_an_unseen_loss_lasts_for_a_lease_at_most(story):
    first = story.section("till", 1, end=9, who="sqlite-0.1")
    story.section("till", 3, end=8)
    story.fault("half-close", "link:sqlite-0:0", 2)
    story.yes(first, 4.5)
    assert story.against() == ["claims"]


def test_three_sure_of_two_slots(story):
    names = [story.section("seats", begin, end=6, who=f"sqlite-{begin}.1") for begin in (1, 2, 3)]
    for name in names:
        story.yes(name, 4)
    story.fault("delay", "link:sqlite-1:0", 1.5, 2)
    assert story.against() == ["claims"]


def test_three_of_two_slots_one_of_them_cut(story):
    names = [story.section("seats", begin, end=6, who=f"sqlite-{begin}.1") for begin in (1, 2, 3)]
    for name in names:
        story.yes(name, 3.5)
    story.fault("half-close", "link:sqlite-2:0", 2.5)
    assert story.against() == []


# ------------------------------------------------------------------------------- commits


def test_a_commit_after_a_known_loss(story):
    name = story.section("till", 1, kind="postgres")
    story.tell(name, "lost", 2, why="a check said no")
    story.tell(name, "commit", 3, result="done")
    assert story.against() == ["commits"]


def test_a_commit_after_a_known_loss_whose_answer_was_lost(story):
    name = story.section("till", 1, kind="postgres")
    story.write(name, where="postgres")
    story.tell(name, "lost", 2, why="a check said no")
    story.tell(name, "commit", 3, result="failed")
    assert story.against() == ["commits"]


def test_a_refused_commit(story):
    name = story.section("till", 1, kind="postgres")
    story.tell(name, "lost", 2, why="a check said no")
    story.tell(name, "commit", 3, result="refused")
    assert story.against() == []


def test_a_refused_commit_that_left_its_row(story):
    name = story.section("till", 1, end=2, kind="postgres")
    story.write(name, where="postgres")
    story.tell(name, "commit", 3, result="refused")
    assert story.against() == ["refused_commits"]


def test_a_commit_without_its_row(story):
    name = story.section("till", 1, end=2, kind="postgres")
    story.write(name, where="postgres")
    story.rows["postgres"].pop()
    story.tell(name, "commit", 3, result="done")
    assert story.against() == ["refused_commits"]


# ------------------------------------------------------------------------------- the end


def test_somebody_waits_for_ever(story):
    story.add("unfinished", 60, client="sqlite-0.1", seconds=60)
    assert story.against() == ["finished"]


def test_nobody_has_finished(story):
    story.events = [e for e in story.events if e["event"] != "finished"]
    assert story.against() == ["finished"]


def test_a_lock_that_is_left(story):
    story.add("left", 60, server="server0", what="till")
    assert story.against() == ["free"]


def test_nobody_has_looked(story):
    story.events = [e for e in story.events if e["event"] != "looked"]
    assert story.against() == ["free"]


@pytest.mark.parametrize("event, fields", [("died", {"client": "sqlite-0.1", "status": -11, "log": ""}),
                                           ("crash", {"line": "terminated by signal 11"})])
def test_somebody_crashed(story, event, fields):
    story.add(event, 60, **fields)
    assert story.against() == ["alive"]


# ---------------------------------------------------------------------------- without faults


def test_a_loss_without_faults():
    story = Story(calm=True)
    story.tell(story.section("till", 1), "lost", 2, why="a check said no")
    assert story.against() == ["quiet"]


def test_an_overlap_without_faults():
    story = Story(calm=True)
    story.section("till", 1, end=4)
    story.section("till", 3, end=5)
    story.fault("stall", "machine", 1, 3)
    assert story.against() == ["quiet"]


def test_a_refused_commit_without_faults():
    story = Story(calm=True)
    story.tell(story.section("till", 1, end=2, kind="postgres"), "commit", 3, result="refused")
    assert story.against() == ["quiet"]


def test_a_refused_write_without_faults():
    story = Story(calm=True)
    old = story.section("till", 1, end=2)
    story.section("till", 3, end=4)
    story.write(old, result="stale", t=3.5)
    assert story.against() == ["quiet"]
