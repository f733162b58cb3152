"""What the lead of a job hears and what it wants done: the events and effects of p2pgrid.core.lead.

Events come in one at a time; effects are carried out in the order given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from p2pgrid.model.ids import NodeKey
from p2pgrid.model.work import DecisionEntry, Grant, Receipt
from p2pgrid.wire.envelope import Signed

# -- events ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pulled:
    """A worker with ``slots`` free cores asks for ``want`` units."""

    worker: NodeKey
    group: bytes
    slots: int
    want: int


@dataclass(frozen=True, slots=True)
class Delivered:
    """A receipt arrived, its signature verified and its payload's digest checked."""

    receipt: Signed[Receipt]


@dataclass(frozen=True, slots=True)
class WorkerGone:
    """The connection to a worker ended."""

    worker: NodeKey


@dataclass(frozen=True, slots=True)
class Returned:
    """A worker hands these leases back unanswered: no attempt, and nobody is to wait for it."""

    worker: NodeKey
    grants: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class WorkersKnown:
    """The workers that could be invited now."""

    workers: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class DerivedReady:
    """The content of a derived batch was assembled and stored under ``blob``."""

    batch: int
    blob: bytes


@dataclass(frozen=True, slots=True)
class Merged:
    """Statements came from somebody else's log; its receipts are those from ordinal ``first`` on."""

    first: int


@dataclass(frozen=True, slots=True)
class Began:
    """This lead goes on where another stopped; ``there``: nodes that may still work on what was leased."""

    there: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed: deadlines are looked at."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """The job was cancelled: nothing is leased any more."""


Event = Pulled | Delivered | WorkerGone | Returned | WorkersKnown | DerivedReady | Merged | Began | Tick | Stopped


# -- effects -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Granted:
    """Answer a pull. ``grant`` is None when there is nothing for this worker now."""

    worker: NodeKey
    grant: Signed[Grant] | None
    over: bool


@dataclass(frozen=True, slots=True)
class Record:
    """Append statements to the ledger's log, and let the keepers have them."""

    statements: tuple[Signed[Any], ...]


@dataclass(frozen=True, slots=True)
class Decided:
    """Units were decided; ``entries`` are those of the decision just recorded."""

    entries: tuple[DecisionEntry, ...]


@dataclass(frozen=True, slots=True)
class Invite:
    """There is work: tell these workers."""

    workers: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class AssembleDerived:
    """All inputs of these derived batches are decided: make their contents."""

    batches: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Over:
    """Nothing is left to decide."""

    done: int
    failed: int


@dataclass(frozen=True, slots=True)
class Late:
    """Leases are given up for lost: (worker, units that it owes) of each such worker."""

    workers: tuple[tuple[bytes, int], ...]


Effect = Granted | Record | Decided | Invite | AssembleDerived | Over | Late
