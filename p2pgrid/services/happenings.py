"""What happened at this node, for its owner: the last events with their reason codes, found again by what they are about."""

from __future__ import annotations

import logging
from collections import deque

from p2pgrid import logs
from p2pgrid.model.reasons import Reason
from p2pgrid.services.context import Context
from p2pgrid.wire.owner import EventLine

_log = logging.getLogger(__name__)

EVENTS_MAX = 1000
ABOUT_MAX = 4
"""Ids that one event may name."""
WARNINGS = frozenset(
    {
        Reason.BUG,
        Reason.CAGE_BROKEN,
        Reason.CLOCK_OFF,
        Reason.CONFLICT,
        Reason.CORRUPT,
        Reason.DISK_FAILED,
        Reason.DISK_FULL,
        Reason.REBUILT,
        Reason.STOPPED,
    }
)
"""Something is damaged, or goes on only when somebody does something."""


class Happenings:
    """Listens to what services tell. Bounded: the oldest events go first."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._events: deque[EventLine] = deque(maxlen=EVENTS_MAX)
        context.events.append(self._note)

    def _note(self, reason: str, text: str, about: tuple[bytes, ...]) -> None:
        self._events.append(EventLine(self._context.wall_ms(), str(reason), text, about[:ABOUT_MAX]))
        level = logging.WARNING if reason in WARNINGS else logging.INFO
        logs.line(_log, level, logs.HAPPENED, reason=str(reason), text=text, about=about[:ABOUT_MAX])

    def recent(self, count: int) -> tuple[EventLine, ...]:
        """The newest events, the oldest of them first."""
        return tuple(self._events)[-count:]

    def about(self, subject: bytes, count: int) -> tuple[EventLine, ...]:
        """The newest events that are about a job, a node or a blob, the oldest of them first."""
        found = [event for event in reversed(self._events) if subject in event.about][:count]
        return tuple(reversed(found))
