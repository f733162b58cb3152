"""Pictures and documents: pure functions of what the node said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from p2pgrid.model.ids import short, to_text
from p2pgrid.wire.owner import JobLine, PeerLine, Snapshot
from p2pgrid_cli.common import size_text
from p2pgrid_cli.tables import Column, Row, table_of

EVENTS_SHOWN = 6
JOBS_SHOWN = 10
PEERS_SHOWN = 30
NAME_CHARS = 40

PEER_COLUMNS = (
    Column("node"),
    Column("name", 2),
    Column("state"),
    Column("free", 1, "right"),
    Column("cores", 0, "right"),
    Column("storage", 3, "right"),
    Column("memory", 6, "right"),
    Column("platform", 5),
    Column("rtt", 4, "right"),
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
LIVE_JOB_COLUMNS = (
    Column("job"),
    Column("name", 2),
    Column("state"),
    Column("progress"),
    Column("units", 1, "right"),
    Column("failed", 3, "right"),
    Column("disputed", 4, "right"),
)


def printable(text: str, chars_max: int = NAME_CHARS) -> str:
    """What others call themselves, in one short line: control characters must not reach a terminal."""
    plain = "".join(char if char.isprintable() else "?" for char in text)
    return plain if len(plain) <= chars_max else plain[: chars_max - 1] + "…"


def peer_state(line: PeerLine) -> str:
    """A word for how a peer is."""
    if line.path == "self":
        return "this node"
    return "live" if line.status is not None else "no answer"


def paused_state(line: PeerLine) -> str:
    """As :func:`peer_state`, with the reason why a node takes no work now."""
    paused = line.status.paused if line.status is not None else ""
    return f"{peer_state(line)}, {printable(paused)}" if paused else peer_state(line)


def peers_table(lines: Sequence[PeerLine], width: int) -> Table:
    """The table of ``peers``."""
    rows = []
    for line in lines:
        offer, status = line.info.offer, line.status
        used = status.storage_used_bytes if status else 0
        cells = (
            short(line.node),
            printable(line.info.name) or "-",
            paused_state(line),
            str(status.free_cores) if status else "-",
            str(offer.cores),
            f"{size_text(used)}/{size_text(offer.storage_bytes)}",
            size_text(offer.memory_bytes),
            printable(offer.platform) or "-",
            f"{line.rtt_s * 1000:.1f} ms" if line.rtt_s else "-",
        )
        rows.append(Row(cells, None if status else "dim"))
    return table_of(PEER_COLUMNS, rows, width)


def peer_document(line: PeerLine) -> dict[str, Any]:
    """A peer of ``peers --json``."""
    offer, status = line.info.offer, line.status
    return {
        "node": to_text(line.node),
        "name": line.info.name,
        "live": status is not None,
        "self": line.path == "self",
        "path": line.path,
        "rtt_ms": round(line.rtt_s * 1000, 3),
        "addresses": [str(address) for address in line.info.addresses],
        "roles": list(line.info.roles),
        "version": line.info.version,
        "platform": offer.platform,
        "python": offer.python,
        "runtimes": list(offer.runtimes),
        "cores": offer.cores,
        "free_cores": status.free_cores if status else None,
        "running": status.running if status else None,
        "done": status.done if status else None,
        "memory_bytes": offer.memory_bytes,
        "storage_bytes": offer.storage_bytes,
        "storage_used_bytes": status.storage_used_bytes if status else None,
        "paused": status.paused or None if status else None,
        "paused_since_ms": status.paused_since_ms or None if status else None,
    }


def jobs_table(lines: Sequence[JobLine], width: int) -> Table:
    """The table of ``jobs``."""
    rows = []
    for line in lines:
        nodes = str(len(line.workers)) if line.workers else "-"
        counts = (str(line.done), str(line.units), str(line.failed), nodes)
        rows.append(Row((short(line.job), printable(line.name), line.state, *counts, line.role or "-")))
    return table_of(JOB_COLUMNS, rows, width)


def job_document(line: JobLine) -> dict[str, Any]:
    """A job of ``jobs --json``."""
    return {
        "job": to_text(line.job),
        "name": line.name,
        "state": line.state,
        "role": line.role,
        "runtime": line.runtime,
        "units": line.units,
        "done": line.done,
        "failed": line.failed,
        "disputed": line.disputed,
        "conflicts": line.conflicts,
        "created_ms": line.created_ms,
        "expires_ms": line.expires_ms,
        "lead": to_text(line.lead) if line.lead else "",
        "keepers": [to_text(keeper) for keeper in line.keepers],
        "units_per_node": {to_text(node): units for node, units in line.workers.items()},
    }


def bar(share: float, width: int = 10) -> str:
    """A share of 0 to 1 as a bar of characters."""
    full = round(max(0.0, min(1.0, share)) * width)
    return "#" * full + "." * (width - full)


def dashboard(snapshot: Snapshot, width: int) -> RenderableType:
    """The picture of ``top``."""
    status = snapshot.status
    own = status.status
    live = sum(peer.status is not None for peer in snapshot.peers)
    head = Text()
    head.append("p2pgrid ", style="bold")
    names = f"{printable(status.name)} in '{printable(status.grid)}'"
    head.append(f"{short(status.node)} {names}, up {_duration(own.uptime_s)}, version {status.version}")
    addresses = ", ".join(f"{address.host}:{address.port}" for address in status.info.addresses)
    role = "server" if status.dht_server else "client"
    known = "" if snapshot.complete else " (a sample)"
    pulse = (
        f"peers {live}/{len(snapshot.peers)}{known}  cores {own.running}/{status.info.offer.cores} busy  "
        f"queued {own.queued}  done {own.done}  storage {size_text(own.storage_used_bytes)}/{size_text(status.info.offer.storage_bytes)}"
    )
    dht = f"dht {role}, {status.dht_contacts} contacts, {status.dht_records} records; reachable at {addresses}"
    parts: list[RenderableType] = [head, Text(pulse), Text(dht, style="dim"), Text()]
    parts += [peers_table(snapshot.peers[:PEERS_SHOWN], width), Text()]
    parts += [_live_jobs(snapshot.jobs[:JOBS_SHOWN], width), Text()]
    for event in snapshot.events[-EVENTS_SHOWN:]:
        ago = (snapshot.wall_ms - event.wall_ms) / 1000
        parts.append(Text(f"{_duration(ago):>6} ago  {event.reason}: {printable(event.text, width)}", no_wrap=True, overflow="ellipsis"))
    return Group(*parts)


def _live_jobs(lines: Sequence[JobLine], width: int) -> RenderableType:
    if not lines:
        return Text("no jobs: p2pgrid run SCRIPT.py", style="dim")
    rows = []
    for line in lines:
        share = (line.done + line.failed) / line.units if line.units else 0.0
        counts = (str(line.units), str(line.failed), str(line.disputed))
        rows.append(Row((short(line.job), printable(line.name, 24), line.state, f"{bar(share)} {share:4.0%}", *counts)))
    return table_of(LIVE_JOB_COLUMNS, rows, width)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"
