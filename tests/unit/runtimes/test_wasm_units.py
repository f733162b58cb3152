"""Units of WebAssembly jobs: what they get, what comes back, how they end, and that all of it is the same everywhere."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pgrid.model.ids import BlobId
from p2pgrid.model.values import EXT_FILE, FileRef, encode_value
from p2pgrid.runtimes.worker import frames
from p2pgrid.runtimes.worker.engine import ISAS, Failure
from tests.unit.runtimes.wasm_units import WORK, Bench, Unit, function, imports, numbers, program

BLOB = BlobId(b"b" * 32)
REFERENCE = FileRef(BLOB, 10, "data.txt")


@pytest.fixture
def blob(tmp_path: Path) -> dict[bytes, str]:
    place = tmp_path / "blob"
    place.write_bytes(b"0123456789")
    return {BLOB: str(place)}


HELLO = program("(call $print (i32.const 100) (i32.const 6))", data='(data (i32.const 100) "hello\\n")')
ECHO = program(
    """(local $used i32)
    (drop (call $args_sizes_get (i32.const 0) (i32.const 4)))
    (drop (call $args_get (i32.const 100) (i32.const 200)))
    (call $print (i32.const 200) (i32.load (i32.const 4)))
    (i32.store (i32.const 0) (i32.const 1000)) (i32.store (i32.const 4) (i32.const 1000))
    (loop $more
      (drop (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
      (call $print (i32.const 1000) (i32.load (i32.const 8)))
      (br_if $more (i32.load (i32.const 8))))""",
    "args_get",
    "args_sizes_get",
    "fd_read",
)
"""Prints its arguments and its input."""
CHANCE = program(
    """(drop (call $random_get (i32.const 0) (i32.const 32))) (call $print (i32.const 0) (i32.const 32))
    (drop (call $clock_time_get (i32.const 0) (i64.const 0) (i32.const 0))) (call $print (i32.const 0) (i32.const 8))
    (f32.store (i32.const 0) (f32.div (f32.const 0) (f32.const 0))) (call $print (i32.const 0) (i32.const 4))
    (f64.store (i32.const 0) (f64.add (f64.const nan:0x8000000000123) (f64.const 1))) (call $print (i32.const 0) (i32.const 8))""",
    "random_get",
    "clock_time_get",
)
"""Prints chance, the time, and what is left of two numbers that are none."""


def test_a_program_prints_and_ends_well(tmp_path: Path) -> None:
    unit = Bench(tmp_path, HELLO).command()
    assert unit.command == (0, b"hello\n", "")
    assert unit.fuel > 1000


def test_a_program_gets_arguments_and_input(tmp_path: Path) -> None:
    bench = Bench(tmp_path, ECHO)
    assert bench.command("unit", "größe", stdin=b"x" * 2500).command.stdout == "unit\0größe\0".encode() + b"x" * 2500
    assert bench.command("unit").command.stdout == b"unit\0"


READ = program(
    """(local $error i32)
    (local.set $error (call $path_open (i32.const 3) (i32.const 0) (i32.const 100) (i32.const 10)
      (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 0)))
    (if (local.get $error) (then (call $proc_exit (local.get $error))))
    (i32.store (i32.const 4) (i32.const 1000)) (i32.store (i32.const 8) (i32.const 1000))
    (drop (call $fd_read (i32.load (i32.const 0)) (i32.const 4) (i32.const 1) (i32.const 12)))
    (call $print (i32.const 1000) (i32.load (i32.const 12)))""",
    "path_open",
    "fd_read",
    data='(data (i32.const 100) "in/the.txt")',
)


def test_a_program_reads_the_files_of_its_unit(tmp_path: Path, blob: dict[bytes, str]) -> None:
    bench = Bench(tmp_path, READ)
    inputs = [msgspec.msgpack.encode([["unit"], None, [[msgspec.msgpack.Ext(EXT_FILE, msgspec.msgpack.encode(REFERENCE)), "in/the.txt"]]])]
    found, missing = bench.run(frames.COMMAND, [*inputs, msgspec.msgpack.encode([["unit"]])], files=blob)
    assert found.command.stdout == b"0123456789"
    assert missing.error == ("CommandFailed", "exit status 44"), "units do not share files"
    assert bench.run(frames.COMMAND, inputs)[0].error == ("BadDataError", "the file data.txt was not brought along")


@pytest.mark.parametrize("place", ["../x", "/x", "a//b", "", "a/./b", "a\\b"])
def test_files_cannot_be_placed_outside(tmp_path: Path, blob: dict[bytes, str], place: str) -> None:
    raw = msgspec.msgpack.encode([["unit"], None, [[msgspec.msgpack.Ext(EXT_FILE, msgspec.msgpack.encode(REFERENCE)), place]]])
    (unit,) = Bench(tmp_path, READ).run(frames.COMMAND, [raw], files=blob)
    assert unit.error[0] == "BadDataError"


@pytest.mark.parametrize("value", [[], [[]], [["a\0b"]], {"argv": ["x"]}, [["x"], 5], 7, [["x"], None, [["no reference", "x"]]]])
def test_an_input_that_is_no_command_fails_by_itself(tmp_path: Path, value: Any) -> None:
    (bad, good) = Bench(tmp_path, HELLO).run(frames.COMMAND, [msgspec.msgpack.encode(value), msgspec.msgpack.encode([["unit"]])])
    assert bad.outcome == frames.RAISED
    assert good.command.stdout == b"hello\n"


def test_an_exit_status_is_a_failure_that_tells_the_end_of_stderr(tmp_path: Path) -> None:
    module = program(
        """(i32.store (i32.const 0) (i32.const 100)) (i32.store (i32.const 4) (i32.const 9))
        (drop (call $fd_write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 8)))
        (call $proc_exit (i32.const 7))""",
        data='(data (i32.const 100) "it broke\\n")',
    )
    assert Bench(tmp_path, module).command().error == ("CommandFailed", "exit status 7: it broke")


def test_stderr_of_a_program_that_ends_well_comes_along(tmp_path: Path) -> None:
    module = program(
        """(i32.store (i32.const 0) (i32.const 100)) (i32.store (i32.const 4) (i32.const 2))
        (drop (call $fd_write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 8))) (call $proc_exit (i32.const 0))""",
        data='(data (i32.const 100) "hm")',
    )
    assert Bench(tmp_path, module).command().command == (0, b"", "hm")


def test_too_much_output_is_too_large(tmp_path: Path) -> None:
    module = program("(loop $more (call $print (i32.const 0) (i32.const 50000)) (br $more))")
    unit = Bench(tmp_path, module).command(result_bytes_max=200_000)
    assert unit.outcome == frames.TOO_LARGE
    assert "200000" in unit.error[1]


def test_values_go_in_and_out(tmp_path: Path) -> None:
    items = [1, "text", [1.5, None, {"a": b"bytes"}], -(2**70)]
    units = Bench(tmp_path, WORK).map(*items)
    assert [unit.value for unit in units] == items
    assert {unit.fuel for unit in units} == {units[0].fuel}


def test_every_unit_gets_a_fresh_instance(tmp_path: Path) -> None:
    module = function(
        """(i32.store8 (i32.const 0) (i32.add (i32.load8_u (i32.const 0)) (i32.const 1)))
        (call $pack (i32.const 0) (i32.const 1))"""
    )
    assert [unit.value for unit in Bench(tmp_path, module).map(*"abc")] == [1, 1, 1]


def test_reduce_and_finish_are_functions_of_the_same_kind(tmp_path: Path) -> None:
    count = '(func (export "%s") (param $at i32) (param $size i32) (result i64) (call $pack (i32.const %d) (i32.const 1)))'
    data = '(data (i32.const 0) "\\01\\02")'
    bench = Bench(tmp_path, function("(i64.const 0)", more=data + count % ("reduce", 0) + count % ("finish", 1)))
    assert bench.run(frames.REDUCE, [encode_value([1, 2])])[0].value == 1
    assert bench.run(frames.FINISH, [encode_value([1, 2])])[0].value == 2


def test_a_function_that_is_not_exported_is_named(tmp_path: Path) -> None:
    bench = Bench(tmp_path, WORK)
    assert bench.run(frames.REDUCE, [encode_value([1])])[0].error[0] == "NameError"
    assert "reduce" in bench.run(frames.REDUCE, [encode_value([1])])[0].error[1]
    assert "_start" in bench.command().error[1]
    without = WORK.replace('(export "alloc")', "")
    assert Bench(tmp_path, without).map(1)[0].error == ("NameError", "the module exports no function alloc of type (i32) -> i32")


def test_a_function_of_another_type_is_not_called(tmp_path: Path) -> None:
    wrong = WORK.replace("(result i64)\n    (i64.or", "(result i64 i64) (i64.const 0)\n    (i64.or")
    assert Bench(tmp_path, wrong).map(1)[0].error == ("NameError", "the module exports no function work of type (i32, i32) -> i64")


def test_returning_zero_raises_with_the_text_of_the_module(tmp_path: Path) -> None:
    error = '(data (i32.const 0) "no such luck") (func (export "error") (result i64) (call $pack (i32.const 0) (i32.const 12)))'
    assert Bench(tmp_path, function("(i64.const 0)", more=error)).map(1)[0].error == ("UnitFailed", "no such luck")
    assert Bench(tmp_path, function("(i64.const 0)")).map(1)[0].error == ("UnitFailed", "work returned no result")
    endless = error.replace("i32.const 12", "i32.const -1")
    assert Bench(tmp_path, function("(i64.const 0)", more=endless)).map(1)[0].error[1].startswith("no such luck")


@pytest.mark.parametrize(
    ("data", "size"),
    [("\\c1", 1), ("\\01\\02", 2), ("\\91", 1), ("", 0), ("\\a2\\ff\\fe", 3), ("\\d5\\63ab", 4), ("\\dd\\ff\\ff\\ff\\ff", 5)],
)
def test_a_result_that_is_not_one_value_is_refused(tmp_path: Path, data: str, size: int) -> None:
    module = function(f"(call $pack (i32.const 16) (i32.const {size}))", more=f'(data (i32.const 16) "{data}")')
    unit = Bench(tmp_path, module).map(1)[0]
    assert unit.outcome == frames.UNENCODABLE
    assert "not one msgpack value" in unit.error[1]


def test_a_large_result_is_looked_through_without_being_built(tmp_path: Path) -> None:
    # An array of two million empty arrays: 160 times its size as objects.
    fill = "(memory.fill (i32.const 65536) (i32.const 0x90) (i32.const 2000000))"
    head = '(data (i32.const 65531) "\\dd\\00\\1e\\84\\80")'
    whole = function(f"{fill} (call $pack (i32.const 65531) (i32.const 2000005))", more=head, pages=40)
    unit = Bench(tmp_path, whole).map(1, result_bytes_max=4 << 20)[0]
    assert unit.outcome == frames.OK
    cut = function(f"{fill} (call $pack (i32.const 65531) (i32.const 2000004))", more=head, pages=40)
    assert Bench(tmp_path, cut).map(1, result_bytes_max=4 << 20)[0].outcome == frames.UNENCODABLE


def test_a_result_over_the_limit_is_too_large(tmp_path: Path) -> None:
    unit, small = Bench(tmp_path, WORK).map("x" * 1000, "x", result_bytes_max=500)
    assert (unit.outcome, small.value) == (frames.TOO_LARGE, "x")
    assert "500" in unit.error[1]


@pytest.mark.parametrize("place", ["(i64.const 0xffffffff00000001)", "(i64.const 0x0001ffff00000002)", "(i64.const 0x8000000000000001)"])
def test_a_result_outside_of_memory_is_refused(tmp_path: Path, place: str) -> None:
    assert Bench(tmp_path, function(place)).map(1)[0].error[0] == "BadPointer"


@pytest.mark.parametrize(
    ("place", "kind"), [("-1", "BadPointer"), ("0x7fffffff", "BadPointer"), ("131071", "BadPointer"), ("0", "MemoryLimit")]
)
def test_a_place_for_the_input_outside_of_memory_is_refused(tmp_path: Path, place: str, kind: str) -> None:
    module = function("(i64.const 0)").replace("(i32.const 1024)", f"(i32.const {place})")
    assert Bench(tmp_path, module).map("a text")[0].error[0] == kind


def test_a_module_without_memory_can_take_no_input(tmp_path: Path) -> None:
    module = WORK.replace('(memory (export "memory") 2)', "")
    assert Bench(tmp_path, module).map(1)[0].error[0] == "BadPointer"


def test_functions_find_the_files_that_their_input_mentions(tmp_path: Path, blob: dict[bytes, str]) -> None:
    module = f"""(module {imports("path_filestat_get")} (memory (export "memory") 2)
      (data (i32.const 0) "{BLOB.hex()}")
      (func (export "alloc") (param i32) (result i32) (i32.const 1024))
      (func (export "work") (param i32 i32) (result i64)
        (i32.store8 (i32.const 500) (call $path_filestat_get (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 64) (i32.const 600)))
        (i64.const 0x000001f400000001)))"""
    raw = msgspec.msgpack.encode({"file": msgspec.msgpack.Ext(EXT_FILE, msgspec.msgpack.encode(REFERENCE))})
    bench = Bench(tmp_path, module)
    units = bench.run(frames.MAP, [raw, encode_value("no file")], files=blob)
    assert [unit.value for unit in units] == [0, 44]


def test_a_library_is_initialised_before_it_is_called(tmp_path: Path) -> None:
    more = '(global $ready (mut i32) (i32.const 0)) (func (export "_initialize") (global.set $ready (i32.const 5)))'
    body = "(i32.store8 (i32.const 0) (global.get $ready)) (call $pack (i32.const 0) (i32.const 1))"
    assert Bench(tmp_path, function(body, more=more)).map(1)[0].value == 5


def test_a_function_that_exits_has_failed(tmp_path: Path) -> None:
    module = WORK.replace("(module", f"(module {imports('proc_exit')}", 1).replace("(i64.or", "(call $proc_exit (i32.const 0)) (i64.or")
    assert Bench(tmp_path, module).map(1)[0].error == ("Exited", "the unit ended itself with exit status 0")


TRAPS = {
    "unreachable": "Unreachable",
    "(drop (i32.load (i32.const 0x7fffffff)))": "MemoryOutOfBounds",
    "(drop (i32.div_s (i32.const 1) (i32.const 0)))": "DivisionByZero",
    "(drop (i32.div_s (i32.const 0x80000000) (i32.const -1)))": "IntegerOverflow",
    "(drop (i32.trunc_f64_s (f64.const nan)))": "BadConversion",
    "(call_indirect (i32.const 1))": "IndirectCallToNull",
    "(call_indirect (i32.const 99))": "TableOutOfBounds",
    "(drop (call_indirect (result i64) (i32.const 0)))": "BadSignature",
    "(call $deep)": "StackOverflow",
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("body", list(TRAPS))
def test_each_trap_has_a_name_and_ends_only_its_unit(tmp_path: Path, body: str, isa: str) -> None:
    more = "(table 2 funcref) (elem (i32.const 0) $deep) (func $deep (call $deep))"
    guarded = f"(if (i32.eq (i32.load8_u (local.get $at)) (i32.const 1)) (then {body})) (call $pack (local.get $at) (local.get $size))"
    trapped, fine = Bench(tmp_path, function(guarded, more=more), isa).map(1, 2)
    assert (trapped.outcome, trapped.error[0]) == (frames.RAISED, TRAPS[body])
    assert fine.value == 2


SPIN = function("(loop $on (br $on)) (i64.const 0)")


@pytest.mark.parametrize("isa", ISAS)
def test_a_unit_without_end_burns_exactly_what_it_was_given(tmp_path: Path, isa: str) -> None:
    bench = Bench(tmp_path, SPIN, isa, fuel_max=100_000)
    unit = bench.map(1)[0]
    assert (unit.outcome, unit.error[0], unit.fuel) == (frames.RAISED, "OutOfFuel", 100_000)


def test_the_deadline_ends_a_unit_and_the_next_one_runs(tmp_path: Path) -> None:
    body = """(if (i32.eq (i32.load8_u (local.get $at)) (i32.const 1)) (then (loop $on (br $on))))
      (call $pack (local.get $at) (local.get $size))"""
    bench = Bench(tmp_path, function(body))
    started = time.monotonic()
    late, fine, late_again = bench.map(1, 2, 1, timeout_s=0.15)
    passed_s = time.monotonic() - started
    assert [late.outcome, fine.outcome, late_again.outcome] == [frames.TIMED_OUT, frames.OK, frames.TIMED_OUT]
    assert late.error == ("TimedOut", "the unit ran longer than its time-out of 0.15 s")
    assert 0.29 < passed_s < 3.0


def test_a_start_function_without_end_is_under_the_same_deadline_and_fuel(tmp_path: Path) -> None:
    module = WORK[:-1] + "(func $s (loop $on (br $on))) (start $s))"
    assert Bench(tmp_path, module).map(1, timeout_s=0.1)[0].outcome == frames.TIMED_OUT
    assert Bench(tmp_path, module, fuel_max=5000).map(1)[0].error[0] == "OutOfFuel"


def test_memory_grows_to_its_limit_and_not_further(tmp_path: Path) -> None:
    body = """(local $pages i32)
      (loop $more (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
      (i32.store8 (i32.const 0) (i32.const 0xcd)) (i32.store8 (i32.const 1) (i32.shr_u (memory.size) (i32.const 8)))
      (i32.store8 (i32.const 2) (memory.size)) (call $pack (i32.const 0) (i32.const 3))"""
    assert Bench(tmp_path, function(body), memory_bytes=20 << 20).map(1)[0].value == 320


def test_units_are_not_started_after_the_node_asked_to_stop(tmp_path: Path) -> None:
    bench = Bench(tmp_path, WORK)
    bench.progress[frames.STOP_AT] = 1
    assert bench.map(1, 2) == []
    assert bench.frames.stopped


def test_progress_names_no_unit_when_all_have_ended(tmp_path: Path) -> None:
    bench = Bench(tmp_path, WORK)
    bench.map(1, 2)
    assert frames.PROGRESS.unpack_from(bench.progress) == (frames.IDLE, 0.0)


def test_results_come_in_few_frames(tmp_path: Path) -> None:
    bench = Bench(tmp_path, WORK)
    assert len(bench.map(*range(300))) == 300
    assert len(bench.frames.done) < 100


def described(unit: Unit) -> list[Any]:
    return [unit.outcome, unit.payload.hex(), unit.fuel]


def test_units_are_the_same_again_and_on_every_kind_of_engine(tmp_path: Path) -> None:
    seen = set()
    for isa in ISAS:
        bench = Bench(tmp_path, CHANCE, isa)
        for _ in range(2):
            seen.add(json.dumps([described(unit) for unit in bench.run(frames.COMMAND, [msgspec.msgpack.encode([["unit"]])] * 2)]))
    assert len(seen) == 1
    first, second = (Unit(outcome, bytes.fromhex(payload), fuel).command.stdout for outcome, payload, fuel in json.loads(seen.pop()))
    assert first[:32] != second[:32], "chance differs from unit to unit"
    assert first[32:] == second[32:]
    assert numbers(first[40:44]) == [0x7FC00000]
    assert first[44:52] == bytes.fromhex("000000000000f87f")


def test_a_unit_does_not_depend_on_its_place_in_a_batch(tmp_path: Path) -> None:
    bench = Bench(tmp_path, CHANCE)
    raw = msgspec.msgpack.encode([["unit"]])
    alone = bench.run(frames.COMMAND, [raw], first=2)[0]
    assert described(bench.run(frames.COMMAND, [raw] * 3)[2]) == described(alone)
    assert described(bench.run(frames.COMMAND, [raw])[0]) != described(alone)


GOLDEN = """
import sys, json
from pathlib import Path
import msgspec
from tests.unit.runtimes.test_wasm_units import CHANCE, described
from tests.unit.runtimes.wasm_units import Bench
from p2pgrid.runtimes.worker import frames
raw = msgspec.msgpack.encode([["unit"]])
print(json.dumps([described(unit) for unit in Bench(Path(sys.argv[1]), CHANCE).run(frames.COMMAND, [raw] * 2)]))
"""


def test_another_process_gets_the_same_bytes_and_fuel(tmp_path: Path) -> None:
    here = [described(unit) for unit in Bench(tmp_path, CHANCE).run(frames.COMMAND, [msgspec.msgpack.encode([["unit"]])] * 2)]
    (tmp_path / "other").mkdir()
    there = subprocess.run(
        [sys.executable, "-c", GOLDEN, str(tmp_path / "other")],
        check=True,
        capture_output=True,
        timeout=60,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert json.loads(there.stdout) == here


def test_the_numbers_of_today_are_those_of_tomorrow(tmp_path: Path) -> None:
    """What two workers of different versions of this program must agree on: change it, and quorums break."""
    unit = Bench(tmp_path, CHANCE).command()
    chance = "813892284c7da3d2f61fdfa748e12b7ccc3c0236e056ba03fa423e22c1afcde4"
    moment, no_numbers = "e8038ab9359ae515", "0000c07f000000000000f87f"
    assert unit.command.stdout.hex() == chance + moment + no_numbers
    assert unit.fuel == 60_088


def test_a_module_that_is_damaged_after_compiling_is_not_loaded(tmp_path: Path) -> None:
    bench = Bench(tmp_path, WORK)
    assert bench.map(1)[0].value == 1
    (tmp_path / "bad.cwasm").write_bytes(b"\x7fELF nonsense")
    load = frames.Load(
        folder=str(tmp_path),
        file_bytes_max=1,
        open_files_max=1,
        memory_bytes=1 << 20,
        nice=0,
        runtime="wasm",
        source="",
        file_name="",
        entry="work",
        program=str(tmp_path / "bad.cwasm"),
    )
    with pytest.raises(Failure) as caught:
        type(bench.runner)(load, None, bytearray(frames.SHARED_BYTES), bench.frames)  # type: ignore[arg-type]
    assert caught.value.kind == "BadModule"


def test_the_modules_of_the_documentation_do_what_it_says(tmp_path: Path) -> None:
    page = Path(__file__).parents[3] / "docs" / "spec" / "wasm-units.md"
    hello, double = (block.partition("```")[0] for block in page.read_text(encoding="utf-8").split("```wat\n")[1:])
    assert Bench(tmp_path, hello).command().command == (0, b"hello\n", "")
    assert [unit.value for unit in Bench(tmp_path, double).map(0, 21, 63)] == [0, 42, 126]
