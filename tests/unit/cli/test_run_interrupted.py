"""Ctrl-C while a job is handed over: whatever the node has of it by then, it is cancelled."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.client.jobs import JobBuilder, JobOptions, Plan
from p2pgrid.errors import RefusedError
from p2pgrid.model.ids import GridId, JobId
from p2pgrid.model.reasons import Reason
from p2pgrid.model.script import parse_script
from p2pgrid.wire.keys import SigningKey
from p2pgrid_cli import common
from p2pgrid_cli import run as run_module
from p2pgrid_cli.progress import Progress


class Grid:
    id = GridId(b"g" * 32)


class SlowChannel:
    """A node that has all of a job, and takes its time: it knows the job when it is asked for it the third time."""

    def __init__(self, error: RefusedError | None = None, knows_at: int = 3) -> None:
        self.submitter = SigningKey(b"k" * 32)
        self.grid = Grid()
        self.has_all = asyncio.Event()
        self.asked: list[JobId] = []
        self._error = error
        self._knows_at = knows_at

    async def put(self, *_: Any, **__: Any) -> None: ...

    async def put_bytes(self, *_: Any, **__: Any) -> None: ...

    async def submit(self, *_: Any, **__: Any) -> Any:
        self.has_all.set()
        await asyncio.Event().wait()

    async def cancel(self, job: JobId) -> str:
        self.asked.append(job)
        if self._error is not None:
            raise self._error
        if len(self.asked) < self._knows_at:
            raise RefusedError("not known", reason=Reason.UNKNOWN_JOB)
        return "cancelled"


def plan_of(tmp_path: Path) -> Plan:
    path = tmp_path / "job.py"
    path.write_text("def inputs():\n    return range(3)\n\n\ndef work(item):\n    return item\n")
    builder = JobBuilder(JobOptions(), lambda: 1_800_000_000_000, lambda count: b"r" * count)
    return builder.script(parse_script(path.read_bytes(), path.name), range(3))


async def interrupted(channel: SlowChannel, plan: Plan, *, detach: bool) -> None:
    task = asyncio.ensure_future(run_module.submit(channel, plan, Progress(live=False), detach=detach))  # type: ignore[arg-type]
    await channel.has_all.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("detach", [False, True])
async def test_a_job_that_the_node_is_taking_is_cancelled_as_soon_as_it_is_known(detach: bool, tmp_path: Path) -> None:
    channel = SlowChannel()
    await interrupted(channel, plan_of(tmp_path), detach=detach)
    assert len(channel.asked) == 3
    assert len(set(channel.asked)) == 1


async def test_a_job_that_never_came_keeps_nobody_waiting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    channel = SlowChannel(knows_at=99)
    await interrupted(channel, plan_of(tmp_path), detach=False)
    assert len(channel.asked) == len(run_module.TAKEN_S)
    assert capsys.readouterr().err == ""


async def test_a_job_that_cannot_be_cancelled_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    channel = SlowChannel(RefusedError("no longer yours", reason=Reason.NO_ROLE))
    await interrupted(channel, plan_of(tmp_path), detach=False)
    assert capsys.readouterr().err == "the job could not be cancelled: no longer yours\n"


def test_work_that_was_never_begun_is_no_complaint(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    async def work() -> None: ...

    monkeypatch.setattr(common, "raise_them", interrupt)
    wanted = work()
    with pytest.raises(KeyboardInterrupt):
        common.run_async(wanted)
    assert inspect.getcoroutinestate(wanted) == inspect.CORO_CLOSED
