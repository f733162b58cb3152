"""How units end inside of a guest: the same table as for native units."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest

from p2pgrid.runtimes.worker import frames
from p2pgrid.runtimes.worker.engine import Failure
from p2pgrid.runtimes.worker.guest import LoadFailure

OK, RAISED, TIMED_OUT, TOO_LARGE, UNENCODABLE = frames.OK, frames.RAISED, frames.TIMED_OUT, frames.TOO_LARGE, frames.UNENCODABLE


def test_results_come_back_in_the_order_of_the_inputs(guests: Any) -> None:
    ended = guests("def work(x): return x * x").run(list(range(3000)), first=1000)
    assert set(ended.outcomes) == {OK}
    assert ended.values == [x * x for x in range(3000)]
    assert len(ended.frames) < 100


def test_values_of_many_types_survive_the_trip_both_ways(guests: Any) -> None:
    items = [None, True, 2**200, -5, 1.5, "é", b"\0\xff", [1, [2]], {"a": {3: 4}}, {(1, 2): "pair"}, [0.5] * 50, list(range(300))]
    assert guests("def work(x): return x").run(items).values == items


def test_a_unit_that_raises_costs_only_itself_and_shows_its_own_lines(guests: Any) -> None:
    source = "def inner(x):\n    return 1 // x  # the line to blame\n\ndef work(x):\n    return inner(x)\n"
    ended = guests(source).run([1, 0, 1])
    assert ended.outcomes == [OK, RAISED, OK]
    error = ended.values[1]
    assert error["type"] == "ZeroDivisionError"
    assert 'File "job.py", line 2, in inner' in error["traceback"]
    assert "the line to blame" in error["traceback"]
    assert "p2pgrid_guest" not in error["traceback"]


@pytest.mark.parametrize(
    ("raising", "kind"),
    [
        ("raise SystemExit(3)", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("work(x)", "RecursionError"),
        ("exec('1 +')", "SyntaxError"),
    ],
)
def test_even_exits_and_runaway_recursion_only_fail_the_unit(guests: Any, raising: str, kind: str) -> None:
    ended = guests(f"def work(x):\n    if x: {raising}\n    return 0\n").run([1, 0])
    assert ended.outcomes == [RAISED, OK]
    assert ended.values[0]["type"] == kind


def test_an_error_that_cannot_be_shown_is_still_reported(guests: Any) -> None:
    ended = guests("class Bad(Exception):\n    def __str__(self): raise ValueError\ndef work(x): raise Bad").run([1])
    assert (ended.outcomes, ended.values[0]["type"]) == ([RAISED], "Bad")


def test_a_long_message_is_cut(guests: Any) -> None:
    error = guests("def work(x): raise ValueError('x' * 1_000_000)").run([1]).values[0]
    assert len(error["message"]) <= 4096
    assert len(error["traceback"]) <= 4096


def test_a_result_that_cannot_travel_names_type_and_place(guests: Any) -> None:
    ended = guests("def work(x):\n    return [1, {'x': object() if x else 2}]\n").run([1, 0])
    assert ended.outcomes == [UNENCODABLE, OK]
    assert "[1]['x']" in ended.values[0]["message"]


def test_a_result_over_the_limit_is_too_large_and_the_next_unit_runs(guests: Any) -> None:
    ended = guests("def work(x): return b'x' * x").run([2000, 10, 1000], result_bytes_max=1500)
    assert ended.outcomes == [TOO_LARGE, OK, OK]
    assert "1500" in ended.values[0]["message"]


def test_an_input_that_cannot_be_read_fails_alone(guests: Any) -> None:
    ended = guests("def work(x): return x").run_raw(b"\x93\x01\xa1\xff\x02")
    assert ended.outcomes == [OK, RAISED, OK]
    assert "cannot be read" in ended.values[1]["message"]


def test_lists_are_folded_and_finished(guests: Any) -> None:
    job = guests("def work(x): 0\ndef reduce(a, b): return a + b\ndef finish(results): return sorted(results)")
    assert job.run([[1, 2, 3], ["a", "b"]], kind=frames.REDUCE).values == [6, "ab"]
    assert job.run([[3, 1, 2]], kind=frames.FINISH).values == [[1, 2, 3]]


def test_a_missing_function_is_named(guests: Any) -> None:
    ended = guests("def work(x): 0").run([[1]], kind=frames.REDUCE)
    assert ended.outcomes == [RAISED]
    assert "reduce" in ended.values[0]["message"]


@pytest.mark.parametrize(
    ("source", "kind", "words"),
    [
        ("def work(x:\n", "SyntaxError", "job.py"),
        ("def other(x): 0", "NameError", "no function work"),
        ("import nowhere_to_be_found\ndef work(x): 0", "ModuleNotFoundError", "nowhere_to_be_found"),
        ("1 / 0", "ZeroDivisionError", ""),
        ("raise SystemExit(2)", "SystemExit", ""),
    ],
)
def test_code_that_does_not_load_says_why(guests: Any, source: str, kind: str, words: str) -> None:
    with pytest.raises(LoadFailure) as caught:
        guests(source)
    described = msgspec.msgpack.decode(caught.value.payload)
    assert described["type"] == kind
    assert words in described["message"] + described["traceback"]


def test_code_that_traps_while_loading_is_a_failure_too(guests: Any) -> None:
    with pytest.raises(Failure):
        guests("import _random\n_random.Random()\ndef work(x): 0")


def test_a_late_unit_fails_alone_and_those_of_its_chunk_are_run_again(guests: Any) -> None:
    job = guests("def work(x):\n    while x == 70: pass\n    return x")
    started = time.monotonic()
    ended = job.run(list(range(100)), timeout_s=0.5)
    assert ended.outcomes == [OK] * 70 + [TIMED_OUT] + [OK] * 29
    assert [value for value in ended.values if isinstance(value, int)] == [x for x in range(100) if x != 70]
    assert "0.5 s" in ended.values[70]["message"]
    assert time.monotonic() - started < 8.0


def test_a_unit_that_is_slow_among_quick_ones_still_gets_all_its_time(guests: Any) -> None:
    source = "def work(x):\n    if x == 50:\n        for _ in range(8_000_000): pass\n    return x"
    ended = guests(source).run(list(range(60)), timeout_s=30.0)
    assert ended.values == list(range(60))


def test_what_a_guest_cannot_survive_fails_its_unit_alone(guests: Any) -> None:
    source = "import _random\ndef work(x):\n    if x == 5: _random.Random()\n    return x"
    ended = guests(source).run(list(range(10)))
    assert ended.outcomes == [OK] * 5 + [RAISED] + [OK] * 4
    assert ended.values[5]["type"] == "Unreachable"


def test_state_that_units_leave_behind_is_kept_as_in_a_native_process(guests: Any) -> None:
    ended = guests("seen = []\ndef work(x):\n    seen.append(x)\n    return seen").run([1, 2, 3])
    assert ended.values == [[1], [1, 2], [1, 2, 3]]


def test_fresh_guests_remember_nothing(guests: Any) -> None:
    ended = guests("seen = []\ndef work(x):\n    seen.append(x)\n    return seen", fresh=True).run([1, 2, 3])
    assert ended.values == [[1], [2], [3]]


def test_fuel_is_reported_and_its_limit_ends_a_unit(guests: Any) -> None:
    source = "def work(x):\n    for _ in range(x): pass\n    return x"
    ended = guests(source, fuel_max=50_000_000).run([10, 100_000_000, 10])
    assert ended.outcomes == [OK, RAISED, OK]
    assert ended.values[1]["type"] == "OutOfFuel"
    assert 0 < ended.fuel[0] < 1_000_000
    assert ended.fuel[1] >= 49_000_000


def test_the_fuel_of_a_warm_chunk_is_spread_over_its_units(guests: Any) -> None:
    ended = guests("def work(x): return x").run([1] * 500)
    assert min(ended.fuel) > 0


def test_no_further_unit_begins_once_the_node_asked_to_stop(guests: Any) -> None:
    job = guests("def work(x): return x")
    job.progress[frames.STOP_AT] = 1
    ended = job.run([1, 2, 3])
    assert ended.outcomes == []
    assert ended.frames == [[6, 3]]


def test_the_progress_bytes_are_idle_behind_a_run(guests: Any) -> None:
    job = guests("def work(x): return x")
    job.run([1, 2], first=7)
    assert frames.PROGRESS.unpack_from(job.progress)[0] == frames.IDLE


def test_what_units_print_comes_out_of_the_process(guests: Any, capsys: pytest.CaptureFixture[str]) -> None:
    source = (
        "import sys, os\ndef work(x):\n    print('hello', x)\n    sys.stderr.write('oops\\n')\n    os.write(1, b'raw\\n')\n    return x"
    )
    assert guests(source).run([1, 2]).values == [1, 2]
    printed = capsys.readouterr().out
    assert "hello 2" in printed
    assert "oops" in printed
    assert "raw" in printed


def test_only_the_end_of_endless_output_is_kept(guests: Any, capsys: pytest.CaptureFixture[str]) -> None:
    guests("def work(x):\n    for number in range(20_000): print(number)").run([1])
    printed = capsys.readouterr().out
    assert len(printed) <= 16 << 10
    assert "19999" in printed


def test_long_results_are_flushed_on_the_way(guests: Any) -> None:
    ended = guests("def work(x): return bytes(100_000)").run([0] * 20)
    assert len(ended.frames) >= 2


def test_warm_units_cost_microseconds(guests: Any) -> None:
    job = guests("def work(x): return x")
    job.run([1] * 2000)
    started = time.process_time()
    job.run([1] * 10_000)
    assert time.process_time() - started < 10_000 / 4_000


def test_a_fresh_guest_costs_milliseconds(guests: Any) -> None:
    job = guests("def work(x): return x", fresh=True)
    job.run([1] * 3)
    started = time.process_time()
    job.run([1] * 20)
    assert time.process_time() - started < 20 * 0.05
