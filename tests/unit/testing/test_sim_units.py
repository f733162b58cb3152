"""What comes of units on a simulated machine, truth and lies, and that nothing of them leaks into the simulation."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pgrid.errors import BadDataError
from p2pgrid.model.ids import BlobId
from p2pgrid.model.reasons import Reason
from p2pgrid.model.values import FileRef, encode_value
from p2pgrid.offload import InlineOffload
from p2pgrid.runtimes.pool import WorkerPool
from p2pgrid.runtimes.tasks import BatchChunk, BatchTask, Code, JobKey, Kind, Outcome, PoolPolicy
from p2pgrid.runtimes.worker.serve import MODULE_NAME
from p2pgrid.testing.parts.behaviour import altered
from p2pgrid.testing.parts.runtime import START_S, Behaviour, Cpu, SimulatedWorkers, UnitTimes
from tests.unit.testing.sim_workers import JOB, SQUARE, Machine, batch, flat, machines

Make = Callable[..., Machine]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    with machines(tmp_path) as make:
        yield make


# -- what comes of units ---------------------------------------------------------------------------


CASES: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("def work(x): return [x, {'a': x}, {3, 1, 2}]", [None, 1.5, "é", b"\0", 2**70], {}),
    ("def inner(x):\n    return 1 // x  # blame\ndef work(x):\n    return inner(x)", [1, 0, 2], {"code": {"file_name": "mine.py"}}),
    ("def work(x):\n    raise SystemExit(x)", [3], {}),
    ("def work(x): return object()", [1], {}),
    ("def work(x): return 'x' * x", [1, 500, 2], {"result_bytes_max": 100}),
    ("def work(x): return x\ndef reduce(a, b): return a + b", [[1, 2, 3], [4]], {"kind": Kind.REDUCE}),
    ("def work(x): return x\ndef finish(xs): return sorted(xs)", [[3, 1, 2]], {"kind": Kind.FINISH}),
    ("def work(x): return x", [[1]], {"kind": Kind.FINISH}),
    ("import random\ndef work(x): return random.random()", [1, 2, 3], {"seed": b"12345678", "first": 40}),
    ("def other(x): return x", [1, 2], {}),
    ("1 // 0", [1, 2], {"code": {"file_name": "top.py"}}),
    ("def work(x:", [1], {}),
    ("import os, pathlib\ndef work(x): return os.listdir(), pathlib.Path('f').write_text('x'), __name__", [1, 2], {"code": {}}),
]


def test_outcomes_are_those_of_real_worker_processes(make: Make, tmp_path: Path) -> None:
    async def really() -> list[list[tuple[Outcome, Any]]]:
        pool = WorkerPool(tmp_path / "pool", PoolPolicy(slots=1), InlineOffload())
        await pool.start()
        found = []
        for source, items, options in CASES:
            chunks: list[BatchChunk] = []
            await pool.run(batch(source, items, **options), chunks.append)
            found.append(flat(chunks, options.get("first", 0)))
        await pool.close()
        return found

    machine = make()
    for real, (source, items, options) in zip(asyncio.run(really()), CASES, strict=True):
        assert machine.run(source, items, **options) == real


def test_a_unit_past_its_time_out_ends_then_and_its_process_with_it(make: Make) -> None:
    class Slow(UnitTimes):
        def base_s(self, job: bytes, kind: int, index: int) -> float:
            return 60.0 if index == 1 else 0.1

    machine = make(times=Slow(1))
    source = "seen = []\ndef work(x):\n    seen.append(x)\n    return seen"
    ended = machine.run(source, [10, 11, 12], timeout_s=2.0)
    assert [outcome for outcome, _ in ended] == [Outcome.OK, Outcome.TIMED_OUT, Outcome.OK]
    assert (ended[1][1]["type"], ended[1][1]["message"]) == ("TimedOut", "the unit ran longer than its time-out of 2 s")
    assert ended[2][1] == [12]
    assert [when for when, _ in machine.chunks] == pytest.approx([START_S + 0.1, START_S + 2.1, 2 * START_S + 2.2])
    assert machine.cpu.wasted_s == pytest.approx(2.0)


def test_units_die_by_chance_and_only_they(make: Make) -> None:
    machine = make(died=0.5, rng=random.Random(3))
    ended = machine.run(SQUARE, list(range(40)))
    died = [index for index, (outcome, _) in enumerate(ended) if outcome == Outcome.DIED]
    assert 10 < len(died) < 30
    assert [value for outcome, value in ended if outcome == Outcome.OK] == [x * x for x in range(40) if x not in died]
    assert ended[died[0]][1]["type"] == "Died"
    assert 0 < machine.cpu.wasted_s < len(died)
    machine.workers.died = 0.0
    assert {outcome for outcome, _ in machine.run(SQUARE, list(range(10)))} == {Outcome.OK}


def test_chance_to_die_needs_a_source_of_chance() -> None:
    with pytest.raises(ValueError, match="rng"):
        SimulatedWorkers(PoolPolicy(), Cpu(), UnitTimes(1), died=0.1)


def test_large_results_are_cut_into_chunks(make: Make) -> None:
    machine = make(times=UnitTimes(1, median_s=0.001, sigma=0.0))
    assert len(machine.run("def work(x): return bytes(100_000)", list(range(10)))) == 10
    assert [len(chunk.outcomes) for _, chunk in machine.chunks] == [3, 3, 3, 1]
    assert sum(chunk.run_us for _, chunk in machine.chunks) == pytest.approx(10_000, abs=1)


def test_commands_are_not_run(make: Make) -> None:
    machine = make()
    ended = machine.run("", [["true"], ["true"]], runtime="command", kind=Kind.COMMAND)
    assert [outcome for outcome, _ in ended] == [Outcome.DIED, Outcome.DIED]
    assert "not run in a simulation" in ended[0][1]["message"]


def test_inputs_that_are_no_array_are_refused(make: Make) -> None:
    machine = make()
    with pytest.raises(BadDataError):
        machine.do(machine.workers.run(BatchTask(job=JobKey(b"", JOB), code=Code(), inputs=b"\xc1"), machine.take))


def test_files_come_in_and_go_out(make: Make, tmp_path: Path) -> None:
    machine = make()
    brought = tmp_path / "brought"
    brought.write_bytes(b"abc")
    reference = FileRef(BlobId(b"b" * 32), 3, "in.txt")
    raw = msgspec.Raw(msgspec.msgpack.encode(msgspec.msgpack.Ext(1, msgspec.msgpack.encode(reference))))
    source = (
        "from pathlib import Path\ndef work(x):\n"
        "    out = Path('out.txt')\n    out.write_bytes(x.read_bytes() * 2)\n    return [x.name, out]"
    )
    task = BatchTask(job=JobKey(b"ana", JOB), code=Code(source=source), inputs=[raw, raw], files={reference.blob: brought}, first=5)
    machine.do(machine.workers.run(task, machine.take))
    values = [value for _, value in flat([chunk for _, chunk in machine.chunks], 5)]
    files = [file for _, chunk in machine.chunks for file in chunk.files]
    assert [value[0] for value in values] == ["in.txt", "in.txt"]
    assert [(file.index, file.size_bytes, file.path.read_bytes()) for file in files] == [(5, 6, b"abcabc"), (6, 6, b"abcabc")]
    assert values[0][1] == FileRef(files[0].blob, 6, "out.txt")


# -- behaviours -------------------------------------------------------------------------------------------------


def test_liars_answer_as_their_kind_does(make: Make) -> None:
    def answers(kind: str, name: str) -> list[Any]:
        machine = make(f"{kind}-{name}", behaviour=Behaviour(kind, name))
        ended = machine.run(SQUARE, [0, 1, 2, 3], first=7)
        assert {outcome for outcome, _ in ended} == {Outcome.OK}
        assert (machine.cpu.busy_s == 0) == (kind == "lazy")
        return [value for _, value in ended]

    right = [0, 1, 4, 9]
    assert answers("honest", "a") == answers("digest", "a") == right
    assert answers("lazy", "a") == [None] * 4
    wrong, other = answers("wrong", "a"), answers("wrong", "b")
    colluding = answers("colluding", "a")
    assert colluding == answers("colluding", "b")
    for values in (wrong, other, colluding):
        assert all(isinstance(value, int) for value in values)
        assert not any(value == truth for value, truth in zip(values, right, strict=True))
    assert not any(a == b for a, b in zip(wrong, other, strict=True))


def test_the_lazy_take_no_time_and_run_nothing(make: Make) -> None:
    machine = make(behaviour=Behaviour("lazy"))
    machine.run("1 // 0", [1, 2])
    assert machine.world.now == 0


def test_liars_do_not_lie_about_failures_and_bring_no_files(make: Make) -> None:
    machine = make(behaviour=Behaviour("wrong", "m"))
    source = "from pathlib import Path\ndef work(x):\n    Path('f').write_text('x')\n    return {'f': Path('f'), 'n': 1 // x}"
    ended = machine.run(source, [1, 0])
    assert [outcome for outcome, _ in ended] == [Outcome.OK, Outcome.RAISED]
    assert ended[1][1]["type"] == "ZeroDivisionError"
    assert not any(chunk.files for _, chunk in machine.chunks)
    assert machine.workers.room._folder is not None
    assert list(machine.workers.room._folder.rglob("results/*")) == []


@pytest.mark.parametrize(
    "value",
    [0, 2**80, True, None, 1.5, 1e300, float("inf"), float("nan"), "", b"", [], [1, 2], {}, {"a": [None]}, FileRef(BlobId(b"b"), 1, "x")],
)
def test_a_lie_is_another_value_and_another_one_for_each_mark(value: Any) -> None:
    one, two = altered(value, 5), altered(value, 6)
    assert encode_value(one) != encode_value(value)
    assert encode_value(one) != encode_value(two)


def test_an_unknown_behaviour_is_refused() -> None:
    with pytest.raises(ValueError, match="honset"):
        Behaviour("honset")


# -- nothing leaks ------------------------------------------------------------------------------------------------


def test_units_leave_the_process_as_they_found_it(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    machine = make()
    source = (
        "import os, random, sys\nsys.path.append('/nowhere')\nrandom.seed(9)\n"
        "def work(x):\n    print('printed', x)\n    os.chdir('/')\n    random.seed(x)\n    sys.modules['p2pgrid_job'] = 5\n    return x"
    )
    random.seed(1)
    before = (random.getstate(), os.getcwd(), list(sys.path), sys.stdout, sys.modules.get(MODULE_NAME))
    assert machine.run(source, [1, 2]) == [(Outcome.OK, 1), (Outcome.OK, 2)]
    assert (random.getstate(), os.getcwd(), list(sys.path), sys.stdout, sys.modules.get(MODULE_NAME)) == before
    assert capsys.readouterr().out == ""
    assert machine.workers.log_tail(JOB) == "printed 1\nprinted 2\n"
    assert machine.workers.log_tail(b"another") == ""


def test_chance_in_units_is_a_function_of_job_and_unit(make: Make) -> None:
    source = "import random\ndef work(x): return random.random()"
    one, two = make("one"), make("two")
    random.seed(5)
    values = one.run(source, [0, 0, 0], seed=b"s" * 8)
    assert two.run(source, [0, 0, 0], seed=b"s" * 8) == values
    assert two.run(source, [0], seed=b"s" * 8, first=2) == values[2:]
    assert two.run(source, [0, 0, 0], seed=b"t" * 8) != values


def test_units_find_no_event_loop_and_may_run_their_own(make: Make) -> None:
    source = "import asyncio\nasync def f(x): return x + 1\ndef work(x): return asyncio.run(f(x))"
    assert make().run(source, [1]) == [(Outcome.OK, 2)]


def test_modules_are_kept_apart_by_machine_and_shared_by_batches(make: Make) -> None:
    source = "seen = []\ndef work(x):\n    seen.append(x)\n    return list(seen)"
    one, two = make("one"), make("two")
    one.run(source, [1])
    assert one.run(source, [2]) == [(Outcome.OK, [1, 2])]
    assert one.run(source, [3], submitter=b"bob") == [(Outcome.OK, [3])]
    assert two.run(source, [4]) == [(Outcome.OK, [4])]


def test_tracebacks_show_the_lines_of_their_own_job(make: Make) -> None:
    machine = make()
    for word in ("first", "second"):
        ended = machine.run(f"def work(x):\n    raise ValueError  # {word}", [1])
        assert f"# {word}" in ended[0][1]["traceback"]


def test_dataclasses_of_a_job_find_their_module(make: Make) -> None:
    source = "from dataclasses import dataclass, field\n@dataclass\nclass P:\n    x: 'int' = 0\ndef work(x): return P(x)"
    assert make().run(source, [4]) == [(Outcome.OK, {"x": 4})]


def test_winding_down_ends_runs_behind_the_unit_they_are_at(make: Make) -> None:
    machine = make(slots=2)
    runs = [machine.begin(machine.workers.run(batch(SQUARE, [1, 2, 3]), machine.take)) for _ in range(3)]
    machine.world.run_for(START_S + 1.5)
    machine.loop.call_soon(machine.workers.wind_down)
    machine.world.run_for(0.1)
    assert sum(run.done() for run in runs) == 1, "the one that waited ends at once"
    machine.world.run_for(0.5)
    assert {run.exception().reason for run in runs} == {Reason.DRAINED}  # type: ignore[union-attr]
    assert sorted(value for _, chunk in machine.chunks for _, value in flat([chunk], chunk.first)) == [1, 1, 4, 4]


def test_a_stopped_machine_spends_nothing_more(make: Make) -> None:
    machine = make()
    run = machine.begin(machine.workers.run(batch(SQUARE, [1, 2, 3]), machine.take))
    machine.world.run_for(START_S + 1.5)
    machine.workers.wind_down()
    machine.do(machine.workers.stop())
    spent_s = machine.cpu.busy_s
    machine.world.run_for(5.0)
    assert run.exception().reason == Reason.SHUTDOWN  # type: ignore[union-attr]
    assert machine.cpu.busy_s == spent_s
