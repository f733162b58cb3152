"""A pool per test, and short ways to run units in it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from p2pgrid.model.values import decode_value, encode_value
from p2pgrid.offload import InlineOffload
from p2pgrid.runtimes.pool import WorkerPool
from p2pgrid.runtimes.tasks import BatchChunk, BatchTask, Code, JobKey, Kind, Outcome, PoolPolicy

KEY = JobKey(b"submitter", b"job")


class Ended(NamedTuple):
    """All units of a batch, flattened."""

    outcomes: list[Outcome]
    values: list[Any]
    chunks: list[BatchChunk]


RunUnits = Callable[..., Awaitable[Ended]]


@pytest.fixture
def pool_policy() -> PoolPolicy:
    """Caged as well as this machine can. A module whose tests watch processes from outside, or let units tell tales there, overrides it."""
    return PoolPolicy(slots=2, idle_max=2, spare_s=0)


@pytest.fixture
async def pool(tmp_path: Path, pool_policy: PoolPolicy) -> AsyncIterator[WorkerPool]:
    pool = WorkerPool(tmp_path / "pool", pool_policy, InlineOffload())
    await pool.start()
    yield pool
    await pool.close()
    assert os.listdir(tmp_path / "pool" / "processes") == []


def task_of(source: str, items: list[Any], **options: Any) -> BatchTask:
    """A batch over these items; ``code`` options go to the code."""
    code = Code(source=source, **options.pop("code", {}))
    inputs = msgspec.msgpack.encode([msgspec.Raw(encode_value(item)) for item in items])
    return BatchTask(**{"job": KEY, "code": code, "inputs": inputs, **options})


def flatten(chunks: list[BatchChunk], first: int = 0) -> Ended:
    """Check that the chunks follow each other without a gap, and flatten them."""
    outcomes: list[Outcome] = []
    values: list[Any] = []
    for chunk in chunks:
        assert chunk.first == first + len(outcomes)
        assert len(chunk.outcomes) == len(chunk.payloads) > 0
        outcomes += map(Outcome, chunk.outcomes)
        values += map(decode_value, chunk.payloads)
    return Ended(outcomes, values, chunks)


@pytest.fixture
def run_units(pool: WorkerPool) -> RunUnits:
    async def run(source: str, items: list[Any], **options: Any) -> Ended:
        chunks: list[BatchChunk] = []
        task = task_of(source, items, **options)
        await pool.run(task, chunks.append)
        ended = flatten(chunks, task.first)
        assert len(ended.outcomes) == len(items)
        return ended

    return run


@pytest.fixture
def run_commands(pool: WorkerPool) -> RunUnits:
    async def run(inputs: list[bytes], **options: Any) -> Ended:
        chunks: list[BatchChunk] = []
        raws = [msgspec.Raw(item) for item in inputs]
        await pool.run(BatchTask(job=KEY, code=Code(), runtime="command", kind=Kind.COMMAND, inputs=raws, **options), chunks.append)
        return flatten(chunks)

    return run
