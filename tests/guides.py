"""What the guides promise, as something that can be run: their files, their commands and the output they show.

How a guide says it, in ordinary Markdown:

- a block ```sh is run by bash, in order, all blocks of a guide in one shell that stops at the first failure;
- a block of another language below a sentence with "Save ... as `name`" is a file that is there before the first command;
- a block ```text right after commands is what they print, stdout and stderr as a terminal would mix them: line by line, runs of
  blanks being one blank. "…" stands for anything within a line, and alone on a line for any lines;
- `<!-- not run: why -->` above a block takes it out. Nothing else does: a block that is none of these is a complaint.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import p2pgrid
import p2pgrid_cli
from tests.e2e.grids import CACHES

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^(?P<fence>```+)(?P<kind>\w*)\n(?P<text>.*?)^(?P=fence)$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"\n\n {4,}\S")
NOT_RUN = re.compile(r"<!-- not run: (?P<why>[^>]+?) -->\s*$")
SAVE_AS = re.compile(r"\bSave\s[^`]*?\bas\s+`(?P<name>[\w.-]+)`")
ANYTHING = "…"
MARK = "\x1e"
END_S = 5.0
LOOK_S = 0.02


@dataclass
class Step:
    """One block of commands, and what the guide says that they print (None: nothing is said)."""

    line: int
    commands: str
    shown: str | None = None


@dataclass
class Guide:
    """What there is to run in a page. ``skipped``: (line, why) of blocks that are not run."""

    files: dict[str, str] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    skipped: list[tuple[int, str]] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


def read_guide(text: str) -> Guide:
    """Take a page apart."""
    guide = Guide()
    position, after_skipped = 0, False
    for block in BLOCK.finditer(text):
        before = text[position : block.start()]
        position = block.end()
        line = text.count("\n", 0, block.start()) + 1
        guide.complaints += [f"line {line}: an indented block above; use a fence"] * bool(INDENTED.search(before))
        why = NOT_RUN.search(before)
        if why is not None:
            guide.skipped.append((line, why["why"]))
        elif block["kind"] == "sh":
            guide.steps.append(Step(line, block["text"]))
        elif block["kind"] == "text":
            if not after_skipped:
                _take_output(guide, line, block["text"])
        else:
            names = SAVE_AS.findall(before)
            if len(names) != 1:
                guide.complaints.append(f"line {line}: a block of '{block['kind']}' that is not saved as a file")
            else:
                guide.files[names[0]] = block["text"]
        after_skipped = why is not None
    if INDENTED.search(text[position:]):
        guide.complaints.append("an indented block at the end; use a fence")
    return guide


def _take_output(guide: Guide, line: int, text: str) -> None:
    if not guide.steps or guide.steps[-1].shown is not None:
        guide.complaints.append(f"line {line}: output that follows no command")
    else:
        guide.steps[-1].shown = text


def difference(shown: str, printed: str) -> str:
    """Where the output is not what the guide shows; empty when it is. A line of its own "…" may stand for no line, too."""
    expected, real = _lines(shown), _lines(printed)
    reached = {0}
    for number, line in enumerate(expected):
        if line == ANYTHING:
            following = set(range(min(reached), len(real) + 1))
        else:
            pattern = re.compile(".*".join(map(re.escape, line.split(ANYTHING))))
            following = {index + 1 for index in reached if index < len(real) and pattern.fullmatch(real[index])}
        if not following:
            return f"line {number + 1} of what is shown, '{line}', was not printed:\n{printed}"
        reached = following
    return "" if len(real) in reached else f"more was printed than is shown:\n{printed}"


def _lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


class Room:
    """A folder with a home, the guide's files, ``p2pgrid`` and ``python`` on the path, and nothing of whoever runs the tests."""

    def __init__(self, folder: Path) -> None:
        self.here, self.folder = folder / "here", folder
        home, programs = folder / "home", folder / "bin"
        for made in (self.here, home, programs):
            made.mkdir(parents=True)
        (self.here / "scenarios").symlink_to(ROOT / "scenarios")
        for name, words in (("p2pgrid", "-P -m p2pgrid_cli"), ("python", "")):
            program = programs / name
            program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {words} "$@"\n', encoding="utf-8")
            program.chmod(0o755)
        packages = {str(Path(package.__file__ or "").parents[1]) for package in (p2pgrid, p2pgrid_cli)}
        hidden = ("P2PGRID", "XDG_", "COVERAGE", "COLUMNS", "PYTEST")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        self.environment = kept | {
            "HOME": str(home),
            "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "PYTHONPATH": os.pathsep.join(sorted(packages)),
            "XDG_CACHE_HOME": str(CACHES),
            # The guides let a node listen where it likes; a test stays on this machine.
            "P2PGRID_LISTEN": "127.0.0.1:0",
        }

    def play(self, guide: Guide, timeout_s: float) -> list[str]:
        """Run all commands in one shell. Returns what is wrong: a failed command, or output that is not what is shown."""
        for name, content in guide.files.items():
            (self.here / name).write_text(content, encoding="utf-8")
        script = self.folder / "guide.sh"
        parts = [f"{step.commands}\nprintf '{MARK}'\n" for step in guide.steps]
        script.write_text("".join(parts), encoding="utf-8")
        bash = shutil.which("bash")
        assert bash is not None
        output = self.folder / "output.txt"
        with output.open("wb") as stream:  # A file, not a pipe: a node that stays behind would keep a pipe open.
            process = subprocess.Popen(
                [bash, "-euo", "pipefail", str(script)],
                cwd=self.here,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )
            try:
                code = process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                code = None
        printed = output.read_text(encoding="utf-8", errors="replace").split(MARK)
        if code != 0:
            step = guide.steps[min(len(printed), len(guide.steps)) - 1]
            return [f"line {step.line}: {'too slow' if code is None else f'exit code {code}'}\n{step.commands}\n{printed[-1]}"]
        pairs = zip(guide.steps, printed, strict=False)
        found = [(step, difference(step.shown, text)) for step, text in pairs if step.shown is not None]
        return [f"line {step.line}: {wrong}" for step, wrong in found if wrong]

    def left_behind(self, grace_s: float = END_S) -> list[str]:
        """The command lines of processes that were started in this room and do not end within ``grace_s``; they are ended."""
        self._wait_for_nobody(grace_s)
        found = dict(self._processes())
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._wait_for_nobody(END_S)
        return list(found.values())

    def _wait_for_nobody(self, within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while any(True for _ in self._processes()) and time.monotonic() < deadline:
            time.sleep(LOOK_S)

    def _processes(self) -> Iterator[tuple[int, str]]:
        mark = f"HOME={self.environment['HOME']}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                variables, words = (folder / "environ").read_bytes(), (folder / "cmdline").read_bytes()
            except OSError:  # It has ended, or it is somebody else's.
                continue
            if mark in variables.split(b"\0"):
                yield int(folder.name), words.replace(b"\0", b" ").decode(errors="replace").strip()
