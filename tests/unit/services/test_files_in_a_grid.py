"""The owner's files at real nodes in one process: what is sent again, where copies go, what is kept and what heals."""

from __future__ import annotations

import asyncio
import io
import os
from pathlib import Path

import msgspec
import pytest

from p2pgrid.client.channel import Channel
from p2pgrid.client.folders import get_folder, put_folder
from p2pgrid.core.availability import away_chance
from p2pgrid.errors import BadDataError, P2PGridError, RefusedError, UnreachableError
from p2pgrid.model.blob import blob_id_of
from p2pgrid.model.folder import decode_manifest
from p2pgrid.model.ids import BlobId
from p2pgrid.node import Node
from p2pgrid.services.filetable import ROWS_MAX, FileRow
from p2pgrid.services.storing import LEASE_MAX_MS
from tests.unit.services.grid_in_process import DAY_MS, Grid, until, wall_ms

MIB = 1 << 20
CONTENT = os.urandom((5 << 20) + 12345)


class Counted:
    """What a transfer told of itself."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []

    def __call__(self, what: str, more_bytes: int, size_bytes: int) -> None:
        self.told.append((what, more_bytes))

    def of(self, what: str) -> list[int]:
        return [count for told, count in self.told if told == what]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "content.bin"
    found.write_bytes(CONTENT)
    return found


async def put(channel: Channel, path: Path, *, replicas: int = 1, days: int = 1, on_bytes: Counted | None = None) -> BlobId:
    reply = await channel.put(path, replicas=replicas, expires_ms=wall_ms() + days * DAY_MS, listed=True, on_bytes=on_bytes or Counted())
    return BlobId(reply.blob)


def begin(node: Node, chunks: list[int]) -> None:
    """As if a put had been interrupted when these chunks had arrived."""
    from p2pgrid.model.blob import address_of

    blob, root = address_of(CONTENT)
    writer = node.blobs.writer(blob, len(CONTENT), root, owner=node.context.me, expires_ms=wall_ms() + DAY_MS)
    writer.write_chunks([(index, CONTENT[index * MIB : (index + 1) * MIB]) for index in chunks])
    writer.close()


async def test_only_the_chunks_that_are_missing_are_sent(grid: Grid, path: Path) -> None:
    await grid.add()
    begin(grid[0], [0, 2, 3])
    counted = Counted()
    channel = await grid.channel(grid[0])
    reply = await channel.put_bytes(CONTENT, replicas=1, expires_ms=wall_ms() + DAY_MS, on_bytes=counted)
    blob = BlobId(reply.blob)
    already, *sent = counted.of("sending")
    assert (already, sum(sent)) == (3 * MIB, len(CONTENT) - 3 * MIB)
    assert grid[0].blobs.read_all(blob, 64 * MIB) == CONTENT
    again = Counted()
    assert await put(channel, path, on_bytes=again) == blob
    assert again.of("sending") == [len(CONTENT)]


async def test_a_put_goes_on_after_the_node_was_started_again(grid: Grid) -> None:
    await grid.add()
    begin(grid[0], [1])
    await grid.close(grid[0])
    node = await grid.add(home="n0")
    counted = Counted()
    channel = await grid.channel(node)
    await channel.put_bytes(CONTENT, replicas=1, expires_ms=wall_ms() + DAY_MS, on_bytes=counted)
    assert counted.of("sending")[0] == MIB


async def test_a_file_that_changes_while_it_is_put_is_refused_and_not_kept(grid: Grid, path: Path) -> None:
    await grid.add()
    channel = await grid.channel(grid[0])

    def change(what: str, more_bytes: int, size_bytes: int) -> None:
        if what == "reading":
            with path.open("r+b") as file:
                file.seek(2 * MIB + 5)
                file.write(b"changed")

    with pytest.raises(BadDataError, match="changed while it was read"):
        await channel.put(path, replicas=1, expires_ms=wall_ms() + DAY_MS, on_bytes=change)
    assert not grid[0].blobs.has(blob_id_of(CONTENT))


async def test_copies_go_to_the_same_nodes_each_time_and_different_blobs_to_different_ones(grid: Grid, path: Path) -> None:
    await grid.grow(4)
    orders = {bytes([place]): grid[0].files.order(bytes([place])) for place in range(30)}
    assert all(grid[0].files.order(place) == order for place, order in orders.items())
    assert len({order[0] for order in orders.values()}) == 3
    channel = await grid.channel(grid[0])
    blob = await put(channel, path, replicas=3)
    assert await put(channel, path, replicas=3) == blob
    holders = [node.context.me for node in grid.nodes[1:] if node.blobs.has(blob)]
    assert sorted(holders) == sorted(grid[0].files.order(blob)[:2])


async def test_a_node_that_comes_leaves_the_order_of_the_others_as_it_was(grid: Grid) -> None:
    await grid.grow(3)
    before = grid[0].files.order(b"place")
    await grid.add()
    after = grid[0].files.order(b"place")
    assert [node for node in after if node in before] == before


async def test_auto_never_makes_fewer_than_three_copies_and_meets_the_target_with_steady_nodes(
    grid: Grid, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await grid.grow(4)
    files = grid[0].files
    monkeypatch.setattr(files, "share", lambda node: 0.99)
    assert files.plan(files.order(b"x")).copies == 3
    monkeypatch.setattr(files, "share", lambda node: 0.9)
    plan = files.plan(files.order(b"x"))
    assert plan.copies == 4
    assert away_chance(plan.shares) <= plan.target * 1.01
    channel = await grid.channel(grid[0])
    reply = await channel.put(path, replicas=0, expires_ms=wall_ms() + DAY_MS)
    assert (reply.copies, reply.wanted) == (4, 4)


async def test_damage_that_shows_while_it_is_read_is_healed_from_another_holder(grid: Grid, path: Path) -> None:
    await grid.grow(2)
    channel = await grid.channel(grid[0])
    blob = await put(channel, path, replicas=2)
    content = grid[0].blobs.path(blob)
    with content.open("r+b") as file:
        file.seek(3 * MIB + 9)
        file.write(b"damage")
    target = io.BytesIO()
    assert await channel.get(blob, target) == len(CONTENT)
    assert target.getvalue() == CONTENT
    assert content.read_bytes() == CONTENT


async def test_damage_at_the_only_holder_ends_with_its_reason(grid: Grid, path: Path) -> None:
    await grid.add()
    channel = await grid.channel(grid[0])
    blob = await put(channel, path)
    with grid[0].blobs.path(blob).open("r+b") as file:
        file.seek(3 * MIB + 9)
        file.write(b"damage")
    target = io.BytesIO()
    with pytest.raises(P2PGridError) as caught:
        await channel.get(blob, target)
    assert caught.value.reason == "corrupt"
    assert target.getvalue() == CONTENT[: len(target.getvalue())]


async def test_pinned_blobs_are_leased_for_as_long_as_can_be_and_given_up_when_asked(grid: Grid, path: Path) -> None:
    await grid.grow(2)
    blob = await put(await grid.channel(grid[0]), path)
    channel = await grid.channel(grid[1])
    await channel.pin(blob, keep=True)
    (lease,) = grid[1].blobs.leases(blob)
    assert lease.owner == grid[1].context.me
    assert lease.expires_ms > wall_ms() + LEASE_MAX_MS - DAY_MS
    (line,) = await channel.blobs()
    assert (line.pinned, line.kind, line.size_bytes, line.state) == (True, "file", len(CONTENT), "held")
    await channel.pin(blob, keep=False)
    assert grid[1].blobs.leases(blob) == []
    assert await channel.blobs() == []
    with pytest.raises(RefusedError):
        await channel.pin(blob, keep=False)


async def test_pins_are_prolonged_when_the_node_starts(grid: Grid, path: Path) -> None:
    await grid.add()
    blob = await put(await grid.channel(grid[0]), path)
    await (await grid.channel(grid[0])).pin(blob, keep=True)
    await grid.close(grid[0])
    node = await grid.add(home="n0")
    node.blobs.release(blob, node.context.me)
    await grid.close(node)
    again = await grid.add(home="n0")
    await until(lambda: again.blobs.leases(blob), "the lease is taken again")


async def test_a_folder_is_kept_and_given_up_with_its_files_but_for_those_that_others_need(grid: Grid, tmp_path: Path) -> None:
    await grid.grow(1)
    channel = await grid.channel(grid[0])
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "one").write_bytes(b"one" * 1000)
    (tree / "two").write_bytes(b"two" * 1000)
    reply = await put_folder(channel, tree, replicas=1, expires_ms=wall_ms() + DAY_MS)
    one = await put(channel, tree / "sub" / "one")
    (folder,) = [line for line in await channel.blobs() if line.kind == "folder"]
    assert (folder.name, folder.size_bytes, folder.blob) == ("tree", 6000, reply.blob)
    await channel.pin(BlobId(reply.blob), keep=False)
    assert grid[0].blobs.leases(BlobId(reply.blob)) == []
    assert grid[0].blobs.leases(blob_id_of(b"two" * 1000)) == []
    assert len(grid[0].blobs.leases(one)) == 1


async def test_a_folder_is_got_from_holders_of_its_list_without_a_record_for_each_file(grid: Grid, tmp_path: Path) -> None:
    await grid.grow(3)
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(20):
        (tree / str(number)).write_bytes(os.urandom(100))
    channel = await grid.channel(grid[0])
    reply = await put_folder(channel, tree, replicas=2, expires_ms=wall_ms() + DAY_MS)
    assert (reply.copies, reply.size_bytes) == (2, 2000)
    holder = next(node for node in grid.nodes[1:] if node.blobs.has(BlobId(reply.blob)))
    assert all(holder.blobs.has(blob_id_of((tree / str(number)).read_bytes())) for number in range(20))
    reader = next(node for node in grid.nodes[1:] if node is not holder)
    await grid.close(grid[0])
    reading = await grid.channel(reader)
    target = io.BytesIO()
    await reading.get(BlobId(reply.blob), target)
    await get_folder(reading, BlobId(reply.blob), decode_manifest(target.getvalue()), tmp_path / "copy")
    assert all((tmp_path / "copy" / str(number)).read_bytes() == (tree / str(number)).read_bytes() for number in range(20))


async def test_names_outlive_the_node_and_their_loss_harms_nothing(grid: Grid, path: Path) -> None:
    await grid.add()
    blob = await put(await grid.channel(grid[0]), path)
    await grid.close(grid[0])
    node = await grid.add(home="n0")
    (line,) = await (await grid.channel(node)).blobs()
    assert (line.name, line.blob) == ("content.bin", blob)
    await grid.close(node)
    (grid[0].home.folder / "files.json").write_bytes(b"\0damaged")
    again = await grid.add(home="n0")
    channel = await grid.channel(again)
    assert await channel.blobs() == []
    target = io.BytesIO()
    assert await channel.get(blob, target) == len(CONTENT)
    everything = await channel.blobs(all=True)
    assert [(line.blob, line.state, line.owners) for line in everything] == [(blob, "held", (again.context.me,))]


async def test_the_table_of_names_is_bounded_and_pinned_ones_stay(grid: Grid) -> None:
    node = await grid.add()
    table = node.files.table
    far_ms = wall_ms() + DAY_MS
    rows = [FileRow(blob=number.to_bytes(32, "big"), expires_ms=far_ms, pinned=number == 0) for number in range(ROWS_MAX)]
    table._rows = {row.blob: row for row in rows}
    await table.note(FileRow(blob=b"x" * 32, expires_ms=far_ms, name="n" * 1000))
    known = await table.rows()
    assert len(known) == ROWS_MAX
    assert rows[0].blob in known
    assert rows[1].blob not in known
    assert len(known[b"x" * 32].name) == 200
    await table.note(FileRow(blob=b"y" * 32, expires_ms=1))
    assert b"y" * 32 not in await table.rows()


async def test_why_tells_holders_and_shares_also_of_what_lies_elsewhere(grid: Grid, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await grid.grow(4)
    blob = await put(await grid.channel(grid[0]), path, replicas=2)
    stranger = next(node for node in grid.nodes if not node.blobs.has(blob))
    monkeypatch.setattr(stranger.files, "share", lambda node: 0.9)
    why = await (await grid.channel(stranger)).why(blob)
    assert sorted(holder.node for holder in why.holders) == sorted(node.context.me for node in grid.nodes if node.blobs.has(blob))
    assert why.away_chance == pytest.approx(0.01)
    assert (why.state, why.leases) == ("", ())
    unknown = await (await grid.channel(stranger)).why(BlobId(b"u" * 32))
    assert (unknown.state, unknown.holders) == ("", ())


async def test_a_command_that_goes_away_while_the_node_fetches_ends_that(grid: Grid) -> None:
    await grid.grow(2)
    blob = BlobId(grid[1].blobs.put_bytes(CONTENT, owner=grid[1].context.me, expires_ms=wall_ms() + DAY_MS))
    held = asyncio.Event()
    begun = asyncio.Event()

    async def never(*_: object, **__: object) -> None:
        begun.set()
        try:
            await held.wait()
        except asyncio.CancelledError:
            held.set()
            raise

    grid[0].storing.fetch = never  # type: ignore[method-assign]
    channel = await grid.channel(grid[0])
    getting = asyncio.ensure_future(channel.get(blob, io.BytesIO()))
    await begun.wait()
    getting.cancel()
    await asyncio.gather(getting, return_exceptions=True)
    await until(held.is_set, "the fetching was ended")


async def test_what_nobody_has_and_what_is_no_address_is_said(grid: Grid) -> None:
    await grid.add()
    channel = await grid.channel(grid[0])
    for keep in (True, False):
        with pytest.raises((UnreachableError, RefusedError)):
            await channel.pin(BlobId(b"u" * 32), keep=keep)
    with pytest.raises(UnreachableError):
        await channel.get(BlobId(b"u" * 32), io.BytesIO())
    with pytest.raises(P2PGridError):
        await channel.get(BlobId(b"short"), io.BytesIO())
    with pytest.raises(BadDataError):
        await channel.put_bytes(b"x", replicas=1, expires_ms=wall_ms() - 1)


def test_rows_of_other_versions_are_read() -> None:
    row = msgspec.json.decode(b'[{"blob": "AAAA", "later": 1}]', type=list[FileRow])[0]
    assert (row.blob, row.name) == (b"\0\0\0", "")
