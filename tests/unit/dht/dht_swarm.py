"""Many DHT nodes in one process, over loopback sockets or over memory: for tests, benchmarks and simulations.

Keys and random choices come from one seed. Time is the loop's own, plus an offset that can be moved.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

from p2pgrid.dht.carrier import Carrier, MemoryNetwork, UdpCarrier
from p2pgrid.dht.server import GridServer
from p2pgrid.dht.settings import Authorise, DhtContext, DhtSettings
from p2pgrid.model.ids import GridId, NodeKey, grid_id
from p2pgrid.model.limits import DEFAULT_LIMITS, Limits
from p2pgrid.wire.keys import SigningKey

_EPOCH_MS = 1_700_000_000_000


def admit_all(_key: NodeKey, _credential: bytes) -> bool:
    """An open door."""
    return True


class MovableClock:
    """The loop's time plus what it was moved by; the wall clock follows."""

    def __init__(self) -> None:
        self.moved_s = 0.0

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time() + self.moved_s

    def wall_ms(self) -> int:
        return _EPOCH_MS + int(self.monotonic() * 1000)

    def move(self, seconds: float) -> None:
        """Let this much time pass at once."""
        self.moved_s += seconds


class Swarm:
    """A set of nodes of one grid. With ``network`` they live in memory, otherwise on 127.0.0.1."""

    def __init__(
        self,
        seed: int = 1,
        *,
        network: MemoryNetwork | None = None,
        settings: DhtSettings | None = None,
        limits: Limits = DEFAULT_LIMITS,
        authorise: Authorise = admit_all,
    ) -> None:
        self.rng = random.Random(seed)
        self.clock = MovableClock()
        self.network = network
        self.settings = settings or DhtSettings()
        self.limits = limits
        self.authorise = authorise
        self.grid: GridId = grid_id(b"r" * 32, "swarm")
        self.nodes: list[GridServer] = []

    def context(self, **changes: Any) -> DhtContext:
        """A context for one more node, with a key of its own."""
        given: dict[str, Any] = {
            "key": SigningKey(self.rng.randbytes(32)),
            "grid": self.grid,
            "credential": b"",
            "authorise": self.authorise,
            "clock": self.clock.monotonic,
            "wall_clock_ms": self.clock.wall_ms,
            "rng": random.Random(self.rng.random()),
            "limits": self.limits,
            "settings": self.settings,
        }
        return DhtContext(**(given | changes))

    def carrier(self, host: str | None = None) -> Carrier:
        """A carrier for one more node."""
        if self.network is None:
            return UdpCarrier(host or "127.0.0.1")
        index = len(self.nodes)
        return self.network.carrier(host or f"10.0.{index // 250}.{index % 250 + 1}", 4000)

    async def add(self, *, host: str | None = None, via: list[GridServer] | None = None, join: bool = True, **changes: Any) -> GridServer:
        """Start one more node; it joins through ``via``, by default the first node, or founds the grid."""
        node = GridServer(self.context(**changes), self.carrier(host))
        await node.start(upkeep=False)
        known = self.nodes[:1] if via is None else via
        self.nodes.append(node)
        if join:
            await node.bootstrap([(other.node.key, other.node.place.host, other.node.place.port) for other in known])
        return node

    async def grow(self, count: int) -> None:
        """Start ``count`` nodes, one after the other."""
        for _ in range(count):
            await self.add()

    async def kill(self, node: GridServer) -> None:
        """End a node without a word to anybody."""
        self.nodes.remove(node)
        await node.close()

    async def close(self) -> None:
        """End all nodes."""
        for node in self.nodes:
            await node.close()
        self.nodes.clear()
