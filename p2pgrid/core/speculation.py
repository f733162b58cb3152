"""The last units: who gets copies of what is late, and when a lease is given up for lost (docs/spec/job.md#the-last-units).

1. When nothing is pending for a worker that asks, it gets copies of the units that are expected to end last, if it is
   expected to end them clearly earlier. Of a run of units it gets as much of its end as makes both end together.
2. What is expected goes by the pace of each worker (:mod:`p2pgrid.core.pace`), from the moment it last answered. A unit that
   takes longer than forecast is taken to need longer still; one that strays further than nearly all did, to be lost.
3. There is one copy of a unit beyond what it needs, and never at a party that had the unit.
4. Copies, and units of leases given up early, are at most ``EXTRA`` of the answers there are so far, and one. What
   became of them since is taken into account: whose first worker is gone was no copy after all.
5. A lease is given up for lost after several times its forecast, well within its time-outs; the more units were lost in
   this way, the later. Rule 4 does not forbid it: without it nothing would ever end at workers that say nothing.

Nothing here knows a ledger or sends a message. The plan of rule 1 is made anew at most every ``PLAN_S``, over whole runs of units.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from p2pgrid.core.leases import RANGES_MAX, Lease, LeaseBook
from p2pgrid.core.pace import Pace, WorkerState
from p2pgrid.model.work import UnitRange

EXTRA = 0.08
"""Of all answers. What machines lose when they leave comes on top."""
CLEARLY = 1.2
"""A copy is expected to end earlier by this factor."""
PICKUP_S = 0.3
"""From a lead's answer to the start of a unit, and from its end to the receipt's arrival."""
STRAYS_ON = 1.3
"""What has run longer than forecast is expected to take that much of it in all."""
PLAN_S = 0.1
CHUNKS_LOOKED_AT = 4096
COPIED_LOOKED_AT = 1024
UNITS_TRIED = 4096
"""Bounds of the work for one plan, and for one pull."""
FAST_FACTOR = 2.0
CALL_S = 0.5
"""Nobody is called more often."""
WAIT_S = 1.0
"""So long the faster ones have the first say."""
ASLEEP_S = 4.0
"""Whoever looks at its leases later than that stood still meanwhile."""
LOST_FACTOR = 2.0
LOST_SLACK_S = 5.0
UNPROVEN_SLACK_S = 10.0
"""Who has delivered nothing yet may still be fetching code and inputs."""
TAKEN_BACK_FREELY = 8
FORGOTTEN_MAX = 1024


class Chunk(NamedTuple):
    """Units that one core runs one after the other; ``ends_at`` is when the last is expected, ``unit_s`` apart."""

    ends_at: float
    batch: int
    start: int
    units: int
    unit_s: float
    cost: float = 1.0
    """How large its units are taken to be: what runs for long already is large."""
    copies: int = 0
    """How many copies of it are out already."""


class _GivenUp(NamedTuple):
    """A lease given up for lost: since when nothing was heard of it, and what it counts as."""

    worker: bytes
    since: float
    units: float


@dataclass(slots=True)
class Speculation:
    """Copies and early ends of the leases of one job. ``now`` is monotonic seconds."""

    book: LeaseBook
    pace: Pace
    workers: Mapping[bytes, WorkerState]
    quorum: int = 1
    copied: float = 0.0
    """Units of which copies were made so far, each counted as large as it was taken to be."""
    copies: int = 0
    """How many copies were made."""
    taken_back: float = 0.0
    """Units of leases given up for lost."""
    _charge: float = 0.0
    _answers: int = 0
    _looked_at: float = math.inf
    _awake_at: float = -math.inf
    _plan: list[Chunk] = field(default_factory=list)
    _planned_at: float = -math.inf
    _given_up: OrderedDict[bytes, _GivenUp] = field(default_factory=OrderedDict)
    """By lease, the latest last."""

    def room(self, answers: int) -> float:
        """How many units may still be leased beyond what is needed, if there are so many answers."""
        return max(1.0, EXTRA * answers - self.taken_back) - self.copied

    # -- copies ----------------------------------------------------------------

    def take(
        self, worker: WorkerState, want: int, room: float, missing: Callable[[int, int], int], batches_max: int, now: float
    ) -> list[UnitRange]:
        """Copies for a worker, of at most so many batches, now owed by it. ``missing``: how many more answers a unit needs."""
        unit_s = self.pace.unit_s(worker)
        taken: list[UnitRange] = []
        if room < 1 or not self._fast(worker, unit_s, now):
            return taken
        tried, batches = 0, dict[int, None]()
        for chunk in self._late(now):
            left = RANGES_MAX - len(taken)
            if want < 1 or room < 1 or left < 1 or tried >= UNITS_TRIED or chunk.ends_at - now < self._ends_after_s(unit_s):
                break
            if chunk.batch not in batches and len(batches) >= batches_max:
                continue
            units = min(want, max(1, int(room / chunk.cost)), self._share(chunk, unit_s / worker.slots, now))
            tried += units
            run = UnitRange(chunk.batch, chunk.start + chunk.units - units, units)
            ranges = self.book.copy(worker.group, run, chunk.copies, missing, left)
            copied = sum(one.units for one in ranges)
            if copied:
                taken += ranges
                batches[chunk.batch] = None
                want, room, self.copied = want - copied, room - copied * chunk.cost, self.copied + copied * chunk.cost
                self._charge += copied * chunk.cost
                self.copies += copied
        return taken

    def claim(self) -> float:
        """What the copies that were just taken count, for their lease."""
        charge, self._charge = self._charge, 0.0
        return charge

    def ended(self, lease: Lease, now: float) -> None:
        """All of a lease is answered. Copies that took no longer than forecast were of no large units after all."""
        took_s = now - lease.since
        self.pace.ended(took_s, lease.forecast_s)
        if lease.charged and lease.forecast_s:
            units = sum(one.units for one in lease.ranges)
            self.copied -= max(0.0, lease.charged - units * max(1.0, took_s / lease.forecast_s))

    def wanted(self, now: float, room: float) -> list[bytes]:
        """Workers that wait for work and would get copies now, the fastest first."""
        if room < 1:
            return []
        hungry = sorted(
            (self.pace.unit_s(worker), key) for key, worker in self.workers.items() if worker.hungry and now - worker.called_at >= CALL_S
        )
        late = self._late(now) if hungry else []
        chosen: list[bytes] = []
        for (unit_s, key), chunk in zip(hungry[: int(room)], late, strict=False):
            if not self._fast(self.workers[key], unit_s, now) or chunk.ends_at - now < self._ends_after_s(unit_s):
                break
            self.workers[key].called_at = now
            chosen.append(key)
        return chosen

    def _fast(self, worker: WorkerState, unit_s: float, now: float) -> bool:
        """Whether copies are for this worker: it is fast, or nobody who is came for a while."""
        waited_s = now - worker.idle_since if worker.idle_since is not None else 0.0
        return unit_s > 0 and (unit_s <= FAST_FACTOR * self.pace.fast_s or waited_s > FAST_FACTOR * self.pace.fast_s + WAIT_S)

    @staticmethod
    def _ends_after_s(unit_s: float) -> float:
        return CLEARLY * unit_s + PICKUP_S

    @staticmethod
    def _share(chunk: Chunk, each_s: float, now: float) -> int:
        """Units from the end of a chunk that end at somebody else when the rest ends where it is."""
        if chunk.ends_at == math.inf:
            return chunk.units
        return min(chunk.units, max(1, int((chunk.ends_at - now - PICKUP_S) / (chunk.unit_s + each_s))))

    def _late(self, now: float) -> list[Chunk]:
        """What is out and not copied, the latest to end first."""
        if now - self._planned_at >= PLAN_S:
            self._planned_at = now
            self._plan = sorted(self._chunks(now), key=lambda chunk: chunk.ends_at, reverse=True)
        return self._plan

    def _chunks(self, now: float) -> Iterator[Chunk]:
        """All runs that nobody has copies of, and each copied unit by itself: it ends when the first of those who have it does."""
        copied: dict[tuple[int, int], Chunk] = {}
        looked = 0
        for key, ids in self.book.by_worker.items():
            worker = self.workers.get(key)
            unit_s = self.pace.unit_s(worker) if worker is not None else 0.0
            if worker is None or not unit_s:
                continue
            for ends_at, batch, start, units, cost in self._laid_out(worker, ids, unit_s, now):
                bare = self.book.uncopied(batch, start, units, self.quorum)
                looked += 1
                if bare:
                    yield Chunk(ends_at - (units - bare) * unit_s, batch, start, bare, unit_s, cost)
                for place in range(bare, units if len(copied) < COPIED_LOOKED_AT else bare):
                    one = Chunk(ends_at - (units - place - 1) * unit_s, batch, start + place, 1, unit_s, cost, 1)
                    copied[batch, start + place] = min(one, copied.get((batch, start + place), one))
            if looked >= CHUNKS_LOOKED_AT:
                break
        yield from copied.values()

    def _laid_out(self, worker: WorkerState, ids: set[bytes], unit_s: float, now: float) -> Iterator[tuple[float, int, int, int, float]]:
        """(end, batch, start, units, cost) of what one worker owes, as its cores run it: leases in order, each cut in parts."""
        free_at = [-math.inf] * worker.slots
        for lease in sorted((self.book.leases[lease] for lease in ids), key=lambda lease: (lease.since, lease.id)):
            part = max(1, -(-sum(one.units for one in lease.ranges) // worker.slots))
            for batch, first, count in self.book.unanswered(lease):
                for start in range(first, first + count, part):
                    units = min(part, first + count - start)
                    begins_at, cost = free_at[0], 1.0
                    if begins_at == -math.inf:
                        strayed = max(0.0, now - self._since(lease) - PICKUP_S) / unit_s
                        begins_at = now + self._rest_s(strayed, unit_s) - unit_s
                        if units == 1 and worker.units:  # Of a worker without a pace it may be the worker that is slow.
                            cost = min(max(1.0, STRAYS_ON * strayed), self.pace.most)
                    ends_at = begins_at + units * unit_s
                    heapq.heapreplace(free_at, ends_at)
                    yield ends_at, batch, start, units, cost

    def _rest_s(self, strayed: float, unit_s: float) -> float:
        """How much longer a unit is expected to run that ran for ``strayed`` times its forecast."""
        if strayed > self.pace.stray:
            return math.inf
        return unit_s * max(1.0 - strayed, (STRAYS_ON - 1.0) * strayed)

    # -- leases given up for lost ----------------------------------------------------

    def lost(self, now: float, answers: int) -> list[Lease]:
        """Leases whose worker is not waited for any longer; the caller takes their units back. ``answers``: as for :meth:`room`."""
        self._answers = answers
        if now - self._looked_at > ASLEEP_S:
            self._awake_at = now
        self._looked_at = now
        found: list[Lease] = []
        for lease in self.book.leases.values():
            if lease.deadline < now:
                found.append(lease)
            elif now - self._since(lease) > self._patience_s(lease):
                found.append(lease)
                self._give_up(lease, now)
        return found

    def _since(self, lease: Lease) -> float:
        """Since when nothing was heard of a lease. While this node itself stood still nobody could be heard."""
        return max(lease.since, lease.touched, self._awake_at)

    def _patience_s(self, lease: Lease) -> float:
        worker = self.workers.get(lease.worker)
        if worker is None:
            return math.inf
        forecast_s = max(lease.forecast_s, self.pace.forecast_s(worker, lease.ahead + lease.open))
        if not forecast_s:
            return math.inf
        slack_s = LOST_SLACK_S if worker.proven else UNPROVEN_SLACK_S
        more = 1.0 + self.taken_back / max(TAKEN_BACK_FREELY, EXTRA * self._answers)
        return slack_s + LOST_FACTOR * self.pace.stray * forecast_s * more

    def _give_up(self, lease: Lease, now: float) -> None:
        worker = self.workers.get(lease.worker)
        units = lease.open * (self.pace.most if worker is not None and worker.units else 1.0)
        self.taken_back += units
        if worker is not None:
            worker.silent += 1
            worker.waiting_s = 0.0
        self._given_up[lease.id] = _GivenUp(lease.worker, now, units)
        while len(self._given_up) > FORGOTTEN_MAX:
            self._given_up.popitem(last=False)

    def heard(self, grant: bytes, worker: WorkerState, units: int, now: float) -> None:
        """A receipt for a lease that is no more: the time it took since it was given up belongs to its worker's pace."""
        known = self._given_up.get(grant)
        if known is not None:
            worker.busy_s += min(units, worker.slots) * max(0.0, now - known.since)
            self._given_up[grant] = known._replace(since=now)

    def gone(self, worker: bytes, missing: Callable[[int, int], int]) -> None:
        """A worker is gone, before its leases end: what others do in its place is no extra work."""
        for grant in [grant for grant, known in self._given_up.items() if known.worker == worker]:
            self.taken_back -= self._given_up.pop(grant).units
        if not self.copies:
            return
        replaced = 0
        for lease in sorted(self.book.by_worker.get(worker, ())):
            for batch, start, count in self.book.unanswered(self.book.leases[lease]):
                for unit in range(start, start + count):
                    replaced += self.book.owed(batch, unit) > missing(batch, unit)
        self.copied = max(0.0, self.copied - replaced * self.copied / self.copies)
        self.copies = max(0, self.copies - replaced)
