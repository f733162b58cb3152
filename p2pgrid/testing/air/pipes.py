"""The two ends of a simulated connection, over links in virtual time.

1. The real stream layer runs on top.
2. A dial takes a round trip to connect and another to prove both keys. Whom it reached is decided by the proof alone.
3. Bytes arrive whole and in order. They are handed over on the loop of the machine they arrive at: a frozen machine
   leaves them lying, a dead one never reads them.
4. Nobody learns of a lost power: bytes to such a machine are swallowed until it is up again, and then refused.
5. No key signs anything here. The network knows who is who, and a node has no way to lie to it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from p2pgrid.errors import P2PGridError, UnreachableError
from p2pgrid.model.ids import NodeKey
from p2pgrid.model.node import Address
from p2pgrid.model.reasons import Reason
from p2pgrid.net.connection import MuxConnection
from p2pgrid.net.streams import Bytes
from p2pgrid.testing.air.links import Link
from p2pgrid.testing.world import MachineLoop

if TYPE_CHECKING:
    from p2pgrid.testing.air.transport import SimulatedTransport

_KNOCK_BYTES = 60
_KNOCK_AGAIN_S = 1.0
# What flies besides data: the three flights of a handshake, and the end of the stream. Sizes are those of TLS 1.3
# with one certificate each.
_DATA, _HELLO, _PROOF, _FINISHED, _END = range(5)
_MARK_BYTES = {_HELLO: 330, _PROOF: 1100, _FINISHED: 900, _END: 40}


class SimulatedPipe:
    """One end of a connection: what is sent here arrives at ``other``."""

    path_kind = "simulated"

    def __init__(self, transport: SimulatedTransport, loop: MachineLoop, link: Link) -> None:
        """``link``: the way from here to the other end."""
        self.host = transport.host
        self.loop = loop
        self.link = link
        self.other: SimulatedPipe | None = None
        self.connection: MuxConnection | None = None
        self.outcome: NodeKey | P2PGridError | None = None
        """While dialling: who is there, or why nobody is."""
        self.over = False
        self.powerless = False
        """Its machine lost its power: nothing answers in its name until it is up again."""
        self._transport = transport
        self._flying: deque[tuple[float, int, bytes]] = deque()
        self._flying_bytes = 0
        self._swallowed_s = 0.0
        """When the first bytes went to a machine without power."""
        self._armed = False
        self._is_full = False
        self._stranger = False
        self._timer: asyncio.TimerHandle | None = None
        self._settled: asyncio.Event | None = None

    # -- what the connection asks -----------------------------------------------------------

    def is_full(self) -> bool:
        """Whether as much is under way as the system keeps."""
        return self._is_full

    def send(self, chunks: list[Bytes]) -> None:
        """Put bytes in the air."""
        if not self.over and chunks:
            self._fly(_DATA, chunks[0] if len(chunks) == 1 and type(chunks[0]) is bytes else b"".join(chunks))

    def shut(self) -> None:
        """End the pipe once the peer has what is in the air."""
        if not self.over:
            if self.other is not None:
                self._fly(_END, b"")
            self._finish()

    def trusted(self) -> None:
        """Give up the place among the strangers."""
        if self._stranger:
            self._stranger = False
            self._transport.strangers -= 1
            self._stop_timer()

    # -- dialling ---------------------------------------------------------------------------------

    def knock(self, place: Address, settled: asyncio.Event, again_s: float = _KNOCK_AGAIN_S) -> None:
        """Ask a port for a connection, again and again; ``settled`` is set when ``outcome`` is known."""
        self._settled = settled
        link, network = self.link, self.host.network
        now = network.world.now
        self._timer = self.loop.call_later(again_s, self.knock, place, settled, again_s * 2)
        arrives_at = link.flight_s(now, _KNOCK_BYTES)
        if not link.blocked and not link.loses():
            network.world.at(arrives_at, link.target.knocked, self, place)

    def answered(self, place: Address, listener: SimulatedTransport | None) -> None:
        """The other host has answered a knock: with a connection, or with None for nobody at that port."""
        if self.over or self.other is not None:
            return
        self._stop_timer()
        if listener is None or not listener.listens:
            self._settle(UnreachableError(f"nobody answers at {place}: Connection refused", reason=Reason.TIMEOUT))
            self._finish()
            return
        far = SimulatedPipe(listener, listener.loop, self.host.network.link(listener.host, self.host))
        far.other, self.other = self, far
        for pipe in (self, far):
            pipe.host.pipes[pipe] = None
            pipe._transport.pipes[pipe] = None
        self._fly(_HELLO, b"")

    def adopt(self, peer: NodeKey) -> MuxConnection:
        """The dialler's decision: this is the peer."""
        self.connection = MuxConnection(self, peer, self._transport.limits, dialled=True)
        if self.over:
            self.connection.lost(Reason.CLOSED)
        else:
            self._fly(_FINISHED, b"")
        return self.connection

    def _settle(self, outcome: NodeKey | P2PGridError) -> None:
        if self.outcome is None:
            self.outcome = outcome
            if self._settled is not None:
                self._settled.set()

    # -- being dialled -------------------------------------------------------------------------------

    def _greeted(self) -> None:
        transport = self._transport
        if transport.strangers >= transport.limits.unauthenticated:
            self.shut()
            return
        self._stranger = True
        transport.strangers += 1
        self._timer = self.loop.call_later(transport.limits.unauthenticated_s, self._expire)
        self._fly(_PROOF, b"")

    def _accept(self, peer: NodeKey) -> None:
        self.connection = MuxConnection(self, peer, self._transport.limits, dialled=False)
        self._transport.accepted.put(self.connection)

    def _expire(self) -> None:
        if self._stranger:
            if self.connection is not None:
                self.connection.close(Reason.NOT_MEMBER)
            self.shut()

    # -- in the air ----------------------------------------------------------------------------------------

    def _fly(self, kind: int, data: bytes) -> None:
        other, link, network = self.other, self.link, self.host.network
        assert other is not None
        now = network.world.now
        size_bytes = len(data) if kind == _DATA else _MARK_BYTES[kind]
        network.count_segment(self.host, link.target, size_bytes)
        self._flying_bytes += size_bytes
        if self._flying_bytes >= link.room_bytes:
            self._is_full = True
        if other.powerless:
            self._swallowed_s = self._swallowed_s or now
            if other.host.is_on and not link.blocked:
                self.loop.call_at(now + 2 * link.latency_s, self.ended, context=self.host.context)
            return
        when_s = link.flight_s(now, size_bytes) + link.repairs_s(size_bytes)
        # What is first in the queue arrives first, however soon the rest is there.
        self._flying.append((when_s, kind, data))
        if not self._armed:
            self._arm(when_s)

    def _arm(self, when_s: float) -> None:
        other = self.other
        assert other is not None
        self._armed = True
        other.loop.call_at(when_s, self._arrive, context=other.host.context)

    def _arrive(self) -> None:
        """On the loop of the other end: hand over everything whose time has come, in one piece where it can be."""
        self._armed = False
        flying, link, other = self._flying, self.link, self.other
        if link.blocked:
            link.held[self] = None
            return
        assert other is not None
        now = link.target.network.world.now
        data: list[bytes] = []
        marks: list[tuple[int, int]] = []
        """Where among the data a mark arrived: (pieces of data before it, kind)."""
        while flying and flying[0][0] <= now:
            _, kind, piece = flying.popleft()
            if kind == _DATA:
                self._flying_bytes -= len(piece)
                data.append(piece)
            else:
                self._flying_bytes -= _MARK_BYTES[kind]
                marks.append((len(data), kind))
        if flying:
            self._arm(flying[0][0])
        if self._is_full and self._flying_bytes <= link.low_bytes:
            self.loop.call_at(now + link.latency_s, self._resume, context=self.host.context)
        if not marks:
            other._take(data)
            return
        begin = 0
        for end, kind in marks:
            other._take(data[begin:end])
            other._take_mark(kind)
            begin = end
        other._take(data[begin:])

    def _take(self, data: list[bytes]) -> None:
        if data and not self.over and self.connection is not None:
            self.connection.feed(data[0] if len(data) == 1 else b"".join(data))

    def _take_mark(self, kind: int) -> None:
        other = self.other
        if self.over or other is None:
            return
        if kind == _HELLO:
            self._greeted()
        elif kind == _PROOF:
            self._settle(other._transport.key)
        elif kind == _FINISHED:
            self._accept(other._transport.key)
        else:
            self.ended()

    def _resume(self) -> None:
        if self._is_full and self._flying_bytes <= self.link.low_bytes:
            self._is_full = False
            if self.connection is not None and not self.over:
                self.connection.resume()

    def healed(self) -> None:
        """The cut that held bytes back is gone: they are sent again when it is their time. For links."""
        if self._flying and not self._armed:
            self._arm(self.link.again_s(self._flying[0][0], self.host.network.world.now))

    # -- the end ----------------------------------------------------------------------------------------------

    def ended(self) -> None:
        """The peer's system says that the connection is over."""
        if not self.over:
            self._finish()
            self._settle(UnreachableError("the connection ended during the handshake", reason=Reason.CLOSED))
            if self.connection is not None:
                self.connection.lost(Reason.CLOSED)

    def vanish(self) -> None:
        """This machine has lost its power. What had left it arrives all the same."""
        other, link = self.other, self.link
        last_s = self.host.network.world.now + link.latency_s + link.weather.jitter_s
        while self._flying and (link.blocked or self._flying[-1][0] > last_s):
            self._flying.pop()
        self.powerless = True
        self._finish()
        if other is not None and not other.over:
            self.host.orphans[other] = None

    def up_again(self) -> None:
        """The machine that swallowed bytes from here is up: it refuses the next that are sent again."""
        if not self.over and self._flying_bytes and not self.link.blocked:
            now = self.host.network.world.now
            begun_s = self._flying[0][0] if self._flying else self._swallowed_s
            self.loop.call_at(self.link.again_s(begun_s, now) + self.link.latency_s, self.ended, context=self.host.context)

    def _finish(self) -> None:
        self.over = True
        self.trusted()
        self._stop_timer()
        self.host.pipes.pop(self, None)
        self._transport.pipes.pop(self, None)
        self.link.target.orphans.pop(self, None)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
