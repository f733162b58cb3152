"""What the machine that cares for blobs is told, and what it wants done: see :mod:`p2pgrid.core.replication`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cared:
    """This node holds a blob of which ``replicas`` copies are wanted for ``life_s`` more seconds (``expires_ms`` on the wall).

    ``fixed``: its owner wants it here. ``found``: on its own disk when it started, so that others may have copies.
    """

    blob: bytes
    size_bytes: int
    replicas: int
    expires_ms: int
    life_s: float
    fixed: bool = False
    found: bool = False


@dataclass(frozen=True, slots=True)
class Dropped:
    """It does not hold a blob any more, or nobody wants copies of it."""

    blob: bytes


@dataclass(frozen=True, slots=True)
class Heard:
    """A peer said who holds a blob: it does not itself unless it is among them. ``sure``: they acknowledged it to this node."""

    blob: bytes
    holders: tuple[bytes, ...]
    sure: bool = False
    by: bytes = b""


@dataclass(frozen=True, slots=True)
class Asked:
    """A peer asked for these blobs: it holds them."""

    peer: bytes
    blobs: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Came:
    """A session to a peer begins; ``stores``: it may be given copies. ``anew``: it was started again."""

    peer: bytes
    stores: bool
    anew: bool = False


@dataclass(frozen=True, slots=True)
class Gone:
    """A peer is lost."""

    peer: bytes


@dataclass(frozen=True, slots=True)
class Leaving:
    """A peer says that it goes."""

    peer: bytes


@dataclass(frozen=True, slots=True)
class Answered:
    """What a peer said to an :class:`Ask`: a byte a blob; which places it proved, and at which it failed to."""

    peer: bytes
    blobs: tuple[bytes, ...]
    kept: bytes
    proved: tuple[int, ...] = ()
    failed: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Silent:
    """A question found no answer. ``gone``: the peer could not be reached at all."""

    peer: bytes
    blobs: tuple[bytes, ...]
    gone: bool


@dataclass(frozen=True, slots=True)
class Copied:
    """How a :class:`Copy` ended; ``refused`` is a reason code, empty when the peer has it."""

    blob: bytes
    peer: bytes
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Tick:
    """The time has come that ``wakes_at`` said."""


Event = Cared | Dropped | Heard | Asked | Came | Gone | Leaving | Answered | Silent | Copied | Tick


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask a peer for these blobs, and for a proof at some places."""

    peer: bytes
    blobs: tuple[bytes, ...]
    until_ms: tuple[int, ...]
    prove: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy a blob to a peer."""

    blob: bytes
    peer: bytes
    expires_ms: int
    replicas: int


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell peers who holds a blob."""

    blob: bytes
    peers: tuple[bytes, ...]
    holders: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Trim:
    """Give up the leases by which others made this node a holder."""

    blob: bytes


Effect = Ask | Copy | Tell | Trim
