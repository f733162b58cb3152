"""Jobs outlive everybody: submitters, leads and keepers are killed or leave, and the job ends for whoever asks."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from p2pgrid.runtimes.cages import units_folder
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
import time

def work(item):
    open(f"unit-{item}", "w").close()  # In the private folder of its process: nothing else of the machine can be written.
    deadline = time.monotonic() + 0.7
    while time.monotonic() < deadline:
        pass
    return item

def inputs(count):
    return list(range(int(count)))
"""


class Onlooker:
    """Looks into the private folders of all nodes' processes: which unit runs where, and since when."""

    def __init__(self, members: Sequence[Member]) -> None:
        self._folders = [units_folder(member.home / "work" / "units") for member in members]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.seen: dict[tuple[int, int], float] = {}
        """(member, unit): the time, monotonic, at which it was seen first."""

    def __enter__(self) -> Onlooker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.02):
            for member, folder in enumerate(self._folders):
                with suppress(OSError):  # Folders come and go meanwhile.
                    for mark in folder.glob("processes/*/scratch/unit-*"):
                        self.seen.setdefault((member, int(mark.name.removeprefix("unit-"))), time.monotonic())


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
    script = tmp_path / "counted.py"
    script.write_text(COUNTED)
    with grid_of(4, tmp_path, "--storage", "200M") as grid, Onlooker(grid.members) as onlooker:
        grid.wait_complete()
        job = detach(grid[0], script, "24")
        leaver = grid[2]
        until(lambda: len(onlooker.seen) >= 6 and any(member == 2 for member, _ in onlooker.seen), "the job is under way")
        told_s = time.monotonic()
        leaver.process.send_signal(signal.SIGTERM)
        assert leaver.process.wait(25) == 0
        read = grid[0].run("results", job, "--wait", timeout_s=WAIT_S)
        assert read.returncode == 0, read.stderr
        assert sorted(map(int, read.stdout.split())) == list(range(24))
    assert {unit for _, unit in onlooker.seen} == set(range(24)), "the onlooker saw every unit"
    on_leaver = {unit for member, unit in onlooker.seen if member == 2}
    again = {unit for (member, unit), since_s in onlooker.seen.items() if member != 2 and since_s > told_s}
    assert not on_leaver & again, "units shorter than a second ran twice because their node left"
