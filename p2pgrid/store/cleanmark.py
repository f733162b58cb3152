"""The mark that a file was left in good order: its digest, in a small file beside it while nobody uses it.

The mark is taken away, durably, before the file is written to. So a mark that is there means that its last user came to
the end, and one that does not fit means that the bytes changed while nobody used them.
"""

from __future__ import annotations

from pathlib import Path

from blake3 import blake3

from p2pgrid.model.ids import DIGEST_BYTES
from p2pgrid.store.disk import Disk

PIECE_BYTES = 1 << 20


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".clean")


def digest_of(path: Path) -> bytes:
    """BLAKE3 of a file; empty when it cannot be read."""
    hasher = blake3()
    try:
        with path.open("rb", buffering=0) as file:
            while piece := file.read(PIECE_BYTES):
                hasher.update(piece)
    except OSError:
        return b""
    return hasher.digest()


def leave(path: Path, *, sync: bool) -> None:
    """Mark a file that is closed and will not be written to any more. Raises OSError."""
    if sync:
        Disk().replace_file(_beside(path), digest_of(path))
    else:
        _beside(path).write_bytes(digest_of(path))


def take(path: Path, *, sync: bool) -> bytes | None:
    """The digest that the last user left, and from now on none; None when it left none. Raises OSError."""
    try:
        left = _beside(path).read_bytes()[: DIGEST_BYTES + 1]
    except FileNotFoundError:
        return None
    Disk().unlink(_beside(path))
    if sync:
        Disk().sync_folder(path.parent)
    return left if len(left) == DIGEST_BYTES else None
