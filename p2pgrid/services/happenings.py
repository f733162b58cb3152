"""What happened at this node, for its owner: the last events with their reason codes, found again by what they are about.

A code that came from another node says nothing of this one: its full disk is no warning here. Such codes are plain texts, as errors
from elsewhere carry them (:func:`p2pgrid.net.messages.error_of`); what this node finds itself is told as a member of the registry.
"""

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
REASON_CHARS = 64
TEXT_CHARS = 1000
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
        self._own: deque[EventLine] = deque(maxlen=EVENTS_MAX)
        """Those whose code this node gave itself."""
        context.events.append(self._note)

    def _note(self, reason: str, text: str, about: tuple[bytes, ...]) -> None:
        code, text, about = str(reason)[:REASON_CHARS], text[:TEXT_CHARS], about[:ABOUT_MAX]
        event = EventLine(self._context.wall_ms(), code, text, about)
        self._events.append(event)
        own = isinstance(reason, Reason)
        if own:
            self._own.append(event)
        level = logging.WARNING if own and reason in WARNINGS else logging.INFO
        logs.line(_log, level, logs.HAPPENED, reason=code, text=text, about=about)

    def recent(self, count: int) -> tuple[EventLine, ...]:
        """The newest events, the oldest of them first."""
        return tuple(self._events)[-count:]

    def own(self, count: int) -> tuple[EventLine, ...]:
        """The newest events whose code is about this node, not one that another node gave; the oldest of them first."""
        return tuple(self._own)[-count:]

    def about(self, subject: bytes, count: int) -> tuple[EventLine, ...]:
        """The newest events that are about a job, a node or a blob, the oldest of them first."""
        found = [event for event in reversed(self._events) if subject in event.about][:count]
        return tuple(reversed(found))
