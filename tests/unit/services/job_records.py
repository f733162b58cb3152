"""The log of a small job as its keeper has it, with real signatures: every kind of record, in many appends."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
from blake3 import blake3

from p2pgrid.core.ledger import Ledger
from p2pgrid.model import log as kinds
from p2pgrid.model.blob import blob_id_of
from p2pgrid.model.ids import GridId, JobId, StatementId
from p2pgrid.model.job import BatchRef, Job, KeeperSet, Settled
from p2pgrid.model.work import OK, Decision, DecisionEntry, Grant, Receipt, UnitRange
from p2pgrid.services.inputs import encode_batch
from p2pgrid.services.results import root_of
from p2pgrid.store.ledger import Record
from p2pgrid.wire.codec import encode
from p2pgrid.wire.envelope import seal
from p2pgrid.wire.keys import SigningKey
from p2pgrid.wire.messages import Payload

GRID = GridId(b"g" * 32)
EXPIRES_MS = 1 << 50
UNITS = 3
"""In each batch."""
SUBMITTER, LEAD, WORKER = (SigningKey(letter * 32) for letter in (b"s", b"l", b"w"))


class SmallJob(NamedTuple):
    """``appends``: batches of records, each of which was acknowledged before the next was written."""

    id: JobId
    appends: list[list[Record]]

    @property
    def records(self) -> list[Record]:
        return [record for append in self.appends for record in append]


def small_job(batches: int = 3) -> SmallJob:
    """A job of a few batches from its first record to its settlement; one receipt and one decision a batch."""
    contents = [encode_batch([encode(f"unit {number}.{unit}") for unit in range(UNITS)]) for number in range(batches)]
    manifest = tuple(BatchRef(blob_id_of(content), UNITS, len(content)) for content in contents)
    job = seal(Job(EXPIRES_MS, b"n" * 16, 0, "small", "native", b"def work(item): return item", b"", manifest), SUBMITTER, GRID)
    ledger = Ledger(job)
    keepers = seal(KeeperSet(EXPIRES_MS, job.id, 0, LEAD.public, (b"k" * 32,)), SUBMITTER, GRID)
    assert ledger.add(keepers)
    appends: list[list[Record]] = [[(kinds.JOB, job.raw)], [(kinds.KEEPERS, keepers.raw)]]
    appends.append([(kinds.BATCH, content) for content in contents])
    for number in range(batches):
        appends += _answers(ledger, number)
    settled = seal(Settled(EXPIRES_MS, job.id, batches * UNITS, 0, root_of(ledger, range(batches))), SUBMITTER, GRID)
    assert ledger.add(settled)
    appends.append([(kinds.SETTLED, settled.raw)])
    return SmallJob(JobId(StatementId(job.id)), appends)


def _answers(ledger: Ledger, number: int) -> list[list[Record]]:
    """The lease of one batch, what the worker said, and what was decided."""
    job = ledger.job.id
    ranges = (UnitRange(number, 0, UNITS),)
    grant = seal(Grant(EXPIRES_MS, job, 0, WORKER.public, WORKER.public, ranges, nonce=number), LEAD, GRID)
    values: list[Any] = [encode(f"answer {number}.{unit}") for unit in range(UNITS)]
    payload = encode(Payload(values=[msgspec.Raw(value) for value in values]))
    digests = b"".join(blob_id_of(value) for value in values)
    said = Receipt(EXPIRES_MS, job, grant.id, ranges, bytes([OK]) * UNITS, digests, 1000, blake3(payload).digest())
    receipt = seal(said, WORKER, GRID)
    entry = DecisionEntry(number, 0, UNITS, OK, blake3(digests).digest(), (0,))
    decision = seal(Decision(EXPIRES_MS, job, 0, (receipt.id,), (entry,)), LEAD, GRID)
    assert all(ledger.add(statement) for statement in (grant, receipt, decision))
    return [[(kinds.GRANT, grant.raw)], [(kinds.RECEIPT, receipt.raw), (kinds.PAYLOAD, payload)], [(kinds.DECISION, decision.raw)]]
