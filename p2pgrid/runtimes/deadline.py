"""The wall deadline of the unit that runs, as the node keeps it.

Native units have no other deadline. The runtimes that can end a unit without losing their process (commands, WebAssembly, Python
guests) keep it themselves, and the node steps in some time later: when the one who should have kept it is stuck or gone.
Beside it, what a batch has under way with the watchdog of its process.
"""

from __future__ import annotations

import asyncio

from p2pgrid.errors import TryAgainError
from p2pgrid.runtimes.process import WorkerProcess
from p2pgrid.runtimes.tasks import BatchTask
from p2pgrid.runtimes.watchdog import Watchdog

LOOK_MAX_S = 0.2
"""How often a running process is looked at."""
SLACK_S = 2.0
"""How much later than a runtime that keeps the deadline itself the node steps in."""
KEEPS_DEADLINE = frozenset({"command", "wasm", "python"})


class Deadline:
    """Follows the units of one batch on one process.

    The worker says which unit runs and since when. A claim counts only if it moves forward within the batch, and its start only if it
    lies between two looks: a worker that lies can gain a time-out for each of its units, and no more.
    """

    def __init__(self, task: BatchTask, end: int, now: float) -> None:
        """``end``: behind the index of the last unit; ``now``: loop time, as everywhere here."""
        self._timeout_s = task.timeout_s + _slack_s(task) if task.timeout_s > 0 else 0.0
        self._end = end
        self._index = -1
        self._since = now
        self._looked = now
        self._counted_from = now
        self.look_s = min(self._timeout_s / 4, LOOK_MAX_S) if self._timeout_s else LOOK_MAX_S

    def reported(self, next_index: int) -> None:
        """All units before ``next_index`` have ended."""
        self._index = max(self._index, next_index - 1)

    def is_late(self, process: WorkerProcess, now: float) -> bool:
        """Look at the running unit; ``now`` in loop time."""
        if not self._timeout_s:
            return False
        index, started = process.progress()
        if self._index < index < self._end:
            self._index = index
            self._since = started if self._looked <= started <= now else self._looked  # Not a number is neither.
        self._looked = now
        return now - self._since > self._timeout_s

    def wall_us(self, now: float) -> int:
        """Microseconds since the last call, or since the start: more than that the units cannot have taken."""
        passed_us = int((now - self._counted_from) * 1e6)
        self._counted_from = now
        return passed_us


class Watch:
    """What is watched while one batch runs. Loop time throughout."""

    def __init__(self, deadline: Deadline, watchdog: Watchdog, now: float) -> None:
        self.deadline = deadline
        self.watchdog = watchdog
        self.seen = now
        """When the process was last looked at, or the batch began."""
        self.look_at = now + watchdog.due_s
        self.looking: asyncio.Task[str] | None = None
        """The look that is under way."""
        self.began = now
        """When it began."""

    def found(self, now: float) -> str:
        """What the look found that was under way; empty when it goes on, or the disk had too much else to do."""
        looking = self.looking
        if looking is None or not looking.done():
            self.look_at = now
            return ""
        self.looking = None
        self.watchdog.looked(now - self.began)
        self.seen, self.look_at = now, now + self.watchdog.due_s
        try:
            return looking.result()
        except TryAgainError:
            return ""

    async def end(self) -> None:
        """Let go of a look that is under way. It may go on in its thread, to its own end."""
        if self.looking is not None:
            self.looking.cancel()
            await asyncio.gather(self.looking, return_exceptions=True)


def _slack_s(task: BatchTask) -> float:
    if task.runtime not in KEEPS_DEADLINE:
        return 0.0
    # A guest that ran several units in one call when the time was up runs them again one by one.
    return SLACK_S + (task.timeout_s if task.runtime == "python" else 0.0)
