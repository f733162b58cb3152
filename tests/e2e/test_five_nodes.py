"""Five nodes as their owners see them: who is there, whose cores work, and answers that are compared."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.grids import PROGRAM, SLEEPERS, Grid, environment, until

JOBS = Path(__file__).parents[2] / "scenarios" / "jobs"


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    """A grid that the first test lets grow to five, as it measures how long they take to meet."""
    grid = Grid(tmp_path_factory.mktemp("five"))
    try:
        yield grid
    finally:
        grid.close()


def looks_of_all(grid: Grid) -> list[dict[str, Any]]:
    """What ``peers --json`` says at each node, asked of all at once."""
    words = [*PROGRAM, "peers", "--json", "--home"]
    looks = [subprocess.Popen([*words, member.home], stdout=subprocess.PIPE, env=environment()) for member in grid.members]
    return [json.loads(look.communicate(timeout=30)[0]) for look in looks]


def test_each_of_five_nodes_sees_all_five_within_three_seconds(founded: Grid) -> None:
    founded.grow(5, ("--storage", "200M"))
    seen: list[list[str]] = []

    def all_see_all() -> bool:
        seen[:] = [[peer["node"] for peer in document["peers"] if peer["live"]] for document in looks_of_all(founded)]
        return [len(nodes) for nodes in seen] == [5] * 5

    until(all_see_all, "each of five nodes sees five", 3.0)
    assert len({node for nodes in seen for node in nodes}) == 5


def test_a_job_of_one_node_uses_all_five(founded: Grid) -> None:
    done = founded[1].run("run", SLEEPERS, "200", "0.02")
    assert (done.returncode, done.stdout) == (0, "200 answers in order\n"), done.stderr
    job = founded[1].document("jobs")["jobs"][0]
    assert (job["state"], job["done"], job["failed"]) == ("done", 201, 0)
    assert len(job["units_per_node"]) == 5
    assert sum(job["units_per_node"].values()) == 201


@pytest.mark.parametrize("quorum", [2, 3])
def test_answers_of_a_quorum_agree_for_a_deterministic_job(founded: Grid, quorum: int) -> None:
    done = founded[2].run("run", "--quorum", str(quorum), JOBS / "pi.py", "10", "1000")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("pi = 3.1")
    plain = subprocess.run([*PROGRAM[:1], JOBS / "pi.py", "--plain", "10", "1000"], capture_output=True, text=True, check=True)
    assert done.stdout == plain.stdout


def test_answers_that_never_agree_end_in_a_clear_message(founded: Grid, tmp_path: Path) -> None:
    script = tmp_path / "random.py"
    script.write_text("import uuid\n\ndef work(item):\n    return str(uuid.uuid4())\n")
    done = founded[0].run("run", "--quorum", "2", script, "--over", "1", "2")
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("failed (disagreed): workers gave different answers") == 2
    assert "see that work() gives the same for the same item" in done.stderr


def test_a_large_result_is_read_back_by_another_member(founded: Grid, tmp_path: Path) -> None:
    script = tmp_path / "large.py"
    script.write_text("def work(item):\n    return item * 50_000\n")
    done = founded[3].run("run", "--json", script, "--over", "a", "b")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["results"] == ["a" * 50_000, "b" * 50_000]
    read = founded[4].run("results", document["job"])
    assert (read.returncode, read.stdout) == (0, "a" * 50_000 + "\n" + "b" * 50_000 + "\n"), read.stderr
