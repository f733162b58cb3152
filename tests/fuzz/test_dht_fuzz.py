"""Sixty thousand hostile datagrams against one DHT node: no exception, no growth, still alive."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.dht.carrier import MemoryNetwork
from p2pgrid.dht.contact import Place, unpack_contact, unpack_place
from p2pgrid.dht.datagram import HEADER_BYTES, REPLY, REQUEST, pack_payload, peek_datagram, seal_datagram, unpack_payload
from p2pgrid.dht.messages import FindNode, FindValue, Message, Nodes, Ping, Pong, Probe, ProbeFor, Sample, Store, Values, Walk, Who
from p2pgrid.dht.records import RecordKind, open_record
from p2pgrid.dht.server import GridServer
from p2pgrid.dht.settings import DhtSettings
from p2pgrid.errors import P2PGridError
from p2pgrid.model.ids import DhtId, grid_id
from p2pgrid.wire.codec import encode
from p2pgrid.wire.keys import SigningKey
from tests.unit.dht.dht_swarm import Swarm

GRID = grid_id(b"r" * 32, "fuzz")
UNLIMITED = DhtSettings(source_per_s=1e9, source_burst=1e9, total_per_s=1e9, timeout_start_s=0.05, timeout_min_s=0.05)
MESSAGES: list[Message] = [
    Ping(),
    FindNode(b"t" * 20),
    FindValue(b"t" * 20, 3),
    Store(b"r" * 300),
    Sample(),
    Walk(bytes(20), b"\xff" * 20),
    Probe(b"t" * 20),
    ProbeFor(b"k" * 32, b"\x0a\0\0\x09\x10\0", b"t" * 20),
    Nodes((b"c" * 38,) * 20),
    Values((b"r" * 200,) * 3),
    Pong(b"\x0a\0\0\x09\x10\0"),
    Who(),
]


def mutated(rng: random.Random, data: bytes) -> bytes:
    raw = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        choice = rng.randrange(5)
        at = rng.randrange(len(raw)) if raw else 0
        if choice == 0 and raw:
            raw[at] ^= 1 << rng.randrange(8)
        elif choice == 1 and raw:
            raw[at] = rng.choice((0, 0x7F, 0x80, 0xC1, 0xDC, 0xDD, 0xDF, 0xFF))
        elif choice == 2:
            del raw[at : at + rng.randint(1, 40)]
        elif choice == 3:
            raw[at:at] = rng.randbytes(rng.randint(1, 40))
        else:
            raw = raw[: rng.randint(0, len(raw))]
    return bytes(raw)


def sizes(node: GridServer) -> dict[str, int]:
    protocol = node.protocol
    return {
        "contacts": len(node.router),
        "records": len(node.storage),
        "peers": len(protocol.book),
        "outstanding": protocol.outstanding_len(),
        "calls": len(protocol._calls),
        "checks": len(protocol.checks),
        "errands": len(protocol.errands),
        "tokens": len(protocol.tokens),
        "reasons": len(protocol.gate.dropped) // 40,
    }


async def test_forty_thousand_mutated_datagrams_change_nothing() -> None:
    rng = random.Random(8)
    network = MemoryNetwork(random.Random(1))
    swarm = Swarm(1, network=network, settings=UNLIMITED)
    seen: list[tuple[bytes, Place]] = []
    try:
        await swarm.grow(6)
        victim = swarm.nodes[0]
        network.watch = lambda data, source, destination: seen.append((data, source)) if destination == victim.node.place else None
        for node in swarm.nodes[1:]:
            await node.publish(RecordKind.BLOB_HOLDER, DhtId(swarm.rng.randbytes(20)), b"v", 600)
            await node.sample_nodes()
            await victim.protocol.call_ping(node.node)
        network.watch = None
        before = sizes(victim)
        for _ in range(40_000):
            data, source = rng.choice(seen)
            victim.protocol.datagram_received(mutated(rng, data), source)
        assert sizes(victim) == before
        assert victim.protocol.gate.sources_len() <= UNLIMITED.sources_limited
        assert victim.protocol.gate.dropped.total() >= 39_000
        assert (await victim.protocol.call_ping(swarm.nodes[1].node))[0]
    finally:
        await swarm.close()


async def test_a_member_that_signs_twenty_thousand_mutated_messages_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the signature: the typed decoding alone must hold. Signatures are left out to make time for more."""
    monkeypatch.setattr("p2pgrid.dht.gate.verify_datagram", lambda *_arguments: None)
    rng = random.Random(9)
    swarm = Swarm(2, network=MemoryNetwork(random.Random(1)), settings=UNLIMITED)
    try:
        await swarm.grow(3)
        victim, member = swarm.nodes[0], swarm.nodes[1]
        before = sizes(victim)
        for _number in range(20_000):
            body = mutated(rng, encode(rng.choice(MESSAGES)))
            frame = rng.choice((REQUEST, REPLY))
            request_id = rng.randbytes(20)
            if frame == REPLY:  # An answer to a call that really waits, so that it passes.
                victim.protocol.tokens[request_id] = lambda _key, _place: None
            flags, payload = pack_payload(frame, request_id, body)
            time_ms = swarm.clock.wall_ms().to_bytes(8, "big")
            raw = b"\x01" + bytes((flags,)) + swarm.grid[:8] + member.node.key + time_ms + bytes(64) + payload
            victim.protocol.datagram_received(raw, member.node.place)
            victim.protocol.tokens.pop(request_id, None)
        after = sizes(victim)
        for name in ("contacts", "records", "peers", "outstanding", "tokens"):
            assert after[name] <= before[name] + 2, name
        assert after["errands"] <= UNLIMITED.probes_at_once
        assert after["checks"] <= UNLIMITED.checks_outstanding
    finally:
        await swarm.close()


async def test_mutated_answers_to_real_calls_only_make_the_calls_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(10)
    swarm = Swarm(3, network=MemoryNetwork(random.Random(1)), settings=UNLIMITED)
    try:
        await swarm.grow(4)
        asker = swarm.nodes[0]
        real = encode

        def hostile(message: object) -> bytes:
            return mutated(rng, real(message)) if rng.random() < 0.5 else real(message)

        monkeypatch.setattr("p2pgrid.dht.gate.encode", hostile)  # Used for answers only; requests are encoded elsewhere.
        for _ in range(12):
            await asker.lookup_nodes(DhtId(rng.randbytes(20)))
            await asker.get(DhtId(rng.randbytes(20)), RecordKind.BLOB_HOLDER)
            await asker.sample_nodes()
        assert asker.protocol.outstanding_len() <= 20, "only repeated pings and questions nobody waits for any more"
        await asker.close()
        assert asker.protocol.outstanding_len() == 0
    finally:
        await swarm.close()


@settings(max_examples=500, deadline=None)
@given(raw=st.binary(max_size=1300), grid=st.just(GRID))
def test_parsers_raise_errors_of_ours_only(raw: bytes, grid: bytes) -> None:
    for parse in (
        lambda: peek_datagram(raw, GRID, 1200),
        lambda: unpack_payload(raw[0] & 31 if raw else 0, raw),
        lambda: unpack_contact(raw),
        lambda: unpack_place(raw),
        lambda: open_record(raw, GRID, 1),
    ):
        try:
            parse()
        except P2PGridError:
            continue


@settings(max_examples=200, deadline=None)
@given(
    message=st.binary(min_size=1, max_size=300),
    cookie=st.sampled_from([b"", b"c" * 8]),
    credential=st.none() | st.binary(max_size=300),
    padded=st.integers(0, 500),
    frame=st.sampled_from([REQUEST, REPLY]),
)
def test_what_is_packed_is_unpacked(message: bytes, cookie: bytes, credential: bytes | None, padded: int, frame: int) -> None:
    key = SigningKey(b"s" * 32)
    flags, payload = pack_payload(frame, b"i" * 20, message, cookie=cookie, credential=credential, payload_bytes_min=padded)
    assert len(payload) >= padded
    raw = seal_datagram(key, GRID, b"d" * 32, flags, 5, payload)
    datagram = peek_datagram(raw, GRID, 4000)
    assert len(raw) == HEADER_BYTES + len(payload)
    unpacked = unpack_payload(datagram.flags, datagram.payload)
    assert unpacked == (frame, b"i" * 20, message, cookie or None, credential)
