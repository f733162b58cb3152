"""What happened lately: the time, the reason code, and the sentence. The newest stands last, where a log has it."""

from __future__ import annotations

from collections.abc import Sequence

from p2pgrid.wire.owner import EventLine, Snapshot
from p2pgrid_cli.dashboard.lines import Line, Part, clock, cut, cut_line, padded, printable, width_of
from p2pgrid_cli.dashboard.view import View

REASON_MOST = 20
TEXT_CELLS = 400


def event_lines(events: Sequence[EventLine], view: View, width: int) -> list[Line]:
    """A line for each."""
    reasons = [printable(event.reason, REASON_MOST) for event in events]
    room = max([6, *(width_of(reason) for reason in reasons)])
    room = min(room, max(6, width // 4))
    lines = []
    for event, reason in zip(events, reasons, strict=True):
        word = padded(cut(reason, room, view.glyphs.ellipsis), room)
        parts = (
            Part(clock(event.wall_ms, view.utc_offset_s), "dim"),
            Part(f"  {word}", "accent"),
            Part(f"  {printable(event.text, TEXT_CELLS)}"),
        )
        lines.append(cut_line(parts, width, view.glyphs.ellipsis))
    return lines


def events_about(snapshot: Snapshot, key: bytes) -> list[EventLine]:
    """Those that name an id."""
    return [event for event in snapshot.events if key in event.about]
