"""Blobs of the core engine: copied to nodes drawn at random among those that store, and never repaired.

What the node's storing does, without its bytes: the first copy stays where it was put, the others go to living nodes with room, and
whoever leaves while it is written to does not count. At the end a blob is read from whoever of its holders is on. One whose
holders are all off was unlucky, and is counted beside what chance expects of the same number of copies on the same nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

from blake3 import blake3

from p2pgrid.model.reasons import Reason
from p2pgrid.testing.checkers.objects import struck_chance
from p2pgrid.testing.core.heap import EventHeap
from p2pgrid.testing.core.population import Air, Machine, Population
from p2pgrid.testing.plans.gridplan import FileEvent, GridPlan

BYTES_S = 12_500_000.0
"""How fast a blob is copied where the plan sets no limit."""


@dataclass(slots=True)
class Blob:
    """An acknowledged blob: its holders, and every node that could have been drawn."""

    id: bytes
    size_bytes: int
    source: Machine
    holders: list[Machine]
    candidates: list[Machine]


@dataclass(slots=True)
class _Putting:
    blob: Blob
    wanted: int
    waiting: list[Machine]
    life: int
    """Of the source: a put whose node leaves is not acknowledged."""


class Blobs:
    """All blobs of a run."""

    def __init__(self, plan: GridPlan, heap: EventHeap, air: Air, population: Population) -> None:
        self._heap = heap
        self._air = air
        self._population = population
        self.acknowledged: list[Blob] = []
        self.failed = 0
        """Puts that nobody acknowledged, since their node left or had no room."""
        self.reasons: dict[str, int] = {}
        for number, event in enumerate(plan.files):
            self._heap.after(event.at_s, lambda event=event, number=number: self._put(event, number), b"put")  # type: ignore[misc]

    def _put(self, event: FileEvent, number: int) -> None:
        found = self._population.some(1, lambda machine: not event.by or machine.plan.kind == event.by)
        if not found:
            return
        source = found[0]
        blob = Blob(blake3(b"blob/%d" % number).digest(), event.size_bytes, source, [], [])
        if not self._keep(source, blob):
            self.failed += 1
            return
        blob.candidates = [one for one in self._population.living.values() if "store" in one.plan.roles and one is not source]
        waiting = self._heap.rng.sample(blob.candidates, len(blob.candidates))
        self._copy(_Putting(blob, event.replicas - 1, waiting, source.life))

    def _keep(self, machine: Machine, blob: Blob) -> bool:
        """A copy on a machine's disk, if there is room."""
        if machine.stored_bytes + blob.size_bytes > machine.plan.storage_bytes:
            self.reasons[Reason.STORE_FULL] = self.reasons.get(Reason.STORE_FULL, 0) + 1
            return False
        machine.blobs[blob.id] = blob.size_bytes
        machine.stored_bytes += blob.size_bytes
        blob.holders.append(machine)
        return True

    def _copy(self, putting: _Putting) -> None:
        """One copy after the other, until there are enough or nobody is left."""
        blob = putting.blob
        if blob.source.life != putting.life:
            self.failed += 1
            return
        if len(blob.holders) > putting.wanted or not putting.waiting:
            self.acknowledged.append(blob)
            self._heap.note(blob.id, *[machine.key for machine in blob.holders])
            return
        machine = putting.waiting.pop()
        speeds = [one.plan.bandwidth_bytes_s or BYTES_S for one in (blob.source, machine)]
        life = machine.life
        self._heap.after(
            blob.size_bytes / min(speeds), lambda: self._air.send(b"copy", blob.size_bytes, lambda: self._copied(putting, machine, life))
        )

    def _copied(self, putting: _Putting, machine: Machine, life: int) -> None:
        if machine.on and machine.life == life:
            self._keep(machine, putting.blob)
        self._copy(putting)

    # -- what became of them --------------------------------------------------------------

    def lost(self) -> list[Blob]:
        """Blobs that nobody has although a holder is on."""
        with_holder = [blob for blob in self.acknowledged if any(machine.on for machine in blob.holders)]
        return [blob for blob in with_holder if not any(machine.on and blob.id in machine.blobs for machine in blob.holders)]

    def unlucky(self) -> list[Blob]:
        """Blobs whose holders are all off."""
        return [blob for blob in self.acknowledged if not any(machine.on for machine in blob.holders)]

    def unlucky_expected(self) -> float:
        """How many of them chance expects: their first copy is where it is, the others are anywhere among the candidates."""
        expected = 0.0
        for blob in self.acknowledged:
            if not blob.source.on:
                off = sum(not machine.on for machine in blob.candidates)
                expected += struck_chance(len(blob.holders) - 1, off, len(blob.candidates)) if len(blob.holders) > 1 else 1.0
        return expected
