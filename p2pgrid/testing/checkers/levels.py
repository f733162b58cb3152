"""Which units a job has, computed from the signed job by docs/spec/job.md and nothing else.

A unit's place is (batch, unit). The units of the last level are numbered from 0: those are the numbers readers see.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

from p2pgrid.model.job import Job


class Levels:
    """The units of one job."""

    def __init__(self, job: Job) -> None:
        sizes = [reference.units for reference in job.manifest]
        self.batch_units = list(sizes)
        self._starts = [0, *accumulate(sizes)]
        count = map_units = sum(sizes)
        self.last_batch = 0
        """The first batch of the last level."""
        self.last_units = map_units
        reduce = job.derive.reduce and job.derive.fan_in > 1
        self.derived = job.derive.finish or (reduce and map_units > 1)
        while reduce and count > 1:
            count = -(-count // job.derive.fan_in)
            self._add(count)
        if job.derive.finish:
            self._add(1)

    def _add(self, units: int) -> None:
        self.last_batch, self.last_units = len(self.batch_units), units
        self.batch_units.extend([1] * units)

    @property
    def units(self) -> int:
        """All units, derived ones included."""
        return sum(self.batch_units)

    def number(self, batch: int, unit: int) -> int:
        """The number of a unit within the last level; -1 for a unit of another level."""
        if batch < self.last_batch:
            return -1
        return batch - self.last_batch if self.derived else self._starts[batch] + unit

    def place(self, number: int) -> tuple[int, int]:
        """(batch, unit) of a number of the last level. Raises IndexError."""
        if not 0 <= number < self.last_units:
            raise IndexError(number)
        if self.derived:
            return self.last_batch + number, 0
        batch = bisect_right(self._starts, number) - 1
        return batch, number - self._starts[batch]
