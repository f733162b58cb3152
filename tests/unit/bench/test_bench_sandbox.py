"""Figures of cages: ratios of the same round, floors that say what was missed, and the words of the command line."""

from __future__ import annotations

import json

import pytest

from bench.__main__ import parse
from bench.sandbox import Figures, Options, document, table, verdicts


def figures(**changes: object) -> Figures:
    return Figures(
        **{  # type: ignore[arg-type]
            "units_per_s": {"bare": [100.0, 1000.0, 10.0], "namespaces": [95.0, 500.0, 9.8]},
            "cold_ms": {"bare": [40.0, 30.0, 50.0]},
            "engines": {"python": {"units_per_s": [50_000.0], "fresh_ms": [3.0], "first_job_ms": [20_000.0], "next_job_ms": [100.0]}},
            "missing": {"wasm": "there is no engine"},
            **changes,
        }
    )


def test_rates_are_compared_within_a_round() -> None:
    found = document(Options(), figures())
    assert found["levels"]["namespaces"]["beside_bare"] == pytest.approx(0.95)
    assert found["levels"]["bare"]["beside_bare"] == 1.0
    assert found["levels"]["bare"]["cold_ms"] == 40.0
    assert found["levels"]["namespaces"]["cold_ms"] is None
    assert all(floor["met"] for floor in found["floors"])
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"units_per_s": {"bare": [100.0], "namespaces": [80.0]}}, "0.80 x of bare"),
        ({"units_per_s": {"bare": [100.0]}}, "no cage could be measured"),
        ({"engines": {}, "missing": {"python": "no runner"}}, "no runner"),
        ({"engines": {"python": {"units_per_s": [50_000.0], "fresh_ms": [6.0]}}}, "6.0 ms, at most 5"),
        ({"engines": {"python": {"units_per_s": [1_000.0], "fresh_ms": [3.0]}}}, "1,000 units/s"),
    ],
)
def test_a_floor_that_is_missed_or_cannot_be_judged_is_said(changes: dict[str, object], said: str) -> None:
    missed = [sentence for met, sentence in verdicts(figures(**changes)) if not met]
    assert len(missed) == 1
    assert said in missed[0]


def test_the_table_names_what_is_missing() -> None:
    text = table(Options(batch=64), figures())
    assert "batches of 64" in text
    assert "| namespaces | 95 (10-500) | 0.95 x |" in text
    assert "| python | 50,000 | 3.0 | 20,000.0 | 100.0 |" in text
    assert "wasm: there is no engine" in text


def test_the_command_line() -> None:
    assert parse(["sandbox"]) == Options()
    assert parse(["sandbox", "--rounds", "3", "--units", "10", "--json", "--check"]) == Options(
        rounds=3, units=10, as_json=True, check=True
    )
