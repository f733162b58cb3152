"""Who is a member. The rules, in the order they are applied (docs/spec/membership.md):

1. A chain has one or two invitations and ends in one membership.
2. The first invitation is signed by the grid's root; a second one by the first invite key, which then
   must hold the role ``invite``, and grants no role that the first does not have.
3. The membership is signed by the last invite key and names the node key that the connection proved.
4. No link may have expired. The member's expiry is the earliest of the chain.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2pgrid.errors import IntegrityError
from p2pgrid.model.ids import NodeKey
from p2pgrid.model.membership import Grid, Invitation, Member, Membership
from p2pgrid.model.node import ROLES
from p2pgrid.model.reasons import Reason
from p2pgrid.wire.envelope import open_envelope, seal
from p2pgrid.wire.keys import SigningKey, check_public

CHAIN_LINKS_MAX = 3


def verify_chain(chain: Sequence[bytes], node: NodeKey, grid: Grid, now_ms: int | None) -> Member:
    """What the chain says about ``node``. ``now_ms`` None: whether or not it is over.

    Raises IntegrityError with a reason when a rule is broken, MalformedError for noise.
    """
    if not 2 <= len(chain) <= CHAIN_LINKS_MAX:
        raise IntegrityError("a membership needs two or three links", reason=Reason.NOT_MEMBER)
    signer = grid.root
    roles = frozenset(ROLES)
    expires_ms = 1 << 62
    lineage = b""
    for position, raw in enumerate(chain[:-1]):
        link = open_envelope(raw, Invitation, grid.id, now_ms)
        if link.author != signer:
            raise IntegrityError("an invitation is not signed by its parent", reason=Reason.NOT_MEMBER)
        if position and "invite" not in roles:
            raise IntegrityError("the inviter may not invite", reason=Reason.NOT_MEMBER)
        granted = frozenset(link.body.roles)
        if not granted <= roles:
            raise IntegrityError("an invitation grants more than its parent has", reason=Reason.NOT_MEMBER)
        roles, signer = granted, check_public(link.body.invite_key)
        lineage = lineage or link.body.invite_key
        expires_ms = min(expires_ms, link.body.expires_ms)
    leaf = open_envelope(chain[-1], Membership, grid.id, now_ms)
    if leaf.author != signer or leaf.body.node != node:
        raise IntegrityError("the membership is not of this node", reason=Reason.NOT_MEMBER)
    return Member(node, roles, lineage, min(expires_ms, leaf.body.expires_ms))


def invite(parent: SigningKey, invite_key: bytes, roles: Sequence[str], grid: Grid, expires_ms: int) -> bytes:
    """A signed invitation: ``parent`` is the root or an invite key with the role ``invite``."""
    return seal(Invitation(expires_ms, invite_key, tuple(roles)), parent, grid.id).raw


def admit(invite_key: SigningKey, node: bytes, grid: Grid, expires_ms: int) -> bytes:
    """A signed membership of ``node``, made by whoever holds the invite's secret."""
    return seal(Membership(expires_ms, node), invite_key, grid.id).raw
