"""A machine in a world with simulated workers on it, and short ways to run units there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from p2pgrid.model.values import decode_value, encode_value
from p2pgrid.runtimes.tasks import BatchChunk, BatchTask, Code, JobKey, Outcome, PoolPolicy
from p2pgrid.testing.parts.runtime import Cpu, SimulatedWorkers, UnitTimes
from p2pgrid.testing.world import MachineLoop, World

JOB = b"job"
SQUARE = "def work(x): return x * x"


class Machine:
    """One machine with its workers, and what they reported when."""

    def __init__(self, world: World, name: str, folder: Path, *, slots: int = 1, waiting_max: int = 8, **options: Any) -> None:
        self.world = world
        self.loop: MachineLoop = world.loop(name)
        self.cpu = Cpu(options.pop("speed", 1.0))
        self.times = options.pop("times", UnitTimes(1, median_s=1.0, sigma=0.0))
        self.started: list[BatchTask] = []
        self.seen: list[BatchChunk] = []
        self.workers = SimulatedWorkers(
            PoolPolicy(slots=slots, waiting_max=waiting_max),
            self.cpu,
            self.times,
            options.pop("behaviour", None),
            on_start=self.started.append,
            on_chunk=lambda task, chunk: self.seen.append(chunk),
            folder=folder / name,
            **options,
        )
        self.chunks: list[tuple[float, BatchChunk]] = []
        self.do(self.workers.start())

    def begin(self, coro: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return self.loop.create_task(coro)

    def do(self, coro: Coroutine[Any, Any, Any], limit_s: float = 1000.0) -> Any:
        task = self.begin(coro)
        assert self.world.run_until(task.done, self.world.now + limit_s)
        return task.result()

    def run(self, source: str, items: list[Any], **options: Any) -> list[tuple[Outcome, Any]]:
        """The outcome and value of each unit."""
        self.chunks.clear()
        task = batch(source, items, **options)
        self.do(self.workers.run(task, self.take))
        return flat([chunk for _, chunk in self.chunks], task.first)

    def take(self, chunk: BatchChunk) -> None:
        assert self.seen[-1] is chunk
        self.chunks.append((self.world.now, chunk))


def batch(source: str, items: list[Any], *, job: bytes = JOB, seed: bytes = b"", submitter: bytes = b"ana", **options: Any) -> BatchTask:
    code = Code(source=source, seed=seed, **options.pop("code", {}))
    return BatchTask(job=JobKey(submitter, job), code=code, inputs=[msgspec.Raw(encode_value(item)) for item in items], **options)


def flat(chunks: list[BatchChunk], first: int = 0) -> list[tuple[Outcome, Any]]:
    found: list[tuple[Outcome, Any]] = []
    for chunk in chunks:
        assert chunk.first == first + len(found)
        assert len(chunk.outcomes) == len(chunk.payloads) > 0
        found += [(Outcome(outcome), decode_value(payload)) for outcome, payload in zip(chunk.outcomes, chunk.payloads, strict=True)]
    return found


@contextmanager
def machines(folder: Path) -> Iterator[Callable[..., Machine]]:
    """A world; what is yielded makes machines in it: ``make(name="m", speed=2.0, ...)``."""
    world = World(7)
    made: list[Machine] = []

    def make(name: str = "m", **options: Any) -> Machine:
        made.append(Machine(world, name, folder, **options))
        return made[-1]

    yield make
    for machine in made:
        if machine.loop.alive:
            machine.do(machine.workers.close())
    world.close()
