"""How what comes from the grid gets its name on the owner's disk: written beside it, and renamed when it is whole.

1. At the wanted name there is nothing, or the whole. A file in progress is hidden beside it and called after the blob.
2. What an interrupted run left is not believed: each chunk is checked against the root before the rest is asked for.
3. A file in progress that is a link, has a second name or belongs to somebody else is refused: in a folder that others
   may write to, it could lead anywhere.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from p2pgrid.client.transfer import Incoming
from p2pgrid.errors import IntegrityError, RefusedError
from p2pgrid.model.blob import CHUNK_BYTES, BlobRoot, check_chunk, chunk_count, chunk_size
from p2pgrid.model.ids import to_text
from p2pgrid.model.reasons import Reason
from p2pgrid.store.disk import Disk, read_at

_BINARY: int = getattr(os, "O_BINARY", 0)
_NO_FOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
PART_NAME_BYTES = 120
FILE_MODE = 0o666
EXECUTABLE_MODE = 0o777
"""Before the owner's umask."""


@contextmanager
def target_errors(target: Path) -> Iterator[None]:
    """Map every OSError of the block to what the owner can do about it."""
    try:
        yield
    except OSError as error:
        text = f"'{target}' cannot be written: {error.strerror or error}"
        if error.errno in _FULL:
            raise RefusedError(text, reason=Reason.DISK_FULL, hint="free some space; the same command goes on where it was") from error
        raise RefusedError(text, hint="choose another place with -o") from error


def part_of(target: Path, blob: bytes) -> Path:
    """Where a blob that becomes ``target`` is gathered."""
    name = target.name.encode()[:PART_NAME_BYTES].decode(errors="ignore")
    return target.with_name(f".{name}.{to_text(blob)[:16]}.part")


class Part:
    """A file in progress. Calls block; OSErrors are the caller's to map."""

    def __init__(self, path: Path, incoming: Incoming, *, mode: int = FILE_MODE) -> None:
        """Open what an earlier run left, or begin. Raises RefusedError for what is not ours."""
        self.path = path
        self._incoming = incoming
        self._disk, self._lock = Disk(), threading.Lock()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _BINARY | _NO_FOLLOW, mode)
        try:
            status = os.fstat(self._descriptor)
            foreign = hasattr(os, "geteuid") and status.st_uid != os.geteuid()
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or foreign:
                raise RefusedError(f"'{path}' is in the way", reason=Reason.BAD_NAME, hint="remove it, or choose another place with -o")
        except BaseException:
            os.close(self._descriptor)
            raise

    def first_missing(self) -> int:
        """The first chunk that is not there, or not right."""
        size_bytes = self._incoming.size_bytes
        for index in range(chunk_count(size_bytes)):
            data = read_at(self._descriptor, chunk_size(size_bytes, index), index * CHUNK_BYTES)
            if not data or not is_chunk(self._incoming.root, self._incoming.blob, index, data):
                return index
        return chunk_count(size_bytes)

    def write(self, group: Sequence[tuple[int, bytes]]) -> None:
        """Write chunks. Nothing is written any more once it was closed: the descriptor may be another file's by then."""
        with self._lock:
            for index, data in group:
                if self._descriptor >= 0:
                    self._disk.write_at(self._descriptor, data, index * CHUNK_BYTES)

    def place(self, target: Path) -> None:
        """Give the whole file its name."""
        os.ftruncate(self._descriptor, self._incoming.size_bytes)
        os.replace(self.path, target)

    def close(self) -> None:
        """Leave the file to a later run; an empty one goes. Waits for a write that goes on."""
        with self._lock:
            empty = not os.fstat(self._descriptor).st_size
            os.close(self._descriptor)
            self._descriptor = -1
        if empty and self._incoming.size_bytes:
            with suppress(OSError):
                self.path.unlink()


def is_chunk(root: BlobRoot | None, blob: bytes, index: int, data: bytes) -> bool:
    """Whether these bytes are that chunk of a blob."""
    try:
        check_chunk(root, blob, index, data)
    except IntegrityError:
        return False
    return True


def holds(path: Path, incoming: Incoming) -> bool:
    """Whether a file has exactly the content of a blob. Links are not followed. Raises OSError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | _BINARY | _NO_FOLLOW)
    except FileNotFoundError:
        return False
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size != incoming.size_bytes:
            return False
        return all(
            is_chunk(incoming.root, incoming.blob, index, read_at(descriptor, CHUNK_BYTES, index * CHUNK_BYTES))
            for index in range(chunk_count(incoming.size_bytes))
        )
    finally:
        os.close(descriptor)


def check_place(target: Path) -> None:
    """Raise RefusedError now for a place that could not be written to after all has been fetched."""
    with target_errors(target):
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISDIR(os.stat(target.parent).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(target.parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
