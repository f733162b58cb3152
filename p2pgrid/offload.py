"""Where blocking work goes: hashing, the disk, SQLite. Threads in a node, inline in the simulator.

This is the only place that runs a function beside an event loop: whoever needs it takes an :class:`Offload` as an argument.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, Protocol, TypeVar

from p2pgrid.errors import TryAgainError
from p2pgrid.model.reasons import Reason

P = ParamSpec("P")
R = TypeVar("R")


class Offload(Protocol):
    """Runs blocking functions away from the event loop."""

    async def run(self, fn: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """The result of ``fn``. Raises what it raises, and TryAgainError when too much is waiting or after close.

        A cancelled call may still run to its end: what it made must not depend on somebody taking it.
        """

    async def close(self) -> bool:
        """Stop. False if a function was still running after the bound."""


class ThreadOffload:
    """A few threads and a bounded queue. Belongs to one event loop."""

    def __init__(self, threads: int = 4, *, pending_max: int = 256, close_s: float = 5.0) -> None:
        """``pending_max``: calls waiting or running; ``close_s``: seconds that close() waits for running ones."""
        self._threads = threads
        self._executor: ThreadPoolExecutor | None = None
        self._pending_max, self._close_s = pending_max, close_s
        self._pending: set[Future[Any]] = set()
        self._closing = False

    async def run(self, fn: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        if self._closing:
            raise _closed()
        if len(self._pending) >= self._pending_max:
            raise TryAgainError("too much work is waiting for the disk", reason=Reason.BUSY)
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._threads, thread_name_prefix="p2pgrid-offload")
        future = self._executor.submit(fn, *args, **kwargs)
        # The set only counts; add and discard of one element are atomic, so the executor's threads may call it.
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        return await asyncio.wrap_future(future)

    async def close(self) -> bool:
        self._closing = True
        executor = self._executor
        if executor is None:
            return True
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        def shut() -> None:
            executor.shutdown(wait=True, cancel_futures=True)
            if not loop.is_closed():
                loop.call_soon_threadsafe(ended.set)

        threading.Thread(target=shut, name="p2pgrid-offload-close", daemon=True).start()
        try:
            await asyncio.wait_for(ended.wait(), self._close_s)
        except TimeoutError:
            return False
        return True


class InlineOffload:
    """Runs everything on the loop, so that a simulation stays deterministic: a turn later, as another thread would at best."""

    def __init__(self) -> None:
        self._closing = False

    async def run(self, fn: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        if self._closing:
            raise _closed()
        await asyncio.sleep(0)
        return fn(*args, **kwargs)

    async def close(self) -> bool:
        self._closing = True
        return True


def _closed() -> TryAgainError:
    return TryAgainError("the node is stopping", reason=Reason.SHUTDOWN)


async def run_surely(offload: Offload, fn: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """As ``offload.run``, but here and now when nothing more is taken: for what must be tidied up in any case.

    ``fn`` must not raise TryAgainError itself.
    """
    try:
        return await offload.run(fn, *args, **kwargs)
    except TryAgainError:
        return fn(*args, **kwargs)
