"""``p2pgrid simulate``: what it prints, its documents and its exit codes, with an engine that answers at once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.testing.batches import batch
from p2pgrid.testing.batches.timeline import Timeline
from p2pgrid.testing.plans.scenario import GridScenario
from p2pgrid.testing.verdict import JobVerdict, Verdict, Violation
from p2pgrid_cli import simulate
from p2pgrid_cli.main import main

SCENARIO = """
about = "Nothing happens."
[[nodes]]
kind = "founder"
"""
ENGINE = '''
"""An engine for tests: seed 13 breaks an invariant."""
from p2pgrid.testing.verdict import JobVerdict, Verdict, Violation

def run(scenario, seed):
    broken = [Violation("S3", 12.5, "worker-2", "a unit was decided twice")] * 7 if seed == 13 else []
    return Verdict(
        scenario=scenario.name, seed=seed, ok=not broken, trace_hash=f"{seed:064x}", nodes=12, virtual_seconds=95.0, events=41203,
        units=140, jobs=[JobVerdict(name="job", units=140, correct=140)], makespan_ratio=1.31, violations=broken, faults={"crash": 2},
    )
'''


class Program:
    """The program in this process, as a user meets it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capfd = monkeypatch, capfd

    def __call__(self, *words: str | Path) -> tuple[int, str, str]:
        self._monkeypatch.setattr("sys.argv", ["p2pgrid", "simulate", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = self._capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, captured.out, captured.err

    def document(self, *words: str | Path) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self(*words, "--json")[1])
        return document


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Program:
    return Program(monkeypatch, capfd)


@pytest.fixture
def scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "engine_for_commands.py").write_text(ENGINE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]))
    monkeypatch.setattr(batch, "ENGINE", "engine_for_commands:run")
    path = tmp_path / "churn.toml"
    path.write_text(SCENARIO)
    return path


def test_a_seed_is_one_line(program: Program, scenario: Path) -> None:
    code, out, err = program(scenario, "--seed", "7")
    assert (code, err) == (0, "")
    assert out == (
        "churn seed 7: ok  12 nodes  95 s virtual  41,203 events  units 140/140  lost 0  unlucky 0  wrong 0  twice 0  "
        "violations 0  makespan 1.31x  trace 0000000000000000\n"
    )


def test_a_failed_seed_says_what_broke_and_how_to_see_it_again(program: Program, scenario: Path) -> None:
    code, out, _ = program(scenario, "--seed", "13")
    first, *rest = out.splitlines()
    assert code == 1
    assert first.startswith("churn seed 13: FAIL  12 nodes")
    assert rest == ["  S3 at 12.500 s, worker-2: a unit was decided twice"] * 5 + [
        "  ... and 2 more",
        f"  again: p2pgrid simulate {scenario} --seed 13",
    ]


def test_the_document_of_a_seed_is_its_verdict(program: Program, scenario: Path) -> None:
    good, bad = program.document(scenario, "--seed", "7"), program.document(scenario, "--seed", "13")
    assert good["trace_hash"] == f"{7:064x}"
    assert [good[name] for name in ("lost", "accepted_wrong", "accepted_twice", "violations")] == [0, 0, 0, 0]
    assert set(Verdict.__struct_fields__) < set(good)
    assert bad["violations"] == len(bad["violated"]) == 7
    assert bad["violated"][0] == {"invariant": "S3", "at_s": 12.5, "where": "worker-2", "text": "a unit was decided twice"}
    assert program.document(scenario, "--seed", "7") == good


def test_many_seeds_end_with_a_table(program: Program, scenario: Path) -> None:
    code, out, _ = program(scenario, "--seeds", "12..14", "--jobs", "2")
    lines = out.splitlines()
    assert code == 1
    assert [line.split(":")[0] for line in lines if " seed " in line.split(":")[0]] == [f"churn seed {seed}" for seed in (12, 13, 14)]
    assert lines[-2].split()[:4] == ["SCENARIO", "SEEDS", "OK", "FAILED"]
    assert lines[-1].split()[:5] == ["churn", "3", "2", "1", "0"]
    assert lines[-1].rstrip().endswith("crash 6")


def test_the_document_of_many_seeds_has_rows_verdicts_and_coverage(program: Program, scenario: Path, tmp_path: Path) -> None:
    second = tmp_path / "calm.toml"
    second.write_text(SCENARIO)
    document = program.document(scenario, second, "--seeds", "1..2")
    assert [row["scenario"] for row in document["scenarios"]] == ["churn", "calm"]
    assert [(verdict["scenario"], verdict["seed"]) for verdict in document["verdicts"]] == [
        ("churn", 1),
        ("churn", 2),
        ("calm", 1),
        ("calm", 2),
    ]
    assert (document["summary"]["seeds"], document["summary"]["ok"], document["summary"]["events"]) == (4, 4, 4 * 41203)
    assert document["coverage"]["faults"] == {"crash": 8}
    assert "fault rot" in document["coverage"]["missing"]


def test_coverage_that_is_asked_for_fails_what_was_never_hit(program: Program, scenario: Path) -> None:
    code, _, err = program(scenario, "--seeds", "1..2", "--coverage")
    assert code == 1
    assert "never hit: fault " in err
    assert "fault crash" not in err


def test_a_batch_file_says_what_to_run(program: Program, scenario: Path, tmp_path: Path) -> None:
    plan = tmp_path / "batch.toml"
    plan.write_text('[[run]]\nscenario = "churn.toml"\nseeds = [1, 3]\n')
    code, out, _ = program("--batch", plan)
    assert code == 0
    assert out.splitlines()[-1].split()[:3] == ["churn", "3", "3"]


def test_twice_compares_two_processes(program: Program, scenario: Path) -> None:
    assert program(scenario, "--seed", "7", "--twice")[0] == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "no scenario"),
        (["churn.toml", "--seed", "1", "--seeds", "1..2"], "--seed and --seeds exclude one another"),
        (["churn.toml", "--seeds", "1-2"], "'1-2' are no seeds"),
        (["churn.toml", "--seeds", "5..2"], "'5..2' are no seeds"),
        (["churn.toml", "--seeds", "1..99999999"], "at most 1000000"),
        (["churn.toml", "--batch", "x.toml"], "a batch names its scenarios and their seeds itself"),
        (["--batch", "x.toml", "--seed", "7"], "a batch names its scenarios and their seeds itself"),
        (["--batch", "x.toml", "--real"], "--real takes one scenario and one seed"),
        (["churn.toml", "--trace", "fault", "--seeds", "1..2"], "--trace takes one scenario and one seed"),
        (["churn.toml", "calm.toml", "--real"], "--real takes one scenario and one seed"),
        (["churn.toml", "--trace", "fault", "--real"], "exclude one another"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(program: Program, words: list[str], says: str) -> None:
    code, out, err = program(*words)
    assert (code, out) == (2, "")
    assert says in err


@pytest.mark.parametrize("text", [None, "no toml", "about = 'x'\nnonsense = 1\n[[nodes]]\nkind = 'a'"])
def test_a_file_that_is_no_scenario_is_bad_data(program: Program, tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "broken.toml"
    if text is not None:
        path.write_text(text)
    code, out, err = program(path)
    assert (code, out) == (65, "")
    assert err.startswith("p2pgrid: ")


def test_a_scenario_beyond_real_processes_is_bad_data(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "far.toml"
    path.write_text(SCENARIO + '[[faults]]\nkind = "rot"\nspare = ""\n')
    code, _, err = program(path, "--real")
    assert code == 65
    assert "real processes cannot have the fault 'rot'" in err


def test_a_trace_is_printed_before_the_verdict(program: Program, scenario: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(drawn: GridScenario, seed: int, timeline: Timeline) -> Verdict:
        timeline.add(1.5, "worker-1", "crashed", "", ("fault",))
        timeline.add(2.0, "worker-1", "runs", "unit 5", ("unit:abc/5",))
        return Verdict(scenario=drawn.name, seed=seed, ok=True)

    monkeypatch.setattr(batch, "run_seed", told)
    code, out, _ = program(scenario, "--trace", "fault")
    assert code == 0
    assert out.splitlines()[0] == "     1.500 s  worker-1  crashed"
    assert out.splitlines()[1].startswith("churn seed 1: ok")
    document = program.document(scenario, "--trace", "node:worker-1")
    assert [entry["event"] for entry in document["trace"]] == ["crashed", "runs"]
    assert program(scenario, "--trace", "everything")[0] == 2


def test_expectations_of_formulas_stand_beside_the_counts() -> None:
    verdict = Verdict(scenario="x", seed=1, unlucky=2, unlucky_expected=1.536, jobs=[JobVerdict(name="a", units=3, correct=2)], units=3)
    verdict.violations.append(Violation("log", 0.0, "process", "one\ntwo"))
    line, broken, again = simulate.lines_of(verdict, Path("x.toml"), "--real")
    assert "units 2/3  lost 0  unlucky 2 (expected 1.5)  wrong 0" in line
    assert broken == "  log at 0.000 s, process: one\n    two"
    assert again == "  again: p2pgrid simulate x.toml --seed 1 --real"
