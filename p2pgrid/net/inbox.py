"""A queue between callbacks and one waiting task, which ends with an error instead of hanging."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

from p2pgrid.errors import P2PGridError

T = TypeVar("T")


class Inbox(Generic[T]):
    """Items put in by callbacks, taken by tasks. Its owner bounds what it puts in.

    A cancelled :meth:`get` loses nothing: an item leaves the queue only when a task takes it.
    """

    __slots__ = ("_error", "_items", "_waiters")

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._error: P2PGridError | None = None

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        """Add an item; after :meth:`close` it is dropped."""
        if self._error is None:
            self._items.append(item)
            self._wake()

    def remove(self, item: T) -> None:
        """Take back an item that nobody has taken, if it is still there."""
        if item in self._items:
            self._items.remove(item)

    def close(self, error: P2PGridError) -> list[T]:
        """End the queue: everybody who waits, now or later, gets ``error``. Returns what nobody took."""
        if self._error is None:
            self._error = error
        left, self._items = list(self._items), deque()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        return left

    async def get(self) -> T:
        """The next item. Raises the error given to :meth:`close`."""
        while not self._items:
            if self._error is not None:
                raise type(self._error)(self._error.message, hint=self._error.hint, reason=self._error.reason)
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._wake()
                raise
            finally:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
        return self._items.popleft()

    def _wake(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
