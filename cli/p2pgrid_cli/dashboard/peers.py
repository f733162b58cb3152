"""The table of peers. Only the rows that are seen are made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from p2pgrid.model.ids import short
from p2pgrid.wire.owner import PeerLine, Snapshot
from p2pgrid_cli.common import size_text
from p2pgrid_cli.dashboard.columns import Cell, Column, Table, table
from p2pgrid_cli.dashboard.lines import Glyphs, bar, count, duration, milliseconds, printable
from p2pgrid_cli.dashboard.order import LOST, peer_word
from p2pgrid_cli.dashboard.view import View

STYLES = {"this node": "good", "live": "good", "connected": "", "paused": "warn", "no answer": "bad", "away": "dim"}
BAR, SHORT_BAR = 10, 4
COLUMNS = (
    Column("name", least=8, cut_to=10, comfort=16),
    Column("id", rank=6, least=8),
    Column("state", least=9, most=26),
    Column("platform", rank=8, least=12, most=20),
    Column("spare CPU", rank=1, least=9),
    Column("spare storage", "spare disk", rank=2, least=12),
    Column("running", "run", rank=3, least=3, right=True),
    Column("done", rank=4, least=5, right=True),
    Column("path", "rtt", rank=5, least=7, right=True, most=24),
    Column("trust", rank=7, least=6, most=12),
    Column("since", rank=9, least=6, right=True),
)
NAT = Column("NAT", rank=10, least=4, most=16)
FAVOURS = Column("favours", rank=11, least=7, right=True)


def peers_table(lines: Sequence[PeerLine], snapshot: Snapshot, view: View, width: int, *, first_name: str = "") -> Table:
    """The rows of these peers. Columns for NAT class and favours are there when any peer of the snapshot has one."""
    nat = any(line.nat for line in snapshot.peers)
    favours = any(line.favours for line in snapshot.peers)
    columns = [*COLUMNS, *([NAT] if nat else []), *([FAVOURS] if favours else [])]
    rows = []
    for line in lines:
        cells = _cells(line, snapshot.wall_ms, view.glyphs)
        cells += [Cell(printable(line.nat) or "-")] if nat else []
        cells += [Cell(f"{line.favours:+.1f}" if line.favours else "-")] if favours else []
        rows.append(cells)
    return table(columns, rows, width, view.glyphs, first_name=first_name)


def _cells(line: PeerLine, wall_ms: int, glyphs: Glyphs) -> list[Cell]:
    offer, status = line.info.offer, line.status
    faint = "" if status else "dim"
    head = [
        Cell(printable(line.info.name) or "-", "bold" if line.path == "self" else faint),
        Cell(short(line.node), "dim"),
        _state(line, wall_ms),
        Cell(printable(offer.platform) or "-", "dim"),
    ]
    since = duration((wall_ms - line.since_ms) / 1000) if line.since_ms else "-"
    tail = [Cell(printable(line.trust) or "-", faint), Cell(since, faint)]
    if status is None:
        path = _path(line) if line.path else Cell("-", "dim")
        return [*head, *(Cell("-", "dim") for _ in range(4)), path, *tail]
    spare_bytes = max(0, offer.storage_bytes - status.storage_used_bytes)
    return [
        *head,
        _spare(status.free_cores, offer.cores, f"{status.free_cores}/{offer.cores}", glyphs),
        _spare(spare_bytes, offer.storage_bytes, size_text(spare_bytes), glyphs),
        Cell(count(status.running)),
        Cell(count(status.done)),
        _path(line),
        *tail,
    ]


def _state(line: PeerLine, wall_ms: int) -> Cell:
    word = peer_word(line, wall_ms)
    if word == "paused" and line.status is not None:
        return Cell(f"paused, {printable(line.status.paused)}", STYLES[word], word)
    return Cell(word, STYLES[word])


def _spare(spare: float, total: float, text: str, glyphs: Glyphs) -> Cell:
    if not total:
        return Cell("none", "dim")
    share = spare / total
    return Cell(f"{bar(share, BAR, glyphs)} {text}", short=f"{bar(share, SHORT_BAR, glyphs)} {text}")


def _path(line: PeerLine) -> Cell:
    if line.path == "self":
        return Cell("-", "dim")
    rtt = milliseconds(line.rtt_s)
    return Cell(f"{printable(line.path)} {rtt}" if line.path else rtt, short=rtt)


def peers_title(snapshot: Snapshot) -> str:
    """How many there are, and how many of these are not as they should be."""
    words = Counter(peer_word(line, snapshot.wall_ms) for line in snapshot.peers)
    live = sum(count for word, count in words.items() if word not in LOST)
    parts = [f"peers {live}/{len(snapshot.peers)} live"]
    parts += [f"{words[word]} {word}" for word in ("no answer", "paused", "away") if words[word]]
    return ", ".join(parts) + ("" if snapshot.complete else " (a sample)")
