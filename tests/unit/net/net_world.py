"""A handful of nodes on one transport, and a wrapper that runs a scenario on each transport and looks for leaks."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from p2pgrid.errors import P2PGridError
from p2pgrid.model.ids import NodeKey
from p2pgrid.model.limits import Limits
from p2pgrid.model.node import Address
from p2pgrid.net.memory import MemoryNetwork, MemoryTransport
from p2pgrid.net.messages import Hello, Member
from p2pgrid.net.methods import Methods
from p2pgrid.net.pool import Pool
from p2pgrid.net.rpc import Session
from p2pgrid.net.tls import TlsTransport
from p2pgrid.wire.keys import SigningKey

GRID = b"g" * 32
KINDS = ["memory", "tls"]
try:
    import uvloop

    KINDS.append("tls-uvloop")
except ImportError:  # pragma: no cover - Windows
    pass


class Text(msgspec.Struct, frozen=True, array_like=True):
    """A body for tests."""

    text: bytes = b""
    number: int = 0


class World:
    """Nodes that can reach one another, closed together."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.network = MemoryNetwork(random.Random(7))
        self.nodes: list[Node] = []

    async def node(self, seed: int, *, limits: Limits | None = None, port: int = 0, **options: Any) -> Node:
        """A started node."""
        node = Node(self, seed, limits or Limits(), port=port, **options)
        await node.pool.start()
        self.nodes.append(node)
        return node

    async def close(self) -> None:
        """Close all nodes."""
        for node in self.nodes:
            await node.pool.close()


class Node:
    """A pool with what it stands on."""

    def __init__(
        self,
        world: World,
        seed: int,
        limits: Limits,
        *,
        port: int = 0,
        grid: bytes = GRID,
        clock_ms: int = 1_000_000,
        instance: bytes = b"",
        roles: frozenset[str] = frozenset(),
        refuse: P2PGridError | None = None,
    ) -> None:
        self.key = SigningKey(bytes([seed]) * 32)
        self.id = NodeKey(self.key.public)
        self.methods = Methods()
        self.opened: list[Session] = []
        self.closed: list[str] = []
        self.roles = roles
        self.refuse = refuse
        self.transport: MemoryTransport | TlsTransport
        if world.kind == "memory":
            self.transport = MemoryTransport(world.network, self.id, limits)
        else:
            self.transport = TlsTransport(self.key, "127.0.0.1", port, limits)
        self.pool = Pool(
            self.id,
            [self.transport],
            self.methods,
            self._authorise,
            lambda: Hello(grid, clock_ms, instance=instance),
            lambda: clock_ms,
            limits,
        )
        self.pool.on_open(self.opened.append)
        self.pool.on_close(lambda _, reason: self.closed.append(reason))

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where it listens."""
        return self.pool.addresses()

    async def to(self, other: Node) -> Session:
        """A session with another node."""
        return await self.pool.session(other.id, other.addresses)

    def _authorise(self, peer: NodeKey, hello: Hello) -> Member:
        if self.refuse is not None:
            raise self.refuse
        return Member(self.roles, lineage=peer)


async def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait for something that callbacks bring about."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.002)


def open_sockets() -> int:
    """How many sockets this process has open; 0 where that cannot be told. (uvloop keeps one descriptor of /dev/null.)"""
    count = 0
    for name in os.listdir("/proc/self/fd") if sys.platform == "linux" else ():
        with contextlib.suppress(OSError):
            count += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    return count


async def _run(scenario: Callable[[World], Awaitable[None]], kind: str) -> None:
    asyncio.get_running_loop().set_exception_handler(_note)
    _noted.clear()
    before = open_sockets()
    world = World(kind)
    try:
        await scenario(world)
    finally:
        await world.close()
    await until(lambda: len(asyncio.all_tasks()) == 1)
    await until(lambda: open_sockets() <= before)
    assert not _noted


_noted: list[dict[str, Any]] = []


def _note(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    _noted.append(context)


def run_on(kind: str, scenario: Callable[[World], Awaitable[None]]) -> None:
    """Run a scenario; fail if it leaves a task, a descriptor or an unseen exception."""
    if kind == "tls-uvloop":
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(scenario, kind))
    else:
        asyncio.run(_run(scenario, kind))


def on_every_transport(scenario: Callable[[World], Awaitable[None]]) -> Callable[[str], None]:
    """Make a pytest test of a scenario, once per transport."""

    @pytest.mark.parametrize("kind", KINDS)
    def test(kind: str) -> None:
        run_on(kind, scenario)

    functools.update_wrapper(test, scenario)
    del test.__wrapped__  # type: ignore[attr-defined]  # pytest would look for the scenario's argument
    return test


def on_tls(scenario: Callable[[World], Awaitable[None]]) -> Callable[[str], None]:
    """The same, on the transports with real sockets only."""

    @pytest.mark.parametrize("kind", KINDS[1:])
    def test(kind: str) -> None:
        run_on(kind, scenario)

    functools.update_wrapper(test, scenario)
    del test.__wrapped__  # type: ignore[attr-defined]
    return test
