"""The seam between p2pgrid and a network: what every transport offers (docs/spec/transport.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from p2pgrid.model.ids import NodeKey
from p2pgrid.model.node import Address


class Path(NamedTuple):
    """How a connection reaches its peer: ``kind`` is direct, relayed or simulated; ``rtt_s`` the smoothed round trip."""

    kind: str
    rtt_s: float


class Stream(Protocol):
    """An ordered, reliable stream of bytes in both directions.

    There is one reader. A read is never cancelled: it ends with data, with the end of the stream
    (``b""``), or with UnreachableError because the stream was reset or the connection ended.
    """

    def write_nowait(self, data: bytes, *, flush: bool = False) -> None:
        """Queue bytes without waiting; small writes of one loop tick leave in one segment.

        ``flush`` sends now: the caller has gathered a tick's worth itself. Raises UnreachableError
        when the stream has ended.
        """

    async def write(self, data: bytes) -> None:
        """Queue bytes and wait while more than a window is unsent. Raises UnreachableError."""

    def unsent(self) -> int:
        """Bytes queued here that have not been handed to the network yet."""

    async def drain(self) -> None:
        """Wait until at most a window is unsent. Raises UnreachableError."""

    async def read(self, size_max: int) -> bytes:
        """The next 1..size_max bytes, or ``b""`` when the peer has finished."""

    def finish(self) -> None:
        """No more bytes from this side; the peer reads to the end and then sees ``b""``."""

    def reset(self, reason: str) -> None:
        """Give the stream up in both directions at once. Harmless when it has ended."""


class Connection(Protocol):
    """A live, encrypted connection to one authenticated peer."""

    peer: NodeKey
    """The key the peer proved to hold."""
    dialled: bool
    """Whether this side opened it."""
    sent_bytes: int
    """What was handed to the network so far, encryption not counted."""
    received_bytes: int
    """What came from it, likewise."""

    async def open(self) -> Stream:
        """A fresh stream; waits while as many as allowed are open. Raises UnreachableError.

        Whoever opens a stream ends its own side with ``finish`` or ``reset``.
        """

    async def accept_stream(self) -> Stream:
        """The next stream the peer opened. Raises UnreachableError when the connection ends."""

    def trust(self) -> None:
        """The peer has shown a valid membership: the tight limits for strangers no longer apply."""

    def streams_open(self) -> int:
        """How many streams have not ended."""

    def path(self) -> Path:
        """How the peer is reached."""

    def close(self, reason: str) -> None:
        """Close at once; queued bytes are still sent if the peer takes them soon. Idempotent."""

    async def wait_closed(self) -> str:
        """Wait until the connection has ended; returns the reason code."""


class Transport(Protocol):
    """One way of reaching nodes by key."""

    kind: str

    async def start(self) -> None:
        """Begin to accept. Raises ConfigError when the address cannot be used."""

    def addresses(self) -> Sequence[Address]:
        """Where this node can be dialled."""

    async def dial(self, peer: NodeKey, addresses: Sequence[Address], timeout_s: float) -> Connection:
        """Connect to the node with exactly this key.

        Raises UnreachableError (nobody there, or too slow) or IntegrityError (somebody else there).
        """

    async def accept(self) -> Connection:
        """The next connection a peer opened. Raises UnreachableError after close()."""

    async def close(self) -> None:
        """Stop accepting and close every connection. Bounded in time."""


Clock = Callable[[], float]
"""Monotonic seconds. The event loop's own clock in a node, virtual time in a simulation."""
WallClock = Callable[[], int]
"""Unix milliseconds."""
