"""What is remembered of the others for who looks: what they last said of their state, and since when they are there
(docs/spec/owner.md#looking).

1. Who looks is shown at once what is known, with its age. Nobody waits for a peer that does not answer.
2. A look makes a few of the oldest anew in the background: at most 16, and none while others are still being asked. So
   four looks a second at a large grid cost what one look at a small one does, and nobody is asked while nobody looks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from heapq import nsmallest
from typing import NamedTuple

from p2pgrid.errors import P2PGridError
from p2pgrid.model.ids import NodeKey
from p2pgrid.net.api import WallClock
from p2pgrid.services.context import Context
from p2pgrid.services.tasks import Tasks
from p2pgrid.wire.messages import NodeStatus

ASKED_AT_ONCE = 16
FRESH_S = 2.0
KNOWN_MAX = 1024
NEVER = float("-inf")


class Said(NamedTuple):
    """A state, and when it was told; None: it did not answer."""

    status: NodeStatus | None
    asked_s: float
    wall_ms: int


class Met(NamedTuple):
    """What is remembered of a peer that was met."""

    live: bool
    at_ms: int
    """Since when it is connected, or when it was last seen."""
    dialled_us: bool
    """It once opened the session, so it can reach this node."""


class Meetings:
    """Who was met since the start; the ones that came first are forgotten first."""

    def __init__(self, wall_ms: WallClock) -> None:
        self._wall_ms = wall_ms
        self._met: dict[bytes, Met] = {}

    def note(self, peer: bytes, *, live: bool, dialled_us: bool = False) -> None:
        """A session began, or the last one ended. A second session to a peer changes nothing of since when it is there."""
        before = self._met.pop(peer, None)
        while len(self._met) >= KNOWN_MAX:
            self._met.pop(next(iter(self._met)))
        at_ms = before.at_ms if before is not None and before.live and live else self._wall_ms()
        self._met[peer] = Met(live, at_ms, dialled_us or (before is not None and before.dialled_us))

    def since_ms(self, peer: bytes) -> int:
        """Since when a peer is connected, or when it was last seen; 0: never met."""
        met = self._met.get(peer)
        return 0 if met is None else met.at_ms

    def dialled_us(self, peer: bytes) -> bool:
        """Whether a peer once opened a session to this node."""
        met = self._met.get(peer)
        return met is not None and met.dialled_us


Ask = Callable[[NodeKey], Awaitable[NodeStatus]]


class Statuses:
    """The last states of peers."""

    def __init__(self, context: Context, ask: Ask, tasks: Tasks) -> None:
        """``ask`` asks a node for its state, within a bound; ``tasks``: where that runs in the background."""
        self._context = context
        self._ask = ask
        self._tasks = tasks
        self._said: dict[bytes, Said] = {}
        self._renewing = False

    def of(self, peer: bytes) -> Said | None:
        """What a peer said last; None when it was not asked since it came."""
        return self._said.get(peer)

    def forget(self, peer: bytes) -> None:
        """It is gone: what it said no longer holds."""
        self._said.pop(peer, None)

    async def ask(self, peer: bytes) -> NodeStatus | None:
        """Ask a peer now. None when it does not answer."""
        try:
            status: NodeStatus | None = await self._ask(NodeKey(peer))
        except P2PGridError:
            status = None
        self._said.pop(peer, None)
        while len(self._said) >= KNOWN_MAX:
            self._said.pop(next(iter(self._said)))
        self._said[peer] = Said(status, self._context.clock(), self._context.wall_ms())
        return status

    def renew(self, live: Iterable[bytes]) -> None:
        """Have the oldest of some peers asked again, unless that is being done."""
        if self._renewing:
            return
        due_s = self._context.clock() - FRESH_S
        old = [(asked_s, peer) for peer in live if (asked_s := self._asked_s(peer)) <= due_s]
        if old and self._tasks.spawn(self._renew([peer for _, peer in nsmallest(ASKED_AT_ONCE, old)]), "statuses") is not None:
            self._renewing = True

    def _asked_s(self, peer: bytes) -> float:
        said = self._said.get(peer)
        return NEVER if said is None else said.asked_s

    async def _renew(self, peers: list[bytes]) -> None:
        try:
            await asyncio.gather(*(self.ask(peer) for peer in peers))
        finally:
            self._renewing = False
