"""The documents say what the programs do: flags, links, and the commands that the README names."""

import re
import subprocess

from lib.paths import DFLOCKD_LOCAL, ROOT

DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_table_of_flags_is_the_help_of_the_server():
    text = subprocess.run([DFLOCKD_LOCAL, "--help"], capture_output=True, text=True, timeout=10, check=True).stdout
    helped = {}
    for flag, default, variable in re.findall(r"^  (--[a-z-]+) .*?(?:\(([^()]*)\))?\n(?:    (DFLOCKD_[A-Z_]+))?", text,
                                              re.MULTILINE):
        helped[flag] = (variable, "" if default == "PEM" else default)
    documented = {}
    table = (ROOT / "docs" / "operations.md").read_text("utf-8")
    for row in re.findall(r"^\| `--.*$", table, re.MULTILINE):
        flag, variable, default = (cell.strip(" `") for cell in row.split("|")[1:4])
        documented[flag] = (variable, default)
    for flag in ("--no-auto-release-on-disconnect", "--version", "--help"):
        del helped[flag]
    assert documented == helped


def test_links_lead_somewhere():
    for document in DOCUMENTS:
        text = document.read_text("utf-8")
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            path, _, anchor = target.partition("#")
            if "://" in path:
                continue
            there = (document.parent / path).resolve() if path else document
            assert there.exists(), f"{document.name}: {target}"
            if anchor:
                titles = re.findall(r"^#+ (.*)$", there.read_text("utf-8"), re.MULTILINE)
                anchors = {re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-") for title in titles}
                assert anchor in anchors, f"{document.name}: {target}"


def test_make_has_what_the_readme_names():
    helped = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    targets = set(re.findall(r"^  make ([a-z-]+)", helped.stdout, re.MULTILINE))
    named = set(re.findall(r"`?\bmake ([a-z]+)\b(?=[` ]|$)", "\n".join(
        line for line in (ROOT / "README.md").read_text("utf-8").splitlines() if re.match(r"\|? ?`?make ", line))))
    assert {"demo", "server", "check", "install"} <= named
    assert named <= targets, named - targets
