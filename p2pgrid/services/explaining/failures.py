"""What units of a job that came to nothing have in common: grouped by reason and by what they said (docs/spec/faces.md#reasons).

1. Receipts are looked at once for each question, the newest first, within a bound; one that holds values only costs a byte count.
2. A group says how many, and of its first unit who ran it and the last lines of what it said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from p2pgrid.core.columns import FAILED, positions
from p2pgrid.core.ledger import Ledger
from p2pgrid.errors import P2PGridError
from p2pgrid.model.reasons import Reason
from p2pgrid.model.work import DISAGREED, OK, Receipt
from p2pgrid.services.absorbing import KeptJob
from p2pgrid.services.deriving import Deriving
from p2pgrid.services.explaining.words import said
from p2pgrid.services.results import Failure, failure_of, reason_of
from p2pgrid.wire.envelope import Signed

RECEIPTS_MAX = 100_000
"""Receipts looked at for one question."""
ATTEMPTS_MAX = 5_000
"""Attempts that came to nothing and are looked at one by one."""
PAYLOADS_MAX = 256
"""Payloads that are read from the disk for one question."""
SLICE = 2_000


class Attempt(NamedTuple):
    """A unit that came to nothing at a node. ``receipt`` None: there were answers, and none of them stands."""

    batch: int
    unit: int
    receipt: Signed[Receipt] | None
    position: int
    outcome: int


class Group(NamedTuple):
    """Attempts that failed alike. ``final``: their units are given up, or have raised, which is their answer."""

    reason: Reason
    kind: str
    message: str
    final: bool
    units: int
    first: Attempt
    traceback: str

    @property
    def text(self) -> str:
        """What they said, in a line."""
        return said(f"{self.kind}: {self.message}" if self.kind else self.message)


async def failures_of(kept: KeptJob, deriving: Deriving) -> list[Group]:
    """The groups of a job, those with final failures first, then by size."""
    groups: dict[tuple[Reason, str, str, bool], Group] = {}
    read = 0
    for number, attempt in enumerate(_attempts(kept.ledger)):
        if number >= ATTEMPTS_MAX:
            break
        if number % 64 == 63:
            await asyncio.sleep(0)
        failure = Failure()
        digest = attempt.receipt.body.payload if attempt.receipt is not None else b""
        if digest and (kept.payloads.get(digest) is not None or read < PAYLOADS_MAX):
            read += kept.payloads.get(digest) is None
            failure = await failure_at(kept, deriving, attempt)
        final = kept.ledger.state(attempt.batch, attempt.unit) == FAILED
        _add(kept.ledger, groups, attempt, failure, final)
    return sorted(groups.values(), key=lambda group: (not group.final, -group.units, group.kind, group.message))


def _add(ledger: Ledger, groups: dict[tuple[Reason, str, str, bool], Group], attempt: Attempt, failure: Failure, final: bool) -> None:
    reason = reason_of(attempt.outcome, failure)
    key = (reason, failure.type, failure.message, final)
    known = groups.get(key)
    if known is None:
        groups[key] = Group(reason, failure.type, failure.message, final, 1, attempt, failure.traceback)
        return
    first = known.first
    if ledger.layout.number(attempt.batch, attempt.unit) < ledger.layout.number(first.batch, first.unit):
        known = known._replace(first=attempt, traceback=failure.traceback)
    groups[key] = known._replace(units=known.units + 1)


async def failure_at(kept: KeptJob, deriving: Deriving, attempt: Attempt) -> Failure:
    """What a unit said; empty when it said nothing, or that is not here."""
    if attempt.receipt is None:
        return Failure()
    with suppress(P2PGridError):
        payload = await deriving.payload(kept, attempt.receipt)
        return failure_of(attempt.outcome, bytes(payload.values[attempt.position]))
    return Failure()


def _attempts(ledger: Ledger) -> Iterator[Attempt]:
    """Each unit that failed and each attempt that did, a unit once for each receipt."""
    for decision in ledger.decision_list:
        for entry in decision.body.entries:
            if entry.outcome == DISAGREED:
                yield from (Attempt(entry.batch, unit, None, 0, DISAGREED) for unit in range(entry.start, entry.start + entry.units))
    told: dict[tuple[int, int], None] = {}
    for receipt in reversed(ledger.receipt_list[-RECEIPTS_MAX:]):
        outcomes = receipt.body.outcomes
        if outcomes.count(OK) == len(outcomes):
            continue
        for batch, unit, position in positions(receipt.body):
            if outcomes[position] == OK or (batch, unit) in told:
                continue
            if ledger.state(batch, unit) == FAILED:
                # A unit that failed is told once, whoever else failed at it before.
                told[batch, unit] = None
            yield Attempt(batch, unit, receipt, position, outcomes[position])
