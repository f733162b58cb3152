"""Content on the owner's channel: what is sent is asked for chunk by chunk, and what comes says when it ends early.

A file is read twice when it is put: once for its address, then those chunks that the node does not have yet. What changes
in between is noticed by the node, which checks every chunk.
"""

from __future__ import annotations

import asyncio
import os
import stat
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Protocol

from p2pgrid import errors
from p2pgrid.errors import BadDataError, MalformedError, P2PGridError
from p2pgrid.model.blob import CHUNK_BYTES, BlobHasher, BlobRoot, address_of, chunk_count, chunk_size, decode_root, encode_root
from p2pgrid.model.ids import BlobId
from p2pgrid.model.limits import MIB
from p2pgrid.model.reasons import Reason
from p2pgrid.net.api import Stream
from p2pgrid.net.bulk import read_exactly, read_framed
from p2pgrid.offload import Offload
from p2pgrid.services.chunks import CHUNK_HEAD, GROUP_CHUNKS, Group, Write, send_chunks
from p2pgrid.services.nearby import chunks_nearby
from p2pgrid.store.disk import read_at
from p2pgrid.wire.codec import decode, encode
from p2pgrid.wire.owner import FileReply, GetFrom, Submitted

LENGTH = struct.Struct(">I")
NO_MORE = 0xFFFFFFFF
REPLY_BYTES_MAX = 4 * MIB
WRITE_BYTES = 256 * 1024
NODE_STALL_S = 600.0
"""A node that takes no chunk for so long, with its disk or its memory, is stuck."""
HASH_BYTES = 4 * MIB
_KINDS = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, P2PGridError)}

OnBytes = Callable[[str, int, int], None]
"""Told (what is being done, bytes more, bytes of it in all)."""


def quiet(what: str, more_bytes: int, size_bytes: int) -> None:
    """Nobody wants to know."""


def raise_error(reply: Submitted | FileReply) -> None:
    """Raise the error that a reply carries, if it does."""
    if reply.kind:
        kind = _KINDS.get(reply.kind, P2PGridError)
        raise kind(reply.error, hint=reply.hint, reason=reply.reason)


class Source(Protocol):
    """Content that is to be put."""

    size_bytes: int

    async def address(self, on_bytes: OnBytes) -> tuple[BlobId, BlobRoot | None]:
        """Its address, and its root if it has more than one chunk."""

    async def chunks(self, group: Group) -> Sequence[bytes]:
        """Consecutive chunks."""


class BytesSource:
    """Content in memory."""

    def __init__(self, data: bytes, offload: Offload) -> None:
        self.size_bytes = len(data)
        self._data, self._offload = data, offload

    async def address(self, on_bytes: OnBytes) -> tuple[BlobId, BlobRoot | None]:
        return await self._offload.run(address_of, self._data)

    async def chunks(self, group: Group) -> Sequence[bytes]:
        return [self._data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES] for index in group]


class FileSource:
    """A regular file. Made by :meth:`open`."""

    def __init__(self, path: Path, descriptor: int, size_bytes: int, offload: Offload) -> None:
        self.size_bytes = size_bytes
        self._path, self._descriptor, self._offload = path, descriptor, offload

    @classmethod
    async def open(cls, path: Path, offload: Offload, *, follow: bool = True) -> FileSource:
        """Open a file; ``follow``: also through a link. Raises BadDataError for what is no file or cannot be read."""
        descriptor, size_bytes = await offload.run(_open_regular, path, follow)
        return cls(path, descriptor, size_bytes, offload)

    async def close(self) -> None:
        """Close the file. A chunk that is being read is waited for by whoever reads it."""
        os.close(self._descriptor)

    async def address(self, on_bytes: OnBytes) -> tuple[BlobId, BlobRoot | None]:
        hasher = BlobHasher()

        def more() -> int:
            data = self._read(hasher.size_bytes, HASH_BYTES)
            hasher.update(data)
            return len(data)

        while done_bytes := await self._offload.run(more):
            on_bytes("reading", done_bytes, self.size_bytes)
        if hasher.size_bytes != self.size_bytes:
            raise _changed(self._path)
        return hasher.finish()

    async def chunks(self, group: Group) -> Sequence[bytes]:
        return await self._offload.run(self._chunks, group)

    def _chunks(self, group: Group) -> list[bytes]:
        found = [self._read(index * CHUNK_BYTES, chunk_size(self.size_bytes, index)) for index in group]
        if any(len(data) != chunk_size(self.size_bytes, index) for index, data in zip(group, found, strict=True)):
            raise _changed(self._path)
        return found

    def _read(self, offset: int, size_bytes: int) -> bytes:
        try:
            return read_at(self._descriptor, size_bytes, offset)
        except OSError as error:
            raise BadDataError(f"'{self._path}' cannot be read: {error.strerror}") from error


def _open_regular(path: Path, follow: bool) -> tuple[int, int]:
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    if not follow:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        raise BadDataError(f"'{path}' cannot be read: {error.strerror}") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise BadDataError(f"'{path}' is no regular file", hint="give the path of a file or a folder")
    return descriptor, status.st_size


def _changed(path: Path) -> BadDataError:
    return BadDataError(f"'{path}' changed while it was read", hint="try again when nobody writes to it")


async def send_file(stream: Stream, source: Source, root: BlobRoot | None, on_bytes: OnBytes) -> FileReply:
    """Send what the node asks for on an ``own.put`` stream; returns its last word. Raises the error it answers with."""
    encoded = encode_root(root) if root is not None else b""
    stream.write_nowait(LENGTH.pack(len(encoded)))
    for start in range(0, len(encoded), WRITE_BYTES):
        await stream.write(encoded[start : start + WRITE_BYTES])
    there_bytes = 0
    while not (first := await _reply(stream)).asks:
        on_bytes("sending", first.done_bytes - there_bytes, source.size_bytes)
        there_bytes = first.done_bytes
    on_bytes("sending", source.size_bytes - _bytes_of(first.missing, source.size_bytes) - there_bytes, source.size_bytes)

    async def read(group: Group) -> Sequence[bytes]:
        chunks = await source.chunks(group)
        on_bytes("sending", sum(map(len, chunks)), source.size_bytes)
        return chunks

    async def send() -> None:
        await send_chunks(stream, first.missing, read, NODE_STALL_S)
        stream.finish()

    # The node's word is read all the while: one that refuses no longer takes what is sent.
    sending, reading = asyncio.ensure_future(send()), asyncio.ensure_future(last_reply(stream, "copying", on_bytes))
    try:
        await asyncio.wait([sending, reading], return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            await sending
        return await reading
    finally:
        sending.cancel()
        if not reading.done():
            # A read is never cancelled: it ends because the stream does.
            stream.reset(Reason.CLOSED)
        await asyncio.gather(sending, reading, return_exceptions=True)


def _bytes_of(runs: tuple[tuple[int, int], ...], size_bytes: int) -> int:
    return sum(min((first + count) * CHUNK_BYTES, size_bytes) - min(first * CHUNK_BYTES, size_bytes) for first, count in runs)


async def _reply(stream: Stream) -> FileReply:
    reply = decode(await read_framed(stream, REPLY_BYTES_MAX), FileReply)
    raise_error(reply)
    return reply


async def last_reply(stream: Stream, what: str, on_bytes: OnBytes) -> FileReply:
    """Read news to the last of them. Raises the error they end with."""
    done_bytes = 0
    while not (reply := await _reply(stream)).last:
        on_bytes(what, reply.done_bytes - done_bytes, reply.size_bytes)
        done_bytes = reply.done_bytes
    return reply


class Incoming:
    """A blob that the node is ready to hand over on an ``own.get`` stream. Made by :meth:`meet`."""

    def __init__(self, stream: Stream, reply: FileReply, offload: Offload) -> None:
        self._stream, self._offload, self._path = stream, offload, reply.path
        self.blob, self.size_bytes = BlobId(reply.blob), reply.size_bytes
        self.head, self.name = reply.head, reply.name
        self.root = decode_root(reply.root) if reply.root else None

    @classmethod
    async def meet(cls, stream: Stream, on_bytes: OnBytes, offload: Offload) -> Incoming:
        """Wait until the node has it. Raises the error it answers with."""
        return cls(stream, await last_reply(stream, "fetching", on_bytes), offload)

    async def chunks(self, first: int = 0) -> AsyncIterator[bytes]:
        """Its chunks from ``first`` on. Raises what kept the node from going on."""
        async with aclosing(chunks_nearby(self._offload, self._path, self.blob, self.size_bytes, self.root, first)) as nearby:
            async for data in nearby:
                yield data
                first += 1
        encoded = encode(GetFrom(first))
        self._stream.write_nowait(LENGTH.pack(len(encoded)) + encoded)
        self._stream.finish()
        for due in range(first, chunk_count(self.size_bytes)):
            index, size_bytes = CHUNK_HEAD.unpack(await read_exactly(self._stream, CHUNK_HEAD.size))
            if index == NO_MORE:
                await _reply(self._stream)
            if index != due or size_bytes != chunk_size(self.size_bytes, due):
                raise MalformedError("a chunk nobody asked for", reason=Reason.MALFORMED)
            yield await read_exactly(self._stream, size_bytes)

    async def save(self, write: Write, first: int = 0, on_bytes: OnBytes = quiet) -> None:
        """Hand the chunks from ``first`` on to ``write``, a few at a time, while the next few come. Raises as :meth:`chunks`."""
        group: list[tuple[int, bytes]] = []
        writing: asyncio.Future[object] | None = None
        broken = True
        try:
            index = first
            async for data in self.chunks(first):
                group.append((index, data))
                index += 1
                on_bytes("getting", len(data), self.size_bytes)
                if writing is not None and (writing.done() or len(group) >= GROUP_CHUNKS):
                    await writing
                    writing = None
                if writing is None:
                    writing, group = asyncio.ensure_future(write(group)), []
            broken = False
        finally:
            # What came before it broke is written nevertheless: the next run begins there.
            failed = await asyncio.gather(writing, return_exceptions=broken) if writing is not None else [None]
            if group and not isinstance(failed[0], BaseException):
                await asyncio.gather(write(group), return_exceptions=broken)
