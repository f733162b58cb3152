"""How many wrong values a quorum lets through: what readers were given, against what the rule of decisions allows.

A unit is decided when those who agree are ``quorum`` more than those who do not. Colluders agree with one another and
answer in the order in which chance gives them the unit; nobody answers twice. So a unit is a race between two parties,
drawn without replacement, that ends when one is ``quorum`` ahead: :func:`wrong_share` is the chance that it is theirs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from p2pgrid.model import log as kinds
from p2pgrid.testing.checkers.facts import Facts
from p2pgrid.testing.checkers.journal import Journal, Records
from p2pgrid.testing.observe import Onlooker

if TYPE_CHECKING:
    from p2pgrid.testing.plans.scenario import JobPlan

AGREEING = ("colluding", "lazy")
"""Liars whose lies are equal. Others are alone with theirs, which counts where a single answer decides."""


@lru_cache(maxsize=256)
def wrong_share(quorum: int, workers: int, colluders: int, weight: float = 1.0) -> float:
    """The chance that a unit is decided by colluders.

    ``weight``: how much likelier a colluder is the next to answer than another worker, as faster ones are.
    """
    others = workers - colluders
    if colluders < quorum or quorum < 1:
        return 0.0
    states = {(0, 0): 1.0}
    share = 0.0
    while states:
        following: dict[tuple[int, int], float] = {}
        for (wrong, right), chance in states.items():
            left_wrong, left_right = weight * (colluders - wrong), float(others - right)
            total = left_wrong + left_right
            if total <= 0:
                continue
            for state, part in (((wrong + 1, right), left_wrong), ((wrong, right + 1), left_right)):
                lead = state[0] - state[1]
                if part <= 0 or lead <= -quorum:
                    continue
                if lead >= quorum:
                    share += chance * part / total
                else:
                    following[state] = following.get(state, 0.0) + chance * part / total
        states = following
    return share


def wrong_bound(units: int, quorum: int, workers: int, colluders: int, weight: float = 1.0) -> float:
    """The most wrong units that chance explains: the expected number, four deviations and three."""
    mean = units * wrong_share(quorum, workers, colluders, weight)
    return mean + 4 * math.sqrt(mean) + 3


class ValueChecker(Onlooker):
    """Compares every value that a reader was given with the right one."""

    invariant = "expect"

    def __init__(self, journal: Journal, facts: Facts) -> None:
        super().__init__()
        self._journal = journal
        self._facts = facts
        self._expected: dict[bytes, Sequence[object]] = {}
        self._quorum: dict[bytes, int] = {}
        self._wrong: dict[tuple[bytes, int], None] = {}
        self._answered: dict[bytes, Counter[bytes]] = {}
        """By job: how many units each worker answered."""
        self._counted: set[bytes] = set()
        self.expected_wrong = 0.0
        """What the formula expects; known after :meth:`finish`."""

    @property
    def accepted_wrong(self) -> int:
        """Units of which somebody was given a wrong value."""
        return len(self._wrong)

    def on_job(self, name: str, job: bytes, plan: JobPlan, keepers: int, expected: Sequence[object]) -> None:
        self._expected[job] = expected
        self._quorum[job] = plan.quorum

    def on_log(self, name: str, job: bytes, records: Records) -> None:
        for entry in self._journal.entries(records):
            if entry.kind == kinds.RECEIPT and not entry.error and entry.id not in self._counted:
                self._counted.add(entry.id)
                self._answered.setdefault(job, Counter())[entry.author] += len(entry.body.outcomes)

    def on_value(self, name: str, job: bytes, number: int, value: object) -> None:
        expected = self._expected.get(job)
        if expected is None or not self.view.honest(name):
            return
        if 0 <= number < len(expected) and value == expected[number]:
            return
        if (job, number) not in self._wrong:
            self._wrong[job, number] = None
            if self._facts.expect.accepted_wrong != "formula" or not self._mean(job, 1):
                self.violate(name, f"unit {number} of job {job.hex()[:8]} was given the wrong value {str(value)[:60]!r}")

    def _liars(self, job: bytes) -> list[bytes]:
        """The workers of a job whose lies could make a wrong answer stand."""
        found = []
        for worker in self._answered.get(job, {}):
            name = self._journal.machines.get(worker)
            if name is not None and self.view.honest(name):
                continue
            behaviour = self._facts.behaviours.get(name or "", "colluding")
            if behaviour in AGREEING or (self._quorum.get(job, 1) == 1 and behaviour == "wrong"):
                found.append(worker)
        return found

    def finish(self) -> None:
        """Compare what was accepted with what the formula allows."""
        mean = self.expected_wrong = sum(self._mean(job, len(expected)) for job, expected in self._expected.items())
        bound = mean + 4 * math.sqrt(mean) + 3
        if not mean:
            return  # Nothing explains any of them: each was reported when it was given.
        if self._facts.expect.accepted_wrong == "formula" and self.accepted_wrong > bound:
            self.violate("grid", f"{self.accepted_wrong} wrong values were accepted, the quorums explain {bound:.1f}")

    def _mean(self, job: bytes, values: int) -> float:
        """Expected wrong values of one job. One wrong unit below makes a value that is derived from all of them wrong."""
        answered = self._answered.get(job, Counter())
        liars = self._liars(job)
        others = len(answered) - len(liars)
        if not liars:
            return 0.0
        theirs = sum(answered[worker] for worker in liars) / len(liars)
        rest = (answered.total() - theirs * len(liars)) / others if others else 0.0
        weight = max(1.0, theirs / rest) if rest else 1.0
        share = wrong_share(self._quorum[job], len(answered), len(liars), weight)
        levels = self._journal.levels.get(job)
        if levels is None or not levels.derived:
            return values * share
        return values * min(1.0, levels.units * share)
