"""The jobs a worker knows, and the batches of them that it has: bounded, and nothing that is in use ever goes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from p2pgrid.core.layout import Layout
from p2pgrid.core.lineage import Lineage
from p2pgrid.errors import RefusedError
from p2pgrid.model.ids import NodeKey
from p2pgrid.model.job import Batch, Job
from p2pgrid.model.reasons import Reason
from p2pgrid.model.work import UnitRange
from p2pgrid.services.inputs import decode_batch
from p2pgrid.wire.envelope import Signed

JOBS_MAX = 256
BATCH_CACHE_BYTES = 64 << 20
"""Batches kept for the next lease; those of running leases are on top of it."""
IDLE_BATCHES_MAX = 4
"""Batches kept for the next lease of one job."""


@dataclass
class KnownJob:
    """A job this node works for."""

    job: Signed[Job]
    lineage: Lineage
    """Who may lead and keep it; never empty."""
    layout: Layout
    runtime: str = "native"
    """What its units run in here."""
    source: str = ""
    batches: dict[int, Batch] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    users: dict[int, int] = field(default_factory=dict)
    """Units leased of each batch that have not ended."""
    doubted: set[bytes] = field(default_factory=set)
    """Leads that were away once: they may know nothing any more of what they leased. Of those that are on the chain, so bounded."""
    pulls: int = 0
    """Pulls under way: what the lead was told to be here must stay."""

    @property
    def epoch(self) -> int:
        """Of the newest keeper set that is known."""
        return self.lineage.newest.body.epoch if self.lineage.newest is not None else -1

    @property
    def leads_and_keepers(self) -> tuple[NodeKey, ...]:
        """Whom the newest set names: the lead, then the keepers."""
        newest = self.lineage.newest
        named = (newest.body.lead, *newest.body.keepers) if newest is not None else ()
        return tuple(NodeKey(node) for node in dict.fromkeys(named))

    def doubt(self, lead: bytes) -> None:
        """A node is gone, or back without what it had in memory."""
        if self.lineage.names(lead):
            self.doubted.add(lead)

    def places(self, lead: bytes) -> tuple[NodeKey, ...]:
        """Where its batches, inputs and results belong: a lead that leases, then whom the newest set names."""
        return tuple(NodeKey(node) for node in dict.fromkeys((lead, *self.leads_and_keepers)))

    @property
    def busy(self) -> bool:
        return bool(self.users or self.pulls)


class KnownJobs:
    """Jobs by id. Batches that nobody needs go first, then jobs that nobody works on."""

    def __init__(self) -> None:
        self.known: dict[bytes, KnownJob] = {}
        self._bytes = 0

    def add(self, known: KnownJob) -> None:
        """Know a job from now on. Raises RefusedError when too many others are worked on."""
        while len(self.known) >= JOBS_MAX:
            idle = next((key for key, other in self.known.items() if not other.busy), None)
            if idle is None:
                raise RefusedError("too many jobs at once", reason=Reason.BUSY)
            self._trim(self.known.pop(idle), 0)
        self.known[known.job.id] = known

    def put(self, known: KnownJob, number: int, content: bytes, units: int) -> None:
        """Keep a batch of a job. Raises MalformedError unless it has this many units."""
        batch = decode_batch(content, units)
        self._bytes += len(content) - known.sizes.get(number, 0)
        known.batches[number], known.sizes[number] = batch, len(content)

    def reserve(self, known: KnownJob, ranges: Iterable[UnitRange]) -> None:
        """The batches of these units stay until the last of them was released."""
        for unit_range in ranges:
            known.users[unit_range.batch] = known.users.get(unit_range.batch, 0) + unit_range.units
        self._trim(known, IDLE_BATCHES_MAX)

    def release(self, known: KnownJob, number: int, units: int) -> None:
        """Units of a batch have ended, or will not be run."""
        left = known.users.pop(number, 0) - units
        if left > 0:
            known.users[number] = left
        elif self._bytes > BATCH_CACHE_BYTES:
            for other in self.known.values():
                if not other.pulls:
                    self._trim(other, 0)

    def _trim(self, known: KnownJob, idle_max: int) -> None:
        idle = [number for number in known.batches if number not in known.users]
        for number in idle[: max(0, len(idle) - idle_max)]:
            del known.batches[number]
            self._bytes -= known.sizes.pop(number)
