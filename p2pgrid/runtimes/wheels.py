"""Whether a wheel may be unpacked here: a stranger's archive, read to its last byte before any installer sees it.

1. Size and SHA-256 are those that were declared.
2. The archive is read in the strictest way: the directory at its very end, every entry where the last one ended, both headers
   of an entry in agreement, no comment, no encryption, nothing before, between or behind. Two programs that read such a file
   cannot read two different things.
3. Every entry is unpacked into nothing, so that sizes and checksums are what they claim; entries, bytes and the ratio of
   unpacked to packed bytes are bounded.
4. Names stay inside the folder on every system: no absolute ones, no ``..``, no backslash, no second entry of one name, none
   below a file. Only files and folders: no links.
"""

from __future__ import annotations

import hashlib
import stat
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from p2pgrid.errors import IntegrityError, UnreachableError
from p2pgrid.model.environment import Wheel, normalised
from p2pgrid.model.limits import GIB, MIB
from p2pgrid.model.reasons import Reason

_END = struct.Struct("<4s4H2LH")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _DESCRIBED_LATER, _UTF8 = 0x1, 0x8, 0x800
_LATER_SIZES = (12, 16, 20, 24)
"""Lengths of the descriptor behind an entry: with or without its mark, with sizes of four or of eight bytes."""
_EXTRA_BYTES_MAX = 1024
_SECOND_OPINIONS = (0x0001, 0x6375, 0x7075)
"""Extra fields with sizes of eight bytes, a comment, and a name in Unicode."""
_PIECE = 1 << 18
_SMALL_BYTES = 16 * MIB
"""Below this no ratio counts: a table of zeros is no bomb."""


class WheelBounds(msgspec.Struct, frozen=True, kw_only=True):
    """What one environment may be unpacked to."""

    entries: int = 100_000
    unpacked_bytes: int = 2 * GIB
    ratio: int = 100
    """Unpacked bytes for each packed one."""
    name_bytes: int = 512
    directory_bytes: int = 64 * MIB


class Contents(NamedTuple):
    """What a wheel unpacks to."""

    entries: int
    size_bytes: int


class _Entry(NamedTuple):
    name: str
    flags: int
    method: int
    checksum: int
    packed_bytes: int
    size_bytes: int
    offset: int


def check_wheel(path: Path, wheel: Wheel, bounds: WheelBounds) -> Contents:
    """Read a wheel as strictly as said above. Blocks, for about a second per 100 MB.

    Raises IntegrityError (``bad-package``) with the name of the file and what is wrong, UnreachableError when it cannot be read.
    """
    try:
        with path.open("rb") as file:
            _check_digest(file, wheel)
            entries = _directory(file, wheel.size_bytes, bounds)
            _check_names(entries, wheel)
            _check_sizes(entries, wheel.size_bytes, bounds)
            _check_entries(file, entries, wheel.size_bytes)
    except (ValueError, struct.error, zlib.error) as error:
        raise IntegrityError(f"the wheel {wheel.file_name} is refused: {error}", reason=Reason.BAD_PACKAGE) from error
    except OSError as error:
        raise UnreachableError(f"the wheel {wheel.file_name} cannot be read: {error.strerror}", reason=Reason.NO_BLOB) from error
    return Contents(len(entries), sum(entry.size_bytes for entry in entries))


def _check_digest(file: BinaryIO, wheel: Wheel) -> None:
    digest, size_bytes = hashlib.sha256(), 0
    while piece := file.read(MIB):
        digest.update(piece)
        size_bytes += len(piece)
        if size_bytes > wheel.size_bytes:
            break
    if size_bytes != wheel.size_bytes:
        raise ValueError("it has another size than was declared")
    if digest.digest() != wheel.sha256:
        raise ValueError("its SHA-256 is not the one of the lock")


def _directory(file: BinaryIO, size_bytes: int, bounds: WheelBounds) -> list[_Entry]:
    """The entries as the directory at the end lists them."""
    if size_bytes < _END.size:
        raise ValueError("it is no archive")
    file.seek(size_bytes - _END.size)
    mark, disk, first_disk, here, count, length, start, comment = _END.unpack(file.read(_END.size))
    if mark != b"PK\5\6" or comment or disk or first_disk or here != count or start + length != size_bytes - _END.size:
        raise ValueError("it is no plain archive that ends with its directory")
    if count > bounds.entries or length > bounds.directory_bytes:
        raise ValueError(f"it has more than {bounds.entries} entries")
    file.seek(start)
    raw = file.read(length)
    entries: list[_Entry] = []
    place = 0
    for _ in range(count):
        fields = _CENTRAL.unpack_from(raw, place)
        name_length, extra_length, comment_length = fields[10:13]
        if fields[0] != b"PK\1\2" or name_length > bounds.name_bytes:
            raise ValueError("its directory is malformed")
        begin = place + _CENTRAL.size
        entries.append(_entry(fields, raw[begin : begin + name_length]))
        _check_extra(raw[begin + name_length : begin + name_length + extra_length])
        place = begin + name_length + extra_length + comment_length
    if place != length:
        raise ValueError("its directory is malformed")
    return entries


def _entry(fields: tuple[int, ...], raw_name: bytes) -> _Entry:
    flags, method, checksum, packed_bytes, size_bytes = fields[3], fields[4], *fields[7:10]
    attributes, offset = fields[15], fields[16]
    name = raw_name.decode("utf-8" if flags & _UTF8 else "ascii")
    if flags & ~(_DESCRIBED_LATER | _UTF8 | 0x6) or method not in (_STORED, _DEFLATED):
        raise ValueError("an entry is encrypted or packed in an unusual way")
    if 0xFFFFFFFF in (packed_bytes, size_bytes, offset):
        raise ValueError("an entry is too large")
    kind = stat.S_IFMT(attributes >> 16)
    if kind not in ((0, stat.S_IFDIR) if name.endswith("/") else (0, stat.S_IFREG)):
        raise ValueError("an entry is a link or a device")
    if name.endswith("/") and size_bytes:
        raise ValueError("a folder has content")
    return _Entry(name, flags, method, checksum, packed_bytes, size_bytes, offset)


def _check_names(entries: list[_Entry], wheel: Wheel) -> None:
    seen: set[str] = set()
    for entry in entries:
        name = entry.name.removesuffix("/")
        parts = name.split("/")
        odd = any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts)
        if odd or len(parts) > 64 or any(ord(letter) < 32 or letter in "\\:\x7f" for letter in name):
            raise ValueError(f"the name {entry.name[:80]!r} leads out of the folder or is not portable")
        if name in seen:
            raise ValueError("two entries have one name")
        seen.add(name)
    files = {entry.name for entry in entries if not entry.name.endswith("/")}
    for name in sorted(seen):
        above, _, _ = name.rpartition("/")
        while above:
            if above in files:
                raise ValueError("an entry lies below a file")
            above, _, _ = above.rpartition("/")
    about = dict.fromkeys(top for top in (entry.name.partition("/")[0] for entry in entries) if top.endswith(".dist-info"))
    if len(about) != 1:
        raise ValueError("it has no .dist-info folder, or several")
    (folder,) = about
    if normalised(folder.partition("-")[0]) != wheel.name or not {f"{folder}/METADATA", f"{folder}/WHEEL"} <= files:
        raise ValueError("its .dist-info folder is that of another distribution, or lacks its parts")


def _check_sizes(entries: list[_Entry], packed_bytes: int, bounds: WheelBounds) -> None:
    size_bytes = sum(entry.size_bytes for entry in entries)
    if size_bytes > bounds.unpacked_bytes:
        raise ValueError(f"it unpacks to more than {bounds.unpacked_bytes} bytes")
    if size_bytes > max(_SMALL_BYTES, bounds.ratio * packed_bytes):
        raise ValueError(f"it unpacks to more than {bounds.ratio} times its size")


def _check_entries(file: BinaryIO, entries: list[_Entry], size_bytes: int) -> None:
    """Every entry begins where the one before ended, its own header agrees, and its content is what it claims."""
    file.seek(size_bytes - _END.size)
    directory_at = _END.unpack(file.read(_END.size))[6]
    ordered = sorted(entries, key=lambda entry: entry.offset)
    ends = [entry.offset for entry in ordered[1:]] + [directory_at]
    if not ordered or ordered[0].offset:
        raise ValueError("it is empty, or something stands before its first entry")
    for entry, end in zip(ordered, ends, strict=True):
        data_at = _check_header(file, entry)
        behind = end - data_at - entry.packed_bytes
        if behind < 0 or behind not in (_LATER_SIZES if entry.flags & _DESCRIBED_LATER else (0,)):
            raise ValueError("its entries overlap, or hide something between them")
        _check_content(file, entry)
        if behind:
            _check_description(file.read(behind), entry)


def _check_header(file: BinaryIO, entry: _Entry) -> int:
    """Compare an entry's own header with the directory; returns where its content begins, and leaves the file there."""
    file.seek(entry.offset)
    mark, _, flags, method, _, _, checksum, packed_bytes, size_bytes, name_length, extra_length = _LOCAL.unpack(file.read(_LOCAL.size))
    if mark != b"PK\3\4" or flags != entry.flags or method != entry.method:
        raise ValueError("an entry contradicts the directory")
    name = file.read(name_length)
    if name.decode("utf-8" if flags & _UTF8 else "ascii") != entry.name:
        raise ValueError("an entry contradicts the directory")
    told = (checksum, packed_bytes, size_bytes)
    if told != (entry.checksum, entry.packed_bytes, entry.size_bytes) and not (flags & _DESCRIBED_LATER and set(told) <= {0, 0xFFFFFFFF}):
        raise ValueError("an entry contradicts the directory")
    _check_extra(file.read(extra_length))
    return entry.offset + _LOCAL.size + int(name_length) + int(extra_length)


def _check_extra(raw: bytes) -> None:
    """Refuse what would give an entry a second name, or sizes that are not in their usual place."""
    if len(raw) > _EXTRA_BYTES_MAX:
        raise ValueError("an entry has more said of it than any wheel needs")
    place = 0
    while place < len(raw):
        kind, length = struct.unpack_from("<2H", raw, place)
        place += 4 + length
        if kind in _SECOND_OPINIONS or place > len(raw):
            raise ValueError("an entry has a second name or size")


def _check_description(raw: bytes, entry: _Entry) -> None:
    """What stands behind an entry whose sizes were not known when its header was written."""
    if len(raw) in (16, 24):
        if raw[:4] != b"PK\7\x08":
            raise ValueError("an entry contradicts the directory")
        raw = raw[4:]
    if struct.unpack("<3L" if len(raw) == 12 else "<L2Q", raw) != (entry.checksum, entry.packed_bytes, entry.size_bytes):
        raise ValueError("an entry contradicts the directory")


def _check_content(file: BinaryIO, entry: _Entry) -> None:
    """Unpack an entry into nothing."""
    if entry.method == _STORED and entry.packed_bytes != entry.size_bytes:
        raise ValueError("an entry has another size than it claims")
    inflate = zlib.decompressobj(-zlib.MAX_WBITS) if entry.method == _DEFLATED else None
    checksum = made = 0
    left = entry.packed_bytes
    while left:
        piece = file.read(min(_PIECE, left))
        if not piece:
            raise ValueError("it is cut short")
        left -= len(piece)
        while piece:
            out = inflate.decompress(piece, _PIECE) if inflate else piece
            checksum = zlib.crc32(out, checksum)
            made += len(out)
            if made > entry.size_bytes:
                raise ValueError("an entry unpacks to more than it claims")
            piece = inflate.unconsumed_tail if inflate else b""
    if inflate is not None and (not inflate.eof or inflate.unused_data):
        raise ValueError("an entry has something behind its content, or no end")
    if made != entry.size_bytes or checksum != entry.checksum:
        raise ValueError("an entry's content does not match its checksum or size")
