"""Typed msgpack. Whatever a peer sends is decoded into a declared struct or refused.

All structs on the wire are ``array_like``: positions are the schema. New fields are appended with a
default, so that older bytes decode; unknown trailing fields are ignored, so that newer bytes do too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from blake3 import blake3

from p2pgrid.errors import MalformedError
from p2pgrid.model.reasons import Reason

T = TypeVar("T")

_REFUSALS = (msgspec.MsgspecError, ValueError, RecursionError, OverflowError)
_encoder = msgspec.msgpack.Encoder()


class _Decoders(dict[Any, msgspec.msgpack.Decoder[Any]]):
    """One for each type that is declared in the program."""

    def __missing__(self, kind: Any) -> msgspec.msgpack.Decoder[Any]:
        made = self[kind] = msgspec.msgpack.Decoder(kind)
        return made


_decoders = _Decoders()


def encode(value: Any) -> bytes:
    """Encode a struct or plain value."""
    return _encoder.encode(value)


def decode(raw: bytes | bytearray | memoryview, kind: type[T]) -> T:
    """Decode bytes from anywhere into ``kind``. Raises MalformedError, and nothing else."""
    try:
        value: T = _decoders[kind].decode(raw)
    except _REFUSALS as error:
        raise _malformed(kind, error) from error
    return value


def decoder(kind: Any) -> Callable[[bytes], Any]:
    """:func:`decode` for one type, which may be a union; for what is decoded all the time."""
    decode_one = msgspec.msgpack.Decoder(kind).decode

    def decode_checked(raw: bytes) -> Any:
        try:
            return decode_one(raw)
        except _REFUSALS as error:
            raise _malformed(kind, error) from error

    return decode_checked


def _malformed(kind: Any, error: Exception) -> MalformedError:
    return MalformedError(f"not a valid {getattr(kind, '__name__', str(kind))}: {error}", reason=Reason.MALFORMED)


def digest_of(content: bytes) -> bytes:
    """BLAKE3 of some bytes: what digests of results and roots of decisions are made with."""
    return blake3(content).digest()
