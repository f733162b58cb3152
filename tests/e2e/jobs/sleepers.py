"""Units that sleep and answer their number; ``finish`` refuses a list in which one is missing, twice or out of place."""

from __future__ import annotations

import time
from collections.abc import Iterator


def inputs(units: str = "10", seconds: str = "0.02") -> Iterator[list[float]]:
    """[number, seconds] for each unit."""
    for number in range(int(units)):
        yield [number, float(seconds)]


def work(item: list[float]) -> int:
    """Sleep."""
    number, seconds = item
    time.sleep(seconds)
    return int(number)


def finish(results: list[int]) -> str:
    """Nothing lost, nothing twice, everything in order."""
    assert results == list(range(len(results))), results
    return f"{len(results)} answers in order\n"
