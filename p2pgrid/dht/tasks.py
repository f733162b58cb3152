"""An owner for background tasks: it reads every outcome and ends them all within a bound."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from p2pgrid.errors import P2PGridError

_log = logging.getLogger(__name__)


class Tasks:
    """A bounded set of running tasks. Errors of our own tree are expected and dropped, others are logged once."""

    def __init__(self, tasks_max: int) -> None:
        self._tasks_max = tasks_max
        self._running: dict[asyncio.Task[Any], None] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._running)

    def start(self, work: Coroutine[Any, Any, Any]) -> bool:
        """Run ``work`` unless there are too many already or the owner is closed; says whether it runs."""
        if self._closed or len(self._running) >= self._tasks_max:
            work.close()
            return False
        self.adopt(asyncio.get_running_loop().create_task(work))
        return True

    def adopt(self, task: asyncio.Task[Any]) -> None:
        """Own a task that is running already; over the bound, or when closed, it is cancelled."""
        self._running[task] = None
        task.add_done_callback(self._on_done)
        if self._closed or len(self._running) > self._tasks_max:
            task.cancel()

    def _on_done(self, task: asyncio.Task[Any]) -> None:
        self._running.pop(task, None)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not isinstance(error, P2PGridError):
            _log.error("a background task of the DHT failed", exc_info=error)

    async def close(self, timeout_s: float) -> None:
        """Cancel what runs and wait for it, at most ``timeout_s``."""
        self._closed = True
        running = list(self._running)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=timeout_s)
