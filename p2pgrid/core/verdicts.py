"""Entries of decisions: how receipts become as few lines of a decision as they can (docs/spec/ledger.md#decisions).

1. With a quorum of one, whole runs of a receipt are decided at once.
2. With more, neighbours with the same outcome and the same witnesses are one line.
3. The root of a line is BLAKE3 over the digests of its units, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from p2pgrid.core.columns import Column
from p2pgrid.core.quorum import Answer, judge
from p2pgrid.model.ids import DIGEST_BYTES
from p2pgrid.model.work import ANSWERS, DecisionEntry, Receipt
from p2pgrid.wire.codec import digest_of


def sole_verdict(body: Receipt, column_of: Callable[[int], Column]) -> list[DecisionEntry]:
    """What one receipt decides alone: its answers for units that are open."""
    entries: list[DecisionEntry] = []
    base = 0
    for unit_range in body.ranges:
        stop = unit_range.start + unit_range.units
        for start, count in column_of(unit_range.batch).open_runs(unit_range.start, stop):
            position = base + start - unit_range.start
            entries.extend(_runs_alike(body, unit_range.batch, start, position, count))
        base += unit_range.units
    return entries


def _runs_alike(body: Receipt, batch: int, unit: int, position: int, count: int) -> list[DecisionEntry]:
    """Cut ``count`` open units from ``position`` of a receipt into runs of one outcome."""
    entries: list[DecisionEntry] = []
    stop = position + count
    while position < stop:
        outcome = body.outcomes[position]
        rest = body.outcomes[position:stop]
        same = len(rest) - len(rest.lstrip(rest[:1]))
        if outcome in ANSWERS:
            digests = body.digests[position * DIGEST_BYTES : (position + same) * DIGEST_BYTES]
            entries.append(DecisionEntry(batch, unit, same, outcome, digest_of(digests), (0,)))
        position, unit = position + same, unit + same
    return entries


class Short(NamedTuple):
    """A run of units that need ``missing`` more equal answers each. ``contested``: the answers that differ, in all."""

    batch: int
    start: int
    units: int
    missing: int
    contested: int = 0


def compared(
    runs: Iterable[tuple[int, int, int]], answers: Callable[[int, int], list[Answer]], quorum: int
) -> tuple[list[tuple[DecisionEntry, Answer]], list[int], list[Short]]:
    """What answers decide together, for runs (batch, start, units) of units about which the same was said.

    Returns entries, each with an answer that tells where its digests are, the ordinals of the receipts they
    cite, and the runs still short.
    """
    cited: dict[int, int] = {}
    entries: list[tuple[DecisionEntry, Answer]] = []
    short: list[Short] = []
    for batch, start, units in runs:
        verdict = judge(answers(batch, start), quorum)
        if verdict is None:
            continue
        if verdict.missing:
            contested = len(verdict.agree) + len(verdict.dissent) if verdict.dissent else 0
            short.append(Short(batch, start, units, verdict.missing, contested))
            continue
        agree = tuple([cited.setdefault(answer.receipt, len(cited)) for answer in verdict.agree])
        dissent = tuple([cited.setdefault(answer.receipt, len(cited)) for answer in verdict.dissent])
        entries.append((DecisionEntry(batch, start, units, verdict.outcome, b"", agree, dissent), verdict.agree[0]))
    return entries, list(cited), short


def join_entries(parts: Iterable[tuple[DecisionEntry, bytes]]) -> list[DecisionEntry]:
    """Merge neighbours decided alike, and give each line its root. Each part comes with the digests of its units."""
    joined: list[DecisionEntry] = []
    digests: list[list[bytes]] = []
    for entry, digest in parts:
        last = joined[-1] if joined else None
        follows = last is not None and (last.batch, last.start + last.units) == (entry.batch, entry.start)
        if last is not None and follows and (last.outcome, last.cited, last.dissent) == (entry.outcome, entry.cited, entry.dissent):
            joined[-1] = last._replace(units=last.units + entry.units)
            digests[-1].append(digest)
        else:
            joined.append(entry)
            digests.append([digest])
    return [entry._replace(root=digest_of(b"".join(these))) for entry, these in zip(joined, digests, strict=True)]
