"""memcheck: the command that a program runs under, and the judgement of what it has written.

Every process leaves a file of its own, forked children too, also when it is killed: what memcheck found until then is in it.
An invalid access or a use of what was never written counts wherever it is: it may be our doing. A block that was lost counts
if our code is in the stack of its allocation; hosts (Python leaves its own locks at the end) may lose theirs. What a thread
of the parent had in hand at a fork is not lost by the child: only the thread's stack, which the child has not, knew of it.
"""

import pathlib
import re
import xml.etree.ElementTree

from lib.paths import BUILD, ROOT

SUPPRESSIONS = ROOT / "tests" / "valgrind" / "memcheck.supp"
EXTENSION = "dflockd.so"
HOSTS = tuple(f"{ROOT / 'build' / name}/" for name in ("venv", "node", "pgserver"))  # not ours, though in our folder


def command(directory):
    """What goes before a program; its findings, and those of its children by fork, go to the directory."""
    return ["valgrind", "--quiet", "--xml=yes", f"--xml-file={directory}/%p.xml", "--leak-check=full", "--show-leak-kinds=definite",
            "--errors-for-leak-kinds=definite", "--num-callers=40", "--vgdb=no", "--fair-sched=try", "--gen-suppressions=all",
            f"--suppressions={SUPPRESSIONS}"]


class Finding:
    """One error of one process."""

    def __init__(self, path, text, forked):
        self.path = path
        self.forked = forked
        error = xml.etree.ElementTree.fromstring(re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "?", text))
        self.kind = error.findtext("kind", "")
        self.what = error.findtext("what") or error.findtext("xwhat/text") or ""
        # The first stack is where it happened, for a leak where the block came from; others say where memory came from.
        self.frames = [[(f.findtext("fn") or "?", f.findtext("obj") or "?", f.findtext("file"), f.findtext("line"))
                        for f in stack.iter("frame")] for stack in error.iter("stack")]
        self.suppression = (error.findtext("suppression/rawtext") or "").strip()

    @property
    def counts(self):
        if not self.kind.startswith("Leak_"):
            return True
        of_a_thread = any(fn == "start_thread" for fn, _, _, _ in self.frames[0])
        return any(_ours(obj) for _, obj, _, _ in self.frames[0]) and not (self.forked and of_a_thread)

    def __str__(self):
        lines = [f"{self.path.name}: {self.kind}: {self.what}"]
        for stack in self.frames:
            lines += [f"    {fn}  {f'{file}:{line}' if file else obj}" for fn, obj, file, line in stack]
            lines.append("    --")
        return "\n".join([*lines[:-1], self.suppression])


def _ours(obj):
    return obj.endswith(f"/{EXTENSION}") or (obj.startswith(f"{BUILD}/") and not obj.startswith(HOSTS))


class Findings:
    """All files of a directory."""

    def __init__(self, directory):
        self.files = sorted(pathlib.Path(directory).glob("*.xml"))
        self.counting, self.others = [], []
        written = {path.stem: path.read_text("utf-8", "replace") for path in self.files}
        for path in self.files:
            text = written[path.stem]
            parent = re.search(r"<ppid>(\d+)</ppid>", text)
            for error in re.findall(r"<error>.*?</error>", text, re.S):
                finding = Finding(path, error, forked=parent is not None and parent[1] in written)
                (self.counting if finding.counts else self.others).append(finding)

    def distinct(self):
        """The counting ones, each stack once."""
        seen = {}
        for finding in self.counting:
            seen.setdefault((finding.kind, tuple(map(tuple, finding.frames))), finding)
        return list(seen.values())

    def summary(self):
        return (f"{len(self.files)} processes under memcheck, {len(self.counting)} findings, "
                f"{len(self.others)} blocks lost by their hosts")
