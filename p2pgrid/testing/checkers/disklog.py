"""Reading a job's log from a node's disk, by docs/spec/disk.md and without the store's own code.

The reader finds its way behind damage in the same way as a node must: only true records count, wherever the damage is.
"""

from __future__ import annotations

import struct
from pathlib import Path

from blake3 import blake3

_HEADER = struct.Struct("<8sH16s32s")
_HEADER_BYTES = 2 * (_HEADER.size + 8)
_FRAME = struct.Struct("<4sIB8s")
_PLACE = struct.Struct("<QBI")


def read_log(path: Path, job: bytes) -> list[tuple[int, bytes]]:
    """The records (kind, data) of a log in order; empty where there is no log of this job."""
    try:
        raw = path.read_bytes()
    except OSError:
        return []
    salt = _salt(raw, job)
    return [] if salt is None else list(_records(raw, salt, job))


def _salt(raw: bytes, job: bytes) -> bytes | None:
    for start in (0, _HEADER.size + 8):
        body = raw[start : start + _HEADER.size]
        if len(body) == _HEADER.size and blake3(body).digest(8) == raw[start + _HEADER.size : start + _HEADER.size + 8]:
            _, _, salt, owner = _HEADER.unpack(body)
            return bytes(salt) if owner == job else None
    return None


def _records(raw: bytes, salt: bytes, job: bytes) -> list[tuple[int, bytes]]:
    material = blake3(salt + job, derive_key_context="p2pgrid/1/ledger").digest(36)
    key, sync = material[:32], material[32:]
    found: list[tuple[int, bytes]] = []
    at = _HEADER_BYTES
    while at + _FRAME.size <= len(raw):
        mark, size_bytes, kind, check = _FRAME.unpack_from(raw, at)
        end = at + _FRAME.size + size_bytes
        data = raw[at + _FRAME.size : end]
        if mark == sync and end <= len(raw) and blake3(_PLACE.pack(at, kind, size_bytes), key=key).update(data).digest(8) == check:
            found.append((kind, data))
            at = end
        else:
            behind = raw.find(sync, at + 1)
            at = behind if behind >= 0 else len(raw)
    return found
