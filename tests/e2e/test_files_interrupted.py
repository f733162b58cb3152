"""Putting and getting that is interrupted goes on where it was, and never leaves half a file at a name that people see."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.grids import Grid, Member, grid_of, start_cli, start_node, until

SIZE_BYTES = 64 << 20
CHUNK_BYTES = 1 << 20
FILES = 24
CAUGHT_S = 20.0


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("content") / "content"
    path.write_bytes(random.Random(7).randbytes(SIZE_BYTES))
    return path


def parts(member: Member) -> list[Path]:
    """Content on its way in a node's store."""
    return list((member.home / "blobs").rglob("*.part"))


def begun(paths: list[Path]) -> bool:
    return any(path.exists() and path.stat().st_size >= 2 * CHUNK_BYTES for path in paths)


@contextmanager
def frozen_when(look: Callable[[], bool], member: Member) -> Iterator[None]:
    """Stop a node in its tracks at the moment when something is seen, so that what is interrupted cannot be over before."""
    deadline = time.monotonic() + CAUGHT_S
    while not look():
        assert time.monotonic() < deadline, "it never began"
    member.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        member.process.send_signal(signal.SIGCONT)


def interrupt(process: subprocess.Popen[str]) -> None:
    """Ctrl-C, and what must come of it."""
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=15)
    assert (process.returncode, stdout) == (130, ""), stderr
    assert stderr == "stopped: the same command goes on where it was\n"


def revived(grid: Grid, number: int) -> Member:
    """A node after its process was killed and started again."""
    grid[number].kill()
    grid.members[number] = start_node(grid[number].home)
    until(lambda: grid[number].ready, "the node is back")
    return grid[number]


def test_a_put_that_was_interrupted_goes_on_even_after_the_node_was_killed(tmp_path: Path, content: Path) -> None:
    with grid_of(1, tmp_path, "--storage", "200M") as grid:
        putting = start_cli(grid[0].home, "put", content, "--replicas", "1")
        with frozen_when(lambda: begun(parts(grid[0])), grid[0]):
            interrupt(putting)
        (part,) = parts(grid[0])
        assert part.read_bytes()[:CHUNK_BYTES] == content.read_bytes()[:CHUNK_BYTES]
        node = revived(grid, 0)
        assert parts(node) == [part]
        done = node.run("put", content, "--replicas", "1")
        assert done.returncode == 0, done.stderr
        assert not parts(node)
        assert part.with_suffix("").read_bytes() == content.read_bytes()


def test_a_node_that_dies_in_the_middle_of_a_put_is_said(tmp_path: Path, content: Path) -> None:
    with grid_of(1, tmp_path, "--storage", "200M") as grid:
        putting = start_cli(grid[0].home, "put", content, "--replicas", "1")
        with frozen_when(lambda: begun(parts(grid[0])), grid[0]):
            grid[0].process.kill()
        stdout, stderr = putting.communicate(timeout=30)
        assert (putting.returncode, stdout) == (69, ""), stderr
        assert [line for line in stderr.splitlines() if line.startswith("p2pgrid: ")]
        assert grid[0].run("put", content).returncode == 69


def hidden(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if path.is_file()]


def test_a_get_that_was_interrupted_goes_on_at_the_node_and_at_the_target(tmp_path: Path, content: Path) -> None:
    with grid_of(2, tmp_path, "--storage", "200M") as grid:
        put = grid[0].run("put", content, "--replicas", "1")
        assert put.returncode == 0, put.stderr
        blob = put.stdout.strip()
        target = tmp_path / "here" / "copy"
        target.parent.mkdir()
        getting = start_cli(grid[1].home, "get", blob, "-o", target)
        with frozen_when(lambda: begun(parts(grid[1])), grid[0]):
            interrupt(getting)
        assert not target.exists()
        assert parts(grid[1])
        node = revived(grid, 1)
        getting = start_cli(node.home, "get", blob, "-o", target)
        until(lambda: begun(hidden(target.parent)) or getting.poll() is not None, "some of it was written")
        getting.send_signal(signal.SIGINT)
        getting.communicate(timeout=15)
        assert target.exists() == (getting.returncode == 0)
        done = node.run("get", blob, "-o", target)
        assert done.returncode == 0, done.stderr
        assert target.read_bytes() == content.read_bytes()
        assert not hidden(target.parent)


def body(number: int) -> bytes:
    return random.Random(number).randbytes(CHUNK_BYTES + number)


def test_a_folder_that_was_interrupted_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    tree, target = tmp_path / "tree", tmp_path / "here" / "copy"
    tree.mkdir()
    target.parent.mkdir()
    for number in range(FILES):
        (tree / f"file-{number}").write_bytes(body(number))
    with grid_of(2, tmp_path, "--storage", "200M") as grid:
        putting = start_cli(grid[0].home, "put", tree, "--replicas", "1")
        with frozen_when(lambda: len(list((grid[0].home / "blobs").rglob("*.meta"))) > 3, grid[0]):
            interrupt(putting)
        put = grid[0].run("put", tree, "--replicas", "1")
        assert put.returncode == 0, put.stderr
        getting = start_cli(grid[1].home, "get", put.stdout.strip(), "-o", target)
        with frozen_when(lambda: len(list(target.parent.rglob("file-*"))) > 1, grid[0]):
            interrupt(getting)
        assert not target.exists()
        done = grid[1].run("get", put.stdout.strip(), "-o", target)
        assert done.returncode == 0, done.stderr
        assert all((target / f"file-{number}").read_bytes() == body(number) for number in range(FILES))
        assert [path.name for path in target.parent.iterdir()] == ["copy"]
