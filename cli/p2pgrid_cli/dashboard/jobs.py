"""The table of jobs."""

from __future__ import annotations

from collections.abc import Sequence

from p2pgrid.model.ids import short
from p2pgrid.wire.owner import JobLine, Snapshot
from p2pgrid_cli.dashboard.columns import Cell, Column, Table, table
from p2pgrid_cli.dashboard.lines import Glyphs, bar, count, duration, printable, rate
from p2pgrid_cli.dashboard.order import ENDED
from p2pgrid_cli.dashboard.view import View

BAR, SHORT_BAR = 20, 4
STYLES = {"running": "good", "incomplete": "warn", "stopped": "bad", "failed": "bad", "cancelled": "dim"}
COLUMNS = (
    Column("name", least=8, cut_to=10, comfort=20),
    Column("id", rank=4, least=8),
    Column("state", least=8, most=12),
    Column("progress", least=SHORT_BAR + 5),
    Column("units", rank=6, least=11, right=True, most=13),
    Column("rate", rank=2, least=7, right=True),
    Column("left", rank=1, least=6, right=True),
    Column("failed", rank=8, least=6, right=True),
    Column("disputed", rank=7, least=8, right=True),
    Column("copies", rank=3, least=6, right=True),
    Column("nodes", rank=9, least=5, right=True),
    Column("role", rank=10, least=4, most=10),
)


def share_of(job: JobLine) -> float:
    """The part of its units that is decided."""
    return min(1.0, (job.done + job.failed) / job.units) if job.units > 0 else 0.0


def percent(share: float) -> str:
    """It is 100 % only when nothing is left, and 0 % only when nothing was done."""
    whole = int(share * 100)
    return "<1%" if share > 0 and not whole else f"{whole}%"


def copies_of(job: JobLine) -> int:
    """Nodes that have the job: its keepers and its lead."""
    return len({*job.keepers, *([job.lead] if job.lead else [])})


def time_left(job: JobLine) -> str:
    """Until it ends as it goes on now."""
    if job.state in ENDED:
        return "-"
    return duration(job.left_s) if job.left_s >= 0 else "?"


def jobs_table(lines: Sequence[JobLine], view: View, width: int, *, first_name: str = "") -> Table:
    """The rows of these jobs. Disputes and failures take the place of less when there are some."""
    ranks = {"failed": any(job.failed for job in lines), "disputed": any(job.disputed for job in lines)}
    columns = [column._replace(rank=2) if ranks.get(column.name) else column for column in COLUMNS]
    return table(columns, [_cells(job, view.glyphs) for job in lines], width, view.glyphs, first_name=first_name)


def _cells(job: JobLine, glyphs: Glyphs) -> list[Cell]:
    share = share_of(job)
    figure = f"{percent(share):>4}"
    return [
        Cell(printable(job.name) or "-", "dim" if job.state in ENDED else ""),
        Cell(short(job.job), "dim"),
        Cell(printable(job.state), STYLES.get(job.state, "")),
        Cell(
            f"{bar(share, BAR, glyphs)} {figure}", "accent" if job.state == "running" else "", f"{bar(share, SHORT_BAR, glyphs)} {figure}"
        ),
        Cell(f"{count(job.done + job.failed)}/{count(job.units)}"),
        Cell(f"{rate(job.rate)}/s" if job.rate > 0 else "-"),
        Cell(time_left(job)),
        Cell(count(job.failed) if job.failed else "-", "bad" if job.failed else "dim"),
        Cell(count(job.disputed) if job.disputed else "-", "warn" if job.disputed else "dim"),
        Cell(str(copies_of(job)) if copies_of(job) else "-"),
        Cell(str(len(job.workers)) if job.workers else "-"),
        Cell(printable(job.role) or "-", "dim"),
    ]


def jobs_title(snapshot: Snapshot) -> str:
    """How many there are, and how many go on."""
    going = sum(job.state not in ENDED for job in snapshot.jobs)
    return f"jobs {len(snapshot.jobs)}, {going} not ended" if snapshot.jobs else "jobs"
