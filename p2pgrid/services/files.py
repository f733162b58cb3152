"""The owner's files: put into the grid and got back (docs/spec/owner.md#files).

1. Whoever puts says first what the content's address is. So only the chunks that are not here yet cross the channel,
   and what was interrupted goes on where it was: in this life of the node or in a later one.
2. Copies go to the same nodes each time: their order is drawn by blob and node, weighed by how much a node is there.
   So a copy that was begun is continued where it was begun.
3. What was put is durable here when the answer comes. Fewer copies than wanted are no error: the answer says so.
4. A chunk that turns out to be damaged while it is read is fetched anew from others before anything is given up.
"""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import msgspec
from blake3 import blake3

from p2pgrid.core.availability import PRIOR_SHARE, TARGET, CopiesPlan, odds, plan_copies
from p2pgrid.dht.records import RecordKind
from p2pgrid.dht.server import GridServer
from p2pgrid.errors import BadDataError, IntegrityError, P2PGridError, RefusedError, UnreachableError
from p2pgrid.model.blob import ROOT_BYTES_MAX, check_root, chunk_count, decode_root, encode_root
from p2pgrid.model.folder import MAGIC, MANIFEST_BYTES_MAX, Manifest, decode_manifest, is_manifest
from p2pgrid.model.ids import BlobId, dht_id_of_blob
from p2pgrid.model.reasons import Reason
from p2pgrid.net.api import Stream
from p2pgrid.net.bulk import read_framed
from p2pgrid.net.rpc import Session
from p2pgrid.services.chunks import CHUNK_HEAD, Group, send_chunks, take_chunks, wanted_runs
from p2pgrid.services.context import Context
from p2pgrid.services.filetable import FileRow, FileTable
from p2pgrid.services.nearby import sayable, take_nearby
from p2pgrid.services.peers import Peers
from p2pgrid.services.storing import Storing
from p2pgrid.services.tasks import wind_up
from p2pgrid.services.writers import Writers
from p2pgrid.store.home import Home
from p2pgrid.store.uploads import ChunkWriter
from p2pgrid.wire.codec import decode, encode
from p2pgrid.wire.owner import FileReply, GetFrom, GetHeader, PutHeader

LENGTH = struct.Struct(">I")
NO_MORE = 0xFFFFFFFF
"""In place of a chunk's number: the reason why there are no more follows."""
UNFINISHED_MS = 24 * 3_600_000
"""What the owner began to put and does not go on with is free again after a day."""
NEWS_S = 0.25
OWNER_STALL_S = 24 * 3600.0
"""A command may be stopped for a while, or write to a slow pipe."""
HEAD_BYTES = len(MAGIC)
FOLDERS_KNOWN_MAX = 16
R = TypeVar("R")


def framed(message: msgspec.Struct) -> bytes:
    """A message with its length in front, as on the owner's streams."""
    encoded = encode(message)
    return LENGTH.pack(len(encoded)) + encoded


def failed(error: P2PGridError) -> bytes:
    """The framed reply that carries an error, as streams have no other way to say one."""
    reply = FileReply(b"", 0, 0, error.message, str(error.reason), error.hint, type(error).__name__)
    return framed(reply)


def news(blob: bytes, size_bytes: int, **fields: object) -> bytes:
    """A framed reply that is not the last."""
    return framed(msgspec.structs.replace(FileReply(blob, size_bytes, 0, last=False), **fields))


class Care(NamedTuple):
    """What whoever looks after the copies of a blob knows of them."""

    wanted: int
    holders: dict[bytes, int]
    """Holder to the Unix milliseconds when it last proved to have the blob."""
    short_since_ms: int = 0
    reasons: tuple[tuple[str, str], ...] = ()
    """(reason code, sentence) why there are fewer copies than wanted."""


class Files:
    """Serves ``own.put`` and ``own.get``, and places the copies."""

    def __init__(
        self,
        context: Context,
        peers: Peers,
        storing: Storing,
        dht: GridServer,
        home: Home,
        *,
        care: Callable[[BlobId], Care | None] = lambda blob: None,
        share: Callable[[bytes], float] = lambda node: PRIOR_SHARE,
        score: Callable[[bytes], float] = lambda node: PRIOR_SHARE,
    ) -> None:
        """``care``: what is known of a blob's copies.

        ``share``: the part of the time that a node is there, as measured; ``score``: how good a holder it is.
        """
        self._context = context
        self._peers = peers
        self._storing = storing
        self._dht = dht
        self.care, self.share, self._score = care, share, score
        self._writers = Writers(context)
        self._folders: dict[bytes, tuple[bytes, ...]] = {}
        """Holders of folders of which files were wanted lately."""
        self.table = FileTable(context, home)
        context.methods.on_stream("own.put", PutHeader, self._on_put, owner_only=True)
        context.methods.on_stream("own.get", GetHeader, self._on_get, owner_only=True)

    async def close(self) -> None:
        await self._writers.close()

    # -- putting ---------------------------------------------------------------------------

    async def _on_put(self, session: Session, header: PutHeader, stream: Stream) -> None:
        try:
            blob = await self._take(header, stream)
            reply = await self._telling(self._copy(blob, header), stream)
            if header.listed:
                await self._list(header, reply)
        except P2PGridError as error:
            stream.write_nowait(failed(error))
            return
        stream.write_nowait(framed(reply))

    async def _take(self, header: PutHeader, stream: Stream) -> BlobId:
        """Store what is not here yet; durable when this returns."""
        context, blob = self._context, BlobId(header.blob)
        encoded = await read_framed(stream, ROOT_BYTES_MAX)
        root = decode_root(encoded) if encoded else None
        check_root(root, blob, header.size_bytes)
        now_ms = context.wall_ms()
        if header.expires_ms <= now_ms:
            raise BadDataError("the file's time would be over already", reason=Reason.EXPIRED)
        until_ms = min(header.expires_ms, now_ms + UNFINISHED_MS) if root is not None else header.expires_ms
        writer = await self._writers.open(blob, header.size_bytes, root, context.me, until_ms)
        try:
            await self._take_chunks(header, writer, stream)
            await context.offload.run(writer.commit)
        except IntegrityError as error:
            raise BadDataError("the file changed while it was read", hint="try again when nobody writes to it") from error
        finally:
            self._writers.leave(writer)
        await context.offload.run(context.blobs.lease, blob, context.me, header.expires_ms)
        return blob

    async def _take_chunks(self, header: PutHeader, writer: ChunkWriter, stream: Stream) -> None:
        run, blob = self._context.offload.run, BlobId(header.blob)
        await self._telling(take_nearby(self._context.offload, writer, header.path, header.size_bytes), stream, blob)
        runs = wanted_runs(await run(writer.missing))
        stream.write_nowait(news(blob, header.size_bytes, asks=True, missing=tuple(runs)))
        try:
            await take_chunks(stream, runs, lambda chunks: run(writer.write_chunks, chunks), OWNER_STALL_S)
        except TimeoutError as error:
            raise UnreachableError("the command stopped sending", reason=Reason.TIMEOUT) from error

    async def _copy(self, blob: BlobId, header: PutHeader) -> FileReply:
        order = self.order(header.place or blob)
        wanted = header.replicas or self.plan(order).copies
        copies = 1
        if wanted > 1:
            copies += len(await self._storing.replicate(blob, wanted, order, header.expires_ms, announce=header.announce))
        if header.announce:
            await self._storing.announce(blob)
        return FileReply(blob, header.size_bytes, copies, wanted=wanted)

    def order(self, place: bytes) -> list[bytes]:
        """Nodes that may hold copies, in the order in which they are asked; this one is none of them.

        Weighted rendezvous hashing: each node draws its lot for ``place`` alone, so that others that come and go leave
        the order of the rest as it was.
        """
        lots = [(self._lot(place, peer), peer) for peer in sorted(self._peers.with_role("store")) if peer != self._context.me]
        return [peer for _, peer in sorted(lots)]

    def _lot(self, place: bytes, peer: bytes) -> float:
        drawn = int.from_bytes(blake3(place + peer).digest()[:8], "big")
        return -math.log((drawn + 1) / (2**64 + 1)) / odds(self._score(peer))

    def plan(self, order: Sequence[bytes]) -> CopiesPlan:
        """How many copies the availability of the nodes asks for, this node's included."""
        return plan_copies([self.share(peer) for peer in (self._context.me, *order)], TARGET)

    async def _list(self, header: PutHeader, reply: FileReply) -> None:
        context, blob = self._context, BlobId(header.blob)
        kind, size_bytes = "file", header.size_bytes
        if await self.is_folder(blob):
            kind, size_bytes = "folder", (await self.manifest(blob)).size_bytes
        before = (await self.table.rows()).get(blob)
        row = FileRow(
            blob=blob,
            name=header.name,
            kind=kind,
            size_bytes=size_bytes,
            replicas=reply.wanted,
            copies=reply.copies,
            put_ms=context.wall_ms(),
            expires_ms=max(header.expires_ms, before.expires_ms if before else 0),
            pinned=before is not None and before.pinned,
        )
        await self.table.note(row)

    # -- folders -----------------------------------------------------------------------------

    async def is_folder(self, blob: BlobId) -> bool:
        """Whether a blob that is here means a folder."""
        size_bytes = await self._context.offload.run(self._context.blobs.size, blob)
        return size_bytes <= MANIFEST_BYTES_MAX and is_manifest(await self._head(blob))

    async def _head(self, blob: BlobId) -> bytes:
        return (await self._context.offload.run(self._context.blobs.read_chunk, blob, 0))[:HEAD_BYTES]

    async def manifest(self, blob: BlobId) -> Manifest:
        """The manifest of a folder that is here. Raises BadDataError."""
        run, blobs = self._context.offload.run, self._context.blobs
        return await run(decode_manifest, await run(blobs.read_all, blob, MANIFEST_BYTES_MAX))

    async def holders(self, blob: bytes) -> tuple[bytes, ...]:
        """Nodes that are recorded as holders, in the order of their keys."""
        try:
            records = await self._dht.get(dht_id_of_blob(blob), RecordKind.BLOB_HOLDER)
        except P2PGridError:
            return ()
        return tuple(sorted({record.author for record in records}))

    async def _holders_of_folder(self, folder: bytes) -> tuple[bytes, ...]:
        if folder not in self._folders:
            found = await self.holders(folder)
            while len(self._folders) >= FOLDERS_KNOWN_MAX:
                del self._folders[next(iter(self._folders))]
            self._folders[folder] = found
        return self._folders[folder]

    # -- getting ---------------------------------------------------------------------------

    async def _on_get(self, session: Session, header: GetHeader, stream: Stream) -> None:
        blob, context = BlobId(header.blob), self._context
        try:
            sources = header.sources
            if header.folder and not await context.offload.run(context.blobs.has, blob):
                sources += await self._holders_of_folder(header.folder)
            await self.bring(blob, sources, stream)
            reply = await self._told(blob)
        except P2PGridError as error:
            stream.write_nowait(failed(error))
            return
        stream.write_nowait(framed(reply))
        first = decode(await read_framed(stream, 4096), GetFrom).first
        count = chunk_count(reply.size_bytes) - first
        try:
            await send_chunks(stream, [(first, count)] if count > 0 <= first else [], partial(self._read, blob, sources), OWNER_STALL_S)
        except TimeoutError as error:
            raise UnreachableError("the command stopped reading", reason=Reason.TIMEOUT) from error
        except P2PGridError as error:
            stream.write_nowait(CHUNK_HEAD.pack(NO_MORE, 0) + failed(error))

    async def bring(self, blob: BlobId, sources: Sequence[bytes], stream: Stream | None = None) -> None:
        """Fetch a blob if it is not here, with news on ``stream``; who no longer listens ends it."""
        if not await self._context.offload.run(self._context.blobs.has, blob):
            await self._telling(self._storing.fetch(blob, sources), stream, blob)

    async def _telling(self, work: Coroutine[Any, Any, R], stream: Stream | None, blob: BlobId | None = None) -> R:
        """Do something that takes a while, with news of how much of ``blob`` is here; when nobody listens any more it is given up."""
        working = asyncio.ensure_future(work)
        try:
            while stream is not None and not (await asyncio.wait([working], timeout=NEWS_S))[0]:
                done_bytes, size_bytes = await self._context.offload.run(self._context.blobs.progress, blob) if blob else (0, 0)
                await stream.write(news(blob or b"", size_bytes, done_bytes=done_bytes))
            return await working
        finally:
            await wind_up(working)

    async def _told(self, blob: BlobId) -> FileReply:
        run, blobs = self._context.offload.run, self._context.blobs
        size_bytes, root = await run(blobs.size, blob), await run(blobs.root, blob)
        row = (await self.table.rows()).get(blob)
        return FileReply(
            blob,
            size_bytes,
            1,
            root=encode_root(root) if root else b"",
            head=await self._head(blob),
            name=row.name if row else "",
            path=sayable(await run(blobs.path, blob)),
        )

    async def _read(self, blob: BlobId, sources: Sequence[bytes], group: Group) -> Sequence[bytes]:
        """Chunks for the owner. What turns out to be damaged is fetched from others, if anybody has it."""
        run, blobs = self._context.offload.run, self._context.blobs
        try:
            return await run(blobs.read_chunks, blob, group)
        except (IntegrityError, RefusedError) as error:
            try:
                await self._storing.fetch(blob, sources)
            except P2PGridError:
                raise error from None
        return await run(blobs.read_chunks, blob, group)
