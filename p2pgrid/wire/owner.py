"""What the owner's command line and its node say to each other (docs/spec/owner.md). Never offered to other members."""

from __future__ import annotations

import msgspec

from p2pgrid.model.node import NodeInfo
from p2pgrid.wire.faces import DhtHealth, Pulse
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


class RunnerRequest(Message, frozen=True):
    """Of ``own.runner``. ``have``: answer when the runner is on this node, or refuse; else say at once what is named."""

    have: bool = True


class RunnerReply(Message, frozen=True):
    """Answer of ``own.runner``: the grid's Python runner; empty when none is named and nobody asked for more."""

    runner: bytes


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
    since_ms: int = 0
    """Since when it is connected, or was last seen when it is not; 0: never met."""
    trust: str = ""
    """What its membership lets it do here, in a word."""
    nat: str = ""
    favours: float = 0.0
    status_ms: int = 0
    """When it told its status; with a session and 0: it was not asked yet."""


class PeersReply(Message, frozen=True):
    """Answer of ``own.peers``; ``complete`` is False for a sample."""

    peers: tuple[PeerLine, ...]
    complete: bool


class SubmitHeader(Message, frozen=True):
    """``own.submit``, a stream: the framed job, then each framed batch, then the end; answered by a framed Submitted."""

    batches: int
    follow: bool = False
    """After the answer, FollowEvents come on the same stream, as on ``own.follow`` with ``wait``."""
    detach: bool = False
    """Answer only when the keepers have the whole job, its code and input files."""


class Submitted(Message, frozen=True):
    """Answer within an ``own.submit`` stream: the job, or an error. ``keepers``: after ``detach``, those who have all of it."""

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
    lead: bytes = b""
    """The node that leads it, as far as is known here."""
    rate: float = 0.0
    """Units decided a second, lately; 0 where this node does not lead it."""
    left_s: float = -1.0
    """Seconds until it ends as it goes on now; less than nothing: not known."""


class JobsReply(Message, frozen=True):
    """Answer of ``own.jobs``."""

    jobs: tuple[JobLine, ...]


class FollowHeader(Message, frozen=True):
    """``own.follow``, a stream of framed FollowEvent. ``wait`` False: what is there now, then the end."""

    job: bytes
    wait: bool
    values: bool = True
    """False: the events come without results."""


class ResultSpan(Message, frozen=True):
    """Results of consecutive units in columns; ``first`` counts within the job.

    ``blobs``: (position, blob id, holders) of values that lie in blobs.
    """

    first: int
    outcomes: bytes
    values: list[msgspec.Raw]
    blobs: tuple[tuple[int, bytes, tuple[bytes, ...]], ...] = ()
    fuel: bytes = b""
    """As in the receipt: 8 bytes little-endian a unit, or empty."""


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
    """``own.put``, a stream: the framed root follows (empty for one chunk), then the chunks that the first FileReply asks for.

    Each chunk goes with its number and its size (4 bytes each). FileReplies with news come until one is the last.
    """

    name: str
    replicas: int
    """Copies wanted in all, this node's included; 0: as many as the availability of the peers asks for."""
    expires_ms: int
    announce: bool
    blob: bytes = b""
    size_bytes: int = 0
    place: bytes = b""
    """Blobs with the same one are copied to the same nodes as far as these take them; empty: the blob's own."""
    listed: bool = False
    """Remember it, with its name, as something that the owner put here."""
    path: str = ""
    """Where the content lies on this machine, if it does: what can be read there need not be sent."""


class FileReply(Message, frozen=True):
    """Within ``own.put``, ``own.get`` and ``own.pin`` streams: how far it is, what is wanted, or an error."""

    blob: bytes
    size_bytes: int
    copies: int
    error: str = ""
    reason: str = ""
    hint: str = ""
    kind: str = ""
    last: bool = True
    wanted: int = 0
    """Copies wanted in all."""
    asks: bool = False
    """``missing`` is what is to be sent now."""
    missing: tuple[tuple[int, int], ...] = ()
    """(first, count) of chunks."""
    root: bytes = b""
    """The encoded root; empty for a blob of one chunk."""
    head: bytes = b""
    """The first bytes of the content, which tell a folder."""
    name: str = ""
    """What it was called when it was put here."""
    done_bytes: int = 0
    """Of what is being done now, where it can be told."""
    path: str = ""
    """Where the content lies on this machine: what can be read there need not be asked for."""


class GetHeader(Message, frozen=True):
    """``own.get``, a stream: FileReplies, of which the last that is no error says what the blob is.

    The caller answers with a framed GetFrom, and the chunks follow as in ``own.put``; instead of one, its number being all
    ones, a framed FileReply tells why there are no more.
    """

    blob: bytes
    sources: tuple[bytes, ...] = ()
    folder: bytes = b""
    """The folder that the blob was found in: its holders are asked too."""


class GetFrom(Message, frozen=True):
    """Within ``own.get``: chunks from ``first`` on are wanted."""

    first: int


class PinHeader(Message, frozen=True):
    """``own.pin``, a stream of FileReplies: keep a blob here, and if it is a folder all its files, for good; or no longer."""

    blob: bytes
    keep: bool


class BlobsRequest(Message, frozen=True):
    """``own.blobs``. ``all``: what lies here for others too, a page of it behind the id ``after``."""

    all: bool = False
    after: bytes = b""


class BlobLine(Message, frozen=True):
    """A line of ``blobs``."""

    blob: bytes
    name: str
    kind: str
    """``file``, ``folder``, or empty for what the owner did not put or pin here."""
    size_bytes: int
    """Of a folder: of all its files."""
    copies: int
    """Confirmed, as far as this node knows."""
    wanted: int
    expires_ms: int
    pinned: bool
    put_ms: int
    state: str
    """``held``, ``partial``, ``damaged``, or ``gone``."""
    owners: tuple[bytes, ...] = ()
    """Whose leases keep it here."""


class BlobsReply(Message, frozen=True):
    """Answer of ``own.blobs``; ``more``: there is another page behind the last line."""

    lines: tuple[BlobLine, ...]
    more: bool = False


class WhyRequest(Message, frozen=True):
    """``own.why``: 32 bytes that may name a blob."""

    id: bytes


class HolderLine(Message, frozen=True):
    """A node that holds a copy, as far as is known. ``share``: the part of the time that it is there, as measured."""

    node: bytes
    live: bool
    share: float
    confirmed_ms: int = 0
    """When it last proved to have the blob; 0: not yet."""


class LeaseLine(Message, frozen=True):
    """Who wants a blob kept here, until when, and with how many copies in the grid."""

    owner: bytes
    expires_ms: int
    replicas: int


class WhyBlob(Message, frozen=True):
    """Answer of ``own.why``: what this node knows of a blob; without it here or elsewhere ``state`` is empty."""

    line: BlobLine
    state: str
    holders: tuple[HolderLine, ...] = ()
    leases: tuple[LeaseLine, ...] = ()
    reasons: tuple[tuple[str, str], ...] = ()
    """(reason code, sentence) why there are fewer copies than wanted."""
    short_since_ms: int = 0
    away_chance: float = 0.0
    """That all holders are away at a moment: the product of 1 - share."""
    target: float = 0.0
    copies_for_target: int = 0
    """As many as ``--replicas auto`` would make now."""
    wall_ms: int = 0


class PauseRequest(Message, frozen=True):
    """``own.pause``: answered with OwnPause when no unit runs any more. ``seconds``: for how long; 0: until ``own.resume``."""

    seconds: float = 0.0


class OwnPause(Message, frozen=True):
    """Answer of ``own.pause``, ``own.resume`` and ``own.finish``: whether this node works for others, and if not, why."""

    state: str
    """``running``, ``paused`` or ``finishing``."""
    reason: str = ""
    sentence: str = ""
    since_ms: int = 0
    until_ms: int = 0
    """When it ends by itself; 0: that is not known."""
    ends: str = ""
    """What ends it, for people."""
    wall_ms: int = 0


class RuntimeLine(Message, frozen=True):
    """A runtime, and whether this node offers it to others."""

    runtime: str
    offered: bool
    level: str = ""
    """How its units are confined."""
    sentence: str = ""
    """Why not."""
    reason: str = ""
    """The code of it; empty where the owner wants it so."""


class WhyMe(Message, frozen=True):
    """Answer of ``own.me``: what this node does for others now, and why not more."""

    pause: OwnPause
    running: int
    queued: int
    cores: int
    submitter: bytes
    """The key that signs the jobs of this home, as others would list it."""
    runtimes: tuple[RuntimeLine, ...] = ()
    terms: tuple[tuple[str, str], ...] = ()
    """The owner's terms that differ from the default: (name, what it is set to)."""


class CancelReply(Message, frozen=True):
    """Answer of ``own.cancel``; ``told``: other nodes that lead or keep the job and have heard it."""

    state: str
    told: int = 0


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
    about: tuple[bytes, ...] = ()
    """Ids of the job, the node and the blob that it is about, as far as it is about one."""


class SnapshotRequest(Message, frozen=True):
    """``own.snapshot``. ``refresh``: look for nodes and ask them all first."""

    refresh: bool = False
    have: int = 0
    """Number of the last snapshot of this session: only what has changed since is wanted of the peers; 0: all of them."""


class Snapshot(Message, frozen=True):
    """``own.snapshot``: everything ``top`` shows."""

    status: OwnStatus
    peers: tuple[PeerLine, ...]
    complete: bool
    jobs: tuple[JobLine, ...]
    events: tuple[EventLine, ...]
    wall_ms: int
    units_done: int = msgspec.field(default=0)
    pulses: tuple[Pulse, ...] = ()
    """The oldest first, the newest is of now."""
    dht: DhtHealth | None = None
    reach: str = ""
    """How others reach this node, in words."""
    number: int = 0
    """Of the snapshots of this session."""
    since: int = 0
    """0: ``peers`` are all that are known; else those that are new or have changed since the snapshot with this number."""
    gone: tuple[bytes, ...] = ()
    """Node keys that are no longer known since then."""
