"""What happened lately: the time, the reason code, and the sentence. The newest stands last, where a log has it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from p2pgrid.model.ids import short
from p2pgrid.wire.owner import EventLine, Snapshot
from p2pgrid_cli.dashboard.lines import GAP, Line, Part, clock, cut, cut_line, padded, printable, width_of, wrapped
from p2pgrid_cli.dashboard.view import View

REASON_MOST = 20
TEXT_CELLS = 400
NAME_CELLS = 20
CLOCK_CELLS = 8
LINES_MOST = 4
"""Of one event."""
WHOLE_FROM = 7
"""With so many lines, texts are not cut to one."""


def told(snapshot: Snapshot) -> tuple[EventLine, ...]:
    """What happened, with names before the ids of those peers and jobs that have one: people know names."""
    wanted = {key for event in snapshot.events for key in event.about}
    if not wanted:
        return snapshot.events
    names = {peer.node: peer.info.name for peer in snapshot.peers if peer.node in wanted}
    names |= {job.job: job.name for job in snapshot.jobs if job.job in wanted}
    return tuple(_named(event, names) for event in snapshot.events)


def _named(event: EventLine, names: dict[bytes, str]) -> EventLine:
    known = {short(key): printable(name, NAME_CELLS) for key in event.about if key and (name := names.get(key))}
    if not known:
        return event
    # In one pass, so that a name that looks like an id is left alone; an id in brackets has its name before it.
    ids = re.compile(rf"(?<![\w(])(?:{'|'.join(known)})(?!\w)")
    return msgspec.structs.replace(event, text=ids.sub(lambda found: f"{known[found[0]]} ({found[0]})", event.text))


def event_lines(events: Sequence[EventLine], view: View, width: int, rows: int = 0) -> list[Line]:
    """The newest, in at most so many lines; 0: all of them, and of each all of its text.

    With room for several events, or for all, a text goes on in further lines; else it is cut to one.
    """
    events = events[-rows:] if rows else events
    room = max([6, *(width_of(printable(event.reason, REASON_MOST)) for event in events)])
    room = min(room, max(6, width // 4))
    blocks = [_block(event, view, width, room, LINES_MOST) for event in events]
    if not rows:
        return [line for block in blocks for line in block]
    whole = rows >= WHOLE_FROM or sum(map(len, blocks)) <= rows
    kept, left = list[list[Line]](), rows
    for event, block in zip(reversed(events), reversed(blocks), strict=True):
        if left < 1:
            break
        kept.append(block if whole and len(block) <= left else _block(event, view, width, room, 1))
        left -= len(kept[-1])
    return [line for block in reversed(kept) for line in block]


def _block(event: EventLine, view: View, width: int, room: int, lines_max: int) -> list[Line]:
    """An event in at most so many lines; the last ends with an ellipsis where something is missing."""
    mark = view.glyphs.ellipsis
    reason = padded(cut(printable(event.reason, REASON_MOST), room, mark), room)
    cells = max(1, width - CLOCK_CELLS - len(GAP) - room - len(GAP))
    text = printable(event.text, TEXT_CELLS)
    texts = list(wrapped(text, cells))
    if len(texts) > lines_max:
        texts[lines_max - 1 :] = [cut(" ".join(texts[lines_max - 1 :]), cells, mark)]
    first = (Part(clock(event.wall_ms, view.utc_offset_s), "dim"), Part(f"{GAP}{reason}", "accent"), Part(f"{GAP}{texts[0]}"))
    indent = " " * (width - cells)
    return [cut_line(first, width, mark), *((Part(indent + more),) for more in texts[1:])]


def events_about(snapshot: Snapshot, key: bytes) -> list[EventLine]:
    """Those that name an id."""
    return [event for event in told(snapshot) if key in event.about]
