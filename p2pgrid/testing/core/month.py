"""A month of a grid's storage in a minute or two: are blobs kept, with how many copies, and what does it cost?

    python -m p2pgrid.testing.core.month --days 30 --nodes 200 --seed 1 [--json]
    python -m p2pgrid.testing.core.month --curve           the same under several lengths of grace

Every node runs the product's own replication (:mod:`p2pgrid.core.replication`) and measures the others
(:mod:`p2pgrid.core.availability`); machines, disks and the network are events on one heap. What the figures mean:

- a blob is *acknowledged* when whoever puts it was told that r nodes have it, and *lost* when no machine that belongs to the grid, on or
  off, has a copy any more;
- *kept* copies lie on the disk of a machine that belongs to the grid, on or off: what the copies cost. *live* ones are on;
- *readable* is the share of (blob, time) with at least one live copy, *whole* that with r;
- *below r* is each stretch of time during which fewer than r copies were live. It ends when a holder is back as well as by a repair.

Means are over blob time: every acknowledged blob counts for as long as it is acknowledged.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Iterable

import msgspec

from p2pgrid.model.limits import MIB
from p2pgrid.testing.core.month_care import CoreCare
from p2pgrid.testing.core.month_census import Day, percentile
from p2pgrid.testing.core.month_grid import MonthGrid, MonthPlan, patient
from p2pgrid.testing.core.month_machines import DAY_S, HOUR_S

KEPT_MAX = 3.2
"""With r = 3, mean kept copies must not be more."""
CURVE_GRACE_S = (60.0, 600.0, HOUR_S, 3 * HOUR_S, 6 * HOUR_S, 12 * HOUR_S, 24 * HOUR_S)


class MonthFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What a month came to. See the module for what the words mean."""

    days: float
    nodes: int
    seed: int
    replicas: int
    grace_s: float
    before_days: float
    left_for_good: int
    departures: int
    live_nodes: float
    """On average."""
    puts: int
    acknowledged: int
    acknowledged_bytes: int
    failed: int
    """Puts that were not acknowledged, since their node left or had no room."""
    lost: int
    mean_kept: float
    mean_live: float
    readable: float
    whole: float
    below_times: int
    below_p50_s: float
    below_p95_s: float
    below_max_s: float
    unreadable_times: int
    unreadable_max_s: float
    repairs: int
    repair_bytes: int
    trims: int
    trim_bytes: int
    broken: int
    refused: int
    repair_bytes_per_node_day: float
    """Sent, for each member."""
    repair_kb_s_per_live_node: float
    """Sent, while it is on."""
    busiest_kb_s: float
    """Of the node that sent most, over the time for which it was a member."""
    messages_per_live_node_hour: float
    messages_bytes_s_per_live_node: float
    """Without the probes of every minute."""
    probe_bytes_s_per_live_node: float
    events: int
    cpu_s: float
    trace_hash: str
    by_day: list[Day]


def run_month(plan: MonthPlan) -> MonthFigures:
    """Run it all in this process."""
    began = time.process_time()
    collects = gc.isenabled()
    gc.disable()
    try:
        grid = MonthGrid(plan)
        grid.run(lambda: setattr(grid, "care", CoreCare(grid)))
    finally:
        if collects:
            gc.enable()
    return figures_of(grid, time.process_time() - began)


def figures_of(grid: MonthGrid, cpu_s: float) -> MonthFigures:
    """The figures of a run that is over."""
    plan, census, tally, members = grid.plan, grid.census, grid.tally, grid.members
    sums, total = census.sums, census.sums.total or 1.0
    live_s = members.live_s(grid.end_s) - grid.live_before_s
    busiest = max((sent / max(1.0, members.by_key[key].member_s(grid.end_s)) for key, sent in tally.sent.items()), default=0.0)
    return MonthFigures(
        days=plan.days,
        nodes=plan.nodes,
        seed=plan.seed,
        replicas=plan.replicas,
        grace_s=plan.terms.grace_s,
        before_days=plan.before_s / DAY_S,
        left_for_good=sum(member.left and member.leaves_at >= grid.begins_s for member in members.all),
        departures=members.departures - grid.departures_before,
        live_nodes=round(live_s / (grid.end_s - grid.begins_s), 1),
        puts=tally.puts,
        acknowledged=len(census.entries),
        acknowledged_bytes=sum(entry.size_bytes for entry in census.entries.values()),
        failed=tally.failed,
        lost=len(census.lost),
        mean_kept=round(sums.kept / total, 4),
        mean_live=round(sums.live / total, 4),
        readable=round(sums.readable / total, 7),
        whole=round(sums.whole / total, 5),
        below_times=len(census.below_s),
        below_p50_s=round(percentile(census.below_s, 0.5), 1),
        below_p95_s=round(percentile(census.below_s, 0.95), 1),
        below_max_s=round(max(census.below_s, default=0.0), 1),
        unreadable_times=len(census.none_s),
        unreadable_max_s=round(max(census.none_s, default=0.0), 1),
        repairs=tally.repairs,
        repair_bytes=tally.repair_bytes,
        trims=tally.trims,
        trim_bytes=tally.trim_bytes,
        broken=tally.broken,
        refused=tally.refused,
        repair_bytes_per_node_day=round(tally.repair_bytes / plan.nodes / plan.days),
        repair_kb_s_per_live_node=round(tally.repair_bytes / live_s / 1000, 4),
        busiest_kb_s=round(busiest / 1000, 3),
        messages_per_live_node_hour=round(tally.messages / live_s * HOUR_S, 1),
        messages_bytes_s_per_live_node=round(tally.message_bytes / live_s, 2),
        probe_bytes_s_per_live_node=round(sum(grid.probe_bytes_s) / max(1, len(grid.probe_bytes_s)), 1),
        events=grid.heap.steps,
        cpu_s=round(cpu_s, 1),
        trace_hash=grid.heap.trace_hash(),
        by_day=census.days,
    )


def describe(figures: MonthFigures) -> str:
    """For people."""
    one = figures
    below = f"p50 {one.below_p50_s:.0f} s, p95 {one.below_p95_s:.0f} s, max {one.below_max_s:.0f} s"
    gone = f"{one.departures} departures, {one.left_for_good} for good"
    each = f"{one.repair_bytes_per_node_day / MIB:.2f} MiB a day and member, {one.repair_kb_s_per_live_node:.3f} kB/s while on"
    asked = f"{one.messages_per_live_node_hour:g} an hour, {one.messages_bytes_s_per_live_node:g} bytes/s while on"
    copied = f"{one.repairs} ({one.repair_bytes / MIB:.0f} MiB), {one.trims} trims ({one.trim_bytes / MIB:.0f} MiB)"
    return "\n".join(
        [
            f"{one.days:g} days, {one.nodes} nodes ({one.live_nodes:g} on at a time, {gone})",
            f"settings       r = {one.replicas}, grace {one.grace_s:g} s, seed {one.seed}, run for {one.before_days:g} days before",
            f"blobs          {one.acknowledged} acknowledged ({one.acknowledged_bytes / MIB:.0f} MiB), {one.failed} not, {one.lost} lost",
            f"copies         {one.mean_kept:.3f} kept, {one.mean_live:.3f} live",
            f"availability   {one.readable:.5%} with a live copy, {one.whole:.2%} with {one.replicas}",
            f"below r        {one.below_times} times: {below}",
            f"unreadable     {one.unreadable_times} times, for {one.unreadable_max_s:.0f} s at most",
            f"repairs        {copied}, {one.broken} broken off, {one.refused} refused",
            f"traffic        {each}, {one.busiest_kb_s:.2f} kB/s by the busiest",
            f"questions      {asked}; probes every minute {one.probe_bytes_s_per_live_node:g} bytes/s",
            f"run            {one.events} events, {one.cpu_s:g} s of CPU, trace {one.trace_hash[:16]}",
        ]
    )


def curve(plan: MonthPlan, graces_s: Iterable[float] = CURVE_GRACE_S) -> list[MonthFigures]:
    """The same month under several lengths of grace."""
    return [run_month(msgspec.structs.replace(plan, terms=patient(grace_s))) for grace_s in graces_s]


def describe_curve(rows: Iterable[MonthFigures]) -> str:
    """A table for people, a line for each length of grace."""
    lines = ["  grace    lost   kept   live  readable    whole   below r p50 / p95 s   repairs   MiB/day/node   kB/s while on"]
    lines += [
        f"{one.grace_s:7.0f}  {one.lost:6d}  {one.mean_kept:5.3f}  {one.mean_live:5.3f}  {one.readable:8.4%}  {one.whole:7.2%}"
        f"  {one.below_p50_s:9.0f} / {one.below_p95_s:7.0f}  {one.repairs:8d}  {one.repair_bytes_per_node_day / MIB:13.2f}"
        f"  {one.repair_kb_s_per_live_node:14.3f}"
        for one in rows
    ]
    return "\n".join(lines)


def held(figures: MonthFigures) -> bool:
    """Whether the month kept its promises."""
    return not figures.lost and figures.mean_kept <= KEPT_MAX


def main(arguments: list[str]) -> int:
    """From the command line. Returns the exit status: 1 if a blob was lost or too many copies were kept."""
    parser = argparse.ArgumentParser(prog="p2pgrid.testing.core.month", description="A month of a grid's storage.")
    parser.add_argument("--days", type=float, default=30.0)
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--blobs", type=int, default=2000)
    parser.add_argument(
        "--grace", type=float, default=MonthPlan().terms.grace_s, help="seconds a holder may be away before its copy is replaced"
    )
    parser.add_argument("--away", type=float, default=MonthPlan().away_s / HOUR_S, help="mean hours between two sessions")
    parser.add_argument("--lifetime", type=float, default=MonthPlan().lifetime_s / DAY_S, help="mean days until a machine leaves for good")
    parser.add_argument("--stable", type=float, default=MonthPlan().stable, help="share of machines that never leave")
    parser.add_argument("--room", type=int, default=MonthPlan().room_bytes // MIB, help="MiB that each machine stores")
    parser.add_argument(
        "--before", type=float, default=MonthPlan().before_s / DAY_S, help="days that the grid has run before; 0: all are new"
    )
    parser.add_argument("--owners-keep", action="store_true", help="whoever put a blob never gives its copy up")
    parser.add_argument("--curve", action="store_true", help="several lengths of grace")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    plan = MonthPlan(
        days=chosen.days,
        nodes=chosen.nodes,
        seed=chosen.seed,
        blobs=chosen.blobs,
        terms=patient(chosen.grace),
        away_s=chosen.away * HOUR_S,
        lifetime_s=chosen.lifetime * DAY_S,
        stable=chosen.stable,
        room_bytes=chosen.room * MIB,
        before_s=chosen.before * DAY_S,
        owners_keep=chosen.owners_keep,
    )
    rows = curve(plan) if chosen.curve else [run_month(plan)]
    if chosen.json:
        made = msgspec.json.encode(rows if chosen.curve else rows[0])
        sys.stdout.buffer.write(msgspec.json.format(made, indent=2) + b"\n")
    else:
        sys.stdout.write((describe_curve(rows) if chosen.curve else describe(rows[0])) + "\n")
    return 0 if all(held(one) for one in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
