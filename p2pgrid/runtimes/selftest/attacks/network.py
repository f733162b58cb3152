"""Attacks over sockets: to listeners of the host, and the kinds of socket that reach past them."""

from __future__ import annotations

import errno
import socket
from typing import Any

from p2pgrid.runtimes.selftest.attacks.base import HIDDEN, USUAL, Absent, Canary, attack

_UNREACHED = (*USUAL, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ECONNREFUSED, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_ABSENT = (*USUAL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)
_WAIT_S = 0.5


def _connect(family: int, kind: int, address: Any) -> str:
    with socket.socket(family, kind) as conversation:
        conversation.settimeout(_WAIT_S)
        conversation.connect(address)
        conversation.sendall(b"attack")
    return f"the listener at {address!r} was reached"


@attack(*_UNREACHED)
def connect_tcp(canary: Canary) -> str:
    return _connect(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", canary["tcp_port"]))


@attack(*_UNREACHED)
def send_udp(canary: Canary) -> str:
    return _connect(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", canary["udp_port"]))


@attack(*_UNREACHED)
def connect_ipv6(canary: Canary) -> str:
    if not canary["ipv6_port"]:
        raise Absent("the host has no IPv6")
    return _connect(socket.AF_INET6, socket.SOCK_STREAM, ("::1", canary["ipv6_port"]))


@attack(*_UNREACHED)
def connect_abstract_socket(canary: Canary) -> str:
    return _connect(socket.AF_UNIX, socket.SOCK_STREAM, "\0" + canary["abstract_socket"])


@attack(*HIDDEN, errno.ECONNREFUSED)
def connect_path_socket(canary: Canary) -> str:
    return _connect(socket.AF_UNIX, socket.SOCK_STREAM, canary["path_socket"])


@attack(*HIDDEN, errno.ECONNREFUSED)
def send_datagram_socket(canary: Canary) -> str:
    return _connect(socket.AF_UNIX, socket.SOCK_DGRAM, canary["datagram_socket"])


@attack(*HIDDEN, errno.ECONNREFUSED)
def send_from_socket_pair(canary: Canary) -> str:
    """A pair may be allowed where sockets are not; a datagram half of it can still name an address."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        ours.sendto(b"attack", canary["datagram_socket"])
    return "a datagram left through a socket pair"


@attack(*_ABSENT)
def open_netlink_socket(canary: Canary) -> str:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0):
        return "a netlink socket was opened"


@attack(*_ABSENT, control="root")
def open_raw_socket(canary: Canary) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP):
        return "a raw socket was opened"


@attack(*_ABSENT, control="root")
def open_packet_socket(canary: Canary) -> str:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0):
        return "a packet socket was opened"
