"""What must hold in the core engine: looked at every few virtual minutes, and in full at the end.

S1 and S9 anew from the statements alone, S2 by comparing every keeper's view with what it showed before and with the lead's, and the
machines' own invariants of leasing. What breaks is reported, and the run goes on.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Sequence

from p2pgrid.core.ledger import DONE, OPEN, Ledger
from p2pgrid.errors import P2PGridError
from p2pgrid.testing.core.checks import check_decisions, check_dissent, check_leases, summary
from p2pgrid.testing.core.heap import EventHeap
from p2pgrid.testing.core.jobs import ScaleJob
from p2pgrid.testing.core.population import Machine
from p2pgrid.testing.verdict import Violation

VIOLATIONS_MAX = 100
FULL_EVERY = 5
"""Of the looks, one in so many goes through all statements."""


class _View:
    """What a ledger showed: the state of every unit, and the receipt that stands for it."""

    def __init__(self, ledger: Ledger) -> None:
        batches = range(len(ledger.layout.batch_units))
        self.states = [bytes(ledger.column(batch).state) for batch in batches]
        self.receipts = [array("I", ledger.column(batch).receipt) for batch in batches]

    def check_kept(self, later: _View) -> None:
        """Nothing that was decided here is open or otherwise decided later."""
        for batch, states in enumerate(self.states):
            if states == later.states[batch] and self.receipts[batch] == later.receipts[batch]:
                continue
            for unit, state in enumerate(states):
                same = state == later.states[batch][unit] and self.receipts[batch][unit] == later.receipts[batch][unit]
                assert state == OPEN or same, f"the decision on unit {unit} of batch {batch} changed"


class Watch:
    """The checks of one run. ``twice`` counts units that were decided more than once."""

    def __init__(self, heap: EventHeap, jobs: Sequence[ScaleJob]) -> None:
        self._heap = heap
        self._jobs = jobs
        self._views: dict[tuple[bytes, bytes], _View] = {}
        self._looks = 0
        self.violations: list[Violation] = []
        self.twice = 0

    def violate(self, invariant: str, where: str, text: str) -> None:
        """Report a broken invariant; the first hundred are kept."""
        if len(self.violations) < VIOLATIONS_MAX:
            self.violations.append(Violation(invariant, self._heap.now, where, text))

    def _holds(self, invariant: str, where: str, check: Callable[[], None]) -> None:
        try:
            check()
        except (AssertionError, LookupError, P2PGridError) as error:
            self.violate(invariant, where, f"{type(error).__name__}: {error}")

    def look(self) -> None:
        """The checks that are made in the course of a run."""
        self._looks += 1
        for job in self._jobs:
            name = job.event.name
            if not job.complete:
                self._holds("S9", name, job.lead.check)
                if not self._looks % FULL_EVERY:
                    self._holds("S1", name, lambda job=job: check_decisions(job.lead.ledger))  # type: ignore[misc]
                self._holds("S2", name, lambda job=job: self._compare(job.job.id, job.at.key, job.lead.ledger))  # type: ignore[misc]
            for machine in self._keepers(job):
                kept = machine.kept[job.job.id]
                self._holds("S2", machine.plan.name, lambda job=job, one=machine, kept=kept: self._compare(job.job.id, one.key, kept))  # type: ignore[misc]

    def _keepers(self, job: ScaleJob) -> list[Machine]:
        machines = [job.population.by_key[key] for key in job.keepers]
        return [machine for machine in machines if machine.on and job.job.id in machine.kept]

    def _compare(self, job: bytes, where: bytes, ledger: Ledger) -> None:
        later = _View(ledger)
        earlier = self._views.get((job, where))
        self._views[job, where] = later
        if earlier is not None:
            earlier.check_kept(later)

    def end(self) -> None:
        """Everything, once the run is over."""
        self.look()
        for job in self._jobs:
            ledger, name = job.lead.ledger, job.event.name
            self._holds("S9", name, job.lead.check)
            self._holds("S1", name, lambda ledger=ledger: check_decisions(ledger))  # type: ignore[misc]
            self._holds("S1", name, lambda job=job, ledger=ledger: check_dissent(job.log, ledger))  # type: ignore[misc]
            self._holds("S1", name, lambda job=job, ledger=ledger: check_leases(job.log, ledger))  # type: ignore[misc]
            self._holds("S2", name, lambda ledger=ledger: _check_single(ledger))  # type: ignore[misc]
            self.twice += decided_twice(ledger)
            self._check_keepers(job)

    def _check_keepers(self, job: ScaleJob) -> None:
        """Whoever keeps the job now sees what the lead sees; whoever kept it saw nothing else."""
        ledger = job.lead.ledger
        now = {machine.key for machine in self._keepers(job)} if job.complete else set()
        whole = summary(ledger) if now else ()
        for machine in job.population.machines:
            kept = machine.kept.get(job.job.id)
            if kept is None:
                continue
            if machine.key in now:
                self._holds("S2", machine.plan.name, lambda kept=kept, whole=whole: _check_equal(kept, whole))  # type: ignore[misc]
            else:
                self._holds("S2", machine.plan.name, lambda kept=kept, ledger=ledger: _check_part(kept, ledger))  # type: ignore[misc]


def _check_single(ledger: Ledger) -> None:
    assert not ledger.conflicts, "one lead contradicts itself"


def _check_equal(kept: Ledger, whole: tuple[object, ...]) -> None:
    kept.check()
    assert summary(kept) == whole, "a keeper sees another job than the lead"


def _check_part(kept: Ledger, ledger: Ledger) -> None:
    for batch, units in enumerate(kept.layout.batch_units):
        for unit in range(units):
            if kept.state(batch, unit) == DONE:
                mine, theirs = kept.find(batch, unit), ledger.find(batch, unit)
                assert mine is not None, "a decided unit without a receipt"
                assert theirs is not None, "a keeper knows a decision that the lead does not"
                assert mine.digest == theirs.digest, "an earlier keeper shows another result"


def decided_twice(ledger: Ledger) -> int:
    """Units on which more than one decision speaks."""
    decided: Counter[tuple[int, int]] = Counter()
    for decision in ledger.decisions.values():
        for entry in decision.body.entries:
            decided.update((entry.batch, unit) for unit in range(entry.start, entry.start + entry.units))
    return sum(times > 1 for times in decided.values())
