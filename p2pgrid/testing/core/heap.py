"""A seeded event heap: virtual time for machines that do no I/O.

Calls are made in the order of their virtual time; calls of the same time in the order they were asked for. All
chance comes from one generator, so that a seed replays a run exactly. About a million trivial events a second.
Every call feeds the trace: when it was made, which it was, and the label it was asked for with.

    heap = EventHeap(seed=7)
    heap.after(0.5, lambda: machine.handle(event, heap.now), b"tick")
    heap.run(lambda: machine.over, limit_s=60.0, each=machine.check)
    assert heap.trace_hash() == the_same_of_another_run
"""

from __future__ import annotations

import heapq
import random
import struct
from collections.abc import Callable

from blake3 import blake3

Call = Callable[[], None]

TRACE_PIECES = 8192
"""Pieces of the trace that are gathered before they are hashed: bounds the memory of long runs."""

_when = struct.Struct("<dQ").pack


def _nothing() -> None:
    """The default of ``each``."""


class EventHeap:
    """Virtual time in seconds, from zero. ``rng`` is the only source of chance of a run."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.now = 0.0
        self.steps = 0
        self._heap: list[tuple[float, int, Call, bytes]] = []
        self._asked = 0
        self._trace: list[bytes] = []
        self._hasher = blake3()

    @property
    def now_ms(self) -> int:
        """Virtual Unix milliseconds."""
        return 1_700_000_000_000 + int(self.now * 1000)

    def after(self, delay_s: float, call: Call, label: bytes = b"") -> None:
        """Make ``call`` once ``delay_s`` seconds of virtual time have passed. ``label`` says in the trace what it was."""
        self._asked += 1
        heapq.heappush(self._heap, (self.now + max(0.0, delay_s), self._asked, call, label))

    def every(self, period_s: float, call: Call, label: bytes = b"") -> None:
        """Make ``call`` again and again."""

        def again() -> None:
            call()
            self.after(period_s, again, label)

        self.after(period_s, again, label)

    def run(self, until: Callable[[], bool], limit_s: float, *, each: Call = _nothing, steps_max: int = 1_000_000) -> bool:
        """Make calls until ``until`` holds; ``each`` is called after every one.

        Returns False if virtual time passed ``limit_s``, ``steps_max`` calls were made or none was left before.
        """
        heap, trace, pop = self._heap, self._trace, heapq.heappop
        while not until():
            if not heap or heap[0][0] > limit_s or self.steps >= steps_max:
                return False
            self.now, number, call, label = pop(heap)
            self.steps += 1
            trace.append(_when(self.now, number) + label)
            call()
            each()
            if len(trace) >= TRACE_PIECES:
                self._absorb()
        return True

    # -- the trace ----------------------------------------------------------------

    def note(self, *pieces: bytes) -> None:
        """Let the trace cover what came of a call, as the ids of statements."""
        self._trace.extend(pieces)

    def trace_hash(self) -> str:
        """BLAKE3 in hex of everything that happened so far: equal for equal runs, in every process."""
        self._absorb()
        return self._hasher.copy().hexdigest()

    def _absorb(self) -> None:
        self._hasher.update(b"".join(self._trace))
        self._trace.clear()
