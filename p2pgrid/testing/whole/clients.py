"""What people do at the machines of a simulated grid: submit jobs, follow them, put files and read them again.

They use the client's own code over the owner's channel, as the command line does.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from p2pgrid.client.channel import Channel
from p2pgrid.client.jobs import JobBuilder, JobOptions, items_of, load_script
from p2pgrid.client.running import collect, read_blob
from p2pgrid.errors import P2PGridError, UnreachableError
from p2pgrid.model.blob import blob_id_of
from p2pgrid.model.ids import BlobId, JobId
from p2pgrid.model.limits import DEFAULT_LIMITS
from p2pgrid.model.reasons import Reason
from p2pgrid.model.script import ScriptOptions, parse_script
from p2pgrid.model.values import decode_value
from p2pgrid.model.work import OK
from p2pgrid.testing.batches.builtin import builtin_source, expected
from p2pgrid.testing.plans.scenario import JobPlan
from p2pgrid.testing.whole.machines import SimulatedMachine
from p2pgrid.wire.envelope import seal
from p2pgrid.wire.owner import ResultSpan

TRY_AGAIN_S = 3.0
DAY_MS = 86_400_000
FAILS = object()
"""Stands for the value of a unit that raises."""


class Anything:
    """Stands for the value of a unit that returns something else each time."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


ANYTHING = Anything()
READ_S = 60.0
"""A reader waits for so long before trying elsewhere."""


@dataclass
class JobRun:
    """A job of a simulation: what was asked and what became of it. Times in virtual seconds."""

    plan: JobPlan
    units: int
    """Of the built-in script."""
    expected: list[object] = field(default_factory=list)
    """The right value of each unit of the job's last level."""
    job: JobId | None = None
    by: str = ""
    """The machine it was submitted at."""
    submitted_s: float = 0.0
    ended_s: float = 0.0
    state: str = ""
    map_units: int = 0
    correct: int = 0
    failed: int = 0
    keepers: int = 0
    followed: bool = False
    """Whether its submitter was told all of it."""
    cancelled: bool = False
    decided: int = 0
    """Values of the last level that some node held, durably decided, when the readers began."""
    told_conflicts: int = 0
    """How many conflicts the last reader was told of."""
    read_at: str = ""
    """The machine of the last reader."""
    unreadable: bool = False
    """Whoever waited for it was told that nobody has a copy of one of its values any more."""
    reader: str = ""
    """The machine at which somebody waits for its results."""
    read: Reading | None = None
    """What the last reader at another machine was given at the end; None: nobody was given anything."""


@dataclass
class Reading:
    """What a reader got of a job: values by number, and the blobs of values that nobody gave out."""

    values: dict[int, object] = field(default_factory=dict)
    missing: dict[int, bytes] = field(default_factory=dict)


@dataclass
class FileRun:
    """A file of a simulation."""

    content: bytes
    replicas: int
    blob: BlobId
    stored: bool = False
    by: str = ""
    readable: bool = False


class Client:
    """Somebody at a machine. Its calls are coroutines that run on the machine's loop, and die with it."""

    def __init__(self, machine: SimulatedMachine) -> None:
        self._machine = machine

    @asynccontextmanager
    async def _channel(self) -> AsyncIterator[Channel]:
        machine = self._machine
        node = machine.node
        if node is None:
            raise UnreachableError("no node runs here", reason=Reason.DEAD)
        transport = machine.host.transport(machine.loop, node.key, 0, DEFAULT_LIMITS)
        channel = await Channel.open(node.home, machine.wall_ms, transport=transport, offload=machine.offload())
        try:
            yield channel
        finally:
            await channel.close()

    # -- jobs ------------------------------------------------------------------------

    def _script(self, run: JobRun, folder: Path) -> tuple[Any, Path, Sequence[Any]]:
        plan = run.plan
        if plan.script:
            path = folder / plan.script
            script = parse_script(path.read_bytes(), path.name)
            return script, path, list(items_of(script, path, list(plan.args), None))
        path = Path("squares.py")
        script = parse_script(builtin_source(plan, run.units), path.name)
        return script, path, range(run.units)

    async def submit(self, run: JobRun, folder: Path, register: Any) -> None:
        """Submit a job; ``register(job, plan)`` is called before its first unit can start.

        Raises what the node answers.
        """
        machine, plan = self._machine, run.plan
        script, path, items = self._script(run, folder)
        options = _options(plan, script.options)
        chance = machine.grid.world.fork(f"job/{plan.name}/{machine.name}/{machine.grid.world.now}")
        built = JobBuilder(options, machine.wall_ms, chance.randbytes).script(script, items)
        run.expected = plain_values(plan, run.units, script, path, items)
        async with self._channel() as channel:
            for file in built.files.values():
                await channel.put(file, replicas=1, expires_ms=built.job.expires_ms, announce=False)
            for content in built.values.values():
                await channel.put_bytes(content, replicas=1, expires_ms=built.job.expires_ms)
            signed = seal(built.job, channel.submitter, channel.grid.id)
            register(signed.id, plan)
            run.submitted_s = machine.grid.world.now
            job, run.keepers = await channel.submit(signed.raw, built.batches, follow=not plan.detach, detach=plan.detach)
            run.job, run.by = job, machine.name
            run.map_units = built.job.map_units
            for onlooker in machine.onlookers:
                onlooker.on_job(machine.name, job, plan, run.keepers, run.expected)
            if not plan.detach:
                await self._follow(channel, run, wait=True)

    async def _follow(self, channel: Channel, run: JobRun, *, wait: bool) -> dict[int, object]:
        machine = self._machine
        assert run.job is not None
        job, values = run.job, dict[int, object]()

        def on_value(number: int, value: object) -> None:
            values[number] = value
            for onlooker in machine.onlookers:
                onlooker.on_value(machine.name, job, number, value)

        outcome = await collect(channel, job, wait=wait, on_value=on_value)
        run.state = outcome.line.state
        run.told_conflicts = outcome.line.conflicts
        run.failed = outcome.line.failed
        if wait:
            run.ended_s = machine.grid.world.now
            run.followed = True
            run.correct = sum(values.get(number) == value for number, value in enumerate(run.expected))
        return values

    async def results(self, run: JobRun, *, wait: bool) -> dict[int, object]:
        """Read the results of a job here, wherever it was submitted."""
        async with asyncio.timeout(READ_S), self._channel() as channel:
            return await self._follow(channel, run, wait=wait)

    async def read(self, run: JobRun) -> Reading:
        """What can be read of a job here now. A value that lies in a blob which nobody gives out is listed as missing."""
        job, reading = run.job, Reading()
        run.read_at = self._machine.name
        assert job is not None
        async with asyncio.timeout(READ_S), self._channel() as channel:
            async for event in channel.follow(job, wait=False):
                run.told_conflicts = event.line.conflicts
                for span in event.results:
                    await self._read_span(channel, span, event.line.final_first, reading)
        for number, value in reading.values.items():
            for onlooker in self._machine.onlookers:
                onlooker.on_value(self._machine.name, job, number, value)
        return reading

    @staticmethod
    async def _read_span(channel: Channel, span: ResultSpan, final_first: int, reading: Reading) -> None:
        blobs = {position: (blob, holders) for position, blob, holders in span.blobs}
        for position, outcome in enumerate(span.outcomes):
            number = span.first - final_first + position
            if outcome != OK or number < 0:
                continue
            raw: bytes | msgspec.Raw = span.values[position]
            if position in blobs:
                try:
                    raw = await read_blob(channel, *blobs[position])
                except (P2PGridError, TimeoutError):
                    reading.missing[number] = blobs[position][0]
                    continue
            reading.values[number] = decode_value(raw)

    async def cancel(self, run: JobRun) -> None:
        """Cancel a job at the node that leads it."""
        assert run.job is not None
        async with self._channel() as channel:
            run.state = await channel.cancel(run.job)

    # -- files ---------------------------------------------------------------------------

    async def put(self, run: FileRun) -> int:
        """Store a file; returns how many nodes hold it."""
        async with self._channel() as channel:
            expires_ms = self._machine.wall_ms() + DAY_MS
            reply = await channel.put_bytes(run.content, replicas=run.replicas, expires_ms=expires_ms, announce=True)
        run.stored, run.by = True, self._machine.name
        return reply.copies

    async def get(self, blob: BlobId) -> bytes:
        """Read a file."""
        target = io.BytesIO()
        async with asyncio.timeout(READ_S), self._channel() as channel:
            await channel.get(blob, target)
        return target.getvalue()


def _options(plan: JobPlan, said: ScriptOptions) -> JobOptions:
    """What the script's header says, else what the scenario does. ``auto`` is for people with a command line."""
    default = JobOptions()
    return JobOptions(
        quorum=said.quorum if isinstance(said.quorum, int) else plan.quorum,
        attempts=said.attempts or plan.attempts,
        replicas=said.replicas or plan.replicas,
        timeout_s=said.timeout or default.timeout_s,
    )


def file_of(content: bytes, replicas: int) -> FileRun:
    """A file to be stored."""
    return FileRun(content, replicas, blob_id_of(content))


def _worked(work: Callable[[Any], object], item: Any) -> object:
    try:
        return work(item)
    except Exception:  # noqa: BLE001 - it is to fail on the grid as it does here
        return FAILS


def plain_values(plan: JobPlan, units: int, script: Any, path: Path, items: Sequence[Any]) -> list[object]:
    """What a job must come to: the built-in one by its formula, a script by running it here."""
    if plan.varies:
        return [ANYTHING for _ in items]
    if not plan.script:
        return expected(plan, units)
    module = load_script(script, path)
    values: list[object] = [_worked(module.work, item) for item in items]
    if script.has_reduce:
        total = values[0]
        for value in values[1:]:
            total = module.reduce(total, value)
        values = [total]
    if script.has_finish and script.options.finish == "grid":
        values = [module.finish(values[0] if script.has_reduce else values)]
    return values
