"""Jobs in a grid of real nodes: who keeps them, who can read them, and what happens when nodes come and go."""

from __future__ import annotations

from tests.unit.services.grid_in_process import Grid, results, submit, until


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
        assert set(kept.payload_at) == set(led.payload_at)
        assert kept.state == "done"


async def test_results_larger_than_one_push_reach_the_keepers_whole(grid: Grid, pool) -> None:
    pool.compute = staticmethod(lambda kind, item: bytes([item % 256]) * 12_000)
    await grid.grow(3, cores=1)
    channel, job = await submit(grid, grid[1], list(range(400)), per_batch=64)
    values, _ = await results(channel, job)
    assert len(values) == 400
    led = grid[1].leading.jobs[job]
    for keeper in led.ledger.keepers.body.keepers:
        node = next(node for node in grid.nodes if node.context.me == keeper)
        assert set(node.keeping.jobs[job].payload_at) == set(led.payload_at)
    await grid.close(grid[1])
    read, outcome = await results(await grid.channel(grid[2]), job)
    assert read == values
    assert outcome.line.state == "done"


async def test_a_keeper_named_late_catches_up_with_a_long_log(grid: Grid, pool) -> None:
    pool.compute = staticmethod(lambda kind, item: bytes([item % 256]) * 12_000)
    await grid.grow(2, cores=1)
    channel, job = await submit(grid, grid[1], list(range(300)), per_batch=64)
    led = grid[1].leading.jobs[job]
    await until(lambda: led.file.durable > 2 << 20, "the log is longer than one push")
    pool.gate = __import__("asyncio").Event()
    late = await grid.add(cores=0)
    await until(lambda: late.context.me in led.ledger.keepers.body.keepers, "the new node is named")
    pool.gate.set()
    values, outcome = await results(channel, job)
    assert len(values) == 300
    assert late.context.me in outcome.line.keepers
    assert set(late.keeping.jobs[job].payload_at) == set(led.payload_at)
