"""A home's place in a grid: founding, joining, inviting, and the judgement of others' chains."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from p2pgrid.core.invites import Contact, Invite, ends_ms, expired, invite_text
from p2pgrid.core.membership import CHAIN_LINKS_MAX, admit, invite, verify_chain
from p2pgrid.errors import ConfigError, IntegrityError, MalformedError, P2PGridError, RefusedError
from p2pgrid.model.ids import NodeKey
from p2pgrid.model.membership import Grid, Member
from p2pgrid.model.node import ROLES
from p2pgrid.model.reasons import Reason
from p2pgrid.net.api import WallClock
from p2pgrid.net.messages import Hello
from p2pgrid.net.messages import Member as NetMember
from p2pgrid.store.home import Home
from p2pgrid.wire.codec import decode, encode
from p2pgrid.wire.keys import SigningKey

FILE = "membership"
YEAR_MS = 365 * 24 * 3600 * 1000
FOUNDER_YEARS = 20
RENEW_MS = 14 * 24 * 3600 * 1000
"""Before its end a membership may be replaced by one that lasts longer."""
KNOWN_MAX = 4096


class HomeMembership(msgspec.Struct, frozen=True, array_like=True):
    """The private file of a member. ``root_seed`` is only at the founder, ``invite_seed`` where others may be invited."""

    grid: Grid
    chain: tuple[bytes, ...]
    contacts: tuple[Contact, ...] = ()
    root_seed: bytes = b""
    invite_seed: bytes = b""


def load(home: Home) -> HomeMembership | None:
    """The membership of a home, None before it has joined anything. Raises ConfigError when the file is damaged."""
    raw = home.read_private(FILE)
    if raw is None:
        return None
    try:
        return decode(raw, HomeMembership)
    except MalformedError as error:
        raise ConfigError(f"the membership in '{home.folder}' is damaged", hint="join again with a new --home") from error


def found_grid(home: Home, name: str, random_bytes: Callable[[int], bytes], now_ms: int) -> HomeMembership:
    """Found a private grid whose root key lies in this home."""
    root, first = SigningKey(random_bytes(32)), SigningKey(random_bytes(32))
    grid = Grid(name, root.public)
    until_ms = now_ms + FOUNDER_YEARS * YEAR_MS
    link = invite(root, first.public, ROLES, grid, until_ms)
    leaf = admit(first, home.node_key().public, grid, until_ms)
    membership = HomeMembership(grid, (link, leaf), (), root.seed(), first.seed())
    home.write_private(FILE, encode(membership))
    return membership


def accept_invite(home: Home, invited: Invite, now_ms: int) -> HomeMembership:
    """Enter a grid: sign this node's key with the invite's secret. Raises IntegrityError when the chain does not hold."""
    key = SigningKey(invited.secret)
    node = home.node_key().public
    leaf = admit(key, node, invited.grid, now_ms + FOUNDER_YEARS * YEAR_MS)
    chain = (*invited.chain, leaf)
    member = verify_chain(chain, NodeKey(node), invited.grid, now_ms)
    seed = invited.secret if "invite" in member.roles else b""
    membership = HomeMembership(invited.grid, chain, invited.contacts, b"", seed)
    home.write_private(FILE, encode(membership))
    return membership


def member_of(home: Home, membership: HomeMembership) -> Member:
    """What a home's membership says, over or not. Raises IntegrityError when it does not hold."""
    return verify_chain(membership.chain, NodeKey(home.node_key().public), membership.grid, None)


def renews(home: Home, membership: HomeMembership, invited: Invite, now_ms: int) -> bool:
    """Whether an invite of the same grid is to take the place of a membership that is over, or soon will be."""
    if membership.root_seed or membership.grid.id != invited.grid.id:
        return False
    until_ms = member_of(home, membership).expires_ms
    return until_ms - now_ms < RENEW_MS and ends_ms(invited) > until_ms


def renew(home: Home, membership: HomeMembership, invited: Invite, now_ms: int) -> HomeMembership:
    """Take an invite in the place of a membership. Raises RefusedError when that still holds and grants what the invite does not."""
    before = member_of(home, membership)
    renewed = accept_invite(home, invited, now_ms)
    lost = sorted(before.roles - member_of(home, renewed).roles)
    if lost and before.expires_ms > now_ms:
        restore(home, membership)
        hint = "ask for an invite with these roles, or use this one when the membership has ended"
        raise RefusedError(f"the invite does not grant what this node may do now: {', '.join(lost)}", reason=Reason.NO_ROLE, hint=hint)
    return renewed


def restore(home: Home, membership: HomeMembership) -> None:
    """Have the home's membership be as it was."""
    home.write_private(FILE, encode(membership))


def make_invite(
    membership: HomeMembership,
    roles: Sequence[str],
    expires_ms: int,
    contacts: Sequence[Contact],
    random_bytes: Callable[[int], bytes],
) -> str:
    """A new invite: from the root if it is here, else below this node's own invite key.

    Raises RefusedError when this node may not invite, or not with these roles.
    """
    secret = SigningKey(random_bytes(32))
    if membership.root_seed:
        link = invite(SigningKey(membership.root_seed), secret.public, roles, membership.grid, expires_ms)
        return invite_text(Invite(membership.grid, tuple(contacts), secret.seed(), (link,)))
    parents = membership.chain[:-1]
    if not membership.invite_seed or len(parents) + 2 > CHAIN_LINKS_MAX:
        hint = "ask the founder of the grid for an invite"
        raise RefusedError("this node may not invite others", reason=Reason.NO_ROLE, hint=hint)
    link = invite(SigningKey(membership.invite_seed), secret.public, roles, membership.grid, expires_ms)
    return invite_text(Invite(membership.grid, tuple(contacts), secret.seed(), (*parents, link)))


class Judge:
    """Verifies chains once per (node, chain), for sessions and for the DHT alike."""

    def __init__(self, grid: Grid, wall_ms: WallClock) -> None:
        self._grid = grid
        self._wall_ms = wall_ms
        self._known: dict[tuple[bytes, tuple[bytes, ...]], Member] = {}

    def judge(self, node: NodeKey, chain: Sequence[bytes]) -> Member:
        """Who this is. Raises IntegrityError with a reason."""
        key = (node, tuple(chain))
        known = self._known.get(key)
        if known is not None and known.expires_ms > self._wall_ms():
            return known
        member = verify_chain(chain, node, self._grid, self._wall_ms())
        return self._remember(key, member)

    def judge_own(self, node: NodeKey, chain: Sequence[bytes]) -> Member:
        """As :meth:`judge`, of this node itself: its owner is told what to do when the membership is over."""
        try:
            return self.judge(node, chain)
        except IntegrityError as error:
            if error.reason != Reason.EXPIRED:
                raise
            until_ms = verify_chain(chain, node, self._grid, None).expires_ms
            raise expired(f"the membership of '{self._grid.name}'", until_ms, self._wall_ms()) from error

    def _remember(self, key: tuple[bytes, tuple[bytes, ...]], member: Member) -> Member:
        while len(self._known) >= KNOWN_MAX:
            self._known.pop(next(iter(self._known)))
        self._known[key] = member
        return member

    def for_session(self, node: NodeKey, hello: Hello) -> NetMember:
        """The pool's authoriser."""
        member = self.judge(node, hello.credentials)
        return NetMember(member.roles, member.lineage)

    def for_datagram(self, node: NodeKey, credential: bytes) -> bool:
        """The DHT's authoriser."""
        try:
            self.judge(node, decode(credential, tuple[bytes, ...]))
        except P2PGridError:
            return False
        return True
