"""Working for leads: the core's Worker joined to sessions and to the pool of worker processes (docs/spec/worker.md).

1. What a lead hands out is checked whole before a unit of it starts: job, keepers, lease, batches, ranges.
2. What a job keeps in memory here is bounded: batches that nobody needs go first, then jobs that nobody works on.
3. A unit that cannot be run is answered with the reason; a lease is not left to run into its deadline.
4. No peer has more than a share of the places for leads, so that nobody crowds the others out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from p2pgrid.core import worker as core
from p2pgrid.core.admission import check_job, refuse_work
from p2pgrid.core.checks import check_range
from p2pgrid.core.columns import check_apart
from p2pgrid.core.layout import FINISH, MAP, REDUCE, Layout
from p2pgrid.errors import IntegrityError, MalformedError, P2PGridError, RefusedError, TryAgainError
from p2pgrid.model.blob import blob_id_of
from p2pgrid.model.ids import DIGEST_BYTES, BlobId, NodeKey, short
from p2pgrid.model.job import Batch, Cancel, Job, KeeperSet
from p2pgrid.model.membership import Member
from p2pgrid.model.reasons import Reason
from p2pgrid.model.work import NO_INPUT, Grant
from p2pgrid.net.rpc import Session
from p2pgrid.runtimes.tasks import BatchChunk, BatchTask, Code, JobKey, Kind, Workers
from p2pgrid.services.context import Context
from p2pgrid.services.delivering import Delivering, Source
from p2pgrid.services.inputfiles import InputFiles
from p2pgrid.services.inputs import FILE, VALUE, fill_in
from p2pgrid.services.knownjobs import JOBS_MAX, KnownJob, KnownJobs
from p2pgrid.services.peers import Peers
from p2pgrid.services.storing import Storing
from p2pgrid.services.tasks import Tasks
from p2pgrid.wire.codec import decode
from p2pgrid.wire.envelope import Signed, open_envelope, peek
from p2pgrid.wire.messages import CancelRequest, JobInvite, PullReply, PullRequest

JOBS_PER_LEAD_MAX = 32
LEASES_MAX = 4096
VALUES_BYTES_MAX = 1 << 30
"""Inputs out of blobs that one task may have in memory, unless the owner lends less memory."""
KINDS = {MAP: Kind.MAP, REDUCE: Kind.REDUCE}
PULL_S = 15.0


class Working:
    """Pulls, runs, and hands results to :class:`Delivering`."""

    def __init__(self, context: Context, peers: Peers, storing: Storing, pool: Workers, inputs: Path) -> None:
        """``inputs``: a folder for small input files; nothing in it outlives the node."""
        self._context = context
        self._peers = peers
        self._storing = storing
        self._pool = pool
        self._inputs = InputFiles(inputs, context.offload, context.disk)
        self._tasks = Tasks("working")
        self._delivering = Delivering(context, peers, storing)
        self._jobs = KnownJobs()
        self._known = self._jobs.known
        self._refused: dict[bytes, Reason] = {}
        self._owed: dict[bytes, int] = {}
        """Units of each lease whose tasks have not ended; bounded, and of a forgotten lease every task counts as the last."""
        self.worker = core.Worker(context.policy.cores)
        self.done = 0
        context.methods.on_notify("job.invite", JobInvite, self._on_invite)
        context.methods.on_notify("job.cancelled", CancelRequest, self._on_cancelled)

    async def start(self) -> None:
        self._peers.on_gone(self._on_gone)
        self._peers.on_restarted(self._on_gone)

    async def close(self) -> None:
        await self._tasks.close()
        await self._delivering.close()

    # -- invitations and leases ------------------------------------------------------

    def _on_invite(self, session: Session, invite: JobInvite) -> None:
        policy = self._context.policy
        if policy.cores < 1 or invite.runtime not in policy.runtimes or invite.job in self._refused:
            return
        if invite.expires_ms < self._context.wall_ms() or self._delivering.congested or len(invite.job) != DIGEST_BYTES:
            return
        key = (invite.job, session.peer)
        if key not in self.worker.sources and sum(lead == session.peer for _, lead in self.worker.sources) >= JOBS_PER_LEAD_MAX:
            return
        self._handle(core.Invited((invite.job, session.peer), session.peer))

    def _handle(self, event: core.Event) -> None:
        for effect in self.worker.handle(event, self._context.clock()):
            match effect:
                case core.Pull():
                    self._tasks.spawn(self._pull(effect), "pull")
                case core.Run():
                    self._tasks.spawn(self._run(effect), "run")

    async def _pull(self, pull: core.Pull) -> None:
        job, lead = pull.source
        known = self._known.get(job)
        if self._delivering.congested:
            self._handle(core.Dry(pull.source))
            return
        have = tuple(known.batches) if known else ()
        request = PullRequest(job, pull.slots, pull.want, known is None, have)
        if known is not None:
            known.pulls += 1
        try:
            reply = await self._peers.call(NodeKey(lead), "job.pull", request, PullReply, timeout_s=PULL_S)
            leased = await self._take_lease(pull, reply)
        except P2PGridError as error:
            if not error.retryable:
                self._context.tell(error.reason, f"job {short(job)}: {error}")
            self._handle(core.Dry(pull.source, over=not error.retryable))
            return
        finally:
            if known is not None:
                known.pulls -= 1
        self._handle(leased or core.Dry(pull.source, over=reply.over))

    async def _take_lease(self, pull: core.Pull, reply: PullReply) -> core.Leased | None:
        """Check everything a lead handed out. Raises when it does not fit together."""
        job, lead = pull.source
        if reply.job and job not in self._known:
            self._meet(job, NodeKey(lead), reply)
        if not reply.grant:
            return None
        known = self._known.get(job)
        if known is None:
            raise IntegrityError("a lease without its job", reason=Reason.UNKNOWN_JOB)
        grant = open_envelope(reply.grant, Grant, self._context.grid.id, self._context.wall_ms())
        keepers = known.keepers.body
        if grant.body.job != job or grant.body.worker != self._context.me or grant.author not in (keepers.lead, *keepers.keepers):
            raise RefusedError("a lease that is not for this node", reason=Reason.BAD_GRANT)
        for unit_range in grant.body.ranges:
            check_range(unit_range, known.layout.batch_units)
        check_apart(grant.body.ranges)
        self._take_batches(known, reply)
        known.pulls += 1
        try:
            await self._take_derived(known, NodeKey(lead), grant.body)
        except P2PGridError as error:
            source = self._source_of(known, NodeKey(lead), grant.id)
            for unit_range in grant.body.ranges:
                self._delivering.add_missed(source, unit_range, NO_INPUT, error)
            raise TryAgainError("a derived batch could not be fetched", reason=Reason.NO_INPUT) from error
        finally:
            known.pulls -= 1
        if any(unit_range.batch not in known.batches for unit_range in grant.body.ranges):
            raise RefusedError("a lease of units that are not there", reason=Reason.BAD_GRANT)
        if pull.source not in self.worker.sources:
            return None
        self._reserve(known, grant)
        return core.Leased(pull.source, grant.id, grant.body.ranges)

    async def _take_derived(self, known: KnownJob, lead: NodeKey, grant: Grant) -> None:
        """Fetch the batches that the signed job does not name; nothing else may come in this way."""
        sources = (lead, *known.keepers.body.keepers)
        wanted = {unit_range.batch for unit_range in grant.ranges} - known.batches.keys()
        for number, blob in grant.derived:
            if not len(known.job.body.manifest) <= number < known.layout.batches:
                raise IntegrityError("a lease brings another content for a batch of the manifest", reason=Reason.BAD_GRANT)
            if number in wanted:
                self._jobs.put(known, number, await self._storing.read(BlobId(blob), sources, self._context.limits.batch_bytes), 1)

    def _meet(self, job: bytes, lead: NodeKey, reply: PullReply) -> None:
        """Look at a job for the first time: is it what it says, and may it run here?"""
        context = self._context
        signed = open_envelope(reply.job, Job, context.grid.id, context.wall_ms())
        keepers = open_envelope(reply.keepers, KeeperSet, context.grid.id, context.wall_ms())
        if (
            signed.id != job
            or keepers.body.job != job
            or keepers.author != signed.author
            or lead
            not in (
                keepers.body.lead,
                *keepers.body.keepers,
            )
        ):
            raise RefusedError("the peer does not lead this job", reason=Reason.BAD_GRANT)
        check_job(signed.body, context.limits)
        member = self._peers.member(lead)
        submitter = Member(lead, member.roles, member.lineage, 0) if member else None
        reason = refuse_work(signed.body, submitter, context.me, lead, context.policy, context.wall_ms())
        if reason is not None:
            self._refused[job] = reason
            while len(self._refused) > JOBS_MAX:
                self._refused.pop(next(iter(self._refused)))
            raise RefusedError(f"not run here: {reason.sentence}", reason=reason)
        self._jobs.add(KnownJob(signed, keepers, Layout(signed.body)))

    def _take_batches(self, known: KnownJob, reply: PullReply) -> None:
        manifest = known.job.body.manifest
        for number, content in reply.batches:
            if not 0 <= number < len(manifest) or blob_id_of(content) != manifest[number].blob:
                raise IntegrityError("a batch is not the one in the manifest", reason=Reason.CORRUPT)
            self._jobs.put(known, number, content, manifest[number].units)

    def _reserve(self, known: KnownJob, grant: Signed[Grant]) -> None:
        """Keep the batches of a lease until its last unit has ended."""
        self._owed[grant.id] = sum(unit_range.units for unit_range in grant.body.ranges)
        while len(self._owed) > LEASES_MAX:
            self._owed.pop(next(iter(self._owed)))
        self._jobs.reserve(known, grant.body.ranges)

    # -- running -------------------------------------------------------------------

    async def _run(self, run: core.Run) -> None:
        job, lead = run.source
        known = self._known[job]
        source = self._source_of(known, NodeKey(lead), run.grant)
        files: list[Path] = []
        done = 0

        def on_chunk(chunk: BatchChunk) -> None:
            nonlocal done
            done += len(chunk.outcomes)
            self._on_chunk(known, source, run, chunk)

        try:
            await self._delivering.room()
            task = await self._task(known, run, files)
            await self._pool.run(task, on_chunk)
        except P2PGridError as error:
            self._context.tell(error.reason, f"job {short(job)}: {error}")
            if error.reason not in (Reason.JOB_OVER, Reason.SHUTDOWN) and done < run.range.units:
                left = run.range._replace(start=run.range.start + done, units=run.range.units - done)
                self._delivering.add_missed(source, left, NO_INPUT, error)
        finally:
            self._inputs.release(files)
            self._jobs.release(known, run.range.batch, run.range.units)
            self._end_run(source, run)
            self._handle(core.TaskEnded(run.source))

    @staticmethod
    def _source_of(known: KnownJob, lead: NodeKey, grant: bytes) -> Source:
        return Source(known.job.id, lead, grant, known.keepers.body.keepers, known.job.body)

    def _end_run(self, source: Source, run: core.Run) -> None:
        """One signature for a lease where its tasks are short: only the last of them sends at once what was gathered."""
        left = self._owed.pop(run.grant, 0) - run.range.units
        if left > 0:
            self._owed[run.grant] = left
        else:
            self._delivering.flush(source)

    def _on_chunk(self, known: KnownJob, source: Source, run: core.Run, chunk: BatchChunk) -> None:
        units = len(chunk.outcomes)
        self.done += units
        first = known.layout.number(run.range.batch, run.range.start)
        unit_range = run.range._replace(start=run.range.start + chunk.first - first, units=units)
        self._delivering.add(source, unit_range, chunk)
        self._handle(core.UnitsDone(run.source, units, chunk.run_us / 1e6))

    async def _task(self, known: KnownJob, run: core.Run, held: list[Path]) -> BatchTask:
        """Everything the pool needs for one range of units: code, inputs and files, all of it on this disk.

        ``held`` takes the small input files that were written for it, to be released at its end.
        """
        job = known.job.body
        batch, start, units, _ = run.range
        content = known.batches[batch]
        stop = start + units
        sources = (run.source[1], *known.keepers.body.keepers)
        uses = [use for use in content.blobs if start <= use.unit < stop]
        values = await self._values([use.blob for use in uses if use.kind == VALUE], sources)
        files = await self._files(content, [use.blob for use in uses if use.kind == FILE], sources, held)
        inputs: Sequence[msgspec.Raw] = content.units[start:stop]
        if values:
            kind = known.layout.kind_of(batch)
            derived = kind == REDUCE or (kind == FINISH and not job.derive.reduce)
            inputs = [msgspec.Raw(fill_in(bytes(raw), values, derived=derived)) for raw in inputs]
        source = await self._source(known, sources)
        what = Kind.COMMAND if job.runtime == "command" else KINDS.get(known.layout.kind_of(batch), Kind.FINISH)
        return BatchTask(
            job=JobKey(known.job.author, known.job.id),
            code=Code(source=source, file_name=job.name, seed=job.nonce),
            runtime=job.runtime,
            kind=what,
            first=known.layout.number(batch, start),
            inputs=list(inputs),
            timeout_s=job.limits.timeout_s,
            files=files,
            result_bytes_max=min(job.limits.result_bytes, self._context.limits.result_bytes),
            memory_bytes=job.limits.memory_bytes,
        )

    async def _values(self, blobs: Sequence[bytes], sources: Sequence[bytes]) -> dict[bytes, bytes]:
        """Values that lie in blobs. A job may not fill the memory with them."""
        left_bytes = min(self._context.policy.memory_bytes or VALUES_BYTES_MAX, VALUES_BYTES_MAX)
        values: dict[bytes, bytes] = {}
        for blob in dict.fromkeys(blobs):
            values[blob] = await self._storing.read(BlobId(blob), sources, max(1, left_bytes))
            left_bytes -= len(values[blob])
        return values

    async def _files(self, batch: Batch, blobs: Sequence[bytes], sources: Sequence[bytes], held: list[Path]) -> dict[BlobId, Path]:
        """Where the input files of some units lie: small ones are written from the batch, large ones are blobs."""
        inside = dict(batch.files)
        found: dict[BlobId, Path] = {}
        for blob in dict.fromkeys(blobs):
            content = inside.get(blob)
            if content is None:
                found[BlobId(blob)] = await self._storing.path(BlobId(blob), sources)
            elif blob_id_of(content) == blob:
                found[BlobId(blob)] = await self._inputs.write(BlobId(blob), content, held)
            else:
                raise IntegrityError("an input file does not match its address", reason=Reason.CORRUPT)
        return found

    async def _source(self, known: KnownJob, sources: Sequence[bytes]) -> str:
        job = known.job.body
        if not known.source and (job.code or job.code_blob):
            limit = self._context.limits.bulk_message_bytes
            content = job.code or await self._storing.read(BlobId(job.code_blob), sources, limit)
            try:
                known.source = content.decode()
            except UnicodeDecodeError as error:
                raise MalformedError("the job's code is no text", reason=Reason.MALFORMED) from error
        return known.source

    # -- ends -----------------------------------------------------------------------

    def _on_cancelled(self, session: Session, request: CancelRequest) -> None:
        # Looked at before it is verified, and verified before it is believed: a signature costs more than a message.
        known = self._known.get(decode(peek(request.cancel).body, Cancel).job)
        if known is None:
            return
        cancel = open_envelope(request.cancel, Cancel, self._context.grid.id, self._context.wall_ms())
        if cancel.author == known.job.author:
            self._tasks.spawn(self._stop(cancel.body.job), "cancel")

    async def _stop(self, job: bytes) -> None:
        for source in [source for source in self.worker.sources if source[0] == job]:
            self._end_source(source)
        self._delivering.drop(job)
        await self._pool.cancel(job)

    def _on_gone(self, peer: NodeKey) -> None:
        for source in [source for source in self.worker.sources if source[1] == peer]:
            self._end_source(source)

    def _end_source(self, key: core.SourceKey) -> None:
        """What of its leases has not started will not: nothing is kept for it."""
        known, source = self._known.get(key[0]), self.worker.sources.get(key)
        if known is not None and source is not None:
            for grant, unit_range in source.queue:
                self._jobs.release(known, unit_range.batch, unit_range.units)
                self._owed.pop(grant, None)
        self._handle(core.SourceGone(key))
