"""Nodes that die without a word: work, results and files outlive them."""

from __future__ import annotations

import hashlib
import random
import subprocess
from pathlib import Path

import pytest

from tests.e2e.grids import SLEEPERS, Grid, Member, cli, grid_of, start_cli, start_node, until


def done_units(member: Member, process: subprocess.Popen[str]) -> int:
    assert process.poll() is None, process.communicate()
    jobs = member.document("jobs")["jobs"]
    return int(jobs[0]["done"]) if jobs else 0


def test_two_of_five_die_in_a_job_and_results_outlive_the_submitter(five: Grid, tmp_path: Path) -> None:
    submitter, other = five[1], five[4]
    five.wait_complete()
    blobs = tmp_path / "blobs.py"
    blobs.write_text("def work(item):\n    return item * 20_000\n")
    large = five[2].run("run", blobs, "--over", "x", "y", "z")
    assert large.returncode == 0, large.stderr
    large_job = five[2].document("jobs")["jobs"][0]["job"]

    process = start_cli(submitter.home, "run", SLEEPERS, "400", "0.03")
    until(lambda: done_units(submitter, process) > 20, "the job is under way")
    five[2].kill()
    five[3].kill()
    stdout, stderr = process.communicate(timeout=40)
    assert (process.returncode, stdout) == (0, "400 answers in order\n"), stderr
    job = submitter.document("jobs")["jobs"][0]
    assert (job["done"], job["failed"]) == (401, 0)
    # Three copies of large results: two of their holders may be among the dead, the submitter is.
    read = other.run("results", large_job)
    assert (read.returncode, read.stdout) == (0, large.stdout), read.stderr

    submitter.kill()
    for reader in (other, five[0]):
        read = reader.run("results", job["job"])
        assert (read.returncode, read.stdout) == (0, stdout), read.stderr


def test_results_without_finish_outlive_the_submitter(tmp_path: Path) -> None:
    script = tmp_path / "plain.py"
    script.write_text("def work(item):\n    return item if item < 'e' else item * 20_000\n")
    with grid_of(3, tmp_path, "--storage", "200M") as grid:
        grid.wait_complete()
        ran = grid[1].run("run", script, "--over", *"abcdef")
        assert ran.returncode == 0, ran.stderr
        job = grid[1].document("jobs")["jobs"][0]["job"]
        grid[1].kill()
        read = grid[2].run("results", job)
        assert (read.returncode, read.stdout) == (0, ran.stdout), read.stderr


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stored") / "twenty"
    path.write_bytes(random.Random(20).randbytes(20 << 20))
    return path


def holders_of(grid: Grid, blob: str) -> list[Member]:
    """Members whose store has the content of a blob: found by its size on the disk."""
    return [member for member in grid.members if content_of(member, blob) is not None]


def content_of(member: Member, blob: str) -> Path | None:
    found = [path for path in (member.home / "blobs").rglob("*") if path.is_file() and path.stat().st_size == 20 << 20]
    return found[0] if found else None


def test_a_file_outlives_two_of_its_three_holders_and_damage(tmp_path: Path, stored: Path) -> None:
    with grid_of(5, tmp_path, "--storage", "200M") as grid:
        grid.wait_complete()
        put = grid[1].run("put", stored)
        assert put.returncode == 0, put.stderr
        blob = put.stdout.strip()
        assert put.stdout == blob + "\n"
        assert "3 copies" in put.stderr
        holders = holders_of(grid, blob)
        assert len(holders) == 3
        assert grid[1] in holders
        damaged = next(member for member in holders if member is not grid[1])
        content = content_of(damaged, blob)
        assert content is not None
        with content.open("r+b") as file:
            file.seek(7 << 20)
            file.write(b"damage")
        readers = [member for member in grid.members if member not in holders]
        read = readers[0].run("get", blob, "-o", tmp_path / "copy")
        assert read.returncode == 0, read.stderr
        assert digest(tmp_path / "copy") == digest(stored)
        for member in holders:
            if member is not damaged:
                member.kill()
        damaged.kill()
        again = readers[1].run("get", blob, "-o", tmp_path / "again")
        assert again.returncode == 0, again.stderr
        assert digest(tmp_path / "again") == digest(stored)


def test_damage_at_the_only_holder_is_reported_not_served(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(random.Random(1).randbytes(20 << 20))
    node = start_node(home, "--storage", "100M")
    try:
        until(lambda: node.ready, "the node is ready")
        put = node.run("put", path)
        assert put.returncode == 0, put.stderr
        assert "fewer than 3 copies" in put.stderr
        content = content_of(node, put.stdout.strip())
        assert content is not None
        with content.open("r+b") as file:
            file.seek(3 << 20)
            file.write(b"damage")
        read = cli(home, "get", put.stdout.strip(), "-o", tmp_path / "copy")
        assert read.returncode not in (0, 70), read.stderr
        assert not (tmp_path / "copy").exists()
        assert [line for line in read.stderr.splitlines() if line.startswith("p2pgrid:")]
    finally:
        node.stop()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
