"""Invites as text: what one person hands to another so that a machine may join (docs/spec/membership.md#invites).

``p2pgrid-`` and base32 of: version, msgpack of :class:`Invite`, four bytes of BLAKE2b over both. Whoever has the
text may join until it expires, so it is to be handed over like a password.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from p2pgrid.core.membership import CHAIN_LINKS_MAX
from p2pgrid.errors import BadDataError, IntegrityError, MalformedError
from p2pgrid.model.membership import Grid, Invitation
from p2pgrid.model.reasons import Reason
from p2pgrid.wire.codec import decode, encode
from p2pgrid.wire.envelope import open_envelope

PREFIX = "p2pgrid-"
VERSION = b"\x01"
CHECK_BYTES = 4
TEXT_CHARS_MAX = 8192
_HINT = "copy the whole line that 'p2pgrid invite' printed"


class Contact(NamedTuple):
    """A node to begin with: its key and a numeric address."""

    key: bytes
    host: str
    port: int


class Invite(msgspec.Struct, frozen=True, array_like=True):
    """``secret`` is the seed of the invite key; ``chain`` the signed statements that give it its roles."""

    grid: Grid
    contacts: tuple[Contact, ...]
    secret: bytes
    chain: tuple[bytes, ...]


def invite_text(invite: Invite) -> str:
    """The line to hand over."""
    body = VERSION + encode(invite)
    check = hashlib.blake2b(body, digest_size=CHECK_BYTES, person=b"p2pgrid/invite").digest()
    return PREFIX + base64.b32encode(body + check).decode().rstrip("=").lower()


def parse_invite(text: str, now_ms: int) -> Invite:
    """Read an invite. Raises BadDataError for garbage, IntegrityError (expired) when its time is over."""
    compact = "".join(text.split())
    if not compact.startswith(PREFIX) or len(compact) > TEXT_CHARS_MAX:
        raise BadDataError("this is not an invite", reason=Reason.BAD_INVITE, hint=_HINT)
    encoded = compact.removeprefix(PREFIX).upper()
    try:
        raw = base64.b32decode(encoded + "=" * (-len(encoded) % 8))
    except (binascii.Error, ValueError) as error:
        raise BadDataError("the invite is damaged", reason=Reason.BAD_INVITE, hint=_HINT) from error
    body, check = raw[:-CHECK_BYTES], raw[-CHECK_BYTES:]
    if hashlib.blake2b(body, digest_size=CHECK_BYTES, person=b"p2pgrid/invite").digest() != check:
        raise BadDataError("the invite is damaged or cut off", reason=Reason.BAD_INVITE, hint=_HINT)
    if body[:1] != VERSION:
        raise BadDataError("the invite was made by a newer p2pgrid", reason=Reason.VERSION, hint="update p2pgrid on this machine")
    try:
        invite = decode(body[1:], Invite)
    except MalformedError as error:
        raise BadDataError("the invite is damaged", reason=Reason.BAD_INVITE, hint=_HINT) from error
    if len(invite.secret) != 32 or not 1 <= len(invite.chain) < CHAIN_LINKS_MAX or len(invite.grid.root) != 32:
        raise BadDataError("the invite is damaged", reason=Reason.BAD_INVITE, hint=_HINT)
    for link in invite.chain:
        try:
            open_envelope(link, Invitation, invite.grid.id, now_ms)
        except IntegrityError as error:
            if error.reason != Reason.EXPIRED:
                raise
            raise expired(f"the invite to '{invite.grid.name}'", ends_ms(invite), now_ms) from error
    return invite


def ends_ms(invite: Invite) -> int:
    """When an invite ends, over or not, in Unix milliseconds. Raises IntegrityError when a signature does not hold."""
    return min(open_envelope(link, Invitation, invite.grid.id, None).body.expires_ms for link in invite.chain)


def expired(what: str, until_ms: int, now_ms: int) -> IntegrityError:
    """The error for something that is over. It says what the clock here is taken to be, for a wrong clock looks the same."""
    until, now = (_moment(moment_ms) for moment_ms in (until_ms, now_ms))
    return IntegrityError(
        f"{what} ended at {until}, and it is {now} by the clock of this machine",
        reason=Reason.EXPIRED,
        hint="ask for a new one, which p2pgrid invite prints, and use it: p2pgrid join INVITE; if the clock is wrong, set it",
    )


def _moment(moment_ms: int) -> str:
    try:
        return datetime.fromtimestamp(moment_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, ValueError, OSError):
        return "no time that a calendar has"
