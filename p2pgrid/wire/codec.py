"""Typed msgpack. Whatever a peer sends is decoded into a declared struct or refused.

All structs on the wire are ``array_like``: positions are the schema. New fields are appended with a
default, so that older bytes decode; unknown trailing fields are ignored, so that newer bytes do too.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import lru_cache
from typing import Any, TypeVar, cast

import msgspec
from blake3 import blake3

from p2pgrid.errors import MalformedError
from p2pgrid.model.reasons import Reason

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()


@lru_cache(maxsize=512)
def _decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind)


def encode(value: Any) -> bytes:
    """Encode a struct or plain value."""
    return _encoder.encode(value)


def decode(raw: bytes | bytearray | memoryview, kind: type[T]) -> T:
    """Decode bytes from anywhere into ``kind``. Raises MalformedError, and nothing else."""
    try:
        value: T = _decoder(cast(Hashable, kind)).decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError) as error:
        name = getattr(kind, "__name__", str(kind))
        raise MalformedError(f"not a valid {name}: {error}", reason=Reason.MALFORMED) from error
    return value


def digest_of(content: bytes) -> bytes:
    """BLAKE3 of some bytes: what digests of results and roots of decisions are made with."""
    return blake3(content).digest()
