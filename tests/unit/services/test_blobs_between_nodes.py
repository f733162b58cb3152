"""Blobs between real nodes: copies, and fetching from holders of which some lie, stall or die."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Iterable

import pytest

from p2pgrid.errors import RefusedError, RemoteError, UnreachableError
from p2pgrid.model.blob import blob_id_of
from p2pgrid.model.ids import BlobId
from p2pgrid.model.reasons import Reason
from p2pgrid.net.api import Stream
from p2pgrid.net.rpc import Session
from p2pgrid.node import Node
from p2pgrid.services import fetching
from p2pgrid.wire.messages import BlobInfo, BlobRead, BlobRequest
from tests.unit.services.grid_in_process import DAY_MS, Grid, until, wall_ms

CONTENT = os.urandom((5 << 20) + 12345)


def hold(nodes: Iterable[Node], data: bytes = CONTENT) -> BlobId:
    for node in nodes:
        node.blobs.put_bytes(data, owner=node.context.me, expires_ms=wall_ms() + DAY_MS)
    return blob_id_of(data)


async def fetched(node: Node, blob: BlobId, sources: Iterable[Node] = ()) -> bytes:
    async with asyncio.timeout(30):
        await node.storing.fetch(blob, [source.context.me for source in sources])
    return node.blobs.read_all(blob, 64 << 20)


async def test_what_is_put_has_the_copies_that_were_asked_for(grid: Grid) -> None:
    await grid.grow(4)
    channel = await grid.channel(grid[1])
    reply = await channel.put_bytes(CONTENT, replicas=3, expires_ms=wall_ms() + DAY_MS, announce=True)
    assert (reply.copies, reply.size_bytes) == (3, len(CONTENT))
    assert sum(node.blobs.has(BlobId(reply.blob)) for node in grid.nodes) == 3
    target = io.BytesIO()
    reader = next(node for node in grid.nodes if not node.blobs.has(BlobId(reply.blob)))
    assert await (await grid.channel(reader)).get(BlobId(reply.blob), target) == len(CONTENT)
    assert target.getvalue() == CONTENT


async def test_a_full_node_says_so_and_others_take_the_copy(grid: Grid) -> None:
    await grid.grow(1)
    full = await grid.add(storage_bytes=1000)
    roomy = await grid.add()
    told: list[str] = []
    grid[0].context.events.append(lambda reason, text, about: told.append(reason))
    blob = hold([grid[0]])
    holders = await grid[0].storing.replicate(blob, 3, [full.context.me], wall_ms() + DAY_MS)
    assert holders == (roomy.context.me,)
    assert Reason.STORE_FULL in told
    with pytest.raises(RefusedError) as caught:
        await full.storing.keep_bytes(CONTENT, wall_ms() + DAY_MS, 1)
    assert caught.value.reason == Reason.STORE_FULL


def corrupt(node: Node, blob: BlobId) -> None:
    """Damage on the disk that the node has not noticed."""
    path = node.blobs.path(blob)
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"damage")


async def test_a_corrupt_holder_costs_its_part_only(grid: Grid) -> None:
    await grid.grow(3)
    blob = hold(grid.nodes[1:])
    corrupt(grid[1], blob)
    assert await fetched(grid[0], blob, [grid[1], grid[2]]) == CONTENT


async def test_one_corrupt_holder_alone_is_an_error_and_leaves_no_writer(grid: Grid) -> None:
    await grid.grow(2)
    blob = hold([grid[1]])
    corrupt(grid[1], blob)
    with pytest.raises((UnreachableError, RemoteError)):
        await fetched(grid[0], blob, [grid[1]])
    await until(lambda: not grid[0].blobs._uploads._writers, "no writer is left")
    assert not grid[0].blobs.has(blob)


async def test_a_holder_that_lies_about_the_root_is_passed_over(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    await grid.grow(3)
    blob = hold([grid[2]])

    async def lie(session: Session, request: BlobRequest) -> BlobInfo:
        return BlobInfo(7 << 20, b"\x93junk")

    monkeypatch.setitem(grid[1].methods.calls, "blob.info", grid[1].methods.calls["blob.info"]._replace(handler=lie))
    assert await fetched(grid[0], blob, [grid[1], grid[2]]) == CONTENT
    small = hold([grid[2]], b"small")
    assert await fetched(grid[0], small, [grid[1], grid[2]]) == b"small"


async def test_holders_that_die_or_stall_in_the_middle_are_replaced(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    await grid.grow(4)
    monkeypatch.setattr(fetching, "CHUNKS_PER_READ", 1)
    monkeypatch.setattr(fetching, "STALL_S", 1.0)
    blob = hold(grid.nodes[1:])
    served: list[int] = []

    async def die(session: Session, request: BlobRead, stream: Stream) -> None:
        served.append(1)
        await stream.write(b"\0\0\0")
        grid[1].pool.live(session.peer).close()  # type: ignore[union-attr]

    async def stall(session: Session, request: BlobRead, stream: Stream) -> None:
        served.append(2)
        await asyncio.Event().wait()

    for node, handler in ((grid[1], die), (grid[2], stall)):
        monkeypatch.setitem(node.methods.streams, "blob.read", node.methods.streams["blob.read"]._replace(handler=handler))
    assert await fetched(grid[0], blob, grid.nodes[1:]) == CONTENT
    assert {1, 2} <= set(served)


async def test_a_good_holder_that_nobody_named_is_found_when_the_named_ones_fail(grid: Grid) -> None:
    await grid.grow(3)
    blob = hold(grid.nodes[1:])
    corrupt(grid[1], blob)
    assert await fetched(grid[0], blob, [grid[1]]) == CONTENT


async def test_many_who_want_the_same_blob_fetch_it_once(grid: Grid) -> None:
    await grid.grow(2)
    blob = hold([grid[1]])
    asked: list[int] = []
    entry = grid[1].methods.calls["blob.info"]

    def count(session: Session, request: BlobRequest) -> object:
        asked.append(1)
        return entry.handler(session, request)

    grid[1].methods.calls["blob.info"] = entry._replace(handler=count)
    assert set(await asyncio.gather(*[fetched(grid[0], blob, [grid[1]]) for _ in range(10)])) == {CONTENT}
    assert len(asked) == 1


async def test_a_blob_that_nobody_has_is_unreachable(grid: Grid) -> None:
    await grid.grow(2)
    with pytest.raises(UnreachableError) as caught:
        await grid[0].storing.fetch(BlobId(os.urandom(32)), [grid[1].context.me, b"k" * 32])
    assert caught.value.reason == Reason.NO_BLOB
    assert not grid[0].storing._fetching._fetching
