"""A pool that is wound down: no unit is started any more, the one that runs ends and is reported; and ``stop`` ends the rest at once."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pgrid.errors import TryAgainError
from p2pgrid.model.reasons import Reason
from p2pgrid.offload import InlineOffload
from p2pgrid.runtimes.command import encode_command
from p2pgrid.runtimes.pool import WorkerPool
from p2pgrid.runtimes.tasks import BatchChunk, BatchTask, Code, JobKey, Kind, PoolPolicy
from tests.unit.runtimes.conftest import flatten, task_of

SLOW = """
import time, pathlib
def work(x):
    folder, number, seconds = x
    pathlib.Path(folder, f"began-{number}").touch()
    while not pathlib.Path(folder, f"go-{number}").exists():
        time.sleep(0.005)
    return number
"""
SPIN = "import pathlib\ndef work(x):\n    pathlib.Path(x).touch()\n    while True: pass\n"


@pytest.fixture
def pool_policy() -> PoolPolicy:
    """No cage: the units here leave notes outside, start processes and are counted from outside."""
    return PoolPolicy(slots=2, idle_max=2, spare_s=0, cage="bare")


class Run:
    """One batch under way."""

    def __init__(self, pool: WorkerPool, task: BatchTask) -> None:
        self.chunks: list[BatchChunk] = []
        self.task = asyncio.ensure_future(pool.run(task, self.chunks.append))

    async def reason(self) -> str:
        """Why it was not run to the end."""
        with pytest.raises(TryAgainError) as caught:
            async with asyncio.timeout(30):
                await self.task
        return caught.value.reason

    @property
    def values(self) -> list[Any]:
        return flatten(self.chunks).values


async def until(path: Path) -> None:
    async with asyncio.timeout(30):
        while not path.exists():
            await asyncio.sleep(0.005)


async def test_the_unit_that_runs_ends_and_counts_and_no_other_of_its_batch_starts(pool: WorkerPool, tmp_path: Path) -> None:
    run = Run(pool, task_of(SLOW, [[str(tmp_path), number, 0] for number in range(4)]))
    (tmp_path / "go-0").touch()
    await until(tmp_path / "began-1")
    pool.wind_down()
    (tmp_path / "go-1").touch()
    assert await run.reason() == Reason.DRAINED
    assert run.values == [0, 1]
    assert not (tmp_path / "began-2").exists()
    assert pool.idle == 0


async def test_the_last_unit_of_a_batch_ends_it_as_ever(pool: WorkerPool, tmp_path: Path) -> None:
    run = Run(pool, task_of(SLOW, [[str(tmp_path), 0, 0]]))
    await until(tmp_path / "began-0")
    pool.wind_down()
    (tmp_path / "go-0").touch()
    await run.task
    assert run.values == [0]


async def test_a_batch_of_many_short_units_stops_at_the_next_one(pool: WorkerPool) -> None:
    source = "import time\ndef work(x):\n    time.sleep(0.001)\n    return x\n"
    run = Run(pool, task_of(source, list(range(20_000))))
    async with asyncio.timeout(30):
        while not run.chunks:
            await asyncio.sleep(0.005)
    pool.wind_down()
    began = time.monotonic()
    assert await run.reason() == Reason.DRAINED
    assert time.monotonic() - began < 2.0
    done = len(run.values)
    assert run.values == list(range(done))
    assert 0 < done < 10_000


async def test_what_waits_loads_or_comes_later_is_turned_away_at_once(pool: WorkerPool, tmp_path: Path) -> None:
    loading = "import time, pathlib\npathlib.Path({!r}).touch()\ntime.sleep(60)\ndef work(x): return x\n"
    runs = [Run(pool, task_of(loading.format(str(tmp_path / f"loads-{number}")), [1])) for number in range(2)]
    waiting = Run(pool, task_of("def work(x): return x", [1]))
    for number in range(2):
        await until(tmp_path / f"loads-{number}")
    pool.wind_down()
    late = Run(pool, task_of("def work(x): return x", [1]))
    assert [await run.reason() for run in (*runs, waiting)] == [Reason.DRAINED] * 3
    assert await late.reason() == Reason.SHUTDOWN


async def test_stop_ends_what_does_not_end_and_leaves_returned_files(pool: WorkerPool, tmp_path: Path) -> None:
    makes = "import pathlib\ndef work(x):\n    path = pathlib.Path('out')\n    path.write_text('x')\n    return path\n"
    first = Run(pool, task_of(makes, [1]))
    await first.task
    (file,) = first.chunks[0].files
    run = Run(pool, task_of(SPIN, [str(tmp_path / "spins"), ""]))
    await until(tmp_path / "spins")
    pool.wind_down()
    began = time.monotonic()
    await pool.stop()
    assert time.monotonic() - began < 2.0
    assert await run.reason() in (Reason.SHUTDOWN, Reason.DRAINED)
    assert os.listdir(tmp_path / "pool" / "processes") == []
    assert file.path.exists()
    await pool.close()
    assert not file.path.exists()


async def test_commands_stop_between_two_of_them(tmp_path: Path) -> None:
    pool = WorkerPool(tmp_path / "pool", PoolPolicy(slots=1, cage="bare", spare_s=0), InlineOffload())
    await pool.start()
    script = f"touch {tmp_path}/began-$0; while [ ! -e {tmp_path}/go-$0 ]; do sleep 0.01; done; echo $0"
    inputs = [msgspec.Raw(encode_command(["/bin/sh", "-c", script, str(number)])) for number in range(3)]
    run = Run(pool, BatchTask(job=JobKey(b"s", b"j"), code=Code(), runtime="command", kind=Kind.COMMAND, inputs=inputs))
    await until(tmp_path / "began-0")
    pool.wind_down()
    (tmp_path / "go-0").touch()
    assert await run.reason() == Reason.DRAINED
    assert len(run.values) == 1
    assert not (tmp_path / "began-1").exists()
    await pool.close()


async def test_a_worker_that_says_unasked_that_it_stopped_is_ended(run_units: Any) -> None:
    source = """
import mmap, os, re
def work(x):
    if x == 1:
        for line in open("/proc/self/maps"):
            if "progress" in line:
                start = int(line.split("-")[0], 16)
                import ctypes
                ctypes.memset(start + 16, 1, 1)
    return x
"""
    ended = await run_units(source, [0, 1, 2])
    assert [int(outcome) for outcome in ended.outcomes] == [0, 0, 3]
