"""The DHT node: the package's ``Server`` over a carrier, with signed records and the upkeep it needs.

Read it as the table of contents: joining (bootstrap), lookups, records (put, get, publish), finding nodes
(sample, enumerate). A node begins as a client, which uses the DHT but is in nobody's table; reach.py decides
when it becomes a server.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from p2pgrid.dht.base import Node, Server
from p2pgrid.dht.carrier import Carrier
from p2pgrid.dht.contact import GridNode, Scope, place_of
from p2pgrid.dht.crawl import GridCrawl
from p2pgrid.dht.messages import Done
from p2pgrid.dht.protocol import GridProtocol
from p2pgrid.dht.publications import Publication, Publications
from p2pgrid.dht.reach import Reach
from p2pgrid.dht.records import Record, RecordKind, RecordStore, SignedRecord, check_record
from p2pgrid.dht.search import Enumeration, sample_nodes, without_tombstones
from p2pgrid.dht.settings import DhtContext
from p2pgrid.dht.table import GridTable
from p2pgrid.dht.tasks import Tasks
from p2pgrid.dht.upkeep import Upkeep
from p2pgrid.errors import MalformedError, P2PGridError, UsageError
from p2pgrid.model.ids import DhtId, NodeKey, dht_id_of_key, from_text, to_text
from p2pgrid.wire.envelope import seal

_TASKS_MAX = 4096
_LOOKUPS_REMEMBERED = 512
_PEERS_PERSISTED = 32
_BOOTSTRAP_MAX = 32
_FIRST_ANSWER_S = 0.2
_TRUSTED_KINDS = frozenset({RecordKind.JOB_KEEPERS})
Bootstrap = tuple[NodeKey, str, int]


class GridServer(Server):
    """One node of the DHT. ``validate`` may refuse records it is asked to keep, by raising one of our errors."""

    protocol_class = GridProtocol
    storage: RecordStore
    protocol: GridProtocol
    node: GridNode

    def __init__(self, context: DhtContext, carrier: Carrier, validate: Callable[[SignedRecord], None] | None = None) -> None:
        self.context = context
        self.settings = context.settings
        key = NodeKey(context.key.public)
        storage = RecordStore(context.grid, context.clock, context.wall_clock_ms, context.limits, validate)
        storage_for_base: Any = storage
        super().__init__(self.settings.k, self.settings.alpha, dht_id_of_key(key), storage_for_base)
        self.storage = storage  # An empty store is false to the package, which then makes its own.
        self.node = GridNode(key, carrier.place)
        self.tasks = Tasks(_TASKS_MAX)
        self.publications = Publications(self.settings.publications_max)
        self._carrier = carrier
        self._lookups_ms: deque[float] = deque(maxlen=_LOOKUPS_REMEMBERED)
        self._bootstrap: list[GridNode] = []
        self.protocol = self._create_protocol()
        self.reach = Reach(self.protocol)
        self.upkeep = Upkeep(self)
        self.protocol.on_contact = self.upkeep.on_contact

    def _create_protocol(self) -> GridProtocol:
        return self.protocol_class(self.node, self.storage, self.ksize, self.context)

    @property
    def router(self) -> GridTable:
        """The routing table."""
        return self.protocol.router

    @property
    def is_server(self) -> bool:
        """Whether this node takes part in routing and keeps records for others."""
        return self.reach.proven is not None

    # Life

    async def start(self, *, upkeep: bool = True) -> None:
        """Open the carrier. Raises ConfigError. Without ``upkeep`` the caller calls ``upkeep.tick()`` itself."""
        await self._carrier.open(self.protocol.datagram_received)
        self.node.port = self._carrier.place
        self.transport = self._carrier
        self.protocol.connection_made(self._carrier)
        if upkeep:
            self.tasks.start(self.upkeep.run())

    async def close(self) -> None:
        """End everything, within ``settings.close_s`` for each group of tasks. Idempotent."""
        self.upkeep.close()
        await self.tasks.close(self.settings.close_s)
        await self.protocol.close()
        self.stop()

    async def bootstrap(self, peers: Sequence[Bootstrap]) -> int:
        """Join through known peers: (key, numeric host, UDP port). Returns how many of them answered in time.

        Without any peers this node founds the grid. Raises UsageError for an address that is not numeric.
        """
        self._bootstrap = [self._contact(peer) for peer in peers[:_BOOTSTRAP_MAX] if peer[0] != self.node.key]
        return await self.find_peers_again()

    @staticmethod
    def _contact(peer: Bootstrap) -> GridNode:
        try:
            return GridNode(peer[0], place_of(peer[1], peer[2]))
        except MalformedError as error:
            raise UsageError(f"'{peer[1]}:{peer[2]}' is not a numeric address with a port", hint="give an IP address") from error

    async def find_peers_again(self) -> int:
        """Go through the peers that :meth:`bootstrap` was given. Returns how many answered."""
        answered = await self._first_answers(self._bootstrap)
        if not answered:
            if not len(self.router):
                self.reach.assume()
            return 0
        await self.reach.test(answered)
        await self._crawl(Node(self.node.id), answered, paths=self.settings.paths_trusted)
        return len(answered)

    async def look_around(self, node: GridNode) -> None:
        """A contact was found again: ask it, and those it knows, who is near this node."""
        await self._crawl(Node(self.node.id), [node, *self.router.find_neighbors(Node(self.node.id))])

    async def _first_answers(self, peers: list[GridNode]) -> list[GridNode]:
        """Ping all; as soon as one has answered the others have a moment more."""
        loop = asyncio.get_running_loop()
        waiting = {loop.create_task(self.protocol.call_ping(node)): node for node in peers}
        answered: list[GridNode] = []
        deadline: float | None = None
        while waiting:
            timeout_s = None if deadline is None else max(0.0, deadline - loop.time())
            done, _ = await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                break
            for task in [task for task in waiting if task in done]:
                node = waiting.pop(task)
                if task.result()[0]:
                    answered.append(node)
                    deadline = deadline or loop.time() + _FIRST_ANSWER_S
        for task in waiting:
            self.protocol.leftovers.adopt(task)
        return answered

    # Lookups

    async def _crawl(
        self, target: Node, peers: list[GridNode], *, paths: int = 1, kind: RecordKind | None = None, own: Sequence[SignedRecord] = ()
    ) -> GridCrawl:
        began = self.context.clock()
        crawl = GridCrawl(self.protocol, target, peers, self.ksize, self.alpha, paths=paths, kind=kind)
        crawl.take_own(own)
        await crawl.find()
        self._lookups_ms.append((self.context.clock() - began) * 1000)
        return crawl

    async def lookup_nodes(self, key: DhtId, *, paths: int = 1) -> list[GridNode]:
        """The up to k servers nearest to a key, nearest first, without this node itself. All of them have answered."""
        target = Node(key)
        return (await self._crawl(target, self.router.find_neighbors(target), paths=paths)).nearest_answered()

    # Records

    async def put(self, record: SignedRecord) -> int:
        """Store a record at the servers nearest to its key. Returns the acknowledgements so far, 0 when nobody took it.

        Returns after ``settings.acks`` acknowledgements; the other copies follow in the background. Raises
        IntegrityError or MalformedError when the record breaks a rule.
        """
        check_record(record, self.context.wall_clock_ms(), self.context.limits)
        paths = self.settings.paths_trusted if record.body.kind in _TRUSTED_KINDS else 1
        return await self.spread(record, await self.lookup_nodes(DhtId(record.body.key), paths=paths))

    async def spread(self, record: SignedRecord, nodes: list[GridNode]) -> int:
        """Store a record at the nearest of ``nodes`` and at this one if it is among them. Returns acknowledgements."""
        target = Node(record.body.key)
        nearer = sum(node.distance_to(target) < self.node.distance_to(target) for node in nodes)
        acks = 0
        if (self.is_server and nearer < self.settings.copies) or not nodes:
            acks = self._keep_own(record)
        enough: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if not self.tasks.start(self._copy(record, nodes, acks, enough)):
            return acks
        return await enough

    def _keep_own(self, record: SignedRecord) -> int:
        try:
            self.storage.put(record.raw)
        except P2PGridError:
            return 0
        return 1

    async def _copy(self, record: SignedRecord, nodes: list[GridNode], acks: int, enough: asyncio.Future[int]) -> None:
        loop = asyncio.get_running_loop()
        candidates = iter(nodes)
        waiting: dict[asyncio.Task[tuple[bool, Any]], None] = {}

        def ask_next() -> None:
            node = next(candidates, None)
            if node is not None:
                waiting[loop.create_task(self.protocol.call_store(node, record.body.key, record.raw))] = None

        try:
            for _ in range(self.settings.copies - acks):
                ask_next()
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in [task for task in waiting if task in done]:
                    del waiting[task]
                    if isinstance(task.result()[1], Done):
                        acks += 1
                    else:
                        ask_next()
                if acks >= self.settings.acks and not enough.done():
                    enough.set_result(acks)
        finally:
            if not enough.done():
                enough.set_result(acks)
            for task in waiting:
                task.cancel()

    async def get(self, key: DhtId, kind: RecordKind) -> list[SignedRecord]:
        """The records of a kind under a key, of each author the newest, verified. Tombstones are left out."""
        target = Node(key)
        own = self.storage.find(int(kind), key)
        paths = self.settings.paths_trusted if kind in _TRUSTED_KINDS else 1
        crawl = await self._crawl(target, self.router.find_neighbors(target), paths=paths, kind=kind, own=own)
        if not crawl.records and crawl.failures:
            crawl = await self._crawl(target, self.router.find_neighbors(target), paths=self.settings.paths_trusted, kind=kind)
        return without_tombstones(crawl.records)

    async def publish(self, kind: RecordKind, key: DhtId, value: bytes, ttl_s: float) -> int:
        """Sign and put a record that lives ``ttl_s``, and keep publishing it until it is withdrawn.

        Returns the acknowledgements. Raises UsageError, MalformedError or IntegrityError when it breaks a rule.
        """
        if not value:
            raise UsageError("an empty value is a tombstone", hint="call withdraw() instead")
        publication = Publication(kind, key, value, ttl_s)
        record = self._sealed(publication, value)
        check_record(record, self.context.wall_clock_ms(), self.context.limits)
        self.publications.remember(publication)
        return await self._put_publication(publication, record)

    async def publish_now(self, publication: Publication) -> int:
        """Publish once more what :meth:`publish` was given, with a new sequence and expiry."""
        return await self._put_publication(publication, self._sealed(publication, publication.value))

    async def _put_publication(self, publication: Publication, record: SignedRecord) -> int:
        acks = 0
        publication.published(self.context.clock(), 0)
        try:
            acks = await self.put(record)
        finally:
            publication.published(self.context.clock(), acks)
        return acks

    async def withdraw(self, kind: RecordKind, key: DhtId) -> int:
        """Stop publishing and put a tombstone that lives as long as the last record could. Returns acknowledgements."""
        publication = self.publications.forget(kind, key)
        if publication is None:
            return 0
        return await self.put(self._sealed(publication, b""))

    def _sealed(self, publication: Publication, value: bytes) -> SignedRecord:
        now_ms = self.context.wall_clock_ms()
        expires_ms = now_ms + int(publication.ttl_s * 1000)
        seq = self.publications.next_seq(now_ms)
        record = Record(expires_ms, publication.kind, publication.key, seq, b"", value)
        return seal(record, self.context.key, self.context.grid)

    # Finding nodes

    async def sample_nodes(self) -> list[SignedRecord]:
        """The records of about twenty nodes drawn at random, NATed ones included."""
        return await sample_nodes(self.protocol, self.lookup_nodes, self.context.rng)

    async def enumerate_nodes(self, count_max: int = 256) -> tuple[list[SignedRecord], bool]:
        """The node records of the grid by id, at most ``count_max``, and whether these are all."""
        return await Enumeration(self.protocol, self.lookup_nodes, count_max).run()

    # What a node shows and keeps

    def peers_to_persist(self) -> list[dict[str, Any]]:
        """Peers to bootstrap from after a restart, as plain JSON data: the oldest of each bucket, then our neighbours."""
        oldest = [node for bucket in self.router.buckets for node in list(bucket.nodes.values())[:2]]
        nodes = {node.id: node for node in [*oldest, *self.router.find_neighbors(self.node)]}
        listed = list(nodes.values())[:_PEERS_PERSISTED]
        return [{"key": to_text(node.key), "host": node.place.host, "port": node.place.port} for node in listed]

    @staticmethod
    def peers_from_persisted(data: object) -> list[Bootstrap]:
        """What :meth:`peers_to_persist` gave, checked anew; entries that do not make sense are left out."""
        peers: list[Bootstrap] = []
        for entry in data if isinstance(data, list) else []:
            try:
                place = place_of(entry["host"], entry["port"])
                peers.append((NodeKey(from_text(entry["key"], what="key")), place.host, place.port))
            except (P2PGridError, KeyError, TypeError, AttributeError):
                continue
        return peers

    def seen_from_outside(self) -> str:
        """The public place from which peers see this node's datagrams come, as text; empty when none told of one."""
        place = self.protocol.seen_as.get(Scope.PUBLIC)
        return "" if place is None else f"[{place.host}]:{place.port}" if ":" in place.host else f"{place.host}:{place.port}"

    def traffic(self) -> tuple[int, int]:
        """Bytes of datagrams sent and received since the start."""
        gate = self.protocol.gate
        return gate.sent_bytes, gate.received_bytes

    def stats(self) -> dict[str, Any]:
        """Numbers for people: additive, JSON-able."""
        ordered = sorted(self._lookups_ms)
        scope = self.reach.proven
        return {
            "server": None if scope is None else scope.name.lower(),
            "buckets": len(self.router.buckets),
            "contacts": len(self.router),
            "peers": len(self.protocol.book),
            "records": len(self.storage),
            "publications": len(self.publications),
            "lookups": len(ordered),
            "lookup_p50_ms": round(ordered[len(ordered) // 2], 2) if ordered else None,
            "lookup_p95_ms": round(ordered[len(ordered) * 95 // 100], 2) if ordered else None,
            "dropped": dict(self.protocol.gate.dropped),
        }
