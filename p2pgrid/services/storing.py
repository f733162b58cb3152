"""Blobs between nodes: fetched from several holders at once, copied to r nodes, verified chunk by chunk on both sides.

1. A copy counts when its receiver has verified every chunk and has it on disk.
2. Copies go to nodes with the role ``store``, preferred ones first, and never wait for a node that does not answer.
3. A holder is believed only what its bytes prove: one that lies, stalls or leaves costs the others its part, not the blob.
4. A peer may write a few blobs at a time; what it began and never ended is free again within the hour.
5. Holders of what people ``put`` are recorded in the DHT by the holders themselves; blobs of jobs are found
   through the job's receipts and keepers.
"""

from __future__ import annotations

import asyncio
import struct
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from p2pgrid.dht.records import RecordKind
from p2pgrid.dht.server import GridServer
from p2pgrid.errors import (
    IntegrityError,
    MalformedError,
    P2PGridError,
    RefusedError,
    RemoteError,
    TryAgainError,
    UnreachableError,
)
from p2pgrid.model.blob import BlobRoot, check_root, chunk_count, decode_root, encode_root
from p2pgrid.model.ids import DIGEST_BYTES, BlobId, NodeKey, dht_id_of_blob, short
from p2pgrid.model.limits import MIB
from p2pgrid.model.reasons import Reason
from p2pgrid.net.api import Stream
from p2pgrid.net.bulk import read_exactly, read_framed
from p2pgrid.net.rpc import Session
from p2pgrid.services.context import Context
from p2pgrid.services.peers import Peers
from p2pgrid.services.tasks import Tasks
from p2pgrid.store.uploads import ChunkWriter
from p2pgrid.wire.codec import decode, encode
from p2pgrid.wire.messages import BlobHeld, BlobInfo, BlobRead, BlobRequest, BlobWant, BlobWrite

R = TypeVar("R", bound=msgspec.Struct)

CHUNK_HEAD = struct.Struct(">II")
"""Number of the chunk, its size in bytes."""
LENGTH = struct.Struct(">I")
CHUNKS_PER_READ = 16
FETCH_SOURCES_MAX = 4
BUSY_S = 0.1
HOLDER_TTL_S = 24 * 3600.0
LEASE_MAX_MS = 400 * 24 * 3600 * 1000
"""Nobody may ask a node to keep something for longer."""
HOLDS = encode(1)
"""Value of a holder's record: the author is what it points at. An empty one would withdraw it."""
STALL_S = 30.0
"""A transfer without a chunk for this long is given up."""
WRITES_PER_PEER_MAX = 16
UNFINISHED_MS = 3_600_000
"""The lease of a blob that a peer has begun to write; its own begins when it is whole."""


class Storing:
    """This node's share in storing and moving blobs."""

    def __init__(self, context: Context, peers: Peers, dht: GridServer) -> None:
        self._context = context
        self._peers = peers
        self._dht = dht
        self._tasks = Tasks("storing")
        self._fetching: dict[BlobId, asyncio.Future[None]] = {}
        self._writes: Counter[bytes] = Counter()
        methods = context.methods
        methods.on("blob.info", BlobRequest, self._on_info)
        methods.on_stream("blob.read", BlobRead, self._on_read)
        methods.on_stream("blob.write", BlobWrite, self._on_write)

    async def close(self) -> None:
        await self._tasks.close()

    # -- what other services use -------------------------------------------------------

    async def keep_bytes(
        self, data: bytes, expires_ms: int, replicas: int, prefer: Sequence[bytes] = (), holders: set[bytes] | None = None
    ) -> BlobId:
        """Store bytes here and on other nodes. ``holders`` collects who has a copy. Raises RefusedError (full)."""
        context = self._context
        blob = await context.offload.run(context.blobs.put_bytes, data, owner=context.me, expires_ms=expires_ms)
        copies = await self.replicate(blob, replicas, prefer, expires_ms)
        if holders is not None:
            holders.update(copies)
        return blob

    async def take_file(self, path: Path, expires_ms: int, size_bytes_max: int = 0) -> tuple[BlobId, int]:
        """Move a file that a unit made into the store; returns (blob, size in bytes)."""
        context = self._context
        limit = size_bytes_max or context.limits.blob_bytes
        try:
            blob = await context.offload.run(context.blobs.ingest, path, limit, owner=context.me, expires_ms=expires_ms)
        finally:
            with suppress(OSError):
                await context.offload.run(path.unlink, missing_ok=True)
        return blob, await context.offload.run(context.blobs.size, blob)

    async def replicate(
        self, blob: BlobId | bytes, replicas: int, prefer: Sequence[bytes], expires_ms: int, *, announce: bool = False
    ) -> tuple[bytes, ...]:
        """Copy a blob of this node until ``replicas`` nodes have it, this one included, or nobody is left.

        Returns the other holders. Nodes of ``prefer`` come first; the rest in random order.
        """
        wanted = replicas - 1
        candidates = self._candidates(prefer)
        holders: list[bytes] = []
        while wanted > len(holders) and candidates:
            batch, candidates = candidates[: wanted - len(holders)], candidates[wanted - len(holders) :]
            pushes = [self._push(BlobId(blob), NodeKey(peer), expires_ms, announce=announce) for peer in batch]
            holders += [peer for peer, held in zip(batch, await asyncio.gather(*pushes), strict=True) if held]
        return tuple(holders)

    def _candidates(self, prefer: Sequence[bytes]) -> list[bytes]:
        willing = self._peers.with_role("store") - {self._context.me}
        first = [peer for peer in dict.fromkeys(prefer) if peer in willing]
        rest = sorted(willing - set(first))
        self._context.rng.shuffle(rest)
        return first + rest

    async def read(self, blob: BlobId, sources: Sequence[bytes], size_bytes_max: int) -> bytes:
        """The content of a blob, fetched first if it is not here. ``size_bytes_max`` 0: any size."""
        context = self._context
        await self.fetch(blob, sources)
        return await context.offload.run(context.blobs.read_all, blob, size_bytes_max or context.limits.blob_bytes)

    async def path(self, blob: BlobId, sources: Sequence[bytes]) -> Path:
        """The local file of a blob, fetched first if it is not here. To be read only."""
        await self.fetch(blob, sources)
        return await self._context.offload.run(self._context.blobs.path, blob)

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

    async def announce(self, blob: BlobId) -> None:
        """Record this node as a holder, for everybody who looks for the blob."""
        await self._dht.publish(RecordKind.BLOB_HOLDER, dht_id_of_blob(blob), HOLDS, HOLDER_TTL_S)

    # -- fetching ------------------------------------------------------------------------

    async def _fetch(self, blob: BlobId, sources: Sequence[bytes], expires_ms: int) -> None:
        """From the nodes that should have it; else from those that the DHT names; else from whoever is connected."""
        missing = UnreachableError(f"nobody who can be reached holds blob {short(blob)}", reason=Reason.NO_BLOB)
        error: P2PGridError = missing
        asked: set[bytes] = {self._context.me}
        for look in (self._given(sources), self._holders(blob), self._connected()):
            keys = [key for key in dict.fromkeys(await look) if key not in asked]
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

    async def _given(self, keys: Sequence[bytes]) -> Sequence[bytes]:
        return keys

    async def _connected(self) -> Sequence[bytes]:
        return list(self._peers.live())

    async def _fetch_from(self, blob: BlobId, info: BlobInfo, holders: list[NodeKey], expires_ms: int) -> None:
        root = decode_root(info.root) if info.root else None
        writer = await self._writer(blob, info.size_bytes, root, self._context.me, expires_ms)
        try:
            await self._fetch_chunks(blob, writer, holders)
            await self._context.offload.run(writer.commit)
        finally:
            self._leave(writer)

    async def _writer(self, blob: BlobId, size_bytes: int, root: BlobRoot | None, owner: bytes, expires_ms: int) -> ChunkWriter:
        """Begin or resume a blob. Somebody who goes away meanwhile leaves no writer behind."""
        context = self._context
        opening = asyncio.ensure_future(
            context.offload.run(context.blobs.writer, blob, size_bytes, root, owner=owner, expires_ms=expires_ms)
        )
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(lambda done: self._leave(done.result()) if not done.cancelled() and not done.exception() else None)
            raise

    def _leave(self, writer: ChunkWriter) -> None:
        """Close a writer, whatever becomes of the caller: an open one would be kept for ever."""
        self._tasks.spawn(self._close_writer(writer), "close a writer")

    async def _close_writer(self, writer: ChunkWriter) -> None:
        while True:
            try:
                await self._context.offload.run(writer.close)
            except TryAgainError as error:
                if error.reason != Reason.BUSY:
                    raise
                await asyncio.sleep(BUSY_S)
            else:
                return

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

    # -- sending ---------------------------------------------------------------------------

    async def _push(self, blob: BlobId, peer: NodeKey, expires_ms: int, *, announce: bool) -> bool:
        """Send a blob to a peer; whether it now has it."""
        context = self._context
        try:
            size_bytes = await context.offload.run(context.blobs.size, blob)
            root = await context.offload.run(context.blobs.root, blob)
            session = await self._peers.session(peer)
            header = BlobWrite(blob, size_bytes, expires_ms, announce)
            stream = await session.open_stream("blob.write", header)
            try:
                await self._push_chunks(stream, blob, size_bytes, root)
                async with asyncio.timeout(STALL_S):
                    return decode(await read_framed(stream, 4096), BlobHeld).held
            finally:
                stream.reset(Reason.CLOSED)
        except (P2PGridError, TimeoutError) as error:
            reason = error.reason if isinstance(error, P2PGridError) else Reason.TIMEOUT
            context.tell(reason, f"blob {short(blob)} was not copied to {short(peer)}: {error}")
            return False

    async def _push_chunks(self, stream: Stream, blob: BlobId, size_bytes: int, root: BlobRoot | None) -> None:
        context = self._context
        _write_framed(stream, encode_root(root) if root is not None else b"")
        async with asyncio.timeout(STALL_S):
            want = decode(await read_framed(stream, 4096), BlobWant)
        if want.refused:
            raise RefusedError(want.message, reason=want.refused)
        for index in range(want.first, chunk_count(size_bytes)):
            data = await context.offload.run(context.blobs.read_chunk, blob, index)
            async with asyncio.timeout(STALL_S):
                await _write_chunk(stream, index, data)
        stream.finish()

    # -- serving -----------------------------------------------------------------------------

    async def _on_info(self, session: Session, request: BlobRequest) -> BlobInfo:
        context = self._context
        size_bytes = await context.offload.run(context.blobs.size, BlobId(request.blob))
        root = await context.offload.run(context.blobs.root, BlobId(request.blob))
        return BlobInfo(size_bytes, encode_root(root) if root is not None else b"")

    async def _on_read(self, session: Session, request: BlobRead, stream: Stream) -> None:
        context = self._context
        if not 0 < request.count <= CHUNKS_PER_READ * 64 or request.first < 0:
            raise MalformedError("chunks that cannot be", reason=Reason.MALFORMED)
        try:
            for index in range(request.first, request.first + request.count):
                data = await context.offload.run(context.blobs.read_chunk, BlobId(request.blob), index)
                async with asyncio.timeout(STALL_S):
                    await _write_chunk(stream, index, data)
        except TimeoutError as error:
            raise UnreachableError(f"{short(session.peer)} does not read", reason=Reason.TIMEOUT) from error

    async def _on_write(self, session: Session, request: BlobWrite, stream: Stream) -> None:
        """Take a copy from a peer: refuse with a reason, or verify and store what is still missing."""
        if self._writes[session.peer] >= WRITES_PER_PEER_MAX:
            _refuse(stream, TryAgainError("too many blobs are being written", reason=Reason.BUSY))
            return
        self._writes[session.peer] += 1
        try:
            await self._take_copy(session, request, stream)
        except TimeoutError as error:
            raise UnreachableError(f"{short(session.peer)} stopped sending", reason=Reason.TIMEOUT) from error
        finally:
            self._writes[session.peer] -= 1
            self._writes += Counter()

    async def _take_copy(self, session: Session, request: BlobWrite, stream: Stream) -> None:
        context = self._context
        run = context.offload.run
        blob = BlobId(request.blob)
        async with asyncio.timeout(STALL_S):
            encoded = await read_framed(stream, MIB + 4096)
        now_ms = context.wall_ms()
        expires_ms = min(request.expires_ms, now_ms + LEASE_MAX_MS)
        try:
            if "store" not in context.member.roles:
                raise RefusedError("this node stores nothing for others", reason=Reason.NO_ROLE)
            if expires_ms <= now_ms:
                raise RefusedError("the blob's time is over", reason=Reason.EXPIRED)
            root = decode_root(encoded) if encoded else None
            check_root(root, blob, request.size_bytes)
            if await run(context.blobs.has, blob):
                await run(context.blobs.lease, blob, session.peer, expires_ms)
                await self._held(stream, blob, chunk_count(request.size_bytes), request)
                return
            until_ms = min(expires_ms, now_ms + UNFINISHED_MS) if root is not None else expires_ms
            writer = await self._writer(blob, request.size_bytes, root, session.peer, until_ms)
        except P2PGridError as error:
            _refuse(stream, error)
            return
        try:
            await self._take_chunks(writer, chunk_count(request.size_bytes), stream)
            await run(context.blobs.lease, blob, session.peer, expires_ms)
        except (IntegrityError, TimeoutError) as error:
            _write_framed(stream, encode(BlobHeld(False, str(error)[:200])))
            return
        finally:
            self._leave(writer)
        await self._held(stream, blob, None, request)

    async def _take_chunks(self, writer: ChunkWriter, count: int, stream: Stream) -> None:
        run = self._context.offload.run
        missing = await run(writer.missing)
        first = missing[0] if missing else count
        _write_framed(stream, encode(BlobWant("", "", first)))
        for due in range(first, count):
            async with asyncio.timeout(STALL_S):
                index, size_bytes = CHUNK_HEAD.unpack(await read_exactly(stream, CHUNK_HEAD.size))
                if size_bytes > MIB or index != due:
                    raise MalformedError("a chunk nobody asked for", reason=Reason.MALFORMED)
                data = await read_exactly(stream, size_bytes)
            await run(writer.write_chunk, index, data)
        await run(writer.commit)

    async def _held(self, stream: Stream, blob: BlobId, first: int | None, request: BlobWrite) -> None:
        if first is not None:
            _write_framed(stream, encode(BlobWant("", "", first)))
        _write_framed(stream, encode(BlobHeld(True)))
        if request.announce:
            self._tasks.spawn(self.announce(blob), "announce")


def _fits(info: BlobInfo, blob: BlobId) -> bool:
    """Whether what a holder says of a blob can be true."""
    try:
        check_root(decode_root(info.root) if info.root else None, blob, info.size_bytes)
    except RemoteError:
        return False
    return True


def _refuse(stream: Stream, error: P2PGridError) -> None:
    _write_framed(stream, encode(BlobWant(error.reason or Reason.MALFORMED, error.message, 0)))


def _write_framed(stream: Stream, payload: bytes) -> None:
    stream.write_nowait(LENGTH.pack(len(payload)) + payload)


async def _write_chunk(stream: Stream, index: int, data: bytes) -> None:
    stream.write_nowait(CHUNK_HEAD.pack(index, len(data)))
    view = memoryview(data)
    for start in range(0, len(data), 256 * 1024):
        await stream.write(bytes(view[start : start + 256 * 1024]))


def _runs(missing: Sequence[int]) -> list[tuple[int, int]]:
    """(first, count) of consecutive chunks, at most CHUNKS_PER_READ each."""
    runs: list[tuple[int, int]] = []
    for index in missing:
        if runs and runs[-1][0] + runs[-1][1] == index and runs[-1][1] < CHUNKS_PER_READ:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((index, 1))
    return runs
