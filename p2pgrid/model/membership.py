"""Who belongs to a grid: the statements of the chain root -> invite key -> node key (docs/spec/membership.md)."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from p2pgrid.model.ids import GridId, grid_id
from p2pgrid.model.statement import Statement


class Grid(msgspec.Struct, frozen=True, array_like=True):
    """A grid is a name and a root key (32 bytes)."""

    name: str
    root: bytes

    @property
    def id(self) -> GridId:
        """What every signature in this grid is bound to."""
        return grid_id(self.root, self.name)


class Invitation(Statement, frozen=True, array_like=True):
    """By the root, or by an invite key that holds the role ``invite``: this invite key may admit nodes with these roles."""

    TYPE: ClassVar[str] = "invitation"

    invite_key: bytes
    roles: tuple[str, ...]


class Membership(Statement, frozen=True, array_like=True):
    """By an invite key: this node key is a member. Made by the joiner itself, so that the secret never crosses the wire."""

    TYPE: ClassVar[str] = "membership"

    node: bytes


class Charter(Statement, frozen=True, array_like=True):
    """By the root: what all members of the grid have in common. The newest counts."""

    TYPE: ClassVar[str] = "charter"

    created_ms: int
    runner: bytes
    """The blob id of the Python runner that ``python`` units run in."""


class Member(msgspec.Struct, frozen=True):
    """What a verified chain says about a node."""

    node: bytes
    roles: frozenset[str]
    lineage: bytes
    """The first invite key of the chain: quotas, distinctness and revocation count it."""
    expires_ms: int
    owner: bool = False
    """The peer holds this very node's key: it is the owner's command line."""
