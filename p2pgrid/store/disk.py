"""The seam between the store and the file system, and the border where OSError ends.

Everything that changes the disk goes through :class:`Disk`, SQLite's own files apart: so a test can let the n-th
operation fail, and a simulation can take away whatever was not synced. Foreign errors become ours in
:func:`disk_errors`, and nowhere else in the store.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from p2pgrid.errors import ConfigError, P2PGridError, RefusedError, TryAgainError
from p2pgrid.model.reasons import Reason

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_BUSY = {errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EBUSY, errno.EINTR}
_BINARY: int = getattr(os, "O_BINARY", 0)
READ_FLAGS = os.O_RDONLY | _BINARY
_RANGE_WRITE = 2
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None) if sys.platform == "linux" else None


def mapped(error: OSError, what: str) -> P2PGridError:
    """Our error for a failed operation on the disk. ``what`` says what was being done."""
    text = f"{what}: {error.strerror or error}"
    if error.errno in _FULL:
        return RefusedError(text, reason=Reason.DISK_FULL, hint="free some space")
    if error.errno in _BUSY:
        return TryAgainError(text, reason=Reason.BUSY)
    return ConfigError(text, hint="check the disk and the permissions of the home folder")


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Map every OSError of the block. ``what`` completes the sentence, as ``writing a blob``."""
    try:
        yield
    except OSError as error:
        raise mapped(error, what) from error


class Disk:
    """The operations that change the disk. Raises OSError: callers stand inside :func:`disk_errors`."""

    syncs = True
    """Whether a sync reaches a medium; SQLite, which writes its own files, is told the same."""

    def create(self, path: Path, *, exclusive: bool = False) -> int:
        """Open for writing, mode 0600, creating the file if there is none. Returns a descriptor."""
        flags = os.O_RDWR | os.O_CREAT | _BINARY | getattr(os, "O_NOFOLLOW", 0) | (os.O_EXCL if exclusive else 0)
        return os.open(path, flags, 0o600)

    def modify(self, path: Path) -> int:
        """Open a file that exists for reading and writing. Returns a descriptor."""
        return os.open(path, os.O_RDWR | _BINARY | getattr(os, "O_NOFOLLOW", 0))

    def close(self, descriptor: int) -> None:
        """Close a descriptor that :meth:`create` or :meth:`modify` returned."""
        os.close(descriptor)

    def write_at(self, descriptor: int, data: bytes | memoryview, offset: int) -> None:
        """Write all of ``data`` at ``offset``."""
        os.lseek(descriptor, offset, os.SEEK_SET)
        view = memoryview(data)
        while len(view):
            view = view[os.write(descriptor, view) :]

    def sync(self, descriptor: int) -> None:
        """Wait until content and size are on the medium."""
        os.fsync(descriptor)

    def begin_sync(self, descriptor: int, offset: int, size_bytes: int) -> None:
        """Ask the system to begin to write a range to the medium, where it can be asked: a later sync waits less. No promise."""
        if self.syncs and _sync_file_range is not None:
            _sync_file_range(descriptor, ctypes.c_int64(offset), ctypes.c_int64(size_bytes), _RANGE_WRITE)

    def sync_data(self, descriptor: int) -> None:
        """As sync, without the times of the file where the system allows that."""
        getattr(os, "fdatasync", os.fsync)(descriptor)

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        os.ftruncate(descriptor, size_bytes)

    def rename(self, source: Path, target: Path) -> None:
        """Put ``source`` in the place of ``target`` atomically."""
        os.replace(source, target)

    def link(self, source: Path, target: Path) -> None:
        """Give ``source`` a second name. Raises FileExistsError when the name is taken."""
        os.link(source, target)

    def unlink(self, path: Path) -> None:
        """Remove a file; one that is not there is fine."""
        with suppress(FileNotFoundError):
            os.unlink(path)

    def make_folder(self, path: Path) -> None:
        """Make a folder and its parents, mode 0700; one that is there is fine."""
        path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def make_private(self, path: Path) -> None:
        """Give a folder that is there the mode 0700, where there are modes."""
        if os.name != "nt":
            path.chmod(0o700)

    def sync_folder(self, path: Path) -> None:
        """Make the names in a folder durable. Systems that cannot open folders do that by themselves."""
        if os.name == "nt":
            return
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def free_bytes_at(self, folder: Path) -> int | None:
        """Bytes that still fit on the disk of a folder, for this user; None where nobody can say."""
        try:
            return shutil.disk_usage(folder).free
        except OSError:
            return None

    def write_file(self, path: Path, data: bytes) -> None:
        """Create ``path`` with exactly ``data`` and sync its content, but not its name."""
        descriptor = self.create(path)
        try:
            self.truncate(descriptor, 0)
            self.write_at(descriptor, data, 0)
            self.sync(descriptor)
        finally:
            self.close(descriptor)

    def replace_file(self, path: Path, data: bytes, *, sync_name: bool = True) -> None:
        """Write a whole file atomically: readers see the old bytes or the new ones, also after a crash."""
        temporary = path.with_name(path.name + ".tmp")
        try:
            self.write_file(temporary, data)
            self.rename(temporary, path)
        except OSError:
            with suppress(OSError):
                self.unlink(temporary)
            raise
        if sync_name:
            self.sync_folder(path.parent)


def read_at(descriptor: int, size_bytes: int, offset: int) -> bytes:
    """Up to ``size_bytes`` from ``offset``, less only at the end of the file."""
    os.lseek(descriptor, offset, os.SEEK_SET)
    first = os.read(descriptor, size_bytes)
    if len(first) == size_bytes or not first:
        return first
    pieces, missing = [first], size_bytes - len(first)
    while missing and (piece := os.read(descriptor, missing)):
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def read_ranges(path: Path, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """The bytes at each (offset, size) of a file. Raises OSError, also for a file that is too short."""
    descriptor = os.open(path, READ_FLAGS)
    try:
        found = [read_at(descriptor, size_bytes, offset) for offset, size_bytes in ranges]
    finally:
        os.close(descriptor)
    if any(len(data) != size_bytes for data, (_, size_bytes) in zip(found, ranges, strict=True)):
        raise OSError(errno.EIO, "the file is too short")
    return found


def regular_size(descriptor: int) -> int | None:
    """The size of an open regular file, or None when it is something else."""
    status = os.fstat(descriptor)
    return status.st_size if stat.S_ISREG(status.st_mode) else None
