"""How ``why`` is shown: a tree of sentences with their codes, wrapped at word borders to the width of the terminal.

The code of a reason stands in brackets behind its sentence, what to do about it on a line of its own. Where lines and corners
cannot be written, plain ASCII stands for them.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

from p2pgrid.wire.faces import Because
from p2pgrid_cli.common import PIPE_COLUMNS

COLUMNS_MIN = 30
STEP = "-> "


class Lines(NamedTuple):
    """What a tree is drawn with."""

    branch: str
    last: str
    bar: str
    gap: str


BOX = Lines("├─ ", "└─ ", "│  ", "   ")
ASCII = Lines("|- ", "`- ", "|  ", "   ")


def tree_lines(title: str, state: str, text: str, because: tuple[Because, ...], columns: int, lines: Lines = BOX) -> list[str]:
    """The whole answer. ``title``: what it is about; ``columns``: how wide a line may be."""
    columns = max(COLUMNS_MIN, columns)
    told = [*_wrapped(f"{title}: {state}", columns, "", ""), *_wrapped(text, columns, "", "")]
    return [*told, *_under(because, columns, "", lines)]


def _under(because: tuple[Because, ...], columns: int, before: str, lines: Lines) -> Iterator[str]:
    for number, one in enumerate(because):
        is_last = number == len(because) - 1
        deeper = before + (lines.gap if is_last else lines.bar)
        code = f" [{one.reason}]" if one.reason else ""
        # What hangs below is joined to this one by a line, also where its text takes several.
        stem = deeper + (lines.bar if one.under else "")
        yield from _wrapped(f"{one.text}{code}", columns, before + (lines.last if is_last else lines.branch), stem)
        if one.next_step:
            yield from _wrapped(one.next_step, columns, stem + STEP, stem + " " * len(STEP))
        yield from _under(one.under, columns, deeper, lines)


def _wrapped(text: str, columns: int, first: str, later: str) -> list[str]:
    """``text`` within ``columns``, behind ``first`` in its first line and ``later`` in the others; the text's own indent stays."""
    plain = "".join(character if character.isprintable() else "?" for character in text)
    indent = plain[: len(plain) - len(plain.lstrip())]
    # A tree that is too deep for the terminal goes over its edge rather than down one letter at a time.
    width = max(columns, len(later) + len(indent) + COLUMNS_MIN // 2)
    found = textwrap.wrap(
        plain.strip(),
        width,
        initial_indent=first + indent,
        subsequent_indent=later + indent,
        break_on_hyphens=False,
    )
    return [line.rstrip() for line in found] or [first.rstrip()]


def columns_here() -> int:
    """How wide a line may be: as the terminal is, or as COLUMNS says; a pipe takes any."""
    said = os.environ.get("COLUMNS", "")
    if said.isdecimal() and 0 < int(said) < PIPE_COLUMNS:
        return int(said)
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPE_COLUMNS


def lines_here() -> Lines:
    """What this terminal or file can show."""
    return BOX if (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf") else ASCII


def sayable_here(line: str) -> str:
    """A line in which nothing is left that the output cannot carry."""
    encoding = sys.stdout.encoding or "ascii"
    return line.encode(encoding, "replace").decode(encoding)
