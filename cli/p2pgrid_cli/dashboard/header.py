"""Who this node is, whether it works and how it is reached; and its part of the DHT."""

from __future__ import annotations

from p2pgrid.model.ids import short
from p2pgrid.model.reasons import CODES
from p2pgrid.wire.owner import OwnStatus, Snapshot
from p2pgrid_cli.dashboard.lines import Line, Part, count, cut_line, duration, ends, line_width, printable, segments, wrapped
from p2pgrid_cli.dashboard.view import View

WRAPPED_FROM = 3


def sentence_of(code: str) -> str:
    """What a reason code says; the code itself where it is a newer node's."""
    reason = CODES.get(code)
    return reason.sentence if reason else printable(code)


def working(status: OwnStatus, wall_ms: int) -> Line:
    """Whether this node works for others, in words."""
    own = status.status
    if own.paused:
        since = f" for {duration((wall_ms - own.paused_since_ms) / 1000)}" if own.paused_since_ms else ""
        return (Part(f"paused{since}", "bold warn"), Part(f": {sentence_of(own.paused)} ({printable(own.paused)})", "warn"))
    cores = status.info.offer.cores
    if not cores:
        return (Part("lends no cores", "bold"),)
    return (Part("working" if own.running else "ready", "bold good"), Part(f": {own.running} of {cores} cores busy"))


def reached(snapshot: Snapshot) -> str:
    """How others reach this node."""
    if snapshot.reach:
        return printable(snapshot.reach, 200)
    addresses = [f"{printable(address.host)}:{address.port}" for address in snapshot.status.info.addresses]
    return f"listens on {', '.join(addresses)}" if addresses else "has no address that others can dial"


def header(snapshot: Snapshot, view: View, width: int, *, lines: int = 3) -> list[Line]:
    """At most so many lines; with more than three, how the node is reached may go on in the last."""
    status, mark = snapshot.status, view.glyphs.ellipsis
    pieces: list[tuple[int, Line]] = [
        (4, (Part("p2pgrid", "dim"),)),
        (0, (Part(printable(status.name) or "-", "bold accent"),)),
        (0, (Part(short(status.node)),)),
        (1, (Part(f"in '{printable(status.grid)}'"),)),
    ]
    right = segments(
        [(0, (Part(f"up {duration(status.status.uptime_s)}"),)), (1, (Part(f"version {printable(status.version)}", "dim"),))],
        max(0, width * 2 // 5),
        ellipsis=mark,
    )
    first = ends(segments(pieces, max(0, width - line_width(right) - 2), ellipsis=mark), right, width, ellipsis=mark)
    state, reach = working(status, snapshot.wall_ms), (Part(reached(snapshot), "dim"),)
    if line_width(state) + line_width(reach) + 4 <= width:
        return [first, ends(state, reach, width)][:lines]
    places = wrapped(reached(snapshot), width) if lines > WRAPPED_FROM else (reached(snapshot),)
    below: list[Line] = [cut_line((Part(place, "dim"),), width, mark) for place in places]
    return [first, cut_line(state, width, mark), *below][:lines]


def _many(number: int, noun: str) -> str:
    return f"{count(number)} {noun}{'s' if number != 1 else ''}"


def dht_line(snapshot: Snapshot, view: View, width: int) -> Line:
    """How this node's part of the DHT is."""
    health, status = snapshot.dht, snapshot.status
    server = health.server if health else status.dht_server
    contacts = health.contacts if health else status.dht_contacts
    records = health.records if health else status.dht_records
    pieces: list[tuple[int, Line]] = [
        (0, (Part("dht", "dim"),)),
        (1, (Part("routes for others" if server else "asks only"),)),
        (0, (Part(_many(contacts, "contact"), "" if contacts or len(snapshot.peers) < 2 else "bad"),)),
    ]
    if health:
        pieces.append((4, (Part(_many(health.buckets, "bucket")),)))
    pieces.append((2, (Part(_many(records, "record")),)))
    if health and health.lookups:
        pieces.append((0, (Part(f"lookups p50 {health.p50_ms:.0f} ms, p95 {health.p95_ms:.0f} ms"),)))
        pieces.append((3, (Part(f"({count(health.lookups)} lately)", "dim"),)))
    elif health:
        pieces.append((3, (Part("no lookups lately", "dim"),)))
    return segments(pieces, width, ellipsis=view.glyphs.ellipsis)
