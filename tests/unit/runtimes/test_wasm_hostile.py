"""Modules that were made to harm: each is refused, or ends, with a word about why; and within a bound."""

from __future__ import annotations

import random
import struct
import time
from pathlib import Path

import pytest
import wasmtime

from p2pgrid.runtimes.worker import compiling, frames
from p2pgrid.runtimes.worker.compiling import compile_program
from p2pgrid.runtimes.worker.engine import Failure
from tests.unit.runtimes.wasm_units import WORK, Bench, function, program

CUSTOM = b"\0"


def refused(tmp_path: Path, module: str | bytes) -> str:
    """Why a module is refused."""
    with pytest.raises(Failure) as caught:
        Bench(tmp_path, module)
    assert caught.value.outcome == frames.RAISED
    assert 0 < len(caught.value.message) < 2000
    return f"{caught.value.kind}: {caught.value.message}"


def number(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*encoded, value))


HEADER = b"\0asm\1\0\0\0"


@pytest.mark.parametrize(
    ("module", "what"),
    [
        ("(module (memory 65536))", "memory"),
        ('(module (memory (export "memory") 2000))', "memory"),
        ("(module (table 100000000 funcref))", "table"),
    ],
)
def test_a_module_that_wants_too_much_at_once_fails_as_a_unit(tmp_path: Path, module: str, what: str) -> None:
    body = WORK.replace('(memory (export "memory") 2)', module[len("(module ") : -1])
    unit = Bench(tmp_path, body, memory_bytes=64 << 20).map(1)[0]
    assert unit.error[0] == "MemoryLimit"
    assert what in unit.error[1]


def test_tables_do_not_grow_without_end(tmp_path: Path) -> None:
    module = function(
        """(local $rounds i32) (loop $more (local.set $rounds (i32.add (local.get $rounds) (i32.const 1)))
        (br_if $more (i32.ne (table.grow (ref.null func) (i32.const 100000)) (i32.const -1))))
        (i32.store8 (i32.const 0) (local.get $rounds)) (call $pack (i32.const 0) (i32.const 1))""",
        more="(table 0 funcref)",
    )
    assert Bench(tmp_path, module).map(1)[0].value == 11


def test_many_tables_are_refused(tmp_path: Path) -> None:
    module = WORK[:-1] + "(table 1 funcref)" * 90 + ")"
    assert Bench(tmp_path, module).map(1)[0].outcome == frames.RAISED


@pytest.mark.parametrize(
    "module",
    [
        "(module (memory 1) (memory 1))",
        "(module (memory i64 1))",
        "(module (memory 1 2 shared))",
        "(module (type (array i8)))",
        "(module (tag))",
    ],
)
def test_what_the_engine_is_not_to_do_is_refused(tmp_path: Path, module: str) -> None:
    assert refused(tmp_path, module).startswith("BadModule")


@pytest.mark.parametrize(
    ("imports", "named"),
    [
        ('(import "env" "system" (func (param i32)))', "env::system"),
        ('(import "wasi_snapshot_preview1" "path_exec" (func))', "wasi_snapshot_preview1::path_exec"),
        ('(import "wasi_unstable" "fd_write" (func (param i32 i32 i32 i32) (result i32)))', "wasi_unstable::fd_write"),
        ('(import "env" "memory" (memory 1))', "env::memory"),
        ('(import "wasi_snapshot_preview1" "fd_write" (memory 1))', "fd_write"),
        ('(import "wasi_snapshot_preview1" "fd_write" (func (param f32)))', "fd_write"),
        ('(import "wasi_snapshot_preview1" "fd_write" (global i32))', "fd_write"),
    ],
)
def test_imports_that_no_unit_is_given_are_named(tmp_path: Path, imports: str, named: str) -> None:
    assert named in refused(tmp_path, f"(module {imports})")


def test_thousands_of_imports_are_told_shortly(tmp_path: Path) -> None:
    some = "".join(f'(import "env" "{"x" * 50}{place}" (func))' for place in range(1000))
    assert "and 997 more" in refused(tmp_path, f"(module {some})")
    allowed = '(import "wasi_snapshot_preview1" "sched_yield" (func (result i32)))' * 5000
    assert "more than 4096 imports" in refused(tmp_path, f"(module {allowed})")


def test_thousands_of_exports_are_refused(tmp_path: Path) -> None:
    exports = "".join(f'(export "e{place}" (func 0))' for place in range(5000))
    assert "more than 4096" in refused(tmp_path, f"(module (func) {exports})")


@pytest.mark.parametrize("name", ["\\00", "\\n\\1b[2J", "größe", "x" * 5000])
def test_odd_names_in_a_module_do_not_get_far(tmp_path: Path, name: str) -> None:
    text = refused(tmp_path, f'(module (import "env" "{name}" (func)))')
    assert len(text) < 1000
    assert text.isprintable()


@pytest.mark.parametrize(
    "module",
    [
        b"",
        b"\0asm",
        b"\0asm\2\0\0\0",
        b"\0asm\r\0\1\0",
        b"(module)",
        b"\x7fELF\2\1\1",
        HEADER + b"\xff",
        HEADER + b"\1\xff\xff\xff\xff\x0f",
        HEADER + b"\1\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        HEADER + b"\3\6\xff\xff\xff\xff\x0f\0",
        HEADER + b"\5\3\1\0",
        HEADER + CUSTOM + b"\5\x10name",
        HEADER + b"\x0a\x04\x01\x02\x00\x0b",
    ],
)
def test_bytes_that_are_no_module_are_refused(tmp_path: Path, module: bytes) -> None:
    assert refused(tmp_path, module).startswith("BadModule")


def test_any_damage_is_either_refused_or_runs(tmp_path: Path) -> None:
    rng = random.Random(7)
    whole = bytes(wasmtime.wat2wasm(program("(call $print (i32.const 0) (i32.const 4))")))
    refusals = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(8, len(damaged))] = rng.randrange(256)
        try:
            bench = Bench(tmp_path, bytes(damaged[: rng.choice((len(damaged), rng.randrange(len(damaged))))]), fuel_max=10**6)
        except Failure:
            refusals += 1
        else:
            assert bench.command(timeout_s=2.0).outcome in (frames.OK, frames.RAISED, frames.TOO_LARGE)
    assert 20 < refusals < 150


def test_custom_sections_are_skipped_whatever_is_in_them(tmp_path: Path) -> None:
    whole = bytes(wasmtime.wat2wasm(WORK))
    large = CUSTOM + number(8 << 20) + b"\1x" + bytes((8 << 20) - 2)
    name = b"\4name" + b"\1" + number(5) + b"\xff\xff\xff\xff\x0f"
    names = CUSTOM + number(len(name)) + name
    assert Bench(tmp_path, whole + large + names + (CUSTOM + b"\2\1x") * 10_000).map(5)[0].value == 5


def test_a_program_over_the_size_limit_is_not_even_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "PROGRAM_BYTES_MAX", 100)
    assert "more than the 100 bytes" in refused(tmp_path, WORK)


def test_a_component_is_no_module_and_the_other_way_round(tmp_path: Path) -> None:
    place = tmp_path / "program"
    place.write_bytes(b"\0asm\r\0\1\0")
    assert "not a WebAssembly module" in refused(tmp_path, place.read_bytes())
    assert compile_program(str(place), "component")
    place.write_bytes(HEADER)
    with pytest.raises(Failure, match="not a WebAssembly component"):
        compile_program(str(place), "component")


def test_a_module_that_calls_itself_through_its_start_ends(tmp_path: Path) -> None:
    module = WORK[:-1] + "(func $s (call $s)) (start $s))"
    assert Bench(tmp_path, module).map(1)[0].error[0] == "StackOverflow"


@pytest.mark.parametrize(
    "call",
    [
        "(call $random_get (i32.const 0) (i32.const 65536))",
        "(call $sched_yield)",
        "(call $poll_oneoff (i32.const 0) (i32.const 0) (i32.const 1000) (i32.const 0))",
        "(call $fd_readdir (i32.const 3) (i32.const 0) (i32.const 60000) (i64.const 0) (i32.const 0))",
        "(call $fd_write (i32.const 2) (i32.const 0) (i32.const 1024) (i32.const 60000))",
    ],
)
def test_calls_into_the_host_without_end_end_in_time(tmp_path: Path, call: str) -> None:
    module = program(f"(loop $more (drop {call}) (br $more))", "random_get", "sched_yield", "poll_oneoff", "fd_readdir")
    bench = Bench(tmp_path, module)
    started = time.monotonic()
    unit = bench.command(timeout_s=0.2)
    assert (unit.outcome, time.monotonic() - started < 3.0) == (frames.TIMED_OUT, True)
    assert Bench(tmp_path, module, fuel_max=200_000).command().error[0] == "OutOfFuel"


def test_writing_files_without_end_runs_into_the_bound(tmp_path: Path) -> None:
    module = program(
        """(local $rounds i32) (i32.store (i32.const 4) (i32.const 65536))
        (drop (call $path_open (i32.const 3) (i32.const 0) (i32.const 100) (i32.const 1)
          (i32.const 1) (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 8)))
        (loop $more (local.set $rounds (i32.add (local.get $rounds) (i32.const 1)))
          (br_if $more (i32.eqz (call $fd_write (i32.load (i32.const 8)) (i32.const 0) (i32.const 1) (i32.const 12)))))
        (call $number (local.get $rounds))""",
        "path_open",
        data='(data (i32.const 100) "f")',
    )
    (rounds,) = struct.unpack("<I", Bench(tmp_path, module).command().command.stdout)
    assert rounds == (64 << 20) // 65536 + 1


def test_huge_bulk_operations_stay_inside(tmp_path: Path) -> None:
    for body in (
        "(memory.fill (i32.const 0) (i32.const 1) (i32.const -1))",
        "(memory.copy (i32.const 0) (i32.const 65536) (i32.const -1))",
    ):
        assert Bench(tmp_path, function(f"{body} (i64.const 1)")).map(1)[0].error[0] == "MemoryOutOfBounds"
