"""Which rows there are and in which order, and the word for how each is. Cheap for a thousand peers: nothing is drawn here."""

from __future__ import annotations

from collections.abc import Callable

from p2pgrid.model.ids import short
from p2pgrid.wire.owner import JobLine, PeerLine, Snapshot

SORTS = ("name", "spare", "running", "done", "rtt", "since")
LOST_S = 120.0
"""So long a peer that went is said not to answer; later it is away."""
LOST = ("no answer", "away")
"""Words of peers that are not live."""
ENDED = ("done", "failed", "cancelled")


def is_live(line: PeerLine) -> bool:
    """Whether it answers, or is connected and was not asked yet."""
    return line.status is not None or (bool(line.path) and not line.status_ms)


def live_peers(snapshot: Snapshot) -> int:
    """Nodes that are live, this one counted."""
    return sum(map(is_live, snapshot.peers))


def peer_word(line: PeerLine, wall_ms: int) -> str:
    """How a peer is, in a word or two."""
    if line.status is not None:
        if line.status.paused:
            return "paused"
        return "this node" if line.path == "self" else "live"
    if line.path and not line.status_ms:
        return "connected"
    if line.path or not line.since_ms or wall_ms - line.since_ms < LOST_S * 1000:
        return "no answer"
    return "away"


LAST = chr(0x10FFFF)


def _nothing(line: PeerLine) -> float:
    return 0.0


def _spare(line: PeerLine) -> float:
    return -(line.status.free_cores if line.status else -1)


def _running(line: PeerLine) -> float:
    return -(line.status.running if line.status else -1)


def _done(line: PeerLine) -> float:
    return -(line.status.done if line.status else -1)


def _rtt(line: PeerLine) -> float:
    return line.rtt_s if line.status and line.rtt_s > 0 else float("inf")


def _since(line: PeerLine) -> float:
    return line.since_ms or float("inf")


KEYS: dict[str, Callable[[PeerLine], float]] = {"spare": _spare, "running": _running, "done": _done, "rtt": _rtt, "since": _since}


def peers_shown(snapshot: Snapshot, sort: str, text: str = "") -> list[PeerLine]:
    """The peers that match, this node first."""
    lines = [line for line in snapshot.peers if matches_peer(line, text.casefold(), snapshot.wall_ms)] if text else list(snapshot.peers)
    key = KEYS.get(sort, _nothing)
    # Nodes that say no name come after those that do.
    lines.sort(key=lambda line: (line.path != "self", key(line), line.info.name.casefold() or LAST, line.node))
    return lines


def matches_peer(line: PeerLine, text: str, wall_ms: int) -> bool:
    """Whether the folded text occurs in what a row says."""
    paused = line.status.paused if line.status else ""
    said = (line.info.name, short(line.node), line.info.offer.platform, peer_word(line, wall_ms), paused, line.trust, line.nat, line.path)
    return any(text in word.casefold() for word in said)


def jobs_shown(snapshot: Snapshot, text: str = "") -> list[JobLine]:
    """The jobs that match: those that go on first, then the newest."""
    folded = text.casefold()
    found = [job for job in snapshot.jobs if not text or matches_job(job, folded)]
    return sorted(found, key=lambda job: (job.state in ENDED, -job.created_ms))


def matches_job(job: JobLine, text: str) -> bool:
    """Whether the folded text occurs in what a row says."""
    return any(text in word.casefold() for word in (job.name, short(job.job), job.state, job.runtime))
