"""A grid in this process, gone after the test. What is logged as an error fails the test."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.unit.services.grid_in_process import Grid, InPlacePool, use_in_place_pool


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> type[InPlacePool]:
    """Units are computed in this process."""
    return use_in_place_pool(monkeypatch)


@pytest.fixture
async def grid(tmp_path: Path, pool: type[InPlacePool]) -> AsyncIterator[Grid]:
    async with AsyncExitStack() as stack:
        grid = Grid(tmp_path, stack)
        yield grid
        await grid.close_all()


@pytest.fixture(autouse=True)
def no_error_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A bug is logged as an error, and nobody else may be."""
    yield
    errors = [record for record in caplog.get_records("call") if record.levelno >= logging.ERROR]
    assert not errors, [record.getMessage() for record in errors]
