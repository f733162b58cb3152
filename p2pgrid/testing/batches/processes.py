"""Real node processes on loopback: started, watched, killed, and none left behind.

A node is a child of this process and told so (``join --parent``): it ends by itself should this process be killed. What
nodes say is read all the time, so that none waits for a full pipe.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from p2pgrid.client.channel import Channel
from p2pgrid.errors import NoPeersError, P2PGridError
from p2pgrid.store.home import Home
from p2pgrid.testing.plans.scenario import MachinePlan

PROGRAM = (sys.executable, "-P", "-m", "p2pgrid_cli")
START_S = 40.0
"""For a node to be ready, and for all to see one another: many start at once on few cores."""
COMMAND_S = 60.0
STOP_S = 15.0
LOOK_S = 0.1
LINES_MAX = 500
READY = "ready:"
TRACEBACK = "Traceback (most recent call last)"


class Done(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str


def wall_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000


async def run_command(home: Path, *words: str, timeout_s: float = COMMAND_S) -> Done:
    """Run one ``p2pgrid`` command to its end, as the owner of a home would. A command that takes too long is killed: code -9."""
    process = await asyncio.create_subprocess_exec(
        *PROGRAM,
        *words,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=_environment(home),
        start_new_session=True,
    )
    out, err = b"", b""
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Done(process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace"))


def _environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("P2PGRID")}
    return {**kept, "P2PGRID_HOME": str(home)}


class RealNode:
    """One machine: a home, and the process that runs in it or does not."""

    def __init__(self, plan: MachinePlan, home: Path) -> None:
        self.plan, self.home = plan, home
        self.lines: deque[str] = deque(maxlen=LINES_MAX)
        """The last of what its processes said."""
        self.wrong = ""
        """The first sign of a bug among it: a traceback."""
        self.meant_to_run = False
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self, invite: str = "") -> None:
        """Start the process, without waiting until it is ready. Without an invite it founds a grid, or is again what it was."""
        plan = self.plan
        words = ["join", *([invite] if invite else []), "--home", str(self.home), "--name", plan.name, "--listen", "127.0.0.1:0"]
        words += ["--cpus", str(plan.cores), "--storage", str(plan.storage_bytes), "--parent", str(os.getpid())]
        self._ready.clear()
        self.meant_to_run = True
        self._process = await asyncio.create_subprocess_exec(
            *PROGRAM,
            *words,
            *([] if plan.native else ["--no-native"]),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=_environment(self.home),
            start_new_session=True,
        )
        if self._reader is not None:
            await self._reader
        self._reader = asyncio.get_running_loop().create_task(self._read(self._process), name=f"{plan.name}: stderr")

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        while line := await process.stderr.readline():
            text = line.decode(errors="replace").rstrip()
            self.lines.append(text)
            if READY in text:
                self._ready.set()
            if TRACEBACK in text and not self.wrong:
                self.wrong = text
        self._ready.set()  # Ended: whoever waits looks whether it runs.

    async def wait_ready(self) -> None:
        """Raises NoPeersError when it ends instead, or takes too long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(START_S):
                await self._ready.wait()
        if not self._ready.is_set() or not self.running:
            raise NoPeersError(f"{self.plan.name} did not start: {self.lines[-1] if self.lines else 'it said nothing'}")

    async def kill(self) -> None:
        """End it as a power cut would."""
        self.meant_to_run = False
        await self._end(signal.SIGKILL, STOP_S)

    async def leave(self) -> bool:
        """Let it leave in good order; whether it did."""
        self.meant_to_run = False
        done = await run_command(self.home, "leave")
        await self._end(signal.SIGTERM, STOP_S)
        return done.code == 0

    async def _end(self, number: signal.Signals, timeout_s: float) -> None:
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.send_signal(number)
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()
        if self._reader is not None:
            await self._reader
            self._reader = None

    async def close(self) -> None:
        """End it for good."""
        self.meant_to_run = False
        await self._end(signal.SIGKILL, STOP_S)

    async def seen(self) -> int:
        """How many nodes answer this one, itself included; 0 when it cannot be asked."""
        try:
            async with await Channel.open(Home(self.home, os.urandom), wall_ms) as channel:
                reply = await channel.peers()
        except P2PGridError:
            return 0
        return sum(line.status is not None for line in reply.peers)


class RealGrid:
    """Nodes of one grid in a temporary folder. ``close`` leaves neither processes nor files."""

    def __init__(self, machines: Sequence[MachinePlan]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="p2pgrid-real-"))
        self.nodes = [RealNode(plan, self.folder / plan.name) for plan in machines]

    @property
    def founder(self) -> RealNode:
        return self.nodes[0]

    def running(self) -> list[RealNode]:
        return [node for node in self.nodes if node.running]

    async def start(self, on_step: Callable[[str], None]) -> None:
        """Found the grid, let everybody join, and wait until each sees all. Raises NoPeersError."""
        on_step("founding")
        await self.founder.start()
        await self.founder.wait_ready()
        on_step(f"{len(self.nodes)} nodes join")
        invites = {plan.roles: await self._invite(plan.roles) for plan in {node.plan.roles: node.plan for node in self.nodes[1:]}.values()}
        for node in self.nodes[1:]:
            await node.start(invites[node.plan.roles])
        for node in self.nodes[1:]:
            await node.wait_ready()
        for node in self.nodes:
            await self._sees_all(node)

    async def _invite(self, roles: Sequence[str]) -> str:
        done = await run_command(self.founder.home, "invite", *(word for role in roles for word in ("--role", role)))
        if done.code:
            raise NoPeersError(f"no invite: {done.err.strip()}")
        return done.out.strip()

    async def _sees_all(self, node: RealNode) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + START_S
        while (seen := await node.seen()) < len(self.nodes):
            if loop.time() > deadline:
                raise NoPeersError(f"{node.plan.name} sees {seen} of {len(self.nodes)} nodes after {START_S:.0f} s")
            await asyncio.sleep(LOOK_S)

    async def close(self) -> None:
        """End every process, then remove the folder."""
        await asyncio.gather(*(node.close() for node in self.nodes), return_exceptions=True)
        # Workers of killed nodes may still be on their way out, and write.
        await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)
