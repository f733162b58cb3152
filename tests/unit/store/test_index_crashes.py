"""An index that was deleted, cut, overwritten or flipped is made anew from what lies on the disk, and says so."""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from p2pgrid.errors import TryAgainError
from p2pgrid.model.blob import address_of
from p2pgrid.model.ids import JobId, StatementId
from p2pgrid.store.blobs import BlobStore
from p2pgrid.store.index import Index, IndexReport, JobRow, Lease
from p2pgrid.testing.parts.disk import temporary_folder

BLOBS = {f"blob {number}".encode(): Lease(b"owner %d" % (number % 3), 100 + number) for number in range(20)}
JOBS = [
    JobRow(id=JobId(StatementId(bytes([number]) * 32)), role="led", name=f"job {number}", created_ms=number) for number in range(9, 0, -1)
]


@contextmanager
def opened(folder: Path) -> Iterator[tuple[Index, IndexReport, BlobStore]]:
    """Open the index and the blobs as a node does when it starts."""
    index, report = Index.open(folder / "index.sqlite", sync=False)
    try:
        scan = report.rebuilt or not report.was_clean
        yield index, report, BlobStore(folder / "blobs", 1 << 30, index, now_ms=0, scan=scan)
    finally:
        index.abandon()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A home whose last node ended in good order."""
    with temporary_folder() as folder:
        with opened(folder) as (index, _, store):
            for data, lease in BLOBS.items():
                store.put_bytes(data, owner=lease.owner, expires_ms=lease.expires_ms)
            for row in JOBS:
                index.put_job(row)
            index.close()
        yield folder


def check_blobs(store: BlobStore) -> None:
    """All blobs with their leases, and the room to the byte."""
    for data, lease in BLOBS.items():
        blob = address_of(data)[0]
        assert store.read_all(blob, 100) == data
        assert store.leases(blob) == [lease]
    owners = [sum(len(data) for data, lease in BLOBS.items() if lease.owner == b"owner %d" % number) for number in range(3)]
    assert [store.owner_bytes(b"owner %d" % number) for number in range(3)] == owners
    assert store.usage().used_bytes == sum(owners)


def check_made_anew(folder: Path) -> None:
    with opened(folder) as (index, report, store):
        assert (report.rebuilt, report.set_aside) == (True, True)
        assert report.why.startswith("it was damaged: ")
        assert index.jobs() == []
        check_blobs(store)
        index.put_job(JOBS[0])
    assert (folder / "index.sqlite.damaged").exists()


def test_an_index_that_was_closed_is_believed(folder: Path) -> None:
    for _ in range(2):
        with opened(folder) as (index, report, store):
            assert report == IndexReport(rebuilt=False, was_clean=True)
            assert not store.recovery.scanned
            assert index.jobs() == JOBS
            check_blobs(store)
            index.close()
            index.close()


def test_a_flipped_bit_anywhere_in_a_closed_index_is_noticed(folder: Path) -> None:
    path = folder / "index.sqlite"
    whole, mark = path.read_bytes(), Path(f"{path}.clean").read_bytes()
    for place in range(0, len(whole), 97):
        raw = bytearray(whole)
        raw[place] ^= 1 << place % 8
        path.write_bytes(raw)
        Path(f"{path}.clean").write_bytes(mark)
        check_made_anew(folder)


def test_an_index_cut_off_anywhere_is_made_anew(folder: Path) -> None:
    path = folder / "index.sqlite"
    whole = path.read_bytes()
    for place in range(0, len(whole), 512):
        path.write_bytes(whole[:place])
        Path(f"{path}.clean").write_bytes(b"?" * 32)
        check_made_anew(folder)


@pytest.mark.parametrize("power_cut", [False, True])
def test_whatever_is_in_the_index_of_a_killed_node_the_blobs_come_from_the_disk(folder: Path, power_cut: bool) -> None:
    path, chance = folder / "index.sqlite", random.Random(4)
    whole = path.read_bytes()
    rebuilt = 0
    for turn in range(150):
        raw = bytearray(whole)
        if turn % 3 == 0:
            del raw[chance.randrange(len(raw)) :]
        for _ in range(turn % 3):
            place = chance.randrange(len(raw))
            raw[place : place + 40] = chance.randbytes(len(raw[place : place + 40]))
        for left in folder.glob("index.sqlite*"):
            left.unlink()
        path.write_bytes(raw)
        if power_cut:
            Path(f"{path}-wal").write_bytes(chance.randbytes(chance.randrange(9000)))
            Path(f"{path}-shm").write_bytes(chance.randbytes(32768))
        with opened(folder) as (_, report, store):
            assert not report.was_clean
            assert report.rebuilt == bool(report.why)
            rebuilt += report.rebuilt
            check_blobs(store)
    assert rebuilt > 20


@pytest.mark.parametrize("harm", ["deleted", "deleted but for its journal", "a folder", "newer schema", "another database"])
def test_an_index_of_another_kind_is_made_anew(folder: Path, harm: str) -> None:
    path = folder / "index.sqlite"
    if harm == "newer schema":
        database = sqlite3.connect(path)
        database.execute("PRAGMA user_version = 77")
        database.close()
    else:
        path.unlink()
    if harm == "a folder":
        path.mkdir()
    if harm == "another database":
        database = sqlite3.connect(path)
        database.execute("CREATE TABLE something (other)")
        database.commit()
        database.close()
    if harm == "deleted but for its journal":
        Path(f"{path}-wal").write_bytes(os.urandom(5000))
    if harm.startswith("deleted"):
        with opened(folder) as (_, report, store):
            assert report == IndexReport(rebuilt=True, was_clean=False, why="there was none")
            check_blobs(store)
    else:
        check_made_anew(folder)


def test_an_index_of_the_schema_before_is_brought_up_to_date(folder: Path) -> None:
    path = folder / "index.sqlite"
    database = sqlite3.connect(path)
    database.executescript("ALTER TABLE leases DROP COLUMN replicas; CREATE TABLE meta (name, value); PRAGMA user_version = 1")
    database.close()
    Path(f"{path}.clean").unlink()
    with opened(folder) as (index, report, store):
        assert (report.rebuilt, report.was_clean) == (False, False)
        assert index.jobs() == JOBS
        check_blobs(store)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write to everything")
def test_an_index_that_may_not_be_written_to_is_made_anew(folder: Path) -> None:
    (folder / "index.sqlite").chmod(0o400)
    check_made_anew(folder)


def test_an_index_that_is_in_use_is_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, connect = folder / "index.sqlite", sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **options: connect(path, **{**options, "timeout": 0.0}))
    holder = connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(TryAgainError):
        Index.open(path, sync=False)
    holder.close()
    assert not (folder / "index.sqlite.damaged").exists()
    with opened(folder) as (index, report, store):
        assert not report.rebuilt
        assert index.jobs() == JOBS
        check_blobs(store)
