"""How finished content gets its name: the one place where a blob becomes visible in one go.

Metadata first, then one rename, then the names are synced, then the index. Metadata alone never counts, so a crash before
the rename leaves nothing, and one after it leaves the blob.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import msgspec

from p2pgrid.model.blob import BlobRoot
from p2pgrid.model.ids import BlobId
from p2pgrid.store.books import Books, with_lease
from p2pgrid.store.index import HELD, Lease
from p2pgrid.store.shelf import Meta
from p2pgrid.store.uploads import Uploads


class Temporary:
    """Content on its way to its address, with the room it holds. Leaving the block gives back what was not installed."""

    def __init__(self, books: Books, uploads: Uploads, path: Path, size_bytes: int, reserved: bool) -> None:
        self.path = path
        self._books, self._uploads, self._size_bytes = books, uploads, size_bytes
        self._reserved = reserved

    def __enter__(self) -> Temporary:
        return self

    def __exit__(self, *_: object) -> None:
        if self._reserved:
            self._books.unreserve(self._size_bytes)
        with suppress(OSError):
            self._books.shelf.disk.unlink(self.path)

    def install(self, blob: BlobId, root: BlobRoot | None, lease: Lease) -> None:
        """Move the content to its address; the claim is held. An upload of the same blob is complete by that."""
        books = self._books
        row = books.index.blob(blob)
        before = books.current(row, root) if row is not None else Meta(self._size_bytes, root)
        after = with_lease(before, lease)
        try:
            with books.charged(before, lease.owner):
                self._place(blob, after, known=row is not None)
        except BaseException:
            if row is None:
                with suppress(OSError):
                    books.shelf.discard(blob)
            raise
        if row is None:
            self._reserved = False
            books.store(self._size_bytes)

    def _place(self, blob: BlobId, meta: Meta, *, known: bool) -> None:
        books, shelf = self._books, self._books.shelf
        folder = shelf.make_room(blob)
        books.forget(blob)
        shelf.write_meta(blob, meta, sync_name=False)
        shelf.disk.rename(self.path, shelf.content(blob))
        shelf.disk.sync_folder(folder)
        if meta.damaged:
            # Not before the rename: a crash between the two would make an upload of a blob that waits to be healed.
            shelf.write_meta(blob, msgspec.structs.replace(meta, damaged=False))
        books.put(blob, meta.size_bytes, HELD, meta.leases)
        if known:
            self._uploads.forget(blob)
            shelf.disk.unlink(shelf.part(blob))
