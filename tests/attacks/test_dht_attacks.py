"""What a hostile peer, member or not, tries against a DHT node, and what it gets."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator

import pytest

from p2pgrid.dht.carrier import MemoryCarrier, MemoryNetwork
from p2pgrid.dht.contact import GridNode, Place, pack_contact
from p2pgrid.dht.datagram import REPLY, REQUEST, Flag, pack_payload, seal_datagram
from p2pgrid.dht.messages import Done, FindNode, Message, Nodes, Ping, Store, Values
from p2pgrid.dht.records import Record, RecordKind
from p2pgrid.dht.server import GridServer
from p2pgrid.dht.settings import DhtSettings
from p2pgrid.model.ids import DhtId, NodeKey, grid_id
from p2pgrid.wire.codec import encode
from p2pgrid.wire.envelope import seal
from p2pgrid.wire.keys import SigningKey
from tests.unit.dht.dht_swarm import Swarm

FAST = DhtSettings(timeout_start_s=0.05, timeout_min_s=0.02, timeout_max_s=0.1, crawl_s=2.0, handover_s=0.01)
KEY = DhtId(b"k" * 20)
EVIL = SigningKey(b"e" * 32)
EVIL_PLACE = Place("10.6.6.6", 666)


def members_only(key: NodeKey, credential: bytes) -> bool:
    return credential == b"member" and key != EVIL.public


@pytest.fixture
async def swarm() -> AsyncIterator[Swarm]:
    made = Swarm(21, network=MemoryNetwork(random.Random(1)), settings=FAST)
    yield made
    await made.close()


class Attacker:
    """A raw place on the network that signs whatever it likes."""

    def __init__(self, swarm: Swarm, place: Place = EVIL_PLACE, key: SigningKey = EVIL) -> None:
        assert swarm.network is not None
        self.swarm = swarm
        self.key = key
        self.carrier = MemoryCarrier(swarm.network, place)
        self.received: list[bytes] = []

    async def open(self) -> None:
        await self.carrier.open(lambda data, _place: self.received.append(data))

    def datagram(self, victim: GridServer, message: Message, **changes: object) -> bytes:
        given: dict[str, object] = {
            "grid": self.swarm.grid,
            "to": victim.node.key,
            "time_ms": self.swarm.clock.wall_ms(),
            "credential": b"",
        }
        given |= changes
        frame, request_id = changes.get("frame", REQUEST), changes.get("request_id", b"q" * 20)
        flags, payload = pack_payload(frame, request_id, encode(message), credential=given["credential"])  # type: ignore[arg-type]
        return seal_datagram(self.key, given["grid"], given["to"], flags | Flag.SERVER, given["time_ms"], payload)  # type: ignore[arg-type]


async def settle(swarm: Swarm) -> None:
    """Let what was sent over memory arrive and be answered: a ping there and back passes all that was queued before."""
    for _ in range(3):
        await swarm.nodes[0].protocol.ping((swarm.nodes[1].node.key, swarm.nodes[1].node.place))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"grid": grid_id(b"x" * 32, "other")}, "other-grid"),
        ({"to": b"z" * 32}, "bad-signature"),
        ({"time_ms": 1}, "clock-off"),
        ({"time_ms": 2**63}, "clock-off"),
        ({"frame": REPLY}, "wrong-peer"),
    ],
)
async def test_a_datagram_for_another_grid_node_or_time_is_dropped_in_silence(
    swarm: Swarm, changes: dict[str, object], reason: str
) -> None:
    await swarm.grow(2)
    attacker = Attacker(swarm)
    await attacker.open()
    victim = swarm.nodes[0]
    victim.protocol.datagram_received(attacker.datagram(victim, Ping(), **changes), EVIL_PLACE)
    await settle(swarm)
    assert victim.protocol.gate.dropped == {reason: 1}
    assert attacker.received == []
    assert victim.protocol.book.get(EVIL.public) is None


async def test_the_same_request_unharmed_is_answered_so_these_tests_can_fail(swarm: Swarm) -> None:
    await swarm.grow(2)
    attacker = Attacker(swarm)
    await attacker.open()
    swarm.nodes[0].protocol.datagram_received(attacker.datagram(swarm.nodes[0], Ping()), EVIL_PLACE)
    await settle(swarm)
    assert attacker.received


async def test_a_stranger_gets_only_who_no_larger_than_thrice_its_request_and_enters_nothing() -> None:
    swarm = Swarm(22, network=MemoryNetwork(random.Random(1)), settings=FAST, authorise=members_only)
    try:
        for _ in range(4):
            await swarm.add(credential=b"member")
        victim = swarm.nodes[0]
        await victim.publish(RecordKind.BLOB_HOLDER, KEY, b"v" * 500, 600)
        attacker = Attacker(swarm)
        await attacker.open()
        record = seal(Record(swarm.clock.wall_ms() + 1000, RecordKind.BLOB_HOLDER, KEY, 1, b"", b"v"), EVIL, swarm.grid)
        contacts, peers, records = len(victim.router), len(victim.protocol.book), len(victim.storage)
        messages: list[Message] = [Ping(), FindNode(KEY), Store(record.raw)]
        for message in messages:
            for credential in (b"", b"forged", b"member"):
                raw = attacker.datagram(victim, message, credential=credential)
                attacker.received.clear()
                victim.protocol.datagram_received(raw, EVIL_PLACE)
                await settle(swarm)
                assert len(attacker.received) == 1
                assert len(attacker.received[0]) <= 140 <= 3 * len(raw)
        assert (len(victim.router), len(victim.protocol.book), len(victim.storage)) == (contacts, peers, records)
        assert not victim.protocol.checks
    finally:
        await swarm.close()


async def test_a_stranger_cannot_join_and_is_told_so_rather_than_left_to_hang() -> None:
    swarm = Swarm(23, network=MemoryNetwork(random.Random(1)), settings=FAST, authorise=members_only)
    try:
        await swarm.add(credential=b"member")
        stranger = await swarm.add(credential=b"forged")
        assert stranger.protocol.refusals >= 1
        assert len(stranger.router) == 0
        assert len(swarm.nodes[0].router) == 0
    finally:
        await swarm.close()


async def test_a_spoofed_source_never_enters_the_table(swarm: Swarm) -> None:
    await swarm.grow(2)
    victim = swarm.nodes[0]
    attacker = Attacker(swarm)
    for port in range(1, 60):
        victim.protocol.datagram_received(attacker.datagram(victim, Ping()), Place("10.5.5.5", port))
    await settle(swarm)
    assert victim.router.get(GridNode(NodeKey(EVIL.public), EVIL_PLACE).id) is None
    assert len(victim.protocol.checks) <= FAST.checks_outstanding


async def test_an_unproven_address_gets_at_most_three_times_the_bytes_it_sent(swarm: Swarm) -> None:
    await swarm.grow(30)
    victim = swarm.nodes[0]
    attacker = Attacker(swarm)
    await attacker.open()
    messages: list[Message] = [FindNode(KEY), FindNode(bytes(20)), Ping()]
    for number, message in enumerate(messages * 3):
        raw = attacker.datagram(victim, message, request_id=bytes([number]) * 20)
        before = len(attacker.received)
        victim.protocol.datagram_received(raw, EVIL_PLACE)
        await settle(swarm)
        answers = [data for data in attacker.received[before:] if number.to_bytes(1, "big") * 20 in data]
        assert answers
        assert all(len(data) <= 3 * len(raw) for data in answers)


async def test_a_recorded_request_played_from_elsewhere_is_dropped(swarm: Swarm) -> None:
    await swarm.grow(3)
    assert swarm.network is not None
    victim, member = swarm.nodes[0], swarm.nodes[1]
    recorded: list[bytes] = []
    swarm.network.watch = lambda data, _source, destination: recorded.append(data) if destination == victim.node.place else None
    await member.protocol.call_find_node(victim.node, member.node)
    swarm.network.watch = None
    for data in recorded:
        victim.protocol.datagram_received(data, EVIL_PLACE)
    assert victim.protocol.gate.dropped["stale"] == len(recorded) > 0
    known = victim.router.get(member.node.id)
    assert known is not None
    assert known.place == member.node.place


async def test_a_replayed_store_does_not_bring_an_old_record_back(swarm: Swarm) -> None:
    await swarm.grow(3)
    victim, author = swarm.nodes[0], swarm.nodes[1]
    now_ms = swarm.clock.wall_ms()
    old, new = (
        seal(Record(now_ms + 60_000, RecordKind.BLOB_HOLDER, KEY, seq, b"", b"v%d" % seq), author.context.key, swarm.grid) for seq in (1, 2)
    )
    assert isinstance((await author.protocol.call_store(victim.node, KEY, new.raw))[1], Done)
    assert not isinstance((await author.protocol.call_store(victim.node, KEY, old.raw))[1], Done)
    assert [record.raw for record in victim.storage.find(RecordKind.BLOB_HOLDER, KEY)] == [new.raw]


async def test_a_member_cannot_write_in_the_name_of_another(swarm: Swarm) -> None:
    await swarm.grow(3)
    victim, liar, honest = swarm.nodes
    now_ms = swarm.clock.wall_ms()
    record = seal(Record(now_ms + 60_000, RecordKind.NODE, honest.node.id, 9, b"", b"mine"), liar.context.key, swarm.grid)
    grafted = record.raw.replace(liar.node.key, honest.node.key)
    for raw in (record.raw, grafted):
        assert not isinstance((await liar.protocol.call_store(victim.node, DhtId(honest.node.id), raw))[1], Done)
    assert len(victim.storage) == 0


async def test_forged_expired_and_foreign_records_in_answers_are_not_believed(swarm: Swarm) -> None:
    await swarm.grow(8)
    now_ms = swarm.clock.wall_ms()
    liars = swarm.nodes[1:]

    def sealed(**changes: object) -> bytes:
        fields: dict[str, object] = {"expires_ms": now_ms + 60_000, "kind": RecordKind.BLOB_HOLDER, "key": KEY, "seq": 1, "value": b"v"}
        return seal(Record(**(fields | changes)), EVIL, swarm.grid).raw  # type: ignore[arg-type]

    forged = bytearray(sealed())
    forged[-1] ^= 1
    wrong = (bytes(forged), sealed(expires_ms=now_ms - 1), sealed(key=b"z" * 20), sealed(kind=RecordKind.JOB_KEEPERS), b"junk")
    for liar in liars:
        liar.protocol.answers.to = lambda _arrival: Values(wrong)  # type: ignore[assignment, method-assign]
    assert await swarm.nodes[0].get(KEY, RecordKind.BLOB_HOLDER) == []


async def test_a_few_liars_that_name_only_each_other_cannot_hide_a_record(swarm: Swarm) -> None:
    await swarm.grow(40)
    for node in swarm.nodes[:3]:
        await node.publish(RecordKind.JOB_KEEPERS, KEY, b"keepers", 600)
    liars = swarm.rng.sample(swarm.nodes, 8)
    ring = tuple(pack_contact(liar.node.key, liar.node.place) for liar in liars)
    for liar in liars:
        liar.protocol.answers.to = lambda _arrival: Nodes(ring)  # type: ignore[assignment, method-assign]
    honest = [node for node in swarm.nodes if node not in liars]
    found = [bool(await node.get(KEY, RecordKind.JOB_KEEPERS)) for node in honest]
    assert all(found)


async def test_a_wrong_address_for_an_honest_key_neither_hides_nor_evicts_it(swarm: Swarm) -> None:
    await swarm.grow(4)
    victim, liar, honest = swarm.nodes[0], swarm.nodes[1], swarm.nodes[2]
    poisoned = pack_contact(honest.node.key, Place("10.4.4.4", 4))
    liar.protocol.answers.to = lambda _arrival: Nodes((poisoned,))  # type: ignore[assignment, method-assign]
    for _ in range(5):
        nearest = await victim.lookup_nodes(DhtId(honest.node.id))
        assert nearest[0].place == honest.node.place
    assert victim.router.get(honest.node.id) is not None


async def test_a_public_peer_can_neither_learn_nor_name_private_addresses(swarm: Swarm) -> None:
    await swarm.grow(3)
    victim = swarm.nodes[0]
    attacker = Attacker(swarm, Place("8.8.8.8", 53))
    await attacker.open()
    victim.protocol.datagram_received(attacker.datagram(victim, FindNode(KEY), request_id=b"f" * 20), Place("8.8.8.8", 53))
    await settle(swarm)
    (answer,) = [data for data in attacker.received if b"f" * 20 in data]
    assert not any(answer.count(node.node.key) for node in swarm.nodes[1:])
    private = pack_contact(b"p" * 32, Place("192.168.1.1", 80))
    found = victim.protocol._found((NodeKey(EVIL.public), Place("8.8.8.8", 53)), [private], [])
    assert found.contacts == []
    assert victim.protocol._found((NodeKey(EVIL.public), EVIL_PLACE), [private], []).contacts


async def test_a_flood_from_one_source_is_cut_before_signatures_are_checked(monkeypatch: pytest.MonkeyPatch, swarm: Swarm) -> None:
    await swarm.grow(2)
    victim = swarm.nodes[0]
    checked = 0

    def counted(*_arguments: object) -> None:
        nonlocal checked
        checked += 1

    monkeypatch.setattr("p2pgrid.dht.gate.verify_datagram", counted)
    attacker = Attacker(swarm)
    raw = attacker.datagram(victim, Ping())
    began_s = time.monotonic()
    for _ in range(5000):
        victim.protocol.datagram_received(raw, EVIL_PLACE)
    assert checked <= FAST.source_burst + FAST.source_per_s * (time.monotonic() - began_s) + 1
    for number in range(20_000):
        victim.protocol.datagram_received(raw, Place(f"10.{number % 200 + 1}.3.4", 1 + number))
    assert checked <= FAST.total_per_s * (2 + time.monotonic() - began_s)
    assert victim.protocol.gate.sources_len() <= FAST.sources_limited
    assert (await swarm.nodes[1].protocol.call_ping(GridNode(NodeKey(b"n" * 32), Place("10.0.9.9", 1))))[0] is False
