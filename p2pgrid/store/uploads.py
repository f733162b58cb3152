"""Blobs that arrive chunk by chunk, in any order, from several sides, over several lives of the node.

1. A chunk is written only after its digest held, so the content in progress never holds a wrong byte on purpose.
2. Nothing on disk says which chunks are there: after a restart they are hashed again. A list of them could claim
   what the disk never got.
3. An upload holds its whole size from the start, so that no commit fails for want of room, and its writer's lease
   from the start, so that an upload nobody ends goes away with that lease.
4. Damaged content is an upload too: a writer finds the good chunks and asks for the others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from p2pgrid.errors import BadDataError, IntegrityError, TryAgainError
from p2pgrid.model.blob import CHUNK_BYTES, BlobRoot, check_chunk, chunk_count, chunk_size
from p2pgrid.model.ids import BlobId, short
from p2pgrid.model.reasons import Reason
from p2pgrid.store.books import Books
from p2pgrid.store.disk import READ_FLAGS, disk_errors, read_at
from p2pgrid.store.index import HELD, PARTIAL, BlobRow, Lease
from p2pgrid.store.shelf import Meta

UPLOADS_MAX = 256


class ChunkWriter(Protocol):
    """Writes one blob chunk by chunk. Several writers of one blob share its chunks. Calls block: come through an Offload."""

    def missing(self) -> list[int]:
        """The indexes of the chunks that are still wanted; empty when the blob is held already."""

    def write_chunk(self, index: int, data: bytes) -> bool:
        """Verify and write one chunk; False when it was there already. Raises as :meth:`write_chunks`."""

    def write_chunks(self, chunks: Sequence[tuple[int, bytes]]) -> int:
        """Verify and write chunks, each with its index; returns how many were not there yet. Those before a wrong one are kept.

        Raises IntegrityError (wrong bytes), MalformedError (no such chunk), RefusedError (disk full, or deleted meanwhile).
        """

    def commit(self) -> BlobId:
        """Make the blob durable and visible, and close. Raises BadDataError while chunks are missing, RefusedError."""

    def close(self) -> None:
        """Leave the upload as it is, to be resumed until its lease ends. Idempotent."""

    def abort(self) -> None:
        """Give the upload up; its room is free at once unless others want it too. Idempotent."""


class SmallWriter:
    """The writer of a blob of one chunk. Its size is only known from the right bytes, so nothing is set aside or kept before."""

    def __init__(self, blob: BlobId, put: Callable[[bytes], BlobId], has: Callable[[BlobId], bool]) -> None:
        self.blob, self._put, self._has = blob, put, has
        self._data: bytes | None = None

    def missing(self) -> list[int]:
        return [] if self._data is not None or self._has(self.blob) else [0]

    def write_chunk(self, index: int, data: bytes) -> bool:
        check_chunk(None, self.blob, index, data)
        fresh = bool(self.missing())
        self._data = data
        return fresh

    def write_chunks(self, chunks: Sequence[tuple[int, bytes]]) -> int:
        return sum(self.write_chunk(index, data) for index, data in chunks)

    def commit(self) -> BlobId:
        if self._data is not None:
            return self._put(self._data)
        if not self._has(self.blob):
            raise BadDataError(f"blob {short(self.blob)} has not arrived", reason=Reason.NO_BLOB)
        return self.blob

    def close(self) -> None:
        self._data = None

    def abort(self) -> None:
        self._data = None


class LargeWriter:
    """The writer of a blob with a root."""

    def __init__(self, uploads: Uploads, blob: BlobId, size_bytes: int, root: BlobRoot, owner: bytes) -> None:
        self.blob, self.size_bytes, self.root = blob, size_bytes, root
        self._uploads, self._owner = uploads, owner
        self._open = True

    def missing(self) -> list[int]:
        return self._uploads.missing(self.blob, self.root)

    def write_chunk(self, index: int, data: bytes) -> bool:
        return self.write_chunks([(index, data)]) == 1

    def write_chunks(self, chunks: Sequence[tuple[int, bytes]]) -> int:
        good: list[tuple[int, bytes]] = []
        try:
            # The digests are made before the claim is asked for, so that several writers of one blob do not wait for them.
            for index, data in chunks:
                if len(data) != chunk_size(self.size_bytes, index):
                    raise IntegrityError(f"chunk {index} of blob {short(self.blob)} has a wrong size", reason=Reason.CORRUPT)
                check_chunk(self.root, self.blob, index, data)
                good.append((index, data))
        finally:
            fresh = self._uploads.write_chunks(self.blob, self.root, good) if good else 0
        return fresh

    def commit(self) -> BlobId:
        self._uploads.commit(self.blob, self.root)
        self.close()
        return self.blob

    def close(self) -> None:
        if self._open:
            self._open = False
            self._uploads.leave(self.blob)

    def abort(self) -> None:
        if self._open:
            self._open = False
            self._uploads.leave(self.blob, abandoned_by=self._owner)


class Uploads:
    """All uploads in progress."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._writers: dict[BlobId, int] = {}
        self._present: dict[BlobId, bytearray] = {}

    def is_open(self, blob: BlobId) -> bool:
        """Whether somebody is writing this blob now."""
        return blob in self._writers

    def progress(self, blob: BlobId) -> int:
        """How many chunks of an upload are there, as far as that is known without reading."""
        present = self._present.get(blob)
        return sum(present) if present is not None else 0

    def open(self, blob: BlobId, root: BlobRoot, lease: Lease) -> LargeWriter:
        """Begin or resume the upload of a blob whose root was checked."""
        size_bytes = root.size_bytes
        books = self._books
        with books.claim(blob), disk_errors("starting an upload"):
            if blob not in self._writers and len(self._writers) >= UPLOADS_MAX:
                raise TryAgainError("too many uploads at a time", reason=Reason.BUSY)
            row = books.index.blob(blob)
            if row is None:
                self._start(blob, Meta(size_bytes, root, (lease,)))
            else:
                books.take_lease(row, lease, root)
            self._writers[blob] = self._writers.get(blob, 0) + 1
        return LargeWriter(self, blob, size_bytes, root, lease.owner)

    def _start(self, blob: BlobId, meta: Meta) -> None:
        books, owner = self._books, meta.leases[0].owner
        books.reserve(meta.size_bytes)
        try:
            books.charge(owner, meta.size_bytes)
            try:
                books.shelf.make_room(blob)
                books.shelf.disk.close(books.shelf.disk.create(books.shelf.part(blob)))
                books.write(blob, meta, PARTIAL)
            except BaseException:
                books.discharge(owner, meta.size_bytes)
                books.forget(blob)
                books.shelf.discard(blob)
                raise
        except BaseException:
            books.unreserve(meta.size_bytes)
            raise
        books.store(meta.size_bytes)
        self._present[blob] = bytearray(chunk_count(meta.size_bytes))

    def _chunks(self, row: BlobRow, root: BlobRoot) -> bytearray:
        """One byte a chunk, 1 for those that are there; hashed again when nobody knows."""
        present = self._present.get(row.id)
        if present is None:
            present = bytearray(chunk_count(row.size_bytes))
            self._books.shelf.reclaim(row.id)
            descriptor = os.open(self._books.shelf.part(row.id), READ_FLAGS)
            try:
                for index in range(len(present)):
                    data = read_at(descriptor, chunk_size(row.size_bytes, index), index * CHUNK_BYTES)
                    present[index] = _is_chunk(root, row, index, data)
            finally:
                os.close(descriptor)
            self._present[row.id] = present
        return present

    def missing(self, blob: BlobId, root: BlobRoot) -> list[int]:
        with self._books.claim(blob), disk_errors("resuming an upload"):
            row = self._books.row(blob)
            if row.state == HELD:
                return []
            return [index for index, there in enumerate(self._chunks(row, root)) if not there]

    def write_chunks(self, blob: BlobId, root: BlobRoot, chunks: Sequence[tuple[int, bytes]]) -> int:
        """Write chunks that were verified; returns how many were not there yet."""
        shelf = self._books.shelf
        with self._books.claim(blob), disk_errors("writing a chunk"):
            row = self._books.row(blob)
            if row.state == HELD:
                return 0
            present = self._chunks(row, root)
            fresh = {index: data for index, data in chunks if not present[index]}
            if not fresh:
                return 0
            descriptor = shelf.disk.modify(shelf.part(blob))
            try:
                for index, data in fresh.items():
                    shelf.disk.write_at(descriptor, data, index * CHUNK_BYTES)
                    shelf.disk.begin_sync(descriptor, index * CHUNK_BYTES, len(data))
                    present[index] = 1
            finally:
                shelf.disk.close(descriptor)
            return len(fresh)

    def commit(self, blob: BlobId, root: BlobRoot) -> None:
        books, shelf = self._books, self._books.shelf
        with books.claim(blob), disk_errors("committing a blob"):
            row = books.row(blob)
            if row.state == HELD:
                return
            if not all(self._chunks(row, root)):
                raise BadDataError(f"chunks of blob {short(blob)} are missing", reason=Reason.NO_BLOB)
            meta = books.current(row, root)
            # After a failed sync nobody knows what the disk holds: the next commit must hash it all again.
            self._present.pop(blob, None)
            descriptor = shelf.disk.modify(shelf.part(blob))
            try:
                shelf.disk.truncate(descriptor, row.size_bytes)
                shelf.disk.sync(descriptor)
            finally:
                shelf.disk.close(descriptor)
            shelf.disk.rename(shelf.part(blob), shelf.content(blob))
            shelf.disk.sync_folder(shelf.content(blob).parent)
            if meta.damaged:
                books.write(blob, msgspec.structs.replace(meta, damaged=False), HELD)
            else:
                books.put(blob, row.size_bytes, HELD, meta.leases)

    def leave(self, blob: BlobId, *, abandoned_by: bytes | None = None) -> None:
        books = self._books
        with books.claim(blob), disk_errors("ending an upload"):
            left = self._writers.get(blob, 1) - 1
            if left:
                self._writers[blob] = left
                return
            self._writers.pop(blob, None)
            self._present.pop(blob, None)
            row = books.index.blob(blob)
            if abandoned_by is None or row is None or row.state != PARTIAL:
                return
            kept = tuple(lease for lease in books.index.leases(blob) if lease.owner != abandoned_by)
            if kept:
                books.keep_leases(row, kept, durable=True)
            else:
                books.delete(row)

    def forget(self, blob: BlobId) -> None:
        """The blob was stored or deleted in another way; the claim is held."""
        self._present.pop(blob, None)


def _is_chunk(root: BlobRoot, row: BlobRow, index: int, data: bytes) -> bool:
    if len(data) != chunk_size(row.size_bytes, index):
        return False
    try:
        check_chunk(root, row.id, index, data)
    except IntegrityError:
        return False
    return True
