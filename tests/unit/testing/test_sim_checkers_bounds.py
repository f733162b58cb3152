"""S4: the tables that are looked at are those of a real node, and one that is too full is caught."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from p2pgrid.model.limits import DEFAULT_LIMITS
from p2pgrid.testing.checkers.bounds import BoundsChecker, sizes
from tests.unit.services.grid_in_process import Grid, results, submit, use_in_place_pool
from tests.unit.testing.checker_stories import View


@pytest.fixture
async def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Grid]:
    use_in_place_pool(monkeypatch)
    async with AsyncExitStack() as stack:
        grid = Grid(tmp_path, stack)
        await grid.grow(3, cores=1)
        channel, job = await submit(grid, grid[0], range(20))
        await results(channel, job)
        yield grid
        await grid.close_all()


def _checker(grid: Grid, **limits: Any) -> BoundsChecker:
    checker = BoundsChecker(msgspec.structs.replace(DEFAULT_LIMITS, **limits))
    view = View()
    view.nodes = {f"n{number}": node for number, node in enumerate(grid.nodes)}
    checker.attach(view)
    return checker


async def test_every_table_of_a_working_node_is_found_and_within_its_limit(grid: Grid) -> None:
    found = {size.what: size for size in sizes(grid[0], DEFAULT_LIMITS)}
    assert len(found) > 25
    assert all(0 <= size.found <= size.most for size in found.values())
    for name in ("connections", "contacts of a bucket", "records", "job logs open", "bytes of blobs", "connections of the owner"):
        assert found[name].most > 0, name
    assert found["connections"].found == 2
    assert found["job logs open"].found == 1
    checker = _checker(grid)
    for _ in range(3):
        checker.on_second()
    checker.at_end()
    assert checker.violations == []
    assert 0 < checker.fullest["connections"] <= 1


@pytest.mark.parametrize(
    ("limits", "what"),
    [
        ({"connections": 1}, "connections"),
        ({"connections_per_peer": 0}, "connections of one peer"),
        ({"records": 1}, "records"),
        ({"records_per_key": 0}, "records of a key"),
        ({"ledger_bytes": 100}, "bytes of a job log"),
        ({"jobs_kept": 0, "jobs_led": 0}, "job logs open"),
    ],
)
async def test_a_table_over_its_limit_is_caught(grid: Grid, limits: dict[str, int], what: str) -> None:
    checker = _checker(grid, **limits)
    checker.at_end()
    assert checker.violations
    assert {violation.invariant for violation in checker.violations} == {"S4"}
    assert any(violation.text.startswith(f"{what}:") for violation in checker.violations)


async def test_one_node_is_looked_at_each_second_and_all_in_turn(grid: Grid) -> None:
    checker = _checker(grid)
    grid[1].working._refused.update({bytes([number // 256, number % 256]): "busy" for number in range(257)})  # type: ignore[misc]
    grid[2].dht.router.buckets[0].nodes.update({bytes([number]) * 20: SimpleNamespace() for number in range(40)})  # type: ignore[misc]
    for _ in range(3):
        checker.on_second()
    assert sorted((violation.where, violation.text.split(":")[0]) for violation in checker.violations) == [
        ("n1", "jobs a worker refused"),
        ("n2", "contacts of a bucket"),
    ]
    grid[2].dht.router.flush()
