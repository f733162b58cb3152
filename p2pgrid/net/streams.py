"""Many streams over one ordered pipe of bytes, without I/O (docs/spec/transport.md).

1. The side that dialled opens odd stream ids, the other even ones, each strictly increasing.
2. A stream starts with a window of 64 KiB each way. A reader grants more as it takes bytes; a sender
   never has more bytes in flight than it was granted, and a peer that does is cut off.
3. Strangers get one stream and no grants, until the owner of this object trusts the peer.
4. The first stream goes before all others; the others take turns, one frame each.
5. A stream over the limit is reset as ``busy``; the connection lives on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from p2pgrid.errors import MalformedError, UnreachableError
from p2pgrid.model.limits import Limits
from p2pgrid.model.reasons import Reason
from p2pgrid.net.frames import HEADER, NUMBER, Frame, FrameKind, FrameReader, pack, pack_number, pack_reason, reason_of

INITIAL_WINDOW_BYTES = 64 * 1024
FIRST_STREAM = 1
_ID_MAX = 2**32 - 1
_WINDOW_MAX = 2**31
_SMALL_FRAME_BYTES = 1024

Bytes = bytes | memoryview
_OPEN, _DATA, _WINDOW = int(FrameKind.OPEN), int(FrameKind.DATA), int(FrameKind.WINDOW)
_FINISH, _RESET, _CLOSE = int(FrameKind.FINISH), int(FrameKind.RESET), int(FrameKind.CLOSE)


class StreamState:
    """The windows and the outgoing queue of one stream."""

    __slots__ = (
        "ended",
        "finish_queued",
        "finish_received",
        "finish_sent",
        "id",
        "mine",
        "out",
        "receive_window",
        "send_window",
        "taken",
        "unsent",
    )

    def __init__(self, stream_id: int, *, mine: bool) -> None:
        self.id = stream_id
        self.mine = mine
        self.send_window = INITIAL_WINDOW_BYTES
        self.receive_window = INITIAL_WINDOW_BYTES
        self.taken = 0
        """Bytes the reader took that were not granted again yet."""
        self.out: deque[Bytes] = deque()
        self.unsent = 0
        self.finish_queued = False
        self.finish_sent = False
        self.finish_received = False
        self.ended = False


class Multiplexer:
    """The streams of one connection. Bytes in by :meth:`receive`, bytes out by :meth:`output`."""

    def __init__(self, limits: Limits, *, dialled: bool) -> None:
        self._limits = limits
        self._reader = FrameReader(limits.bulk_write_bytes)
        self._window_bytes = max(limits.stream_window_bytes, INITIAL_WINDOW_BYTES)
        self._streams: dict[int, StreamState] = {}
        self._next_id = 1 if dialled else 2
        self._peer_last_id = 0 if dialled else -1
        self._own_count = 0
        self._peer_count = 0
        self._trusted = False
        self._urgent: list[Bytes] = []
        self._ready: dict[int, StreamState] = {}

    # What the owner does

    def trust(self) -> None:
        """Lift the limits for strangers, and grant the streams that are open their full window."""
        if self._trusted:
            return
        self._trusted = True
        for state in self._streams.values():
            self._grant(state, self._window_bytes - INITIAL_WINDOW_BYTES)

    def can_open(self) -> bool:
        """Whether another stream may be opened now."""
        return self._own_count < self._limits.streams_per_connection

    def open(self) -> StreamState:
        """Open a stream. Call only while :meth:`can_open`."""
        if self._next_id > _ID_MAX:
            raise UnreachableError("the connection has used up its stream numbers", reason=Reason.CLOSED)
        state = StreamState(self._next_id, mine=True)
        self._next_id += 2
        self._own_count += 1
        self._streams[state.id] = state
        extra = self._window_bytes - INITIAL_WINDOW_BYTES if self._trusted else 0
        state.receive_window += extra
        self._urgent.append(pack_number(FrameKind.OPEN, state.id, extra))
        return state

    def send(self, state: StreamState, data: bytes) -> None:
        """Queue bytes on a stream that this side has not finished."""
        if not data:
            return
        state.out.append(data)
        state.unsent += len(data)
        if state.send_window > 0:
            self._ready[state.id] = state

    def finish(self, state: StreamState) -> None:
        """Queue the end of this side's bytes."""
        if state.ended or state.finish_queued:
            return
        state.finish_queued = True
        if not state.unsent:
            self._send_finish(state, self._urgent)

    def reset(self, state: StreamState, reason: str) -> None:
        """Give a stream up at once."""
        if not state.ended:
            self._urgent.append(pack_reason(FrameKind.RESET, state.id, reason))
            self._end(state)

    def took(self, state: StreamState, size_bytes: int) -> bool:
        """The reader took bytes; grant them again in time. Returns whether there is something to send."""
        state.taken += size_bytes
        full = self._window_bytes if self._trusted else INITIAL_WINDOW_BYTES
        if state.ended or state.finish_received or not self._trusted or state.taken * 2 < full:
            return False
        self._grant(state, state.taken)
        state.taken = 0
        return True

    def close(self, reason: str) -> None:
        """Queue the end of the connection, after everything queued so far that the windows allow."""
        chunks = self.output(_WINDOW_MAX)
        chunks.append(pack_reason(FrameKind.CLOSE, 0, reason))
        self._urgent = chunks

    def has_output(self) -> bool:
        """Whether :meth:`output` would return something."""
        return bool(self._urgent or self._ready)

    def output(self, budget_bytes: int) -> list[Bytes]:
        """Take what may be sent now, in order; about ``budget_bytes`` at most."""
        chunks = self._urgent
        self._urgent = []
        ready = self._ready
        while ready and budget_bytes > 0:
            key = FIRST_STREAM if FIRST_STREAM in ready else next(iter(ready))
            state = ready.pop(key)
            budget_bytes -= self._data_frame(state, chunks)
            if state.unsent:
                if state.send_window > 0:
                    ready[key] = state
            elif state.finish_queued:
                self._send_finish(state, chunks)
        return chunks

    # What the peer does

    def receive(self, data: bytes) -> Iterator[Frame]:
        """Yield what happened: OPEN, DATA, WINDOW, FINISH, RESET or CLOSE, already booked. Raises MalformedError."""
        for frame in self._reader.feed(data):
            if frame.kind == _DATA:
                state = self._find(frame.stream)
                if state is not None:
                    self._on_data(state, len(frame.payload))
                    yield frame
            elif self._book(frame):
                yield frame

    def state(self, stream_id: int) -> StreamState | None:
        """The stream with this id, while it has not ended."""
        return self._streams.get(stream_id)

    def count(self) -> int:
        """How many streams have not ended."""
        return len(self._streams)

    def _book(self, frame: Frame) -> bool:
        kind = frame.kind
        if kind == _CLOSE:
            if frame.stream:
                raise MalformedError("a close frame on a stream", reason=Reason.MALFORMED)
            reason_of(frame.payload)
            return True
        if kind == _OPEN:
            return self._on_open(frame)
        state = self._find(frame.stream)
        if kind == _RESET:
            reason_of(frame.payload)
        if state is None:
            return False
        if kind == _WINDOW:
            self._on_window(state, NUMBER.unpack(frame.payload)[0])
        elif kind == _FINISH:
            self._on_finish(state)
        else:
            self._end(state)
        return True

    def _find(self, stream_id: int) -> StreamState | None:
        """The live stream, or None for one that has ended. Raises MalformedError for one that never was."""
        state = self._streams.get(stream_id)
        if state is None:
            own = stream_id % 2 == self._next_id % 2
            known = 0 < stream_id < self._next_id if own else 0 < stream_id <= self._peer_last_id
            if not known:
                raise MalformedError("a frame for a stream that was never opened", reason=Reason.MALFORMED)
        return state

    def _on_open(self, frame: Frame) -> bool:
        if frame.stream % 2 == self._next_id % 2 or frame.stream <= self._peer_last_id:
            raise MalformedError("a stream opened with a wrong number", reason=Reason.MALFORMED)
        self._peer_last_id = frame.stream
        extra = NUMBER.unpack(frame.payload)[0]
        if extra > _WINDOW_MAX:
            raise MalformedError("a window that is too large", reason=Reason.MALFORMED)
        if self._peer_count >= (self._limits.streams_per_connection if self._trusted else 1):
            self._urgent.append(pack_reason(FrameKind.RESET, frame.stream, Reason.BUSY))
            return False
        state = StreamState(frame.stream, mine=False)
        state.send_window += extra
        self._streams[state.id] = state
        self._peer_count += 1
        if self._trusted:
            self._grant(state, self._window_bytes - INITIAL_WINDOW_BYTES)
        return True

    def _on_data(self, state: StreamState, size_bytes: int) -> None:
        if state.finish_received:
            raise MalformedError("bytes on a stream that was finished", reason=Reason.MALFORMED)
        state.receive_window -= size_bytes
        if state.receive_window < 0:
            raise MalformedError("more bytes than the window allows", reason=Reason.MALFORMED)

    def _on_window(self, state: StreamState, extra: int) -> None:
        state.send_window += extra
        if state.send_window > _WINDOW_MAX + INITIAL_WINDOW_BYTES:
            raise MalformedError("a window that is too large", reason=Reason.MALFORMED)
        if state.unsent and state.send_window > 0:
            self._ready[state.id] = state

    def _on_finish(self, state: StreamState) -> None:
        if state.finish_received:
            raise MalformedError("a stream finished twice", reason=Reason.MALFORMED)
        state.finish_received = True
        if state.finish_sent:
            self._end(state)

    # Inside

    def _grant(self, state: StreamState, extra: int) -> None:
        if extra > 0 and not state.finish_received:
            state.receive_window += extra
            self._urgent.append(pack_number(FrameKind.WINDOW, state.id, extra))

    def _send_finish(self, state: StreamState, chunks: list[Bytes]) -> None:
        chunks.append(pack(FrameKind.FINISH, state.id))
        state.finish_sent = True
        if state.finish_received:
            self._end(state)

    def _end(self, state: StreamState) -> None:
        state.ended = True
        state.out.clear()
        state.unsent = 0
        self._ready.pop(state.id, None)
        if self._streams.pop(state.id, None) is not None:
            if state.mine:
                self._own_count -= 1
            else:
                self._peer_count -= 1

    def _data_frame(self, state: StreamState, chunks: list[Bytes]) -> int:
        size_bytes = left = min(state.unsent, state.send_window, self._limits.bulk_write_bytes)
        header = HEADER.pack(size_bytes, state.id, _DATA)
        state.unsent -= size_bytes
        state.send_window -= size_bytes
        out = state.out
        if len(out[0]) == size_bytes and size_bytes <= _SMALL_FRAME_BYTES:
            chunks.append(header + out.popleft())
            return size_bytes
        chunks.append(header)
        while left:
            chunk = out[0]
            if len(chunk) <= left:
                chunks.append(chunk)
                left -= len(chunk)
                out.popleft()
            else:
                view = memoryview(chunk)
                chunks.append(view[:left])
                out[0] = view[left:]
                left = 0
        return size_bytes
