"""What workers prepare is told to the lead of the job, in time, and no more than that."""

from __future__ import annotations

import asyncio

import pytest

from p2pgrid.services import announcing
from p2pgrid.services.announcing import FRESH_S, LISTEN_EVERY_S, TOLD_MAX, Preparations, Step
from p2pgrid.wire.messages import JobPreparing, NodeStatus, StatusRequest
from tests.unit.services.grid_in_process import Grid, InPlacePool, results, submit, until

JOB = b"j" * 32
A, B = b"a" * 32, b"b" * 32


def notice(what: str = "packages", done: int = 3, total: int = 8, elapsed_s: float = 12.0) -> JobPreparing:
    return JobPreparing(JOB, what, done, total, elapsed_s)


def test_who_prepares_for_longest_is_told() -> None:
    heard = Preparations()
    assert heard.note(0.0) == ""
    heard.hear(A, notice(), 1.0)
    assert heard.note(1.0) == "node mfqwcylb fetches packages (3 of 8), 12 s"
    heard.hear(B, notice("runner", 0, 0, 30.0), 1.0)
    assert heard.note(1.0) == "node mjrgeytc compiles the Python runner (first time), 30 s; 1 other prepares, too"


def test_what_is_old_is_forgotten() -> None:
    heard = Preparations()
    heard.hear(A, notice(), 1.0)
    assert heard.note(1.0 + FRESH_S)
    assert heard.note(1.1 + FRESH_S) == ""


def test_nobody_is_heard_more_than_twice_a_second() -> None:
    heard = Preparations()
    heard.hear(A, notice(done=1), 1.0)
    heard.hear(A, notice(done=2), 1.0 + LISTEN_EVERY_S / 2)
    assert "(1 of 8)" in heard.note(1.2)
    heard.hear(A, notice(done=2), 1.0 + LISTEN_EVERY_S)
    assert "(2 of 8)" in heard.note(1.6)


def test_nonsense_is_not_repeated_to_the_owner() -> None:
    heard = Preparations()
    heard.hear(A, notice("\x1b[2J pay me"), 1.0)
    assert heard.note(1.0) == ""
    heard.hear(A, notice(done=1 << 70, total=-5, elapsed_s=float("nan")), 2.0)
    assert heard.note(2.0) == "node mfqwcylb fetches packages, 0 s"


def test_nobody_prepares_for_longer_than_the_job_is_led() -> None:
    heard = Preparations()
    heard.hear(A, notice(elapsed_s=1e300), 100.0, started_s=40.0)
    assert heard.note(100.0).endswith(", 60 s")


def test_the_table_is_bounded() -> None:
    heard = Preparations()
    for number in range(3 * TOLD_MAX):
        heard.hear(number.to_bytes(32, "big"), notice(), 1.0)
    assert f"; {TOLD_MAX - 1} others prepare, too" in heard.note(1.0)


async def test_a_lead_hears_what_keeps_a_worker_from_beginning(
    grid: Grid, pool: type[InPlacePool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcing, "TELL_AFTER_S", 0.05)
    monkeypatch.setattr(announcing, "TELL_EVERY_S", 0.05)
    pool.gate = asyncio.Event()
    await grid.grow(2, cores=1)
    working = grid[0].working._announcing
    monkeypatch.setattr(working, "_compiling", lambda job: True)
    channel, job = await submit(grid, grid[1], list(range(12)), runtime="native")
    led = grid[1].leading.jobs[job]
    clock = grid[1].context.clock
    note = await until(lambda: led.preparations.note(clock()), "it is heard")
    assert "compiles the module" in note
    notes: list[str] = []
    async for event in channel.follow(job, wait=True, values=False):
        notes.append(event.note)
        assert not event.results
        if any("compiles" in one for one in notes):
            pool.gate.set()
    assert any("compiles the module" in one for one in notes)
    assert (event.line.state, event.line.done) == ("done", 12)
    assert not working._open
    await results(channel, job)


async def test_who_has_no_unit_of_a_job_is_not_heard(grid: Grid, pool: type[InPlacePool]) -> None:
    pool.gate = asyncio.Event()
    await grid.grow(2, cores=0)
    _, job = await submit(grid, grid[1], [1, 2])
    led = grid[1].leading.jobs[job]
    grid[0].peers.notify(grid[1].context.me, "job.preparing", JobPreparing(job, "inputs", 0, 0, 3.0))
    # The same session: what was said before the question was heard before the answer.
    await grid[0].peers.call(grid[1].context.me, "node.status", StatusRequest(), NodeStatus)
    assert led.preparations.note(grid[1].context.clock()) == ""


def test_a_step_that_cannot_be_counted_has_no_total() -> None:
    assert Step("unpacking") == ("unpacking", 0, 0)
