"""Tables of lines: where the width is short columns of least importance go, then cells take their short form, then names are cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from p2pgrid_cli.dashboard.lines import GAP, UNICODE, Glyphs, Line, Part, cut, padded, width_of


class Column(NamedTuple):
    """``rank``: columns of a higher one go first; 0 always stays."""

    name: str
    short_name: str = ""
    rank: int = 0
    least: int = 0
    """Cells that it always has, so that it does not jump while figures change."""
    right: bool = False
    cut_to: int = 0
    """It may be cut down to so many cells; 0: never."""
    comfort: int = 0
    """Columns of a rank above ``RANK_OF_COMFORT`` stand back while this one, which can be cut, has fewer cells than it wants of these."""
    most: int = 40


RANK_OF_COMFORT = 4


class Cell(NamedTuple):
    """``short``: what stands there where ``text`` has no room."""

    text: str
    style: str = ""
    short: str = ""


class Table(NamedTuple):
    """The line of names, and a line for each row."""

    head: Line
    rows: list[Line]


def table(
    columns: Sequence[Column], rows: Sequence[Sequence[Cell]], width: int, glyphs: Glyphs = UNICODE, *, first_name: str = ""
) -> Table:
    """Rows as lines of at most ``width`` cells. ``first_name``: stands above the first column instead of its name."""
    columns = [columns[0]._replace(name=first_name, short_name=""), *columns[1:]] if first_name else columns
    least = [_least(column, [row[index] for row in rows]) for index, column in enumerate(columns)]
    whole = [max(least[index], _whole(column, [row[index] for row in rows])) for index, column in enumerate(columns)]
    widths = _fit(columns, least, whole, width)
    names = []
    for index in widths:
        column = columns[index]
        text = column.name if width_of(column.name) <= widths[index] else column.short_name or column.name
        names.append(padded(cut(text, widths[index], glyphs.ellipsis), widths[index], right=column.right))
    head = cut(GAP.join(names).rstrip(), width, glyphs.ellipsis)
    return Table((Part(head, "dim"),), [_row(columns, row, widths, whole, width, glyphs) for row in rows])


def _least(column: Column, cells: Sequence[Cell]) -> int:
    contents = max((width_of(cell.short or cell.text) for cell in cells), default=0)
    contents = min(contents, column.cut_to) if column.cut_to else contents
    return max(column.least, width_of(column.short_name or column.name), min(contents, column.most))


def _whole(column: Column, cells: Sequence[Cell]) -> int:
    contents = max((width_of(cell.text) for cell in cells), default=0)
    return max(width_of(column.name), min(contents, column.most))


def _fit(columns: Sequence[Column], least: Sequence[int], whole: Sequence[int], width: int) -> dict[int, int]:
    """The columns that stay, with their widths."""
    kept = _kept(columns, least, [max(size, min(whole[index], columns[index].comfort)) for index, size in enumerate(least)], width)
    widths = {index: least[index] for index in kept}
    room = width - sum(widths.values()) - len(GAP) * (len(kept) - 1)
    for index in sorted(kept, key=lambda index: (columns[index].rank, index)):
        more = whole[index] - widths[index]
        # A cell that can be cut takes what there is; others are short or whole.
        grown = min(more, max(0, room)) if columns[index].cut_to else more if more <= room else 0
        widths[index] += grown
        room -= grown
    return widths


def _kept(columns: Sequence[Column], least: Sequence[int], easy: Sequence[int], width: int) -> list[int]:
    """The indexes of the columns that stay. What went comes back where, after all, there is room."""

    def fits(some: Sequence[int], rank: int) -> bool:
        sizes = easy if rank > RANK_OF_COMFORT else least
        return sum(sizes[index] + len(GAP) for index in some) - len(GAP) <= width

    ranked = sorted(range(len(columns)), key=lambda index: (columns[index].rank, index))
    kept = list(ranked)
    while kept and columns[kept[-1]].rank and not fits(kept, columns[kept[-1]].rank):
        kept.pop()
    for index in ranked[len(kept) :]:
        if fits([*kept, index], columns[index].rank):
            kept.append(index)
    return sorted(kept)


def _row(columns: Sequence[Column], row: Sequence[Cell], widths: dict[int, int], whole: Sequence[int], width: int, glyphs: Glyphs) -> Line:
    parts, room = list[Part](), width
    for index, wide in widths.items():
        cell, column = row[index], columns[index]
        gap = GAP if parts else ""
        wide = min(wide, room - len(gap))
        if wide < 1:
            break
        text = cell.text if widths[index] >= whole[index] or not cell.short else cell.short
        text = padded(cut(text, wide, glyphs.ellipsis), wide, right=column.right)
        parts.append(Part(gap + text, cell.style))
        room -= wide + len(gap)
    return tuple(parts)
