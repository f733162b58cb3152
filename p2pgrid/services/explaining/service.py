"""Serves ``own.explain``: what is asked about decides who answers (docs/spec/faces.md#reasons)."""

from __future__ import annotations

from typing import Protocol

from p2pgrid.errors import MalformedError, RefusedError
from p2pgrid.model.ids import DIGEST_BYTES, JobId, NodeKey, StatementId
from p2pgrid.model.reasons import Reason
from p2pgrid.net.rpc import Session
from p2pgrid.services.context import Context
from p2pgrid.services.explaining.job import JobState
from p2pgrid.services.explaining.unit import UnitState
from p2pgrid.services.happenings import Happenings
from p2pgrid.services.leading import Leading
from p2pgrid.services.peers import Peers
from p2pgrid.services.reading import Reading
from p2pgrid.wire.faces import ExplainRequest, Explanation

KINDS = ("job", "unit", "peer", "me")


class Own(Protocol):
    """Explains this node."""

    async def explain(self) -> Explanation:
        """Its state, and why."""


class Other(Protocol):
    """Explains other nodes."""

    async def explain(self, node: NodeKey) -> Explanation:
        """The state of a node, and why."""


class Explaining:
    """``own`` and ``other`` explain this node and other ones."""

    def __init__(
        self,
        context: Context,
        peers: Peers,
        leading: Leading,
        reading: Reading,
        happenings: Happenings,
        own: Own,
        other: Other,
    ) -> None:
        self._jobs = JobState(context, peers, leading, reading, happenings)
        self._units = UnitState(context, peers, leading, self._jobs)
        self._own = own
        self._other = other
        context.methods.on("own.explain", ExplainRequest, self._on_explain, owner_only=True)

    async def _on_explain(self, session: Session, request: ExplainRequest) -> Explanation:
        if request.kind not in KINDS:
            raise RefusedError(f"nothing can be said of a '{said_kind(request.kind)}'", reason=Reason.UNSUPPORTED)
        if request.kind == "me":
            return await self._own.explain()
        if len(request.id) != DIGEST_BYTES:
            raise MalformedError("not an id", reason=Reason.MALFORMED)
        if request.kind == "job":
            return await self._jobs.explain(JobId(StatementId(request.id)))
        if request.kind == "unit":
            return await self._units.explain(JobId(StatementId(request.id)), request.unit)
        return await self._other.explain(NodeKey(request.id))


def said_kind(text: str) -> str:
    """What was asked for, within a bound."""
    return "".join(character for character in text[:20] if character.isprintable())
