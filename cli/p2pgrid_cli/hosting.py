"""Nodes that a command runs itself: in the foreground for ``join``, embedded for ``run``, as processes for ``--local``."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from p2pgrid.errors import NoPeersError
from p2pgrid_cli.common import wall_ms

if TYPE_CHECKING:
    from p2pgrid.node import Node, NodeConfig
    from p2pgrid.services.membership import HomeMembership
    from p2pgrid.store.home import Home
    from p2pgrid_cli.localgrid import LocalNodes

LOCAL_START_S = 30.0
QUIET_S = 20.0
QUIET_BYTES = 1 << 20
"""Less than this in so long is what nodes say to one another when there is nothing to do."""
DAY_MS = 24 * 3600 * 1000


@asynccontextmanager
async def running_node(home: Home, membership: HomeMembership, config: NodeConfig) -> AsyncIterator[Node]:
    """A node of a locked home, started; closed at the end, whatever happens."""
    from p2pgrid.machine import keep_freed_memory
    from p2pgrid.node import Node, Ports

    keep_freed_memory()
    loop = asyncio.get_running_loop()
    ports = Ports(clock=loop.time, wall_ms=wall_ms, rng=random.SystemRandom(), random_bytes=os.urandom)
    node = Node(home, membership, config, ports)
    try:
        await node.start()
        tidying = loop.create_task(_give_back_memory(node))
        try:
            yield node
        finally:
            tidying.cancel()
            await asyncio.gather(tidying, return_exceptions=True)
    finally:
        await node.close()


async def _give_back_memory(node: Node) -> None:
    """When work has ended and nothing has come since: a node that waits leaves its owner the memory that it took for chunks."""
    from p2pgrid.machine import give_back_memory

    before, given = -1, False
    while True:
        await asyncio.sleep(QUIET_S)
        moved = sum(node.pool.traffic()) + node.working.done
        quiet = before >= 0 and moved - before < QUIET_BYTES
        if quiet and not given:
            await node.offload.run(give_back_memory)
        before, given = moved, quiet


@asynccontextmanager
async def embedded_node(config: NodeConfig) -> AsyncIterator[Node]:
    """A node of a private grid in a temporary home, gone afterwards."""
    from p2pgrid.services.membership import found_grid
    from p2pgrid.store.home import Home

    folder = Path(tempfile.mkdtemp(prefix="p2pgrid-"))
    home = Home(folder, os.urandom)
    try:
        home.prepare()
        home.lock()
        membership = found_grid(home, "embedded", os.urandom, wall_ms())
        async with running_node(home, membership, config) as node:
            yield node
    finally:
        home.close()
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def local_grid(nodes: LocalNodes) -> AsyncIterator[Node]:
    """A grid of the given node processes, led by an embedded node that lends no cores; all gone afterwards."""
    from p2pgrid.core.admission import Policy
    from p2pgrid.node import NodeConfig

    config = NodeConfig(name="submitter", host="127.0.0.1", policy=Policy(cores=0, storage_bytes=4 << 30), temporary=True)
    async with embedded_node(config) as node:
        nodes.invite(node.invite(("work", "store", "submit", "native"), wall_ms() + DAY_MS))
        await _wait_for(node, nodes)
        yield node
        await nodes.close()


async def _wait_for(node: Node, nodes: LocalNodes) -> None:
    """Until every process is a peer. Raises NoPeersError when one ends or they take too long."""
    came = asyncio.Event()
    node.peers.on_came(lambda peer: came.set())
    deadline = asyncio.get_running_loop().time() + LOCAL_START_S
    while len(node.peers.live()) < len(nodes):
        came.clear()
        nodes.check()
        if asyncio.get_running_loop().time() > deadline:
            raise NoPeersError(f"the local nodes did not start in {LOCAL_START_S:.0f} s")
        with suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await came.wait()
