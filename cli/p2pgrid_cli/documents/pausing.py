"""The document of ``pause``, ``resume`` and ``finish``, and the beginning of that of ``why me``."""

from __future__ import annotations

import msgspec

from p2pgrid.wire.owner import OwnPause


class Pause(msgspec.Struct, frozen=True):
    """Whether this node works for others."""

    state: str
    """`running`, `paused`, `finishing`"""
    reason: str | None
    """a [reason code](reasons.md)"""
    sentence: str
    """the reason for people"""
    since_ms: int | None
    """since when"""
    until_ms: int | None
    """when it ends by itself"""
    ends: str
    """what ends it, for people"""


def pause_of(told: OwnPause) -> Pause:
    """The state as programs read it."""
    return Pause(told.state, told.reason or None, told.sentence, told.since_ms or None, told.until_ms or None, told.ends)
