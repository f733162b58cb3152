"""Where a peer is, and who: places (numeric addresses), their scope, and contacts.

1. A place is a numeric address and a port from 1 to 65535. A name never becomes a place, so nothing
   here or below ever asks a resolver.
2. The id of a contact is the hash of its key. It is derived, never read from the wire.
3. IPv4 addresses mapped into IPv6 are turned back, so that one host has one place.
4. Loopback peers may be told of anything, private ones of private and public places, public ones of
   public places only: a stranger can neither learn nor name the machines of a local network.
"""

from __future__ import annotations

import ipaddress
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

from p2pgrid.dht.base import Node
from p2pgrid.errors import MalformedError
from p2pgrid.model.ids import KEY_BYTES, NodeKey, dht_id_of_key
from p2pgrid.model.reasons import Reason

_IPV4_BYTES = 4
_IPV6_BYTES = 16
_PORT_BYTES = 2
CONTACT_BYTES_MAX = KEY_BYTES + _IPV6_BYTES + _PORT_BYTES
PLACE_BYTES_MAX = _IPV6_BYTES + _PORT_BYTES


class Scope(IntEnum):
    """From how far away an address can be reached."""

    LOOPBACK = 0
    PRIVATE = 1
    PUBLIC = 2


class Place(NamedTuple):
    """A numeric host and a port."""

    host: str
    port: int


class _Host(NamedTuple):
    text: str
    packed: bytes
    scope: Scope
    prefix: bytes


def _malformed(what: str) -> MalformedError:
    return MalformedError(what, reason=Reason.MALFORMED)


@lru_cache(maxsize=8192)
def _host(raw: str | bytes) -> _Host | None:
    """Facts about a numeric address in text or packed form; None for what must never be dialled."""
    try:
        address = ipaddress.ip_address(raw)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        elif address.scope_id is not None:
            return None
    if address.is_unspecified or address.is_multicast or address.is_link_local:
        return None
    if isinstance(address, ipaddress.IPv4Address) and (address.is_reserved or address.packed[0] == 0):
        return None
    scope = Scope.LOOPBACK if address.is_loopback else Scope.PUBLIC if address.is_global else Scope.PRIVATE
    prefix = address.packed[: 3 if address.version == 4 else 6]
    return _Host(str(address), address.packed, scope, prefix)


def place_of(host: object, port: object) -> Place:
    """A checked place. Raises MalformedError for names, ports out of range and addresses nobody can have."""
    known = _host(host) if isinstance(host, str) else None
    if known is None or not isinstance(port, int) or not 0 < port <= 0xFFFF:
        raise _malformed("not a numeric address with a port")
    return Place(known.text, port)


@lru_cache(maxsize=8192)
def scope_of(place: Place) -> Scope:
    """How far away this place can be reached from."""
    known = _host(place.host)
    return Scope.LOOPBACK if known is None else known.scope


def prefix_of(place: Place) -> bytes | None:
    """The /24 or /48 of a public place; None for any other."""
    known = _host(place.host)
    return known.prefix if known is not None and known.scope is Scope.PUBLIC else None


@lru_cache(maxsize=8192)
def source_of(place: Place) -> object:
    """What is rate-limited as one source: the prefix of a public place, else host and port.

    On a local network, and on one machine with many nodes, addresses are shared by honest peers.
    """
    return prefix_of(place) or place


@lru_cache(maxsize=8192)
def pack_place(place: Place) -> bytes:
    """6 or 18 bytes: address and port."""
    known = _host(place.host)
    if known is None:
        raise _malformed("not a numeric address")
    return known.packed + place.port.to_bytes(_PORT_BYTES, "big")


def unpack_place(raw: bytes) -> Place:
    """The inverse of :func:`pack_place`. Raises MalformedError."""
    if len(raw) not in (_IPV4_BYTES + _PORT_BYTES, _IPV6_BYTES + _PORT_BYTES):
        raise _malformed("a place has 6 or 18 bytes")
    known = _host(raw[:-_PORT_BYTES])
    port = int.from_bytes(raw[-_PORT_BYTES:], "big")
    if known is None or port == 0:
        raise _malformed("not a place that can be dialled")
    return Place(known.text, port)


class GridNode(Node):
    """A contact. To the inherited code ``ip`` is the key and ``port`` the place.

    The package passes (ip, port) around as "the address" of a peer; here this is (key, place), which
    is exactly what a datagram must be addressed to.
    """

    def __init__(self, key: NodeKey, place: Place) -> None:
        super().__init__(dht_id_of_key(key), key, place)
        self.scope = scope_of(place)
        self.strikes = 0

    @property
    def key(self) -> NodeKey:
        return NodeKey(self.ip)

    @property
    def place(self) -> Place:
        place: Place = self.port
        return place


@lru_cache(maxsize=8192)
def contact_at(key: NodeKey, place: Place) -> GridNode:
    """The contact of a key and a place. It is shared and must not be changed."""
    return GridNode(key, place)


@lru_cache(maxsize=8192)
def pack_contact(key: bytes, place: Place) -> bytes:
    """38 or 50 bytes: key, address, port."""
    return key + pack_place(place)


@lru_cache(maxsize=8192)
def unpack_contact(raw: bytes) -> GridNode:
    """The inverse of :func:`pack_contact`. Raises MalformedError.

    The contact is shared and must not be changed: the same ones come in nearly every answer.
    """
    if len(raw) < KEY_BYTES:
        raise _malformed("a contact is too short")
    return contact_at(NodeKey(raw[:KEY_BYTES]), unpack_place(raw[KEY_BYTES:]))
