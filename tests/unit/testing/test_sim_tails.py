"""The figures of the long tail: what they say of known ends, and what a scenario may demand of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pgrid.testing import tails
from p2pgrid.testing.core.scale import run_core
from p2pgrid.testing.plans.scenario import load, parse
from p2pgrid.testing.tails import Tail
from p2pgrid.testing.verdict import Verdict

ROOT = Path(__file__).resolve().parents[3]

LONELY = """
name = "lonely"
about = "One machine of which nothing is known but its speed."
engine = "core"
duration_s = 200
[[nodes]]
kind = "founder"
cores = 1
[[nodes]]
kind = "peer"
cores = 1
[[jobs]]
units = 40
unit_s = 1
unit_sigma = 0.0
at_s = 8
"""


def test_the_tail_is_the_last_end_over_the_end_of_the_95th_of_a_hundred() -> None:
    tail = Tail()
    for number in range(1, 101):
        tail.decided(10.0 + number, 1)
    assert tail.ratio(10.0) == pytest.approx(100 / 95, abs=1e-4)
    tail.decided(300.0, 1)
    assert tail.ratio(10.0) == pytest.approx(290 / 96, abs=1e-4)


def test_units_that_end_together_have_no_tail() -> None:
    tail = Tail()
    assert tail.ratio(0.0) == 0.0
    tail.decided(5.0, 60)
    tail.decided(5.0, 40)
    assert (tail.ratio(1.0), tail.ends) == (1.0, [(5.0, 100)])


def test_extra_work_is_what_was_spent_beyond_what_was_needed() -> None:
    assert Tail(spent_s=110.0).beyond(100.0) == pytest.approx(0.1)
    assert Tail(spent_s=110.0).beyond(0.0) == 0.0


def test_a_verdict_is_held_to_the_bounds_of_its_scenario() -> None:
    verdict = Verdict(scenario="a", seed=1, tail_ratio=1.3, extra_work=0.2)
    assert tails.broken(verdict, -1.0, -1.0) == []
    assert tails.broken(verdict, 1.3, 0.2) == []
    assert len(tails.broken(verdict, 1.2, 0.1)) == 2


def test_a_job_on_one_machine_does_nothing_twice() -> None:
    verdict = run_core(parse(LONELY), 1)
    assert verdict.ok
    assert verdict.extra_work == 0.0
    assert 1.0 < verdict.tail_ratio <= 1.15


@pytest.mark.parametrize("seed", [20, 42])
def test_stragglers_keep_nobody_waiting_and_cost_little(seed: int) -> None:
    verdict = run_core(load(ROOT / "scenarios" / "grids" / "stragglers.toml"), seed)
    assert verdict.ok, verdict.violations
    assert 1.0 <= verdict.tail_ratio <= 1.2
    assert 0.0 < verdict.extra_work <= 0.1
    assert verdict.faults["departure"] >= 1
