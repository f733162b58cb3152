"""Whether this node can be reached by peers it never contacted: only then it is a server.

1. A ping over an open mapping proves nothing, so the answer must come from a place we never sent to.
2. Seen at a loopback or private address, one peer answering from a fresh port is enough, and makes this
   node a server for such addresses only.
3. Seen at a public address, somebody at another address than the peer asked must answer, for two of three askings.
   Where there are not yet so many peers, what they can show is taken for now, and tested again.
4. A node that founds a grid, or finds nobody else alive, is a server until somebody can be asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from p2pgrid.dht.contact import GridNode, Place, Scope, prefix_of, scope_of
from p2pgrid.dht.messages import Done, Probe
from p2pgrid.dht.protocol import GridProtocol
from p2pgrid.model.ids import NodeKey

_ASKED_MAX = 3
_PUBLIC_NEEDED = 2


class Reach:
    """The tests of one node. ``proven`` is kept at the gate, which puts it into every datagram."""

    def __init__(self, protocol: GridProtocol) -> None:
        self._protocol = protocol
        self.tested_at = float("-inf")
        self.provisional = False
        self.assumed = False
        """Nobody could be asked yet: rule 4."""

    @property
    def proven(self) -> Scope | None:
        """From how far away this node was shown to be reachable."""
        return self._protocol.gate.proven

    def assume(self) -> None:
        """Rule 4."""
        self.provisional = self.assumed = True
        self._protocol.gate.proven = Scope.PUBLIC

    async def test(self, peers: Sequence[GridNode]) -> Scope | None:
        """Ask up to three of ``peers`` and take over what was shown. Returns the proven scope."""
        self.tested_at = self._protocol.context.clock()
        if not peers:
            return self.proven
        public = [node for node in peers if scope_of(node.place) is Scope.PUBLIC]
        local = [node for node in peers if scope_of(node.place) is not Scope.PUBLIC]
        self.provisional = self.assumed = False
        proven: Scope | None = None
        if local and await self._any_direct(local[:_ASKED_MAX]):
            proven = max(scope_of(node.place) for node in local[:_ASKED_MAX])
        if public and await self._public(public):
            proven = Scope.PUBLIC
        self._protocol.gate.proven = proven
        return proven

    async def _any_direct(self, peers: Sequence[GridNode]) -> bool:
        return any(await asyncio.gather(*(self._probe(node, relay=False) for node in peers)))

    async def _public(self, peers: Sequence[GridNode]) -> bool:
        unrelated: dict[object, GridNode] = {}
        for node in peers:
            unrelated.setdefault(prefix_of(node.place), node)
        asked = list(unrelated.values())[:_ASKED_MAX]
        self.provisional = len(asked) < _ASKED_MAX
        if len(asked) == 1:
            return await self._probe(asked[0], relay=False)
        outcomes = await asyncio.gather(*(self._probe(node, relay=True) for node in asked))
        return sum(outcomes) >= (1 if self.provisional else _PUBLIC_NEEDED)

    async def _probe(self, node: GridNode, *, relay: bool) -> bool:
        """Whether somebody answered as rule 1, or with ``relay`` rule 3, wants it."""
        protocol = self._protocol
        token = protocol.context.rng.randbytes(20)
        arrived = asyncio.Event()

        def on_answer(author: NodeKey, place: Place) -> None:
            other_host = place.host != node.place.host and author != node.key
            if (other_host if relay else author == node.key and place != node.place) and not self._contacted(author, place):
                arrived.set()

        protocol.tokens[token] = on_answer
        try:
            result = await protocol.request((node.key, node.place), Probe(token, relay))
            if isinstance(result.value, Done):
                async with asyncio.timeout(protocol.rtt.timeout_s(protocol.settings)):
                    await arrived.wait()
        except TimeoutError:
            return False
        finally:
            del protocol.tokens[token]
        return arrived.is_set()

    def _contacted(self, author: NodeKey, place: Place) -> bool:
        peer = self._protocol.book.get(author)
        return peer is not None and peer.answered_from == place
