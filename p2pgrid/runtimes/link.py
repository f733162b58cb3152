"""The node's end of a worker's pipes: frames with a cap on their length, and the tail of what it prints.

The other side is hostile. A length over the cap ends the conversation before a byte of it is stored; at most one frame and one
read are kept while nobody takes them, then reading pauses and the worker waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import cast

from p2pgrid.errors import MalformedError
from p2pgrid.runtimes.worker import frames

LOG_BYTES_MAX = 64 << 10
_QUEUED_BYTES_MAX = 1 << 20


class FrameLink(asyncio.Protocol):
    """Length-prefixed frames over a socket. One reader at a time."""

    def __init__(self) -> None:
        self.frame_bytes_max = frames.FRAME_SLACK_BYTES
        self.closed = asyncio.Event()
        """Set while there is no connection."""
        self.closed.set()
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._frames: deque[bytes] = deque()
        self._queued_bytes = 0
        self._paused = False
        self._over: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self.closed.clear()
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports do not inherit from asyncio's.

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        if self._over is not None:
            return
        self._buffer += data
        self._cut_frames()
        self._wake()

    def eof_received(self) -> bool:
        """Called by asyncio."""
        self._end(EOFError())
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """Called by asyncio."""
        self._end(EOFError())
        self.closed.set()

    def _cut_frames(self) -> None:
        start, prefix, buffer = 0, frames.LENGTH.size, self._buffer
        while len(buffer) - start >= prefix:
            (size_bytes,) = frames.LENGTH.unpack_from(buffer, start)
            if size_bytes > self.frame_bytes_max:
                self._end(MalformedError(f"a frame of {size_bytes} bytes, over the limit of {self.frame_bytes_max}"))
                return
            if len(buffer) - start - prefix < size_bytes:
                break
            self._frames.append(bytes(memoryview(buffer)[start + prefix : start + prefix + size_bytes]))
            self._queued_bytes += size_bytes + prefix
            start += prefix + size_bytes
        del buffer[:start]
        if self._queued_bytes > _QUEUED_BYTES_MAX and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def _end(self, why: Exception) -> None:
        if self._over is None:
            self._over = why
            self._buffer.clear()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def take(self) -> bytes | None:
        """The next frame if it is there. Raises EOFError at the end, MalformedError when what follows is no frame."""
        if not self._frames:
            if self._over is not None:
                raise self._over
            return None
        body = self._frames.popleft()
        self._queued_bytes -= len(body) + frames.LENGTH.size
        if (
            self._paused
            and self._queued_bytes <= _QUEUED_BYTES_MAX // 2
            and self._transport is not None
            and not self._transport.is_closing()
        ):
            self._paused = False
            self._transport.resume_reading()
        return body

    @property
    def waiting(self) -> bool:
        """Whether a frame can be taken now."""
        return bool(self._frames)

    async def wait(self, timeout_s: float) -> None:
        """Return when a frame or the end may be there, or after ``timeout_s``."""
        if self._frames or self._over is not None:
            return
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_later(timeout_s, self._wake)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None

    def wake(self) -> None:
        """Make a waiting reader look again."""
        self._wake()

    def send(self, message: object) -> None:
        """Queue one frame. Bounded by its use: one batch at a time."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frames.frame(message))

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()


class LogTail(asyncio.Protocol):
    """Keeps the last LOG_BYTES_MAX of what a worker prints."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        """Set while there is no connection."""
        self.closed.set()
        self._tail = bytearray()
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self.closed.clear()
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        self._tail += data
        if len(self._tail) > 2 * LOG_BYTES_MAX:
            del self._tail[:-LOG_BYTES_MAX]

    def connection_lost(self, error: Exception | None) -> None:
        """Called by asyncio."""
        self.closed.set()

    def stop(self) -> None:
        """Read no more."""
        if self._transport is not None:
            self._transport.close()

    def text(self) -> str:
        """The tail, readable."""
        return self._tail[-LOG_BYTES_MAX:].decode("utf-8", "replace")
