"""Grids of real node processes on loopback, and the command line run against them as a user would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import p2pgrid
import p2pgrid_cli
from p2pgrid.store.home import Home

T = TypeVar("T")
Done = subprocess.CompletedProcess[str]

PROGRAM = (sys.executable, "-P", "-m", "p2pgrid_cli")
COMMAND_S = 40.0
START_S = 40.0
LOOK_S = 0.03
CACHES = Path(tempfile.gettempdir()) / f"p2pgrid-tests-{os.getuid()}"
"""Compiled modules and reports of self-tests: ten seconds of work that every node of every test can share."""
SLEEPERS = Path(__file__).parent / "jobs" / "sleepers.py"


def environment() -> dict[str, str]:
    """The packages under test, no settings of whoever runs the tests, and a terminal of no particular width."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("P2PGRID", "COLUMNS", "COVERAGE"))}
    packages = {Path(package.__file__ or "").parents[1] for package in (p2pgrid, p2pgrid_cli)}
    kept.setdefault("XDG_CACHE_HOME", str(CACHES))
    return {**kept, "PYTHONPATH": os.pathsep.join(map(str, sorted(packages)))}


def cli(home: Path | None, *words: str | Path, cwd: Path | None = None, stdin: str | None = None, timeout_s: float = COMMAND_S) -> Done:
    """Run one command to its end. ``home`` None: the folder must come from the words."""
    chosen = environment() | ({"P2PGRID_HOME": str(home)} if home is not None else {})
    return subprocess.run(
        [*PROGRAM, *map(str, words)], capture_output=True, text=True, env=chosen, cwd=cwd, input=stdin, timeout=timeout_s, check=False
    )


def start_cli(home: Path, *words: str | Path, cwd: Path | None = None) -> subprocess.Popen[str]:
    """Start one command in a session of its own; the caller ends it."""
    return subprocess.Popen(
        [*PROGRAM, *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment() | {"P2PGRID_HOME": str(home)},
        cwd=cwd,
        start_new_session=True,
    )


def until(look: Callable[[], T], what: str, timeout_s: float = START_S) -> T:
    """Look again and again until something true comes back."""
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(LOOK_S)
    return found


@dataclass
class Member:
    """One node process and its home."""

    home: Path
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> str:
        """What the node has said."""
        return self.home.with_suffix(".log").read_text(errors="replace")

    @property
    def ready(self) -> bool:
        """Whether it said that it is ready. Fails when it has ended instead."""
        assert self.process.poll() is None, f"the node ended with {self.process.poll()}:\n{self.log}"
        return "ready:" in self.log

    def run(self, *words: str | Path, **options: Any) -> Done:
        """A command of this node's owner."""
        return cli(self.home, *words, **options)

    def document(self, *words: str | Path) -> dict[str, Any]:
        """The document of a command that is asked for ``--json``."""
        done = self.run(*words, "--json")
        assert done.returncode == 0, done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def job(self, job: str) -> dict[str, Any]:
        """A job as ``jobs --json`` has it."""
        return next(line for line in self.document("jobs")["jobs"] if line["job"] == job)

    def kill(self) -> None:
        """End the process as a power cut would. Workers notice that their node has gone."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End the process politely, then for good."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()


def start_node(home: Path, *words: str | Path) -> Member:
    """A node in the foreground of its own process; it ends when this process does."""
    arguments = ["join", *map(str, words), "--home", str(home), "--parent", str(os.getpid())]
    if "--listen" not in arguments:
        arguments += ["--listen", "127.0.0.1:0"]
    if "--cpus" not in arguments:
        arguments += ["--cpus", "1"]
    with home.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(
            [*PROGRAM, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment(), start_new_session=True
        )
    return Member(home, process)


def end_detached(home: Path) -> None:
    """End a node that ``join --detach`` left running in this home: politely, else by the process id it wrote there."""
    running = Home(home, os.urandom).running()
    if running is not None and cli(home, "leave").returncode:
        os.kill(running.pid, signal.SIGKILL)


@dataclass
class Grid:
    """A grid whose first member founded it."""

    folder: Path
    members: list[Member] = field(default_factory=list)

    def __getitem__(self, number: int) -> Member:
        return self.members[number]

    def add(self, *words: str) -> Member:
        """A node that is told to join; not yet waited for."""
        invite = [self.members[0].run("invite").stdout.strip()] if self.members else []
        member = start_node(self.folder / f"node-{len(self.members)}", *invite, *words)
        self.members.append(member)
        return member

    def grow(self, nodes: int, words: Sequence[str] = ()) -> None:
        """Add nodes until there are ``nodes``, and wait until they are ready."""
        if not self.members:
            founder = self.add(*words)
            until(lambda: founder.ready, "the founder is ready")
        invite = self.members[0].run("invite").stdout.strip()
        for number in range(len(self.members), nodes):
            self.members.append(start_node(self.folder / f"node-{number}", invite, *words))
        for member in self.members:
            until(lambda: member.ready, f"{member.home.name} is ready")  # noqa: B023 - it is called at once

    def wait_complete(self) -> None:
        """Until each living node sees all living nodes."""
        alive = [member for member in self.members if member.process.poll() is None]
        for member in alive:
            until(lambda: live_peers(member) >= len(alive), f"{member.home.name} sees {len(alive)} nodes")  # noqa: B023

    def close(self) -> None:
        """End every process that was started here."""
        for member in self.members:
            if member.process.poll() is None:
                member.process.send_signal(signal.SIGTERM)
        for member in self.members:
            member.stop()


def live_peers(member: Member) -> int:
    """How many nodes answer this one."""
    return sum(peer["live"] for peer in member.document("peers")["peers"])


@contextmanager
def grid_of(nodes: int, folder: Path, *words: str) -> Iterator[Grid]:
    """A grid of this many nodes; gone afterwards."""
    grid = Grid(folder)
    try:
        grid.grow(nodes, words)
        yield grid
    finally:
        grid.close()
