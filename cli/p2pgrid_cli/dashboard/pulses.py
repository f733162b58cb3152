"""The node's pulses: each a figure and how it went lately, in a grid of two or three columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from p2pgrid.wire.faces import Pulse
from p2pgrid.wire.owner import Snapshot
from p2pgrid_cli.common import size_text
from p2pgrid_cli.dashboard.lines import GAP, Line, Part, bar, count, cut, padded, rate, sparkline, width_of
from p2pgrid_cli.dashboard.order import live_peers
from p2pgrid_cli.dashboard.view import View

SMOOTH = 5
"""A rate is told over so many steps, so that it can be read."""
SPARK_MAX = 40
LABEL_CELLS = 8
FIGURE_CELLS = 10
SPARK_MIN = 4
CELL_MIN = 34
"""A cell with room for how it went."""


class Figure(NamedTuple):
    """One cell: the value in words, and what it was; ``top``: the most it can be, 0 when there is no such thing."""

    label: str
    text: str
    values: tuple[float, ...] = ()
    top: float = 0.0
    share: float = -1.0
    """Drawn as a bar instead, when it is known."""


def steps(pulses: Sequence[Pulse], counter: Callable[[Pulse], float]) -> tuple[float, ...]:
    """A counter's growth a second between pulses; a counter that fell belongs to a new start."""
    found = []
    for before, after in pairwise(pulses):
        seconds = (after.wall_ms - before.wall_ms) / 1000
        found.append(max(0.0, counter(after) - counter(before)) / seconds if seconds > 0 else 0.0)
    return tuple(found)


def lately(values: Sequence[float]) -> float:
    """The mean of the newest steps."""
    newest = values[-SMOOTH:]
    return sum(newest) / len(newest) if newest else 0.0


def given(used_bytes: float, lent_bytes: float) -> str:
    """Used and lent, in the unit of what is lent."""
    lent = size_text(lent_bytes)
    figure, unit = lent.split()
    used, used_unit = size_text(used_bytes).split()
    if used_unit != unit:
        share = used_bytes / lent_bytes if lent_bytes else 0.0
        used = f"{share * float(figure):.2f}" if used_bytes else "0"
    return f"{used}/{lent}"


def traffic(bytes_s: float) -> str:
    """Bytes a second, in at most 9 cells."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if bytes_s < 999.5 or unit == "GiB":
            break
        bytes_s /= 1024
    return f"{bytes_s:.1f} {unit}/s" if unit != "B" and bytes_s < 9.95 else f"{bytes_s:.0f} {unit}/s"


def figures(snapshot: Snapshot) -> list[Figure]:
    """What is shown, in its order."""
    pulses, own, offer = snapshot.pulses[-SPARK_MAX - 1 :], snapshot.status.status, snapshot.status.info.offer
    units = steps(pulses, lambda pulse: pulse.done)
    sent = steps(pulses, lambda pulse: pulse.sent_bytes)
    received = steps(pulses, lambda pulse: pulse.received_bytes)
    newest = pulses[-1] if pulses else None
    cpu, memory = tuple(pulse.cpu_share for pulse in pulses), tuple(float(pulse.memory_bytes) for pulse in pulses)
    # This node has a row among the peers, and so it counts here too.
    peers = newest.peers + 1 if newest else live_peers(snapshot)
    running, queued = (newest.running, newest.queued) if newest else (own.running, own.queued)
    stored = newest.storage_bytes if newest else own.storage_used_bytes
    lent = offer.storage_bytes
    return [
        Figure("peers", count(peers), tuple(pulse.peers + 1.0 for pulse in pulses)),
        Figure("running", f"{running} of {offer.cores}", tuple(float(pulse.running) for pulse in pulses), float(offer.cores)),
        Figure("units/s", rate(lately(units)) if units else "-", units),
        Figure("queued", count(queued), tuple(float(pulse.queued) for pulse in pulses)),
        Figure("CPU", f"{newest.cpu_share:.0%}" if newest else "-", cpu, 1.0),
        Figure("sent", traffic(lately(sent)) if sent else "-", sent),
        Figure("storage", given(stored, lent), share=stored / lent if lent else 0.0),
        Figure("memory", size_text(newest.memory_bytes) if newest else "-", memory),
        Figure("received", traffic(lately(received)) if received else "-", received),
    ]


def pulses(snapshot: Snapshot, view: View, width: int, *, compact: bool = False) -> list[Line]:
    """Three lines of three, or five of two where that leaves little room for how it went, unless they are to be ``compact``."""
    shown = figures(snapshot)
    across = 3 if width >= 3 * (CELL_MIN + len(GAP)) - len(GAP) or compact else 2
    cell = (width - len(GAP) * (across - 1)) // across
    rows = [shown[start : start + across] for start in range(0, len(shown), across)]
    return [_joined([_cell(figure, view, cell, shown[index::across]) for index, figure in enumerate(row)]) for row in rows]


def _joined(cells: Sequence[Line]) -> Line:
    parts = list[Part]()
    for cell in cells:
        parts += [Part(GAP)] if parts else []
        parts += cell
    return tuple(parts)


def _cell(figure: Figure, view: View, width: int, below: Sequence[Figure]) -> Line:
    """``below``: all of the same column, for they are as wide."""
    text_room = max(FIGURE_CELLS, *(width_of(other.text) for other in below))
    spark_room = min(SPARK_MAX, width - LABEL_CELLS - 1 - text_room - 1)
    label = padded(cut(figure.label, LABEL_CELLS, view.glyphs.ellipsis), LABEL_CELLS)
    if spark_room < SPARK_MIN:
        text = cut(figure.text, max(0, width - LABEL_CELLS - 1), view.glyphs.ellipsis)
        return (Part(label, "dim"), Part(" " + padded(text, max(0, width - LABEL_CELLS - 1)), "bold"))
    if figure.share >= 0:
        drawn = bar(figure.share, min(spark_room, 20), view.glyphs)
    else:
        drawn = sparkline(figure.values, spark_room, view.glyphs, top=figure.top)
    blanks = width - LABEL_CELLS - 2 - text_room - spark_room
    return (
        Part(label, "dim"),
        Part(" " + padded(figure.text, text_room, right=True), "bold"),
        Part(" " + padded(drawn, spark_room) + " " * blanks, "accent"),
    )
