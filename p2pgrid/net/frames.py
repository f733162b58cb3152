"""The frames of the stream layer (docs/spec/transport.md).

A frame is: payload length (u32), stream id (u32), kind (u8), payload. Numbers are big-endian.

1. Every length is checked against its kind before a byte of the payload is kept.
2. The payload of DATA is handed on as it comes, so that nothing larger than one small frame is held here.
3. Any input parses or raises MalformedError; after that the reader is dead.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple, NoReturn

from p2pgrid.errors import MalformedError
from p2pgrid.model.reasons import Reason

HEADER = struct.Struct(">IIB")
HEADER_BYTES = HEADER.size
NUMBER = struct.Struct(">I")
REASON_BYTES = 64
"""Longest reason code in RESET and CLOSE."""


class FrameKind(IntEnum):
    """What a frame does."""

    OPEN = 0
    """A new stream; the payload (u32) is what its opener grants on top of the initial window."""
    DATA = 1
    WINDOW = 2
    """The reader grants this many more bytes (u32)."""
    FINISH = 3
    """No more bytes from this side."""
    RESET = 4
    """The stream is given up in both directions; the payload is a reason code."""
    CLOSE = 5
    """The connection ends; stream id 0, the payload is a reason code."""


class Frame(NamedTuple):
    """A parsed frame, or a piece of a DATA frame."""

    kind: int
    stream: int
    payload: bytes


_DATA = int(FrameKind.DATA)
_PAYLOAD_BYTES = {
    FrameKind.OPEN: (4, 4),
    FrameKind.WINDOW: (4, 4),
    FrameKind.FINISH: (0, 0),
    FrameKind.RESET: (0, REASON_BYTES),
    FrameKind.CLOSE: (0, REASON_BYTES),
}


def pack(kind: FrameKind, stream: int, payload: bytes = b"") -> bytes:
    """Encode a frame that is not DATA."""
    return HEADER.pack(len(payload), stream, kind) + payload


def pack_number(kind: FrameKind, stream: int, number: int) -> bytes:
    """Encode an OPEN or WINDOW frame."""
    return pack(kind, stream, NUMBER.pack(number))


def pack_reason(kind: FrameKind, stream: int, reason: str) -> bytes:
    """Encode a RESET or CLOSE frame; a longer reason is cut."""
    return pack(kind, stream, reason.encode("ascii", "replace")[:REASON_BYTES])


def reason_of(payload: bytes) -> str:
    """The reason code in a RESET or CLOSE frame. Raises MalformedError."""
    try:
        reason = payload.decode("ascii")
    except UnicodeDecodeError:
        reason = "?!"
    if reason and not reason.replace("-", "").isalnum():
        raise MalformedError("a reason code with strange characters", reason=Reason.MALFORMED)
    return reason


class FrameReader:
    """Splits a byte pipe into frames, however the bytes are cut."""

    __slots__ = ("_data_bytes_max", "_dead", "_held", "_left", "_stream")

    def __init__(self, data_bytes_max: int) -> None:
        """``data_bytes_max``: the longest DATA payload accepted."""
        self._data_bytes_max = data_bytes_max
        self._held = b""
        self._left = 0
        self._stream = 0
        self._dead = False

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield what is complete. The iterator must be used up before the next feed. Raises MalformedError."""
        if self._dead:
            self._fail("bytes after a malformed frame")
        if self._held:
            data = self._held + data
            self._held = b""
        position, end = 0, len(data)
        while position < end:
            if self._left:
                stop = min(end, position + self._left)
                self._left -= stop - position
                yield Frame(_DATA, self._stream, data[position:stop])
                position = stop
                continue
            if end - position < HEADER_BYTES:
                break
            length, stream, kind = HEADER.unpack_from(data, position)
            if kind == _DATA:
                if not 0 < length <= self._data_bytes_max:
                    self._fail(f"a data frame of {length} bytes")
                self._left, self._stream = length, stream
                position += HEADER_BYTES
                continue
            self._check(kind, length)
            stop = position + HEADER_BYTES + length
            if stop > end:
                break
            yield Frame(kind, stream, data[position + HEADER_BYTES : stop])
            position = stop
        if position < end:
            self._held = data[position:]

    def _check(self, kind: int, length: int) -> None:
        bounds = _PAYLOAD_BYTES.get(kind)  # type: ignore[call-overload]
        if bounds is None:
            self._fail(f"a frame of unknown kind {kind}")
        if not bounds[0] <= length <= bounds[1]:
            self._fail(f"a frame of kind {kind} with {length} bytes")

    def _fail(self, message: str) -> NoReturn:
        self._dead = True
        raise MalformedError(message, reason=Reason.MALFORMED)
