"""``python -m bench faces``: what the command line and a node that waits cost, on a real grid of six nodes.

The nodes are started as people start them, with ``join --detach``. CPU is what the kernel accounts to a process, so that figures
hold on a busy machine, too; the time to the first frame is by the clock, and its median stands for a calm moment.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.quick import ChildError

NODES = 6
COLUMNS, ROWS = 120, 40
FRAME_WAIT_S = 20.0
HELP_MS, FRAME_MS, IDLE_PERCENT, MEMORY_MIB = 120.0, 300.0, 0.3, 70.0
SETTLE_S = 150.0
"""A node's first minutes are its self-test and the copies of the grid's Python runner, and no idle time."""


class Options(NamedTuple):
    """What the command line asks for."""

    rounds: int = 10
    """Starts of each command."""
    idle_s: float = 60.0
    settle_s: float = SETTLE_S
    folder: Path | None = None
    as_json: bool = False
    check: bool = False


class Row(NamedTuple):
    """A line of the table: what was measured, and what it may be at most."""

    what: str
    figure: float
    worst: float
    unit: str
    target: float | None = None

    @property
    def is_met(self) -> bool:
        return self.target is None or self.figure <= self.target


class Grid:
    """Six nodes in the background, in homes of their own."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="p2pgrid-faces-", dir=folder))
        self.homes = [self._folder / f"node-{number}" for number in range(NODES)]

    def start(self) -> None:
        """Raises ChildError when a node does not come up."""
        invite: list[str] = []
        for number, home in enumerate(self.homes):
            terms = ["--cpus", "1", "--storage", "200M", "--listen", "127.0.0.1:0", "--name", f"node-{number}"]
            done = command("join", *invite, "--detach", "--home", str(home), *terms)
            if done.returncode:
                raise ChildError(f"node {number} did not start: {done.stderr.strip()}")
            invite = invite or [command("invite", "--home", str(home)).stdout.strip()]

    def pids(self) -> list[int]:
        return [json.loads((home / "lock").read_text())["pid"] for home in self.homes]

    def close(self) -> None:
        for home in reversed(self.homes):
            if home.exists():
                command("leave", "--home", str(home))
        shutil.rmtree(self._folder, ignore_errors=True)


def arguments(*words: str) -> list[str]:
    return [sys.executable, "-P", "-m", "p2pgrid_cli", *words]


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments(*words), capture_output=True, text=True, check=False, timeout=120, stdin=subprocess.DEVNULL)


def cpu_ms(words: Sequence[str]) -> float:
    """CPU of one command, from its start to its end, its children included. Raises ChildError when it fails."""
    process = subprocess.Popen(arguments(*words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ChildError(f"p2pgrid {' '.join(words)} ended with {process.returncode}")
    return (used.ru_utime + used.ru_stime) * 1e3


def first_frame_ms(home: Path) -> float:
    """From the start of ``top`` on a terminal to the first picture on it. Raises ChildError when none comes."""
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    began = time.perf_counter()
    process = subprocess.Popen(
        arguments("top", "--home", str(home)), stdin=terminal, stdout=terminal, stderr=terminal, env=environment, start_new_session=True
    )
    os.close(terminal)
    try:
        seen = b""
        while b"node-0" not in seen:
            left_s = began + FRAME_WAIT_S - time.perf_counter()
            if left_s <= 0 or not select.select([master], [], [], left_s)[0]:
                raise ChildError(f"top showed nothing: {seen[-200:]!r}")
            seen += os.read(master, 1 << 16)
        shown = time.perf_counter()
        os.write(master, b"q")
        _drain(master)
        process.wait(FRAME_WAIT_S)
    except OSError as error:
        raise ChildError(f"top ended early: {error}") from error
    finally:
        os.close(master)
        if process.poll() is None:
            process.kill()
            process.wait()
    return (shown - began) * 1e3


def _drain(master: int) -> None:
    """Read until the other side has closed: a command that cannot write does not end."""
    while select.select([master], [], [], FRAME_WAIT_S)[0]:
        try:
            if not os.read(master, 1 << 16):
                return
        except OSError:
            return


def spent_ns(process_id: int) -> int:
    """CPU of all threads of a process, to the nanosecond."""
    total = 0
    for thread in Path(f"/proc/{process_id}/task").iterdir():
        total += int((thread / "schedstat").read_text().split()[0])
    return total


def memory_mib(process_id: int) -> float:
    """A process's share of the machine's memory (PSS)."""
    for line in Path(f"/proc/{process_id}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise ChildError("the kernel tells no PSS")


def idle(process_ids: Sequence[int], seconds: float) -> tuple[list[float], list[float]]:
    """Percent of a core, and MiB, of each process over so long."""
    before = {process_id: spent_ns(process_id) for process_id in process_ids}
    began = time.monotonic()
    time.sleep(seconds)
    took_ns = (time.monotonic() - began) * 1e9
    cpu = [100 * (spent_ns(process_id) - before[process_id]) / took_ns for process_id in process_ids]
    return cpu, [memory_mib(process_id) for process_id in process_ids]


def row(what: str, values: Sequence[float], unit: str, target: float | None = None) -> Row:
    return Row(what, statistics.median(values), max(values), unit, target)


def measure(options: Options, say: Callable[[str], None]) -> list[Row]:
    """Raises ChildError."""
    rows = [row("p2pgrid --help, CPU", [cpu_ms(["--help"]) for _ in range(options.rounds)], "ms", HELP_MS)]
    grid = Grid(options.folder)
    try:
        say(f"starting {NODES} nodes")
        grid.start()
        home = grid.homes[0]
        say(f"waiting {options.settle_s:.0f} s for self-tests and first copies")
        time.sleep(options.settle_s)
        frames = [first_frame_ms(home) for _ in range(options.rounds)]
        rows.append(row("p2pgrid top, start to first frame", frames, "ms", FRAME_MS))
        looks = [cpu_ms(["top", "--once", "--home", str(home)]) for _ in range(options.rounds)]
        rows.append(row("p2pgrid top --once, CPU", looks, "ms"))
        say(f"leaving {NODES} nodes alone for {options.idle_s:.0f} s")
        cpu, memory = idle(grid.pids(), options.idle_s)
        rows.append(row(f"idle node with {NODES - 1} peers, CPU", cpu, "%", IDLE_PERCENT))
        rows.append(row(f"idle node with {NODES - 1} peers, PSS", memory, "MiB", MEMORY_MIB))
    finally:
        grid.close()
    return rows


def table(rows: Sequence[Row]) -> str:
    """As Markdown: the median of several starts or nodes, the worst of them, and the target."""
    lines = ["| what | median | worst | target | |", "|---|--:|--:|--:|---|"]
    for one in rows:
        target = "" if one.target is None else f"{one.target:g} {one.unit}"
        verdict = "" if one.target is None else "met" if one.is_met else "missed"
        lines.append(f"| {one.what} | {one.figure:.3g} {one.unit} | {one.worst:.3g} {one.unit} | {target} | {verdict} |")
    return "\n".join(lines)


def document(rows: Sequence[Row]) -> Mapping[str, object]:
    """For ``--json``."""
    return {"figures": [{**one._asdict(), "met": one.is_met} for one in rows]}


def run(options: Options, say: Callable[[str], None]) -> int:
    """Measure and print; 1 with ``--check`` when a target is missed. Raises ChildError."""
    rows = measure(options, say)
    print(json.dumps(document(rows), indent=2) if options.as_json else table(rows))
    return int(options.check and not all(one.is_met for one in rows))
