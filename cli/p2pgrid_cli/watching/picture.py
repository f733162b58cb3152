"""The picture of ``watch``: a pure function of what the node said, of the width and of the height.

1. No line is wider than the width. What has no room goes by rank; only names, notes and what failed units said are cut.
2. Each state has a word or a letter besides its colour.
3. Where the height is short the longest lists give way, and say how much they leave out.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from p2pgrid.model.ids import short
from p2pgrid.model.reasons import Reason
from p2pgrid.wire.faces import FailureLine, JobPicture, WorkerShare
from p2pgrid.wire.owner import JobLine
from p2pgrid_cli.dashboard.columns import Cell, Column, table
from p2pgrid_cli.dashboard.header import sentence_of
from p2pgrid_cli.dashboard.lines import (
    UNICODE,
    Glyphs,
    Line,
    Part,
    bar,
    cut_line,
    duration,
    line_width,
    printable,
    rate,
    segments,
    width_of,
)

LETTERS = (("d", "done", "good"), ("r", "running", "accent"), (".", "waiting", "dim"), ("f", "failed", "bad"), ("?", "disputed", "warn"))
STYLES = {letter: style for letter, _, style in LETTERS}
WINS = "f?r.d"
"""Of letters that become one, the first in this order stays."""
STATES = {"running": "accent", "done": "good", "failed": "bad"}
PAUSES = frozenset((Reason.PAUSED, Reason.OWNER_ACTIVE, Reason.ON_BATTERY, Reason.OUTSIDE_HOURS, Reason.MACHINE_BUSY, Reason.FINISHING))
MAP_ROWS_MAX = 6
MAP_ROW_EVERY = 6
"""One row of the map for so many lines of the terminal."""
NODES_MAX, STRAGGLERS_MAX, FAILURES_MAX = 50, 5, 8
BAR_CELLS_MIN, SHARE_CELLS = 8, 8
COLUMNS = (
    Column("node", cut_to=16, most=30),
    Column("id", rank=5),
    Column("share", rank=1),
    Column("done", least=5, right=True),
    Column("running", "run", least=3, right=True),
    Column("units/s", "per s", rank=2, least=5, right=True),
    Column("oldest", rank=3, least=6, right=True),
    Column("state"),
    Column("why", rank=6, most=100),
)


class Watched(NamedTuple):
    """What is known of a job: its summary, its picture, and what its lead says it waits for."""

    line: JobLine
    picture: JobPicture
    note: str = ""


class _Section(NamedTuple):
    """Lines that belong together. ``least``: so many rows stay where the height is short."""

    head: list[Line]
    rows: list[Line]
    least: int = 0
    newest: bool = False
    """The last rows are those that stay."""
    noun: str = ""


def map_rows(height: int) -> int:
    """How many lines of a terminal the map of units takes."""
    return max(1, min(MAP_ROWS_MAX, height // MAP_ROW_EVERY))


def cells_for(width: int, height: int) -> int:
    """How many letters a picture of this size has room for."""
    return max(1, width * map_rows(height))


def draw(watched: Watched, width: int, height: int, glyphs: Glyphs = UNICODE) -> list[Line]:
    """The lines of the picture: at most ``height``, each at most ``width`` cells. ``height`` 0: as many as there are."""
    for rows in range(map_rows(height) if height else MAP_ROWS_MAX, 0, -1):
        lines = _fitted(_sections(watched, width, rows, glyphs), height)
        if not height or len(lines) <= height:
            break
    return [cut_line(entry, width, glyphs.ellipsis) for entry in lines[: height or None]]


def _sections(watched: Watched, width: int, rows: int, glyphs: Glyphs) -> list[_Section]:
    line, picture, _ = watched
    names = {share.node: name_of(share) for share in picture.workers}
    sections = [
        _Section(_head(watched, names, width, glyphs), []),
        _Section(_units(picture, line, width, rows), []),
        _nodes(picture, line, width, glyphs),
        _stragglers(picture, names, width, glyphs),
        _failures(picture, names, width, glyphs),
    ]
    return [section for section in sections if section.head or section.rows]


def _fitted(sections: list[_Section], height: int) -> list[Line]:
    """The sections with an empty line between two. The longest list gives way first, none more than it must."""
    kept = [len(section.rows) for section in sections]
    while height and _height(sections, kept) > height:
        most, index = max((count - section.least, index) for index, (section, count) in enumerate(zip(sections, kept, strict=True)))
        if most <= 0:
            break
        kept[index] -= 1
    # To say that one is left out takes as much room as the one.
    kept = [len(section.rows) if count == len(section.rows) - 1 else count for section, count in zip(sections, kept, strict=True)]
    return [entry for section, count in zip(sections, kept, strict=True) for entry in (*_shown(section, count), ())][:-1]


def _height(sections: Sequence[_Section], kept: Sequence[int]) -> int:
    return sum(len(_shown(section, count)) + 1 for section, count in zip(sections, kept, strict=True)) - 1


def _shown(section: _Section, count: int) -> list[Line]:
    """The head, so many rows, and how many are left out; nothing of a list of which no row has room."""
    left = len(section.rows) - count
    if not left:
        return section.head + section.rows
    rows = section.rows[left:] if section.newest else section.rows[:count]
    more = (Part(f"{left} {'earlier' if section.newest else 'more'} {section.noun}{'s' if left != 1 else ''}", "dim"),)
    return section.head + ([more, *rows] if section.newest else [*rows, more])


# -- the job ---------------------------------------------------------------------------


def name_of(share: WorkerShare) -> str:
    """What a node calls itself, else the beginning of its id."""
    return printable(share.name) or short(share.node)


def _named(node: bytes, names: dict[bytes, str]) -> str:
    return names.get(node) or (short(node) if node else "several nodes")


def _head(watched: Watched, names: dict[bytes, str], width: int, glyphs: Glyphs) -> list[Line]:
    line, picture = watched.line, watched.picture
    running = line.state == "running"
    ago_s = (picture.wall_ms - line.created_ms) / 1000
    keepers = len(line.keepers)
    title: list[tuple[int, Line]] = [
        (0, (Part("job "), Part(short(line.job), "bold"))),
        (4, (Part(printable(line.name)),)),
        (0, (Part(line.state, f"bold {STATES.get(line.state, 'warn')}"),)),
    ]
    if running and line.lead:
        title.append((2, (Part(f"led by {_named(line.lead, names)}"),)))
        title.append((3, (Part(f"{keepers} keeper{'s' if keepers != 1 else ''}", "" if keepers else "warn"),)))
    if ago_s >= 1:
        title.append((1, (Part(f"for {duration(ago_s)}" if running else f"submitted {duration(ago_s)} ago"),)))
    lines = [segments(title, width, ellipsis=glyphs.ellipsis), _progress(line, picture, width, glyphs)]
    return lines + _levels(picture, width, glyphs) + _trouble(line, width, glyphs) + notes(watched.note, width, glyphs)


def _progress(line: JobLine, picture: JobPicture, width: int, glyphs: Glyphs) -> Line:
    """The bar takes what the figures leave."""
    decided = line.done + line.failed
    share = decided / line.units if line.units else 1.0
    figures: list[tuple[int, Line]] = [(0, (Part(f"{percent(share)}"),)), (0, (Part(f"{decided:,} of {line.units:,} units"),))]
    if line.state == "running" and picture.rate > 0:
        figures.append((1, (Part(f"{rate(picture.rate)}/s"),)))
    if line.state == "running" and picture.left_s >= 0:
        figures.append((2, (Part(f"{duration(picture.left_s)} left"),)))
    text = segments(figures, max(1, width - BAR_CELLS_MIN - 2), ellipsis=glyphs.ellipsis)
    cells = max(1, width - 2 - line_width(text))
    return (Part(bar(share, cells, glyphs), STATES.get(line.state, "good") if line.state != "running" else "good"), Part("  "), *text)


def percent(share: float) -> str:
    """A share in four cells. All of it alone is 100%."""
    return f"{min(99, int(share * 100)) if share < 1 else 100:3}%"


def _levels(picture: JobPicture, width: int, glyphs: Glyphs) -> list[Line]:
    """How far each kind of unit is, when there are several."""
    kinds: dict[str, tuple[int, int]] = {}
    for kind, units, decided in picture.levels:
        known = kinds.get(kind, (0, 0))
        kinds[kind] = (known[0] + units, known[1] + decided)
    if len(kinds) < 2:
        return []
    pieces = [(0, (Part(f"{kind} ", "dim"), Part(f"{decided:,} of {units:,}"))) for kind, (units, decided) in kinds.items()]
    return [segments(pieces, width, ellipsis=glyphs.ellipsis)]


def _trouble(line: JobLine, width: int, glyphs: Glyphs) -> list[Line]:
    """What went wrong, counted; nothing when nothing did."""
    counts = ((line.failed, "failed", "bad"), (line.disputed, "disputed", "warn"), (line.conflicts, "decided twice", "warn"))
    pieces: list[tuple[int, Line]] = [(rank, (Part(f"{many:,} {what}", style),)) for rank, (many, what, style) in enumerate(counts) if many]
    return [segments(pieces, width, ellipsis=glyphs.ellipsis)] if pieces else []


def notes(text: str, width: int, glyphs: Glyphs = UNICODE, *, style: str = "warn") -> list[Line]:
    """A sentence in lines of whole words."""
    lines, words = list[str](), printable(text, 1000).split()
    for word in words:
        if lines and width_of(lines[-1]) + 1 + width_of(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return [cut_line((Part(entry, style),), width, glyphs.ellipsis) for entry in lines]


# -- units -------------------------------------------------------------------------------


def squeeze(cells: str, units_per_cell: int, cells_max: int) -> tuple[str, int]:
    """The same units in at most so many letters, and how many units one stands for then."""
    together = max(1, -(-len(cells) // max(1, cells_max)))
    letters = [min(cells[at : at + together], key=WINS.find) for at in range(0, len(cells), together)]
    return "".join(letters), units_per_cell * together


def _units(picture: JobPicture, line: JobLine, width: int, rows: int) -> list[Line]:
    """The letters, below what they mean; of a job that is led elsewhere, what cannot be known here."""
    cells, each = squeeze(picture.cells, picture.units_per_cell, width * rows)
    legend = tuple(
        part
        for index, (letter, word, style) in enumerate(LETTERS)
        for part in (Part("  " if index else ""), Part(letter, f"bold {style}"), Part(f" {word}"))
    )
    title = Part(f"{each:,} units a letter" if each > 1 else "a letter a unit", "dim")
    lines: list[Line] = [(title, Part("  "), *legend)]
    if line_width(lines[0]) > width:
        lines = [(title,), legend]
    if not picture.led_here and line.state == "running":
        where = f" (node {short(line.lead)})" if line.lead else ""
        lines += notes(f"what runs now, and how fast, is known where the job is led{where}", width, style="dim")
    return lines + [
        tuple(Part("".join(run), STYLES.get(letter, "")) for letter, run in groupby(cells[at : at + width]))
        for at in range(0, len(cells), width)
    ]


# -- nodes -------------------------------------------------------------------------------


def _nodes(picture: JobPicture, line: JobLine, width: int, glyphs: Glyphs) -> _Section:
    if not picture.workers:
        return _Section([(Part("no node has done or leased a unit yet", "dim"),)] if line.state == "running" else [], [])
    all_done = sum(share.done for share in picture.workers)
    rows = [_node(share, all_done, picture, line, glyphs) for share in picture.workers]
    why = any(row[-1].text for row in rows)
    columns = COLUMNS if why else COLUMNS[:-1]
    found = table(columns, [row[: len(columns)] for row in rows[:NODES_MAX]], width, glyphs)
    more = len(rows) - NODES_MAX
    last: list[Line] = [(Part(f"{more} more node{'s' if more != 1 else ''}", "dim"),)] if more > 0 else []
    return _Section([found.head], found.rows + last, 2, noun="node")


def _node(share: WorkerShare, all_done: int, picture: JobPicture, line: JobLine, glyphs: Glyphs) -> list[Cell]:
    part = share.done / all_done if all_done else 0.0
    known = picture.led_here
    state, style = node_state(share, line, known)
    return [
        Cell(name_of(share), "" if share.live else "dim"),
        Cell(short(share.node), "dim"),
        Cell(f"{bar(part, SHARE_CELLS, glyphs)} {percent(part)}", short=percent(part)),
        Cell(f"{share.done:,}"),
        Cell(f"{share.running:,}" if known else "-"),
        Cell((rate(share.rate) if share.rate else "-") if known else "-"),
        Cell(duration(share.oldest_s) if share.running else "-"),
        Cell(state, style),
        Cell(why(share)),
    ]


def node_state(share: WorkerShare, line: JobLine, known: bool) -> tuple[str, str]:
    """A word for what a node does for the job, and its style."""
    if not share.live:
        return "gone", "bad"
    if share.running:
        return "works", "good"
    if share.note:
        return ("paused" if share.note in PAUSES else "refuses"), "warn"
    return ("idle", "dim") if known and line.state == "running" else ("there", "dim")


def why(share: WorkerShare) -> str:
    """The sentence of the reason why a node takes no units; of one that is gone, its state says enough."""
    if not share.note or not share.live:
        return ""
    return sentence_of(share.note)


# -- what needs looking at -----------------------------------------------------------------


def _stragglers(picture: JobPicture, names: dict[bytes, str], width: int, glyphs: Glyphs) -> _Section:
    shown = picture.stragglers[:STRAGGLERS_MAX]
    rows: list[Line] = [
        segments(
            (
                (0, (Part("unit "), Part(f"{late.unit:,}", "bold"))),
                (0, (Part(f"for {duration(late.age_s)}", "warn"),)),
                (1, (Part(f"at {_named(late.node, names)}"),)),
            ),
            width,
            ellipsis=glyphs.ellipsis,
        )
        for late in shown
    ]
    return _Section(
        [(Part("late", "warn bold"), Part("  longer than expected of their nodes", "dim"))] if rows else [], rows, 1, noun="late unit"
    )


def _failures(picture: JobPicture, names: dict[bytes, str], width: int, glyphs: Glyphs) -> _Section:
    rows = [failure_row(failure, names, width, glyphs) for failure in picture.failures[-FAILURES_MAX:]]
    return _Section([(Part("failures", "bad bold"), Part("  the newest last", "dim"))] if rows else [], rows, 1, True, "failure")


def failure_row(failure: FailureLine, names: dict[bytes, str], width: int, glyphs: Glyphs = UNICODE) -> Line:
    """A failure in a line; what the unit said is cut where there is no room."""
    again = "" if failure.final else "tried again"
    front: Line = (
        Part("unit "),
        Part(f"{failure.unit:,}", "bold"),
        Part("  "),
        Part(printable(failure.reason), "bad" if failure.final else "warn"),
        Part(f"  {_named(failure.node, names)}", "dim"),
        *((Part(f"  {again}", "dim"),) if again else ()),
    )
    return cut_line((*front, Part(f"  {printable(failure.text, width)}")), width, glyphs.ellipsis)
