"""Result files made by strangers: links, pipes, second names, files that grow."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pgrid.errors import BadDataError
from p2pgrid.model.blob import blob_id_of
from p2pgrid.model.reasons import Reason
from p2pgrid.store.blobs import BlobStore
from p2pgrid.store.disk import Disk
from p2pgrid.store.index import Index

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs links and pipes")


class GrowingDisk(Disk):
    """The stranger writes to the file while it is copied."""

    victim: Path | None = None
    size_bytes = 0

    def write_at(self, descriptor: int, data: bytes | memoryview, offset: int) -> None:
        super().write_at(descriptor, data, offset)
        if self.victim is not None:
            os.truncate(self.victim, self.size_bytes)


@pytest.fixture
def disk() -> GrowingDisk:
    return GrowingDisk()


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    scratch = tmp_path / "scratch"
    (scratch / "deep" / "er").mkdir(parents=True)
    (scratch / "deep" / "er" / "good").write_bytes(b"good")
    (scratch / "good").write_bytes(b"good")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key").write_bytes(b"key")
    return scratch


@pytest.fixture
def store(tmp_path: Path, disk: GrowingDisk) -> Iterator[BlobStore]:
    index, _ = Index.open(tmp_path / "index.sqlite")
    yield BlobStore(tmp_path / "blobs", 1 << 24, index, now_ms=0, disk=disk)
    index.close()


def refused(store: BlobStore, path: Path | str, folder: Path | None = None, size_bytes_max: int = 100) -> str:
    with pytest.raises(BadDataError) as caught:
        store.ingest(path, size_bytes_max, owner=b"me", expires_ms=1, folder=folder)
    assert list(store.list()) == []
    assert store.usage().reserved_bytes == 0
    return caught.value.reason


def test_an_honest_file_is_taken_by_path_and_by_name(store: BlobStore, scratch: Path) -> None:
    assert store.ingest(scratch / "good", 4, owner=b"me", expires_ms=1) == blob_id_of(b"good")
    assert store.ingest("deep/er/good", 4, owner=b"me", expires_ms=1, folder=scratch) == blob_id_of(b"good")


def test_links_are_not_followed(store: BlobStore, scratch: Path, tmp_path: Path) -> None:
    (scratch / "link").symlink_to(tmp_path / "secret")
    refused(store, scratch / "link")
    refused(store, "link", scratch)


def test_links_on_the_way_are_not_followed(store: BlobStore, scratch: Path, tmp_path: Path) -> None:
    (scratch / "outbox").symlink_to(tmp_path / "private")
    (scratch / "deep" / "outbox").symlink_to(tmp_path / "private")
    refused(store, "outbox/key", scratch)
    refused(store, "deep/outbox/key", scratch)


def test_names_that_leave_the_folder_are_refused(store: BlobStore, scratch: Path, tmp_path: Path) -> None:
    for name in ("../secret", str(tmp_path / "secret"), "deep/../../secret"):
        assert refused(store, name, scratch) == Reason.BAD_NAME


def test_second_names_of_a_file_are_refused(store: BlobStore, scratch: Path, tmp_path: Path) -> None:
    os.link(tmp_path / "secret", scratch / "hard")
    assert refused(store, scratch / "hard") == Reason.BAD_NAME


def test_pipes_devices_sockets_and_folders_are_refused_at_once(store: BlobStore, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(scratch / "pipe")
    monkeypatch.chdir(scratch)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        for path in (scratch / "pipe", scratch / "socket", scratch, Path("/dev/zero"), scratch / "none"):
            refused(store, path)


def test_files_over_the_limit_are_refused_unread(store: BlobStore, scratch: Path) -> None:
    os.truncate(scratch / "good", 1 << 40)
    assert refused(store, scratch / "good") == Reason.TOO_LARGE
    assert refused(store, scratch / "good", size_bytes_max=1 << 50) == Reason.TOO_LARGE


@pytest.mark.parametrize("size_bytes", [2 << 20, (4 << 20) - 1, (4 << 20) + 1, 1 << 40])
def test_a_file_that_changes_its_size_while_it_is_copied_is_refused(
    store: BlobStore, scratch: Path, disk: GrowingDisk, size_bytes: int
) -> None:
    os.truncate(scratch / "good", 4 << 20)
    disk.victim, disk.size_bytes = scratch / "good", size_bytes
    refused(store, scratch / "good", size_bytes_max=1 << 30)
