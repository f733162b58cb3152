"""Grids that tests share where what they leave behind does not matter to the next test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.grids import Grid, grid_of


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    """Five nodes of one core each, for a whole module."""
    with grid_of(5, tmp_path_factory.mktemp("five"), "--storage", "200M") as grid:
        yield grid


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    """One node that founded a grid, for a whole module."""
    with grid_of(1, tmp_path_factory.mktemp("single"), "--storage", "200M") as grid:
        yield grid


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder that is not there yet."""
    return tmp_path / "home"
