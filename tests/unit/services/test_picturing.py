"""Pictures of jobs, asked for through the owner's channel in a grid of real nodes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from p2pgrid.errors import RefusedError
from p2pgrid.model.ids import JobId, StatementId
from p2pgrid.model.reasons import Reason
from p2pgrid.model.work import OK, RAISED, TIMED_OUT
from p2pgrid.runtimes.tasks import BatchChunk, BatchTask
from p2pgrid.services.picturing import FAILURES_MAX, TEXT_CHARS_MAX, one_line
from p2pgrid.wire.codec import decode, encode
from p2pgrid.wire.faces import JobPicture
from tests.unit.services.grid_in_process import Grid, InPlacePool, results, submit, until

Outcome = tuple[int, Any]


def judged_by(pool: type[InPlacePool], monkeypatch: pytest.MonkeyPatch, judge: Callable[[Any], Outcome]) -> None:
    """Let ``judge`` say of each item what comes of it: the outcome, and the value or what is told of the failure."""

    async def run(self: InPlacePool, task: BatchTask, on_results: Callable[[BatchChunk], None]) -> None:
        assert not isinstance(task.inputs, bytes)
        for position, raw in enumerate(task.inputs):
            if pool.gate is not None:
                await self._pass(pool.gate)
            outcome, value = judge(decode(bytes(raw), Any))
            on_results(BatchChunk(task.first + position, bytes([outcome]), [msgspec.Raw(encode(value))], 1000))

    monkeypatch.setattr(pool, "run", run)


async def test_a_job_that_waits_for_its_first_answers(grid: Grid, pool: type[InPlacePool]) -> None:
    pool.gate = asyncio.Event()
    await grid.grow(3, cores=1)
    channel, job = await submit(grid, grid[1], list(range(20)))
    led = grid[1].leading.jobs[job]
    await until(lambda: led.lead.book.leases, "something is leased")
    seen = await channel.picture(job)
    assert seen.led_here
    assert (seen.units_per_cell, len(seen.cells)) == (1, 20)
    assert set(seen.cells) <= {"r", "."}
    assert "r" in seen.cells
    assert sum(share.running for share in seen.workers) == seen.cells.count("r")
    assert {share.name for share in seen.workers} <= {"n0", "n1", "n2"}
    assert all(share.live and not share.note for share in seen.workers)
    assert (seen.rate, seen.left_s, seen.levels) == (0.0, -1.0, (("map", 20, 0),))
    pool.gate.set()
    await results(channel, job)
    seen = await channel.picture(job, cells=4)
    assert (seen.cells, seen.units_per_cell, seen.levels) == ("dddd", 5, (("map", 20, 20),))
    assert sum(share.done for share in seen.workers) == 20
    assert (seen.rate, seen.left_s) == (0.0, 0.0)


async def test_failures_are_told_with_what_the_unit_said(grid: Grid, pool: type[InPlacePool], monkeypatch: pytest.MonkeyPatch) -> None:
    def judge(item: int) -> Outcome:
        if item == 3:
            return RAISED, {"type": "ValueError", "message": "three is\nno number", "traceback": "Traceback ..."}
        return OK, item

    judged_by(pool, monkeypatch, judge)
    await grid.grow(2, cores=1)
    channel, job = await submit(grid, grid[1], list(range(8)))
    await results(channel, job)
    seen = await channel.picture(job)
    assert seen.cells == "dddfdddd"
    (failure,) = seen.failures
    assert (failure.unit, failure.reason, failure.text, failure.final) == (3, "raised", "ValueError: three is", True)
    assert failure.node in {node.context.me for node in grid.nodes}
    assert (await channel.picture(job)).failures == seen.failures


async def test_an_attempt_that_failed_is_told_though_the_unit_was_done(
    grid: Grid, pool: type[InPlacePool], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def judge(item: int) -> Outcome:
        tried.append(item)
        return (TIMED_OUT, {}) if item == 2 and tried.count(2) == 1 else (OK, item)

    judged_by(pool, monkeypatch, judge)
    await grid.grow(3, cores=1)
    channel, job = await submit(grid, grid[1], list(range(6)))
    values, _ = await results(channel, job)
    assert values[2] == 2
    (failure,) = (await channel.picture(job)).failures
    assert (failure.unit, failure.reason, failure.final) == (2, "timed-out", False)
    assert failure.text == Reason.TIMED_OUT.sentence


async def test_of_many_failures_the_newest_are_told(grid: Grid, pool: type[InPlacePool], monkeypatch: pytest.MonkeyPatch) -> None:
    judged_by(pool, monkeypatch, lambda item: (RAISED, {"type": "E", "message": str(item), "traceback": ""}))
    await grid.grow(2, cores=1)
    channel, job = await submit(grid, grid[1], list(range(3 * FAILURES_MAX)))
    await results(channel, job)
    seen = await channel.picture(job)
    assert set(seen.cells) == {"f"}
    assert len(seen.failures) == FAILURES_MAX
    assert all(failure.text == f"E: {failure.unit}" for failure in seen.failures)


async def test_of_a_job_led_elsewhere_what_is_decided_is_shown(grid: Grid, pool: type[InPlacePool]) -> None:
    pool.gate = asyncio.Event()
    await grid.grow(3, cores=1)
    _, job = await submit(grid, grid[1], list(range(12)))
    await until(lambda: grid[1].leading.jobs[job].lead.book.leases, "something is leased")
    other = await grid.channel(grid[2])
    seen = await other.picture(job)
    assert (seen.led_here, seen.cells) == (False, "." * 12)
    pool.gate.set()

    async def over() -> JobPicture | None:
        latest = await other.picture(job)
        return latest if latest.cells == "d" * 12 else None

    async with asyncio.timeout(30):
        while (last := await over()) is None:
            await asyncio.sleep(0.01)
    assert sum(share.done for share in last.workers) == 12


async def test_a_worker_that_went_is_shown_as_gone(grid: Grid, pool: type[InPlacePool]) -> None:
    await grid.grow(3, cores=1)
    channel, job = await submit(grid, grid[1], list(range(40)))
    await results(channel, job)
    before = {share.node for share in (await channel.picture(job)).workers}
    gone = grid[2].context.me if grid[2].context.me in before else grid[0].context.me
    node = next(node for node in grid.nodes if node.context.me == gone)
    await grid.close(node)
    await until(lambda: not grid[1].peers.is_live(gone), "it is missed")
    shares = {share.node: share for share in (await channel.picture(job)).workers}
    assert gone not in shares or (shares[gone].live, shares[gone].note) == (False, "dead")
    assert any(share.live for share in shares.values())


async def test_an_unknown_job_has_no_picture(grid: Grid) -> None:
    await grid.grow(1)
    channel = await grid.channel(grid[0])
    with pytest.raises(RefusedError) as caught:
        await channel.picture(JobId(StatementId(os.urandom(32))))
    assert caught.value.reason == Reason.UNKNOWN_JOB


def test_what_a_unit_said_is_one_bounded_printable_line() -> None:
    assert one_line("\n  first\nsecond") == "first"
    assert one_line("a\x1b[31mb\ta") == "a?[31mb?a"
    assert len(one_line("x" * 10_000)) == TEXT_CHARS_MAX
    assert one_line("") == ""
