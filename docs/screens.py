"""Pictures of what the commands show, taken from a real grid: `python docs/screens.py`.

It writes docs/screens/, docs/screens.md and the picture in the README.

Six nodes run on loopback, a job runs on them, and one node is killed. Every command then runs in a terminal of its own, of 60, 80 and
120 columns, played by `pyte`. What a reader would see is written down, and three things are checked, as people would see them too:

1. nothing is cut or wrapped: no character was ever written past the last column, and no line is longer than the terminal;
2. nothing flickers: a screen is never blank after its first picture, and from one picture to the next only a small share of it changes;
3. nothing is left: every process that was started here has ended, and the homes are gone.

The exit code is 1 when one of these does not hold.
"""

from __future__ import annotations

import argparse
import codecs
import fcntl
import itertools
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyte

DOCS = Path(__file__).resolve().parent
FOLDER = DOCS / "screens"
PAGE = DOCS / "screens.md"
README = DOCS.parent / "README.md"
README_PICTURE = re.compile(r"(?<=<!-- not run: a picture, taken by docs/screens.py -->\n)```text\n.*?```\n", re.DOTALL)
PROGRAM = (sys.executable, "-P", "-m", "p2pgrid_cli")
NODES = 6
WIDTHS = (60, 80, 120)
LIVE_ROWS = {60: 28, 80: 28, 120: 32}
ROWS = 60
"""Of commands that print and end: all they print must stay on the screen."""
NAMES = ("anna", "bertil", "carla", "dmitri", "eszter", "farid")
UNITS = 9000
SHORT_UNITS = 300
START_S = 40.0
LIVE_S = 3.0
COMMAND_S = 20.0
QUIET_S = 0.12
WRAPPED_SHOWN = 3
CHANGED_MAX = 0.35
"""Of the cells that are not blank, the share that may differ from one picture to the next. A line of progress is all news."""
FULL_LINES = 5
SCRIPT = '''\
"""Whole numbers with an odd number of divisors, the slow way."""

import time


def inputs(units):
    return range(int(units))


def work(number):
    time.sleep(0.12)  # As long as a real unit might take, and the machine stays quiet.
    if number == 500:
        raise ValueError("nobody computes the 500th unit")
    return sum(number % divisor == 0 for divisor in range(1, 1 + number)) % 2


def finish(results):
    return f"{sum(results)} squares"
'''
PAGE_HEAD = """\
# Screens

Six nodes on one machine, with a job running and one node just killed (`kill -9`), as the commands show them in a terminal of 80
columns. Colours are left out: every state has a word, too. `python docs/screens.py` takes these pictures, and others of 60 and 120
columns, and checks that nothing is cut, wrapped or flickering.
"""


class Careful(pyte.Screen):
    """A terminal that notes when something is written where the line has ended."""

    def __init__(self, columns: int, lines: int) -> None:
        self.wrapped: list[str] = []
        super().__init__(columns, lines)

    def draw(self, data: str) -> None:
        """As a terminal does; one character at a time where they might not fit, to see which one finds the line full."""
        if self.cursor.x + 2 * len(data) <= self.columns:
            super().draw(data)
            return
        for char in data:
            if self.cursor.x >= self.columns and len(self.wrapped) < WRAPPED_SHOWN:
                self.wrapped.append(f"'{char}' after '{self.display[self.cursor.y][-20:]}'")
            super().draw(char)


class Terminal:
    """One command in a terminal of its own, and what it has shown so far."""

    def __init__(self, words: Sequence[str], columns: int, rows: int, environment: dict[str, str], folder: Path) -> None:
        self.screen = Careful(columns, rows)
        self._stream = pyte.Stream(self.screen)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.pictures: list[list[str]] = []
        self.received_bytes = 0
        self.open = True
        self._fresh_at: float | None = None
        self.pid, self.master = pty.fork()
        if not self.pid:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            os.chdir(folder)
            os.execvpe(words[0], list(words), environment)  # noqa: S606 - these are our own commands

    def take_in(self) -> None:
        """Read what was written."""
        try:
            data = os.read(self.master, 1 << 16)
        except OSError:  # The last one who could write has gone.
            data = b""
        self.open = bool(data)
        self.received_bytes += len(data)
        self._stream.feed(self._decoder.decode(data))
        self._fresh_at = time.monotonic()

    def settle(self) -> None:
        """A pause in the writing ends a picture."""
        if self._fresh_at is not None and (not self.open or time.monotonic() - self._fresh_at >= QUIET_S):
            self._fresh_at = None
            self.pictures.append(self.lines())

    def press(self, keys: str) -> None:
        """Type something."""
        with suppress(OSError):
            os.write(self.master, keys.encode())

    def lines(self) -> list[str]:
        """What stands on the screen, line by line, without what is blank at the end."""
        lines = [line.rstrip() for line in self.screen.display]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def close(self) -> None:
        """End the command for good."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.master)


def look(terminals: Sequence[Terminal], for_s: float, enough: Callable[[Terminal], bool] = lambda terminal: False) -> None:
    """Take in what is written, for so long or until each terminal has shown enough or has ended."""
    deadline = time.monotonic() + for_s
    while time.monotonic() < deadline:
        waiting = {terminal.master: terminal for terminal in terminals if terminal.open and not enough(terminal)}
        if not waiting:
            break
        ready, _, _ = select.select(list(waiting), [], [], QUIET_S / 4)
        for number in ready:
            waiting[number].take_in()
        for terminal in terminals:
            terminal.settle()


class Screen(NamedTuple):
    """What to photograph. ``live``: it goes on until it is ended; ``until``: what must stand in a line of it first; ``skips``: pictures
    at the beginning that may differ from those behind them, as a screen that fills."""

    name: str
    title: str
    words: tuple[str, ...]
    live: bool = False
    until: str = ""
    skips: int = 0

    def rows(self, columns: int) -> int:
        """How high a terminal it gets."""
        return LIVE_ROWS[columns] if self.live else ROWS

    def seen(self, terminal: Terminal) -> bool:
        """Whether what it was waited for is there."""
        return any(re.search(self.until, line) for line in terminal.lines())


@dataclass
class Shot:
    """What was seen of a screen at one width."""

    screen: Screen
    columns: int
    lines: list[str]
    wrapped: list[str]
    pictures: list[list[str]]
    blank: int
    changed: list[float]
    received_bytes: int
    wrong: list[str] = field(default_factory=list)


def changed_share(before: Sequence[str], after: Sequence[str]) -> float:
    """The share of the cells in use, in either of two pictures, that differ."""
    used = differ = 0
    for number in range(max(len(before), len(after))):
        old = before[number] if number < len(before) else ""
        new = after[number] if number < len(after) else ""
        for cell in range(max(len(old), len(new))):
            pair = old[cell : cell + 1] or " ", new[cell : cell + 1] or " "
            used += pair != (" ", " ")
            differ += pair[0] != pair[1]
    return differ / used if used else 0.0


def judge(shot: Shot) -> list[str]:
    """What is wrong with a picture, in sentences."""
    wrong = [f"written past the last column: {where}" for where in shot.wrapped]
    if not shot.lines:
        wrong.append("nothing was shown")
    if any("Traceback" in line for line in shot.lines):
        wrong.append("a traceback was shown")
    if shot.screen.live:
        wrong += [f"the screen was blank {shot.blank} times"] if shot.blank else []
        worst = max(shot.changed, default=0.0) if len(shot.lines) >= FULL_LINES else 0.0
        wrong += [f"{worst:.0%} of the screen changed at once"] if worst > CHANGED_MAX else []
    return wrong


class Grid:
    """Nodes in a temporary folder, the first of which founded their grid."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}
        hidden = ("P2PGRID", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        project = str(DOCS.parent)
        paths = [project, str(DOCS.parent / "cli"), *filter(None, [kept.get("PYTHONPATH", "")])]
        self.environment = kept | {"PYTHONPATH": os.pathsep.join(paths), "TERM": "xterm-256color", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}

    def home(self, name: str) -> Path:
        """Where a node lives."""
        return self.folder / name

    def command(self, *words: str) -> str:
        """What a command of the first node's owner prints."""
        done = subprocess.run(
            [*PROGRAM, *words],
            env=self.environment | {"P2PGRID_HOME": str(self.home(NAMES[0]))},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr}")
        return done.stdout.strip()

    def start(self, names: Iterable[str], invite: Sequence[str] = ()) -> None:
        """Start nodes, and wait until each says that it is ready."""
        names = tuple(names)
        for name in names:
            words = ["join", *invite, "--home", str(self.home(name)), "--name", name, "--cpus", "2", "--storage", "500M"]
            words += ["--listen", "127.0.0.1:0", "--parent", str(os.getpid())]
            with self.home(name).with_suffix(".log").open("wb") as log:
                self.nodes[name] = subprocess.Popen(
                    [*PROGRAM, *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment, start_new_session=True
                )
        for name in names:
            log_path = self.home(name).with_suffix(".log")
            wait_for(lambda: "ready: " in log_path.read_text(errors="replace"), f"{name} is ready")  # noqa: B023 - called at once

    def settle(self) -> None:
        """Wait until the first node sees all others, each with its runtimes tested."""

        def complete() -> bool:
            peers = json.loads(self.command("peers", "--json"))["peers"]
            return len([peer for peer in peers if peer["live"] and "native" in peer["runtimes"]]) == NODES

        wait_for(complete, f"{NODES} nodes that work")

    def kill(self, name: str) -> None:
        """As a power cut does."""
        self.nodes[name].kill()
        self.nodes[name].wait()

    def close(self) -> None:
        """End all nodes."""
        for process in self.nodes.values():
            process.terminate()
        for process in self.nodes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for(look: Callable[[], Any], what: str) -> None:
    """Look again and again. Raises TimeoutError."""
    deadline = time.monotonic() + START_S
    while not look():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {START_S:g} s: {what}")
        time.sleep(0.05)


@contextmanager
def grid() -> Iterator[Grid]:
    """Six nodes, of which the last was killed while they compute; gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="p2pgrid-screens-"))
    found = Grid(folder)
    try:
        (folder / "divisors.py").write_text(SCRIPT, encoding="utf-8")
        found.start(NAMES[:1])
        found.start(NAMES[1:], [found.command("invite")])
        found.settle()
        yield found
    finally:
        found.close()
        shutil.rmtree(folder, ignore_errors=True)


def take(screen: Screen, widths: Sequence[int], found: Grid) -> list[Shot]:
    """Run a command in a terminal of each width, and look at all of them."""
    environment = found.environment | {"P2PGRID_HOME": str(found.home(NAMES[0]))}
    terminals = [Terminal([*PROGRAM, *screen.words], width, screen.rows(width), environment, found.folder) for width in widths]
    try:
        if screen.live:
            look(terminals, COMMAND_S, screen.seen)
            look(terminals, LIVE_S)
        else:
            look(terminals, COMMAND_S)
        shots = [shot_of(screen, width, terminal) for width, terminal in zip(widths, terminals, strict=True)]
        for terminal in terminals:
            terminal.press("\x03")
        look(terminals, COMMAND_S)
        for shot, terminal in zip(shots, terminals, strict=True):
            shot.wrong += ["Ctrl-C does not end it"] if terminal.open else []
    finally:
        for terminal in terminals:
            terminal.close()
    return shots


def shot_of(screen: Screen, columns: int, terminal: Terminal) -> Shot:
    """What a terminal shows now, judged."""
    first = next((number for number, picture in enumerate(terminal.pictures) if picture), len(terminal.pictures))
    shown = terminal.pictures[first + screen.skips :]
    changed = [changed_share(one, two) for one, two in itertools.pairwise(shown)]
    blank = sum(not picture for picture in shown)
    shot = Shot(screen, columns, terminal.lines(), list(terminal.screen.wrapped), shown, blank, changed, terminal.received_bytes)
    shot.wrong = judge(shot)
    return shot


def screens(job: str, victim: str, file: str) -> tuple[Screen, ...]:
    """What is photographed."""
    return (
        Screen("top", "p2pgrid top", ("top",), live=True, until="jobs 1", skips=2),
        Screen("watch", "p2pgrid watch JOB", ("watch", job), live=True, until="% ", skips=2),
        Screen("peers", "p2pgrid peers", ("peers",)),
        Screen("why-job", "p2pgrid why JOB", ("why", job)),
        Screen("why-me", "p2pgrid why me", ("why", "me")),
        Screen("why-peer", "p2pgrid why NODE, of the one that was killed", ("why", victim)),
        Screen("why-file", "p2pgrid why FILE", ("why", file)),
        Screen("jobs", "p2pgrid jobs", ("jobs",)),
    )


def page_of(shots: Sequence[Shot], facts: str) -> str:
    """docs/screens.md."""
    parts = [f"{PAGE_HEAD}{facts}\n"]
    for screen in dict.fromkeys(shot.screen for shot in shots):
        by_width = {shot.columns: shot for shot in shots if shot.screen == screen}
        others = ", ".join(f"[{width} columns](screens/{screen.name}-{width}.txt)" for width in by_width if width != 80)
        picture = "\n".join(by_width[80].lines)
        parts.append(f"\n## `{screen.title}`\n\n```text\n{picture}\n```\n\nAlso at {others}.\n")
    return "".join(parts)


def table_of(shots: Sequence[Shot]) -> str:
    """What was measured, for whoever runs this."""
    lines = [
        f"{'screen':<10} {'columns':>7} {'lines':>5} {'longest':>7} {'dots':>4} {'pictures':>8} {'most changed':>12} {'bytes':>7}  wrong"
    ]
    for shot in shots:
        longest = max(map(len, shot.lines), default=0)
        dots = sum(line.count("…") for line in shot.lines)
        worst = f"{max(shot.changed):.1%}" if shot.changed else "-"
        lines.append(
            f"{shot.screen.name:<10} {shot.columns:>7} {len(shot.lines):>5} {longest:>7} {dots:>4} {len(shot.pictures):>8} {worst:>12} "
            f"{shot.received_bytes:>7}  {'; '.join(shot.wrong) or '-'}"
        )
    return "\n".join(lines) + "\n"


def photograph(found: Grid, widths: Sequence[int]) -> list[Shot]:
    """A job, a file, a node that dies, and all pictures."""
    file = found.command("put", "divisors.py")
    job = found.command("run", "--detach", "divisors.py", str(UNITS))
    wait_for(lambda: job_done(found, job) > 100, "the job is on its way")
    victim = next(peer["node"] for peer in json.loads(found.command("peers", "--json"))["peers"] if peer["name"] == NAMES[-1])
    found.kill(NAMES[-1])
    shots = [shot for screen in screens(job, victim, file) for shot in take(screen, widths, found)]
    found.command("cancel", job)
    running = Screen(
        "run", "p2pgrid run SCRIPT, on its way", ("run", "divisors.py", str(SHORT_UNITS)), live=True, until="[1-9][0-9,]* of ", skips=2
    )
    for columns in widths:  # One after the other: of three jobs at a time, one may wait for the others.
        shots += take(running, [columns], found)
    return shots


def job_done(found: Grid, job: str) -> int:
    """Units of a job that have ended."""
    return next(int(line["done"]) for line in json.loads(found.command("jobs", "--json"))["jobs"] if line["job"] == job)


def write(shots: Sequence[Shot], folder: Path, page: Path) -> None:
    """Write the pictures, their page, and the one in the README."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for shot in shots:
        (folder / f"{shot.screen.name}-{shot.columns}.txt").write_text("\n".join(shot.lines) + "\n", encoding="utf-8")
    live = [share for shot in shots if shot.screen.live and len(shot.lines) >= FULL_LINES for share in shot.changed]
    facts = f"Of `top` and `watch`, at most {max(live, default=0.0):.0%} of the cells in use changed from one picture to the next."
    page.write_text(page_of(shots, facts), encoding="utf-8")
    top = next(shot for shot in shots if (shot.screen.name, shot.columns) == ("top", 80))
    picture = "\n".join(["```text", *top.lines, "```", ""])
    README.write_text(README_PICTURE.sub(lambda _: picture, README.read_text(encoding="utf-8")), encoding="utf-8")


def main() -> int:
    """Take the pictures. Returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--width", type=int, action="append", choices=WIDTHS, help="only this one, repeatable; nothing is written then")
    widths = parser.parse_args().width or list(WIDTHS)
    started = time.monotonic()
    with grid() as found:
        shots = photograph(found, widths)
    if tuple(widths) == WIDTHS:
        write(shots, FOLDER, PAGE)
    else:
        for shot in shots:
            sys.stdout.write(f"-- {shot.screen.title}, {shot.columns} columns\n" + "\n".join(shot.lines) + "\n\n")
    sys.stdout.write(table_of(shots) + f"{time.monotonic() - started:.0f} s\n")
    return 1 if any(shot.wrong for shot in shots) else 0


if __name__ == "__main__":
    sys.exit(main())
