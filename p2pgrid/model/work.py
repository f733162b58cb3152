"""Leases, receipts and decisions: the grow-only state of a job (docs/spec/ledger.md)."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from p2pgrid.model.statement import Statement

OK = 0
"""The unit returned a value."""
RAISED = 1
"""The unit raised: that is an answer, and replicas must agree on it."""
TIMED_OUT = 2
DIED = 3
TOO_LARGE = 4
NO_INPUT = 5
DISAGREED = 6
"""In decisions only: everybody there answered, and no answer has enough who agree."""
FUEL_BYTES = 8
"""How the fuel of a unit is written, little-endian."""
ANSWERS = (OK, RAISED)
"""Outcomes that count towards a quorum. The others are missed attempts."""


class UnitRange(NamedTuple):
    """``units`` units of one batch from ``start``, in the given attempt."""

    batch: int
    start: int
    units: int
    attempt: int = 0


class Grant(Statement, frozen=True, array_like=True):
    """By a lead: these units are leased to this worker until ``expires_ms``. Only this makes its receipt count."""

    TYPE: ClassVar[str] = "grant"

    job: bytes
    epoch: int
    worker: bytes
    group: bytes
    """Where the worker stands for distinctness: its key in a private grid."""
    ranges: tuple[UnitRange, ...]
    derived: tuple[tuple[int, bytes], ...] = ()
    """(batch, blob id) of derived batches, whose content is not in the signed job."""
    nonce: int = 0
    """Makes two grants of the same ranges two statements."""


class ResultFile(NamedTuple):
    """A file among the results: ``unit`` counts from the first unit of the receipt."""

    unit: int
    blob: bytes
    size_bytes: int


class Receipt(Statement, frozen=True, array_like=True):
    """By a worker: what came of the units of these ranges, in columns.

    ``outcomes`` has one byte a unit, ``digests`` 32 bytes a unit (the blob id of the encoded result).
    """

    TYPE: ClassVar[str] = "receipt"

    job: bytes
    grant: bytes
    ranges: tuple[UnitRange, ...]
    outcomes: bytes
    digests: bytes
    cpu_us: int
    payload: bytes
    """BLAKE3 of the encoded Payload that travels beside this statement."""
    holders: tuple[bytes, ...] = ()
    """Nodes that hold the results and files that are blobs."""
    files: tuple[ResultFile, ...] = ()
    fuel: bytes = b""
    """What each unit burnt, 8 bytes little-endian a unit, 0 for a unit whose runtime does not count; empty when none does."""


class DecisionEntry(NamedTuple):
    """Units decided alike: ``cited`` agree with one another, ``dissent`` do not; both index ``Decision.receipts``."""

    batch: int
    start: int
    units: int
    outcome: int
    root: bytes
    """BLAKE3 over the decided digests of the range, in order."""
    cited: tuple[int, ...]
    dissent: tuple[int, ...] = ()


class Decision(Statement, frozen=True, array_like=True):
    """By a lead: these units are decided, because of these receipts."""

    TYPE: ClassVar[str] = "decision"

    job: bytes
    epoch: int
    receipts: tuple[bytes, ...]
    entries: tuple[DecisionEntry, ...]
