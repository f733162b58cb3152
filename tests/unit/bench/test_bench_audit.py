"""The audit must fail when something is off: each test plants one omission in a sound log."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import pytest
from blake3 import blake3

from bench.audit import NotOnError, audit_line, rebuild
from p2pgrid.client.jobs import JobBuilder, JobOptions
from p2pgrid.core.ledger import Ledger
from p2pgrid.errors import IntegrityError, RefusedError
from p2pgrid.model import log as kinds
from p2pgrid.model.ids import GridId, JobId
from p2pgrid.model.job import KeeperSet
from p2pgrid.model.script import parse_script
from p2pgrid.model.work import Grant, Receipt, UnitRange
from p2pgrid.services.results import value_digest
from p2pgrid.wire.codec import encode
from p2pgrid.wire.envelope import seal
from p2pgrid.wire.keys import SigningKey
from p2pgrid.wire.messages import LogRecord, Payload
from p2pgrid.wire.owner import JobLine

GRID = GridId(b"g" * 32)
NOW_MS = 1_800_000_000_000
SUBMITTER, LEAD, WORKER = (SigningKey(bytes([number]) * 32) for number in (1, 2, 3))
Log = list[LogRecord]


def sound_log() -> tuple[JobId, Log]:
    """Job, keepers, batch, grant and receipt of one unit."""
    rng = random.Random(1)
    script = parse_script("def work(item):\n    return item\n", "noop.py")
    plan = JobBuilder(JobOptions(), lambda: NOW_MS, rng.randbytes).script(script, [7])
    job = seal(plan.job, SUBMITTER, GRID)
    expires_ms = plan.job.expires_ms
    keepers = seal(KeeperSet(expires_ms, job.id, 0, LEAD.public, (WORKER.public,)), SUBMITTER, GRID)
    ranges = (UnitRange(0, 0, 1),)
    grant = seal(Grant(expires_ms, job.id, 0, WORKER.public, WORKER.public, ranges), LEAD, GRID)
    payload = encode(Payload([7]))  # type: ignore[list-item]
    receipt = seal(Receipt(expires_ms, job.id, grant.id, ranges, b"\0", value_digest(encode(7)), 1, blake3(payload).digest()), WORKER, GRID)
    return JobId(job.id), [
        LogRecord(kinds.JOB, job.raw),
        LogRecord(kinds.KEEPERS, keepers.raw),
        LogRecord(kinds.BATCH, plan.batches[0]),
        LogRecord(kinds.GRANT, grant.raw),
        LogRecord(kinds.RECEIPT, receipt.raw),
        LogRecord(kinds.PAYLOAD, payload),
    ]


def test_a_sound_log_becomes_a_ledger():
    job, records = sound_log()
    ledger, payload_bytes = rebuild(GRID, SUBMITTER.public, records, job)
    assert isinstance(ledger, Ledger)
    assert len(ledger.receipts) == 1
    assert payload_bytes == len(records[5].data)


def without(position: int) -> Callable[[Log], Log]:
    return lambda log: [record for number, record in enumerate(log) if number != position]


def broken(position: int) -> Callable[[Log], Log]:
    def change(log: Log) -> Log:
        data = bytearray(log[position].data)
        data[-1] ^= 1
        return [*log[:position], LogRecord(log[position].kind, bytes(data)), *log[position + 1 :]]

    return change


@pytest.mark.parametrize(
    ("plant", "error"),
    [
        pytest.param(without(0), NotOnError, id="no-signed-job"),
        pytest.param(without(2), NotOnError, id="a-batch-is-missing"),
        pytest.param(without(3), RefusedError, id="a-receipt-without-grant"),
        pytest.param(without(5), NotOnError, id="results-are-missing"),
        pytest.param(broken(0), IntegrityError, id="the-job's-signature"),
        pytest.param(broken(3), IntegrityError, id="the-grant's-signature"),
        pytest.param(broken(4), IntegrityError, id="the-receipt's-signature"),
        pytest.param(broken(5), IntegrityError, id="a-result-that-is-not-the-receipt's"),
    ],
)
def test_an_omission_or_a_changed_byte_is_found(plant: Callable[[Log], Log], error: type[Exception]):
    job, records = sound_log()
    with pytest.raises(error):
        rebuild(GRID, SUBMITTER.public, plant(records), job)


def test_a_job_of_another_submitter_is_found():
    job, records = sound_log()
    with pytest.raises(NotOnError, match="signed by its submitter"):
        rebuild(GRID, LEAD.public, records, job)


@pytest.mark.parametrize("change", [{"state": "running"}, {"done": 4}, {"failed": 1}, {"keepers": (b"a", b"b")}])
def test_a_line_that_is_not_done_at_three_keepers_is_refused(change: dict[str, Any]):
    sound: dict[str, Any] = {"state": "done", "done": 5, "failed": 0, "keepers": (b"a", b"b", b"c")}

    def line(**fields: Any) -> JobLine:
        return JobLine(job=os.urandom(32), name="", units=5, disputed=0, created_ms=0, expires_ms=0, role="led", **fields)

    audit_line(line(**sound), "", 5)
    with pytest.raises(NotOnError):
        audit_line(line(**{**sound, **change}), "", 5)


def test_a_note_about_missing_confirmations_is_refused():
    fields: dict[str, Any] = {"state": "done", "done": 1, "failed": 0, "keepers": (b"a", b"b", b"c")}
    line = JobLine(job=b"", name="", units=1, disputed=0, created_ms=0, expires_ms=0, role="led", **fields)
    with pytest.raises(NotOnError, match="not every keeper"):
        audit_line(line, "not every keeper has confirmed", 1)
