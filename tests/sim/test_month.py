"""A few simulated days of storage: blobs outlive machines that leave for good, and bugs in the care for them are seen."""

from __future__ import annotations

from typing import Any

import pytest

from p2pgrid.core import replication
from p2pgrid.core.care_events import Trim
from p2pgrid.core.replication import Replication
from p2pgrid.testing.core.month import MonthFigures, describe, describe_curve, held, run_month
from p2pgrid.testing.core.month_grid import MonthPlan, patient
from p2pgrid.testing.core.month_machines import DAY_S

GRACE_S = 1800.0


def days(seed: int = 1, **changes: Any) -> MonthFigures:
    """Three days of thirty machines of which most leave for good within three days."""
    settings: dict[str, Any] = {
        "days": 3.0,
        "nodes": 30,
        "blobs": 40,
        "lifetime_s": 3 * DAY_S,
        "before_s": 2 * DAY_S,
        "terms": patient(GRACE_S),
        "seed": seed,
    }
    return run_month(MonthPlan(**(settings | changes)))


def promises_kept(figures: MonthFigures) -> bool:
    """What a few days must come to. Machines that leave for good with three copies within the grace are the chance that is left."""
    return (
        figures.lost == 0
        and figures.mean_live > 2.7
        and figures.mean_kept < 3.7
        and figures.trims > 0
        and figures.readable > 0.995
        and figures.whole > 0.9
        and figures.below_p95_s < GRACE_S + 300
    )


def test_no_blob_is_lost_although_most_machines_leave_for_good() -> None:
    figures = days()
    assert promises_kept(days(days=2.0)), "as the planted bugs are run"
    assert figures.acknowledged + figures.failed == figures.puts
    assert figures.acknowledged > 35
    assert figures.left_for_good > 20
    assert figures.repairs > 50
    assert figures.trims > 20
    assert promises_kept(figures), describe(figures)
    assert figures.below_times > 0
    assert figures.repair_bytes_per_node_day > 0
    assert f"grace {GRACE_S:g} s" in describe(figures)
    assert len(describe_curve([figures]).splitlines()) == 2
    assert [day.day for day in figures.by_day] == [1, 2, 3]


def test_without_churn_nothing_is_repaired_and_nothing_is_trimmed() -> None:
    figures = days(stable=1.0)
    assert (figures.repairs, figures.trims, figures.departures) == (0, 0, 0)
    assert (figures.mean_kept, figures.mean_live, figures.whole) == (3.0, 3.0, 1.0)
    assert held(figures)


def test_a_seed_replays_exactly() -> None:
    first, second, other = (days(seed, days=0.5).trace_hash for seed in (3, 3, 4))
    assert first == second != other


def test_a_longer_grace_repairs_less_and_leaves_blobs_short_for_longer() -> None:
    short, long = days(days=2.0, terms=patient(60.0)), days(days=2.0, terms=patient(6 * 3600.0))
    assert short.repair_bytes > long.repair_bytes
    assert short.whole > long.whole
    assert short.below_p50_s < long.below_p50_s
    assert short.mean_kept > long.mean_kept


# -- planted bugs ----------------------------------------------------------------

Patches = list[tuple[Any, str, Any]]


def no_candidate(self: Replication, care: Any, refused: Any = ()) -> None:
    """Never finds anybody to copy to."""


def takes_itself_for_last(self: Replication, care: Any) -> int:
    """As if r others stood before it, whoever they are."""
    return int(care.replicas)


def goes_at_once(self: Replication, care: Any) -> None:
    """Lets a copy go without asking anybody."""
    self._all.effects.append(Trim(care.blob))
    self._all.drop(care.blob)


def nobody_is_before(blob: bytes, key: bytes) -> bytes:
    """An order in which all are equal."""
    return b""


BUGS: dict[str, Patches] = {
    "no repair": [(Replication, "_candidate", no_candidate)],
    "trims below r": [(Replication, "_before", takes_itself_for_last), (Replication, "_check", goes_at_once)],
    "wrong rank": [(replication, "order", nobody_is_before)],
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_seen(monkeypatch: pytest.MonkeyPatch, bug: str) -> None:
    for target, name, planted in BUGS[bug]:
        monkeypatch.setattr(target, name, planted)
    assert not promises_kept(days(days=2.0))
