"""A simulated transport: what :class:`p2pgrid.net.tls.TlsTransport` offers, with its rules, errors and reasons.

A node on top cannot tell the two apart: addresses are tried in the same order with the same pauses, strangers have the same
limits, and whoever is not the one who was wanted is refused in the same words.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from p2pgrid.errors import ConfigError, IntegrityError, P2PGridError, UnreachableError
from p2pgrid.model.ids import NodeKey, short
from p2pgrid.model.limits import DEFAULT_LIMITS, Limits
from p2pgrid.model.node import Address
from p2pgrid.model.reasons import Reason
from p2pgrid.net.connection import MuxConnection
from p2pgrid.net.inbox import Inbox
from p2pgrid.testing.air.pipes import SimulatedPipe
from p2pgrid.testing.world import MachineLoop
from p2pgrid.wire.keys import SigningKey

if TYPE_CHECKING:
    from p2pgrid.testing.air.network import Host

TLS_KIND = "tls"
_STAGGER_S = 0.25
_ADDRESSES_MAX = 8


class SimulatedTransport:
    """Connections of one program on a simulated host; implements :class:`p2pgrid.net.api.Transport`.

    Made by :meth:`p2pgrid.testing.air.network.Host.transport`. One that is not started can dial all the same.
    """

    kind = TLS_KIND

    def __init__(self, host: Host, loop: MachineLoop, key: SigningKey, port: int = 0, limits: Limits = DEFAULT_LIMITS) -> None:
        """``port`` 0: a free one, when it is started."""
        self.host = host
        self.loop = loop
        self.key = NodeKey(key.public)
        self.limits = limits
        self.strangers = 0
        self.pipes: dict[SimulatedPipe, None] = {}
        """In the order they came, so that a simulation repeats exactly."""
        self.accepted: Inbox[MuxConnection] = Inbox()
        self._port = port
        self._closed = False

    @property
    def listens(self) -> bool:
        """Whether it accepts connections."""
        return self.loop.alive and not self._closed and self.host.listeners.get(self._port) is self

    async def start(self) -> None:
        """Begin to accept. Raises ConfigError when the port is in use."""
        host = self.host
        if not self._port:
            self._port = host.free_port(host.listeners)
        before = host.listeners.get(self._port)
        if before is not None and before.loop.alive:
            hint = "another program uses that port; choose another with --listen HOST:PORT"
            raise ConfigError(f"cannot listen on {host.address} port {self._port}: [Errno 98] Address already in use", hint=hint)
        host.listeners[self._port] = self

    def addresses(self) -> Sequence[Address]:
        """Where it can be dialled; nothing before it is started."""
        return (Address(TLS_KIND, self.host.address, self._port),) if self.listens else ()

    async def dial(self, peer: NodeKey, addresses: Sequence[Address], timeout_s: float) -> MuxConnection:
        """Try the addresses, each a moment after the one before; the first with the right key wins.

        Raises UnreachableError, or IntegrityError when only others answered.
        """
        places = [place for place in addresses if place.kind == TLS_KIND and 0 < place.port < 65536][:_ADDRESSES_MAX]
        if not places or self._closed:
            raise UnreachableError(f"no usable address of {short(peer)} is known", reason=Reason.TIMEOUT)
        failures: list[P2PGridError] = []
        attempts: dict[SimulatedPipe, Address] = {}
        settled = asyncio.Event()
        silent = False
        try:
            async with asyncio.timeout(timeout_s):
                while places or attempts or silent:
                    if places:
                        place = places.pop(0)
                        silent = not self._attempt(place, attempts, settled) or silent
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_STAGGER_S if places else None):
                            await settled.wait()
                    settled.clear()
                    winner = _judge(peer, attempts, failures)
                    if winner is not None:
                        return winner.adopt(peer)
        except TimeoutError:
            failures.append(UnreachableError(f"{short(peer)} did not answer in {timeout_s:g} s", reason=Reason.TIMEOUT))
        finally:
            for pipe in attempts:
                pipe.shut()
        raise next((error for error in failures if error.reason == Reason.WRONG_PEER), failures[-1])

    async def accept(self) -> MuxConnection:
        """The next connection a peer opened. Raises UnreachableError after close()."""
        return await self.accepted.get()

    async def close(self) -> None:
        """Stop accepting and close every connection. What was sent is still under way."""
        self._closed = True
        if self.host.listeners.get(self._port) is self:
            del self.host.listeners[self._port]
        self.accepted.close(UnreachableError("the transport is closed", reason=Reason.SHUTDOWN))
        for pipe in list(self.pipes):
            if pipe.connection is not None:
                pipe.connection.close(Reason.SHUTDOWN)
            pipe.shut()

    def _attempt(self, place: Address, attempts: dict[SimulatedPipe, Address], settled: asyncio.Event) -> bool:
        """Begin to dial a place. Returns whether there is a host that could answer."""
        network = self.host.network
        target = network.find(self.host, place.host)
        if target is None:
            return False
        loop = asyncio.get_running_loop()
        assert isinstance(loop, MachineLoop)
        pipe = SimulatedPipe(self, loop, network.link(self.host, target))
        attempts[pipe] = place
        pipe.knock(place, settled)
        return True


def _judge(peer: NodeKey, attempts: dict[SimulatedPipe, Address], failures: list[P2PGridError]) -> SimulatedPipe | None:
    """Take out the attempts that came to an end; returns the one that reached ``peer``."""
    for pipe, place in list(attempts.items()):
        found = pipe.outcome
        if found is None:
            continue
        del attempts[pipe]
        if found == peer:
            return pipe
        if isinstance(found, P2PGridError):
            failures.append(found)
        else:
            failures.append(IntegrityError(f"{short(found)} answers at {place}, not {short(peer)}", reason=Reason.WRONG_PEER))
            pipe.shut()
    return None
