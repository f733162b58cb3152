"""Whom this node talks to: the judgement of a peer's hello, before anything else of it is looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from p2pgrid.errors import RefusedError
from p2pgrid.model.ids import NodeKey
from p2pgrid.model.limits import Limits
from p2pgrid.model.reasons import Reason
from p2pgrid.net.api import WallClock
from p2pgrid.net.messages import Authorise, Hello, Member
from p2pgrid.net.methods import Methods


class SessionSetup(NamedTuple):
    """What a session needs to know about its node."""

    own: NodeKey
    hello: Callable[[], Hello]
    methods: Methods
    authorise: Authorise
    limits: Limits
    wall_ms: WallClock


def judge(peer: NodeKey, hello: Hello, setup: SessionSetup) -> Member:
    """Decide whether a hello is good enough. Raises RefusedError, or whatever the authoriser raises.

    The holder of the node's own key is its owner, whatever else it says.
    """
    own = setup.hello()
    if hello.version_min > own.version_max or hello.version_max < own.version_min:
        raise RefusedError("the two nodes share no protocol version", reason=Reason.VERSION, hint=Reason.VERSION.next_step)
    if peer == setup.own:
        return Member(owner=True)
    if hello.grid != own.grid:
        raise RefusedError("the two nodes are in different grids", reason=Reason.OTHER_GRID, hint=Reason.OTHER_GRID.next_step)
    if abs(hello.wall_ms - setup.wall_ms()) > setup.limits.clock_skew_ms:
        raise RefusedError(Reason.CLOCK_OFF.sentence, reason=Reason.CLOCK_OFF, hint=Reason.CLOCK_OFF.next_step)
    return setup.authorise(peer, hello)
