"""Why a job waits, and why it ended as it did: each cause on its own, on nodes of one process."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator

import msgspec
import pytest

from p2pgrid.client.channel import Channel
from p2pgrid.errors import RefusedError
from p2pgrid.model.ids import JobId, StatementId, short
from p2pgrid.model.job import UnitLimits
from p2pgrid.model.reasons import Reason
from p2pgrid.model.work import OK, RAISED
from p2pgrid.runtimes.tasks import BatchChunk, BatchTask
from p2pgrid.runtimes.worker import frames
from p2pgrid.services.explaining.words import bounded
from p2pgrid.wire.codec import decode, encode
from p2pgrid.wire.faces import Because, Explanation
from tests.unit.services.grid_in_process import Grid, InPlacePool, results, submit, until


def walk(because: tuple[Because, ...]) -> Iterator[Because]:
    """Every reason of a tree."""
    for one in because:
        yield one
        yield from walk(one.under)


def reason_in(told: Explanation, reason: Reason) -> Because:
    """The reason with this code. Fails when it is not there."""
    found = [one for one in walk(told.because) if one.reason == reason]
    assert found, (reason, told)
    return found[0]


def codes(told: Explanation) -> set[str]:
    return {one.reason for one in walk(told.because) if one.reason}


def texts(because: tuple[Because, ...]) -> str:
    return "\n".join(one.text for one in walk(because))


async def explained(channel: Channel, job: JobId) -> Explanation:
    return await channel.explain("job", job)


async def test_a_job_that_nobody_may_run_says_so_and_why_each_node_may_not(grid: Grid, pool: type[InPlacePool]) -> None:
    await grid.grow(2)
    channel, job = await submit(grid, grid[0], [1, 2, 3])
    told = await explained(channel, job)
    assert told.state == "waiting"
    assert told.because[0].reason == Reason.NO_WORKERS
    assert told.because[0].next_step
    idle = reason_in(told, Reason.NO_SLOT)
    assert "2 nodes" in idle.text
    assert short(grid[1].context.me) in texts(idle.under)
    assert "0 of 3 units done" in told.text


async def test_a_unit_that_wants_more_memory_than_anybody_lends_is_told_with_both_figures(grid: Grid) -> None:
    await grid.add()
    await grid.add(cores=2, memory_bytes=1 << 30)
    channel, job = await submit(grid, grid[0], [1], limits=UnitLimits(memory_bytes=4 << 30))
    told = await explained(channel, job)
    lacking = reason_in(told, Reason.NO_MEMORY)
    assert "512 MiB" in texts(lacking.under)
    assert "4 GiB" in texts(lacking.under)
    assert "--memory" in lacking.next_step


async def test_a_node_that_does_not_offer_the_runtime_says_what_it_offers(grid: Grid) -> None:
    await grid.add()
    worker = await grid.add(cores=1)
    worker.context.offered = frozenset({"wasm"})
    worker.peers.renew()
    await until(lambda: grid[0].peers.info(worker.context.me).offer.runtimes == ("wasm",), "the offer is known")
    channel, job = await submit(grid, grid[0], [1])
    lacking = reason_in(await explained(channel, job), Reason.NO_RUNTIME)
    assert "offers wasm; the job wants native" in texts(lacking.under)


@pytest.mark.parametrize("reason", [Reason.UNTESTED, Reason.CAGE_BROKEN, Reason.NO_CAGE])
async def test_a_node_says_why_it_does_not_offer_the_runtime(grid: Grid, reason: Reason) -> None:
    await grid.add()
    worker = await grid.add(cores=1)
    worker.context.offered = frozenset({"wasm"})
    worker._lacking = lambda: (("native", reason.value), ("python", "no code of ours"))
    worker.peers.renew()
    await until(lambda: grid[0].peers.info(worker.context.me).lacking, "it is known")
    channel, job = await submit(grid, grid[0], [1])
    lacking = reason_in(await explained(channel, job), reason)
    assert lacking.under[0].text == f"n1 ({short(worker.context.me)}): native"
    assert lacking.next_step
    channel, job = await submit(grid, grid[0], [1], runtime="wasm")
    assert reason not in codes(await explained(channel, job))
    pool_of_none = await submit(grid, grid[0], [1], runtime="python")
    reason_in(await explained(*pool_of_none), Reason.NO_RUNTIME)


async def test_paused_nodes_are_one_line_with_the_nodes_under_it(grid: Grid, pool: type[InPlacePool]) -> None:
    await grid.add()
    await grid.grow(4, cores=1)
    for worker in grid.nodes[1:]:
        channel = await grid.channel(worker)
        await channel.pause(0.0)
    channel, job = await submit(grid, grid[0], [1, 2])
    told = await explained(channel, job)
    paused = reason_in(told, Reason.PAUSED)
    assert paused.text == f"3 nodes: {Reason.PAUSED.sentence}"
    assert len(paused.under) == 3
    assert "resume" in paused.next_step
    assert (told.state, told.because[0].reason) == ("waiting", Reason.NO_WORKERS)


async def test_a_quorum_that_is_larger_than_the_grid_is_the_first_reason(grid: Grid, pool: type[InPlacePool]) -> None:
    await grid.add(cores=1)
    channel, job = await submit(grid, grid[0], [1], quorum=3)
    await until(lambda: grid[0].leading.jobs[job].ledger.receipt_list, "the only worker has answered")
    told = await explained(channel, job)
    assert told.because[0].reason == Reason.QUORUM_SHORT
    assert "3 nodes, and only 1" in told.because[0].text
    reason_in(told, Reason.NOTHING_LEFT)


async def test_who_works_on_it_and_who_only_waits_is_told(grid: Grid, pool: type[InPlacePool]) -> None:
    pool.gate = asyncio.Event()
    await grid.add()
    await grid.grow(3, cores=1)
    channel, job = await submit(grid, grid[0], [1])
    led = grid[0].leading.jobs[job]
    await until(lambda: led.lead.book.leases, "it is leased")
    told = await explained(channel, job)
    assert told.state == "running"
    assert "1 node works on it" in told.text
    (holder,) = led.lead.book.by_worker
    working = next(one for one in told.because if one.text == "1 node works on it")
    assert short(holder) in working.under[0].text
    assert "1 unit leased, the oldest for 0 s" in working.under[0].text
    reason_in(told, Reason.NOTHING_LEFT)
    pool.gate.set()
    await results(channel, job)
    told = await explained(channel, job)
    assert (told.state, Reason.JOB_OVER in codes(told)) == ("done", True)


async def test_a_worker_that_declines_is_heard_once_and_told_with_its_reason(grid: Grid) -> None:
    lead = await grid.add()
    worker = await grid.add(cores=1, native=False)
    channel, job = await submit(grid, lead, [1])
    led = lead.leading.jobs[job]
    await until(lambda: led.declined, "it declined")
    assert led.declined == {worker.context.me: Reason.NATIVE_REFUSED}
    told = await explained(channel, job)
    declined = reason_in(told, Reason.NATIVE_REFUSED)
    assert short(worker.context.me) in texts(declined.under)
    assert declined.next_step
    assert not led.lead.book.leases, "what it was leased came back"
    for _ in range(3):
        lead.leading._invite(led, [worker.context.me])
    await explained(channel, job)
    events = [event for event in lead.happenings.about(job, 50) if event.reason == Reason.DECLINED]
    assert len(events) == 1
    assert events[0].text.endswith("(native-refused)")
    assert set(events[0].about) == {job, worker.context.me}


async def test_a_job_of_another_node_says_who_leads_it(grid: Grid, pool: type[InPlacePool]) -> None:
    pool.gate = asyncio.Event()
    await grid.grow(3, cores=1)
    _, job = await submit(grid, grid[0], [1, 2, 3])
    other = await grid.channel(grid[2])
    told = await explained(other, job)
    assert told.state == "running"
    assert short(grid[0].context.me) in told.text
    assert told.kind == "job"
    pool.gate.set()


async def test_a_job_that_nobody_knows_is_refused(grid: Grid) -> None:
    await grid.add()
    channel = await grid.channel(grid[0])
    with pytest.raises(RefusedError, match="nobody who can be reached"):
        await channel.explain("job", b"x" * 32)
    with pytest.raises(RefusedError):
        await channel.explain("moon", b"x" * 32)


async def test_a_job_of_which_only_the_index_has_a_line_is_told_as_that(grid: Grid, pool: type[InPlacePool]) -> None:
    node = await grid.add(cores=1)
    channel, job = await submit(grid, node, [1])
    await results(channel, job)
    row = (await node.context.offload.run(node.index.jobs))[0]
    gone = JobId(StatementId(b"g" * 32))
    node.index.put_job(msgspec.structs.replace(row, id=gone))
    told = await explained(channel, gone)
    assert (told.state, told.because[0].reason) == ("unknown", Reason.INDEX_ONLY)


async def test_a_cancelled_job_says_so(grid: Grid) -> None:
    await grid.add()
    channel, job = await submit(grid, grid[0], [1])
    await channel.cancel(job)
    told = await explained(channel, job)
    assert told.state == "cancelled"
    assert reason_in(told, Reason.CANCELLED).next_step


async def test_a_unit_says_who_has_it_and_then_who_did_it(grid: Grid, pool: type[InPlacePool]) -> None:
    pool.gate = asyncio.Event()
    await grid.add(cores=1)
    channel, job = await submit(grid, grid[0], [1, 2, 3])
    await until(lambda: grid[0].leading.jobs[job].lead.book.leases, "it is leased")
    told = await channel.explain("unit", job, 0)
    assert (told.kind, told.unit, told.state) == ("unit", 0, "leased")
    assert short(grid[0].context.me) in texts(told.because)
    pool.gate.set()
    await results(channel, job)
    told = await channel.explain("unit", job, 0)
    assert told.state == "done"
    assert "decided by" in texts(told.because)
    assert "epoch 0" in texts(told.because)
    with pytest.raises(RefusedError, match="no unit 3"):
        await channel.explain("unit", job, 3)


async def test_a_unit_that_nobody_takes_points_at_its_job(grid: Grid) -> None:
    await grid.add()
    channel, job = await submit(grid, grid[0], [1])
    told = await channel.explain("unit", job, 0)
    assert told.state == "waiting"
    assert short(job) in told.because[-1].next_step


def failing(pool: type[InPlacePool], said: dict[str, tuple[str, str]]) -> None:
    """Units whose input is one of these texts raise, as a worker process tells it."""

    async def run(self: InPlacePool, task: BatchTask, on_results: Callable[[BatchChunk], None]) -> None:
        assert not isinstance(task.inputs, bytes)
        for position, raw in enumerate(task.inputs):
            item = decode(bytes(raw), str)
            outcome, value = bytes([OK]), encode(item)
            if item in said:
                kind, message = said[item]
                outcome, value = bytes([RAISED]), frames.describe(kind, message, f'Traceback:\n  File "job.py"\n{kind}: {message}\n')
            on_results(BatchChunk(task.first + position, outcome, [msgspec.Raw(value)], 1000))
            await asyncio.sleep(0)

    pool.run = run  # type: ignore[method-assign]


@pytest.fixture
def restored(pool: type[InPlacePool]) -> Iterator[type[InPlacePool]]:
    """The pool as it was, after the test."""
    plain = pool.run
    yield pool
    pool.run = plain  # type: ignore[method-assign]


async def test_failures_are_grouped_by_reason_and_words_each_with_its_remedy(grid: Grid, restored: type[InPlacePool]) -> None:
    failing(
        restored,
        {
            "module": ("ModuleNotFoundError", "No module named 'nump'"),
            "memory": ("numpy._core._exceptions._ArrayMemoryError", "Unable to allocate 4 GiB"),
            "limit": ("MemoryLimit", "the unit wants more than it may have"),
            "command": ("CommandFailed", "exit status 1: MemoryError"),
            "zero": ("ZeroDivisionError", "division by zero\x1b[2J"),
        },
    )
    await grid.add(cores=1)
    channel, job = await submit(grid, grid[0], ["fine", "module", "module", "memory", "limit", "command", "zero"])
    await results(channel, job)
    told = await explained(channel, job)
    assert told.state == "failed"
    missing = reason_in(told, Reason.MISSING_MODULE)
    assert missing.text == "2 units failed: ModuleNotFoundError: No module named 'nump'"
    assert "dependencies" in missing.next_step
    assert "first: unit 1 at" in texts(missing.under)
    assert "ModuleNotFoundError" in missing.under[-1].text
    assert sum(one.reason == Reason.OVER_MEMORY for one in told.because) == 3
    assert "--memory" in reason_in(told, Reason.OVER_MEMORY).next_step
    raised = [one for one in told.because if one.reason == Reason.RAISED]
    assert [one.text for one in raised] == ["1 unit failed: ZeroDivisionError: division by zero?[2J"]
    unit = await channel.explain("unit", job, 1)
    assert unit.state == "failed"
    assert unit.because[0].reason == Reason.MISSING_MODULE
    assert '  File "job.py"' in texts(unit.because)
    assert "digest" in texts(unit.because)


async def test_answers_that_differ_are_told_with_their_digests_and_who_gave_them(grid: Grid, pool: type[InPlacePool]) -> None:
    given = itertools.count()
    pool.compute = staticmethod(lambda kind, item: next(given))
    await grid.add()
    await grid.grow(4, cores=1)
    channel, job = await submit(grid, grid[0], [1], quorum=2)
    led = grid[0].leading.jobs[job]
    await until(lambda: len(led.ledger.receipt_list) == 3, "all three have answered")
    told = await explained(channel, job)
    assert "1 unit differ" in reason_in(told, Reason.ANSWERS_DIFFER).text
    reason_in(told, Reason.NOTHING_LEFT)
    unit = await channel.explain("unit", job, 0)
    assert unit.state == "disputed"
    spoken = next(one for one in unit.because if one.text == "3 nodes have spoken of it")
    assert len({one.text.rpartition("digest ")[2] for one in spoken.under}) == 3


async def test_a_job_whose_lead_is_away_says_who_may_take_over(grid: Grid, pool: type[InPlacePool]) -> None:
    pool.gate = asyncio.Event()
    await grid.grow(2, cores=1)
    await grid.add(storage_bytes=0)
    _, job = await submit(grid, grid[0], [1])
    other = await grid.channel(grid[2])
    await explained(other, job)
    grid[1].succession._closed = True  # Nobody takes over while the test looks.
    await grid.close(grid[0])
    told = await explained(other, job)
    assert told.state == "waiting"
    away = reason_in(told, Reason.LEAD_AWAY)
    assert short(grid[0].context.me) in away.text
    assert short(grid[1].context.me) in texts(away.under)
    await grid.close(grid[1])
    assert reason_in(await explained(other, job), Reason.NO_KEEPER_THERE).next_step


async def test_a_job_that_another_keeper_leads_says_that_its_submitter_is_gone(grid: Grid, pool: type[InPlacePool]) -> None:
    pool.gate = asyncio.Event()
    await grid.grow(3, cores=1)
    _, job = await submit(grid, grid[0], [1])
    for node in grid.nodes[1:]:
        await until(lambda: job in node.keeping.jobs, "it is kept")  # noqa: B023 - it is called at once
    other = await grid.channel(grid[2])
    await grid.close(grid[0])
    kept = grid[2].keeping.jobs[job]
    await grid[1].leading.take_over(grid[1].keeping.jobs[job])
    await until(lambda: kept.ledger.keepers and kept.ledger.keepers.body.lead == grid[1].context.me, "it knows who leads")
    told = await explained(other, job)
    gone = reason_in(told, Reason.SUBMITTER_AWAY)
    assert f"led by n1 ({short(grid[1].context.me)})" in gone.text
    assert "results are readable until" in gone.text
    assert reason_in(told, Reason.TOOK_OVER).text == "the lead passed on 1 time"
    own = await explained(await grid.channel(grid[1]), job)
    reason_in(own, Reason.SUBMITTER_AWAY)
    pool.gate.set()


async def test_what_happened_to_a_job_is_found_again_with_its_codes(grid: Grid, pool: type[InPlacePool]) -> None:
    pool.gate = asyncio.Event()
    await grid.add()
    worker = await grid.add(cores=1)
    channel, job = await submit(grid, grid[0], [1, 2])
    led = grid[0].leading.jobs[job]
    await until(lambda: led.lead.book.leases, "it is leased")
    await grid.close(worker)
    await until(lambda: not led.lead.book.leases, "it is missed")
    told = await explained(channel, job)
    reason_in(told, Reason.WORKER_LOST)
    reason_in(told, Reason.DEAD)
    reason_in(told, Reason.KEEPER_LOST)


async def test_no_line_has_more_than_twenty_under_it() -> None:
    lines = [Because("", str(number)) for number in range(100)]
    kept = bounded(lines)
    assert len(kept) == 20
    assert kept[-1].text == "and 81 more"
    assert bounded(lines[:20]) == tuple(lines[:20])
