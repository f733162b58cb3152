"""Blobs between nodes: copied to r nodes, served and taken in, verified chunk by chunk on both sides.

1. A copy counts when its receiver has verified every chunk and has it on disk.
2. Copies go to nodes with the role ``store``, preferred ones first, and never wait for a node that does not answer.
3. A peer may write a few blobs at a time; what it began and never ended is free again within the hour.
4. Holders of what people ``put`` are recorded in the DHT by the holders themselves; blobs of jobs are found
   through the job's receipts and keepers.
"""

from __future__ import annotations

import asyncio
import struct
from collections import Counter
from collections.abc import Sequence
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
    TryAgainError,
    UnreachableError,
)
from p2pgrid.model.blob import BlobRoot, check_root, chunk_count, decode_root, encode_root
from p2pgrid.model.ids import BlobId, NodeKey, dht_id_of_blob, short
from p2pgrid.model.limits import MIB
from p2pgrid.model.reasons import Reason
from p2pgrid.net.api import Stream
from p2pgrid.net.bulk import read_exactly, read_framed
from p2pgrid.net.rpc import Session
from p2pgrid.services.context import Context
from p2pgrid.services.fetching import CHUNK_HEAD, CHUNKS_PER_READ, STALL_S, Fetching
from p2pgrid.services.peers import Peers
from p2pgrid.services.tasks import Tasks
from p2pgrid.services.writers import Writers
from p2pgrid.store.uploads import ChunkWriter
from p2pgrid.wire.codec import decode, encode
from p2pgrid.wire.messages import BlobHeld, BlobInfo, BlobRead, BlobRequest, BlobWant, BlobWrite

R = TypeVar("R", bound=msgspec.Struct)

LENGTH = struct.Struct(">I")
HOLDER_TTL_S = 24 * 3600.0
LEASE_MAX_MS = 400 * 24 * 3600 * 1000
"""Nobody may ask a node to keep something for longer."""
HOLDS = encode(1)
"""Value of a holder's record: the author is what it points at. An empty one would withdraw it."""
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
        self._writers = Writers(context)
        self._fetching = Fetching(context, peers, dht, self._writers)
        self._writes: Counter[bytes] = Counter()
        methods = context.methods
        methods.on("blob.info", BlobRequest, self._on_info)
        methods.on_stream("blob.read", BlobRead, self._on_read)
        methods.on_stream("blob.write", BlobWrite, self._on_write)

    async def close(self) -> None:
        await self._tasks.close()
        await self._writers.close()

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
                await context.offload.run(context.disk.unlink, path)
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
        await self._fetching.fetch(blob, sources, expires_ms)

    async def announce(self, blob: BlobId) -> None:
        """Record this node as a holder, for everybody who looks for the blob."""
        await self._dht.publish(RecordKind.BLOB_HOLDER, dht_id_of_blob(blob), HOLDS, HOLDER_TTL_S)

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
            writer = await self._writers.open(blob, request.size_bytes, root, session.peer, until_ms)
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
            self._writers.leave(writer)
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


def _refuse(stream: Stream, error: P2PGridError) -> None:
    _write_framed(stream, encode(BlobWant(error.reason or Reason.MALFORMED, error.message, 0)))


def _write_framed(stream: Stream, payload: bytes) -> None:
    stream.write_nowait(LENGTH.pack(len(payload)) + payload)


async def _write_chunk(stream: Stream, index: int, data: bytes) -> None:
    stream.write_nowait(CHUNK_HEAD.pack(index, len(data)))
    view = memoryview(data)
    for start in range(0, len(data), 256 * 1024):
        await stream.write(bytes(view[start : start + 256 * 1024]))
