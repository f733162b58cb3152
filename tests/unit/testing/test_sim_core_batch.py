"""The wide batch of core seeds: what it reports, and that its traces depend on nothing but the seed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from p2pgrid.core import ledger
from p2pgrid.testing.core import batch as core_batch
from p2pgrid.testing.core.batch import core_scenario, describe, main, missing, run_core_seeds
from p2pgrid.testing.core.forgeries import KINDS
from p2pgrid.testing.core.grid import CoreGrid, Scenario


def test_a_batch_holds_and_says_what_it_met() -> None:
    report = run_core_seeds(0, 40)
    assert report.ok
    assert report.events > 40 * 50
    assert report.units > 40
    assert len(report.hashes) == 40 == len(set(report.hashes))
    assert {"loss", "crash", "forgery"} <= report.faults.keys()
    assert report.refusals["not-granted"] > 0
    assert report.paths["quorum-1"] > 0


def test_parts_of_a_batch_have_the_hashes_of_the_whole() -> None:
    whole = run_core_seeds(0, 12)
    assert whole.hashes == run_core_seeds(0, 5).hashes + run_core_seeds(5, 12).hashes


def test_seeds_draw_different_grids() -> None:
    assert len({core_scenario(seed) for seed in range(200)}) > 190


@pytest.mark.parametrize("hash_seed", ["1", "4242"])
def test_traces_are_equal_in_processes_with_other_string_hashes(hash_seed: str) -> None:
    command = [sys.executable, "-m", "p2pgrid.testing.core.batch", "0", "25", "--json"]
    done = subprocess.run(command, capture_output=True, check=True, env=os.environ | {"PYTHONHASHSEED": hash_seed})
    assert json.loads(done.stdout)["trace_hash"] == run_core_seeds(0, 25).trace_hash


def test_a_broken_invariant_is_reported_with_its_seed_and_the_batch_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    original = ledger.Ledger._count

    def bug(self: Any, batch: int, state: int, units: int) -> None:
        original(self, batch, state, units)
        self.done += 1

    monkeypatch.setattr(ledger.Ledger, "_count", bug)
    report = run_core_seeds(3, 6)
    assert [seed for seed, _ in report.violations] == [3, 4, 5]
    assert not report.ok
    assert "seed 4: AssertionError" in describe(report)


def test_a_large_batch_that_misses_something_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_batch, "COVERED_FROM", 5)
    monkeypatch.setattr(core_batch, "core_scenario", lambda seed: Scenario(batches=(4,)))
    report = run_core_seeds(0, 5)
    assert {"crash", "stolen_lease", "bad-grant", "disputed", "quorum-2"} <= set(report.missing)
    assert not report.ok
    assert "never met: crash" in describe(report)


def test_every_kind_of_forgery_is_tried_and_refused() -> None:
    tried: dict[str, int] = {}
    for seed in range(12):
        grid = CoreGrid(Scenario(forgeries=1.0, quorum=2, liars=1, unit_s=1.0), seed).run()
        assert sum(grid.forger.tried.values()) == grid.forged
        tried |= grid.forger.tried
    assert len(tried) == len(KINDS)


def test_nothing_is_missing_when_all_was_met() -> None:
    report = run_core_seeds(0, 1)
    for field, names in (
        ("faults", core_batch.FAULTS),
        ("forgeries", core_batch.FORGERIES),
        ("refusals", core_batch.REFUSALS),
        ("paths", core_batch.PATHS),
    ):
        setattr(report, field, dict.fromkeys(names, 1))
    assert missing(report) == []
    report.paths["undecidable"] = 0
    assert missing(report) == ["undecidable"]


def test_the_command_prints_a_verdict_and_tells_it_by_its_status(
    capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["0", "3"]) == 0
    assert capsysbinary.readouterr().out.endswith(b"ok\n")
    monkeypatch.setattr(ledger, "check_entry", lambda *_: (_ for _ in ()).throw(ValueError("planted")))
    assert main(["0", "3"]) == 1
    assert b"planted" in capsysbinary.readouterr().out
