"""What a call costs in system calls, as strace sees it.

Never under a checker of memory: strace would count the checker's calls.
"""

import pathlib
import re
import time

import pytest

from lib.eventually import eventually

CALL = re.compile(r"^(\d+) +(\w+)\(")


def traced(start_script, server, text, directory):
    """The calls of the main thread between two marks, and what the other threads did meanwhile."""
    trace = directory / "trace"
    start_script("""
        a = connect()
        def settled():
            "The renewal thread sleeps: what woke it before the mark is not counted after it."
            state, since = None, time.monotonic()
            while time.monotonic() < since + 0.2:
                (task,) = [t for t in os.listdir("/proc/self/task") if "dflockd" in open(f"/proc/self/task/{t}/comm").read()]
                lines = open(f"/proc/self/task/{task}/status").read().splitlines()
                now = [line for line in lines if line.startswith(("State", "voluntary", "nonvoluntary"))]
                if now != state or "sleeping" not in now[0]:
                    state, since = now, time.monotonic()
        def mark(name):
            if name == "begin":
                settled()
            try:
                os.stat(f"/mark-{name}")
            except OSError:
                pass
        a.value("SELECT dflock_acquire('warm')"), a.value("SELECT dflock_release('warm')")
        a.value("SELECT dflock_acquire('warm')"), a.value("SELECT dflock_release('warm')")
        """ + text, servers=server, wrapper=["strace", "-f", "-qq", "-o", str(trace)]).wait(60)
    lines = trace.read_text().splitlines()
    first, last = ([i for i, line in enumerate(lines) if f"/mark-{name}" in line][0] for name in ("begin", "end"))
    main = lines[first].split()[0]
    window = lines[first + 1:last]
    mine = [CALL.match(line).group(2) for line in window if line.startswith(main + " ") and CALL.match(line)]
    others = [line for line in window if not line.startswith(main + " ")]
    return mine, others


NOISE = {"futex", "brk", "mmap", "munmap", "madvise"}


@pytest.mark.parametrize("call, expected", [
    ("SELECT dflock_acquire('k', 0)", ["sendto", "epoll_wait", "recvfrom"]),
    ("SELECT dflock_lock('k')", ["sendto", "epoll_wait", "recvfrom"]),
])
def test_an_uncontended_acquire_is_one_write_and_one_read(start_script, server, directory, call, expected):
    mine, others = traced(start_script, server, f"""
        a.value("SELECT dflock_acquire('first')")
        mark("begin")
        a.value({call!r})
        mark("end")
        """, directory)
    assert [c for c in mine if c not in NOISE] == expected, mine
    assert not [line for line in others if "resumed" not in line and "futex" not in line], others


def test_a_release_is_one_write_and_one_read(start_script, server, directory):
    mine, _ = traced(start_script, server, """
        a.value("SELECT dflock_acquire('k')")
        mark("begin")
        a.value("SELECT dflock_release('k')")
        mark("end")
        """, directory)
    assert [c for c in mine if c not in NOISE] == ["sendto", "epoll_wait", "recvfrom"], mine


def test_a_thousand_pairs_wake_the_renewal_thread_once_in_a_while(start_script, server, directory):
    mine, others = traced(start_script, server, """
        mark("begin")
        for n in range(300):
            a.value("SELECT dflock_acquire('k')")
            a.value("SELECT dflock_release('k')")
        mark("end")
        """, directory)
    counted = [c for c in mine if c not in NOISE]
    assert counted.count("sendto") == counted.count("recvfrom") == 600
    assert counted.count("write") <= 3, "wake-ups"
    assert len(counted) <= 1820


def test_local_questions_write_nothing(start_script, server, directory):
    mine, _ = traced(start_script, server, """
        a.value("SELECT dflock_acquire('k')")
        mark("begin")
        a.value("SELECT dflock_is_held('k')")
        a.value("SELECT dflock_assert_held('k')")
        a.value("SELECT dflock_token('k')")
        a.rows("SELECT * FROM dflock_locks")
        mark("end")
        """, directory)
    assert not {"sendto", "sendmsg", "write"} & set(mine), mine


def test_an_idle_process_sleeps(start_script, server):
    """A lock with a lease of 33 s needs the processor a few times a minute."""
    script = start_script("""
        a = connect()
        a.value("SELECT dflock_lock('k')")
        print("held", flush=True)
        signal.pause()
        """, servers=server)
    eventually(lambda: script.said("held"))

    def switches():
        total = 0
        for task in pathlib.Path(f"/proc/{script.pid}/task").iterdir():
            if task.name != str(script.pid) and (task / "comm").read_text().strip() != "dflockd":
                continue  # a sanitizer's
            for line in (task / "status").read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches"):
                    total += int(line.split()[1])
        return total

    before, began = switches(), time.monotonic()
    eventually(lambda: time.monotonic() - began > 3, every=0.5)
    assert switches() - before <= 5
