"""Taking a job from its submitter: checked, logged, led; and with ``--detach``, entrusted to others (docs/spec/owner.md)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress

from p2pgrid.core.admission import check_job
from p2pgrid.errors import P2PGridError, RefusedError, TryAgainError
from p2pgrid.model import log as kinds
from p2pgrid.model.ids import JobId
from p2pgrid.model.job import Job
from p2pgrid.model.reasons import Reason
from p2pgrid.services.absorbing import KeptJob
from p2pgrid.services.context import Context
from p2pgrid.services.joblog import JobFile
from p2pgrid.services.keeping import Keeping
from p2pgrid.services.leading import Leading
from p2pgrid.services.ledjob import LedJob, check_batches
from p2pgrid.services.storing import Storing
from p2pgrid.services.tasks import Tasks
from p2pgrid.wire.envelope import Signed, open_envelope
from p2pgrid.wire.messages import LogRecord

ENTRUST_S = 15.0
"""How long a submitter that wants to leave waits for its keepers."""


class Submitting:
    """Jobs of this home's submitter."""

    def __init__(self, context: Context, storing: Storing, keeping: Keeping, leading: Leading) -> None:
        self._context = context
        self._storing = storing
        self._keeping = keeping
        self._leading = leading
        self._tasks = Tasks("submitting")
        self._submitting: set[JobId] = set()

    async def close(self) -> None:
        await self._tasks.close()

    async def submit(self, raw: bytes, batches: Iterable[bytes], *, detach: bool = False) -> LedJob:
        """Take a job over from its submitter: log it, name keepers, begin to lead. ``batches`` in manifest order.

        ``detach``: return only when every keeper has all of it, code and input files included.
        Raises RefusedError (limits, not this home's submitter key, known already), IntegrityError (a batch that is not
        the manifest's), TryAgainError (too many jobs).
        """
        context = self._context
        job = open_envelope(raw, Job, context.grid.id, context.wall_ms())
        if job.author != context.submitter.public:
            raise RefusedError("the job is signed by another submitter key", reason=Reason.NO_ROLE)
        if "submit" not in context.member.roles:
            raise RefusedError("this node's membership does not let it submit", reason=Reason.NO_ROLE)
        job_id = JobId(job.id)
        known = self._leading.jobs.get(job_id)
        if known is not None:
            await known.file.wait(known.file.end)
            return known
        running = len([led for led in self._leading.jobs.values() if not led.ended.is_set()])
        if job_id in self._submitting or running + len(self._submitting) >= context.limits.jobs_led:
            raise TryAgainError("this node already leads as many jobs as it may", reason=Reason.BUSY)
        check_job(job.body, context.limits)
        contents = list(batches)
        check_batches(job.body, contents)
        self._submitting.add(job_id)
        try:
            led, copying = await self._begin(job, contents)
        finally:
            self._submitting.discard(job_id)
        if detach:
            await self._entrust(led, copying)
        return led

    async def _begin(self, job: Signed[Job], batches: Sequence[bytes]) -> tuple[LedJob, asyncio.Task[None] | None]:
        context = self._context
        job_id = JobId(job.id)
        if self._keeping.knows(job_id):
            raise RefusedError("this job was submitted before", reason=Reason.STALE, hint="submit it as a new one")
        kept = KeptJob(job, JobFile(job_id, lambda: context.ledgers.log(job_id), context.log_port))
        keepers = self._leading.recruiting.name(kept, (), 0)
        kept.ledger.add(keepers)
        kept.file.post([LogRecord(kinds.JOB, job.raw), LogRecord(kinds.KEEPERS, keepers.raw)], lazy=True)
        await self._log_batches(kept, batches)
        durable = kept.file.end
        self._keeping.add(kept)
        led = self._leading.begin(kept, batches)
        copying = self._tasks.spawn(self._replicate_inputs(led), "inputs")
        try:
            # Workers are invited while the disk still writes; the submitter is told, and results count, only afterwards.
            await kept.file.wait(durable)
        except P2PGridError as error:
            self._leading.break_off(led, error.message)
            raise
        return led, copying

    async def _log_batches(self, kept: KeptJob, batches: Sequence[bytes]) -> None:
        try:
            for number, content in enumerate(batches):
                await kept.file.calm()
                (kept.batch_at[number],) = kept.file.post([LogRecord(kinds.BATCH, content)], lazy=True)
        except P2PGridError:
            # Nobody was told of the job: half of it must not be found here after a restart.
            await kept.file.quiet()
            with suppress(P2PGridError):
                self._context.log_port.remove(kept.id, lambda error: None)
            raise

    async def _entrust(self, led: LedJob, copying: asyncio.Task[None] | None) -> None:
        """Wait until the keepers have the whole job: from now on it needs nobody here."""
        try:
            async with asyncio.timeout(ENTRUST_S):
                await self._leading.complete(led)
                if copying is not None:
                    await asyncio.wait([copying])
        except (TimeoutError, P2PGridError):
            led.keepers_note = "not every keeper has confirmed the job yet"

    async def _replicate_inputs(self, led: LedJob) -> None:
        """Copies of the code and of input files on r nodes, keepers first, while the job already runs."""
        blobs = await self._leading.deriving.input_blobs(led.job.body, lambda number: self._leading.batch(led, number))
        for blob in blobs:
            await self._storing.replicate(blob, led.job.body.replicas, led.keepers, led.job.body.expires_ms)
