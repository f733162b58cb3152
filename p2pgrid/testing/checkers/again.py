"""Units that were run again because the machine that had run them left in good order.

Whoever leaves lets running units end, hands in what they came to, and gives the others back. So a unit that ended on a
machine which then left is begun nowhere else afterwards: where one answer is enough, that would be wasted work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from p2pgrid.model.work import ANSWERS
from p2pgrid.testing.checkers.facts import Facts
from p2pgrid.testing.observe import Onlooker

if TYPE_CHECKING:
    from p2pgrid.node import Node
    from p2pgrid.runtimes.tasks import BatchChunk, BatchTask
    from p2pgrid.testing.plans.scenario import JobPlan

RECENT_S = 4.0
"""What ended so shortly before the machine closed can have been on its way when it left."""
Unit = tuple[bytes, int, int]
"""(job, kind, index)."""


class AgainChecker(Onlooker):
    """Told of units that begin and end. Judges only where the scenario says how many may be run again."""

    invariant = "expect"

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self._facts = facts
        self._compared: set[bytes] = set()
        self._ended: dict[Unit, tuple[str, float]] = {}
        self._begun: list[tuple[Unit, str, float]] = []
        """Units that were begun on one machine after they had ended on another."""
        self._closed_s: dict[str, float] = {}

    def on_job(self, name: str, job: bytes, plan: JobPlan, keepers: int, expected: Sequence[object]) -> None:
        if plan.quorum > 1:
            self._compared.add(bytes(job))

    def on_close(self, name: str, node: Node) -> None:
        self._closed_s[name] = self.view.now

    def on_units_start(self, name: str, task: BatchTask) -> None:
        job = bytes(task.job.job)
        if self._facts.expect.runs_again_max < 0:
            return
        for index in range(task.first, task.first + len(task.inputs)):
            before = self._ended.get((job, int(task.kind), index))
            if before is not None and before[0] != name and self._leaves(before[0]):
                self._begun.append(((job, int(task.kind), index), *before))

    def _leaves(self, name: str) -> bool:
        """Whether a machine has been asked to leave. Copies of what is nearly done are begun all the time."""
        node = self.view.living().get(name)
        return node is None or node.stopping.is_set()

    def on_chunk(self, name: str, task: BatchTask, chunk: BatchChunk) -> None:
        if self._facts.expect.runs_again_max < 0:
            return
        for index, outcome in enumerate(chunk.outcomes, chunk.first):
            if outcome in ANSWERS:
                self._ended.setdefault((bytes(task.job.job), int(task.kind), index), (name, self.view.now))

    def at_end(self) -> None:
        most = self._facts.expect.runs_again_max
        again = [
            (unit, name)
            for unit, name, at_s in self._begun
            if unit[0] not in self._compared and 0 <= self._closed_s.get(name, -1.0) - at_s < RECENT_S
        ]
        if 0 <= most < len(again):
            (job, _, index), name = again[0]
            self.violate(name, f"{len(again)} units were run again after machines left, the first is {index} of job {job.hex()[:8]}")
