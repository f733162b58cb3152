# /// script
# requires-python = ">=3.11"
# dependencies = []
#
# [tool.p2pgrid]
# ///
"""Count the primes below a bound, one stretch of numbers for each unit.

    p2pgrid run scenarios/jobs/primes.py [BELOW [STRETCH]]   # below 10000000 in stretches of 100000
    python scenarios/jobs/primes.py --plain [BELOW [STRETCH]]

Prints how many there are, and the widest gap between two primes of one stretch:

    664579 primes in 100 stretches, widest gap within one 154 after 4652353

There is no reduce here: `finish` gets the results of all units, in their order.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from itertools import compress, pairwise


def positive(text: str, what: str) -> int:
    """The number an argument stands for."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ValueError(f"{what} must be a whole number above 0, not '{text}'")
    return int(text)


def inputs(below: str = "10000000", stretch: str = "100000") -> Iterator[list[int]]:
    """One [first, end) for each unit."""
    end, step = positive(below, "BELOW"), positive(stretch, "STRETCH")
    for first in range(0, end, step):
        yield [first, min(first + step, end)]


def sieve(first: int, end: int) -> list[int]:
    """The primes p with first <= p < end, by crossing out multiples."""
    small = bytearray([1]) * (math.isqrt(max(end - 1, 0)) + 1)
    marks = bytearray([1]) * (end - first)
    for number in range(min(2, end) - first if first < 2 else 0):
        marks[number] = 0
    for factor in range(2, len(small)):
        if small[factor]:
            small[factor * factor :: factor] = bytes(len(range(factor * factor, len(small), factor)))
            start = max(factor * factor, -(-first // factor) * factor) - first
            marks[start::factor] = bytes(len(range(start, len(marks), factor)))
    return list(compress(range(first, end), marks))


def work(item: list[int]) -> list[int]:
    """[how many primes, the widest gap between two of them, the prime before that gap] of one stretch."""
    primes = sieve(*item)
    gap, before = max(((b - a, -a) for a, b in pairwise(primes)), default=(0, 0))
    return [len(primes), gap, -before]


def finish(parts: list[list[int]]) -> str:
    """The line that is printed."""
    count = sum(part[0] for part in parts)
    _, gap, before = max(parts, key=lambda part: (part[1], -part[2]))
    return f"{count} primes in {len(parts)} stretches, widest gap within one {gap} after {before}\n"


def plain(*arguments: str) -> str:
    """The reference: the same stretches in one process."""
    return finish([work(item) for item in inputs(*arguments)])


if __name__ == "__main__":
    if sys.argv[1:2] != ["--plain"] or len(sys.argv) > 4:
        sys.exit("usage: p2pgrid run primes.py [BELOW [STRETCH]]   or: python primes.py --plain [BELOW [STRETCH]]")
    try:
        sys.stdout.write(plain(*sys.argv[2:]))
    except ValueError as error:
        print(f"primes: {error}", file=sys.stderr)
        sys.exit(65)
