"""Runs of decided units, against the plain definition: unit by unit."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any, NamedTuple

from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.core.columns import DONE, NO_RECEIPT, OPEN, Column, position_in
from p2pgrid.model.blob import CHUNK_BYTES, blob_id_of
from p2pgrid.model.work import Receipt, UnitRange
from p2pgrid.services.results import spans, value_digest

UNITS = 24


class OneReceipt(NamedTuple):
    """As much of a signed receipt as spans looks at."""

    body: Receipt


class OneBatch:
    """As much of a ledger as spans looks at."""

    def __init__(self, column: Column, receipts: list[OneReceipt]) -> None:
        self._column = column
        self.receipt_list = receipts

    def column(self, batch: int) -> Column:
        return self._column


@st.composite
def ledgers(draw: st.DrawFn) -> OneBatch:
    """Each receipt speaks of some units, in ranges of any order; each unit is decided by one that speaks of it, or open."""
    column, receipts = Column(UNITS), []
    for ordinal in range(draw(st.integers(1, 3))):
        cuts = sorted(draw(st.sets(st.integers(1, UNITS - 1), max_size=6)))
        pieces = [UnitRange(0, low, high - low) for low, high in zip([0, *cuts], [*cuts, UNITS], strict=True)]
        spoken = [piece for piece in draw(st.permutations(pieces)) if draw(st.booleans())]
        other = [UnitRange(1, 0, 2)] if draw(st.booleans()) else []
        ranges = tuple(other + spoken)
        receipts.append(OneReceipt(Receipt(0, b"", b"", ranges, b"", b"", 0, b"")))
        for _, start, count, _ in spoken:
            for unit in range(start, start + count):
                if draw(st.booleans()):
                    column.state[unit], column.receipt[unit] = DONE, ordinal
    return OneBatch(column, receipts)


def unit_by_unit(ledger: OneBatch, start: int, units: int) -> Iterator[tuple[int, int | None, int]]:
    column = ledger.column(0)
    for unit in range(start, start + units):
        if column.state[unit] == OPEN:
            yield unit, None, 0
        else:
            yield unit, column.receipt[unit], position_in(ledger.receipt_list[column.receipt[unit]].body, 0, unit)


@given(ledgers(), st.integers(0, UNITS - 1), st.data())
def test_spans_say_the_same_as_looking_at_every_unit(ledger: Any, start: int, data: st.DataObject):
    units = data.draw(st.integers(1, UNITS - start))
    said = []
    for span in spans(ledger, 0, start, units):
        assert span.units > 0
        ordinal = None if span.receipt is None else ledger.receipt_list.index(span.receipt)
        for step in range(span.units):
            same = ledger.column(0).receipt[span.start + step] if ordinal is not None else None
            said.append((span.start + step, same, span.position + step if ordinal is not None else 0))
            assert span.receipt is None or ledger.receipt_list[same] == span.receipt
    assert said == list(unit_by_unit(ledger, start, units))


def test_neighbouring_ranges_of_one_receipt_are_one_span():
    column = Column(UNITS)
    column.state[:10], column.receipt[:10] = bytes([DONE]) * 10, array("I", [0] * 10)
    ranges = (UnitRange(0, 0, 4), UnitRange(0, 4, 3), UnitRange(0, 7, 3))
    ledger: Any = OneBatch(column, [OneReceipt(Receipt(0, b"", b"", ranges, b"", b"", 0, b""))])
    assert [(span.start, span.units, span.position) for span in spans(ledger, 0, 0, 12)] == [(0, 10, 0), (10, 2, 0)]
    assert column.receipt[11] == NO_RECEIPT


def test_the_digest_of_a_value_is_its_blob_id_whatever_its_size():
    for size in (0, 1, CHUNK_BYTES, CHUNK_BYTES + 1):
        assert value_digest(b"v" * size) == blob_id_of(b"v" * size)
    assert value_digest(b"v") == blake3(b"v").digest()
