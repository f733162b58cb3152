"""The core engine on a small scenario: what it reports, what it notices, and that it depends on nothing but the seed."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pgrid.core import ledger, quorum, verdicts
from p2pgrid.errors import UsageError
from p2pgrid.testing.core.jobs import LINKS_MAX, ScaleJob
from p2pgrid.testing.core.scale import ScaleGrid, main, run_core
from p2pgrid.testing.plans import gridplan, scenario
from p2pgrid.testing.verdict import Verdict

GRID = """
name = "few"
about = "A small grid of the core."
engine = "core"
duration_s = 240
settle_s = 120

[network]
latency_s = 0.05
loss = 0.01

[[nodes]]
kind = "founder"
cores = 2

[[nodes]]
kind = "peer"
count = 40
cores = [1, 4]
churn = "ipfs"
stable = 0.1
session_s = 900
away_s = 120
joins_s = [0, 10]

[[jobs]]
name = "plain"
units = 600
unit_s = 5
at_s = 15

[[jobs]]
name = "sum"
units = 100
unit_s = 5
quorum = 2
reduce = true
at_s = 20

[[files]]
count = 12
size_bytes = [1000, 2_000_000]
at_s = 15
every_s = [5, 10]

"""
LOOKUPS = """
[core]
lookups = 25
table_nodes = [40]
"""


def grid(seed: int = 1, text: str = GRID) -> ScaleGrid:
    return ScaleGrid(gridplan.plan(scenario.parse(text), seed))


def invariants(verdict: Verdict) -> set[str]:
    return {violation.invariant for violation in verdict.violations}


@pytest.mark.parametrize("seed", [1, 2])
def test_jobs_end_and_blobs_are_there_in_a_grid_that_churns(seed: int) -> None:
    shares: list[float] = []
    verdict = run_core(scenario.parse(GRID + LOOKUPS), seed, progress=shares.append)
    assert verdict.ok, verdict.violations
    assert [(job.state, job.correct) for job in verdict.jobs] == [("done", 600), ("done", 100)]
    assert verdict.faults["departure"] > 10 < verdict.events
    assert verdict.faults["return"] > 0
    assert (verdict.lost, verdict.accepted_wrong, verdict.accepted_twice) == (0, 0, 0)
    assert verdict.files + verdict.figures["files_failed"] == 12
    assert verdict.makespan_ratio > 1
    assert {"lookup_success", "lookup_hops", "lookup_messages", "lookup_hops_40"} <= verdict.figures.keys()
    assert shares == sorted(shares)
    assert shares[-1] > 0.99


def test_lookups_that_miss_who_they_should_find_fail_the_run() -> None:
    churning = GRID.replace("session_s = 900", "session_s = 100").replace("away_s = 120", "away_s = 900")
    verdict = run_core(scenario.parse(churning + LOOKUPS), 1)
    assert verdict.figures["lookup_success"] < 0.995
    assert "L2" in invariants(verdict)


def test_keepers_that_leave_are_replaced_and_all_see_the_same() -> None:
    verdicts_of = [run_core(scenario.parse(GRID.replace("session_s = 900", "session_s = 200")), seed) for seed in (1, 2, 3)]
    assert all(verdict.ok for verdict in verdicts_of)
    assert sum(verdict.paths.get("keeper-replaced", 0) for verdict in verdicts_of) > 0
    assert sum(verdict.paths.get("lease-lost", 0) for verdict in verdicts_of) > 0


def test_a_seed_gives_the_same_verdict_in_a_process_with_other_string_hashes(tmp_path: Path) -> None:
    file = tmp_path / "few.toml"
    file.write_text(GRID)
    command = [sys.executable, "-m", "p2pgrid.testing.core.scale", str(file), "--seed", "4"]
    done = subprocess.run(command, capture_output=True, check=True, env=os.environ | {"PYTHONHASHSEED": "77"})
    there = msgspec.json.decode(done.stdout, type=Verdict)
    assert there == run_core(scenario.parse(GRID), 4)
    assert there.trace_hash != run_core(scenario.parse(GRID), 5).trace_hash


def test_a_blob_that_a_living_holder_does_not_have_is_lost() -> None:
    run = grid()
    run.heap.after(239.0, lambda: [machine.blobs.clear() for machine in run.population.machines])  # type: ignore[arg-type, func-returns-value]
    verdict = run.run()
    assert verdict.lost > 0
    assert "S5" in invariants(verdict)


def test_a_blob_whose_holders_are_all_off_is_unlucky_and_stays_within_what_chance_explains() -> None:
    text = GRID.replace("session_s = 900", "session_s = 150").replace("away_s = 120", "away_s = 900").replace("stable = 0.1", "stable = 0")
    verdict = run_core(scenario.parse(text.replace("[[files]]\ncount = 12", "[[files]]\ncount = 40\nreplicas = 2")), 3)
    assert verdict.unlucky > 0
    assert verdict.unlucky_expected > 1
    assert verdict.lost == 0
    assert "S5" not in invariants(verdict)


def test_a_wrong_value_that_stands_is_counted() -> None:
    run = grid(text=GRID.replace("stable = 0.1", 'stable = 0.1\nbehaviour = "colluding"'))
    verdict = run.run()
    assert verdict.accepted_wrong > 0
    assert "expect" in invariants(verdict)


def test_a_job_that_does_not_end_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScaleJob, "take", lambda self, receipt: None)
    verdict = run_core(scenario.parse(GRID), 1)
    assert {job.state for job in verdict.jobs} == {"running"}
    assert "L1" in invariants(verdict)


def quorum_off_by_one(original: Any) -> Any:
    return lambda answers, wanted: original(answers, max(1, wanted - 1))


def test_a_lead_that_decides_too_early_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "judge", quorum_off_by_one(quorum.judge))
    with pytest.raises(Exception, match="too few workers agree"):
        run_core(scenario.parse(GRID), 1)


def test_a_keeper_whose_view_changes_silently_is_found() -> None:
    run = grid()

    def tamper() -> None:
        job = run.jobs[0]
        kept = job.population.by_key[job.keepers[0]].kept[job.job.id]
        column = kept.column(0)
        assert column.state.count(ledger.DONE)
        column.state = bytearray(len(column.state))

    run.heap.after(230.0, tamper)
    assert "S2" in invariants(run.run())


def test_a_lead_knows_no_more_workers_than_it_may_have_connections() -> None:
    run = grid(text=GRID.replace("count = 40", f"count = {LINKS_MAX + 60}"))
    most: list[int] = []
    run.heap.every(5.0, lambda: most.append(max((len(node.links) for node in run.nodes.values()), default=0)))
    run.run()
    assert max(most) == LINKS_MAX


def test_scenarios_that_need_whole_nodes_are_refused() -> None:
    with pytest.raises(UsageError, match="faults"):
        run_core(scenario.parse(GRID + '\n[[faults]]\nkind = "crash"\n'), 1)
    with pytest.raises(UsageError, match="stays to submit"):
        run_core(scenario.parse(GRID.replace("stable = 0.1", "stable = 0").replace('name = "sum"', 'name = "sum"\nsubmitter = "peer"')), 1)


def test_the_command_prints_the_verdict_and_tells_it_by_its_status(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    file = tmp_path / "few.toml"
    file.write_text(GRID + "[expect]\nmakespan_ratio_max = 0.5\n")
    assert main([str(file), "--seed", "2"]) == 1
    printed = msgspec.json.decode(capsysbinary.readouterr().out, type=Verdict)
    assert invariants(printed) == {"expect"}
    assert printed.seed == 2
    assert main(["million", "--units", "2000"]) == 0
    assert b"2000 units" in capsysbinary.readouterr().out


def test_files_with_no_room_anywhere_are_not_acknowledged() -> None:
    plan = gridplan.plan(scenario.parse(GRID), 1)
    run = ScaleGrid(replace(plan, machines=tuple(replace(machine, storage_bytes=10) for machine in plan.machines)))
    verdict = run.run()
    assert verdict.files == 0
    assert verdict.reasons["store-full"] == 12
