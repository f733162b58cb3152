"""Leading jobs: the core's Lead joined to sessions, the job's log and the keepers (docs/spec/job.md).

1. A grant leaves before it is on disk: a lead that crashes in between only makes its units run again. A receipt
   is acknowledged, and its results are shown to anybody, only after it is on disk.
2. A job whose log cannot be written, whose derived units cannot be stored, or whose time is over is stopped, and says why.
3. A keeper that failed is not named again for a while, so that a node without room costs no statement a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import suppress
from typing import Any

from p2pgrid.core import lead as core
from p2pgrid.core.admission import check_job
from p2pgrid.core.keeping import K, draw_keepers, workers_of
from p2pgrid.core.ledger import Ledger
from p2pgrid.errors import MalformedError, P2PGridError, RefusedError, RemoteError, TryAgainError, UnreachableError
from p2pgrid.model import log as kinds
from p2pgrid.model.ids import JobId, NodeKey, StatementId, short
from p2pgrid.model.job import Cancel, Job, KeeperSet, Settled
from p2pgrid.model.reasons import Reason
from p2pgrid.model.work import DecisionEntry, Receipt
from p2pgrid.net.rpc import Session
from p2pgrid.services.context import Context
from p2pgrid.services.delivering import DELIVERY_ITEMS_MAX
from p2pgrid.services.deriving import Deriving
from p2pgrid.services.joblog import JobFile
from p2pgrid.services.jobrows import JobRows
from p2pgrid.services.ledjob import Batches, LedJob, check_batches
from p2pgrid.services.peers import Peers
from p2pgrid.services.pushing import Pushing
from p2pgrid.services.results import check_payload, root_of
from p2pgrid.services.storing import Storing
from p2pgrid.services.tasks import Tasks
from p2pgrid.wire.envelope import Signed, open_envelope, seal
from p2pgrid.wire.messages import CancelRequest, Delivery, DeliveryReply, JobInvite, LogRecord, Ok, Payload, PullReply, PullRequest

TICK_S = 1.0
ENDED_IN_MEMORY_MAX = 64
SETTLE_S = 15.0
"""How long the end of a job waits for its keepers."""
NOT_AGAIN_S = 60.0
ASKS_WITHIN_S = 10.0
"""Who has not asked for units of a job so long after its start is not counted on."""
ASSEMBLE_RETRIES_S = (0.2, 1.0, 3.0, 10.0)
UNIT_PAYLOAD_BYTES_MAX = 64 << 10
"""What one unit may put into a log: an inline result, or the longest account of a failure."""
RECORD_KINDS = {"grant": kinds.GRANT, "receipt": kinds.RECEIPT, "decision": kinds.DECISION, "settled": kinds.SETTLED}


class Leading:
    """All jobs this node leads. ``start`` before use, ``close`` at the end."""

    def __init__(self, context: Context, peers: Peers, storing: Storing) -> None:
        self._context = context
        self._peers = peers
        self._storing = storing
        self._tasks = Tasks("leading")
        self._pushing = Pushing(context, peers)
        self._rows = JobRows(context)
        self._submitting: set[JobId] = set()
        self.deriving = Deriving(context, storing)
        self._batches = Batches(context.offload)
        self.jobs: dict[JobId, LedJob] = {}
        self.forgotten: list[Callable[[JobId], None]] = []
        """Told about jobs that left memory."""
        methods = context.methods
        methods.on("job.pull", PullRequest, self._on_pull, role="work")
        methods.on("job.deliver", Delivery, self._on_deliver)
        methods.on("job.cancel", CancelRequest, self._on_cancel)

    async def start(self) -> None:
        self._peers.on_gone(self._on_gone)
        self._peers.on_restarted(self._on_restarted)
        self._tasks.spawn(self._tick(), "tick")

    async def close(self) -> None:
        await self._tasks.close()
        await self._pushing.close()
        await self._rows.close()

    # -- the life of a job -------------------------------------------------------

    async def submit(self, raw: bytes, batches: Iterable[bytes]) -> LedJob:
        """Take a job over from its submitter: log it, name keepers, begin to lead. ``batches`` in manifest order.

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
        known = self.jobs.get(job_id)
        if known is not None:
            await known.file.wait(known.file.end)
            return known
        running = len([led for led in self.jobs.values() if not led.ended.is_set()])
        if job_id in self._submitting or running + len(self._submitting) >= context.limits.jobs_led:
            raise TryAgainError("this node already leads as many jobs as it may", reason=Reason.BUSY)
        check_job(job.body, context.limits)
        contents = list(batches)
        check_batches(job.body, contents)
        self._submitting.add(job_id)
        try:
            return await self._begin(job, contents)
        finally:
            self._submitting.discard(job_id)

    async def _begin(self, job: Signed[Job], batches: Sequence[bytes]) -> LedJob:
        context = self._context
        job_id = JobId(job.id)
        file = JobFile(job_id, lambda: context.ledgers.log(job_id), context.log_port)
        if context.ledgers.has(job_id):
            raise RefusedError("this job was submitted before", reason=Reason.STALE, hint="submit it as a new one")
        ledger = Ledger(job)
        keepers = self._name_keepers(job, ())
        ledger.add(keepers)
        lead = core.Lead(ledger, self._seal, context.rng)
        led = LedJob(job, file, lead)
        led.started_s = context.clock()
        file.post([LogRecord(kinds.JOB, job.raw), LogRecord(kinds.KEEPERS, keepers.raw)], lazy=True)
        await self._log_batches(led, batches)
        durable = file.end
        self.jobs[led.id] = led
        self._rows.put(led.row())
        self._pushing.add(led.id, file, keepers, self._replace_keeper)
        self._tasks.spawn(self._replicate_inputs(led), "inputs")
        self._apply(led, lead.handle(core.WorkersKnown(self._workers(led)), context.clock(), context.wall_ms()))
        try:
            # Workers are invited while the disk still writes; the submitter is told, and results count, only afterwards.
            await file.wait(durable)
        except P2PGridError as error:
            self._break_off(led, error.message)
            raise
        return led

    async def _log_batches(self, led: LedJob, batches: Sequence[bytes]) -> None:
        try:
            for number, content in enumerate(batches):
                await led.file.calm()
                (led.batch_at[number],) = led.file.post([LogRecord(kinds.BATCH, content)], lazy=True)
                self._batches.put(led.id, number, content)
        except P2PGridError:
            # Nobody was told of the job: half of it must not be found here after a restart.
            await led.file.quiet()
            with suppress(P2PGridError):
                self._context.log_port.remove(led.id, lambda error: None)
            raise

    def _name_keepers(
        self, job: Signed[Job], have: tuple[bytes, ...], epoch: int = 0, not_these: Container[bytes] = ()
    ) -> Signed[KeeperSet]:
        context = self._context
        willing = [
            key
            for key in sorted(self._peers.with_role("store"))
            if key != context.me and key not in not_these and self._peers.info(key).offer.storage_bytes
        ]
        keepers = draw_keepers(willing, have, context.rng)
        statement = KeeperSet(job.body.expires_ms, job.id, epoch, context.me, keepers)
        return seal(statement, context.submitter, context.grid.id)

    def _replace_keeper(self, job: JobId, failed: bytes | None) -> None:
        """A keeper is gone or refused (or, with None, the set is short): name others if there are any."""
        led = self.jobs.get(job)
        if led is None or led.ledger.keepers is None or led.state == "stopped":
            return
        now_s = self._context.clock()
        if failed is not None:
            led.passed_over[failed] = now_s + NOT_AGAIN_S
        led.passed_over = {key: until_s for key, until_s in led.passed_over.items() if until_s > now_s}
        current = led.ledger.keepers.body
        have = tuple(key for key in current.keepers if key != failed)
        named = self._name_keepers(led.job, have, current.epoch + 1, led.passed_over)
        if named.body.keepers == current.keepers:
            return
        led.file.post([LogRecord(kinds.KEEPERS, named.raw)])
        led.ledger.add(named)
        self._pushing.set_keepers(job, named)

    async def _replicate_inputs(self, led: LedJob) -> None:
        """Copies of the code and of input files on r nodes, keepers first, while the job already runs."""
        keepers = led.ledger.keepers
        prefer = keepers.body.keepers if keepers else ()
        blobs = await self.deriving.input_blobs(led.job.body, lambda number: self._batches.get(led, number))
        for blob in blobs:
            await self._storing.replicate(blob, led.job.body.replicas, prefer, led.job.body.expires_ms)

    def _seal(self, statement: Any) -> Signed[Any]:
        return seal(statement, self._context.key, self._context.grid.id)

    async def cancel(self, raw: bytes) -> None:
        """Carry out the submitter's signed cancel, here and at everybody concerned."""
        cancel = open_envelope(raw, Cancel, self._context.grid.id, self._context.wall_ms())
        led = self.jobs.get(JobId(StatementId(cancel.body.job)))
        if led is None:
            raise RefusedError("this node does not lead the job", reason=Reason.UNKNOWN_JOB)
        if cancel.author != led.job.author:
            raise RefusedError("only its submitter cancels a job", reason=Reason.NO_ROLE)
        if led.ended.is_set() or not led.ledger.add(cancel):
            return
        self._apply(led, led.lead.handle(core.Stopped(), self._context.clock(), self._context.wall_ms()))
        for worker in sorted(led.lead.workers.keys() | led.lead.known):
            self._peers.notify(NodeKey(worker), "job.cancelled", CancelRequest(raw))
        await led.file.append([LogRecord(kinds.CANCEL, raw)])
        self._end(led, "cancelled")

    # -- workers -----------------------------------------------------------------

    async def _on_pull(self, session: Session, request: PullRequest) -> PullReply:
        led = self._led(request.job)
        context = self._context
        want, slots = max(1, min(request.want, 1 << 16)), max(1, min(request.slots, 4096))
        if session.peer not in self._workers(led) | led.lead.known:
            return PullReply(over=led.ended.is_set())
        pulled = core.Pulled(session.peer, session.peer, slots, want)
        granted = self._apply(led, led.lead.handle(pulled, context.clock(), context.wall_ms()))
        assert granted is not None
        if granted.grant is None:
            return PullReply(granted.over)
        keepers = led.ledger.keepers
        head = (led.job.raw, keepers.raw if keepers else b"") if request.need_job else (b"", b"")
        sent = led.sent.setdefault(session.peer, set())
        sent.intersection_update(request.have)
        needed = sorted({unit_range.batch for unit_range in granted.grant.body.ranges} - sent)
        try:
            batches = [(number, await self._batches.get(led, number)) for number in needed if number < len(led.job.body.manifest)]
        except P2PGridError:
            # The lease never arrives: its units must not wait for its deadline.
            self._apply(led, led.lead.handle(core.WorkerGone(session.peer), context.clock(), context.wall_ms()))
            raise
        sent.update(number for number, _ in batches)
        return PullReply(False, granted.grant.raw, *head, tuple(batches))

    async def _on_deliver(self, session: Session, delivery: Delivery) -> DeliveryReply:
        led = self._led(delivery.job)
        context = self._context
        if led.file.failed is not None:
            # Its memory is ahead of its disk: nothing may be acknowledged any more.
            raise TryAgainError("the log of this job cannot be written", reason=Reason.DISK_FULL)
        if len(delivery.items) > DELIVERY_ITEMS_MAX:
            raise MalformedError("too many receipts in one message", reason=Reason.MALFORMED)
        await led.file.calm()
        refused: list[str] = []
        for item in delivery.items:
            try:
                receipt = open_envelope(item.receipt, Receipt, context.grid.id, context.wall_ms())
                if len(item.payload) > len(receipt.body.outcomes) * UNIT_PAYLOAD_BYTES_MAX + 64:
                    raise MalformedError("a payload over its limit", reason=Reason.TOO_LARGE)
                payload = self._checked_payload(led, session.peer, receipt.body, item.payload)
                effects = led.lead.handle(core.Delivered(receipt), context.clock(), context.wall_ms())
            except P2PGridError as error:
                if error.reason == Reason.BAD_SIGNATURE:
                    # Checking costs more than sending: nobody gets two in one message.
                    raise
                refused.append(error.reason or Reason.MALFORMED)
                continue
            refused.append("")
            led.payloads.put(receipt.body.payload, payload, len(item.payload))
            self._apply(led, effects, (receipt, item.payload))
        end = led.file.end
        await led.file.wait(end)
        return DeliveryReply(tuple(refused))

    def _checked_payload(self, led: LedJob, worker: NodeKey, receipt: Receipt, payload: bytes) -> Payload:
        """Raises as check_payload. Who sends what does not fit holds no lease any longer: others get its units at once."""
        try:
            return check_payload(receipt, payload)
        except RemoteError:
            if worker in led.lead.workers:
                self._apply(led, led.lead.handle(core.WorkerGone(worker), self._context.clock(), self._context.wall_ms()))
            raise

    async def _on_cancel(self, session: Session, request: CancelRequest) -> Ok:
        await self.cancel(request.cancel)
        return Ok()

    def _on_gone(self, peer: NodeKey) -> None:
        """The session to a peer ended and it cannot be dialled again: its leases are returned, and another keeps what it kept."""
        self._on_restarted(peer)
        for led in list(self.jobs.values()):
            keepers = led.ledger.keepers
            if keepers is not None and peer in keepers.body.keepers and not led.ended.is_set() and led.file.failed is None:
                self._replace_keeper(led.id, peer)

    def _on_restarted(self, peer: NodeKey) -> None:
        """A peer knows nothing any more of what it had begun, though its session may never have been missed."""
        now, now_ms = self._context.clock(), self._context.wall_ms()
        for led in list(self.jobs.values()):
            led.sent.pop(peer, None)
            if peer in led.lead.workers:
                self._apply(led, led.lead.handle(core.WorkerGone(peer), now, now_ms))

    def _workers(self, led: LedJob) -> frozenset[bytes]:
        keepers = led.ledger.keepers.body.keepers if led.ledger.keepers else ()
        known = self._peers.workers_for(led.job.body)
        waited = self._context.clock() - led.started_s > ASKS_WITHIN_S
        return workers_of(known, keepers, led.job.body.quorum, known - led.lead.workers.keys() if waited else frozenset())

    def _led(self, job: bytes) -> LedJob:
        led = self.jobs.get(JobId(StatementId(job)))
        if led is None:
            raise RefusedError("this node does not lead the job", reason=Reason.UNKNOWN_JOB)
        return led

    # -- effects -------------------------------------------------------------------

    def _apply(self, led: LedJob, effects: list[core.Effect], payload: tuple[Signed[Receipt], bytes] | None = None) -> core.Granted | None:
        """Carry out what the core decided: records in one post, messages, and what follows on disk."""
        granted: core.Granted | None = None
        records: list[LogRecord] = []
        decided: list[DecisionEntry] = []
        for effect in effects:
            match effect:
                case core.Granted():
                    granted = effect
                case core.Record(statements):
                    for statement in statements:
                        records.append(LogRecord(RECORD_KINDS[statement.body.TYPE], statement.raw))
                        if payload is not None and statement is payload[0]:
                            records.append(LogRecord(kinds.PAYLOAD, payload[1]))
                case core.Decided(entries):
                    decided.extend(entries)
                case core.Invite(workers):
                    self._invite(led, workers)
                case core.AssembleDerived(batches):
                    self._tasks.spawn(self._assemble(led, batches), "derive")
                case core.Over():
                    self._tasks.spawn(self._finish(led), "finish")
        if records:
            # A lease waits for its receipts: until then nobody is told of it but the worker.
            cursors = led.file.post(records, lazy=all(record.kind == kinds.GRANT for record in records))
            if payload is not None:
                for record, cursor in zip(records, cursors, strict=True):
                    if record.kind == kinds.PAYLOAD:
                        led.payload_at[payload[0].body.payload] = cursor
        if decided:
            for watcher in list(led.watchers):
                watcher(decided)
        return granted

    def _invite(self, led: LedJob, workers: Sequence[bytes]) -> None:
        body = led.job.body
        invite = JobInvite(led.id, body.runtime, body.limits.memory_bytes, body.expires_ms)
        for worker in workers:
            self._peers.notify(NodeKey(worker), "job.invite", invite)

    async def _assemble(self, led: LedJob, batches: Sequence[int]) -> None:
        """Build derived batches one after the other; each is leased as soon as it is stored."""
        for number in batches:
            for wait_s in (*ASSEMBLE_RETRIES_S, None):
                if led.ended.is_set():
                    return
                try:
                    await self._assemble_one(led, number)
                    break
                except P2PGridError as error:
                    if not error.retryable or wait_s is None:
                        self._break_off(led, f"its results could not be joined: {error.message}")
                        return
                    await asyncio.sleep(wait_s)

    async def _assemble_one(self, led: LedJob, number: int) -> None:
        content = await self.deriving.content(led, number)
        keepers = led.ledger.keepers.body.keepers if led.ledger.keepers else ()
        blob = await self._storing.keep_bytes(content, led.job.body.expires_ms, led.job.body.replicas, keepers)
        event = core.DerivedReady(number, blob)
        self._apply(led, led.lead.handle(event, self._context.clock(), self._context.wall_ms()))

    async def _finish(self, led: LedJob) -> None:
        """Sign the end of the job, and wait until every keeper has it."""
        if led.ended.is_set() or led.ledger.cancelled is not None:
            return
        # The last results go out as soon as they are on disk: nothing here may stand in their way.
        with suppress(P2PGridError):
            await led.file.wait(led.file.end)
        ledger = led.ledger
        root = root_of(ledger, range(ledger.layout.batches))
        statement = Settled(led.job.body.expires_ms, led.id, ledger.done, ledger.failed, root)
        settled = seal(statement, self._context.submitter, self._context.grid.id)
        ledger.add(settled)
        await led.file.append([LogRecord(kinds.SETTLED, settled.raw)])
        try:
            await asyncio.wait_for(self._pushing.complete(led.id), SETTLE_S)
        except (TimeoutError, UnreachableError):
            led.keepers_note = "not every keeper has confirmed the end of the job"
        self._end(led, "failed" if ledger.failed else "done")

    def _end(self, led: LedJob, state: str) -> None:
        """The first end counts."""
        if led.ended.is_set():
            return
        led.state = state
        led.ended.set()
        self._rows.put(led.row())
        self._context.tell(led.state, f"job {short(led.id)} {led.state}")
        for watcher in list(led.watchers):
            watcher(())

    def _break_off(self, led: LedJob, why: str) -> None:
        """The job cannot go on here: stop leasing and say so; what the keepers have stays readable."""
        if not led.ended.is_set():
            led.lead.handle(core.Stopped(), self._context.clock(), self._context.wall_ms())
            led.keepers_note = f"the job was stopped: {why}"
            self._end(led, "stopped")

    def _forget_ended(self) -> None:
        """Ended jobs need not stay in memory: they are read from the disk when they are asked for."""
        ended = [
            job
            for job, led in self.jobs.items()
            if led.ended.is_set() and not led.watchers and (led.file.settled or led.file.failed is not None)
        ]
        for job in ended[: max(0, len(ended) - ENDED_IN_MEMORY_MAX)]:
            del self.jobs[job]
            self._pushing.remove(job)
            for forget in self.forgotten:
                forget(job)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._forget_ended()
            for led in list(self.jobs.values()):
                if not led.ended.is_set():
                    try:
                        self._look_after(led, self._context.clock(), self._context.wall_ms())
                    except P2PGridError as error:
                        self._context.tell(error.reason, f"job {short(led.id)}: {error}")

    def _look_after(self, led: LedJob, now: float, now_ms: int) -> None:
        if led.file.failed is not None:
            self._break_off(led, led.file.failed.message)
            return
        if led.job.body.expires_ms < now_ms:
            self._break_off(led, "its time is over")
            return
        self._apply(led, led.lead.handle(core.WorkersKnown(self._workers(led)), now, now_ms))
        self._apply(led, led.lead.handle(core.Tick(), now, now_ms))
        keepers = led.ledger.keepers
        if keepers is not None and len(keepers.body.keepers) < K:
            self._replace_keeper(led.id, None)
