"""The jobs whose logs lie on this disk: led here, kept for others, or copied to be read (docs/spec/keeping.md).

1. A job is kept for its lead or another keeper, if somebody with the right to named this node, and there is room. Its log
   counts as storage lent, like blobs.
2. A keeper believes nothing: see :mod:`p2pgrid.services.absorbing`. What it acknowledges is on its disk.
3. When its disk failed, the job is forgotten and read back before anything more of it is taken: what is in
   memory is what is on disk.
4. After a start, jobs that had not ended are read back at once: somebody may have to lead them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from p2pgrid.core.admission import check_job, refuse_for_sender, refuse_keeping
from p2pgrid.core.lineage import Lineage
from p2pgrid.dht.records import RecordKind
from p2pgrid.dht.server import GridServer
from p2pgrid.errors import IntegrityError, MalformedError, P2PGridError, RefusedError, TryAgainError
from p2pgrid.model import log as kinds
from p2pgrid.model.ids import DIGEST_BYTES, JobId, StatementId, dht_id_of_job, short
from p2pgrid.model.job import Job, KeeperSet
from p2pgrid.model.reasons import Reason
from p2pgrid.net.rpc import Session
from p2pgrid.services.absorbing import STATEMENTS, KeptJob, absorb, merge
from p2pgrid.services.context import Context
from p2pgrid.services.custody import Custody, detail_of
from p2pgrid.services.joblog import JobFile
from p2pgrid.services.jobrows import JobRows, job_row
from p2pgrid.services.tasks import Tasks
from p2pgrid.store.ledger import FRAME_BYTES, HEADER_BYTES
from p2pgrid.wire.codec import encode
from p2pgrid.wire.envelope import Signed, open_envelope
from p2pgrid.wire.messages import DeltaReply, DeltaRequest, LogRecord

__all__ = ["STATEMENTS", "Keeping", "KeptJob", "job_id_of"]

CLEAN_S = 60.0
ANNOUNCE_AFTER_S = 0.5
ANNOUNCE_APART_S = 30.0
ENDED_IN_MEMORY_MAX = 64
IDLE_S = 600.0
"""A job that was only read, and of which nobody spoke for so long, leaves memory."""
SLICE = 64
"""Records merged before others get their turn."""
SETS_LOOKED_AT = 512
"""Keeper sets in a job's first delta among which this node looks for its name."""
LEAD_SHARE = 4
"""One peer may fill a quarter of the jobs kept here."""
KEEPS = encode(1)
"""Value of a keeper's record: the author is what it points at. An empty one would withdraw it."""
ROWS_MAX = 1 << 20
KEEPERS_TTL_S = 48 * 3600.0

Merged = Callable[[KeptJob, int], None]
"""Told that others' records were merged into a job; the receipts among them are those from an ordinal on."""


class Keeping:
    """The logs of jobs on this disk."""

    def __init__(self, context: Context, dht: GridServer, folder: Path) -> None:
        """``folder``: where the job logs lie, to tell what they take."""
        self._context = context
        self._dht = dht
        self._folder = folder
        self._tasks = Tasks("keeping")
        self._rows = JobRows(context)
        self.jobs: dict[JobId, KeptJob] = {}
        """Those in memory; the others are read from the disk when they are asked for."""
        self._ids: set[JobId] = set()
        self._log_bytes: dict[JobId, int] = {}
        self._opening: dict[JobId, tuple[asyncio.Lock, int]] = {}
        self.merged: list[Merged] = []
        self.custody = Custody(context.me)
        context.methods.on("job.delta", DeltaRequest, self._on_delta)

    async def start(self) -> None:
        """Find what is on the disk. Jobs that the index lost are read from their logs, as are those that had not ended."""
        run = self._context.offload.run
        self._ids = set(await run(self._context.ledgers.jobs))
        self._log_bytes = await run(_log_sizes, self._folder)
        rows = {row.id: row for row in await run(partial(self._context.index.jobs, limit=ROWS_MAX))}
        for row in rows.values():
            if row.id in self._ids:
                self.custody.load(row)
            else:
                # It was begun, and this node killed before the disk had any of it.
                await run(self._context.index.delete_job, row.id, row.role)
        lost = [job for job in sorted(self._ids) if job not in rows]
        if lost:
            self._context.tell(Reason.CORRUPT, f"the index lacked {len(lost)} jobs: they are read from their logs")
        running = [job for job in sorted(self._ids) if job in rows and rows[job].state in ("running", "incomplete", "stopped")]
        self._tasks.spawn(self._clean(), "clean")
        self._tasks.spawn(self._read_back([*running, *lost]), "read back")
        self._tasks.spawn(self._announce_all(sorted(self._ids)), "announce")

    async def close(self) -> None:
        await self._tasks.close()
        await self._rows.close()

    async def _read_back(self, jobs: Sequence[JobId]) -> None:
        """After a start: jobs that have not ended, and those that the index lost."""
        for job in jobs:
            try:
                kept = await self.here(job)
            except P2PGridError as error:
                self._context.tell(error.reason, f"reading job {short(job)} back: {error}", job)
                continue
            if kept is not None:
                self.index(kept)

    @property
    def log_bytes(self) -> int:
        """What the job logs take on this disk."""
        return sum(self._log_bytes.values())

    # -- jobs of this disk -------------------------------------------------------------

    def knows(self, job: JobId) -> bool:
        """Whether a log of this job is here."""
        return job in self._ids

    def add(self, kept: KeptJob) -> None:
        """A job whose log has just been begun here."""
        self._make_room()
        self.jobs[kept.id] = kept
        self._ids.add(kept.id)
        self._log_bytes[kept.id] = kept.file.end
        kept.used_s = self._context.clock()

    def drop(self, kept: KeptJob) -> None:
        """A job whose log was never finished, or whose disk failed, leaves memory."""
        if self.jobs.get(kept.id) is kept:
            del self.jobs[kept.id]

    def forget(self, job: JobId) -> None:
        """Nothing of this job is here any more."""
        self.jobs.pop(job, None)
        self._ids.discard(job)
        self._log_bytes.pop(job, None)
        self.custody.forget(job)

    def index(self, kept: KeptJob) -> None:
        """Bring the job's row in the index up to date."""
        self._log_bytes[kept.id] = kept.file.end
        self.custody.note(kept)
        self._rows.put(job_row(kept.job, kept.ledger, kept.role, kept.state, detail_of(kept)))

    async def here(self, job: JobId) -> KeptJob | None:
        """A job from memory or from this disk; None if it is not here."""
        kept = self.jobs.get(job)
        if kept is None and job in self._ids:
            async with self._alone(job):
                kept = self.jobs.get(job) or await self._load(job)
        if kept is not None:
            kept.used_s = self._context.clock()
        return kept

    async def copy(self, job: JobId, records: Sequence[LogRecord]) -> KeptJob:
        """Merge records of a job that was asked for here: it is begun if it is new. Raises as :meth:`take`."""
        kept = self.jobs.get(job)
        if kept is None:
            async with self._alone(job):
                kept = self.jobs.get(job) or await self._load(job) or await self._begin(job, records, None)
        await self.take(kept, records)
        return kept

    async def take(self, kept: KeptJob, records: Sequence[LogRecord]) -> bool:
        """Merge and log records of others; returns whether any was new, when all are on disk. Raises at the first bad one."""
        async with self._writing(kept):
            changed = await self._merge(kept, records)
            if changed:
                self.index(kept)
        return changed

    async def learn(self, kept: KeptJob, chain: Sequence[bytes]) -> None:
        """Merge the chain to a newer keeper set. Raises as :meth:`take`."""
        await self.take(kept, [LogRecord(kinds.KEEPERS, raw) for raw in chain])

    # -- keeping -----------------------------------------------------------------------

    async def _on_delta(self, session: Session, request: DeltaRequest) -> DeltaReply:
        job = job_id_of(request.job)
        kept = self.jobs.get(job)
        if kept is None:
            async with self._alone(job):
                kept = self.jobs.get(job) or await self._load(job)
                if kept is None:
                    kept = await self._begin(job, request.records, session)
        if kept.role == "kept":
            self.check_room(request.records)
        await self.take(kept, request.records)
        newest = kept.ledger.keepers
        if newest is None or newest.body.lead == session.peer:
            kept.heard_s = self._context.clock()
            return DeltaReply()
        return DeltaReply(kept.ledger.lineage.raw_chain())

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
                    self.drop(kept)

    async def _merge(self, kept: KeptJob, records: Sequence[LogRecord]) -> bool:
        context = self._context
        changed = False
        if kept.file.failed is not None:
            raise TryAgainError("the log of this job cannot be written", reason=Reason.DISK_FULL)
        await kept.file.calm()
        for start in range(0, len(records), SLICE):
            first, decided = len(kept.ledger.receipt_list), len(kept.ledger.decision_list)
            fresh, error = absorb(kept, records[start : start + SLICE], context.grid.id, context.wall_ms())
            if fresh:
                changed = True
                kept.note(fresh, kept.file.post(fresh))
                self._log_bytes[kept.id] = kept.file.end
                for merged in self.merged:
                    merged(kept, first)
                if len(kept.ledger.decision_list) > decided or kept.ended:
                    kept.tell_watchers()
            if error is not None:
                raise error
            if start + SLICE < len(records):
                await asyncio.sleep(0)
        await kept.file.wait(kept.file.end)
        return changed

    def check_room(self, records: Sequence[LogRecord]) -> None:
        """Raise RefusedError unless there is room for more records of a job kept for others."""
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
        # What is left of a log that lost its first record stays where it is, and the rest is written behind it.
        left = await context.offload.run(context.ledgers.log, job) if job in self._ids else None
        kept = KeptJob(signed, JobFile(job, left or (lambda: context.ledgers.log(job)), context.log_port))
        file = kept.file
        kept.role, kept.sender = ("read", b"") if session is None else ("kept", session.peer)
        file.post([records[0]])
        self.add(kept)
        kept.heard_s = context.clock()
        if session is not None:
            self._tasks.spawn(self._announce(job), "announce")
        return kept

    def _check_named(self, job: Signed[Job], records: Sequence[LogRecord], session: Session) -> None:
        """A job is kept for its lead or another keeper, and only if who has the right to named this node."""
        context = self._context
        sets = [record for record in records if record.kind == kinds.KEEPERS][:SETS_LOOKED_AT]
        lineage = Lineage(job)
        if "submit" in session.member.roles:
            for record in sets:
                named = open_envelope(record.data, KeeperSet, context.grid.id, context.wall_ms())
                if named.body.job == job.id:
                    lineage.add(named)
                    if context.me in named.body.keepers and session.peer in (named.body.lead, *named.body.keepers):
                        return
        raise RefusedError("this node was not named as a keeper of the job", reason=Reason.BAD_GRANT)

    def _check_keeping(self, job: Job, session: Session) -> None:
        context = self._context
        if "store" not in context.member.roles:
            raise RefusedError("this node keeps no jobs", reason=Reason.NO_ROLE)
        of_sender = sum(1 for kept in self.jobs.values() if kept.sender == session.peer and kept.state == "running")
        used_bytes = context.blobs.usage().used_bytes + self.log_bytes
        reason = refuse_keeping(job, len(self._ids), used_bytes, context.policy, context.limits, context.wall_ms())
        reason = reason or refuse_for_sender(job, session.member.roles)
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

    async def _load(self, job: JobId) -> KeptJob | None:
        """Read a job's log from this disk, as after a restart. What does not hold any more is passed over."""
        context = self._context
        if job not in self._ids:
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
            newest = kept.ledger.keepers
            kept.role = "kept" if kept.ledger.lineage.names(context.me) else "read"
            if newest is not None and newest.body.lead == context.me:
                kept.role = "led"
            kept.heard_s = context.clock()
            self.add(kept)
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
                self._context.tell(error.reason, f"in the log of job {short(file.job)}: {error}", file.job)
            cursor += FRAME_BYTES + len(record.data)
            if number % SLICE == SLICE - 1:
                await asyncio.sleep(0)
        return kept

    def _make_room(self) -> None:
        """Jobs that have ended need not stay in memory, nor those that were only read: they are on disk."""
        now_s = self._context.clock()
        free = [kept for kept in self.jobs.values() if kept.file.settled and not kept.lock.locked() and not kept.watchers and not kept.led]
        ended = [kept for kept in free if kept.ended]
        idle = [kept for kept in free if kept.role == "read" and not kept.ended and now_s - kept.used_s > IDLE_S]
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
            kept = self.jobs.get(row.id)
            if kept is None or not kept.led:
                self.forget(row.id)
                self._dht.publications.forget(RecordKind.JOB_KEEPERS, dht_id_of_job(row.id))
                context.log_port.remove(row.id, lambda error: None)
                await context.offload.run(context.index.delete_job, row.id, row.role)


def job_id_of(raw: bytes) -> JobId:
    """The id of a job out of a message. Raises MalformedError."""
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
