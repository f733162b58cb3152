"""Jobs outlive everybody: submitters, leads and keepers are killed or leave, and the job ends for whoever asks."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

from tests.e2e.grids import Member, grid_of, start_node, until

WAIT_S = 90.0

ORDINARY = """
import time

def work(item):
    time.sleep(float({seconds!r}))
    return int(item) * 2

def inputs(count):
    return list(range(int(count)))
"""
COUNTED = """
import os, time

def work(item):
    with open(os.path.join({folder!r}, f"{{item}}-{{os.getpid()}}-{{time.monotonic_ns()}}"), "w"):
        pass
    deadline = time.monotonic() + {seconds}
    while time.monotonic() < deadline:
        pass
    with open(os.path.join({folder!r}, f"{{item}}-{{os.getpid()}}-end"), "w"):
        pass
    return item

def inputs(count):
    return list(range(int(count)))
"""


def descendants(pid: int) -> list[int]:
    """The processes below one, as the system lists them now."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    children: dict[int, list[int]] = {}
    for line in listed.splitlines():
        child, parent = map(int, line.split())
        children.setdefault(parent, []).append(child)
    found: list[int] = []
    due = [pid]
    while due:
        below = children.get(due.pop(), [])
        found += below
        due += below
    return found


def detach(member: Member, script: Path, *words: str) -> str:
    ran = member.run("run", "--detach", script, *words)
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.splitlines()) == 1
    return ran.stdout.strip()


def test_a_detached_job_outlives_its_submitter_and_two_others(tmp_path: Path) -> None:
    script = tmp_path / "ordinary.py"
    script.write_text(ORDINARY.format(seconds=0.05))
    with grid_of(6, tmp_path, "--storage", "200M") as grid:
        grid.wait_complete()
        job = detach(grid[1], script, "500")
        until(lambda: grid[1].job(job)["done"] >= 20, "the job is under way")
        for number in (1, 2, 3):
            grid[number].kill()
        late = grid.add("--storage", "200M")
        until(lambda: late.ready, "a node that joins after that is ready")
        read = late.run("results", job, "--wait", timeout_s=WAIT_S)
        assert read.returncode == 0, read.stderr
        assert read.stdout.split() == [str(2 * number) for number in range(500)]
        line = late.job(job)
        assert (line["done"], line["failed"], line["state"]) == (500, 0, "done")
        assert sum(line["units_per_node"].values()) == 500


def test_a_job_whose_submitter_died_is_watched_and_cancelled_from_elsewhere(tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text(ORDINARY.format(seconds=0.3))
    with grid_of(4, tmp_path, "--storage", "200M") as grid:
        grid.wait_complete()
        job = detach(grid[1], script, "400")
        key = (grid[1].home / "submitter.key").read_bytes()
        grid[1].kill()
        refused = grid[2].run("cancel", job)
        assert (refused.returncode, refused.stdout) == (77, ""), refused.stderr
        # The same person on another machine: the submitter key is theirs to carry.
        grid[3].stop()
        (grid[3].home / "submitter.key").write_bytes(key)
        again = start_node(grid[3].home, "--storage", "200M")
        grid.members.append(again)
        until(lambda: again.ready, "it is back")
        cancelled = again.run("cancel", job)
        assert cancelled.returncode == 0, cancelled.stderr
        watched = grid[2].run("watch", job)
        assert (watched.returncode, "cancelled: " in watched.stdout) == (1, True), watched.stderr


def test_a_node_that_is_told_to_go_leaves_nothing_undone(tmp_path: Path) -> None:
    """SIGTERM on a node with running units and keeper duty."""
    marks = tmp_path / "marks"
    marks.mkdir()
    script = tmp_path / "counted.py"
    script.write_text(COUNTED.format(folder=str(marks), seconds=0.7))
    with grid_of(4, tmp_path, "--storage", "200M") as grid:
        grid.wait_complete()
        job = detach(grid[0], script, "24")
        leaver = grid[2]
        until(lambda: len(list(marks.glob("*-end"))) >= 3, "the job is under way")
        theirs = {str(pid) for pid in descendants(leaver.process.pid)}
        told_ns = time.monotonic_ns()
        leaver.process.send_signal(signal.SIGTERM)
        assert leaver.process.wait(25) == 0
        read = grid[0].run("results", job, "--wait", timeout_s=WAIT_S)
        assert read.returncode == 0, read.stderr
        assert sorted(map(int, read.stdout.split())) == list(range(24))
        begun = [path.name.split("-") for path in marks.iterdir() if not path.name.endswith("-end")]
        on_leaver = {item for item, pid, _ in begun if pid in theirs}
        again = {item for item, pid, since_ns in begun if pid not in theirs and int(since_ns) > told_ns}
        assert on_leaver
        assert not on_leaver & again, "units shorter than two seconds ran twice because their node left"
