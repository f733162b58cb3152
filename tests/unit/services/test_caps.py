"""The owner's caps on what goes to other nodes and comes from them, on real transfers."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace

import pytest

from p2pgrid.core.admission import Policy
from p2pgrid.model.blob import blob_id_of
from p2pgrid.net.throttle import Throttle
from tests.unit.services.grid_in_process import DAY_MS, Grid, wall_ms

MIB = 1 << 20
CONTENT = os.urandom(5 * MIB)
RATE = 8 * MIB
SHORTEST_S = (len(CONTENT) - MIB) / RATE
"""The first burst is free."""


@pytest.mark.parametrize(("up", "down"), [(RATE, 0), (0, RATE), (0, 0)])
async def test_a_fetch_keeps_the_cap_of_either_side(grid: Grid, up: int, down: int) -> None:
    await grid.grow(2)
    giver, taker = grid[0], grid[1]
    clock = asyncio.get_running_loop().time
    giver.context.throttle = Throttle(up, 0, clock)
    taker.context.throttle = Throttle(0, down, clock)
    giver.blobs.put_bytes(CONTENT, owner=giver.context.me, expires_ms=wall_ms() + DAY_MS)
    start = clock()
    async with asyncio.timeout(30):
        await taker.storing.fetch(blob_id_of(CONTENT), [giver.context.me])
    took_s = clock() - start
    assert taker.blobs.read_all(blob_id_of(CONTENT), 64 * MIB) == CONTENT
    if up or down:
        assert took_s >= SHORTEST_S


@pytest.mark.parametrize(("up", "down"), [(RATE, 0), (0, RATE)])
async def test_a_copy_keeps_the_cap_of_either_side(grid: Grid, up: int, down: int) -> None:
    await grid.grow(2)
    giver, taker = grid[0], grid[1]
    clock = asyncio.get_running_loop().time
    giver.context.throttle = Throttle(up, 0, clock)
    taker.context.throttle = Throttle(0, down, clock)
    giver.blobs.put_bytes(CONTENT, owner=giver.context.me, expires_ms=wall_ms() + DAY_MS)
    start = clock()
    async with asyncio.timeout(30):
        holders = await giver.storing.replicate(blob_id_of(CONTENT), 2, [taker.context.me], wall_ms() + DAY_MS)
    assert taker.context.me in holders
    assert clock() - start >= SHORTEST_S


async def test_the_policy_of_a_node_makes_its_caps(grid: Grid) -> None:
    node = await grid.add()
    assert (node.context.throttle.upload, node.context.throttle.download) == (None, None)
    capped = replace(node.context, policy=Policy(upload_bytes_per_s=MIB))
    assert capped.throttle.upload is not None
    assert capped.throttle.download is None
