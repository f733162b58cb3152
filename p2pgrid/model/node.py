"""What a node says about itself: where it can be reached and what it shares."""

from __future__ import annotations

from typing import NamedTuple

import msgspec


class Address(NamedTuple):
    """A place to dial. Kinds: ``tls`` (numeric host, port). Unknown kinds are skipped, so kinds can be added."""

    kind: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.kind}://{host}:{self.port}"


class Offer(msgspec.Struct, frozen=True, array_like=True):
    """What a node shares. ``memory_bytes`` and ``storage_bytes`` are what it lends, not what it has."""

    cores: int = 0
    memory_bytes: int = 0
    storage_bytes: int = 0
    platform: str = ""
    """Operating system and machine, as ``linux-x86_64``."""
    python: str = ""
    """Version of the interpreter that native units run on, as ``3.12``."""
    runtimes: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


class NodeInfo(msgspec.Struct, frozen=True, array_like=True):
    """The value of a node's record in the DHT: how to reach it and its offer. At most about 400 bytes."""

    addresses: tuple[Address, ...] = ()
    roles: tuple[str, ...] = ()
    version: str = ""
    name: str = ""
    offer: Offer = msgspec.field(default_factory=Offer)
    lacking: tuple[tuple[str, str], ...] = ()
    """(runtime, reason code) of runtimes that its owner would offer, and that it does not offer now."""


ROLES = ("work", "store", "submit", "native", "invite")
"""What a membership can grant, in the order people see."""
