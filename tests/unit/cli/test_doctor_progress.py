"""How far the attacks on the cages are, as people see it."""

from __future__ import annotations

from typing import cast

import msgspec

from p2pgrid.runtimes.selftest.running import _Counted
from p2pgrid.runtimes.tasks import BatchChunk, BatchTask, Code, JobKey, OnResults, Workers
from p2pgrid_cli.doctor import _Attacks
from p2pgrid_cli.progress import Progress


class Shown:
    def __init__(self) -> None:
        self.texts: list[str] = []

    def step(self, text: str) -> None:
        self.texts.append(text)

    def count(self, what: str, done: int, total: int) -> None:
        self.texts.append(f"{what}: {done} of {total}")


def test_attacks_on_all_runtimes_are_counted_together() -> None:
    shown = Shown()
    attacks = _Attacks(cast(Progress, shown), compiled=True)
    attacks.note("native", 0, 10)
    attacks.note("wasm", 2, 5)
    attacks.note("native", 7, 10)
    assert shown.texts[-1] == "attacking the cages of this machine: 9 of 15"


def test_that_the_runner_is_compiled_is_told_once_nothing_else_goes_on() -> None:
    shown = Shown()
    attacks = _Attacks(cast(Progress, shown), compiled=False)
    attacks.note("python", 0, 31)
    assert shown.texts[-1].startswith("compiling the Python runner")
    attacks.note("native", 3, 10)
    assert shown.texts[-1] == "attacking the cages of this machine: 3 of 41"
    attacks.note("native", 10, 10)
    assert shown.texts[-1].startswith("compiling the Python runner")
    attacks.note("python", 1, 31)
    assert shown.texts[-1] == "attacking the cages of this machine: 11 of 41"


class Pool:
    """Answers each unit of a task in a chunk of its own."""

    busy = 3

    async def run(self, task: BatchTask, on_results: OnResults) -> None:
        for position in range(len(task.inputs)):
            on_results(BatchChunk(task.first + position, b"\0", [msgspec.Raw(b"\xc0")], 1))


async def test_each_unit_of_an_attack_is_counted_and_handed_on() -> None:
    told: list[tuple[str, int, int]] = []
    chunks: list[BatchChunk] = []
    counted = _Counted(cast(Workers, Pool()), "wasm", lambda *numbers: told.append(numbers))
    task = BatchTask(job=JobKey(b"s" * 32, b"j" * 32), code=Code(source=""), inputs=[msgspec.Raw(b"\xc0")] * 2)
    await counted.run(task, chunks.append)
    assert told == [("wasm", 0, 2), ("wasm", 1, 2), ("wasm", 2, 2)]
    assert len(chunks) == 2
    assert counted.busy == 3
