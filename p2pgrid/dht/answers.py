"""What this node answers. Every answer is made at once, from tables, and fits the room the asker has earned.

Questions that would need a wait (dialling back) are acknowledged and done as a bounded errand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2pgrid.dht.contact import Place, Scope, pack_contact, pack_place, prefix_of, scope_of, unpack_place
from p2pgrid.dht.gate import Arrival
from p2pgrid.dht.limiter import TokenBuckets
from p2pgrid.dht.messages import (
    FindNode,
    FindValue,
    Nodes,
    Ping,
    Pong,
    Probe,
    Probed,
    ProbeFor,
    Refused,
    Reply,
    Sample,
    Store,
    Values,
    Walk,
)
from p2pgrid.errors import P2PGridError, UnreachableError
from p2pgrid.model.ids import NodeKey, dht_id_of_key
from p2pgrid.model.reasons import Reason

if TYPE_CHECKING:
    from p2pgrid.dht.protocol import GridProtocol

_LIST_BYTES = 12
"""The most that a reply of a list costs beside its items: tag, list headers, flag."""
_ITEM_BYTES = 3
_PROBES_PER_S = 1.0
_PROBES_BURST = 6.0


def _fill(items: list[bytes], room_bytes: int) -> tuple[tuple[bytes, ...], bool]:
    """As many leading items as fit, and whether some were left out."""
    room_bytes -= _LIST_BYTES
    taken: list[bytes] = []
    for item in items:
        room_bytes -= len(item) + _ITEM_BYTES
        if room_bytes < 0:
            return tuple(taken), True
        taken.append(item)
    return tuple(taken), False


class Answers:
    """Answers for one protocol object."""

    def __init__(self, protocol: GridProtocol) -> None:
        self._protocol = protocol
        context = protocol.context
        self._probes = TokenBuckets(context.clock, _PROBES_PER_S, _PROBES_BURST, context.settings.sources_limited)

    def to(self, arrival: Arrival) -> Reply:
        """The answer to a member's request."""
        try:
            return self._answer(arrival)
        except P2PGridError as error:
            self._protocol.gate.dropped[f"refused-{error.reason}"] += 1
            return Refused(str(error.reason)[:32])

    def _answer(self, arrival: Arrival) -> Reply:
        message = arrival.message
        if arrival.validated and arrival.peer is not None:
            arrival.peer.answered_from = arrival.place  # It shows what only that place was sent: as good as a ping.
        match message:
            case Ping():
                self._welcome(arrival)
                return Pong(pack_place(arrival.place))
            case FindNode():
                return self._nodes(arrival, message.target, message.skip)
            case FindValue():
                return self._find_value(arrival, message)
            case Store():
                return self._protocol.keep((arrival.author, arrival.place), message.record)
            case Sample():
                return self._sample(arrival, message)
            case Walk():
                return self._walk(arrival, message)
            case Probe():
                return self._probe(arrival, message)
            case ProbeFor():
                return self._probe_for(message)
        return Refused(Reason.UNSUPPORTED)

    def _welcome(self, arrival: Arrival) -> None:
        self._protocol.rpc_ping((arrival.author, arrival.place), dht_id_of_key(arrival.author))

    def _nodes(self, arrival: Arrival, target: bytes, skip: int) -> Nodes:
        sender = (arrival.author, arrival.place)
        nearest = self._protocol.rpc_find_node(sender, dht_id_of_key(arrival.author), target)
        scope = scope_of(arrival.place)
        contacts = [pack_contact(key, place) for _, key, place in nearest if scope_of(place) >= scope]
        return Nodes(*_fill(contacts[skip:], self._protocol.gate.room_bytes(arrival)))

    def _find_value(self, arrival: Arrival, message: FindValue) -> Reply:
        records = [record.raw for record in self._protocol.storage.find(message.kind, message.key)]
        if not records:
            return self._nodes(arrival, message.key, message.skip)
        self._welcome(arrival)
        return Values(*_fill(records[message.skip :], self._protocol.gate.room_bytes(arrival)))

    def _sample(self, arrival: Arrival, message: Sample) -> Values:
        self._welcome(arrival)
        records = [record.raw for record in self._protocol.storage.sample(self._protocol.context.rng, message.count)]
        return Values(*_fill(records, self._protocol.gate.room_bytes(arrival)))

    def _walk(self, arrival: Arrival, message: Walk) -> Values:
        self._welcome(arrival)
        room_bytes = self._protocol.gate.room_bytes(arrival) - _LIST_BYTES
        taken: list[bytes] = []
        for record in self._protocol.storage.walk(message.cursor, message.end):
            room_bytes -= len(record.raw) + _ITEM_BYTES
            if room_bytes < 0:
                return Values(tuple(taken), more=True)
            taken.append(record.raw)
        return Values(tuple(taken))

    def _probe(self, arrival: Arrival, message: Probe) -> Reply:
        if not self._probes.take(arrival.author):
            return Refused(Reason.BUSY)
        target = (arrival.author, arrival.place)
        if message.relay:
            return self._protocol.run_errand(self._relay(target, message.token))
        return self._protocol.run_errand(self._dial_back(target, message.token))

    def _probe_for(self, message: ProbeFor) -> Reply:
        place = unpack_place(message.place)
        if not self._probes.take((message.key, place)) or scope_of(place) is not Scope.PUBLIC:
            return Refused(Reason.BUSY)
        return self._protocol.run_errand(self._dial_back((NodeKey(message.key), place), message.token))

    async def _dial_back(self, target: tuple[NodeKey, Place], token: bytes) -> None:
        try:
            carrier = await self._protocol.transport.fresh()
        except P2PGridError as error:
            raise UnreachableError("no port for dialling back", reason=error.reason) from error
        try:
            carrier.sendto(self._protocol.gate.seal_unasked_reply(*target, token, Probed()), target[1])
        finally:
            carrier.close()

    async def _relay(self, target: tuple[NodeKey, Place], token: bytes) -> None:
        """Ask one contact at another public address than the target's and ours to dial the target."""
        others = [node for node in self._protocol.router.contacts() if prefix_of(node.place) not in (None, prefix_of(target[1]))]
        if others:
            helper = self._protocol.context.rng.choice(others)
            await self._protocol.request((helper.key, helper.place), ProbeFor(target[0], pack_place(target[1]), token))
