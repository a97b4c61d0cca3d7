"""One random sequence: sessions that call, wait, cancel, lose, end; after each step, all that can be seen is compared with
the model."""

import itertools
import json
import random
import threading
import time

from arguments import Arguments, wrong
from databases import CANCELED, Outcome
from lockmodel import HELD, LOCK, LOST, SEM, SESSION, XACT, Expected, Model
from lib.wire import Closed, Wire

STEPS = (15, 60)
# Nothing may depend on time: a sequence ends before outside leases are half over or idle keys are collected.
LONGEST_S = 10.0
SETTLE_S = 20.0
OUTSIDE_LEASE = 120
CANCEL_AGAIN_S = 0.5  # a cancel takes a fifth of it at most
DEFAULT_TIMEOUT_S = 0.1  # the setting acquire_timeout of all sessions


class Difference(Exception):
    """The database and the model do not agree."""


class Canceled(Exception):
    """A call was cancelled in a race with its own end."""


class Player:
    """A session with its connection."""

    def __init__(self, state, connection):
        self.state, self.connection = state, connection

    @property
    def waits(self):
        return self.state.pending is not None


class Sequence:
    def __init__(self, seed, database, server, dialect, planted=(), attempt=0):
        self.seed, self.database, self.server = seed, database, server
        self.random = random.Random(f"{database.name} {seed}")
        self.sqlite = not database.transactions
        self.family = f"{seed}.{attempt}:" if attempt else f"{seed}:"
        self.arguments = Arguments(self.random, self.family, self.sqlite)
        self.model = Model(fences=dialect == "bundled", leaves_late=dialect != "bundled", planted=planted)
        self.planted = frozenset(planted)
        self.trace = []
        self.steps = 0
        self.players = []
        self.savepoints = itertools.count(1)
        self.outside = Wire(server.address)
        self.watch = Wire(server.address)
        self.tokens = []

    # ------------------------------------------------------------------- running

    def run(self):
        started = time.monotonic()
        try:
            for _ in range(self.random.randint(2, 4)):
                self.join()
            for _ in range(self.random.randint(*STEPS)):
                if time.monotonic() - started > LONGEST_S:
                    break
                self.step()
                self.steps += 1
                self.compare()
            self.wind_up()
        finally:
            self.outside.close()
            self.watch.close()
            for player in self.players:
                self.abandon(player)

    def abandon(self, player):
        """Whatever state it is in."""
        if player.connection.busy:
            self.database.cancel(player.connection)
        if not player.connection.busy or player.connection.ended(5.0) is not None:
            player.connection.busy = False
            player.connection.close()

    def note(self, text):
        self.trace.append(f"{len(self.trace):3} {text}")

    def join(self):
        state = self.model.session()
        self.players.append(Player(state, self.database.open(state)))

    def step(self):
        player = self.random.choice(self.players)
        if player.waits:
            if self.random.random() < 0.25:
                self.random.choice(self.endings())(player)
            return
        if player.state.aborted and self.random.random() < 0.7:
            self.undo(player)
            return
        choices, weights = zip(*self.repertoire(player.state))
        self.random.choices(choices, weights)[0](player)

    def endings(self):
        if self.sqlite:
            return [self.cancel]
        return [self.cancel, self.cancel, self.cancel, self.terminate]

    def repertoire(self, s):
        steps = [(self.acquire, 30), (self.release, 16), (self.look, 22), (self.enqueue, 8), (self.wait, 10),
                 (self.leave, 3), (self.release_token, 8), (self.release_all, 1.5), (self.learn, 10), (self.renew, 4),
                 (self.others, 2), (self.settings, 2), (self.outsider, 6), (self.betray, 4), (self.race, 5),
                 (self.leave_and_return, 1)]
        if self.sqlite:
            return steps + [(self.count_wrong, 1)]
        steps += [(self.no_such, 1), (self.lock_timeout, 2), (self.reset, 1)]
        if s.levels:
            return steps + [(self.savepoint, 8), (self.back, 6), (self.release_savepoint, 3), (self.commit, 10),
                            (self.rollback, 3), (self.prepare, 1), (self.forsake, 8)]
        return steps + [(self.begin, 12), (self.terminate, 0.5)]

    # ------------------------------------------------------------------ one call

    def call(self, player, name, arguments, expected, deadline=None):
        """Runs a function and compares. `expected` is a function of no argument, asked only if the arguments are good."""
        s = player.state
        code = wrong(arguments)
        pairs = [(a.parameter, a.value) for a in arguments]
        shown = f"{s}: {name}({', '.join(self._short(v) for _, v in pairs)})"
        if s.aborted:
            code = "25P02"
        if self.sqlite and "xact_" in name:
            code = "0A000"
        want = Expected(code=code) if code else expected()
        player.connection.start("call", name, pairs)
        if want.waits is not None and want.waits.hold is None:
            s.pending = want
            self.note(f"{shown} waits")
            return None
        outcome = player.connection.finish()
        self.note(f"{shown} -> {outcome}")
        self.judge(s, want, outcome)
        self.meanwhile()
        return outcome

    @staticmethod
    def _short(value):
        text = repr(value)
        return text if len(text) < 60 else f"{text[:30]}... ({len(value)})"

    def judge(self, s, want, outcome):
        outcome = self._tampered(outcome)
        if want.code:
            if outcome.code != want.code:
                raise Difference(f"{s}: expected {want}, got {outcome}")
            if s.levels and not s.aborted:
                self.model.failed(s)
            return
        if outcome.code:
            raise Difference(f"{s}: expected {want}, got {outcome}")
        if not want.fits(outcome.value):
            raise Difference(f"{s}: expected {want}, got {outcome}")
        if want.warning is not None and not self.sqlite and outcome.warned != want.warning:
            raise Difference(f"{s}: a warning was {'' if want.warning else 'not '}expected")
        want.then(outcome.value)

    def _tampered(self, outcome):
        """Planted bugs of a wrapper."""
        if "busy-is-true" in self.planted and outcome.value in (0, False) and outcome.code is None:
            return Outcome(not outcome.value, warned=outcome.warned)
        if "wrong-code" in self.planted and outcome.code == "55006":
            return Outcome(code="55000", text=outcome.text)
        return outcome

    def meanwhile(self):
        """Calls that waited and have come to their turn end now, and may make others end."""
        ended = True
        while ended:
            ended = False
            for player in self.players:
                pending = player.state.pending
                if pending is None or pending.waits.hold is None:
                    continue
                if player.connection.ended(SETTLE_S) is None:
                    raise Difference(f"{player.state}: expected the turn for {pending.waits.key!r}, still waits")
                outcome = player.connection.finish()
                self.note(f"{player.state}: its turn -> {outcome}")
                player.state.pending = None
                self.judge(player.state, pending, outcome)
                ended = True

    # ------------------------------------------------------------------ functions

    def badness(self):
        return self.random.choice([0, 0, 0, 0.15])

    def kind_of(self, key):
        kind = self.arguments.kinds.get(key, "lock")
        if kind == "both" or self.random.random() < 0.05:
            kind = self.random.choice([LOCK, SEM])
        return LOCK if kind == "lock" else SEM

    def _timing(self, badness, names=("timeout", "lease_ttl")):
        """Timeout and lease, either or both left out."""
        timeout, lease = self.arguments.timeout(badness, "short"), self.arguments.lease(badness)
        how = self.random.randint(0, 3)
        if how == 0:
            return "short", None, []
        if how == 1:
            return timeout.meaning, None, [timeout]
        if how == 2 and not self.sqlite:
            return "short", lease.meaning, [lease]
        return timeout.meaning, lease.meaning, [timeout, lease]

    def acquire(self, player):
        s, badness = player.state, self.badness()
        key = self.arguments.key(s, badness)
        kind = self.kind_of(key.meaning)
        scope = XACT if self.random.random() < (0.3 if not self.sqlite else 0.03) else SESSION
        answers = {"acquire": "bool", "lock": "fence"}
        if not self.sqlite and scope == SESSION:
            answers["take"] = "none"
        verb = self.random.choice(list(answers))
        name = f"dflock_{'xact_' if scope == XACT else ''}{'sem_' if kind == SEM else ''}{verb}"
        arguments, slots = [key], 1
        if kind == SEM:
            given = self.arguments.slots(key.meaning, badness)
            arguments, slots = [key, given], given.meaning
        wait, lease, timing = self._timing(badness)
        arguments += timing
        self.call(player, name, self._one_stage(arguments),
                  lambda: self.model.acquire(s, key.meaning, kind, slots, wait, lease, scope, answers[verb]))

    def _one_stage(self, arguments):
        """Of what parser and casts refuse, PostgreSQL may find any first: all but the first such argument are bent."""
        early = [a for a in arguments if a.code and a.stage < 2]
        for a in early[1:]:
            a.value, a.code, a.stage = -1, "22023", 2
            if a.parameter == "verify":
                a.value, a.code = None, "22004"
        return arguments

    def enqueue(self, player):
        s, badness = player.state, self.badness()
        key = self.arguments.key(s, badness)
        kind = self.kind_of(key.meaning)
        arguments, slots = [key], 1
        if kind == SEM:
            given = self.arguments.slots(key.meaning, badness)
            arguments, slots = [key, given], given.meaning
        lease = self.arguments.lease(badness)
        if self.random.random() < 0.5:
            arguments.append(lease)
        else:
            lease.meaning = None
        self.call(player, f"dflock_{'sem_' if kind == SEM else ''}enqueue", self._one_stage(arguments),
                  lambda: self.model.enqueue(s, key.meaning, kind, slots, lease.meaning))

    def interesting_key(self, s, states=(HELD, LOST, "place")):
        """Rather a key of which the session has something."""
        own = [h.key for h in s.holds if h.state in states and h.key.startswith(s.prefix)]
        return self.random.choice(own) if own and self.random.random() < 0.8 else None

    def wait(self, player):
        s, badness = player.state, self.badness()
        key = self.arguments.key(s, badness, self.interesting_key(s, ("place",)))
        place = s.place(key.meaning) if key.meaning else None
        kind = place.kind if place and self.random.random() < 0.9 else self.kind_of(key.meaning)
        timeout = self.arguments.timeout(badness, "short")
        arguments = [key, timeout] if self.random.random() < 0.7 else [key]
        wait = timeout.meaning if len(arguments) == 2 else "short"
        self.call(player, f"dflock_{'sem_' if kind == SEM else ''}wait", self._one_stage(arguments),
                  lambda: self.model.wait(s, key.meaning, kind, wait))

    def leave(self, player):
        s = player.state
        key = self.arguments.key(s, self.badness(), self.interesting_key(s, ("place",)))
        self.call(player, "dflock_cancel", [key], lambda: self.model.cancel(s, key.meaning))

    def release(self, player):
        s = player.state
        key = self.arguments.key(s, self.badness(), self.interesting_key(s))
        own = s.which(key.meaning) if key.meaning else None
        kind = own.kind if own and self.random.random() < 0.9 else self.kind_of(key.meaning)
        self.call(player, f"dflock_{'sem_' if kind == SEM else ''}release", [key],
                  lambda: self.model.release(s, key.meaning, kind))

    def release_token(self, player):
        s, badness = player.state, self.badness()
        known = [h for h in self.model._known() if h.token and h.key.startswith(s.prefix)]
        hold = self.random.choice(known) if known and self.random.random() < 0.9 else None
        key = self.arguments.key(s, badness, hold.key if hold else None)
        token = self.arguments.token([hold.token] * 10 if hold else self.tokens[-5:], badness)
        kind = hold.kind if hold and self.random.random() < 0.9 else self.kind_of(key.meaning)
        self.call(player, f"dflock_{'sem_' if kind == SEM else ''}release", [key, token],
                  lambda: self.model.release_token(s, key.meaning, kind, token.meaning))

    def release_all(self, player):
        s = player.state
        self.call(player, "dflock_release_all", [], lambda: self.model.release_all(s))

    def renew(self, player):
        s, badness = player.state, self.badness()
        key = self.arguments.key(s, badness, self.interesting_key(s))
        lease = self.arguments.lease(badness)
        arguments = [key, lease] if self.random.random() < 0.6 else [key]
        self.call(player, "dflock_renew", self._one_stage(arguments),
                  lambda: self.model.renew(s, key.meaning, lease.meaning if len(arguments) == 2 else None))

    def learn(self, player):
        """Its token, for others to use."""
        s = player.state
        key = self.arguments.key(s, 0, self.interesting_key(s, (HELD,)))
        outcome = self.call(player, "dflock_token", [key], lambda: self.model.token(s, key.meaning))
        if outcome.value and outcome.code is None:
            self.tokens.append(outcome.value)

    def look(self, player):
        s, badness = player.state, self.badness()
        key = self.arguments.key(s, badness, self.interesting_key(s))
        name = self.random.choice(["is_held", "assert_held", "lease", "fence", "token"])
        arguments = [key]
        if name == "assert_held":
            verify = self.arguments.verify(badness)
            if self.random.random() < 0.5:
                arguments.append(verify)
            flag = verify.meaning if len(arguments) == 2 else False
            self.call(player, "dflock_assert_held", self._one_stage(arguments),
                      lambda: self.model.assert_held(s, key.meaning, flag))
        else:
            self.call(player, f"dflock_{name}", arguments, lambda: getattr(self.model, name)(s, key.meaning))

    def others(self, player):
        s = player.state
        name = self.random.choice(["stats", "ping", "version", "token_fence"])
        if name == "token_fence":
            token = self.arguments.token(self.tokens, 0.3)
            if token.meaning is not None:
                fence = int(token.meaning[:16], 16)
                expected = Expected(value=fence) if fence < 1 << 63 else Expected(code="22003")
            self.call(player, "dflock_token_fence", [token], lambda: expected)
        else:
            self.call(player, f"dflock_{name}", [], lambda: Expected(check=lambda v: self.says(name, v)))

    def says(self, name, value):
        if name == "version":
            return value.startswith("dflockd ")
        if name == "ping":
            return bool(value)
        body = json.loads(value) if isinstance(value, str) else value
        answer = body[self.server.address]
        return answer["connections"] > 0 and "locks" in answer

    def count_wrong(self, player):
        name, count = self.random.choice([("dflock_acquire", 0), ("dflock_release_all", 2), ("dflock_wait", 3),
                                          ("dflock_sem_acquire", 1), ("dflock_config", 0)])
        pairs = [self.arguments.key(player.state, 0) for _ in range(count)]
        self.call(player, name, pairs, lambda: Expected(code="22023"))

    def no_such(self, player):
        """Arguments that no function has."""
        name, count = self.random.choice([("dflock_acquire", 0), ("dflock_is_held", 2), ("dflock_nothing", 1)])
        pairs = [self.arguments.key(player.state, 0) for _ in range(count)]
        code = "25P02" if player.state.aborted else "42883"
        self.call(player, name, pairs, lambda: Expected(code=code))

    # ------------------------------------------------------------------- settings

    def settings(self, player):
        s = player.state
        if s.levels:
            return
        what = self.random.choice(["key_prefix", "max_session_locks", "release_wait", "bad"])
        if what == "bad":
            self.bad_setting(player)
            return
        value = {"key_prefix": self.random.choice(["", self.family, self.family + "ö/"]),
                 "max_session_locks": self.random.choice([0, 0, 2, 4]),
                 "release_wait": self.random.choice(["on", "off"])}[what]
        self.plain(player, *self._set(what, value), code=None)
        if what == "key_prefix":
            s.prefix = value
        elif what == "max_session_locks":
            s.cap = value
        else:
            s.release_wait = value == "on"

    def _set(self, name, value):
        if self.sqlite:
            return "SELECT dflock_config(?, ?)", (name, str(value))
        return f"SELECT set_config('dflockd.{name}', %s, false)", (str(value),)

    def bad_setting(self, player):
        if self.sqlite:
            name, value = self.random.choice([("nothing", "1"), ("tls", "off"), ("renew_ratio", "7"), ("keepalive", ""),
                                              ("key_prefix", "a b"), ("max_locks", "5"), ("auth_token_file", "x")])
            code = "22023"
        else:
            name, value, code = self.random.choice([("lease_ttl", "-1", "22023"), ("key_prefix", "a b", "22023"),
                                                    ("acquire_timeout", "x", "22023"), ("servers", "x:1", "55P02"),
                                                    ("max_locks", "7", "55P02")])
        self.plain(player, *self._set(name, value), code=code)

    def plain(self, player, sql, values=(), code=None):
        outcome = player.connection.run("sql", sql, values)
        self.note(f"{player.state}: {sql} {values or ''} -> {outcome.code or 'done'}")
        if outcome.code != code:
            raise Difference(f"{player.state}: {sql}: expected {code or 'no error'}, got {outcome}")
        return outcome

    # --------------------------------------------------------------- transactions

    def statement(self, player, sql, expected):
        """One that ends by `expected`, which has changed the model already."""
        self.plain(player, sql, code=expected.code)
        self.meanwhile()

    def begin(self, player):
        level = self.random.choice(["", " ISOLATION LEVEL REPEATABLE READ", " READ ONLY"])
        self.statement(player, f"BEGIN{level}", self.model.begin(player.state))

    def savepoint(self, player):
        if player.state.aborted:
            return
        name = f"s{next(self.savepoints)}"
        self.statement(player, f"SAVEPOINT {name}", self.model.savepoint(player.state, name))

    def back(self, player):
        if player.state.names:
            name = self.random.choice(player.state.names)
            self.statement(player, f"ROLLBACK TO {name}", self.model.rollback_to(player.state, name))

    def release_savepoint(self, player):
        if player.state.names and not player.state.aborted:
            name = self.random.choice(player.state.names)
            self.statement(player, f"RELEASE {name}", self.model.release_savepoint(player.state, name))

    def commit(self, player):
        self.statement(player, "COMMIT", self.model.commit(player.state))

    def rollback(self, player):
        self.statement(player, "ROLLBACK", self.model.rollback(player.state))

    def undo(self, player):
        choices = [self.rollback, self.commit] + [self.back] * (4 if player.state.names else 0)
        self.random.choice(choices)(player)

    def forsake(self, player):
        """The transaction counts on a hold that somebody, maybe the session itself, then releases."""
        s = player.state
        holds = [h for h in s.holds if h.state == HELD and h.scope == SESSION and h.key.startswith(s.prefix)
                 and s.which(h.key) is h]
        if s.aborted or not holds:
            return
        hold = self.random.choice(holds)
        key = self.arguments.key(s, 0, hold.key)
        self.call(player, "dflock_token", [key], lambda: self.model.token(s, hold.key))
        self.call(player, "dflock_assert_held", [key], lambda: self.model.assert_held(s, hold.key))
        if self.random.random() < 0.3:
            self.savepoint(player)
        name = f"dflock_{'sem_' if hold.kind == SEM else ''}release"
        others = [p for p in self.players if p is not player and not p.waits and not p.state.aborted
                  and hold.key.startswith(p.state.prefix)]
        if others and self.random.random() < 0.6:
            other = self.random.choice(others)
            self.call(other, name, [self.arguments.key(other.state, 0, hold.key), self._argument("token", hold.token)],
                      lambda: self.model.release_token(other.state, hold.key, hold.kind, hold.token))
        else:
            self.call(player, name, [key], lambda: self.model.release(s, hold.key, hold.kind))

    def prepare(self, player):
        aborted = player.state.aborted
        name = f"{self.family}{len(self.trace)}"
        expected = self.model.prepare(player.state)
        self.statement(player, f"PREPARE TRANSACTION '{name}'", expected)
        if not expected.code and not aborted:
            self.plain(player, f"{self.random.choice(['COMMIT', 'ROLLBACK'])} PREPARED '{name}'")

    def reset(self, player):
        s = player.state
        if s.aborted:
            return
        sql = "RESET ALL" if s.levels else self.random.choice(["RESET ALL", "DISCARD ALL"])
        if s.levels and (s.prefix or s.cap or not s.release_wait):
            return  # its settings would come back with a rollback
        self.statement(player, sql, self.model.reset(s))

    def lock_timeout(self, player):
        """Ends any wait, with an error in every function, and a place with it."""
        s = player.state
        if s.aborted:
            return
        key = self.arguments.full_key()
        if not key.startswith(s.prefix) or s.place(key) or s.of(key):
            return
        kind = self.kind_of(key)
        slots = 1 if kind == LOCK else self.arguments.limits.get(key, 1)
        self.plain(player, "SET LOCAL lock_timeout = '50ms'" if s.levels else "SET lock_timeout = '50ms'")
        text = self.arguments.key(s, 0, key)
        arguments = [text] if kind == LOCK else [text, self._argument("slots", slots)]
        arguments.append(self._argument("timeout", 30))

        def expected():
            want = self.model.acquire(s, key, kind, slots, "short", answer="bool")
            return Expected(code="55P03") if want.check is None and want.code is None else want
        self.call(player, f"dflock_{'sem_' if kind == SEM else ''}acquire", arguments, expected)
        if not s.aborted:
            self.plain(player, "SET LOCAL lock_timeout = 0" if s.levels else "SET lock_timeout = 0")

    @staticmethod
    def _argument(parameter, value):
        from arguments import Argument
        return Argument(parameter, value, meaning=value)

    # ------------------------------------------------------------- cancels and ends

    def cancel(self, player):
        """A call that is in line for certain. One that waits for a place has its line from before it began, and a
        cancel that comes before it begins is lost: that one is said again."""
        self.await_line()
        self.database.cancel(player.connection)
        lost = player.state.pending.waits.kind is None and not player.connection.ended(CANCEL_AGAIN_S)
        if lost:
            self.until(lambda: self.database.cancel(player.connection) or player.connection.ended(CANCEL_AGAIN_S),
                       "a cancelled wait ends")
        outcome = player.connection.finish()
        if lost:
            self._swallow_late_cancel(player)
        self.note(f"{player.state}: cancelled -> {outcome}")
        self.model.abandoned(player.state)
        self.judge(player.state, Expected(code=CANCELED), outcome)
        self.meanwhile()

    def terminate(self, player):
        if player.waits:
            self.await_line()
        self.note(f"{player.state}: terminated")
        self.database.terminate(player.connection)
        if player.connection.busy:
            player.connection.finish()
        self.replace(player)

    def replace(self, player):
        player.connection.close()
        if not self.sqlite:
            self.until(lambda: not self.database.alive(player.connection), "the backend ends")
        self.model.gone(player.state)
        player.connection = self.database.open(player.state)
        self.meanwhile()

    def leave_and_return(self, player):
        self.note(f"{player.state}: leaves, and another comes")
        self.replace(player)

    def race(self, player):
        """A cancel at any moment of a call. What it came to is found out by looking, and must fit what all others see."""
        s = player.state
        if s.levels or s.cap or any(h.state == LOST for h in s.holds):
            return
        key = self.arguments.full_key()
        if not key.startswith(s.prefix):
            return
        text = [("key", key[len(s.prefix):])]
        own = s.of(key)
        if len(own) > 1 or s.place(key) or any(h.kind == SEM for h in own) or self.arguments.kinds[key] != "lock":
            return
        if self.model.keys.get(key) is not None and self.model.keys[key].limit != 1:
            return
        name = "dflock_release" if own else "dflock_acquire"
        delay = self.random.choice([0, 0, 0.0002, 0.001, 0.003])
        pairs = text if own else [*text, ("timeout", self.random.choice([0, 0.05]))]
        outcome = self._run_and_cancel(player, name, pairs, delay)
        self.note(f"{s}: {name}({key!r}) cancelled after {delay} s -> {outcome}")
        if outcome.code is None:
            want = self.model.release(s, key) if own else self.model.acquire(s, key, wait=0)
            if not want.fits(outcome.value):
                raise Difference(f"{s}: expected {want}, got {outcome}")
        elif outcome.code != CANCELED:
            raise Difference(f"{s}: expected an answer or {CANCELED}, got {outcome}")
        else:
            held = self.plain_value(player, key)
            if held and not own and not self.sqlite:
                raise Difference(f"{s}: a cancelled statement has left {key} held")
            if held and not own:
                self.model.acquire(s, key, wait=0)
                if not s.of(key):
                    raise Difference(f"{s}: {key} is held though it was not free")
            elif own and not held:
                self.model.release(s, key)
            elif not own:
                self._make_known(key)
        self.meanwhile()

    def _make_known(self, key):
        """Whether a cancelled request has reached the server, and so given the key its limit, nobody knows: now it has one."""
        answer = self.outside.ask("l", key, f"0 {OUTSIDE_LEASE}").split(" ")
        if answer[0] == "ok":
            self.outside.release(key, answer[1], "r")
        self.model._ask(key, 1)

    def plain_value(self, player, key):
        outcome = player.connection.run("call", "dflock_is_held", [("key", key[len(player.state.prefix):])])
        self.note(f"{player.state}: is_held -> {outcome}")
        return bool(outcome.value)

    def _run_and_cancel(self, player, name, pairs, delay):
        player.connection.start("call", name, pairs)
        if delay:
            threading.Event().wait(delay)
        self.database.cancel(player.connection)
        outcome = player.connection.finish()
        self._swallow_late_cancel(player)
        return outcome

    def _swallow_late_cancel(self, player):
        """PostgreSQL's signal may arrive after the statement's end, and then hit the next one: not later than this one."""
        if not self.sqlite:
            player.connection.run("sql", "SELECT pg_sleep(0.002)", ())

    # ------------------------------------------------------------------- outside

    def outsider(self, player):
        """Somebody who speaks the protocol and is neither of these databases."""
        mine = self.model.outside
        if mine and self.random.random() < 0.5:
            hold = self.random.choice(mine)
            answer = self.outside.release(hold.key, hold.token, "r" if hold.kind == LOCK else "sr")
            self.note(f"outside: releases {hold.key!r} -> {answer}")
            self.model.outside_releases(hold)
            self.agree("ok", answer)
            self.meanwhile()
            return
        key = self.arguments.full_key()
        kind = self.kind_of(key)
        slots = self.arguments.limits[key] if kind == SEM else 1
        argument = f"0 {slots} {OUTSIDE_LEASE}" if kind == SEM else f"0 {OUTSIDE_LEASE}"
        answer = self.outside.ask("sl" if kind == SEM else "l", key, argument).split(" ")
        self.note(f"outside: tries {key!r} -> {answer[0]}")
        self.agree(self.model.outside_takes(key, kind, slots, answer[1] if len(answer) > 1 else None), answer[0])

    def betray(self, player):
        """Somebody outside releases what the session holds; it finds out by asking the server."""
        s = player.state
        if s.aborted:
            return
        holds = [h for h in s.holds if h.state == HELD and h.token and h.key.startswith(s.prefix)
                 and s.which(h.key) is h and h in self.model.keys[h.key].holders]
        if not holds:
            return
        hold = self.random.choice(holds)
        answer = self.outside.release(hold.key, hold.token, "r" if hold.kind == LOCK else "sr")
        self.note(f"outside: releases {hold.key!r}, which {s} holds -> {answer}")
        self.agree("ok", answer)
        self.model.outside_releases(hold)
        self.meanwhile()
        key = self.arguments.key(s, 0, hold.key)
        if self.random.random() < 0.5:
            self.call(player, "dflock_renew", [key], lambda: self.model.renew(s, key.meaning))
        else:
            self.call(player, "dflock_assert_held", [key, self._argument("verify", True)],
                      lambda: self.model.assert_held(s, key.meaning, True))

    @staticmethod
    def agree(expected, answer):
        if expected != answer:
            raise Difference(f"outside: expected {expected!r} of the server, got {answer!r}")

    # ------------------------------------------------------------------ comparing

    def until(self, condition, what, seconds=SETTLE_S):
        end = time.monotonic() + seconds
        pause = 0.0005
        while True:
            answer = condition()
            if answer:
                return answer
            if time.monotonic() > end:
                raise Difference(f"not within {seconds} s: {what() if callable(what) else what}")
            time.sleep(pause)
            pause = min(pause * 2, 0.05)

    def server_rows(self):
        stats = self.watch.stats()
        seen = {}
        for row in stats["locks"] + stats["semaphores"]:
            if row["key"].startswith(self.family):
                holders = row["holders"] if "holders" in row else int(bool(row["owner_conn_id"]))
                seen[row["key"]] = (holders, row["waiters"])
        return seen

    def await_line(self):
        """Until the server has in line whom the model has, and has told them: what it shows of a grant it may show before
        that, but not its answer to what is asked then."""
        self.until(self.server_agrees, lambda: f"the server has {self.server_rows()}, the model {self.model.server_view()}")
        self.watch.ask("ping")

    def server_agrees(self):
        seen = self.server_rows()
        for key, (holders, fewest, most) in self.model.server_view().items():
            have, line = seen.pop(key, (0, 0))
            if have != holders or not fewest <= line <= most:
                return False
        return not seen

    def compare(self):
        self.meanwhile()
        self.await_line()
        for player in self.players:
            pending = player.state.pending
            if pending is not None and player.connection.ended(0) is not None:
                raise Difference(f"{player.state}: ended before its turn: {player.connection.finish()}")
            self.until(lambda p=player: self.session_agrees(p),
                       lambda p=player: f"{p.state} shows {self.shown(p)}, the model {self.model.session_view(p.state)}")

    def shown(self, player):
        rows = self.database.locks(player.state, player.connection, self.family)
        if rows is None:
            return None
        states = {"confirming": "queued"}
        return sorted((k, kind, states.get(state, state)) for k, kind, state in rows if state != "releasing")

    def session_agrees(self, player):
        shown = self.shown(player)
        return shown is None or shown == self.model.session_view(player.state)

    # ---------------------------------------------------------------------- the end

    def wind_up(self):
        """Everybody goes, and nothing is left."""
        for hold in list(self.model.outside):
            self.agree("ok", self.outside.release(hold.key, hold.token, "r" if hold.kind == LOCK else "sr"))
            self.model.outside_releases(hold)
        self.meanwhile()
        self.compare()
        while self.players:
            player = self.players[0]
            if player.waits:
                self.cancel(player)
            player.connection.close()
            if not self.sqlite:
                self.until(lambda p=player: not self.database.alive(p.connection), "the backend ends")
            self.players.remove(player)
            self.note(f"{player.state}: closes")
            self.model.gone(player.state)
            self.model.sessions.remove(player.state)
            self.meanwhile()
            self.compare()
        left = {k: v for k, v in self.server_rows().items() if v != (0, 0)}
        if left:
            raise Difference(f"left behind at the end: {left}")
