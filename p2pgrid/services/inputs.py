"""Inputs of units that are too large to travel inside a batch: values that lie in blobs.

On the wire such a value is msgpack extension type 3 with the 32 bytes of the blob's id. Whoever builds a batch
lists each blob in ``Batch.blobs``, so that nobody has to search values for references.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import msgspec

from p2pgrid.errors import MalformedError
from p2pgrid.model.ids import DIGEST_BYTES
from p2pgrid.model.job import Batch
from p2pgrid.model.reasons import Reason
from p2pgrid.wire.codec import decode, encode

EXT_BLOB = 3
VALUE, FILE = "value", "file"
_PREFIX = bytes((0xC7, DIGEST_BYTES, EXT_BLOB))


def blob_value(blob: bytes) -> bytes:
    """The encoded stand-in for a value that lies in a blob."""
    return _PREFIX + blob


def blob_of(raw: bytes | memoryview) -> bytes | None:
    """The blob that an encoded value stands for, or None if it is the value itself."""
    if len(raw) == len(_PREFIX) + DIGEST_BYTES and raw[: len(_PREFIX)] == _PREFIX:
        return bytes(raw[len(_PREFIX) :])
    return None


def array_of(parts: Sequence[bytes | memoryview]) -> bytes:
    """The msgpack array of these encoded values, without decoding them."""
    count = len(parts)
    if count < 16:
        head = bytes((0x90 | count,))
    elif count < 1 << 16:
        head = b"\xdc" + struct.pack(">H", count)
    else:
        head = b"\xdd" + struct.pack(">I", count)
    return b"".join((head, *parts))


def decode_batch(content: bytes, units: int) -> Batch:
    """A batch and its units as slices. Raises MalformedError if the count is not the manifest's."""
    batch = decode(content, Batch)
    if len(batch.units) != units:
        raise MalformedError("a batch with another number of units than in the manifest", reason=Reason.MALFORMED)
    return batch


def fill_in(raw: bytes, contents: Mapping[bytes, bytes], *, derived: bool) -> bytes:
    """Put the contents of blobs where a unit only names them; of a derived unit, in its list of results, too.

    Raises MalformedError for a blob that is not among ``contents``.
    """
    blob = blob_of(raw)
    if blob is not None:
        raw = _content(contents, blob)
    if not derived:
        return raw
    parts = [bytes(part) for part in decode(raw, list[msgspec.Raw])]
    named = [blob_of(part) for part in parts]
    if not any(named):
        return raw
    return array_of([part if name is None else _content(contents, name) for part, name in zip(parts, named, strict=True)])


def _content(contents: Mapping[bytes, bytes], blob: bytes) -> bytes:
    content = contents.get(blob)
    if content is None:
        raise MalformedError("a batch names a blob that it does not list", reason=Reason.MALFORMED)
    return content


def encode_batch(
    units: Sequence[bytes], blobs: Sequence[tuple[int, str, bytes, int]] = (), files: Sequence[tuple[bytes, bytes]] = ()
) -> bytes:
    """The content of a batch from encoded values, (unit, kind, blob, size in bytes) rows and (blob, content) of small files."""
    return b"".join((b"\x93", array_of(units), encode(tuple(blobs)), encode(tuple(files))))
