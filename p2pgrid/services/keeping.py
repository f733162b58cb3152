"""Keeping jobs for others, and reading jobs back: from memory, from this disk, or from whoever keeps them.

1. A job is kept for its lead or another keeper, if its submitter named this node, and there is room. Its log counts
   as storage lent, like blobs.
2. A keeper believes nothing: see :mod:`p2pgrid.services.absorbing`. What it acknowledges is on its disk.
3. When its disk failed, the job is forgotten and read back before anything more of it is taken: what is in
   memory is what is on disk (docs/spec/keeping.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Protocol

from p2pgrid.core.admission import check_job, refuse_keeping
from p2pgrid.core.ledger import Ledger
from p2pgrid.dht.records import RecordKind
from p2pgrid.dht.server import GridServer
from p2pgrid.errors import IntegrityError, MalformedError, P2PGridError, RefusedError, TryAgainError
from p2pgrid.model import log as kinds
from p2pgrid.model.ids import DIGEST_BYTES, JobId, NodeKey, StatementId, dht_id_of_job, short
from p2pgrid.model.job import Job, KeeperSet
from p2pgrid.model.reasons import Reason
from p2pgrid.net.rpc import Session
from p2pgrid.services.absorbing import STATEMENTS, KeptJob, absorb, merge
from p2pgrid.services.context import Context
from p2pgrid.services.joblog import READ_BYTES, JobFile
from p2pgrid.services.jobrows import JobRows, job_row
from p2pgrid.services.peers import Peers
from p2pgrid.services.results import Payloads
from p2pgrid.services.tasks import Tasks
from p2pgrid.store.ledger import FRAME_BYTES, HEADER_BYTES
from p2pgrid.wire.codec import encode
from p2pgrid.wire.envelope import Signed, open_envelope
from p2pgrid.wire.messages import DeltaRequest, JobReadReply, JobReadRequest, LogRecord, Ok

__all__ = ["STATEMENTS", "JobView", "Keeping", "KeptJob"]

CLEAN_S = 60.0
ANNOUNCE_AFTER_S = 0.5
ANNOUNCE_APART_S = 30.0
ENDED_IN_MEMORY_MAX = 64
IDLE_S = 600.0
"""A job of which nobody spoke for so long leaves memory."""
SLICE = 64
"""Records merged before others get their turn."""
SETS_LOOKED_AT = 16
"""Keeper sets in a job's first delta among which this node looks for its name."""
LEAD_SHARE = 4
"""One peer may fill a quarter of the jobs kept here."""
COPY_S = 300.0
"""How long a job may be copied from its keepers before the reader is told what is here."""
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


class Keeping:
    """The jobs whose logs are on this disk, but which this node does not lead."""

    def __init__(self, context: Context, peers: Peers, dht: GridServer, folder: Path) -> None:
        """``folder``: where the job logs lie, to tell what they take."""
        self._context = context
        self._peers = peers
        self._dht = dht
        self._folder = folder
        self._tasks = Tasks("keeping")
        self._rows = JobRows(context)
        self.jobs: dict[JobId, KeptJob] = {}
        """Those in memory; the others are read from the disk when they are asked for."""
        self._ids: set[JobId] = set()
        self._log_bytes: dict[JobId, int] = {}
        self.led: dict[JobId, JobView] = {}
        """Jobs this node leads; their logs are read in the same way."""
        self._opening: dict[JobId, tuple[asyncio.Lock, int]] = {}
        context.methods.on("job.delta", DeltaRequest, self._on_delta)
        context.methods.on("job.read", JobReadRequest, self._on_read)

    async def start(self) -> None:
        run = self._context.offload.run
        self._ids = set(await run(self._context.ledgers.jobs))
        self._log_bytes = await run(_log_sizes, self._folder)
        self._tasks.spawn(self._clean(), "clean")
        self._tasks.spawn(self._announce_all(sorted(self._ids)), "announce")

    async def close(self) -> None:
        await self._tasks.close()
        await self._rows.close()

    @property
    def log_bytes(self) -> int:
        """What the job logs take on this disk."""
        return sum(self._log_bytes.values())

    # -- keeping -----------------------------------------------------------------------

    async def _on_delta(self, session: Session, request: DeltaRequest) -> Ok:
        job = _job_id(request.job)
        kept = self.jobs.get(job)
        if kept is None:
            async with self._alone(job):
                kept = self.jobs.get(job) or await self._load(job)
                if kept is None:
                    kept = await self._begin(job, request.records, session)
        if kept.role == "kept":
            self._check_room(request.records)
        async with self._writing(kept):
            if await self._take(kept, request.records):
                self._index(kept)
        return Ok()

    @asynccontextmanager
    async def _alone(self, job: JobId) -> AsyncIterator[None]:
        """Nobody else begins or reads back this job meanwhile: a log has one writer."""
        lock, users = self._opening.get(job) or (asyncio.Lock(), 0)
        self._opening[job] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._opening.pop(job)
            if users > 1:
                self._opening[job] = lock, users - 1

    @asynccontextmanager
    async def _writing(self, kept: KeptJob) -> AsyncIterator[None]:
        """Nobody else writes to this job meanwhile. If its disk failed, it leaves memory once the disk has answered."""
        kept.used_s = self._context.clock()
        async with kept.lock:
            if self.jobs.get(kept.id) is not kept:
                raise TryAgainError("the job is being read back from the disk", reason=Reason.BUSY)
            try:
                yield
            finally:
                if kept.file.failed is not None:
                    await kept.file.quiet()
                    if self.jobs.get(kept.id) is kept:
                        del self.jobs[kept.id]

    async def _take(self, kept: KeptJob, records: Sequence[LogRecord]) -> bool:
        """Merge and log records; returns whether any was new, when all are on disk. Raises at the first bad one."""
        context = self._context
        changed = False
        await kept.file.calm()
        for start in range(0, len(records), SLICE):
            fresh, error = absorb(kept, records[start : start + SLICE], context.grid.id, context.wall_ms())
            if fresh:
                changed = True
                kept.note(fresh, kept.file.post(fresh))
                self._log_bytes[kept.id] = kept.file.end
            if error is not None:
                raise error
            if start + SLICE < len(records):
                await asyncio.sleep(0)
        await kept.file.wait(kept.file.end)
        return changed

    def _check_room(self, records: Sequence[LogRecord]) -> None:
        size_bytes = sum(len(record.data) + FRAME_BYTES for record in records)
        used_bytes = self._context.blobs.usage().used_bytes + self.log_bytes
        if used_bytes + size_bytes > self._context.policy.storage_bytes:
            raise RefusedError(Reason.KEEPER_FULL.sentence, reason=Reason.KEEPER_FULL)

    async def _begin(self, job: JobId, records: Sequence[LogRecord], session: Session | None) -> KeptJob:
        """The first records of a job: may it be kept here, and is it what it says? ``session`` None: copied to be read."""
        context = self._context
        if not records or records[0].kind != kinds.JOB:
            raise RefusedError("the job is not kept here", reason=Reason.UNKNOWN_JOB)
        signed = open_envelope(records[0].data, Job, context.grid.id, context.wall_ms())
        if signed.id != job:
            raise IntegrityError("another job than announced", reason=Reason.MALFORMED)
        check_job(signed.body, context.limits)
        if session is not None:
            self._check_named(signed, records, session)
            self._check_keeping(signed.body, session)
        file = JobFile(job, lambda: context.ledgers.log(job), context.log_port)
        kept = KeptJob(signed, file)
        kept.role, kept.sender = ("read", b"") if session is None else ("kept", session.peer)
        self._make_room()
        file.post([records[0]])
        self.jobs[job] = kept
        self._ids.add(job)
        self._log_bytes[job] = file.end
        if session is not None:
            self._tasks.spawn(self._announce(job), "announce")
        return kept

    def _check_named(self, job: Signed[Job], records: Sequence[LogRecord], session: Session) -> None:
        """A job is kept for its lead or another keeper, and only if its submitter named this node."""
        context = self._context
        sets = [record for record in records if record.kind == kinds.KEEPERS][:SETS_LOOKED_AT]
        if "submit" in session.member.roles:
            for record in sets:
                named = open_envelope(record.data, KeeperSet, context.grid.id, context.wall_ms())
                body = named.body
                ours = named.author == job.author and body.job == job.id and context.me in body.keepers
                if ours and session.peer in (body.lead, *body.keepers):
                    return
        raise RefusedError("this node was not named as a keeper of the job", reason=Reason.BAD_GRANT)

    def _check_keeping(self, job: Job, session: Session) -> None:
        context = self._context
        if "store" not in context.member.roles:
            raise RefusedError("this node keeps no jobs", reason=Reason.NO_ROLE)
        of_sender = sum(1 for kept in self.jobs.values() if kept.sender == session.peer and kept.state == "running")
        used_bytes = context.blobs.usage().used_bytes + self.log_bytes
        reason = refuse_keeping(job, len(self._ids), used_bytes, context.policy, context.limits, context.wall_ms())
        if reason is None and of_sender >= max(1, context.limits.jobs_kept // LEAD_SHARE):
            reason = Reason.KEEPER_FULL
        if reason is not None:
            raise RefusedError(reason.sentence, reason=reason)

    async def _announce(self, job: JobId) -> None:
        # It costs more than keeping a small job does: not while its submitter waits for this keeper's word.
        await asyncio.sleep(ANNOUNCE_AFTER_S + self._rank(job) * ANNOUNCE_APART_S)
        await self._dht.publish(RecordKind.JOB_KEEPERS, dht_id_of_job(job), KEEPS, KEEPERS_TTL_S)

    def _rank(self, job: JobId) -> int:
        """Which of the job's keepers this is. The first announces it at once, the others later: most jobs are short and many."""
        kept = self.jobs.get(job)
        named = kept.ledger.keepers.body.keepers if kept is not None and kept.ledger.keepers else ()
        return named.index(self._context.me) if self._context.me in named else 0

    async def _announce_all(self, jobs: Sequence[JobId]) -> None:
        """After a start: what was announced in an earlier life would otherwise run out."""
        for job in jobs:
            if job in self._ids:
                await self._announce(job)

    def _index(self, kept: KeptJob) -> None:
        self._rows.put(job_row(kept.job, kept.ledger, kept.role, kept.state))

    def forget_led(self, job: JobId) -> None:
        """A job that was led here has ended long ago: from now on it is read from the disk."""
        self.led.pop(job, None)
        self._ids.add(job)

    # -- reading -------------------------------------------------------------------------

    async def _on_read(self, session: Session, request: JobReadRequest) -> JobReadReply:
        """Raw records, so that nobody can make this node read a whole job back by asking for a line of it."""
        job = _job_id(request.job)
        run = self._context.offload.run
        view = self.led.get(job) or self.jobs.get(job)
        if view is not None:
            records, cursor = await run(view.file.read, request.cursor, READ_BYTES)
            return JobReadReply(tuple(records), cursor, cursor >= view.file.durable)
        if job not in self._ids:
            raise RefusedError("the job is not kept here", reason=Reason.UNKNOWN_JOB)
        log = await run(self._context.ledgers.log, job)
        found, cursor = await run(log.read, request.cursor, READ_BYTES)
        return JobReadReply(tuple([LogRecord(kind, data) for kind, data in found]), cursor, cursor >= log.end)

    async def view(self, job: JobId) -> JobView:
        """A job to read from: led here, kept here, on this disk, or copied from its keepers now.

        Raises RefusedError (unknown-job) when nobody who can be reached has it.
        """
        led = self.led.get(job)
        if led is not None:
            return led
        kept = await self._here(job)
        if kept is not None and kept.ended:
            return kept
        try:
            async with asyncio.timeout(COPY_S):
                kept = await self._copy_from_any(job, kept)
        except TimeoutError:
            self._context.tell(Reason.TIMEOUT, f"reading job {short(job)} took too long")
        kept = self.jobs.get(job, kept)
        if kept is None:
            raise RefusedError(f"nobody who can be reached knows job {short(job)}", reason=Reason.UNKNOWN_JOB, hint="check the id")
        return kept

    async def _here(self, job: JobId) -> KeptJob | None:
        kept = self.jobs.get(job)
        if kept is None and job in self._ids:
            async with self._alone(job):
                kept = self.jobs.get(job) or await self._load(job)
        if kept is not None:
            kept.used_s = self._context.clock()
        return kept

    async def _copy_from_any(self, job: JobId, kept: KeptJob | None) -> KeptJob | None:
        for keeper in await self._keepers(job, kept):
            try:
                kept = await self._copy(job, keeper)
            except P2PGridError as error:
                self._context.tell(error.reason, f"reading job {short(job)} from {short(keeper)}: {error}")
                continue
            if kept.ended:
                break
        return kept

    async def _keepers(self, job: JobId, kept: KeptJob | None) -> list[NodeKey]:
        named = kept.ledger.keepers.body if kept is not None and kept.ledger.keepers else None
        found = [named.lead, *named.keepers] if named else []
        with suppress(P2PGridError):
            found += [record.author for record in await self._dht.get(dht_id_of_job(job), RecordKind.JOB_KEEPERS)]
        found += list(self._peers.live())
        return [NodeKey(key) for key in dict.fromkeys(found) if key != self._context.me]

    async def _copy(self, job: JobId, keeper: NodeKey) -> KeptJob:
        """Copy what a keeper has of a job into this node's own log of it.

        What it sends is either new, and then this log grows, or here already: more than that is no log.
        """
        cursor = sent_bytes = 0
        while True:
            reply = await self._peers.call(keeper, "job.read", JobReadRequest(job, cursor), JobReadReply)
            kept = self.jobs.get(job)
            if kept is None:
                async with self._alone(job):
                    kept = self.jobs.get(job) or await self._load(job) or await self._begin(job, reply.records, None)
            async with self._writing(kept):
                await self._take(kept, reply.records)
            sent_bytes += sum(len(record.data) for record in reply.records)
            if sent_bytes > kept.file.end + READ_BYTES:
                raise MalformedError("a log of a job that is longer than all it says", reason=Reason.MALFORMED)
            if reply.end or reply.cursor <= cursor or not reply.records:
                self._index(kept)
                return kept
            cursor = reply.cursor

    async def _load(self, job: JobId) -> KeptJob | None:
        """Read a job's log from this disk, as after a restart. What does not hold any more is passed over."""
        context = self._context
        if job in self.led or job not in self._ids:
            return None
        await context.offload.run(context.ledgers.open, job)
        file = JobFile(job, await context.offload.run(context.ledgers.log, job), context.log_port)
        kept: KeptJob | None = None
        cursor = HEADER_BYTES
        while True:
            records, behind = await context.offload.run(file.read, cursor)
            if not records:
                break
            if sum(len(record.data) + FRAME_BYTES for record in records) != behind - cursor:
                # Damaged bytes lie between them: one at a time, the cursor to each is known again.
                records, behind = await context.offload.run(file.read, cursor, 1)
            kept = await self._restore(kept, file, records, cursor)
            cursor = behind
        if kept is not None:
            kept.used_s = context.clock()
            self._make_room()
            self.jobs[job] = kept
        return kept

    async def _restore(self, kept: KeptJob | None, file: JobFile, records: Sequence[LogRecord], cursor: int) -> KeptJob | None:
        grid = self._context.grid.id
        for number, record in enumerate(records):
            try:
                if kept is None and record.kind == kinds.JOB:
                    kept = KeptJob(open_envelope(record.data, Job, grid, None), file)
                elif kept is not None and merge(kept, record, grid, None):
                    kept.note([record], [cursor])
            except P2PGridError as error:
                self._context.tell(error.reason, f"in the log of job {short(file.job)}: {error}")
            cursor += FRAME_BYTES + len(record.data)
            if number % SLICE == SLICE - 1:
                await asyncio.sleep(0)
        return kept

    def _make_room(self) -> None:
        """Jobs that have ended need not stay in memory, nor those of which nobody speaks: they are on disk."""
        now_s = self._context.clock()
        free = [kept for kept in self.jobs.values() if kept.file.settled and not kept.lock.locked()]
        ended = [kept for kept in free if kept.state != "running"]
        idle = [kept for kept in free if kept.state == "running" and now_s - kept.used_s > IDLE_S]
        for kept in [*ended[: max(0, len(ended) - ENDED_IN_MEMORY_MAX)], *idle]:
            del self.jobs[kept.id]

    # -- the end of jobs -------------------------------------------------------------------

    async def _clean(self) -> None:
        """Delete jobs and blobs whose time is over."""
        while True:
            await asyncio.sleep(CLEAN_S)
            try:
                await self.clean()
            except P2PGridError as error:
                self._context.tell(error.reason, f"cleaning up: {error}")

    async def clean(self) -> None:
        """Delete what has expired now. Raises what the disk raised."""
        context = self._context
        now_ms = context.wall_ms()
        self._make_room()
        await context.offload.run(context.blobs.expire, now_ms)
        for row in await context.offload.run(context.index.expired_jobs, now_ms):
            if row.id not in self.led:
                self.jobs.pop(row.id, None)
                self._ids.discard(row.id)
                self._log_bytes.pop(row.id, None)
                self._dht.publications.forget(RecordKind.JOB_KEEPERS, dht_id_of_job(row.id))
                context.log_port.remove(row.id, lambda error: None)
                await context.offload.run(context.index.delete_job, row.id, row.role)


def _job_id(raw: bytes) -> JobId:
    if len(raw) != DIGEST_BYTES:
        raise MalformedError("not the id of a job", reason=Reason.MALFORMED)
    return JobId(StatementId(raw))


def _log_sizes(folder: Path) -> dict[JobId, int]:
    """Blocking: the bytes of each job log in a folder."""
    sizes: dict[JobId, int] = {}
    for path in folder.glob("*.log"):
        if len(path.stem) == 2 * DIGEST_BYTES:
            try:
                sizes[JobId(StatementId(bytes.fromhex(path.stem)))] = path.stat().st_size
            except (ValueError, OSError):
                continue
    return sizes
