"""Files that the node and its owner's command can both read are not sent; whatever is wrong with one, the content comes right."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from p2pgrid.client import channel as channels
from p2pgrid.client import transfer
from p2pgrid.client.channel import Channel
from p2pgrid.model.blob import blob_id_of
from p2pgrid.model.ids import BlobId
from p2pgrid.services import chunks, files
from p2pgrid.services.chunks import Read, Run
from p2pgrid.services.nearby import sayable
from tests.unit.services.grid_in_process import DAY_MS, Grid, wall_ms

CONTENT = os.urandom((6 << 20) + 99)
BLOB = blob_id_of(CONTENT)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the chunks that crossed the owner's channel, either way."""
    crossed: list[int] = []

    async def spy(stream: object, runs: Sequence[Run], read: Read, *rest: float) -> None:
        crossed.extend(number for first, count in runs for number in range(first, first + count))
        await chunks.send_chunks(stream, runs, read, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(transfer, "send_chunks", spy)
    monkeypatch.setattr(files, "send_chunks", spy)
    return crossed


async def put(channel: Channel, path: Path) -> bytes:
    return (await channel.put(path, replicas=1, expires_ms=wall_ms() + DAY_MS, announce=False)).blob


async def get(channel: Channel) -> bytes:
    target = io.BytesIO()
    await channel.get(BLOB, target)
    return target.getvalue()


async def test_what_both_can_read_does_not_cross_the_channel(grid: Grid, tmp_path: Path, sent: list[int]) -> None:
    channel = await grid.channel(await grid.add())
    source = tmp_path / "source"
    source.write_bytes(CONTENT)
    assert await put(channel, source) == BLOB
    assert grid[0].blobs.read_all(BLOB, 1 << 30) == CONTENT
    assert await get(channel) == CONTENT
    assert not sent


def other_places(folder: Path) -> list[str]:
    """Paths that do not lead to the content, for all the reasons there are."""
    (folder / "other").write_bytes(os.urandom(len(CONTENT)))
    (folder / "short").write_bytes(CONTENT[:100])
    (folder / "half").write_bytes(CONTENT[: 5 << 20] + os.urandom(len(CONTENT) - (5 << 20)))
    os.mkfifo(folder / "pipe")
    return [*(str(folder / name) for name in ("none", "other", "short", "half", "pipe", "")), "relative", "nul\0", "x" * 9000]


async def test_a_node_that_does_not_find_the_content_asks_for_it(
    grid: Grid, tmp_path: Path, sent: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await grid.add()
    channel = await grid.channel(node)
    source = tmp_path / "source"
    source.write_bytes(CONTENT)
    for place in other_places(tmp_path):
        monkeypatch.setattr(channels, "sayable", lambda path, place=place: place)
        sent.clear()
        assert await put(channel, source) == BLOB
        assert node.blobs.read_all(BLOB, 1 << 30) == CONTENT
        assert sent == list(range(5 if place.endswith("half") else 0, 7)), place
        node.blobs.delete(BlobId(BLOB))


async def test_a_command_that_does_not_find_the_content_asks_for_it(
    grid: Grid, tmp_path: Path, sent: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await grid.add()
    channel = await grid.channel(node)
    node.blobs.put_bytes(CONTENT, owner=node.context.me, expires_ms=wall_ms() + DAY_MS)
    for place in other_places(tmp_path):
        monkeypatch.setattr(files, "sayable", lambda path, place=place: place)
        sent.clear()
        assert await get(channel) == CONTENT
        assert sent == list(range(4 if place.endswith("half") else 0, 7)), place


async def test_a_rotten_copy_is_healed_while_it_is_got(grid: Grid, sent: list[int]) -> None:
    await grid.grow(2)
    for node in grid.nodes:
        node.blobs.put_bytes(CONTENT, owner=node.context.me, expires_ms=wall_ms() + DAY_MS)
    with grid[0].blobs.path(BLOB).open("r+b") as file:
        file.seek((5 << 20) + 3)
        file.write(b"damage")
    assert await get(await grid.channel(grid[0])) == CONTENT
    assert sent == [4, 5, 6]
    assert grid[0].blobs.verify(BLOB)


def test_a_name_that_is_no_text_is_not_said() -> None:
    assert sayable(Path("x")) == str(Path("x").absolute())
    assert sayable(Path(os.fsdecode(b"caf\xe9"))) == ""
