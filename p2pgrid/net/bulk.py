"""Messages and raw bytes on streams of their own.

The first byte of such a stream tells what it is: one large message, or the header of a stream that a method
serves. A large message is acknowledged by its reader finishing its own side.
"""

from __future__ import annotations

import asyncio
from typing import Any

from p2pgrid.errors import MalformedError, UnreachableError
from p2pgrid.model.reasons import Reason
from p2pgrid.net.api import Connection, Stream
from p2pgrid.net.messages import LENGTH, append_message

MESSAGE = 0
METHOD = 1
_READ_BYTES = 256 * 1024
_WRITE_BYTES = 256 * 1024


async def read_exactly(stream: Stream, size_bytes: int) -> bytes:
    """Read this many bytes. Raises MalformedError when the stream ends before, UnreachableError when it breaks."""
    parts: list[bytes] = []
    while size_bytes:
        data = await stream.read(min(size_bytes, _READ_BYTES))
        if not data:
            raise MalformedError("a stream ended in the middle of a message", reason=Reason.MALFORMED)
        parts.append(data)
        size_bytes -= len(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def read_framed(stream: Stream, limit_bytes: int) -> bytes:
    """Read a length and that many bytes. Raises MalformedError or UnreachableError."""
    size_bytes = LENGTH.unpack(await read_exactly(stream, LENGTH.size))[0]
    if size_bytes > limit_bytes:
        raise MalformedError(f"a message of {size_bytes} bytes", reason=Reason.MALFORMED)
    return await read_exactly(stream, size_bytes)


async def send_message(connection: Connection, payload: bytes, deadline_s: float) -> None:
    """Send one message on a stream of its own and wait until the peer has it, or the loop's clock is at the deadline.

    Raises UnreachableError or TimeoutError.
    """
    async with asyncio.timeout_at(deadline_s):
        stream = await connection.open()
        done = False
        try:
            stream.write_nowait(bytes((MESSAGE,)) + LENGTH.pack(len(payload)))
            view = memoryview(payload)
            for start in range(0, len(payload), _WRITE_BYTES):
                await stream.write(bytes(view[start : start + _WRITE_BYTES]))
            stream.finish()
            if await stream.read(1):
                raise UnreachableError("the peer wrote where it should only read", reason=Reason.MALFORMED)
            done = True
        finally:
            if not done:
                stream.reset(Reason.TIMEOUT)


def header_bytes(header: Any) -> bytes:
    """The opening bytes of a stream that a method serves."""
    out = bytearray((METHOD,))
    append_message(out, header)
    return bytes(out)
