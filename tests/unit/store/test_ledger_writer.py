"""Group commit: one thread, one sync for everybody who waited."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from p2pgrid.errors import RefusedError, TryAgainError
from p2pgrid.model.ids import JobId, StatementId
from p2pgrid.model.limits import Limits
from p2pgrid.model.reasons import Reason
from p2pgrid.store.disk import Disk
from p2pgrid.store.ledger import FRAME_BYTES, HEADER_BYTES, Ledgers
from p2pgrid.store.ledger_writer import InlineLedgerWriter, LedgerPort, LedgerWriter

JOB = JobId(StatementId(bytes(range(32))))
OTHER = JobId(StatementId(bytes(32)))
random_bytes = random.Random(7).randbytes
WAIT_S = 30.0


class GatedDisk(Disk):
    """Syncs of data wait until they are let through, and are counted."""

    def __init__(self) -> None:
        self.entered, self.gate, self.synced = threading.Semaphore(0), threading.Semaphore(0), 0

    def sync_data(self, descriptor: int) -> None:
        self.synced += 1
        self.entered.release()
        assert self.gate.acquire(timeout=WAIT_S)
        super().sync_data(descriptor)


def collect(into: list[object], event: threading.Event, count: int) -> Callable[[Exception | None], None]:
    def done(error: Exception | None) -> None:
        into.append(error)
        if len(into) == count:
            event.set()

    return done


@pytest.mark.parametrize("kind", [LedgerWriter, InlineLedgerWriter])
def test_records_are_on_disk_when_done_is_called(tmp_path: Path, kind: Callable[[Ledgers], LedgerPort]) -> None:
    ledgers = Ledgers(tmp_path, random_bytes)
    writer = kind(ledgers)
    seen: list[object] = []
    ended = threading.Event()
    for number in range(20):
        writer.submit(JOB if number % 2 else OTHER, [(1, b"%d" % number), (2, b"")], collect(seen, ended, 20))
    assert ended.wait(WAIT_S)
    assert seen == [None] * 20
    again = Ledgers(tmp_path, random_bytes)
    assert [data for kind_, data in again.log(JOB).read(0, 1 << 20)[0] if kind_ == 1] == [b"%d" % n for n in range(1, 20, 2)]
    assert writer.close(WAIT_S)
    with pytest.raises(TryAgainError) as caught:
        writer.submit(JOB, [(1, b"")], lambda _: None)
    assert caught.value.reason == Reason.SHUTDOWN


def test_what_waits_while_a_sync_runs_shares_the_next_one(tmp_path: Path) -> None:
    disk = GatedDisk()
    writer = LedgerWriter(Ledgers(tmp_path, random_bytes, disk=disk))
    seen: list[object] = []
    ended = threading.Event()
    done = collect(seen, ended, 101)
    writer.submit(JOB, [(1, b"first")], done)
    assert disk.entered.acquire(timeout=WAIT_S)
    for number in range(100):
        writer.submit(JOB, [(1, b"%d" % number)], done)
    assert seen == []
    disk.gate.release(2)
    assert ended.wait(WAIT_S)
    assert disk.synced == 2
    assert writer.close(WAIT_S)


def test_the_queue_is_bounded_in_bytes(tmp_path: Path) -> None:
    disk = GatedDisk()
    writer = LedgerWriter(Ledgers(tmp_path, random_bytes, disk=disk), queue_bytes_max=1000)
    seen: list[object] = []
    ended = threading.Event()
    done = collect(seen, ended, 2)
    writer.submit(JOB, [(1, b"")], done)
    assert disk.entered.acquire(timeout=WAIT_S)
    writer.submit(JOB, [(1, bytes(900))], done)
    with pytest.raises(TryAgainError) as caught:
        writer.submit(JOB, [(1, bytes(100))], done)
    assert caught.value.reason == Reason.BUSY
    disk.gate.release(2)
    assert ended.wait(WAIT_S)
    assert seen == [None, None]
    assert writer.close(WAIT_S)


def test_closing_writes_what_is_queued(tmp_path: Path) -> None:
    writer = LedgerWriter(Ledgers(tmp_path, random_bytes))
    seen: list[object] = []
    for _ in range(50):
        writer.submit(JOB, [(1, b"x")], collect(seen, threading.Event(), 50))
    assert writer.close(WAIT_S)
    assert seen == [None] * 50
    assert len(Ledgers(tmp_path, random_bytes).log(JOB).read(0, 1 << 20)[0]) == 50


def test_closing_is_bounded_while_the_disk_hangs(tmp_path: Path) -> None:
    disk = GatedDisk()
    writer = LedgerWriter(Ledgers(tmp_path, random_bytes, disk=disk))
    seen: list[object] = []
    ended = threading.Event()
    writer.submit(JOB, [(1, b"stuck")], collect(seen, ended, 2))
    assert disk.entered.acquire(timeout=WAIT_S)
    writer.submit(JOB, [(1, b"queued")], collect(seen, ended, 2))
    assert not writer.close(0.05)
    assert [type(error) for error in seen] == [TryAgainError]
    disk.gate.release(2)
    assert ended.wait(WAIT_S)
    assert writer.close(WAIT_S)


def test_one_submission_that_is_too_large_takes_nobody_down(tmp_path: Path) -> None:
    disk = GatedDisk()
    room = HEADER_BYTES + 3 * (FRAME_BYTES + 10)
    writer = LedgerWriter(Ledgers(tmp_path, random_bytes, disk=disk, limits=Limits(ledger_bytes=room)))
    outcomes: dict[str, Exception | None] = {}
    ended = threading.Event()

    def done(name: str) -> Callable[[Exception | None], None]:
        def note(error: Exception | None) -> None:
            outcomes[name] = error
            if len(outcomes) == 4:
                ended.set()

        return note

    writer.submit(JOB, [(1, bytes(10))], done("first"))
    assert disk.entered.acquire(timeout=WAIT_S)
    writer.submit(JOB, [(1, bytes(10))], done("small"))
    writer.submit(JOB, [(1, bytes(200))], done("large"))
    writer.submit(JOB, [(1, bytes(10))], done("after"))
    disk.gate.release(10)
    assert ended.wait(WAIT_S)
    assert isinstance(outcomes.pop("large"), RefusedError)
    assert outcomes == {"first": None, "small": None, "after": None}
    assert writer.close(WAIT_S)


def test_a_callback_that_raises_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = LedgerWriter(Ledgers(tmp_path, random_bytes))
    seen: list[object] = []
    ended = threading.Event()

    def bad(error: Exception | None) -> None:
        raise ZeroDivisionError

    writer.submit(JOB, [(1, b"x")], bad)
    writer.submit(JOB, [(1, b"y")], collect(seen, ended, 1))
    assert ended.wait(WAIT_S)
    assert writer.close(WAIT_S)
    assert "a callback of the ledger raised" in caplog.text
