"""A DHT node as its user sees it: records, samples, enumeration, reachability, membership, restart, shutdown."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator

import pytest

from p2pgrid.dht.carrier import MemoryNetwork, UdpCarrier
from p2pgrid.dht.contact import Place, Scope
from p2pgrid.dht.records import Record, RecordKind
from p2pgrid.dht.server import GridServer
from p2pgrid.dht.settings import DhtSettings
from p2pgrid.errors import ConfigError, IntegrityError, UsageError
from p2pgrid.model.ids import DhtId, NodeKey
from p2pgrid.wire.envelope import seal
from tests.unit.dht.dht_swarm import Swarm

FAST = DhtSettings(timeout_start_s=0.1, timeout_min_s=0.05, timeout_max_s=0.2, crawl_s=3.0, handover_s=0.01)
KEY = DhtId(b"k" * 20)


@pytest.fixture
async def swarm() -> AsyncIterator[Swarm]:
    made = Swarm(11, network=MemoryNetwork(random.Random(1)), settings=FAST)
    yield made
    await made.close()


async def publish_all(swarm: Swarm) -> None:
    for node in swarm.nodes:
        await node.publish(RecordKind.NODE, DhtId(node.node.id), b"info of " + node.node.key[:4], 1800)


async def test_a_founder_alone_keeps_and_finds_its_own_records(swarm: Swarm) -> None:
    founder = await swarm.add()
    assert founder.is_server
    assert await founder.publish(RecordKind.BLOB_HOLDER, KEY, b"v", 60) == 1
    assert [record.body.value for record in await founder.get(KEY, RecordKind.BLOB_HOLDER)] == [b"v"]


async def test_several_authors_under_one_key_are_all_found_and_the_newest_of_each(swarm: Swarm) -> None:
    await swarm.grow(25)
    for round_number in (b"old", b"new"):
        for node in swarm.nodes[:6]:
            await node.publish(RecordKind.BLOB_HOLDER, KEY, round_number + node.node.key[:2], 600)
    found = await swarm.nodes[20].get(KEY, RecordKind.BLOB_HOLDER)
    assert {record.author for record in found} == {node.node.key for node in swarm.nodes[:6]}
    assert {record.body.value[:3] for record in found} == {b"new"}


async def test_a_key_with_more_than_a_datagram_of_records_is_read_in_pages(swarm: Swarm) -> None:
    await swarm.grow(12)
    for node in swarm.nodes:
        await node.publish(RecordKind.BLOB_HOLDER, KEY, b"v" * 500, 600)
    assert len(await swarm.nodes[3].get(KEY, RecordKind.BLOB_HOLDER)) == 12


async def test_a_withdrawn_record_is_gone_and_stays_gone(swarm: Swarm) -> None:
    await swarm.grow(8)
    author = swarm.nodes[2]
    await author.publish(RecordKind.BLOB_HOLDER, KEY, b"v", 600)
    assert await author.withdraw(RecordKind.BLOB_HOLDER, KEY) >= 5
    assert await swarm.nodes[5].get(KEY, RecordKind.BLOB_HOLDER) == []
    swarm.clock.move(400)
    await author.upkeep.tick()
    assert await swarm.nodes[5].get(KEY, RecordKind.BLOB_HOLDER) == []


async def test_a_publication_outlives_its_first_record_because_upkeep_says_it_again(swarm: Swarm) -> None:
    await swarm.grow(5)
    author = swarm.nodes[1]
    await author.publish(RecordKind.BLOB_HOLDER, KEY, b"v", 300)
    first = (await swarm.nodes[3].get(KEY, RecordKind.BLOB_HOLDER))[0]
    for _ in range(4):
        swarm.clock.move(110)
        await author.upkeep.tick()
    again = (await swarm.nodes[3].get(KEY, RecordKind.BLOB_HOLDER))[0]
    assert again.body.seq > first.body.seq
    await swarm.kill(author)
    swarm.clock.move(301)
    assert await swarm.nodes[3].get(KEY, RecordKind.BLOB_HOLDER) == []


async def test_holders_hand_copies_on_when_others_died_but_never_past_the_expiry(swarm: Swarm) -> None:
    await swarm.grow(20)
    author = swarm.nodes[0]
    await author.publish(RecordKind.BLOB_HOLDER, KEY, b"v", 6 * 3600)
    await author.tasks.close(1)
    holders = [node for node in swarm.nodes if len(node.storage)]
    for victim in [author, *(node for node in holders[:8] if node is not author)]:
        await swarm.kill(victim)
    swarm.clock.move(5000)
    for node in swarm.nodes:
        await node.upkeep.tick()
    assert sum(bool(len(node.storage)) for node in swarm.nodes) >= 8
    swarm.clock.move(6 * 3600 - 5000 + 1)
    assert await swarm.nodes[3].get(KEY, RecordKind.BLOB_HOLDER) == []
    assert all(node.storage.find(RecordKind.BLOB_HOLDER, KEY) == [] for node in swarm.nodes)


async def test_a_record_is_found_after_the_grid_grew_from_three_to_sixty(swarm: Swarm) -> None:
    await swarm.grow(3)
    await swarm.nodes[0].publish(RecordKind.BLOB_HOLDER, KEY, b"v", 3600)
    await swarm.grow(57)
    for node in swarm.rng.sample(swarm.nodes, 20):
        assert await node.get(KEY, RecordKind.BLOB_HOLDER)


async def test_a_small_grid_is_enumerated_completely(swarm: Swarm) -> None:
    await swarm.grow(48)
    await publish_all(swarm)
    records, complete = await swarm.nodes[7].enumerate_nodes()
    assert complete
    assert [record.body.key for record in records] == sorted(node.node.id for node in swarm.nodes)
    some, complete = await swarm.nodes[7].enumerate_nodes(count_max=10)
    assert len(some) == 10
    assert not complete


async def test_a_sample_shows_about_twenty_distinct_nodes_though_most_are_behind_nat(swarm: Swarm) -> None:
    assert swarm.network is not None
    await swarm.grow(12)
    for index in range(40):
        host = f"10.7.0.{index + 1}"
        swarm.network.nat.add(host)
        await swarm.add(host=host)
    assert sum(node.is_server for node in swarm.nodes) == 12
    await publish_all(swarm)
    samples = [await node.sample_nodes() for node in swarm.nodes[::5]]
    counts = sorted(len(sample) for sample in samples)
    print(f"\ndistinct nodes in a sample: {counts}")
    assert counts[len(counts) // 2] >= 14
    assert counts[-1] <= 24
    assert len({record.author for sample in samples for record in sample}) >= 45, "together they see nearly everybody"


async def test_loss_and_delay_slow_lookups_down_but_lose_nothing() -> None:
    network = MemoryNetwork(random.Random(3), latency_s=(0.001, 0.02), loss=0.05)
    swarm = Swarm(12, network=network, settings=DhtSettings(timeout_start_s=0.2, timeout_min_s=0.08, timeout_max_s=0.3))
    try:
        await swarm.grow(15)
        keys = [DhtId(swarm.rng.randbytes(20)) for _ in range(8)]
        for key in keys:
            assert await swarm.rng.choice(swarm.nodes).publish(RecordKind.BLOB_HOLDER, key, b"v", 600) >= 5
        for key in keys:
            assert await swarm.rng.choice(swarm.nodes).get(key, RecordKind.BLOB_HOLDER)
    finally:
        await swarm.close()


async def test_a_node_behind_nat_stays_a_client_enters_no_table_and_is_found_all_the_same() -> None:
    network = MemoryNetwork(random.Random(1))
    swarm = Swarm(13, network=network, settings=FAST)
    try:
        for index in range(6):
            await swarm.add(host=f"8.8.{index}.1")
        network.nat.add("9.9.9.9")
        hidden = await swarm.add(host="9.9.9.9", via=swarm.nodes[:3])
        assert not hidden.is_server
        assert all(node.router.get(hidden.node.id) is None for node in swarm.nodes)
        await hidden.publish(RecordKind.NODE, DhtId(hidden.node.id), b"call me by relay", 600)
        assert await swarm.nodes[5].get(DhtId(hidden.node.id), RecordKind.NODE)
        network.nat.clear()
        swarm.clock.move(100)
        await hidden.upkeep.tick()
        assert hidden.is_server
    finally:
        await swarm.close()


async def test_who_took_itself_for_reachable_alone_is_put_right_as_soon_as_somebody_is_there() -> None:
    network = MemoryNetwork(random.Random(1))
    swarm = Swarm(network=network)
    try:
        for index in range(6):
            await swarm.add(host=f"8.8.{index}.1")
        network.nat.add("9.9.9.9")
        network.loss = 1.0
        hidden = await swarm.add(host="9.9.9.9", via=swarm.nodes[:3])
        await hidden.upkeep.tick()
        assert hidden.is_server, "nobody could be asked"
        network.loss = 0.0
        for node in swarm.nodes[:3]:
            await hidden.protocol.call_ping(node.node)
        swarm.clock.move(16)
        await hidden.upkeep.tick()
        assert not hidden.is_server
    finally:
        await swarm.close()


async def test_public_nodes_become_servers_when_two_unrelated_peers_were_dialled_back_through(swarm: Swarm) -> None:
    for index in range(5):
        await swarm.add(host=f"8.8.{index}.1", via=swarm.nodes[:3])
    assert all(node.reach.proven is Scope.PUBLIC for node in swarm.nodes)
    assert not swarm.nodes[4].reach.provisional


async def test_who_is_reachable_on_a_local_network_only_does_not_claim_more(swarm: Swarm) -> None:
    await swarm.grow(3)
    assert swarm.nodes[2].reach.proven is Scope.PRIVATE


def membership(key: NodeKey, credential: bytes) -> bool:
    return credential.startswith(b"member:" + key)


def credential_for(key: bytes) -> bytes:
    return (b"member:" + key).ljust(700, b".")


async def add_member(swarm: Swarm, **arguments: object) -> GridServer:
    context = swarm.context()
    return await swarm.add(key=context.key, credential=credential_for(context.key.public), **arguments)  # type: ignore[arg-type]


async def test_members_with_large_credentials_meet_store_and_find() -> None:
    swarm = Swarm(14, network=MemoryNetwork(random.Random(1)), settings=FAST, authorise=membership)
    sizes: list[int] = []
    assert swarm.network is not None
    swarm.network.watch = lambda data, _source, _destination: sizes.append(len(data))
    try:
        for _ in range(30):
            await add_member(swarm)
        assert all(node.is_server for node in swarm.nodes)
        assert await swarm.nodes[4].publish(RecordKind.BLOB_HOLDER, KEY, b"v" * 600, 600) >= 5
        assert await swarm.nodes[25].get(KEY, RecordKind.BLOB_HOLDER)
        expected = sorted((node.node for node in swarm.nodes[1:]), key=lambda node: node.long_id ^ int.from_bytes(KEY, "big"))
        assert [node.id for node in await swarm.nodes[0].lookup_nodes(KEY)] == [node.id for node in expected[:20]]
        assert max(sizes) <= 1200
    finally:
        await swarm.close()


async def test_a_peer_that_forgot_us_asks_who_we_are_and_the_call_still_succeeds() -> None:
    swarm = Swarm(15, network=MemoryNetwork(random.Random(1)), settings=FAST, authorise=membership)
    try:
        for _ in range(2):
            await add_member(swarm)
        asker, other = swarm.nodes
        other.protocol.book._peers.clear()
        assert (await asker.protocol.call_find_node(other.node, asker.node))[0]
        record = Record(swarm.clock.wall_ms() + 60_000, RecordKind.BLOB_HOLDER, KEY, 1, b"", b"v" * 650)
        other.protocol.book._peers.clear()
        raw = seal(record, asker.context.key, swarm.grid).raw
        assert (await asker.protocol.call_store(other.node, KEY, raw))[0]
        assert len(other.storage) == 1
    finally:
        await swarm.close()


async def test_peers_survive_a_restart_as_plain_json(swarm: Swarm) -> None:
    await swarm.grow(10)
    data = json.loads(json.dumps(swarm.nodes[3].peers_to_persist()))
    peers = GridServer.peers_from_persisted(
        [*data, None, {}, {"key": "x", "host": "h", "port": 1}, {"key": 1, "host": "8.8.8.8", "port": 2}]
    )
    assert len(peers) == len(data) >= 8
    newcomer = await swarm.add(join=False)
    assert await newcomer.bootstrap(peers) == len(peers)


async def test_a_restart_without_any_live_peer_founds_anew_and_finds_its_peers_later(swarm: Swarm) -> None:
    absent = swarm.context()
    lonely = await swarm.add(join=False)
    assert await lonely.bootstrap([(NodeKey(absent.key.public), "10.0.9.9", 4000)]) == 0
    assert lonely.is_server
    late = await swarm.add(host="10.0.9.9", key=absent.key, via=[])
    await lonely.upkeep.tick()
    assert lonely.router.get(late.node.id) is not None
    assert late.router.get(lonely.node.id) is not None


async def test_dead_bootstrap_peers_do_not_hold_up_the_join(swarm: Swarm) -> None:
    await swarm.grow(3)
    dead = [(NodeKey(bytes([number]) * 32), "10.0.8.8", 4000) for number in range(1, 9)]
    newcomer = await swarm.add(join=False)
    founder = swarm.nodes[0].node
    async with asyncio.timeout(2):
        assert await newcomer.bootstrap([*dead, (founder.key, founder.place.host, founder.place.port)]) == 1
    assert len(newcomer.router) == 3


async def test_being_cut_off_does_not_empty_the_table() -> None:
    network = MemoryNetwork(random.Random(1))
    swarm = Swarm(16, network=network, settings=FAST)
    try:
        await swarm.grow(10)
        node = swarm.nodes[4]
        contacts = len(node.router)
        swarm.clock.move(60)
        network.loss = 1.0
        for _ in range(3):
            await node.lookup_nodes(KEY)
        assert len(node.router) == contacts
        network.loss = 0.0
        assert len(await node.lookup_nodes(KEY)) == 9
    finally:
        await swarm.close()


async def test_misuse_is_refused_with_an_error_of_ours(swarm: Swarm) -> None:
    founder = await swarm.add()
    with pytest.raises(UsageError):
        await founder.publish(RecordKind.BLOB_HOLDER, KEY, b"", 60)
    with pytest.raises(IntegrityError):
        await founder.publish(RecordKind.NODE, KEY, b"not my id", 60)
    with pytest.raises(IntegrityError):
        await founder.publish(RecordKind.NODE, DhtId(founder.node.id), b"too long", 7200)
    assert len(founder.publications) == 0
    with pytest.raises(UsageError):
        await swarm.add(credential=b"c" * 701)


async def test_a_port_in_use_is_a_config_error_with_a_hint() -> None:
    first = UdpCarrier("127.0.0.1")
    await first.open(lambda _data, _place: None)
    second = UdpCarrier("127.0.0.1", port=first.place.port)
    with pytest.raises(ConfigError) as caught:
        await second.open(lambda _data, _place: None)
    assert caught.value.hint
    first.close()


async def test_it_works_over_ipv6_loopback() -> None:
    probe = UdpCarrier("::1")
    try:
        await probe.open(lambda _data, _place: None)
    except ConfigError:
        pytest.skip("this machine has no IPv6 loopback")
    probe.close()
    swarm = Swarm(17)
    try:
        for _ in range(22):
            await swarm.add(host="::1")
        await swarm.nodes[1].publish(RecordKind.BLOB_HOLDER, KEY, b"v", 60)
        assert await swarm.nodes[20].get(KEY, RecordKind.BLOB_HOLDER)
        assert swarm.nodes[3].node.place.host == "::1"
    finally:
        await swarm.close()


async def test_closing_ends_every_task_and_timer_and_waiting_calls_return() -> None:
    before = len(asyncio.all_tasks())
    swarm = Swarm(18, network=MemoryNetwork(random.Random(1)), settings=DhtSettings())
    await swarm.grow(5)
    node = GridServer(swarm.context(), swarm.carrier())
    await node.start()
    pending = asyncio.ensure_future(node.protocol.ping((NodeKey(b"z" * 32), Place("10.0.0.99", 4000))))
    await asyncio.sleep(0)
    async with asyncio.timeout(2):
        await node.close()
        assert not (await pending)[0]
        await swarm.close()
        await node.close()
    assert len(asyncio.all_tasks()) == before
    assert node.protocol.outstanding_len() == 0


async def test_stats_are_plain_data(swarm: Swarm) -> None:
    await swarm.grow(3)
    stats = json.loads(json.dumps(swarm.nodes[1].stats()))
    assert stats["contacts"] == 2
    assert stats["lookups"] >= 1
