"""How reasons are put together: one place decides what a line says, how many there are, and how spans and moments are written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from p2pgrid.logs import sayable
from p2pgrid.model.ids import short
from p2pgrid.model.reasons import CODES, Reason
from p2pgrid.services.peers import Peers
from p2pgrid.wire.faces import Because

LINES_MAX = 20
"""Lines under one reason: what is more is counted."""
TEXT_MAX = 400
"""Characters of one line that come from a unit."""


def because(reason: Reason, text: str = "", under: Iterable[Because] = (), *, next_step: str | None = None) -> Because:
    """A reason with its code. ``text`` in place of the code's own sentence; ``next_step`` in place of its own step."""
    return Because(reason.value, text or reason.sentence, reason.next_step if next_step is None else next_step, bounded(under))


def fact(text: str, under: Iterable[Because] = ()) -> Because:
    """A line without a code."""
    return Because("", text, "", bounded(under))


def bounded(lines: Iterable[Because]) -> tuple[Because, ...]:
    """The first lines, and how many there are beyond the bound."""
    every = tuple(lines)
    if len(every) <= LINES_MAX:
        return every
    return (*every[: LINES_MAX - 1], Because("", f"and {len(every) - LINES_MAX + 1} more"))


def code_of(text: str) -> Reason | None:
    """The registered reason of a code that came over the wire."""
    return CODES.get(text)


def said(text: str) -> str:
    """A line of somebody else's text: cut where it is too long, and without what a terminal would obey."""
    line = plain(next((line.strip() for line in text.splitlines() if line.strip()), ""))
    return line if len(line) <= TEXT_MAX else line[: TEXT_MAX - 3] + "..."


def plain(text: str) -> str:
    """Without control characters."""
    return sayable(text[: 4 * TEXT_MAX])


def named(peers: Peers, node: bytes, me: bytes) -> str:
    """A node for people: its name and the beginning of its id."""
    name = said(peers.info(node).name)
    mine = "this node" if node == me else ""
    if not name:
        return f"{short(node)} ({mine})" if mine else short(node)
    return f"{name} ({', '.join(filter(None, (short(node), mine)))})"


def span_text(seconds: float) -> str:
    """A span of time for people: ``40 s``, ``12 min``, ``3 h``, ``2 days``."""
    if seconds < 100:
        return f"{max(0.0, seconds):.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 86_400:.0f} days"


def moment_text(wall_ms: int) -> str:
    """A moment for people, in UTC: two nodes of one grid may stand far apart."""
    try:
        return datetime.fromtimestamp(wall_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, ValueError, OSError):
        return "no time that a calendar has"


def count_text(count: int, one: str, many: str = "") -> str:
    """``1 node``, ``4 nodes``."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def names_text(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else list(names))
