"""The document of ``top``."""

from __future__ import annotations

import msgspec

from p2pgrid.model.ids import to_text
from p2pgrid.wire.faces import DhtHealth
from p2pgrid.wire.faces import Pulse as WirePulse
from p2pgrid.wire.owner import EventLine, Snapshot
from p2pgrid_cli.documents.jobs import Job, job_of
from p2pgrid_cli.documents.peers import Peer, peer_of


class Pulse(msgspec.Struct, frozen=True):
    """Each of ``pulses``. Counters only grow while the node runs; a rate is the difference of two pulses."""

    wall_ms: int
    """the clock then"""
    peers: int
    """live ones, this node not counted"""
    running: int
    """units that ran here"""
    queued: int
    """units that waited here"""
    done: int
    """units ended here since the node's start"""
    cpu_share: float
    """of all processors of the machine, 0 to 1, by whatever ran there"""
    memory_bytes: int
    """in use on the machine"""
    storage_bytes: int
    """in use of what is lent"""
    sent_bytes: int
    """to other nodes since the node's start"""
    received_bytes: int
    """from other nodes since the node's start"""


class Dht(msgspec.Struct, frozen=True):
    """What is under ``dht``."""

    server: bool
    """whether it routes for others"""
    buckets: int
    """of its table"""
    contacts: int
    """in its table"""
    records: int
    """kept for others"""
    lookups: int
    """that ended lately, of which the times are"""
    p50_ms: float
    """half of them took at most so long"""
    p95_ms: float
    """95 of 100 did"""


class Event(msgspec.Struct, frozen=True):
    """Each of ``events``."""

    wall_ms: int
    """when"""
    reason: str
    """its [reason code](reasons.md)"""
    text: str
    """what happened"""
    about: tuple[str, ...]
    """ids of the job, the node and the blob that it is about"""


class Top(msgspec.Struct, frozen=True):
    """Everything that the picture shows, once."""

    wall_ms: int
    """the node's clock"""
    node: str
    """its key"""
    name: str
    """what it calls itself"""
    grid: str
    """the name of its grid"""
    grid_id: str
    """and the id"""
    version: str
    """of p2pgrid"""
    uptime_s: float
    """since its start"""
    paused: str | None
    """why it takes no work now: a [reason code](reasons.md)"""
    reach: str
    """how others reach it, for people"""
    complete: bool
    """whether `peers` are all nodes, or a sample of a larger grid"""
    pulses: tuple[Pulse, ...]
    """the oldest first, the newest of now"""
    dht: Dht | None
    """how its part of the DHT is"""
    peers: tuple[Peer, ...]
    """as `peers` has them; what each said last"""
    jobs: tuple[Job, ...]
    """as `jobs` has them"""
    events: tuple[Event, ...]
    """the newest last"""


def _pulse_of(pulse: WirePulse) -> Pulse:
    return msgspec.convert(pulse, Pulse, from_attributes=True)


def _dht_of(health: DhtHealth) -> Dht:
    return msgspec.convert(health, Dht, from_attributes=True)


def _event_of(event: EventLine) -> Event:
    return Event(event.wall_ms, event.reason, event.text, tuple(to_text(key) for key in event.about))


def top_of(snapshot: Snapshot) -> Top:
    """The document."""
    own = snapshot.status
    return Top(
        wall_ms=snapshot.wall_ms,
        node=to_text(own.node),
        name=own.name,
        grid=own.grid,
        grid_id=to_text(own.grid_id),
        version=own.version,
        uptime_s=own.status.uptime_s,
        paused=own.status.paused or None,
        reach=snapshot.reach,
        complete=snapshot.complete,
        pulses=tuple(_pulse_of(pulse) for pulse in snapshot.pulses),
        dht=_dht_of(snapshot.dht) if snapshot.dht else None,
        peers=tuple(peer_of(line) for line in snapshot.peers),
        jobs=tuple(job_of(job) for job in snapshot.jobs),
        events=tuple(_event_of(event) for event in snapshot.events),
    )
