"""Merging records from others, or from this disk, into a job that is kept here.

1. Nothing is believed: signatures, chains and digests are checked before anything changes.
2. What is known already costs a hash, no signature.
3. A payload is taken once its receipt is here, whether both come together or not; one that no receipt names is refused.
4. What was merged before a record turned out bad is still to be written: the memory is never ahead of the log for long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from blake3 import blake3

from p2pgrid.core.ledger import Ledger
from p2pgrid.errors import IntegrityError, MalformedError, P2PGridError, RefusedError
from p2pgrid.model import log as kinds
from p2pgrid.model.blob import blob_id_of
from p2pgrid.model.ids import GridId, JobId, StatementId
from p2pgrid.model.job import Cancel, Job, KeeperSet, Settled
from p2pgrid.model.reasons import Reason
from p2pgrid.model.statement import Statement
from p2pgrid.model.work import Decision, Grant, Receipt
from p2pgrid.services.joblog import JobFile
from p2pgrid.services.results import Payloads, root_of
from p2pgrid.wire.envelope import Signed, open_envelope, peek, statement_id
from p2pgrid.wire.messages import LogRecord

STATEMENTS: dict[int, type[Statement]] = {
    kinds.KEEPERS: KeeperSet,
    kinds.GRANT: Grant,
    kinds.RECEIPT: Receipt,
    kinds.DECISION: Decision,
    kinds.CANCEL: Cancel,
    kinds.SETTLED: Settled,
}
KEEPER_SETS_MAX = 4096
"""A job whose keepers change more often than this is no longer heard."""


class KeptJob:
    """A job whose log is on this disk: led here, kept for others, or read from somebody who has it."""

    def __init__(self, job: Signed[Job], file: JobFile) -> None:
        self.job = job
        self.id = JobId(StatementId(job.id))
        self.ledger = Ledger(job)
        self.file = file
        self.payload_at: dict[bytes, int] = {}
        self.payloads_due: set[bytes] = set()
        """Digests of payloads whose receipts are here."""
        self.payloads = Payloads()
        self.batch_at: dict[int, int] = {}
        """Where in the log each batch of the manifest is."""
        self.manifest: dict[bytes, list[int]] = {}
        for number, reference in enumerate(job.body.manifest):
            self.manifest.setdefault(reference.blob, []).append(number)
        self.lock = asyncio.Lock()
        self.role = "kept"
        """``led``, ``kept`` for its lead, or ``read``."""
        self.led = False
        """Whether this node leads it now."""
        self.sender = b""
        """Who brought it, as far as that is known since the start."""
        self.used_s = 0.0
        self.heard_s = 0.0
        """When its lead was last known to lead it."""
        self.stopped = ""
        """Why it was broken off here."""
        self.watchers: dict[object, Callable[[], None]] = {}
        """Told whenever something was decided, or the state changed."""
        self._checked: tuple[int, int, int] = (0, 0, -1)
        self._root = b""

    @property
    def state(self) -> str:
        """How far the job is, as far as this log tells.

        ``incomplete`` if it lacks, or contradicts, what was settled; ``stopped`` if this node could not go on with it.
        """
        ledger = self.ledger
        if any(self._bears_out(settled.body) for settled in ledger.final.values()):
            return "failed" if ledger.failed else "done"
        if ledger.cancelled:
            return "cancelled"
        if ledger.final:
            return "incomplete"
        if any(self._bears_out(settled.body) for settled in ledger.provisional.values()):
            return "failed" if ledger.failed else "done"
        return "stopped" if self.stopped else "running"

    @property
    def ended(self) -> bool:
        """Whether nothing is missing that anybody else could have."""
        return self.state not in ("running", "incomplete")

    @property
    def ended_for_good(self) -> bool:
        """Whether the submitter's side has said how it ended: until then, another lead may have decided otherwise."""
        return self.ended and bool(self.ledger.final or self.ledger.cancelled)

    @property
    def whole(self) -> bool:
        """Whether all its batches are here: without them nobody can lead it."""
        return len(self.batch_at) == len(self.job.body.manifest)

    def _bears_out(self, settled: Settled) -> bool:
        """Whether what is decided here is what was settled. A keeper that holds something back is noticed so."""
        ledger = self.ledger
        if (ledger.done, ledger.failed) != (settled.done, settled.failed):
            return False
        counts = ledger.done, ledger.failed, len(ledger.decisions)
        if self._checked != counts:
            self._checked, self._root = counts, root_of(ledger, range(ledger.layout.batches))
        return self._root == settled.root

    def note(self, records: Sequence[LogRecord], cursors: Sequence[int]) -> None:
        """Remember where each payload and batch lies in the log."""
        for record, cursor in zip(records, cursors, strict=True):
            if record.kind == kinds.PAYLOAD:
                self.payload_at[blake3(record.data).digest()] = cursor
            elif record.kind == kinds.BATCH:
                for number in self.manifest.get(blob_id_of(record.data), ()):
                    self.batch_at[number] = cursor

    def tell_watchers(self) -> None:
        """Something was decided, or the state changed."""
        for watcher in list(self.watchers.values()):
            watcher()


def absorb(kept: KeptJob, records: Sequence[LogRecord], grid: GridId, now_ms: int | None) -> tuple[list[LogRecord], P2PGridError | None]:
    """Merge records in order, up to the first that is bad. Returns those that are new, and what was wrong.

    ``now_ms``: Unix milliseconds; None for what is read back from this node's own disk.
    """
    fresh: list[LogRecord] = []
    for record in records:
        try:
            if merge(kept, record, grid, now_ms):
                fresh.append(record)
        except P2PGridError as error:
            return fresh, error
    return fresh, None


def merge(kept: KeptJob, record: LogRecord, grid: GridId, now_ms: int | None) -> bool:
    """Merge one record; whether it was new. Raises MalformedError, IntegrityError or RefusedError and changes nothing."""
    if record.kind == kinds.JOB:
        return False
    if record.kind == kinds.BATCH:
        return _merge_batch(kept, record.data)
    if record.kind == kinds.PAYLOAD:
        return _merge_payload(kept, record.data)
    kind = STATEMENTS.get(record.kind)
    if kind is None:
        raise MalformedError("a record of unknown kind", reason=Reason.MALFORMED)
    envelope = peek(record.data)
    if _known(kept, statement_id(envelope.author, envelope.body)):
        return False
    statement = open_envelope(record.data, kind, grid, now_ms)
    body = statement.body
    if isinstance(body, KeeperSet) and len(kept.ledger.lineage.sets) >= KEEPER_SETS_MAX:
        raise RefusedError("the keepers of the job were named too often", reason=Reason.BUSY)
    new = kept.ledger.add(statement)
    if new and isinstance(body, Receipt) and body.payload not in kept.payload_at:
        kept.payloads_due.add(body.payload)
    return new


def _known(kept: KeptJob, statement: bytes) -> bool:
    ledger = kept.ledger
    return statement in ledger.receipts or statement in ledger.grants or statement in ledger.decisions or statement in ledger.lineage.sets


def _merge_batch(kept: KeptJob, content: bytes) -> bool:
    numbers = kept.manifest.get(blob_id_of(content), ())
    if not numbers or numbers[0] in kept.batch_at:
        return False
    # Its place in the log is noted when it is written; until then this keeps a second copy out.
    for number in numbers:
        kept.batch_at[number] = kept.file.end
    return True


def _merge_payload(kept: KeptJob, content: bytes) -> bool:
    digest = blake3(content).digest()
    if digest in kept.payloads_due:
        kept.payloads_due.discard(digest)
        return True
    if digest not in kept.payload_at and not kept.ledger.cancelled:
        raise IntegrityError("a payload does not match its receipt", reason=Reason.CORRUPT)
    return False
