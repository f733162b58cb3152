"""Nodes that a command runs itself: in the foreground for ``join``, embedded for ``run``, as processes for ``--local``."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
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

LOCAL_START_S = 30.0
LOCAL_STOP_S = 10.0
DAY_MS = 24 * 3600 * 1000


@asynccontextmanager
async def running_node(home: Home, membership: HomeMembership, config: NodeConfig) -> AsyncIterator[Node]:
    """A node of a locked home, started; closed at the end, whatever happens."""
    from p2pgrid.node import Node, Ports

    loop = asyncio.get_running_loop()
    ports = Ports(clock=loop.time, wall_ms=wall_ms, rng=random.SystemRandom(), random_bytes=os.urandom)
    node = Node(home, membership, config, ports)
    try:
        await node.start()
        yield node
    finally:
        await node.close()


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
async def local_grid(nodes: int) -> AsyncIterator[Node]:
    """A grid of ``nodes`` node processes on this machine, led by an embedded node that lends no cores; all gone afterwards."""
    from p2pgrid.core.admission import Policy
    from p2pgrid.node import NodeConfig

    storage = 4 << 30
    config = NodeConfig(name="submitter", host="127.0.0.1", policy=Policy(cores=0, storage_bytes=storage))
    folder = Path(tempfile.mkdtemp(prefix="p2pgrid-local-"))
    processes: list[subprocess.Popen[bytes]] = []
    try:
        async with embedded_node(config) as node:
            invite = node.invite(("work", "store", "submit", "native"), wall_ms() + DAY_MS)
            cpus = max(1, (os.cpu_count() or 1) // nodes)
            processes += [_spawn(folder / f"node-{number}", invite, cpus, f"local-{number}") for number in range(1, nodes + 1)]
            await _wait_for(node, nodes, processes, folder)
            yield node
            await asyncio.to_thread(_stop, processes)
    finally:
        await asyncio.to_thread(_stop, processes)
        shutil.rmtree(folder, ignore_errors=True)


def _spawn(home: Path, invite: str, cpus: int, name: str) -> subprocess.Popen[bytes]:
    home.mkdir(parents=True)
    arguments = ["join", invite, "--home", str(home), "--listen", "127.0.0.1:0", "--cpus", str(cpus), "--storage", "4G", "--name", name]
    with (home / "node.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "p2pgrid_cli", *arguments, "--parent", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


async def _wait_for(node: Node, nodes: int, processes: list[subprocess.Popen[bytes]], folder: Path) -> None:
    """Until every process is a peer. Raises NoPeersError when one ends or they take too long."""
    came = asyncio.Event()
    node.peers.on_came(lambda peer: came.set())
    deadline = asyncio.get_running_loop().time() + LOCAL_START_S
    while len(node.peers.live()) < nodes:
        came.clear()
        ended = [number for number, process in enumerate(processes, 1) if process.poll() is not None]
        if ended or asyncio.get_running_loop().time() > deadline:
            number = ended[0] if ended else 1
            log = (folder / f"node-{number}" / "node.log").read_text(errors="replace").strip().splitlines()
            raise NoPeersError(f"the local nodes did not start: {log[-1] if log else 'no message'}")
        with suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await came.wait()


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    """End the processes we started: politely, then for good."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    for process in processes:
        try:
            process.wait(LOCAL_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
