"""p2pgrid under test: four node processes on loopback, everything on.

The submitter's node, which leads and works, as a user's own node does; a second worker; and two nodes that only keep,
so that the three that do not lead are the job's three keepers. The client is this process, over the owner's channel, as ``p2pgrid run`` is.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from bench import audit
from p2pgrid.client.channel import Channel
from p2pgrid.client.jobs import JobBuilder, JobOptions
from p2pgrid.client.running import collect
from p2pgrid.model.ids import JobId
from p2pgrid.model.script import parse_script
from p2pgrid.store.home import Home
from p2pgrid.wire.envelope import seal

START_S = 60.0
STOP_S = 15.0
PROFILABLE = {"lead": 0, "worker": 1, "keeper": 3}
DAY_MS = 24 * 3600 * 1000
PROFILE_VARIABLE = "P2PGRID_BENCH_PROFILE"
SCRIPT = parse_script("def work(item):\n    return item\n", "noop.py")
NODES = (("lead and worker", 1), ("worker node", 1), ("keeper", 0), ("keeper", 0))
"""(role, cores), the founder of the grid first."""
T = TypeVar("T")


def wall_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000


class Grid:
    """The system under test. ``profile_path``: where node number ``profiled`` leaves its profile, or None."""

    inherited = "worker process"

    def __init__(
        self,
        profile_path: Path | None = None,
        profiled: int = 0,
        *,
        nodes: Sequence[tuple[str, int]] = NODES,
        storage: str = "1G",
        folder: Path | None = None,
    ) -> None:
        """``nodes``: as NODES; ``storage``: what each lends; ``folder``: where theirs are, by default the system's for such things."""
        self._profile_path = profile_path
        self._profiled = profiled
        self._nodes, self._storage = nodes, storage
        self._folder = Path(tempfile.mkdtemp(prefix="p2pgrid-bench-", dir=folder))
        self._processes: list[subprocess.Popen[bytes]] = []
        self._channels: list[Channel] = []
        self._runner = asyncio.Runner(loop_factory=_loop_factory())
        self._jobs: list[tuple[JobId, int]] = []
        """Jobs that ended since the last audit, and their units."""

    # -- starting ----------------------------------------------------------------------

    def start(self) -> None:
        self._run(self._start())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    async def _start(self) -> None:
        self._spawn(0, "")
        await self._open(0)
        roles = ("work", "store", "submit", "native")
        invite = await self._channels[0].invite(roles, wall_ms() + DAY_MS)
        for number in range(1, len(self._nodes)):
            self._spawn(number, invite)
        for number in range(1, len(self._nodes)):
            await self._open(number)
        deadline = time.monotonic() + START_S
        for channel in self._channels:
            while await _live(channel) < len(self._nodes) - 1:
                audit.require(time.monotonic() < deadline, "all nodes found one another")

    def _home(self, number: int) -> Home:
        return Home(self._folder / f"node-{number}", os.urandom)

    def _spawn(self, number: int, invite: str) -> None:
        """The command that people type, or its twin that can be told to profile itself."""
        home = self._home(number).folder
        home.mkdir()
        role, cores = self._nodes[number]
        profiled = number == self._profiled and self._profile_path is not None
        environment = {**os.environ, PROFILE_VARIABLE: str(self._profile_path)} if profiled else {**os.environ}
        environment["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)
        arguments = ["join", *([invite] if invite else []), "--home", str(home), "--name", role, "--cpus", str(cores)]
        arguments += ["--listen", "127.0.0.1:0", "--storage", self._storage, "--parent", str(os.getpid())]
        with (home / "node.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "bench.profiled" if profiled else "p2pgrid_cli", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )
        self._processes.append(process)

    async def _open(self, number: int) -> None:
        """Wait for a node and open its owner's channel."""
        home, process = self._home(number), self._processes[number]
        deadline = time.monotonic() + START_S
        while home.running() is None:
            if process.poll() is not None or time.monotonic() > deadline:
                log = (home.folder / "node.log").read_text(errors="replace")
                raise audit.NotOnError(f"node {number} did not start: {log}")
            await asyncio.sleep(0.02)
        self._channels.append(await Channel.open(home, wall_ms))

    # -- work ----------------------------------------------------------------------------

    def many(self, units: int) -> None:
        values, _ = self._run(self._job(range(units)))
        audit.require(values == list(range(units)), "every result is right and in order")

    def one(self, number: int) -> float:
        values, in_hand = self._run(self._job([number]))
        audit.require(values == [number], "the result is right")
        return in_hand

    async def _job(self, items: Iterable[int]) -> tuple[list[Any], float]:
        """Build, sign, submit and follow a job to its settled end; the values, and when the first was in hand."""
        channel = self._channels[0]
        plan = JobBuilder(JobOptions(), wall_ms, os.urandom).script(SCRIPT, items)
        signed = seal(plan.job, channel.submitter, channel.grid.id)
        job, _ = await channel.submit(signed.raw, plan.batches, follow=True)
        values: list[Any] = []
        in_hand: list[float] = []

        def on_value(number: int, value: Any) -> None:
            if not in_hand:
                in_hand.append(time.perf_counter())
            values.append(value)

        outcome = await collect(channel, job, wait=True, on_value=on_value)
        audit.audit_line(outcome.line, outcome.note, plan.job.map_units)
        self._jobs.append((job, plan.job.map_units))
        return values, in_hand[0]

    # -- looking -------------------------------------------------------------------------

    def roles(self) -> Mapping[int, str]:
        named = {process.pid: self._nodes[number][0] for number, process in enumerate(self._processes)}
        return {os.getpid(): "submitter", **named}

    def audit(self) -> dict[str, int]:
        return self._run(self._audit())

    async def _audit(self) -> dict[str, int]:
        """Every job since the last audit at every keeper, and every link."""
        counted = {"jobs": 0, "units": 0, "grants": 0, "receipts": 0, "decisions": 0, "payload_bytes": 0}
        for job, units in self._jobs:
            submitter = self._channels[0].submitter.public
            found = [await audit.audit_keeper(keeper, submitter, job, units) for keeper in self._channels[1:]]
            audit.require(len(found) == audit.KEEPERS and len(set(found)) == 1, "three keepers hold the same")
            counted["jobs"] += 1
            for name, value in found[0]._asdict().items():
                counted[name] += value
        self._jobs.clear()
        counted["links"] = await audit.audit_links(self._channels)
        return counted

    def profile(self, *, on: bool) -> None:
        if self._profile_path is not None:
            self._processes[self._profiled].send_signal(signal.SIGUSR2)

    # -- the end ---------------------------------------------------------------------------

    def close(self) -> None:
        try:
            self._run(self._close())
        finally:
            self._runner.close()
            for process in self._processes:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
            for process in self._processes:
                try:
                    process.wait(STOP_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _close(self) -> None:
        for channel in self._channels:
            await channel.close()


async def _live(channel: Channel) -> int:
    reply = await channel.peers()
    return sum(line.status is not None and line.path != "self" for line in reply.peers)


def _loop_factory() -> Any:
    try:
        from uvloop import new_event_loop
    except ImportError:
        return asyncio.new_event_loop
    return new_event_loop
