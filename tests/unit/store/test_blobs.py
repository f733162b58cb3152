"""The blob store: content, leases, quota, uploads, damage."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from p2pgrid.errors import BadDataError, IntegrityError, MalformedError, P2PGridError, RefusedError
from p2pgrid.model.blob import CHUNK_BYTES, address_of, blob_id_of
from p2pgrid.model.ids import BlobId
from p2pgrid.model.reasons import Reason
from p2pgrid.store.blobs import BlobStore
from p2pgrid.store.index import Index

OpenStore = Callable[..., BlobStore]
LARGE = bytes(range(256)) * 4096 * 2 + b"tail"
LARGE_ID, LARGE_ROOT = address_of(LARGE)
OTHER = b"o" * (CHUNK_BYTES + 1)
OTHER_ID, OTHER_ROOT = address_of(OTHER)
ME, YOU = b"me", b"you"


def chunk(index: int) -> bytes:
    return LARGE[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]


def path_of(tmp_path: Path, blob: BlobId) -> Path:
    return tmp_path / "blobs" / blob.hex()[:2] / blob.hex()


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x40]))


@pytest.mark.parametrize("content", [b"", b"abc", LARGE, LARGE[:CHUNK_BYTES]])
def test_what_is_put_is_read_back_also_after_a_restart(open_store: OpenStore, tmp_path: Path, content: bytes) -> None:
    store = open_store()
    blob = store.put_bytes(content, owner=ME, expires_ms=10)
    for options in (None, {}, {"scan": False}):
        store = store if options is None else open_store(**options)
        assert blob == blob_id_of(content)
        assert store.has(blob)
        assert store.size(blob) == len(content)
        assert store.root(blob) == address_of(content)[1]
        assert store.read_all(blob, len(content)) == content
        assert store.usage().used_bytes == len(content)
        assert [(lease.owner, lease.expires_ms) for lease in store.leases(blob)] == [(ME, 10)]


def test_files_are_private(open_store: OpenStore, tmp_path: Path) -> None:
    blob = open_store().put_bytes(b"abc", owner=ME, expires_ms=10)
    assert path_of(tmp_path, blob).stat().st_mode & 0o077 == 0
    assert (tmp_path / "blobs").stat().st_mode & 0o077 == 0


def test_put_file_takes_the_same_address_as_put_bytes(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store()
    (tmp_path / "input").write_bytes(LARGE)
    assert store.put_file(tmp_path / "input", owner=ME, expires_ms=10) == LARGE_ID
    assert store.put_bytes(LARGE, owner=YOU, expires_ms=20) == LARGE_ID
    assert store.usage().used_bytes == len(LARGE)
    assert len(store.leases(LARGE_ID)) == 2
    assert list((tmp_path / "blobs" / "tmp").iterdir()) == []


def test_what_is_no_readable_file_is_bad_data(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store()
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(BadDataError):
            store.put_file(path, owner=ME, expires_ms=1)
    assert store.usage().reserved_bytes == 0


def test_missing_blobs_are_refused_with_a_reason(open_store: OpenStore) -> None:
    store = open_store()
    for call in (lambda: store.size(LARGE_ID), lambda: store.read_chunk(LARGE_ID, 0), lambda: store.lease(LARGE_ID, ME, 1)):
        with pytest.raises(RefusedError) as caught:
            call()
        assert caught.value.reason == Reason.NO_BLOB
    assert not store.delete(LARGE_ID)
    assert not store.release(LARGE_ID, ME)


def test_read_limits_are_kept(open_store: OpenStore) -> None:
    store = open_store()
    blob = store.put_bytes(b"abc", owner=ME, expires_ms=10)
    with pytest.raises(RefusedError) as caught:
        store.read_all(blob, 2)
    assert caught.value.reason == Reason.TOO_LARGE
    for index in (-1, 1):
        with pytest.raises(MalformedError):
            store.read_chunk(blob, index)


def test_quota_holds_to_the_byte(open_store: OpenStore) -> None:
    store = open_store(10)
    first = store.put_bytes(b"12345", owner=ME, expires_ms=10)
    store.put_bytes(b"67890", owner=ME, expires_ms=20)
    with pytest.raises(RefusedError) as caught:
        store.put_bytes(b"x", owner=ME, expires_ms=10)
    assert caught.value.reason == Reason.STORE_FULL
    assert store.put_bytes(b"12345", owner=YOU, expires_ms=5) == first
    store.put_bytes(b"", owner=ME, expires_ms=10)
    assert store.delete(first)
    store.put_bytes(b"abcde", owner=ME, expires_ms=10)
    assert (store.usage().used_bytes, store.usage().reserved_bytes) == (10, 0)


def test_each_owner_has_its_own_quota(open_store: OpenStore) -> None:
    store = open_store(owner_quota=lambda owner: 5 if owner == YOU else None)
    mine = store.put_bytes(b"123456", owner=ME, expires_ms=10)
    with pytest.raises(RefusedError):
        store.lease(mine, YOU, 10)
    store.put_bytes(b"12345", owner=YOU, expires_ms=10)
    with pytest.raises(RefusedError):
        store.put_bytes(b"x", owner=YOU, expires_ms=20)
    assert (store.usage().used_bytes, store.owner_bytes(YOU), store.usage().blobs) == (11, 5, 2)
    store.expire(10)
    store.put_bytes(b"x", owner=YOU, expires_ms=20)
    assert store.owner_bytes(YOU) == 1
    assert store.owner_bytes(ME) == 0


def test_only_blobs_without_a_live_lease_expire(open_store: OpenStore) -> None:
    store = open_store()
    one = store.put_bytes(b"one", owner=ME, expires_ms=10)
    two = store.put_bytes(b"two", owner=ME, expires_ms=10)
    store.lease(two, YOU, 20)
    store.lease(two, ME, 5)
    assert store.expire(9) == []
    assert store.expire(10) == [one]
    assert store.has(two)
    assert (store.owner_bytes(ME), store.owner_bytes(YOU)) == (0, 3)
    store.lease(two, ME, 30)
    assert store.release(two, YOU)
    assert store.expire(29) == []
    assert store.expire(30) == [two]
    assert (store.usage().used_bytes, store.owner_bytes(ME), store.owner_bytes(YOU)) == (0, 0, 0)


def test_leases_survive_the_loss_of_the_index(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store()
    blob = store.put_bytes(LARGE, owner=ME, expires_ms=10)
    store.lease(blob, YOU, 50)
    store.release(blob, ME)
    store = open_store()
    for path in tmp_path.glob("index.sqlite*"):
        path.unlink()
    store = open_store()
    assert [(lease.owner, lease.expires_ms) for lease in store.leases(blob)] == [(YOU, 50)]
    assert store.owner_bytes(YOU) == len(LARGE)


def test_leases_per_blob_are_bounded(open_store: OpenStore) -> None:
    store = open_store()
    blob = store.put_bytes(b"x", owner=b"0", expires_ms=10)
    for number in range(1, 64):
        store.lease(blob, str(number).encode(), 10)
    with pytest.raises(RefusedError):
        store.lease(blob, b"one more", 10)
    store.lease(blob, b"0", 20)


def test_the_number_of_blobs_is_bounded(open_store: OpenStore) -> None:
    store = open_store(blobs_max=2)
    for content in (b"", b"1"):
        store.put_bytes(content, owner=ME, expires_ms=10)
    with pytest.raises(RefusedError):
        store.put_bytes(b"2", owner=ME, expires_ms=10)


# Uploads


def test_chunks_may_come_in_any_order_and_over_restarts(open_store: OpenStore) -> None:
    store = open_store()
    writer = store.writer(LARGE_ID, len(LARGE), LARGE_ROOT, owner=ME, expires_ms=10)
    assert writer.missing() == [0, 1, 2]
    assert writer.write_chunk(2, chunk(2))
    assert not writer.write_chunk(2, chunk(2))
    with pytest.raises(BadDataError):
        writer.commit()
    assert not store.has(LARGE_ID)
    assert store.usage().used_bytes == len(LARGE)
    store = open_store()
    assert [(row.id, row.state) for row in store.list()] == [(LARGE_ID, "partial")]
    writer = store.writer(LARGE_ID, len(LARGE), LARGE_ROOT, owner=ME, expires_ms=10)
    assert writer.missing() == [0, 1]
    assert writer.write_chunk(1, chunk(1))
    assert writer.write_chunk(0, chunk(0))
    assert writer.commit() == LARGE_ID
    for restarted in (False, True):
        store = open_store() if restarted else store
        assert store.read_all(LARGE_ID, len(LARGE)) == LARGE
        assert store.usage().used_bytes == len(LARGE)


def test_wrong_chunks_never_get_in(open_store: OpenStore) -> None:
    writer = open_store().writer(LARGE_ID, len(LARGE), LARGE_ROOT, owner=ME, expires_ms=10)
    for index, data in ((0, chunk(2)), (2, b"tale"), (0, bytes(CHUNK_BYTES)), (2, b"")):
        with pytest.raises(IntegrityError):
            writer.write_chunk(index, data)
    with pytest.raises(MalformedError):
        writer.write_chunk(3, b"")
    assert writer.missing() == [0, 1, 2]


def test_a_small_blob_can_be_uploaded_as_one_chunk(open_store: OpenStore) -> None:
    store = open_store()
    blob = blob_id_of(b"abc")
    # Another writer lies about the size; that must not stand in the way.
    liar = store.writer(blob, 2, None, owner=YOU, expires_ms=10)
    writer = store.writer(blob, 3, None, owner=ME, expires_ms=10)
    assert (liar.missing(), writer.missing()) == ([0], [0])
    with pytest.raises(IntegrityError):
        liar.write_chunk(0, b"ab")
    with pytest.raises(BadDataError):
        liar.commit()
    assert writer.write_chunk(0, b"abc")
    assert writer.commit() == blob
    assert store.read_all(blob, 3) == b"abc"
    assert store.writer(blob, 3, None, owner=YOU, expires_ms=90).missing() == []
    assert len(store.leases(blob)) == 2


def test_an_upload_sets_its_room_aside_and_abort_gives_it_back(open_store: OpenStore) -> None:
    store = open_store(len(LARGE) + 5)
    writer = store.writer(LARGE_ID, len(LARGE), LARGE_ROOT, owner=ME, expires_ms=10)
    writer.write_chunk(0, chunk(0))
    with pytest.raises(RefusedError):
        store.put_bytes(b"123456", owner=ME, expires_ms=10)
    writer.abort()
    writer.abort()
    assert store.usage().used_bytes == 0
    assert store.owner_bytes(ME) == 0
    store.put_bytes(b"123456", owner=ME, expires_ms=10)
    with pytest.raises(RefusedError):
        store.writer(LARGE_ID, len(LARGE), LARGE_ROOT, owner=ME, expires_ms=10)
    assert (store.usage().used_bytes, store.owner_bytes(ME)) == (6, 6)


def test_two_writers_share_one_upload(open_store: OpenStore) -> None:
    store = open_store()
    one = store.writer(LARGE_ID, len(LARGE), LARGE_ROOT, owner=ME, expires_ms=10)
    two = store.writer(LARGE_ID, len(LARGE), LARGE_ROOT, owner=YOU, expires_ms=10)
    one.write_chunk(0, chunk(0))
    one.abort()
    assert two.missing() == [1, 2]
    two.write_chunk(1, chunk(1))
    two.write_chunk(2, chunk(2))
    two.commit()
    assert store.has(LARGE_ID)


def test_an_upload_nobody_ends_goes_with_its_lease(open_store: OpenStore) -> None:
    store = open_store()
    writer = store.writer(LARGE_ID, len(LARGE), LARGE_ROOT, owner=ME, expires_ms=10)
    assert store.expire(10) == []
    writer.close()
    assert store.expire(10) == [LARGE_ID]
    assert store.usage().used_bytes == 0


def test_content_that_changed_while_nobody_wrote_is_hashed_again(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store()
    writer = store.writer(LARGE_ID, len(LARGE), LARGE_ROOT, owner=ME, expires_ms=10)
    for index in range(3):
        writer.write_chunk(index, chunk(index))
    writer.close()
    flip(path_of(tmp_path, LARGE_ID).with_suffix(".part"), CHUNK_BYTES)
    assert store.writer(LARGE_ID, len(LARGE), LARGE_ROOT, owner=ME, expires_ms=10).missing() == [1]


def test_a_put_completes_an_upload_in_progress_even_in_a_full_store(open_store: OpenStore) -> None:
    store = open_store(len(LARGE))
    writer = store.writer(LARGE_ID, len(LARGE), LARGE_ROOT, owner=YOU, expires_ms=10)
    writer.write_chunk(0, chunk(0))
    store.put_bytes(LARGE, owner=ME, expires_ms=10)
    assert writer.missing() == []
    assert not writer.write_chunk(1, chunk(1))
    assert writer.commit() == LARGE_ID
    assert store.usage().used_bytes == len(LARGE)
    assert open_store().recovery.leftovers_removed == 0


def test_a_writer_whose_blob_was_deleted_is_told(open_store: OpenStore) -> None:
    store = open_store()
    writer = store.writer(LARGE_ID, len(LARGE), LARGE_ROOT, owner=ME, expires_ms=10)
    store.delete(LARGE_ID)
    with pytest.raises(RefusedError):
        writer.write_chunk(0, chunk(0))
    writer.close()


def test_wrong_roots_are_refused_before_anything_is_set_aside(open_store: OpenStore) -> None:
    store = open_store()
    for blob, size, root in ((LARGE_ID, len(LARGE), None), (LARGE_ID, 5, LARGE_ROOT), (blob_id_of(b"x"), len(LARGE), LARGE_ROOT)):
        with pytest.raises((MalformedError, IntegrityError)):
            store.writer(blob, size, root, owner=ME, expires_ms=10)
    assert store.usage().used_bytes == 0


# Damage


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_corrupt_chunk_is_never_served_and_can_be_healed(open_store: OpenStore, tmp_path: Path, index: int) -> None:
    store = open_store()
    store.put_bytes(LARGE, owner=ME, expires_ms=10)
    flip(path_of(tmp_path, LARGE_ID), index * CHUNK_BYTES + 2)
    with pytest.raises(IntegrityError) as caught:
        store.read_all(LARGE_ID, len(LARGE))
    assert caught.value.reason == Reason.CORRUPT
    assert not store.has(LARGE_ID)
    store = open_store()
    assert [row.id for row in store.list(state="damaged")] == [LARGE_ID]
    assert store.usage().used_bytes == len(LARGE)
    writer = store.writer(LARGE_ID, len(LARGE), LARGE_ROOT, owner=ME, expires_ms=5)
    assert writer.missing() == [index]
    writer.abort()
    writer = store.writer(LARGE_ID, len(LARGE), LARGE_ROOT, owner=ME, expires_ms=5)
    writer.write_chunk(index, chunk(index))
    writer.commit()
    assert store.read_all(LARGE_ID, len(LARGE)) == LARGE
    assert store.verify(LARGE_ID)
    assert [(lease.owner, lease.expires_ms) for lease in store.leases(LARGE_ID)] == [(ME, 10)]


def test_a_corrupt_small_blob_is_healed_by_putting_it_again(open_store: OpenStore, tmp_path: Path) -> None:
    store = open_store(3)
    blob = store.put_bytes(b"abc", owner=ME, expires_ms=10)
    flip(path_of(tmp_path, blob), 1)
    assert not store.verify(blob)
    writer = store.writer(blob, 3, None, owner=YOU, expires_ms=10)
    assert writer.missing() == [0]
    writer.write_chunk(0, b"abc")
    writer.commit()
    assert store.read_all(blob, 3) == b"abc"
    assert len(store.leases(blob)) == 2
    assert open_store(3).recovery.leftovers_removed == 0


@pytest.mark.parametrize("harm", ["cut", "gone", "longer"])
def test_content_of_a_wrong_size_is_damaged(open_store: OpenStore, tmp_path: Path, harm: str) -> None:
    blob = open_store().put_bytes(LARGE, owner=ME, expires_ms=10)
    path = path_of(tmp_path, blob)
    if harm == "gone":
        path.unlink()
        store = open_store(scan=False)
        with pytest.raises(IntegrityError):
            store.read_chunk(blob, 0)
    else:
        os.truncate(path, 100 if harm == "cut" else len(LARGE) + 1)
        store = open_store()
        assert store.recovery.damaged == 1
    assert not store.has(blob)
    writer = store.writer(blob, len(LARGE), LARGE_ROOT, owner=ME, expires_ms=10)
    for index in writer.missing():
        writer.write_chunk(index, chunk(index))
    writer.commit()
    assert open_store().read_all(blob, len(LARGE)) == LARGE


def test_unreadable_metadata_is_made_anew_with_a_lease_of_a_week(open_store: OpenStore, tmp_path: Path) -> None:
    blob = open_store().put_bytes(LARGE, owner=ME, expires_ms=10)
    flip(path_of(tmp_path, blob).with_suffix(".meta"), 50)
    store = open_store()
    assert store.recovery.orphans == 1
    assert store.read_all(blob, len(LARGE)) == LARGE
    assert store.expire(7 * 24 * 3600 * 1000 - 1) == []


def test_metadata_that_goes_bad_while_running_is_made_anew_from_content_and_index(open_store: OpenStore, tmp_path: Path) -> None:
    blob = open_store().put_bytes(LARGE, owner=ME, expires_ms=10)
    store = open_store(scan=False)
    flip(path_of(tmp_path, blob).with_suffix(".meta"), 50)
    assert store.read_all(blob, len(LARGE)) == LARGE
    store.lease(blob, YOU, 20)
    assert len(open_store().leases(blob)) == 2


def test_a_blob_with_bad_content_and_bad_metadata_is_given_up(open_store: OpenStore, tmp_path: Path) -> None:
    blob = open_store().put_bytes(LARGE, owner=ME, expires_ms=10)
    flip(path_of(tmp_path, blob).with_suffix(".meta"), 50)
    flip(path_of(tmp_path, blob), 50)
    store = open_store(scan=False)
    with pytest.raises(IntegrityError):
        store.read_chunk(blob, 0)
    assert (store.has(blob), store.usage().used_bytes, store.owner_bytes(ME)) == (False, 0, 0)


def test_a_file_that_is_not_what_its_name_says_is_lost_at_start(open_store: OpenStore, tmp_path: Path) -> None:
    open_store().put_bytes(b"x", owner=ME, expires_ms=10)
    path = path_of(tmp_path, LARGE_ID)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"something else")
    store = open_store()
    assert (store.recovery.lost, store.recovery.blobs) == (1, 1)
    assert not path.exists()


# Crashes, full disks, threads


def script(store: BlobStore, acknowledged: dict[bytes, str], source: Path) -> None:
    """Everything that changes the disk. ``acknowledged`` says what a caller was told."""
    acknowledged[store.put_bytes(b"one", owner=ME, expires_ms=100)] = "held"
    acknowledged[store.put_file(source, owner=ME, expires_ms=100)] = "held"
    writer = store.writer(LARGE_ID, len(LARGE), LARGE_ROOT, owner=ME, expires_ms=100)
    for index in (2, 0, 1):
        writer.write_chunk(index, chunk(index))
    acknowledged[writer.commit()] = "held"
    store.lease(LARGE_ID, YOU, 200)
    acknowledged[b"lease"] = "200"
    store.writer(OTHER_ID, len(OTHER), OTHER_ROOT, owner=YOU, expires_ms=100).write_chunk(0, OTHER[:CHUNK_BYTES])
    acknowledged[store.put_bytes(OTHER, owner=ME, expires_ms=100)] = "held"
    gone = store.put_bytes(b"gone", owner=ME, expires_ms=5)
    store.expire(5)
    acknowledged[gone] = "gone"


def check(store: BlobStore, acknowledged: dict[bytes, str]) -> None:
    rows = list(store.list())
    assert store.usage().used_bytes == sum(row.size_bytes for row in rows)
    assert store.usage().reserved_bytes == 0
    assert (store.recovery.orphans, store.recovery.lost, store.recovery.damaged) == (0, 0, 0)
    for row in rows:
        if row.state == "held":
            assert blob_id_of(store.read_all(row.id, row.size_bytes)) == row.id
    for blob, state in acknowledged.items():
        if blob == b"lease":
            assert 200 in [lease.expires_ms for lease in store.leases(LARGE_ID)]
        elif state == "held":
            assert store.has(BlobId(blob))


def test_a_crash_at_any_operation_loses_nothing_acknowledged_and_leaves_nothing_half(
    tmp_path: Path, failing_disk: type, crash: type[BaseException]
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"from a file")
    for fail_at in range(1, 1000):
        home = tmp_path / str(fail_at)
        home.mkdir()
        acknowledged: dict[bytes, str] = {}
        index, _ = Index.open(home / "index.sqlite")
        ended = True
        try:
            script(BlobStore(home / "blobs", 1 << 30, index, now_ms=0, disk=failing_disk(fail_at, crash=True)), acknowledged, source)
        except crash:
            ended = False
        # A crash does not close anything: the index is opened a second time beside the first.
        again, _ = Index.open(home / "index.sqlite")
        store = BlobStore(home / "blobs", 1 << 30, again, now_ms=0)
        check(store, acknowledged)
        names = {path.name for path in (home / "blobs").rglob("*") if path.is_file()}
        rows = list(store.list())
        due = {row.id.hex() + (".part" if row.state == "partial" else "") for row in rows} | {f"{row.id.hex()}.meta" for row in rows}
        assert names == due
        index.close()
        again.close()
        if ended:
            break
    assert fail_at > 30


@pytest.mark.parametrize("kinds", [frozenset({"write"}), frozenset({"sync"}), frozenset({"rename"}), frozenset({"create"})])
def test_a_full_disk_at_any_operation_is_refused_and_leaves_the_books_right(
    tmp_path: Path, failing_disk: type, kinds: frozenset[str]
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"from a file")
    for fail_at in range(1, 1000):
        home = tmp_path / str(fail_at)
        home.mkdir()
        index, _ = Index.open(home / "index.sqlite")
        disk = failing_disk(10_000)
        store = BlobStore(home / "blobs", 1 << 30, index, now_ms=0, disk=disk)
        disk.kinds, disk.operations, disk.fail_at = kinds, 0, fail_at
        acknowledged: dict[bytes, str] = {}
        try:
            script(store, acknowledged, source)
            ended = True
        except RefusedError as error:
            ended = False
            assert error.reason == Reason.DISK_FULL  # noqa: PT017  # not every turn fails
        check(store, acknowledged)
        disk.fail_at = 0
        # With room again, the same calls go through on the same store.
        script(store, acknowledged, source)
        check(store, acknowledged)
        index.close()
        if ended:
            break
    assert fail_at > 3


def test_the_same_blob_put_by_many_threads_is_stored_once(open_store: OpenStore) -> None:
    store = open_store(len(LARGE))
    start = threading.Barrier(8)

    def put(number: int) -> BlobId:
        start.wait(10)
        return store.put_bytes(LARGE, owner=str(number).encode(), expires_ms=10)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(put, range(8))) == {LARGE_ID}
    assert store.usage().used_bytes == len(LARGE)
    assert len(store.leases(LARGE_ID)) == 8
    assert store.read_all(LARGE_ID, len(LARGE)) == LARGE


def test_threads_that_put_read_and_delete_keep_the_books_right(open_store: OpenStore) -> None:
    store = open_store(2000)
    contents = [bytes([number]) * 500 for number in range(8)]

    def work(number: int) -> None:
        for turn in range(25):
            content = contents[(number + turn) % 8]
            try:
                blob = store.put_bytes(content, owner=bytes([number]), expires_ms=10)
                assert store.read_all(blob, 500) == content
                if turn % 3 == 0:
                    store.delete(blob)
                elif turn % 7 == 0:
                    store.expire(11)
            except P2PGridError as error:
                assert error.reason in (Reason.STORE_FULL, Reason.NO_BLOB)  # noqa: PT017  # who is refused is a race
            assert store.usage().used_bytes <= 2000

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    rows = list(store.list())
    assert store.usage().used_bytes == 500 * len(rows) == 500 * store.usage().blobs
    assert sum(store.owner_bytes(bytes([number])) for number in range(4)) == 500 * sum(len(store.leases(row.id)) for row in rows)
