"""Seeds run in processes of their own: crashes, hangs and differing traces become failures of one seed, in order."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from p2pgrid.errors import BadDataError, UsageError
from p2pgrid.model.reasons import Reason
from p2pgrid.testing.batches import batch, coverage
from p2pgrid.testing.batches.batch import Ran, Run, compared, failed, read_plan, run_batch, runs_of
from p2pgrid.testing.batches.timeline import Timeline
from p2pgrid.testing.plans.scenario import FAULT_KINDS, load
from p2pgrid.testing.verdict import Verdict

SCENARIO = """
about = "Nothing happens."
[[nodes]]
kind = "founder"
"""
ENGINE = '''
"""An engine for tests: what a seed does is in its number."""
import os, signal, sys, time
from p2pgrid.testing.verdict import Verdict

def run(scenario, seed):
    print("noise on stdout", flush=True)
    if seed == 3:
        raise ValueError("seed three is bad")
    if seed == 4:
        print("last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if seed == 5:
        print("going to sleep", file=sys.stderr, flush=True)
        time.sleep(60)
    if seed == 2:
        time.sleep(0.3)
    trace = str(hash("text")) if seed == 6 else f"trace {seed}"
    return Verdict(scenario=scenario.name, seed=seed, ok=True, trace_hash=trace, events=seed, figures={"pid": float(os.getpid())})
'''


@pytest.fixture
def scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "engine_for_tests.py").write_text(ENGINE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]))
    path = tmp_path / "quiet.toml"
    path.write_text(SCENARIO)
    return path


def ran(runs: list[Run], *, twice: bool = False, jobs: int = 2) -> list[Ran]:
    shown: list[Ran] = []
    done: list[int] = []
    engine = "engine_for_tests:run"
    found = asyncio.run(run_batch(runs, jobs=jobs, twice=twice, engine=engine, on_verdict=shown.append, on_done=done.append))
    assert shown == found
    assert done == list(range(1, len(runs) + 1))
    return found


def test_verdicts_come_in_the_order_of_the_seeds(scenario: Path) -> None:
    found = ran(runs_of([scenario], range(2, 3)) + runs_of([scenario], range(10, 16)))
    assert [one.verdict.seed for one in found] == [2, *range(10, 16)]
    assert all(one.verdict.ok and one.verdict.scenario == "quiet" for one in found)
    # The slow first seed did not keep the others waiting: they were the other process's.
    assert len({one.verdict.figures["pid"] for one in found}) == 2


def test_a_seed_that_raises_fails_with_its_traceback_and_the_process_goes_on(scenario: Path) -> None:
    bad, good = ran(runs_of([scenario], [3, 7]), jobs=1)
    assert not bad.verdict.ok
    (violation,) = bad.verdict.violations
    assert violation.invariant == "log"
    assert "Traceback" in violation.text
    assert "ValueError: seed three is bad" in violation.text
    assert good.verdict.ok


def test_a_process_that_dies_fails_one_seed_and_its_last_words_are_kept(scenario: Path) -> None:
    bad, good = ran(runs_of([scenario], [4, 7]), jobs=1)
    assert "the process ended with -9" in bad.verdict.violations[0].text
    assert "last words" in bad.verdict.violations[0].text
    assert (bad.verdict.scenario, bad.verdict.seed) == ("quiet", 4)
    assert good.verdict.ok


def test_a_seed_past_its_bound_is_stuck_and_its_process_killed(scenario: Path) -> None:
    stuck, good = ran([*runs_of([scenario], [5], wall_s=1.5), *runs_of([scenario], [7])], jobs=1)
    assert stuck.verdict.violations[0].text.startswith("stuck: no verdict within 1.5 s")
    assert "going to sleep" in stuck.verdict.violations[0].text
    assert good.verdict.ok


def test_only_the_seeds_that_say_so_run_twice(scenario: Path, tmp_path: Path) -> None:
    path = tmp_path / "batch.toml"
    path.write_text('[[run]]\nscenario = "quiet.toml"\nseeds = [6, 6]\ntwice = 1\n[[run]]\nscenario = "quiet.toml"\nseeds = [6, 7]\n')
    first, second, other = ran(read_plan(path)[0], jobs=1)
    assert [first.verdict.ok, second.verdict.ok, other.verdict.ok] == [False, True, True]


def test_twice_finds_what_depends_on_the_hash_seed_and_uses_other_processes(scenario: Path) -> None:
    differs, same = ran(runs_of([scenario], [6, 7]), twice=True, jobs=1)
    assert not differs.verdict.ok
    assert "two runs of one seed differ" in differs.verdict.violations[-1].text
    assert same.verdict.ok
    assert ran(runs_of([scenario], [6]))[0].verdict.ok


def test_processes_are_replaced_after_some_seeds(scenario: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "SEEDS_PER_PROCESS", (2, 1))
    pids = [one.verdict.figures["pid"] for one in ran(runs_of([scenario], range(10, 14)), jobs=1)]
    assert pids[0] == pids[1] != pids[2] == pids[3]


async def test_a_batch_that_is_cancelled_leaves_no_process(scenario: Path) -> None:
    runs = [*runs_of([scenario], [7]), *runs_of([scenario], [5])]
    first = asyncio.Event()
    pids: list[int] = []

    def seen(one: Ran) -> None:
        pids.append(int(one.verdict.figures["pid"]))
        first.set()

    task = asyncio.create_task(run_batch(runs, jobs=1, engine="engine_for_tests:run", on_verdict=seen))
    async with asyncio.timeout(30):
        await first.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


async def test_an_error_of_whoever_is_told_ends_the_batch(scenario: Path) -> None:
    def broken(one: Ran) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        await run_batch(runs_of([scenario], [7, 8, 9]), jobs=1, engine="engine_for_tests:run", on_verdict=broken)


def test_a_process_whose_parent_is_gone_ends_in_the_middle_of_a_seed(scenario: Path) -> None:
    run = msgspec.json.encode(runs_of([scenario], [5])[0]).decode()
    # The parent of the worker ends at once; the worker keeps this process's stderr open until it ends too.
    script = "import os, subprocess, sys; p = subprocess.Popen([*sys.argv[1:-1], str(os.getpid())], stdin=subprocess.PIPE); "
    script += "p.stdin.write(sys.argv[-1].encode() + b'\\n'); p.stdin.flush()"
    worker = [sys.executable, "-m", "p2pgrid.testing.batches.batch", "engine_for_tests:run"]
    done = subprocess.run([sys.executable, "-c", script, *worker, run], capture_output=True, timeout=15, check=True)
    assert b"going to sleep" in done.stderr


def test_a_file_that_is_no_scenario_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(BadDataError):
        runs_of([tmp_path / "gone.toml"], [1])


def test_the_bound_of_wall_time_is_the_engines(tmp_path: Path) -> None:
    path = tmp_path / "wide.toml"
    path.write_text('engine = "core"\n' + SCENARIO.strip())
    assert runs_of([path], [1])[0].wall_s == batch.WALL_S["core"]
    assert runs_of([path], [1], wall_s=7.0)[0].wall_s == 7.0


def test_a_batch_file_names_scenarios_beside_it(scenario: Path, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    path = tmp_path / "deep" / "batch.toml"
    path.write_text('coverage = true\n[[run]]\nscenario = "../quiet.toml"\nseeds = [3, 5]\ntwice = 2\n')
    runs, wants_coverage = read_plan(path)
    assert wants_coverage
    assert [(run.path, run.name, run.seed) for run in runs] == [(str(scenario), "quiet", seed) for seed in (3, 4, 5)]
    assert [run.twice for run in runs] == [True, True, False]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[[run]]\n",
        "[[run]]\nscenario = 'quiet.toml'\nseeds = [5, 3]",
        "[[run]]\nscenario = 'quiet.toml'\nseeds = [1, 2]\nmore = 1",
        "no",
    ],
)
def test_a_batch_file_that_makes_no_sense_is_refused(scenario: Path, tmp_path: Path, text: str) -> None:
    path = tmp_path / "batch.toml"
    path.write_text(text)
    with pytest.raises(BadDataError):
        read_plan(path)


def test_runs_of_one_seed_agree_when_their_traces_do() -> None:
    one = Ran(Verdict(scenario="x", seed=1, ok=True, trace_hash="a", events=3), 1.0)
    assert compared(one, Ran(msgspec.structs.replace(one.verdict), 2.0)) == one
    other = Ran(failed("x", 1, "it raised"), 1.0)
    both = compared(one, other).verdict
    assert not both.ok
    assert both.violations[0].text == "it raised"


def test_coverage_names_what_was_never_hit(scenario: Path) -> None:
    quiet = msgspec.structs.replace(load(scenario), expect=msgspec.structs.replace(load(scenario).expect, reasons=("busy", "stale")))
    verdicts = [
        Verdict(scenario="quiet", seed=1, faults={"crash": 2}, reasons={"busy": 1}, paths={"restart": 0}),
        Verdict(scenario="other", seed=1, faults={"leave": 1}, reasons={"stale": 4, "busy": 1}),
    ]
    found = coverage.coverage(verdicts, [quiet], faults=["crash", "rot"], reasons=["busy", "dead"], paths=["restart"])
    assert found.missing == ["fault rot", "reason dead", "path restart", "reason stale in quiet"]
    assert not found.ok
    assert found.faults == {"crash": 2, "leave": 1}
    assert found.reasons == {"busy": 2, "stale": 4}


def test_by_default_every_fault_and_every_reason_that_can_be_met_is_required() -> None:
    found = coverage.coverage([])
    assert [f"fault {kind}" for kind in FAULT_KINDS] == [name for name in found.missing if name.startswith("fault ")]
    required = coverage.required_reasons()
    assert [f"reason {name}" for name in required] == [name for name in found.missing if name.startswith("reason ")]
    assert sorted([*required, *coverage.NOT_IN_SIMULATION]) == sorted(Reason)
    everything = Verdict(
        scenario="x",
        seed=1,
        faults=dict.fromkeys(FAULT_KINDS, 1),
        reasons=dict.fromkeys(required, 1),
        paths=dict.fromkeys(coverage.PATHS, 1),
    )
    assert coverage.coverage([everything]).ok


def test_rows_add_up_and_name_the_seeds_that_failed() -> None:
    rans = [
        Ran(
            Verdict(scenario="a", seed=1, ok=True, units=5, unlucky_expected=0.5, events=100, makespan_ratio=1.5, faults={"crash": 1}), 2.0
        ),
        Ran(Verdict(scenario="a", seed=2, lost=1, units=5, unlucky_expected=0.25, events=50, faults={"crash": 2}), 1.0),
        Ran(Verdict(scenario="b", seed=2, ok=True, virtual_seconds=60.0), 1.0),
    ]
    (a, b), everything = coverage.summarize(rans)
    assert (a.seeds, a.ok, a.failed, a.failed_seeds, a.lost, a.units, a.unlucky_expected) == (2, 1, 1, [2], 1, 10, 0.75)
    assert (a.events_per_s, a.makespan_ratio, a.faults) == (50.0, 1.5, {"crash": 3})
    assert (b.seeds, b.virtual_seconds, everything.seeds, everything.failed) == (1, 60.0, 3, 1)


def test_the_batch_of_the_gate_has_200_seeds_over_all_scenarios_of_whole_nodes() -> None:
    root = Path(__file__).resolve().parents[3]
    runs, wants_coverage = read_plan(root / "tests" / "sim" / "batch.toml")
    assert (len(runs), wants_coverage) == (200, True)
    assert len({(run.path, run.seed) for run in runs}) == 200
    assert {run.path for run in runs if run.twice} == {run.path for run in runs}, "some seeds of each in two processes"
    whole = {str(path) for path in (root / "scenarios" / "grids").glob("*.toml") if load(path).engine == "whole"}
    assert {run.path for run in runs} == whole


def test_a_timeline_does_not_change_the_run(tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(
        "duration_s = 10\n" + SCENARIO.strip() + '\n[[nodes]]\nkind = "peer"\ncount = 2\n[[jobs]]\nname = "squares"\nunits = 8\nat_s = 4\n'
    )
    timeline = Timeline("unit:squares/3")
    with_one = batch.run_seed(load(path), 1, timeline)
    assert with_one.trace_hash == batch.run_seed(load(path), 1).trace_hash
    assert {"leased", "ran", "decided", "read"} <= {entry.kind for entry in timeline.entries()}


def test_the_core_keeps_no_timeline(tmp_path: Path) -> None:
    path = tmp_path / "wide.toml"
    path.write_text('engine = "core"\n' + SCENARIO.strip())
    with pytest.raises(UsageError, match="keeps no timeline"):
        batch.run_seed(load(path), 1, Timeline("fault"))
