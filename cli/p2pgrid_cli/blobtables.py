"""What ``blobs`` and ``why`` show of a blob: pure functions of what the node said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from rich.table import Table

from p2pgrid.model.ids import short
from p2pgrid.model.reasons import CODES
from p2pgrid.wire.faces import Because, Explanation
from p2pgrid.wire.owner import BlobLine, HolderLine, WhyBlob
from p2pgrid_cli.common import size_text
from p2pgrid_cli.documents.blobs import blob_reasons_of
from p2pgrid_cli.render import printable
from p2pgrid_cli.tables import Column, Row, table_of

COLUMNS = (
    Column("blob"),
    Column("name", 1),
    Column("kind", 4),
    Column("size", 0, "right"),
    Column("copies", 0, "right"),
    Column("kept", 2, "right"),
    Column("state", 3),
)
STEPS = ((86_400, "d"), (3600, "h"), (60, "min"))


def span_text(span_ms: int) -> str:
    """A span of time for people: one unit, rounded down."""
    for seconds, unit in STEPS:
        if span_ms >= seconds * 1000:
            return f"{span_ms // (seconds * 1000)} {unit}"
    return f"{max(0, span_ms) // 1000} s"


def blobs_table(lines: Sequence[BlobLine], width: int, wall_ms: int) -> Table:
    """The table of ``blobs``."""
    rows = []
    for line in lines:
        cells = (
            short(line.blob),
            printable(line.name) or "-",
            line.kind or "-",
            size_text(line.size_bytes),
            f"{line.copies}/{line.wanted}",
            "pinned" if line.pinned else span_text(line.expires_ms - wall_ms),
            line.state,
        )
        rows.append(Row(cells, "yellow" if line.copies < line.wanted else None))
    return table_of(COLUMNS, rows, width)


def why_blob_document(why: WhyBlob) -> dict[str, Any]:
    """The document of ``why BLOB --json``."""
    document: dict[str, Any] = msgspec.to_builtins(blob_reasons_of(why))
    return document


def why_blob_tree(why: WhyBlob) -> Explanation:
    """What ``why BLOB`` says, as a tree of reasons."""
    line = why.line
    name = f", {printable(line.name)!r}" if line.name else ""
    text = f"{line.kind or 'blob'}{name}, {size_text(line.size_bytes)}; here: {line.state or 'not'}"
    short_of = [Because(code, said, CODES[code].next_step if code in CODES else "") for code, said in why.reasons]
    if why.short_since_ms:
        short_of.append(Because("", f"too few for {span_text(why.wall_ms - why.short_since_ms)}"))
    holders = [Because("", _holder_text(why, holder)) for holder in why.holders]
    copies = f"copies: {len(why.holders)} of {line.wanted or 'an unknown number'} wanted"
    told = [Because("", copies, "", (*short_of, *holders)), *_formula(why)]
    told.append(Because("", f"cost: {size_text(line.size_bytes * len(why.holders))} on all holders together"))
    if line.pinned:
        told.append(Because("", "pinned: kept here for good"))
    for lease in why.leases:
        owner = short(lease.owner) if lease.owner else "nobody (found on the disk)"
        left = span_text(lease.expires_ms - why.wall_ms)
        told.append(Because("", f"lease of {owner}: {left} left, copies wanted: {lease.replicas}"))
    return Explanation("blob", line.blob, line.state or "elsewhere", text, tuple(told))


def _holder_text(why: WhyBlob, holder: HolderLine) -> str:
    seen = f"confirmed {span_text(why.wall_ms - holder.confirmed_ms)} ago" if holder.confirmed_ms else "not confirmed yet"
    return f"{short(holder.node)}: {'live' if holder.live else 'away'}, there {holder.share:.1%} of the time, {seen}"


def _formula(why: WhyBlob) -> list[Because]:
    """The chance that somebody who holds it is there, with its figures."""
    if not why.holders:
        return []
    product = " x ".join(f"(1 - {holder.share:.3f})" for holder in why.holders)
    wanted = f"for at most {why.target:g} unavailable, as '--replicas auto' wants it: {why.copies_for_target} copies"
    return [Because("", f"available: 1 - {product} = {1 - why.away_chance:.6f}", "", (Because("", wanted),))]
