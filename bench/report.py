"""Figures of all rounds to medians, tables and verdicts. Pure functions of what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from bench.system import Figures

MINE = "p2pgrid"
YARDSTICK = "dask"
RATE_FLOOR = 4.0
CPU_CEILING = 0.1
LATENCY_CEILING = 1.0


class Summary(msgspec.Struct, kw_only=True):
    """Medians over the rounds of one system; latencies over the singles of all rounds."""

    rounds: int
    units: int
    units_per_s: float
    units_per_s_spread: tuple[float, float]
    cpu_per_unit_us: float
    cpu_per_unit_us_spread: tuple[float, float]
    latency_p50_ms: float
    latency_p99_ms: float
    whole_p50_ms: float
    """p2pgrid: until three keepers have confirmed the end of the job."""
    single_cpu_ms: float
    start_s: float
    roles_us: dict[str, float]
    """CPU by role: microseconds of a unit in a large job."""
    single_roles_ms: dict[str, float]
    """The same for a job of one unit, in milliseconds."""


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def summarise(rounds: Sequence[Figures]) -> Summary:
    """Put the rounds of one system together."""
    rates = [figures.units_per_s for figures in rounds]
    costs = [figures.cpu_per_unit_s * 1e6 for figures in rounds]
    in_hand = [seconds * 1e3 for figures in rounds for seconds in figures.in_hand_s]
    whole = [seconds * 1e3 for figures in rounds for seconds in figures.whole_s]
    return Summary(
        rounds=len(rounds),
        units=rounds[0].units * rounds[0].jobs,
        units_per_s=statistics.median(rates),
        units_per_s_spread=(min(rates), max(rates)),
        cpu_per_unit_us=statistics.median(costs),
        cpu_per_unit_us_spread=(min(costs), max(costs)),
        latency_p50_ms=percentile(in_hand, 0.5),
        latency_p99_ms=percentile(in_hand, 0.99),
        whole_p50_ms=percentile(whole, 0.5),
        single_cpu_ms=statistics.median([sum(figures.single_roles_s.values()) * 1e3 for figures in rounds]),
        start_s=statistics.median([figures.start_s for figures in rounds]),
        roles_us=_medians([{role: spent / (one.units * one.jobs) * 1e6 for role, spent in one.roles_s.items()} for one in rounds]),
        single_roles_ms=_medians([{role: spent * 1e3 for role, spent in one.single_roles_s.items()} for one in rounds]),
    )


def _medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    roles = {role for one in rounds for role in one}
    return {role: statistics.median([one.get(role, 0.0) for one in rounds]) for role in sorted(roles)}


def table(summaries: Mapping[str, Summary]) -> str:
    """The main table, as Markdown."""
    lines = [
        "| system | units/s (min-max) | CPU us/unit (min-max) | one unit p50 ms | p99 ms | CPU ms of a one-unit job |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, one in summaries.items():
        rate = f"{one.units_per_s:,.0f} ({one.units_per_s_spread[0]:,.0f}-{one.units_per_s_spread[1]:,.0f})"
        cost = f"{one.cpu_per_unit_us:,.1f} ({one.cpu_per_unit_us_spread[0]:,.1f}-{one.cpu_per_unit_us_spread[1]:,.1f})"
        latency = f"{one.latency_p50_ms:.2f} | {one.latency_p99_ms:.2f}"
        lines.append(f"| {name} | {rate} | {cost} | {latency} | {one.single_cpu_ms:.1f} |")
    return "\n".join(lines)


def where_time_goes(summary: Summary) -> str:
    """CPU per unit by role, the dearest first, as Markdown."""
    total = sum(summary.roles_us.values())
    lines = ["| role | CPU us/unit | share | CPU ms of a one-unit job |", "|---|--:|--:|--:|"]
    for role, cost in sorted(summary.roles_us.items(), key=lambda item: -item[1]):
        lines.append(f"| {role} | {cost:.1f} | {cost / total:.0%} | {summary.single_roles_ms.get(role, 0.0):.1f} |")
    return "\n".join(lines)


def verdicts(summaries: Mapping[str, Summary]) -> list[tuple[bool, str]]:
    """Each floor: whether it is met, and the sentence that says so. Raises KeyError without the yardstick."""
    mine, yardstick = summaries[MINE], summaries[YARDSTICK]
    rate = mine.units_per_s / yardstick.units_per_s
    cost = mine.cpu_per_unit_us / yardstick.cpu_per_unit_us
    latency = mine.latency_p50_ms / yardstick.latency_p50_ms
    return [
        (rate >= RATE_FLOOR, f"units/s is {rate:.1f} x Dask's (floor {RATE_FLOOR:g})"),
        (cost <= CPU_CEILING, f"CPU per unit is {cost:.3f} x Dask's (ceiling {CPU_CEILING:g})"),
        (latency <= LATENCY_CEILING, f"one unit's p50 is {latency:.2f} x Dask's (ceiling {LATENCY_CEILING:g})"),
    ]


def document(rounds: Mapping[str, Sequence[Figures]], left_out: Mapping[str, str]) -> dict[str, Any]:
    """Everything, raw figures included, for ``--json``."""
    return {
        "summaries": {name: msgspec.to_builtins(summarise(figures)) for name, figures in rounds.items()},
        "rounds": {name: msgspec.to_builtins(list(figures)) for name, figures in rounds.items()},
        "left_out": dict(left_out),
    }
