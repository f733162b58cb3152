"""How a blob is addressed, and how one chunk of it is checked without the rest (docs/spec/blobs.md).

1. Content of at most one chunk (1 MiB) is addressed by its BLAKE3 digest and has no root.
2. Larger content is addressed by BLAKE3 in derive-key mode, context ``p2pgrid/1/blob-root``, over its
   encoded :class:`BlobRoot`, which lists the digest of each chunk. The separate domain keeps a root from
   ever passing for content, and the other way round.
3. One content has one address: the chunk size is fixed and content of one chunk may not have a root.
"""

from __future__ import annotations

import msgspec
from blake3 import blake3

from p2pgrid.errors import BadDataError, IntegrityError, MalformedError
from p2pgrid.model.ids import DIGEST_BYTES, BlobId, short
from p2pgrid.model.limits import DEFAULT_LIMITS
from p2pgrid.model.reasons import Reason

CHUNK_BYTES = DEFAULT_LIMITS.chunk_bytes
BLOB_BYTES_MAX = DEFAULT_LIMITS.blob_bytes
ROOT_CONTEXT = "p2pgrid/1/blob-root"
ROOT_BYTES_MAX = BLOB_BYTES_MAX // CHUNK_BYTES * DIGEST_BYTES + 32
"""The encoded root of the largest blob: 1 MiB of digests and a few bytes around them."""


class BlobRoot(msgspec.Struct, frozen=True, array_like=True):
    """The table of contents of a blob of more than one chunk.

    ``chunks`` holds the 32-byte BLAKE3 digests of all chunks, in order and joined.
    """

    size_bytes: int
    chunk_bytes: int
    chunks: bytes


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(BlobRoot)


def chunk_count(size_bytes: int) -> int:
    """How many chunks a blob of this size has. Empty content is one empty chunk."""
    return max(1, -(-size_bytes // CHUNK_BYTES))


def chunk_size(size_bytes: int, index: int) -> int:
    """The bytes in chunk ``index`` of a blob of this size. Raises MalformedError when there is no such chunk."""
    if not 0 <= index < chunk_count(size_bytes):
        raise MalformedError(f"a blob of {size_bytes} bytes has no chunk {index}", reason=Reason.MALFORMED)
    return min(CHUNK_BYTES, size_bytes - index * CHUNK_BYTES)


def encode_root(root: BlobRoot) -> bytes:
    """The bytes that are hashed into the address."""
    return _encoder.encode(root)


def decode_root(raw: bytes) -> BlobRoot:
    """Parse a root from anywhere. Raises MalformedError; compare its address with :func:`check_root`."""
    if len(raw) > ROOT_BYTES_MAX:
        raise MalformedError("a blob root is over its limit", reason=Reason.MALFORMED)
    try:
        root = _decoder.decode(raw)
    except (msgspec.MsgspecError, ValueError) as error:
        raise MalformedError(f"not a valid blob root: {error}", reason=Reason.MALFORMED) from error
    _check_shape(root)
    return root


def root_id(root: BlobRoot) -> BlobId:
    """The address of the blob with this root."""
    return BlobId(blake3(encode_root(root), derive_key_context=ROOT_CONTEXT).digest())


def _check_shape(root: BlobRoot) -> None:
    sized = CHUNK_BYTES < root.size_bytes <= BLOB_BYTES_MAX
    if root.chunk_bytes != CHUNK_BYTES or not sized or len(root.chunks) != chunk_count(root.size_bytes) * DIGEST_BYTES:
        raise MalformedError("a blob root contradicts itself", reason=Reason.MALFORMED)


def check_root(root: BlobRoot | None, blob: bytes, size_bytes: int) -> None:
    """Raise unless ``root`` is the root of the blob with this address and size.

    Blobs of at most one chunk have no root. Raises MalformedError for a wrong shape or size, IntegrityError for a wrong address.
    """
    if len(blob) != DIGEST_BYTES or not 0 <= size_bytes <= BLOB_BYTES_MAX:
        raise MalformedError("not a blob address, or a size over the limit", reason=Reason.MALFORMED)
    if (root is None) != (size_bytes <= CHUNK_BYTES):
        raise MalformedError("a blob has a root exactly when it has several chunks", reason=Reason.MALFORMED)
    if root is None:
        return
    _check_shape(root)
    if root.size_bytes != size_bytes:
        raise MalformedError("a blob root is of another size", reason=Reason.MALFORMED)
    if root_id(root) != blob:
        raise IntegrityError(f"the root is not that of blob {short(blob)}", reason=Reason.CORRUPT)


def check_chunk(root: BlobRoot | None, blob: bytes, index: int, data: bytes | memoryview) -> None:
    """Raise IntegrityError unless ``data`` is chunk ``index`` of the blob.

    ``root`` must have passed :func:`check_root`; it is None for a blob of one chunk. Raises MalformedError for
    an index outside the blob.
    """
    if root is None:
        if index != 0:
            raise MalformedError(f"blob {short(blob)} has one chunk only", reason=Reason.MALFORMED)
        due, sized = blob, len(data) <= CHUNK_BYTES
    else:
        sized = len(data) == chunk_size(root.size_bytes, index)
        due = root.chunks[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]
    if not sized or blake3(data).digest() != due:
        raise IntegrityError(f"chunk {index} does not belong to blob {short(blob)}", reason=Reason.CORRUPT)


class BlobHasher:
    """The address of content that arrives in pieces of any size. Memory: 32 bytes a chunk."""

    __slots__ = ("_chunk", "_digests", "_in_chunk_bytes", "size_bytes")

    def __init__(self) -> None:
        self._digests: list[bytes] = []
        self._chunk = blake3()
        self._in_chunk_bytes = 0
        self.size_bytes = 0

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Add the next bytes. Raises BadDataError once the content is over the limit for blobs."""
        view = memoryview(data).cast("B")
        if self.size_bytes + len(view) > BLOB_BYTES_MAX:
            raise BadDataError("the content is larger than a blob can be", reason=Reason.TOO_LARGE)
        self.size_bytes += len(view)
        while len(view):
            if self._in_chunk_bytes == CHUNK_BYTES:
                self._digests.append(self._chunk.digest())
                self._chunk, self._in_chunk_bytes = blake3(), 0
            part = view[: CHUNK_BYTES - self._in_chunk_bytes]
            self._chunk.update(part)
            self._in_chunk_bytes += len(part)
            view = view[len(part) :]

    def finish(self) -> tuple[BlobId, BlobRoot | None]:
        """The address of all bytes so far, and the root if they are more than one chunk."""
        last = self._chunk.digest()
        if not self._digests:
            return BlobId(last), None
        root = BlobRoot(self.size_bytes, CHUNK_BYTES, b"".join([*self._digests, last]))
        return root_id(root), root


def blob_id_of(content: bytes) -> BlobId:
    """The address of ``content``."""
    return address_of(content)[0]


def address_of(content: bytes) -> tuple[BlobId, BlobRoot | None]:
    """The address of ``content``, and its root if it is more than one chunk."""
    hasher = BlobHasher()
    hasher.update(content)
    return hasher.finish()
