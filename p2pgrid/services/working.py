"""Working for leads: the core's Worker joined to sessions and to the pool of worker processes (docs/spec/worker.md)."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from p2pgrid.core import worker as core
from p2pgrid.core.admission import refuse_work
from p2pgrid.core.layout import FINISH, MAP, REDUCE, Layout
from p2pgrid.errors import IntegrityError, P2PGridError, RefusedError
from p2pgrid.model.blob import blob_id_of
from p2pgrid.model.ids import BlobId, NodeKey, short
from p2pgrid.model.job import Batch, Cancel, Job, KeeperSet
from p2pgrid.model.membership import Member
from p2pgrid.model.reasons import Reason
from p2pgrid.model.work import NO_INPUT, Grant
from p2pgrid.net.rpc import Session
from p2pgrid.runtimes.pool import WorkerPool
from p2pgrid.runtimes.tasks import BatchChunk, BatchTask, Code, JobKey, Kind
from p2pgrid.services.context import Context
from p2pgrid.services.delivering import Delivering, Source
from p2pgrid.services.inputs import FILE, VALUE, decode_batch, fill_in
from p2pgrid.services.peers import Peers
from p2pgrid.services.storing import Storing
from p2pgrid.services.tasks import Tasks
from p2pgrid.wire.envelope import Signed, open_envelope
from p2pgrid.wire.messages import CancelRequest, JobInvite, PullReply, PullRequest

JOBS_MAX = 256
LEASES_MAX = 4096
KINDS = {MAP: Kind.MAP, REDUCE: Kind.REDUCE}
PULL_S = 15.0


@dataclass
class _Known:
    """A job this node works for."""

    job: Signed[Job]
    keepers: Signed[KeeperSet]
    layout: Layout
    source: str = ""
    batches: dict[int, Batch] = field(default_factory=dict)
    users: dict[int, int] = field(default_factory=dict)
    """Leases that still need a batch."""


class Working:
    """Pulls, runs, and hands results to :class:`Delivering`."""

    def __init__(self, context: Context, peers: Peers, storing: Storing, pool: WorkerPool, inputs: Path) -> None:
        """``inputs``: a folder for small input files; nothing in it outlives the node."""
        self._context = context
        self._peers = peers
        self._storing = storing
        self._pool = pool
        self._inputs = inputs
        self._tasks = Tasks("working")
        self._delivering = Delivering(context, peers, storing)
        self._known: dict[bytes, _Known] = {}
        self._refused: dict[bytes, Reason] = {}
        self._owed: dict[bytes, int] = {}
        """Units of each lease whose tasks have not ended; bounded, and of a forgotten lease every task counts as the last."""
        self.worker = core.Worker(context.policy.cores)
        self.done = 0
        context.methods.on_notify("job.invite", JobInvite, self._on_invite)
        context.methods.on_notify("job.cancelled", CancelRequest, self._on_cancelled)

    async def start(self) -> None:
        self._peers.on_gone(self._on_gone)

    async def close(self) -> None:
        await self._tasks.close()
        await self._delivering.close()

    # -- invitations and leases ------------------------------------------------------

    def _on_invite(self, session: Session, invite: JobInvite) -> None:
        policy = self._context.policy
        if policy.cores < 1 or invite.runtime not in policy.runtimes or invite.job in self._refused:
            return
        if invite.expires_ms < self._context.wall_ms() or self._delivering.congested or len(self.worker.sources) >= JOBS_MAX:
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
        have = tuple(known.batches) if known else ()
        request = PullRequest(job, pull.slots, pull.want, known is None, have)
        try:
            reply = await self._peers.call(NodeKey(lead), "job.pull", request, PullReply, timeout_s=PULL_S)
            leased = await self._take_lease(pull, reply)
        except P2PGridError as error:
            if not error.retryable:
                self._context.tell(error.reason, f"job {short(job)}: {error}")
            self._handle(core.Dry(pull.source, over=not error.retryable))
            return
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
        self._take_batches(known, reply)
        for number, blob in grant.body.derived:
            if number not in known.batches:
                content = await self._storing.read(BlobId(blob), (lead, *keepers.keepers), self._context.limits.batch_bytes)
                known.batches[number] = decode_batch(content, 1)
        for unit_range in grant.body.ranges:
            batch = known.batches.get(unit_range.batch)
            if batch is None or unit_range.start < 0 or unit_range.start + unit_range.units > len(batch.units) or unit_range.units < 1:
                raise RefusedError("a lease of units that are not there", reason=Reason.BAD_GRANT)
        self._reserve(known, grant)
        return core.Leased(pull.source, grant.id, grant.body.ranges)

    def _meet(self, job: bytes, lead: NodeKey, reply: PullReply) -> None:
        """Look at a job for the first time: is it what it says, and may it run here?"""
        context = self._context
        signed = open_envelope(reply.job, Job, context.grid.id, context.wall_ms())
        keepers = open_envelope(reply.keepers, KeeperSet, context.grid.id, context.wall_ms())
        if signed.id != job or keepers.body.job != job or keepers.author != signed.author or lead not in (
            keepers.body.lead,
            *keepers.body.keepers,
        ):
            raise RefusedError("the peer does not lead this job", reason=Reason.BAD_GRANT)
        member = self._peers.member(lead)
        submitter = Member(lead, member.roles, member.lineage, 0) if member else None
        reason = refuse_work(signed.body, submitter, context.me, lead, context.policy, context.wall_ms())
        if reason is not None:
            self._refused[job] = reason
            while len(self._refused) > JOBS_MAX:
                self._refused.pop(next(iter(self._refused)))
            raise RefusedError(f"not run here: {reason.sentence}", reason=reason)
        while len(self._known) >= JOBS_MAX:
            idle = next((key for key, known in self._known.items() if not any(known.users.values())), None)
            if idle is None:
                raise RefusedError("too many jobs at once", reason=Reason.BUSY)
            del self._known[idle]
        self._known[job] = _Known(signed, keepers, Layout(signed.body))

    def _take_batches(self, known: _Known, reply: PullReply) -> None:
        manifest = known.job.body.manifest
        for number, content in reply.batches:
            if not 0 <= number < len(manifest) or blob_id_of(content) != manifest[number].blob:
                raise IntegrityError("a batch is not the one in the manifest", reason=Reason.CORRUPT)
            known.batches[number] = decode_batch(content, manifest[number].units)

    def _reserve(self, known: _Known, grant: Signed[Grant]) -> None:
        """Keep the batches of a lease until its last unit has ended; drop those that nobody needs."""
        self._owed[grant.id] = sum(unit_range.units for unit_range in grant.body.ranges)
        while len(self._owed) > LEASES_MAX:
            self._owed.pop(next(iter(self._owed)))
        for number in {unit_range.batch for unit_range in grant.body.ranges}:
            known.users[number] = known.users.get(number, 0)
        for unit_range in grant.body.ranges:
            known.users[unit_range.batch] += unit_range.units
        idle = [number for number in known.batches if not known.users.get(number)]
        for number in idle[:-4]:
            known.batches.pop(number, None)
            known.users.pop(number, None)

    # -- running -------------------------------------------------------------------

    async def _run(self, run: core.Run) -> None:
        job, lead = run.source
        known = self._known[job]
        source = Source(job, NodeKey(lead), run.grant, known.keepers.body.keepers, known.job.body)
        try:
            task = await self._task(known, run)
        except P2PGridError as error:
            self._delivering.add_missed(source, run.range, NO_INPUT, error)
        else:
            try:
                await self._pool.run(task, lambda chunk: self._on_chunk(source, run, chunk))
            except P2PGridError as error:
                self._context.tell(error.reason, f"job {short(job)}: {error}")
        finally:
            known.users[run.range.batch] = max(0, known.users.get(run.range.batch, 0) - run.range.units)
            self._end_run(source, run)
            self._handle(core.TaskEnded(run.source))

    def _end_run(self, source: Source, run: core.Run) -> None:
        """One signature for a lease where its tasks are short: only the last of them sends at once what was gathered."""
        left = self._owed.pop(run.grant, 0) - run.range.units
        if left > 0:
            self._owed[run.grant] = left
        else:
            self._delivering.flush(source)

    def _on_chunk(self, source: Source, run: core.Run, chunk: BatchChunk) -> None:
        units = len(chunk.outcomes)
        self.done += units
        first = self._known[run.source[0]].layout.number(run.range.batch, run.range.start)
        unit_range = run.range._replace(start=run.range.start + chunk.first - first, units=units)
        self._delivering.add(source, unit_range, chunk)
        self._handle(core.UnitsDone(run.source, units, chunk.run_us / 1e6))

    async def _task(self, known: _Known, run: core.Run) -> BatchTask:
        """Everything the pool needs for one range of units: code, inputs and files, all of it on this disk."""
        job = known.job.body
        batch, start, units, _ = run.range
        content = known.batches[batch]
        stop = start + units
        sources = (run.source[1], *known.keepers.body.keepers)
        uses = [use for use in content.blobs if start <= use.unit < stop]
        values = {use.blob: await self._storing.read(BlobId(use.blob), sources, 0) for use in uses if use.kind == VALUE}
        files = await self._files(content, [use.blob for use in uses if use.kind == FILE], sources)
        inputs: Sequence[msgspec.Raw] = content.units[start:stop]
        if values:
            kind = known.layout.kind_of(batch)
            derived = kind == REDUCE or (kind == FINISH and not job.derive.reduce)
            inputs = [msgspec.Raw(fill_in(bytes(raw), values, derived=derived)) for raw in inputs]
        source = job.code.decode() if job.code else await self._source(known, sources)
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

    async def _files(self, batch: Batch, blobs: Sequence[bytes], sources: Sequence[bytes]) -> dict[BlobId, Path]:
        """Where the input files of some units lie: small ones are written from the batch, large ones are blobs."""
        inside = dict(batch.files)
        found: dict[BlobId, Path] = {}
        for blob in dict.fromkeys(blobs):
            content = inside.get(blob)
            if content is None:
                found[BlobId(blob)] = await self._storing.path(BlobId(blob), sources)
            elif blob_id_of(content) == blob:
                found[BlobId(blob)] = await self._context.offload.run(_write_input, self._inputs / blob.hex(), content)
            else:
                raise IntegrityError("an input file does not match its address", reason=Reason.CORRUPT)
        return found

    async def _source(self, known: _Known, sources: Sequence[bytes]) -> str:
        if not known.source and known.job.body.code_blob:
            content = await self._storing.read(BlobId(known.job.body.code_blob), sources, self._context.limits.bulk_message_bytes)
            known.source = content.decode()
        return known.source

    # -- ends -----------------------------------------------------------------------

    def _on_cancelled(self, session: Session, request: CancelRequest) -> None:
        cancel = open_envelope(request.cancel, Cancel, self._context.grid.id, self._context.wall_ms())
        known = self._known.get(cancel.body.job)
        if known is None or cancel.author != known.job.author:
            return
        self._tasks.spawn(self._stop(cancel.body.job, known), "cancel")

    async def _stop(self, job: bytes, known: _Known) -> None:
        for source in [source for source in self.worker.sources if source[0] == job]:
            self._handle(core.SourceGone(source))
        self._delivering.drop(job)
        await self._pool.cancel(job)

    def _on_gone(self, peer: NodeKey) -> None:
        for source in [source for source in self.worker.sources if source[1] == peer]:
            self._handle(core.SourceGone(source))




def _write_input(path: Path, content: bytes) -> Path:
    """Blocking: write a small input file unless it is there. Renamed into place, as two batches may need it at once."""
    if not path.exists():
        temporary = path.with_suffix(f".{threading.get_ident()}")
        temporary.write_bytes(content)
        temporary.replace(path)
    return path
