"""Jobs that do not go on, set up on purpose on real processes: ``why`` names the cause and the remedy, to people and to programs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.grids import Grid, Member, grid_of, until

WAIT_S = 40.0

SLOW = """
import time

def work(item):
    time.sleep(0.5)
    return item

def inputs(count):
    return list(range(int(count)))
"""
MISSING = """
def work(item):
    import no_such_module_here
    return item

def inputs(count):
    return list(range(int(count)))
"""
HUNGRY = """
def work(item):
    return len(bytearray(600 << 20))

def inputs(count):
    return list(range(int(count)))
"""


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    """Three nodes of one core and 512 MiB each."""
    with grid_of(3, tmp_path_factory.mktemp("broken"), "--storage", "100M", "--memory", "512M") as grid:
        grid.wait_complete()
        yield grid


def detach(member: Member, folder: Path, source: str, *words: str) -> str:
    script = folder / "job.py"
    script.write_text(source)
    ran = member.run("run", "--detach", *words, script, "8")
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def reasons(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The reasons of a tree by their codes, the first of each."""
    found: dict[str, dict[str, Any]] = {}
    todo = list(document["because"])
    while todo:
        one = todo.pop(0)
        found.setdefault(one["reason"], one)
        todo += one["under"]
    return found


def both(member: Member, subject: str, code: str, remedy: str) -> tuple[str, dict[str, Any]]:
    """The text and the document of ``why``, which both name the cause and what to do about it."""
    said = member.run("why", subject)
    assert said.returncode == 0, said.stderr
    assert f"[{code}]" in said.stdout
    assert remedy in said.stdout
    document = member.document("why", subject)
    assert remedy in reasons(document)[code]["next_step"]
    return said.stdout, document


def ended(member: Member, job: str) -> str:
    def look() -> str:
        state = str(member.job(job)["state"])
        return "" if state == "running" else state

    return until(look, f"{job} ends", WAIT_S)


def test_a_unit_that_wants_more_memory_than_any_node_lends(grid: Grid, tmp_path: Path) -> None:
    job = detach(grid[0], tmp_path, SLOW, "--memory", "4G")
    text, document = both(grid[0], job[:8], "no-memory", "--memory")
    assert document["state"] == "waiting"
    assert document["because"][0]["reason"] == "no-workers"
    assert "3 nodes" in reasons(document)["no-memory"]["text"]
    assert "lends 512 MiB a core, and a unit wants 4 GiB" in text
    both(grid[2], job, "no-memory", "--memory")
    unit = grid[0].document("why", f"{job}/3")
    assert (unit["kind"], unit["state"], unit["subject"]) == ("unit", "waiting", f"{job}/3")
    assert grid[0].run("cancel", job).returncode == 0
    assert both(grid[0], job, "cancelled", "submit it again")[1]["state"] == "cancelled"


def test_a_script_that_imports_a_module_that_is_not_there(grid: Grid, tmp_path: Path) -> None:
    job = detach(grid[0], tmp_path, MISSING)
    assert ended(grid[0], job) == "failed"
    text, document = both(grid[0], job, "missing-module", "dependencies")
    assert document["state"] == "failed"
    assert "8 units failed: ModuleNotFoundError: No module named 'no_such_module_here'" in " ".join(text.split())
    _, unit = both(grid[0], f"{job}/5", "missing-module", "dependencies")
    assert "job.py" in str(unit["because"])


@pytest.mark.parametrize("runtime", ["native", "python"])
def test_a_unit_that_wants_more_memory_than_it_may_have(grid: Grid, tmp_path: Path, runtime: str) -> None:
    job = detach(grid[0], tmp_path, HUNGRY, "--memory", "256M", "--runtime", runtime)
    assert ended(grid[0], job) == "failed"
    _, document = both(grid[0], job, "over-memory", "--memory")
    assert "8 units failed" in reasons(document)["over-memory"]["text"]


def test_a_command_that_wants_more_memory_than_it_may_have(grid: Grid) -> None:
    code = "x = bytearray(600 << 20); import time; time.sleep(20)"
    ran = grid[0].run("run", "--detach", "--memory", "256M", "--", "python3", "-c", code, "{}", ":::", "1", "2")
    assert ran.returncode == 0, ran.stderr
    job = ran.stdout.strip()
    assert ended(grid[0], job) == "failed"
    both(grid[0], job, "over-memory", "--memory")


def test_all_nodes_are_paused(grid: Grid, tmp_path: Path) -> None:
    job = detach(grid[0], tmp_path, SLOW.replace("0.5", "60"))
    for member in grid.members:
        assert member.run("pause").returncode == 0
    try:
        _, document = both(grid[0], job, "paused", "p2pgrid resume")
        assert document["state"] == "waiting"
        assert len(reasons(document)["paused"]["under"]) == 3
    finally:
        for member in grid.members:
            assert member.run("resume").returncode == 0
        assert grid[0].run("cancel", job).returncode == 0


def test_ids_that_mean_nothing_or_too_much(grid: Grid) -> None:
    unknown = grid[0].run("why", "7777")
    assert (unknown.returncode, unknown.stdout) == (69, "")
    assert "p2pgrid jobs" in unknown.stderr
    assert grid[0].run("why", "abc").returncode == 2


def test_the_submitters_node_is_gone(grid: Grid, tmp_path: Path) -> None:
    job = detach(grid[0], tmp_path, SLOW.replace("0.5", "3"))
    until(lambda: any(member.document("jobs")["jobs"] for member in grid.members[1:]), "somebody keeps it")
    grid[0].kill()

    def gone() -> bool:
        ran = grid[2].run("why", job)
        return ran.returncode == 0 and "[submitter-away]" in ran.stdout

    until(gone, "another keeper leads it", WAIT_S)
    _, document = both(grid[2], job, "submitter-away", "p2pgrid results")
    assert "results are readable until" in reasons(document)["submitter-away"]["text"]
    assert "took-over" in reasons(document)
