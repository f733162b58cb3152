"""An owner for background tasks: their errors are seen, and none outlives ``close``."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from p2pgrid.errors import P2PGridError

log = logging.getLogger(__name__)


class Tasks:
    """Tasks that belong to one service."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._closing = False

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any] | None:
        """Run ``work``; an error that is no P2PGridError is a bug and is logged as one. None while closing."""
        if self._closing:
            work.close()
            return None
        task = asyncio.get_running_loop().create_task(work, name=f"{self._owner}:{name}")
        self._tasks[task] = None
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, P2PGridError):
            log.info("%s: %s", task.get_name(), error)
        elif error is not None:
            log.error("bug in %s", task.get_name(), exc_info=error)

    async def idle(self, timeout_s: float) -> bool:
        """Wait until nothing is left to do, at most ``timeout_s``; whether that came in time. Not for one of the tasks."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while self._tasks and loop.time() < deadline:
            await asyncio.wait(list(self._tasks), timeout=deadline - loop.time())
        return not self._tasks

    async def close(self, timeout_s: float = 5.0) -> None:
        """Cancel everything and wait, at most ``timeout_s``."""
        self._closing = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)


async def wind_up(*futures: asyncio.Future[Any]) -> None:
    """Cancel what a coroutine has begun and wait until it has ended: for its ``finally``.

    A coroutine that is being closed, as those of a simulated machine whose power goes, may not wait for anything.
    """
    for future in futures:
        future.cancel()
    if futures and not isinstance(sys.exception(), GeneratorExit):
        await asyncio.gather(*futures, return_exceptions=True)


class Turns:
    """So many at one time for each of those who want something; nothing is kept of who wants nothing now."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._known: dict[bytes, tuple[asyncio.Semaphore, int]] = {}

    @asynccontextmanager
    async def of(self, who: bytes) -> AsyncIterator[None]:
        """Wait for a turn of this one, and have it for the block."""
        turns, wanting = self._known.get(who) or (asyncio.Semaphore(self._at_once), 0)
        self._known[who] = turns, wanting + 1
        try:
            async with turns:
                yield
        finally:
            turns, wanting = self._known[who]
            if wanting > 1:
                self._known[who] = turns, wanting - 1
            else:
                del self._known[who]
