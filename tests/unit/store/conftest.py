"""A blob store in a temporary folder, and disks that fail on demand."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from p2pgrid.store.blobs import BlobStore
from p2pgrid.store.disk import Disk
from p2pgrid.store.index import Index

OpenStore = Callable[..., BlobStore]


class Crash(BaseException):
    """The world stops. No `except Exception` may catch this."""


class FailingDisk(Disk):
    """Fails at the n-th operation that changes the disk, and, as a crash, at every one after it."""

    def __init__(self, fail_at: int, *, crash: bool = False, kinds: frozenset[str] | None = None, code: int = errno.ENOSPC) -> None:
        self.fail_at, self.crash, self.kinds, self.code = fail_at, crash, kinds, code
        self.operations = 0

    def _count(self, kind: str) -> None:
        if self.kinds is not None and kind not in self.kinds:
            return
        self.operations += 1
        if self.crash and self.operations >= self.fail_at:
            raise Crash
        if self.operations == self.fail_at:
            raise OSError(self.code, "planted")

    def create(self, path: Path, *, exclusive: bool = False) -> int:
        self._count("create")
        return super().create(path, exclusive=exclusive)

    def write_at(self, descriptor: int, data: bytes | memoryview, offset: int) -> None:
        try:
            self._count("write")
        except BaseException:
            # What fails in the middle has written its first half.
            super().write_at(descriptor, memoryview(data)[: len(data) // 2], offset)
            raise
        super().write_at(descriptor, data, offset)

    def sync(self, descriptor: int) -> None:
        self._count("sync")
        super().sync(descriptor)

    def sync_data(self, descriptor: int) -> None:
        self._count("sync")
        super().sync_data(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        self._count("rename")
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self._count("unlink")
        super().unlink(path)

    def sync_folder(self, path: Path) -> None:
        self._count("sync")
        super().sync_folder(path)


@pytest.fixture
def failing_disk() -> type[FailingDisk]:
    return FailingDisk


@pytest.fixture
def crash() -> type[Crash]:
    return Crash


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[OpenStore]:
    """Opens the same store again and again, as after restarts."""
    opened: list[Index] = []

    def open_store(quota_bytes: int = 1 << 30, **options: object) -> BlobStore:
        while opened:
            opened.pop().close()
        index, _ = Index.open(tmp_path / "index.sqlite")
        opened.append(index)
        return BlobStore(tmp_path / "blobs", quota_bytes, index, now_ms=0, **options)  # type: ignore[arg-type]

    yield open_store
    while opened:
        opened.pop().close()
