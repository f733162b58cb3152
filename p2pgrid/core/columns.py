"""Receipts as columns, and the columns in which a ledger keeps the units of one batch (docs/spec/ledger.md).

1. A receipt is read in place: its outcomes are one byte a unit, its digests 32, in the order of its ranges.
2. The word of a worker on a unit is kept as one number (receipt, position), so that an open quorum costs a
   few bytes and no object a unit beyond a shared tuple.
3. The ranges of one statement never overlap: a unit said twice in one breath has no answer.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator
from itertools import pairwise

from p2pgrid.errors import MalformedError
from p2pgrid.model.ids import DIGEST_BYTES
from p2pgrid.model.reasons import Reason
from p2pgrid.model.work import DecisionEntry, Receipt, UnitRange

OPEN, DONE, FAILED = 0, 1, 2
NO_RECEIPT = 0xFFFFFFFF
POSITION_BITS = 24
POSITION_MASK = (1 << POSITION_BITS) - 1
RANGES_MAX = 256
"""Ranges in one grant or receipt: what is over is refused, so that checking stays cheap."""

_OPEN_RUN = re.compile(rb"\x00+")


class Column:
    """The units of one batch: a state, the ordinal of the receipt that decided it, and words while it is open."""

    __slots__ = ("decisions", "receipt", "state", "words")

    def __init__(self, units: int) -> None:
        self.state = bytearray(units)
        self.receipt = array("I", [NO_RECEIPT]) * units
        self.words: list[tuple[int, ...]] | None = None
        self.decisions: list[bytes] = []
        """Ids of the decisions that speak of this batch: read only when two of them differ."""

    def words_of(self, unit: int) -> tuple[int, ...]:
        """What was said about a unit so far: ``ordinal << POSITION_BITS | position`` of each word."""
        return self.words[unit] if self.words is not None else ()

    def add_words(self, start: int, count: int, ordinal: int, position: int) -> None:
        """Note that receipt ``ordinal`` speaks of ``count`` units from ``start``, from ``position`` of its columns on."""
        if self.words is None:
            self.words = [()] * len(self.state)
        word = ordinal << POSITION_BITS | position
        self.words[start : start + count] = [(*said, word + step) for step, said in enumerate(self.words[start : start + count])]

    def lockstep_runs(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Cut a run of units where the receipts that speak of them change, or do not go on with the next unit."""
        words, low = self.words, start
        if words is not None:
            for unit in range(start + 1, stop):
                if words[unit] != tuple([word + 1 for word in words[unit - 1]]):
                    yield low, unit
                    low = unit
        yield low, stop

    def forget_words(self, start: int, stop: int) -> None:
        """The units are decided: single words on them are no longer needed."""
        if self.words is not None:
            self.words[start:stop] = [()] * (stop - start)

    def open_runs(self, start: int, stop: int) -> list[tuple[int, int]]:
        """(start, count) of the undecided runs between two units."""
        return [(run.start(), run.end() - run.start()) for run in _OPEN_RUN.finditer(self.state, start, stop)]


def positions(receipt: Receipt) -> Iterator[tuple[int, int, int]]:
    """(batch, unit, position in the columns) of each unit of a receipt."""
    position = 0
    for batch, start, count, _ in receipt.ranges:
        for unit in range(start, start + count):
            yield batch, unit, position
            position += 1


def position_in(receipt: Receipt, batch: int, unit: int) -> int:
    """Where a unit stands in the columns of a receipt. Raises KeyError if it is not there."""
    base = 0
    for known, start, count, _ in receipt.ranges:
        if known == batch and start <= unit < start + count:
            return base + unit - start
        base += count
    raise KeyError((batch, unit))


def columns_of(receipt: Receipt, entry: DecisionEntry) -> tuple[bytes, bytes]:
    """The outcomes and digests that a receipt holds for the units of an entry; empty if not all are there."""
    parts: list[tuple[int, int, int]] = []
    base = 0
    for batch, start, count, _ in receipt.ranges:
        if batch == entry.batch:
            first, last = max(start, entry.start), min(start + count, entry.start + entry.units)
            if first < last:
                parts.append((first, base + first - start, last - first))
        base += count
    parts.sort()
    outcomes, digests, due = b"", b"", entry.start
    for first, position, units in parts:
        if first != due:
            return b"", b""
        outcomes += receipt.outcomes[position : position + units]
        digests += receipt.digests[position * DIGEST_BYTES : (position + units) * DIGEST_BYTES]
        due += units
    return (outcomes, digests) if due == entry.start + entry.units else (b"", b"")


def digest_at(receipt: Receipt, position: int) -> bytes:
    """The digest at a position of a receipt's columns."""
    return receipt.digests[position * DIGEST_BYTES : (position + 1) * DIGEST_BYTES]


def digests_from(receipt: Receipt, position: int, units: int) -> bytes:
    """The digests of ``units`` units from a position of a receipt's columns, joined."""
    return receipt.digests[position * DIGEST_BYTES : (position + units) * DIGEST_BYTES]


def within(inner: UnitRange, outer: UnitRange) -> bool:
    """Whether a range lies inside another one of the same batch and attempt."""
    return (
        inner.batch == outer.batch
        and inner.attempt == outer.attempt
        and inner.units >= 1
        and outer.start <= inner.start
        and inner.start + inner.units <= outer.start + outer.units
    )


def check_apart(ranges: Iterable[UnitRange]) -> None:
    """Raise MalformedError unless there is at least one range, and no unit is in two of them."""
    ordered = sorted(unit_range[:3] for unit_range in ranges)
    if not 1 <= len(ordered) <= RANGES_MAX:
        raise MalformedError("a statement speaks of no unit, or of too many ranges", reason=Reason.MALFORMED)
    for (batch, start, count), (next_batch, next_start, _) in pairwise(ordered):
        if batch == next_batch and start + count > next_start:
            raise MalformedError("a statement speaks of a unit twice", reason=Reason.MALFORMED)
