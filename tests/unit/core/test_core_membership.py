"""Who is a member: every rule of the chain, broken once."""

from __future__ import annotations

import pytest

from p2pgrid.core.membership import admit, invite, verify_chain
from p2pgrid.errors import IntegrityError, RemoteError
from p2pgrid.model.ids import NodeKey
from p2pgrid.model.membership import Grid
from p2pgrid.model.node import ROLES
from p2pgrid.model.reasons import Reason
from p2pgrid.wire.keys import SigningKey

NOW_MS = 1_700_000_000_000
LATER_MS = NOW_MS + 86_400_000
PAST_MS = NOW_MS - 86_400_000
ROOT, FIRST, SECOND, THIRD, OTHER = (SigningKey(bytes([number]) * 32) for number in range(1, 6))
NODE = NodeKey(SigningKey(b"n" * 32).public)
GRID = Grid("club", ROOT.public)
ALL = tuple(ROLES)


def first(
    roles: tuple[str, ...] = ALL, expires_ms: int = LATER_MS, by: SigningKey = ROOT, grid: Grid = GRID, key: bytes = FIRST.public
) -> bytes:
    return invite(by, key, roles, grid, expires_ms)


def second(roles: tuple[str, ...] = ("work",), expires_ms: int = LATER_MS, by: SigningKey = FIRST) -> bytes:
    return invite(by, SECOND.public, roles, GRID, expires_ms)


def leaf(by: SigningKey = FIRST, node: bytes = NODE, expires_ms: int = LATER_MS, grid: Grid = GRID) -> bytes:
    return admit(by, node, grid, expires_ms)


def test_a_chain_of_two_gives_the_roles_of_the_invitation() -> None:
    member = verify_chain([first(("work", "store")), leaf()], NODE, GRID, NOW_MS)
    assert (member.node, member.roles, member.lineage) == (NODE, frozenset({"work", "store"}), FIRST.public)


def test_a_chain_of_three_narrows_roles_keeps_the_lineage_and_expires_first() -> None:
    member = verify_chain([first(), second(expires_ms=LATER_MS - 5), leaf(SECOND)], NODE, GRID, NOW_MS)
    assert (member.roles, member.lineage, member.expires_ms) == (frozenset({"work"}), FIRST.public, LATER_MS - 5)


SMALL_ORDER = bytes(32)
BROKEN = {
    "nothing": [],
    "a leaf alone": [leaf()],
    "four links": [first(), second(ALL), invite(SECOND, THIRD.public, ("work",), GRID, LATER_MS), leaf(THIRD)],
    "another root": [first(by=OTHER), leaf()],
    "an expired invitation": [first(expires_ms=PAST_MS), leaf()],
    "an expired second invitation": [first(), second(expires_ms=PAST_MS), leaf(SECOND)],
    "an expired membership": [first(), leaf(expires_ms=PAST_MS)],
    "a role the parent has not": [first(("work", "invite")), second(("work", "native")), leaf(SECOND)],
    "a role that does not exist": [first((*ALL, "king")), leaf()],
    "an inviter that may not invite": [first(("work",)), second(("work",)), leaf(SECOND)],
    "a second invitation by the root": [first(), second(by=ROOT), leaf(SECOND)],
    "a second invitation by a stranger": [first(), second(by=OTHER), leaf(SECOND)],
    "another node": [first(), leaf(node=OTHER.public)],
    "a membership by the root": [first(), leaf(ROOT)],
    "a membership by the first of two invite keys": [first(), second(), leaf(FIRST)],
    "another grid's invitation": [first(grid=Grid("another", ROOT.public)), leaf()],
    "another grid's membership": [first(), leaf(grid=Grid("another", ROOT.public))],
    "links in the wrong order": [leaf(), first()],
    "an invitation in place of the membership": [first(), second()],
    "a small-order invite key": [first(key=SMALL_ORDER), leaf()],
    "an invite key of the wrong length": [first(key=b"short"), leaf()],
    "noise": [b"\x00\xff", b"noise"],
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_chain_is_refused(name: str) -> None:
    with pytest.raises(RemoteError):
        verify_chain(BROKEN[name], NODE, GRID, NOW_MS)


def test_an_expired_link_within_the_allowed_skew_still_holds() -> None:
    assert verify_chain([first(expires_ms=NOW_MS - 1000), leaf()], NODE, GRID, NOW_MS).node == NODE


def test_refusals_carry_a_reason() -> None:
    with pytest.raises(IntegrityError) as caught:
        verify_chain(BROKEN["an expired invitation"], NODE, GRID, NOW_MS)
    assert caught.value.reason == Reason.EXPIRED
