"""Keeping jobs for others, and reading jobs back: from memory, from this disk, or from whoever keeps them.

A keeper believes nothing: each statement is verified before it is written, and the ledger's own rules decide
what counts (docs/spec/keeping.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from blake3 import blake3

from p2pgrid.core.admission import check_job, refuse_keeping
from p2pgrid.core.ledger import Ledger
from p2pgrid.dht.records import RecordKind
from p2pgrid.dht.server import GridServer
from p2pgrid.errors import IntegrityError, MalformedError, P2PGridError, RefusedError, UnreachableError
from p2pgrid.model import log as kinds
from p2pgrid.model.blob import blob_id_of
from p2pgrid.model.ids import JobId, NodeKey, StatementId, dht_id_of_job, short
from p2pgrid.model.job import Cancel, Job, KeeperSet, Settled
from p2pgrid.model.reasons import Reason
from p2pgrid.model.statement import Statement
from p2pgrid.model.work import Decision, Grant, Receipt
from p2pgrid.net.rpc import Session
from p2pgrid.services.context import Context
from p2pgrid.services.joblog import READ_BYTES, JobFile
from p2pgrid.services.peers import Peers
from p2pgrid.services.results import Payloads
from p2pgrid.services.tasks import Tasks
from p2pgrid.store.index import JobRow
from p2pgrid.store.ledger import FRAME_BYTES, HEADER_BYTES
from p2pgrid.wire.codec import decode, encode
from p2pgrid.wire.envelope import Signed, open_envelope, peek
from p2pgrid.wire.messages import DeltaRequest, JobReadReply, JobReadRequest, LogRecord, Ok

STATEMENTS: dict[int, type[Statement]] = {
    kinds.KEEPERS: KeeperSet,
    kinds.GRANT: Grant,
    kinds.RECEIPT: Receipt,
    kinds.DECISION: Decision,
    kinds.CANCEL: Cancel,
    kinds.SETTLED: Settled,
}
CLEAN_S = 60.0
ANNOUNCE_AFTER_S = 0.5
ENDED_IN_MEMORY_MAX = 64
KEEPS = encode(1)
"""Value of a keeper's record: the author is what it points at. An empty one would withdraw it."""
KEEPERS_TTL_S = 48 * 3600.0


class JobView(Protocol):
    """What is needed to read a job's results: a led, a kept or a fetched one."""

    job: Signed[Job]
    id: JobId
    ledger: Ledger
    file: JobFile
    payload_at: dict[bytes, int]
    payloads: Payloads


class KeptJob:
    """A job this node keeps for its lead, or read from somebody who does."""

    def __init__(self, job: Signed[Job], file: JobFile) -> None:
        self.job = job
        self.id = JobId(StatementId(job.id))
        self.ledger = Ledger(job)
        self.file = file
        self.payload_at: dict[bytes, int] = {}
        self.payloads = Payloads()
        self.batches: set[bytes] = set()
        self.manifest = {reference.blob for reference in job.body.manifest}
        self.lock = asyncio.Lock()
        self.role = "kept"

    @property
    def state(self) -> str:
        ledger = self.ledger
        if ledger.cancelled:
            return "cancelled"
        if ledger.settled:
            return "failed" if ledger.settled.body.failed else "done"
        return "running"


class Keeping:
    """The jobs whose logs are on this disk, but which this node does not lead."""

    def __init__(self, context: Context, peers: Peers, dht: GridServer) -> None:
        self._context = context
        self._peers = peers
        self._dht = dht
        self._tasks = Tasks("keeping")
        self.jobs: dict[JobId, KeptJob] = {}
        """Those in memory; the others are read from the disk when they are asked for."""
        self._ids: set[JobId] = set()
        self.led: dict[JobId, JobView] = {}
        """Jobs this node leads; their logs are read in the same way."""
        self._opening: dict[JobId, asyncio.Lock] = {}
        context.methods.on("job.delta", DeltaRequest, self._on_delta)
        context.methods.on("job.read", JobReadRequest, self._on_read)

    async def start(self) -> None:
        self._ids = set(await self._context.offload.run(self._context.ledgers.jobs))
        self._tasks.spawn(self._clean(), "clean")

    async def close(self) -> None:
        await self._tasks.close()

    # -- keeping -----------------------------------------------------------------------

    async def _on_delta(self, session: Session, request: DeltaRequest) -> Ok:
        job = JobId(StatementId(request.job))
        kept = self.jobs.get(job) or await self._load(job)
        if kept is None:
            _check_sender(request.records, session, self._context.me)
            kept = await self._begin(job, request.records)
        async with kept.lock:
            records = self._absorb(kept, request.records, session.peer)
            if records:
                self._note(kept, records, await kept.file.append(records))
                self._index(kept)
            await kept.file.wait(kept.file.end)
        return Ok()

    async def _begin(self, job: JobId, records: Sequence[LogRecord], role: str = "kept") -> KeptJob:
        """The first records of a job: is there room, and is it what it says?"""
        context = self._context
        if not records or records[0].kind != kinds.JOB:
            raise RefusedError("the job is not kept here", reason=Reason.UNKNOWN_JOB)
        signed = open_envelope(records[0].data, Job, context.grid.id, context.wall_ms())
        if signed.id != job:
            raise IntegrityError("another job than announced", reason=Reason.MALFORMED)
        check_job(signed.body, context.limits)
        if role == "kept":
            if "store" not in context.member.roles:
                raise RefusedError("this node keeps no jobs", reason=Reason.NO_ROLE)
            used = context.blobs.usage().used_bytes
            reason = refuse_keeping(signed.body, len(self._ids), used, context.policy, context.limits, context.wall_ms())
            if reason is not None:
                raise RefusedError(reason.sentence, reason=reason)
        file = JobFile(job, await context.offload.run(context.ledgers.log, job), context.log_port)
        kept = KeptJob(signed, file)
        kept.role = role
        self._make_room()
        self.jobs[job] = kept
        self._ids.add(job)
        file.post([records[0]])
        if role == "kept":
            self._tasks.spawn(self._announce(job), "announce")
        return kept

    async def _announce(self, job: JobId) -> None:
        # It costs more than keeping a small job does: not while its submitter waits for this keeper's word.
        await asyncio.sleep(ANNOUNCE_AFTER_S)
        await self._dht.publish(RecordKind.JOB_KEEPERS, dht_id_of_job(job), KEEPS, KEEPERS_TTL_S)

    def _absorb(self, kept: KeptJob, records: Sequence[LogRecord], sender: bytes | None) -> list[LogRecord]:
        """Verify records and merge them; returns those that are new, with the payloads of new receipts."""
        context = self._context
        now_ms = context.wall_ms() if sender is not None else None
        fresh: list[LogRecord] = []
        receipt: Signed[Receipt] | None = None
        for record in records:
            if record.kind == kinds.JOB:
                continue
            if record.kind == kinds.BATCH:
                blob = blob_id_of(record.data)
                if blob in kept.manifest and blob not in kept.batches:
                    kept.batches.add(blob)
                    fresh.append(record)
                continue
            if record.kind == kinds.PAYLOAD:
                if receipt is not None:
                    if blake3(record.data).digest() != receipt.body.payload:
                        raise IntegrityError("a payload does not match its receipt", reason=Reason.CORRUPT)
                    fresh.append(record)
                continue
            kind = STATEMENTS.get(record.kind)
            if kind is None:
                raise MalformedError("a record of unknown kind", reason=Reason.MALFORMED)
            statement = open_envelope(record.data, kind, context.grid.id, now_ms)
            new = kept.ledger.add(statement)
            receipt = statement if new and isinstance(statement.body, Receipt) else None  # type: ignore[assignment]
            if new:
                fresh.append(record)
        return fresh

    @staticmethod
    def _note(kept: KeptJob, records: Sequence[LogRecord], cursors: Sequence[int]) -> None:
        """Remember where each payload went: behind its receipt."""
        for record, cursor in zip(records, cursors, strict=True):
            if record.kind == kinds.PAYLOAD:
                kept.payload_at[blake3(record.data).digest()] = cursor

    def _index(self, kept: KeptJob) -> None:
        body, ledger = kept.job.body, kept.ledger
        row = JobRow(
            id=kept.id,
            role=kept.role,
            name=body.name,
            submitter=kept.job.author,
            created_ms=body.created_ms,
            expires_ms=body.expires_ms,
            state=kept.state,
            units=ledger.layout.units,
            done=ledger.done,
            failed=ledger.failed,
        )
        self._tasks.spawn(self._context.offload.run(self._context.index.put_job, row), "index")

    def forget_led(self, job: JobId) -> None:
        """A job that was led here has ended long ago: from now on it is read from the disk."""
        self.led.pop(job, None)
        self._ids.add(job)

    # -- reading -------------------------------------------------------------------------

    async def _on_read(self, session: Session, request: JobReadRequest) -> JobReadReply:
        job = JobId(StatementId(request.job))
        view = self.led.get(job) or self.jobs.get(job) or await self._load(job)
        if view is None:
            raise RefusedError("the job is not kept here", reason=Reason.UNKNOWN_JOB)
        records, cursor = await self._context.offload.run(view.file.read, request.cursor, READ_BYTES)
        return JobReadReply(tuple(records), cursor, cursor >= view.file.durable)

    async def view(self, job: JobId) -> JobView:
        """A job to read from: led here, kept here, on this disk, or copied from its keepers now.

        Raises RefusedError (unknown-job) when nobody who can be reached has it.
        """
        led = self.led.get(job)
        if led is not None:
            return led
        kept = self.jobs.get(job) or await self._load(job)
        if kept is not None and kept.state != "running":
            return kept
        for keeper in await self._keepers(job, kept):
            try:
                kept = await self._copy(job, keeper, kept)
            except P2PGridError as error:
                self._context.tell(error.reason, f"reading job {short(job)} from {short(keeper)}: {error}")
                continue
            if kept.state != "running":
                return kept
        if kept is None:
            raise RefusedError(f"nobody who can be reached knows job {short(job)}", reason=Reason.UNKNOWN_JOB, hint="check the id")
        return kept

    async def _keepers(self, job: JobId, kept: KeptJob | None) -> list[NodeKey]:
        named = kept.ledger.keepers.body if kept is not None and kept.ledger.keepers else None
        found = [named.lead, *named.keepers] if named else []
        try:
            found += [record.author for record in await self._dht.get(dht_id_of_job(job), RecordKind.JOB_KEEPERS)]
        except P2PGridError:
            pass
        found += list(self._peers.live())
        return [NodeKey(key) for key in dict.fromkeys(found) if key != self._context.me]

    async def _copy(self, job: JobId, keeper: NodeKey, kept: KeptJob | None) -> KeptJob:
        """Copy what a keeper has of a job into this node's own log of it."""
        cursor = 0
        while True:
            reply = await self._peers.call(keeper, "job.read", JobReadRequest(job, cursor), JobReadReply)
            if kept is None:
                kept = await self._begin(job, reply.records, "read")
            async with kept.lock:
                records = self._absorb(kept, reply.records, keeper)
                if records:
                    self._note(kept, records, await kept.file.append(records))
            if reply.end or reply.cursor <= cursor:
                self._index(kept)
                return kept
            cursor = reply.cursor

    async def _load(self, job: JobId) -> KeptJob | None:
        """Read a job's log from this disk, as after a restart."""
        context = self._context
        if job in self.led:
            return None
        async with self._opening.setdefault(job, asyncio.Lock()):
            if job in self.jobs:
                return self.jobs[job]
            if job not in self._ids:
                self._opening.pop(job, None)
                return None
            await context.offload.run(context.ledgers.open, job)
            file = JobFile(job, await context.offload.run(context.ledgers.log, job), context.log_port)
            kept: KeptJob | None = None
            cursor = HEADER_BYTES
            while True:
                records, behind = await context.offload.run(file.read, cursor)
                if not records:
                    break
                if kept is None:
                    kept = KeptJob(open_envelope(records[0].data, Job, context.grid.id, None), file)
                self._absorb(kept, records, None)
                self._note(kept, records, _cursors(records, behind))
                cursor = behind
            self._opening.pop(job, None)
            if kept is not None:
                self._make_room()
                self.jobs[job] = kept
            return kept

    def _make_room(self) -> None:
        """Jobs that have ended need not stay in memory: the oldest of many go."""
        ended = [job for job, kept in self.jobs.items() if kept.state != "running"]
        for job in ended[: max(0, len(ended) - ENDED_IN_MEMORY_MAX)]:
            del self.jobs[job]

    async def _clean(self) -> None:
        """Delete jobs and blobs whose time is over."""
        while True:
            await asyncio.sleep(CLEAN_S)
            context = self._context
            now_ms = context.wall_ms()
            try:
                await context.offload.run(context.blobs.expire, now_ms)
                for row in await context.offload.run(context.index.expired_jobs, now_ms):
                    self.jobs.pop(row.id, None)
                    self._ids.discard(row.id)
                    context.log_port.remove(row.id, lambda error: None)
                    await context.offload.run(context.index.delete_job, row.id, row.role)
            except (P2PGridError, UnreachableError) as error:
                context.tell(error.reason, f"cleaning up: {error}")


def _check_sender(records: Sequence[LogRecord], session: Session, own: NodeKey) -> None:
    """A job is taken over for keeping from its lead or another keeper, and only if its submitter named this node."""
    for record in records:
        if record.kind == kinds.KEEPERS:
            named = decode(peek(record.data).body, KeeperSet)
            if own in named.keepers and session.peer in (named.lead, *named.keepers) and "submit" in session.member.roles:
                return
    raise RefusedError("this node was not named as a keeper of the job", reason=Reason.BAD_GRANT)


def _cursors(records: Sequence[LogRecord], behind: int) -> list[int]:
    """The cursors of records that end at ``behind``, which lie one behind the other."""
    cursors: list[int] = []
    position = behind
    for record in reversed(records):
        position -= FRAME_BYTES + len(record.data)
        cursors.append(position)
    return cursors[::-1]
