"""Fuel comes with every chunk of a runtime that counts it, unit by unit, and is the same in every run."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from p2pgrid.model.blob import blob_id_of
from p2pgrid.model.work import FUEL_BYTES
from p2pgrid.runtimes.pool import WorkerPool
from p2pgrid.runtimes.tasks import BatchChunk, BatchTask, Code, JobKey, Outcome
from tests.unit.runtimes.conftest import flatten, task_of

wasmtime = pytest.importorskip("wasmtime")

COUNTING = """
(module
  (memory (export "memory") 2)
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "work") (param $at i32) (param $size i32) (result i64)
    (local $left i32)
    (local.set $left (i32.mul (i32.load8_u (local.get $at)) (i32.const 1000)))
    (block $done (loop $again
      (br_if $done (i32.eqz (local.get $left)))
      (local.set $left (i32.sub (local.get $left) (i32.const 1)))
      (br $again)))
    (i64.or (i64.shl (i64.extend_i32_u (local.get $at)) (i64.const 32)) (i64.extend_i32_u (local.get $size)))))
"""


def fuel_of(chunks: list[BatchChunk]) -> list[int]:
    for chunk in chunks:
        assert len(chunk.fuel) == FUEL_BYTES * len(chunk.outcomes)
    fuel = b"".join(chunk.fuel for chunk in chunks)
    return [int.from_bytes(fuel[at : at + FUEL_BYTES], "little") for at in range(0, len(fuel), FUEL_BYTES)]


async def test_fuel_of_webassembly_units_grows_with_their_work_and_never_differs(pool: WorkerPool, tmp_path: Path) -> None:
    program = tmp_path / "counting.wasm"
    program.write_bytes(wasmtime.wat2wasm(COUNTING))
    code = Code(program=program, program_id=blob_id_of(program.read_bytes()))
    found = []
    for job in (b"1", b"2"):
        chunks: list[BatchChunk] = []
        task = BatchTask(job=JobKey(b"s", job), code=code, runtime="wasm", inputs=msgspec.msgpack.encode([1, 2, 3, 1]), timeout_s=10.0)
        await pool.run(task, chunks.append)
        ended = flatten(chunks)
        assert ended.outcomes == [Outcome.OK] * 4
        assert ended.values == [1, 2, 3, 1]
        found.append(fuel_of(chunks))
    assert found[0] == found[1]
    one, two, three, again = found[0]
    assert one == again
    assert two - one == three - two > 1000


async def test_native_units_have_no_fuel(pool: WorkerPool) -> None:
    chunks: list[BatchChunk] = []
    await pool.run(task_of("def work(x): return x", [1, 2]), chunks.append)
    assert {chunk.fuel for chunk in chunks} == {b""}
