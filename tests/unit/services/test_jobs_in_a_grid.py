"""Jobs in a grid of real nodes: who keeps them, who can read them, and what happens when nodes come and go."""

from __future__ import annotations

import asyncio

import pytest

from p2pgrid.errors import IntegrityError
from p2pgrid.model import log as kinds
from p2pgrid.model.job import Cancel, Derive, KeeperSet
from p2pgrid.runtimes.tasks import Kind
from p2pgrid.services import leading
from p2pgrid.services.absorbing import KeptJob, absorb
from p2pgrid.services.ledjob import LedJob
from p2pgrid.wire.envelope import seal
from tests.unit.services.grid_in_process import DAY_MS, Grid, InPlacePool, make_job, results, submit, until, wall_ms


def named(led: LedJob) -> KeeperSet:
    """The newest keepers of a job."""
    assert led.ledger.keepers is not None
    return led.ledger.keepers.body


async def test_results_come_in_order_and_three_keepers_have_the_log(grid: Grid) -> None:
    await grid.grow(5, cores=1)
    channel, job = await submit(grid, grid[1], list(range(40)))
    values, outcome = await results(channel, job)
    assert values == {number: number for number in range(40)}
    assert (outcome.line.state, outcome.line.done, len(outcome.line.keepers)) == ("done", 40, 3)
    led = grid[1].leading.jobs[job]
    for keeper in outcome.line.keepers:
        node = next(node for node in grid.nodes if node.context.me == keeper)
        kept = node.keeping.jobs[job]
        assert set(kept.ledger.grants) == set(led.ledger.grants)
        assert set(kept.ledger.receipts) == set(led.ledger.receipts)
        assert set(kept.ledger.decisions) == set(led.ledger.decisions)
        assert set(kept.payload_at) == set(led.kept.payload_at)
        assert kept.state == "done"


async def test_a_log_that_lacks_what_was_settled_is_not_taken_for_the_whole(grid: Grid) -> None:
    await grid.grow(3, cores=1)
    channel, job = await submit(grid, grid[1], list(range(12)))
    await results(channel, job)
    led = grid[1].leading.jobs[job]
    records, _ = led.file.read(0)
    held_back = [record for record in records if record.kind == kinds.DECISION][-1]
    for kept_records, state in ((records, "done"), ([record for record in records if record is not held_back], "incomplete")):
        kept = KeptJob(led.job, led.file)
        _, error = absorb(kept, kept_records, grid[1].context.grid.id, wall_ms())
        assert error is None
        assert kept.state == state
        assert kept.ended == (state == "done")


async def test_results_larger_than_one_push_reach_the_keepers_whole(grid: Grid, pool: type[InPlacePool]) -> None:
    pool.compute = staticmethod(lambda kind, item: bytes([item % 256]) * 12_000)
    await grid.grow(3, cores=1)
    channel, job = await submit(grid, grid[1], list(range(400)), per_batch=64)
    values, _ = await results(channel, job)
    assert len(values) == 400
    led = grid[1].leading.jobs[job]
    for keeper in named(led).keepers:
        node = next(node for node in grid.nodes if node.context.me == keeper)
        # The results are out as soon as they are on one disk; the keepers have them a moment later.
        await until(lambda log=node.keeping.jobs[job]: set(log.payload_at) == set(led.kept.payload_at), "it has all of them")  # type: ignore[misc]
    await grid.close(grid[1])
    read, outcome = await results(await grid.channel(grid[2]), job)
    assert read == values
    assert outcome.line.state == "done"


async def test_a_keeper_named_late_catches_up_with_a_long_log(grid: Grid, pool: type[InPlacePool]) -> None:
    pool.compute = staticmethod(lambda kind, item: bytes([item % 256]) * 12_000)
    await grid.grow(2, cores=1)
    channel, job = await submit(grid, grid[1], list(range(300)), per_batch=64)
    led = grid[1].leading.jobs[job]
    await until(lambda: led.file.durable > 2 << 20, "the log is longer than one push")
    pool.gate = asyncio.Event()
    late = await grid.add(cores=0)
    await until(lambda: late.context.me in named(led).keepers, "the new node is named")
    pool.gate.set()
    values, outcome = await results(channel, job)
    assert len(values) == 300
    assert late.context.me in outcome.line.keepers
    assert set(late.keeping.jobs[job].payload_at) == set(led.kept.payload_at)


async def test_reduce_and_finish_run_on_peers_and_large_values_have_copies(grid: Grid, pool: type[InPlacePool]) -> None:
    def compute(kind: Kind, item: object) -> object:
        if kind == Kind.MAP:
            return b"x" * 30_000
        return b"".join(item) if isinstance(item, list) else item

    pool.compute = staticmethod(compute)
    await grid.grow(4, cores=1)
    channel, job = await submit(grid, grid[1], list(range(10)), derive=Derive(reduce=True, finish=True, fan_in=4))
    values, outcome = await results(channel, job)
    assert [len(value) for value in values.values()] == [300_000]
    assert (outcome.line.state, outcome.line.done) == ("done", 10 + 3 + 1 + 1)
    held = [{row.id for row in node.blobs.list()} for node in grid.nodes]
    led = grid[1].leading.jobs[job]
    large = [receipt.body.digests for receipt in led.ledger.receipt_list if receipt.body.holders]
    assert large
    for digests in large:
        assert sum(digests[:32] in blobs for blobs in held) >= 3


async def test_a_keeper_that_dies_is_replaced_and_the_new_one_catches_up(grid: Grid, pool: type[InPlacePool]) -> None:
    await grid.grow(5, cores=1)
    pool.gate = asyncio.Event()
    _, job = await submit(grid, grid[0], list(range(8)))
    led = grid[0].leading.jobs[job]
    before = named(led)
    victim = next(node for node in grid.nodes if node.context.me in before.keepers)
    await grid.close(victim)
    after = await until(lambda: named(led) if victim.context.me not in named(led).keepers else None, "replaced")
    assert (len(after.keepers), after.epoch) == (3, before.epoch + 1)
    pool.gate.set()
    await until(led.ended.is_set, "the job ends")
    for node in grid.living():
        if node.context.me in after.keepers:
            assert node.keeping.jobs[job].state == "done"


async def test_keepers_grow_to_three_when_nodes_join(grid: Grid, pool: type[InPlacePool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leading, "TICK_S", 0.05)
    await grid.grow(1, cores=1)
    pool.gate = asyncio.Event()
    _, job = await submit(grid, grid[0], [1, 2])
    led = grid[0].leading.jobs[job]
    assert named(led).keepers == ()
    await grid.grow(5)
    await until(lambda: len(named(led).keepers) == 3, "three keepers")
    pool.gate.set()
    await until(led.ended.is_set, "the job ends")
    assert all(node.keeping.jobs[job].state == "done" for node in grid.nodes if node.context.me in named(led).keepers)


async def test_a_node_without_room_is_passed_over_and_costs_no_statement_a_tick(
    grid: Grid, pool: type[InPlacePool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leading, "TICK_S", 0.02)
    await grid.grow(1, cores=1)
    full = await grid.add(storage_bytes=100)
    assert full.info().offer.storage_bytes == 100
    pool.gate = asyncio.Event()
    _, job = await submit(grid, grid[0], [1, 2])
    led = grid[0].leading.jobs[job]
    await until(lambda: named(led).epoch == 1, "the full node is no keeper any more")
    end = led.file.end
    for _ in range(10):
        grid[0].leading._look_after(led, grid[0].context.clock(), grid[0].context.wall_ms())
    assert (named(led).keepers, named(led).epoch, led.file.end) == ((), 1, end)
    pool.gate.set()
    await until(led.ended.is_set, "the job ends")
    assert led.state == "done"


async def test_cancel_stops_workers_and_comes_first(grid: Grid, pool: type[InPlacePool]) -> None:
    await grid.grow(3, cores=1)
    pool.gate = asyncio.Event()
    channel, job = await submit(grid, grid[0], list(range(20)))
    await until(lambda: len(pool.ran) >= 2, "units run")
    assert await channel.cancel(job) == "cancelled"
    await until(lambda: job in pool.cancelled, "the workers heard of it")
    pool.gate.set()
    led = grid[0].leading.jobs[job]
    for keeper in named(led).keepers:
        node = next(node for node in grid.nodes if node.context.me == keeper)
        await until(lambda: job in node.keeping.jobs and node.keeping.jobs[job].state == "cancelled", "it knows")  # noqa: B023
    for node in grid.nodes:
        await until(lambda: not any(known.users for known in node.working._known.values()), "nothing is held")  # noqa: B023
    assert (led.state, led.ledger.final) == ("cancelled", {})


async def test_a_cancel_after_the_end_changes_nothing(grid: Grid) -> None:
    await grid.grow(1, cores=1)
    channel, job = await submit(grid, grid[0], [1])
    await results(channel, job)
    node = grid[0]
    raw = seal(Cancel(wall_ms() + DAY_MS, job), channel.submitter, channel.grid.id).raw
    assert await node.succession.cancel(node.keeping.jobs[job], raw) == 0
    assert (node.leading.jobs[job].state, node.leading.jobs[job].ledger.cancelled) == ("done", None)


async def test_ended_jobs_leave_memory_and_can_still_be_read(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leading, "ENDED_IN_MEMORY_MAX", 1)
    await grid.grow(1, cores=1)
    jobs = []
    for number in range(3):
        channel, job = await submit(grid, grid[0], [number])
        await results(channel, job)
        jobs.append(job)
    grid[0].leading._forget_ended()
    assert list(grid[0].leading.jobs) == jobs[2:]
    for number, job in enumerate(jobs):
        values, outcome = await results(channel, job)
        assert (values, outcome.line.state) == ({0: number}, "done")


async def test_results_are_read_back_after_a_restart(grid: Grid, pool: type[InPlacePool]) -> None:
    pool.compute = staticmethod(lambda kind, item: bytes([item]) * 9_000)
    await grid.grow(1, cores=1)
    channel, job = await submit(grid, grid[0], list(range(200)), per_batch=32)
    values, _ = await results(channel, job)
    await channel.close()
    await grid.close(grid[0])
    again = await grid.add(home="n0")
    read, outcome = await results(await grid.channel(again), job)
    assert read == values
    assert (outcome.line.state, outcome.line.done) == ("done", 200)


async def test_a_log_with_a_torn_tail_and_a_damaged_place_gives_the_rest(grid: Grid, pool: type[InPlacePool]) -> None:
    pool.compute = staticmethod(lambda kind, item: bytes([item]) * 9_000)
    await grid.grow(1, cores=1)
    channel, job = await submit(grid, grid[0], list(range(200)), per_batch=8)
    await results(channel, job)
    cursors = sorted(grid[0].leading.jobs[job].kept.payload_at.values())
    await channel.close()
    await grid.close(grid[0])
    log = grid[0].home.ledger / f"{job.hex()}.log"
    with log.open("r+b") as file:
        file.seek(cursors[5] + 200)
        file.write(b"damage")
        file.truncate(log.stat().st_size - 3)
    again = await grid.add(home="n0")
    kept = await again.reading.view(job)
    assert isinstance(kept, KeptJob)
    assert kept.state == "running"  # its last word was torn off
    good = [receipt for receipt in kept.ledger.receipt_list if receipt.body.payload in kept.payload_at]
    assert len(kept.ledger.receipt_list) - len(good) == 1
    for receipt in good:
        assert len((await again.leading.deriving.payload(kept, receipt)).values) == len(receipt.body.outcomes)
    lost = next(receipt for receipt in kept.ledger.receipt_list if receipt not in good)
    with pytest.raises(IntegrityError):
        await again.leading.deriving.payload(kept, lost)


async def test_a_job_with_batches_larger_than_the_disk_queue_is_taken(grid: Grid, pool: type[InPlacePool]) -> None:
    pool.gate = asyncio.Event()
    await grid.grow(1)
    channel, job = await submit(grid, grid[0], [b"x" * 900_000] * 100, per_batch=1)
    assert grid[0].leading.jobs[job].file.durable > 90_000_000
    assert await channel.cancel(job) == "cancelled"


async def test_batches_that_are_not_those_of_the_manifest_are_refused_and_leave_nothing(grid: Grid) -> None:
    await grid.grow(1)
    channel = await grid.channel(grid[0])
    job, batches = make_job([1, 2, 3, 4, 5])
    signed = seal(job, channel.submitter, channel.grid.id)
    for wrong in (batches[:1], [*batches, b""], batches[::-1]):
        with pytest.raises(IntegrityError):
            await channel.submit(signed.raw, wrong)
    assert not list(grid[0].home.ledger.iterdir())
    assert not grid[0].leading.jobs
    await channel.submit(signed.raw, batches)
