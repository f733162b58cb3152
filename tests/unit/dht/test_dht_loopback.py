"""Two hundred nodes in one process over loopback UDP. Figures are printed; the bounds asserted are five times looser."""

from __future__ import annotations

import time
from collections.abc import Awaitable

import pytest

from p2pgrid.dht.records import RecordKind
from p2pgrid.model.ids import DhtId
from tests.unit.dht.dht_swarm import Swarm

NODES = 200
RECORDS = 30
SLACK = 5


async def timed_ms(work: Awaitable[object]) -> tuple[float, object]:
    began = time.perf_counter()
    value = await work
    return (time.perf_counter() - began) * 1000, value


def percentile(values: list[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


async def read_all(swarm: Swarm, keys: list[DhtId]) -> tuple[int, list[float]]:
    found, took = 0, []
    for key in keys:
        elapsed_ms, records = await timed_ms(swarm.rng.choice(swarm.nodes).get(key, RecordKind.BLOB_HOLDER))
        took.append(elapsed_ms)
        found += bool(records)
    return found, took


@pytest.mark.timeout(60)
async def test_two_hundred_nodes_join_find_everything_and_survive_the_death_of_sixty() -> None:
    swarm = Swarm(1)
    try:
        joins = [(await timed_ms(swarm.add()))[0] for _ in range(NODES)]
        assert all(node.is_server for node in swarm.nodes)
        keys = [DhtId(swarm.rng.randbytes(20)) for _ in range(RECORDS)]
        for key in keys:
            assert await swarm.rng.choice(swarm.nodes).publish(RecordKind.BLOB_HOLDER, key, b"here", 3600) >= 5
        found, gets = await read_all(swarm, keys)
        for victim in swarm.rng.sample(swarm.nodes, NODES * 3 // 10):
            await swarm.kill(victim)
        found_after, gets_after = await read_all(swarm, keys)
    finally:
        await swarm.close()
    print(f"\njoin p50 {percentile(joins, 50):.0f} ms; get p50 {percentile(gets, 50):.0f} p95 {percentile(gets, 95):.0f} ms;", end=" ")
    print(f"30 % killed: get p50 {percentile(gets_after, 50):.0f} p95 {percentile(gets_after, 95):.0f} ms, {found_after}/{RECORDS} found")
    assert found == found_after == RECORDS
    assert percentile(joins, 50) <= SLACK * 100
    assert percentile(gets, 50) <= SLACK * 50
    assert percentile(gets_after, 95) <= SLACK * 500


async def test_lookups_return_exactly_the_nearest_servers() -> None:
    swarm = Swarm(2)
    try:
        await swarm.grow(60)
        for _ in range(20):
            key = DhtId(swarm.rng.randbytes(20))
            asker = swarm.rng.choice(swarm.nodes)
            others = [node.node for node in swarm.nodes if node is not asker]
            expected = sorted(others, key=lambda node: node.long_id ^ int.from_bytes(key, "big"))[:20]
            assert [node.id for node in await asker.lookup_nodes(key)] == [node.id for node in expected]
    finally:
        await swarm.close()
