"""The document of ``peers``."""

from __future__ import annotations

import msgspec

from p2pgrid.model.ids import to_text
from p2pgrid.wire.owner import PeerLine, PeersReply


class Peer(msgspec.Struct, frozen=True):
    """Each of ``peers``."""

    node: str
    """its key"""
    name: str
    """what it calls itself"""
    live: bool
    """whether it answered just now"""
    self: bool
    """whether it is this node"""
    path: str
    """how it is reached: `direct`, `self`, or empty"""
    rtt_ms: float
    """smoothed round trip; 0 while unknown"""
    addresses: tuple[str, ...]
    """as `tls://192.0.2.7:7400`"""
    roles: tuple[str, ...]
    """what it says of its roles"""
    version: str
    """of p2pgrid"""
    platform: str
    """as `linux-x86_64`"""
    python: str
    """as `3.11`"""
    runtimes: tuple[str, ...]
    """which it offers"""
    cores: int
    """what it lends"""
    free_cores: int | None
    """null: it does not answer"""
    running: int | None
    """units"""
    done: int | None
    """units since its start"""
    memory_bytes: int
    """what it lends"""
    storage_bytes: int
    """what it lends"""
    storage_used_bytes: int | None
    """of that, in use"""
    paused: str | None
    """why it takes no work now: a [reason code](reasons.md)"""
    paused_since_ms: int | None
    """since when"""
    since_ms: int | None
    """since when it is connected, or was last seen when it is not; null: never met"""
    trust: str
    """what its membership lets it do here, in a word"""


class Peers(msgspec.Struct, frozen=True):
    """Who is there."""

    complete: bool
    """whether these are all nodes, or a sample of a larger grid"""
    peers: tuple[Peer, ...]
    """this node first"""


def peer_of(line: PeerLine) -> Peer:
    """A node as programs read it."""
    offer, status = line.info.offer, line.status
    return Peer(
        node=to_text(line.node),
        name=line.info.name,
        live=status is not None,
        self=line.path == "self",
        path=line.path,
        rtt_ms=round(line.rtt_s * 1000, 3),
        addresses=tuple(str(address) for address in line.info.addresses),
        roles=tuple(line.info.roles),
        version=line.info.version,
        platform=offer.platform,
        python=offer.python,
        runtimes=tuple(offer.runtimes),
        cores=offer.cores,
        free_cores=status.free_cores if status else None,
        running=status.running if status else None,
        done=status.done if status else None,
        memory_bytes=offer.memory_bytes,
        storage_bytes=offer.storage_bytes,
        storage_used_bytes=status.storage_used_bytes if status else None,
        paused=(status.paused or None) if status else None,
        paused_since_ms=(status.paused_since_ms or None) if status else None,
        since_ms=line.since_ms or None,
        trust=line.trust,
    )


def peers_of(reply: PeersReply) -> Peers:
    """The whole document."""
    return Peers(reply.complete, tuple(peer_of(line) for line in reply.peers))
