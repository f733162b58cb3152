"""S2: no view of a decision changes silently, and none conflicts where honest workers answered.

1. Of two different answers to a unit, whichever log holds one must hold the other: then it is a conflict and is shown.
   Leads that did not hear of one another may differ for a while, so that is asked when the liveness phase is over. One
   lead must never differ from itself.
2. Where the units of a job are deterministic and everybody cited is honest, there is nothing to differ about.
3. One reader is given one value of a unit for ever, and after the faults all are given the same: unless the conflict lies in
   the reader's log, where it is shown.
4. When the liveness phase is over, whoever leads or keeps the job by the newest keeper set holds all answers of a unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from blake3 import blake3

from p2pgrid.errors import P2PGridError
from p2pgrid.model import log as kinds
from p2pgrid.model.work import ANSWERS
from p2pgrid.testing.checkers.answers import Answer, Answers, Overlap, Place
from p2pgrid.testing.checkers.journal import Journal, Log, Records
from p2pgrid.testing.observe import Onlooker
from p2pgrid.wire.codec import encode

if TYPE_CHECKING:
    from p2pgrid.testing.plans.scenario import JobPlan


class ViewChecker(Onlooker):
    """S2, over the logs of all honest nodes and all readers."""

    invariant = "S2"

    def __init__(self, journal: Journal, answers: Answers) -> None:
        super().__init__()
        self._journal = journal
        self._answers = answers
        self._split: dict[tuple[bytes, Place], list[Answer]] = {}
        """Units with different answers."""
        self._given: dict[tuple[bytes, int], dict[str, bytes]] = {}
        """By unit: what each machine's readers were given."""
        self._varies: set[bytes] = set()
        """Jobs whose units return something else each time."""
        self._over = False

    def conflicts(self, job: bytes) -> int:
        """Units of a job that were decided with two different answers, over all logs."""
        return sum(1 for known, place in self._split if known == job and self._differ(known, place))

    def shown(self, job: bytes, name: str) -> int:
        """Units of a job with two different answers that both lie in the log of a machine."""
        log = self._journal.logs.get(name, {}).get(job)
        if log is None:
            return 0
        return sum(
            1
            for known, place in self._split
            if known == job and self._differ(job, place) and all(answer.decision.id in log.held for answer in self._split[job, place])
        )

    def _differ(self, job: bytes, place: Place) -> bool:
        told = {(answer.outcome, answer.digest) for answer in self._split[job, place] if answer.outcome in ANSWERS}
        return len(told) > 1

    def on_job(self, name: str, job: bytes, plan: JobPlan, keepers: int, expected: Sequence[object]) -> None:
        if plan.varies:
            self._varies.add(job)

    def on_log(self, name: str, job: bytes, records: Records) -> None:
        if not self.view.honest(name):
            return
        for entry in self._journal.entries(records):
            if entry.kind == kinds.DECISION and entry.fault == "":
                for overlap in self._answers.overlaps(entry):
                    if not overlap.mine.same(overlap.theirs):
                        self._on_split(name, job, overlap)

    def _on_split(self, name: str, job: bytes, overlap: Overlap) -> None:
        known = self._split.setdefault((job, overlap.place), [])
        fresh = [answer for answer in (overlap.theirs, overlap.mine) if answer not in known]
        if not fresh:
            return
        known.extend(fresh)
        where = f"unit {overlap.place} of job {job.hex()[:8]}"
        if overlap.mine.decision.author == overlap.theirs.decision.author:
            self.violate(name, f"{where} was decided in two ways by one lead")
        if job in self._varies:
            return
        both_answers = overlap.mine.outcome in ANSWERS and overlap.theirs.outcome in ANSWERS
        if both_answers and self._honest(overlap.mine, overlap.place) and self._honest(overlap.theirs, overlap.place):
            self.violate(name, f"{where} has two answers, and everybody who gave them is honest")

    def _honest(self, answer: Answer, place: Place) -> bool:
        """Whether all who are cited for an answer follow the protocol."""
        batch, unit = place
        decision = answer.decision.body
        cited = [
            decision.receipts[ordinal]
            for entry in decision.entries
            if entry.batch == batch and entry.start <= unit < entry.start + entry.units
            for ordinal in entry.cited
        ]
        return all(self._journal.honest(self._journal.statements[receipt].author) for receipt in cited)

    def _shows(self, log: Log, job: bytes, place: Place) -> bool:
        """Whether the log holds every answer of a unit, or none."""
        here = [answer.decision.id in log.held for answer in self._split[job, place]]
        return all(here) or not any(here)

    def on_value(self, name: str, job: bytes, number: int, value: object) -> None:
        digest = digest_of(value)
        given = self._given.setdefault((job, number), {})
        before = given.setdefault(name, digest)
        given[name] = digest
        others = list(given.values()) if self._over else [before]
        if not self.view.honest(name) or all(other == digest for other in others):
            return
        log, levels = self._journal.logs.get(name, {}).get(job), self._journal.levels.get(job)
        if log is not None and levels is not None and 0 <= number < levels.last_units:
            place = levels.place(number)
            if (job, place) in self._split and self._shows(log, job, place):
                return
        self.violate(name, f"unit {number} of job {job.hex()[:8]} was read with another value before, and no conflict is shown")

    def at_end(self) -> None:
        self._over = True
        for name in self.view.living():
            if not self.view.honest(name):
                continue
            for job, place in self._split:
                log = self._journal.logs.get(name, {}).get(job)
                newest = self._journal.newest(job)
                if log is None or newest is None or self._journal.key(name) not in (newest.body.lead, *newest.body.keepers):
                    continue
                if not self._shows(log, job, place):
                    self.violate(name, f"unit {place} of job {job.hex()[:8]} has answers that this log does not show")


def digest_of(value: object) -> bytes:
    """What two readers compare."""
    try:
        return blake3(encode(value)).digest()
    except (TypeError, ValueError, OverflowError, P2PGridError):
        return blake3(repr(value).encode()).digest()
