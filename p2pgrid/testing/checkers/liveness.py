"""L1: jobs end within the bound once faults have stopped, whoever submitted them and whoever led them.

It is asked of every job that somebody can go on with: a node runs that was named for it and has all of it on a disk that can
be written, and as many honest nodes that may run it are there as a quorum needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from p2pgrid.model import log as kinds
from p2pgrid.testing.checkers.facts import Facts
from p2pgrid.testing.checkers.journal import Journal, Records
from p2pgrid.testing.observe import Onlooker

if TYPE_CHECKING:
    from p2pgrid.node import Node
    from p2pgrid.testing.plans.scenario import JobPlan


class _Taken:
    __slots__ = ("at_s", "lead", "plan")

    def __init__(self, plan: JobPlan, lead: str, at_s: float) -> None:
        self.plan = plan
        self.lead = lead
        self.at_s = at_s


class LivenessChecker(Onlooker):
    """L1, for all accepted jobs that are to end."""

    invariant = "L1"

    def __init__(self, journal: Journal, facts: Facts) -> None:
        super().__init__()
        self._journal = journal
        self._facts = facts
        self._calm_s: float | None = None
        self._taken: dict[bytes, _Taken] = {}
        self._ended_s: dict[bytes, float] = {}
        self._excused: dict[bytes, str] = {}
        self._able_then: dict[bytes, int] = {}
        self._end_s: float | None = None
        """When the liveness phase was over: that nodes are closed afterwards excuses nothing."""

    @property
    def ended_s(self) -> dict[bytes, float]:
        """By job: when its end was signed, or it was cancelled, in virtual seconds."""
        return dict(self._ended_s)

    @property
    def excused(self) -> dict[bytes, str]:
        """Jobs of which no end is asked, and why."""
        return dict(self._excused)

    def on_job(self, name: str, job: bytes, plan: JobPlan, keepers: int, expected: Sequence[object]) -> None:
        self._taken[job] = _Taken(plan, name, self.view.now)

    def on_log(self, name: str, job: bytes, records: Records) -> None:
        if any(kind in (kinds.SETTLED, kinds.CANCEL) for kind, _ in records):
            self._ended_s.setdefault(job, self.view.now)

    def on_crash(self, name: str) -> None:
        """An end that nobody else has heard of was none."""
        if self._end_s is None:
            self._ended_s = {job: at_s for job, at_s in self._ended_s.items() if self._journal.over(job)}

    def on_start(self, name: str, node: Node) -> None:
        for log in self._journal.logs.get(name, {}).values():
            if log.over:
                self._ended_s.setdefault(log.job, self.view.now)

    def on_calm(self) -> None:
        self._calm_s = self.view.now

    def at_end(self) -> None:
        self._end_s = self.view.now
        self._able_then = {job: self._able(job) for job in self.due}
        for job, taken in self._taken.items():
            if taken.plan.until_end and job not in self._ended_s and not self._carried(job):
                self._excused[job] = "nobody who could go on with it is left"

    @property
    def due(self) -> list[bytes]:
        """Jobs that are to end and have not: whoever runs the grid waits for them, at most ``settle_s`` from the calm."""
        return [job for job, taken in self._taken.items() if taken.plan.until_end and job not in self._ended_s and self._carried(job)]

    def ended(self, job: bytes) -> bool:
        """Whether somebody has signed the end of a job, or it was cancelled."""
        return job in self._ended_s

    def _carried(self, job: bytes) -> bool:
        """Whether somebody who runs can go on with a job."""
        return any(self.view.honest(name) for name in self._journal.carriers(job))

    def finish(self) -> None:
        """Report the jobs that ended late, or not at all though their time is over."""
        end_s = self.view.now if self._end_s is None else self._end_s
        for job, taken in self._taken.items():
            if not taken.plan.until_end or self._calm_s is None:
                continue
            due_s = max(self._calm_s, taken.at_s) + self._facts.settle_s
            ended_s = self._ended_s.get(job, math.inf)
            if ended_s <= due_s or end_s < due_s:
                continue
            if job in self._excused:
                continue
            able = self._able_then.get(job, taken.plan.quorum)
            if able < taken.plan.quorum:
                self._excused[job] = f"{able} honest nodes may run it, {taken.plan.quorum} are needed"
                continue
            when = "has not ended" if ended_s == math.inf else f"ended {ended_s - due_s:.1f} s late"
            text = f"job '{taken.plan.name}' ({job.hex()[:8]}) {when}: {self._facts.settle_s:.0f} s after the faults are the bound"
            self.violate(taken.lead, text)

    def _able(self, job: bytes) -> int:
        """How many honest nodes are there that may run units of a job."""
        statement = self._journal.jobs.get(job)
        count = 0
        for name, node in self.view.living().items():
            policy = node.config.policy
            willing = policy.native or name == self._taken[job].lead
            fits = statement is None or statement.body.runtime in policy.runtimes
            count += self.view.honest(name) and policy.cores > 0 and "work" in node.member.roles and willing and fits
        return count
