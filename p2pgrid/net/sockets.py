"""Numeric addresses and listening sockets: the few places where the operating system's view matters."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket

from p2pgrid.errors import ConfigError
from p2pgrid.model.reasons import Reason

_BACKLOG = 64
_ASK = {socket.AF_INET: ("192.0.2.1", 9), socket.AF_INET6: ("2001:db8::1", 9)}


def is_numeric(host: str) -> bool:
    """Whether this is an IPv4 or IPv6 address, not a name."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _bind(family: int, host: str, port: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            # A restart on the same port must not wait for the old connections' last minute.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.setblocking(False)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def listeners(host: str, port: int) -> list[socket.socket]:
    """Listening sockets on a numeric host; ``::`` listens on IPv4 as well. Raises ConfigError."""
    version = ipaddress.ip_address(host.partition("%")[0]).version
    try:
        first = _bind(socket.AF_INET6 if version == 6 else socket.AF_INET, host, port)
    except (OSError, OverflowError) as error:
        busy = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        hint = (
            "another program uses that port; choose another with --listen HOST:PORT" if busy else "choose another with --listen HOST:PORT"
        )
        reason = Reason.PORT_TAKEN if busy else ""
        raise ConfigError(f"cannot listen on {host} port {port}: {error}", reason=reason, hint=hint) from error
    sockets = [first]
    if host == "::":
        with contextlib.suppress(OSError):
            sockets.append(_bind(socket.AF_INET, "0.0.0.0", first.getsockname()[1]))  # noqa: S104
    return sockets


def _own_address(family: int) -> str | None:
    """The address this machine would use to talk to the world. Connecting a datagram socket sends nothing."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(_ASK[socket.AddressFamily(family)])
            return str(probe.getsockname()[0])
    except OSError:
        return None


def addresses_of(host: str) -> list[str]:
    """The numeric hosts at which a listener on ``host`` can be dialled, as far as this machine can tell."""
    if not ipaddress.ip_address(host.partition("%")[0]).is_unspecified:
        return [host]
    families = [socket.AF_INET] if "." in host else [socket.AF_INET, socket.AF_INET6]
    found = [address for family in families if (address := _own_address(family))]
    return found or ["127.0.0.1"]
