"""Units that use a core for as long as they are told."""

from __future__ import annotations

import time
from collections.abc import Iterator


def inputs(units: str = "64", seconds: str = "60") -> Iterator[list[float]]:
    """[number, seconds] for each unit."""
    for number in range(int(units)):
        yield [number, float(seconds)]


def work(item: list[float]) -> int:
    """Count."""
    number, seconds = item
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        count += 1
    return int(number)
