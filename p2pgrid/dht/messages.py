"""What DHT nodes say to one another. Every field is bounded by its type (docs/spec/dht.md).

All of it is tagged, array-like msgpack: new fields are appended with a default.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from p2pgrid.dht.contact import CONTACT_BYTES_MAX, PLACE_BYTES_MAX
from p2pgrid.model.limits import DEFAULT_LIMITS

ID_BYTES = 20
CONTACTS_MAX = 20
SAMPLE_MAX = 3

Id: TypeAlias = Annotated[bytes, Meta(min_length=ID_BYTES, max_length=ID_BYTES)]
Key: TypeAlias = Annotated[bytes, Meta(min_length=32, max_length=32)]
Kind: TypeAlias = Annotated[int, Meta(ge=0, le=255)]
Skip: TypeAlias = Annotated[int, Meta(ge=0, le=4096)]
RawPlace: TypeAlias = Annotated[bytes, Meta(max_length=PLACE_BYTES_MAX)]
RawContact: TypeAlias = Annotated[bytes, Meta(max_length=CONTACT_BYTES_MAX)]
RawRecord: TypeAlias = Annotated[bytes, Meta(max_length=DEFAULT_LIMITS.record_bytes)]
Contacts: TypeAlias = Annotated[tuple[RawContact, ...], Meta(max_length=CONTACTS_MAX)]
Records: TypeAlias = Annotated[tuple[RawRecord, ...], Meta(max_length=DEFAULT_LIMITS.records_per_key)]


class Ping(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Are you there, and how do you see me?"""


class FindNode(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The contacts nearest to ``target``, leaving out the first ``skip``."""

    target: Id
    skip: Skip = 0


class FindValue(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The records of a kind under ``key``, or else contacts; ``skip`` counts whichever is returned."""

    key: Id
    kind: Kind
    skip: Skip = 0


class Store(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Keep this signed record until it expires."""

    record: RawRecord


class Sample(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Up to ``count`` random node records."""

    count: Annotated[int, Meta(ge=1, le=SAMPLE_MAX)] = SAMPLE_MAX


class Walk(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Node records with cursor <= id <= end, in the order of their ids."""

    cursor: Id
    end: Id


class Probe(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """Send `Probed` with this token from a port I never contacted. With ``relay``, have somebody at another address do it."""

    token: Id
    relay: bool = False


class ProbeFor(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """Send `Probed` with this token from a fresh port to the node ``key`` at ``place``."""

    key: Key
    place: RawPlace
    token: Id


class Pong(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Here I am, and this is where I see you."""

    place: RawPlace = b""


class Nodes(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Contacts; ``more`` when there was no room for all: ask again with a larger ``skip``."""

    contacts: Contacts = ()
    more: bool = False


class Values(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Signed records; ``more`` when there was no room for all."""

    records: Records = ()
    more: bool = False


class Done(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """The record is kept, or the errand is under way."""


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """No, and why: a reason code."""

    reason: Annotated[str, Meta(max_length=32)] = ""


class Who(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """I do not know you as a member: show your credential and ask again."""


class Probed(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """The answer to a probe. That it arrived is the message."""


Request: TypeAlias = Ping | FindNode | FindValue | Store | Sample | Walk | Probe | ProbeFor
Reply: TypeAlias = Pong | Nodes | Values | Done | Refused | Who | Probed
Message: TypeAlias = Request | Reply
