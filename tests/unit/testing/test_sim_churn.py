"""Sessions have the shapes that were measured, and start where a running grid would be looked at."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace

import pytest

from p2pgrid.testing.plans import churn, distributions

HOUR_S = 3600.0


def machine(kind: str, *, session_s: float = 12 * HOUR_S, shape: float = 0.45, away_s: float = HOUR_S, joins_s: float = 0.0):
    return SimpleNamespace(churn=kind, session_s=session_s, shape=shape, away_s=away_s, joins_s=joins_s)


def lengths(way: churn.Churn, count: int, seed: int = 1) -> list[float]:
    """Lengths of whole sessions, of one machine that lives long enough."""
    rng = random.Random(seed)
    found = []
    for one in way.sessions(rng, 0.0, math.inf, fresh=True):
        found.append(one.off_s - one.on_s)
        if len(found) == count:
            break
    return found


def fitted_shape(values: Sequence[float]) -> float:
    """The most likely shape of a Weibull distribution, by bisection of its likelihood equation."""
    logs = [math.log(value) for value in values]
    mean_log = statistics.fmean(logs)

    def slope(shape: float) -> float:
        weights = [math.pow(value, shape) for value in values]
        return sum(weight * log for weight, log in zip(weights, logs, strict=True)) / sum(weights) - 1 / shape - mean_log

    low, high = 0.05, 5.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return low


@pytest.mark.parametrize("shape", [0.34, 0.45, 0.59, 1.0])
def test_weibull_sessions_have_their_shape_and_mean(shape: float) -> None:
    way = churn.churn_of(machine("weibull", session_s=600.0 * HOUR_S, shape=shape))
    found = [length / HOUR_S for length in lengths(way, 40_000)]
    assert fitted_shape(found) == pytest.approx(shape, rel=0.03)
    # The heavier the tail, the slower the mean settles.
    assert statistics.fmean(found) == pytest.approx(600.0, rel=0.15)


def test_half_of_ipfs_sessions_are_over_in_two_hours_and_four_fifths_in_eight() -> None:
    found = sorted(lengths(churn.churn_of(machine("ipfs")), 20_000))
    assert found[10_000] == pytest.approx(2 * HOUR_S, rel=0.05)
    assert found[16_000] == pytest.approx(8 * HOUR_S, rel=0.05)
    assert pytest.approx(0.61, abs=0.01) == churn.IPFS_SHAPE


def test_half_a_day_of_ipfs_takes_as_long_as_it_is_told() -> None:
    found = sorted(lengths(churn.churn_of(machine("ipfs", session_s=60.0)), 20_000))
    assert found[10_000] == pytest.approx(10.0, rel=0.05)
    assert found[16_000] == pytest.approx(40.0, rel=0.05)


@pytest.mark.parametrize("kind", ["weibull", "ipfs"])
def test_waits_between_sessions_have_their_mean(kind: str) -> None:
    found = []
    rng = random.Random(3)
    sessions = churn.churn_of(machine(kind, session_s=60.0, away_s=20.0)).sessions(rng, 0.0, 1e6)
    before = next(iter(sessions))
    for one in sessions:
        found.append(one.on_s - before.off_s)
        before = one
    assert len(found) > 2_000
    assert statistics.fmean(found) == pytest.approx(20.0, rel=0.1)


@pytest.mark.parametrize("kind", ["weibull", "ipfs", "laptop"])
def test_availability_is_the_share_of_time_on(kind: str) -> None:
    way = churn.churn_of(machine(kind, session_s=50.0, shape=0.59, away_s=30.0))
    until_s = 20_000.0
    shares = []
    for seed in range(40):
        on_s = sum(min(one.off_s, until_s) - one.on_s for one in way.sessions(random.Random(seed), 0.0, until_s))
        shares.append(on_s / until_s)
    assert statistics.fmean(shares) == pytest.approx(way.availability(), rel=0.1)


@pytest.mark.parametrize("kind", ["weibull", "ipfs", "laptop"])
@pytest.mark.parametrize("seed", range(20))
def test_sessions_are_in_order_and_begin_when_the_machine_joins(kind: str, seed: int) -> None:
    rng = random.Random(seed)
    joins_s = rng.uniform(0.0, 300.0)
    found = list(churn.sessions(machine(kind, session_s=30.0, away_s=10.0, joins_s=joins_s), rng, 400.0))
    assert found[0].on_s == joins_s
    assert all(one.on_s < one.off_s and one.on_s < 400.0 for one in found)
    assert all(sooner.off_s < later.on_s for sooner, later in pairwise(found))
    assert found[-1].off_s + 1000.0 > 400.0


def test_whoever_joins_after_the_horizon_has_no_session() -> None:
    for kind in ("none", "weibull", "ipfs", "laptop"):
        assert list(churn.sessions(machine(kind, joins_s=50.0), random.Random(1), 40.0)) == []


def test_without_churn_a_machine_stays() -> None:
    assert list(churn.sessions(machine("none", joins_s=1.5), random.Random(1), 60.0)) == [(1.5, math.inf)]
    assert churn.churn_of(machine("none")).availability() == 1.0


def test_an_unknown_way_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        churn.churn_of(machine("tides"))


def test_what_is_left_of_a_session_is_what_a_random_moment_finds() -> None:
    """Against the definition: cut a long life of sessions at random moments and look at what is left."""
    scale, shape = 10.0, 0.59
    rng = random.Random(5)
    ends, end_s = [], 0.0
    for _ in range(60_000):
        end_s += distributions.weibull(scale, shape, rng)
        ends.append(end_s)
    looks = sorted(rng.uniform(0.0, end_s) for _ in range(30_000))
    found, place = [], 0
    for look in looks:
        while ends[place] < look:
            place += 1
        found.append(ends[place] - look)
    drawn = [distributions.weibull_rest(scale, shape, rng) for _ in range(30_000)]
    for share in (0.25, 0.5, 0.75):
        at = int(share * 30_000)
        assert sorted(drawn)[at] == pytest.approx(sorted(found)[at], rel=0.08)
    assert statistics.fmean(drawn) > distributions.weibull_mean(scale, shape), "who is found there stays longer than most"


def test_a_stationary_grid_keeps_its_size() -> None:
    way = churn.churn_of(machine("ipfs", session_s=120.0, away_s=30.0))
    until_s, machines = 300.0, 3_000
    rng = random.Random(8)
    there = {0.5: 0, 100.0: 0, 299.0: 0}
    for _ in range(machines):
        for one in churn.stationary(way, rng, until_s):
            for moment in there:
                there[moment] += one.on_s <= moment < one.off_s
    for count in there.values():
        assert count / machines == pytest.approx(way.availability(), abs=0.04)


def test_laptops_go_off_together_at_night_and_come_back_in_the_evening() -> None:
    hour_s = 30.0 / 12
    on = dict.fromkeys((20, 23, 27, 36, 44, 46), 0)
    for seed in range(300):
        found = list(churn.sessions(machine("laptop", session_s=30.0), random.Random(seed), 200.0))
        for hour in on:
            moment = (hour - churn.STARTS_H) * hour_s
            on[hour] += any(one.on_s <= moment < one.off_s for one in found)
    # Hours since the first midnight: evening, late, night, noon, and the second evening, on which a tenth stays off.
    assert on[20] == 300
    assert 150 < on[23] <= 300
    assert on[27] == on[36] == 0
    assert 230 < on[44] <= 295
    assert 230 < on[46] <= 295


def test_two_points_give_the_curve_through_them() -> None:
    scale, shape = distributions.weibull_through((1.0, 0.7), (3.0, 0.2))
    for x, share in ((1.0, 0.7), (3.0, 0.2)):
        assert math.exp(-((x / scale) ** shape)) == pytest.approx(share)
    assert distributions.weibull_mean(distributions.weibull_scale(5.0, 0.4), 0.4) == pytest.approx(5.0)


def test_spreads_around_a_median_and_a_mean() -> None:
    rng = random.Random(2)
    found = sorted(distributions.log_normal(0.05, 0.5, rng) for _ in range(5_000))
    assert found[2_500] == pytest.approx(0.05, rel=0.05)
    assert statistics.stdev(map(math.log, found)) == pytest.approx(0.5, rel=0.05)
    assert distributions.log_normal(0.05, 0.0, rng) == 0.05
    clamped = [distributions.clamped_normal(5.0, 1.0, rng) for _ in range(5_000)]
    assert 2.0 <= min(clamped) < max(clamped) <= 8.0
    assert statistics.fmean(distributions.exponential(4.0, rng) for _ in range(10_000)) == pytest.approx(4.0, rel=0.05)
