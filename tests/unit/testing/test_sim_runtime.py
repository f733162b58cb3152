"""Batches on a simulated machine: how long they take in virtual time, whose turn it is, and how they end."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.errors import RefusedError, TryAgainError
from p2pgrid.model.values import decode_value
from p2pgrid.runtimes.tasks import BatchChunk, Kind, Outcome, PoolPolicy, Workers
from p2pgrid.testing.parts.runtime import START_S, Cpu, SimulatedWorkers, UnitTimes
from p2pgrid.testing.world import World
from tests.unit.testing.sim_workers import JOB, SQUARE, Machine, batch, flat, machines

Make = Callable[..., Machine]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    with machines(tmp_path) as make:
        yield make


# -- time --------------------------------------------------------------------------------------


def test_units_take_their_seconds_over_the_speed(make: Make) -> None:
    machine = make(speed=2.0)
    assert machine.run(SQUARE, [1, 2, 3], first=10) == [(Outcome.OK, 1), (Outcome.OK, 4), (Outcome.OK, 9)]
    assert [when - START_S / 2 for when, _ in machine.chunks] == pytest.approx([0.5, 1.0, 1.5])
    assert [chunk.run_us for _, chunk in machine.chunks] == pytest.approx([500_000] * 3, abs=1)
    assert machine.cpu.busy_s == pytest.approx(1.5 + START_S / 2)
    assert machine.cpu.wasted_s == 0
    assert [task.first for task in machine.started] == [10]


def test_short_units_share_a_chunk_and_a_long_one_has_its_own(make: Make) -> None:
    times = UnitTimes(1, median_s=0.01, sigma=0.0)
    machine = make(times=times)
    machine.run(SQUARE, list(range(20)))
    assert [len(chunk.outcomes) for _, chunk in machine.chunks] == [6, 6, 6, 2]
    assert sum(chunk.run_us for _, chunk in machine.chunks) == pytest.approx(200_000, abs=20)

    class Mixed(UnitTimes):
        def base_s(self, job: bytes, kind: int, index: int) -> float:
            return 3.0 if index == 4 else 0.001

    machine = make("n", times=Mixed(1))
    machine.run(SQUARE, list(range(8)))
    assert [len(chunk.outcomes) for _, chunk in machine.chunks] == [4, 1, 3]


def test_a_warm_program_starts_at_once_and_another_submitters_does_not(make: Make) -> None:
    machine = make()
    machine.run(SQUARE, [1])
    for submitter, seconds in ((b"ana", 1.0), (b"bob", 1.0 + START_S)):
        before = machine.world.now
        machine.run(SQUARE, [1], submitter=submitter, job=b"another", seed=b"another")
        assert machine.world.now - before == pytest.approx(seconds)


def test_a_change_of_speed_counts_from_its_moment(make: Make) -> None:
    machine = make()
    machine.run(SQUARE, [0])
    began = machine.world.now
    task = machine.begin(machine.workers.run(batch(SQUARE, [1]), machine.take))
    machine.world.run_for(0.5)
    machine.cpu.speed = 0.1
    machine.world.run_for(1.0)
    machine.cpu.speed = 0.0
    machine.world.run_for(100.0)
    assert not task.done()
    machine.cpu.speed = 4.0
    machine.world.run_until(task.done, 1000.0)
    assert machine.world.now - began == pytest.approx(0.5 + 1.0 + 100.0 + 0.4 / 4.0)


def test_a_machine_that_was_suspended_spends_nothing_meanwhile(make: Make) -> None:
    machine = make()
    task = machine.begin(machine.workers.run(batch(SQUARE, [1]), machine.take))
    machine.world.run_for(0.5)
    machine.loop.freeze()
    machine.world.run_for(60.0)
    machine.loop.thaw()
    assert machine.world.run_until(task.done, 100.0)
    assert machine.cpu.busy_s == pytest.approx(1.0 + START_S)


def test_times_do_not_depend_on_the_order_of_asking() -> None:
    one, two, other = UnitTimes(5), UnitTimes(5), UnitTimes(6)
    for times in (one, two, other):
        times.register(JOB, 10.0, 0.5)
    forth = [one.base_s(JOB, Kind.MAP, index) for index in range(400)]
    back = [two.base_s(JOB, Kind.MAP, index) for index in reversed(range(400))]
    assert forth == back[::-1]
    assert forth != [other.base_s(JOB, Kind.MAP, index) for index in range(400)]
    assert forth[0] != one.base_s(JOB, Kind.REDUCE, 0) != one.base_s(b"unknown", Kind.REDUCE, 0)
    assert sorted(forth)[200] == pytest.approx(10.0, rel=0.1)
    assert sum(5 < time < 20 for time in forth) / 400 == pytest.approx(0.834, abs=0.06)


# -- slots, ends ------------------------------------------------------------------------------------------


def test_slots_run_at_once_and_others_wait_in_order_and_in_bounds(make: Make) -> None:
    machine = make(slots=2, waiting_max=3)
    order: list[int] = []

    async def one(number: int) -> None:
        await machine.workers.run(batch(SQUARE, [number]), lambda chunk: order.append(decode_value(chunk.payloads[0])))

    async def all_of_them() -> list[BaseException | None]:
        running = []
        for number in range(6):
            running.append(asyncio.ensure_future(one(number)))
            await asyncio.sleep(0.001)
        assert (machine.workers.busy, machine.workers.free) == (2, 0)
        return await asyncio.gather(*running, return_exceptions=True)

    ended = machine.do(all_of_them())
    assert [type(error) for error in ended] == [type(None)] * 5 + [TryAgainError]
    assert order == [0, 1, 4, 9, 16]
    assert machine.world.now == pytest.approx(3 + START_S, abs=START_S)
    assert (machine.workers.busy, machine.workers.free) == (0, 2)


def test_cancelling_a_job_ends_what_runs_and_what_waits_of_it(make: Make) -> None:
    machine = make()

    async def cancel() -> list[Any]:
        runs = []
        for job in (b"a", b"a", b"b"):
            runs.append(asyncio.ensure_future(machine.workers.run(batch(SQUARE, [1], job=job), machine.take)))
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.5)
        await machine.workers.cancel(b"a")
        assert [run.done() for run in runs] == [True, True, False]
        return await asyncio.gather(*runs, return_exceptions=True)

    ended = machine.do(cancel())
    assert [type(error) for error in ended] == [RefusedError, RefusedError, type(None)]
    assert machine.cpu.wasted_s == pytest.approx(0.503 - START_S)
    assert [task.job.job for task in machine.started] == [b"a", b"b"]


def test_cancelling_the_caller_gives_the_slot_back(make: Make) -> None:
    machine = make()
    task = machine.begin(machine.workers.run(batch(SQUARE, [1]), machine.take))
    machine.world.run_for(0.5)
    machine.loop.call_soon(task.cancel)
    assert machine.world.run_until(task.done, 10.0)
    assert task.cancelled()
    assert (machine.workers.busy, machine.workers.free) == (0, 1)
    assert machine.cpu.wasted_s == pytest.approx(0.5 - START_S)
    assert machine.cpu.busy_s == pytest.approx(0.5)


def test_closing_ends_all_of_it_at_once_and_nothing_runs_afterwards(make: Make) -> None:
    machine = make()
    workers: Workers = machine.workers

    async def close() -> list[Any]:
        runs = [asyncio.ensure_future(workers.run(batch(SQUARE, [1]), machine.take)) for _ in range(3)]
        await asyncio.sleep(0.5)
        await workers.close()
        await workers.close()
        return await asyncio.gather(*runs, return_exceptions=True)

    assert [type(error) for error in machine.do(close())] == [TryAgainError] * 3
    assert machine.world.now == 0.5
    with pytest.raises(TryAgainError):
        machine.do(workers.run(batch(SQUARE, [1]), machine.take))


def test_a_machine_that_dies_counts_its_work_as_wasted_and_leaves_nothing_open(make: Make) -> None:
    machine = make(slots=2)
    machine.run(SQUARE, [1])
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        machine.begin(machine.workers.run(batch(SQUARE, [1]), machine.take))
    machine.world.run_for(0.75)
    machine.loop.kill()
    machine.workers.abandon()
    assert len(os.listdir("/proc/self/fd")) == before - 1
    assert machine.cpu.wasted_s == pytest.approx(1.5)
    machine.world.run_for(10.0)
    assert len(machine.chunks) == 1


def test_without_a_folder_a_temporary_one_is_used_and_removed() -> None:
    world = World(7)
    workers = SimulatedWorkers(PoolPolicy(), Cpu(), UnitTimes(1))
    loop = world.loop("m")
    chunks: list[BatchChunk] = []

    async def life() -> Path:
        await workers.start()
        await workers.run(batch("import os\ndef work(x): return os.getcwd()", [1]), chunks.append)
        place = Path(flat(chunks)[0][1])
        assert place.is_dir()
        await workers.close()
        return place

    task = loop.create_task(life())
    assert world.run_until(task.done, 100.0)
    assert not task.result().exists()
