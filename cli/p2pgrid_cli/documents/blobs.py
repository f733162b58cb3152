"""The documents of ``blobs``, ``put``, ``get``, ``pin`` and ``unpin``, and of ``why`` where it is about a blob."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from p2pgrid.model.ids import to_text
from p2pgrid.wire.owner import BlobLine, FileReply, WhyBlob


class Blob(msgspec.Struct, frozen=True):
    """Each of ``blobs``."""

    blob: str
    """its id"""
    name: str
    """what it was called when it was put here"""
    kind: str | None
    """`file`, `folder`; null: with `--all`, what was not put or pinned here"""
    size_bytes: int
    """of a folder: of all its files"""
    copies: int
    """that are known to be there"""
    copies_wanted: int
    """in all"""
    expires_ms: int
    """until when it is kept"""
    pinned: bool
    """kept here for good"""
    put_ms: int | None
    """when it was put here"""
    state: str
    """here: `held`, `partial`, `damaged`, `gone`"""


class Blobs(msgspec.Struct, frozen=True):
    """What was put or pinned here."""

    blobs: tuple[Blob, ...]
    """the newest first"""


class Put(msgspec.Struct, frozen=True):
    """What was stored."""

    blob: str
    """its id"""
    size_bytes: int
    """of a folder: of all its files"""
    copies: int
    """that there are now"""
    copies_wanted: int
    """in all"""


class Got(msgspec.Struct, frozen=True):
    """What was fetched. Only with ``--output``: without it stdout has the content."""

    blob: str
    """its id"""
    kind: str
    """`file`, `folder`"""
    path: str
    """where it is now"""
    files: int
    """how many there are"""
    size_bytes: int
    """of all of them"""


class Pinned(msgspec.Struct, frozen=True):
    """What is kept here for good, or no longer."""

    blob: str
    """its id"""
    pinned: bool
    """whether it is kept here for good now"""


class Holder(msgspec.Struct, frozen=True):
    """Each of ``holders``."""

    node: str
    """its key"""
    live: bool
    """whether it answers"""
    share: float
    """of the time that it is there, as measured"""
    confirmed_ms: int | None
    """when it last proved to have it"""


class Shortage(msgspec.Struct, frozen=True):
    """Each of ``reasons``."""

    reason: str
    """a [reason code](reasons.md)"""
    text: str
    """the same for people"""


class Lease(msgspec.Struct, frozen=True):
    """Each of ``leases``."""

    owner: str | None
    """whose key; null: it was found on the disk"""
    expires_ms: int
    """until when"""
    copies_wanted: int
    """in the grid"""


class BlobReasons(Blob, frozen=True):
    """Of a blob: the keys of `blobs`, and why there are as many copies as there are."""

    holders: tuple[Holder, ...]
    """nodes with a copy"""
    reasons: tuple[Shortage, ...]
    """why there are fewer copies than wanted"""
    short_since_ms: int | None
    """since when"""
    available: float
    """the chance that a holder is there: 1 minus the product of 1 minus each share"""
    target_unavailable: float
    """what `--replicas auto` aims at"""
    copies_for_target: int
    """how many copies that would be now"""
    stored_bytes: int
    """on all holders together"""
    leases: tuple[Lease, ...]
    """what keeps it here"""


def blob_of(line: BlobLine) -> Blob:
    """A blob as programs read it."""
    return Blob(
        blob=to_text(line.blob),
        name=line.name,
        kind=line.kind or None,
        size_bytes=line.size_bytes,
        copies=line.copies,
        copies_wanted=line.wanted,
        expires_ms=line.expires_ms,
        pinned=line.pinned,
        put_ms=line.put_ms or None,
        state=line.state,
    )


def blobs_of(lines: Iterable[BlobLine]) -> Blobs:
    """The whole document."""
    return Blobs(tuple(blob_of(line) for line in lines))


def put_of(reply: FileReply) -> Put:
    """The document of ``put``."""
    return Put(to_text(reply.blob), reply.size_bytes, reply.copies, reply.wanted)


def blob_reasons_of(why: WhyBlob) -> BlobReasons:
    """What is known of a blob."""
    plain = {name: value for name, value in msgspec.structs.asdict(blob_of(why.line)).items() if name != "copies"}
    return BlobReasons(
        **plain,
        copies=len(why.holders),
        holders=tuple(Holder(to_text(holder.node), holder.live, holder.share, holder.confirmed_ms or None) for holder in why.holders),
        reasons=tuple(Shortage(reason, text) for reason, text in why.reasons),
        short_since_ms=why.short_since_ms or None,
        available=1 - why.away_chance,
        target_unavailable=why.target,
        copies_for_target=why.copies_for_target,
        stored_bytes=why.line.size_bytes * len(why.holders),
        leases=tuple(Lease(to_text(lease.owner) if lease.owner else None, lease.expires_ms, lease.replicas) for lease in why.leases),
    )
