"""Units of native jobs, each run by a real worker process."""

from __future__ import annotations

from typing import Any

import pytest

from p2pgrid.errors import BadDataError
from p2pgrid.runtimes.pool import WorkerPool
from p2pgrid.runtimes.tasks import BatchTask, Code, JobKey, Kind, Outcome

KEY = JobKey(b"submitter", b"job")


async def test_results_come_back_in_the_order_of_the_inputs(run_units: Any) -> None:
    ended = await run_units("def work(x):\n    return x * x\n", list(range(600)), first=1000)
    assert set(ended.outcomes) == {Outcome.OK}
    assert ended.values == [x * x for x in range(600)]


async def test_values_of_many_types_survive_the_trip_both_ways(run_units: Any) -> None:
    items = [None, True, 2**200, -5, 1.5, "é", b"\0", [1, [2]], {"a": {3: 4}}, {(1, 2): "pair"}]
    ended = await run_units("def work(x): return x", items)
    assert ended.values == items


async def test_a_unit_that_raises_costs_only_itself_and_shows_its_own_lines(run_units: Any) -> None:
    source = "def inner(x):\n    return 1 // x  # the line to blame\n\ndef work(x):\n    return inner(x)\n"
    ended = await run_units(source, [1, 0, 1], code={"file_name": "mine.py"})
    assert ended.outcomes == [Outcome.OK, Outcome.RAISED, Outcome.OK]
    error = ended.values[1]
    assert error["type"] == "ZeroDivisionError"
    assert 'File "mine.py", line 2, in inner' in error["traceback"]
    assert "the line to blame" in error["traceback"]
    assert "units.py" not in error["traceback"]


@pytest.mark.parametrize(
    ("raising", "kind"),
    [("raise SystemExit(3)", "SystemExit"), ("raise KeyboardInterrupt", "KeyboardInterrupt"), ("work(x)", "RecursionError")],
)
async def test_even_exits_and_runaway_recursion_only_fail_the_unit(run_units: Any, raising: str, kind: str) -> None:
    ended = await run_units(f"def work(x):\n    if x: {raising}\n    return 0\n", [1, 0])
    assert ended.outcomes == [Outcome.RAISED, Outcome.OK]
    assert ended.values[0]["type"] == kind


async def test_an_error_that_cannot_be_shown_is_still_reported(run_units: Any) -> None:
    source = "class Bad(Exception):\n    def __str__(self): raise ValueError\ndef work(x): raise Bad"
    ended = await run_units(source, [1])
    assert ended.outcomes == [Outcome.RAISED]
    assert ended.values[0]["type"] == "Bad"


async def test_a_long_message_is_cut(run_units: Any) -> None:
    ended = await run_units("def work(x): raise ValueError('x' * 1_000_000)", [1])
    assert len(ended.values[0]["message"]) <= 4096
    assert len(ended.values[0]["traceback"]) <= 4096


async def test_a_result_that_cannot_travel_names_type_and_place(run_units: Any) -> None:
    ended = await run_units("def work(x):\n    return [1, {'x': object() if x else 2}]\n", [1, 0])
    assert ended.outcomes == [Outcome.UNENCODABLE, Outcome.OK]
    assert "[1]['x']" in ended.values[0]["message"]
    assert "object" in ended.values[0]["message"]


async def test_a_result_over_the_limit_is_too_large_and_the_next_unit_runs(run_units: Any) -> None:
    ended = await run_units("def work(x): return b'x' * x", [2000, 10, 1000], result_bytes_max=1500)
    assert ended.outcomes == [Outcome.TOO_LARGE, Outcome.OK, Outcome.OK]
    assert "1500" in ended.values[0]["message"]


async def test_code_that_does_not_load_fails_every_unit_with_the_traceback(run_units: Any) -> None:
    ended = await run_units("import nowhere_to_be_found\ndef work(x): return x", [1, 2])
    assert ended.outcomes == [Outcome.RAISED] * 2
    assert ended.values[0]["type"] == "ModuleNotFoundError"
    assert "import nowhere_to_be_found" in ended.values[0]["traceback"]


async def test_code_that_dies_while_loading_is_reported_as_died(run_units: Any) -> None:
    ended = await run_units("import os; os._exit(3)\ndef work(x): return x", [1, 2])
    assert ended.outcomes == [Outcome.DIED] * 2
    assert "exit status 3" in ended.values[0]["message"]


async def test_a_missing_function_is_named(run_units: Any) -> None:
    ended = await run_units("def work(x): return x", [[1]], kind=Kind.REDUCE)
    assert ended.outcomes == [Outcome.RAISED]
    assert "reduce" in ended.values[0]["message"]


async def test_the_main_guard_stays_off_and_the_module_is_importable(run_units: Any) -> None:
    source = (
        "import sys\nfrom dataclasses import dataclass\nran = False\nif __name__ == '__main__': ran = True\n"
        "@dataclass\nclass P:\n    a: int\ndef work(x): return [ran, sys.modules[__name__] is not None, P(x), sys.argv]\n"
    )
    ended = await run_units(source, [4])
    assert ended.values == [[False, True, {"a": 4}, ["job"]]]


async def test_reduce_folds_each_list_and_finish_takes_all(run_units: Any) -> None:
    source = "def work(x): return x\ndef reduce(a, b): return a + b\ndef finish(results): return sorted(results)\n"
    ended = await run_units(source, [[1, 2, 3], [5]], kind=Kind.REDUCE)
    assert ended.values == [6, 5]
    ended = await run_units(source, [[3, 1, 2]], kind=Kind.FINISH)
    assert ended.values == [[1, 2, 3]]


async def test_chance_depends_on_job_and_unit_only(run_units: Any) -> None:
    source = "import random\ndef work(x):\n    return [random.random() for _ in range(x)]\n"
    whole = await run_units(source, [1, 5, 2], first=7, code={"seed": b"12345678"})
    alone = await run_units(source, [2], first=9, code={"seed": b"12345678"})
    other = await run_units(source, [2], first=9, code={"seed": b"other-seed"})
    assert alone.values[0] == whole.values[2]
    assert other.values[0] != whole.values[2]
    assert whole.values[0][0] != whole.values[1][0]


async def test_the_environment_of_the_node_is_not_inherited(run_units: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PGRID_TEST_SECRET", "do not tell")
    ended = await run_units("import os\ndef work(x): return [dict(os.environ), os.getcwd()]", [0])
    environment, folder = ended.values[0]
    assert "P2PGRID_TEST_SECRET" not in environment
    assert environment["PYTHONHASHSEED"] == "0"
    assert environment["HOME"] == environment["TMPDIR"] == folder


async def test_the_process_stays_warm_for_its_job(run_units: Any, pool: WorkerPool) -> None:
    source = "import os\ndef work(x): return os.getpid()"
    first = await run_units(source, [0, 0])
    again = await run_units(source, [0])
    assert {*first.values, *again.values} == {first.values[0]}
    assert pool.idle == 1


async def test_two_submitters_never_share_a_process(pool: WorkerPool) -> None:
    numbers = []
    for submitter in (b"a", b"b"):
        task = BatchTask(
            job=JobKey(submitter, b"same"),
            code=Code(source="import os\ndef work(x): return os.getpid()"),
            inputs=b"\x91\x00",
        )
        await pool.run(task, lambda chunk: numbers.append(bytes(chunk.payloads[0])))
    assert len(set(numbers)) == 2


async def test_a_memory_limit_turns_a_bomb_into_a_memory_error(run_units: Any) -> None:
    source = "def work(x):\n    return len(bytearray(x))\n"
    ended = await run_units(source, [1 << 30, 10], memory_bytes=128 << 20)
    assert ended.outcomes == [Outcome.RAISED, Outcome.OK]
    assert ended.values[0]["type"] == "MemoryError"


async def test_inputs_that_are_no_array_are_refused_before_any_process_starts(pool: WorkerPool) -> None:
    for inputs in (b"", b"\x05", b"\x92\x01", b"\x91\xc1", b"\x91\x01\x01"):
        with pytest.raises(BadDataError):
            await pool.run(BatchTask(job=KEY, code=Code(source="def work(x): 0"), inputs=inputs), lambda chunk: None)
    assert pool.idle == 0


async def test_an_input_that_cannot_be_read_fails_alone(pool: WorkerPool) -> None:
    outcomes: list[int] = []
    bad_text = b"\xa1\xff"
    task = BatchTask(job=KEY, code=Code(source="def work(x): return x"), inputs=b"\x93\x01" + bad_text + b"\x02")
    await pool.run(task, lambda chunk: outcomes.extend(chunk.outcomes))
    assert outcomes == [Outcome.OK, Outcome.RAISED, Outcome.OK]


async def test_an_empty_batch_is_done_at_once(run_units: Any) -> None:
    assert (await run_units("def work(x): return x", [])).outcomes == []


async def test_results_changed_after_they_were_returned_are_sent_as_they_were(run_units: Any) -> None:
    ended = await run_units("seen = []\ndef work(x):\n    seen.append(x)\n    return seen\n", [1, 2, 3])
    assert ended.values == [[1], [1, 2], [1, 2, 3]]


async def test_long_results_are_flushed_on_the_way(run_units: Any) -> None:
    ended = await run_units("def work(x): return bytes(100_000)", list(range(20)))
    assert len(ended.chunks) >= 5
    assert sum(chunk.run_us for chunk in ended.chunks) > 0


async def test_what_units_print_is_kept_for_people_only(run_units: Any, pool: WorkerPool) -> None:
    source = "import sys, os\ndef work(x):\n    print('hello', x)\n    sys.stderr.write('oops')\n    os.write(1, b'raw')\n    return x\n"
    ended = await run_units(source, [1, 2])
    assert ended.values == [1, 2]
    await pool.close()
    assert "hello 2" in pool.log_tail(b"job")
