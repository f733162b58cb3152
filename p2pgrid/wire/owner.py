"""What the owner's command line and its node say to each other (docs/spec/owner.md). Never offered to other members."""

from __future__ import annotations

import msgspec

from p2pgrid.model.node import NodeInfo
from p2pgrid.wire.messages import Message, NodeStatus


class Nothing(Message, frozen=True):
    """A request without parameters."""


class OwnStatus(Message, frozen=True):
    """``own.status``."""

    node: bytes
    name: str
    grid: str
    grid_id: bytes
    roles: tuple[str, ...]
    info: NodeInfo
    status: NodeStatus
    pid: int
    version: str
    home: str
    dht_server: bool
    dht_contacts: int
    dht_records: int
    expires_ms: int


class PeersRequest(Message, frozen=True):
    """``own.peers``. ``refresh``: look for nodes first."""

    refresh: bool = True


class PeerLine(Message, frozen=True):
    """A line of ``peers``; ``status`` None: it does not answer."""

    node: bytes
    info: NodeInfo
    status: NodeStatus | None
    rtt_s: float
    path: str


class PeersReply(Message, frozen=True):
    """Answer of ``own.peers``; ``complete`` is False for a sample."""

    peers: tuple[PeerLine, ...]
    complete: bool


class SubmitHeader(Message, frozen=True):
    """``own.submit``, a stream: the framed job, then each framed batch, then the end; answered by a framed Submitted."""

    batches: int
    follow: bool = False
    """After the answer, FollowEvents come on the same stream, as on ``own.follow`` with ``wait``."""


class Submitted(Message, frozen=True):
    """Answer within an ``own.submit`` stream: the job, or an error."""

    job: bytes
    keepers: int
    error: str = ""
    reason: str = ""
    hint: str = ""
    kind: str = ""


class JobRequest(Message, frozen=True):
    """Names a job: ``own.follow``, ``own.cancel``, ``own.job``."""

    job: bytes


class JobLine(Message, frozen=True):
    """A line of ``jobs``."""

    job: bytes
    name: str
    state: str
    units: int
    done: int
    failed: int
    disputed: int
    created_ms: int
    expires_ms: int
    role: str
    keepers: tuple[bytes, ...] = ()
    workers: dict[bytes, int] = msgspec.field(default_factory=dict)
    """Decided units per worker."""
    conflicts: int = 0
    runtime: str = ""
    final: str = "map"
    """Which units make the job's result: map (each its own), reduce or finish."""
    final_first: int = 0
    """Number of the first of these units."""
    map_units: int = 0


class JobsReply(Message, frozen=True):
    """Answer of ``own.jobs``."""

    jobs: tuple[JobLine, ...]


class FollowHeader(Message, frozen=True):
    """``own.follow``, a stream of framed FollowEvent. ``wait`` False: what is there now, then the end."""

    job: bytes
    wait: bool


class ResultSpan(Message, frozen=True):
    """Results of consecutive units in columns; ``first`` counts within the job.

    ``blobs``: (position, blob id, holders) of values that lie in blobs.
    """

    first: int
    outcomes: bytes
    values: list[msgspec.Raw]
    blobs: tuple[tuple[int, bytes, tuple[bytes, ...]], ...] = ()


class FollowEvent(Message, frozen=True):
    """News of a job: always the summary; results newly decided, each once and in any order; ``end`` is the last.

    Results are those of the job's last level, and the failures of any level.
    """

    line: JobLine
    results: tuple[ResultSpan, ...]
    running: int
    end: bool
    note: str = ""


class PutHeader(Message, frozen=True):
    """``own.put``, a stream of raw bytes to the end; answered by a framed PutReply."""

    name: str
    replicas: int
    expires_ms: int
    announce: bool


class PutReply(Message, frozen=True):
    """Answer within an ``own.put`` or ``own.get`` stream: the blob, or an error."""

    blob: bytes
    size_bytes: int
    copies: int
    error: str = ""
    reason: str = ""
    hint: str = ""
    kind: str = ""


class GetHeader(Message, frozen=True):
    """``own.get``, a stream: a framed PutReply with the size, then the raw bytes."""

    blob: bytes
    sources: tuple[bytes, ...] = ()


class CancelReply(Message, frozen=True):
    """Answer of ``own.cancel``."""

    state: str


class InviteRequest(Message, frozen=True):
    """``own.invite``."""

    roles: tuple[str, ...]
    expires_ms: int


class InviteReply(Message, frozen=True):
    """Answer of ``own.invite``: the line to hand over."""

    text: str


class EventLine(Message, frozen=True):
    """Something that happened at this node, with its reason code."""

    wall_ms: int
    reason: str
    text: str


class Snapshot(Message, frozen=True):
    """``own.snapshot``: everything ``top`` shows."""

    status: OwnStatus
    peers: tuple[PeerLine, ...]
    complete: bool
    jobs: tuple[JobLine, ...]
    events: tuple[EventLine, ...]
    wall_ms: int
    units_done: int = msgspec.field(default=0)
