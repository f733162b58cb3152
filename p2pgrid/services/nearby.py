"""Content that lies on this machine already: read from its file, rather than sent over the owner's channel.

The node and its owner's commands run on one machine. Where one can read the other's file, encrypting its content and
sending it through a socket would only cost: most of what a copy costs is that. It is a short cut and no promise: every chunk
is verified as if it had been sent, and what cannot be read or is not right comes over the channel.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from p2pgrid.errors import IntegrityError
from p2pgrid.model.blob import CHUNK_BYTES, BlobRoot, check_chunk, chunk_count, chunk_size
from p2pgrid.model.ids import BlobId
from p2pgrid.offload import Offload
from p2pgrid.services.chunks import Group, groups_of, runs_of
from p2pgrid.services.tasks import wind_up
from p2pgrid.store.disk import read_ranges

if TYPE_CHECKING:
    from p2pgrid.store.uploads import ChunkWriter


async def take_nearby(offload: Offload, writer: ChunkWriter, path: str, size_bytes: int) -> None:
    """Write what a blob of this size still misses from a file, as far as that can be read and is the blob's.

    Raises RefusedError when the store or the disk is full.
    """
    if not path:
        return
    for group in groups_of(runs_of(await offload.run(writer.missing))):
        if not await offload.run(_take, writer, Path(path), size_bytes, group):
            return


def _take(writer: ChunkWriter, path: Path, size_bytes: int, group: Group) -> bool:
    try:
        writer.write_chunks(list(zip(group, _read(path, size_bytes, group), strict=True)))
    except (OSError, ValueError, IntegrityError):
        return False
    return True


async def chunks_nearby(
    offload: Offload, path: str, blob: BlobId, size_bytes: int, root: BlobRoot | None, first: int
) -> AsyncGenerator[bytes, None]:
    """The chunks of a blob from ``first`` on, each verified, from a file; ends early where that is no longer right."""
    groups = list(groups_of([(first, chunk_count(size_bytes) - first)])) if path and 0 <= first < chunk_count(size_bytes) else []
    reading: asyncio.Future[Sequence[bytes]] | None = None
    try:
        for number, group in enumerate(groups):
            chunks = await (reading or offload.run(_verified, Path(path), blob, size_bytes, root, group))
            following = groups[number + 1] if chunks and number + 1 < len(groups) else None
            # The next ones are read while the caller does something with these.
            reading = asyncio.ensure_future(offload.run(_verified, Path(path), blob, size_bytes, root, following)) if following else None
            for data in chunks:
                yield data
            if not chunks:
                return
    finally:
        if reading is not None:
            await wind_up(reading)


def _verified(path: Path, blob: BlobId, size_bytes: int, root: BlobRoot | None, group: Group) -> Sequence[bytes]:
    """Nothing, where one of the chunks cannot be read or is wrong."""
    try:
        chunks = _read(path, size_bytes, group)
        for index, data in zip(group, chunks, strict=True):
            check_chunk(root, blob, index, data)
    except (OSError, ValueError, IntegrityError):
        return ()
    return chunks


def _read(path: Path, size_bytes: int, group: Group) -> list[bytes]:
    if not path.is_file():
        # A pipe would be waited for.
        raise FileNotFoundError(path)
    return read_ranges(path, [(index * CHUNK_BYTES, chunk_size(size_bytes, index)) for index in group])


def sayable(path: Path) -> str:
    """An absolute path as text that can be sent; empty where it cannot."""
    try:
        text = str(path.absolute())
        text.encode()
    except (OSError, UnicodeEncodeError):
        return ""
    return text
