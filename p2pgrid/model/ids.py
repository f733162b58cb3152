"""Identifiers, and how people see them.

Keys and digests are 32 raw bytes on the wire; people see lower-case base32 without padding,
shortened in displays. A DHT id is BLAKE2b-160 of a node key (docs/spec/identity.md).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from functools import lru_cache
from typing import NewType

from p2pgrid.errors import UsageError

NodeKey = NewType("NodeKey", bytes)
"""The 32-byte Ed25519 public key of a node: its identity."""
SubmitterKey = NewType("SubmitterKey", bytes)
"""The 32-byte Ed25519 public key that signs jobs."""
GridId = NewType("GridId", bytes)
"""32 bytes: BLAKE2b-256 of a grid's root key and name."""
DhtId = NewType("DhtId", bytes)
"""20 bytes: a place in the DHT's key space."""
BlobId = NewType("BlobId", bytes)
"""32 bytes: the address of a blob (docs/spec/blobs.md)."""
StatementId = NewType("StatementId", bytes)
"""32 bytes: BLAKE3 of the author's key and the body of a signed statement."""
JobId = NewType("JobId", StatementId)
"""The statement id of a signed job."""

KEY_BYTES = 32
DIGEST_BYTES = 32
DHT_ID_BYTES = 20


@lru_cache(maxsize=8192)
def dht_id_of_key(key: bytes) -> DhtId:
    """The DHT id of a node: BLAKE2b-160 of its 32-byte key."""
    return DhtId(hashlib.blake2b(key, digest_size=DHT_ID_BYTES, person=b"p2pgrid/node").digest())


def dht_id_of_job(job: bytes) -> DhtId:
    """Where the keepers of a job are recorded."""
    return DhtId(hashlib.blake2b(job, digest_size=DHT_ID_BYTES, person=b"p2pgrid/job").digest())


def dht_id_of_blob(blob: bytes) -> DhtId:
    """Where the holders of a blob are recorded."""
    return DhtId(hashlib.blake2b(blob, digest_size=DHT_ID_BYTES, person=b"p2pgrid/blob").digest())


def grid_id(root: bytes, name: str) -> GridId:
    """The id of the grid with this root key (32 bytes) and name."""
    digest = hashlib.blake2b(root + name.encode(), digest_size=DIGEST_BYTES, person=b"p2pgrid/grid")
    return GridId(digest.digest())


def to_text(value: bytes) -> str:
    """The full text form: lower-case base32 without padding (52 characters for 32 bytes)."""
    return base64.b32encode(value).decode().rstrip("=").lower()


def short(value: bytes) -> str:
    """The first eight characters of the text form, for displays only."""
    return to_text(value[:5])


def from_text(text: str, *, what: str = "id", size_bytes: int = KEY_BYTES) -> bytes:
    """Parse the full text form. Raises UsageError with a hint when it is not one."""
    padded = text.strip().upper()
    padded += "=" * (-len(padded) % 8)
    try:
        value = base64.b32decode(padded)
    except (binascii.Error, ValueError):
        value = b""
    if len(value) != size_bytes:
        raise UsageError(f"'{text}' is not a full {what}", hint=f"copy the whole {what}, as printed")
    return value
