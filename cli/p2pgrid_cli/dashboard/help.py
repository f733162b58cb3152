"""What the keys do and what the words mean."""

from __future__ import annotations

from p2pgrid_cli.dashboard.lines import Line, Part, cut_line, padded
from p2pgrid_cli.dashboard.order import SORTS
from p2pgrid_cli.dashboard.view import View

KEYS = (
    ("up down j k", "select a row; also page up, page down, home, end"),
    ("Enter", "all about the selected peer or job; Esc goes back"),
    ("Tab", "between peers and jobs"),
    ("s", f"sort peers by {', '.join(SORTS)}"),
    ("/", "show only rows with a text: Enter keeps it, Esc drops it"),
    ("p r", "pause and resume this node's work for others"),
    ("Ctrl-L", "paint everything anew"),
    ("? h", "this page"),
    ("q Ctrl-C", "quit; the node goes on"),
)
WORDS = (
    ("live", "answers"),
    ("connected", "was not asked yet how it is"),
    ("paused", "answers, but takes no work now; the reason stands beside"),
    ("no answer", "went, or does not answer, since less than two minutes"),
    ("away", "was seen longer ago"),
    ("spare", "cores without a unit; storage that is lent and not used"),
    ("copies", "nodes that have the job: its keepers and its lead"),
    ("disputed", "units decided although a node gave another answer"),
    ("left", "time until the job ends as it goes on now; ? not known"),
)


def help_lines(view: View, width: int) -> list[Line]:
    """The page of help."""
    lines: list[Line] = [(Part(padded(keys, 12), "accent"), Part(f"  {text}")) for keys, text in KEYS]
    lines.append((Part("words", "bold"),))
    lines += [(Part(padded(word, 12), "accent"), Part(f"  {text}")) for word, text in WORDS]
    return [cut_line(line, width, view.glyphs.ellipsis) for line in lines]
