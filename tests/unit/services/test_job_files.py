"""The log of one job between a service and the disk: order, cursors, a slow disk and a failing one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.errors import P2PGridError, RefusedError, TryAgainError
from p2pgrid.model.ids import JobId, StatementId
from p2pgrid.model.reasons import Reason
from p2pgrid.services import joblog
from p2pgrid.services.joblog import JobFile
from p2pgrid.store.ledger import Ledgers
from p2pgrid.store.ledger_writer import Done, InlineLedgerWriter
from p2pgrid.wire.messages import LogRecord

JOB = JobId(StatementId(b"j" * 32))


class SlowWriter:
    """Writes when it is told to; its queue takes ``room`` submissions."""

    def __init__(self, ledgers: Ledgers, room: int = 100) -> None:
        self.room = room
        self.queue: list[tuple[JobId, Sequence[Any], Done]] = []
        self._inline = InlineLedgerWriter(ledgers)

    def submit(self, job: JobId, records: Sequence[Any], done: Done) -> None:
        if len(self.queue) >= self.room:
            raise TryAgainError("full", reason=Reason.BUSY)
        self.queue.append((job, records, done))

    def remove(self, job: JobId, done: Done) -> None: ...

    def close(self, timeout_s: float) -> bool:
        return True

    def write(self, error: Exception | None = None) -> None:
        job, records, done = self.queue.pop(0)
        if error is not None:
            done(error)
        else:
            self._inline.submit(job, records, done)


@pytest.fixture
def ledgers(tmp_path: Path) -> Ledgers:
    return Ledgers(tmp_path, os.urandom)


def record(number: int) -> LogRecord:
    return LogRecord(number, bytes([number]) * 100)


async def drain(writer: SlowWriter) -> None:
    while writer.queue:
        writer.write()
        await asyncio.sleep(0)


async def test_records_are_found_at_the_cursors_they_were_posted_at(ledgers: Ledgers) -> None:
    file = JobFile(JOB, ledgers.log(JOB), InlineLedgerWriter(ledgers))
    cursors = await file.append([record(1), record(2)])
    cursors += await file.append([record(3)])
    assert [file.read_one(cursor) for cursor in cursors] == [record(1), record(2), record(3)]
    assert file.settled


async def test_what_a_full_queue_refuses_is_held_and_written_in_order(ledgers: Ledgers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joblog, "HOLD_S", 0.001)
    writer = SlowWriter(ledgers, room=1)
    file = JobFile(JOB, ledgers.log(JOB), writer)
    cursors = [file.post([record(number)])[0] for number in range(1, 6)]
    waiting = asyncio.ensure_future(file.wait(file.end))
    while not waiting.done():
        await drain(writer)
        await asyncio.sleep(0)
    assert [file.read_one(cursor) for cursor in cursors] == [record(number) for number in range(1, 6)]


async def test_nothing_counts_as_durable_behind_a_failure(ledgers: Ledgers) -> None:
    writer = SlowWriter(ledgers)
    file = JobFile(JOB, ledgers.log(JOB), writer)
    start = file.end
    file.post([record(1)])
    file.post([record(2)])
    behind = file.end
    writer.write(RefusedError("full", reason=Reason.KEEPER_FULL))
    writer.write()
    for cursor in (behind, start + 1):
        with pytest.raises(RefusedError):
            await file.wait(cursor)
    with pytest.raises(RefusedError):
        await file.wait(behind)
    assert file.durable == start
    with pytest.raises(TryAgainError):
        file.post([record(3)])


async def test_a_silent_disk_ends_the_wait_and_the_file(ledgers: Ledgers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joblog, "DISK_S", 0.02)
    writer = SlowWriter(ledgers)
    file = JobFile(JOB, ledgers.log(JOB), writer)
    with pytest.raises(P2PGridError) as caught:
        await file.append([record(1)])
    assert caught.value.reason == Reason.DISK_FAILED
    writer.write()
    await asyncio.sleep(0)
    assert not file.settled


async def test_posters_who_can_wait_are_held_back(ledgers: Ledgers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joblog, "BACKLOG_BYTES", 250)
    writer = SlowWriter(ledgers)
    file = JobFile(JOB, ledgers.log(JOB), writer)
    file.post([record(1)])
    await file.calm()
    file.post([record(2)])
    file.post([record(3)])
    calm = asyncio.ensure_future(file.calm())
    await asyncio.sleep(0)
    assert not calm.done()
    await drain(writer)
    await calm


async def test_too_much_for_a_disk_that_does_not_keep_up_is_a_failure(ledgers: Ledgers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joblog, "HELD_BYTES_MAX", 300)
    file = JobFile(JOB, ledgers.log(JOB), SlowWriter(ledgers, room=0))
    for number in (1, 2):
        file.post([record(number)])
    with pytest.raises(TryAgainError):
        file.post([record(3)])
    with pytest.raises(P2PGridError):
        await file.wait(file.end)
