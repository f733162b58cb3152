"""Real nodes of one grid in one process over loopback, with units computed in place, so that tests are quick."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from p2pgrid.client.channel import Channel
from p2pgrid.client.running import Outcome, collect
from p2pgrid.core.admission import Policy
from p2pgrid.core.invites import parse_invite
from p2pgrid.errors import TryAgainError
from p2pgrid.machine import ThisMachine
from p2pgrid.model.blob import blob_id_of
from p2pgrid.model.ids import JobId, StatementId
from p2pgrid.model.job import BatchRef, Derive, Job
from p2pgrid.model.reasons import Reason
from p2pgrid.node import Node, NodeConfig, Ports
from p2pgrid.runtimes.tasks import BatchChunk, BatchTask, Kind
from p2pgrid.services import membership as memberships
from p2pgrid.services.inputs import encode_batch
from p2pgrid.store.home import Home
from p2pgrid.wire.codec import decode, encode
from p2pgrid.wire.envelope import Signed, seal

ROLES = ("work", "store", "submit", "native")
DAY_MS = 86_400_000
WAIT_S = 30.0


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


async def until(look: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> Any:
    """Look again at each turn of the loop until something true comes back."""
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(0.005)
    return found


class InPlacePool:
    """Stands for the worker processes: ``compute(kind, input)`` is called in the loop, one chunk per unit."""

    compute: ClassVar[Callable[[Kind, Any], Any]] = staticmethod(lambda kind, item: item)
    gate: ClassVar[asyncio.Event | None] = None
    """While it is there and not set, nothing runs."""
    ran: ClassVar[list[BatchTask]] = []
    cancelled: ClassVar[list[bytes]] = []

    def __init__(self, folder: Path, policy: Any) -> None:
        self.policy = policy
        self.winding_down = False
        self._stopped = asyncio.Event()

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def wind_down(self) -> None:
        self.winding_down = True

    async def stop(self) -> None:
        self._stopped.set()

    def resume(self) -> None:
        self.winding_down = False
        self._stopped.clear()

    async def run(self, task: BatchTask, on_results: Callable[[BatchChunk], None]) -> None:
        kind = type(self)
        kind.ran.append(task)
        assert not isinstance(task.inputs, bytes)
        for position, raw in enumerate(task.inputs):
            if self.winding_down:
                raise TryAgainError("it leaves", reason=Reason.DRAINED)
            if kind.gate is not None:
                await self._pass(kind.gate)
            value = kind.compute(task.kind, decode(bytes(raw), Any))
            on_results(BatchChunk(task.first + position, b"\0", [msgspec.Raw(encode(value))], 1000))
            await asyncio.sleep(0)

    async def _pass(self, gate: asyncio.Event) -> None:
        """Until the gate is open. Raises when the pool is stopped before."""
        waiting = [asyncio.ensure_future(event.wait()) for event in (gate, self._stopped)]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waiting:
                one.cancel()
        if not gate.is_set():
            raise TryAgainError("it was stopped", reason=Reason.SHUTDOWN)

    async def cancel(self, job: bytes) -> None:
        type(self).cancelled.append(job)

    @classmethod
    def reset(cls) -> None:
        cls.compute = staticmethod(lambda kind, item: item)
        cls.gate = None
        cls.ran, cls.cancelled = [], []


class Grid:
    """Nodes of one grid; the first one founded it."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self.folder = folder
        self.nodes: list[Node] = []
        self._stack = stack
        self.started: list[Node] = []
        """Every node that was ever begun."""
        self._gone: list[Node] = []
        self._channels: list[Channel] = []

    def __getitem__(self, number: int) -> Node:
        return self.nodes[number]

    async def add(
        self, *, cores: int = 0, storage_bytes: int = 64 << 20, home: str = "", roles: Sequence[str] = ROLES, **config: Any
    ) -> Node:
        """One more node, connected to all the others."""
        name = home or f"n{len(self.nodes)}"
        place = Home(self.folder / name, os.urandom)
        place.prepare()
        place.lock()
        self._stack.callback(place.close)
        membership = memberships.load(place)
        if membership is None and not self.nodes:
            membership = memberships.found_grid(place, "test", os.urandom, wall_ms())
        elif membership is None:
            invite = self.nodes[0].invite(tuple(roles), wall_ms() + DAY_MS)
            membership = memberships.accept_invite(place, parse_invite(invite, wall_ms()), wall_ms())
        policy = Policy(
            cores=cores, storage_bytes=storage_bytes, memory_bytes=config.pop("memory_bytes", 0), native=config.pop("native", True)
        )
        settings = NodeConfig(name=name, host="127.0.0.1", policy=policy, discover=False, **config)
        loop = asyncio.get_running_loop()
        node = Node(place, membership, settings, Ports(clock=loop.time, wall_ms=wall_ms, rng=random.Random(5), random_bytes=os.urandom))
        self._stack.push_async_callback(node.close)
        self.started.append(node)
        await node.start()
        for other in self.living():
            await node.pool.session(other.context.me, other.pool.addresses())
        self.nodes.append(node)
        await self.meet()
        return node

    async def meet(self) -> None:
        """Until every living node has a session with every other."""
        living = self.living()
        await until(lambda: all(len(node.peers.live()) >= len(living) - 1 for node in living), "everybody met")

    def living(self) -> list[Node]:
        return [node for node in self.nodes if node not in self._gone]

    async def grow(self, nodes: int, **options: Any) -> None:
        while len(self.nodes) < nodes:
            await self.add(**options)

    async def close(self, node: Node) -> None:
        """The node leaves; its home may be opened again."""
        self._gone.append(node)
        await node.close()
        node.home.close()

    async def close_all(self) -> None:
        """All at once: nobody waits for those that are gone already."""
        for channel in self._channels:
            await channel.close()
        await asyncio.gather(*[node.close() for node in self.living()])

    async def channel(self, node: Node) -> Channel:
        channel = await Channel.open(node.home, wall_ms)
        self._channels.append(channel)
        return channel


def make_job(items: Sequence[Any], *, per_batch: int = 4, **fields: Any) -> tuple[Job, list[bytes]]:
    """A job over some items and its encoded batches."""
    batches = [encode_batch([encode(item) for item in items[at : at + per_batch]]) for at in range(0, len(items), per_batch)]
    sizes = [min(per_batch, len(items) - at) for at in range(0, len(items), per_batch)]
    manifest = tuple(BatchRef(blob_id_of(content), units, len(content)) for content, units in zip(batches, sizes, strict=True))
    now_ms = wall_ms()
    known: dict[str, Any] = {
        "expires_ms": now_ms + DAY_MS,
        "nonce": os.urandom(16),
        "created_ms": now_ms,
        "name": "job.py",
        "runtime": "native",
        "code": b"def work(item): return item",
        "code_blob": b"",
        "manifest": manifest,
        "derive": Derive(),
    }
    return Job(**(known | fields)), batches


async def submit(grid: Grid, node: Node, items: Sequence[Any], **fields: Any) -> tuple[Channel, JobId]:
    """Submit a job through a node's owner channel."""
    channel = await grid.channel(node)
    job, batches = make_job(items, **fields)
    signed: Signed[Job] = seal(job, channel.submitter, channel.grid.id)
    job_id, _ = await channel.submit(signed.raw, batches)
    return channel, JobId(StatementId(job_id))


async def results(channel: Channel, job: JobId, *, wait: bool = True) -> tuple[dict[int, Any], Outcome]:
    """The values of a job by number, and how it ended."""
    values: dict[int, Any] = {}
    async with asyncio.timeout(WAIT_S):
        outcome = await collect(channel, job, wait=wait, on_value=values.__setitem__)
    return values, outcome


def use_in_place_pool(monkeypatch: pytest.MonkeyPatch) -> type[InPlacePool]:
    InPlacePool.reset()
    monkeypatch.setattr(ThisMachine, "workers", lambda machine, folder, policy, offload: InPlacePool(folder, policy))
    return InPlacePool
