"""A node's start and end, what it knows of its peers, and what it does not let a worker or a peer do."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from pathlib import Path
from typing import cast

import pytest

from p2pgrid.errors import RefusedError
from p2pgrid.model.ids import NodeKey
from p2pgrid.model.job import UnitLimits
from p2pgrid.model.reasons import Reason
from p2pgrid.runtimes.tasks import BatchTask
from p2pgrid.services import knownjobs
from p2pgrid.services import peers as peers_module
from p2pgrid.wire.codec import encode
from tests.unit.services.grid_in_process import Grid, InPlacePool, results, submit, until
from tests.unit.services.outsider import Outsider


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_a_closed_node_leaves_no_task_thread_or_descriptor(grid: Grid) -> None:
    await grid.add(cores=1)
    await grid.close(grid[0])
    gc.collect()
    before = (threading.active_count(), descriptors())
    for _ in range(2):
        node = await grid.add(cores=1, home="n0")
        channel, job = await submit(grid, node, [1, 2, 3])
        await results(channel, job)
        await channel.put_bytes(b"x" * 100_000, replicas=2, expires_ms=1 << 60)
        await channel.close()
        await grid.close(node)
    gc.collect()
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert not left
    assert (threading.active_count(), descriptors()) == before


async def test_closing_in_the_middle_of_everything_leaves_nothing(grid: Grid, pool: type[InPlacePool]) -> None:
    await grid.grow(3, cores=1)
    pool.gate = asyncio.Event()
    channel, job = await submit(grid, grid[1], list(range(50)))
    follow = asyncio.ensure_future(results(channel, job))
    fetch = asyncio.ensure_future(grid[2].storing.fetch(b"n" * 32))  # type: ignore[arg-type]
    await until(lambda: pool.ran, "units run")
    await asyncio.gather(*[grid.close(node) for node in grid.nodes])
    await asyncio.gather(follow, fetch, return_exceptions=True)
    await channel.close()
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert not left


async def test_a_start_that_fails_leaves_nothing(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    await grid.add()
    gc.collect()
    before = (threading.active_count(), descriptors(), len(asyncio.all_tasks()))

    async def fail(self: object, *, discover: bool = True) -> None:
        raise RefusedError("no", reason=Reason.BUSY)

    with monkeypatch.context() as patch:
        patch.setattr(peers_module.Peers, "start", fail)
        with pytest.raises(RefusedError):
            await grid.add(home="other")
        failed = grid.started.pop()
        await failed.close()
        failed.home.close()
    gc.collect()
    await until(lambda: not grid[0].peers.live(), "the other side noticed")
    await until(lambda: len(asyncio.all_tasks()) <= before[2], "no task is left")
    assert (threading.active_count(), descriptors()) == before[:2]


async def test_leftovers_of_an_earlier_life_are_removed(grid: Grid) -> None:
    await grid.add()
    await grid.close(grid[0])
    work = grid[0].home.work
    for name in ("inputs/abcd", "inputs/abcd.7"):
        (work / name).write_bytes(b"left")
    await grid.add(home="n0")
    assert not list((work / "inputs").iterdir())


# -- peers ----------------------------------------------------------------------------------------


async def test_what_is_known_of_nodes_is_bounded_and_keeps_the_live_ones(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_module, "KNOWN_MAX", 3)
    await grid.grow(2)
    node, other = grid[0], grid[1].context.me
    for _ in range(6):
        outsider = Outsider(node)
        await outsider.connect()
        await outsider.close()
    await until(lambda: list(node.peers.live()) == [other], "they are gone")
    assert len(node.peers._infos) <= 3
    assert len(node.peers._failed_s) <= 3
    assert node.peers.info(other).name == "n1"


async def test_a_peer_that_leaves_is_gone_and_one_that_only_lost_its_connection_is_not(grid: Grid) -> None:
    await grid.grow(3)
    gone: list[bytes] = []
    grid[0].peers.on_gone(gone.append)
    grid[0].pool.live(grid[1].context.me).close()  # type: ignore[union-attr]
    await until(lambda: grid[0].peers.is_live(grid[1].context.me), "it is dialled again")
    await grid.close(grid[2])
    await until(lambda: gone, "the one that left is gone")
    assert gone == [grid[2].context.me]


async def test_junk_in_records_of_nodes_is_passed_over(grid: Grid) -> None:
    from p2pgrid.dht.records import RecordKind
    from p2pgrid.model.ids import dht_id_of_key

    await grid.grow(2)
    await grid[1].dht.publish(RecordKind.NODE, dht_id_of_key(grid[1].context.me), b"\xc1junk", 600.0)
    grid[0].pool.live(grid[1].context.me).close()  # type: ignore[union-attr]
    grid[0].peers._infos.clear()
    await grid[0].peers.refresh()
    assert NodeKey(grid[1].context.me) not in grid[0].peers._infos or grid[0].peers.is_live(grid[1].context.me)


# -- working ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"native": False}, {}),
        ({"roles": ("work", "store", "submit")}, {"lead": 1}),
        ({"memory_bytes": 1 << 20}, {"limits": UnitLimits(memory_bytes=1 << 30)}),
    ],
)
async def test_what_the_owner_does_not_allow_never_starts(
    grid: Grid, pool: type[InPlacePool], options: dict[str, object], fields: dict[str, object]
) -> None:
    lead = int(str(fields.pop("lead", 0)))
    await grid.add(cores=1 if lead else 0)
    node = await grid.add(cores=0 if lead else 1, **options)  # type: ignore[arg-type]
    told: list[str] = []
    grid[0 if lead else 1].context.events.append(lambda reason, text, about: told.append(reason))
    _, job = await submit(grid, grid.nodes[lead], [1], **fields)
    led = grid[lead].leading.jobs[job]
    for _ in range(3):
        grid[lead].leading._look_after(led, led.started_s + 100, 0)
        await asyncio.sleep(0.05)
    assert pool.ran == []
    assert not led.ended.is_set()
    assert node.working.done == 0


async def test_jobs_and_batches_a_worker_knows_are_bounded(grid: Grid, pool: type[InPlacePool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knownjobs, "JOBS_MAX", 3)
    monkeypatch.setattr(knownjobs, "BATCH_CACHE_BYTES", 20_000)
    await grid.grow(1, cores=1)
    for number in range(6):
        channel, job = await submit(grid, grid[0], [bytes(900)] * 40, per_batch=2)
        values, _ = await results(channel, job)
        assert len(values) == 40, number
    known = grid[0].working._known
    assert len(known) == 3
    assert sum(sum(one.sizes.values()) for one in known.values()) <= 20_000
    assert all(one.batches.keys() == one.sizes.keys() for one in known.values())


async def test_a_pool_that_fails_is_answered_so_that_the_units_go_elsewhere(grid: Grid, pool: type[InPlacePool]) -> None:
    await grid.grow(2, cores=1)
    run = pool.run

    async def fail(self: InPlacePool, task: BatchTask, on_results: object) -> None:
        if self is cast(object, grid[1].workers):
            raise RefusedError("no sandbox", reason=Reason.NO_RUNTIME)
        await run(self, task, on_results)  # type: ignore[arg-type]

    pool.run = fail  # type: ignore[method-assign]
    try:
        channel, job = await submit(grid, grid[0], list(range(20)))
        values, outcome = await results(channel, job)
    finally:
        pool.run = run  # type: ignore[method-assign]
    assert (len(values), outcome.line.state) == (20, "done")


async def test_small_input_files_are_there_while_a_task_runs_and_gone_afterwards(
    grid: Grid, pool: type[InPlacePool], tmp_path: Path
) -> None:
    from p2pgrid.model.blob import blob_id_of
    from p2pgrid.model.job import BatchRef
    from p2pgrid.services.inputs import FILE, encode_batch
    from p2pgrid.wire.envelope import seal
    from tests.unit.services.grid_in_process import make_job

    await grid.grow(1, cores=2)
    small = b"small file"
    contents = [
        encode_batch([encode(number)], [(0, FILE, blob_id_of(small), len(small))], [(blob_id_of(small), small)]) for number in range(6)
    ]
    seen: list[bytes] = []
    run = pool.run

    async def look(self: InPlacePool, task: BatchTask, on_results: object) -> None:
        seen.extend(path.read_bytes() for path in task.files.values())
        await run(self, task, on_results)  # type: ignore[arg-type]
        seen.extend(path.read_bytes() for path in task.files.values())

    pool.run = look  # type: ignore[method-assign]
    try:
        job, _ = make_job([1], manifest=tuple(BatchRef(blob_id_of(content), 1, len(content)) for content in contents))
        channel = await grid.channel(grid[0])
        job_id, _ = await channel.submit(seal(job, channel.submitter, channel.grid.id).raw, contents)
        values, _ = await results(channel, job_id)
    finally:
        pool.run = run  # type: ignore[method-assign]
    assert len(values) == 6
    assert seen == [small] * 12
    await until(lambda: not list((grid[0].home.work / "inputs").iterdir()), "the files are gone")
