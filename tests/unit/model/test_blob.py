"""Blob addresses: what they are made of, and that a chunk is checked alone and only at its own place."""

from __future__ import annotations

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.errors import IntegrityError, MalformedError, RemoteError
from p2pgrid.model.blob import (
    CHUNK_BYTES,
    BlobHasher,
    BlobRoot,
    address_of,
    blob_id_of,
    check_chunk,
    check_root,
    chunk_count,
    chunk_size,
    decode_root,
    encode_root,
    root_id,
)

LARGE = bytes(range(256)) * 4096 * 2 + b"tail"


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES])
def test_content_of_one_chunk_is_addressed_by_its_digest(size: int) -> None:
    content = b"x" * size
    assert address_of(content) == (blake3(content).digest(), None)


def test_larger_content_is_addressed_by_its_root() -> None:
    blob, root = address_of(LARGE)
    assert root is not None
    assert root.size_bytes == len(LARGE)
    digests = [blake3(LARGE[i : i + CHUNK_BYTES]).digest() for i in range(0, len(LARGE), CHUNK_BYTES)]
    assert root == BlobRoot(len(LARGE), CHUNK_BYTES, b"".join(digests))
    assert blob == root_id(root) == blob_id_of(LARGE)
    check_root(root, blob, len(LARGE))
    assert decode_root(encode_root(root)) == root


def test_the_address_is_the_documented_one() -> None:
    content = b"a" * (CHUNK_BYTES + 1)
    # msgpack: array of three, two unsigned 32-bit numbers, 64 bytes.
    digests = blake3(b"a" * CHUNK_BYTES).digest() + blake3(b"a").digest()
    raw = b"\x93\xce\x00\x10\x00\x01\xce\x00\x10\x00\x00\xc4\x40" + digests
    assert blob_id_of(content) == blake3(raw, derive_key_context="p2pgrid/1/blob-root").digest()


def test_a_root_never_passes_for_content() -> None:
    blob, root = address_of(LARGE)
    assert root is not None
    assert blob_id_of(encode_root(root)) != blob


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, CHUNK_BYTES + 5), max_size=6), st.integers(0, 2**32))
def test_the_address_does_not_depend_on_the_pieces(sizes: list[int], salt: int) -> None:
    pieces = [(salt.to_bytes(5, "big") * (size // 5 + 1))[:size] for size in sizes]
    hasher = BlobHasher()
    for piece in pieces:
        hasher.update(piece)
    assert hasher.finish() == address_of(b"".join(pieces))


def test_each_chunk_is_checked_alone_and_only_at_its_place() -> None:
    blob, root = address_of(LARGE)
    for index in range(chunk_count(len(LARGE))):
        data = LARGE[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
        assert len(data) == chunk_size(len(LARGE), index)
        check_chunk(root, blob, index, data)
        with pytest.raises(IntegrityError):
            check_chunk(root, blob, index, data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(IntegrityError):
            check_chunk(root, blob, index, data[:-1])
    with pytest.raises(MalformedError):
        check_chunk(root, blob, 3, b"")
    with pytest.raises(MalformedError):
        check_chunk(None, blob_id_of(b"x"), 1, b"x")


@pytest.mark.parametrize(
    "root",
    [
        BlobRoot(CHUNK_BYTES, CHUNK_BYTES, bytes(32)),
        BlobRoot(CHUNK_BYTES + 1, CHUNK_BYTES, bytes(32)),
        BlobRoot(CHUNK_BYTES + 1, CHUNK_BYTES // 2, bytes(96)),
        BlobRoot(CHUNK_BYTES + 1, CHUNK_BYTES, bytes(65)),
        BlobRoot(-5, CHUNK_BYTES, b""),
        BlobRoot(1 << 62, CHUNK_BYTES, bytes(64)),
    ],
)
def test_a_root_that_contradicts_itself_is_refused(root: BlobRoot) -> None:
    with pytest.raises(MalformedError):
        decode_root(encode_root(root))
    with pytest.raises(RemoteError):
        check_root(root, root_id(root), root.size_bytes)


@given(st.binary(max_size=200))
def test_any_bytes_for_a_root_are_refused_in_an_orderly_way(raw: bytes) -> None:
    with pytest.raises(MalformedError):
        decode_root(raw)


def test_small_blobs_have_no_root_and_large_ones_must() -> None:
    blob, root = address_of(LARGE)
    with pytest.raises(MalformedError):
        check_root(None, blob, len(LARGE))
    with pytest.raises(MalformedError):
        check_root(root, blob, 5)
    with pytest.raises(IntegrityError):
        check_root(root, blob_id_of(b"other"), len(LARGE))
