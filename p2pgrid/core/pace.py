"""What a lead learns of its workers and of how long units of its job take.

1. A worker's pace is measured by the lead's own clock: the seconds its cores owed something, over the units that came back
   (``unit_s``). So queues, slow links and other people's jobs are in it, and nobody is believed.
2. It is forgotten by halves: a machine that becomes slow is known to be slow some units later.
3. Who has no pace yet is taken for one of the slower ones.
4. How far leases stray from what was forecast of them is counted in a sketch of fixed size. What took longer than
   nearly all of them (``stray``) is as good as lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from p2pgrid.model.work import Receipt

REMEMBERED_UNITS = 16
"""Units (or four for each core) after which the memory of a pace is halved."""
UNIT_MIN_S = 1e-6
SAMPLES_MIN = 20
"""Leases after which it is known how far they stray."""
STRAY_FIRST, STRAY_MIN = 2.5, 1.25
"""How far they are taken to stray before, and at least."""
NEARLY_ALL = 0.9
ALL = 0.99
SLOWER = 0.75
"""The share of workers that are faster than somebody of whom nothing is known is taken to be."""
FASTER = 0.25
_BUCKETS, _PER_DOUBLING = 96, 4
_SAMPLES_MAX = 4096


@dataclass(slots=True)
class WorkerState:
    """A worker that pulled. Times are monotonic seconds."""

    slots: int
    group: bytes
    pulled_at: float
    hungry: bool = False
    """It pulled and got nothing: it waits for the next invitation."""
    hungry_since: float | None = None
    """When it first got nothing although something was pending."""
    held_since: float | None = None
    """When it was first held back for the others to be faster."""
    idle_since: float | None = None
    """When it first got nothing at all."""
    called_at: float = -1.0
    """When it was last invited to take copies."""
    proven: bool = False
    """It delivered a receipt that counted."""
    silent: int = 0
    """Leases of its that were given to others since its last receipt."""
    units: float = 0.0
    """Units it answered, and the core seconds that went by meanwhile; the older ones count less."""
    busy_s: float = 0.0
    waiting_s: float = 0.0
    """Core seconds since its last answer: they are its pace's only once the next comes."""
    busy_at: float | None = None
    """Until when they are counted."""

    def spend(self, owed: int, now: float) -> None:
        """It owed ``owed`` units until now. To be called before that changes."""
        if self.busy_at is not None:
            self.waiting_s += min(self.slots, owed) * max(0.0, now - self.busy_at)
        self.busy_at = now

    def answer(self, units: int) -> None:
        """A receipt of its counted, with answers to so many units. Units that merely failed are part of what the others took."""
        self.proven, self.silent = True, 0
        if not units:
            return
        self.units += units
        self.busy_s += self.waiting_s
        self.waiting_s = 0.0
        if self.units > max(REMEMBERED_UNITS, 4 * self.slots):
            self.units, self.busy_s = self.units / 2, self.busy_s / 2


class Sketch:
    """How often numbers of each size were met: a fixed number of counts, four for each doubling. Old ones count less."""

    __slots__ = ("_counts", "samples")

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self.samples = 0

    def note(self, value: float) -> None:
        """Count a number; anything outside of 2^-12 to 2^12 counts as that."""
        place = int(math.log2(min(1e9, max(value, 1e-9))) * _PER_DOUBLING + _BUCKETS / 2)
        self._counts[min(_BUCKETS - 1, max(0, place))] += 1
        self.samples += 1
        if self.samples > _SAMPLES_MAX:
            self._counts = [count // 2 for count in self._counts]
            self.samples = sum(self._counts)

    def quantile(self, share: float) -> float:
        """A number that at least this share of them is not above; 0 without any."""
        due, met = share * self.samples, 0
        for place, count in enumerate(self._counts):
            met += count
            if count and met >= due:
                return float(2.0 ** ((place + 1 - _BUCKETS / 2) / _PER_DOUBLING))
        return 0.0


@dataclass(slots=True)
class Pace:
    """The pace of a job. ``learn`` now and then; until then nothing is known."""

    units: int = 0
    longest_s: float = 0.0
    """The longest mean that a receipt claimed of its units, in seconds of CPU."""
    fast_s: float = 0.0
    """Seconds of a unit at a worker that three of four are slower than; 0: not known yet."""
    slow_s: float = 0.0
    """At one that three of four are faster than."""
    per_s: float = 0.0
    """Units a second of all workers with a pace."""
    stray: float = STRAY_FIRST
    """How many times longer than forecast nearly every lease takes at most."""
    most: float = STRAY_FIRST
    """How many times longer the very longest take."""
    _strays: Sketch = field(default_factory=Sketch)

    def note(self, receipt: Receipt, timeout_s: float) -> None:
        """Add a receipt. What it claims is held within what its units could have taken."""
        units = len(receipt.outcomes)
        self.units += units
        self.longest_s = max(self.longest_s, min(max(0.0, receipt.cpu_us / 1e6), units * timeout_s) / units)

    def ended(self, took_s: float, forecast_s: float) -> None:
        """All of a lease is answered, of which something was forecast."""
        if forecast_s > 0:
            self._strays.note(took_s / forecast_s)

    def learn(self, workers: Iterable[WorkerState]) -> None:
        """Look at everybody's pace anew."""
        paces = sorted([(self.unit_s(worker), worker.slots) for worker in workers if worker.units])
        self.per_s = sum([slots / unit_s for unit_s, slots in paces])
        if paces:
            self.fast_s, self.slow_s = paces[int(FASTER * len(paces))][0], paces[int(SLOWER * len(paces))][0]
        if self._strays.samples >= SAMPLES_MIN:
            self.stray = max(STRAY_MIN, self._strays.quantile(NEARLY_ALL))
            self.most = max(self.stray, self._strays.quantile(ALL))

    def unit_s(self, worker: WorkerState) -> float:
        """Seconds of a unit on one core of a worker, 0 when nothing is known of anybody."""
        return max(UNIT_MIN_S, worker.busy_s / worker.units) if worker.units else self.slow_s

    def forecast_s(self, worker: WorkerState, units: int) -> float:
        """How long a worker takes for so many units that it owes; 0 when nothing is known."""
        return -(-units // worker.slots) * self.unit_s(worker)
