"""Blocking work off the event loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from p2pgrid.errors import TryAgainError
from p2pgrid.model.reasons import Reason
from p2pgrid.offload import InlineOffload, Offload, ThreadOffload


@pytest.mark.parametrize("kind", [ThreadOffload, InlineOffload])
async def test_results_and_errors_come_back(kind: type[ThreadOffload] | type[InlineOffload]) -> None:
    offload: Offload = kind()
    assert await offload.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await offload.run(divmod, 7, 0)
    assert await offload.close()


async def test_work_runs_beside_the_loop_and_its_amount_is_bounded() -> None:
    offload = ThreadOffload(1, pending_max=2)
    gate = threading.Event()
    first = asyncio.ensure_future(offload.run(gate.wait, 10))
    second = asyncio.ensure_future(offload.run(threading.current_thread))
    await asyncio.sleep(0)
    with pytest.raises(TryAgainError) as caught:
        await offload.run(int)
    assert caught.value.reason == Reason.BUSY
    gate.set()
    assert await first
    assert await second is not threading.current_thread()
    assert await offload.run(int) == 0
    assert await offload.close()


async def test_close_is_bounded_and_leaves_no_thread() -> None:
    before = threading.active_count()
    offload = ThreadOffload(2, close_s=0.05)
    gate = threading.Event()
    stuck = asyncio.ensure_future(offload.run(gate.wait, 10))
    await asyncio.sleep(0)
    assert not await offload.close()
    with pytest.raises(TryAgainError) as caught:
        await offload.run(int)
    assert caught.value.reason == Reason.SHUTDOWN
    gate.set()
    assert await stuck
    patient = ThreadOffload(2)
    await patient.run(int)
    assert await patient.close()
    for thread in threading.enumerate():
        if thread.name.startswith("p2pgrid-offload"):
            thread.join(5)
    assert threading.active_count() == before
