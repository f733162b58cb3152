"""How many copies a lease wants: kept on disk and in the index, read from older files, and told of when it changes."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import msgspec
import pytest
from blake3 import blake3

from p2pgrid.errors import P2PGridError
from p2pgrid.model.blob import CHUNK_BYTES
from p2pgrid.model.ids import BlobId
from p2pgrid.store.blobs import BlobStore
from p2pgrid.store.index import DAMAGED, HELD, SCHEMA_VERSION, Index, Lease

QUOTA = 8 * CHUNK_BYTES


def opened(folder: Path, *, scan: bool = True) -> tuple[BlobStore, Index]:
    index, _ = Index.open(folder / "index.sqlite")
    return BlobStore(folder / "blobs", QUOTA, index, now_ms=0, scan=scan), index


def test_the_number_outlives_the_node_and_its_index(tmp_path: Path) -> None:
    store, index = opened(tmp_path)
    blob = store.put_bytes(b"content", owner=b"me", expires_ms=50, replicas=3)
    store.lease(blob, b"you", 60)
    expected = [Lease(b"me", 50, 3), Lease(b"you", 60, 1)]
    assert store.leases(blob) == expected
    index.close()
    store, index = opened(tmp_path, scan=False)
    assert store.leases(blob) == expected
    index.close()
    (tmp_path / "index.sqlite").unlink()
    store, index = opened(tmp_path)
    assert store.leases(blob) == expected
    index.close()


def test_taking_a_lease_again_only_asks_for_more(tmp_path: Path) -> None:
    store, index = opened(tmp_path)
    blob = store.put_bytes(b"content", owner=b"me", expires_ms=50, replicas=3)
    for expires_ms, replicas, expected in ((40, 2, (50, 3)), (70, 1, (70, 3)), (10, 5, (70, 5))):
        store.lease(blob, b"me", expires_ms, replicas)
        assert store.leases(blob) == [Lease(b"me", *expected)]
    assert store.owner_bytes(b"me") == len(b"content")
    index.close()


def write_old_meta(store: BlobStore, blob: BlobId, leases: list[tuple[bytes, int]]) -> None:
    """As it was written before leases had a number of copies."""
    path = store.path(blob).with_suffix(".meta")
    size_bytes, root, _, damaged = msgspec.msgpack.decode(path.read_bytes()[32:])
    body = msgspec.msgpack.encode([size_bytes, root, [list(lease) for lease in leases], damaged])
    path.write_bytes(blake3(body).digest() + body)


def test_older_files_want_one_copy(tmp_path: Path) -> None:
    store, index = opened(tmp_path)
    small = store.put_bytes(b"content", owner=b"me", expires_ms=50, replicas=3)
    large = store.put_bytes(b"x" * (CHUNK_BYTES + 7), owner=b"me", expires_ms=50)
    for blob in (small, large):
        write_old_meta(store, blob, [(b"me", 50), (b"you", 60)])
    index.close()
    store, index = opened(tmp_path)
    for blob in (small, large):
        assert store.leases(blob) == [Lease(b"me", 50, 1), Lease(b"you", 60, 1)]
        assert store.verify(blob)
    assert store.owner_bytes(b"you") == 7 + CHUNK_BYTES + 7
    store.lease(small, b"you", 60, 2)
    assert store.leases(small)[1] == Lease(b"you", 60, 2)
    index.close()


def test_an_index_of_the_first_schema_is_brought_up_to_date_with_all_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    store, index = opened(tmp_path)
    blob = store.put_bytes(b"content", owner=b"me", expires_ms=50)
    index.close()
    database = sqlite3.connect(path)
    database.executescript(
        "ALTER TABLE leases DROP COLUMN replicas;"
        "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;"
        "INSERT INTO jobs VALUES (zeroblob(32), 'led', 'a', x'00', 1, 2, 'done', 1, 1, 0, x'00');"
        "PRAGMA user_version = 1;"
    )
    database.close()
    for mark in tmp_path.glob("index.sqlite.clean"):
        mark.unlink()
    index, report = Index.open(path)
    assert not report.rebuilt
    assert [row.name for row in index.jobs()] == ["a"]
    assert index.leases(blob) == [Lease(b"me", 50, 1)]
    index.put_blob(blob, 7, HELD, [Lease(b"me", 50, 4)])
    assert index.leases(blob) == [Lease(b"me", 50, 4)]
    index.close()
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    database.close()


def test_what_wants_copies_is_listed_by_page_and_only_while_it_is_whole_and_wanted(tmp_path: Path) -> None:
    store, index = opened(tmp_path)
    blobs = sorted(store.put_bytes(b"%d" % number, owner=b"me", expires_ms=100, replicas=1 + number % 3) for number in range(30))
    wanted = [blob for blob in blobs if store.leases(blob)[0].replicas > 1]
    store.lease(wanted[0], b"you", 200, 2)
    found: list[BlobId] = []
    while page := store.replicated(50, found[-1] if found else b"", 7):
        assert len(page) <= 7
        found += page
    assert found == wanted
    assert store.replicated(150) == wanted[:1]
    store.path(wanted[1]).write_bytes(b"rot")
    assert not store.verify(wanted[1])
    assert wanted[1] not in store.replicated(50)
    looked = store.look([wanted[1], BlobId(b"n" * 32)])
    assert looked[0][0] is not None
    assert (looked[0][0].state, looked[0][1][0].replicas, looked[1]) == (DAMAGED, store.leases(wanted[1])[0].replicas, (None, []))
    index.close()


def test_every_change_is_told(tmp_path: Path) -> None:
    store, index = opened(tmp_path)
    told: list[BlobId] = []
    store.on_change(told.append)

    def news() -> list[BlobId]:
        found, told[:] = list(told), []
        return found

    blob = store.put_bytes(b"content", owner=b"me", expires_ms=50, replicas=2)
    assert news() == [blob]
    store.put_bytes(b"content", owner=b"me", expires_ms=50, replicas=2)
    assert news() == []
    store.lease(blob, b"you", 70, 3)
    assert news() == [blob]
    store.release(blob, b"you")
    assert news() == [blob]
    store.path(blob).write_bytes(b"rotten!")
    with pytest.raises(P2PGridError):
        store.read_chunk(blob, 0)
    assert news() == [blob]
    store.put_bytes(b"content", owner=b"me", expires_ms=50)
    assert set(news()) == {blob}
    assert store.expire(60) == [blob]
    assert news() == [blob]
    other = store.put_bytes(b"other", owner=b"me", expires_ms=50)
    store.delete(other)
    assert news() == [other, other]
    index.close()


def test_changes_are_told_from_any_thread(tmp_path: Path) -> None:
    store, index = opened(tmp_path)
    told: list[BlobId] = []
    store.on_change(told.append)
    threads = [
        threading.Thread(target=lambda number=number: store.put_bytes(b"%d" % number, owner=b"me", expires_ms=50)) for number in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(told)) == 20
    index.close()


def test_what_no_lease_holds_is_freed_to_the_byte(tmp_path: Path) -> None:
    store, index = opened(tmp_path)
    sizes = {
        store.put_bytes(bytes([number]) * (number * 1000 + 1), owner=b"me", expires_ms=number, replicas=3): number for number in range(20)
    }
    everything = sum(number * 1000 + 1 for number in range(20))
    assert store.usage().used_bytes == store.owner_bytes(b"me") == everything
    for blob, number in sizes.items():
        if number % 2:
            store.lease(blob, b"copier", 30, 3)
    freed = store.expire(10)
    assert sorted(sizes[blob] for blob in freed) == [0, 2, 4, 6, 8, 10]
    left = [number for number in range(20) if number > 10 or number % 2]
    assert store.usage().used_bytes == sum(number * 1000 + 1 for number in left)
    assert store.owner_bytes(b"me") == sum(number * 1000 + 1 for number in range(11, 20))
    for blob in sizes:
        store.release(blob, b"copier")
        store.release(blob, b"me")
    assert store.owner_bytes(b"me") == store.owner_bytes(b"copier") == 0
    store.expire(10)
    assert (store.usage().used_bytes, store.usage().blobs) == (0, 0)
    assert not [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]
    index.close()
