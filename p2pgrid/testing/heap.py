"""A seeded event heap: virtual time for machines that do no I/O.

Calls are made in the order of their virtual time; calls of the same time in the order they were asked for. All
chance comes from one generator, so that a seed replays a run exactly. About a million trivial events a second.

    heap = EventHeap(seed=7)
    heap.after(0.5, lambda: machine.handle(event, heap.now))
    heap.run(lambda: machine.over, limit_s=60.0, each=machine.check)
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

Call = Callable[[], None]


def _nothing() -> None:
    """The default of ``each``."""


class EventHeap:
    """Virtual time in seconds, from zero. ``rng`` is the only source of chance of a run."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.now = 0.0
        self.steps = 0
        self._heap: list[tuple[float, int, Call]] = []
        self._asked = 0

    @property
    def now_ms(self) -> int:
        """Virtual Unix milliseconds."""
        return 1_700_000_000_000 + int(self.now * 1000)

    def after(self, delay_s: float, call: Call) -> None:
        """Make ``call`` once ``delay_s`` seconds of virtual time have passed."""
        self._asked += 1
        heapq.heappush(self._heap, (self.now + max(0.0, delay_s), self._asked, call))

    def every(self, period_s: float, call: Call) -> None:
        """Make ``call`` again and again."""

        def again() -> None:
            call()
            self.after(period_s, again)

        self.after(period_s, again)

    def run(self, until: Callable[[], bool], limit_s: float, *, each: Call = _nothing, steps_max: int = 1_000_000) -> bool:
        """Make calls until ``until`` holds; ``each`` is called after every one.

        Returns False if virtual time passed ``limit_s``, ``steps_max`` calls were made or none was left before.
        """
        while not until():
            if not self._heap or self._heap[0][0] > limit_s or self.steps >= steps_max:
                return False
            self.now, _, call = heapq.heappop(self._heap)
            self.steps += 1
            call()
            each()
        return True
