"""The proof that nothing was switched off: a job's log as each keeper has it, read back and checked from nothing.

Every statement's signature is verified again, every rule of the ledger applied, every payload hashed. A bench whose
figures were bought by leaving something out fails here.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import NamedTuple

from p2pgrid.client.channel import Channel
from p2pgrid.core.ledger import Ledger
from p2pgrid.model import log as kinds
from p2pgrid.model.blob import blob_id_of
from p2pgrid.model.ids import GridId, JobId
from p2pgrid.model.job import Job
from p2pgrid.model.work import Receipt
from p2pgrid.services.keeping import STATEMENTS
from p2pgrid.services.results import check_payload, root_of
from p2pgrid.wire.envelope import Signed, open_envelope
from p2pgrid.wire.messages import JobReadReply, JobReadRequest, LogRecord
from p2pgrid.wire.owner import JobLine

KEEPERS = 3
READ_S = 30.0


class NotOnError(AssertionError):
    """Something that the figures claim was on was not."""


class Audited(NamedTuple):
    """What one keeper holds of one job."""

    units: int
    grants: int
    receipts: int
    decisions: int
    payload_bytes: int


def require(truth: bool, what: str) -> None:
    """Raise NotOnError unless ``truth``; unlike an assert it stays when Python runs optimised."""
    if not truth:
        raise NotOnError(what)


async def read_log(keeper: Channel, job: JobId) -> list[LogRecord]:
    """The whole log of a job from one node, by the same call that other nodes make."""
    records: list[LogRecord] = []
    cursor = 0
    while True:
        reply = await keeper._session.call("job.read", JobReadRequest(job, cursor), JobReadReply, timeout_s=READ_S)
        records += reply.records
        if reply.end or reply.cursor <= cursor:
            return records
        cursor = reply.cursor


async def audit_keeper(keeper: Channel, submitter: bytes, job: JobId, units: int) -> Audited:
    """Check a keeper's own log of a job: signed throughout, complete, settled, and itself one of three keepers."""
    me = (await keeper.status()).node
    records = await read_log(keeper, job)
    ledger, payload_bytes = rebuild(keeper.grid.id, submitter, records, job)
    keepers, settled = ledger.keepers, next(iter(ledger.final.values()), None)
    require(
        keepers is not None and len(keepers.body.keepers) == KEEPERS and me in keepers.body.keepers, "three keepers, this one among them"
    )
    require(ledger.complete and ledger.done == units and ledger.failed == 0, "a keeper's ledger is complete")
    require(settled is not None and settled.author == submitter, "a keeper has the submitter's signed end of the job")
    assert settled is not None
    require(settled.body.root == root_of(ledger, range(ledger.layout.batches)), "the settled root covers the keeper's digests")
    return Audited(units, len(ledger.grants), len(ledger.receipts), len(ledger.decisions), payload_bytes)


def rebuild(grid: GridId, submitter: bytes, records: list[LogRecord], job: JobId) -> tuple[Ledger, int]:
    """A ledger from the records alone, and the bytes of the payloads that were checked. Raises what a rule raises."""
    require(bool(records) and records[0].kind == kinds.JOB, "a log begins with the signed job")
    signed = open_envelope(records[0].data, Job, grid, None)
    require(signed.id == job and signed.author == submitter, "the job is signed by its submitter")
    ledger = Ledger(signed)
    batches, payloads = set(), set()
    receipt: Signed[Receipt] | None = None
    payload_bytes = 0
    for kind, data in records[1:]:
        if kind == kinds.BATCH:
            batches.add(blob_id_of(data))
        elif kind == kinds.PAYLOAD:
            assert receipt is not None
            check_payload(receipt.body, data)
            payloads.add(receipt.id)
            payload_bytes += len(data)
        else:
            statement = open_envelope(data, STATEMENTS[kind], grid, None)
            ledger.add(statement)
            receipt = statement if isinstance(statement.body, Receipt) else None  # type: ignore[assignment]
    require(batches == {reference.blob for reference in signed.body.manifest}, "every batch of the manifest is kept")
    require(payloads == set(ledger.receipts), "every receipt is kept with its results")
    return ledger, payload_bytes


def audit_line(line: JobLine, note: str, units: int) -> None:
    """What the lead says of a job that ended."""
    require(line.state == "done" and line.done == units and line.failed == 0, f"the job is done, not {line.state}")
    require(len(line.keepers) == KEEPERS and not note, f"three keepers confirmed the end: {note or len(line.keepers)}")


async def audit_links(channels: list[Channel]) -> int:
    """Every link between two nodes is direct, and every node's port speaks TLS 1.3. Returns the links looked at."""
    links = 0
    for channel in channels:
        reply = await channel.peers(refresh=False)
        for line in reply.peers:
            if line.path == "self":
                continue
            require(line.path == "direct", f"a link is {line.path or 'down'}, not direct")
            require(all(address.kind == "tls" for address in line.info.addresses), "every address is a TLS address")
            links += 1
        port = (await channel.status()).info.addresses[0]
        require(await _tls_version(port.host, port.port) == "TLSv1.3", "a node's port speaks TLS 1.3")
    return links


async def _tls_version(host: str, port: int) -> str | None:
    """The protocol that a stranger's handshake ends up with; the node hangs up on it right after."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    async with asyncio.timeout(READ_S):
        _, writer = await asyncio.open_connection(host, port, ssl=context)
    version: str | None = writer.get_extra_info("ssl_object").version()
    writer.transport.abort()
    return version
