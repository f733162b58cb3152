"""Where the files of a blob lie, and which of them count after a crash.

    ab/<hex>        the content: the blob is held
    ab/<hex>.part   content in progress, or damaged content that waits for good chunks
    ab/<hex>.meta   size, root and leases, checksummed: what the index is restored from
    tmp/<number>    content whose address is not known yet

1. A blob counts when its ``.meta`` and one of the other two are there. All else is a leftover of a crash and is
   removed at start.
2. Upload, commit and damage are each one rename between ``<hex>.part`` and ``<hex>``: there is no state between.
3. A content file without a readable ``.meta`` is hashed; if it is what its name says, it gets a lease of a week in
   nobody's name rather than being thrown away.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from blake3 import blake3

from p2pgrid.errors import MalformedError, P2PGridError
from p2pgrid.model.blob import CHUNK_BYTES, BlobHasher, BlobRoot, check_root
from p2pgrid.model.ids import DIGEST_BYTES, BlobId
from p2pgrid.store.disk import READ_FLAGS, Disk, read_at, regular_size
from p2pgrid.store.index import DAMAGED, HELD, PARTIAL, Lease

UNREADABLE = {errno.ENOENT, errno.EIO, errno.EISDIR}
"""What a file says that is not there any more, or lies on a bad sector: that file is damaged, not the whole store."""
ORPHAN_MS = 7 * 24 * 3600 * 1000
_META_BYTES_MAX = 2 << 20


class Meta(msgspec.Struct, frozen=True, array_like=True):
    """What is written beside a blob."""

    size_bytes: int
    root: BlobRoot | None
    leases: tuple[Lease, ...] = ()
    damaged: bool = False


class Found(msgspec.Struct, frozen=True):
    """One blob met while the folder was walked."""

    id: BlobId
    meta: Meta
    state: str


class RecoveryReport(msgspec.Struct, kw_only=True):
    """What starting the blob store found on disk. ``scanned`` is False when a clean index made a look unnecessary."""

    scanned: bool = False
    blobs: int = 0
    leftovers_removed: int = 0
    damaged: int = 0
    """Blobs whose files do not fit together; they wait to be healed."""
    orphans: int = 0
    """Blobs whose metadata was unreadable; kept for a week."""
    lost: int = 0
    """Files that were neither readable nor what their name says."""

    @property
    def why(self) -> str:
        """In words what was wrong, empty when nothing was. Leftovers are what every crash may leave."""
        found = []
        if self.lost:
            found.append(f"blobs beyond use, now gone: {self.lost}")
        if self.damaged:
            found.append(f"damaged blobs, to be healed: {self.damaged}")
        if self.orphans:
            found.append(f"blobs that lost their leases, kept for a week: {self.orphans}")
        return "; ".join(found)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Meta)


class Shelf:
    """The files of the blobs. Raises OSError: the store maps it. Callers hold the claim of the blob they change."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        self.folder, self.disk = folder, disk
        self.tmp = folder / "tmp"
        self._known: set[str] = set()

    def content(self, blob: BlobId) -> Path:
        name = blob.hex()
        return self.folder / name[:2] / name

    def part(self, blob: BlobId) -> Path:
        return self.content(blob).with_suffix(".part")

    def meta(self, blob: BlobId) -> Path:
        return self.content(blob).with_suffix(".meta")

    def make_room(self, blob: BlobId) -> Path:
        """Make the folder a blob belongs into durable; returns it."""
        folder = self.content(blob).parent
        if folder.name not in self._known:
            self.disk.make_folder(folder)
            self.disk.sync_folder(self.folder)
            self._known.add(folder.name)
        return folder

    def write_meta(self, blob: BlobId, meta: Meta, *, sync_name: bool = True) -> None:
        body = _encoder.encode(meta)
        self.disk.replace_file(self.meta(blob), blake3(body).digest() + body, sync_name=sync_name)

    def read_meta(self, blob: BlobId) -> Meta | None:
        """The metadata of a blob, or None when there is none or it is damaged."""
        try:
            descriptor = os.open(self.meta(blob), READ_FLAGS)
            try:
                raw = read_at(descriptor, _META_BYTES_MAX, 0)
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno not in UNREADABLE:
                raise
            return None
        check, body = raw[:DIGEST_BYTES], raw[DIGEST_BYTES:]
        if blake3(body).digest() != check:
            return None
        try:
            meta = _decoder.decode(body)
            check_root(meta.root, blob, meta.size_bytes)
        except (msgspec.MsgspecError, P2PGridError):
            return None
        return meta

    def discard(self, blob: BlobId) -> None:
        """Remove all files of a blob. The content goes first: metadata alone never counts."""
        self.disk.unlink(self.content(blob))
        self.disk.unlink(self.part(blob))
        self.disk.unlink(self.meta(blob))

    def reclaim(self, blob: BlobId) -> None:
        """After a commit that failed behind its rename, the content of an upload lies under its final name: take it back."""
        if not self.part(blob).exists() and self.content(blob).exists():
            self.disk.rename(self.content(blob), self.part(blob))

    def clear_tmp(self) -> int:
        """Remove contents that never got a name; returns how many."""
        self.disk.make_folder(self.tmp)
        left = list(self.tmp.iterdir())
        for path in left:
            self.disk.unlink(path)
        return len(left)

    def walk(self, now_ms: int, report: RecoveryReport) -> Iterator[Found]:
        """Every blob on disk, with leftovers removed on the way and counted in ``report``.

        What is found is acknowledged to whoever brings it again, so names that a killed process left unsynced are synced.
        """
        for folder in sorted(self.folder.iterdir()):
            if len(folder.name) != 2 or not folder.is_dir():
                continue
            names = {path.name for path in folder.iterdir()}
            for stem in sorted({name.split(".")[0] for name in names}):
                blob = _blob_of(stem, folder.name)
                if blob is None:
                    continue
                found = self._recover(blob, {name for name in names if name.split(".")[0] == stem}, now_ms, report)
                if found is not None:
                    report.blobs += 1
                    yield found
            self.disk.sync_folder(folder)

    def _recover(self, blob: BlobId, names: set[str], now_ms: int, report: RecoveryReport) -> Found | None:
        stem = blob.hex()
        stray = {name for name in names if name not in (stem, f"{stem}.part", f"{stem}.meta")}
        meta = self.read_meta(blob) if f"{stem}.meta" in names else None
        if stem in names:
            stray |= names & {f"{stem}.part"}
        elif f"{stem}.part" not in names or meta is None:
            stray |= names
            meta = None
        for name in sorted(stray):
            self.disk.unlink(self.content(blob).parent / name)
        report.leftovers_removed += len(stray)
        if stem in names:
            return self._recover_content(blob, meta, now_ms, report)
        return Found(blob, meta, DAMAGED if meta.damaged else PARTIAL) if meta is not None else None

    def _recover_content(self, blob: BlobId, meta: Meta | None, now_ms: int, report: RecoveryReport) -> Found | None:
        if meta is None:
            meta = self._adopt(blob, now_ms)
            if meta is None:
                self.discard(blob)
                report.lost += 1
                return None
            report.orphans += 1
        if self.content(blob).stat().st_size == meta.size_bytes:
            return Found(blob, meta, HELD)
        report.damaged += 1
        return Found(blob, self.demote(blob, meta), DAMAGED)

    def _adopt(self, blob: BlobId, now_ms: int) -> Meta | None:
        found = self.root_of(blob)
        if found is None:
            return None
        meta = Meta(self.content(blob).stat().st_size, found[0], (Lease(b"", now_ms + ORPHAN_MS),))
        self.write_meta(blob, meta)
        return meta

    def root_of(self, blob: BlobId) -> tuple[BlobRoot | None] | None:
        """The root of a held blob from its content, in a tuple; None when the content is not the blob's."""
        hasher = BlobHasher()
        try:
            for data in self.pieces(self.content(blob)):
                hasher.update(data)
        except OSError as error:
            if error.errno not in UNREADABLE:
                raise
            return None
        found, root = hasher.finish()
        return (root,) if found == blob else None

    def demote(self, blob: BlobId, meta: Meta) -> Meta:
        """Turn held content into content that waits to be healed; its good chunks are found again by the next writer."""
        worse = msgspec.structs.replace(meta, damaged=True)
        self.write_meta(blob, worse, sync_name=False)
        if self.content(blob).exists():
            self.disk.rename(self.content(blob), self.part(blob))
        else:
            self.disk.close(self.disk.create(self.part(blob)))
        self.disk.sync_folder(self.content(blob).parent)
        return worse

    @staticmethod
    def pieces(path: Path) -> Iterator[bytes]:
        """The content of a file, a chunk at a time."""
        descriptor = os.open(path, READ_FLAGS)
        try:
            if regular_size(descriptor) is None:
                raise MalformedError("a blob is not a regular file")
            offset = 0
            while data := read_at(descriptor, CHUNK_BYTES, offset):
                yield data
                offset += len(data)
        finally:
            os.close(descriptor)


def load(shelf: Shelf, now_ms: int, put: Callable[[Found], None]) -> RecoveryReport:
    """Walk the whole folder and hand every blob to ``put``."""
    report = RecoveryReport(scanned=True)
    for found in shelf.walk(now_ms, report):
        put(found)
    return report


def _blob_of(stem: str, folder: str) -> BlobId | None:
    try:
        blob = bytes.fromhex(stem)
    except ValueError:
        return None
    return BlobId(blob) if len(blob) == DIGEST_BYTES and blob.hex() == stem and stem[:2] == folder else None
