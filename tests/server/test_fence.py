"""The fence state file: what a crash, a clock set back, a spoilt or a full disk do to it."""

import re
import resource
import subprocess
import time
import zlib

import pytest

from lib import wire
from lib.eventually import eventually
from lib.paths import DFLOCKD_LOCAL
from lib.process import clean_environment
from lib.server import StartFailed, listening_port


@pytest.fixture
def path(directory):
    return directory / "fence"


@pytest.fixture
def fenced(make_server, path):
    """A server with a state file; more flags may be given."""
    return lambda *flags: make_server("--fence-state-file", path, *flags)


def take(server, key, lease=1):
    with server.connect() as w:
        grant = w.lock(key, lease=lease)
        assert w.release(key, grant.token) == "ok"
        return wire.fence_of(grant.token)


def record(sequence, fences_end, leases_end_ms, clean, leases_ms=60000):
    line = (f"dflockd-fence-1 sequence={sequence} fences_end={fences_end} leases_end_ms={leases_end_ms} "
            f"leases_ms={leases_ms} clean={clean}")
    line += f" crc={zlib.crc32(line.encode()):08x}"
    return line.ljust(511).encode() + b"\n"


def newest(path):
    """The fields of the newest record, as the server would read them."""
    found = []
    data = path.read_bytes()
    for text in (data[:512].decode(), data[512:].decode()):
        numbers = re.search(r"sequence=(\d+) fences_end=(\d+) leases_end_ms=(\d+) leases_ms=\d+ clean=(\d)", text)
        found.append(tuple(map(int, numbers.groups())))
    return dict(zip(("sequence", "fences_end", "leases_end_ms", "clean"), max(found)))


def test_without_a_file_fences_begin_at_the_clock_and_grow_by_one(server):
    first = take(server, "a")
    assert abs(first / 1e9 - time.time()) < 300
    assert take(server, "b") == first + 1
    assert take(server, "a") == first + 2


def test_fences_grow_over_kill_minus_nine(fenced):
    server = fenced("--no-recovery-wait")
    last = 0
    for _ in range(4):
        for key in ("a", "b"):
            fence = take(server, key)
            assert fence > last
            last = fence
        server.restart()


def test_fences_grow_when_the_clock_was_set_back(fenced, path):
    """The file is ahead of the clock by ten years."""
    ahead = time.time_ns() + 10 * 365 * 86400 * 10**9
    path.write_bytes(record(2, ahead, 0, 1) + record(1, 0, 0, 1))
    server = fenced()
    first = take(server, "a")
    assert first >= ahead
    server.restart("--fence-state-file", path, "--no-recovery-wait")
    assert take(server, "a") > first


def test_more_fences_than_were_reserved_at_once(fenced, path):
    """The block in the file is always ahead of what has been given."""
    server = fenced()
    with server.connect() as w:
        first = wire.fence_of(w.lock("k").token)
    assert newest(path)["fences_end"] > first + 1000
    assert newest(path)["clean"] == 0


def test_after_an_unclean_end_nothing_is_granted_until_leases_are_over(fenced, path):
    server = fenced()
    holder = server.connect()
    token = holder.lock("k", lease=2).token
    until = newest(path)["leases_end_ms"]
    assert until >= time.time() * 1000
    server.kill()
    # the file keeps ten seconds more than the lease: leave one of them
    data = newest(path)
    soon = int(time.time() * 1000) + 1500
    path.write_bytes(record(data["sequence"] + data["sequence"] % 2, data["fences_end"], soon, 0)
                     + record(data["sequence"] - 1, data["fences_end"], soon, 0))
    server.start()
    log = server.process.log()
    assert re.match(r'time=\S+ level=warn msg="granting nothing until the leases of the last run are over" '
                    r'until=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ seconds=[12]\n', log)
    with server.connect() as a, server.connect() as b, server.connect() as c:
        assert a.try_lock("free") == "timeout"
        assert a.renew("k", token, 2) == "error"
        assert a.release("k", token) == "error"
        assert b.ask("e", "queue") == "queued"
        c.send("l", "queue", "60")
        assert time.time() * 1000 < soon, "too slow to see it"
        b.send("w", "queue", "60")
        grant = wire.granted(b.receive())
        assert time.time() * 1000 >= soon - 5
        c.expect_silence(0.1)
        assert b.release("queue", grant.token) == "ok"
        assert wire.fence_of(wire.granted(c.receive()).token) > wire.fence_of(grant.token)
        assert a.try_lock("free") == "ok"


def test_the_wait_can_be_waived(fenced, path):
    server = fenced()
    holder = server.connect()
    holder.lock("k", lease=60)
    server.kill()
    server.start("--fence-state-file", path, "--no-recovery-wait")
    assert "granting although leases of the last run may not be over" in server.process.log()
    assert take(server, "k") > 0


def test_a_server_that_did_not_start_has_waived_nothing(fenced, path, make_server):
    """It finds its port taken: the leases of the last run are as old as before."""
    server = fenced()
    holder = server.connect()
    holder.lock("k", lease=60)
    server.kill()
    other = make_server()
    done = subprocess.run([DFLOCKD_LOCAL, "--port", str(other.port), "--fence-state-file", path, "--no-recovery-wait"],
                          env=clean_environment(), capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and "in use" in done.stderr
    server.start()
    with server.connect() as w:
        assert w.try_lock("k") == "timeout"


def test_a_clean_end_leaves_nothing_to_wait_for(fenced, path):
    server = fenced()
    take(server, "k", lease=60)
    assert newest(path)["clean"] == 0
    assert server.terminate() == 0
    assert newest(path)["clean"] == 1
    server.start()
    assert "granting nothing" not in server.process.log()
    assert take(server, "k") > 0


def test_an_end_with_holders_left_is_not_clean(fenced, path):
    server = fenced()
    holder = server.connect()
    holder.lock("k", lease=60)
    server.process.signal(15)
    eventually(lambda: "draining" in server.log())
    server.process.signal(15)
    assert server.process.wait() == 0
    assert newest(path)["clean"] == 0
    server.start()
    with server.connect() as w:
        assert w.try_lock("k") == "timeout"


def test_an_end_during_the_wait_does_not_shorten_it(fenced, path):
    server = fenced()
    holder = server.connect()
    holder.lock("k", lease=60)
    server.kill()
    until = newest(path)["leases_end_ms"]
    server.start()
    assert server.terminate() == 0
    assert newest(path)["clean"] == 0
    assert newest(path)["leases_end_ms"] == until


def test_the_moment_covers_renewals(fenced, path):
    server = fenced()
    with server.connect() as w:
        token = w.lock("k", lease=1).token
        assert newest(path)["leases_end_ms"] >= (time.time() + 1) * 1000
        assert w.renew("k", token, 500) == "ok 500"
        assert newest(path)["leases_end_ms"] >= (time.time() + 499) * 1000


@pytest.mark.parametrize("content", [b"", b"x", b"something else entirely\n" * 60, record(1, 5, 0, 1),
                                     record(2, 5, 0, 1)[:-1] + b"x" + record(1, 5, 0, 1)[:-1] + b"x",
                                     record(2, 5, 0, 1) + record(1, 5, 0, 1) + b"more"])
def test_a_spoilt_file_is_refused(fenced, path, content):
    path.write_bytes(content)
    with pytest.raises(StartFailed) as failed:
        fenced()
    assert failed.value.status == 1
    assert f"fence state file {path}: is not a whole fence state file" in failed.value.log
    assert path.read_bytes() == content


def test_one_torn_record_is_survived(fenced, path):
    """A crash in the middle of a write leaves the record that was relied on."""
    fences = time.time_ns() + 10**18
    path.write_bytes(record(2, fences, 0, 1) + record(3, fences + 5, 0, 1)[:200] + b"\0" * 312)
    assert take(fenced(), "k") >= fences


def test_a_file_that_cannot_be_made(make_server, directory):
    with pytest.raises(StartFailed) as failed:
        make_server("--fence-state-file", directory / "no" / "such" / "folder")
    assert "No such file or directory" in failed.value.log


def test_a_file_that_cannot_be_written_at_the_start(fenced, path):
    """The reason is the file's, whatever the log line before has met with."""
    assert fenced().terminate() == 0
    done = subprocess.run(["prlimit", "--fsize=0", DFLOCKD_LOCAL, "--port", "0", "--fence-state-file", path],
                          env=clean_environment({"TZ": "No/Where"}), capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert f'error="fence state file {path}: File too large"' in done.stderr


def test_no_log_line_goes_to_the_file(fenced, path):
    """A server that was started with standard error closed."""
    server = fenced()
    assert server.terminate() == 0
    silent = subprocess.Popen(["sh", "-c", 'exec "$@" 2>&-', "sh", *map(str, server.command()), "--debug"], env=clean_environment())
    try:
        eventually(lambda: listening_port(silent.pid) == server.port)
        with server.connect() as w:
            fence = wire.fence_of(w.lock("k", lease=60).token)
    finally:
        silent.kill()
        silent.wait()
    server.start("--fence-state-file", path, "--no-recovery-wait")
    assert "granting although leases of the last run may not be over" in server.process.log()
    assert take(server, "k") > fence


def test_two_servers_never_share_a_file(fenced, path):
    fenced()
    with pytest.raises(StartFailed) as failed:
        fenced()
    assert f"fence state file {path}: in use by another server" in failed.value.log


def test_nothing_is_granted_when_the_file_cannot_be_written(fenced, path):
    server = fenced()
    with server.connect() as w, server.connect() as waiting:
        held = w.lock("k", lease=5)
        waiting.send("l", "k", "60 500")
        server.await_waiters("k", 1)
        # Only the first record may be written from now on: the other one is the next but one at the latest.
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (512, 512))
        answers = [w.ask("l", f"long{i}", f"0 {1000 * (i + 1)}").split(" ")[0] for i in range(2)]
        assert answers[-1] == "error"
        assert w.renew("k", held.token, 5000) == "error"
        assert w.renew("k", held.token, 5) == "ok 5"  # within what the file says already
        assert w.release("k", held.token) == "ok"
        waited = waiting.receive()
        assert waited == "error" or answers[0] == "ok"
        eventually(lambda: "nothing is granted: the fence state file cannot be written" in server.log())


def test_the_file_is_synced_before_the_answer(make_server, directory, path):
    """strace: no answer to a first grant leaves before fdatasync of the file."""
    trace = directory / "trace"
    # -D: the server itself is our child, so that it is the one that is stopped at the end
    server = make_server("--fence-state-file", path,
                         wrapper=["strace", "-D", "-o", trace, "-e", "trace=pwrite64,fdatasync,sendto"])
    with server.connect() as w:
        w.lock("k", lease=50)

    def answer_at():
        lines = trace.read_text().splitlines()
        return next(((lines, i) for i, line in enumerate(lines) if "sendto(" in line and '"ok ' in line), None)

    lines, sent = eventually(answer_at, what="the answer is in the trace")
    synced = max(i for i, line in enumerate(lines[:sent]) if "fdatasync(" in line)
    assert "pwrite64(" in lines[synced - 1]
    assert "leases_end_ms=0" not in lines[synced - 1]
    assert server.terminate() == 0


def test_the_state_file_is_readable_for_people(fenced, path):
    fenced()
    done = subprocess.run(["head", "-c", "60", path], capture_output=True, text=True)
    assert done.stdout.startswith("dflockd-fence-1 sequence=")
