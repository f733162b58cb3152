"""Disks that fail under jobs: nothing is acknowledged that is not on disk, and the job says why it stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from p2pgrid.errors import P2PGridError, RefusedError, TryAgainError
from p2pgrid.model.ids import JobId
from p2pgrid.model.job import Derive
from p2pgrid.model.reasons import Reason
from p2pgrid.node import Node
from p2pgrid.services import leading
from p2pgrid.store.ledger_writer import Done
from p2pgrid.wire.messages import JobReadReply, JobReadRequest
from tests.unit.services.grid_in_process import Grid, InPlacePool, results, submit, until


class Breakable:
    """A ledger port that can be told to refuse, as a full disk or a busy one does."""

    def __init__(self, node: Node) -> None:
        self._port = node.context.log_port
        self.error: P2PGridError | None = None
        self.busy = 0
        node.context.log_port = self

    def submit(self, job: JobId, records: Sequence[Any], done: Done) -> None:
        if self.busy:
            self.busy -= 1
            raise TryAgainError("busy", reason=Reason.BUSY)
        if self.error is not None:
            done(self.error)
        else:
            self._port.submit(job, records, done)

    def remove(self, job: JobId, done: Done) -> None:
        self._port.remove(job, done)

    def close(self, timeout_s: float = 5.0) -> bool:
        return True


FULL = RefusedError("the disk is full", reason=Reason.DISK_FULL)


async def test_a_full_disk_stops_the_job_and_shows_what_is_on_disk(
    grid: Grid, pool: type[InPlacePool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leading, "TICK_S", 0.05)
    await grid.grow(2, cores=1)
    port = Breakable(grid[0])
    gate = asyncio.Event()
    pool.gate = gate
    channel, job = await submit(grid, grid[0], list(range(600)), per_batch=2)
    led = grid[0].leading.jobs[job]
    gate.set()
    await until(lambda: led.ledger.done >= 4, "some units are done")
    await led.file.wait(led.file.end)
    gate.clear()
    await until(lambda: led.file.settled, "all is on disk")
    on_disk = len(led.ledger.receipts)
    port.error = FULL
    gate.set()
    values, outcome = await results(channel, job)
    assert outcome.line.state == "stopped"
    assert "the disk is full" in outcome.note
    assert values
    assert all(values[number] == number for number in values)
    assert len(led.ledger.receipts) >= on_disk
    acknowledged = {
        receipt.body.payload for receipt in led.ledger.receipt_list if led.kept.payload_at[receipt.body.payload] < led.file.durable
    }
    shown = {led.ledger.find(*led.ledger.layout.locate(0, number)).receipt.body.payload for number in values}  # type: ignore[union-attr]
    assert shown <= acknowledged


async def test_a_submit_on_a_full_disk_is_refused(grid: Grid) -> None:
    await grid.grow(1)
    port = Breakable(grid[0])
    port.error = FULL
    with pytest.raises(P2PGridError):
        await submit(grid, grid[0], [1, 2])
    port.error = None
    await submit(grid, grid[0], [3])


async def test_a_keeper_acknowledges_nothing_that_its_disk_refused_and_recovers(
    grid: Grid, pool: type[InPlacePool], monkeypatch: pytest.MonkeyPatch
) -> None:
    await grid.grow(2, cores=1)
    keeper, port = grid[1], Breakable(grid[1])
    gate = asyncio.Event()
    pool.gate = gate
    _, job = await submit(grid, grid[0], list(range(12)))
    led = grid[0].leading.jobs[job]
    await until(lambda: job in keeper.keeping.jobs and keeper.keeping.jobs[job].file.settled, "it is kept")
    port.error = TryAgainError("the disk hiccups", reason=Reason.DISK_FAILED)
    gate.set()
    await until(lambda: job not in keeper.keeping.jobs, "it left memory")
    port.error = None
    await until(led.ended.is_set, "the job ends")
    reply = await grid[0].peers.call(keeper.context.me, "job.read", JobReadRequest(job, 0), JobReadReply)
    assert keeper.context.me in led.ledger.keepers.body.keepers  # type: ignore[union-attr]
    data = {record.data for record in reply.records}
    assert {receipt.raw for receipt in led.ledger.receipt_list} <= data
    assert led.state == "done"


async def test_a_busy_disk_loses_nothing(grid: Grid, pool: type[InPlacePool]) -> None:
    await grid.grow(2, cores=1)
    ports = [Breakable(node) for node in grid.nodes]
    gate = asyncio.Event()
    pool.gate = gate
    channel, job = await submit(grid, grid[0], list(range(12)))
    for port in ports:
        port.busy = 3
    gate.set()
    values, outcome = await results(channel, job)
    assert (len(values), outcome.line.state) == (12, "done")
    led = grid[0].leading.jobs[job]
    reply = await grid[0].peers.call(grid[1].context.me, "job.read", JobReadRequest(job, 0), JobReadReply)
    assert {receipt.raw for receipt in led.ledger.receipt_list} <= {record.data for record in reply.records}


async def test_derived_units_that_cannot_be_stored_stop_the_job_with_a_note(grid: Grid) -> None:
    await grid.add(storage_bytes=0)
    await grid.add(cores=1, storage_bytes=0)
    channel, job = await submit(grid, grid[0], list(range(5)), derive=Derive(finish=True))
    _, outcome = await results(channel, job)
    assert (outcome.line.state, outcome.line.done) == ("stopped", 5)
    assert "could not be joined" in outcome.note


async def test_a_job_past_its_time_is_stopped(grid: Grid, pool: type[InPlacePool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leading, "TICK_S", 0.05)
    await grid.grow(1)
    channel, job = await submit(grid, grid[0], [1])
    expires_ms = grid[0].leading.jobs[job].job.body.expires_ms
    monkeypatch.setattr(grid[0].context, "wall_ms", lambda: expires_ms + 1)
    _, outcome = await results(channel, job)
    assert (outcome.line.state, "its time is over" in outcome.note) == ("stopped", True)
