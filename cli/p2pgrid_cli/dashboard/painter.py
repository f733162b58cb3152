"""Brings lines to a terminal: only those that changed, each frame in one write, and everything as it was at the end.

A frame is marked as one (synchronized output), so that a terminal that knows this shows no half of it; others ignore the mark.
Lines never wrap: that is switched off, for no program knows how wide every terminal draws every sign.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from types import TracebackType

from p2pgrid_cli.dashboard.lines import Line

ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[0m\x1b[2J\x1b[H"
LEAVE = "\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l"
BEGIN, END = "\x1b[?2026h", "\x1b[?2026l"
CLEAR = "\x1b[0m\x1b[2J"
COLOURS = {"good": "32", "warn": "33", "bad": "31", "accent": "36"}
WEIGHTS = {"bold": "1", "dim": "2", "reverse": "7"}


@lru_cache(maxsize=256)
def code_of(style: str, colour: bool) -> str:
    """The sequence that begins a style; empty for none. Without colour weights are left, and words say the rest."""
    known = {**WEIGHTS, **COLOURS} if colour else WEIGHTS
    codes = [known[word] for word in style.split() if word in known]
    return f"\x1b[{';'.join(codes)}m" if codes else ""


def written(line: Line, colour: bool) -> str:
    """A line with its styles as a terminal takes them."""
    made = []
    for part in line:
        code = code_of(part.style, colour)
        made.append(f"{code}{part.text}\x1b[0m" if code else part.text)
    return "".join(made)


class Painter:
    """Use as a context manager around everything that is painted."""

    def __init__(self, write: Callable[[bytes], None], *, colour: bool = True, encoding: str = "utf-8") -> None:
        self._write = write
        self._colour = colour
        self._encoding = encoding
        self._shown: list[Line] = []
        self._size = (0, 0)
        self._entered = False

    def __enter__(self) -> Painter:
        self.enter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.leave()

    def enter(self) -> None:
        """Take the terminal: its other screen, no cursor, no wrapping."""
        self._send(ENTER)
        self._entered = True
        self.forget()

    def leave(self) -> None:
        """Give it back as it was; more than once does no harm."""
        if self._entered:
            self._entered = False
            # The terminal may have gone, which is often why we end.
            with suppress(OSError):
                self._send(LEAVE)

    def forget(self) -> None:
        """Paint everything anew the next time: somebody else may have written there."""
        self._shown, self._size = [], (0, 0)

    def paint(self, lines: Sequence[Line], width: int, height: int) -> None:
        """Show these lines. Writes nothing when nothing changed."""
        parts = []
        if (width, height) != self._size:
            parts.append(CLEAR)
            self._shown, self._size = [()] * height, (width, height)
        for row, line in enumerate(lines[:height]):
            if line != self._shown[row]:
                parts.append(f"\x1b[{row + 1};1H{written(line, self._colour)}\x1b[K")
                self._shown[row] = line
        if parts:
            self._send(BEGIN + "".join(parts) + END)

    def _send(self, text: str) -> None:
        self._write(text.encode(self._encoding, "replace"))
