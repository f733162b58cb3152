# /// script
# requires-python = ">=3.11"
# dependencies = []
#
# [tool.p2pgrid]
# ///
"""Estimate pi by throwing darts: seeded units, so that every machine gets the same answer.

    p2pgrid run scenarios/jobs/pi.py [UNITS [SAMPLES]]   # 200 units of 100000 samples
    python scenarios/jobs/pi.py --plain [UNITS [SAMPLES]]

Prints the estimate, its standard error, how far it really is off, and the number of samples:

    pi = 3.141431 +- 0.000367 (off by 0.000162) from 20000000 samples
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from random import Random


def positive(text: str, what: str) -> int:
    """The number an argument stands for."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ValueError(f"{what} must be a whole number above 0, not '{text}'")
    return int(text)


def inputs(units: str = "200", samples: str = "100000") -> Iterator[list[int]]:
    """One [seed, samples] for each unit."""
    samples_per_unit = positive(samples, "SAMPLES")
    for seed in range(positive(units, "UNITS")):
        yield [seed, samples_per_unit]


def work(item: list[int]) -> list[int]:
    """Throw darts at the unit square: [darts inside the quarter circle, darts thrown]."""
    seed, samples = item
    dart = Random(seed).random
    inside = 0
    for _ in range(samples):
        x, y = dart(), dart()
        inside += x * x + y * y <= 1.0
    return [inside, samples]


def reduce(a: list[int], b: list[int]) -> list[int]:
    """Add up two parts."""
    return [a[0] + b[0], a[1] + b[1]]


def finish(total: list[int]) -> str:
    """The line that is printed."""
    inside, samples = total
    share = inside / samples
    error = 4 * math.sqrt(share * (1 - share) / samples)
    return f"pi = {4 * share:.6f} +- {error:.6f} (off by {abs(4 * share - math.pi):.6f}) from {samples} samples\n"


def plain(*arguments: str) -> str:
    """The reference: the same darts in one process."""
    parts = [work(item) for item in inputs(*arguments)]
    return finish([sum(inside for inside, _ in parts), sum(samples for _, samples in parts)])


if __name__ == "__main__":
    if sys.argv[1:2] != ["--plain"] or len(sys.argv) > 4:
        sys.exit("usage: p2pgrid run pi.py [UNITS [SAMPLES]]   or: python pi.py --plain [UNITS [SAMPLES]]")
    try:
        sys.stdout.write(plain(*sys.argv[2:]))
    except ValueError as error:
        print(f"pi: {error}", file=sys.stderr)
        sys.exit(65)
