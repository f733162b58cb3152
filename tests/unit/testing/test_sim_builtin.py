"""The built-in job of scenarios does what it says it must come to."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from p2pgrid.model.script import parse_script
from p2pgrid.testing.batches.builtin import builtin_source, expected
from p2pgrid.testing.plans.scenario import JobPlan


@pytest.mark.parametrize("padding", [0, 300])
@pytest.mark.parametrize("reduce", [False, True])
@pytest.mark.parametrize("units", [1, 2, 260])
def test_the_script_gives_what_is_expected(padding: int, reduce: bool, units: int) -> None:
    plan = JobPlan(result_bytes=padding, reduce=reduce)
    names: dict[str, Any] = {}
    exec(builtin_source(plan, units), names)
    values = [names["work"](item) for item in names["inputs"]()]
    if reduce:
        values = [functools.reduce(names["reduce"], values)]
    assert values == expected(plan, units)
    assert len(expected(plan, units)) == (1 if reduce else units)


def test_the_header_carries_the_options_of_the_plan() -> None:
    script = parse_script(builtin_source(JobPlan(quorum=2, attempts=5, replicas=4, reduce=True), 3, sleep_s=0.25), "squares.py")
    assert (script.options.quorum, script.options.attempts, script.options.replicas) == (2, 5, 4)
    assert script.has_inputs
    assert script.has_reduce
    assert "time.sleep(0.25)" in script.source


def test_a_plan_that_is_not_drawn_is_refused() -> None:
    with pytest.raises(TypeError, match="draw"):
        expected(JobPlan(result_bytes=(1, 9)), 3)
