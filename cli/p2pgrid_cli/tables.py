"""Tables that fit: where the width is short the least important columns go, and nothing is cut to dots in a pipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from rich.cells import cell_len
from rich.table import Table

GAP = 2
"""Columns between two columns of a table without lines."""


class Column(NamedTuple):
    """``rank``: columns of a higher one go first where there is no room; 0 always stays."""

    name: str
    rank: int = 0
    justify: Literal["left", "right"] = "left"


class Row(NamedTuple):
    """Cells in the order of the columns."""

    cells: tuple[str, ...]
    style: str | None = None


def fitting(columns: Sequence[Column], rows: Sequence[Row], width: int) -> list[int]:
    """Which columns stay, by their index, so that the table is at most ``width`` wide, as far as ranks allow."""
    widths = [max([cell_len(column.name), *(cell_len(row.cells[index]) for row in rows)]) for index, column in enumerate(columns)]
    kept = list(range(len(columns)))
    while sum(widths[index] + GAP for index in kept) - GAP > width:
        last = max(kept, key=lambda index: (columns[index].rank, index))
        if not columns[last].rank:
            break
        kept.remove(last)
    return kept


def table_of(columns: Sequence[Column], rows: Sequence[Row], width: int) -> Table:
    """A table of at most ``width`` columns of text."""
    kept = fitting(columns, rows, width)
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for index in kept:
        table.add_column(columns[index].name, justify=columns[index].justify, no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(*(row.cells[index] for index in kept), style=row.style)
    return table
