"""Connections and streams with asyncio's face, over any ordered pipe of bytes.

The rules of the streams are in streams.py. Here is only who waits for what: readers for bytes, writers
for room, openers for a free place. What is queued in one tick of the loop leaves in one write.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from p2pgrid.errors import MalformedError, UnreachableError
from p2pgrid.model.ids import NodeKey, short
from p2pgrid.model.limits import Limits
from p2pgrid.model.reasons import Reason
from p2pgrid.net.api import Path
from p2pgrid.net.frames import Frame, FrameKind, reason_of
from p2pgrid.net.inbox import Inbox
from p2pgrid.net.streams import Bytes, Multiplexer, StreamState

_OPEN, _DATA, _WINDOW = int(FrameKind.OPEN), int(FrameKind.DATA), int(FrameKind.WINDOW)
_FINISH, _RESET = int(FrameKind.FINISH), int(FrameKind.RESET)


class Pipe(Protocol):
    """An ordered, authenticated pipe of bytes under a connection."""

    path_kind: str

    def is_full(self) -> bool:
        """Whether more output should wait for :meth:`MuxConnection.resume`."""

    def send(self, chunks: list[Bytes]) -> None:
        """Send in order, without waiting."""

    def shut(self) -> None:
        """Send what is queued if the peer takes it soon, then end the pipe."""

    def trusted(self) -> None:
        """The peer is no longer a stranger."""


def _wake(waiters: deque[asyncio.Future[None]]) -> None:
    while waiters:
        waiter = waiters.popleft()
        if not waiter.done():
            waiter.set_result(None)


class MuxStream:
    """One stream of a :class:`MuxConnection`; implements :class:`p2pgrid.net.api.Stream`."""

    __slots__ = ("_chunks", "_connection", "_error", "_finished", "_reader", "_writers", "state")

    def __init__(self, connection: MuxConnection, state: StreamState) -> None:
        self.state = state
        self._connection = connection
        self._chunks: deque[bytes] = deque()
        self._finished = False
        self._error: str = ""
        self._reader: asyncio.Future[None] | None = None
        self._writers: deque[asyncio.Future[None]] = deque()

    def write_nowait(self, data: bytes, *, flush: bool = False) -> None:
        """Queue bytes; with ``flush`` send now. Raises UnreachableError."""
        state = self.state
        if self._error or state.ended or state.finish_queued:
            raise self._ended()
        connection = self._connection
        connection.mux.send(state, data)
        if flush:
            connection.flush()
        else:
            connection.flush_soon()

    async def write(self, data: bytes) -> None:
        """Queue bytes, then wait while more than a window is unsent. Raises UnreachableError."""
        self.write_nowait(data)
        if self.state.unsent > self._connection.window_bytes:
            await self.drain()

    def unsent(self) -> int:
        """Bytes queued here that have not been handed to the pipe."""
        return self.state.unsent

    async def drain(self) -> None:
        """Wait until at most a window is unsent. Raises UnreachableError."""
        while self.state.unsent > self._connection.window_bytes:
            waiter: asyncio.Future[None] = self._connection.loop.create_future()
            self._writers.append(waiter)
            await waiter
        if self._error:
            raise self._ended()

    async def read(self, size_max: int) -> bytes:
        """The next 1..size_max bytes, or ``b""`` at the end. Raises UnreachableError."""
        chunks = self._chunks
        while not chunks:
            if self._error:
                raise self._ended()
            if self._finished:
                return b""
            self._reader = self._connection.loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        data = chunks.popleft()
        if len(data) > size_max:
            chunks.appendleft(data[size_max:])
            data = data[:size_max]
        connection = self._connection
        if connection.mux.took(self.state, len(data)):
            connection.flush_soon()
        return data

    def finish(self) -> None:
        """No more bytes from this side. Harmless when the stream has ended."""
        self._connection.mux.finish(self.state)
        self._connection.after_change()

    def reset(self, reason: str) -> None:
        """Give the stream up in both directions. Harmless when it has ended."""
        if not self._error and not (self._finished and self.state.finish_sent):
            self._connection.mux.reset(self.state, reason)
            self._connection.after_change()
            self.fail(reason, discard=True)

    # What the connection tells

    def deliver(self, data: bytes) -> None:
        """Bytes have come."""
        self._chunks.append(data)
        self._wake_reader()

    def deliver_finish(self) -> None:
        """The peer has finished."""
        self._finished = True
        self._wake_reader()

    def fail(self, reason: str, *, discard: bool = False) -> None:
        """The stream was reset (``discard``), or the connection has ended: then what has come stays readable."""
        if self._finished and self.state.finish_sent:
            return
        self._error = self._error or reason or Reason.CLOSED
        if discard and not self._finished:
            self._chunks.clear()
        self._wake_reader()
        _wake(self._writers)

    def made_room(self) -> None:
        """Some bytes were handed to the pipe."""
        if self._writers and self.state.unsent <= self._connection.window_bytes:
            _wake(self._writers)

    def _wake_reader(self) -> None:
        reader = self._reader
        if reader is not None and not reader.done():
            reader.set_result(None)

    def _ended(self) -> UnreachableError:
        reason = self._error or Reason.CLOSED
        return UnreachableError(f"the stream to {short(self._connection.peer)} has ended ({reason})", reason=reason)


class MuxConnection:
    """A connection over a pipe; implements :class:`p2pgrid.net.api.Connection`."""

    def __init__(self, pipe: Pipe, peer: NodeKey, limits: Limits, *, dialled: bool) -> None:
        self.peer = peer
        self.dialled = dialled
        self.sent_bytes = 0
        self.received_bytes = 0
        self.loop = asyncio.get_running_loop()
        self.mux = Multiplexer(limits, dialled=dialled)
        self.window_bytes = limits.stream_window_bytes
        self._budget_bytes = 2 * limits.bulk_write_bytes
        self._pipe = pipe
        self._streams: dict[int, MuxStream] = {}
        self._incoming: Inbox[MuxStream] = Inbox()
        self._openers: deque[asyncio.Future[None]] = deque()
        self._flush_due = False
        self._closed: asyncio.Future[str] = self.loop.create_future()

    async def open(self) -> MuxStream:
        """A fresh stream; waits while as many as allowed are open. Raises UnreachableError."""
        while not self._closed.done() and not self.mux.can_open():
            waiter: asyncio.Future[None] = self.loop.create_future()
            self._openers.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._wake_opener()
                raise
        if self._closed.done():
            raise self._gone(self._closed.result())
        stream = MuxStream(self, self.mux.open())
        self._streams[stream.state.id] = stream
        self.flush_soon()
        return stream

    async def accept_stream(self) -> MuxStream:
        """The next stream the peer opened. Raises UnreachableError when the connection ends."""
        return await self._incoming.get()

    def trust(self) -> None:
        """The peer has shown a valid membership."""
        if not self._closed.done():
            self.mux.trust()
            self._pipe.trusted()
            self.flush_soon()

    def streams_open(self) -> int:
        """How many streams have not ended."""
        return self.mux.count()

    def path(self) -> Path:
        """How the peer is reached; the round trip is measured by the layer above."""
        return Path(self._pipe.path_kind, 0.0)

    def close(self, reason: str) -> None:
        """Close at once. Idempotent."""
        if self._closed.done():
            return
        self.mux.close(reason)
        self._pipe.send(self.mux.output(1))
        self._end(reason)
        self._pipe.shut()

    async def wait_closed(self) -> str:
        """Wait until the connection has ended; returns the reason code."""
        return await asyncio.shield(self._closed)

    # Sending

    def flush_soon(self) -> None:
        """Send at the end of this tick of the loop."""
        if not self._flush_due:
            self._flush_due = True
            self.loop.call_soon(self._flush_now_due)

    def _flush_now_due(self) -> None:
        self._flush_due = False
        self.flush()

    def flush(self) -> None:
        """Send what the windows and the pipe have room for."""
        mux, pipe = self.mux, self._pipe
        if self._closed.done():
            return
        sent = False
        while mux.has_output() and not pipe.is_full():
            chunks = mux.output(self._budget_bytes)
            self.sent_bytes += sum(map(len, chunks))
            pipe.send(chunks)
            sent = True
        if sent:
            for stream in self._streams.values():
                stream.made_room()
            if self._openers:
                self.after_change()

    def after_change(self) -> None:
        """A stream of this side may have ended: clean up, and let an opener go on."""
        for stream_id in [key for key, stream in self._streams.items() if stream.state.ended]:
            del self._streams[stream_id]
        self._wake_opener()
        self.flush_soon()

    def _wake_opener(self) -> None:
        free = self.mux.can_open()
        while free and self._openers:
            waiter = self._openers.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    # What the pipe tells

    def feed(self, data: bytes) -> None:
        """Bytes from the peer."""
        if self._closed.done():
            return
        self.received_bytes += len(data)
        try:
            for frame in self.mux.receive(data):
                if frame.kind == _DATA:
                    stream = self._streams.get(frame.stream)
                    if stream is not None:
                        stream.deliver(frame.payload)
                elif not self._on_frame(frame):
                    return
        except MalformedError:
            self.close(Reason.MALFORMED)
            return
        if self.mux.has_output():
            self.flush_soon()

    def resume(self) -> None:
        """The pipe has room again."""
        self.flush()

    def lost(self, reason: str) -> None:
        """The pipe has ended."""
        if not self._closed.done():
            self._end(reason)

    def _on_frame(self, frame: Frame) -> bool:
        """Act on a frame that is not DATA. Returns whether the connection lives."""
        if frame.kind == _OPEN:
            state = self.mux.state(frame.stream)
            if state is not None:
                stream = MuxStream(self, state)
                self._streams[frame.stream] = stream
                self._incoming.put(stream)
            return True
        if frame.kind not in (_WINDOW, _FINISH, _RESET):
            self._end(reason_of(frame.payload) or Reason.CLOSED)
            self._pipe.shut()
            return False
        known = self._streams.get(frame.stream)
        if known is not None and frame.kind == _FINISH:
            known.deliver_finish()
        elif known is not None and frame.kind == _RESET:
            self._incoming.remove(known)
            known.fail(reason_of(frame.payload), discard=True)
        if frame.kind != _WINDOW and (known is None or known.state.ended):
            self.after_change()
        return True

    def _end(self, reason: str) -> None:
        self._closed.set_result(reason)
        streams, self._streams = list(self._streams.values()), {}
        for stream in streams:
            stream.state.ended = True
            stream.fail(reason)
        self._incoming.close(self._gone(reason))
        _wake(self._openers)

    def _gone(self, reason: str) -> UnreachableError:
        return UnreachableError(f"the connection to {short(self.peer)} has ended ({reason})", reason=reason)
