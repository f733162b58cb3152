"""Copies that other nodes make here (docs/spec/blobs.md#blobwrite).

1. A copy is acknowledged when every chunk was verified and is on the disk.
2. A peer may write a few blobs at a time; what it began and never ended is free again within the hour, and until then it
   goes on where it broke.
"""

from __future__ import annotations

import asyncio
import struct
from collections import Counter
from collections.abc import Callable

import msgspec

from p2pgrid.errors import IntegrityError, P2PGridError, RefusedError, TryAgainError, UnreachableError
from p2pgrid.model.blob import check_root, decode_root
from p2pgrid.model.ids import BlobId, short
from p2pgrid.model.limits import MIB
from p2pgrid.model.reasons import Reason
from p2pgrid.net.api import Stream
from p2pgrid.net.bulk import read_framed
from p2pgrid.net.rpc import Session
from p2pgrid.services.chunks import GROUP_CHUNKS, STALL_S, take_chunks, wanted_runs
from p2pgrid.services.context import Context
from p2pgrid.services.writers import Writers
from p2pgrid.store.uploads import ChunkWriter
from p2pgrid.wire.codec import encode
from p2pgrid.wire.messages import BlobHeld, BlobWant, BlobWrite

LENGTH = struct.Struct(">I")
LEASE_MAX_MS = 400 * 24 * 3600 * 1000
"""Nobody may ask a node to keep something for longer."""
WRITES_PER_PEER_MAX = 16
WIDE_WRITES_MAX = 16
"""When more copies than this come at one time, those that begin then take one chunk at a time, for the sake of memory."""
UNFINISHED_MS = 3_600_000
"""The lease of a blob that a peer has begun to write; its own begins when it is whole."""


class Taking:
    """Takes copies in. ``announce``: make this node known as a holder."""

    def __init__(self, context: Context, writers: Writers, announce: Callable[[BlobId], None]) -> None:
        self._context = context
        self._writers = writers
        self._announce = announce
        self.writes: Counter[bytes] = Counter()
        """Blobs that each peer is writing now."""
        context.methods.on_stream("blob.write", BlobWrite, self._on_write)

    async def _on_write(self, session: Session, request: BlobWrite, stream: Stream) -> None:
        """Take a copy from a peer: refuse with a reason, or verify and store what is still missing."""
        if self.writes[session.peer] >= WRITES_PER_PEER_MAX:
            _refuse(stream, TryAgainError("too many blobs are being written", reason=Reason.BUSY))
            return
        self.writes[session.peer] += 1
        try:
            await self._take(session, request, stream)
        except TimeoutError as error:
            raise UnreachableError(f"{short(session.peer)} stopped sending", reason=Reason.TIMEOUT) from error
        finally:
            self.writes[session.peer] -= 1
            self.writes += Counter()

    async def _take(self, session: Session, request: BlobWrite, stream: Stream) -> None:
        context, blob = self._context, BlobId(request.blob)
        run, blobs = context.offload.run, context.blobs
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
            if await run(blobs.has, blob):
                await run(blobs.lease, blob, session.peer, expires_ms, request.replicas)
                _write_framed(stream, BlobWant("", ""))
                self._held(stream, request)
                return
            until_ms = min(expires_ms, now_ms + UNFINISHED_MS) if root is not None else expires_ms
            writer = await self._writers.open(blob, request.size_bytes, root, session.peer, until_ms, request.replicas)
        except P2PGridError as error:
            _refuse(stream, error)
            return
        try:
            await self._take_chunks(writer, stream)
            await run(blobs.lease, blob, session.peer, expires_ms, request.replicas)
        except IntegrityError as error:
            _write_framed(stream, BlobHeld(False, str(error)[:200]))
            return
        finally:
            self._writers.leave(writer)
        self._held(stream, request)

    async def _take_chunks(self, writer: ChunkWriter, stream: Stream) -> None:
        run = self._context.offload.run
        runs = wanted_runs(await run(writer.missing))
        _write_framed(stream, BlobWant("", "", tuple(runs)))
        group_chunks = GROUP_CHUNKS if self.writes.total() <= WIDE_WRITES_MAX else 1
        await take_chunks(
            stream, runs, lambda chunks: run(writer.write_chunks, chunks), group_chunks=group_chunks, pay=self._context.throttle.download
        )
        await run(writer.commit)

    def _held(self, stream: Stream, request: BlobWrite) -> None:
        _write_framed(stream, BlobHeld(True))
        if request.announce:
            self._announce(BlobId(request.blob))


def _refuse(stream: Stream, error: P2PGridError) -> None:
    _write_framed(stream, BlobWant(error.reason or Reason.MALFORMED, error.message))


def _write_framed(stream: Stream, message: msgspec.Struct) -> None:
    payload = encode(message)
    stream.write_nowait(LENGTH.pack(len(payload)) + payload)
