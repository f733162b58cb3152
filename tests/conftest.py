"""What holds for every test: time limits, and how hypothesis explores."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

E2E = Path(__file__).parent / "e2e"
E2E_TIMEOUT_S = 150

# The time limit of a test is pytest-timeout's. A deadline for each example would fail on a busy machine.
settings.register_profile("house", deadline=None, print_blob=True)
settings.load_profile("house")
# A shell that starts the tests in the background makes them ignore Ctrl-C, and all they start: some send it on purpose.
signal.signal(signal.SIGINT, signal.default_int_handler)


os.environ.pop("COLUMNS", None)
"""Processes of pytest-xdist are told a width; what tests print has the one that they say."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with real processes may take 150 s, unless they say otherwise themselves."""
    for item in items:
        if E2E in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(E2E_TIMEOUT_S))
