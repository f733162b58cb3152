"""A node that shares a core and storage, and members that come to attack it. What it logs as an error fails the test."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.unit.services.grid_in_process import Grid, InPlacePool, use_in_place_pool
from tests.unit.services.outsider import Enter, Outsider


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> type[InPlacePool]:
    return use_in_place_pool(monkeypatch)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def grid(tmp_path: Path, pool: type[InPlacePool], stack: AsyncExitStack) -> AsyncIterator[Grid]:
    """A node that shares a core and storage; the attackers come to it."""
    grid = Grid(tmp_path, stack)
    await grid.add(cores=1, storage_bytes=8 << 20)
    yield grid
    await grid.close_all()


@pytest.fixture
def enter(grid: Grid, stack: AsyncExitStack) -> Enter:
    async def enter(roles: tuple[str, ...] = ("work", "store", "submit", "native")) -> Outsider:
        return Outsider(grid[0], roles)

    return enter


@pytest.fixture(autouse=True)
def no_error_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    errors = [record for record in caplog.get_records("call") if record.levelno >= logging.ERROR]
    assert not errors, [record.getMessage() for record in errors]
