"""Which answer each unit of each job was given, by which decisions, over all logs together.

Every decision is looked at unit by unit once, when it is first met. Where two decisions speak of one unit, each is
told of the other; so what a log holds can be judged by asking which of the two it has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from p2pgrid.testing.checkers.journal import Entry, Journal
from p2pgrid.testing.checkers.weighing import DIGEST, said

Place = tuple[int, int]
"""(batch, unit)."""


class Answer(NamedTuple):
    """What a decision says of a unit."""

    decision: Entry
    outcome: int
    digest: bytes

    def same(self, other: Answer) -> bool:
        """Whether both say the same."""
        return (self.outcome, self.digest) == (other.outcome, other.digest)


class Overlap(NamedTuple):
    """Another decision speaks of the same unit."""

    place: Place
    mine: Answer
    theirs: Answer


class Answers:
    """The answers of all units. Shared by the checkers that need them."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.decided: dict[bytes, dict[Place, list[Answer]]] = {}
        """By job: all answers of a unit, in the order in which they were met; nearly always one."""
        self._overlaps: dict[bytes, list[Overlap]] = {}

    def overlaps(self, decision: Entry) -> list[Overlap]:
        """The other decisions on units of this one. It must be without fault."""
        known = self._overlaps.get(decision.id)
        if known is None:
            known = self._overlaps[decision.id] = []
            self._take(decision, known)
        return known

    def _take(self, decision: Entry, overlaps: list[Overlap]) -> None:
        decided = self.decided.setdefault(decision.body.job, {})
        for place, answer in self.each(decision):
            others = decided.get(place)
            if others is None:
                decided[place] = [answer]
                continue
            for other in others:
                overlaps.append(Overlap(place, answer, other))
                self._overlaps[other.decision.id].append(Overlap(place, other, answer))
            others.append(answer)

    def each(self, decision: Entry) -> Iterator[tuple[Place, Answer]]:
        """What a decision without fault says, unit by unit."""
        statements = self._journal.statements
        for entry in decision.body.entries:
            receipt = statements[decision.body.receipts[entry.cited[0]]].body
            told = said(receipt, entry.batch, entry.start, entry.units)
            if told is None:
                continue
            for index in range(entry.units):
                digest = told[1][index * DIGEST : (index + 1) * DIGEST]
                yield (entry.batch, entry.start + index), Answer(decision, entry.outcome, digest)

    def first(self, job: bytes, place: Place) -> Answer | None:
        """The first answer that a unit was given."""
        answers = self.decided.get(job, {}).get(place)
        return answers[0] if answers else None
