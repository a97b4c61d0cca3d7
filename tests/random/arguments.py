"""Random arguments, good and bad, and what a bad one must be called.

A bad argument has a code and a stage: what is wrong for the parser (0) is said before what a cast refuses (1), and that
before what the function itself refuses (2); within a stage the first one counts.
"""

from databases import Text

PARSER, CAST, FUNCTION = 0, 1, 2
LONGEST_KEY = 256
LEASE_MAX = 2147483647
SECONDS_MAX = 9223372036
NAN = float("nan")
INFINITE = float("inf")


class Argument:
    def __init__(self, parameter, value, code=None, stage=FUNCTION, meaning=None):
        self.parameter, self.value, self.code, self.stage, self.meaning = parameter, value, code, stage, meaning


class Arguments:
    """Of one sequence: its keys all begin with `family`, so that sequences never meet."""

    def __init__(self, random, family, sqlite):
        self.random, self.family, self.sqlite = random, family, sqlite
        self.names = ["a", "b", "größe-🔑", "42", "k" * (LONGEST_KEY - len(family.encode()))][: random.choice([1, 2, 2, 3, 5])]
        self.limits = {family + name: random.choice([1, 2, 2, 2, 3, 3, LEASE_MAX]) for name in self.names}
        self.kinds = {family + name: random.choice(["lock", "lock", "semaphore", "semaphore", "both"]) for name in self.names}

    def pick(self, good, bad, badness):
        """One of the good ones, or one of the bad as often as `badness` says."""
        return self.random.choice(bad if self.random.random() < badness else good)

    def full_key(self):
        return self.family + self.random.choice(self.names)

    def key(self, session, badness, key=None):
        """meaning: the key as servers know it."""
        full = key or self.full_key()
        if not full.startswith(session.prefix):  # out of its reach
            full = session.prefix + "a"
        text = full[len(session.prefix):]
        if self.random.random() >= badness:
            if self.sqlite and text == "42" and self.random.random() < 0.5:
                return Argument("key", 42, meaning=full)
            return Argument("key", text, meaning=full)
        room = LONGEST_KEY - len(session.prefix.encode())
        bad = [(None, "22004", FUNCTION), ("", "22023", FUNCTION), ("a b", "22023", FUNCTION), ("a\tb", "22023", FUNCTION),
               ("a\n", "22023", FUNCTION), ("\ra", "22023", FUNCTION), ("k" * (room + 1), "22023", FUNCTION),
               ("ü" * (room // 2 + 1), "22023", FUNCTION), ("k" * 70000, "22023", FUNCTION)]
        if self.sqlite:
            bad += [(value, "22023", FUNCTION) for value in (1.5, b"k", "a\0b", Text(b"\xff\xfe"), Text(b"\xed\xa0\x80"))]
        else:
            bad += [(42, "42883", PARSER), (b"k", "42883", PARSER)]
        value, code, stage = self.random.choice(bad)
        return Argument("key", value, code, stage)

    def timeout(self, badness, default_wait):
        """meaning: 0, short or long."""
        good = [(0, 0), (0, 0), (0.0, 0), (0.03, "short"), (0.12, "short"), (0.0001, "short"), (None, default_wait),
                (30, "long"), (INFINITE, "long"), (SECONDS_MAX, "long"), (45.5, "long")]
        bad = [(-1, "22023", FUNCTION), (-0.001, "22023", FUNCTION), (1e300, "22003", FUNCTION),
               (SECONDS_MAX + 1, "22003", FUNCTION), (-INFINITE, "22023", FUNCTION)]
        if self.sqlite:
            bad += [("5", "22023", FUNCTION), (b"", "22023", FUNCTION)]
            good += [(NAN, default_wait)]  # arrives as NULL
        else:
            bad += [(NAN, "22023", FUNCTION), ("soon", "22P02", CAST)]
        return self._numeric("timeout", good, bad, badness)

    def lease(self, badness):
        good = [(n, n) for n in (30, 45, 60, 3600, 86400, LEASE_MAX)] + [(None, None)]
        bad = [(0, "22023", FUNCTION), (-5, "22023", FUNCTION), (-LEASE_MAX - 1, "22023", FUNCTION)]
        if self.sqlite:
            good += [(60.0, 60)]
            bad += [(LEASE_MAX + 1, "22003", FUNCTION), (1 << 62, "22003", FUNCTION), (1e30, "22003", FUNCTION),
                    (1.5, "22023", FUNCTION), ("60", "22023", FUNCTION), (INFINITE, "22023", FUNCTION)]
        else:
            bad += [(LEASE_MAX + 1, "22003", CAST), (1 << 62, "22003", CAST), ("a", "22P02", CAST)]
        return self._numeric("lease_ttl", good, bad, badness)

    def slots(self, key, badness):
        limit = self.limits.get(key, 1)
        good = [(limit, limit)] * 25 + [(n, n) for n in (1, 2, 3, LEASE_MAX)]
        bad = [(None, "22004", FUNCTION), (0, "22023", FUNCTION), (-1, "22023", FUNCTION),
               (LEASE_MAX + 1, "22003", FUNCTION), ((1 << 63) - 1, "22003", FUNCTION)]
        if self.sqlite:
            good += [(float(limit), limit)]
            bad += [(2.5, "22023", FUNCTION), ("2", "22023", FUNCTION), (1e30, "22003", FUNCTION)]
        else:
            bad += [(1 << 70, "22003", CAST), ("two", "22P02", CAST)]
        return self._numeric("slots", good, bad, badness)

    def token(self, known, badness):
        good = list(known) + ["0" * 32, "f" * 32]
        bad = [(None, "22004"), ("", "22023"), ("xyz", "22023"), ("F" * 32, "22023"), ("0" * 31, "22023"),
               ("0" * 33, "22023"), ("é" * 16, "22023")]
        if self.sqlite:
            bad += [(5, "22023"), (b"0" * 32, "22023"), ("0" * 16 + "\0" * 16, "22023")]
        if self.random.random() < badness:
            value, code = self.random.choice(bad)
            return Argument("token", value, code)
        value = self.random.choice(good)
        return Argument("token", value, meaning=value)

    def verify(self, badness):
        good = [(True, True), (False, False)]
        bad = [(None, "22004", FUNCTION)]
        bad += [("t", "22023", FUNCTION), (0.5, "22023", FUNCTION)] if self.sqlite else [("perhaps", "22P02", CAST)]
        return self._numeric("verify", good, bad, badness)

    def _numeric(self, parameter, good, bad, badness):
        if self.random.random() < badness:
            value, code, stage = self.random.choice(bad)
            return Argument(parameter, value, code, stage)
        value, meaning = self.random.choice(good)
        return Argument(parameter, value, meaning=meaning)


def wrong(arguments):
    """The code that the bad ones among them must raise, or None."""
    bad = [(a.stage, i, a.code) for i, a in enumerate(arguments) if a.code]
    return min(bad)[2] if bad else None
