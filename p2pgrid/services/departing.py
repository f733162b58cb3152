"""Leaving in good order: others know, work ends or goes back, jobs and copies pass to those who stay (docs/spec/keeping.md#leaving).

1. Everybody is told first, so that nobody leases to this node, or counts on its copies, any more.
2. Running units get 1.7 seconds; then they are stopped, and their leases go back. From then on no unit uses a core.
3. What is left is the network: jobs led here pass to their keepers, copies that would be missed go to other nodes.
4. All of it within a deadline: a machine that is taken away does not wait.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from p2pgrid.errors import P2PGridError
from p2pgrid.model.ids import NodeKey
from p2pgrid.model.reasons import Reason
from p2pgrid.net.rpc import Session
from p2pgrid.services.caring import Caring
from p2pgrid.services.context import Context
from p2pgrid.services.peers import Peers
from p2pgrid.services.succession import Succession
from p2pgrid.services.working import Working
from p2pgrid.wire.messages import NodeLeaving

BELIEVED_S = 600.0
"""Who said that it leaves, and is still there after so long, stays."""


@dataclass(frozen=True)
class Left:
    """What could not be handed over in time."""

    jobs: int
    blobs: int


class Departing:
    """The order in which the services of a node let go."""

    def __init__(self, context: Context, peers: Peers, working: Working, succession: Succession, caring: Caring) -> None:
        self._context = context
        self._peers = peers
        self._working = working
        self._succession = succession
        self._caring = caring
        context.methods.on_notify("node.leaving", NodeLeaving, self._on_leaving)

    def _on_leaving(self, session: Session, leaving: NodeLeaving) -> None:
        if "work" in session.member.roles or "store" in session.member.roles:
            self._succession.peer_leaving(session.peer, max(1.0, min(leaving.within_s, BELIEVED_S)))
            self._caring.peer_leaving(session.peer)

    async def leave(self, within_s: float) -> Left:
        """Let go of everything, at most ``within_s`` seconds. Does not raise: who leaves, leaves."""
        for peer in sorted(self._peers.live()):
            self._peers.notify(NodeKey(peer), "node.leaving", NodeLeaving(within_s))
        left = Left(0, 0)
        try:
            async with asyncio.timeout(within_s):
                drained, jobs, blobs = await asyncio.gather(
                    self._working.drain(),
                    self._succession.leave(within_s),
                    self._caring.hand_over(within_s),
                    return_exceptions=True,
                )
            for answer in (drained, jobs, blobs):
                if isinstance(answer, P2PGridError):
                    self._context.tell(answer.reason, f"leaving: {answer}")
                elif isinstance(answer, BaseException):
                    raise answer
            left = Left(jobs if isinstance(jobs, int) else 0, blobs if isinstance(blobs, int) else 0)
        except TimeoutError:
            self._context.tell(Reason.TIMEOUT, "leaving took too long: what was not handed over yet is found by repair")
        if left.jobs or left.blobs:
            self._context.tell(Reason.SHUTDOWN, f"{left.jobs} jobs and {left.blobs} blobs found nobody else who could take them")
        return left
