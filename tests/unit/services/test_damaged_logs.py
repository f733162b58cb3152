"""Nodes that start again over damaged files: what is whole is used, the rest comes from others, and the owner is told."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from p2pgrid.model import log as kinds
from p2pgrid.model.ids import JobId, short
from p2pgrid.node import Node
from p2pgrid.store.ledger import FRAME_BYTES, HEADER_BYTES, JobLog
from tests.unit.services.grid_in_process import Grid, results, submit, until

UNITS = 12


async def told(grid: Grid, node: Node) -> list[str]:
    """What the owner of a node can read of what happened."""
    channel = await grid.channel(node)
    return [event.text for event in (await channel.snapshot()).events]


async def kept_job(grid: Grid) -> tuple[JobId, Path]:
    """A job that is done and kept by the second node, which then left; and the log there."""
    await grid.grow(2, cores=1)
    channel, job = await submit(grid, grid[0], list(range(UNITS)))
    await results(channel, job)
    keeper = grid[1]
    await until(
        lambda: job in keeper.keeping.jobs and keeper.keeping.jobs[job].ended and keeper.keeping.jobs[job].file.settled, "it is kept"
    )
    await grid.close(keeper)
    return job, keeper.home.ledger / f"{job.hex()}.log"


def flip(raw: bytearray, place: int) -> bytes:
    raw[place] ^= 1
    return bytes(raw)


HARMS: dict[str, Callable[[bytearray], bytes]] = {
    "torn": lambda raw: bytes(raw) + b"\0" * 100,
    "cut": lambda raw: bytes(raw[: len(raw) // 2]),
    "one record flipped": lambda raw: flip(raw, len(raw) // 2),
    "its first record flipped": lambda raw: flip(raw, HEADER_BYTES + FRAME_BYTES + 9),
    "a block zeroed": lambda raw: bytes(raw[:600]) + bytes(512) + bytes(raw[1112:]),
    "one header flipped": lambda raw: flip(raw, 30),
    "header zeroed": lambda raw: bytes(HEADER_BYTES) + bytes(raw[HEADER_BYTES:]),
    "empty": lambda raw: b"",
}


@pytest.mark.parametrize("harm", HARMS)
async def test_a_keeper_with_a_damaged_log_gives_every_result_again_and_says_what_was_wrong(grid: Grid, harm: str) -> None:
    job, log = await kept_job(grid)
    log.write_bytes(HARMS[harm](bytearray(log.read_bytes())))
    keeper = await grid.add(home="n1", cores=1)
    for _ in range(2):
        values, outcome = await results(await grid.channel(keeper), job)
        assert values == {number: number for number in range(UNITS)}
        assert outcome.line.state == "done"
    assert any(text.startswith(f"the log of job {short(job)}: ") for text in await told(grid, keeper))
    # Its log is whole again by what it read from the others.
    await grid.close(grid[0])
    await grid.close(keeper)
    keeper = await grid.add(home="n1", cores=1)
    values, _ = await results(await grid.channel(keeper), job)
    assert values == {number: number for number in range(UNITS)}


@pytest.mark.parametrize("harm", ["gone", "garbage"])
async def test_a_node_without_its_index_lists_its_jobs_again_and_says_that_the_index_was_made_anew(grid: Grid, harm: str) -> None:
    job, _ = await kept_job(grid)
    home = grid[1].home
    home.index.unlink()
    if harm == "garbage":
        home.index.write_bytes(b"garbage" * 999)
    keeper = await grid.add(home="n1", cores=1)
    channel = await grid.channel(keeper)
    assert any(text.startswith("the index was made anew from what lies on the disk: ") for text in await told(grid, keeper))
    assert keeper.notes
    await until(keeper.index.jobs, "the row is there again")
    assert [(line.job, line.done) for line in await channel.jobs()] == [(job, UNITS)]


async def test_a_log_without_its_job_is_filled_again_behind_what_is_in_it(grid: Grid) -> None:
    job, log = await kept_job(grid)
    log.unlink()
    left, _ = JobLog.open(log, job, os.urandom)
    left.append([(kinds.BATCH, b"what is left of it" * 500)])
    keeper = await grid.add(home="n1", cores=1)
    values, outcome = await results(await grid.channel(keeper), job)
    assert values == {number: number for number in range(UNITS)}
    assert outcome.line.state == "done"
