"""The blob store of a node: content under its address, within a quota, as long as somebody holds a lease.

1. What is acknowledged is durable: content, then metadata with its lease, then names are synced before a call returns.
2. What is read is verified, chunk by chunk. A chunk that does not match makes the blob `damaged`: it is no longer
   served, keeps its leases and its room, and waits for a writer that brings the bad chunks again.
3. Nothing is evicted before its last lease ends. A full store refuses, with a reason.
4. All calls block and may come from several threads: coroutines come through an Offload.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

import msgspec

from p2pgrid.errors import BadDataError, IntegrityError, RefusedError
from p2pgrid.model.blob import CHUNK_BYTES, BlobHasher, BlobRoot, address_of, check_chunk, check_root, chunk_count, chunk_size
from p2pgrid.model.ids import BlobId, short
from p2pgrid.model.limits import DEFAULT_LIMITS, Limits
from p2pgrid.model.reasons import Reason
from p2pgrid.store.accounts import Accounts, OwnerQuota
from p2pgrid.store.books import Books
from p2pgrid.store.disk import READ_FLAGS, Disk, disk_errors, read_at, read_ranges, regular_size
from p2pgrid.store.index import DAMAGED, HELD, BlobRow, Index, Lease
from p2pgrid.store.paths import open_inside, open_untrusted
from p2pgrid.store.placing import Temporary
from p2pgrid.store.shelf import UNREADABLE, RecoveryReport, Shelf, load
from p2pgrid.store.uploads import ChunkWriter, SmallWriter, Uploads

BLOBS_MAX = 1_000_000


class Usage(msgspec.Struct, frozen=True):
    """``used_bytes`` counts held, damaged and incoming blobs; ``reserved_bytes`` what is being put right now."""

    blobs: int
    used_bytes: int
    reserved_bytes: int
    quota_bytes: int


class BlobStore:
    """Blobs on disk. ``recovery`` says what starting it found."""

    def __init__(
        self,
        folder: Path,
        quota_bytes: int,
        index: Index,
        *,
        now_ms: int,
        scan: bool = True,
        owner_quota: OwnerQuota | None = None,
        disk: Disk | None = None,
        limits: Limits = DEFAULT_LIMITS,
        blobs_max: int = BLOBS_MAX,
    ) -> None:
        """``now_ms``: Unix milliseconds, for the leases of orphans.

        ``scan``: restore the index from the folder; False is safe only for an index that was closed cleanly and not
        rebuilt. ``owner_quota``: bytes an owner may have under lease. Raises ConfigError, RefusedError (disk full).
        """
        self._limits, self._disk = limits, disk or Disk()
        self._shelf = Shelf(folder, self._disk)
        self._index = index
        self._books = Books(self._shelf, index, Accounts(quota_bytes, blobs_max, owner_quota))
        self._uploads = Uploads(self._books)
        self._numbers = count()
        self.recovery = RecoveryReport()
        with disk_errors("opening the blob store"):
            self._disk.make_folder(folder)
            removed = self._shelf.clear_tmp()
            if scan:
                with index.transaction():
                    index.clear_blobs()
                    self.recovery = load(
                        self._shelf, now_ms, lambda found: index.put_blob(found.id, found.meta.size_bytes, found.state, found.meta.leases)
                    )
            self.recovery.leftovers_removed += removed
        blobs, used_bytes = index.usage()
        self._books.accounts.load(blobs, used_bytes, index.owner_usage())

    # Writing

    def on_change(self, callback: Callable[[BlobId], None]) -> None:
        """Call ``callback(blob)`` when a blob has come, gone, or changed its state or leases: from any thread, and it must not block."""
        self._books.changed = callback

    def put_bytes(self, data: bytes, *, owner: bytes, expires_ms: int, replicas: int = 1) -> BlobId:
        """Store ``data`` under lease until ``expires_ms``; ``replicas``: copies the lease wants in the grid.

        Raises RefusedError (store full, disk full), BadDataError (too large).
        """
        blob, root = address_of(data)
        self._check_size(len(data), self._limits.blob_bytes)
        lease = Lease(owner, expires_ms, replicas)
        with self._books.claim(blob), disk_errors("storing a blob"):
            if not self._lease_if_held(blob, lease):
                # An upload in progress, or a damaged blob, has its room already.
                with self._temporary(len(data), reserve=self._index.blob(blob) is None) as temporary:
                    self._disk.write_file(temporary.path, data)
                    temporary.install(blob, root, lease)
        return blob

    def put_file(self, path: Path, *, owner: bytes, expires_ms: int, replicas: int = 1) -> BlobId:
        """Store a file of the owner of this node; links are followed. Raises as put_bytes, and BadDataError when it cannot be read."""
        try:
            descriptor = os.open(path, READ_FLAGS | getattr(os, "O_NONBLOCK", 0))
        except (OSError, ValueError) as error:
            raise BadDataError(f"'{path}' cannot be read: {error}") from error
        try:
            size_bytes = regular_size(descriptor)
            if size_bytes is None:
                raise BadDataError(f"'{path}' is not a regular file")
            return self._take_in(descriptor, size_bytes, Lease(owner, expires_ms, replicas))
        finally:
            os.close(descriptor)

    def ingest(
        self, path: Path | str, size_bytes_max: int, *, owner: bytes, expires_ms: int, folder: Path | None = None, replicas: int = 1
    ) -> BlobId:
        """Store a file that strangers made: no links, no pipes, one name only, at most ``size_bytes_max``.

        With ``folder``, ``path`` is a name inside it and no part of it may be a link. Raises as put_bytes, and BadDataError.
        """
        opened = open_untrusted(Path(path), size_bytes_max) if folder is None else open_inside(folder, str(path), size_bytes_max)
        descriptor, size_bytes = opened
        try:
            return self._take_in(descriptor, size_bytes, Lease(owner, expires_ms, replicas))
        finally:
            os.close(descriptor)

    def _take_in(self, source: int, size_bytes: int, lease: Lease) -> BlobId:
        """Copy and hash in one pass. A file that changes its size meanwhile is refused."""
        self._check_size(size_bytes, self._limits.blob_bytes)
        with self._temporary(size_bytes) as temporary, disk_errors("storing a file"):
            blob, root = self._copy(source, size_bytes, temporary.path)
            with self._books.claim(blob):
                if not self._lease_if_held(blob, lease):
                    temporary.install(blob, root, lease)
        return blob

    def _copy(self, source: int, size_bytes: int, target: Path) -> tuple[BlobId, BlobRoot | None]:
        hasher = BlobHasher()
        descriptor = self._disk.create(target)
        try:
            while data := read_at(source, CHUNK_BYTES, hasher.size_bytes):
                if hasher.size_bytes + len(data) > size_bytes:
                    break
                self._disk.write_at(descriptor, data, hasher.size_bytes)
                hasher.update(data)
            if data or hasher.size_bytes != size_bytes:
                raise BadDataError("the file changed while it was read", hint="try again when nobody writes to it")
            self._disk.sync(descriptor)
        finally:
            self._disk.close(descriptor)
        return hasher.finish()

    def _temporary(self, size_bytes: int, *, reserve: bool = True) -> Temporary:
        if reserve:
            self._books.reserve(size_bytes)
        return Temporary(self._books, self._uploads, self._shelf.tmp / str(next(self._numbers)), size_bytes, reserve)

    def _lease_if_held(self, blob: BlobId, lease: Lease) -> bool:
        row = self._index.blob(blob)
        if row is None or row.state != HELD:
            return False
        self._books.take_lease(row, lease)
        return True

    @staticmethod
    def _check_size(size_bytes: int, size_bytes_max: int) -> None:
        if size_bytes > size_bytes_max:
            raise BadDataError(f"{size_bytes} bytes are more than a blob can have", reason=Reason.TOO_LARGE)

    def writer(
        self, blob: BlobId, size_bytes: int, root: BlobRoot | None, *, owner: bytes, expires_ms: int, replicas: int = 1
    ) -> ChunkWriter:
        """Begin or resume an upload chunk by chunk. ``root`` is None for a blob of at most one chunk.

        The whole size of a blob with a root is set aside at once. Raises MalformedError or IntegrityError
        (bad root), RefusedError (store or disk full), TryAgainError (too many uploads).
        """
        check_root(root, blob, size_bytes)
        if root is not None:
            return self._uploads.open(blob, root, Lease(owner, expires_ms, replicas))
        if self.has(blob):
            self.lease(blob, owner, expires_ms, replicas)
        return SmallWriter(blob, lambda data: self.put_bytes(data, owner=owner, expires_ms=expires_ms, replicas=replicas), self.has)

    # Reading

    def has(self, blob: BlobId) -> bool:
        """Whether the blob is here and whole, as far as is known."""
        row = self._index.blob(blob)
        return row is not None and row.state == HELD

    def progress(self, blob: BlobId) -> tuple[int, int]:
        """(bytes that are here, size) of a blob that is held or on its way; zeros when nothing is known of it."""
        row = self._index.blob(blob)
        if row is None:
            return 0, 0
        done_bytes = row.size_bytes if row.state == HELD else self._uploads.progress(blob) * CHUNK_BYTES
        return min(done_bytes, row.size_bytes), row.size_bytes

    def size(self, blob: BlobId) -> int:
        """Bytes of a held blob. Raises RefusedError (no-blob)."""
        return self._books.held(blob).size_bytes

    def root(self, blob: BlobId) -> BlobRoot | None:
        """The root of a held blob, None when it has one chunk. Raises RefusedError (no-blob)."""
        return self._root(self._books.held(blob))

    def _root(self, row: BlobRow) -> BlobRoot | None:
        """A large blob whose content and metadata are both damaged cannot even be healed: it is given up."""
        with suppress(IntegrityError):
            return self._books.meta(row).root
        with self._books.claim(row.id), disk_errors("giving a blob up"):
            row = self._books.held(row.id)
            try:
                return self._books.meta(row).root
            except IntegrityError:
                self._books.delete(row)
                raise

    def path(self, blob: BlobId) -> Path:
        """Where the content of a held blob lies, to be read only. Raises RefusedError (no-blob)."""
        return self._shelf.content(self._books.held(blob).id)

    def read_chunk(self, blob: BlobId, index: int) -> bytes:
        """One verified chunk.

        Raises RefusedError (no-blob), MalformedError (no such chunk), IntegrityError (corrupt; the blob is then damaged).
        """
        row = self._books.held(blob)
        chunk_size(row.size_bytes, index)
        root = self._root(row)
        with suppress(IntegrityError):
            return self._verified(row, root, index)
        return self._recheck(blob, root, index)

    def read_chunks(self, blob: BlobId, indexes: Sequence[int], *, verify: bool = True) -> list[bytes]:
        """Several chunks. Without ``verify`` they may be rotten: for a reader that checks them. Raises as :meth:`read_chunk`."""
        row = self._books.held(blob)
        if not verify:
            ranges = [(index * CHUNK_BYTES, chunk_size(row.size_bytes, index)) for index in indexes]
            with suppress(OSError):
                return read_ranges(self._shelf.content(blob), ranges)
        return [self.read_chunk(blob, index) for index in indexes]

    def _verified(self, row: BlobRow, root: BlobRoot | None, index: int) -> bytes:
        with disk_errors("reading a blob"):
            try:
                descriptor = os.open(self._shelf.content(row.id), READ_FLAGS)
                try:
                    data = read_at(descriptor, chunk_size(row.size_bytes, index), index * CHUNK_BYTES)
                finally:
                    os.close(descriptor)
            except OSError as error:
                if error.errno not in UNREADABLE:
                    raise
                raise IntegrityError(f"chunk {index} of blob {short(row.id)} cannot be read", reason=Reason.CORRUPT) from error
        check_chunk(root, row.id, index, data)
        return data

    def _recheck(self, blob: BlobId, root: BlobRoot | None, index: int) -> bytes:
        """The chunk was bad, or its blob changed meanwhile. Look once more with the claim, then believe it."""
        with self._books.claim(blob), disk_errors("setting a damaged blob aside"):
            row = self._books.held(blob)
            try:
                return self._verified(row, root, index)
            except IntegrityError:
                worse = self._shelf.demote(blob, self._books.current(row))
                self._books.forget(blob)
                self._uploads.forget(blob)
                self._books.put(blob, row.size_bytes, DAMAGED, worse.leases)
                raise

    def chunks(self, blob: BlobId) -> Iterator[bytes]:
        """All chunks in order, each verified. Raises as read_chunk."""
        for index in range(chunk_count(self.size(blob))):
            yield self.read_chunk(blob, index)

    def read_all(self, blob: BlobId, size_bytes_max: int) -> bytes:
        """The whole content. Raises as read_chunk, and RefusedError (too-large)."""
        if self.size(blob) > size_bytes_max:
            raise RefusedError(f"blob {short(blob)} is larger than {size_bytes_max} bytes", reason=Reason.TOO_LARGE)
        return b"".join(self.chunks(blob))

    def verify(self, blob: BlobId) -> bool:
        """Read every chunk, for the scrubber. False when one was corrupt: the blob is then damaged."""
        try:
            for _ in self.chunks(blob):
                pass
        except IntegrityError:
            return False
        return True

    # Leases and room

    def lease(self, blob: BlobId, owner: bytes, expires_ms: int, replicas: int = 1) -> None:
        """Add a lease, prolong one, or let it want more copies; never takes back. Raises RefusedError (no-blob, store-full)."""
        with self._books.claim(blob), disk_errors("writing a lease"):
            self._books.take_lease(self._books.row(blob), Lease(owner, expires_ms, replicas))

    def release(self, blob: BlobId, owner: bytes) -> bool:
        """Give a lease up; False when there was none. The blob goes at the next :meth:`expire` unless others lease it."""
        with self._books.claim(blob), disk_errors("writing a lease"):
            row = self._index.blob(blob)
            if row is None:
                return False
            leases = tuple(self._index.leases(blob))
            kept = tuple(lease for lease in leases if lease.owner != owner)
            if len(kept) < len(leases):
                self._books.keep_leases(row, kept, durable=True)
            return len(kept) < len(leases)

    def leases(self, blob: BlobId) -> list[Lease]:
        """Who wants this blob kept, and until when."""
        return self._index.leases(blob)

    def look(self, blobs: Sequence[BlobId]) -> list[tuple[BlobRow | None, list[Lease]]]:
        """The rows and leases of many blobs at once, in their order; None for what is not here."""
        return [(self._index.blob(blob), self._index.leases(blob)) for blob in blobs]

    def replicated(self, now_ms: int, after: bytes = b"", limit: int = 1000) -> list[BlobId]:
        """A page of held blobs behind ``after`` of which a live lease wants more than one copy, ordered by id."""
        return self._index.replicated_blobs(now_ms, after, limit)

    def expire(self, now_ms: int) -> list[BlobId]:
        """Free every blob without a live lease that nobody is writing; returns them."""
        freed, after = list[BlobId](), b""
        while page := self._index.unleased_blobs(now_ms, after):
            after = page[-1].id
            freed += [row.id for row in page if self._expire_blob(row.id, now_ms)]
        # Blobs that live on may have leases that ended: their owners get the room back.
        seen: set[BlobId] = set()
        while fresh := [blob for blob in self._index.ended_leases(now_ms, 1000 + len(seen)) if blob not in seen]:
            seen.update(fresh)
            for blob in fresh:
                self._expire_blob(blob, now_ms)
        return freed

    def _expire_blob(self, blob: BlobId, now_ms: int) -> bool:
        with self._books.claim(blob), disk_errors("freeing a blob"):
            row = self._index.blob(blob)
            if row is None or self._uploads.is_open(blob):
                return False
            live = tuple(lease for lease in self._index.leases(blob) if lease.expires_ms > now_ms)
            if live:
                self._books.keep_leases(row, live, durable=False)
                return False
            self._uploads.forget(blob)
            self._books.delete(row)
            return True

    def delete(self, blob: BlobId) -> bool:
        """Remove a blob for good, whatever leases it has: the owner of this node says so. False when it was not here."""
        with self._books.claim(blob), disk_errors("deleting a blob"):
            row = self._index.blob(blob)
            if row is None:
                return False
            self._uploads.forget(blob)
            self._books.delete(row)
            self._disk.sync_folder(self._shelf.content(blob).parent)
            return True

    def usage(self) -> Usage:
        """Blobs and bytes, to the byte."""
        accounts = self._books.accounts
        with self._books.lock:
            return Usage(accounts.used_blobs, accounts.used_bytes, accounts.reserved_bytes, accounts.quota_bytes)

    def owner_bytes(self, owner: bytes) -> int:
        """Bytes that ``owner`` has under lease here."""
        with self._books.lock:
            return self._books.accounts.owner_bytes(owner)

    def list(self, after: bytes = b"", limit: int = 1000, state: str = "") -> Iterable[BlobRow]:
        """A page of blobs behind the id ``after``, ordered by id; ``state`` is held, partial, damaged or empty for all."""
        return self._index.blobs(after, limit, state)
