"""The one signed envelope for everything that outlives a session (docs/spec/envelope.md).

1. What is signed is ``p2pgrid/1/<type>`` NUL grid-id id: a signature of one type, or of one grid, is
   worthless in another.
2. The bytes verified are the bytes decoded. Nothing is ever encoded again to check it.
3. The id of a statement is BLAKE3(author's key, body): the same statement signed twice by one author is one
   statement; the same words by somebody else are another. So nobody can sign a copy of a job and have
   its id, and with the id everything that is said about it.
4. Every statement expires. An expired one is refused when it is opened.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar, cast

import msgspec
from blake3 import blake3

from p2pgrid.errors import IntegrityError, MalformedError
from p2pgrid.model.ids import GridId, StatementId
from p2pgrid.model.limits import DEFAULT_LIMITS
from p2pgrid.model.reasons import Reason
from p2pgrid.model.statement import Statement
from p2pgrid.wire.codec import decode, encode
from p2pgrid.wire.keys import SigningKey, verify

__all__ = ["Envelope", "Signed", "Statement", "open_envelope", "peek", "seal", "statement_id"]

S = TypeVar("S", bound=Statement)


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """The outer form on the wire and on disk: (type, body, author's key, signature)."""

    type: str
    body: bytes
    author: bytes
    signature: bytes


class Signed(Generic[S]):
    """A statement whose signature was verified, with the very bytes that were verified."""

    __slots__ = ("author", "body", "id", "raw")

    def __init__(self, body: S, author: bytes, statement_id: StatementId, raw: bytes) -> None:
        self.body = body
        self.author = author
        self.id = statement_id
        self.raw = raw

    def __repr__(self) -> str:
        return f"Signed({self.body!r}, author={self.author.hex()[:8]}, id={self.id.hex()[:8]})"


def statement_id(author: bytes, body: bytes) -> StatementId:
    """BLAKE3 of the author's key (32 bytes) and a statement's encoded body."""
    return StatementId(blake3(author + body).digest())


def _signed_bytes(kind: str, grid: GridId, digest: bytes) -> bytes:
    return b"p2pgrid/1/" + kind.encode() + b"\0" + grid + digest


def seal(statement: S, key: SigningKey, grid: GridId) -> Signed[S]:
    """Sign a statement."""
    body = encode(statement)
    digest = statement_id(key.public, body)
    signature = key.sign(_signed_bytes(statement.TYPE, grid, digest))
    raw = encode(Envelope(statement.TYPE, body, key.public, signature))
    return Signed(statement, key.public, digest, raw)


def peek(raw: bytes) -> Envelope:
    """Parse the outer form only. Nothing in it may be believed yet. Raises MalformedError."""
    if len(raw) > DEFAULT_LIMITS.statement_bytes:
        raise MalformedError("a signed statement is over its limit", reason=Reason.MALFORMED)
    return decode(raw, Envelope)


def open_envelope(raw: bytes, kind: type[S], grid: GridId, now_ms: int | None) -> Signed[S]:
    """Verify and decode one statement of the given kind.

    ``now_ms``: Unix milliseconds, against which the expiry is checked (with the allowed skew), or
    None for what is read back from this node's own disk. Raises MalformedError or IntegrityError.
    """
    envelope = peek(raw)
    if envelope.type != kind.TYPE:
        raise IntegrityError(f"a '{envelope.type[:20]}' where a '{kind.TYPE}' was due", reason=Reason.MALFORMED)
    digest = statement_id(envelope.author, envelope.body)
    verify(envelope.author, envelope.signature, _signed_bytes(kind.TYPE, grid, digest))
    statement = cast(Any, decode(envelope.body, kind))
    if now_ms is not None and statement.expires_ms + DEFAULT_LIMITS.clock_skew_ms < now_ms:
        raise IntegrityError(f"the '{kind.TYPE}' has expired", reason=Reason.EXPIRED)
    return Signed(statement, envelope.author, digest, raw)
