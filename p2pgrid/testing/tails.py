"""The long tail of a job: how long its last units kept everybody waiting, and what was run more than was needed.

``tail_ratio``: when the last unit was decided over when 95 % of the units were, both since the job was submitted.
``extra_work``: unit seconds at speed 1 beyond those that were needed, over those that were needed. Everything counts that machines
spent on units: copies that came too late, what was leased again, and what was lost with a machine in the middle of a unit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pgrid.testing.verdict import Verdict

MOST = 0.95
"""The share of units after which the tail begins."""


@dataclass(slots=True)
class Tail:
    """The ends of the units of one job."""

    units: int = 0
    ends: list[tuple[float, int]] = field(default_factory=list)
    """(when, how many) in the order of time."""
    spent_s: float = 0.0
    """Unit seconds at speed 1 that machines spent on it."""

    def decided(self, now: float, units: int) -> None:
        """So many units were decided."""
        self.units += units
        if self.ends and self.ends[-1][0] == now:
            units += self.ends.pop()[1]
        self.ends.append((now, units))

    def ratio(self, since: float) -> float:
        """When the last was decided over when 95 % were; 0 without any."""
        due, done = MOST * self.units, 0
        for at, units in self.ends:
            done += units
            if done >= due and at > since:
                return round((self.ends[-1][0] - since) / (at - since), 4)
        return 0.0

    def beyond(self, needed_s: float) -> float:
        """What was spent beyond what was needed, as a share of that."""
        return round(self.spent_s / needed_s - 1.0, 4) if needed_s > 0 else 0.0


def broken(verdict: Verdict, tail_ratio_max: float, extra_work_max: float) -> list[str]:
    """What a verdict says that is beyond these bounds; below 0 they are none."""
    found: list[str] = []
    if 0 <= tail_ratio_max < verdict.tail_ratio:
        found.append(f"the last unit ended at {verdict.tail_ratio} times the time at which 95 % had")
    if 0 <= extra_work_max < verdict.extra_work:
        found.append(f"{verdict.extra_work:.1%} more than the needed work was done")
    return found
