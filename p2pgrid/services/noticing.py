"""What an owner is told of a job that is led here while it runs: once when it begins to be so, never per unit.

1. What repeats (a worker that fails at many units, a dispute that grows) is told when it begins, and again only after it was over.
2. Everything names the job, and the node it is about, so that ``why`` finds it again.
3. What is remembered to tell nothing twice is bounded; beyond the bound the oldest is told anew.
4. Why a worker declines is its own word. It is told under a code of its own, since codes that workers choose would pass for what
   happened here, and a few times for each worker and job.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2pgrid.core import lead as core
from p2pgrid.model.ids import short
from p2pgrid.model.reasons import CODES, Reason
from p2pgrid.model.work import ANSWERS, OK, DecisionEntry
from p2pgrid.services.context import Context
from p2pgrid.services.ledjob import LedJob
from p2pgrid.services.results import OUTCOME_REASONS

TOLD_MAX = 4096
DECLINED_MAX = 4096
"""Workers of one job whose reasons are remembered."""
DECLINES_TOLD = 4
"""Reasons of one worker for one job that are told."""
_ANSWERED = bytes(ANSWERS)

Key = tuple[bytes, bytes, str]
"""(job, node, what)."""


class Noticing:
    """Looks at what happens to led jobs."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._told: dict[Key, None] = {}
        self._declines: dict[tuple[bytes, bytes], set[str]] = {}
        """What each worker gave as a reason for each job, as far as it was told."""

    def _first(self, job: bytes, node: bytes, what: str) -> bool:
        """Whether this is so for the first time, as far as is remembered."""
        key = (job, node, what)
        if key in self._told:
            return False
        self._told[key] = None
        while len(self._told) > TOLD_MAX:
            self._told.pop(next(iter(self._told)))
        return True

    def _over(self, job: bytes, node: bytes, what: str) -> None:
        self._told.pop((job, node, what), None)

    def declined(self, led: LedJob, worker: bytes, code: str) -> None:
        """A worker said why it takes nothing of a job. Only codes that are registered are remembered."""
        reason = CODES.get(code)
        if reason is None:
            return
        led.declined.pop(worker, None)
        led.declined[worker] = reason.value
        while len(led.declined) > DECLINED_MAX:
            led.declined.pop(next(iter(led.declined)))
        told = self._declines.setdefault((led.id, worker), set())
        while len(self._declines) > TOLD_MAX:
            self._declines.pop(next(iter(self._declines)))
        if reason.value not in told and len(told) < DECLINES_TOLD:
            told.add(reason.value)
            text = f"{short(worker)} takes nothing of job {short(led.id)}: {reason.sentence} ({reason.value})"
            self._tell(led, Reason.DECLINED, text, worker)

    def gone(self, led: LedJob, worker: bytes) -> None:
        """A worker is away; called before its leases are taken back."""
        owed = led.lead.book.owed_by(worker)
        if owed and not led.ended.is_set():
            text = f"{short(worker)} went away with {_units(owed)} of job {short(led.id)}: others get them"
            self._tell(led, Reason.WORKER_LOST, text, worker)

    def answered(self, led: LedJob, worker: bytes, outcomes: bytes) -> None:
        """A receipt came. What costs no attempt is looked at by a count."""
        missed = len(outcomes) - sum(outcomes.count(answer) for answer in _ANSWERED)
        if not missed:
            return
        outcome = next(outcome for outcome in outcomes if outcome not in ANSWERS)
        why = OUTCOME_REASONS.get(outcome, Reason.DIED)
        if self._first(led.id, worker, f"missed {why.value}"):
            self._tell(led, Reason.RETRIED, f"units of job {short(led.id)} failed at {short(worker)}: {why.sentence}", worker)

    def decided(self, led: LedJob, entries: Sequence[DecisionEntry]) -> None:
        """Units were decided; the first that failed in each way is told."""
        for entry in entries:
            if entry.outcome != OK:
                reason = OUTCOME_REASONS.get(entry.outcome, Reason.DIED)
                if self._first(led.id, b"", f"failed {reason.value}"):
                    number = led.ledger.layout.number(entry.batch, entry.start)
                    self._tell(led, reason, f"unit {number} of job {short(led.id)} failed: {reason.sentence}")

    def late(self, led: LedJob, late: core.Late) -> None:
        """Leases are no longer waited for."""
        for worker, units in late.workers:
            if self._first(led.id, worker, "late"):
                text = f"{short(worker)} takes far longer than forecast: {_units(units)} of job {short(led.id)} go to others too"
                self._tell(led, Reason.LEASE_LATE, text, worker)

    def look(self, led: LedJob) -> None:
        """Once a second: what is so now, and was not before."""
        contested, conflicts = len(led.lead.disputes.contested), len(led.ledger.conflicts)
        if not contested:
            self._over(led.id, b"", "contested")
        elif self._first(led.id, b"", "contested"):
            self._tell(
                led, Reason.ANSWERS_DIFFER, f"the answers to {_units(contested)} of job {short(led.id)} differ: more nodes are asked"
            )
        if conflicts and self._first(led.id, b"", "conflict"):
            self._tell(led, Reason.CONFLICT, f"{_units(conflicts)} of job {short(led.id)}: decided twice, and differently")

    def _tell(self, led: LedJob, reason: Reason, text: str, *about: bytes) -> None:
        self._context.tell(reason, text, led.id, *about)


def _units(count: int) -> str:
    return f"{count} unit" if count == 1 else f"{count} units"
