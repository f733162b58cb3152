"""Lines of cells: what a terminal can show in a row, measured as it measures, and cut with an ellipsis and no other way.

A line is a tuple of parts, each with the name of a style. Names mean something (good, warn, bad); the painter alone knows colours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from rich.cells import cell_len

NAME_CELLS = 40
GAP = "  "


class Part(NamedTuple):
    """Text in one style: words of ``dim bold good warn bad accent reverse``, separated by blanks."""

    text: str
    style: str = ""


Line: TypeAlias = tuple[Part, ...]


class Glyphs(NamedTuple):
    """The characters that pictures are made of."""

    full: str
    empty: str
    spark: str
    rule: str
    mark: str
    ellipsis: str


UNICODE = Glyphs("█", "░", "▁▂▃▄▅▆▇█", "─", "›", "…")
ASCII = Glyphs("#", ".", "_.:-=+*#", "-", ">", "~")
"""For terminals that know no more."""


def width_of(text: str) -> int:
    """How many cells a text takes."""
    return len(text) if text.isascii() else cell_len(text)


def line_width(line: Iterable[Part]) -> int:
    """How many cells a line takes."""
    return sum(width_of(part.text) for part in line)


def _shown(char: str) -> str:
    """A character as it may reach a terminal. Joiners and variants go: terminals disagree about how wide these make others."""
    if char in "\u200d\ufe0e\ufe0f":
        return ""
    return char if char.isprintable() else "?"


@lru_cache(maxsize=4096)
def printable(text: str, cells_max: int = NAME_CELLS) -> str:
    """What others call themselves, in one short line: control characters must not reach a terminal."""
    plain = text if text.isascii() and text.isprintable() else "".join(map(_shown, text[: 4 * cells_max + 4]))
    return cut(plain, cells_max)


def cut(text: str, cells: int, ellipsis: str = UNICODE.ellipsis) -> str:
    """At most so many cells of a text; the last is an ellipsis where something is missing."""
    if width_of(text) <= cells:
        return text
    if cells < 1:
        return ""
    taken, room = list[str](), cells - width_of(ellipsis)
    for char in text:
        room -= width_of(char)
        if room < 0:
            break
        taken.append(char)
    return "".join(taken) + ellipsis


@lru_cache(maxsize=1024)
def wrapped(text: str, cells: int) -> tuple[str, ...]:
    """A text in lines of whole words; a word that is wider than a line is divided."""
    lines, line = list[str](), ""
    for word in text.split(" "):
        joined = f"{line} {word}" if line else word
        if width_of(joined) <= cells:
            line = joined
            continue
        lines += [line] if line else []
        while width_of(word) > cells > 1:
            head = cut(word, cells, "")
            lines.append(head)
            word = word[len(head) :]
        line = word
    return (*lines, line)


def cut_line(line: Iterable[Part], cells: int, ellipsis: str = UNICODE.ellipsis) -> Line:
    """At most so many cells of a line."""
    parts = tuple(line)
    if line_width(parts) <= cells:
        return parts
    kept, room = list[Part](), cells
    for part in parts:
        width = width_of(part.text)
        if width >= room:
            # Something follows, or this does not fit: the ellipsis says so.
            follows = width > room or part is not parts[-1]
            text = part.text if not follows else cut(part.text + ellipsis, room, ellipsis)
            kept.append(Part(text, part.style))
            break
        kept.append(part)
        room -= width
    return tuple(kept)


def padded(text: str, cells: int, *, right: bool = False) -> str:
    """A text with blanks so that it takes so many cells."""
    blanks = " " * (cells - width_of(text))
    return blanks + text if right else text + blanks


def styled(line: Iterable[Part], style: str) -> Line:
    """A line with one more style on each part."""
    return tuple(Part(part.text, f"{part.style} {style}".strip()) for part in line)


def segments(pieces: Sequence[tuple[int, Line]], width: int, *, gap: str = GAP, ellipsis: str = UNICODE.ellipsis) -> Line:
    """Pieces side by side; where there is no room those of the highest rank go first, and what cannot go is cut."""
    kept = list(range(len(pieces)))
    while sum(line_width(pieces[index][1]) + len(gap) for index in kept) - len(gap) > width:
        last = max(kept, key=lambda index: (pieces[index][0], index))
        if not pieces[last][0]:
            break
        kept.remove(last)
    joined = list[Part]()
    for index in kept:
        joined += [Part(gap)] if joined else []
        joined += pieces[index][1]
    return cut_line(joined, width, ellipsis)


def ends(left: Line, right: Line, width: int, *, ellipsis: str = UNICODE.ellipsis) -> Line:
    """One text at the left edge and one at the right; the left one gives way."""
    right = cut_line(right, width, ellipsis)
    room = width - line_width(right)
    left = cut_line(left, max(0, room - len(GAP)), ellipsis)
    return (*left, Part(" " * (room - line_width(left))), *right)


def bar(share: float, cells: int, glyphs: Glyphs = UNICODE) -> str:
    """A share of 0 to 1 as a bar. It is empty for nothing alone, and full for all of it alone."""
    full = round(max(0.0, min(1.0, share)) * cells)
    if 0 < share < 1 and cells > 1:
        full = max(1, min(cells - 1, full))
    return glyphs.full * full + glyphs.empty * (cells - full)


def sparkline(values: Sequence[float], cells: int, glyphs: Glyphs = UNICODE, *, top: float = 0.0) -> str:
    """The last values as a line of columns, the newest at the right. ``top``: what a full column stands for; 0: the highest value."""
    shown = values[-cells:] if cells > 0 else ()
    highest = top or max(shown, default=0.0)
    last = len(glyphs.spark) - 1
    columns = [glyphs.spark[max(0, min(last, round(value / highest * last)))] if highest > 0 else glyphs.spark[0] for value in shown]
    return "".join(columns).rjust(cells)


def duration(seconds: float) -> str:
    """A time for people, in at most 7 cells."""
    seconds = max(0.0, seconds)
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds / 3600:.0f} h"
    return f"{min(99_999, seconds / 86_400):.0f} d"


def count(number: float) -> str:
    """A count in at most 5 cells."""
    for limit, size, unit in ((1e5, 1.0, ""), (1e7, 1e3, "k"), (1e10, 1e6, "M"), (1e13, 1e9, "G")):
        if number < limit:
            return f"{number / size:.0f}{unit}"
    return ">10T"


def rate(per_second: float) -> str:
    """So many a second, with the digits that matter."""
    if 0 < per_second < 9.95:
        return f"{per_second:.1f}" if per_second >= 0.05 else "<0.1"
    return count(per_second)


def clock(wall_ms: int, utc_offset_s: int) -> str:
    """The time of day."""
    second = (wall_ms // 1000 + utc_offset_s) % 86_400
    return f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"


def milliseconds(seconds: float) -> str:
    """A round trip, in at most 7 cells; a dash when it was not measured."""
    if seconds <= 0:
        return "-"
    value = seconds * 1000
    if value < 99.95:
        return f"{value:.1f} ms"
    return f"{value:.0f} ms" if value < 9999.5 else duration(seconds)
