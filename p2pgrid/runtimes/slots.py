"""Whose turn it is: at most so many batches run at one time, and those that wait are served in the order they came."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from p2pgrid.errors import P2PGridError, TryAgainError
from p2pgrid.model.reasons import Reason
from p2pgrid.runtimes.tasks import BatchTask


class Slots:
    """Counts the batches that run. ``take`` a slot before a batch runs, and ``give`` it back in any case."""

    def __init__(self, slots: int, waiting_max: int) -> None:
        """``waiting_max``: how many batches may wait for a slot."""
        self._free = slots
        self._waiting_max = waiting_max
        self._waiting: deque[tuple[BatchTask, asyncio.Future[None]]] = deque()

    @property
    def free(self) -> int:
        """Slots that nobody uses or waits for."""
        return max(0, self._free - len(self._waiting))

    async def take(self, task: BatchTask) -> None:
        """Wait for a turn. Raises TryAgainError when too many wait, or what :meth:`refuse` is given meanwhile."""
        if self._free > 0:
            self._free -= 1
            return
        if len(self._waiting) >= self._waiting_max:
            raise TryAgainError("too many batches wait for a core", reason=Reason.NO_SLOT)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (task, turn)
        self._waiting.append(entry)
        try:
            await turn
        except BaseException:
            if entry in self._waiting:
                self._waiting.remove(entry)
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.give()  # The slot came at the moment of the cancellation.
            raise

    def give(self) -> None:
        """A batch has ended: the one that has waited for longest is next."""
        while self._waiting:
            _, turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def refuse(self, why: P2PGridError, of: Callable[[BatchTask], bool]) -> None:
        """Those that wait, of these batches, raise ``why``."""
        for task, turn in self._waiting:
            if of(task) and not turn.done():
                turn.set_exception(why)
