"""The SQLite index: rows, and what happens when it is damaged."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from p2pgrid.errors import ConfigError
from p2pgrid.model.ids import BlobId, JobId, StatementId
from p2pgrid.store.blobs import BlobStore
from p2pgrid.store.index import HELD, Index, JobRow, Lease


def job(number: int) -> JobId:
    return JobId(StatementId(bytes([number]) * 32))


def row(number: int, role: str = "led", **fields: object) -> JobRow:
    return JobRow(id=job(number), role=role, created_ms=number, expires_ms=100 + number, **fields)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.sqlite"


def test_a_new_index_says_that_it_is_empty(path: Path) -> None:
    index, report = Index.open(path)
    assert (report.rebuilt, report.was_clean) == (True, False)
    assert index.jobs() == []
    assert index.usage() == (0, 0)
    index.close()


def test_rows_survive_a_restart_and_the_way_of_closing_is_known(path: Path) -> None:
    index, _ = Index.open(path)
    index.put_job(row(1, name="pi", submitter=b"me", units=5, detail=b"\x00"))
    crashed, report = Index.open(path)
    assert (report.rebuilt, report.was_clean) == (False, False)
    assert crashed.jobs() == [row(1, name="pi", submitter=b"me", units=5, detail=b"\x00")]
    index.close()
    crashed.close()
    crashed.close()
    index, report = Index.open(path)
    assert (report.rebuilt, report.was_clean) == (False, True)
    again, report = Index.open(path)
    assert not report.was_clean
    index.close()
    again.close()


def test_jobs_are_listed_by_role_newest_first(path: Path) -> None:
    index, _ = Index.open(path)
    for number in (1, 3, 2):
        index.put_job(row(number))
    index.put_job(row(2, "kept"))
    assert [found.created_ms for found in index.jobs("led")] == [3, 2, 1]
    assert [found.role for found in index.jobs("kept")] == ["kept"]
    assert len(index.jobs()) == 4
    assert len(index.jobs(limit=2)) == 2
    assert index.job(job(2), "kept") == row(2, "kept")
    assert index.job(job(2), "submitted") is None
    assert [found.created_ms for found in index.expired_jobs(102)] == [1, 2, 2]
    assert index.update_job(job(1), "led", state="running", done=3)
    assert index.update_job(job(1), "led", failed=1)
    assert index.job(job(1), "led") == row(1, state="running", done=3, failed=1)
    assert not index.update_job(job(9), "led", done=1)
    assert index.delete_job(job(1), "led")
    assert not index.delete_job(job(1), "led")
    index.close()


def test_a_failed_transaction_leaves_nothing(path: Path) -> None:
    index, _ = Index.open(path)

    def fail() -> None:
        with index.transaction():
            index.put_job(row(1))
            with index.transaction():
                index.put_job(row(2))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert index.jobs() == []
    index.put_job(row(3))
    assert len(index.jobs()) == 1
    index.close()


@pytest.mark.parametrize("harm", ["garbage", "middle", "schema", "empty"])
def test_a_damaged_index_is_set_aside_and_the_blobs_come_back(tmp_path: Path, path: Path, harm: str) -> None:
    index, _ = Index.open(path)
    store = BlobStore(tmp_path / "blobs", 1 << 20, index, now_ms=0)
    blobs = [store.put_bytes(b"%d" % number, owner=b"me", expires_ms=number) for number in range(300)]
    index.close()
    if harm == "schema":
        database = sqlite3.connect(path)
        database.execute("PRAGMA user_version = 77")
        database.close()
    else:
        raw = path.read_bytes()
        path.write_bytes({"garbage": b"garbage" * 1000, "middle": raw[:5000] + bytes(20000) + raw[25000:], "empty": b""}[harm])
    index, report = Index.open(path)
    assert report.rebuilt
    assert report.why
    store = BlobStore(tmp_path / "blobs", 1 << 20, index, now_ms=0, scan=report.rebuilt or not report.was_clean)
    assert all(store.has(blob) for blob in blobs)
    assert store.leases(blobs[7]) == [Lease(b"me", 7)]
    assert store.usage().used_bytes == store.owner_bytes(b"me") == sum(len(str(number)) for number in range(300))
    assert (tmp_path / "index.sqlite.damaged").exists()
    index.close()


def test_damage_met_while_running_is_an_error_of_ours(path: Path) -> None:
    index, _ = Index.open(path)
    index.close()
    with pytest.raises(ConfigError):
        index.jobs()
    with pytest.raises(ConfigError):
        index.put_job(row(1))


def test_threads_share_one_index(path: Path) -> None:
    index, _ = Index.open(path)

    def work(number: int) -> None:
        for turn in range(20):
            blob = BlobId(bytes([number, turn]) * 16)
            index.put_blob(blob, 1, HELD, [Lease(b"me", 5)])
            assert index.blob(blob) is not None

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert index.usage() == (80, 80)
    pages, after = 0, b""
    while page := index.blobs(after, 30):
        pages, after = pages + 1, page[-1].id
    assert pages == 3
    index.close()
