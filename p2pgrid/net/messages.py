"""The messages of the RPC mux, and how they are cut out of a stream (docs/spec/transport.md).

A message is a length (u32, big-endian) and a msgpack array whose first item tells the kind. The body of a
request is carried as it was encoded, and decoded once it is known what it must be.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import msgspec

from p2pgrid import errors
from p2pgrid.errors import MalformedError, P2PGridError
from p2pgrid.model.ids import NodeKey
from p2pgrid.model.reasons import Reason

PROTOCOL_MIN = 1
PROTOCOL_MAX = 1
LENGTH = struct.Struct(">I")
_MESSAGE_CHARS = 1000
_HINT_CHARS = 500
_CODE_CHARS = 64

Method = Annotated[str, msgspec.Meta(max_length=_CODE_CHARS)]
Code = Annotated[str, msgspec.Meta(max_length=_CODE_CHARS)]
Text = Annotated[str, msgspec.Meta(max_length=_MESSAGE_CHARS)]
Hint = Annotated[str, msgspec.Meta(max_length=_HINT_CHARS)]


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """The first message, both ways. Nothing else is looked at before it was accepted."""

    grid: Annotated[bytes, msgspec.Meta(max_length=32)]
    wall_ms: int
    """The sender's clock, in Unix milliseconds."""
    credentials: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=8)] = ()
    """The envelopes of the sender's membership."""
    info: bytes = b""
    """The sender's signed node record or encoded NodeInfo."""
    instance: Annotated[bytes, msgspec.Meta(max_length=16)] = b""
    """Random, drawn at each start: a peer with a new one has restarted, and its old connections are dead."""
    version_min: int = PROTOCOL_MIN
    version_max: int = PROTOCOL_MAX
    features: Annotated[tuple[Code, ...], msgspec.Meta(max_length=64)] = ()
    charter: Annotated[bytes, msgspec.Meta(max_length=1024)] = b""
    """The envelope of the newest charter of the grid that the sender knows; empty for none."""


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The peer's hello was accepted."""


class Request(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """A call."""

    id: int
    method: Method
    body: msgspec.Raw


class Reply(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The answer to a call."""

    id: int
    body: msgspec.Raw


class Failure(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """A call ended with an error of the tree in p2pgrid.errors."""

    id: int
    kind: Code
    reason: Code = ""
    message: Text = ""
    hint: Hint = ""


class Notice(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """A call without an answer."""

    method: Method
    body: msgspec.Raw


class Ping(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Are you there?"""

    id: int


class Pong(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """Yes."""

    id: int


class Bye(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """The connection ends, and why."""

    kind: Code = ""
    reason: Code = ""
    message: Text = ""
    hint: Hint = ""


class StreamHeader(msgspec.Struct, frozen=True, array_like=True):
    """The first message on a stream opened for a method; raw bytes follow."""

    method: Method
    body: msgspec.Raw


Message = Hello | Welcome | Request | Reply | Failure | Notice | Ping | Pong | Bye


class Member(msgspec.Struct, frozen=True):
    """What a peer may do here, as its hello proved."""

    roles: frozenset[str] = frozenset()
    lineage: bytes = b""
    owner: bool = False
    """Whether the peer holds this node's own key: the owner's channel."""


Authorise = Callable[[NodeKey, Hello], Member]
"""Judges a peer's hello. Raises a P2PGridError to refuse; its reason crosses to the peer."""

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
_ERROR_KINDS: dict[str, type[P2PGridError]] = {
    name: value for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, P2PGridError)
}
_ABSTRACT = {"P2PGridError", "RemoteError"}


def raw(value: Any) -> msgspec.Raw:
    """Put a body into a message without encoding it twice: the encoder takes any value where Raw is declared."""
    return value  # type: ignore[no-any-return]


def decode_message(data: bytes | memoryview) -> Message:
    """Decode one message. Raises MalformedError."""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError) as error:
        raise MalformedError(f"not a valid message: {error}", reason=Reason.MALFORMED) from error


def append_message(out: bytearray, message: Any) -> int:
    """Append a message with its length in front. Returns the payload's size in bytes."""
    start = len(out) + LENGTH.size
    out.extend(b"\0\0\0\0")
    _encoder.encode_into(message, out, start)
    size_bytes = len(out) - start
    LENGTH.pack_into(out, start - LENGTH.size, size_bytes)
    return size_bytes


def failure_of(call_id: int, error: P2PGridError) -> Failure:
    """How an error crosses: class name, reason, message, hint."""
    kind, reason = type(error).__name__[:_CODE_CHARS], str(error.reason)[:_CODE_CHARS]
    return Failure(call_id, kind, reason, error.message[:_MESSAGE_CHARS], error.hint[:_HINT_CHARS])


def bye_of(error: P2PGridError) -> Bye:
    """How an error that ends a connection crosses."""
    failure = failure_of(0, error)
    return Bye(failure.kind, failure.reason, failure.message, failure.hint)


def error_of(failure: Failure | Bye) -> P2PGridError:
    """The error that crossed; an unknown class becomes MalformedError. It is ``remote``, and its reason is a plain text."""
    kind = _ERROR_KINDS.get(failure.kind, MalformedError)
    if failure.kind in _ABSTRACT:
        kind = MalformedError
    error = kind(failure.message, hint=failure.hint, reason=str(failure.reason))
    error.remote = True
    return error


class MessageReader:
    """Cuts messages out of a stream of bytes, however it is split."""

    __slots__ = ("_held", "_need", "limit_bytes")

    def __init__(self, limit_bytes: int) -> None:
        """``limit_bytes``: the longest payload accepted; may be changed between messages."""
        self.limit_bytes = limit_bytes
        self._held: list[bytes] = []
        self._need = 0

    def feed(self, data: bytes) -> Iterator[Message]:
        """Yield what is complete; use it up before the next feed. Raises MalformedError."""
        if self._held:
            self._held.append(data)
            self._need -= len(data)
            if self._need > 0:
                return
            data = b"".join(self._held)
            self._held.clear()
        view = memoryview(data)
        position, end = 0, len(data)
        while end - position >= LENGTH.size:
            size_bytes = LENGTH.unpack_from(data, position)[0]
            if size_bytes > self.limit_bytes:
                raise MalformedError(f"a message of {size_bytes} bytes", reason=Reason.MALFORMED)
            stop = position + LENGTH.size + size_bytes
            if stop > end:
                self._need = stop - end
                self._held.append(data[position:])
                return
            yield decode_message(view[position + LENGTH.size : stop])
            position = stop
        if position < end:
            self._held.append(data[position:])
            self._need = LENGTH.size - (end - position)
