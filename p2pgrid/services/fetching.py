"""Fetching blobs from several holders at once, each chunk verified as it comes (docs/spec/blobs.md).

A holder is believed only what its bytes prove: one that lies, stalls or leaves costs the others its part, not the blob.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence

from p2pgrid.dht.records import RecordKind
from p2pgrid.dht.server import GridServer
from p2pgrid.errors import MalformedError, P2PGridError, RefusedError, RemoteError, TryAgainError, UnreachableError
from p2pgrid.model.blob import check_root, decode_root
from p2pgrid.model.ids import DIGEST_BYTES, BlobId, NodeKey, dht_id_of_blob, short
from p2pgrid.model.limits import MIB
from p2pgrid.model.reasons import Reason
from p2pgrid.net.bulk import read_exactly
from p2pgrid.services.context import Context
from p2pgrid.services.peers import Peers
from p2pgrid.services.writers import Writers
from p2pgrid.store.uploads import ChunkWriter
from p2pgrid.wire.messages import BlobInfo, BlobRead, BlobRequest

CHUNK_HEAD = struct.Struct(">II")
"""Number of the chunk, its size in bytes."""
CHUNKS_PER_READ = 16
FETCH_SOURCES_MAX = 4
STALL_S = 30.0
"""A transfer without a chunk for this long is given up."""


class Fetching:
    """Brings blobs to this node; who wants the same one waits for the one transfer."""

    def __init__(self, context: Context, peers: Peers, dht: GridServer, writers: Writers) -> None:
        self._context = context
        self._peers = peers
        self._dht = dht
        self._writers = writers
        self._fetching: dict[BlobId, asyncio.Future[None]] = {}

    async def fetch(self, blob: BlobId, sources: Sequence[bytes] = (), expires_ms: int = 0) -> None:
        """Make sure that a blob is here. Raises UnreachableError when no holder can be found, MalformedError for no address."""
        if len(blob) != DIGEST_BYTES:
            raise MalformedError("not the address of a blob", reason=Reason.MALFORMED)
        while not await self._context.offload.run(self._context.blobs.has, blob):
            running = self._fetching.get(blob)
            if running is not None:
                await asyncio.shield(running)
                continue
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._fetching[blob] = future
            try:
                await self._fetch(blob, sources, expires_ms or self._context.wall_ms() + 24 * 3_600_000)
            finally:
                del self._fetching[blob]
                future.set_result(None)

    async def _fetch(self, blob: BlobId, sources: Sequence[bytes], expires_ms: int) -> None:
        error: P2PGridError = UnreachableError(f"nobody who can be reached holds blob {short(blob)}", reason=Reason.NO_BLOB)
        asked: set[bytes] = {self._context.me}
        async for named in self._places(blob, sources):
            keys = [key for key in dict.fromkeys(named) if key not in asked]
            asked.update(keys)
            found = await self._ask(keys, blob)
            if found is None:
                continue
            try:
                await self._fetch_from(blob, *found, expires_ms)
            except (UnreachableError, TryAgainError, RemoteError) as failure:
                error = failure
            else:
                return
        raise error

    async def _places(self, blob: BlobId, sources: Sequence[bytes]) -> AsyncIterator[Sequence[bytes]]:
        """The nodes that should have it; those that the DHT names; whoever is connected."""
        yield sources
        yield await self._holders(blob)
        yield list(self._peers.live())

    async def _fetch_from(self, blob: BlobId, info: BlobInfo, holders: list[NodeKey], expires_ms: int) -> None:
        root = decode_root(info.root) if info.root else None
        writer = await self._writers.open(blob, info.size_bytes, root, self._context.me, expires_ms)
        try:
            await self._fetch_chunks(blob, writer, holders)
            await self._context.offload.run(writer.commit)
        finally:
            self._writers.leave(writer)

    async def _ask(self, keys: Iterable[bytes], blob: BlobId) -> tuple[BlobInfo, list[NodeKey]] | None:
        """Who of these holds a blob, all asked at once; only words that fit the blob's address count."""
        asked = [NodeKey(key) for key in keys]
        calls = [self._peers.call(key, "blob.info", BlobRequest(blob), BlobInfo, timeout_s=5.0) for key in asked]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        holders: list[tuple[BlobInfo, NodeKey]] = []
        for answer, key in zip(answers, asked, strict=True):
            if isinstance(answer, BlobInfo) and _fits(answer, blob):
                holders.append((answer, key))
        if not holders:
            return None
        return holders[0][0], [key for _, key in holders]

    async def _holders(self, blob: BlobId) -> list[bytes]:
        try:
            return [record.author for record in await self._dht.get(dht_id_of_blob(blob), RecordKind.BLOB_HOLDER)]
        except P2PGridError:
            return []

    async def _fetch_chunks(self, blob: BlobId, writer: ChunkWriter, holders: list[NodeKey]) -> None:
        """Each holder serves runs of chunks from one queue; what one fails to serve, those that did not fail serve."""
        good = list(holders)
        error: P2PGridError = UnreachableError(f"blob {short(blob)} did not arrive whole", reason=Reason.NO_BLOB)

        async def serve(holder: NodeKey) -> None:
            nonlocal error
            while runs:
                first, count = runs.popleft()
                try:
                    await self._fetch_run(holder, blob, writer, first, count)
                except (RefusedError, TryAgainError, UnreachableError, RemoteError) as failure:
                    runs.appendleft((first, count))
                    good.remove(holder)
                    error = failure
                    return

        while good and (runs := deque(_runs(await self._context.offload.run(writer.missing)))):
            await asyncio.gather(*(serve(holder) for holder in good[:FETCH_SOURCES_MAX]))
        if await self._context.offload.run(writer.missing):
            raise error

    async def _fetch_run(self, holder: NodeKey, blob: BlobId, writer: ChunkWriter, first: int, count: int) -> None:
        session = await self._peers.session(holder)
        stream = await session.open_stream("blob.read", BlobRead(blob, first, count))
        try:
            stream.finish()
            for due in range(first, first + count):
                async with asyncio.timeout(STALL_S):
                    index, size_bytes = CHUNK_HEAD.unpack(await read_exactly(stream, CHUNK_HEAD.size))
                    if size_bytes > MIB or index != due:
                        raise MalformedError("a chunk nobody asked for", reason=Reason.MALFORMED)
                    data = await read_exactly(stream, size_bytes)
                await self._context.offload.run(writer.write_chunk, index, data)
        except TimeoutError as error:
            raise UnreachableError(f"{short(holder)} stopped sending", reason=Reason.TIMEOUT) from error
        finally:
            stream.reset(Reason.CLOSED)


def _fits(info: BlobInfo, blob: BlobId) -> bool:
    """Whether what a holder says of a blob can be true."""
    try:
        check_root(decode_root(info.root) if info.root else None, blob, info.size_bytes)
    except RemoteError:
        return False
    return True


def _runs(missing: Sequence[int]) -> list[tuple[int, int]]:
    """(first, count) of consecutive chunks, at most CHUNKS_PER_READ each."""
    runs: list[tuple[int, int]] = []
    for index in missing:
        if runs and runs[-1][0] + runs[-1][1] == index and runs[-1][1] < CHUNKS_PER_READ:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((index, 1))
    return runs
