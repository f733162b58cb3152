"""The picture as plain lines: for pipes, for a look in passing (``--once``), and for terminals that only print."""

from __future__ import annotations

from p2pgrid.wire.owner import Snapshot
from p2pgrid_cli.dashboard.columns import Table
from p2pgrid_cli.dashboard.events import event_lines, told
from p2pgrid_cli.dashboard.header import dht_line, header
from p2pgrid_cli.dashboard.jobs import jobs_table, jobs_title
from p2pgrid_cli.dashboard.lines import Line, Part, cut_line
from p2pgrid_cli.dashboard.order import jobs_shown, peers_shown
from p2pgrid_cli.dashboard.peers import peers_table, peers_title
from p2pgrid_cli.dashboard.pulses import pulses
from p2pgrid_cli.dashboard.screen import NO_JOBS
from p2pgrid_cli.dashboard.view import View

PULSES_WIDTH_MAX = 120
HEAD_WIDTH_MAX = 160
"""In a pipe there is no edge: what is spread over the width of a terminal stays together there."""


def plain(snapshot: Snapshot, view: View, width: int) -> list[Line]:
    """All peers, all jobs and all events, in as many lines as it takes."""
    lines = header(snapshot, view, min(width, HEAD_WIDTH_MAX), lines=6)
    lines += pulses(snapshot, view, min(width, PULSES_WIDTH_MAX))
    lines += [dht_line(snapshot, view, width), ()]
    peers, jobs = peers_shown(snapshot, view.sort, view.filter_peers), jobs_shown(snapshot, view.filter_jobs)
    lines += _section(peers_title(snapshot), peers_table(peers, snapshot, view, width), "no peers")
    lines += _section(jobs_title(snapshot), jobs_table(jobs, view, width), NO_JOBS)
    lines.append((Part("events", "bold"),))
    lines += event_lines(told(snapshot), view, width) or [(Part("none yet", "dim"),)]
    return [cut_line(line, width, view.glyphs.ellipsis) for line in lines]


def _section(title: str, made: Table, nothing: str) -> list[Line]:
    rows = [made.head, *made.rows] if made.rows else [(Part(nothing, "dim"),)]
    return [(Part(title, "bold"),), *rows, ()]


def plain_text(snapshot: Snapshot, view: View, width: int) -> str:
    """The same as text, without blanks at the ends that nobody sees."""
    return "\n".join("".join(part.text for part in line).rstrip() for line in plain(snapshot, view, width))
