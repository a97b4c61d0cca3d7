"""What the servers that speak this protocol do differently: one row each. Tests ask the row what is right.

`bundled` is build/dflockd-local. `v1.10` is the Go server of that version, `v2` the later ones as their documentation
describes them (no binary of it has been run here), `first` is PyPI's dflockd 0.5.0, in Python, with locks only.
"""

from dataclasses import dataclass, field

COMMON_FLAGS = frozenset("--host --port --default-lease-ttl --lease-sweep-interval --gc-interval --gc-max-idle "
                         "--max-locks --read-timeout".split())
GO_FLAGS = COMMON_FLAGS | frozenset("--max-connections --max-waiters --write-timeout --shutdown-timeout "
                                    "--auto-release-on-disconnect --tls-cert --tls-key --auth-token "
                                    "--auth-token-file --debug --version".split())


@dataclass(frozen=True)
class Dialect:
    name: str
    flags: frozenset = field(default=GO_FLAGS)
    no_auto_release: str = "--auto-release-on-disconnect=false"
    semaphores: bool = True
    stats: bool = True
    # What a request gets that cannot be understood: `error`, and then?
    bad_request_closes: bool = False
    ping: str = "ok"
    # `auth` to a server without a token
    auth_unasked_closes: bool = False
    auth_line_max: int = 65536
    environment_token_wins: bool = False
    key_max: int = 256
    key_white_space: bool = False  # accepted inside a key
    end_ends_a_line: bool = False  # the end of the stream counts as a newline
    # seconds above 9223372036: "error", "wraps" or "accepts"
    huge_seconds: str = "error"
    fences: bool = True
    fences_survive_kill: bool = False  # --fence-state-file
    # Locks and semaphores of one key are one thing
    shared_namespace: bool = True
    not_enqueued: str = "error_not_enqueued"
    already_enqueued: str = "error_already_enqueued"
    # `e` -> acquired, `r`, `e` of the same key on the same connection
    enqueue_again: bool = True
    # `w` for a grant that came up and lapsed: after `acquired`, after `queued`
    lapsed_acquired: tuple = ("error_lease_expired",)
    lapsed_queued: str = "error_lease_expired"
    # A waiter whose client closes while it waits is gone at once (else when its turn comes)
    closed_waiter_leaves: bool = True
    # --max-locks refuses locking a key that exists already
    max_locks_counts_known: bool = False
    # a try while --max-waiters waiters wait
    try_at_max_waiters: tuple = ("timeout", "error_max_waiters")
    # SIGTERM: what a waiter gets, what a lock request gets, whether renewals and new connections go on
    drain_waiter: str = "error_draining"
    drain_request: str = "error_draining"
    drain_renews: bool = True
    drain_accepts: bool = True
    ends_at_once: bool = False


BUNDLED = Dialect("bundled", flags=GO_FLAGS | {"--fence-state-file", "--no-recovery-wait", "--help"},
                  fences_survive_kill=True)

V1_10 = Dialect("v1.10", ping="error", auth_line_max=256, environment_token_wins=True, huge_seconds="wraps",
                fences=False, lapsed_acquired=("error_lease_expired", "error_not_enqueued"),
                lapsed_queued="ok", closed_waiter_leaves=False,
                try_at_max_waiters=("error_max_waiters",), drain_waiter="error", drain_request="ok",
                drain_accepts=False)

V2 = Dialect("v2", flags=GO_FLAGS | {"--fence-state-file"}, shared_namespace=False, drain_renews=False,
             drain_accepts=False)

FIRST = Dialect("first", flags=COMMON_FLAGS | {"--no-auto-release-on-disconnect"},
                no_auto_release="--no-auto-release-on-disconnect", semaphores=False, stats=False,
                bad_request_closes=True, ping="error", auth_unasked_closes=True, key_max=255, key_white_space=True,
                end_ends_a_line=True, huge_seconds="accepts", fences=False, not_enqueued="error", already_enqueued="error",
                enqueue_again=False, lapsed_acquired=("timeout",), lapsed_queued="ok", closed_waiter_leaves=False,
                max_locks_counts_known=True, ends_at_once=True)

DIALECTS = {d.name: d for d in (BUNDLED, V1_10, V2, FIRST)}


def recognize(address, **kw):
    """Which row a server is that was given by address only, by four harmless questions."""
    from lib.wire import Closed, Wire
    with Wire(address, **kw) as wire:
        if wire.ask("ping") == "ok":
            key = f"recognize-{wire.sock.getsockname()[1]}"
            token = wire.lock(key, lease=5).token
            answer = wire.ask("sl", key, "0 2 5").split(" ")
            wire.release(key, token)
            if answer[0] == "ok":
                wire.release(key, answer[1], "sr")
            return BUNDLED if answer[0] == "error_limit_mismatch" else V2
        try:
            wire.ask("r", "_", "0" * 32)
        except Closed:
            return FIRST
        return V1_10
