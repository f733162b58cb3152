"""What the parts of the blob store share: claims, accounts, index rows and leases, kept in step with the files.

1. Whoever changes a blob holds its claim; claims on different blobs do not wait for each other.
2. The order is always: accounts, files, index. What fails half-way is undone in reverse, and what a crash leaves
   half-way is sorted out from the files at the next start.
3. A lease is durable before it is acknowledged, and is only ever prolonged, not shortened, by taking it again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from p2pgrid.errors import IntegrityError, RefusedError, TryAgainError
from p2pgrid.model.blob import CHUNK_BYTES, BlobRoot
from p2pgrid.model.ids import BlobId, short
from p2pgrid.model.reasons import Reason
from p2pgrid.store.accounts import Accounts
from p2pgrid.store.index import HELD, BlobRow, Index, Lease
from p2pgrid.store.shelf import Meta, Shelf

CLAIM_WAIT_S = 30.0
LEASES_PER_BLOB_MAX = 64
_CACHE_BYTES_MAX = 4 << 20


class Books:
    """Shared by the threads that an Offload runs the store in."""

    changed: Callable[[BlobId], None] | None = None
    """Called from any of these threads when a blob has come, gone, or changed its state or leases. Must not block."""

    def __init__(self, shelf: Shelf, index: Index, accounts: Accounts) -> None:
        self.shelf, self.index, self.accounts = shelf, index, accounts
        self.lock = threading.Lock()
        self._changed = threading.Condition(self.lock)
        self._claimed: set[BlobId] = set()
        self._metas: OrderedDict[BlobId, Meta] = OrderedDict()
        self._metas_bytes = 0

    @contextmanager
    def claim(self, blob: BlobId) -> Iterator[None]:
        """Be the only one to change this blob. Raises TryAgainError when another change takes longer than 30 s."""
        with self._changed:
            if not self._changed.wait_for(lambda: blob not in self._claimed, CLAIM_WAIT_S):
                raise TryAgainError(f"blob {short(blob)} is being written", reason=Reason.BUSY)
            self._claimed.add(blob)
        try:
            yield
        finally:
            with self._changed:
                self._claimed.discard(blob)
                self._changed.notify_all()

    def row(self, blob: BlobId) -> BlobRow:
        """The row of a blob in any state. Raises RefusedError when there is none."""
        row = self.index.blob(blob)
        if row is None:
            raise no_blob(blob)
        return row

    def held(self, blob: BlobId) -> BlobRow:
        """The row of a blob that is whole. Raises RefusedError otherwise."""
        row = self.row(blob)
        if row.state != HELD:
            raise no_blob(blob)
        return row

    # Metadata, through a small cache: reading a chunk needs the root of its blob

    def meta(self, row: BlobRow, root: BlobRoot | None = None) -> Meta:
        """The metadata of a blob; its leases are those the sidecar knew, see :meth:`current`.

        Unreadable metadata is made anew from ``root`` (already checked), or from the content. Raises IntegrityError.
        """
        with self.lock:
            cached = self._metas.get(row.id)
            if cached is not None:
                self._metas.move_to_end(row.id)
                return cached
        meta = self.shelf.read_meta(row.id) or Meta(row.size_bytes, self._root(row, root), tuple(self.index.leases(row.id)))
        self._remember(row.id, meta)
        return meta

    def _root(self, row: BlobRow, root: BlobRoot | None) -> BlobRoot | None:
        if row.size_bytes <= CHUNK_BYTES or root is not None:
            return root
        found = self.shelf.root_of(row.id) if row.state == HELD else None
        if found is None:
            raise IntegrityError(f"blob {short(row.id)} and its metadata are damaged", reason=Reason.CORRUPT)
        return found[0]

    def current(self, row: BlobRow, root: BlobRoot | None = None) -> Meta:
        """The metadata with the leases of the index, which forgets ended ones without writing the sidecar."""
        return msgspec.structs.replace(self.meta(row, root), leases=tuple(self.index.leases(row.id)))

    def _remember(self, blob: BlobId, meta: Meta) -> None:
        with self.lock:
            self._drop(blob)
            self._metas[blob] = meta
            self._metas_bytes += _weight(meta)
            while self._metas_bytes > _CACHE_BYTES_MAX and len(self._metas) > 1:
                self._metas_bytes -= _weight(self._metas.popitem(last=False)[1])

    def _drop(self, blob: BlobId) -> None:
        old = self._metas.pop(blob, None)
        if old is not None:
            self._metas_bytes -= _weight(old)

    def forget(self, blob: BlobId) -> None:
        """The metadata on disk may have changed."""
        with self.lock:
            self._drop(blob)

    def write(self, blob: BlobId, meta: Meta, state: str) -> None:
        """Make new metadata of a known blob durable, then visible. Raises OSError."""
        self.forget(blob)
        self.shelf.write_meta(blob, meta)
        self.put(blob, meta.size_bytes, state, meta.leases)
        self._remember(blob, meta)

    def put(self, blob: BlobId, size_bytes: int, state: str, leases: tuple[Lease, ...]) -> None:
        """Make a blob visible as it is on disk now, and say so."""
        self.index.put_blob(blob, size_bytes, state, leases)
        self._tell(blob)

    def _tell(self, blob: BlobId) -> None:
        if self.changed is not None:
            self.changed(blob)

    # Leases

    def take_lease(self, row: BlobRow, lease: Lease, root: BlobRoot | None = None) -> None:
        """Add or prolong a lease on a known blob; the claim is held. Raises RefusedError, OSError."""
        meta = self.current(row, root)
        better = with_lease(meta, lease)
        if better == meta:
            return
        with self.charged(meta, lease.owner):
            self.write(row.id, better, row.state)

    @contextmanager
    def charged(self, before: Meta, owner: bytes) -> Iterator[None]:
        """Charge an owner for a lease that is new to the blob; taken back when the block fails."""
        fresh = all(known.owner != owner for known in before.leases)
        if fresh:
            self.charge(owner, before.size_bytes)
        try:
            yield
        except BaseException:
            if fresh:
                self.discharge(owner, before.size_bytes)
            raise

    def keep_leases(self, row: BlobRow, kept: tuple[Lease, ...], *, durable: bool) -> None:
        """Reduce the leases of a blob to ``kept``; the claim is held. What ended by itself need not be forgotten durably."""
        gone = {lease.owner for lease in self.index.leases(row.id)} - {lease.owner for lease in kept}
        if durable:
            self.write(row.id, msgspec.structs.replace(self.meta(row), leases=kept), row.state)
        else:
            self.put(row.id, row.size_bytes, row.state, kept)
        for owner in sorted(gone):
            self.discharge(owner, row.size_bytes)

    def charge(self, owner: bytes, size_bytes: int) -> None:
        with self.lock:
            self.accounts.lease(owner, size_bytes)

    def discharge(self, owner: bytes, size_bytes: int) -> None:
        with self.lock:
            self.accounts.unlease(owner, size_bytes)

    # Room

    def reserve(self, size_bytes: int) -> None:
        with self.lock:
            self.accounts.reserve(size_bytes)

    def unreserve(self, size_bytes: int) -> None:
        with self.lock:
            self.accounts.unreserve(size_bytes)

    def store(self, size_bytes: int) -> None:
        with self.lock:
            self.accounts.store(size_bytes)

    def delete(self, row: BlobRow) -> None:
        """Remove a blob in any state; the claim is held. Raises OSError."""
        owners = [lease.owner for lease in self.index.leases(row.id)]
        self.forget(row.id)
        self.shelf.discard(row.id)
        self.index.delete_blob(row.id)
        with self.lock:
            self.accounts.free(row.size_bytes)
            for owner in owners:
                self.accounts.unlease(owner, row.size_bytes)
        self._tell(row.id)


def with_lease(meta: Meta, lease: Lease) -> Meta:
    """Metadata with one lease more, or one that lasts longer or wants more copies. Raises RefusedError over the limit of leases."""
    others = tuple(known for known in meta.leases if known.owner != lease.owner)
    mine = next((known for known in meta.leases if known.owner == lease.owner), lease)
    if len(others) >= LEASES_PER_BLOB_MAX:
        raise RefusedError("too many owners hold this blob here", reason=Reason.STORE_FULL)
    if len(others) < len(meta.leases) and mine.expires_ms >= lease.expires_ms and mine.replicas >= lease.replicas:
        return meta
    best = Lease(lease.owner, max(mine.expires_ms, lease.expires_ms), max(mine.replicas, lease.replicas))
    return msgspec.structs.replace(meta, leases=(*others, best))


def no_blob(blob: BlobId) -> RefusedError:
    return RefusedError(f"blob {short(blob)} is not here", reason=Reason.NO_BLOB)


def _weight(meta: Meta) -> int:
    return 512 + (len(meta.root.chunks) if meta.root is not None else 0)
