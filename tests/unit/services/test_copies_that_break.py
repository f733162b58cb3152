"""Transfers that break: connections that are cut, nodes that start again, holes, rot, and holders that stall."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import pytest

from p2pgrid.errors import P2PGridError
from p2pgrid.model.blob import address_of, blob_id_of
from p2pgrid.model.ids import BlobId, NodeKey
from p2pgrid.model.reasons import Reason
from p2pgrid.net.api import Stream
from p2pgrid.net.rpc import Session
from p2pgrid.node import Node
from p2pgrid.services import chunks, copying, fetching
from p2pgrid.services.chunks import Read, Run
from p2pgrid.wire.messages import BlobInfo, BlobRead, BlobRequest
from tests.unit.services.grid_in_process import DAY_MS, Grid, until, wall_ms

MIB = 1 << 20
CHUNKS = 21
CONTENT = os.urandom((CHUNKS - 1) * MIB + 777)
BLOB, ROOT = address_of(CONTENT)


def hold(node: Node) -> None:
    node.blobs.put_bytes(CONTENT, owner=node.context.me, expires_ms=wall_ms() + DAY_MS)


async def copy(source: Node, target: Node) -> str:
    """The reason why there is no copy, or nothing."""
    async with asyncio.timeout(30):
        return await source.storing.copy_to(BLOB, target.context.me, wall_ms() + DAY_MS, 2)


def whole(node: Node) -> bool:
    return node.blobs.read_all(BLOB, 64 * MIB) == CONTENT


class Sendings:
    """What was asked of senders. ``at`` is called before each group is read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: list[list[Run]] = []
        self.groups: list[int] = []
        self.at = lambda first: None
        plain = chunks.send_chunks

        async def spy(stream: Stream, runs: Sequence[Run], read: Read, *rest: Any) -> None:
            self.runs.append(list(runs))

            async def watched(group: Sequence[int]) -> Sequence[bytes]:
                self.groups.append(group[0])
                self.at(group[0])
                return await read(group)

            await plain(stream, runs, watched, *rest)

        monkeypatch.setattr(copying, "send_chunks", spy)


async def test_a_copy_whose_connection_is_cut_goes_on_with_the_missing_chunks(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    await grid.grow(2)
    hold(grid[0])
    sendings = Sendings(monkeypatch)

    def cut(first: int) -> None:
        if first == 12 and len(sendings.runs) == 1:
            grid[0].pool.live(grid[1].context.me).close()  # type: ignore[union-attr]

    sendings.at = cut
    assert not await copy(grid[0], grid[1])
    assert sendings.runs[0] == [(0, CHUNKS)]
    (((first, count),),) = sendings.runs[1:]
    assert 4 <= first <= 12
    assert first + count == CHUNKS
    assert whole(grid[1])


async def test_only_the_holes_of_what_a_receiver_has_are_sent(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    await grid.grow(2)
    hold(grid[0])
    sendings = Sendings(monkeypatch)
    writer = grid[1].blobs.writer(BLOB, len(CONTENT), ROOT, owner=grid[1].context.me, expires_ms=wall_ms() + DAY_MS)
    there = [0, 2, 3, 4, 5, 6, 19]
    writer.write_chunks([(index, CONTENT[index * MIB : (index + 1) * MIB]) for index in there])
    writer.close()
    assert not await copy(grid[0], grid[1])
    assert sendings.runs == [[(1, 1), (7, 12), (20, 1)]]
    assert whole(grid[1])


async def test_a_receiver_that_starts_again_keeps_what_it_had_verified(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    await grid.add()
    receiver = await grid.add(home="receiver")
    hold(grid[0])
    sendings, closing = Sendings(monkeypatch), list[asyncio.Future[None]]()

    def leave(first: int) -> None:
        if first == 16 and not closing:
            closing.append(asyncio.ensure_future(grid.close(receiver)))

    sendings.at = leave
    assert await copy(grid[0], receiver)
    await asyncio.gather(*closing)
    again = await grid.add(home="receiver")
    lease = next(iter(again.blobs.leases(BLOB)))
    assert lease.expires_ms <= wall_ms() + 3_600_000
    assert not await copy(grid[0], again)
    (((first, count),),) = sendings.runs[1:]
    assert first >= 8
    assert first + count == CHUNKS
    assert whole(again)
    assert next(iter(again.blobs.leases(BLOB))).expires_ms > wall_ms() + 3_600_000


async def test_a_sender_that_starts_again_goes_on(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    receiver = await grid.add()
    sender = await grid.add(home="sender")
    hold(sender)
    sendings, closing = Sendings(monkeypatch), list[asyncio.Future[None]]()

    def leave(first: int) -> None:
        if first == 16 and not closing:
            closing.append(asyncio.ensure_future(grid.close(sender)))

    sendings.at = leave
    copying_on = asyncio.ensure_future(copy(sender, receiver))
    await until(lambda: closing, "the sender goes")
    await asyncio.gather(*closing, copying_on, return_exceptions=True)
    await until(lambda: not receiver.blobs._uploads.is_open(BLOB), "the receiver gave up waiting")
    again = await grid.add(home="sender")
    del sendings.runs[:]
    assert not await copy(again, receiver)
    (((first, count),),) = sendings.runs
    assert first >= 8
    assert first + count == CHUNKS
    assert whole(receiver)


async def test_rot_that_a_receiver_finds_is_no_longer_served(grid: Grid) -> None:
    await grid.grow(3)
    hold(grid[0])
    with grid[0].blobs.path(BLOB).open("r+b") as file:
        file.seek(9 * MIB + 100)
        file.write(b"damage")
    async with asyncio.timeout(30):
        assert await grid[0].storing.replicate(BLOB, 3, (), wall_ms() + DAY_MS) == ()
    assert not grid[0].blobs.has(BLOB)
    assert not any(node.blobs.has(BLOB) for node in grid.nodes)


async def test_a_receiver_that_accuses_a_good_sender_harms_only_itself(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    await grid.grow(3)
    hold(grid[0])
    liar, honest = grid[1], grid[2]
    monkeypatch.setattr(liar.storing._taking, "_take_chunks", _accuse)
    async with asyncio.timeout(30):
        assert await grid[0].storing.replicate(BLOB, 3, [liar.context.me], wall_ms() + DAY_MS) == (honest.context.me,)
    assert grid[0].blobs.has(BLOB)


async def _accuse(writer: object, stream: Stream) -> None:
    from p2pgrid.errors import IntegrityError
    from p2pgrid.services.taking import _write_framed
    from p2pgrid.wire.messages import BlobWant

    _write_framed(stream, BlobWant("", "", ((0, CHUNKS),)))
    raise IntegrityError("chunk 0 is wrong", reason=Reason.CORRUPT)


async def test_copies_that_are_made_at_one_time_read_each_chunk_about_once(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    await grid.grow(4)
    hold(grid[0])
    read: list[int] = []
    plain = grid[0].blobs.read_chunks

    def count(blob: BlobId, indexes: Sequence[int], *, verify: bool = True) -> list[bytes]:
        read.extend(indexes)
        return plain(blob, indexes, verify=verify)

    monkeypatch.setattr(grid[0].blobs, "read_chunks", count)
    async with asyncio.timeout(30):
        assert len(await grid[0].storing.replicate(BLOB, 4, (), wall_ms() + DAY_MS)) == 3
    assert set(read) == set(range(CHUNKS))
    assert len(read) < 2 * CHUNKS


async def test_a_fetch_that_broke_goes_on_with_the_missing_chunks(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    await grid.grow(2)
    hold(grid[1])
    monkeypatch.setattr(fetching, "CHUNKS_PER_READ", 4)
    asked: list[int] = []
    entry = grid[1].methods.streams["blob.read"]

    async def twice(session: Session, request: BlobRead, stream: Stream) -> None:
        asked.append(request.first)
        if len(asked) > 2:
            raise P2PGridError("not now", reason=Reason.BUSY)
        await entry.handler(session, request, stream)

    monkeypatch.setitem(grid[1].methods.streams, "blob.read", entry._replace(handler=twice))
    with pytest.raises(P2PGridError):
        await grid[0].storing.fetch(BLOB, [grid[1].context.me])
    assert grid[0].blobs.progress(BLOB)[1] == len(CONTENT)
    monkeypatch.setitem(grid[1].methods.streams, "blob.read", entry)
    missing: list[list[int]] = []
    plain = grid[0].blobs.writer

    def spy(*words: object, **named: object) -> object:
        writer = plain(*words, **named)  # type: ignore[arg-type]
        missing.append(writer.missing())
        return writer

    monkeypatch.setattr(grid[0].blobs, "writer", spy)
    async with asyncio.timeout(30):
        await grid[0].storing.fetch(BLOB, [grid[1].context.me])
    assert missing == [list(range(8, CHUNKS))]
    assert whole(grid[0])


async def test_at_the_end_of_a_fetch_others_take_over_what_a_stalling_holder_was_asked_for(
    grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    await grid.grow(3)
    hold(grid[1])
    hold(grid[2])
    monkeypatch.setattr(fetching, "PATIENCE_S", 0.1)

    async def stall(session: Session, request: BlobRead, stream: Stream) -> None:
        await asyncio.Event().wait()

    monkeypatch.setitem(grid[1].methods.streams, "blob.read", grid[1].methods.streams["blob.read"]._replace(handler=stall))
    async with asyncio.timeout(30):
        await grid[0].storing.fetch(BLOB, [grid[1].context.me, grid[2].context.me])
    assert whole(grid[0])


async def test_a_copy_to_somebody_who_does_not_answer_is_told(grid: Grid) -> None:
    await grid.add()
    told: list[str] = []
    grid[0].context.events.append(lambda reason, text, about: told.append(reason))
    blob = grid[0].blobs.put_bytes(b"small", owner=b"o", expires_ms=wall_ms() + DAY_MS)
    assert blob == blob_id_of(b"small")
    assert await grid[0].storing.copy_to(blob, NodeKey(b"n" * 32), wall_ms() + DAY_MS, 2)
    assert told


async def test_a_peer_that_reads_nothing_has_few_chunks_read_for_it(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    await grid.grow(2)
    hold(grid[0])
    read: list[int] = []
    plain = grid[0].blobs.read_chunks

    def count(blob: BlobId, indexes: Sequence[int], *, verify: bool = True) -> list[bytes]:
        read.extend(indexes)
        return plain(blob, indexes, verify=verify)

    monkeypatch.setattr(grid[0].blobs, "read_chunks", count)
    session = grid[1].pool.live(grid[0].context.me)
    assert session is not None
    streams = [await session.open_stream("blob.read", BlobRead(BLOB, 0, CHUNKS)) for _ in range(40)]
    await until(lambda: len(read) >= 8 * 4, "the first of them are served")
    for _ in range(50):
        await session.call("blob.info", BlobRequest(BLOB), BlobInfo)
    assert len(read) <= 8 * 12
    for stream in streams:
        stream.reset(Reason.CLOSED)
    await until(lambda: not grid[0].storing._turns._known, "nobody is remembered")
