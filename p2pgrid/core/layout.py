"""Which units a job has, derived ones included, computed alike by everybody from the signed job.

1. Batches ``0 .. m-1`` are the manifest's.
2. With ``reduce``, level after level follows until one value is left; a unit of a level folds up to
   ``fan_in`` consecutive results of the level below. A level with a single result is not reduced again.
3. With ``finish``, one last unit takes all results of the last level.
4. A derived batch has exactly one unit: its input is only known when the results below it are decided.
5. A job whose layout would not end, or not fit into memory, has none.
"""

from __future__ import annotations

from typing import NamedTuple

from p2pgrid.errors import MalformedError
from p2pgrid.model.job import Job
from p2pgrid.model.limits import DEFAULT_LIMITS
from p2pgrid.model.reasons import Reason

FAN_IN_MAX = 1024
MAP, REDUCE, FINISH = "map", "reduce", "finish"


class Level(NamedTuple):
    """Consecutive batches of one kind, ``units`` in all."""

    kind: str
    first_batch: int
    batches: int
    units: int


class Layout:
    """The levels of a job, and where each batch belongs."""

    __slots__ = ("_levels", "_starts", "batch_units", "job")

    def __init__(self, job: Job) -> None:
        """Raises MalformedError for a job that breaks rule 5."""
        if not all(1 <= batch.units <= DEFAULT_LIMITS.job_units for batch in job.manifest) or job.map_units > DEFAULT_LIMITS.job_units:
            raise MalformedError("a job has an empty batch, or too many units", reason=Reason.MALFORMED)
        if not 2 <= job.derive.fan_in <= FAN_IN_MAX:
            raise MalformedError("a job folds too few or too many results at once", reason=Reason.MALFORMED)
        self.job = job
        self._levels = _levels(job)
        self.batch_units = [batch.units for batch in job.manifest]
        for level in self._levels[1:]:
            self.batch_units.extend([1] * level.batches)
        self._starts = _starts([batch.units for batch in job.manifest])

    @property
    def levels(self) -> list[Level]:
        return self._levels

    @property
    def batches(self) -> int:
        """How many batches there are, derived ones included."""
        return len(self.batch_units)

    @property
    def units(self) -> int:
        """How many units there are, derived ones included."""
        return sum(level.units for level in self._levels)

    def level_of(self, batch: int) -> int:
        """The number of the level that a batch belongs to."""
        for number, level in enumerate(self._levels):
            if batch < level.first_batch + level.batches:
                return number
        raise IndexError(batch)

    def kind_of(self, batch: int) -> str:
        return self._levels[self.level_of(batch)].kind

    def number(self, batch: int, unit: int) -> int:
        """The number of a unit within the job: map units in their order, then derived ones."""
        if batch < len(self._starts):
            return self._starts[batch] + unit
        return self._levels[0].units + batch - len(self._starts)

    def inputs_of(self, batch: int) -> range:
        """For a derived batch: which units of the level below it takes, as numbers within that level."""
        number = self.level_of(batch)
        level, below = self._levels[number], self._levels[number - 1]
        if level.kind == FINISH:
            return range(below.units)
        first = (batch - level.first_batch) * self.job.derive.fan_in
        return range(first, min(first + self.job.derive.fan_in, below.units))

    def locate(self, level: int, unit: int) -> tuple[int, int]:
        """(batch, index) of the ``unit``-th unit of a level."""
        if level:
            return self._levels[level].first_batch + unit, 0
        low, high = 0, len(self._starts) - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._starts[middle] <= unit else (low, middle - 1)
        return low, unit - self._starts[low]


def _starts(units: list[int]) -> list[int]:
    starts, total = [], 0
    for count in units:
        starts.append(total)
        total += count
    return starts


def _levels(job: Job) -> list[Level]:
    levels = [Level(MAP, 0, len(job.manifest), job.map_units)]
    count = job.map_units
    first = len(job.manifest)
    while job.derive.reduce and count > 1:
        count = -(-count // job.derive.fan_in)
        levels.append(Level(REDUCE, first, count, count))
        first += count
    if job.derive.finish:
        levels.append(Level(FINISH, first, 1, 1))
    return levels
