"""WebAssembly through the worker pool: compiled in one process, run in another, both confined where the machine can."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import wasmtime

from p2pgrid.errors import RefusedError
from p2pgrid.model.ids import BlobId
from p2pgrid.model.values import FileRef, encode_value
from p2pgrid.offload import InlineOffload
from p2pgrid.runtimes.command import decode_command_result, encode_command
from p2pgrid.runtimes.pool import WorkerPool
from p2pgrid.runtimes.tasks import BatchChunk, BatchTask, Code, JobKey, Kind, Outcome, PoolPolicy
from tests.native import needs
from tests.unit.runtimes.test_wasm_units import CHANCE, READ
from tests.unit.runtimes.wasm_units import WORK, function

LEVELS = ["bare", "auto"]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that other users can pass through when the tests run as root: units run as somebody else then."""
    if os.geteuid() != 0:
        yield tmp_path
        return
    place = Path(tempfile.mkdtemp(dir="/var/tmp", prefix="p2pgrid-test-"))
    place.chmod(0o711)
    yield place
    shutil.rmtree(place)


class Grid:
    """A pool, and modules to run in it."""

    def __init__(self, folder: Path, level: str) -> None:
        self.folder = folder
        self.level = level
        self.pool = WorkerPool(folder / "pool", PoolPolicy(cage=level, slots=1), InlineOffload())

    async def run(self, module: str | bytes, inputs: list[bytes], **options: Any) -> BatchChunk:
        """Run a batch, its chunks put together. Skips where no cage holds."""
        wasm = bytes(wasmtime.wat2wasm(module)) if isinstance(module, str) else module
        name = str(hash(wasm))
        place = self.folder / f"{name}.wasm"
        place.write_bytes(wasm)
        defaults: dict[str, Any] = {"memory_bytes": 64 << 20, "timeout_s": 20.0, "trusted": self.level == "bare"}
        code = Code(program=place, program_id=name.encode(), seed=bytes(32))
        task = BatchTask(
            job=JobKey(b"s", b"j"), code=code, runtime="wasm", inputs=[msgspec.Raw(raw) for raw in inputs], **{**defaults, **options}
        )
        chunks: list[BatchChunk] = []
        try:
            await self.pool.run(task, chunks.append)
        except RefusedError as error:
            needs(self.level == "bare", error.message)
            raise
        outcomes, fuel = (b"".join(part) for part in zip(*((chunk.outcomes, chunk.fuel) for chunk in chunks), strict=True))
        return BatchChunk(0, outcomes, [payload for chunk in chunks for payload in chunk.payloads], 0, [], fuel)


@pytest.fixture(params=LEVELS)
async def grid(folder: Path, request: pytest.FixtureRequest) -> AsyncIterator[Grid]:
    grid = Grid(folder, request.param)
    await grid.pool.start()
    yield grid
    await grid.pool.close()


async def test_units_come_back_with_their_fuel(grid: Grid) -> None:
    ended = await grid.run(WORK, [encode_value(item) for item in range(100)])
    assert ended.outcomes == bytes(100)
    assert [bytes(payload) for payload in ended.payloads] == [encode_value(item) for item in range(100)]
    assert ended.fuel == (14).to_bytes(8, "little") * 100


async def test_a_program_reads_its_file_and_is_the_same_as_anywhere(grid: Grid) -> None:
    blob = grid.folder / "blob"
    blob.write_bytes(b"0123456789")
    reference = FileRef(BlobId(b"b" * 32), 10, "data.txt")
    raw = encode_command(["unit"], files=[(reference, "in/the.txt")])
    found = await grid.run(READ, [raw], kind=Kind.COMMAND, files={reference.blob: blob})
    assert found.outcomes == bytes((Outcome.OK,)), bytes(found.payloads[0])
    assert decode_command_result(found.payloads[0]).stdout == b"0123456789"
    chance = await grid.run(CHANCE, [encode_command(["unit"])], kind=Kind.COMMAND)
    assert decode_command_result(chance.payloads[0]).stdout[32:40].hex() == "e8038ab9359ae515"


async def test_a_unit_without_end_does_not_take_the_process_along(grid: Grid) -> None:
    body = "(if (i32.eq (i32.load8_u (local.get $at)) (i32.const 1)) (then (loop $on (br $on)))) (call $pack (local.get $at) (i32.const 1))"
    module = function(body)
    ended = await grid.run(module, [b"\2", b"\1", b"\3"], timeout_s=0.3)
    assert list(ended.outcomes) == [Outcome.OK, Outcome.TIMED_OUT, Outcome.OK]
    assert grid.pool.idle == 1
    spent = await grid.run(module, [b"\1", b"\3"], fuel_max=10**6)
    assert list(spent.outcomes) == [Outcome.RAISED, Outcome.OK]


async def test_a_unit_can_use_all_of_its_memory_and_no_more(grid: Grid) -> None:
    body = """(loop $more (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
      (memory.fill (i32.const 2048) (i32.const 7) (i32.sub (i32.mul (memory.size) (i32.const 65536)) (i32.const 2048)))
      (i32.store8 (i32.const 0) (i32.const 0xcd)) (i32.store8 (i32.const 1) (i32.shr_u (memory.size) (i32.const 8)))
      (i32.store8 (i32.const 2) (memory.size)) (call $pack (i32.const 0) (i32.const 3))"""
    ended = await grid.run(function(body), [b"\1"] * 3, memory_bytes=64 << 20)
    assert [msgspec.msgpack.decode(payload) for payload in ended.payloads] == [1024] * 3


async def test_a_module_that_cannot_be_compiled_fails_all_of_its_units(grid: Grid) -> None:
    ended = await grid.run(b"\0asm\1\0\0\0\xff", [b"\1", b"\2"])
    assert list(ended.outcomes) == [Outcome.RAISED] * 2
    assert "malformed section id" in msgspec.msgpack.decode(ended.payloads[0])["message"]
