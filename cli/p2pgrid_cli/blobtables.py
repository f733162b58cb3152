"""What ``blobs`` and ``why`` show of a blob: pure functions of what the node said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from p2pgrid.model.ids import short, to_text
from p2pgrid.wire.owner import BlobLine, WhyBlob
from p2pgrid_cli.common import size_text
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


def blob_document(line: BlobLine) -> dict[str, Any]:
    """A blob in ``blobs --json``."""
    return {
        "blob": to_text(line.blob),
        "name": line.name,
        "kind": line.kind or None,
        "size_bytes": line.size_bytes,
        "copies": line.copies,
        "copies_wanted": line.wanted,
        "expires_ms": line.expires_ms,
        "pinned": line.pinned,
        "put_ms": line.put_ms or None,
        "state": line.state,
    }


def why_blob_document(why: WhyBlob) -> dict[str, Any]:
    """The document of ``why BLOB --json``."""
    return {
        **blob_document(why.line),
        "copies": len(why.holders),
        "holders": [
            {"node": to_text(holder.node), "live": holder.live, "share": holder.share, "confirmed_ms": holder.confirmed_ms or None}
            for holder in why.holders
        ],
        "reasons": [{"reason": reason, "text": text} for reason, text in why.reasons],
        "short_since_ms": why.short_since_ms or None,
        "available": 1 - why.away_chance,
        "target_unavailable": why.target,
        "copies_for_target": why.copies_for_target,
        "stored_bytes": why.line.size_bytes * len(why.holders),
        "leases": [
            {"owner": to_text(lease.owner) if lease.owner else None, "expires_ms": lease.expires_ms, "copies_wanted": lease.replicas}
            for lease in why.leases
        ],
    }


def why_blob_lines(why: WhyBlob) -> list[str]:
    """What ``why BLOB`` says, line by line."""
    line = why.line
    name = f", {printable(line.name)!r}" if line.name else ""
    lines = [f"blob {to_text(line.blob)}", f"{line.kind or 'blob'}{name}, {size_text(line.size_bytes)}; here: {line.state or 'not'}"]
    lines.append(f"copies: {len(why.holders)} of {line.wanted or 'an unknown number'} wanted")
    lines += [f"  {reason}: {text}" for reason, text in why.reasons]
    if why.short_since_ms:
        lines.append(f"  too few for {span_text(why.wall_ms - why.short_since_ms)}")
    for holder in why.holders:
        seen = f", confirmed {span_text(why.wall_ms - holder.confirmed_ms)} ago" if holder.confirmed_ms else ", not confirmed yet"
        lines.append(f"  {short(holder.node)}  {'live' if holder.live else 'away'}, there {holder.share:.1%} of the time{seen}")
    lines += _formula(why)
    lines.append(f"cost: {size_text(line.size_bytes * len(why.holders))} on all holders together")
    if line.pinned:
        lines.append("pinned: kept here for good")
    for lease in why.leases:
        owner = short(lease.owner) if lease.owner else "nobody (found on the disk)"
        left = span_text(lease.expires_ms - why.wall_ms)
        lines.append(f"lease of {owner}: {left} left, copies wanted: {lease.replicas}")
    return lines


def _formula(why: WhyBlob) -> list[str]:
    """The chance that somebody who holds it is there, with its figures."""
    if not why.holders:
        return []
    product = " x ".join(f"(1 - {holder.share:.3f})" for holder in why.holders)
    return [
        f"available: 1 - {product} = {1 - why.away_chance:.6f}",
        f"  for at most {why.target:g} unavailable, as '--replicas auto' wants it: {why.copies_for_target} copies",
    ]
