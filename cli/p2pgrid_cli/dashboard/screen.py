"""The whole picture: which panel gets how many lines. A pure function of the snapshot, the view and the size of the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from p2pgrid.wire.faces import JobPicture
from p2pgrid.wire.owner import Snapshot
from p2pgrid_cli.dashboard.columns import Table
from p2pgrid_cli.dashboard.detail import job_detail, peer_detail
from p2pgrid_cli.dashboard.events import event_lines, told
from p2pgrid_cli.dashboard.header import dht_line, header
from p2pgrid_cli.dashboard.help import help_lines
from p2pgrid_cli.dashboard.jobs import jobs_table, jobs_title
from p2pgrid_cli.dashboard.lines import Line, Part, cut, cut_line, ends, line_width, segments, styled
from p2pgrid_cli.dashboard.order import jobs_shown, peers_shown
from p2pgrid_cli.dashboard.peers import peers_table, peers_title
from p2pgrid_cli.dashboard.pulses import pulses
from p2pgrid_cli.dashboard.view import JOBS, PEERS, View, selected_job, selected_peer

T = TypeVar("T")
WIDTH_MIN, HEIGHT_MIN = 40, 8
ROOMY = 20
"""From so many lines on, panels have titles of their own."""
HIGH = 30
PAGE_WITH_FIGURES = 36
WIDTH_WIDE = 76
"""From so many cells on, three pulses stand side by side with a little of how they went, where lines are few."""
NO_JOBS = "no jobs: p2pgrid run SCRIPT.py"


class Rows(NamedTuple):
    """How many rows each table has, headings not counted."""

    peers: int
    jobs: int
    events: int


def share_rows(rows: int, peers: int, jobs: int, events: int, focus: str) -> Rows:
    """Divide rows among tables that have so many to show: the one in focus first, events take what is left."""
    jobs = max(1, jobs)
    first, second = (peers, jobs) if focus == PEERS else (jobs, peers)
    one = min(first, max(1, rows * 9 // 20))
    two = min(second, max(1, rows // 4))
    left = max(0, rows - one - two)
    told = min(events, left)
    more = min(first - one, left - told)
    one, left = one + more, left - told - more
    two += min(second - two, left)
    return Rows(one, two, told) if focus == PEERS else Rows(two, one, told)


def window(lines: Sequence[T], rows: int, chosen: int) -> tuple[int, Sequence[T]]:
    """So many of the lines, with the chosen one in the middle where that can be; and the number of the first."""
    first = max(0, min(chosen - rows // 2, len(lines) - rows))
    return first, lines[first : first + rows]


def screen(snapshot: Snapshot, view: View, width: int, height: int, picture: JobPicture | None = None) -> list[Line]:
    """Exactly ``height`` lines of at most ``width`` cells."""
    if width < WIDTH_MIN or height < HEIGHT_MIN:
        text = f"the window is {width}x{height}, and {WIDTH_MIN}x{HEIGHT_MIN} is the least"
        lines: list[Line] = [(Part(cut(text, width)),), *([()] * height)]
        return lines[:height]
    roomy, page = height >= ROOMY, view.help or view.detail
    head = header(snapshot, view, width, lines=4 if height >= HIGH else 3 if roomy else 2)
    # Whoever asked for a page wants to read it.
    figures = [] if page and height < PAGE_WITH_FIGURES else _figures(snapshot, view, width, height)
    room = height - len(head) - len(figures) - 1
    body = _body(snapshot, view, width, room, picture)
    if len(body) > room:
        body = [*body[: room - 1], (Part(cut("more than fits: make the window higher", width), "dim"),)]
    return [*head, *figures, *body, *([()] * (room - len(body))), footer(view, width)]


def _figures(snapshot: Snapshot, view: View, width: int, height: int) -> list[Line]:
    """Pulses and the DHT, as far as the height allows."""
    lines = list[Line]()
    if height >= 14:
        lines += pulses(snapshot, view, width, compact=height < (HIGH if width >= WIDTH_WIDE else ROOMY))
    if height >= 12:
        lines.append(dht_line(snapshot, view, width))
    return lines


def _body(snapshot: Snapshot, view: View, width: int, room: int, picture: JobPicture | None) -> list[Line]:
    if view.help:
        return [_rule("help", view, width), *help_lines(view, width)]
    peer = selected_peer(view, snapshot) if view.detail and view.focus == PEERS else None
    if peer is not None:
        return [_rule("a peer", view, width), *peer_detail(peer, snapshot, view, width)]
    job = selected_job(view, snapshot) if view.detail and view.focus == JOBS else None
    if job is not None:
        return [_rule("a job", view, width), *job_detail(job, snapshot, picture, view, width, room - 1)]
    return _tables(snapshot, view, width, room)


def _tables(snapshot: Snapshot, view: View, width: int, room: int) -> list[Line]:
    roomy = room >= ROOMY - 8
    peers, jobs = peers_shown(snapshot, view.sort, view.filter_peers), jobs_shown(snapshot, view.filter_jobs)
    # Roomy: a title and names of columns for both tables, a title for the events.
    free = room - (5 if roomy else 2)
    events = told(snapshot)
    wanted = len(event_lines(events, view, width, max(1, free))) if events else 0
    rows = share_rows(free, max(1, len(peers)), len(jobs), wanted, view.focus)
    chosen = next((index for index, line in enumerate(peers) if line.node == view.peer), 0)
    first, seen = window(peers, rows.peers, chosen)
    name = "" if roomy else peers_title(snapshot).partition(" live")[0]
    made = peers_table(seen, snapshot, view, width - 2, first_name=name)
    lines = [_titled(peers_title(snapshot), PEERS, f"by {view.sort}", first, len(seen), len(peers), view, width)] if roomy else []
    lines += _marked(made, [line.node for line in seen], PEERS, view, width, f"no peer matches '{view.filter_peers}'")
    chosen = next((index for index, job in enumerate(jobs) if job.job == view.job), 0)
    first, shown = window(jobs, rows.jobs, chosen)
    made = jobs_table(shown, view, width - 2, first_name="" if roomy else f"jobs {len(snapshot.jobs)}")
    lines += [_titled(jobs_title(snapshot), JOBS, "", first, len(shown), len(jobs), view, width)] if roomy else []
    nothing = f"no job matches '{view.filter_jobs}'" if view.filter_jobs else NO_JOBS
    lines += _marked(made, [job.job for job in shown], JOBS, view, width, nothing)
    lines += [_rule("events", view, width)] if roomy else []
    return lines + (event_lines(events, view, width, rows.events) if rows.events else [])


def _marked(made: Table, keys: Sequence[bytes], focus: str, view: View, width: int, nothing: str) -> list[Line]:
    """Rows with the mark of the selected one before it; a sentence when there are none."""
    if not keys:
        return [(Part("  "), *made.head), (Part(f"  {nothing}", "dim"),)]
    lines: list[Line] = [(Part("  "), *made.head)]
    selected = view.selected if view.focus == focus else None
    for key, row in zip(keys, made.rows, strict=True):
        marked = (Part(f"{view.glyphs.mark} "), *row)
        rest = Part(" " * (width - line_width(marked)))
        lines.append(styled((*marked, rest), "reverse") if key == selected else (Part("  "), *row))
    return lines


def _titled(title: str, focus: str, order: str, first: int, shown: int, total: int, view: View, width: int) -> Line:
    """A rule with what the table shows of what there is."""
    text = view.filter_peers if focus == PEERS else view.filter_jobs
    notes = [order] if order else []
    notes += [f"with '{text}'"] if text else []
    notes += [f"rows {first + 1} to {first + shown} of {total}"] if shown < total else []
    return _rule(title, view, width, ", ".join(notes), focused=view.focus == focus)


def _rule(title: str, view: View, width: int, note: str = "", *, focused: bool = False) -> Line:
    mark = view.glyphs.mark if focused else view.glyphs.rule
    parts = [Part(f"{mark} ", "bold accent" if focused else "dim"), Part(title, "bold accent" if focused else "bold")]
    parts += [Part(f"  {note}", "dim")] if note else []
    line = cut_line(parts, width, view.glyphs.ellipsis)
    rest = width - line_width(line) - 1
    return (*line, Part(" " + view.glyphs.rule * rest, "dim")) if rest > 0 else line


def footer(view: View, width: int) -> Line:
    """The last line: an alarm, a note, the filter as it is typed, or the keys."""
    mark = view.glyphs.ellipsis
    if view.alarm:
        return cut_line((Part(view.alarm, "bold bad"),), width, mark)
    if view.typing:
        hint = (Part("Enter keeps it, Esc drops it", "dim"),)
        return ends((Part(f"{view.focus} with: ", "dim"), Part(view.filter + "_", "bold")), hint, width, ellipsis=mark)
    if view.note:
        return cut_line((Part(view.note, "bold"),), width, mark)
    if not view.keys:
        return cut_line((Part("no keys can be read here; Ctrl-C quits", "dim"),), width, mark)
    return segments([(rank, (Part(key, "bold"), Part(f" {what}", "dim"))) for rank, key, what in _keys(view)], width, ellipsis=mark)


def _keys(view: View) -> list[tuple[int, str, str]]:
    if view.help or view.detail:
        return [(0, "Esc", "back"), (1, "p", "pause"), (1, "r", "resume"), (0, "q", "quit")]
    other = JOBS if view.focus == PEERS else PEERS
    return [
        (0, "q", "quit"),
        (0, "?", "help"),
        (1, "s", "sort"),
        (1, "/", "filter"),
        (3, "Tab", other),
        (2, "Enter", "detail"),
        (2, "p", "pause"),
        (2, "r", "resume"),
        (4, "Esc", "back"),
    ]
