"""Whether a receipt or a decision is borne out by the statements it names (docs/spec/ledger.md), from their content alone.

Statements are named by their ids, so the answer is the same in every log that holds what is named: it is found once.
Nothing here is shared with the ledger that is being checked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from blake3 import blake3

from p2pgrid.model.job import Job
from p2pgrid.model.work import ANSWERS, DISAGREED, NO_INPUT, DecisionEntry, Grant, Receipt, UnitRange
from p2pgrid.testing.checkers.journal import Entry
from p2pgrid.testing.checkers.levels import Levels

DIGEST = 32


def outside_batches(ranges: Iterable[UnitRange], levels: Levels) -> str:
    """What is wrong with ranges themselves: a batch that is not there, no units, units twice."""
    sizes = levels.batch_units
    ends: list[tuple[int, int, int]] = []
    for batch, start, units, _ in ranges:
        if not (0 <= batch < len(sizes) and start >= 0 and units >= 1 and start + units <= sizes[batch]):
            return f"units {start} to {start + units - 1} of batch {batch} do not exist"
        ends.append((batch, start, start + units))
    ends.sort()
    for (batch, _, end), (other, start, _) in pairwise(ends):
        if batch == other and start < end:
            return f"unit {start} of batch {batch} is named twice"
    return "" if ends else "it names no unit"


def receipt_fault(receipt: Entry, grant: Entry | None, levels: Levels) -> str:
    """Why a receipt does not count under the grant it names; empty if it does."""
    body: Receipt = receipt.body
    if grant is None or not isinstance(grant.body, Grant):
        return "it names no grant"
    lease: Grant = grant.body
    if lease.worker != receipt.author:
        return "its grant is for somebody else"
    if lease.job != body.job:
        return "its grant is of another job"
    fault = outside_batches(body.ranges, levels)
    if fault:
        return fault
    if body.ranges != lease.ranges:
        for batch, start, units, _ in body.ranges:
            held = sum(_common(other, batch, start, start + units) for other in lease.ranges)
            if held != units:
                return f"units {start} to {start + units - 1} of batch {batch} were not all granted"
    total = sum(one.units for one in body.ranges)
    if len(body.outcomes) != total or len(body.digests) != total * DIGEST:
        return "its columns do not fit its ranges"
    if max(body.outcomes) > NO_INPUT:
        return "it tells an outcome that does not exist"
    return ""


def _common(lease: UnitRange, batch: int, start: int, stop: int) -> int:
    if lease.batch != batch:
        return 0
    return max(0, min(stop, lease.start + lease.units) - max(start, lease.start))


def said(receipt: Receipt, batch: int, start: int, units: int) -> tuple[bytes, bytes] | None:
    """The outcomes and digests that a receipt tells for consecutive units; None unless it tells all of them."""
    pieces: list[tuple[int, int, int]] = []
    base = 0
    for its_batch, its_start, its_units, _ in receipt.ranges:
        if its_batch == batch:
            low, high = max(start, its_start), min(start + units, its_start + its_units)
            if low < high:
                pieces.append((low, high, base + low - its_start))
        base += its_units
    pieces.sort()
    outcomes, digests, due = [], [], start
    for low, high, at in pieces:
        if low != due:
            return None
        outcomes.append(receipt.outcomes[at : at + high - low])
        digests.append(receipt.digests[at * DIGEST : (at + high - low) * DIGEST])
        due = high
    return (b"".join(outcomes), b"".join(digests)) if due == start + units else None


def distinct(parties: Sequence[tuple[bytes, bytes]]) -> int:
    """How many of these (key, group) can be chosen so that no two share a key or a group."""
    pairs = set(parties)
    if all(key == group for key, group in pairs):
        return len(pairs)
    groups_of: dict[bytes, list[bytes]] = {}
    for key, group in sorted(pairs):
        groups_of.setdefault(key, []).append(group)
    chosen: dict[bytes, bytes] = {}

    def place(key: bytes, tried: set[bytes]) -> bool:
        for group in groups_of[key]:
            if group not in tried:
                tried.add(group)
                if group not in chosen or place(chosen[group], tried):
                    chosen[group] = key
                    return True
        return False

    return sum(place(key, set()) for key in groups_of)


def decision_fault(decision: Entry, statements: Mapping[bytes, Entry], job: Job, levels: Levels) -> str:
    """Why a decision is not borne out by the receipts it cites; empty if it is."""
    receipts = [statements.get(known) for known in decision.body.receipts]
    if not all(receipt is not None and isinstance(receipt.body, Receipt) for receipt in receipts):
        return "it cites what is no receipt"
    for receipt in receipts:
        fault = "" if receipt is None or receipt.fault == "" else receipt_fault(receipt, statements.get(receipt.body.grant), levels)
        if fault:
            return f"it cites a receipt that does not count: {fault}"
    entries: Sequence[DecisionEntry] = decision.body.entries
    fault = outside_batches([UnitRange(entry.batch, entry.start, entry.units) for entry in entries], levels)
    if fault:
        return fault
    for entry in entries:
        named = (*entry.cited, *entry.dissent)
        if not entry.cited or min(named) < 0 or max(named) >= len(receipts) or len(set(named)) != len(named):
            return f"unit {entry.start} of batch {entry.batch} cites nothing, or somebody twice"
        cited = [receipt for place in entry.cited if (receipt := receipts[place]) is not None]
        fault = _entry_fault(entry, cited, statements, job.quorum)
        if fault:
            return f"unit {entry.start} of batch {entry.batch} (and {entry.units - 1} more): {fault}"
    return ""


def _entry_fault(entry: DecisionEntry, cited: Sequence[Entry], statements: Mapping[bytes, Entry], quorum: int) -> str:
    words = [said(receipt.body, entry.batch, entry.start, entry.units) for receipt in cited]
    told = [word for word in words if word is not None]
    if len(told) != len(words):
        return "a cited receipt does not speak of it"
    if blake3(told[0][1]).digest() != entry.root:
        return "the root is not that of the receipts' digests"
    parties = [(receipt.author, statements[receipt.body.grant].body.group) for receipt in cited]
    if entry.outcome == DISAGREED:
        return _disagreed_fault(entry.units, told, parties, quorum)
    if any(word != told[0] for word in told) or told[0][0] != bytes([entry.outcome]) * entry.units:
        return "the cited receipts do not say that, or not the same"
    if entry.outcome in ANSWERS and distinct(parties) < quorum + len(entry.dissent):
        return f"{distinct(parties)} agree, {quorum} and one for each of {len(entry.dissent)} dissenters are due"
    return ""


def _disagreed_fault(units: int, told: Sequence[tuple[bytes, bytes]], parties: Sequence[tuple[bytes, bytes]], quorum: int) -> str:
    for unit in range(units):
        sides: Counter[tuple[int, bytes]] = Counter()
        for outcomes, digests in dict(zip(parties, told, strict=True)).values():
            if outcomes[unit] in ANSWERS:
                sides[outcomes[unit], digests[unit * DIGEST : (unit + 1) * DIGEST]] += 1
        most = max(sides.values(), default=0)
        if len(sides) < 2 or most - (sides.total() - most) >= quorum:
            return "it is called disagreed, and its answers do not differ, or one of them stands"
    return ""
