"""Saying why a job that one was invited to is not worked on (docs/spec/worker.md#declining).

It is said once for each job, lead and reason, until what this node offers has changed or the lead was away: a lead forgets what
those said that went. It is said for people: nothing follows from it.
"""

from __future__ import annotations

from p2pgrid.model.ids import DIGEST_BYTES, NodeKey
from p2pgrid.services.peers import Peers
from p2pgrid.wire.messages import JobDeclined

TOLD_MAX = 1024


class Declining:
    """The worker's side of it; the lead's is :mod:`p2pgrid.services.noticing`."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._told: dict[tuple[bytes, bytes, str], None] = {}

    def tell(self, job: bytes, lead: NodeKey, reason: str) -> None:
        """Let a lead know why this node takes nothing of a job."""
        key = (job, lead, str(reason))
        if key in self._told or not reason or len(job) != DIGEST_BYTES:
            return
        if not self._peers.notify(lead, "job.declined", JobDeclined(job, str(reason))):
            return
        self._told[key] = None
        while len(self._told) > TOLD_MAX:
            self._told.pop(next(iter(self._told)))

    def forget_lead(self, lead: bytes) -> None:
        """The session with a lead ended: what it was told is told it again."""
        for key in [key for key in self._told if key[1] == lead]:
            del self._told[key]

    def forget(self) -> None:
        """What this node offers has changed: it may have other reasons now."""
        self._told.clear()
