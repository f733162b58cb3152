"""What makes a receipt or a line of a decision hold, as pure functions (docs/spec/ledger.md).

1. A receipt is by the worker its grant names, stays within the granted ranges, and its columns are of one length.
2. A line of a decision is borne out by every receipt it cites, from enough workers distinct by key and group.
3. A line that says ``DISAGREED`` cites answers that differ, and of which none would stand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from p2pgrid.core.columns import check_apart, columns_of, within
from p2pgrid.core.quorum import Answer, judge
from p2pgrid.errors import IntegrityError, MalformedError, RefusedError
from p2pgrid.model.ids import DIGEST_BYTES
from p2pgrid.model.reasons import Reason
from p2pgrid.model.work import ANSWERS, DISAGREED, FUEL_BYTES, NO_INPUT, DecisionEntry, Grant, Receipt, UnitRange
from p2pgrid.wire.codec import digest_of
from p2pgrid.wire.envelope import Signed

HOLDERS_MAX = 64


def check_range(unit_range: UnitRange, batch_units: Sequence[int]) -> None:
    """Raise MalformedError unless a range lies in its batch."""
    batch, start, count, _ = unit_range
    if not (0 <= batch < len(batch_units) and 0 <= start and 1 <= count and start + count <= batch_units[batch]):
        raise MalformedError("a range outside its batch", reason=Reason.MALFORMED)


def check_receipt(receipt: Signed[Receipt], grant: Signed[Grant] | None) -> int:
    """Raise unless a receipt holds under its grant. Returns how many units were granted."""
    body = receipt.body
    if grant is None or grant.body.worker != receipt.author:
        raise RefusedError("the receipt names no lease of its author", reason=Reason.NOT_GRANTED)
    if body.ranges != grant.body.ranges:
        check_apart(body.ranges)
        leased = frozenset(grant.body.ranges)
        for unit_range in body.ranges:
            if unit_range not in leased and not any(within(unit_range, outer) for outer in grant.body.ranges):
                raise RefusedError("the receipt speaks of units that were not leased", reason=Reason.NOT_GRANTED)
    total = sum(unit_range.units for unit_range in body.ranges)
    if len(body.outcomes) != total or len(body.digests) != total * DIGEST_BYTES or len(body.fuel) not in (0, total * FUEL_BYTES):
        raise MalformedError("the columns of a receipt differ in length", reason=Reason.MALFORMED)
    if max(body.outcomes) > NO_INPUT or len(body.holders) > HOLDERS_MAX or not all(0 <= file.unit < total for file in body.files):
        raise MalformedError("a receipt speaks of an outcome or a unit that does not exist", reason=Reason.MALFORMED)
    return sum(unit_range.units for unit_range in grant.body.ranges)


def check_entry(entry: DecisionEntry, receipts: Sequence[Signed[Receipt]], grants: Mapping[bytes, Signed[Grant]], quorum: int) -> None:
    """Raise IntegrityError unless the receipts that a line of a decision cites bear it out."""
    named = (*entry.cited, *entry.dissent)
    if not entry.cited or min(named) < 0 or max(named) >= len(receipts) or not 0 <= entry.outcome <= DISAGREED:
        raise IntegrityError("a decision cites nothing", reason=Reason.MALFORMED)
    agree = [receipts[ordinal] for ordinal in entry.cited]
    if entry.outcome == DISAGREED:
        _check_disagreed(entry, agree, grants, quorum)
        return
    for receipt in agree:
        outcomes, digests = columns_of(receipt.body, entry)
        if outcomes != bytes([entry.outcome]) * entry.units or digest_of(digests) != entry.root:
            raise IntegrityError("the receipts do not bear a decision out", reason=Reason.NOT_GRANTED)
    if entry.outcome not in ANSWERS:
        return
    groups = {grants[receipt.body.grant].body.group for receipt in agree}
    distinct = min(len({receipt.author for receipt in agree}), len(groups))
    if distinct < quorum + len(entry.dissent):
        raise IntegrityError("too few workers agree for a decision", reason=Reason.NOT_GRANTED)


def _check_disagreed(entry: DecisionEntry, cited: Sequence[Signed[Receipt]], grants: Mapping[bytes, Signed[Grant]], quorum: int) -> None:
    columns = [columns_of(receipt.body, entry) for receipt in cited]
    if not all(outcomes for outcomes, _ in columns) or digest_of(columns[0][1]) != entry.root:
        raise IntegrityError("the receipts do not bear a decision out", reason=Reason.NOT_GRANTED)
    groups = [grants[receipt.body.grant].body.group for receipt in cited]
    for unit in range(entry.units):
        place = slice(unit * DIGEST_BYTES, (unit + 1) * DIGEST_BYTES)
        said = zip(cited, groups, columns, strict=True)
        verdict = judge([Answer(one.author, group, outcomes[unit], digests[place], 0) for one, group, (outcomes, digests) in said], quorum)
        if verdict is None or not verdict.missing or not verdict.dissent:
            raise IntegrityError("the receipts do not disagree", reason=Reason.NOT_GRANTED)
