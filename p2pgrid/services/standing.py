"""How a node stands with the others, in words: what a membership is good for here, and how others get to this node."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Sequence

from p2pgrid.model.node import Address

OWN, NATIVE, SUBMIT, WORK, STORE, GUEST = "own", "native", "submit", "work", "store", "guest"
PLACES_SHOWN = 2


def trust_word(roles: Collection[str] | None, *, native: bool) -> str:
    """The most that a membership with these roles allows at this node; ``roles`` None: it is this node.

    ``native``: whether the owner lets units of others run native code here. In falling order: ``native``, its jobs may do
    that; ``submit``, its jobs run here, within WebAssembly; ``work``, it computes for the grid; ``store``, it keeps blobs; ``guest``.
    """
    if roles is None:
        return OWN
    if SUBMIT in roles:
        return NATIVE if NATIVE in roles and native else SUBMIT
    return WORK if WORK in roles else STORE if STORE in roles else GUEST


def reach_words(addresses: Sequence[Address], *, dialled_by: int, live: int, proven: bool, seen_as: str) -> str:
    """How others reach this node.

    ``dialled_by``: of ``live`` connected peers those that opened a connection to this node; ``proven``: datagrams from places it
    never spoke to arrive; ``seen_as``: the public place, if any, that it speaks from.
    """
    places = [_place(address) for address in addresses if address.kind == "tls"] or [str(address) for address in addresses]
    if not places:
        return "it does not listen: outgoing connections only"
    where = " and ".join(places[:PLACES_SHOWN])
    if seen_as and seen_as not in places:
        where += f", seen from outside as {seen_as}"
    if all(_is_loopback(address.host) for address in addresses):
        where += " (this machine only)"
    if dialled_by:
        return f"dialled by {dialled_by} of {live} {'peer' if live == 1 else 'peers'} at {where}"
    if not live:
        return f"nobody is connected; listening at {where}"
    if proven:
        return f"datagrams arrive at {where}, no connection did yet"
    return f"nobody could dial this node yet at {where}: outgoing connections only"


def _place(address: Address) -> str:
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{host}:{address.port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False
