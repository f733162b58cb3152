"""Whom this node talks to: the judgement of a peer's hello, before anything else of it is looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from p2pgrid.errors import RefusedError
from p2pgrid.model.ids import NodeKey, short
from p2pgrid.model.limits import Limits
from p2pgrid.model.reasons import Reason
from p2pgrid.net.api import WallClock
from p2pgrid.net.messages import Authorise, Hello, Member
from p2pgrid.net.methods import Methods

Heard = Callable[[NodeKey, Hello, bool], None]
"""Told each hello before it is judged: whose it is, and whether this side dialled."""


def _nothing(peer: NodeKey, hello: Hello, dialled: bool) -> None:
    """Nobody wants to know."""


class SessionSetup(NamedTuple):
    """What a session needs to know about its node."""

    own: NodeKey
    hello: Callable[[], Hello]
    methods: Methods
    authorise: Authorise
    limits: Limits
    wall_ms: WallClock
    heard: Heard = _nothing


def judge(peer: NodeKey, hello: Hello, setup: SessionSetup) -> Member:
    """Decide whether a hello is good enough. Raises RefusedError, or whatever the authoriser raises.

    The holder of the node's own key is its owner, whatever else it says.
    """
    own = setup.hello()
    if hello.version_min > own.version_max or hello.version_max < own.version_min:
        raise _no_version(peer, hello, setup.own, own)
    if peer == setup.own:
        return Member(owner=True)
    if hello.grid != own.grid:
        raise RefusedError("the two nodes are in different grids", reason=Reason.OTHER_GRID, hint=Reason.OTHER_GRID.next_step)
    if abs(hello.wall_ms - setup.wall_ms()) > setup.limits.clock_skew_ms:
        raise _clock_off(peer, hello.wall_ms - setup.wall_ms(), setup.own)
    return setup.authorise(peer, hello)


# Both sides judge, and whoever is told first shows what it is told: so the words name the nodes and hold at either.


def _no_version(peer: NodeKey, theirs: Hello, own: NodeKey, ours: Hello) -> RefusedError:
    older = peer if theirs.version_max < ours.version_min else own
    text = f"the two nodes share no protocol version: {short(peer)} speaks {_versions(theirs)}, {short(own)} speaks {_versions(ours)}"
    return RefusedError(text, reason=Reason.VERSION, hint=f"update p2pgrid at {short(older)}")


def _versions(hello: Hello) -> str:
    least, most = hello.version_min, hello.version_max
    return str(most) if least == most else f"{least} to {most}"


def _clock_off(peer: NodeKey, ahead_ms: int, own: NodeKey) -> RefusedError:
    first, second = (peer, own) if ahead_ms > 0 else (own, peer)
    text = f"the clock of {short(first)} is {_span(abs(ahead_ms))} ahead of that of {short(second)}, and five minutes are the most"
    return RefusedError(text, reason=Reason.CLOCK_OFF, hint="set the clock that is wrong: what 'date -u' says should be the same at both")


def _span(span_ms: int) -> str:
    minutes = span_ms / 60_000
    return f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.0f} hours" if minutes < 2880 else f"{minutes / 1440:.0f} days"
