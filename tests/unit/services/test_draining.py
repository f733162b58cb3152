"""A worker that leaves: what has ended is answered, what has not goes back, and no unit that ended runs again."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from p2pgrid.core.speculation import Speculation
from p2pgrid.model.blob import blob_id_of
from p2pgrid.model.job import BatchRef
from p2pgrid.model.reasons import Reason
from p2pgrid.model.work import UnitRange
from p2pgrid.runtimes.tasks import Kind
from p2pgrid.services.inputs import VALUE, encode_batch
from p2pgrid.wire.messages import LeasesReturned, PullReply
from tests.unit.services.grid_in_process import Grid, InPlacePool, results, submit, until
from tests.unit.services.worker_world import WorkerWorld, leased, pull_of


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[WorkerWorld]:
    world = WorkerWorld(tmp_path)
    await world.working.start()
    yield world
    await world.working.close()


async def test_what_is_queued_goes_back_at_once_and_the_unit_that_runs_ends_and_counts(world: WorkerWorld) -> None:
    job, first, lead, _ = await leased(world, UnitRange(0, 0, 2), units=8)
    second = world.grant(job, lead, UnitRange(0, 4, 4), nonce=2)
    lead.replies = [PullReply(False, second.raw)]
    await world.working._pull(pull_of(job.id, lead.me))
    assert world.working.worker.queued == 4
    drain = asyncio.ensure_future(world.working.drain(5.0))
    await until(lambda: lead.returned, "the lease that has not begun goes back")
    assert lead.returned == [LeasesReturned(job.id, (second.id,), Reason.DRAINED)]
    assert not lead.deliveries
    world.pool.end(0)
    await drain
    assert lead.units == [(0, 0)]
    assert [returned.grants for returned in lead.returned] == [(second.id,), (first.id,)]
    assert [number for number, _ in world.pool.started] == [0]
    assert not any(known.busy for known in world.working._known.values())
    assert not world.working._owed


async def test_a_lease_is_handed_back_only_when_its_receipts_are_taken(world: WorkerWorld) -> None:
    _, _, lead, _ = await leased(world, UnitRange(0, 0, 2))
    lead.gate.clear()
    drain = asyncio.ensure_future(world.working.drain(5.0))
    await world.settle()
    world.pool.end(0)
    await until(lambda: lead.deliveries, "on its way")
    await world.settle()
    assert (lead.returned, drain.done()) == ([], False)
    lead.gate.set()
    await drain
    assert len(lead.returned) == 1


async def test_a_long_unit_is_stopped_after_the_grace_and_goes_back(world: WorkerWorld) -> None:
    job, grant, lead, _ = await leased(world, UnitRange(0, 0, 4))
    world.pool.end(0)
    await until(lambda: 1 in world.pool.running, "the second one runs")
    drain = asyncio.ensure_future(world.working.drain(0.05))
    await world.settle()
    assert not world.pool.stopped
    await drain
    assert world.pool.stopped
    assert lead.units == [(0, 0)]
    assert lead.returned == [LeasesReturned(job.id, (grant.id,), Reason.DRAINED)]
    assert world.pool.running == {}


async def test_a_lease_that_was_answered_whole_is_not_handed_back(world: WorkerWorld) -> None:
    _, _, lead, _ = await leased(world, UnitRange(0, 0, 1))
    drain = asyncio.ensure_future(world.working.drain(5.0))
    await world.settle()
    world.pool.end(0)
    await drain
    assert (lead.units, lead.returned) == ([(0, 0)], [])


async def test_a_lease_that_arrives_meanwhile_goes_back_and_nobody_is_heard_any_more(world: WorkerWorld) -> None:
    job, _, lead, _ = await leased(world, UnitRange(0, 0, 1))
    late = world.grant(job, lead, UnitRange(0, 1, 1), nonce=2)
    lead.replies = [PullReply(False, late.raw)]
    lead.gate.clear()
    pull = asyncio.ensure_future(world.working._pull(pull_of(job.id, lead.me)))
    await world.settle()
    drain = asyncio.ensure_future(world.working.drain(5.0))
    await world.settle()
    world.pool.end(0)
    lead.gate.set()
    await asyncio.gather(drain, pull)
    await until(lambda: lead.returned, "it goes back")
    assert lead.returned == [LeasesReturned(job.id, (late.id,), Reason.DRAINED)]
    pulls = len(lead.pulls)
    world.invite(job, lead)
    await world.settle()
    assert len(lead.pulls) == pulls
    assert [number for number, _ in world.pool.started] == [0]


async def test_units_whose_inputs_are_still_fetched_do_not_start(world: WorkerWorld) -> None:
    content = encode_batch([b"\x01"], [(0, VALUE, b"b" * 32, 1)])
    lead = world.party()
    job, _ = world.job(manifest=(BatchRef(blob_id_of(content), 1, len(content)),))
    grant = world.grant(job, lead, UnitRange(0, 0, 1))
    lead.replies = [PullReply(False, grant.raw, job.raw, (world.keepers(job, lead).raw,), ((0, content),))]
    world.invite(job, lead)
    await until(lambda: world.working.worker.running, "it is prepared")
    async with asyncio.timeout(10.0):
        await world.working.drain(30.0)
    assert (world.pool.started, lead.deliveries) == ([], [])
    assert lead.returned == [LeasesReturned(job.id, (grant.id,), Reason.DRAINED)]


async def test_large_results_are_stored_before_the_node_is_drained(world: WorkerWorld) -> None:
    _, _, lead, _ = await leased(world, UnitRange(0, 0, 2), items=[b"x" * 50_000, 1])
    drain = asyncio.ensure_future(world.working.drain(5.0))
    await world.settle()
    world.pool.end(0)
    await world.settle()
    assert (lead.deliveries, lead.returned) == ([], [])
    world.storing.set()
    await drain
    assert (lead.units, len(lead.returned)) == ([(0, 0)], 1)


async def test_without_its_lead_a_lease_is_handed_to_who_leads_by_now(world: WorkerWorld) -> None:
    job, grant, lead, (keeper,) = await leased(world, UnitRange(0, 0, 2))
    world.lose(lead)
    named = world.keepers(job, keeper, lead, epoch=1, by=keeper.key)
    keeper.replies = [PullReply(False, b"", b"", (named.raw,))]
    await world.working._pull(pull_of(job.id, keeper.me))
    await world.working.drain(0.01)
    assert (lead.returned, keeper.returned) == ([], [LeasesReturned(job.id, (grant.id,), Reason.DRAINED)])


async def test_a_drain_ends_though_nobody_takes_anything(world: WorkerWorld) -> None:
    _, _, lead, (keeper,) = await leased(world, UnitRange(0, 0, 2))
    lead.gate.clear()
    keeper.away = True
    drain = asyncio.ensure_future(world.working.drain(5.0, 0.05))
    await world.settle()
    world.pool.end(0)
    async with asyncio.timeout(2.0):
        await drain
    await until(lambda: lead.returned, "it is told all the same")


async def test_an_idle_worker_is_drained_at_once_and_may_be_drained_again(world: WorkerWorld) -> None:
    async with asyncio.timeout(1.0):
        await world.working.drain()
        await world.working.drain()
    assert world.pool.stopped


async def test_in_a_grid_no_unit_of_a_node_that_leaves_runs_twice(
    grid: Grid, pool: type[InPlacePool], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where the machine is slow the lead makes copies of the last units, which is another matter.
    monkeypatch.setattr(Speculation, "room", lambda self, answers: 0.0)
    await grid.grow(3, cores=1)
    pool.gate, counts = asyncio.Event(), Counter[int]()

    def compute(kind: Kind, item: int) -> int:
        counts[item] += 1
        return item

    pool.compute = staticmethod(compute)
    channel, job = await submit(grid, grid[0], list(range(60)), per_batch=20)
    leaver = grid[2]
    await until(lambda: leaver.working.worker.running, "it works")
    drain = asyncio.ensure_future(leaver.working.drain(5.0))
    await asyncio.sleep(0)
    pool.gate.set()
    await drain
    assert not leaver.working._owed
    values, _ = await results(channel, job)
    assert values == {number: number for number in range(60)}
    assert set(counts.values()) == {1}
