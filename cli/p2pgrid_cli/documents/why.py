"""The document of ``why`` for everything that is explained by a tree of reasons."""

from __future__ import annotations

import msgspec

from p2pgrid.wire.faces import Because, Explanation


class Why(msgspec.Struct, frozen=True):
    """Of a job, a unit, a node or this node: why it is as it is."""

    subject: str
    """what was asked for, with its id in full"""
    kind: str
    """`job`, `unit`, `peer`, `blob` or `me`"""
    state: str
    """the state in a word"""
    text: str
    """the state in a sentence"""
    because: tuple[WhyReason, ...]
    """why"""


class WhyReason(msgspec.Struct, frozen=True):
    """Each of ``because``, and of ``under``."""

    reason: str
    """a [reason code](reasons.md); empty for a plain fact"""
    text: str
    """a sentence"""
    next_step: str
    """what to do about it; empty when there is nothing to do"""
    under: tuple[WhyReason, ...]
    """the reasons for the reason"""


def reason_of(because: Because) -> WhyReason:
    """A reason with all under it."""
    return WhyReason(because.reason, because.text, because.next_step, tuple(reason_of(under) for under in because.under))


def why_of(subject: str, told: Explanation) -> Why:
    """The whole tree. ``subject``: what it is about, with its id in full."""
    return Why(subject, told.kind, told.state, told.text, tuple(reason_of(because) for because in told.because))
