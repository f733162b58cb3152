"""The protocol: calls to peers, time-outs, and what an answer or a silence does to the table.

The package's ``call_*`` methods, ``handle_call_response``, ``rpc_ping``, ``rpc_find_node`` and ``rpc_store``
run as inherited. To them an address is (key, place). Replaced are:
1. the inbound path: everything passes the gate, and is dispatched by type and at once (no task per datagram);
2. time-outs: per peer, from measured round trips, with one repetition, instead of five seconds;
3. ``welcome_if_new``: a contact enters the table only after it answered us at that very place;
4. ``__getattr__``: an unknown attribute is an error again, not a remote call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, NamedTuple, NoReturn, TypeVar

from p2pgrid.dht.answers import Answers
from p2pgrid.dht.base import KademliaProtocol, Node
from p2pgrid.dht.carrier import Carrier
from p2pgrid.dht.contact import GridNode, Place, Scope, contact_at, scope_of, unpack_contact, unpack_place
from p2pgrid.dht.datagram import REQUEST_ID_BYTES
from p2pgrid.dht.gate import Arrival, Gate
from p2pgrid.dht.lost import LostContacts
from p2pgrid.dht.messages import (
    CONTACTS_MAX,
    Done,
    FindNode,
    FindValue,
    Nodes,
    Ping,
    Pong,
    Probed,
    Refused,
    Reply,
    Request,
    Sample,
    Store,
    Values,
    Walk,
    Who,
)
from p2pgrid.dht.peers import Peer, PeerBook
from p2pgrid.dht.records import RecordStore, peek_slot
from p2pgrid.dht.rtt import RttEstimate
from p2pgrid.dht.settings import DhtContext
from p2pgrid.dht.table import GridTable
from p2pgrid.dht.tasks import Tasks
from p2pgrid.errors import MalformedError
from p2pgrid.model.ids import NodeKey
from p2pgrid.model.reasons import Reason
from p2pgrid.wire.codec import encode

R = TypeVar("R")
Address = tuple[NodeKey, Place]
_PAGES_MAX = 64
_SILENCE_S = 5.0


class Result(NamedTuple, Generic[R]):
    """What the package's code expects of a call: whether there was an answer, and the answer."""

    happened: bool
    value: R


class Found(NamedTuple):
    """What a peer knows about a key."""

    contacts: list[GridNode]
    records: list[bytes]


class _Call:
    """A request that waits for its answer."""

    __slots__ = ("address", "attempt", "message", "sent_at", "timeout_s")

    def __init__(self, address: Address, message: bytes, sent_at: float, timeout_s: float) -> None:
        self.address = address
        self.message = message
        self.sent_at = sent_at
        self.timeout_s = timeout_s
        self.attempt = 0


class GridProtocol(KademliaProtocol):
    """One node's side of the conversation."""

    router: GridTable
    storage: RecordStore
    source_node: GridNode
    transport: Carrier

    def __init__(self, source_node: GridNode, storage: RecordStore, ksize: int, context: DhtContext) -> None:
        super().__init__(source_node, storage, ksize)
        self.context = context
        self.settings = context.settings
        self.book = PeerBook(context)
        self.gate = Gate(context, self.book, self._awaits)
        self.router = GridTable(self, ksize, source_node, context.settings, context.clock)
        self.answers = Answers(self)
        self.checks = Tasks(context.settings.checks_outstanding)
        self.leftovers = Tasks(context.settings.calls_outstanding)
        self.lost = LostContacts(context.settings.upkeep_s / 2)
        self.errands = Tasks(context.settings.probes_at_once)
        self.rtt = RttEstimate()
        self.tokens: dict[bytes, Callable[[NodeKey, Place], None]] = {}
        """Relayed probes under way: token to what is called when somebody answers."""
        self.seen_as: dict[Scope, Place] = {}
        """How peers of each scope last saw this node's address."""
        self.on_contact: Callable[[GridNode], None] = lambda _node: None
        self.refusals = 0
        self._calls: dict[bytes, _Call] = {}
        self._checking: set[bytes] = set()
        self._answered_at = float("-inf")
        self._closed = False

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(name)

    # Outbound

    def _awaits(self, request_id: bytes, author: bytes, place: Place) -> bool:
        if request_id in self.tokens:
            return True
        call = self._calls.get(request_id)
        return call is not None and call.address == (author, place)

    async def _send(self, address: Address, message: bytes) -> Result[Any]:
        if self._closed or len(self._calls) >= self.settings.calls_outstanding:
            return Result(False, None)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result[Any]] = loop.create_future()
        timeout_s = self.book.meet(address[0]).rtt.timeout_s(self.settings)
        request_id = self.context.rng.randbytes(REQUEST_ID_BYTES)
        call = self._calls[request_id] = _Call(address, message, self.context.clock(), timeout_s)
        self._outstanding[request_id] = (future, loop.call_later(timeout_s, self._timeout, request_id))
        try:
            self._transmit(call, request_id)
            return await future
        finally:
            self._forget(request_id)

    def _transmit(self, call: _Call, request_id: bytes) -> None:
        peer = self.book.meet(call.address[0])
        self.transport.sendto(self.gate.seal_request(peer, call.address[1], request_id, call.message), call.address[1])

    def _forget(self, request_id: bytes) -> None:
        """Drop every trace of a call, however it ended: a cancelled one included."""
        self._calls.pop(request_id, None)
        entry = self._outstanding.pop(request_id, None)
        if entry is not None:
            entry[1].cancel()

    def _timeout(self, msg_id: bytes) -> None:
        call = self._calls.get(msg_id)
        entry = self._outstanding.get(msg_id)
        if call is None or entry is None or entry[0].done():
            self._forget(msg_id)
        elif call.attempt == 0:
            call.attempt = 1
            again_s = call.timeout_s * self.settings.timeout_retry_factor
            loop = asyncio.get_running_loop()
            self._outstanding[msg_id] = (entry[0], loop.call_later(again_s, self._timeout, msg_id))
            self._transmit(call, msg_id)
        else:
            entry[0].set_result(Result(False, None))
            self._forget(msg_id)

    def _accept_response(self, msg_id: bytes, data: Any, address: Any) -> None:
        entry = self._outstanding.get(msg_id)
        if entry is not None and not entry[0].done():
            entry[0].set_result(Result(True, data))
        self._forget(msg_id)

    async def request(self, address: Address, message: Request) -> Result[Any]:
        """Ask a peer; introduces this node first where that does not fit into the same datagram.

        The value is a decoded reply, or None when there was no answer.
        """
        body = encode(message)
        if not self.gate.fits(self.book.meet(address[0]), body) and not await self._introduce(address):
            return Result(False, None)
        result = await self._send(address, body)
        if isinstance(result[1], Who):
            if not await self._introduce(address):
                return Result(False, None)
            result = await self._send(address, body)
        if isinstance(result[1], Who):
            return Result(False, None)
        return Result(result[0], result[1])

    async def _introduce(self, address: Address) -> bool:
        """Show our credential and learn theirs. False when there is no answer, or we are no member to them."""
        result = await self._send(address, encode(Ping()))
        if isinstance(result[1], Who):
            self.refusals += 1
        return isinstance(result[1], Pong)

    # The explicit methods under which the inherited call_* methods find their remote calls.

    async def ping(self, address: Address, _sender_id: bytes = b"") -> Result[Pong | None]:
        """Ask whether a peer is there."""
        result = await self.request(address, Ping())
        return result if isinstance(result.value, Pong) else Result(False, None)

    async def find_node(self, address: Address, _sender_id: bytes, target_id: bytes) -> Result[Found]:
        """The contacts a peer knows nearest to an id, up to k."""
        contacts: list[bytes] = []
        for _ in range(_PAGES_MAX):
            reply = (await self.request(address, FindNode(target_id, len(contacts)))).value
            if not isinstance(reply, Nodes):
                return Result(bool(contacts), self._found(address, contacts, []))
            contacts += reply.contacts
            if not reply.more or len(contacts) >= CONTACTS_MAX:
                break
        return Result(True, self._found(address, contacts[:CONTACTS_MAX], []))

    async def find_value(self, address: Address, key: bytes, kind: int) -> Result[Found]:
        """The records a peer keeps under a key, or else the contacts nearest to it."""
        contacts: list[bytes] = []
        records: list[bytes] = []
        for _ in range(_PAGES_MAX):
            reply = (await self.request(address, FindValue(key, kind, len(records) or len(contacts)))).value
            if isinstance(reply, Nodes):
                contacts += reply.contacts
            elif isinstance(reply, Values):
                records += reply.records
            else:
                return Result(bool(contacts or records), self._found(address, contacts, records))
            if not reply.more or len(contacts) >= CONTACTS_MAX or len(records) >= self.context.limits.records_per_key:
                break
        return Result(True, self._found(address, contacts[:CONTACTS_MAX], records))

    async def store(self, address: Address, _sender_id: bytes, _key: bytes, value: bytes) -> Result[Any]:
        """Ask a peer to keep a record."""
        return await self.request(address, Store(value))

    async def sample(self, address: Address, count: int) -> Result[list[bytes]]:
        """Random node records of a peer."""
        return await self._values(address, Sample(count))

    async def walk(self, address: Address, cursor: bytes, end: bytes) -> Result[Values | None]:
        """One page of a peer's node records in an interval of ids."""
        result = await self.request(address, Walk(cursor, end))
        return result if isinstance(result.value, Values) else Result(False, None)

    async def _values(self, address: Address, message: Request) -> Result[list[bytes]]:
        for _ in range(2):  # The first answer to a new peer may have had room for a credential only.
            reply = (await self.request(address, message)).value
            if not isinstance(reply, Values):
                break
            if reply.records or not reply.more:
                return Result(True, list(reply.records))
        return Result(False, [])

    def _found(self, address: Address, contacts: list[bytes], records: list[bytes]) -> Found:
        """Contacts that may be called: by rule 4 of contact.py, never ourselves, our own word on an address first."""
        nodes = []
        scope, own_id = scope_of(address[1]), self.source_node.id
        for raw in contacts:
            try:
                node = unpack_contact(raw)
            except MalformedError:
                self.gate.dropped["bad-contact"] += 1
                continue
            if node.id == own_id or node.scope < scope:
                continue
            nodes.append(self.router.get(node.id) or node)
        return Found(nodes, records)

    async def call_find_value(self, node_to_ask: GridNode, node_to_find: Node, kind: int) -> tuple[bool, Any]:
        """As inherited, for one kind of record."""
        result = await self.find_value((node_to_ask.key, node_to_ask.place), node_to_find.id, kind)
        return self.handle_call_response(result, node_to_ask)

    # Inbound

    def datagram_received(self, data: bytes, addr: Place) -> None:
        """What the carrier calls for each datagram."""
        if self._closed:
            return
        arrival = self.gate.open(data, addr)
        if arrival is None:
            return
        if arrival.is_reply:
            self._on_reply(arrival)
        elif arrival.peer is None:
            self.transport.sendto(self.gate.seal_reply(arrival, Who()), addr)
        else:
            reply = self.answers.to(arrival)
            self.transport.sendto(self.gate.seal_reply(arrival, reply), addr)

    def _on_reply(self, arrival: Arrival) -> None:
        on_token = self.tokens.get(arrival.request_id)
        if on_token is not None:
            if arrival.peer is not None and isinstance(arrival.message, Probed):
                on_token(arrival.author, arrival.place)
            return
        call = self._calls[arrival.request_id]
        if arrival.peer is not None:
            self._learn(arrival.peer, call, arrival)
        else:
            peer = self.book.meet(arrival.author)
            peer.knows_me = False
        self._accept_response(arrival.request_id, arrival.message, arrival.place)

    def _learn(self, peer: Peer, call: _Call, arrival: Arrival) -> None:
        now = self.context.clock()
        self._answered_at = now
        if call.attempt == 0:  # Karn: the answer to a repeated request cannot be timed.
            peer.rtt.sample(now - call.sent_at)
            self.rtt.sample(now - call.sent_at)
        peer.answered_from = arrival.place
        if isinstance(arrival.message, Pong) and arrival.message.place:
            try:
                place = unpack_place(arrival.message.place)
            except MalformedError:
                return
            self.seen_as[scope_of(place)] = place

    # The table

    def welcome_if_new(self, node: Node) -> None:
        """Called by inherited code for whoever asked or answered us. ``node`` may be a plain node of the package."""
        contact = node if isinstance(node, GridNode) else contact_at(NodeKey(node.ip), node.port)
        peer = self.book.get(contact.key)
        if peer is None:
            return
        if not peer.server:
            if self.router.get(contact.id) is not None:
                self.router.expel(contact)
        elif peer.answered_from == contact.place:
            self.lost.forget(contact.id)
            known = self.router.get(contact.id)
            if known is None or known.place != contact.place:
                known = GridNode(contact.key, contact.place)
            if self.router.add_contact(known):
                self.on_contact(contact)
        elif self.router.wants(contact):
            self.check_soon(contact)

    def handle_call_response(self, result: tuple[bool, Any], node: GridNode) -> tuple[bool, Any]:
        """As inherited, but when nobody at all answers lately it is us who are cut off, and no contact is blamed."""
        if not result[0] and self.context.clock() - self._answered_at > _SILENCE_S:
            return result
        return super().handle_call_response(result, node)

    def lose(self, node: GridNode) -> None:
        """See :class:`~p2pgrid.dht.lost.LostContacts`."""
        self.lost.remember(node, self.context.clock())

    def check_soon(self, node: GridNode) -> None:
        """Ping in the background, once at a time for each contact."""
        if node.id in self._checking or self._closed:
            return

        async def check() -> None:
            try:
                await self.call_ping(node)
            finally:
                self._checking.discard(node.id)

        self._checking.add(node.id)
        if not self.checks.start(check()):
            self._checking.discard(node.id)

    def get_refresh_ids(self) -> list[bytes]:
        """A random id in the range of each bucket that was not looked at for long."""
        rng = self.context.rng
        return [rng.randint(*bucket.range).to_bytes(20, "big") for bucket in self.router.lonely_buckets()]

    def keep(self, sender: Address, raw: bytes) -> Reply:
        """Keep a record for somebody, through the inherited ``rpc_store``. Raises our errors."""
        slot = peek_slot(raw)
        if not self.storage.put_again(raw, slot):
            self.rpc_store(sender, self.source_node.id, slot[1], raw)
        return Done()

    def run_errand(self, errand: Coroutine[Any, Any, None]) -> Reply:
        """Do something slow for a peer in the background, or say that we are busy."""
        return Done() if self.errands.start(errand) else Refused(Reason.BUSY)

    def outstanding_len(self) -> int:
        """How many calls wait for an answer."""
        return len(self._outstanding)

    async def close(self) -> None:
        """End all calls (as unanswered) and background work."""
        self._closed = True
        for future, _ in list(self._outstanding.values()):
            if not future.done():
                future.set_result(Result(False, None))
        await self.checks.close(self.settings.close_s)
        await self.errands.close(self.settings.close_s)
        await self.leftovers.close(self.settings.close_s)
