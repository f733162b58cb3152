"""What a DHT node does unasked. One loop, and one method for a simulation to call instead.

1. Publish again what is due. 2. Look up a random id in ranges nobody looked at for an hour,
   and one in a range of which few contacts are known.
3. Copy records of which no copy was seen for an hour, if this node is still among their nearest; the bytes are
   handed on as they are, so no life is extended. 4. Hand records over to new contacts that are now nearer:
   gathered for a moment, by the two nearest holders only, and only when a contact enters the table.
5. Test again whether this node can be reached, and look for its peers again when all are gone.
6. Ask now and then whether those that were dropped are back, so that a partition that heals is one grid again.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from p2pgrid.dht.base import Node
from p2pgrid.dht.contact import GridNode, Scope
from p2pgrid.dht.records import SignedRecord
from p2pgrid.dht.table import GridBucket
from p2pgrid.errors import P2PGridError
from p2pgrid.model.ids import DhtId

if TYPE_CHECKING:
    from p2pgrid.dht.server import GridServer

_log = logging.getLogger(__name__)
_COPIED_AT_ONCE = 32
_REFRESHED_AT_ONCE = 4
_HANDED_OVER_BY = 2
_KEYS_PER_TURN = 64
_PEERS_ASKED = 6
_THIN_RETRY_S = 300.0
_LOST_ASKED = 3


class Upkeep:
    """The unasked work of one server."""

    def __init__(self, server: GridServer) -> None:
        self._server = server
        self._newcomers: dict[bytes, GridNode] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.copied = 0
        self.handed_over = 0
        self.found_again = 0

    async def run(self) -> None:
        """Tick for ever."""
        settings, rng = self._server.settings, self._server.context.rng
        while True:
            await asyncio.sleep(settings.upkeep_s * rng.uniform(0.8, 1.2))
            try:
                await self.tick()
            except P2PGridError as error:
                _log.info("upkeep of the DHT put off: %s", error)

    async def tick(self) -> None:
        """One round of everything that is due now."""
        server = self._server
        server.storage.purge()
        if not len(server.router):
            await server.find_peers_again()
        await self._look_for_lost()
        await self._reach()
        for publication in server.publications.due(server.context.clock()):
            await server.publish_now(publication)
        await self._refresh()
        await self._copy()

    async def _look_for_lost(self) -> None:
        """Ask some that were dropped; whoever answers tells who else is where it is."""
        server, protocol = self._server, self._server.protocol
        asked = protocol.lost.due(server.context.clock(), server.context.rng, _LOST_ASKED)
        answers = await asyncio.gather(*(protocol.call_ping(node) for node in asked))
        for node, (answered, _) in zip(asked, answers, strict=True):
            if answered:
                self.found_again += 1
                await server.look_around(node)

    async def _reach(self) -> None:
        server = self._server
        reach = server.reach
        since_s = server.context.clock() - reach.tested_at
        seen_public = Scope.PUBLIC in server.protocol.seen_as
        lacking = reach.proven is None or reach.provisional or (seen_public and reach.proven is not Scope.PUBLIC)
        contacts = server.router.contacts()
        # Who took itself for reachable because nobody was there to ask must not stand in tables for longer than need be.
        due = reach.assumed and contacts
        if not due and since_s < (server.settings.reach_retry_s if lacking else server.settings.refresh_s):
            return
        before = reach.proven
        chosen = server.context.rng.sample(contacts, min(_PEERS_ASKED, len(contacts)))
        if await reach.test(chosen) is not None and before is None:
            await server.lookup_nodes(DhtId(server.node.id))  # Makes the neighbours see that this is a server now.

    async def _refresh(self) -> None:
        server = self._server
        for node_id in server.protocol.get_refresh_ids()[:_REFRESHED_AT_ONCE]:
            await server.lookup_nodes(DhtId(node_id))
        thin = [bucket for bucket in server.router.buckets if self._is_thin(bucket)]
        if thin:
            bucket = server.context.rng.choice(thin)
            bucket.filled_at = server.context.clock()
            target = server.context.rng.randint(*bucket.range)
            await server.lookup_nodes(DhtId(target.to_bytes(20, "big")))

    def _is_thin(self, bucket: GridBucket) -> bool:
        """Whether a far bucket has too few contacts, and was not looked into for a while: the rest of joining."""
        server = self._server
        rested = server.context.clock() - bucket.filled_at > _THIN_RETRY_S
        return rested and len(bucket) < server.settings.k // 2 and not bucket.has_in_range(server.node)

    async def _copy(self) -> None:
        server = self._server
        if server.reach.proven is None:
            return
        older_s = server.settings.replicate_s * server.context.rng.uniform(1.0, 1.25)
        for key, record in server.storage.iter_older_than(older_s)[:_COPIED_AT_ONCE]:
            if self._rank(key) < server.settings.copies:
                await server.spread(record, await server.lookup_nodes(key))
                self.copied += 1
            server.storage.mark_copied(record)

    def _rank(self, key: DhtId) -> int:
        """How many contacts are nearer to a key than this node."""
        own, target = self._server.node, Node(key)
        nearest = self._server.router.find_neighbors(target, self._server.settings.copies)
        return sum(node.distance_to(target) < own.distance_to(target) for node in nearest)

    def on_contact(self, node: GridNode) -> None:
        """A contact entered the table: see soon, together with others, what it should hold."""
        server = self._server
        if server.reach.proven is None or not len(server.storage) or len(self._newcomers) >= server.settings.handovers_max:
            return
        self._newcomers[node.id] = node
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(server.settings.handover_s, self._start_handover)

    def _start_handover(self) -> None:
        self._timer = None
        newcomers, self._newcomers = self._newcomers, {}
        self._server.tasks.start(self.hand_over(newcomers))

    async def hand_over(self, newcomers: dict[bytes, GridNode]) -> None:
        """Give each newcomer the records it is now among the nearest for."""
        server = self._server
        for index, key in enumerate(server.storage.keys()):
            if index % _KEYS_PER_TURN == 0:
                await asyncio.sleep(0)
            target = Node(key)
            nearest = server.router.find_neighbors(target, server.settings.copies + len(newcomers))
            older = [node for node in nearest if node.id not in newcomers]
            own = server.node.distance_to(target)
            if sum(node.distance_to(target) < own for node in older) >= _HANDED_OVER_BY:
                continue
            for node in nearest[: server.settings.copies]:
                if node.id in newcomers:
                    await self._give(node, server.storage.under(key))

    async def _give(self, node: GridNode, records: list[SignedRecord]) -> None:
        for record in records:
            happened, _ = await self._server.protocol.call_store(node, record.body.key, record.raw)
            if not happened:
                return
            self.handed_over += 1

    def close(self) -> None:
        """Start nothing more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
