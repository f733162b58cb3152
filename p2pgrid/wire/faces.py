"""What people are shown of a node, a grid and a job: reasons, pulses and pictures (docs/spec/faces.md). For the owner alone."""

from __future__ import annotations

import msgspec

from p2pgrid.wire.messages import Message


class Because(Message, frozen=True):
    """A reason, and the reasons under it. ``reason``: its code; empty for a plain fact."""

    reason: str
    text: str
    next_step: str = ""
    """What to do about it, for people; empty when there is nothing to do."""
    under: tuple[Because, ...] = ()


class ExplainRequest(Message, frozen=True):
    """``own.explain``. ``kind``: ``job``, ``unit`` (of the job ``id``), ``peer`` or ``me``."""

    kind: str
    id: bytes = b""
    unit: int = 0


class Explanation(Message, frozen=True):
    """Answer of ``own.explain``: the state in a word, a sentence, and why it is so."""

    kind: str
    id: bytes
    state: str
    text: str
    because: tuple[Because, ...] = ()
    unit: int = 0


class Pulse(Message, frozen=True):
    """How a node was at a moment. Counters only grow; a rate is the difference of two pulses."""

    wall_ms: int
    peers: int
    """Live, this node not counted."""
    running: int
    queued: int
    done: int
    """Units ended here since the start."""
    cpu_share: float
    """Of all processors of the machine, 0 to 1, by whatever runs there."""
    memory_bytes: int
    """In use on the machine; 0 where that cannot be told."""
    storage_bytes: int
    """Of what is lent, in use."""
    sent_bytes: int
    received_bytes: int
    """Of sessions with other nodes and of datagrams, since the start; encryption is not counted."""


class DhtHealth(Message, frozen=True):
    """How this node's part of the DHT is."""

    server: bool
    buckets: int
    contacts: int
    records: int
    lookups: int
    """Ended lately, of which these are the times."""
    p50_ms: float = 0.0
    p95_ms: float = 0.0


class PictureRequest(Message, frozen=True):
    """``own.picture``. ``cells``: into how many parts the units of the job are divided at most."""

    job: bytes
    cells: int = 1024


class WorkerShare(Message, frozen=True):
    """What a node does and did for a job."""

    node: bytes
    name: str
    done: int
    running: int
    """Units that it has leased now."""
    rate: float = 0.0
    """Units a second, lately."""
    oldest_s: float = 0.0
    """Since when it has had its oldest open lease."""
    live: bool = True
    note: str = ""
    """Why it takes none now: a reason code; empty while it does."""


class Straggler(Message, frozen=True):
    """A unit that takes long."""

    unit: int
    node: bytes
    age_s: float


class FailureLine(Message, frozen=True):
    """A unit that failed for good, or an attempt that did."""

    unit: int
    node: bytes
    reason: str
    text: str
    final: bool
    """False: it is tried again."""


class JobPicture(Message, frozen=True):
    """Answer of ``own.picture``: a job as ``watch`` shows it.

    ``cells`` has one letter a part of ``units_per_cell`` consecutive units: ``.`` waiting, ``r`` leased, ``d`` done, ``f``
    one failed, ``?`` disputed. What needs looking at wins within a part.
    """

    cells: str
    units_per_cell: int
    workers: tuple[WorkerShare, ...] = ()
    stragglers: tuple[Straggler, ...] = ()
    failures: tuple[FailureLine, ...] = ()
    """The newest."""
    rate: float = 0.0
    """Units a second, lately."""
    left_s: float = -1.0
    """Seconds until it ends as it goes on now; less than nothing: not known."""
    led_here: bool = True
    """False: this node does not lead it, and does not know what is leased."""
    wall_ms: int = 0
    levels: tuple[tuple[str, int, int], ...] = msgspec.field(default=())
    """(``map``, ``reduce`` or ``finish``; units; decided)."""
