"""Cheap facts about how a node gets on with others and with its machine, for whoever asks why nothing happens (docs/spec/faces.md#reasons).

1. Dials that failed and hellos that were refused are kept by peer, the newest of each, with reason and time. What this node dialled
   and who dialled it are two tables: strangers can fill the second one, and must not drive out the first.
2. The clock is compared with what others say in their hellos. Only those count whom this node dialled, and so chose, or accepted:
   a stranger's word moves nothing. What was read then is carried on by the monotonic clock, so that a clock which is set while
   sessions live is noticed too.
3. What another node says of a refusal is shown as its words. What to do about it is said by this node alone, from the code.
4. Every table is bounded; the oldest entry goes first. Clocks of strangers wait in a table of their own, until a session opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple, TypeVar

from p2pgrid.core.invites import Contact
from p2pgrid.errors import P2PGridError, UnreachableError
from p2pgrid.model.ids import NodeKey
from p2pgrid.model.reasons import CODES, Reason
from p2pgrid.net.messages import Hello
from p2pgrid.net.pool import Pool
from p2pgrid.net.rpc import Session
from p2pgrid.services.context import Context

V = TypeVar("V")

KNOWN_MAX = 256


class Trouble(NamedTuple):
    """A session that did not come to be, or ended."""

    wall_ms: int
    reason: str
    text: str
    remote: bool = False
    """Whether the other node said so."""
    hint: str = ""
    """What to do, when this node found it out itself: the advice of strangers is not passed on."""


class ContactTried(NamedTuple):
    """A node that this one began with, and what it said; ``error`` None: it answered."""

    contact: Contact
    error: Trouble | None


class ClockReading(NamedTuple):
    """How the clocks of others stand against this one."""

    ahead_ms: float
    """The median of the others against this node's clock: less than nothing when this node is ahead."""
    peers: int


class Health:
    """Listens to the pool. Nothing in it waits or asks anybody."""

    def __init__(self, context: Context, pool: Pool, folder: Path) -> None:
        """``folder``: the home, whose disk is looked at."""
        self._context = context
        self.folder = folder
        self.dials: dict[NodeKey, Trouble] = {}
        """What became of the newest dial of this node to each peer, while it failed."""
        self.refused: dict[NodeKey, Trouble] = {}
        """Why the newest connection of each peer to this node came to nothing."""
        self.ended: dict[NodeKey, Trouble] = {}
        """When and why the newest session with each peer ended."""
        self.contacts: tuple[ContactTried, ...] = ()
        """Those that the node began with at its start."""
        self.dialled_in = 0
        """Sessions that other nodes began."""
        self._clocks: dict[NodeKey, float] = {}
        """Each other's clock less this node's monotonic one, in milliseconds: of those that count."""
        self._strange: dict[NodeKey, float] = {}
        """The same of those that dialled this node and were not accepted, or not yet."""
        pool.on_trouble(self._on_trouble)
        pool.on_hello(self._on_hello)
        pool.on_open(self._on_open)
        pool.on_close(self._on_close)

    def trouble_of(self, error: P2PGridError) -> Trouble:
        """An error, now."""
        text = f"it says: {error.message}" if error.remote else error.message
        return Trouble(self._context.wall_ms(), str(error.reason), text, error.remote, "" if error.remote else error.hint)

    def note_contacts(self, tried: Sequence[tuple[Contact, P2PGridError | None]]) -> None:
        """What became of the first contacts."""
        self.contacts = tuple(ContactTried(contact, self.trouble_of(error) if error else None) for contact, error in tried[:KNOWN_MAX])

    def clock(self) -> ClockReading | None:
        """How the clocks of others stand against this one; None while nobody's is known."""
        context = self._context
        ours_ms = context.wall_ms() - context.clock() * 1000
        theirs = [base_ms - ours_ms for base_ms in self._clocks.values()]
        return ClockReading(median(theirs), len(theirs)) if theirs else None

    def clock_of(self, peer: NodeKey) -> float | None:
        """How far the clock of a peer is ahead of this one, in milliseconds; None when it is not known."""
        base_ms, context = self._clocks.get(peer, self._strange.get(peer)), self._context
        return None if base_ms is None else base_ms - (context.wall_ms() - context.clock() * 1000)

    def disk_free_bytes(self) -> int | None:
        """What is free on the disk of the home; None where nobody can say. Blocks for an instant."""
        return self._context.disk.free_bytes_at(self.folder)

    # -- listening -----------------------------------------------------------------------

    def _on_trouble(self, peer: NodeKey, error: P2PGridError, dialled: bool) -> None:
        _note(self.dials if dialled else self.refused, peer, self.trouble_of(error))

    def _on_hello(self, peer: NodeKey, hello: Hello, dialled: bool) -> None:
        base_ms = hello.wall_ms - self._context.clock() * 1000
        if not dialled and peer not in self._clocks:
            _note(self._strange, peer, base_ms)
            return
        self._strange.pop(peer, None)
        _note(self._clocks, peer, base_ms)

    def _on_open(self, session: Session) -> None:
        peer = session.peer
        if peer == self._context.me:
            return
        for table in (self.dials, self.refused, self.ended):
            table.pop(peer, None)
        self.dialled_in += not session.connection.dialled
        base_ms = self._strange.pop(peer, None)
        if base_ms is not None:
            _note(self._clocks, peer, base_ms)

    def _on_close(self, session: Session, reason: str) -> None:
        if session.peer != self._context.me:
            _note(self.ended, session.peer, Trouble(self._context.wall_ms(), reason, "the connection ended"))


def _note(table: dict[NodeKey, V], peer: NodeKey, value: V) -> None:
    """Remember the newest; among too many, the oldest is forgotten."""
    table.pop(peer, None)
    while len(table) >= KNOWN_MAX:
        del table[next(iter(table))]
    table[peer] = value


def nobody_answers(tried: Sequence[ContactTried]) -> UnreachableError:
    """What a newcomer is told whom nobody answered: whom it asked, what came of it, and how to test that."""
    said = [f"{_place(one.contact)} ({one.error.text})" for one in tried if one.error is not None]
    more = f" and {len(said) - 3} more" if len(said) > 3 else ""
    hint = dial_step(tried[0].error, tried[0].contact) if tried and tried[0].error else Reason.NO_CONTACT.next_step
    return UnreachableError(f"no node of the grid answers: {', '.join(said[:3])}{more}", reason=Reason.NO_CONTACT, hint=hint)


def dial_step(trouble: Trouble, contact: Contact | None = None) -> str:
    """What to do about a dial that failed: what its code says. Silence and a closed port look different from outside."""
    if trouble.remote or trouble.reason != Reason.TIMEOUT:
        code = CODES.get(trouble.reason)
        return trouble.hint or (code.next_step if code else "")
    test = f": nc -vz {contact.host} {contact.port} from this machine tells" if contact else ""
    if "refused" in trouble.text.lower():
        return f"nothing listens there: see that the node runs, and at that port{test}"
    if "did not answer" in trouble.text:
        return f"it is off, or a firewall on the way drops what goes to its port{test}"
    return f"see that there is a way to that network{test}"


def _place(contact: Contact) -> str:
    host = f"[{contact.host}]" if ":" in contact.host else contact.host
    return f"{host}:{contact.port}"
