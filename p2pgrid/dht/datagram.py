"""The outer form of every datagram (docs/spec/dht.md).

    version u8 | flags u8 | grid tag 8 | author 32 | time ms u64 | signature 64 | payload
    payload = [cookie 8] [credential u16 + bytes] [padding u16 + bytes] | frame u8 | request id 20 | message

1. The signature covers a domain tag, the grid, the key of the destination and everything but itself, so
   that a datagram means nothing to another node or grid, nor as a signature of another kind.
2. The destination's key is always known to the sender: it is part of every contact.
3. The frame byte and the 20-byte request id are those of the rpcudp package.
4. A replayed request changes nothing: questions only read, records are ordered by sequence, and whoever
   sends from elsewhere gets at most three times the bytes of the request until it has shown the cookie
   that was sent to that very place. A replayed answer matches no outstanding request.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from p2pgrid.errors import IntegrityError, MalformedError
from p2pgrid.model.ids import GridId
from p2pgrid.model.reasons import Reason
from p2pgrid.wire.keys import SigningKey, verify

VERSION = 1
COOKIE_BYTES = 8
REQUEST_ID_BYTES = 20
FRAME_BYTES = 1 + REQUEST_ID_BYTES
_GRID_TAG_BYTES = 8
_LENGTH_BYTES = 2
_DOMAIN = b"p2pgrid/1/datagram\0"
_HEADER = struct.Struct(">BB8s32sQ64s")
HEADER_BYTES = _HEADER.size

REQUEST = 0
REPLY = 1


class Flag:
    """What a datagram carries, and what its author says about itself and about the destination.

    Plain integers: flags are combined for every datagram, and enum arithmetic costs as much as a hash.
    """

    SERVER = 1
    """The author takes part in routing."""
    CREDENTIAL = 2
    KNOWS_YOU = 4
    """The author has verified the credential of the destination."""
    COOKIE = 8
    PADDING = 16


_FLAGS_KNOWN = 31


class Datagram(NamedTuple):
    """The outer form. Nothing in it may be believed before :func:`verify_datagram`."""

    flags: int
    author: bytes
    time_ms: int
    signature: bytes
    payload: bytes


class Payload(NamedTuple):
    """The inner parts; absent ones are None."""

    frame: int
    request_id: bytes
    message: bytes
    cookie: bytes | None = None
    credential: bytes | None = None


def _signed_bytes(grid: GridId, destination: bytes, flags: int, time_ms: int, payload: bytes) -> bytes:
    return b"".join((_DOMAIN, grid, destination, bytes((VERSION, flags)), time_ms.to_bytes(8, "big"), payload))


def seal_datagram(key: SigningKey, grid: GridId, destination: bytes, flags: int, time_ms: int, payload: bytes) -> bytes:
    """Sign and assemble one datagram for the node with the key ``destination``."""
    signature = key.sign(_signed_bytes(grid, destination, flags, time_ms, payload))
    return _HEADER.pack(VERSION, flags, grid[:_GRID_TAG_BYTES], key.public, time_ms, signature) + payload


def peek_datagram(raw: bytes, grid: GridId, bytes_max: int) -> Datagram:
    """Parse the outer form. Raises MalformedError, or IntegrityError for another grid or version."""
    if not HEADER_BYTES + FRAME_BYTES < len(raw) <= bytes_max:
        raise MalformedError("a datagram is too short or too long", reason=Reason.MALFORMED)
    version, flags, tag, author, time_ms, signature = _HEADER.unpack_from(raw)
    if version != VERSION:
        raise IntegrityError("a datagram of another version", reason=Reason.VERSION)
    if flags & ~_FLAGS_KNOWN:
        raise MalformedError("unknown flags", reason=Reason.MALFORMED)
    if tag != grid[:_GRID_TAG_BYTES]:
        raise IntegrityError("a datagram of another grid", reason=Reason.OTHER_GRID)
    return Datagram(flags, author, time_ms, signature, raw[HEADER_BYTES:])


def verify_datagram(datagram: Datagram, grid: GridId, destination: bytes) -> None:
    """Raise IntegrityError unless the author signed exactly this for ``destination``."""
    signed = _signed_bytes(grid, destination, datagram.flags, datagram.time_ms, datagram.payload)
    verify(datagram.author, datagram.signature, signed)


def _length(size_bytes: int) -> bytes:
    return size_bytes.to_bytes(_LENGTH_BYTES, "big")


def pack_payload(
    frame: int, request_id: bytes, message: bytes, *, cookie: bytes = b"", credential: bytes | None = None, payload_bytes_min: int = 0
) -> tuple[int, bytes]:
    """The flags for what is carried, and the payload, padded to at least ``payload_bytes_min``."""
    flags = 0
    parts = []
    if cookie:
        flags |= Flag.COOKIE
        parts.append(cookie)
    if credential is not None:
        flags |= Flag.CREDENTIAL
        parts += (_length(len(credential)), credential)
    missing = payload_bytes_min - sum(map(len, parts)) - FRAME_BYTES - len(message)
    if missing > 0:
        flags |= Flag.PADDING
        filling = max(0, missing - _LENGTH_BYTES)
        parts += (_length(filling), bytes(filling))
    parts += (bytes((frame,)), request_id, message)
    return flags, b"".join(parts)


def _take_block(payload: bytes, at: int) -> tuple[bytes, int]:
    start = at + _LENGTH_BYTES
    end = start + int.from_bytes(payload[at:start], "big")
    if end > len(payload):
        raise MalformedError("a block reaches past its datagram", reason=Reason.MALFORMED)
    return payload[start:end], end


def unpack_payload(flags: int, payload: bytes) -> Payload:
    """The inner parts of a payload. Raises MalformedError."""
    at = 0
    cookie = credential = None
    if flags & Flag.COOKIE:
        cookie, at = payload[:COOKIE_BYTES], COOKIE_BYTES
    if flags & Flag.CREDENTIAL:
        credential, at = _take_block(payload, at)
    if flags & Flag.PADDING:
        _, at = _take_block(payload, at)
    if at + FRAME_BYTES >= len(payload) or payload[at] not in (REQUEST, REPLY):
        raise MalformedError("a datagram without a message", reason=Reason.MALFORMED)
    return Payload(payload[at], payload[at + 1 : at + FRAME_BYTES], payload[at + FRAME_BYTES :], cookie, credential)


def overhead_bytes(*, cookie: bool, credential_bytes: int | None) -> int:
    """Bytes of a datagram that are not its message."""
    extra = COOKIE_BYTES if cookie else 0
    if credential_bytes is not None:
        extra += _LENGTH_BYTES + credential_bytes
    return HEADER_BYTES + FRAME_BYTES + extra
