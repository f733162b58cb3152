"""What every test of the command line gets back."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _who_hears_ctrl_c() -> Iterator[None]:
    """A command that a test calls in this process says what Ctrl-C does; afterwards it is again as it was."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)
