"""The process that is started ahead of the next job: used once, owned like the others, and nobody's until then."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from p2pgrid.model.values import decode_value
from p2pgrid.runtimes.pool import WorkerPool
from p2pgrid.runtimes.tasks import BatchChunk, BatchTask, Code, JobKey, Outcome, PoolPolicy

SOURCE = "import os\ndef work(x):\n    return os.getpid()\n"
RunJob = Callable[[bytes], Awaitable[int]]


def processes() -> set[int]:
    """Children of this process that still run."""
    found = set()
    for text in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
        if Path(f"/proc/{text}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z":
            found.add(int(text))
    return found


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.01)


@pytest.fixture
async def spare_pool(tmp_path: Path) -> AsyncIterator[WorkerPool]:
    pool = WorkerPool(tmp_path / "pool", PoolPolicy(slots=1))
    await pool.start()
    yield pool
    await pool.close()
    assert os.listdir(tmp_path / "pool" / "processes") == []
    assert not processes()


@pytest.fixture
def run_job(spare_pool: WorkerPool) -> RunJob:
    async def run(job: bytes) -> int:
        chunks: list[BatchChunk] = []
        await spare_pool.run(BatchTask(job=JobKey(b"s", job), code=Code(source=SOURCE), inputs=b"\x91\x01"), chunks.append)
        process_id = decode_value(chunks[0].payloads[0])
        assert isinstance(process_id, int)
        return process_id

    return run


async def test_the_next_job_runs_on_the_process_started_ahead(spare_pool: WorkerPool, run_job: RunJob):
    first = await run_job(b"1")
    await until(lambda: spare_pool._spare is not None)
    (spare,) = processes() - {first}
    assert await run_job(b"2") == spare


async def test_a_job_that_still_has_a_warm_process_leaves_the_spare_alone(spare_pool: WorkerPool, run_job: RunJob):
    first = await run_job(b"1")
    await until(lambda: spare_pool._spare is not None)
    before = processes()
    assert await run_job(b"1") == first
    assert processes() == before


async def test_a_spare_that_was_killed_costs_nobody_a_unit(spare_pool: WorkerPool, run_job: RunJob):
    first = await run_job(b"1")
    await until(lambda: spare_pool._spare is not None)
    (spare,) = processes() - {first}
    os.kill(spare, signal.SIGKILL)
    assert await run_job(b"2") not in (first, spare)


async def test_a_spare_that_nobody_needs_is_ended_after_a_while(tmp_path: Path):
    pool = WorkerPool(tmp_path / "pool", PoolPolicy(idle_s=0.3))
    await pool.start()
    await pool.run(BatchTask(job=JobKey(b"s", b"1"), code=Code(source=SOURCE), inputs=b"\x91\x01"), lambda chunk: None)
    await until(lambda: len(processes()) == 2)
    await until(lambda: not processes())
    await pool.close()


async def test_a_policy_without_spare_starts_none(tmp_path: Path):
    pool = WorkerPool(tmp_path / "pool", PoolPolicy(spare=False))
    await pool.start()
    for job in (b"1", b"2"):
        await pool.run(BatchTask(job=JobKey(b"s", job), code=Code(source=SOURCE), inputs=b"\x91\x01"), lambda chunk: None)
    assert len(processes()) == 2
    await pool.close()


async def test_closing_while_a_spare_is_being_started_leaves_nothing(tmp_path: Path):
    pool = WorkerPool(tmp_path / "pool", PoolPolicy())
    await pool.start()
    await pool.run(BatchTask(job=JobKey(b"s", b"1"), code=Code(source=SOURCE), inputs=b"\x91\x01"), lambda chunk: None)
    await until(lambda: pool._preparing or pool._spare is not None)
    await pool.close()
    assert not processes()
    assert os.listdir(tmp_path / "pool" / "processes") == []


async def test_code_that_kills_its_process_at_load_ends_after_a_second_try(spare_pool: WorkerPool, run_job: RunJob, tmp_path: Path):
    await run_job(b"1")
    await until(lambda: spare_pool._spare is not None)
    tries = tmp_path / "tries"
    source = f"import os, time\nopen({str(tries)!r}, 'a').write('x')\ntime.sleep(0.3)\nos._exit(1)\ndef work(x): return x\n"
    chunks: list[BatchChunk] = []
    await spare_pool.run(BatchTask(job=JobKey(b"s", b"2"), code=Code(source=source), inputs=b"\x91\x01"), chunks.append)
    assert [Outcome(outcome) for chunk in chunks for outcome in chunk.outcomes] == [Outcome.DIED]
    assert tries.read_text() == "xx"
