"""Simulated datagrams: ports of a host, and the NAT in front of it.

1. A datagram may be lost, doubled or overtaken, and nobody is told.
2. One that takes more than one packet arrives only if all its fragments do; above 65,507 bytes it is never sent.
3. Behind a *cone* a port is the same for everybody, and hears only places it has sent to. Behind a *symmetric* NAT
   every destination sees a port of its own, and only that destination can answer to it. Both forget what was not
   used for five minutes (RFC 4787).
4. A frozen machine's system keeps what arrives until its buffer is full, and drops the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2pgrid.dht.carrier import Receive
from p2pgrid.dht.contact import Place
from p2pgrid.errors import ConfigError, UnreachableError
from p2pgrid.model.reasons import Reason
from p2pgrid.testing.world import MachineLoop

if TYPE_CHECKING:
    from p2pgrid.testing.air.network import Host

DATAGRAM_BYTES_MAX = 65_507
FRAGMENT_BYTES = 1472
_SOCKET_BUFFER_BYTES = 212_992
_IN_FLIGHT_MAX = 20_000
_NAT_FORGETS_S = 300.0
_NAT_PLACES_MAX = 4096
_NAT_PORT_FIRST = 50_000
_NAT_PORTS = 15_000


def _ignore(_data: bytes, _place: Place) -> None:
    """Receives for a carrier that only sends."""


class Nat:
    """The table of a NAT: who may answer whom, and at which port."""

    def __init__(self, *, symmetric: bool) -> None:
        self._symmetric = symmetric
        self._used_s: dict[tuple[int, Place], float] = {}
        """Oldest use first: when which port last sent to which destination."""
        self._outside: dict[tuple[int, Place], int] = {}
        self._inside: dict[int, tuple[int, Place]] = {}
        self._next = 0

    def outbound(self, port: int, destination: Place, now: float) -> int:
        """A datagram leaves from a port; returns the port its destination sees."""
        key = (port, destination)
        self._used_s.pop(key, None)
        self._used_s[key] = now
        if len(self._used_s) > _NAT_PLACES_MAX:
            self._forget(next(iter(self._used_s)))
        if not self._symmetric:
            return port
        known = self._outside.get(key)
        if known is None:
            known = self._outside[key] = self._fresh_port()
            self._inside[known] = key
        return known

    def inside(self, outside_port: int) -> int | None:
        """The port of the host that an outside port stands for now."""
        if not self._symmetric:
            return outside_port
        key = self._inside.get(outside_port)
        return None if key is None else key[0]

    def lets_in(self, outside_port: int, source: Place, now: float) -> bool:
        """Whether a datagram from ``source`` to an outside port passes."""
        key = self._inside.get(outside_port) if self._symmetric else (outside_port, source)
        if key is None or key[1] != source:
            return False
        used_s = self._used_s.get(key)
        if used_s is not None and now - used_s > _NAT_FORGETS_S:
            self._forget(key)
            return False
        return used_s is not None

    def _fresh_port(self) -> int:
        while True:
            port = _NAT_PORT_FIRST + self._next % _NAT_PORTS
            self._next += 1
            if port not in self._inside:
                return port

    def _forget(self, key: tuple[int, Place]) -> None:
        del self._used_s[key]
        port = self._outside.pop(key, None)
        if port is not None:
            del self._inside[port]


class SimulatedCarrier:
    """Datagrams on one port of a simulated host; implements :class:`p2pgrid.dht.carrier.Carrier`."""

    def __init__(self, host: Host, loop: MachineLoop, port: int) -> None:
        """``port`` 0: a free one, when it is opened."""
        self.host = host
        self.loop = loop
        self.place = Place(host.address, port)
        self._receive: Receive = _ignore
        self._is_open = False
        self._in_flight = 0
        self._late_at = 0.0
        self._late_bytes = 0

    async def open(self, receive: Receive) -> None:
        """Begin to receive. Raises ConfigError when the port is in use."""
        carriers, place = self.host.carriers, self.place
        if not place.port:
            place = self.place = Place(place.host, self.host.free_port(carriers))
        before = carriers.get(place.port)
        if before is not None and before.loop.alive:
            hint = "choose another port with --listen, or stop the program that uses it"
            raise ConfigError(f"cannot use UDP {place.host} port {place.port}: Address already in use", hint=hint)
        carriers[place.port] = self
        self._receive = receive
        self._is_open = True

    def sendto(self, data: bytes, place: Place) -> None:
        """Send one datagram, or lose it silently."""
        if self._is_open:
            self.host.network.send_datagram(self.host, data, self.place.port, place)

    async def fresh(self) -> SimulatedCarrier:
        """A second, open carrier on a port that was never used. Raises UnreachableError when this one is closed."""
        if not self._is_open:
            raise UnreachableError("the carrier is closed", reason=Reason.CLOSED)
        carrier = SimulatedCarrier(self.host, self.loop, 0)
        await carrier.open(_ignore)
        return carrier

    def close(self) -> None:
        """Stop. What was sent is still under way. Idempotent."""
        self._is_open = False
        if self.host.carriers.get(self.place.port) is self:
            del self.host.carriers[self.place.port]

    def coming(self, when_s: float, data: bytes, source: Place, outside_port: int) -> bool:
        """A datagram is on its way here. For the network. Returns whether there is room for it."""
        if self._in_flight >= _IN_FLIGHT_MAX:
            return False
        self._in_flight += 1
        self.loop.call_at(when_s, self._arrive, when_s, data, source, outside_port, context=self.host.context)
        return True

    def _arrive(self, when_s: float, data: bytes, source: Place, outside_port: int) -> None:
        self._in_flight -= 1
        now = self.loop.time()
        nat = self.host.nat_table
        if nat is not None and outside_port and not nat.lets_in(outside_port, source, when_s):
            return
        if now > when_s and self._is_full(now, len(data)):
            self.host.network.lost += 1
        elif self._is_open:
            self._receive(data, source)

    def _is_full(self, now: float, size_bytes: int) -> bool:
        """Whether the system's buffer had no room for one more of those that came while the machine was frozen."""
        if now != self._late_at:
            self._late_at, self._late_bytes = now, 0
        self._late_bytes += size_bytes
        return self._late_bytes > _SOCKET_BUFFER_BYTES
