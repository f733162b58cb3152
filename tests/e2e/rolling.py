"""Every node of a grid is killed and replaced, one after the other, while a job runs and files lie in the grid.

    python -m tests.e2e.rolling [--nodes 6] [--size 200M] [--every 40]

Prints, for each kill, after how many seconds the job had a lead and three keepers again, all of them alive, and every file three
live copies, read off the disks of the living; T is the longest of these. Exit code 1 if a result or a byte is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from p2pgrid.model.ids import from_text
from p2pgrid.model.sizes import parse_size
from tests.e2e.grids import Grid, Member, grid_of, start_node, until

FILES = 10
REPLICAS = 3
KEEPERS = 3
UNIT_S = 0.5
PATIENCE_S = 120.0
SCRIPT = f"""
import time

def inputs(count):
    return range(int(count))

def work(item):
    time.sleep({UNIT_S})
    return item * 3
"""


@dataclass
class Wound:
    """What one kill did."""

    job_s: float
    files_s: float


class Rolling:
    """The grid, its job and its files."""

    def __init__(self, grid: Grid, folder: Path, size_bytes: int, duration_s: float) -> None:
        self.grid = grid
        self.digests: dict[str, str] = {}
        for number in range(FILES):
            path = folder / f"file-{number}"
            content = random.Random(number).randbytes(size_bytes // FILES)
            path.write_bytes(content)
            put = grid[number % len(grid.members)].run("put", path)
            assert put.returncode == 0, put.stderr
            self.digests[put.stdout.strip()] = hashlib.sha256(content).hexdigest()
        self.sizes = size_bytes // FILES
        script = folder / "rolling_job.py"
        script.write_text(SCRIPT)
        self.units = int(duration_s / UNIT_S * len(grid.members))
        ran = grid[0].run("run", "--detach", script, str(self.units))
        assert ran.returncode == 0, ran.stderr
        self.job = ran.stdout.strip()

    def living(self) -> list[Member]:
        return [member for member in self.grid.members if member.process.poll() is None]

    def copies(self, blob: str) -> int:
        """Living nodes with a whole copy on their disk."""
        name = from_text(blob, what="blob").hex()
        return sum(
            any(path.stat().st_size == self.sizes for path in (member.home / "blobs").rglob(f"{name}*") if path.is_file())
            for member in self.living()
        )

    def job_is_safe(self, asked: Member, names: dict[Path, str]) -> bool:
        """Whether the job is led and kept by living nodes only, three of them beside the lead; or is over and kept by as many."""
        alive = {names[member.home] for member in self.living() if member.home in names}
        asked.run("results", self.job)
        line = asked.job(self.job)
        return line["lead"] in alive and len(alive & set(line["keepers"])) >= min(KEEPERS, len(alive) - 1)

    def replace(self, number: int, names: dict[Path, str]) -> Wound:
        """Kill an original node, start a new one, and wait until nothing is missing any more."""
        victim = self.grid[number]
        survivor = next(member for member in reversed(self.living()) if member is not victim)
        invite = invite_of(victim)
        victim.kill()
        killed = time.monotonic()
        fresh = start_node(self.grid.folder / f"new-{number}", invite, "--storage", "4G")
        self.grid.members.append(fresh)
        until(lambda: fresh.ready, "the new node is ready", 60.0)
        names[fresh.home] = own_key(fresh)
        wound = Wound(0.0, 0.0)
        while (not wound.job_s or not wound.files_s) and time.monotonic() - killed < PATIENCE_S:
            if not wound.files_s and all(self.copies(blob) >= REPLICAS for blob in self.digests):
                wound.files_s = time.monotonic() - killed
            if not wound.job_s and self.job_is_safe(survivor, names):
                wound.job_s = time.monotonic() - killed
            time.sleep(0.2)
        assert wound.job_s, "the job lacks keepers"
        assert wound.files_s, f"files lack copies: {[self.copies(blob) for blob in self.digests]}"
        return wound


def invite_of(member: Member) -> str:
    """An invite by a member, with itself and two others as contacts: one of them will do."""
    roles = [word for role in ("work", "store", "submit", "native", "invite") for word in ("--role", role)]
    invited = member.run("invite", *roles)
    assert invited.returncode == 0, invited.stderr
    return invited.stdout.strip()


def own_key(member: Member) -> str:
    return str(member.document("peers")["peers"][0]["node"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=6)
    parser.add_argument("--size", default="200M")
    parser.add_argument("--every", type=float, default=40.0, help="seconds between two kills: the T that is promised, and 10 more")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rolling-") as name:
        folder = Path(name)
        with grid_of(1, folder, "--storage", "4G") as grid:
            invite = invite_of(grid[0])
            for number in range(1, options.nodes):
                grid.members.append(start_node(folder / f"original-{number}", invite, "--storage", "4G"))
            for member in grid.members:
                until(lambda: member.ready, "all are ready")  # noqa: B023 - it is called at once
            grid.wait_complete()
            rolling = Rolling(grid, folder, parse_size(options.size), options.nodes * options.every)
            names = {member.home: own_key(member) for member in grid.members}
            print(f"{options.nodes} nodes, {FILES} files of {rolling.sizes:,} bytes, {rolling.units} units of {UNIT_S} s", flush=True)
            wounds = []
            for number in range(options.nodes):
                next_kill = time.monotonic() + options.every
                wounds.append(rolling.replace(number, names))
                print(f"node {number}: job safe after {wounds[-1].job_s:.1f} s, files after {wounds[-1].files_s:.1f} s", flush=True)
                time.sleep(max(0.0, next_kill - time.monotonic()))
            last = grid.members[-1]
            read = last.run("results", rolling.job, "--wait", timeout_s=300.0)
            assert read.returncode == 0, read.stderr
            assert read.stdout.split() == [str(3 * number) for number in range(rolling.units)], "results are missing"
            for blob, digest in rolling.digests.items():
                got = last.run("get", blob, "-o", folder / "got")
                assert got.returncode == 0, got.stderr
                assert hashlib.sha256((folder / "got").read_bytes()).hexdigest() == digest
            line = last.job(rolling.job)
            print(f"all {line['done']} results, each once, {line['conflicts']} conflicts; all files the same bytes")
            print(f"T = {max(max(wound.job_s, wound.files_s) for wound in wounds):.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
