"""Units on which answers differ: how long more answers are asked for, and when no answer stands (docs/spec/job.md).

1. A disagreement asks for as many answers as the larger side lacks.
2. Where ``quorum + 2 * attempts`` differ, more will not help.
3. Where everybody there has answered, somebody else may still come: only after a while nobody is waited for any longer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from p2pgrid.core.columns import OPEN
from p2pgrid.core.leases import LeaseBook
from p2pgrid.core.ledger import Ledger
from p2pgrid.core.verdicts import Short, join_entries
from p2pgrid.model.work import ANSWERS, DISAGREED, DecisionEntry

DISAGREED_AFTER_S = 10.0
"""So long a unit on which everybody there disagrees waits for somebody else to come."""

Units = list[tuple[int, int]]
"""(batch, unit) of each."""


@dataclass(slots=True)
class Disputes:
    """The undecided units of one job that have different answers. ``now`` is monotonic seconds."""

    ledger: Ledger
    book: LeaseBook
    contested: dict[tuple[int, int], float] = field(default_factory=dict)
    """Since when nobody is there who could say more."""

    def widen(self, short: Iterable[Short], now: float) -> Units:
        """Ask for the answers that are missing. Returns the units of which so many differ that more will not help."""
        job = self.ledger.job.body
        hopeless: Units = []
        for batch, start, units, missing, contested in short:
            self.book.want(batch, start, units, missing)
            if contested >= job.quorum + 2 * job.attempts:
                hopeless += [(batch, unit) for unit in range(start, start + units)]
            elif contested:
                self.contested.update(((batch, unit), now) for unit in range(start, start + units))
        return hopeless

    def stuck(self, present: frozenset[bytes], now: float) -> Units:
        """Contested units for which nobody is left to ask. ``present``: the parties that are there."""
        stuck: Units = []
        for (batch, unit), since in list(self.contested.items()):
            if self.ledger.state(batch, unit) != OPEN:
                del self.contested[batch, unit]
                continue
            answered = {answer.group for answer in self.ledger.answers(batch, unit) if answer.outcome in ANSWERS}
            if not present or not present <= answered or self.book.owed(batch, unit):
                self.contested[batch, unit] = now
            elif now - since >= DISAGREED_AFTER_S:
                stuck.append((batch, unit))
        return sorted(stuck)

    def entries(self, units: Units) -> tuple[tuple[DecisionEntry, ...], tuple[bytes, ...]]:
        """What a decision says of units of which no answer stands, and the receipts it cites."""
        cited: dict[int, int] = {}
        parts: list[tuple[DecisionEntry, bytes]] = []
        for batch, unit in units:
            self.contested.pop((batch, unit), None)
            answers = [answer for answer in self.ledger.answers(batch, unit) if answer.outcome in ANSWERS]
            ordinals = tuple([cited.setdefault(answer.receipt, len(cited)) for answer in answers])
            parts.append((DecisionEntry(batch, unit, 1, DISAGREED, b"", ordinals), answers[0].digest))
        return tuple(join_entries(parts)), tuple(self.ledger.receipt_list[ordinal].id for ordinal in cited)
