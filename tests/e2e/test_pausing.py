"""The owner has the machine back: within two seconds of ``pause`` and of SIGTERM, measured by what the owner's own programs get done.

Units run as important as everything else here (``--nice 0``), so that the owner's programs have half of each core while they run, and all
of it after. What the processes of the node use is measured beside it: where other programs of the machine take what was given back, only
that can be judged.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from p2pgrid.core import pausing as core
from p2pgrid.sensors import OthersLoad
from tests.e2e.grids import Done, Member, start_node, until

BURNERS = Path(__file__).parent / "jobs" / "burners.py"
CORES = min(4, os.cpu_count() or 1)
GIVEN_BACK_S = 2.0
WINDOW_S = 1.0
RATIO_MIN = 1.3
"""Twice as much on a machine without other work."""
QUIET_SHARE = 0.15
"""Of the processors, in other hands."""
USED_MAX = 0.25
"""Cores that the node may use for itself afterwards: it stays a member."""
TICKS_PER_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
SPIN = """
import mmap, os, struct, sys
with open(sys.argv[1], "r+b") as file:
    memory = mmap.mmap(file.fileno(), 0)
count, parent = 0, os.getppid()
while os.getppid() == parent:
    for _ in range(1000):
        count += 1
    struct.pack_into("<Q", memory, 8 * int(sys.argv[2]), count)
"""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="looks at processes as Linux shows them")]


class Owner:
    """Programs of the owner, one for each core, and what they have got done."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._others = OthersLoad(Path("/proc"), time.monotonic)
        self.quiet = True
        """Whether nobody but this test and what it started used the machine while rates were measured."""

    @property
    def done(self) -> int:
        return sum(int.from_bytes(self._memory[8 * core : 8 * core + 8], "little") for core in range(CORES))

    def rate(self) -> float:
        """Progress a second, over a window."""
        self._others.share()
        start, done = time.monotonic(), self.done
        time.sleep(WINDOW_S)
        rate = (self.done - done) / (time.monotonic() - start)
        self.quiet = self.quiet and (self._others.share() or 0.0) < QUIET_SHARE
        return rate

    def check(self, before: float, after: float) -> None:
        """The owner's programs go faster than before, unless somebody else slows them."""
        assert after / before > RATIO_MIN or not self.quiet, f"the owner's programs went {after / before:.2f} times as fast"


@contextmanager
def owner_at_work() -> Iterator[Owner]:
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(8 * CORES)
        memory = mmap.mmap(file.fileno(), 8 * CORES)
        spinners = [subprocess.Popen([sys.executable, "-S", "-c", SPIN, file.name, str(core)]) for core in range(CORES)]
        try:
            owner = Owner(memory)
            until(lambda: owner.done > 0, "the owner's programs run")
            yield owner
        finally:
            for spinner in spinners:
                spinner.kill()
                spinner.wait()
            memory.close()


def timed(member: Member, *words: str) -> tuple[Done, float]:
    """A command of the owner that succeeds, and how long it took in all."""
    start = time.monotonic()
    done = member.run(*words)
    assert done.returncode == 0, done.stderr
    return done, time.monotonic() - start


def pass_time(until_s: float) -> None:
    """The promise is one of time: it is looked at when the time is over, not before."""
    time.sleep(max(0.0, until_s - time.monotonic()))


def ticks_of(pid: int) -> dict[int, int]:
    """Clock ticks that each process of a tree has used."""
    rows: dict[int, tuple[int, int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            except OSError:
                continue
            rows[int(folder.name)] = (int(words[1]), int(words[11]) + int(words[12]))
    tree = {pid}
    while True:
        more = {child for child, (parent, _) in rows.items() if parent in tree} - tree
        if not more:
            return {child: rows[child][1] for child in tree if child in rows}
        tree |= more


def used_cores(pid: int) -> float:
    """Cores that a tree of processes uses over a window."""
    before, start = ticks_of(pid), time.monotonic()
    time.sleep(WINDOW_S)
    after = ticks_of(pid)
    return sum(ticks - before.get(child, 0) for child, ticks in after.items()) / TICKS_PER_S / (time.monotonic() - start)


@pytest.fixture
def lending(tmp_path: Path) -> Iterator[Member]:
    """A node that lends every core, with units on all of them."""
    member = start_node(tmp_path / "node", "--cpus", str(CORES), "--nice", "0", "--storage", "100M")
    try:
        until(lambda: member.ready, "it is ready")
        submitted = member.run("run", "--detach", BURNERS, "64", "600")
        assert submitted.returncode == 0, submitted.stderr
        until(lambda: busy_cores(member) == CORES, "units run on every core", timeout_s=30.0)
        yield member
    finally:
        member.stop()


def busy_cores(member: Member) -> int:
    peer = member.document("peers")["peers"][0]
    return int(peer["running"])


def test_a_pause_gives_the_cores_back_within_two_seconds(lending: Member) -> None:
    with owner_at_work() as owner:
        before = owner.rate()
        until(lambda: used_cores(lending.process.pid) > CORES * 0.2, "the units are at work")
        _, command_s = timed(lending, "why", "me")
        paused, took_s = timed(lending, "pause")
        assert took_s - command_s < GIVEN_BACK_S, f"{took_s:.2f} s, and {command_s:.2f} s for a command that only asks"
        used = used_cores(lending.process.pid)
        after = owner.rate()
    assert paused.stdout.startswith("paused")
    assert used < USED_MAX, f"the node still uses {used:.2f} cores"
    owner.check(before, after)
    peer = lending.document("peers")["peers"][0]
    assert (peer["paused"], peer["running"], peer["free_cores"]) == ("paused", 0, 0)
    assert lending.run("resume").returncode == 0
    until(lambda: busy_cores(lending) == CORES, "the units run again, on the same node")
    job = lending.document("jobs")["jobs"][0]
    assert (job["state"], job["failed"]) == ("running", 0), "what was stopped counts for nothing"


def test_sigterm_gives_the_cores_back_within_two_seconds(lending: Member) -> None:
    with owner_at_work() as owner:
        before = owner.rate()
        tree = ticks_of(lending.process.pid).keys() - {lending.process.pid}
        assert tree, "units run in processes of their own"
        start = time.monotonic()
        lending.process.send_signal(signal.SIGTERM)
        pass_time(start + GIVEN_BACK_S)
        left = [pid for pid in tree if is_running(pid)]
        after = owner.rate()
    assert not left
    owner.check(before, after)
    assert lending.process.wait(30) == 0


def test_a_pause_ends_the_attacks_on_the_own_cages_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # Nothing is known of this machine's cages.
    member = start_node(tmp_path / "node")
    try:
        until(lambda: member.ready, "it is ready")
        until(lambda: len(ticks_of(member.process.pid)) > 1, "it attacks its cages")
        timed(member, "pause")
        pass_time(time.monotonic() + GIVEN_BACK_S - core.GRACE_S)
        used = used_cores(member.process.pid)
        assert used < USED_MAX, f"the node still uses {used:.2f} cores"
    finally:
        member.stop()


def is_running(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_pause_holds_after_a_restart_and_its_reason_is_told(tmp_path: Path) -> None:
    home = tmp_path / "node"
    member = start_node(home)
    until(lambda: member.ready, "it is ready")
    try:
        told = member.document("pause", "--for", "2h")
        assert (told["state"], told["reason"], told["until_ms"] - told["since_ms"]) == ("paused", "paused", 7_200_000)
        member.stop()
        member = start_node(home)
        until(lambda: member.ready, "it is ready again")
        why = member.document("why", "me")
        assert why["state"] == "paused"
        assert "paused" in {reason["reason"] for reason in why["because"]}
        assert member.document("peers")["peers"][0]["paused_since_ms"] == told["since_ms"]
        assert "paused" in member.run("peers").stdout
        assert member.document("resume")["state"] == "running"
        assert member.document("peers")["peers"][0]["paused"] is None
    finally:
        member.stop()


def test_terms_of_a_file_hold_and_what_is_wrong_in_it_is_named(tmp_path: Path) -> None:
    home = tmp_path / "node"
    home.mkdir()
    hour = (time.localtime().tm_hour + 12) % 24
    hours = f"{hour:02}:00-{hour:02}:30"
    (home / "config.toml").write_text(f'hours = "{hours}"\nnice = 7\naccept_form = "x"\n')
    member = start_node(home)
    assert member.process.wait(20) == 78
    assert "unknown key 'accept_form'" in member.log
    assert "did you mean 'accept_from'?" in member.log
    (home / "config.toml").write_text(f'hours = "{hours}"\nnice = 7\n')
    member = start_node(home, "--nice", "3")
    try:
        until(lambda: member.ready, "it is ready")
        why = member.document("why", "me")
        assert why["state"] == "paused"
        assert "outside-hours" in {reason["reason"] for reason in why["because"]}
        said = json.dumps(why)
        assert all(word in said for word in (f"in the hours {hours}", f"hours: {hours}", "nice: 3")), said
    finally:
        member.stop()
