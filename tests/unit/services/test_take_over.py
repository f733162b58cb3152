"""Jobs that outlive their leads: keepers take over, others go on reading, cancels and receipts find their way."""

from __future__ import annotations

import asyncio

import pytest

from p2pgrid.core import takeover
from p2pgrid.model.ids import JobId
from p2pgrid.model.job import Derive
from p2pgrid.node import Node
from p2pgrid.runtimes.tasks import Kind
from p2pgrid.services import custody, keeping, leading, succession
from p2pgrid.wire.codec import decode
from tests.unit.services.grid_in_process import Grid, InPlacePool, results, submit, until


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(takeover, "GRACE_S", 0.1)
    monkeypatch.setattr(takeover, "RESUME_S", 0.1)
    monkeypatch.setattr(takeover, "RANK_S", 1.0)
    monkeypatch.setattr(succession, "LOOK_S", 0.05)
    monkeypatch.setattr(leading, "TICK_S", 0.05)


async def under_way(grid: Grid, pool: type[InPlacePool], items: int = 40, nodes: int = 6, **fields: object) -> tuple[Node, JobId]:
    """A job of the second node of which some units are decided, and then nothing goes on until the gate opens."""
    await grid.grow(2)
    await grid.grow(nodes, cores=1)
    gate = pool.gate = asyncio.Event()
    channel, job = await submit(grid, grid[1], list(range(items)), per_batch=8, **fields)
    led = grid[1].leading.jobs[job]
    gate.set()
    await until(lambda: led.ledger.done >= 4, "some units are done")
    gate.clear()
    await until(lambda: led.file.settled and grid[1].leading.reached(led) == 3, "the keepers have it")
    await channel.close()
    return grid[1], job


def leads(grid: Grid, job: JobId) -> list[Node]:
    return [node for node in grid.living() if job in node.leading.jobs and not node.leading.jobs[job].ended.is_set()]


def units_run(pool: type[InPlacePool]) -> int:
    return sum(len(task.inputs) for task in pool.ran)


async def test_a_keeper_takes_over_and_any_reader_follows_it_to_the_end(grid: Grid, pool: type[InPlacePool]) -> None:
    submitter, job = await under_way(grid, pool)
    await grid.close(submitter)
    late = await grid.add()
    reading = asyncio.create_task(results(await grid.channel(late), job))
    await until(lambda: leads(grid, job), "somebody took over")
    pool.gate.set()  # type: ignore[union-attr]
    values, outcome = await reading
    assert values == {number: number for number in range(40)}
    assert (outcome.line.state, outcome.line.conflicts) == ("done", 0)
    (kept,) = [node.keeping.jobs[job] for node in grid.living() if outcome.line.lead == node.context.me]
    assert not kept.ledger.final
    assert {settled.author for settled in kept.ledger.provisional.values()} == {outcome.line.lead}
    chain = kept.ledger.lineage.chain()
    assert chain[0].body.epoch == 0
    assert chain[-1].body.lead == outcome.line.lead != submitter.context.me


async def test_derived_units_are_made_without_their_submitter(grid: Grid, pool: type[InPlacePool]) -> None:
    pool.compute = staticmethod(lambda kind, item: item if kind == Kind.MAP else sum(item) if isinstance(item, list) else item)
    submitter, job = await under_way(grid, pool, derive=Derive(reduce=True, finish=True, fan_in=4))
    await grid.close(submitter)
    pool.gate.set()  # type: ignore[union-attr]
    await until(lambda: leads(grid, job), "somebody took over")
    values, outcome = await results(await grid.channel(grid[2]), job)
    assert list(values.values()) == [sum(range(40))]
    assert outcome.line.state == "done"


async def test_a_lead_that_is_started_again_goes_on_from_its_log(grid: Grid, pool: type[InPlacePool]) -> None:
    await grid.add(cores=1)
    gate = pool.gate = asyncio.Event()
    channel, job = await submit(grid, grid[0], list(range(20)), per_batch=4)
    led = grid[0].leading.jobs[job]
    gate.set()
    await until(lambda: led.ledger.done >= 2, "some units are done")
    gate.clear()
    await led.file.wait(led.file.end)
    await channel.close()
    await grid.close(grid[0])
    durable = {number for number in range(20) if led.ledger.state(number // 4, number % 4)}
    before = len(pool.ran)
    gate.set()
    again = await grid.add(home="n0", cores=1)
    values, outcome = await results(await grid.channel(again), job)
    assert values == {number: number for number in range(20)}
    assert outcome.line.state == "done"
    anew = {decode(bytes(raw), int) for task in pool.ran[before:] for raw in task.inputs}
    assert durable
    assert not anew & durable, "what was decided did not run again"


async def test_two_leads_end_as_one_and_nothing_is_lost(grid: Grid, pool: type[InPlacePool]) -> None:
    submitter, job = await under_way(grid, pool)
    keeper = next(node for node in grid.nodes if node.context.me == submitter.leading.jobs[job].keepers[1])
    await keeper.leading.take_over(keeper.keeping.jobs[job])
    assert len(leads(grid, job)) == 2
    pool.gate.set()  # type: ignore[union-attr]
    await until(lambda: leads(grid, job) == [keeper], "the first one stepped down")
    values, outcome = await results(await grid.channel(submitter), job)
    assert values == {number: number for number in range(40)}
    assert (outcome.line.state, outcome.line.conflicts) == ("done", 0)


async def test_a_job_is_cancelled_while_its_submitters_node_is_gone(grid: Grid, pool: type[InPlacePool]) -> None:
    submitter, job = await under_way(grid, pool)
    key = submitter.context.submitter
    await grid.close(submitter)
    home = await grid.add()
    home.context.submitter = key
    await until(lambda: leads(grid, job), "somebody took over")
    reply = await (await grid.channel(home)).cancel(job)
    assert reply == "cancelled"
    await until(lambda: not leads(grid, job), "nobody leads it any more")
    await until(lambda: job in pool.cancelled, "the workers heard of it")
    pool.gate.set()  # type: ignore[union-attr]
    values, outcome = await results(await grid.channel(grid[2]), job)
    assert outcome.line.state == "cancelled"
    assert 4 <= len(values) < 40


async def test_a_job_is_handed_over_by_a_node_that_leaves(grid: Grid, pool: type[InPlacePool]) -> None:
    submitter, job = await under_way(grid, pool)
    assert await submitter.succession.leave(5.0) == 0
    (lead,) = leads(grid, job)
    assert lead is not submitter
    await grid.close(submitter)
    pool.gate.set()  # type: ignore[union-attr]
    values, _ = await results(await grid.channel(lead), job)
    assert values == {number: number for number in range(40)}
    assert units_run(pool) <= 60


async def test_while_nobody_leads_a_keeper_takes_receipts(grid: Grid, pool: type[InPlacePool], monkeypatch: pytest.MonkeyPatch) -> None:
    submitter, job = await under_way(grid, pool)
    monkeypatch.setattr(takeover, "GRACE_S", 60.0)
    await grid.close(submitter)
    pool.gate.set()  # type: ignore[union-attr]
    keepers = [node.keeping.jobs[job] for node in grid.living() if job in node.keeping.jobs]
    before = max(len(kept.ledger.receipt_list) for kept in keepers)
    await until(lambda: max(len(kept.ledger.receipt_list) for kept in keepers) > before, "what was leased before is delivered to a keeper")
    monkeypatch.setattr(takeover, "GRACE_S", 0.1)
    values, _ = await results(await grid.channel(grid[0]), job)
    assert len(values) == 40
    assert units_run(pool) <= 60, "what was leased by the lead that is gone did not run again"


async def test_the_log_of_a_job_that_ended_is_kept_by_others_when_its_keepers_go(
    grid: Grid, pool: type[InPlacePool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(custody, "ABSENT_S", 0.2)
    monkeypatch.setattr(custody, "AGAIN_S", 0.5)
    monkeypatch.setattr(leading, "ENDED_IN_MEMORY_MAX", 0)
    monkeypatch.setattr(keeping, "ENDED_IN_MEMORY_MAX", 0)
    await grid.grow(5, cores=1)
    channel, job = await submit(grid, grid[1], list(range(8)))
    await results(channel, job)
    await channel.close()
    await until(lambda: sum(node.keeping.knows(job) for node in grid.living()) == 4, "four have it")
    for _ in range(2):
        await grid.add()
    for number in (1, 2):
        await grid.close(grid[number])
        await until(lambda: sum(node.keeping.knows(job) for node in grid.living()) >= 4, "four have it again")
    values, outcome = await results(await grid.channel(grid[6]), job)
    assert (values, outcome.line.state) == ({number: number for number in range(8)}, "done")
