"""A member with a valid membership that speaks as it likes: made by hand, without a node behind it."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest

from p2pgrid.core.invites import parse_invite
from p2pgrid.core.membership import admit
from p2pgrid.errors import P2PGridError
from p2pgrid.model.ids import NodeKey
from p2pgrid.model.job import Job, KeeperSet
from p2pgrid.model.limits import Limits
from p2pgrid.model.node import NodeInfo, Offer
from p2pgrid.model.work import Grant
from p2pgrid.net.hello import SessionSetup
from p2pgrid.net.messages import Hello, Member
from p2pgrid.net.methods import Methods
from p2pgrid.net.rpc import Session, open_session
from p2pgrid.net.tls import TlsTransport
from p2pgrid.node import Node
from p2pgrid.wire.codec import encode
from p2pgrid.wire.envelope import Signed, seal
from p2pgrid.wire.keys import SigningKey
from p2pgrid.wire.messages import NodeStatus, StatusRequest
from tests.unit.services.grid_in_process import DAY_MS, ROLES, make_job, wall_ms


class Outsider:
    """One session to one node. ``methods`` are what the node may call here."""

    def __init__(self, node: Node, roles: Sequence[str] = ROLES) -> None:
        self.node = node
        self.key = SigningKey(os.urandom(32))
        self.me = NodeKey(self.key.public)
        self.submitter = SigningKey(os.urandom(32))
        self.methods = Methods()
        self.grid = node.membership.grid
        invite = parse_invite(node.invite(tuple(roles), wall_ms() + DAY_MS), wall_ms())
        leaf = admit(SigningKey(invite.secret), self.key.public, self.grid, wall_ms() + DAY_MS)
        self._chain = (*invite.chain, leaf)
        self._transport = TlsTransport(self.key, "127.0.0.1", 0)
        self.session: Session

    async def connect(self) -> None:
        connection = await self._transport.dial(self.node.context.me, self.node.pool.addresses(), 5.0)
        info = encode(NodeInfo((), ROLES, "", "", Offer(1, 1 << 30, 1 << 30, "linux", "3.11", ("native",))))

        def hello() -> Hello:
            return Hello(grid=self.grid.id, wall_ms=wall_ms(), credentials=self._chain, info=info)

        limits = Limits(requests_per_peer=10_000)
        setup = SessionSetup(self.me, hello, self.methods, lambda peer, said: Member(frozenset(ROLES)), limits, wall_ms)
        self.session = await open_session(connection, setup)

    async def close(self) -> None:
        self.session.close()
        await self.session.wait_closed()
        await self._transport.close()

    def seal(self, statement: Any) -> Signed[Any]:
        """Signed by this node's key."""
        return seal(statement, self.key, self.grid.id)

    def job(self, items: Sequence[Any] = (1, 2, 3, 4), **fields: Any) -> tuple[Signed[Job], list[bytes]]:
        """A job of this outsider's own submitter."""
        job, batches = make_job(items, **fields)
        return seal(job, self.submitter, self.grid.id), batches

    def keepers(self, job: Signed[Job], *keepers: bytes, epoch: int = 0, key: SigningKey | None = None) -> Signed[KeeperSet]:
        statement = KeeperSet(job.body.expires_ms, job.id, epoch, self.me, keepers)
        return seal(statement, key or self.submitter, self.grid.id)

    def grant(self, job: Signed[Job], worker: bytes, *ranges: Any, **fields: Any) -> Signed[Grant]:
        known: dict[str, Any] = {"epoch": 0, "group": worker, "nonce": 1}
        return self.seal(Grant(expires_ms=job.body.expires_ms, job=job.id, worker=worker, ranges=ranges, **(known | fields)))


Enter = Callable[..., Awaitable[Outsider]]


async def connected(stack: AsyncExitStack, outsider: Outsider) -> Outsider:
    await outsider.connect()
    stack.push_async_callback(outsider.close)
    return outsider


async def is_served(outsider: Outsider) -> None:
    """The node still answers this peer."""
    await outsider.session.call("node.status", StatusRequest(), NodeStatus, timeout_s=5.0)


async def refused(call: Awaitable[Any], kind: type[P2PGridError], *reasons: str) -> None:
    with pytest.raises(kind) as caught:
        await call
    assert caught.value.reason in reasons, caught.value.reason
