"""What a unit costs, with wide margins: a guard against a frame, a task or a system call per unit, not a benchmark."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec

from p2pgrid.runtimes.pool import WorkerPool
from p2pgrid.runtimes.tasks import BatchChunk, BatchTask, Code, JobKey

UNITS = 256
BATCHES = 40
CPU_US_MAX = 25.0


def children_cpu_s() -> float:
    seconds = 0.0
    for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


async def test_ten_thousand_units_through_one_process_cost_microseconds_each(pool: WorkerPool) -> None:
    task = BatchTask(
        job=JobKey(b"s", b"j"),
        code=Code(source="def work(x): return x"),
        inputs=msgspec.msgpack.encode(list(range(UNITS))),
        timeout_s=10.0,
    )
    chunks: list[BatchChunk] = []
    await pool.run(task, chunks.append)
    chunks.clear()
    before = time.process_time() + children_cpu_s()
    for _ in range(BATCHES):
        await pool.run(task, chunks.append)
    cpu_us = (time.process_time() + children_cpu_s() - before) * 1e6 / (UNITS * BATCHES)
    assert sum(len(chunk.outcomes) for chunk in chunks) == UNITS * BATCHES
    assert len(chunks) < 3 * BATCHES
    assert cpu_us < CPU_US_MAX
