"""A simulated network: hosts with addresses, the weather between them, and a switch for each fault.

Transports and carriers made here stand in for TLS on TCP and for UDP under nodes that run in virtual time. All chance
derives from the generator given and from the names of hosts, so that a seed replays a run exactly.

    world = World(seed=7)
    network = SimulatedNetwork(world, world.fork("network"), Weather(latency_s=0.05, loss=0.01))
    ana, bob = network.host("ana", "10.0.0.1"), network.host("bob", "10.0.0.2", nat="cone")
    transport = ana.transport(world.loop("ana"), key, 7000)
    cut = network.partition([["ana"], ["bob"]])
    network.heal(cut)
"""

from __future__ import annotations

import contextvars
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import msgspec

from p2pgrid.dht.contact import Place
from p2pgrid.errors import UsageError
from p2pgrid.model.limits import DEFAULT_LIMITS, Limits
from p2pgrid.model.node import Address
from p2pgrid.testing.air.datagrams import DATAGRAM_BYTES_MAX, FRAGMENT_BYTES, Nat, SimulatedCarrier
from p2pgrid.testing.air.links import Cut, Line, Link, Weather
from p2pgrid.testing.air.pipes import SimulatedPipe
from p2pgrid.testing.air.transport import SimulatedTransport
from p2pgrid.testing.world import MachineLoop, World
from p2pgrid.wire.keys import SigningKey

__all__ = ["Host", "NatKind", "SimulatedCarrier", "SimulatedNetwork", "SimulatedTransport", "Weather"]

NatKind = Literal["open", "cone", "symmetric"]
Watcher = Callable[[bytes, tuple[str, int], tuple[str, int]], None]
_LOOPBACK = ("127.0.0.1", "::1")
_ANSWER_BYTES = 60
_PORT_FIRST = 40_001
_PORTS = 9_999
_OUTSIDE = "the rest of the world"


class Host:
    """A machine's place in the network; it survives restarts of its node. Made by :meth:`SimulatedNetwork.host`."""

    def __init__(self, network: SimulatedNetwork, name: str, address: str, nat: NatKind) -> None:
        self.network = network
        self.name = name
        self.address = address
        self.nat = nat
        self.nat_table = None if nat == "open" else Nat(symmetric=nat == "symmetric")
        self.is_on = True
        self.bandwidth_bytes_s: float | None = None
        """Its own line; None: as the weather says."""
        self.extra_latency_s = 0.0
        self.slowness = 1.0
        self.up, self.down = Line(), Line()
        self.listeners: dict[int, SimulatedTransport] = {}
        self.carriers: dict[int, SimulatedCarrier] = {}
        self.pipes: dict[SimulatedPipe, None] = {}
        """Ends of live connections here, oldest first."""
        self.orphans: dict[SimulatedPipe, None] = {}
        """Ends elsewhere whose end here was lost with the power, and that do not know yet."""
        self.context = contextvars.Context()
        """What is delivered here sees none of the sender's context variables."""
        self._ports_drawn = 0

    def transport(self, loop: MachineLoop, key: SigningKey, port: int = 0, limits: Limits = DEFAULT_LIMITS) -> SimulatedTransport:
        """Connections of the program that runs on ``loop``, not yet started. ``port`` 0: any free one."""
        return SimulatedTransport(self, loop, key, port, limits)

    def carrier(self, loop: MachineLoop, port: int = 0) -> SimulatedCarrier:
        """Datagrams of the program that runs on ``loop``, not yet open. ``port`` 0: any free one."""
        return SimulatedCarrier(self, loop, port)

    def power_off(self) -> None:
        """The machine loses its power. Peers hear nothing, their bytes go nowhere, and dials time out. Kill its loop after this."""
        self.is_on = False
        for pipe in list(self.pipes):
            pipe.vanish()
        self._drop_programs()

    def reset(self) -> None:
        """The process is killed, its system runs on: connections end at the peers, and dials are refused. Kill its loop after this."""
        for pipe in list(self.pipes):
            pipe.shut()
        self._drop_programs()

    def power_on(self) -> None:
        """The system is up again. What peers still send to connections of before is refused."""
        for pipe in list(self.pipes):
            if not pipe.loop.alive:
                pipe.shut()
        if not self.is_on:
            self.is_on = True
            for orphan in list(self.orphans):
                orphan.up_again()

    def _drop_programs(self) -> None:
        for carrier in list(self.carriers.values()):
            carrier.close()
        self.listeners.clear()

    def free_port(self, taken: Mapping[int, object]) -> int:
        """A port that was not drawn before, as long as there are such, and is not ``taken``. Raises UsageError."""
        for _ in range(_PORTS):
            port = _PORT_FIRST + self._ports_drawn % _PORTS
            self._ports_drawn += 1
            if port not in taken:
                return port
        raise UsageError(f"no port of host {self.name} is free")

    def knocked(self, near: SimulatedPipe, place: Address) -> None:
        """Somebody asks for a connection. For the network."""
        if near.over or not self.is_on or (self.nat != "open" and near.host is not self):
            return
        link, back = near.link, self.network.link(self, near.host)
        if link.blocked or back.blocked or back.loses():
            return
        when_s = back.flight_s(self.network.world.now, _ANSWER_BYTES)
        near.loop.call_at(when_s, near.answered, place, self.listeners.get(place.port), context=near.host.context)


class SimulatedNetwork:
    """Everything between hosts. Names of hosts are what faults are told."""

    def __init__(self, world: World, rng: random.Random, plan: Weather) -> None:
        """``rng``: one draw is taken; everything else derives from it. ``plan``: the weather to begin with."""
        self.world = world
        self.hosts: dict[str, Host] = {}
        self.messages = 0
        """Segments of streams that were sent."""
        self.bytes = 0
        """Of segments and of datagrams."""
        self.datagrams = 0
        self.lost = 0
        """Datagrams that did not arrive because of the weather, a cut or a full buffer."""
        self.duplicated = 0
        self.reordered = 0
        """Datagrams that were held up."""
        self.watchers: list[Watcher] = []
        """Told of every datagram that a program sends, and of none that is injected: data, the place its receiver sees, its destination."""
        self.on_segment: Callable[[str, str, int], None] | None = None
        """Told of every segment of a stream: names of the hosts it goes from and to, and its bytes."""
        self._weather = plan
        self._base = rng.getrandbits(64)
        self._by_address: dict[str, Host] = {}
        self._links: dict[tuple[str, str], Link] = {}
        self._cuts: dict[int, Cut] = {}
        self._cuts_made = 0
        self._clogs: dict[tuple[str, str], float] = {}
        # Where datagrams come from that no host sent.
        self._outside = Host(self, _OUTSIDE, "", "open")

    def host(
        self,
        name: str,
        address: str,
        *,
        bandwidth_bytes_s: float | None = None,
        nat: NatKind = "open",
        extra_latency_s: float = 0.0,
    ) -> Host:
        """Add a machine.

        ``bandwidth_bytes_s``: of its line, up and down alike; None: as the weather says; 0: without limit. ``nat``: behind
        ``cone`` or ``symmetric`` nobody can dial it. Raises UsageError when the name or the address is taken.
        """
        if name in self.hosts or name == _OUTSIDE or address in self._by_address or address in ("", *_LOOPBACK):
            raise UsageError(f"host {name} or its address {address} cannot be used twice")
        made = Host(self, name, address, nat)
        made.bandwidth_bytes_s = bandwidth_bytes_s
        made.extra_latency_s = extra_latency_s
        self.hosts[name] = self._by_address[address] = made
        self._set_lines(made)
        return made

    # -- faults ---------------------------------------------------------------------------------

    @property
    def weather(self) -> Weather:
        """As it is now."""
        return self._weather

    def set_weather(self, **changes: float) -> None:
        """Change fields of :class:`Weather` from now on. Raises UsageError for values that make no sense."""
        self._weather = msgspec.structs.replace(self._weather, **changes)
        for host in self.hosts.values():
            self._set_lines(host)
        self._refresh()

    @property
    def loss(self) -> float:
        """The chance of loss now; may be set."""
        return self._weather.loss

    @loss.setter
    def loss(self, chance: float) -> None:
        self.set_weather(loss=chance)

    def partition(self, groups: Sequence[Sequence[str]], *, one_way: bool = False) -> int:
        """Let nothing pass between groups of hosts; returns a number for :meth:`heal`.

        Hosts in no group reach everybody; one group alone is cut off from all others. ``one_way``: only what the first group
        sends to the others is stopped. Streams keep what they cannot send.
        """
        self._cuts_made += 1
        self._cuts[self._cuts_made] = Cut(groups, one_way=one_way)
        self._apply_cuts()
        return self._cuts_made

    def heal(self, number: int) -> None:
        """Undo a partition. Harmless when it has healed."""
        self._cuts.pop(number, None)
        self._apply_cuts()

    def heal_all(self) -> None:
        """Undo every partition."""
        self._cuts.clear()
        self._apply_cuts()

    def clog(self, one: str, other: str, extra_s: float) -> None:
        """Let everything between two hosts take so many seconds more, each way."""
        self._clogs[min(one, other), max(one, other)] = extra_s
        self._refresh()

    def unclog(self, one: str, other: str) -> None:
        """Undo a clog. What is held up keeps its place."""
        self._clogs.pop((min(one, other), max(one, other)), None)
        self._refresh()

    def slow(self, name: str, factor: float) -> None:
        """Give a host a line with so much less bandwidth and so much longer distances; 1 undoes it."""
        host = self.hosts[name]
        host.slowness = factor
        self._set_lines(host)
        self._refresh()

    def delay(self, name: str, extra_s: float) -> None:
        """Let everything from and to a host take so many seconds more, each way; 0 undoes it."""
        self.hosts[name].extra_latency_s = extra_s
        self._refresh()

    def _set_lines(self, host: Host) -> None:
        own = host.bandwidth_bytes_s
        bytes_s = self._weather.bandwidth_bytes_s if own is None else own
        host.up.bytes_s = host.down.bytes_s = bytes_s / host.slowness

    def _refresh(self) -> None:
        for link in self._links.values():
            self._refresh_one(link)

    def _refresh_one(self, link: Link) -> None:
        one, other = link.source.name, link.target.name
        link.clog_s = self._clogs.get((min(one, other), max(one, other)), 0.0)
        link.refresh(self._weather)

    def _apply_cuts(self) -> None:
        for link in self._links.values():
            link.blocked = self._is_cut(link)
            if link.held and not link.blocked:
                held, link.held = link.held, {}
                for pipe in held:
                    pipe.healed()

    def _is_cut(self, link: Link) -> bool:
        one, other = link.source.name, link.target.name
        inside = not link.local and link.source is not self._outside
        return inside and any(cut.stops(one, other) for cut in self._cuts.values())

    # -- ways ------------------------------------------------------------------------------------------

    def link(self, source: Host, target: Host) -> Link:
        """The way from one host to another."""
        key = (source.name, target.name)
        found = self._links.get(key)
        if found is None:
            found = self._links[key] = Link(source, target, self._base)
            self._refresh_one(found)
            found.blocked = self._is_cut(found)
        return found

    def find(self, asking: Host, address: str) -> Host | None:
        """The host that an address stands for at ``asking``; loopback is itself."""
        return asking if address in _LOOPBACK else self._by_address.get(address)

    def count_segment(self, source: Host, target: Host, size_bytes: int) -> None:
        """A segment of a stream is sent. For pipes."""
        self.messages += 1
        self.bytes += size_bytes
        if self.on_segment is not None:
            self.on_segment(source.name, target.name, size_bytes)

    # -- datagrams ---------------------------------------------------------------------------------------

    def send_datagram(self, host: Host, data: bytes, port: int, destination: Place) -> None:
        """Carry a datagram from a port of a host, later or never. For carriers."""
        target = self.find(host, destination.host)
        if target is host:
            # Nothing of one's own passes the NAT. A program is answered at the address it used.
            self._carry(host, host, data, Place(destination.host, port), destination)
            return
        if host.nat_table is not None:
            port = host.nat_table.outbound(port, destination, self.world.now)
        source = Place(host.address, port)
        for watch in self.watchers:
            watch(data, source, destination)
        self._carry(host, target, data, source, destination)

    def send_raw_datagram(
        self, data: bytes, source_place: tuple[str, int], destination_place: tuple[str, int], *, via: str | None = None
    ) -> None:
        """Send a datagram that bears any source: a forged one, or one that was heard before.

        ``via``: the name of the host whose line it takes; None: it comes from outside, where no cut is.
        """
        host = self._outside if via is None else self.hosts[via]
        source, destination = Place(*source_place), Place(*destination_place)
        self._carry(host, self._by_address.get(destination.host), data, source, destination)

    def _carry(self, host: Host, target: Host | None, data: bytes, source: Place, destination: Place) -> None:
        size_bytes = len(data)
        if size_bytes > DATAGRAM_BYTES_MAX:
            return
        self.datagrams += 1
        self.bytes += size_bytes
        if target is None:
            return
        link = self.link(host, target)
        weather = link.weather
        if link.blocked or (weather.loss and link.loses(max(1, -(-size_bytes // FRAGMENT_BYTES)))):
            self.lost += 1
            return
        detour_s = link.detour_s() if weather.reorder else 0.0
        self.reordered += detour_s > 0.0
        self._deliver(link, data, source, destination, detour_s)
        if weather.duplicate and link.doubles():
            self.duplicated += 1
            self._deliver(link, data, source, destination, 0.0)

    def _deliver(self, link: Link, data: bytes, source: Place, destination: Place, detour_s: float) -> None:
        when_s = link.flight_s(self.world.now, len(data)) + detour_s
        target, port = link.target, destination.port
        passes = link.local or target.nat_table is None
        inside = port if passes or target.nat_table is None else target.nat_table.inside(port)
        carrier = None if inside is None else target.carriers.get(inside)
        if carrier is not None and not carrier.coming(when_s, data, source, 0 if passes else port):
            self.lost += 1
