"""Connections inside one process: for tests and for simulating whole grids.

The same stream layer runs as over TLS, so that what is tested here is what runs there. Time is the
loop's; under a loop with a virtual clock a grid of hundreds of nodes is deterministic.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Sequence

from p2pgrid.errors import ConfigError, UnreachableError
from p2pgrid.model.ids import NodeKey, short
from p2pgrid.model.limits import DEFAULT_LIMITS, Limits
from p2pgrid.model.node import Address
from p2pgrid.model.reasons import Reason
from p2pgrid.net.connection import MuxConnection
from p2pgrid.net.inbox import Inbox
from p2pgrid.net.streams import Bytes

MEMORY_KIND = "memory"


class _MemoryPipe:
    """One direction-pair's end: bytes sent here arrive at ``other`` in order, after the network's latency."""

    path_kind = "simulated"

    def __init__(self, transport: MemoryTransport, peer: NodeKey) -> None:
        self._transport = transport
        self._network = transport.network
        self._loop = asyncio.get_running_loop()
        self._flying: deque[bytes | None] = deque()
        self._arrives_at = 0.0
        self._shut = False
        self._stranger = False
        self.peer = peer
        self.other: _MemoryPipe | None = None
        self.connection: MuxConnection | None = None

    def is_full(self) -> bool:
        """Never: the windows of the streams are the bound."""
        return False

    def send(self, chunks: list[Bytes]) -> None:
        """Put bytes in the air."""
        if not self._shut and chunks:
            self._fly(b"".join(chunks))

    def shut(self) -> None:
        """End the pipe once the peer has what is in the air."""
        if not self._shut:
            self._fly(None)
            self._shut = True
            self._forget()

    def trusted(self) -> None:
        """Give up the place among the strangers."""
        if self._stranger:
            self._stranger = False
            self._transport.strangers -= 1

    def mark_stranger(self) -> None:
        """Take a place among the strangers."""
        self._stranger = True
        self._transport.strangers += 1

    def vanish(self) -> None:
        """Stop without a word, as a machine that lost its power."""
        self._shut = True
        self._flying.clear()
        self._forget()

    def arrive(self) -> None:
        """Deliver everything in the air, unless the network is cut: then it waits for the cut to heal."""
        while self._flying and not self._network.is_cut(self._transport.key, self.peer):
            self._arrive_one()

    def _arrive_one(self) -> None:
        if not self._flying or self._network.is_cut(self._transport.key, self.peer):
            return
        data = self._flying.popleft()
        other = self.other
        if other is None or other.connection is None or other._shut:
            return
        if data is None:
            other._shut = True
            other._forget()
            other.connection.lost(Reason.CLOSED)
        else:
            other.connection.feed(data)

    def _fly(self, data: bytes | None) -> None:
        self._flying.append(data)
        delay_s = self._network.delay_s(self._transport.key, self.peer)
        if delay_s <= 0.0:
            self._loop.call_soon(self._arrive_one)
            return
        self._arrives_at = max(self._arrives_at, self._loop.time() + delay_s)
        self._loop.call_at(self._arrives_at, self._arrive_one)

    def _forget(self) -> None:
        self.trusted()
        self._transport.pipes.pop(self, None)


class MemoryNetwork:
    """The air between transports of one process, with a switch for each fault."""

    def __init__(self, rng: random.Random, *, latency_s: float = 0.0, jitter_s: float = 0.0) -> None:
        """``latency_s``: one way; ``jitter_s``: up to this much more, drawn from ``rng``. Order is kept."""
        self._rng = rng
        self.latency_s = latency_s
        self.jitter_s = jitter_s
        self.transports: dict[NodeKey, MemoryTransport] = {}
        self._cuts: set[frozenset[NodeKey]] = set()

    def cut(self, one: NodeKey, other: NodeKey) -> None:
        """Let nothing pass between two nodes; what is under way waits."""
        self._cuts.add(frozenset((one, other)))

    def heal(self, one: NodeKey, other: NodeKey) -> None:
        """Undo a cut, and deliver what waited."""
        self._cuts.discard(frozenset((one, other)))
        for key, peer in ((one, other), (other, one)):
            transport = self.transports.get(key)
            for pipe in list(transport.pipes) if transport else ():
                if pipe.peer == peer:
                    pipe.arrive()

    def kill(self, key: NodeKey) -> None:
        """The node's machine loses its power: nobody hears a goodbye, and dialling it fails."""
        transport = self.transports.pop(key, None)
        if transport is not None:
            for pipe in list(transport.pipes):
                pipe.vanish()

    def is_cut(self, one: NodeKey, other: NodeKey) -> bool:
        """Whether nothing passes between the two."""
        return bool(self._cuts) and frozenset((one, other)) in self._cuts

    def delay_s(self, one: NodeKey, other: NodeKey) -> float:
        """How long the next bytes take from one to the other. Override for a map of distances."""
        if self.jitter_s:
            return self.latency_s + self._rng.random() * self.jitter_s
        return self.latency_s


class MemoryTransport:
    """A node's place in a :class:`MemoryNetwork`."""

    kind = MEMORY_KIND

    def __init__(self, network: MemoryNetwork, key: NodeKey, limits: Limits = DEFAULT_LIMITS) -> None:
        self.network = network
        self.key = key
        self.limits = limits
        self.strangers = 0
        self.pipes: dict[_MemoryPipe, None] = {}
        """In the order they came, so that a simulation repeats exactly."""
        self._accepted: Inbox[MuxConnection] = Inbox()

    async def start(self) -> None:
        """Appear in the network. Raises ConfigError when the key is taken."""
        if self.network.transports.setdefault(self.key, self) is not self:
            raise ConfigError("this key is already in the network", hint="stop the other node first")

    def addresses(self) -> Sequence[Address]:
        """One address; the key is what counts."""
        return (Address(MEMORY_KIND, short(self.key), 1),)

    async def dial(self, peer: NodeKey, addresses: Sequence[Address], timeout_s: float) -> MuxConnection:
        """Connect to the node with this key. Raises UnreachableError."""
        loop = asyncio.get_running_loop()
        if self.network.is_cut(self.key, peer):
            await asyncio.sleep(timeout_s)
            raise UnreachableError(f"{short(peer)} did not answer in {timeout_s:g} s", reason=Reason.TIMEOUT)
        delay_s = self.network.delay_s(self.key, peer) + self.network.delay_s(peer, self.key)
        if delay_s > 0:
            await asyncio.sleep(min(delay_s, timeout_s))
        target = self.network.transports.get(peer)
        if target is None or delay_s > timeout_s:
            raise UnreachableError(f"{short(peer)} cannot be reached", reason=Reason.TIMEOUT)
        if target.strangers >= target.limits.unauthenticated:
            raise UnreachableError(f"{short(peer)} takes no more connections now", reason=Reason.TOO_MANY)
        near, far = _MemoryPipe(self, peer), _MemoryPipe(target, self.key)
        near.other, far.other = far, near
        near.connection = MuxConnection(near, peer, self.limits, dialled=True)
        far.connection = MuxConnection(far, self.key, target.limits, dialled=False)
        self.pipes[near] = None
        target.pipes[far] = None
        far.mark_stranger()
        loop.call_later(target.limits.unauthenticated_s, target._expire, far)
        target._accepted.put(far.connection)
        return near.connection

    async def accept(self) -> MuxConnection:
        """The next connection a peer opened. Raises UnreachableError after close()."""
        return await self._accepted.get()

    async def close(self) -> None:
        """Leave the network and close every connection."""
        if self.network.transports.get(self.key) is self:
            del self.network.transports[self.key]
        self._accepted.close(UnreachableError("the transport is closed", reason=Reason.SHUTDOWN))
        for pipe in list(self.pipes):
            if pipe.connection is not None:
                pipe.connection.close(Reason.SHUTDOWN)

    def _expire(self, pipe: _MemoryPipe) -> None:
        if pipe._stranger and pipe.connection is not None:
            pipe.connection.close(Reason.NOT_MEMBER)
