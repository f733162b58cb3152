"""Carriers move datagrams between places, and nothing more: UDP sockets, or memory for simulations.

A carrier never raises from ``sendto`` and never resolves a name: places are numeric by construction.
What the datagrams mean, and who signed them, is the gate's business.
"""

from __future__ import annotations

import asyncio
import errno
import random
import socket
from collections.abc import Callable
from typing import Any, Protocol

from p2pgrid.dht.contact import Place, place_of
from p2pgrid.errors import ConfigError, MalformedError, UnreachableError
from p2pgrid.model.reasons import Reason

Receive = Callable[[bytes, Place], None]
_IN_FLIGHT_MAX = 100_000


class Carrier(Protocol):
    """Something that carries datagrams."""

    place: Place
    """Where this carrier is bound; valid once it is open."""

    async def open(self, receive: Receive) -> None:
        """Begin to receive. Raises ConfigError when the address cannot be used."""

    def sendto(self, data: bytes, place: Place) -> None:
        """Send one datagram, or lose it silently."""

    async def fresh(self) -> Carrier:
        """A second, open carrier of this host, on a port nobody was ever contacted from. It receives nothing."""

    def close(self) -> None:
        """Stop. Idempotent."""


class _Socket(asyncio.DatagramProtocol):
    def __init__(self, receive: Receive) -> None:
        self._receive = receive

    def datagram_received(self, data: bytes, addr: Any) -> None:
        try:
            place = place_of(addr[0], addr[1])
        except MalformedError:
            return
        self._receive(data, place)

    def error_received(self, exc: Exception) -> None:
        """An ICMP error tells nothing that the missing answer does not."""


def _ignore(_data: bytes, _place: Place) -> None:
    """Receives for a carrier that only sends."""


class UdpCarrier:
    """UDP sockets on one port. ``hosts``: numeric addresses to bind, at most one per family."""

    def __init__(self, *hosts: str, port: int = 0) -> None:
        self._hosts = hosts or ("0.0.0.0",)  # noqa: S104 -- the default of a node that serves its peers
        self._port = port
        self._transports: dict[int, asyncio.DatagramTransport] = {}
        self.place = Place(self._hosts[0], port)

    async def open(self, receive: Receive) -> None:
        """Bind. Raises ConfigError with a hint when a host or the port cannot be used."""
        port = self._port
        try:
            for host in self._hosts:
                port = await self._bind(host, port, receive)
        except OSError as error:
            self.close()
            hint = "choose another port with --listen, or stop the program that uses it"
            reason = Reason.PORT_TAKEN if error.errno == errno.EADDRINUSE else ""
            raise ConfigError(f"cannot use UDP {host} port {port}: {error.strerror or error}", reason=reason, hint=hint) from error
        self.place = Place(self._hosts[0], port)

    async def _bind(self, host: str, port: int, receive: Receive) -> int:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((host, port))
            loop = asyncio.get_running_loop()
            transport, _ = await loop.create_datagram_endpoint(lambda: _Socket(receive), sock=sock)
        except BaseException:
            sock.close()
            raise
        self._transports[family] = transport
        return int(sock.getsockname()[1])

    def sendto(self, data: bytes, place: Place) -> None:
        transport = self._transports.get(socket.AF_INET6 if ":" in place.host else socket.AF_INET)
        if transport is not None and not transport.is_closing():
            transport.sendto(data, place)

    async def fresh(self) -> UdpCarrier:
        carrier = UdpCarrier(*self._hosts)
        await carrier.open(_ignore)
        return carrier

    def close(self) -> None:
        for transport in self._transports.values():
            transport.close()
        self._transports.clear()


class MemoryNetwork:
    """Datagrams between carriers in one process, with delay and loss drawn from ``rng``.

    ``nat`` names hosts behind a port-restricted NAT: they hear only places they have sent to.
    """

    def __init__(self, rng: random.Random, *, latency_s: tuple[float, float] = (0.0, 0.0), loss: float = 0.0) -> None:
        self._rng = rng
        self.latency_s = latency_s
        self.loss = loss
        self.nat: set[str] = set()
        self.sent = 0
        self.lost = 0
        self.watch: Callable[[bytes, Place, Place], None] | None = None
        """Sees every datagram that is sent: (data, source, destination)."""
        self._carriers: dict[Place, MemoryCarrier] = {}
        self._contacted: set[tuple[Place, Place]] = set()
        self._in_flight = 0
        self._next_port = 40_000

    def carrier(self, host: str, port: int) -> MemoryCarrier:
        """A carrier for this place, not yet open."""
        return MemoryCarrier(self, Place(host, port))

    def attach(self, carrier: MemoryCarrier) -> None:
        """Let a carrier receive. Raises ConfigError when its place is taken."""
        if carrier.place in self._carriers:
            raise ConfigError(f"{carrier.place} is in use", hint="choose another port")
        self._carriers[carrier.place] = carrier

    def detach(self, carrier: MemoryCarrier) -> None:
        """Deliver no more to a carrier."""
        if self._carriers.get(carrier.place) is carrier:
            del self._carriers[carrier.place]

    def fresh_port(self) -> int:
        """A port nobody used before."""
        self._next_port += 1
        return self._next_port

    def send(self, data: bytes, source: Place, destination: Place) -> None:
        """Carry one datagram, later or never."""
        self.sent += 1
        if self.watch is not None:
            self.watch(data, source, destination)
        if source.host in self.nat:
            self._contacted.add((source, destination))
        if self._rng.random() < self.loss or self._in_flight >= _IN_FLIGHT_MAX:
            self.lost += 1
            return
        self._in_flight += 1
        loop = asyncio.get_running_loop()
        delay_s = self._rng.uniform(*self.latency_s)
        if delay_s > 0:
            loop.call_later(delay_s, self._deliver, data, source, destination)
        else:
            loop.call_soon(self._deliver, data, source, destination)

    def _deliver(self, data: bytes, source: Place, destination: Place) -> None:
        self._in_flight -= 1
        if destination.host in self.nat and (destination, source) not in self._contacted:
            return
        carrier = self._carriers.get(destination)
        if carrier is not None:
            carrier.deliver(data, source)


class MemoryCarrier:
    """One place on a :class:`MemoryNetwork`."""

    def __init__(self, network: MemoryNetwork, place: Place) -> None:
        self._network = network
        self._receive: Receive = _ignore
        self._is_open = False
        self.place = place

    async def open(self, receive: Receive) -> None:
        self._network.attach(self)
        self._receive = receive
        self._is_open = True

    def deliver(self, data: bytes, source: Place) -> None:
        """Called by the network."""
        self._receive(data, source)

    def sendto(self, data: bytes, place: Place) -> None:
        if self._is_open:
            self._network.send(data, self.place, place)

    async def fresh(self) -> MemoryCarrier:
        if not self._is_open:
            raise UnreachableError("the carrier is closed", reason=Reason.CLOSED)
        carrier = MemoryCarrier(self._network, Place(self.place.host, self._network.fresh_port()))
        await carrier.open(_ignore)
        return carrier

    def close(self) -> None:
        self._is_open = False
        self._network.detach(self)
