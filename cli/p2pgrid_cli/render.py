"""Pictures and documents: pure functions of what the node said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from rich.table import Table

from p2pgrid.model.ids import short
from p2pgrid.wire.owner import JobLine, PeerLine
from p2pgrid_cli.common import size_text
from p2pgrid_cli.dashboard.lines import NAME_CELLS, milliseconds, printable
from p2pgrid_cli.dashboard.order import peer_word
from p2pgrid_cli.documents.jobs import job_of
from p2pgrid_cli.documents.peers import peer_of
from p2pgrid_cli.tables import Column, Row, table_of

WIDE = 100
NAME_CELLS_NARROW = 20
"""Of names, where a table has less than ``WIDE`` cells: a long one must not cost its column."""
RUNTIMES_CELLS = 36
__all__ = ["job_document", "jobs_table", "paused_state", "peer_document", "peers_table", "printable"]

PEER_COLUMNS = (
    Column("node"),
    Column("name", 1),
    Column("state"),
    Column("free", 2, "right"),
    Column("cores", 0, "right"),
    Column("storage", 3, "right"),
    Column("memory", 6, "right"),
    Column("platform", 7),
    Column("rtt", 4, "right"),
    Column("trust", 5),
    Column("runs", 8),
)
JOB_COLUMNS = (
    Column("job"),
    Column("name", 1),
    Column("state"),
    Column("done", 0, "right"),
    Column("units", 0, "right"),
    Column("failed", 2, "right"),
    Column("nodes", 3, "right"),
    Column("role", 4),
)


def paused_state(line: PeerLine, now_ms: int = 0) -> str:
    """A word for how a peer is, with the reason why it takes no work now. ``now_ms``: Unix milliseconds."""
    if line.status is None:
        return peer_word(line, now_ms)
    word = "this node" if line.path == "self" else "live"
    return f"{word}, {printable(line.status.paused)}" if line.status.paused else word


def peers_table(lines: Sequence[PeerLine], width: int, now_ms: int = 0) -> Table:
    """The table of ``peers``. ``now_ms``: Unix milliseconds, for those that are away."""
    rows = []
    for line in lines:
        offer, status = line.info.offer, line.status
        used = size_text(status.storage_used_bytes) if status else "?"
        cells = (
            short(line.node),
            printable(line.info.name, NAME_CELLS if width >= WIDE else NAME_CELLS_NARROW) or "-",
            paused_state(line, now_ms),
            str(status.free_cores) if status else "-",
            str(offer.cores),
            f"{used}/{size_text(offer.storage_bytes)}",
            size_text(offer.memory_bytes),
            printable(offer.platform) or "-",
            milliseconds(line.rtt_s),
            printable(line.trust) or "-",
            printable(", ".join(offer.runtimes), RUNTIMES_CELLS) or "nothing",
        )
        rows.append(Row(cells, None if status else "dim"))
    return table_of(PEER_COLUMNS, rows, width)


def peer_document(line: PeerLine) -> dict[str, Any]:
    """A peer of ``peers --json``."""
    document: dict[str, Any] = msgspec.to_builtins(peer_of(line))
    return document


def job_document(line: JobLine) -> dict[str, Any]:
    """A job of ``jobs --json``."""
    document: dict[str, Any] = msgspec.to_builtins(job_of(line))
    return document


def jobs_table(lines: Sequence[JobLine], width: int) -> Table:
    """The table of ``jobs``."""
    rows = []
    for line in lines:
        nodes = str(len(line.workers)) if line.workers else "-"
        counts = (str(line.done), str(line.units), str(line.failed), nodes)
        rows.append(Row((short(line.job), printable(line.name), line.state, *counts, line.role or "-")))
    return table_of(JOB_COLUMNS, rows, width)
