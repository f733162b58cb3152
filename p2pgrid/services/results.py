"""From a job's ledger back to values: which bytes were decided for which unit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
from blake3 import blake3

from p2pgrid.core.ledger import Ledger
from p2pgrid.errors import IntegrityError
from p2pgrid.model.blob import CHUNK_BYTES, blob_id_of
from p2pgrid.model.ids import DIGEST_BYTES
from p2pgrid.model.reasons import Reason
from p2pgrid.model.work import DIED, DISAGREED, NO_INPUT, RAISED, TIMED_OUT, TOO_LARGE, Receipt
from p2pgrid.wire.codec import decode, encode
from p2pgrid.wire.envelope import Signed
from p2pgrid.wire.messages import Payload

NIL = encode(None)
NIL_DIGEST = blob_id_of(NIL)
PAYLOAD_CACHE_BYTES = 64 << 20
OUTCOME_REASONS = {
    RAISED: Reason.RAISED,
    TIMED_OUT: Reason.TIMED_OUT,
    DIED: Reason.DIED,
    TOO_LARGE: Reason.TOO_LARGE,
    NO_INPUT: Reason.NO_INPUT,
    DISAGREED: Reason.DISAGREED,
}
NO_MODULE = ("ModuleNotFoundError",)
NO_MEMORY = ("MemoryError", "MemoryLimit")
"""Ends of the types that runtimes and libraries give to what wanted too much."""
COMMAND_FAILED = "CommandFailed"
COMMAND_SIGNS = ("MemoryError", "Cannot allocate memory", "std::bad_alloc", "out of memory")
"""What programs write when they are given no memory."""
OF_MEMORY = "of memory in"
"""In what the watchdog says of a command that used too much."""


class Failure(msgspec.Struct, frozen=True):
    """The value of a unit that raised, timed out or died; a map on the wire, as the worker process makes it."""

    type: str = ""
    message: str = ""
    traceback: str = ""


def failure_of(outcome: int, raw: bytes) -> Failure:
    """What is told of a unit without a value; empty where its workers never agreed, or told nothing. Raises MalformedError."""
    told = outcome != DISAGREED and b"\x80" <= raw[:1] < b"\x90"
    return decode(raw, Failure) if told else Failure()


def reason_of(outcome: int, failure: Failure) -> Reason:
    """The reason code of a unit without a value: its outcome's, or a narrower one where what it said tells more."""
    kind = failure.type.rpartition(".")[2]
    if kind in NO_MODULE and outcome == RAISED:
        return Reason.MISSING_MODULE
    if kind.endswith(NO_MEMORY) or (outcome == DIED and OF_MEMORY in failure.message):
        return Reason.OVER_MEMORY
    if kind == COMMAND_FAILED and any(sign in failure.message for sign in COMMAND_SIGNS):
        return Reason.OVER_MEMORY
    return OUTCOME_REASONS.get(outcome, Reason.DIED)


class UnitValue(NamedTuple):
    """What one unit came to. ``raw`` is the encoded value; empty when it lies in the blob ``digest``."""

    outcome: int
    digest: bytes
    raw: bytes
    holders: tuple[bytes, ...]


def value_digest(raw: bytes) -> bytes:
    """The blob id of an encoded value: nearly always one chunk, whose id is its plain hash. Called once a unit."""
    return blake3(raw).digest() if len(raw) <= CHUNK_BYTES else blob_id_of(raw)


def digest_of(outcome: int, raw: bytes) -> bytes:
    """What replicas must agree on: the encoded value; of a failure only type and message, not the traceback's paths."""
    if outcome == RAISED:
        failure = decode(raw, Failure)
        return blob_id_of(encode((failure.type, failure.message)))
    return blob_id_of(raw)


def check_payload(receipt: Receipt, encoded: bytes) -> Payload:
    """Decode the payload of a receipt and check every value in it. Raises IntegrityError or MalformedError."""
    if blake3(encoded).digest() != receipt.payload:
        raise IntegrityError("a payload does not match its receipt", reason=Reason.CORRUPT)
    payload = decode(encoded, Payload)
    if len(payload.values) != len(receipt.outcomes):
        raise IntegrityError("a payload lacks values", reason=Reason.CORRUPT)
    digests, offset = receipt.digests, 0
    for outcome, value in zip(receipt.outcomes, payload.values, strict=True):
        digest = digests[offset : offset + DIGEST_BYTES]
        offset += DIGEST_BYTES
        raw = bytes(value)
        if value_digest(raw) != digest and raw != NIL and digest_of(outcome, raw) != digest:
            raise IntegrityError("a result does not match its digest", reason=Reason.CORRUPT)
    return payload


class Payloads:
    """Payloads by their digest, the latest in memory, bounded in bytes."""

    def __init__(self, bytes_max: int = PAYLOAD_CACHE_BYTES) -> None:
        self._known: OrderedDict[bytes, Payload] = OrderedDict()
        self._sizes: dict[bytes, int] = {}
        self._bytes = 0
        self._bytes_max = bytes_max

    def put(self, receipt: bytes, payload: Payload, size_bytes: int) -> None:
        self._known[receipt] = payload
        self._sizes[receipt] = size_bytes
        self._bytes += size_bytes
        while self._bytes > self._bytes_max and len(self._known) > 1:
            oldest, _ = self._known.popitem(last=False)
            self._bytes -= self._sizes.pop(oldest)

    def get(self, receipt: bytes) -> Payload | None:
        return self._known.get(receipt)


class Span(NamedTuple):
    """Consecutive units of a batch whose values lie in one receipt, from ``position`` on; ``receipt`` None: still open."""

    batch: int
    start: int
    units: int
    receipt: Signed[Receipt] | None
    position: int


def spans(ledger: Ledger, batch: int, start: int, units: int) -> Iterator[Span]:
    """The decided units of a range as runs by receipt, without an object per unit."""
    column = ledger.column(batch)
    unit, stop = start, start + units
    while unit < stop:
        ordinal, first = column.receipt[unit], unit
        known = ledger.receipt_list[ordinal] if column.state[unit] else None
        position, end = _stretch(known.body, batch, unit) if known else (0, stop)
        end = min(end, stop)
        if column.receipt[first:end].count(ordinal) == end - first:
            unit = end
        else:
            while unit < end and column.receipt[unit] == ordinal:
                unit += 1
        yield Span(batch, first, unit - first, known, position)


def _stretch(receipt: Receipt, batch: int, unit: int) -> tuple[int, int]:
    """Where a unit stands in a receipt's columns, and up to which unit the columns go on in step. Raises KeyError."""
    base, end, position = 0, -1, -1
    for known, start, count, _ in receipt.ranges:
        if position >= 0:
            if known != batch or start != end:
                break
            end = start + count
        elif known == batch and start <= unit < start + count:
            position, end = base + unit - start, start + count
        base += count
    if position < 0:
        raise KeyError((batch, unit))
    return position, end


def values_of(span: Span, payload: Payload) -> list[UnitValue]:
    """The values of a decided span."""
    assert span.receipt is not None
    body = span.receipt.body
    found = []
    for position in range(span.position, span.position + span.units):
        digest = body.digests[position * DIGEST_BYTES : (position + 1) * DIGEST_BYTES]
        raw = bytes(payload.values[position])
        in_blob = raw == NIL and digest != NIL_DIGEST
        found.append(UnitValue(body.outcomes[position], digest, b"" if in_blob else raw, (span.receipt.author, *body.holders)))
    return found


def root_of(ledger: Ledger, batches: Sequence[int]) -> bytes:
    """BLAKE3 over the decided digests of some batches, in unit order."""
    hasher = blake3()
    for batch in batches:
        for span in spans(ledger, batch, 0, ledger.layout.batch_units[batch]):
            if span.receipt is not None:
                digests = span.receipt.body.digests
                hasher.update(digests[span.position * DIGEST_BYTES : (span.position + span.units) * DIGEST_BYTES])
    return hasher.digest()
