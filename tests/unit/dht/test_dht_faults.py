"""The known faults of the package as shipped, A to Q, shown absent here (J, L, M, O: see the table and record tests).

Where it is cheap the package itself is shown to have the fault, so that a test proves it can fail.
"""

from __future__ import annotations

import asyncio
import inspect
import random
import time
from collections.abc import AsyncIterator

import pytest
from kademlia.node import Node
from kademlia.protocol import KademliaProtocol
from kademlia.routing import RoutingTable
from kademlia.storage import ForgetfulStorage

from p2pgrid.dht import contact as contact_module
from p2pgrid.dht.carrier import MemoryNetwork
from p2pgrid.dht.contact import GridNode, Place, pack_contact, place_of, unpack_contact, unpack_place
from p2pgrid.dht.crawl import GridCrawl
from p2pgrid.dht.messages import Nodes, Ping, Pong, Values
from p2pgrid.dht.records import RecordKind
from p2pgrid.dht.server import GridServer
from p2pgrid.dht.settings import DhtSettings
from p2pgrid.errors import MalformedError, UsageError
from p2pgrid.model.ids import DhtId, NodeKey
from p2pgrid.wire.codec import encode
from tests.unit.dht.dht_swarm import Swarm

FAST = DhtSettings(timeout_start_s=0.05, timeout_min_s=0.02, timeout_max_s=0.1, crawl_s=2.0)


@pytest.fixture
async def swarm() -> AsyncIterator[Swarm]:
    made = Swarm(5, network=MemoryNetwork(random.Random(1)), settings=FAST)
    yield made
    await made.close()


def answer_with(node: GridServer, reply: object) -> None:
    """Make a node answer every question with one reply."""
    node.protocol.answers.to = lambda _arrival: reply  # type: ignore[assignment, return-value, method-assign]


def fake_contact(number: int) -> bytes:
    return pack_contact(number.to_bytes(32, "big"), Place("10.9.9.9", 1 + number % 60_000))


@pytest.mark.parametrize(
    "raw",
    [
        b"k" * 32 + b"\x7f\0\0\1" + b"\0\0",
        b"k" * 32 + b"\0\0\0\0" + b"\x10\0",
        b"k" * 32 + b"\xff\xff\xff\xff" + b"\x10\0",
        b"k" * 32 + b"\xe0\0\0\1" + b"\x10\0",
        b"k" * 32 + b"\xfe\x80" + b"\0" * 14 + b"\x10\0",
        b"k" * 32,
        b"k" * 37,
        b"",
    ],
    ids=["port 0", "unspecified", "broadcast", "multicast", "link-local", "no place", "short", "empty"],
)
async def test_fault_a_a_poisoned_contact_is_dropped_and_the_socket_lives(raw: bytes) -> None:
    with pytest.raises(MalformedError):
        unpack_contact(raw)
    swarm = Swarm(3, settings=FAST)
    try:
        await swarm.grow(3)
        victim, liar = swarm.nodes[0], swarm.nodes[1]
        answer_with(liar, Nodes((raw,)))
        await victim.lookup_nodes(DhtId(bytes(20)))
        assert victim.protocol.gate.dropped["bad-contact"] >= 1
        assert (await victim.protocol.call_ping(swarm.nodes[2].node))[0]
    finally:
        await swarm.close()


async def test_fault_b_names_are_never_resolved(monkeypatch: pytest.MonkeyPatch, swarm: Swarm) -> None:
    def trap(*_arguments: object) -> None:
        raise AssertionError("a resolver was asked")

    for name in ("getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(f"socket.{name}", trap)
    for host in ("localhost", "x.attacker.example", "127.0.0.1.nip.io", "", "0x7f.1"):
        with pytest.raises(MalformedError):
            place_of(host, 4000)
    founder = await swarm.add()
    with pytest.raises(UsageError):
        await founder.bootstrap([(NodeKey(b"k" * 32), "localhost", 4000)])
    assert "getaddrinfo" not in inspect.getsource(contact_module)


def test_fault_c_ids_are_derived_so_padding_cannot_blow_up_the_table() -> None:
    stock = RoutingTable(None, 1, Node(b"\1" * 20))

    def add_padded() -> None:
        for zeros in range(3):
            stock.add_contact(Node(bytes(zeros) + b"\1"))

    with pytest.raises(RecursionError):
        add_padded()
    raw = fake_contact(3)
    assert len(unpack_contact(raw).id) == 20
    assert len(raw) == 38, "a contact on the wire has no room for an id"


async def test_fault_d_a_ping_of_a_stranger_to_the_table_costs_the_same_with_many_records(swarm: Swarm) -> None:
    await swarm.grow(2)
    keeper, asker = swarm.nodes
    for _ in range(300):
        await asker.publish(RecordKind.BLOB_HOLDER, DhtId(swarm.rng.randbytes(20)), b"v", 3600) if len(keeper.storage) < 200 else None
    calls = 0

    def counted() -> list[bytes]:
        nonlocal calls
        calls += 1
        return []

    keeper.storage.keys = counted  # type: ignore[method-assign]
    keeper.router.flush()
    for _ in range(50):
        await asker.protocol.call_ping(keeper.node)
    assert calls == 0, "answering looks at no stored key"


async def test_fault_e_no_storm_idle_traffic_is_zero_after_puts_and_joins() -> None:
    network = MemoryNetwork(random.Random(4))
    swarm = Swarm(5, network=network, settings=DhtSettings(handover_s=0.01, k=4, copies=4))
    try:
        await swarm.grow(40)
        for _ in range(30):
            await swarm.rng.choice(swarm.nodes).publish(RecordKind.BLOB_HOLDER, DhtId(swarm.rng.randbytes(20)), b"v", 3600)
        await swarm.grow(5)
        await quiet(network)
    finally:
        await swarm.close()


async def quiet(network: MemoryNetwork) -> None:
    """Wait until nothing is sent for a tenth of a second; fails when that never comes."""
    sent = asyncio.Event()
    network.watch = lambda *_datagram: sent.set()
    async with asyncio.timeout(30):
        while True:
            sent.clear()
            try:
                async with asyncio.timeout(0.1):
                    await sent.wait()
            except TimeoutError:
                break
    network.watch = None


@pytest.mark.parametrize("reply", [Pong(), Values((b"\xc1junk",)), Nodes((b"x" * 38,) * 20), Values((), more=True), Nodes((), more=True)])
async def test_fault_f_odd_answers_never_raise_in_the_caller(swarm: Swarm, reply: object) -> None:
    await swarm.grow(4)
    for liar in swarm.nodes[1:]:
        answer_with(liar, reply)
    asker = swarm.nodes[0]
    assert await asker.get(DhtId(b"k" * 20), RecordKind.BLOB_HOLDER) == []
    await asker.lookup_nodes(DhtId(b"k" * 20))
    assert await asker.sample_nodes() == []
    await asker.enumerate_nodes()


async def test_fault_g_a_crawl_fed_with_endless_fake_contacts_ends(swarm: Swarm) -> None:
    await swarm.grow(3)
    counter = iter(range(1, 10**9))
    for liar in swarm.nodes[1:]:
        liar.protocol.answers.to = lambda _arrival: Nodes(tuple(fake_contact(next(counter)) for _ in range(20)))  # type: ignore[assignment, method-assign]
    asker = swarm.nodes[0]
    crawl = GridCrawl(asker.protocol, Node(b"\0" * 20), asker.router.contacts(), 20, 5)
    began = time.monotonic()
    await crawl.find()
    assert time.monotonic() - began < FAST.crawl_s + 1
    assert crawl.queries <= FAST.queries_max
    assert len(crawl.nearest.heap) <= 4 * 20


async def test_fault_h_malformed_datagrams_are_counted_not_logged(swarm: Swarm, caplog: pytest.LogCaptureFixture) -> None:
    founder = await swarm.add()
    tasks_before = len(asyncio.all_tasks())
    for size in (0, 1, 21, 22, 114, 135, 500, 1200, 1201, 60_000):
        founder.protocol.datagram_received(bytes([1]) * size, Place("10.0.0.9", 9))
    assert founder.protocol.gate.dropped.total() == 10
    assert len(asyncio.all_tasks()) == tasks_before
    assert not caplog.records


async def test_fault_k_a_joiner_is_given_the_records_it_is_near_to() -> None:
    swarm = Swarm(6, network=MemoryNetwork(random.Random(1)), settings=DhtSettings(handover_s=0.01))
    try:
        await swarm.grow(4)
        keys = [DhtId(swarm.rng.randbytes(20)) for _ in range(20)]
        for key in keys:
            await swarm.nodes[0].publish(RecordKind.BLOB_HOLDER, key, b"v", 3600)
        joiner = await swarm.add()
        assert swarm.network is not None
        await quiet(swarm.network)
        assert sorted(joiner.storage.keys()) == sorted(keys), "five servers, ten copies: it holds all, under their true keys"
    finally:
        await swarm.close()


async def test_fault_n_one_copy_round_serves_all_holders() -> None:
    swarm = Swarm(7, network=MemoryNetwork(random.Random(1)))
    try:
        await swarm.grow(8)
        await swarm.nodes[0].publish(RecordKind.BLOB_HOLDER, DhtId(b"k" * 20), b"v", 6 * 3600)
        swarm.clock.move(2 * 3600)
        swarm.nodes[0].publications.forget(RecordKind.BLOB_HOLDER, DhtId(b"k" * 20))
        for node in swarm.nodes:
            await node.upkeep._copy()
            assert swarm.network is not None
            await quiet(swarm.network)
        assert sum(node.upkeep.copied for node in swarm.nodes) == 1
    finally:
        await swarm.close()


async def test_fault_p_a_cancelled_call_leaves_nothing_behind(swarm: Swarm) -> None:
    await swarm.grow(2)
    asker = swarm.nodes[0]
    silent = GridNode(NodeKey(b"s" * 32), Place("10.0.0.77", 4000))
    for _ in range(50):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await asker.protocol.ping((silent.key, silent.place))
    await asyncio.sleep(0)
    assert asker.protocol.outstanding_len() == 0
    assert not asker.protocol._calls

    stock = KademliaProtocol(Node(b"\1" * 20), ForgetfulStorage(), 20)
    stock.transport = asker.protocol.transport
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await stock.ping(Place("10.0.0.77", 4000), b"\1" * 20)
    assert len(stock._outstanding) == 1, "the package leaks it"
    for _, timer in stock._outstanding.values():
        timer.cancel()


async def test_fault_q_a_misspelt_attribute_is_an_error(swarm: Swarm) -> None:
    founder = await swarm.add()
    with pytest.raises(AttributeError):
        founder.protocol.ksize  # noqa: B018
    assert callable(KademliaProtocol(Node(b"\1" * 20), ForgetfulStorage(), 20).ksize)


async def test_an_answer_that_arrives_twice_is_taken_once(swarm: Swarm) -> None:
    await swarm.grow(2)
    asker, other = swarm.nodes
    sent: list[tuple[bytes, Place]] = []
    assert swarm.network is not None
    swarm.network.watch = lambda data, source, destination: sent.append((data, source)) if destination == asker.node.place else None
    assert (await asker.protocol.call_ping(other.node))[0]
    for data, source in sent * 3:
        asker.protocol.datagram_received(data, source)
    assert asker.protocol.gate.dropped["wrong-peer"] == 3


def test_places_are_normalised_so_that_one_host_is_one_place() -> None:
    assert place_of("::ffff:8.8.8.8", 53) == Place("8.8.8.8", 53)
    assert place_of("2001:DB8:0:0::1", 53).host == "2001:db8::1"
    assert unpack_place(bytes(10) + b"\xff\xff\x08\x08\x08\x08" + b"\0\x35") == Place("8.8.8.8", 53)
    for port in (0, 65536, 70000, -1, "x", None, 4000.0):
        with pytest.raises(MalformedError):
            place_of("8.8.8.8", port)


def test_every_message_stays_below_the_datagram_limit() -> None:
    six = pack_contact(b"k" * 32, Place("2001:db8::1", 65535))
    assert len(encode(Nodes((six,) * 20, True))) + 114 + 21 + 8 <= 1200
    assert len(encode(Ping())) <= 4
