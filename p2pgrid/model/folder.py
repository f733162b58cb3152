"""A folder as a blob: the manifest that lists its files, and what is refused in one (docs/spec/blobs.md#folders).

1. A manifest is a blob like any other. It begins with :data:`MAGIC`, so that whoever reads it knows that a folder is meant.
2. The entries are sorted by path and each stands behind the folder it lies in. Thus equal folders have equal
   manifests, and nothing can lie in a file or behind a link.
3. Names are plain, relative and portable (:mod:`p2pgrid.model.names`); two that some system takes for one are refused.
4. A link leads upwards first and then down, and never out of the folder. What it passes on its way down is a folder or
   another link of which the same holds; so no link leads out, in whatever order they are followed.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from p2pgrid.errors import BadDataError
from p2pgrid.model.ids import DIGEST_BYTES
from p2pgrid.model.limits import DEFAULT_LIMITS, MIB
from p2pgrid.model.names import check_relative, folded
from p2pgrid.model.reasons import Reason

MAGIC = b"p2pgrid folder\n\0"
VERSION = 1
ENTRIES_MAX = 262_144
MANIFEST_BYTES_MAX = 64 * MIB
FILE = "file"
FOLDER = "folder"
LINK = "link"
UPWARDS = ".."


class FolderEntry(msgspec.Struct, frozen=True, array_like=True):
    """One name in a folder. Only files have a size and a blob, only links a target."""

    path: str
    """Relative to the folder, with slashes."""
    kind: str
    """``file``, ``folder`` or ``link``."""
    size_bytes: int = 0
    blob: bytes = b""
    executable: bool = False
    target: str = ""


class Manifest(msgspec.Struct, frozen=True, array_like=True):
    """The content of a folder."""

    version: int
    entries: tuple[FolderEntry, ...]

    @property
    def files(self) -> list[FolderEntry]:
        """The entries that have content."""
        return [entry for entry in self.entries if entry.kind == FILE]

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(entry.size_bytes for entry in self.entries)


class _Version(msgspec.Struct, array_like=True):
    version: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Manifest)
_version_decoder = msgspec.msgpack.Decoder(_Version)


def is_manifest(head: bytes) -> bool:
    """Whether content that begins like this is meant to be a manifest."""
    return head.startswith(MAGIC)


def encode_manifest(entries: Iterable[FolderEntry]) -> bytes:
    """The content of the manifest of these entries, in any order. Raises BadDataError."""
    manifest = Manifest(VERSION, tuple(sorted(entries, key=_order)))
    check_manifest(manifest)
    content = MAGIC + _encoder.encode(manifest)
    if len(content) > MANIFEST_BYTES_MAX:
        raise _too_large(f"a list of files of {len(content)} bytes")
    return content


def decode_manifest(content: bytes) -> Manifest:
    """Parse a manifest from anywhere. Raises BadDataError unless all of it can be trusted as a tree of names."""
    if not is_manifest(content):
        raise BadDataError("this is no folder", reason=Reason.MALFORMED)
    if len(content) > MANIFEST_BYTES_MAX:
        raise _too_large(f"a list of files of {len(content)} bytes")
    body = memoryview(content)[len(MAGIC) :]
    try:
        version = _version_decoder.decode(body).version
        if version != VERSION:
            raise BadDataError(f"the folder is of format {version}", hint="update p2pgrid; its bytes can be had with 'get --raw'")
        manifest = _decoder.decode(body)
    except (msgspec.MsgspecError, ValueError) as error:
        raise BadDataError(f"the list of files is damaged: {error}", reason=Reason.MALFORMED) from error
    check_manifest(manifest)
    return manifest


def check_manifest(manifest: Manifest) -> None:
    """Raise BadDataError for whatever could leave the folder, hit the same file twice, or cannot be."""
    if len(manifest.entries) > ENTRIES_MAX:
        raise _too_large(f"a folder of {len(manifest.entries)} entries")
    folders: set[tuple[str, ...]] = {()}
    seen: dict[str, str] = {}
    before: tuple[str, ...] = ()
    for entry in manifest.entries:
        parts = check_relative(entry.path)
        if parts <= before:
            raise _refused(entry, "is there twice, or out of order")
        other = seen.setdefault(folded(entry.path), entry.path)
        if other != entry.path:
            raise _refused(entry, f"is the same name as {other[:80]!r} on some systems")
        if parts[:-1] not in folders:
            raise _refused(entry, "lies in no folder of the list")
        before = parts
        _check_entry(entry, len(parts))
        if entry.kind == FOLDER:
            folders.add(parts)


def _check_entry(entry: FolderEntry, depth: int) -> None:
    if entry.kind == FILE:
        if len(entry.blob) != DIGEST_BYTES or not 0 <= entry.size_bytes <= DEFAULT_LIMITS.blob_bytes:
            raise _refused(entry, "has no content that can be")
    elif entry.blob or entry.size_bytes or entry.executable:
        raise _refused(entry, "has content and is no file")
    if entry.kind == LINK:
        check_target(entry.path, entry.target, depth)
    elif entry.target:
        raise _refused(entry, "has a target and is no link")
    if entry.kind not in (FILE, FOLDER, LINK):
        raise _refused(entry, f"is of the unknown kind {entry.kind[:20]!r}")


def check_target(path: str, target: str, depth: int) -> None:
    """Raise BadDataError unless a link at ``path``, ``depth`` names deep, stays inside (rule 4)."""
    parts = target.split("/")
    upwards = next((number for number, part in enumerate(parts) if part != UPWARDS), len(parts))
    inside = upwards < depth
    if inside and parts[upwards:]:
        check_relative("/".join(parts[upwards:]))
    if not inside or len(target.encode(errors="replace")) > 1024:
        raise BadDataError(f"the link {path[:80]!r} leads out of the folder", reason=Reason.BAD_NAME)


def _order(entry: FolderEntry) -> tuple[str, ...]:
    return tuple(entry.path.split("/"))


def _refused(entry: FolderEntry, what: str) -> BadDataError:
    return BadDataError(f"{entry.path[:80]!r} {what}", reason=Reason.BAD_NAME)


def _too_large(what: str) -> BadDataError:
    return BadDataError(f"{what} is too much for one folder", reason=Reason.TOO_LARGE, hint="store parts of it, or an archive")
