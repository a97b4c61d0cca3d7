"""What every call must come to, said by a model of its own: sessions with holds and places, keys with holders and a queue.

Shares no code with server or engine; written from the SQL interface's description. `Model` answers each call with an
`Expected`: the error code, or what the value must be, or that the call has to wait; and what has become of the world
once the answer is in. Leases are long, so time plays no part.

`planted` names wrong expectations that are built in on purpose, to see that the tester notices.
"""

import itertools

SERVER_LEASE = 33
LOCK, SEM = "lock", "semaphore"
SESSION, XACT = "session", "xact"
HELD, PLACE, LOST = "held", "place", "lost"


class Expected:
    """One call's outcome: `code` (an SQLSTATE), or a value that `check` accepts, or `waits` until the world changes."""

    def __init__(self, code=None, value=None, check=None, waits=None, then=None, warning=None):
        self.code, self.value, self.check, self.waits = code, value, check, waits
        self.then = then or (lambda value: None)  # what the answer changes
        self.warning = warning

    def fits(self, value):
        if self.check is not None:
            return self.check(value)
        return value == self.value

    def __str__(self):
        if self.code:
            return f"error {self.code}"
        if self.waits:
            return "waits"
        return f"value {'by rule' if self.check else repr(self.value)}"


class Hold:
    """A lock, a slot, or a place in line, of a session or (session None) of somebody outside."""

    def __init__(self, session, key, kind, slots, scope, lease, order, taken_in=0, enqueued=False):
        self.session, self.key, self.kind, self.slots, self.scope = session, key, kind, slots, scope
        self.lease, self.order, self.taken_in, self.enqueued = lease, order, taken_in, enqueued
        self.state = HELD
        self.told = False
        self.granted = order  # among all grants, as fences are
        self.came_up = False  # a place whose turn has come and that nobody has picked up
        self.fence = self.token = None  # learned from answers

    def __repr__(self):
        return f"<{self.state} {self.kind} {self.key!r} of {self.session or 'outside'}>"


class Waiter:
    """One in line: a pending call, a place, or (on servers that notice late) one that has gone away."""

    def __init__(self, granted, session=None):
        self.granted = granted
        self.session = session
        self.dead = False
        self.key = self.kind = None  # kind: of a pending call that is not a wait for a place
        self.hold = None  # what a pending call has come to


class Key:
    """The server's view of one key."""

    def __init__(self, limit):
        self.limit = limit
        self.holders = []
        self.queue = []
        self.fences = {}  # of grants, by their order, as far as known

    def free(self):
        return not self.queue and len(self.holders) < self.limit


class Session:
    """What one database session has and has been told."""

    def __init__(self, number):
        self.number = number
        self.prefix = ""
        self.cap = 0
        self.release_wait = True
        self.holds = []
        self.pending = None  # the Expected of a call that waits
        self.levels = []  # open transaction: numbers of its (sub-)transactions
        self.names = []  # of the savepoints
        self.aborted = False
        self.counted = []  # [hold, level]: what the transaction counts on

    def __repr__(self):
        return f"session {self.number}"

    @property
    def level(self):
        return self.levels[-1] if self.levels else 0

    def of(self, key, kind=None, states=(HELD, LOST), scope=None):
        return [h for h in self.holds if h.key == key and h.state in states and kind in (None, h.kind)
                and scope in (None, h.scope)]

    def which(self, key, kind=None, scope=None):
        """The lock if there is one, otherwise the newest slot; what is lost counts."""
        found = self.of(key, kind, scope=scope)
        locks = [h for h in found if h.kind == LOCK]
        return max(locks or found, key=lambda h: h.order, default=None)

    def place(self, key, kind=None):
        return next(iter(self.of(key, kind, states=(PLACE,))), None)


class Model:
    def __init__(self, fences=True, leaves_late=False, planted=()):
        self.fences = fences
        self.leaves_late = leaves_late  # a waiter whose connection is closed keeps its place until its turn
        self.planted = frozenset(planted)
        self.keys = {}
        self.sessions = []
        self.outside = []
        self.order = itertools.count(1)
        self.level = itertools.count(1)

    def session(self):
        self.sessions.append(Session(len(self.sessions)))
        return self.sessions[-1]

    # ------------------------------------------------------------------ the server

    def _ask(self, key, limit):
        """The key's entry, or None: its limit is another."""
        entry = self.keys.setdefault(key, Key(limit))
        return entry if entry.limit == limit else None

    def _drop(self, hold):
        """A holder is gone; who is next gets it."""
        entry = self.keys[hold.key]
        if hold in entry.holders:
            entry.holders.remove(hold)
        self._hand_on(entry)

    def _hand_on(self, entry):
        while entry.queue and len(entry.holders) < entry.limit:
            last = "newest-first" in self.planted
            waiter = entry.queue.pop(-1 if last else 0)
            if not waiter.dead:
                waiter.granted()

    def _leave(self, waiter, entry):
        if waiter not in entry.queue:
            return
        if self.leaves_late and entry.holders:
            waiter.dead = True
        else:
            entry.queue.remove(waiter)
            self._hand_on(entry)

    # ---------------------------------------------------------------- own holds first

    def _own(self, s, key, kind, slots, scope):
        """An Expected when the session's own holds decide, else None."""
        untold = False
        for hold in [h for h in s.holds if h.key == key and h.state == LOST]:
            untold = untold or not hold.told
            hold.told = True
            if hold.scope == SESSION:
                s.holds.remove(hold)
        if untold and "silent-loss" not in self.planted:
            return Expected(code="40001")
        have = 0
        for hold in [h for h in s.holds if h.key == key and h.state != LOST]:
            if scope == XACT and kind == LOCK and (hold.kind, hold.scope, hold.state) == (LOCK, XACT, HELD):
                return Expected(value=hold)
            if hold.state == PLACE:
                return Expected(code="55006")
            if kind == LOCK:
                if hold.kind == LOCK or hold.slots == 1:
                    return Expected(code="55006" if "re-entrant" not in self.planted else None, value=hold)
            elif hold.kind == LOCK:
                if slots == 1:
                    return Expected(code="55006")
            else:
                have += 1
                if have >= slots:
                    return Expected(code="55006")
        if s.cap and sum(1 for h in s.holds if h.state != LOST) >= s.cap:
            return Expected(code="53400")
        return None

    # ---------------------------------------------------------------- acquiring

    def acquire(self, s, key, kind=LOCK, slots=1, wait=None, lease=None, scope=SESSION, answer="bool"):
        """`wait`: 0 tries, "short" ends by its own clock, "long" does not. `answer`: bool, fence or none."""
        own = self._own(s, key, kind, slots, scope)
        if own is not None:
            if own.code:
                return own
            return Expected(check=lambda value: self._answers(own.value, answer, value))
        entry = self._ask(key, slots)
        if entry is None:
            return Expected(code="LK001")
        hold = Hold(s, key, kind, slots, scope, lease or SERVER_LEASE, next(self.order), s.level)
        if entry.free():
            self._take(s, entry, hold)
            return Expected(check=lambda value: self._answers(hold, answer, value), then=lambda value: self._autocommit(s))
        busy = Expected(value=False) if answer == "bool" else Expected(code="55P03")
        if wait != "long":
            if wait == "short" and self.leaves_late:
                gone = Waiter(None)
                gone.dead = True
                entry.queue.append(gone)
            return busy
        waiter = Waiter(None, s)
        waiter.kind, waiter.key, waiter.hold = kind, key, None
        expected = Expected(check=lambda value: self._answers(hold, answer, value), waits=waiter,
                            then=lambda value: self._autocommit(s))

        def granted():
            hold.order = hold.granted = next(self.order)
            self._take(s, entry, hold)
            waiter.hold = hold
        waiter.granted = granted
        waiter.abandon = lambda: self._leave(waiter, entry)
        entry.queue.append(waiter)
        s.pending = expected
        return expected

    def _take(self, s, entry, hold):
        entry.holders.append(hold)
        if s is not None:
            s.holds.append(hold)

    def _answers(self, hold, answer, value):
        if answer == "bool":
            return value is True or value == 1
        if answer == "none":
            return value is None
        return self.learn_fence(hold, value)

    def learn_fence(self, hold, value):
        """A fence never changes, and is larger than that of every earlier grant of the key that is known."""
        if not self.fences:
            return value == -1
        if not isinstance(value, int) or value <= 0:
            return False
        if hold.fence is not None:
            return hold.fence == value
        fences = self.keys[hold.key].fences
        if any((value > fence) != (hold.granted > order) for order, fence in fences.items()):
            return False
        hold.fence = fences[hold.granted] = value
        return True

    def _autocommit(self, s):
        """A transaction lock that was taken outside a transaction block ends with its statement."""
        if not s.levels:
            self._end_xact_holds(s)

    def _end_xact_holds(self, s):
        for hold in [h for h in s.holds if h.scope == XACT]:
            self._give_back(hold)
        for hold in s.holds:
            hold.taken_in = 0

    # -------------------------------------------------------------- two phases

    def enqueue(self, s, key, kind=LOCK, slots=1, lease=None):
        own = self._own(s, key, kind, slots, SESSION)
        if own is not None:
            return own
        entry = self._ask(key, slots)
        if entry is None:
            return Expected(code="LK001")
        hold = Hold(s, key, kind, slots, SESSION, lease or SERVER_LEASE, next(self.order), s.level, enqueued=True)
        if entry.free():
            self._take(s, entry, hold)
            return Expected(value="acquired", then=lambda value: self._autocommit(s))
        hold.state = PLACE

        def granted():
            hold.granted = next(self.order)
            entry.holders.append(hold)
            if hold.waits is not None:
                self._picked_up(hold)
            else:
                hold.came_up = True
        hold.waits = None
        hold.waiter = Waiter(granted, s)
        entry.queue.append(hold.waiter)
        s.holds.append(hold)
        return Expected(value="queued", then=lambda value: self._autocommit(s))

    def _picked_up(self, hold):
        hold.state = HELD
        hold.came_up = False
        hold.order = next(self.order)
        hold.taken_in = hold.session.level
        if hold.waits is not None:
            hold.waits.hold = hold
            hold.waits = None

    def wait(self, s, key, kind=LOCK, wait=None):
        place = s.place(key, kind)
        if place is None:
            hold = s.which(key, kind)
            if hold is None:
                return Expected(code="55000")
            if hold.state == LOST:
                hold.told = True
                return Expected(code="40001")
            return Expected(value=True) if hold.enqueued else Expected(code="55000")
        if place.came_up:
            self._picked_up(place)
            return Expected(value=True, then=lambda value: self._autocommit(s))
        if wait != "long":
            return Expected(value=False)
        pending = Waiter(None, s)
        pending.key = key
        pending.abandon = lambda: self._give_back(place)
        place.waits = pending
        s.pending = Expected(value=True, waits=pending, then=lambda value: self._autocommit(s))
        return s.pending

    def cancel(self, s, key):
        place = s.place(key)
        if place is None:
            return Expected(value=False)
        self._give_back(place)
        return Expected(value=True)

    # -------------------------------------------------------------- giving back

    def _give_back(self, hold):
        """Gone for the session, and for the server."""
        s = hold.session
        if s is not None and hold in s.holds:
            s.holds.remove(hold)
        if s is None and hold in self.outside:
            self.outside.remove(hold)
        if hold.state == LOST:
            return
        hold.state = "gone" if hold.state == HELD else hold.state
        entry = self.keys[hold.key]
        if hold in entry.holders:
            self._drop(hold)
        elif hold.state == PLACE:
            self._leave(hold.waiter, entry)

    def release(self, s, key, kind=LOCK):
        hold = s.which(key, kind, scope=SESSION)
        if hold is None:
            return Expected(value=False, warning=True)
        lost = hold.state == LOST
        self._give_back(hold)
        return Expected(value=not lost, warning=lost)

    def lose(self, hold):
        """Somebody with the token has released it, and its session knows."""
        hold.state = LOST
        hold.token = hold.fence = None
        self._drop(hold)

    def release_token(self, s, key, kind, token):
        hold = next((h for h in self._known() if h.token == token and h.key == key), None)
        if hold is None or hold.scope == XACT or (hold.session is not None and hold.kind != kind):
            return Expected(value=False, warning=True)
        if hold.session is None or hold.session is s:
            self._give_back(hold)
        else:
            self.lose(hold)
        return Expected(value=True)

    def _known(self):
        return [h for s in self.sessions for h in s.holds if h.state == HELD] + self.outside

    def release_all(self, s):
        count = 0
        for hold in [h for h in s.holds if h.scope == SESSION]:
            count += hold.state != LOST
            self._give_back(hold)
        return Expected(value=count)

    # ----------------------------------------------------------------- looking

    def renew(self, s, key, lease=None):
        hold = s.which(key)
        if hold is None:
            return Expected(code="55000")
        if hold.state == HELD and hold not in self.keys[key].holders:
            hold.state = LOST  # somebody outside has released it: the server's refusal says so
        if hold.state == LOST:
            hold.told = True
            return Expected(code="40001")
        hold.lease = lease or hold.lease
        return Expected(check=lambda value: value in (hold.lease, hold.lease - 1))

    def is_held(self, s, key):
        hold = s.which(key)
        return Expected(value=hold is not None and hold.state == HELD)

    def assert_held(self, s, key, verify=False):
        hold = s.which(key)
        if hold is None:
            return Expected(code="55000")
        if verify:
            expected = self.renew(s, key)
            if expected.code:
                return expected
        if hold.state == LOST:
            hold.told = True
            return Expected(code="40001")
        if s.levels and not any(h is hold for h, _ in s.counted):
            s.counted.append([hold, s.level])
        return Expected(value=True)

    def token(self, s, key):
        hold = s.which(key)
        if hold is None or hold.state != HELD:
            return Expected(value=None)

        def check(value):
            if not isinstance(value, str) or len(value) != 32 or (hold.token or value) != value:
                return False
            if self.fences and not self.learn_fence(hold, int(value[:16], 16)):
                return False
            hold.token = value
            return True
        return Expected(check=check)

    def lease(self, s, key):
        hold = s.which(key)
        return Expected(value=hold.lease if hold is not None and hold.state == HELD else None)

    def fence(self, s, key):
        hold = s.which(key)
        if hold is None or hold.state != HELD:
            return Expected(value=None)
        return Expected(check=lambda value: self.learn_fence(hold, value)) if self.fences else Expected(code="LK014")

    # ------------------------------------------------------------- transactions

    def begin(self, s):
        s.levels, s.names, s.counted = [next(self.level)], [], []
        return Expected()

    def savepoint(self, s, name):
        s.levels.append(next(self.level))
        s.names.append(name)
        return Expected()

    def release_savepoint(self, s, name):
        at = s.names.index(name) + 1
        parent, inner = s.levels[at - 1], s.levels[at:]
        for hold in s.holds:
            if hold.taken_in in inner:
                hold.taken_in = parent
        for counted in s.counted:
            if counted[1] in inner:
                counted[1] = parent
        del s.levels[at:], s.names[at - 1:]
        return Expected()

    def rollback_to(self, s, name):
        at = s.names.index(name) + 1
        self._undo(s, s.levels[at:])
        del s.levels[at:], s.names[at:]
        s.levels.append(next(self.level))
        s.aborted = False
        return Expected()

    def _undo(self, s, levels):
        s.counted = [c for c in s.counted if c[1] not in levels]
        if "rollback-keeps" in self.planted:
            return
        for hold in [h for h in s.holds if h.taken_in in levels]:
            self._give_back(hold)

    def failed(self, s):
        """A statement of the session has failed: its (sub-)transaction is aborted."""
        if not s.levels:
            self._autocommit(s)
            return
        s.aborted = True
        self._undo(s, s.levels[-1:])

    def rollback(self, s):
        self._undo(s, s.levels)
        self._end(s)
        return Expected()

    def _end(self, s):
        s.levels, s.names, s.counted, s.aborted = [], [], [], False
        self._end_xact_holds(s)

    def commit(self, s):
        if s.aborted:
            return self.rollback(s)
        relied = [h for h in s.holds if h.scope == XACT] + [h for h, _ in s.counted]
        bad = [h for h in relied if h.state != HELD or h not in h.session.holds]
        if bad and "commit-anyway" not in self.planted:
            for hold in bad:
                hold.told = True
            self.rollback(s)
            return Expected(code="40001")
        self._end(s)
        return Expected()

    def prepare(self, s):
        if s.aborted:
            return self.rollback(s)
        if any(h.taken_in for h in s.holds):
            self.rollback(s)
            return Expected(code="0A000")
        return self.commit(s)

    def reset(self, s):
        """DISCARD ALL, RESET ALL"""
        self.release_all(s)
        s.prefix, s.cap, s.release_wait = "", 0, True
        return Expected()

    # ------------------------------------------------------------------- ends

    def abandoned(self, s):
        """A pending call was cancelled while it was in line."""
        pending, s.pending = s.pending, None
        if "cancel-keeps" not in self.planted:
            pending.waits.abandon()

    def gone(self, s):
        """The session has ended."""
        if s.pending is not None:
            self.abandoned(s)
        for hold in list(s.holds):
            self._give_back(hold)
        s.levels, s.names, s.counted, s.aborted = [], [], [], False
        s.prefix, s.cap, s.release_wait = "", 0, True

    # ---------------------------------------------------------------- outside

    def outside_takes(self, key, kind, slots, token):
        """Somebody outside has tried: token None if it was busy. The answer, ok, timeout or error_limit_mismatch."""
        entry = self._ask(key, slots)
        if entry is None:
            return "error_limit_mismatch"
        if not entry.free():
            return "timeout"
        hold = Hold(None, key, kind, slots, SESSION, SERVER_LEASE, next(self.order))
        hold.token = token
        entry.holders.append(hold)
        self.outside.append(hold)
        return "ok"

    def outside_releases(self, hold):
        """By its token. A session that held it does not know yet."""
        if hold.session is None:
            self._give_back(hold)
        else:
            self._drop(hold)

    # ----------------------------------------------------------------- as seen

    def server_view(self):
        """key -> (holders, fewest waiters, most waiters)"""
        view = {}
        for key, entry in self.keys.items():
            live = sum(1 for w in entry.queue if not w.dead)
            view[key] = (len(entry.holders), live, len(entry.queue))
        return view

    def session_view(self, s):
        """(key, kind, state) of what dflock_locks must show of a session, sorted."""
        rows = [(h.key, h.kind, "queued" if h.state == PLACE else h.state) for h in s.holds]
        pending = s.pending.waits if s.pending is not None else None
        if pending is not None and pending.hold is None and pending.kind:
            rows.append((pending.key, pending.kind, "queued"))
        return sorted(rows)
